"""Batches of latents for training, as a pure function of (seed, step).

Nothing here has a state: the order of an epoch and every random choice come from generators seeded by
(seed, epoch) or (seed, step). So a resumed run goes on bit for bit, and any number of processes see the same
global batch, of which each takes its share.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.config import Preset
from vab.data.manifest import labels_of
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.training.augment import augment, drop_features
from vab.training.masking import sample_mask_ratio, sample_token_mask
from vab.utils.provenance import sha256

DEV_CLIPS = 1000  # clips of the split dev that a validation pass looks at, spread evenly over it


@dataclass(frozen=True)
class Batch:
    """Clips side by side; all tensors on one device."""

    ids: list[str]
    tokens: Tensor  # int64 [B, K, T], the truth
    features: Tensor  # float32 [B, F, dim]; zeros where a clip has no picture
    token_padding: Tensor  # bool [B, T]: True where the sound is filled up, not the clip's own
    feature_padding: Tensor  # bool [B, F]; all True where a clip has no picture
    targets: Tensor  # float32 [B, N]: share of each class in the clip's own frames (after mixup)
    drop_features: Tensor  # bool [B]: train this clip without picture
    mask: Tensor  # bool [B, K, T]: the tokens to predict

    def share(self, rank: int, world: int) -> Batch:
        """Every ``world``-th clip from ``rank`` on: what one of several processes works on."""
        if world == 1:
            return self
        return Batch(self.ids[rank::world], *(tensor[rank::world] for tensor in self._tensors()))

    def to(self, device: torch.device) -> Batch:
        """The same clips on ``device``."""
        return Batch(self.ids, *(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)[1:]]


def make_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on ``parts`` alone."""
    digest = sha256(*(str(part) for part in parts))
    return torch.Generator().manual_seed(int(digest[:15], 16))


def check_fits(store: LatentStore, preset: Preset) -> None:
    """``StoreError`` that lists every difference if the latents are not those the model works on."""
    meta, model = store.meta, preset.model
    same = ("codec", "vision", "codebook_size", "codebook_dim", "vision_dim", "seconds")
    wrong = [
        f"{name} is {getattr(meta, name)!r}, the model's is {getattr(model, name)!r}"
        for name in same
        if getattr(meta, name) != getattr(model, name)
    ]
    if meta.num_codebooks < model.num_codebooks:
        wrong.append(f"it has {meta.num_codebooks} codebooks, the model needs {model.num_codebooks}")
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
        self.classes = {name: n for n, name in enumerate(preset.classes or classes_of(store))}
        self.real = {name: store.real(name) * store.has(name) for name in ("tokens", "features")}
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

    def labels(self) -> list[str]:
        """The labels of all clips, in the order of ``rows``."""
        return [self.store.labels[row] for row in self.rows]

    def ids_of(self, step: int) -> list[str]:
        """Ids of the clips of a training step."""
        return [self.store.ids[row] for row in self.clips_of(step)]

    def train_batch(self, step: int) -> Batch:
        """The whole augmented batch of a training step (section 3.2, appendix B.3)."""
        config, model = self.preset.train, self.preset.model
        generator = make_generator(config.seed, "step", step)
        rows = self.clips_of(step)
        frames = torch.randint(self.ratio, (len(rows), model.video_length), generator=generator).numpy()
        tokens, features = self._latents(rows, frames, generator)
        alone = config.inputs if config.objective == "classification" and len(config.inputs) == 1 else ()
        moved: Tensor | None = None if alone == ("audio",) else features
        tokens, moved = augment(tokens, moved, config, model.fps, generator)
        features = features if moved is None else moved
        whose = features[:, :, -1] if alone == ("video",) else tokens[:, -1]
        parts = torch.stack([(whose == n + 1).sum(1) for n in range(len(rows))], dim=1).float()
        parts[parts.sum(1) == 0] = torch.eye(len(rows))[parts.sum(1) == 0]  # nothing is left
        targets = parts @ self._targets(rows) / parts.sum(1, keepdim=True)
        drop = drop_features(len(rows), config.cond_drop_prob, generator)
        return self._batch(rows, tokens, features, targets, drop, generator)

    def dev_batches(self, most: int = DEV_CLIPS) -> list[NDArray[np.int64]]:
        """Rows of the batches of a validation pass: at most ``most`` clips."""
        size = self.preset.train.batch_size
        count = min(len(self), most)
        rows = self.rows[np.linspace(0, len(self), count, endpoint=False).astype(np.int64)]
        return [rows[start : start + size] for start in range(0, count, size)]

    def dev_batch(self, rows: NDArray[np.int64]) -> Batch:
        """Those clips as they are, with the middle frame of each step and masks that never change."""
        generator = make_generator("dev", *(self.store.ids[row] for row in rows))
        frames = np.full((len(rows), self.preset.model.video_length), self.ratio // 2)
        tokens, features = self._latents(rows, frames, generator)
        drop = torch.zeros(len(rows), dtype=torch.bool)
        return self._batch(rows, tokens, features, self._targets(rows), drop, generator)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """Places of the clips in an epoch: a shuffle, or draws weighted by how rare their label is."""
        generator = make_generator(self.preset.train.seed, "epoch", epoch)
        if not self.preset.train.class_balanced:
            return torch.randperm(len(self), generator=generator).numpy()
        labels = [labels_of(self.store.labels[row]) for row in self.rows]
        counts = Counter(label for several in labels for label in several)
        rare = [sum(1000 / (counts[label] + 0.01) for label in several) for several in labels]
        weights = torch.tensor(rare, dtype=torch.float64)
        return torch.multinomial(weights, len(self), replacement=True, generator=generator).numpy()

    def _latents(
        self, rows: NDArray[np.int64], frames: NDArray[np.int64], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """tokens [B, K + 1, T], features [B, F, dim + 1]; ``frames`` [B, F]: which of each step's n to take.

        The last codebook and the last dimension say whose a frame or a picture is: 1 for the first clip of
        ``rows``, 2 for the second, 0 where it is filled up.
        """
        model = self.preset.model
        tokens = self.store.gather("tokens", rows)[:, : model.num_codebooks]
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
        own_tokens = np.arange(tokens.shape[2]) < self.real["tokens"][rows, None]
        number = np.arange(1, len(rows) + 1)[:, None]
        own_features = places < self.real["features"][sources, None]
        tokens = np.concatenate((tokens, (own_tokens * number)[:, None]), axis=1, dtype=np.int64)
        features = np.concatenate((features, (own_features * number)[:, :, None]), axis=2, dtype=np.float32)
        return torch.from_numpy(tokens), torch.from_numpy(features)

    def _targets(self, rows: NDArray[np.int64]) -> Tensor:
        """[B, N]: 1 for each class of a clip."""
        targets = torch.zeros(len(rows), len(self.classes))
        for target, row in zip(targets, rows, strict=True):
            for label in labels_of(self.store.labels[row]):
                if label in self.classes:
                    target[self.classes[label]] = 1.0
        return targets

    def _batch(
        self,
        rows: NDArray[np.int64],
        tokens: Tensor,
        features: Tensor,
        targets: Tensor,
        drop: Tensor,
        generator: torch.Generator,
    ) -> Batch:
        model = self.preset.model
        ratio = sample_mask_ratio(len(rows), self.preset.train, generator)
        mask = sample_token_mask(
            ratio, model.num_codebooks, tokens.shape[2], generator, model.num_conditioning_codebooks
        )
        return Batch(
            ids=[self.store.ids[row] for row in rows],
            tokens=tokens[:, :-1],
            features=features[:, :, :-1],
            token_padding=tokens[:, -1] == 0,
            feature_padding=features[:, :, -1] == 0,
            targets=targets,
            drop_features=drop,
            mask=mask,
        )


def folds_of(store: LatentStore) -> list[str]:
    """The folds of a store: its splits that are called fold1, fold2 ..."""
    return sorted({split for split in store.splits if split.startswith("fold")}, key=lambda s: (len(s), s))


def hold_out(store: LatentStore, fold: str) -> None:
    """From now on that fold is the split dev, the other folds are train, and what is in no fold is neither.

    In memory alone. ``StoreError`` if the store has no such fold.
    """
    folds = folds_of(store)
    if fold not in folds:
        raise StoreError(f"{store.directory} has no {fold}; its folds: {', '.join(folds) or 'none'}")
    parts = dict.fromkeys(folds, "train") | {fold: "dev"}
    store.splits = [parts.get(split, "") for split in store.splits]


def classes_of(store: LatentStore) -> tuple[str, ...]:
    """Every label of the split train, sorted: what a classifier that knows no better tells apart."""
    texts = {text for text, split in zip(store.labels, store.splits, strict=True) if split == "train"}
    return tuple(sorted({label for text in texts for label in labels_of(text)}))
