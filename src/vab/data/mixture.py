"""Several stores of latents as one set of clips, each store with its own frame rate and weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vab.config import video_frames
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.errors import SettingError

LEARNED = ("train", "dev")


class Mixture:
    """The clips of one or more stores; rows are numbered through, store after store.

    ``weights`` [number of stores] say how often an epoch holds each clip of a store (default: once).
    ``StoreError`` lists how the stores differ, in anything but the frame rate, or names clips that a run
    would see in two of them; ``SettingError`` for weights that make no sense.
    """

    def __init__(self, stores: Sequence[LatentStore], weights: Sequence[float] | None = None) -> None:
        self.stores = list(stores)
        self.weights = [1.0] * len(self.stores) if weights is None else [float(each) for each in weights]
        if len(self.weights) != len(self.stores):
            raise SettingError(f"{len(self.stores)} stores need as many weights, not {len(self.weights)}")
        if not all(0 < weight < np.inf for weight in self.weights):
            raise SettingError(f"the weight of a store must be more than 0, not {min(self.weights):g}")
        for one, other in combinations(self.stores, 2):
            _check_alike(one, other)
            _check_apart(one, other)

    @classmethod
    def open(
        cls, directories: str | Path | Sequence[str | Path], weights: Sequence[float] | None = None
    ) -> Mixture:
        """The stores of these folders, or of the one folder; ``StoreError`` as ``LatentStore.open``."""
        several = [directories] if isinstance(directories, str | Path) else directories
        if not several:
            raise SettingError("there is no store to train on; name one with --store")
        return cls([LatentStore.open(each) for each in several], weights)

    def __len__(self) -> int:
        return sum(map(len, self.stores))

    def __str__(self) -> str:
        return ", ".join(str(store.directory) for store in self.stores)

    @cached_property
    def ids(self) -> list[str]:
        """[N]"""
        return self._texts("ids")

    @cached_property
    def labels(self) -> list[str]:
        """[N]; several are joined by ";"."""
        return self._texts("labels")

    @property
    def splits(self) -> list[str]:
        """[N]; read anew each time, since a fold may be held out in memory."""
        return self._texts("splits")

    def has(self, name: str) -> NDArray[np.bool_]:
        """bool [N]: True for rows that have ``tokens`` or ``features``."""
        return np.concatenate([store.has(name) for store in self.stores])

    def num_valid(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """int32 [n]: the number of frames of those rows that are not padding; 0 where a row has none."""
        found = np.empty(len(rows), np.int32)
        for store, at, own in self._by_store(rows):
            found[at] = store.num_valid(name, own)
        return found

    def _texts(self, column: str) -> list[str]:
        columns: list[list[str]] = [getattr(store, column) for store in self.stores]
        return columns[0] if len(columns) == 1 else list(chain.from_iterable(columns))

    @cached_property
    def member(self) -> NDArray[np.int64]:
        """[N]: the number of each row's store."""
        return np.repeat(np.arange(len(self.stores)), [len(store) for store in self.stores])

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """[number of stores]: the first row of each."""
        return np.cumsum([0, *map(len, self.stores[:-1])])

    def tokens(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Tokens [n, K, T] of those rows, and where they are not padding, bool [n, T].

        Zeros and padding where a row has none. ``StoreError`` names a shard that is damaged.
        """
        shape = self.stores[0].meta.token_shape
        values, valid = np.empty((len(rows), *shape), np.uint16), np.empty((len(rows), shape[1]), bool)
        for store, at, own in self._by_store(rows):
            store.gather("tokens", own, out=values, at=at)
            valid[at] = np.arange(shape[1]) < store.num_valid("tokens", own)[:, None]
        return values, valid

    def timing(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """What ``vab.timing.sound.stored_curve`` says of those rows, [n, T, 2], which all have sound."""
        values = np.empty((len(rows), self.stores[0].meta.token_shape[1], 2), np.float16)
        for store, at, own in self._by_store(rows):
            store.gather("timing", own, out=values, at=at)
        return values

    def strides(self, fps: float) -> list[int]:
        """For each store the number of stored features in a step of a model with ``fps`` steps a second."""
        return [round(store.meta.fps / fps) for store in self.stores]

    def features(
        self, rows: NDArray[np.int64], fps: float, draws: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """``fps`` features a second [n, F, dim] of those rows, and where they are not padding, bool [n, F].

        Of the stored features of each step the middle one or, with ``draws`` [n, F], one at random: integers
        that are uniform below a common multiple of ``strides(fps)``. Else as ``tokens``.
        """
        first = self.stores[0].meta
        steps = video_frames(first.seconds, fps)
        values = np.empty((len(rows), steps, first.vision_dim), np.float16)
        valid = np.empty((len(rows), steps), bool)
        for store, at, own in self._by_store(rows):
            stride = round(store.meta.fps / fps)
            offsets = np.full((len(at), steps), stride // 2) if draws is None else draws[at] % stride
            positions = np.arange(steps) * stride + offsets  # [n, F], of the stored features
            positions = positions.clip(max=store.meta.feature_shape[0] - 1)
            store.gather("features", own, None if stride == 1 else positions, out=values, at=at)
            valid[at] = positions < store.num_valid("features", own)[:, None]
        return values, valid

    def _by_store(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[LatentStore, NDArray[np.int64], NDArray[np.int64]]]:
        """For each store with some of these rows: where they are among them, and their rows there."""
        member = self.member[rows]
        for n, store in enumerate(self.stores):
            at = np.flatnonzero(member == n)
            if len(at):
                yield store, at, rows[at] - self.begins[n]

    def verify(self) -> None:
        """Verify the stores that are small (``LatentStore.verify``)."""
        for store in self.stores:
            store.verify()

    def codebook_vectors(self) -> NDArray[np.float32]:
        """[K, V, C] of the codec that made the tokens, the same for all stores."""
        return self.stores[0].codebook_vectors()

    def feature_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation [dim] of the features for training, of one store or of a mixture.

        Each store counts as often as an epoch holds its clips with features. Without any: zeros and ones.
        """
        if len(self.stores) == 1:
            return self.stores[0].feature_statistics()
        counts = np.array([sum(_trained(store) & store.has("features")) for store in self.stores])
        shares = counts * self.weights
        if not shares.any():
            return self.stores[0].feature_statistics()

        # The variance of a mixture: the mean of the squares less the square of the mean.
        each = [np.array(store.feature_statistics(), np.float64) for store in self.stores]  # [stores][2, dim]
        means, stds = np.stack(each, axis=1)  # [stores, dim] each
        mean = np.average(means, axis=0, weights=shares)
        square = np.average(stds**2 + means**2, axis=0, weights=shares)
        std = np.sqrt((square - mean**2).clip(min=0)).clip(min=1e-3)
        return mean.astype(np.float32), std.astype(np.float32)

    def fingerprint(self) -> str | list[dict[str, Any]]:
        """The one store's, if its weight is 1; else every store's with its weight, sorted."""
        if self.weights == [1.0]:
            return self.stores[0].fingerprint()
        each = sorted(zip((store.fingerprint() for store in self.stores), self.weights, strict=True))
        return [{"store": fingerprint, "weight": weight} for fingerprint, weight in each]

    def record(self) -> dict[str, Any] | list[dict[str, Any]]:
        """What a model's record says of its data: fingerprint and settings of the store, or of each."""
        each = [{"fingerprint": store.fingerprint(), **store.meta.document()} for store in self.stores]
        if self.weights == [1.0]:
            return each[0]
        return [{**about, "weight": weight} for about, weight in zip(each, self.weights, strict=True)]


def _trained(store: LatentStore) -> NDArray[np.bool_]:
    return np.array(store.splits) == "train"


def _check_alike(first: LatentStore, other: LatentStore) -> None:
    """``StoreError`` that lists what differs between two stores, but for frame rates and timing curves."""
    wrong = [
        f"{each.name} is {getattr(other.meta, each.name)!r}, there {getattr(first.meta, each.name)!r}"
        for each in fields(first.meta)
        if each.name not in ("fps", "timing")
        and getattr(other.meta, each.name) != getattr(first.meta, each.name)
    ]
    if not wrong and not np.array_equal(first.codebook_vectors(), other.codebook_vectors()):
        wrong = ["the vectors of its codebooks are others"]
    if wrong:
        raise StoreError(f"{other.directory} cannot be mixed with {first.directory}: {'; '.join(wrong)}")


def _check_apart(one: LatentStore, other: LatentStore) -> None:
    """``StoreError`` that names clips of both stores, unless neither learns from or validates on them."""
    ids = [pa.array(store.ids) for store in (one, other)]
    both = [pc.is_in(ids[n], value_set=ids[1 - n]).to_numpy(zero_copy_only=False) for n in (0, 1)]
    rows = zip(*map(np.flatnonzero, both), strict=True)  # ids are sorted in both
    used = [(one.ids[i], one.splits[i], other.splits[j]) for i, j in rows]
    used = [each for each in used if any(split in LEARNED or split.startswith("fold") for split in each[1:])]
    if used:
        ident, split, other_split = used[0]
        more = f" and {len(used) - 1} more" if len(used) > 1 else ""
        raise StoreError(
            f"{one.directory} and {other.directory} both have clip {ident} (split {split} and {other_split})"
            f"{more}; leave them out of the manifest of one of them and extract that anew"
        )
