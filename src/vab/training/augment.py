"""The augmentations of appendix B.3, on batches of latents: audio tokens and image features move together.

tokens [B,K,T] at 50 frames per second, features [B,F,dim] at ``fps``; both cover the same time.
The last row of tokens is 0 where a clip is filled up; it moves with the codes above it.
Clips without pictures pass ``features=None``. Every random number comes from the generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vab.config import FRAME_RATE, TrainConfig, audio_frames, video_frames

Latents = tuple[Tensor, Tensor | None]


def augment(
    tokens: Tensor, features: Tensor | None, config: TrainConfig, fps: float, generator: torch.Generator
) -> Latents:
    """A random crop if ``config`` asks for one, temporal mixup, then temporal roll."""
    if config.crop_seconds:
        tokens, features = random_crop(tokens, features, config.crop_seconds, fps, generator)
    tokens, features = temporal_mixup(tokens, features, config.mixup_prob, fps, generator)
    return temporal_roll(tokens, features, config.roll_prob, fps, generator)


def random_crop(
    tokens: Tensor, features: Tensor | None, seconds: float, fps: float, generator: torch.Generator
) -> Latents:
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
) -> Latents:
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
    return tokens, features


def temporal_roll(
    tokens: Tensor, features: Tensor | None, probability: float, fps: float, generator: torch.Generator
) -> Latents:
    """Each clip, with that chance, is turned round in time; what leaves at the end comes in at the start.

    With pictures, by a whole number of them, so that sound and picture stay together. Without, by single
    frames, and what is filled up after a short sound stays where it is.
    """
    batch, _, frames = tokens.shape
    chosen = _chosen(batch, probability, generator)
    draw = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    if features is None:
        places = torch.arange(1, frames + 1, device=tokens.device)
        steps = (places * (tokens[:, -1] != 0)).amax(1)  # up to the last frame that is the clip's own
    else:
        steps = torch.full((batch,), features.shape[1], device=tokens.device)
    turn = 1 + (draw.to(tokens.device) * (steps - 1)).long()  # 1 .. steps - 1
    turn = torch.where(chosen.to(tokens.device) & (steps > 1), turn, 0)
    if features is None:
        return _roll(tokens, turn, steps, dim=2), None
    sound_turn, whole = (turn * FRAME_RATE / fps).round().long(), torch.full_like(steps, frames)
    return _roll(tokens, sound_turn, whole, dim=2), _roll(features, turn, steps, dim=1)


def drop_features(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    """True for clips that train without pictures, bool [B]: guidance needs the model to know both."""
    return _chosen(batch, probability, generator)


def _chosen(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(batch, generator=generator, device=generator.device) < probability).cpu()


def _roll(x: Tensor, turn: Tensor, length: Tensor, dim: int) -> Tensor:
    """x [B,...]: the first ``length`` [B] places along ``dim`` of each row rolled by its own ``turn`` [B]."""
    places = torch.arange(x.shape[dim], device=x.device).expand(len(x), -1)
    rolled = (places - turn[:, None]) % length[:, None].clamp(min=1)
    return _take(x, torch.where(places < length[:, None], rolled, places), dim)


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
