"""A store and a model measured in one call, on the real vab-tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from vab.cli import main
from vab.evaluate.generation.synthesis import MADE, Synthesizer
from vab.media.reader import read_audio
from vab.models.hub import find_model

LIGHT = {"FD-LOGMEL", "MEL-distance", "ONSET-F1"}


def vab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a call."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, out, err


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """The call without a model, to measure the first two clips of the store without any weights."""
    for name in ("VAB_WEIGHTS", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no cache"))
    return ("evaluate", "generation", "--split", "dev", "--clips", 2, "--resamples", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Videos with sound, and their latents as vab-tiny takes them."""
    folder = tmp_path_factory.mktemp("media")
    for words in (
        ("data", "synthetic", "-o", folder / "set", "--clips", 20, "--seconds", 5),
        ("extract", folder / "set" / "manifest.csv", "-o", folder / "store", "--device", "cpu"),
    ):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        assert left.value.code == 0
    return folder / "set", folder / "store"


def test_a_model_is_measured_on_a_store(
    media: tuple[Path, Path],
    call: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips, store = media
    run = tmp_path / "run"
    code, out, _ = vab(capsys, *call, "--store", store, "--run", run)
    assert code == 0 and f"Generation: vab-tiny against {store}, the first 5 s\n\nN = 2, 0 left out" in out
    sounds = sorted((run / "sounds" / "vab-tiny").glob("*.wav"))
    true = sorted((run / "true").rglob("*.wav"))
    assert [path.name for path in sounds] == [path.name for path in true] and len(sounds) == 2
    heard = [read_audio(path) for path in (*sounds, *true)]
    assert all(len(sound) == 5 * 16_000 and np.abs(sound).max() > 1e-3 for sound in heard)
    made = json.loads((run / "sounds" / "vab-tiny" / MADE).read_text())
    assert (made["decode"]["steps"], made["seed"]) == (12, 0)

    before = sounds[0].read_bytes()
    sounds[0].unlink()  # what is missing is made again, the same; the true sounds are those of the files
    words = ("--store", store, "--run", run, "--model", find_model(), "--json")
    code, out, _ = vab(capsys, *call, clips, *words)
    document = json.loads(out)
    assert code == 0 and sounds[0].read_bytes() == before
    assert document["reference"] == str(clips) and document["generated"] == "vab-tiny"
    assert set(document["measures"]) == LIGHT and document["clips"] == 2 and document["seconds"] == 5
    assert document["left_out"] == []  # of the files only the clips that were asked for count
    (tmp_path / "some").mkdir()
    for path in clips.glob("*.mp4"):
        if path.stem != sounds[0].stem:
            shutil.copy(path, tmp_path / "some")
    code, out, err = vab(capsys, *call, tmp_path / "some", *words)
    assert code == 1 and err.splitlines() == [
        f"{sounds[0].stem}: missing from {tmp_path / 'some'}",
        "vab: 1 clip cannot be measured; --allow-missing leaves them out",
    ]

    code, out, err = vab(capsys, *call, "--store", store, "--run", run, "--seed", 1)
    assert (code, out) == (2, "") and "holds sounds of other seed; use another --run" in err
    monkeypatch.setattr(Synthesizer, "tokens", lambda self, features, *rest: pytest.fail("they were there"))
    assert vab(capsys, *call, "--store", store, "--run", run)[0] == 0


def test_calls_that_make_no_sense(
    media: tuple[Path, Path], call: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    clips, store = media
    for words, reason in (
        ((), "what to measure: REFERENCE GENERATED, or --store STORE with --model DIR"),
        ((clips,), "what to measure"),
        ((clips, clips, "--store", store), "what to measure"),
        ((clips, clips), "--model, --clips, --speed, --run, --codec-path and --precision are for --store"),
        (("--store", store, "--clips", 1), "--clips must be 2 or more"),
        (("--store", clips), "holds no store"),
        (("--store", store, "--split", "nope"), "no clip with sound and picture in that split"),
        (("--store", store, "--model", "vab-dac"), "nobody has published weights"),
        (("--store", store, "--model", find_model() / "classes"), "makes no sound"),
    ):
        code, out, err = vab(capsys, *call, *words)
        assert (code, out) == (2, "") and reason in err and err.count("\n") == 1
