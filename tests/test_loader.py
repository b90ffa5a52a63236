"""Several stores in one run, shares of a batch, and batches made ahead."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.cli import vab
from helpers.training import META, PRESET, fill, with_train
from vab.config import Compute
from vab.data.mixture import Mixture
from vab.data.shard import Latents, StoreError
from vab.data.store import LatentStore
from vab.errors import SettingError, TrainError
from vab.training.batches import Batch, ClipBatches, make_generator
from vab.training.loader import made_ahead
from vab.training.trainer import train

QUIET = {"mixup_prob": 0.0, "roll_prob": 0.0, "cond_drop_prob": 0.0}


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("latents") / "store")


def counting(
    folder: Path, fps: float, clips: int, split: str = "train", label: str = "", start: int = 0
) -> LatentStore:
    """A store whose features are their own numbers, and whose clips are called after the folder."""
    meta = replace(META, fps=fps)
    vectors = np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32)
    store = LatentStore.create(folder, meta, vectors)
    tokens = np.zeros(meta.token_shape, np.uint16)
    number = np.arange(meta.feature_shape[0], dtype=np.float16)[:, None].repeat(8, axis=1)
    store.add([Latents(f"{folder.name}{n + start}", label, split, tokens, number) for n in range(clips)])
    return store


def same(a: Batch, parts: list[Batch]) -> bool:
    """True if a batch is these parts side by side."""

    def tensor(batch: Batch, name: str) -> torch.Tensor:
        found = getattr(batch, name)
        if found is None:  # nothing is padded
            shape = batch.tokens[:, 0] if name == "token_padding" else batch.features[:, :, 0]
            found = torch.zeros_like(shape, dtype=torch.bool)
        return found

    names = [field.name for field in fields(Batch) if field.name != "ids"]
    return a.ids == [name for part in parts for name in part.ids] and all(
        torch.equal(tensor(a, name), torch.cat([tensor(part, name) for part in parts])) for name in names
    )


# --- the share of a process ---


@pytest.mark.parametrize("crop", [0.0, 0.2])
def test_the_shares_of_all_processes_are_the_batch_of_one(latents: Path, crop: float) -> None:
    chosen = with_train(batch_size=150, roll_prob=0.5, crop_seconds=crop)  # of three blocks of masks
    clips, dev = (ClipBatches(LatentStore.open(latents), chosen, split) for split in ("train", "dev"))
    rows = np.tile(dev.rows, 40)
    for step in (0, 7):
        whole = clips.train_batch(step)
        assert len(whole.ids) == 150
        for n in (1, 2, 7, 150):
            assert same(whole, [clips.train_batch(step, rank, n) for rank in range(n)]), n
            assert same(dev.dev_batch(rows), [dev.dev_batch(rows, rank, n) for rank in range(n)]), n
    assert not torch.equal(clips.train_batch(0).mask, clips.train_batch(7).mask)
    # hardly two clips have the same mask: those of ratio 1
    assert len({row.numpy().tobytes() for row in whole.mask}) > 120


def test_no_two_clips_of_a_batch_have_the_same_mask(latents: Path) -> None:
    """Not even in other blocks of masks, where one ratio is drawn for all of them."""
    chosen = with_train(batch_size=200, mask_ratio_per="batch", mask_max=0.6)
    clips, dev = (ClipBatches(LatentStore.open(latents), chosen, split) for split in ("train", "dev"))
    for batch in (clips.train_batch(0), dev.dev_batch(np.tile(dev.rows, 50))):
        assert len({mask.numpy().tobytes() for mask in batch.mask}) == 200


def test_a_share_is_as_much_work_whatever_the_batch(latents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 clips of a process: read are those and the ones they go on as, of 60 clips or of 960."""
    read: list[int] = []
    gather = LatentStore.gather

    def counted(store: LatentStore, name: str, rows: np.ndarray, *frames: Any, **where: Any) -> np.ndarray:
        read.append(len(rows))
        return gather(store, name, rows, *frames, **where)

    monkeypatch.setattr(LatentStore, "gather", counted)
    for n in (1, 4, 16):
        clips = ClipBatches(LatentStore.open(latents), with_train(batch_size=60 * n), "train")
        for rank in range(n):
            read.clear()
            batch = clips.train_batch(0, rank, n)
            assert len(batch.ids) == 60
            assert len(read) == 2 and min(read) >= 60 and max(read) <= 120


# --- epochs ---


def test_an_epoch_holds_each_clip_as_often_as_its_store_says(tmp_path: Path) -> None:
    stores = [counting(tmp_path / name, 5.0, n) for name, n in (("a", 10), ("b", 8), ("c", 6))]
    clips = ClipBatches(Mixture(stores, [1, 2.5, 0.5]), with_train(batch_size=1), "train")
    assert clips.epoch_length == clips.steps(1.0) == 10 + 20 + 3
    thrice = []
    for epoch in range(20):
        steps = range(33 * epoch, 33 * (epoch + 1))
        seen = Counter(name for step in steps for name in clips.ids_of_step(step))
        by_store = {name: [count for ident, count in seen.items() if ident[0] == name] for name in "abc"}
        assert by_store == {"a": [1] * 10, "b": by_store["b"], "c": [1] * 3}
        assert sorted(by_store["b"]) == [2, 2, 2, 2, 3, 3, 3, 3]
        thrice.append(frozenset(ident for ident, count in seen.items() if count == 3))
    assert len(set(thrice)) > 10  # another half each time
    assert set.union(*map(set, thrice)) == {f"b{n}" for n in range(8)}


def test_the_order_of_the_stores_has_no_influence(tmp_path: Path) -> None:
    stores = [counting(tmp_path / name, fps, 9) for name, fps in (("a", 5.0), ("b", 25.0))]
    one = ClipBatches(Mixture(stores, [1, 2]), PRESET, "train").train_batch(3)
    other = ClipBatches(Mixture(stores[::-1], [2, 1]), PRESET, "train").train_batch(3)
    assert same(one, [other])


def test_rare_labels_are_drawn_as_often_times_the_weight(tmp_path: Path) -> None:
    chosen = with_train(class_balanced=True, batch_size=1)
    stores = [
        counting(tmp_path / name, 5.0, n, label=label)
        for name, n, label in (("a", 90, "often"), ("b", 10, "seldom"), ("c", 10, "else"))
    ]
    mixture = Mixture(stores, [1, 1, 3])
    clips = ClipBatches(mixture, chosen, "train")
    ids = [clips.mixture.ids[clips.rows[n]][0] for epoch in range(40) for n in clips._order(epoch)]
    counts = Counter(ids)
    assert len(ids) == 40 * 130
    for name, share in (("a", 0.2), ("b", 0.2), ("c", 0.6)):
        assert counts[name] / len(ids) == pytest.approx(share, abs=0.03)
    # of one store, the draws of torch.multinomial
    one = ClipBatches(stores[0], chosen, "train")
    generator = make_generator(chosen.train.seed, "epoch", 5)
    drawn = torch.multinomial(torch.ones(90, dtype=torch.float64), 90, replacement=True, generator=generator)
    assert one._order(5).tolist() == drawn.tolist()
    without = counting(tmp_path / "d", 5.0, 4)
    with pytest.raises(TrainError, match="no labels in the split train, by which to draw"):
        ClipBatches(without, chosen, "train").train_batch(0)


# --- several stores ---


def test_each_store_has_its_own_frame_rate(tmp_path: Path) -> None:
    """The paper's mixture: of five stored frames in each step one at random, and of one that one."""
    rates = {"five": 25.0, "two": 10.0, "one": 5.0}
    five, two, one = (counting(tmp_path / name, fps, 30) for name, fps in rates.items())
    for folder, fps in (("five", 25.0), ("one", 5.0)):
        counting(tmp_path / folder, fps, 2, "dev", start=30)
    clips = ClipBatches(Mixture([five, two, one]), with_train(batch_size=60, **QUIET), "train")
    drawn: dict[str, list[list[int]]] = {name: [[], []] for name in rates}
    for step in range(30):
        batch = clips.train_batch(step)
        for name, features in zip(batch.ids, batch.features, strict=True):
            for place in range(2):
                assert len(set(features[place].tolist())) == 1
                drawn[name.rstrip("0123456789")][place].append(int(features[place, 0]))
    for place in range(2):
        assert set(drawn["one"][place]) == {place}
        for name, n in (("five", 5), ("two", 2)):  # a number drawn for both favours neither's first frames
            counts = Counter(drawn[name][place])
            assert set(counts) == set(range(n * place, n * place + n))  # of its own step
            assert all(abs(count - 600 / n) < 3 * np.sqrt(600 / n) for count in counts.values())
    both = Counter(zip(*drawn["five"], strict=True))
    assert len(both) == 25  # each step is drawn for itself
    held = ClipBatches(Mixture.open([tmp_path / "five", tmp_path / "one"]), PRESET, "dev")
    batch = held.dev_batch(held.rows)
    seen = dict(zip(batch.ids, batch.features[:, :, 0].tolist(), strict=True))
    assert seen == {"five30": [2, 7], "five31": [2, 7], "one30": [0, 1], "one31": [0, 1]}


def test_a_drawn_feature_is_padding_where_it_lies_behind_the_end(tmp_path: Path) -> None:
    """Seven features of ten: of the second step's five the first two are the clip's own."""
    counting(tmp_path / "five", 25.0, 6)
    store = LatentStore.open(tmp_path / "five")
    rows = [replace(store[n], id=f"short{n}", real_features=7) for n in range(6)]
    short = LatentStore.create(tmp_path / "short", store.meta, store.codebook_vectors())
    short.add(rows)
    clips = ClipBatches(short, with_train(batch_size=60, **QUIET), "train")
    batch = clips.train_batch(0)
    assert batch.feature_padding is not None
    assert torch.equal(batch.feature_padding, batch.features[:, :, 0] >= 7)
    assert 0 < int(batch.feature_padding.sum()) < 60


def test_a_label_pairs_sounds_and_pictures_of_all_stores(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32)
    sounds, pictures = (LatentStore.create(tmp_path / name, META, vectors) for name in ("sounds", "pictures"))
    tokens, features = np.zeros(META.token_shape, np.uint16), np.ones(META.feature_shape, np.float16)
    sounds.add([Latents(f"s{n}", str(n), "train", tokens, None) for n in range(3)])
    pictures.add([Latents(f"p{n}", str(n), "train", None, features * (n + 1)) for n in range(2)])
    chosen = with_train(pair_by_label=True, **QUIET)
    batch = ClipBatches(Mixture([sounds, pictures]), chosen, "train").train_batch(0)
    shown = dict(zip(batch.ids, batch.features[:, 0, 0].tolist(), strict=True))
    assert shown == {"s0": 1, "s1": 2, "s2": 0}


def test_stores_that_differ_are_refused(tmp_path: Path) -> None:
    first = counting(tmp_path / "first", 5.0, 2)
    vectors = first.codebook_vectors()
    other = LatentStore.create(
        tmp_path / "other", replace(META, vision_fingerprint="x", fill="repeat"), vectors
    )
    with pytest.raises(StoreError, match=r"cannot be mixed with .*: fill is .*vision_fingerprint is 'x'"):
        Mixture([first, other])
    turned = LatentStore.create(tmp_path / "turned", META, vectors[:, ::-1])
    with pytest.raises(StoreError, match="the vectors of its codebooks are others"):
        Mixture([first, turned])
    again = counting(tmp_path / "again", 5.0, 2)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(SettingError, match="weight"):
            Mixture([first, again], weights)


@pytest.mark.parametrize("split", ["train", "dev", "test", "fold1"])
def test_a_clip_in_two_stores_is_refused_and_named(tmp_path: Path, split: str) -> None:
    one = counting(tmp_path / "one" / "x", 5.0, 3, "train")
    other = counting(tmp_path / "other" / "x", 5.0, 3, split, start=2)
    for stores, splits in (([one, other], f"train and {split}"), ([other, one], f"{split} and train")):
        with pytest.raises(StoreError, match=rf"both have clip x2 \(split {splits}\); leave") as caught:
            Mixture(stores)
        assert "\n" not in str(caught.value)
    third = counting(tmp_path / "third" / "x", 5.0, 3, "test", start=2)
    if split not in ("train", "test"):  # what a run is chosen by is not tested on either
        with pytest.raises(StoreError, match=rf"clip x2 \(split {split} and test\) and 2 more; leave"):
            Mixture([other, third])
    tests = [counting(tmp_path / name / "x", 5.0, 3, "test") for name in ("c", "d")]
    assert len(Mixture(tests)) == 6  # nothing is learned from these, nor chosen by them


def test_features_are_standardised_over_all_stores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = fill(tmp_path / "a", replace(META, fps=5.0))
    first = LatentStore.open(a)
    stores = [first, LatentStore.create(tmp_path / "b", META, first.codebook_vectors())]
    features = (3 + 2 * rng.normal(size=(7, *META.feature_shape))).astype(np.float16)
    tokens = np.zeros(META.token_shape, np.uint16)
    stores[1].add([Latents(f"new{n}", "", "train", tokens, each) for n, each in enumerate(features)])
    mean, std = Mixture(stores, [1, 4]).feature_statistics()
    rows = [row for row in range(len(stores[0])) if stores[0].splits[row] == "train"]
    own = stores[0].gather("features", rows).astype(np.float64).reshape(-1, 8)
    new = features.astype(np.float64).reshape(-1, 8)
    parts = np.concatenate([own, new])
    weights = np.repeat([16 / len(own), 4 * 7 / len(new)], [len(own), len(new)])
    wanted = np.average(parts, axis=0, weights=weights)
    np.testing.assert_allclose(mean, wanted, atol=1e-4)
    np.testing.assert_allclose(std**2, np.average((parts - wanted) ** 2, axis=0, weights=weights), rtol=1e-3)


def test_a_run_on_two_stores_is_the_same_run_in_either_order(tmp_path: Path, latents: Path) -> None:
    vectors = LatentStore.open(latents).codebook_vectors()
    store = LatentStore.create(tmp_path / "b", replace(META, fps=5.0), vectors)
    tokens, features = np.zeros(META.token_shape, np.uint16), np.ones((2, 8), np.float16)
    store.add([Latents(f"b{n}", "0", "dev" if n == 0 else "train", tokens, features) for n in range(5)])
    stores = [latents, store.directory]
    run = train(PRESET, stores, tmp_path / "run", weights=[1, 2], max_steps=3)
    record = json.loads((run / "record.json").read_text())
    assert record["clips"] == {"train": 20, "dev": 5}
    assert [(each["fps"], each["weight"]) for each in record["store"]] == [(10.0, 1.0), (5.0, 2.0)]
    said: list[str] = []
    train(PRESET, stores[::-1], run, weights=[2, 1], max_steps=3, log=said.append)
    assert any("resuming" in line for line in said)
    for weights in (None, [1, 3]):
        with pytest.raises(TrainError, match=r"store was"):
            train(PRESET, stores, run, weights=weights, max_steps=3)


def test_stores_and_weights_are_options(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["pretrain", "vab-tiny", "--out", tmp_path / "run"]
    code, _, err = vab(capsys, *words)
    assert code == 2 and "--store" in err
    code, _, err = vab(capsys, *words, "--store", latents, "--store", tmp_path / "none")
    assert code == 2 and "none holds no store" in err
    code, _, err = vab(capsys, *words, "--store", latents, "--weights", 1, 2)
    assert code == 2 and "1 stores need as many weights, not 2" in err
    folds = ["evaluate", "folds", "vab-encodec-esc50", "--out", tmp_path / "run", "--train.inputs", "audio"]
    code, _, err = vab(capsys, *folds, "--store", latents, "--store", latents)
    assert code == 2 and "one --store" in err


# --- batches made ahead ---


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order_whatever_the_number_of_threads(latents: Path, workers: int) -> None:
    clips = ClipBatches(LatentStore.open(latents), PRESET, "train")
    with made_ahead(clips.train_batch, range(20), workers=workers, prefetch=5) as batches:
        for step, batch in enumerate(batches):
            assert same(clips.train_batch(step), [batch])
    assert step == 19 and not loaders()


def loaders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_error_comes_at_its_step_and_ends_the_threads(latents: Path, tmp_path: Path) -> None:
    clips = ClipBatches(LatentStore.open(latents), PRESET, "train")

    def make(step: int) -> Batch:
        if step == 3:
            raise StoreError("damaged")
        return clips.train_batch(step)

    taken = []
    with pytest.raises(StoreError, match=r"^damaged$"), made_ahead(make, range(9), workers=2) as batches:
        for batch in batches:
            taken.append(batch)
    assert len(taken) == 3 and not loaders()
    with pytest.raises(KeyboardInterrupt), made_ahead(make, range(3), prefetch=3) as batches:
        next(batches)
        raise KeyboardInterrupt
    assert not loaders()


def test_no_more_than_that_many_batches_wait() -> None:
    made: list[int] = []
    with made_ahead(made.append, range(100), workers=2, prefetch=3) as batches:  # type: ignore[arg-type,func-returns-value]
        for taken, _ in enumerate(batches, start=1):
            assert len(made) <= taken + 3
    assert sorted(made) == list(range(100))


def test_workers_are_no_part_of_what_a_run_is(latents: Path, tmp_path: Path) -> None:
    run = train(PRESET, latents, tmp_path / "run", max_steps=2)
    said: list[str] = []
    train(PRESET, latents, run, max_steps=2, compute=Compute(workers=2, prefetch=4), log=said.append)
    assert "step 2 of 2" in said[0]
