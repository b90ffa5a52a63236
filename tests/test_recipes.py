"""What the recipes measure, against plain loops and against the training's own numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from helpers.tiny import write_model, write_video
from helpers.training import PRESET, fill, metrics, preset
from vab.data.store import LatentStore
from vab.evaluate.embedding import embed_store
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile
from vab.media.reader import read_audio
from vab.models.heads import load_finetuned
from vab.timing.predictor import MotionPredictor
from vab.timing.sources import resolve
from vab.training.batches import ClipBatches
from vab.training.trainer import train

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import vab_tiny_classes
import vab_tiny_levers
import vab_tiny_pack
import vab_tiny_timing
import vab_tiny_understands as recipe


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips of four labels; the pictures stand in rows of their own, label 3 has none."""
    return fill(tmp_path_factory.mktemp("latents") / "store", clips=40, pictures="other")


def test_right_answers_are_those_the_run_counted(latents: Path, tmp_path: Path) -> None:
    chosen = preset("classification", inputs=("audio", "video"), pair_by_label=True, ema=0.9)
    run = train(chosen, latents, tmp_path / "run", max_steps=12)
    last = metrics(run, "dev")[-1]
    for kind in ("audio", "video"):
        found = recipe.told_right(latents, kind, run)
        assert np.nanmean(found.values) == pytest.approx(last[f"accuracy/{kind}"])
        assert len(found.files) == 8 and np.isnan(found.values).sum() == {"audio": 0, "video": 2}[kind]


def test_the_loss_is_the_one_of_validation(latents: Path, tmp_path: Path) -> None:
    chosen = replace(PRESET, train=replace(PRESET.train, label_smoothing=0.0, pair_by_label=True))
    run = train(chosen, latents, tmp_path / "run", max_steps=5)
    mean, clips = recipe.interval(recipe.masked_loss(latents, run))
    assert clips == 8 and mean.value == pytest.approx(metrics(run, "dev")[-1]["loss"], rel=1e-4)


def test_nearest_by_plain_loops(latents: Path, tmp_path: Path) -> None:
    run = train(preset("contrastive", pair_by_label=True), latents, tmp_path / "run", max_steps=5)
    contrastive = load_finetuned(run).contrastive
    assert contrastive is not None
    found = embed_store(contrastive[0], ClipBatches(LatentStore.open(latents), contrastive[1], "dev"))
    seen = [n for n, label in enumerate(found.labels) if label != "3"]
    for way, (queries, others) in enumerate(((found.video, found.audio), (found.audio, found.video))):
        measured = recipe.nearest_fits(latents, way, run)
        assert [n for n, value in enumerate(measured.values) if value == value] == seen
        for n in seen:
            best = max(seen, key=lambda m: float(queries[n] @ others[m]))
            assert measured.values[n] == (found.labels[best] == found.labels[n])


def test_windows_of_one_file_are_one_thing() -> None:
    """Ten files of twenty equal windows: as sure as ten clips, not as two hundred; weights count."""
    right = np.repeat(np.arange(10) < 5, 20).astype(float)
    alone = [str(n) for n in range(200)]
    files = [str(n // 20) for n in range(200)]
    wide, narrow = (recipe.interval(recipe.Measured(right, np.ones(200), f))[0] for f in (files, alone))
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    values = np.array([1.0, 0.0, np.nan])
    mean, clips = recipe.interval(recipe.Measured(values, np.array([3.0, 1.0, 9.0]), ["a", "b", "c"]))
    assert (mean.value, clips) == (0.75, 2)


def test_two_runs_are_compared_clip_by_clip() -> None:
    """Each is right for half of the clips; the second always where the first is, and once more."""
    values = {"a": np.arange(100) < 50, "b": np.arange(100) < 51}
    files = [str(n) for n in range(100)]

    def measure(run: Path) -> recipe.Measured:
        return recipe.Measured(values[str(run)].astype(float), np.ones(100), files)

    row = recipe.compared("more", measure, Path("a"), Path("b"), "1 → 2")
    assert row["difference"]["value"] == pytest.approx(0.01) and row["N"] == 100
    assert (
        row["difference"]["low"] >= 0 and row["difference"]["high"] < 0.05
    )  # one by one they overlap widely
    assert row["a"]["high"] > row["b"]["low"] + 0.1
    assert "| more | % | 100 | 50.0 [" in recipe.tables([], [row])


def test_the_papers_numbers_beside() -> None:
    assert recipe.classes_in_paper(("w.o. experts", ""), "both") == "42.5 → 62.4"
    assert recipe.classes_in_paper(("From Scratch", ""), "audio") == "38.6 → 44.5"
    assert recipe.retrieval_in_paper("video to audio") == "R@1 27.7 → 28.2"


def test_what_is_packed_is_the_model_in_half_precision(tmp_path: Path) -> None:
    run, out = write_model(tmp_path / "run"), tmp_path / "out"
    for folder in [run, *(path for path in run.iterdir() if path.is_dir())]:
        (folder / "record.json").write_text("{}")
    vab_tiny_pack.main(run, run, run / "contrastive", run / "classes", out)
    (run / "README.md").unlink()  # the card of a model is written by hand
    files = [path.relative_to(run) for path in sorted(run.rglob("*")) if path.is_file()]
    assert [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()] == files
    for path in (path for path in files if path.name == "model.safetensors"):
        full, half = load_file(run / path), load_file(out / path)
        assert full.keys() == half.keys() and all(half[name].equal(full[name].half()) for name in full)
    VABPipeline.from_pretrained(out, device="cpu")


def test_a_clip_gets_sounds_without_and_with_its_own_timing(tmp_path: Path) -> None:
    pipeline = VABPipeline.from_pretrained(write_model(tmp_path / "model", timing=True), device="cpu")
    clip = write_video(tmp_path / "clip.mp4", 21, 10)
    kinds = ("none", "true", "taps")
    for kind in kinds:
        vab_tiny_timing.make(pipeline, clip, kind, 0.0, tmp_path)
    sounds = {kind: [read_audio(tmp_path / kind / seed / "clip.wav") for seed in "123"] for kind in kinds}
    assert all(len(sound) == round(2.1 * 16_000) for each in sounds.values() for sound in each)
    for none, true, taps in zip(*sounds.values(), strict=True):
        assert not np.array_equal(none, true) and not np.array_equal(none, taps)
        assert not np.array_equal(true, taps)
    # what is there stays
    before = (tmp_path / "true" / "2" / "clip.wav").stat().st_mtime_ns
    vab_tiny_timing.make(pipeline, clip, "true", 6.0, tmp_path)
    assert (tmp_path / "true" / "2" / "clip.wav").stat().st_mtime_ns == before


def test_films_lead_by_their_motion_as_long_as_they_are(tmp_path: Path) -> None:
    short, long = (write_video(tmp_path / f"{n}.mp4", 10 * n, 10) for n in (1, 3))
    predictor = MotionPredictor()
    curves = vab_tiny_levers.curves_by_motion(predictor, tmp_path, 100)
    assert not curves[0, 50:].any() and curves[:, :50, 2:].all() and curves[1, 50:, 2:].all()
    for clip, frames, curve in ((short, 50, curves[0]), (long, 150, curves[1])):
        with MediaFile(clip) as file:
            told = resolve("motion", file, frames, predictor)
        assert told is not None and np.array_equal(told.channels()[:100], curve[:frames])


def test_a_class_says_what_it_is_taken_for() -> None:
    labels = np.array(["cow", "cow", "cow", "cat"])
    heard = np.array(["cow", "dog", "dog", "cat"])
    assert (
        vab_tiny_classes.row("cow", [(labels, labels), (heard, labels)])
        == "cow | 1.00 (3) | 0.33 (3) | dog 2"
    )
    assert vab_tiny_classes.row("cat", [(labels, labels), (heard, labels)]) == "cat | 1.00 (1) | 1.00 (1) | "
    assert vab_tiny_classes.row("sea", [(labels, labels), (heard, labels)]) == "sea | - | - | "
