"""Splice kept spans of a video's own audio into the generated waveform."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vab.config import SAMPLE_RATE
from vab.errors import SettingError
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo

FADE = round(0.02 * SAMPLE_RATE)  # samples of cross-fade, outside of the kept span

Span = tuple[float, float]  # seconds; the end may be infinite
AudioSource = Callable[[int, int], np.ndarray]  # first sample, number of samples -> float32 [S]


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


def crossfade_into(waveform: np.ndarray, original: AudioSource, start: int, stop: int) -> None:
    """Put samples ``start`` to ``stop`` of ``original`` into ``waveform`` [S], with a fade on either side."""
    begin = max(0, start - FADE)
    end = min(len(waveform), stop + FADE)
    own = original(begin, end - begin)
    # Weight of the original: up before the span, one within, down behind; a fade at the edge is shorter.
    weight = np.ones(end - begin, dtype=np.float32)
    weight[: start - begin] = (np.arange(start - begin) + 1) / (start - begin + 1)
    weight[len(weight) - (end - stop) :] = 1 - (np.arange(end - stop) + 1) / (end - stop + 1)
    waveform[begin:end] += weight * (own - waveform[begin:end])
    # Within the span bit for bit: a sum with weight one still rounds.
    waveform[start:stop] = own[start - begin : stop - begin]


def read_original(file: MediaFile, begin: int, num_samples: int) -> np.ndarray:
    """Samples of a file's own audio, float32 [num_samples]; ``MediaError`` if they are not all finite."""
    waveform = file.audio(begin / SAMPLE_RATE, num_samples / SAMPLE_RATE)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{file.path}: its sound holds values that are not numbers")
    return waveform


def slice_audio(waveform: np.ndarray, begin: int, num_samples: int) -> np.ndarray:
    """Samples of a waveform [S] in memory, float32 [num_samples]; silence after its end."""
    part = waveform[begin : begin + num_samples].astype(np.float32)
    return np.pad(part, (0, num_samples - len(part)))
