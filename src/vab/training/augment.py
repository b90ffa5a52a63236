"""Augmentations of latents (appendix B.3): audio tokens and video features move together.

A batch is an audio stream at 50 frames per second and a video stream at ``fps``; both cover the same time.
Without a video stream (``video=None``) the audio moves alone. Every random number comes from the generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vab.config import FRAME_RATE, TrainConfig, audio_frames, video_frames


@dataclass(frozen=True)
class Stream:
    """One modality of a batch, and for each of its frames the clip that it came from."""

    values: Tensor  # tokens [B, K, T] or features [B, F, dim]
    owners: Tensor  # int64 [B, T] or [B, F]: n for the n-th clip of the batch, from 1; 0 where it is padding
    time_dim: int  # the dimension of ``values`` that is time

    def take(self, index: Tensor) -> Stream:
        """Frames ``index`` [B, n] of each clip."""
        # gather wants an index of the values' shape: [B, n] -> [B, K, n] or [B, n, dim]
        shape = [1] * self.values.ndim
        shape[0], shape[self.time_dim] = index.shape
        whole = list(self.values.shape)
        whole[self.time_dim] = index.shape[1]
        values = self.values.gather(self.time_dim, index.view(shape).expand(whole))
        return replace(self, values=values, owners=self.owners.gather(1, index))

    def splice(self, partner: Tensor, replaced: Tensor) -> Stream:
        """Clips whose frames ``replaced`` bool [B, n] are those of clip ``partner`` [B] at the same time."""
        other_dim = 3 - self.time_dim  # of codebooks or of the feature
        values = torch.where(replaced.unsqueeze(other_dim), self.values[partner], self.values)
        return replace(self, values=values, owners=torch.where(replaced, self.owners[partner], self.owners))


Streams = tuple[Stream, Stream | None]  # audio, video


def augment(
    audio: Stream, video: Stream | None, config: TrainConfig, fps: float, generator: torch.Generator
) -> Streams:
    """A random crop if ``config`` asks for one, temporal mixup, then temporal roll."""
    if config.crop_seconds:
        audio, video = random_crop(audio, video, config.crop_seconds, fps, generator)
    audio, video = temporal_mixup(audio, video, config.mixup_prob, fps, generator)
    return temporal_roll(audio, video, config.roll_prob, fps, generator)


def random_crop(
    audio: Stream, video: Stream | None, seconds: float, fps: float, generator: torch.Generator
) -> Streams:
    """``seconds`` of each clip, from a random video frame on: more clips for the same work.

    A crop as long as the clips, or longer, changes nothing.
    """
    batch, frames = audio.owners.shape
    device = audio.values.device
    num_video = video_frames(frames / FRAME_RATE, fps)
    kept = min(video_frames(seconds, fps), num_video)
    begin = torch.randint(num_video - kept + 1, (batch,), generator=generator, device=generator.device)
    begin = begin.to(device)

    # The audio starts where that video frame does; all clips keep the same number of audio frames.
    audio_begin = (begin * FRAME_RATE / fps).round().long()
    length = min(audio_frames(seconds), frames - int(audio_begin.max()))
    audio = audio.take(audio_begin[:, None] + torch.arange(length, device=device))
    if video is not None:
        video = video.take(begin[:, None] + torch.arange(kept, device=device))
    return audio, video


def temporal_mixup(
    audio: Stream, video: Stream | None, probability: float, fps: float, generator: torch.Generator
) -> Streams:
    """Each clip, with that probability, goes on as another clip of the batch from a random time on.

    A video frame belongs to the other clip if the middle of its share of time lies after the break.
    """
    batch, frames = audio.owners.shape
    device = audio.values.device
    own = torch.arange(batch)
    chosen = _bernoulli(batch, probability, generator)
    step = torch.randint(1, max(batch, 2), (batch,), generator=generator, device=generator.device).cpu()
    point = torch.randint(1, max(frames, 2), (batch,), generator=generator, device=generator.device).cpu()

    # Clips that are not chosen are their own partner, with the break after their last frame.
    chosen &= (batch > 1) & (frames > 1)  # else there is nobody, or nowhere, to go on with
    partner = torch.where(chosen, (own + step) % batch, own).to(device)
    point = torch.where(chosen, point, frames).to(device)  # [B], in audio frames

    audio = audio.splice(partner, torch.arange(frames, device=device) >= point[:, None])
    if video is not None:
        middle = (torch.arange(video.owners.shape[1], device=device) + 0.5) * FRAME_RATE / fps
        video = video.splice(partner, (middle >= point[:, None]) & chosen.to(device)[:, None])
    return audio, video


def temporal_roll(
    audio: Stream, video: Stream | None, probability: float, fps: float, generator: torch.Generator
) -> Streams:
    """Each clip, with that probability, is rolled in time: what leaves at the end comes in at the start.

    With video, by a whole number of video frames, so that both streams stay together. Without, by single
    audio frames, and the padding after a short clip stays where it is.
    """
    batch, frames = audio.owners.shape
    device = audio.values.device
    chosen = _bernoulli(batch, probability, generator)
    draw = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    if video is None:
        # Up to the last frame that is not padding.
        positions = torch.arange(1, frames + 1, device=device)
        length = (positions * (audio.owners != 0)).amax(1)
    else:
        length = torch.full((batch,), video.owners.shape[1], device=device)

    # At least one frame, and less than a whole turn.
    shift = 1 + (draw.to(device) * (length - 1)).long()
    shift = torch.where(chosen.to(device) & (length > 1), shift, 0)
    if video is None:
        return _roll(audio, shift, length), None
    audio_shift = (shift * FRAME_RATE / fps).round().long()
    return _roll(audio, audio_shift, torch.full_like(length, frames)), _roll(video, shift, length)


def drop_features(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    """True for clips that train without video, bool [B]: guidance needs the model to know both."""
    return _bernoulli(batch, probability, generator)


def _bernoulli(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(batch, generator=generator, device=generator.device) < probability).cpu()


def _roll(stream: Stream, shift: Tensor, length: Tensor) -> Stream:
    """The first ``length`` [B] frames of each clip rolled by its own ``shift`` [B]; the rest stays."""
    positions = torch.arange(stream.owners.shape[1], device=shift.device).expand(len(shift), -1)
    rolled = (positions - shift[:, None]) % length[:, None].clamp(min=1)
    return stream.take(torch.where(positions < length[:, None], rolled, positions))
