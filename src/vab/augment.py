"""The augmentations of appendix B.3, on batches of latents: audio tokens and image features move together.

tokens [B,K,T] at 50 frames per second, features [B,F,dim] at ``fps``; both cover the same time.
Clips without pictures pass ``features=None``. Every random number comes from the generator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vab.config import FRAME_RATE, TrainConfig, audio_frames, video_frames


class Augmented(NamedTuple):
    """A batch, and what mixup made of it: clip b is ``share[b]`` its own, the rest is of ``partner[b]``."""

    tokens: Tensor  # [B,K,T]
    features: Tensor | None  # [B,F,dim]
    partner: Tensor  # int64 [B]; b itself where nothing was mixed
    share: Tensor  # float [B]; 1 where nothing was mixed


def augment(
    tokens: Tensor, features: Tensor | None, config: TrainConfig, fps: float, generator: torch.Generator
) -> Augmented:
    """A random crop if ``config`` asks for one, temporal mixup, then temporal roll."""
    if config.crop:
        tokens, features = random_crop(tokens, features, config.crop, fps, generator)
    mixed = temporal_mixup(tokens, features, config.mixup, fps, generator)
    rolled = temporal_roll(mixed.tokens, mixed.features, config.roll, fps, generator)
    return Augmented(*rolled, mixed.partner, mixed.share)


def random_crop(
    tokens: Tensor, features: Tensor | None, seconds: float, fps: float, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """``seconds`` of each clip, from the start of a random picture on: more clips for the same work.

    A crop as long as the clips, or longer, changes nothing.
    """
    batch, _, frames = tokens.shape
    steps = video_frames(frames / FRAME_RATE, fps)
    kept = min(video_frames(seconds, fps), steps)
    begin = torch.randint(steps - kept + 1, (batch,), generator=generator, device=generator.device)
    begin = begin.to(tokens.device)
    first = (begin * FRAME_RATE / fps).round().long()
    length = min(audio_frames(seconds), frames - int(first.max()))
    tokens = _window(tokens, first, length, dim=2)
    return tokens, None if features is None else _window(features, begin, kept, dim=1)


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
    return _take(x, (torch.arange(length, device=x.device) - turn[:, None]) % length, dim)


def _window(x: Tensor, begin: Tensor, length: int, dim: int) -> Tensor:
    """``length`` places of x [B,...] along ``dim``, of each row from its own ``begin`` [B] on."""
    return _take(x, begin[:, None] + torch.arange(length, device=x.device), dim)


def _take(x: Tensor, source: Tensor, dim: int) -> Tensor:
    """The places ``source`` [B,n] of x [B,...] along ``dim``, of each row its own."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = source.shape
    whole = list(x.shape)
    whole[dim] = source.shape[1]
    return x.gather(dim, source.view(shape).expand(whole))
