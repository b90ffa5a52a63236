"""Batches of latents for training, as a pure function of (seed, step).

Nothing here has a state: the order of an epoch and every random choice come from generators seeded by
(seed, epoch) or (seed, step). So a resumed run goes on bit for bit, and any number of processes see the same
global batch, of which each takes its shard.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.config import Preset
from vab.data.manifest import labels_of
from vab.data.shard import StoreError
from vab.data.store import LatentStore, spread
from vab.training.augment import Stream, augment, drop_features
from vab.training.masking import sample_mask_ratio, sample_token_mask
from vab.utils.provenance import sha256

MAX_DEV_CLIPS = 1000  # of a validation pass, spread evenly over the split dev


@dataclass(frozen=True)
class Batch:
    """B clips side by side; all tensors on one device."""

    ids: list[str]
    tokens: Tensor  # int64 [B, K, T], the truth
    features: Tensor  # float32 [B, F, dim]; zeros where a clip has no video
    token_padding: Tensor  # bool [B, T]: True where the audio is padded, not the clip's own
    feature_padding: Tensor  # bool [B, F]; all True where a clip has no video
    targets: Tensor  # float32 [B, N]: share of each class in the clip's own frames (after mixup)
    drop_features: Tensor  # bool [B]: train this clip without video
    mask: Tensor  # bool [B, K, T]: the tokens to predict

    @property
    def has_video(self) -> Tensor:
        """bool [B]: True for clips with at least one video frame of their own."""
        return ~self.feature_padding.all(1)

    @property
    def video_padding(self) -> Tensor:
        """``feature_padding`` [B, F] for a network that gets the video alone.

        Clips without video attend to their zeros: attention to nothing at all would give NaN.
        """
        return self.feature_padding & self.has_video[:, None]

    def shard(self, rank: int, world_size: int) -> Batch:
        """Every ``world_size``-th clip from ``rank`` on: the part of one of several processes."""
        if world_size == 1:
            return self
        return Batch(self.ids[rank::world_size], *(tensor[rank::world_size] for tensor in self._tensors()))

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
    """Raise a ``StoreError`` that lists every difference between the latents and what the model takes."""
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
    """All batches of one split. Its clips are the rows of the store that have tokens.

    With ``pair_by_label`` the video of a clip is that of a random row with the same label (and split) that
    has one, drawn anew each time; else its own. A clip for which there is none gets zeros, all padding.
    """

    def __init__(self, store: LatentStore, preset: Preset, split: str) -> None:
        check_fits(store, preset)
        self.store, self.preset = store, preset
        self.stride = round(store.meta.fps / preset.model.fps)  # stored features per feature of the model
        has_tokens = store.has("tokens")

        # By id, so that the order of the store's shards has no influence.
        rows = sorted((store.ids[row], row) for row in range(len(store)) if store.splits[row] == split)
        self.rows = np.array([row for _, row in rows if has_tokens[row]], dtype=np.int64)
        self.video_rows = self._group_video([row for _, row in rows]) if preset.train.pair_by_label else {}
        self.classes = {name: n for n, name in enumerate(preset.classes or classes_of(store))}
        self.num_valid = {name: store.real(name) * store.has(name) for name in ("tokens", "features")}
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _group_video(self, rows: list[int]) -> dict[str, NDArray[np.int64]]:
        """label -> the rows with that label that have video."""
        has_features, groups = self.store.has("features"), defaultdict(list)
        for row in rows:
            if has_features[row] and self.store.labels[row]:
                groups[self.store.labels[row]].append(row)
        return {label: np.array(members, dtype=np.int64) for label, members in groups.items()}

    def __len__(self) -> int:
        """Number of clips N."""
        return len(self.rows)

    def rows_with_video(self) -> NDArray[np.int64]:
        """The clips for which there is a video: their own or, with ``pair_by_label``, one of their label."""
        if not self.preset.train.pair_by_label:
            return self.rows[self.store.has("features")[self.rows]]
        return self.rows[np.array([label in self.video_rows for label in self.labels()], dtype=bool)]

    def steps(self, epochs: float) -> int:
        """Number of steps in which every clip is seen ``epochs`` times."""
        return math.ceil(epochs * len(self) / self.preset.train.batch_size)

    def rows_of_step(self, step: int) -> NDArray[np.int64]:
        """Rows [B] of a training step. Epochs follow one another without a gap, so no clip is left out."""
        size = self.preset.train.batch_size
        positions = [divmod(position, len(self)) for position in range(step * size, (step + 1) * size)]
        return self.rows[[self._order(epoch)[offset] for epoch, offset in positions]]

    def labels(self) -> list[str]:
        """The labels of all clips, in the order of ``rows``."""
        return [self.store.labels[row] for row in self.rows]

    def ids_of_step(self, step: int) -> list[str]:
        """Ids of the clips of a training step."""
        return [self.store.ids[row] for row in self.rows_of_step(step)]

    def train_batch(self, step: int) -> Batch:
        """The whole augmented batch of a training step (section 3.2, appendix B.3)."""
        config, model = self.preset.train, self.preset.model
        generator = make_generator(config.seed, "step", step)

        # 1. Latents: of each model step one of the stored features, at random.
        rows = self.rows_of_step(step)
        offsets = torch.randint(self.stride, (len(rows), model.video_length), generator=generator).numpy()
        audio, video = self._streams(rows, offsets, generator)

        # 2. Augmentation. A classifier of audio alone needs no video, which then stays as it is.
        only = config.inputs[0] if config.objective == "classification" and len(config.inputs) == 1 else ""
        audio, moved = augment(audio, None if only == "audio" else video, config, model.fps, generator)
        video = video if moved is None else moved

        # 3. Targets: the classes of each clip's owners, weighted by how many frames are theirs.
        owners = video.owners if only == "video" else audio.owners
        counts = torch.stack([(owners == n + 1).sum(1) for n in range(len(rows))], dim=1).float()  # [B, B]
        empty = counts.sum(1) == 0  # every valid frame was cut away: fall back to the clip itself
        counts[empty] = torch.eye(len(rows))[empty]
        targets = counts @ self._targets(rows) / counts.sum(1, keepdim=True)

        # 4. What is dropped, and (in _batch) what is masked.
        drop = drop_features(len(rows), config.cond_drop_prob, generator)
        return self._batch(rows, audio, video, targets, drop, generator)

    def dev_batches(self, limit: int = MAX_DEV_CLIPS) -> list[NDArray[np.int64]]:
        """Rows of the batches of a validation pass: at most ``limit`` clips, spread evenly."""
        size = self.preset.train.batch_size
        rows = self.rows[spread(len(self), limit)]
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def dev_batch(self, rows: NDArray[np.int64]) -> Batch:
        """These clips without augmentation: the middle feature of each step, masks that never change."""
        # Seeded by the clips: the masks of a validation pass do not depend on the step or the batch before.
        generator = make_generator("dev", *(self.store.ids[row] for row in rows))
        offsets = np.full((len(rows), self.preset.model.video_length), self.stride // 2)
        audio, video = self._streams(rows, offsets, generator)
        drop = torch.zeros(len(rows), dtype=torch.bool)
        return self._batch(rows, audio, video, self._targets(rows), drop, generator)

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch, as indices into ``rows``: a shuffle, or draws weighted by label rarity."""
        generator = make_generator(self.preset.train.seed, "epoch", epoch)
        if not self.preset.train.class_balanced:
            return torch.randperm(len(self), generator=generator).numpy()
        labels = [labels_of(text) for text in self.labels()]
        counts = Counter(label for several in labels for label in several)
        rarity = [sum(1000 / (counts[label] + 0.01) for label in several) for several in labels]
        weights = torch.tensor(rarity, dtype=torch.float64)
        return torch.multinomial(weights, len(self), replacement=True, generator=generator).numpy()

    def _streams(
        self, rows: NDArray[np.int64], offsets: NDArray[np.int64], generator: torch.Generator
    ) -> tuple[Stream, Stream]:
        """Audio and video of clips; ``offsets`` [B, F]: which of each step's stored features to take."""
        model = self.preset.model
        number = np.arange(1, len(rows) + 1)[:, None]  # [B, 1], the owners' numbers

        tokens = self.store.gather("tokens", rows)[:, : model.num_codebooks]  # [B, K, T]
        valid_tokens = np.arange(tokens.shape[2]) < self.num_valid["tokens"][rows, None]
        audio = Stream(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(valid_tokens * number), 2)

        # Drawn whether used or not: the random numbers that follow are the same for all presets.
        draws = torch.rand(len(rows), generator=generator, dtype=torch.float64).tolist()
        sources = rows.copy()
        for i, draw in enumerate(draws):
            candidates = self.video_rows.get(self.store.labels[rows[i]])
            if candidates is not None:
                sources[i] = candidates[int(draw * len(candidates))]

        # Stored features -> those of the model's steps: [B, F_stored, dim] -> [B, F, dim]
        positions = np.arange(model.video_length) * self.stride + offsets
        positions = positions.clip(max=self.store.meta.feature_shape[0] - 1)  # [B, F]
        features = self.store.gather("features", sources)[np.arange(len(rows))[:, None], positions]
        valid_features = positions < self.num_valid["features"][sources, None]
        video = Stream(
            torch.from_numpy(features.astype(np.float32)), torch.from_numpy(valid_features * number), 1
        )
        return audio, video

    def _targets(self, rows: NDArray[np.int64]) -> Tensor:
        """float32 [B, N]: 1 for each class of a clip."""
        targets = torch.zeros(len(rows), len(self.classes))
        for target, row in zip(targets, rows, strict=True):
            for label in labels_of(self.store.labels[row]):
                if label in self.classes:
                    target[self.classes[label]] = 1.0
        return targets

    def _batch(
        self,
        rows: NDArray[np.int64],
        audio: Stream,
        video: Stream,
        targets: Tensor,
        drop: Tensor,
        generator: torch.Generator,
    ) -> Batch:
        """Draw the mask and put everything side by side."""
        model = self.preset.model
        ratio = sample_mask_ratio(len(rows), self.preset.train, generator)
        mask = sample_token_mask(
            ratio, model.num_codebooks, audio.values.shape[2], generator, model.num_conditioning_codebooks
        )
        return Batch(
            ids=[self.store.ids[row] for row in rows],
            tokens=audio.values,
            features=video.values,
            token_padding=audio.owners == 0,
            feature_padding=video.owners == 0,
            targets=targets,
            drop_features=drop,
            mask=mask,
        )


def folds_of(store: LatentStore) -> list[str]:
    """The folds of a store: its splits that are called fold1, fold2 ..."""
    return sorted({split for split in store.splits if split.startswith("fold")}, key=lambda s: (len(s), s))


def hold_out(store: LatentStore, fold: str) -> None:
    """Make that fold the split dev and the other folds train; clips in no fold are in neither.

    Only in memory. ``StoreError`` if the store has no such fold.
    """
    folds = folds_of(store)
    if fold not in folds:
        raise StoreError(f"{store.directory} has no {fold}; its folds: {', '.join(folds) or 'none'}")
    parts = dict.fromkeys(folds, "train") | {fold: "dev"}
    store.splits = [parts.get(split, "") for split in store.splits]


def classes_of(store: LatentStore) -> tuple[str, ...]:
    """Every label of the split train, sorted: the default classes of a classifier."""
    texts = {text for text, split in zip(store.labels, store.splits, strict=True) if split == "train"}
    return tuple(sorted({label for text in texts for label in labels_of(text)}))
