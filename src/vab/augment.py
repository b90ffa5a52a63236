"""The augmentations of appendix B.3, on batches of latents: audio tokens and image features move together.

tokens [B,K,T] at 50 frames per second, features [B,F,dim] at ``fps``; both cover the same time.
Clips without pictures pass ``features=None``. Every random number comes from the generator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vab.config import FRAME_RATE, TrainConfig


class Augmented(NamedTuple):
    """A batch, and what mixup made of it: clip b is ``share[b]`` its own, the rest is of ``partner[b]``."""

    tokens: Tensor  # [B,K,T]
    features: Tensor | None  # [B,F,dim]
    partner: Tensor  # int64 [B]; b itself where nothing was mixed
    share: Tensor  # float [B]; 1 where nothing was mixed


def augment(
    tokens: Tensor, features: Tensor | None, config: TrainConfig, fps: float, generator: torch.Generator
) -> Augmented:
    """Temporal mixup, then temporal roll, with the chances of ``config``."""
    mixed = temporal_mixup(tokens, features, config.mixup, fps, generator)
    rolled = temporal_roll(mixed.tokens, mixed.features, config.roll, fps, generator)
    return Augmented(*rolled, mixed.partner, mixed.share)


def temporal_mixup(
    tokens: Tensor, features: Tensor | None, probability: float, fps: float, generator: torch.Generator
) -> Augmented:
    """Each clip, with that chance, goes on as another clip of the batch from a random time on.

    A picture belongs to the other clip if the middle of its share of time lies after the break.
    """
    batch, _, frames = tokens.shape
    own = torch.arange(batch)
    chosen = _chosen(batch, probability, generator)
    step = torch.randint(1, max(batch, 2), (batch,), generator=generator, device=generator.device).cpu()
    point = torch.randint(1, max(frames, 2), (batch,), generator=generator, device=generator.device).cpu()
    chosen &= (batch > 1) & (frames > 1)
    partner = torch.where(chosen, (own + step) % batch, own).to(tokens.device)
    point = torch.where(chosen, point, frames).to(tokens.device)  # the break, in audio frames

    after = torch.arange(frames, device=tokens.device) >= point[:, None]
    tokens = torch.where(after[:, None], tokens[partner], tokens)
    if features is not None:
        middle = (torch.arange(features.shape[1], device=tokens.device) + 0.5) * FRAME_RATE / fps
        later = (middle >= point[:, None]) & chosen.to(tokens.device)[:, None]
        features = torch.where(later[:, :, None], features[partner], features)
    return Augmented(tokens, features, partner, point / frames)


def temporal_roll(
    tokens: Tensor, features: Tensor | None, probability: float, fps: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Each clip, with that chance, is turned round in time; what leaves at the end comes in at the start.

    With pictures, by a whole number of them, so that sound and picture stay together.
    """
    batch, _, frames = tokens.shape
    chosen = _chosen(batch, probability, generator)
    steps = frames if features is None else features.shape[1]
    turn = torch.randint(1, max(steps, 2), (batch,), generator=generator, device=generator.device).cpu()
    turn = torch.where(chosen & (steps > 1), turn, 0).to(tokens.device)
    if features is None:
        return _roll(tokens, turn, dim=2), None
    return _roll(tokens, (turn * FRAME_RATE / fps).round().long(), dim=2), _roll(features, turn, dim=1)


def drop_features(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    """True for clips that train without pictures, bool [B]: guidance needs the model to know both."""
    return _chosen(batch, probability, generator)


def _chosen(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(batch, generator=generator, device=generator.device) < probability).cpu()


def _roll(x: Tensor, turn: Tensor, dim: int) -> Tensor:
    """x [B,...] with each row rolled by its own ``turn`` [B] along ``dim``."""
    length = x.shape[dim]
    source = (torch.arange(length, device=x.device) - turn[:, None]) % length
    shape = [1] * x.ndim
    shape[0], shape[dim] = source.shape
    return x.gather(dim, source.view(shape).expand_as(x))
