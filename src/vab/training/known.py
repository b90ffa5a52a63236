"""The statistics by which a classifier tells what it does not know, from the store it learned from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vab.config import Preset
from vab.data.manifest import labels_of
from vab.data.store import LatentStore, spread
from vab.models.heads import Classifier
from vab.models.known import ClassStatistics
from vab.training.batches import MAX_DEV_CLIPS

FALSE_ALARMS = 0.05  # share of known pictures that are told as unknown: the field's 95 % true positive rate
MIN_CLIPS = 5  # a class with fewer pictures counts as learned without
MAX_CLIPS = 200  # of each class, spread evenly over the split train
CLIPS_PER_PASS = 64


@torch.no_grad()
def class_statistics(network: Classifier, store: LatentStore, preset: Preset) -> ClassStatistics | None:
    """The mean vector of each class in the split train, and a threshold from the split dev.

    Clips without a picture take no part. The threshold is the score that a share of ``FALSE_ALARMS`` of the
    dev pictures do not reach. None without enough pictures in either split.
    """
    has_picture = store.has("features") & (store.real("features") > 0)
    rows = {
        split: [n for n in np.flatnonzero(has_picture) if store.splits[n] == split]
        for split in ("train", "dev")
    }

    # 1. The means [N,D] of the classes that have pictures.
    means = torch.zeros(len(preset.classes), preset.model.hidden_dim)
    for n, name in enumerate(preset.classes):
        own = np.array([row for row in rows["train"] if name in labels_of(store.labels[row])], np.int64)
        if len(own) >= MIN_CLIPS:
            vectors, _ = _embed(network, store, preset, own[spread(len(own), MAX_CLIPS)])
            means[n] = functional.normalize(vectors.mean(0), dim=0)

    # 2. The threshold, from pictures of these classes that nothing was learned from.
    pictured = {name for name, mean in zip(preset.classes, means, strict=True) if mean.any()}
    held_out = np.array([row for row in rows["dev"] if pictured & {*labels_of(store.labels[row])}], np.int64)
    if not len(held_out):
        return None
    statistics = ClassStatistics(means, 0.0)
    scores, _ = statistics.scores(
        *_embed(network, store, preset, held_out[spread(len(held_out), MAX_DEV_CLIPS)])
    )
    return ClassStatistics(means, float(scores.quantile(FALSE_ALARMS)))


def _embed(
    network: Classifier, store: LatentStore, preset: Preset, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Vectors [n,D] and logits [n,N] of the pictures of these rows, on the CPU."""
    device = network.head.weight.device
    # Of each of the model's steps the middle one of the stored features, as in validation.
    stride = round(store.meta.fps / preset.model.fps)
    positions = np.arange(preset.model.video_length) * stride + stride // 2
    positions = positions.clip(max=store.meta.feature_shape[0] - 1)
    found = []
    for start in range(0, len(rows), CLIPS_PER_PASS):
        part = rows[start : start + CLIPS_PER_PASS]
        features = torch.from_numpy(store.gather("features", part)[:, positions].astype(np.float32))
        # The first position is always there: attention to nothing at all would be NaN.
        padding = torch.from_numpy(positions >= store.real("features")[part, None]) & (
            torch.arange(len(positions)) > 0
        )
        vectors, logits = network.picture_vectors(features.to(device), padding.to(device))
        found.append((vectors.cpu(), logits.cpu()))
    vectors, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return vectors, logits
