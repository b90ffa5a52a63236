"""Batches of latents for training, as a pure function of (seed, step).

Nothing here has a state: the order of an epoch and every random choice come from generators seeded by
(seed, epoch) or (seed, step). So a resumed run goes on bit for bit, and any number of processes see the same
global batch. Each makes its own share: the few numbers that say what happens to a clip are drawn for all
clips, but only those of the share are read, augmented and masked.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.config import Preset
from vab.data.manifest import labels_of
from vab.data.mixture import Mixture
from vab.data.shard import StoreError
from vab.data.store import LatentStore, spread
from vab.errors import TrainError
from vab.models.hub import FOLDERS
from vab.timing.unsure import timing_of
from vab.training.augment import (
    Augmentation,
    Splicing,
    audio_frame,
    augment,
    draw_pieces,
    drop_features,
    places,
)
from vab.training.masking import sample_mask_ratio, sample_token_mask
from vab.utils.provenance import sha256

MAX_DEV_CLIPS = 1000  # of a validation pass, spread evenly over the split dev
TIMING_SEED = 0x71  # so that what a curve's augmentation draws is nothing that an objective draws
MASK_BLOCK = 64  # clips of a batch whose masks are drawn by one generator


@dataclass(frozen=True)
class Batch:
    """B clips side by side; all tensors on one device."""

    ids: list[str]
    tokens: Tensor  # int64 [B, K, T], the truth
    features: Tensor  # float32 [B, F, dim]; zeros where a clip has no video
    # Where nothing is padded in any clip these are None: attention is told nothing, which is cheaper.
    token_padding: Tensor | None  # bool [B, T]: True where the audio is padded, not the clip's own
    feature_padding: Tensor | None  # bool [B, F]; all True where a clip has no video
    targets: Tensor  # float32 [B, N]: share of each class in the clip's own frames (after mixup)
    drop_features: Tensor  # bool [B]: train this clip without video
    mask: Tensor  # bool [B, K, T]: the tokens to predict
    seeds: Tensor  # int64 [B]: of each clip's own noise, for an objective that draws more
    timing: Tensor | None = None  # float32 [B, T, 4]: the timing curve, for a model that is told one

    @property
    def has_video(self) -> Tensor:
        """bool [B]: True for clips with at least one video frame of their own."""
        if self.feature_padding is None:
            return torch.ones_like(self.drop_features)
        return ~self.feature_padding.all(1)

    @property
    def video_padding(self) -> Tensor | None:
        """``feature_padding`` [B, F] for a network that gets the video alone.

        Clips without video attend to their zeros: attention to nothing at all would give NaN.
        """
        return None if self.feature_padding is None else self.feature_padding & self.has_video[:, None]

    def split(self, parts: int) -> list[Batch]:
        """Neighbouring clips in ``parts`` batches, none of them empty unless this one is."""
        size = max(1, len(self.ids))
        bounds = np.linspace(0, len(self.ids), min(parts, size) + 1).round().astype(int)
        return [self._part(start, stop) for start, stop in pairwise(bounds.tolist())]

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """The clips of several batches side by side."""
        columns: list[Any] = []
        for field in fields(cls)[1:]:
            values = [getattr(batch, field.name) for batch in batches]
            some = next((value for value in values if value is not None), None)
            if some is None:
                columns.append(None)
                continue
            # Where one batch has padding and another has none, that one's is all False.
            sizes = [(len(batch.ids), *some.shape[1:]) for batch in batches]
            filled = [
                some.new_zeros(size) if value is None else value
                for size, value in zip(sizes, values, strict=True)
            ]
            columns.append(torch.cat(filled))
        return cls([name for batch in batches for name in batch.ids], *columns)

    def _part(self, start: int, stop: int) -> Batch:
        return Batch(self.ids[start:stop], *self._mapped(lambda tensor: tensor[start:stop]))

    def to(self, device: torch.device) -> Batch:
        """The same clips on ``device``."""
        return Batch(self.ids, *self._mapped(lambda tensor: tensor.to(device, non_blocking=True)))

    def pin(self) -> Batch:
        """The same clips in pinned memory, from where a GPU takes them while it computes."""
        return Batch(self.ids, *self._mapped(Tensor.pin_memory))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> list[Any]:
        tensors = [getattr(self, field.name) for field in fields(self)[1:]]
        return [None if tensor is None else change(tensor) for tensor in tensors]


def make_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on ``parts`` alone."""
    digest = sha256(*(str(part) for part in parts))
    return torch.Generator().manual_seed(int(digest[:15], 16))


def share(count: int, rank: int, world_size: int) -> NDArray[np.int64]:
    """The clips of a batch that one of several processes has: neighbours, as many as the others have."""
    return np.array_split(np.arange(count), world_size)[rank]


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
    if model.timing and not meta.timing and preset.train.objective not in FOLDERS:
        wrong.append("it has no timing curves; extract it anew into another folder, with --timing")
    if wrong:
        raise StoreError(f"{store.directory} does not fit {preset.name}: {'; '.join(wrong)}")


class ClipBatches:
    """All batches of one split of a store or a mixture. Its clips are the rows that have tokens.

    With ``pair_by_label`` the video of a clip is that of a random row with the same label (and split) that
    has one, in any store, drawn anew each time; else its own. A clip for which there is none gets zeros, all
    padding.
    """

    def __init__(self, latents: LatentStore | Mixture, preset: Preset, split: str) -> None:
        self.mixture = latents if isinstance(latents, Mixture) else Mixture([latents])
        self.preset = preset
        for store in self.mixture.stores:
            check_fits(store, preset)
        # A stored feature is drawn among those of its step, of which each store may have another number.
        self.choices = math.lcm(*self.mixture.strides(preset.model.fps))

        # By id, so that the order of shards and of stores has no influence.
        ids, splits = self.mixture.ids, np.array(self.mixture.splits)
        rows = np.array(sorted(np.flatnonzero(splits == split).tolist(), key=ids.__getitem__), dtype=np.int64)
        self.rows = rows[self.mixture.has("tokens")[rows]]
        self.video_rows: dict[str, NDArray[np.int64]] = {}
        if preset.train.pair_by_label:
            self.video_rows = self._by_label(rows[self.mixture.has("features")[rows]])
        # The curves are of use to generation alone.
        self.has_timing = preset.model.timing and preset.train.objective not in FOLDERS
        self.classes = {name: n for n, name in enumerate(preset.classes or classes_of(self.mixture))}
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._numbers = cache(self._class_numbers)

    @property
    def store(self) -> LatentStore:
        """The one store that the clips are from."""
        (store,) = self.mixture.stores
        return store

    def _by_label(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """label -> those of the rows with that label."""
        groups = defaultdict(list)
        for row in rows.tolist():
            if self.mixture.labels[row]:
                groups[self.mixture.labels[row]].append(row)
        return {label: np.array(members, dtype=np.int64) for label, members in groups.items()}

    def __len__(self) -> int:
        """Number of clips N."""
        return len(self.rows)

    def rows_with_video(self) -> NDArray[np.int64]:
        """The clips for which there is a video: their own or, with ``pair_by_label``, one of their label."""
        if not self.preset.train.pair_by_label:
            return self.rows[self.mixture.has("features")[self.rows]]
        return self.rows[np.array([label in self.video_rows for label in self.labels()], dtype=bool)]

    def steps(self, epochs: float) -> int:
        """Number of steps in which every clip is seen ``epochs`` times, each of its store's weight."""
        return math.ceil(epochs * self.epoch_length / self.preset.train.batch_size)

    def rows_of_step(self, step: int) -> NDArray[np.int64]:
        """Rows [B] of a training step. Epochs follow one another without a gap, so no clip is left out."""
        size = self.preset.train.batch_size
        return self._rows_at(np.arange(step * size, (step + 1) * size))

    def _rows_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows [n] at positions [n] of the order of all epochs."""
        epochs, offsets = np.divmod(positions, self.epoch_length)
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self.rows[self._order(int(epoch))[offsets[chosen]]]
        return rows

    def labels(self) -> list[str]:
        """The labels of all clips, in the order of ``rows``."""
        return [self.mixture.labels[row] for row in self.rows]

    def ids_of_step(self, step: int) -> list[str]:
        """Ids of the clips of a training step."""
        return [self.mixture.ids[row] for row in self.rows_of_step(step)]

    def train_batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The augmented batch of a training step (section 3.2, appendix B.3): the share of one process.

        The shares of all ``world_size`` processes, side by side, are the batch of one.
        """
        config, model = self.preset.train, self.preset.model
        size, frames = config.batch_size, model.audio_length
        generator = make_generator(config.seed, "step", step)

        # 1. What happens to the clips of the whole batch. Nothing is read for it, and it is the same in every
        # process. Drawn whether used or not: the random numbers that follow are the same for all presets.
        choice = torch.randint(self.choices, (size, model.video_length), generator=generator)
        pairing = torch.rand(size, generator=generator, dtype=torch.float64)
        augmentation = Augmentation.draw(size, config, frames, model.fps, generator)
        drop = drop_features(size, config.cond_drop_prob, generator)
        ratio = sample_mask_ratio(size, config, generator)

        # 2. Latents of the share's n clips and of those that they go on as, m clips together.
        own = share(size, rank, world_size)
        clips, drawn = augmentation.of(torch.from_numpy(own))
        rows = self._rows_at(step * size + clips.numpy())
        if config.splice_prob:
            rows, clips, drawn = self._with_pieces(rows, clips, drawn, own, step)
        tokens, features, heard, seen = self._latents(rows, pairing[clips], choice[clips].numpy())

        # 3. Augmentation. What moves are the places of frames; tokens and features are then taken once. A
        # classifier of audio alone needs no video, which then stays as it is.
        only = config.inputs[0] if config.objective == "classification" and len(config.inputs) == 1 else ""
        codebooks, length = tokens.shape[1:]
        audio, video = places(heard, 2, codebooks * length), places(seen, 1)
        audio, moved = augment(
            audio, None if only == "audio" else video, drawn, model.fps, config.roll_padding
        )
        video = video.first(len(own)) if moved is None else moved
        index = audio.values + length * torch.arange(codebooks)[:, None]  # [n, 1, T] + [K, 1]: [n, K, T]
        tokens = tokens.reshape(-1).take(index.numpy())
        features = features.reshape(-1, features.shape[2]).take(video.values[:, :, 0].numpy(), axis=0)

        # 4. Targets: the classes of each clip's owners, weighted by how many frames are theirs: [n, m].
        owners = video.owners if only == "video" else audio.owners
        counts = torch.zeros(len(own), len(rows) + 1).scatter_add_(1, owners, torch.ones(owners.shape))[:, 1:]
        counts.diagonal()[counts.sum(1) == 0] = 1  # every valid frame was cut away: back to the clip itself
        targets = counts @ self._targets(rows) / counts.sum(1, keepdim=True)

        # 5. The timing curves, moved like the tokens.
        seeds = self._seeds(size, config.seed, "step", step)[own]
        timing = None
        if self.has_timing:
            clip, at = np.divmod(audio.values[:, 0].numpy(), codebooks * length)  # [n, T] each
            stored = self.mixture.timing(rows)
            loudest = stored[:, :, 1].max(1)[clip].max(1)  # [m] -> [n]: of all sounds that a clip is made of
            noise = seeds ^ TIMING_SEED
            timing = timing_of(stored[clip, at], audio.owners, loudest, config.timing_drop_prob, noise)

        # 6. What is masked.
        mask = self._mask(own, ratio, tokens.shape[2], generator, config.seed, "step", step)
        return Batch(
            [self.mixture.ids[row] for row in rows[: len(own)]],
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(features).float(),
            _if_any(audio.owners == 0),
            _if_any(video.owners == 0),
            targets,
            drop[own],
            mask,
            seeds,
            None if timing is None else torch.from_numpy(timing),
        )

    def _with_pieces(
        self,
        rows: NDArray[np.int64],
        clips: Tensor,
        drawn: Augmentation,
        own: NDArray[np.int64],
        step: int,
    ) -> tuple[NDArray[np.int64], Tensor, Augmentation]:
        """Rows [m] of clips and what happens to them, with the further pieces that the n own are made of.

        A piece is a random clip of the same label. It is where it would be in that clip's own crop.
        """
        config, model = self.preset.train, self.preset.model
        generator = make_generator(config.seed, "splice", step)
        size = config.batch_size
        start = draw_pieces(size, config.splice_prob, drawn.kept[0], generator)
        draws = torch.rand(start.shape, generator=generator, dtype=torch.float64)
        # A piece begins with an image frame, and all of its audio lies within the window.
        begins_at = audio_frame(torch.arange(model.video_length - drawn.kept[1] + 1), model.fps)
        possible = int((begins_at + drawn.kept[0] <= model.audio_length).sum())
        begin = torch.randint(possible, start.shape, generator=generator)

        pieces = torch.arange(len(own))[:, None].repeat(1, start.shape[1])  # the clip itself: nothing changes
        found: list[int] = []
        slots: list[int] = []
        begins: list[int] = []
        for n, slot in enumerate(own.tolist()):
            candidates = self.audio_rows.get(self.mixture.labels[rows[n]])
            for p in range(start.shape[1]):
                if candidates is not None and start[slot, p] < drawn.kept[0]:
                    pieces[n, p] = len(rows) + len(found)
                    found.append(candidates[int(draws[slot, p] * len(candidates))])
                    slots.append(slot)
                    begins.append(int(begin[slot, p]))
        drawn = replace(
            drawn,
            begin=torch.cat([drawn.begin, torch.tensor(begins, dtype=torch.int64)]),
            splicing=Splicing(start[own], pieces, only_audio=config.pair_by_label),
        )
        clips = torch.cat([clips, torch.tensor(slots, dtype=torch.int64)])
        return np.concatenate([rows, np.array(found, np.int64)]), clips, drawn

    def dev_batches(self, limit: int = MAX_DEV_CLIPS) -> list[NDArray[np.int64]]:
        """Rows of the batches of a validation pass: at most ``limit`` clips, spread evenly."""
        size = self.preset.train.batch_size
        rows = self.rows[spread(len(self), limit)]
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def dev_batch(self, rows: NDArray[np.int64], rank: int = 0, world_size: int = 1) -> Batch:
        """The share of one process of these clips, without augmentation, with masks that never change.

        Of each step's features it is the middle one.
        """
        # Seeded by the clips: the masks of a validation pass do not depend on the step or the batch before.
        seed = ("dev", *(self.mixture.ids[row] for row in rows))
        generator = make_generator(*seed)
        pairing = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        ratio = sample_mask_ratio(len(rows), self.preset.train, generator)
        own = share(len(rows), rank, world_size)
        tokens, features, heard, seen = self._latents(rows[own], pairing[own])
        return Batch(
            [self.mixture.ids[row] for row in rows[own]],
            torch.from_numpy(tokens.astype(np.int64)),
            torch.from_numpy(features).float(),
            heard == 0,
            seen == 0,
            self._targets(rows[own]),
            torch.zeros(len(own), dtype=torch.bool),
            self._mask(own, ratio, tokens.shape[2], generator, *seed),
            self._seeds(len(rows), *seed)[own],
            self._exact_timing(rows[own], heard),
        )

    def _exact_timing(self, rows: NDArray[np.int64], heard: Tensor) -> Tensor | None:
        """The timing curves [n, T, 4] of those rows as they are; None for a model that is told none."""
        if not self.has_timing:
            return None
        stored = self.mixture.timing(rows)
        return torch.from_numpy(timing_of(stored, heard, stored[:, :, 1].max(1)))

    @cached_property
    def audio_rows(self) -> dict[str, NDArray[np.int64]]:
        """label -> the clips with that label, of which others may be made."""
        return self._by_label(self.rows)

    @cached_property
    def epoch_length(self) -> int:
        """Number of clips of an epoch, each of which is there as often as its store's weight says."""
        return sum(round(weight * len(clips)) for weight, clips in self._by_weight)

    @cached_property
    def _by_weight(self) -> list[tuple[float, NDArray[np.int64]]]:
        """Of each store its weight and its clips, as indices into ``rows``."""
        member = self.mixture.member[self.rows]
        return [(weight, np.flatnonzero(member == n)) for n, weight in enumerate(self.mixture.weights)]

    def _draw_order(self, epoch: int) -> NDArray[np.int64]:
        """The order of an epoch, as indices into ``rows``: a shuffle, or draws by label rarity and weight."""
        generator = make_generator(self.preset.train.seed, "epoch", epoch)
        if self.preset.train.class_balanced:
            draws = torch.rand(self.epoch_length, generator=generator, dtype=torch.float64)
            return np.searchsorted(self._chances, draws.numpy())

        # Weight 2.5: all clips twice, and a random half of them once more.
        parts = []
        for weight, clips in self._by_weight:
            times, rest = divmod(round(weight * len(clips)), max(1, len(clips)))
            parts += [clips] * times
            if rest:
                parts.append(clips[torch.randperm(len(clips), generator=generator)[:rest].numpy()])
        return np.sort(np.concatenate(parts))[torch.randperm(self.epoch_length, generator=generator).numpy()]

    @cached_property
    def _chances(self) -> NDArray[np.float64]:
        """[N], rising to 1: the chance of a draw by label rarity and weight to take a clip up to this one."""
        texts = Counter(self.labels())
        counts: Counter[str] = Counter()
        for text, count in texts.items():
            for label in labels_of(text):
                counts[label] += count
        rarity = {text: sum(1000 / (counts[label] + 0.01) for label in labels_of(text)) for text in texts}
        chances = np.array([rarity[text] for text in self.labels()], np.float64)
        for weight, clips in self._by_weight:
            chances[clips] *= weight
        total = chances.cumsum()
        if not total[-1] > 0:
            raise TrainError(f"{self.mixture} has no labels in the split train, by which to draw its clips")
        return total / total[-1]

    def _latents(
        self, rows: NDArray[np.int64], pairing: Tensor, choice: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.uint16], NDArray[np.float16], Tensor, Tensor]:
        """Tokens [m, K, T] and features [m, F, dim] of clips, as they are stored; then what is valid of each.

        That is int64 [m, T] and [m, F]: n where it is the n-th clip's own, from 1; 0 where it is padding.
        ``pairing`` [m] in [0, 1) chooses a video of the clip's label; ``choice`` [m, F] a feature of each
        step, None the middle one.
        """
        labels, model = self.mixture.labels, self.preset.model
        sources = rows.copy()
        if self.video_rows:
            for i, draw in enumerate(pairing.tolist()):
                candidates = self.video_rows.get(labels[rows[i]])
                if candidates is not None:
                    sources[i] = candidates[int(draw * len(candidates))]
        tokens, heard = self.mixture.tokens(rows)
        features, seen = self.mixture.features(sources, model.fps, choice)
        number = np.arange(1, len(rows) + 1)[:, None]  # [m, 1]
        owners = torch.from_numpy(heard * number), torch.from_numpy(seen * number)
        return tokens[:, : model.num_codebooks], features, *owners

    def _targets(self, rows: NDArray[np.int64]) -> Tensor:
        """float32 [n, N]: 1 for each class of a clip."""
        targets = torch.zeros(len(rows), len(self.classes))
        texts = (self.mixture.labels[row] for row in rows.tolist())
        found = [(i, number) for i, text in enumerate(texts) for number in self._numbers(text)]
        targets[tuple(torch.tensor(found, dtype=torch.int64).view(-1, 2).T)] = 1.0
        return targets

    def _class_numbers(self, text: str) -> list[int]:
        """The classes of a clip with these labels."""
        return [self.classes[label] for label in labels_of(text) if label in self.classes]

    def _seeds(self, count: int, *seed: int | str) -> Tensor:
        """int64 [count]: a number for each clip of a batch, by a generator of its own."""
        return torch.randint(1 << 62, (count,), generator=make_generator(*seed, "noise"))

    def _mask(
        self,
        own: NDArray[np.int64],
        ratio: Tensor,
        frames: int,
        generator: torch.Generator,
        *seed: int | str,
    ) -> Tensor:
        """bool [n, K, T]: the masked tokens of the clips ``own`` of a batch with these ratios [B].

        They are too many to be drawn for clips of other processes, so each block of clips has a generator of
        its own. That of the first is the batch's own, which drew all masks up to version 0.1.
        """
        # The share's clips are neighbours: of each block with some of them, those up to the last are drawn.
        model = self.preset.model
        start, stop = (int(own[0]), int(own[-1]) + 1) if len(own) else (0, 0)
        masks = []
        for begin in range(start - start % MASK_BLOCK, max(stop, 1), MASK_BLOCK):
            block = begin // MASK_BLOCK
            source = generator if block == 0 else make_generator(*seed, "mask", block)
            part = ratio[begin : min(stop, begin + MASK_BLOCK)]
            codebooks = (model.num_codebooks, frames, source, model.num_conditioning_codebooks)
            masks.append(sample_token_mask(part, *codebooks, first=max(start - begin, 0)))
        return torch.cat(masks)


def _if_any(padding: Tensor) -> Tensor | None:
    return padding if padding.any() else None


def folds_of(latents: LatentStore | Mixture) -> list[str]:
    """The folds of a store or a mixture: its splits that are called fold1, fold2 ..."""
    folds = {split for split in latents.splits if split.startswith("fold")}
    return sorted(folds, key=lambda split: (len(split), split))


def hold_out(latents: Mixture, fold: str) -> None:
    """Make that fold the split dev and the other folds train; clips in no fold are in neither.

    Only in memory. ``StoreError`` if there is no such fold.
    """
    folds = folds_of(latents)
    if fold not in folds:
        raise StoreError(f"{latents} has no {fold}; its folds: {', '.join(folds) or 'none'}")
    parts = dict.fromkeys(folds, "train") | {fold: "dev"}
    for store in latents.stores:
        store.splits = [parts.get(split, "") for split in store.splits]


def classes_of(latents: LatentStore | Mixture) -> tuple[str, ...]:
    """Every label of the split train, sorted: the default classes of a classifier."""
    pairs = zip(latents.labels, latents.splits, strict=True)
    texts = {text for text, split in pairs if split == "train"}
    return tuple(sorted({label for text in texts for label in labels_of(text)}))
