"""Curves in training: they move with the tokens, are less sure than the sounds', and are learned from."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.training import META, PRESET, QUIET, fill, metrics, same_weights
from vab.config import Preset, TrainConfig, from_dict, written
from vab.data.mixture import Mixture
from vab.data.shard import Latents, StoreError, read_meta
from vab.data.store import LatentStore
from vab.models.hub import read_config
from vab.presets import PRESETS
from vab.timing.unsure import exact, timing_of, unsure
from vab.training.batches import Batch, ClipBatches
from vab.training.trainer import train

TIMED = replace(PRESET, model=replace(PRESET.model, timing=True))
SECONDS = 2.0
FRAMES = 100


def timed(**changes: object) -> Preset:
    """A preset whose model is told a curve of 2 s, in runs that change nothing but what is asked for."""
    model = replace(TIMED.model, seconds=SECONDS)
    return Preset("timed", "", model, replace(PRESET.train, **{**QUIET, "timing_drop_prob": 0.0, **changes}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two labels of six sounds: tokens say clip and frame, and so does the curve beside them."""
    meta = replace(META, seconds=SECONDS, codebook_size=2048, timing=True)
    made = LatentStore.create(tmp_path / "store", meta, np.zeros((2, 2048, 4), np.float32))
    rows = []
    for n in range(12):
        tokens = np.stack([np.arange(FRAMES), np.full(FRAMES, n)]).astype(np.uint16)
        timing = np.zeros((FRAMES, 2), np.float16)
        timing[:, 1] = -40 - n + np.arange(FRAMES) / 8  # dB: rises to -27.6 and less
        timing[7 * n : 7 * n + 1, 0] = 1.0
        features = np.full(meta.feature_shape, n, np.float16)
        rows.append(Latents(f"c{n:02d}", "ab"[n % 2], "train", tokens, features, timing=timing))
    made.add(rows)
    return tmp_path / "store"


def batches(store: Path, **changes: object) -> ClipBatches:
    model = replace(timed().model, codebook_size=2048)
    return ClipBatches(LatentStore.open(store), replace(timed(**changes), model=model), "train")


def curves_by_tokens(batch: Batch) -> Tensor:
    """The exact curves [B,T,4] that the tokens of a batch say."""
    frames, clips = batch.tokens[:, 0].numpy(), batch.tokens[:, 1].numpy()
    stored = np.zeros((*frames.shape, 2), np.float32)
    stored[..., 0] = frames == 7 * clips
    stored[..., 1] = (-40 - clips + frames / 8).astype(np.float16)
    loudest = (-40 - clips + (FRAMES - 1) / 8).astype(np.float16).max(1)
    return torch.from_numpy(timing_of(stored, torch.ones(frames.shape), loudest))


CASES = {
    "roll": {"roll_prob": 1.0},
    "mixup": {"mixup_prob": 1.0},
    "crop": {"crop_seconds": 1.0},
    "splice": {"splice_prob": 1.0},
    "all": {"roll_prob": 0.5, "mixup_prob": 0.5, "crop_seconds": 1.0, "splice_prob": 0.7},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_the_curve_moves_with_the_tokens(
    store: Path, changes: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vab.timing.unsure.unsure", lambda strengths, level, *_: exact(strengths, level))
    for step in range(4):
        batch = batches(store, **changes).train_batch(step)
        assert batch.timing is not None
        assert torch.allclose(batch.timing, curves_by_tokens(batch), atol=1e-3)


def test_a_spliced_clip_is_of_two_to_five_sounds_of_its_label(store: Path) -> None:
    counts: Counter[int] = Counter()
    made = batches(store, splice_prob=1.0)
    for step in range(20):
        batch = made.train_batch(step)
        for name, tokens in zip(batch.ids, batch.tokens, strict=True):
            clips, frames = tokens[1].tolist(), tokens[0]
            assert {n % 2 for n in clips} == {int(name[1:]) % 2}  # of one label
            assert clips[0] == int(name[1:])  # the first piece is its own
            assert torch.equal(frames, torch.arange(FRAMES))  # each where it is in its own clip
            counts[1 + sum(a != b for a, b in pairwise(clips))] += 1
        assert (batch.targets.sum(1) == 1).all()
    assert set(counts) <= {1, 2, 3, 4, 5} and counts[3] > 10 and counts[5] > 3
    share = [batches(store, splice_prob=0.5).train_batch(step).tokens[:, 1] for step in range(20)]
    assert 0.25 < np.mean([(clip != clip[0]).any() for clips in share for clip in clips]) < 0.6


def test_pieces_lie_within_windows_that_are_no_whole_number_of_image_frames(tmp_path: Path) -> None:
    """2.5 s at one image frame a second: a crop of 2 s that began at the third would have no end."""
    meta = replace(META, fps=1.0, seconds=2.5, codebook_size=2048, timing=True)
    made = LatentStore.create(tmp_path / "odd", meta, np.zeros((2, 2048, 4), np.float32))
    tokens = np.stack([np.arange(125), np.zeros(125)]).astype(np.uint16)
    timing = np.zeros((125, 2), np.float16)
    features = np.zeros(meta.feature_shape, np.float16)
    made.add([Latents(f"c{n}", "a", "train", tokens, features, timing=timing) for n in range(12)])
    preset = timed(batch_size=1, crop_seconds=2.0, splice_prob=1.0)
    model = replace(preset.model, codebook_size=2048, fps=1.0, seconds=2.5)
    batches = ClipBatches(LatentStore.open(tmp_path / "odd"), replace(preset, model=model), "train")
    lengths = set()
    for step in range(20):
        frames = batches.train_batch(step).tokens[:, 0]  # [B,T], of the sounds that each is made of
        assert (frames[:, 1:] > frames[:, :-1]).any()
        lengths.add(frames.shape[1])
    assert lengths == {75, 100}  # 2 s where the batch begins early, else what is left


def test_shares_of_processes_are_the_batch_of_one(store: Path) -> None:
    made = batches(store, **CASES["all"], cond_drop_prob=0.3, timing_drop_prob=0.3)
    for step in range(3):
        whole = made.train_batch(step)
        joined = Batch.join([made.train_batch(step, rank, 3) for rank in range(3)])
        assert joined.ids == whole.ids
        for name in ("tokens", "features", "timing", "targets", "mask", "drop_features"):
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name


def test_without_splicing_batches_are_what_they_were(store: Path) -> None:
    """What is drawn for pieces and curves comes from streams of their own."""
    plain = replace(PRESET, model=replace(timed().model, codebook_size=2048, timing=False))
    before = ClipBatches(LatentStore.open(store), plain, "train").train_batch(3)
    told = ClipBatches(
        LatentStore.open(store), replace(plain, model=replace(plain.model, timing=True)), "train"
    )
    after = told.train_batch(3)
    assert before.timing is None and after.timing is not None
    for name in ("tokens", "features", "mask", "drop_features", "seeds"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_unsure_curves_are_near_the_sound_s() -> None:
    strengths = np.zeros(500, np.float32)
    strengths[[50, 100, 150, 200, 250, 300, 350, 400, 450]] = 0.8
    level = np.where(np.arange(500) % 50 < 20, 0.0, -30.0).astype(np.float32)
    sure = exact(strengths, level)
    known: Counter[str] = Counter()
    onsets, levels = [], []
    for seed in range(400):
        curve = unsure(strengths, level, 0.2, np.random.default_rng(seed))
        names = (
            "none"
            if curve is None
            else "+".join(n for n in ("onset", "level") if getattr(curve, n) is not None)
        )
        known[names] += 1
        if curve is not None and curve.onset is not None:
            onsets.append(np.corrcoef(curve.onset, sure.onset)[0, 1])  # type: ignore[arg-type]
        if curve is not None and curve.level is not None:
            levels.append(np.corrcoef(curve.level, sure.level)[0, 1])  # type: ignore[arg-type]
    shares = {name: count / 400 for name, count in known.items()}
    wanted = {"none": 0.2, "onset+level": 0.48, "onset": 0.2, "level": 0.12}
    assert shares == pytest.approx(wanted, abs=0.07)
    assert 0.6 < np.mean(onsets) < 0.95 and min(onsets) > 0.2
    assert 0.8 < np.mean(levels) < 0.98 and min(levels) > 0.5
    # each curve is its seed's
    again = [unsure(strengths, level, 0.0, np.random.default_rng(7)) for _ in range(2)]
    assert np.array_equal(again[0].channels(), again[1].channels())  # type: ignore[union-attr]


def test_padding_is_unknown_and_dev_curves_are_exact(tmp_path: Path, store: Path) -> None:
    meta = replace(META, seconds=SECONDS, codebook_size=2048, timing=True)
    made = LatentStore.create(tmp_path / "other", meta, np.zeros((2, 2048, 4), np.float32))
    row = LatentStore.open(store)[3]
    made.add([replace(row, id="d", split="dev", real_tokens=40)])
    model = replace(timed().model, codebook_size=2048)
    dev = ClipBatches(made, replace(timed(timing_drop_prob=1.0), model=model), "dev")
    batch = dev.dev_batch(dev.dev_batches()[0])
    assert batch.timing is not None
    assert torch.allclose(batch.timing[:, :40], curves_by_tokens(batch)[:, :40], atol=1e-6)
    assert batch.timing[:, 40:].abs().max() == 0


def test_a_store_keeps_curves_and_says_so(store: Path) -> None:
    latents = LatentStore.open(store)
    assert latents.meta.timing and read_meta(store).timing
    row = latents[2]
    assert row.timing is not None and row.timing.shape == (FRAMES, 2) and row.timing[14, 0] == 1
    assert np.array_equal(Mixture([latents]).timing(np.array([2, 5]))[0], row.timing)
    shard = next(store.glob("shard-*.arrow"))
    content = bytearray(shard.read_bytes())
    at = content.find(row.timing.tobytes())
    content[at + 3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="the timing of clip c02 are not what was written"):
        LatentStore.open(store)[2]


def test_a_store_without_curves_is_refused_in_a_line_where_they_are_needed(tmp_path: Path) -> None:
    plain = fill(tmp_path / "plain")
    assert "timing" not in json.loads((plain / "store.json").read_text())
    with pytest.raises(
        StoreError, match=r"it has no timing curves; extract it anew .* with --timing"
    ) as caught:
        train(TIMED, plain, tmp_path / "run")
    assert "\n" not in str(caught.value)
    # who embeds or classifies needs none
    contrastive = replace(TIMED, train=replace(TIMED.train, objective="contrastive", max_steps=1))
    train(contrastive, plain, tmp_path / "contrastive", log=lambda line: None)


def test_runs_without_timing_write_what_they_wrote(tmp_path: Path) -> None:
    for preset in PRESETS.values():
        document = json.dumps(written(preset))
        if not preset.model.timing:
            assert "timing" not in document
        assert ("splice_prob" in document) == (preset.train.splice_prob > 0)
        assert from_dict(Preset, json.loads(document)) == preset
    run = tmp_path / "run"
    short = replace(PRESET, train=replace(PRESET.train, max_steps=1))
    train(short, fill(tmp_path / "store"), run, log=lambda line: None)
    assert "timing" not in (run / "config.json").read_text()
    about = json.loads((run / "record.json").read_text())
    about.pop("command", None)
    assert "timing" not in json.dumps(about)


def test_a_run_with_timing_learns_from_the_curve_and_goes_on(tmp_path: Path) -> None:
    """Tokens that nothing but the curve can tell: the loss falls below what is possible without."""
    meta = replace(META, seconds=0.4, timing=True)
    made = LatentStore.create(
        tmp_path / "store", meta, np.random.default_rng(0).normal(size=(2, 16, 4)).astype("f")
    )
    random = np.random.default_rng(1)
    rows = []
    for n in range(60):
        loud = random.random(20) < 0.5
        tokens = np.repeat(loud[None], 2, axis=0).astype(np.uint16)
        timing = np.stack([np.zeros(20), np.where(loud, 0.0, -40.0)], axis=1).astype(np.float16)
        rows.append(Latents(f"c{n}", "a", "dev" if n % 6 == 5 else "train", tokens, None, timing=timing))
    made.add(rows)
    settings = {
        **QUIET,
        "learning_rate": 1e-2,
        "max_steps": 60,
        "mask_min": 1.0,
        "label_smoothing": 0.0,
        "log_every": 60,
        "save_every": 30,
    }
    preset = replace(TIMED, train=replace(TIMED.train, **settings, timing_drop_prob=0.0))
    train(preset, tmp_path / "store", tmp_path / "run", log=lambda line: None)
    loss = metrics(tmp_path / "run", "dev")[-1]["loss"]
    assert loss < 0.4 < np.log(2)
    assert read_config(tmp_path / "run").model.timing
    # a resumed run ends in the same weights
    train(
        replace(preset, train=replace(preset.train, max_steps=60)),
        tmp_path / "store",
        tmp_path / "again",
        log=lambda line: None,
    )
    (tmp_path / "again" / "checkpoints" / "000000060.safetensors").unlink()
    (tmp_path / "again" / "model.safetensors").unlink()
    train(preset, tmp_path / "store", tmp_path / "again", log=lambda line: None)
    assert same_weights(tmp_path / "run", tmp_path / "again")


def test_fields_are_checked() -> None:
    assert TrainConfig().splice_prob == 0.0
    assert not any(
        p.train.splice_prob or p.model.timing for p in PRESETS.values() if p.name.startswith("vab-enc")
    )
