"""What the package promises those who install it: types that a checker sees, dependencies with bounds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vab

ROOT = Path(__file__).resolve().parents[1]

# What others' packages say is not looked at: it would take minutes, and our types are the question.
SETTINGS = """\
[mypy-torch.*,torchvision.*,numpy.*,transformers.*,timm.*,huggingface_hub.*,av.*,PIL.*,pyarrow.*]
follow_imports = skip
[mypy-lightning_fabric.*,safetensors.*,yaml.*]
follow_imports = skip
"""


def user_mypy(folder: Path, program: str) -> list[str]:
    """What mypy tells a user about a program of his own, in a folder of his own, without our settings."""
    pytest.importorskip("mypy", reason="no mypy: pip install 'vab[dev]'")
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    (folder / "program.py").write_text(program, encoding="utf-8")
    # The folder above vab is on the path as site-packages is, where a package without py.typed has no types.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, "program.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_users_type_checker_sees_our_types(tmp_path: Path) -> None:
    program = """\
import vab
from vab import VABPipeline

pipe = VABPipeline.from_pretrained()
reveal_type(pipe)
reveal_type(pipe.generate("dog.mp4"))
reveal_type(vab.preset)
pipe.generate("dog.mp4", seeds=1)
vab.nothing
"""
    lines = user_mypy(tmp_path, program)
    assert lines[:3] == [
        'program.py:5: note: Revealed type is "vab.inference.pipeline.VABPipeline"',
        'program.py:6: note: Revealed type is "vab.inference.pipeline.Audio"',
        'program.py:7: note: Revealed type is "def (name: str) -> vab.config.Preset"',
    ]
    assert re.search(r'program.py:8: error: Unexpected keyword argument "seeds"', "\n".join(lines))
    assert 'program.py:9: error: Module has no attribute "nothing"  [attr-defined]' in lines
    assert lines[-1].startswith("Found 2 errors in 1 file")


def test_every_public_name_has_a_type(tmp_path: Path) -> None:
    # __all__, the names handed out at run time and the imports for type checkers are three lists of the same.
    program = "\n".join(["import vab", *(f"reveal_type(vab.{name})" for name in vab.__all__)])
    told = [line for line in user_mypy(tmp_path, program) if "Revealed type" in line]
    assert len(told) == len(vab.__all__)
    assert [line for line in told if line.endswith('"Any"')] == []
    for name in vab.__all__:
        assert getattr(vab, name) is not None


def test_the_lowest_versions_cover_every_dependency() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "lowest.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    constraints = dict(line.split("==") for line in done.stdout.splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert "dev" in extras, "the tools are what is left out"
    wanted = [
        *project["dependencies"],
        *(line for extra in extras if extra != "dev" for line in extras[extra]),
    ]
    assert set(constraints) == {re.split(r"[^\w.-]", line)[0] for line in wanted}
    assert all(re.fullmatch(r"\d+(\.\d+)*", lowest) for lowest in constraints.values())
