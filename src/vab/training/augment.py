"""Augmentations of latents (appendix B.3): audio tokens and video features move together.

A batch is an audio stream at 50 frames per second and a video stream at ``fps``; both cover the same time.
Without a video stream (``video=None``) the audio moves alone. What happens to each clip is drawn for a whole
batch before any latents are there, so that a process reads and moves the clips of its own share alone.
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

    def first(self, n: int) -> Stream:
        """The first n clips."""
        return replace(self, values=self.values[:n], owners=self.owners[:n])

    def overlaid(self, other: Stream, clip: Tensor, replaced: Tensor) -> Stream:
        """This stream, whose frames ``replaced`` bool [n, T] are those of clip ``clip`` [n] of another."""
        chosen = replace(other, values=other.values[clip], owners=other.owners[clip])
        values = torch.where(replaced.unsqueeze(3 - self.time_dim), chosen.values, self.values)
        return replace(self, values=values, owners=torch.where(replaced, chosen.owners, self.owners))

    def splice(self, partner: Tensor, replaced: Tensor) -> Stream:
        """The first n clips, whose frames ``replaced`` bool [n, T] are those of clip ``partner`` [n]."""
        own = self.first(len(partner))
        other_dim = 3 - self.time_dim  # of codebooks or of the feature
        values = torch.where(replaced.unsqueeze(other_dim), self.values[partner], own.values)
        return replace(self, values=values, owners=torch.where(replaced, self.owners[partner], own.owners))


Streams = tuple[Stream, Stream | None]  # audio, video
MAX_PIECES = 5  # that a spliced clip is made of


def places(owners: Tensor, time_dim: int, step: int | None = None) -> Stream:
    """A stream that holds the place of each frame of ``owners`` [B, T], from 0, where the clips begin
    ``step`` places apart (default: T)."""
    clips, frames = owners.shape
    values = torch.arange(clips)[:, None] * (frames if step is None else step) + torch.arange(frames)
    return Stream(values.unsqueeze(3 - time_dim), owners, time_dim)


@dataclass(frozen=True)
class Splicing:
    """The pieces of n clips: each begins as it is, and goes on as up to four others of its label."""

    start: Tensor  # int64 [n,P]: the audio frame at which a piece after the first begins; T if there is none
    piece: Tensor  # int64 [n,P]: the clip that it is of
    only_audio: bool  # the video stays as it is

    def apply(self, mixed: Streams, audio: Stream, video: Stream | None, fps: float) -> Streams:
        """``mixed``, n clips of each stream, with their pieces from ``audio`` and ``video``, m clips."""
        heard, seen = mixed
        frames = torch.arange(heard.owners.shape[1])
        for start, piece in zip(self.start.T, self.piece.T, strict=True):  # later ones over those before
            heard = heard.overlaid(audio, piece, frames >= start[:, None])
            if seen is not None and video is not None and not self.only_audio:
                middle = (torch.arange(seen.owners.shape[1]) + 0.5) * FRAME_RATE / fps
                seen = seen.overlaid(video, piece, middle >= start[:, None])
        return heard, seen


@dataclass(frozen=True)
class Augmentation:
    """What happens to each of n clips, in the order of the fields."""

    kept: tuple[int, int]  # audio and video frames that the crop keeps
    begin: Tensor  # int64 [m]: the first video frame that it keeps, of these and of all their partners
    partner: Tensor  # int64 [n]: the clip that a clip goes on as; itself if it does not
    point: Tensor  # int64 [n]: from which audio frame on
    turn: Tensor  # float64 [n]: how far it rolls, 0 (one frame) to 1 (a whole turn); -1 if it does not
    splicing: Splicing | None = None  # the pieces that it is made of

    @classmethod
    def draw(
        cls, n: int, config: TrainConfig, frames: int, fps: float, generator: torch.Generator
    ) -> Augmentation:
        """For n clips of ``frames`` audio frames each: crop (if ``config`` asks for one), mixup and roll."""
        kept, begin = (frames, video_frames(frames / FRAME_RATE, fps)), torch.zeros(n, dtype=torch.int64)
        if config.crop_seconds:
            kept, begin = draw_crop(n, config.crop_seconds, frames, fps, generator)
        partner, point = draw_mixup(n, config.mixup_prob, kept[0], generator)
        return cls(kept, begin, partner, point, draw_roll(n, config.roll_prob, generator))

    def of(self, own: Tensor) -> tuple[Tensor, Augmentation]:
        """The clips whose latents the clips ``own`` [n] need, own first [m]; and what happens to these n."""
        others = self.partner[own]
        needed = torch.zeros(len(self.partner), dtype=torch.bool)
        needed[others] = True
        needed[own] = False
        clips = torch.cat([own, needed.nonzero()[:, 0]])
        place = torch.empty_like(self.partner)
        place[clips] = torch.arange(len(clips))
        return clips, replace(
            self, begin=self.begin[clips], partner=place[others], point=self.point[own], turn=self.turn[own]
        )


def augment(
    audio: Stream, video: Stream | None, drawn: Augmentation, fps: float, roll_padding: bool = False
) -> Streams:
    """The n clips of ``drawn``, from streams of m: crop, mixup, splicing, roll, as far as drawn."""
    if drawn.kept[0] < audio.owners.shape[1]:
        audio, video = random_crop(audio, video, drawn.kept, drawn.begin, fps)
    whole = audio, video
    audio, video = temporal_mixup(audio, video, drawn.partner, drawn.point, fps)
    if drawn.splicing is not None:
        audio, video = drawn.splicing.apply((audio, video), *whole, fps)
    return temporal_roll(audio, video, drawn.turn, fps, roll_padding)


def draw_crop(
    n: int, seconds: float, frames: int, fps: float, generator: torch.Generator
) -> tuple[tuple[int, int], Tensor]:
    """Audio and video frames of a crop of ``seconds``, the same for n clips; where each begins, int64 [n]."""
    num_video = video_frames(frames / FRAME_RATE, fps)
    kept = min(video_frames(seconds, fps), num_video)
    begin = torch.randint(num_video - kept + 1, (n,), generator=generator)
    return (min(audio_frames(seconds), frames - int(audio_frame(begin, fps).max())), kept), begin


def random_crop(
    audio: Stream, video: Stream | None, kept: tuple[int, int], begin: Tensor, fps: float
) -> Streams:
    """``kept`` audio and video frames of each clip, from its video frame ``begin`` [B] on.

    More clips are seen for the same work. The audio starts where that video frame does.
    """
    audio = audio.take(audio_frame(begin, fps)[:, None] + torch.arange(kept[0]))
    return audio, None if video is None else video.take(begin[:, None] + torch.arange(kept[1]))


def draw_mixup(n: int, probability: float, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For n clips: with that probability another of them and a break of 1 to ``frames`` - 1; int64 [n] each.

    The others are their own partner, with the break after the last frame.
    """
    own = torch.arange(n)
    chosen = _bernoulli(n, probability, generator)
    step = torch.randint(1, max(n, 2), (n,), generator=generator)
    point = torch.randint(1, max(frames, 2), (n,), generator=generator)
    chosen &= (n > 1) & (frames > 1)  # else there is nobody, or nowhere, to go on with
    return torch.where(chosen, (own + step) % n, own), torch.where(chosen, point, frames)


def draw_pieces(n: int, probability: float, frames: int, generator: torch.Generator) -> Tensor:
    """For n clips of ``frames`` audio frames where each of up to four further pieces begins, int64 [n,4].

    With that probability there are one to four of them, at random places, else none: ``frames``.
    """
    chosen = _bernoulli(n, probability, generator) & torch.tensor(frames > 1)
    count = torch.randint(1, MAX_PIECES, (n,), generator=generator)
    start = torch.randint(1, max(frames, 2), (n, MAX_PIECES - 1), generator=generator)
    there = (torch.arange(MAX_PIECES - 1) < count[:, None]) & chosen[:, None]
    return torch.where(there, start, frames).sort(dim=1).values


def temporal_mixup(
    audio: Stream, video: Stream | None, partner: Tensor, point: Tensor, fps: float
) -> Streams:
    """The first n clips: each goes on as clip ``partner`` [n] from audio frame ``point`` [n] on.

    A video frame belongs to the other clip if the middle of its share of time lies after the break.
    """
    mixed = partner != torch.arange(len(partner))
    audio = audio.splice(partner, torch.arange(audio.owners.shape[1]) >= point[:, None])
    if video is not None:
        middle = (torch.arange(video.owners.shape[1]) + 0.5) * FRAME_RATE / fps
        video = video.splice(partner, (middle >= point[:, None]) & mixed[:, None])
    return audio, video


def draw_roll(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """For n clips: with that probability how far each rolls, float64 in [0, 1); else -1."""
    chosen = _bernoulli(n, probability, generator)
    return torch.where(chosen, torch.rand(n, generator=generator, dtype=torch.float64), -1.0)


def temporal_roll(
    audio: Stream, video: Stream | None, turn: Tensor, fps: float, roll_padding: bool = False
) -> Streams:
    """Each clip rolled in time by ``turn`` [B] of its length: what leaves at the end comes in at the start.

    At least by one frame, and less than a whole turn; -1 is not at all.
    With video, by a whole number of video frames, so that both streams stay together. Without, by single
    audio frames, and the padding after a short clip stays where it is, unless ``roll_padding``.
    """
    frames = audio.owners.shape[1]
    if video is None and not roll_padding:
        # Up to the last frame that is not padding.
        length = (torch.arange(1, frames + 1) * (audio.owners != 0)).amax(1)
    else:
        length = torch.full((len(turn),), (audio if video is None else video).owners.shape[1])

    shift = 1 + (turn * (length - 1)).long()
    shift = torch.where((turn >= 0) & (length > 1), shift, 0)
    if video is None:
        return _roll(audio, shift, length), None
    return _roll(audio, audio_frame(shift, fps), torch.full_like(length, frames)), _roll(video, shift, length)


def drop_features(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    """True for clips that train without video, bool [B]: guidance needs the model to know both."""
    return _bernoulli(batch, probability, generator)


def _bernoulli(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) < probability


def audio_frame(video_frame: Tensor, fps: float) -> Tensor:
    """The audio frame at which a video frame starts."""
    return (video_frame * FRAME_RATE / fps).round().long()


def _roll(stream: Stream, shift: Tensor, length: Tensor) -> Stream:
    """The first ``length`` [B] frames of each clip rolled by its own ``shift`` [B]; the rest stays."""
    rows = shift.nonzero()[:, 0]  # few clips roll; the others are left as they are
    part = replace(stream, values=stream.values[rows], owners=stream.owners[rows])
    shift, length = shift[rows], length[rows]
    positions = torch.arange(stream.owners.shape[1], device=shift.device).expand(len(shift), -1)
    rolled = (positions - shift[:, None]) % length[:, None].clamp(min=1)
    part = part.take(torch.where(positions < length[:, None], rolled, positions))
    return replace(
        stream,
        values=stream.values.index_copy(0, rows, part.values),
        owners=stream.owners.index_copy(0, rows, part.owners),
    )
