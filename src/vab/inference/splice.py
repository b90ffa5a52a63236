"""Splice kept spans of the sound that was there before into the generated waveform."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any

import av
import numpy as np

from vab.config import SAMPLE_RATE
from vab.errors import SettingError
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo
from vab.media.filters import layout, resampled

FADE_SECONDS = 0.02  # of cross-fade, outside of the kept span
FADE = round(FADE_SECONDS * SAMPLE_RATE)  # the same in samples, as the model hears it

Span = tuple[float, float]  # seconds; the end may be infinite
AudioSource = Callable[[int, int], np.ndarray]  # first sample, number of samples -> float32 [S]


@dataclass(frozen=True)
class Original:
    """The sound that was there before: a stream of a file, or a waveform."""

    rate: int  # its own
    layout: str  # its own, by FFmpeg's name
    read: Callable[[float, int, str | None], np.ndarray]  # seconds, rate, layout (None: mono) -> [C,S]

    @property
    def num_channels(self) -> int:
        """C of its own."""
        return int(av.AudioLayout(self.layout).nb_channels)

    def channels(self, seconds: float, rate: int, num_channels: int) -> np.ndarray:
        """The first ``seconds`` [C,S] in so many channels: its own as they are, one as the mean of all."""
        if num_channels == self.num_channels:
            return self.read(seconds, rate, self.layout)
        if num_channels == 1 or self.num_channels == 1:
            return np.repeat(self.read(seconds, rate, None), num_channels, axis=0)
        return self.read(seconds, rate, layout(num_channels))


def original_of(file: MediaFile) -> Original:
    """The sound of a file, read once; ``MediaError`` if its samples are not all finite."""

    @lru_cache(maxsize=1)
    def read(seconds: float, rate: int, layout: str | None) -> np.ndarray:
        # From the beginning even for a later part: a decoder that starts elsewhere gives other samples.
        length = round(seconds * rate)
        blocks = []
        missing = length
        for block in file.channel_blocks(0.0, rate, layout):
            blocks.append(block[:, :missing])
            missing -= blocks[-1].shape[1]
            if not missing:
                break
        if not blocks:
            raise MediaError(f"{file.path}: its audio stream cannot be decoded")
        waveform = slice_audio(np.concatenate(blocks, axis=1), 0, length)
        if not np.isfinite(waveform).all():
            raise MediaError(f"{file.path}: its sound holds values that are not numbers")
        return waveform

    return Original(*file.audio_format, read)


def original_in_memory(waveform: np.ndarray) -> Original:
    """A waveform [S] at 16 kHz as the sound that was there; silence after its end."""

    def read(seconds: float, rate: int, layout: str | None) -> np.ndarray:
        return resampled(waveform[None], SAMPLE_RATE, rate, round(seconds * rate))

    return Original(SAMPLE_RATE, "mono", read)


def as_spans(keep: Sequence[float] | Sequence[Span]) -> list[Span]:
    """Spans (from, to) in seconds: those of a list, or one of two numbers. ``SettingError`` for all else."""
    spans: list[Any] = list(keep) if isinstance(keep, Iterable) else [keep]
    if len(spans) == 2 and all(isinstance(end, Real) for end in spans):
        spans = [spans]
    try:
        return [(float(start), float(stop)) for start, stop in spans]
    except (TypeError, ValueError) as error:
        raise SettingError(f"keep= is spans (from, to) in seconds, such as [(2, 4)], not {keep!r}") from error


def kept_samples(info: MediaInfo, keep: Sequence[Span], length: int) -> list[tuple[int, int]]:
    """The spans to keep as samples (from, to), in order; spans that touch are merged.

    ``MediaError`` if the file has no audio, or ends before a span starts; ``SettingError`` for a span that
    does not end after it starts.
    """
    if keep and not info.has_audio:
        raise MediaError(f"{info.path}: has no sound of its own to keep")
    kept: list[tuple[int, int]] = []
    for start, stop in sorted(keep):
        if not 0 <= start < stop:
            raise SettingError(f"a span to keep goes from a time to a later one, not from {start} to {stop}")
        # The end may be infinite, or beyond the file's.
        first = round(start * SAMPLE_RATE)
        last = round(min(stop, length / SAMPLE_RATE) * SAMPLE_RATE)
        if first >= length:
            raise MediaError(
                f"{info.path}: cannot keep its sound from {start:g} s on, it ends at {info.seconds:g} s"
            )
        if kept and first <= kept[-1][1]:
            kept[-1] = (kept[-1][0], max(last, kept[-1][1]))
        elif first < last:
            kept.append((first, last))
    return kept


def crossfade_into(
    waveform: np.ndarray, original: AudioSource, start: int, stop: int, fade: int = FADE
) -> None:
    """Put samples ``start`` to ``stop`` of ``original`` into ``waveform`` [S] or [C,S].

    A fade of ``fade`` samples lies outside of them on either side.
    """
    length = waveform.shape[-1]
    begin = max(0, start - fade)
    end = min(length, stop + fade)
    own = original(begin, end - begin)
    # Weight of the original: up before the span, one within, down behind; a fade at the edge is shorter.
    weight = np.ones(end - begin, dtype=np.float32)
    weight[: start - begin] = (np.arange(start - begin) + 1) / (start - begin + 1)
    weight[len(weight) - (end - stop) :] = 1 - (np.arange(end - stop) + 1) / (end - stop + 1)
    waveform[..., begin:end] += weight * (own - waveform[..., begin:end])
    # Within the span bit for bit: a sum with weight one still rounds.
    waveform[..., start:stop] = own[..., start - begin : stop - begin]


def read_original(file: MediaFile, begin: int, num_samples: int) -> np.ndarray:
    """Samples of a file's own audio, float32 [num_samples]; ``MediaError`` if they are not all finite."""
    waveform = file.audio(begin / SAMPLE_RATE, num_samples / SAMPLE_RATE)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{file.path}: its sound holds values that are not numbers")
    return waveform


def slice_audio(waveform: np.ndarray, begin: int, num_samples: int) -> np.ndarray:
    """Samples of a waveform [S] or [C,S] in memory, as float32; silence after its end."""
    part = waveform[..., begin : begin + num_samples].astype(np.float32)
    missing = num_samples - part.shape[-1]
    return np.pad(part, [*[(0, 0)] * (part.ndim - 1), (0, missing)])
