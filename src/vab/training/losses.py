"""Losses as pure functions: masked prediction, distillation, contrast, classes (eq. 1, 3, 4, section 3.5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def masked_prediction(logits: Tensor, targets: Tensor, mask: Tensor, smoothing: float = 0.1) -> Tensor:
    """Mean cross entropy over the masked tokens of the batch (eq. 1; eq. 3 with conditioning codebooks).

    logits [B,Kp,T,V], targets int64 [B,Kp,T], mask bool [B,Kp,T] (True = masked) -> scalar, 0 if none is
    masked. ``smoothing`` of the target's mass is spread over all V tokens.
    """
    # Only masked tokens are turned to float32, [n, V], which saves about a third of the memory.
    chosen = logits[mask].float()
    loss = functional.cross_entropy(chosen, targets[mask], label_smoothing=smoothing, reduction="sum")
    return loss / max(1, len(chosen))


def distillation(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """KL(p||q) of q = softmax(logits) from p = softmax(target), the mean over each clip's masked tokens.

    logits and target [B,Kp,T,V], mask bool [B,Kp,T] (True = masked) -> [B], 0 for a clip without any. No
    gradient goes to the target.
    """
    log_q = logits[mask].float().log_softmax(-1)
    log_p = target[mask].detach().float().log_softmax(-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1)
    sums = each.new_zeros(len(mask)).index_add(0, mask.nonzero()[:, 0], each)
    return sums / mask.flatten(1).sum(1).clamp(min=1)


def contrastive(
    audio: Tensor,
    video: Tensor,
    scale: Tensor | float,
    positive_mask: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Symmetric InfoNCE (eq. 4): row b of each belongs to row b of the other -> scalar.

    audio, video [B,D], of any length: they are normalised here. ``scale`` is one over the temperature.
    ``positive_mask`` bool [B,B] marks rows that might as well belong to each other: these are no negatives.
    ``smoothing`` of the target's mass is spread over all candidates of a row.
    """
    audio = functional.normalize(audio.float(), dim=-1)
    video = functional.normalize(video.float(), dim=-1)
    logits = scale * audio @ video.T
    pairs = torch.arange(len(logits), device=logits.device)

    # Other positives leave the sum of the softmax; the pair itself stays.
    if positive_mask is not None:
        logits = logits.masked_fill(positive_mask & (pairs[:, None] != pairs), -torch.inf)
    return (_own_pair(logits, smoothing) + _own_pair(logits.T, smoothing)) / 2


def _own_pair(logits: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy of logits [B,B] whose right answers lie on the diagonal; -inf is no candidate."""
    if not smoothing:
        return functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
    log_probabilities = logits.log_softmax(1)
    candidates = logits > -torch.inf
    even = log_probabilities.where(candidates, 0.0).sum(1) / candidates.sum(1)
    return -torch.lerp(log_probabilities.diagonal(), even, smoothing).mean()


def classification(
    logits: Tensor, targets: Tensor, kind: Literal["bce", "ce"], smoothing: float = 0.1
) -> Tensor:
    """Loss of a classifier (section 3.5, Table 8): logits [B,N] -> scalar.

    targets are class ids int64 [B], or float [B,N] for clips of several labels or none. ``bce`` judges each
    class on its own, ``ce`` among all. ``smoothing`` moves that share of the target to an even spread over N.
    """
    if targets.ndim == 1:
        targets = functional.one_hot(targets, logits.shape[1])
    smoothed = targets.float() * (1 - smoothing) + smoothing / logits.shape[1]
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(logits.float(), smoothed)
    return functional.cross_entropy(logits.float(), smoothed)
