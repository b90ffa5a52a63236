from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.forked import Forked
from helpers.training import (
    META,
    MODEL,
    PRESET,
    TRAIN,
    fill,
    metrics,
    same_weights,
    train_alone,
    with_train,
)
from vab.config import Preset, from_dict
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.errors import SettingError, TrainError
from vab.models.vab import VAB
from vab.training.batches import ClipBatches
from vab.training.checkpoint import checkpoints
from vab.training.objectives import OBJECTIVES, LossOutput, masked_prediction_step
from vab.training.optimizer import learning_rate, optimizers
from vab.training.trainer import train
from vab.utils.locks import LockedError


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("latents") / "store")


def test_loss_falls_and_a_model_directory_comes_out(latents: Path, tmp_path: Path) -> None:
    run = train(with_train(log_every=4), latents, tmp_path / "run", max_steps=60)
    losses = [line["loss"] for line in metrics(run, "train")]
    assert len(losses) == 15 and np.mean(losses[-3:]) < np.mean(losses[:2]) - 0.3
    dev = metrics(run, "dev")
    assert [line["step"] for line in dev] == list(range(5, 61, 5))
    assert dev[-1]["loss"] < dev[0]["loss"] and dev[-1]["accuracy/1"] > 0.15
    config = json.loads((run / "config.json").read_text())
    assert from_dict(Preset, config) == with_train(log_every=4, max_steps=60)
    record = json.loads((run / "record.json").read_text())
    assert record["clips"] == {"train": 16, "dev": 4} and record["steps"] == 60 and record["code"]["sources"]
    assert [path.stem for path in checkpoints(run / "checkpoints")] == ["000000060", "000000055"]
    assert list(run.glob("events.out.tfevents*"))


def test_twice_the_same(latents: Path, tmp_path: Path) -> None:
    a, b = (train(PRESET, latents, tmp_path / name) for name in "ab")
    assert same_weights(a, b)
    c = train(with_train(seed=1), latents, tmp_path / "c")
    assert not same_weights(a, c)


def test_a_finished_run_is_left_as_it_is(latents: Path, tmp_path: Path) -> None:
    said: list[str] = []
    run = train(PRESET, latents, tmp_path / "a", max_steps=7)
    before = (run / "model.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()
    train(PRESET, latents, run, max_steps=7, log=said.append)
    assert before == ((run / "model.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes())
    assert "step 7 of 7" in said[0]


def test_another_run_in_the_folder_is_refused(latents: Path, tmp_path: Path) -> None:
    train(PRESET, latents, tmp_path / "a", max_steps=5)
    with pytest.raises(TrainError, match=r"train\.learning_rate was 0\.003, is 0\.1"):
        train(with_train(learning_rate=0.1), latents, tmp_path / "a", max_steps=5)
    with pytest.raises(TrainError, match=r"store was"):
        train(PRESET, fill(tmp_path / "other", clips=21), tmp_path / "a", max_steps=5)


def test_a_second_run_in_the_folder_is_refused(latents: Path, tmp_path: Path) -> None:
    """Of two processes in one folder the second is refused, and the first is not disturbed."""
    preset, run = with_train(epochs=15.0), tmp_path / "run"  # 40 steps
    first = Forked(tmp_path, train_alone, preset, latents, run)
    try:
        end = time.monotonic() + 60
        while not checkpoints(run / "checkpoints") and time.monotonic() < end:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it holds the folder as long as it lives
        before = (run / "metrics.jsonl").read_bytes()
        message = rf"^another process trains in {run} \(process {first.pid} on "
        with pytest.raises(LockedError, match=message):
            train(preset, latents, run)
        assert first.poll() is None and (run / "metrics.jsonl").read_bytes() == before
    finally:
        first.kill()
        first.wait(60)
    train(preset, latents, run)  # the lock of the dead is free
    train(preset, latents, run)  # and so is our own
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 41))


def test_damaged_latents_are_not_trained_on(latents: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(latents, store)
    shard = store / LatentStore.open(store).shards[0]
    content = bytearray(shard.read_bytes())
    content[content.index(LatentStore.open(store)[0].features.tobytes()) + 5] ^= 1
    shard.write_bytes(content)
    message = rf"{shard.name} is damaged \(the features of clip c0 .*vab store repair {store}.*vab extract"
    with pytest.raises(StoreError, match=message):
        train(PRESET, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # a store too large to be read at once is verified clip by clip
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(LatentStore, "verify", lambda store: None)
        with pytest.raises(StoreError, match=message):
            train(PRESET, store, tmp_path / "mapped")


def test_a_broken_line_of_metrics_is_named(latents: Path, tmp_path: Path) -> None:
    run = train(PRESET, latents, tmp_path / "run", max_steps=5)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for broken in ("{half\n", "[]\n", '{"step": "a"}\n', "[" * 9999 + "\n"):
        (run / "metrics.jsonl").write_text("".join([lines[0], broken, *lines[1:]]))
        with pytest.raises(TrainError, match=r"metrics\.jsonl: line 2 is damaged; delete it"):
            train(PRESET, latents, run, max_steps=5)


def test_a_damaged_checkpoint_falls_back(latents: Path, tmp_path: Path) -> None:
    whole = train(PRESET, latents, tmp_path / "whole", max_steps=10)
    run = train(PRESET, latents, tmp_path / "run", max_steps=10)
    newest = checkpoints(run / "checkpoints")[0]
    content = newest.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damaged in (content[:1000], bytes(flipped)):
        newest.write_bytes(damaged)
        train(PRESET, latents, run, max_steps=10)
        assert same_weights(whole, run)
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 11))


def test_a_short_run_leaves_its_last_line(latents: Path, tmp_path: Path) -> None:
    run = train(with_train(log_every=10), latents, tmp_path / "run", max_steps=3)
    assert [line["step"] for line in metrics(run, "train")] == [3]
    with pytest.raises(SettingError, match="max_steps must be a whole number"):
        train(PRESET, latents, tmp_path / "none", max_steps=1.5)  # type: ignore[arg-type]


def test_init_starts_from_weights(latents: Path, tmp_path: Path) -> None:
    first = train(PRESET, latents, tmp_path / "a", max_steps=40)
    fresh = train(PRESET, latents, tmp_path / "b", max_steps=1)
    again = train(PRESET, latents, tmp_path / "c", max_steps=1, init=first)
    assert metrics(again, "dev")[0]["loss"] < metrics(fresh, "dev")[0]["loss"] - 0.3


def test_not_a_number_stops_and_names_the_clips(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def masked_tokens_then_nan(network: torch.nn.Module, batch: object, preset: Preset) -> LossOutput:
        nonlocal steps
        steps += network.training
        outcome = masked_prediction_step(network, batch, preset)
        return replace(outcome, loss=outcome.loss * (float("nan") if steps == 8 else 1.0))

    monkeypatch.setitem(OBJECTIVES, "masked", masked_tokens_then_nan)
    with pytest.raises(TrainError, match="step 8: the loss is nan") as caught:
        train(PRESET, latents, tmp_path / "run")
    clips = ClipBatches(LatentStore.open(latents), PRESET, "train")
    assert all(name in str(caught.value) for name in clips.ids_of_step(7))
    kept = checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.stem for path in kept] == ["000000005"]
    assert all(tensor.isfinite().all() for tensor in load_file(kept[0]).values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_rate_rises_then_falls_to_nothing() -> None:
    config = replace(TRAIN, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate(step, 110, config) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_muon_has_the_matrices_of_the_layers() -> None:
    network = VAB(MODEL)
    adamw, muon = optimizers(network, replace(TRAIN, optimizer="muon"))
    names = {id(p): name for name, p in network.named_parameters()}
    found = [{names[id(p)] for group in each.param_groups for p in group["params"]} for each in (adamw, muon)]
    assert set.union(*found) == {name for name, p in network.named_parameters() if p.requires_grad}
    assert not set.intersection(*found)
    assert "blocks.1.attention.qkv.weight" in found[1] and "blocks.1.feed_forward.up.weight" in found[1]
    assert all(name.startswith("blocks.") and name.endswith(".weight") for name in found[1])
    assert "heads.weight" in found[0] and "blocks.1.attention.norm.weight" in found[0]
    assert len(optimizers(network, TRAIN)) == 1


def test_latents_that_do_not_fit_are_refused(latents: Path, tmp_path: Path) -> None:
    wrong = replace(PRESET, model=replace(MODEL, num_codebooks=3, codebook_size=17, fps=3.0))
    with pytest.raises(StoreError, match="codebook_size is 16, the model's is 17; it has 2 codebooks"):
        train(wrong, latents, tmp_path / "run")


def test_every_clip_once_per_epoch(latents: Path) -> None:
    clips = ClipBatches(LatentStore.open(latents), PRESET, "train")
    assert len(clips) == 16 and clips.steps(3.0) == 8
    seen = [name for step in range(8) for name in clips.ids_of_step(step)]
    epochs = [sorted(seen[i : i + 16]) for i in (0, 16, 32)]
    assert len(set(epochs[0])) == 16 and epochs[0] == epochs[1] == epochs[2]
    assert seen[:16] != seen[16:32]


def test_a_batch_does_not_depend_on_the_order_of_the_shards(latents: Path, tmp_path: Path) -> None:
    store = LatentStore.open(latents)
    turned = LatentStore.create(tmp_path / "turned", META, store.codebook_vectors())
    turned.add([store[row] for row in reversed(range(len(store)))])
    a = ClipBatches(store, PRESET, "train").train_batch(3)
    b = ClipBatches(turned, PRESET, "train").train_batch(3)
    assert a.ids == b.ids and torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask)
    assert torch.equal(a.features, b.features)
    assert np.array_equal(store.feature_statistics(), turned.feature_statistics())


def test_features_are_standardised_by_the_training_pictures(latents: Path, tmp_path: Path) -> None:
    store = LatentStore.open(latents)
    seen = np.stack([c.features for c in map(store.__getitem__, range(len(store))) if c.split == "train"])
    mean, std = store.feature_statistics()
    np.testing.assert_allclose(mean, seen.astype(np.float64).mean((0, 1)), atol=1e-4)
    np.testing.assert_allclose(std, seen.astype(np.float64).std((0, 1)), atol=1e-4)
    weights = load_file(train(PRESET, latents, tmp_path / "run", max_steps=1) / "model.safetensors")
    assert np.array_equal(weights["feature_mean"].numpy(), mean)
    assert np.array_equal(weights["feature_std"].numpy(), std)


def test_one_of_n_frames_per_step(latents: Path) -> None:
    plain = with_train(mixup_prob=0.0, roll_prob=0.0, cond_drop_prob=0.0)
    store = LatentStore.open(latents)
    clips = ClipBatches(store, plain, "train")
    drawn = set()
    for step in range(8):
        batch = clips.train_batch(step)
        for name, features in zip(batch.ids, batch.features, strict=True):
            row = torch.from_numpy(store[store.ids.index(name)].features).float().view(2, 2, 8)  # F, n, dim
            for place in range(2):
                found = [n for n in range(2) if torch.equal(row[place, n], features[place])]
                assert len(found) == 1
                drawn.add((place, found[0]))
    assert len(drawn) == 4
    rows = clips.dev_batches()[0]
    middle = torch.from_numpy(store.gather("features", rows)[:, 1::2]).float()
    assert torch.equal(clips.dev_batch(rows).features, middle)
    assert torch.equal(clips.dev_batch(rows).mask, clips.dev_batch(rows).mask)


def test_pictures_of_the_same_label(tmp_path: Path) -> None:
    paired = with_train(pair_by_label=True, mixup_prob=0.0, roll_prob=0.0)
    store = LatentStore.open(fill(tmp_path / "store", replace(META, fps=5.0), pictures="other"))
    clips = ClipBatches(store, paired, "train")
    pictures = {
        store[row].features.tobytes(): (store.labels[row], store.splits[row])
        for row in range(len(store))
        if store[row].features is not None
    }
    used: dict[str, set[bytes]] = {}
    for step in range(20):
        batch = clips.train_batch(step)
        labels = [str(n) for n in batch.targets.argmax(1).tolist()]
        for label, features in zip(labels, batch.features, strict=True):
            if label == "3":
                assert not features.any()
                continue
            data = features.numpy().astype(np.float16).tobytes()
            assert pictures[data] == (label, "train")
            used.setdefault(label, set()).add(data)
    assert all(len(found) == 4 for found in used.values())
    unpaired = ClipBatches(store, with_train(), "train").train_batch(0)
    assert not unpaired.features.any()


@pytest.mark.slow
def test_killed_again_and_again_ends_the_same(latents: Path, tmp_path: Path) -> None:
    preset = with_train(epochs=100.0, save_every=7, optimizer="muon")  # 267 steps
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = train(preset, latents, tmp_path / "whole")
    torch.set_num_threads(torch_threads)
    rng, kills, run = random.Random(0), 0, tmp_path / "killed"
    for _ in range(8):
        start = checkpoints(run / "checkpoints")[:1]
        process = Forked(tmp_path, train_alone, preset, latents, run)
        while process.poll() is None and checkpoints(run / "checkpoints")[:1] == start:
            time.sleep(0.01)
        try:
            process.wait(rng.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        if kills == 2:
            assert Forked(tmp_path, train_alone, preset, latents, run).wait() == 0
            break
    assert kills == 2 and same_weights(whole, run)

    def curve(folder: Path) -> list[tuple[int, float]]:
        return [(line["step"], line["loss"]) for line in metrics(folder, "train")]

    assert curve(whole) == curve(run)
