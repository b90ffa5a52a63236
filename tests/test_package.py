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
[mypy-torch.*,torchvision.*,numpy.*,transformers.*,timm.*,huggingface_hub.*,av.*,pyarrow.*]
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


USE = """\
from pathlib import Path
from typing import BinaryIO
import vab
from vab import MediaFile, SettingError, VABPipeline
from PIL import Image

pipe = VABPipeline.from_pretrained(device="cuda:0", torch_dtype="bfloat16", revision="main")
def use(file: BinaryIO, image: Image.Image, images: list[Image.Image]) -> None:
    reveal_type(pipe)
    reveal_type(pipe.generate("dog.mp4"))
    reveal_type(pipe(Path("dog.mp4"), seed=1, keep=(2, 4), seconds=3.0))
    reveal_type(pipe(b"", steps=2))
    reveal_type(pipe(file))
    reveal_type(pipe(image))
    reveal_type(pipe(MediaFile("dog.mp4")))
    reveal_type(pipe(["a.mp4", "b.mp4"]))
    reveal_type(pipe(images, fps=25))
    reveal_type(pipe.embed("dog.mp4"))
    reveal_type(pipe.embed(["a.mp4", b""]))
    reveal_type(pipe.classify(image, by="video"))
    reveal_type(pipe.to("cpu").to(dtype="float16"))
    reveal_type(vab.__version__)
    reveal_type(vab.preset)
    pipe.generate("dog.mp4", seeds=1)
    pipe.classify("dog.mp4", by="ear")
    pipe(3)
    vab.nothing
"""
TYPES = [
    "vab.inference.pipeline.VABPipeline",
    *["vab.inference.audio.Audio"] * 6,
    "list[vab.inference.audio.Audio]",
    "vab.inference.audio.Audio | list[vab.inference.audio.Audio]",
    "dict[Literal['audio'] | Literal['video'], ndarray]",
    "list[dict[Literal['audio'] | Literal['video'], ndarray]]",
    "dict[str, float]",
    "vab.inference.pipeline.VABPipeline",
    "str",
    "def (name: str) -> vab.config.Preset",
]


def test_a_users_type_checker_sees_our_types(tmp_path: Path) -> None:
    lines = user_mypy(tmp_path, USE)
    told = [re.sub(r"^.*Revealed type is \"(.*)\"$", r"\1", line) for line in lines if "Revealed" in line]
    told = [re.sub(r"builtins\.|numpy\.(?=ndarray)|(?<=ndarray)\[.*?\]{2}", "", line) for line in told]
    assert told == TYPES
    wrong = USE.splitlines().index('    pipe.generate("dog.mp4", seeds=1)') + 1
    for line, code in ((wrong, "call-overload"), (wrong + 1, "call-overload"), (wrong + 2, "call-overload")):
        assert any(re.match(rf"program.py:{line}: error: .*\[{code}\]", said) for said in lines), lines
    assert f'program.py:{wrong + 3}: error: Module has no attribute "nothing"  [attr-defined]' in lines
    assert re.match(r"Found [45] errors in 1 file", lines[-1])


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
