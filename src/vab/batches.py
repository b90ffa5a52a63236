"""Batches of latents for training, as a pure function of (seed, step).

Nothing here has a state: the order of an epoch and every random choice come from generators seeded by
(seed, epoch) or (seed, step). So a resumed run goes on bit for bit, and any number of processes see the same
global batch, of which each takes its share.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .augment import augment, drop_features
from .config import Preset, TrainConfig
from .masking import ratio_law, token_mask
from .record import sha256
from .store import LatentStore, StoreError

DEV_CLIPS = 1000  # clips of the split dev that a validation pass looks at, spread evenly over it


@dataclass(frozen=True)
class Batch:
    """Clips side by side; all tensors on one device."""

    ids: list[str]
    labels: list[str]
    tokens: Tensor  # int64 [B, K, T], the truth
    features: Tensor  # float32 [B, F, dim]; zeros where a clip has no picture
    drop_features: Tensor  # bool [B]: train this clip without picture
    mask: Tensor  # bool [B, K, T]: the tokens to predict

    def share(self, rank: int, world: int) -> Batch:
        """Every ``world``-th clip from ``rank`` on: what one of several processes works on."""
        if world == 1:
            return self
        part = slice(rank, None, world)
        tensors = (self.tokens, self.features, self.drop_features, self.mask)
        return Batch(self.ids[part], self.labels[part], *(tensor[part] for tensor in tensors))

    def to(self, device: torch.device) -> Batch:
        """The same clips on ``device``."""
        tensors = (self.tokens, self.features, self.drop_features, self.mask)
        return Batch(self.ids, self.labels, *(tensor.to(device, non_blocking=True) for tensor in tensors))


def seeded(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on ``parts`` alone."""
    digest = sha256(*(str(part) for part in parts))
    return torch.Generator().manual_seed(int(digest[:15], 16))


def check_fits(store: LatentStore, preset: Preset) -> None:
    """``StoreError`` that lists every difference if the latents are not those the model works on."""
    meta, model = store.meta, preset.model
    same = ("codec", "vision", "vocabulary", "codebook_dim", "vision_dim", "seconds")
    wrong = [
        f"{name} is {getattr(meta, name)!r}, the model's is {getattr(model, name)!r}"
        for name in same
        if getattr(meta, name) != getattr(model, name)
    ]
    if meta.codebooks < model.codebooks:
        wrong.append(f"it has {meta.codebooks} codebooks, the model needs {model.codebooks}")
    ratio = meta.fps / model.fps
    if abs(ratio - round(ratio)) > 1e-6 or ratio < 1:
        wrong.append(f"its {meta.fps} features a second are no multiple of the model's {model.fps}")
    if wrong:
        raise StoreError(f"{store.directory} does not fit {preset.name}: {'; '.join(wrong)}")


class ClipBatches:
    """All batches of one split. Rows with tokens are the clips.

    With ``pair_by_label`` a clip's picture is that of a random row with the same label (and split) that has
    one, drawn anew each time; else its own. A clip for which there is none gets zeros: no picture.
    The order of the store's shards has no influence.
    """

    def __init__(self, store: LatentStore, preset: Preset, split: str) -> None:
        check_fits(store, preset)
        self.store, self.preset = store, preset
        self.ratio = round(store.meta.fps / preset.model.fps)
        has_tokens, has_features = store.has("tokens"), store.has("features")
        rows = sorted((store.ids[row], row) for row in range(len(store)) if store.splits[row] == split)
        self.rows = np.array([row for _, row in rows if has_tokens[row]], dtype=np.int64)
        pictures: dict[str, list[int]] = {}
        if preset.train.pair_by_label:
            for _, row in rows:
                if has_features[row] and store.labels[row]:
                    pictures.setdefault(store.labels[row], []).append(row)
        self.pictures = {label: np.array(found, dtype=np.int64) for label, found in pictures.items()}
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        """Number of clips N."""
        return len(self.rows)

    def steps(self, epochs: float) -> int:
        """Steps that see every clip ``epochs`` times."""
        return math.ceil(epochs * len(self) / self.preset.train.batch_size)

    def clips_of(self, step: int) -> NDArray[np.int64]:
        """Rows [B] of a training step. Epochs follow one another without a gap, so no clip is left out."""
        size = self.preset.train.batch_size
        places = [divmod(place, len(self)) for place in range(step * size, (step + 1) * size)]
        return self.rows[[self._order(epoch)[offset] for epoch, offset in places]]

    def ids_of(self, step: int) -> list[str]:
        """Ids of the clips of a training step."""
        return [self.store.ids[row] for row in self.clips_of(step)]

    def train_batch(self, step: int) -> Batch:
        """The whole augmented batch of a training step (section 3.2, appendix B.3)."""
        config, model = self.preset.train, self.preset.model
        generator = seeded(config.seed, "step", step)
        rows = self.clips_of(step)
        frames = torch.randint(self.ratio, (len(rows), model.video_length), generator=generator).numpy()
        tokens, features = self._latents(rows, frames, generator)
        mixed = augment(tokens, features, config, model.fps, generator)
        assert mixed.features is not None
        drop = drop_features(len(rows), config.drop_features, generator)
        return self._batch(rows, mixed.tokens, mixed.features, drop, config, generator)

    def dev_batches(self) -> list[NDArray[np.int64]]:
        """Rows of the batches of a validation pass: at most ``DEV_CLIPS`` clips."""
        size = self.preset.train.batch_size
        count = min(len(self), DEV_CLIPS)
        rows = self.rows[np.linspace(0, len(self), count, endpoint=False).astype(np.int64)]
        return [rows[start : start + size] for start in range(0, count, size)]

    def dev_batch(self, rows: NDArray[np.int64]) -> Batch:
        """Those clips as they are, with the middle frame of each step and masks that never change."""
        generator = seeded("dev", *(self.store.ids[row] for row in rows))
        frames = np.full((len(rows), self.preset.model.video_length), self.ratio // 2)
        tokens, features = self._latents(rows, frames, generator)
        drop = torch.zeros(len(rows), dtype=torch.bool)
        return self._batch(rows, tokens, features, drop, self.preset.train, generator)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """Places of the clips in an epoch: a shuffle, or draws weighted by how rare their label is."""
        generator = seeded(self.preset.train.seed, "epoch", epoch)
        if not self.preset.train.balanced:
            return torch.randperm(len(self), generator=generator).numpy()
        labels = [self.store.labels[row] for row in self.rows]
        counts = Counter(labels)
        weights = torch.tensor([1000 / (counts[label] + 0.01) for label in labels], dtype=torch.float64)
        return torch.multinomial(weights, len(self), replacement=True, generator=generator).numpy()

    def _latents(
        self, rows: NDArray[np.int64], frames: NDArray[np.int64], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """tokens [B, K, T] and features [B, F, dim]; ``frames`` [B, F]: which of each step's n to take."""
        model = self.preset.model
        tokens = self.store.gather("tokens", rows)[:, : model.codebooks]
        draws = torch.rand(len(rows), generator=generator, dtype=torch.float64).tolist()
        sources = rows.copy()
        if self.preset.train.pair_by_label:
            for i, (row, draw) in enumerate(zip(rows, draws, strict=True)):
                found = self.pictures.get(self.store.labels[row])
                if found is not None:
                    sources[i] = found[int(draw * len(found))]
        places = np.arange(model.video_length) * self.ratio + frames
        places = places.clip(max=self.store.meta.feature_shape[0] - 1)
        features = self.store.gather("features", sources)[np.arange(len(rows))[:, None], places]
        return torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(features).float()

    def _batch(
        self,
        rows: NDArray[np.int64],
        tokens: Tensor,
        features: Tensor,
        drop: Tensor,
        config: TrainConfig,
        generator: torch.Generator,
    ) -> Batch:
        _, codebooks, frames = tokens.shape
        ratio = ratio_law(len(rows), config, generator)
        mask = token_mask(ratio, codebooks, frames, generator, self.preset.model.given_codebooks)
        ids, labels = ([names[row] for row in rows] for names in (self.store.ids, self.store.labels))
        return Batch(ids, labels, tokens, features, drop, mask)
