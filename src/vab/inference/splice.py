"""The part of a video's own sound that stays: which samples, and how they meet what is new."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vab.config import SAMPLE_RATE
from vab.errors import SettingError
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo

FADE = round(0.02 * SAMPLE_RATE)  # samples of cross-fade, outside of what is kept

Span = tuple[float, float]  # seconds; the end may be infinite
AudioSource = Callable[
    [int, int], np.ndarray
]  # first sample, how many -> float32 [S] of the sound that is there


def kept_samples(info: MediaInfo, keep: Sequence[Span], length: int) -> list[tuple[int, int]]:
    """The spans to keep as samples (from, to), in order, those that touch made one.

    ``MediaError`` if the file has no sound, or ends before a span starts; ``ValueError`` for no span.
    """
    if keep and not info.has_audio:
        raise MediaError(f"{info.path}: has no sound of its own to keep")
    kept: list[tuple[int, int]] = []
    for start, stop in sorted(keep):
        if not 0 <= start < stop:
            raise SettingError(f"a span to keep goes from a time to a later one, not from {start} to {stop}")
        first, last = round(start * SAMPLE_RATE), round(min(stop, length / SAMPLE_RATE) * SAMPLE_RATE)
        if first >= length:
            raise MediaError(
                f"{info.path}: cannot keep its sound from {start:g} s on, it ends at {info.seconds:g} s"
            )
        if kept and first <= kept[-1][1]:
            kept[-1] = (kept[-1][0], max(last, kept[-1][1]))
        elif first < last:
            kept.append((first, last))
    return kept


def crossfade_into(waveform: np.ndarray, sound: AudioSource, start: int, stop: int) -> None:
    """Put samples ``start`` to ``stop`` of ``sound`` into ``waveform`` [S], with a fade on either side."""
    begin, end = max(0, start - FADE), min(len(waveform), stop + FADE)
    own = sound(begin, end - begin)
    weight = np.ones(end - begin, dtype=np.float32)
    weight[: start - begin] = (np.arange(start - begin) + 1) / (start - begin + 1)
    weight[len(weight) - (end - stop) :] = 1 - (np.arange(end - stop) + 1) / (end - stop + 1)
    waveform[begin:end] += weight * (own - waveform[begin:end])
    waveform[start:stop] = own[start - begin : stop - begin]


def read_original(file: MediaFile, begin: int, samples: int) -> np.ndarray:
    """Samples of a file's own sound, float32 [samples]; ``MediaError`` if they are not all numbers."""
    sound = file.audio(begin / SAMPLE_RATE, samples / SAMPLE_RATE)
    if not np.isfinite(sound).all():
        raise MediaError(f"{file.path}: its sound holds values that are not numbers")
    return sound


def slice_audio(sound: np.ndarray, begin: int, samples: int) -> np.ndarray:
    """Samples of a sound [S] at hand, float32 [samples]; silence after its end."""
    part = sound[begin : begin + samples].astype(np.float32)
    return np.pad(part, (0, samples - len(part)))
