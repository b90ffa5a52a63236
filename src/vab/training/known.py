"""The statistics by which a classifier tells what it does not know, from the store it learned from."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vab.config import Preset
from vab.data.manifest import labels_of
from vab.data.mixture import Mixture
from vab.data.store import spread
from vab.models.heads import Classifier
from vab.models.known import ClassStatistics
from vab.training.batches import MAX_DEV_CLIPS

FALSE_ALARMS = 0.05  # share of known pictures that are told as unknown: the field's 95 % true positive rate
MIN_CLIPS = 5  # a class with fewer pictures counts as learned without
MAX_CLIPS = 200  # of each class, spread evenly over the split train
CLIPS_PER_PASS = 64


@torch.no_grad()
def class_statistics(network: Classifier, latents: Mixture, preset: Preset) -> ClassStatistics | None:
    """The mean vector of each class in the split train, and a threshold from the split dev.

    Clips without a picture take no part. The threshold is the score that a share of ``FALSE_ALARMS`` of the
    dev pictures do not reach. None without enough pictures in either split.
    """
    splits = np.array(latents.splits)
    has_picture = latents.num_valid("features", np.arange(len(latents))) > 0
    rows = {split: np.flatnonzero(has_picture & (splits == split)).tolist() for split in ("train", "dev")}

    # 1. The means [N,D] of the classes that have pictures.
    by_label: dict[str, list[int]] = defaultdict(list)
    for row in rows["train"]:
        for label in dict.fromkeys(labels_of(latents.labels[row])):
            by_label[label].append(row)
    means = torch.zeros(len(preset.classes), preset.model.hidden_dim)
    for n, name in enumerate(preset.classes):
        own = np.array(by_label[name], np.int64)
        if len(own) >= MIN_CLIPS:
            vectors, _ = _embed(network, latents, preset, own[spread(len(own), MAX_CLIPS)])
            means[n] = functional.normalize(vectors.mean(0), dim=0)

    # 2. The threshold, from pictures of these classes that nothing was learned from.
    pictured = {name for name, mean in zip(preset.classes, means, strict=True) if mean.any()}
    held_out = np.array(
        [row for row in rows["dev"] if pictured & {*labels_of(latents.labels[row])}], np.int64
    )
    if not len(held_out):
        return None
    statistics = ClassStatistics(means, 0.0)
    scores, _ = statistics.scores(
        *_embed(network, latents, preset, held_out[spread(len(held_out), MAX_DEV_CLIPS)])
    )
    return ClassStatistics(means, float(scores.quantile(FALSE_ALARMS)))


def _embed(
    network: Classifier, latents: Mixture, preset: Preset, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Vectors [n,D] and logits [n,N] of the pictures of these rows, on the CPU."""
    device = network.head.weight.device
    found = []
    for start in range(0, len(rows), CLIPS_PER_PASS):
        values, valid = latents.features(rows[start : start + CLIPS_PER_PASS], preset.model.fps)
        features, padding = torch.from_numpy(values.astype(np.float32)), torch.from_numpy(~valid)
        padding[:, 0] = False  # attention to nothing at all would be NaN
        vectors, logits = network.picture_vectors(features.to(device), padding.to(device))
        found.append((vectors.cpu(), logits.cpu()))
    vectors, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return vectors, logits
