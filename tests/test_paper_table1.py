"""recipes/paper_table1.sh, whole: from lists in the official form to the row of Table 1, killed midway."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.command import command
from helpers.training import metrics
from vab.data.datasets.synthetic import write_synthetic
from vab.data.manifest import read_manifest
from vab.data.store import LatentStore

ROOT = Path(__file__).resolve().parents[1]
STEPS = 5
TRAIN = f"--max-steps {STEPS} --train.save-every 1 --train.batch-size 4 --train.warmup-steps 2"
OPTIONS = {
    "PRESET": "vab-tiny-coarse",  # in two stages, as VAB-DAC
    "DATA_OPTIONS": "--dev-share 0.2",
    "TRAIN_OPTIONS": TRAIN,
    "EVALUATE_OPTIONS": "--resamples 10",
}


def write_set(root: Path) -> tuple[Path, Path]:
    """A miniature of both sets, lists and media: bouncing balls under the names that downloaders give.

    Of the twelve rows of each list one has no file. A video of VGGSound's test is in AudioSet's training list
    too, as another segment.
    """
    balls = sorted(write_synthetic(root / "balls", clips=23, seconds=2.0).parent.glob("*.mp4"))
    lists, media = root / "lists", root / "media"
    for folder in (lists / "audioset", media / "vggsound", media / "audioset" / "part"):
        folder.mkdir(parents=True)

    # 1. VGGSound: id,start,label,split; every fourth row is test, the last one is gone.
    rows = []
    for n in range(12):
        ident, start = f"vggsound{n:03d}", 10 * n
        label = '"dog barking, loud"' if n % 2 else "playing drums"
        rows.append(f"{ident},{start},{label},{'test' if n % 4 == 2 else 'train'}\n")
        if n < 11:
            balls.pop().rename(media / "vggsound" / f"{ident}_{start}.mp4")
    (lists / "vggsound.csv").write_text("".join(rows), encoding="utf-8")

    # 2. AudioSet: 2M is the unbalanced and the balanced list together; eval is test.
    labels = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n'
    (lists / "audioset" / "class_labels_indices.csv").write_text(labels, encoding="utf-8")
    head = "# Segments csv created\n# num_ytids=6\n# YTID, start_seconds, end_seconds, positive_labels\n"
    for name, idents in (
        ("unbalanced", ["vggsound002", *(f"unbalance{n:02d}" for n in range(5))]),
        ("balanced", [f"balanced_{n:02d}" for n in range(5)]),
        ("eval", ["vggsound006"]),
    ):
        text = head + "".join(f'{ident}, 90.000, 100.000, "/m/09x0r,/m/05zppz"\n' for ident in idents)
        file = "eval_segments.csv" if name == "eval" else f"{name}_train_segments.csv"
        (lists / "audioset" / file).write_text(text, encoding="utf-8")
        for ident in idents:
            balls.pop().rename(media / "audioset" / "part" / f"Y{ident}.mp4")
    return lists, media


@pytest.fixture(autouse=True)
def vab(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "bin").mkdir()
    with command(tmp_path / "bin" / "vab"):
        yield


def start(folder: Path, *words: str | Path, **options: str) -> subprocess.Popen[str]:
    """The recipe, as a user calls it."""
    own = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(folder / "cache"),  # no weights
        "VAB_WEIGHTS": "",
    }
    script = ROOT / "recipes" / "paper_table1.sh"
    return subprocess.Popen(
        ["bash", script, *words],
        env=os.environ | own | options,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def kill_when(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Kill the script and all that it has started, as soon as it has come so far."""
    try:
        while not ready():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_from_lists_to_the_row_of_table_1_killed_in_training(tmp_path: Path) -> None:
    lists, media = write_set(tmp_path)
    out = tmp_path / "out"
    latents, model = out / "tiny", out / "vab-tiny-coarse"
    words = (lists, media, out)

    # 1. Killed in training.
    kill_when(lambda: any((model / "checkpoints").glob("*")), start(tmp_path, *words, **OPTIONS))
    assert not (model / "model.safetensors").exists()

    # 2. To the end: the row, beside the paper's.
    process = start(tmp_path, *words, **OPTIONS)
    printed, told = process.communicate()
    assert process.returncode == 0, told
    assert f"{latents / 'vggsound'}: 0 clips written, 11 were there, 0 failed" in printed
    assert "| vab-tiny-coarse | not measured | not measured |  | here, N = 3, 5 s |" in printed
    assert "| VAB-DAC | 3.24 | 2.84 | 1.3 | Table 1 |" in printed
    assert re.search(r"\| FD-LOGMEL \| [\d.e+]+ \[", printed)
    assert (model / "table1.md").read_text(encoding="utf-8") in printed

    # 3. What it was made from: the test videos in no training, a dev share, two rates, both stages once.
    clips = {name: read_manifest(out / f"{name}.csv") for name in ("vggsound", "as2m")}
    assert {clip.split for clip in clips["vggsound"]} == {"train", "dev", "test"}
    splits = {clip.id: clip.split for clip in clips["as2m"]}
    assert len(splits) == 11 and "vggsound002" not in splits and splits["vggsound006"] == "test"
    for name, fps in (("vggsound", 5.0), ("as2m", 1.0)):
        store = LatentStore.open(latents / name)
        assert store.meta.fps == fps and set(store.ids) == {clip.id for clip in clips[name]}
    for run in (model, model / "fine"):
        assert metrics(run, "train")[-1]["step"] == STEPS
        stores = json.loads((run / "record.json").read_text(encoding="utf-8"))
        assert str(latents / "vggsound") in str(stores) and str(latents / "as2m") in str(stores)
    sounds = {path.stem for path in (out / "table1" / "sounds" / "vab-tiny-coarse").glob("*.wav")}
    assert sounds == {clip.id for clip in clips["vggsound"] if clip.split == "test"}


def test_a_wrong_call_says_how(tmp_path: Path) -> None:
    process = start(tmp_path, "lists")
    printed, told = process.communicate()
    assert (process.returncode, printed) == (2, "") and "paper_table1.sh LISTS MEDIA OUT" in told
    assert "\n#" not in told and "EVALUATE_OPTIONS" in told

    # a list that is not there ends it at once
    process = start(tmp_path, tmp_path, tmp_path, tmp_path / "out")
    printed, told = process.communicate()
    assert process.returncode == 2 and told.startswith(f"vab: {tmp_path / 'vggsound.csv'}")
    assert len(told.splitlines()) == 1
