"""Cross-validation: who learns from whom, which epoch is chosen, and a call that can be cut anywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.training import META, metrics, preset
from vab.cli import main
from vab.data.mixture import Mixture
from vab.data.shard import Latents, StoreError
from vab.data.store import LatentStore
from vab.errors import TrainError
from vab.evaluate.cross_validation import _best_epoch, cross_validate
from vab.evaluate.metrics.statistics import EvaluationError
from vab.models.hub import read_config
from vab.training.batches import ClipBatches, folds_of, hold_out
from vab.training.checkpoint import checkpoints
from vab.training.trainer import train

AUDIO = preset("classification", inputs=("audio",), loss="ce", epochs=6.0)
CHANGES = ["--train.inputs", "audio", "--train.precision", "32-true", "--train.learning-rate", "0.01"]
CHANGES += ["--train.batch-size", "6", "--train.warmup-steps", "0", "--train.crop-seconds", "0"]
for name in (
    "codebook_size",
    "codebook_dim",
    "vision_dim",
    "num_codebooks",
    "seconds",
    "fps",
    "hidden_dim",
    "num_layers",
):
    value = {"num_codebooks": 2, "hidden_dim": 32, "num_layers": 2}.get(name, getattr(META, name, None))
    CHANGES += [f"--model.{name.replace('_', '-')}", str(value)]
CHANGES += ["--model.num-expert-layers", "1", "--model.num-heads", "2"]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folds of 8, 8 and 4 clips of four labels told apart by their tokens, and a clip that is in no fold."""
    folder = tmp_path_factory.mktemp("latents") / "store"
    rng = np.random.default_rng(0)
    store = LatentStore.create(folder, META, rng.normal(size=(2, 16, 4)).astype(np.float32))
    rows = []
    for n in range(20):
        tokens = rng.integers(0, 3, META.token_shape, dtype=np.uint16) + np.uint16(4 * (n % 4))
        rows.append(Latents(f"c{n}", f"class {n % 4}", f"fold{1 + n // 8}", tokens, None))
    picture = np.zeros(META.feature_shape, np.float16)
    store.add([*rows, Latents("other", "odd", "train", rows[0].tokens, picture)])
    return folder


def test_the_fold_held_out_is_dev_and_the_others_are_learned(latents: Path) -> None:
    store = LatentStore.open(latents)
    assert folds_of(store) == ["fold1", "fold2", "fold3"]
    hold_out(Mixture([store]), "fold3")
    rows = {split: ClipBatches(store, AUDIO, split).rows for split in ("train", "dev")}
    ids = {split: {store.ids[row] for row in found} for split, found in rows.items()}
    assert ids == {"train": {f"c{n}" for n in range(16)}, "dev": {f"c{n}" for n in range(16, 20)}}
    with pytest.raises(StoreError, match="no fold9; its folds: fold1, fold2, fold3"):
        hold_out(Mixture.open(latents), "fold9")


def test_a_run_for_each_fold_and_every_clip_of_it_after_each_epoch(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vab.training.monitor.validation.MAX_DEV_CLIPS", 1)  # that limit is for pre-training
    found = cross_validate(AUDIO, latents, tmp_path / "run")
    assert found.clips == {"fold1": 8, "fold2": 8, "fold3": 4} and found.classes == 4
    for fold in found.clips:
        run = tmp_path / "run" / fold
        # 16 clips at most in batches of 6: 2.67 steps an epoch, so 16 in six, measured every 3 and at the end
        assert [line["step"] for line in metrics(run, "dev")] == [3, 6, 9, 12, 15, 16]
        shares = {round(line["accuracy/audio"] * found.clips[fold], 4) for line in metrics(run, "dev")}
        assert all(share == int(share) for share in shares)
        assert json.loads((run / "record.json").read_text())["fold"] == fold
        assert read_config(run).classes == tuple(f"class {n}" for n in range(4))  # not "odd"
    best = found.accuracy["audio"]
    assert best.mean.value == pytest.approx(np.mean(list(best.folds.values()))) and best.mean.value > 0.9
    assert best.mean.low <= best.mean.value <= best.mean.high

    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("metrics.jsonl")}
    assert cross_validate(AUDIO, latents, tmp_path / "run") == found
    assert before == {path: path.read_bytes() for path in before}


def test_cut_off_in_the_middle_of_a_fold_it_ends_the_same(latents: Path, tmp_path: Path) -> None:
    whole = cross_validate(AUDIO, latents, tmp_path / "whole")
    told: list[str] = []

    def cut(line: str) -> None:
        told.append(line)
        if "fold2" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(AUDIO, latents, tmp_path / "cut", log=cut)
    checkpoints(tmp_path / "cut" / "fold1" / "checkpoints")[
        0
    ].unlink()  # as if the kill had come before the first fold's last step
    assert cross_validate(AUDIO, latents, tmp_path / "cut", log=told.append) == whole
    assert any("resuming" in line and "fold1 at step 15" in line for line in told)


def test_one_epoch_is_best_epoch_for_all_folds_by_the_mean() -> None:
    """By hand: the best epoch of each fold is another one; the mean is best at step 20."""
    shares = {"fold1": [0.5, 0.7, 0.9], "fold2": [0.8, 0.7, 0.3]}
    measured = {
        fold: {10 * (n + 1): {"accuracy/audio": share} for n, share in enumerate(each)}
        for fold, each in shares.items()
    }
    clips = {"fold1": 1000, "fold2": 1000}
    best = _best_epoch(measured, "accuracy/audio", clips, epoch=10)
    assert (best.epoch, best.step, best.folds) == (2, 20, {"fold1": 0.7, "fold2": 0.7})
    assert best.mean.value == pytest.approx(0.7) and best.last == pytest.approx(0.6)
    width = 2 * 1.96 * np.sqrt(0.7 * 0.3 / 2000)  # two folds of 1000 independent clips
    assert best.mean.high - best.mean.low == pytest.approx(width, rel=0.1)


def test_from_a_model_from_scratch_and_as_a_probe(latents: Path, tmp_path: Path) -> None:
    start = train(AUDIO, latents, tmp_path / "start", max_steps=2, fold="fold1")
    probe = replace(AUDIO, train=replace(AUDIO.train, freeze_trunk=True))
    results = [
        cross_validate(chosen, latents, tmp_path / f"run{n}", init=init, max_steps=4)
        for n, (chosen, init) in enumerate(((AUDIO, None), (AUDIO, start), (probe, start)))
    ]
    losses = [metrics(tmp_path / f"run{n}" / "fold1", "dev")[-1]["loss"] for n in range(3)]
    assert len(set(losses)) == 3 and {result.epochs for result in results} == {2}
    with pytest.raises(TrainError, match="holds another run: fold was fold1, is fold2"):
        train(AUDIO, latents, tmp_path / "start", max_steps=2, fold="fold2")


def test_stores_that_cannot_be_cross_validated(latents: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"20 clips of its folds without a picture; .*inputs audio"):
        cross_validate(preset("classification", inputs=("both",)), latents, tmp_path / "run")
    tokens = np.zeros(META.token_shape, np.uint16)
    for name, splits, label, says in (
        ("a", ("train", "fold1"), "x", "no folds: splits called fold1"),
        ("b", ("fold1", "fold2"), "", "no labels"),
    ):
        store = LatentStore.create(tmp_path / name, META, np.zeros((2, 16, 4), np.float32))
        store.add([Latents(f"c{n}", label, split, tokens, None) for n, split in enumerate(splits)])
        with pytest.raises(EvaluationError, match=says):
            cross_validate(AUDIO, tmp_path / name, tmp_path / "run")


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in ("evaluate", "folds", "vab-tiny-classes", *words)])
    assert isinstance(left.value.code, int)
    return left.value.code, *capsys.readouterr()


def test_command_line(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--store", latents, "--run", tmp_path / "run", "--max-steps", 4, *CHANGES]
    code, out, _ = call(capsys, *words, "--json")
    document = json.loads(out)
    assert code == 0 and document["N"] == 20 and document["clips"] == {"fold1": 8, "fold2": 8, "fold3": 4}
    found = document["accuracy"]["audio"]
    assert found["folds"].keys() == document["clips"].keys() and set(found["mean"]) == {
        "value",
        "low",
        "high",
    }
    code, out, _ = call(capsys, *words, "--benchmark", "esc50")
    assert code == 0 and "N = 20 in 3 folds, 4 classes" in out and "| VAB-Encodec | 91.4 | Table 5 |" in out
    assert f"| audio | {100 * found['folds']['fold1']:.1f} |" in out
    code, out, err = call(capsys, *words[:4], "--benchmark", "esc50")
    assert code == 2 and "from audio only" in err and len(err.splitlines()) == 1
    code, out, err = call(capsys, "--store", tmp_path, *words[2:])
    assert code == 2 and "holds no store" in err and len(err.splitlines()) == 1
