"""``make gpu``: each part ends in time, its page says what became of it, and a bare machine is enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vab.bench.gpu import checks, extraction, training
from vab.bench.gpu.page import Page
from vab.bench.gpu.parts import GPU_PARTS, TRAIN_PARTS
from vab.bench.gpu.runner import Part, run
from vab.training.batches import Batch
from vab.training.run import TrainingRun

SRC = Path(__file__).resolve().parents[1] / "src"
PARTS = "gpu_parts"  # beside this file
ABOUT = {"card": "A Card (1 GB)", "date": "2026-01-02 03:04", "command": "a | b"}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SRC), str(Path(__file__).parent)]))
    limits = {"hangs": 3.0}
    names = ("fails", "hangs", "dies", "unsure", "works")
    parts = [Part(name, f"{PARTS}:{name}", limits.get(name, 60)) for name in names]
    return run("gpu", ABOUT, parts, tmp_path / "pages", "cpu", True, 120, lambda line: None)


def test_the_page_says_what_became_of_each_part(page: Page) -> None:
    assert [path.name for path in page.paths] == [
        f"gpu_a-card-1-gb_2026-01-02{end}" for end in (".md", ".json")
    ]
    text, document = page.paths[0].read_text(), json.loads(page.paths[1].read_text())
    found = {part["name"]: part for part in document["parts"]}
    assert {name: part["status"] for name, part in found.items()} == {
        "fails": "failed",
        "hangs": "took too long",
        "dies": "failed",
        "unsure": "done",
        "works": "done",
    }
    assert found["fails"]["error"] == "ValueError: no such thing" and found["fails"]["rows"] == [
        {"before": 1}
    ]
    # what it had before it was ended is kept, and nothing of it runs on
    assert found["hangs"]["lines"] == ["it came this far"] and 3 <= found["hangs"]["seconds"] < 12
    assert not alive(found["hangs"]["rows"][0]["child"])
    assert "3" in found["dies"]["error"] and "out of luck" in found["dies"]["error"]
    assert found["unsure"]["failed"] == ["equal (float32)"]
    assert found["works"]["title"] == "A part that works" and found["works"]["lines"] == ["a line"]
    assert (page.folder / "left.txt").read_text() == "cpu True"
    assert [section.good for section in page.sections] == [False, False, False, False, True]
    for words in (
        "## A part that works",
        "| 1,234 | yes |",
        "x\\|y",
        "Checks not met",
        "took too long",
        "a \\| b",
    ):
        assert words in text
    assert document["about"] == ABOUT


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for nobody does not."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_there_is_no_time_for_is_not_reached(tmp_path: Path) -> None:
    page = run(
        "gpu", ABOUT, [Part("works", f"{PARTS}:works", 60)], tmp_path, "cpu", True, 0.5, lambda line: None
    )
    assert page.sections[0].status == "not reached" and "not reached" in page.paths[0].read_text()


def test_a_device_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = start("gpu", "--device", "cuda", "--pages", str(tmp_path))
    assert done.returncode == 1 and "cuda cannot be used" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def start(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport sys; from vab.bench.gpu.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )


BLOCKED = ("av", "tyro", "lancedb", "starlette", "playwright", "ray", "s3fs")


def test_no_part_needs_a_video_library() -> None:
    # the modules of all parts, where what may be missing is missing
    modules = sorted({part.function.partition(":")[0] for part in (*GPU_PARTS, *TRAIN_PARTS)})
    assert modules
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_part_is_a_documented_function() -> None:
    from importlib import import_module

    for part in (*GPU_PARTS, *TRAIN_PARTS):
        module, _, name = part.function.partition(":")
        assert getattr(import_module(module), name).__doc__


def test_parts_end_to_end_at_the_small_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a bare machine: modules that cannot be imported stand before the packages of their names."""
    for name in BLOCKED:
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(SRC)]))
    chosen = [part for part in GPU_PARTS if part.name in ("vab-dac", "training")]
    page = run("gpu", ABOUT, chosen, tmp_path, "cpu", True, 200, lambda line: None)
    assert all(section.good for section in page.sections), [section.error for section in page.sections]
    (row,), speeds = (section.rows for section in page.sections)
    assert row["clips a second"] == pytest.approx(row["batch"] * row["steps a second"])
    assert 0 < row["waiting for data, share of a step"] < 1 and row["loader alone, ms a step"] > 0
    assert {row["numbers"] for row in speeds} == {"bfloat16", "float32"}
    for row in speeds:
        stages = sum(row[f"{name}, s"] for name in ("features", "sampling", "refining", "codec"))
        assert row["seconds a clip"] == pytest.approx(stages)


def test_extraction_has_the_same_tokens_in_each_precision(tmp_path: Path) -> None:
    result = extraction.extraction("cpu", True, tmp_path)
    assert result["failed"] == []
    exact, rough = (row for row in result["rows"] if row["what"] == "latents of clips")
    assert exact["features apart, relative L2"] == 0 < rough["features apart, relative L2"] < 0.03
    assert exact["tokens as in float32"] == rough["tokens as in float32"] == 1


def test_ways_to_compute_a_step_give_the_same(tmp_path: Path) -> None:
    result = training.ways("cpu", True, tmp_path)
    assert result["failed"] == []
    whole, parts, again, compiled = result["rows"]
    assert "loss apart" not in whole and 0 < parts["gradient apart"] < 0.03
    assert again["gradient apart"] == compiled["gradient apart"] == 0
    assert max(parts["reckoned GB"], again["reckoned GB"]) < whole["reckoned GB"] == compiled["reckoned GB"]


def test_a_way_that_does_not_work_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that computes something else, and one that fails, are told; the others stand beside them."""
    real = training.gradient

    def wrong(run: TrainingRun, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        if run.compute.checkpoint_activations:
            raise RuntimeError("no kernel")
        loss, found = real(run, batch)
        return loss, [tensor * run.compute.accumulate for tensor in found]

    monkeypatch.setattr(training, "gradient", wrong)
    result = training.ways("cpu", True, tmp_path)
    assert result["failed"] == ["in 4 parts: gradient apart", "activations computed again"]
    assert [row.get("note") for row in result["rows"]] == [None, None, "RuntimeError: no kernel", None]


def test_a_check_sees_another_number() -> None:
    # what a device computes wrongly must not pass
    wrong = checks.row(
        "x", "float32", checks.relative(torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0])), 1e-4
    )
    assert wrong["met"] is False
    assert checks.relative(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert checks.differing(torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5
