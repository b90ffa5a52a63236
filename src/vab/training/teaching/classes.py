"""Further classes for a classifier whose trunk, and whose other classes, stay as they are.

Each label gets a row of the linear head, which is fitted to the folder's own clips by cross entropy. What the
other classes were learned from is not at hand. In its place stand the mean vectors of their pictures
(``ClassStatistics``), and the folder's clips moved to where the head takes them for another class
(pseudo-rehearsal, Robins 1995). A mean vector alone as the row (weight imprinting, Qi et al., CVPR 2018)
takes many pictures of the other classes away from them (docs/decisions/data_and_training.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vab.config import Preset
from vab.data.mixture import Mixture
from vab.models.heads import Classifier
from vab.models.known import ClassStatistics

MEANS_WEIGHT = 6.0  # of all mean vectors together, where the pictures of one label have 1, and its sounds
MOVED_WEIGHT = 1.0  # of the moved copies of each of these
WEIGHT_DECAY = 1e-4
LABEL_SMOOTHING = 0.1
ITERATIONS = 80


class Head(NamedTuple):
    """A linear head of N classes on vectors of D, and the statistics of its pictures."""

    classes: tuple[str, ...]
    weight: Tensor  # [N,D]
    bias: Tensor  # [N]
    known: ClassStatistics | None


def add_classes(network: Classifier, preset: Preset, known: ClassStatistics | None, latents: Mixture) -> Head:
    """The head of a classifier with rows for the labels of ``latents``, new or in place of its own.

    The threshold of ``known`` stays, and the mean of a label's pictures is that of ``latents``.
    """
    labels = sorted({*latents.labels})
    classes = (*preset.classes, *(label for label in labels if label not in preset.classes))
    old = [n for n, name in enumerate(preset.classes) if name not in labels]
    rows = [classes.index(label) for label in labels]

    # 1. The old rows, and room for more; the mean picture of each class, zeros where there is none.
    weight, bias = network.head.weight.detach().cpu(), network.head.bias.detach().cpu()
    room = len(classes) - len(weight)
    weight, bias = functional.pad(weight, (0, 0, 0, room)), functional.pad(bias, (0, room))
    weight[rows], bias[rows] = 0, 0
    means = torch.zeros_like(weight) if known is None else functional.pad(known.means, (0, 0, 0, room))
    means[rows] = 0

    # 2. Vectors [n,D] to tell apart, their classes [n], and what each counts.
    vectors, targets, counts = [], [], []

    def take(some: Tensor, classes_of_them: list[int], total: float) -> None:
        vectors.append(some)
        targets.extend(classes_of_them)
        counts.extend([total / len(some)] * len(some))

    found = {(n, kind): _vectors(network, preset, latents, classes[n], kind) for n in rows for kind in "av"}
    pictured = [n for n in old if means[n].any()]
    # Vectors of pictures are longer than those of sounds: these are the measure, if there are any.
    pictures = torch.cat([own for (_, kind), own in found.items() if kind == "v"])
    norm = (pictures if len(pictures) else torch.cat([*found.values()])).norm(dim=1).mean()
    inverse = torch.linalg.pinv(weight[old])  # [D,n]: the least move for a change of logits
    for (n, kind), own in found.items():
        if not len(own):
            continue
        take(own, [n] * len(own), 1.0)
        if kind == "v":
            means[n] = functional.normalize(functional.normalize(own, dim=1).mean(0), dim=0)
        if old:
            # One copy for each old class, which is as sure there as the head is of such a clip at all.
            copies = own[torch.arange(len(old)) % len(own)]
            logits = copies @ weight[old].T + bias[old]
            wanted = torch.eye(len(old)) * logits.amax(1).mean()
            take(copies + (wanted - logits) @ inverse.T, old, MOVED_WEIGHT)
    if pictured:
        take(means[pictured] * norm, pictured, MEANS_WEIGHT)

    # 3. The rows: vectors of length about one, so that the penalty means the same for every model.
    x, y, share = torch.cat(vectors) / norm, torch.tensor(targets), torch.tensor(counts)
    fixed = x @ weight.T * norm + bias
    rows_weight = torch.zeros(len(rows), x.shape[1], requires_grad=True)
    rows_bias = torch.zeros(len(rows), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [rows_weight, rows_bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = fixed.index_copy(1, torch.tensor(rows), x @ rows_weight.T + rows_bias)
        each = functional.cross_entropy(logits, y, reduction="none", label_smoothing=LABEL_SMOOTHING)
        value = (share * each).sum() / share.sum() + WEIGHT_DECAY * rows_weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight[rows], bias[rows] = rows_weight.detach() / norm, rows_bias.detach()
    return Head(classes, weight, bias, None if known is None else replace(known, means=means))


@torch.no_grad()
def _vectors(network: Classifier, preset: Preset, latents: Mixture, label: str, kind: str) -> Tensor:
    """Vectors [n,D] of a label's sounds (``a``) or pictures (``v``), in the space of the trunk."""
    has = latents.has("tokens" if kind == "a" else "features")
    device, pooled = network.head.weight.device, []
    for row in np.flatnonzero(has & (np.array(latents.labels) == label)):
        one = np.array([row])
        if kind == "a":
            tokens, valid = latents.tokens(one)
            audio = torch.from_numpy(tokens.astype(np.int64))[:, : preset.model.num_codebooks].to(device)
            padding = torch.from_numpy(~valid).to(device)
            pooled.append(network.trunk.pooled(audio, None, token_padding=padding))
        else:
            features, valid = latents.features(one, preset.model.fps)
            video = torch.from_numpy(features.astype(np.float32)).to(device)
            padding = torch.from_numpy(~valid).to(device)
            pooled.append(network.trunk.pooled(None, video, feature_padding=padding))
    return torch.cat(pooled).float().cpu() if pooled else torch.zeros(0, network.head.weight.shape[1])
