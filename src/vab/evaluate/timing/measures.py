"""One sound against the clip's own: correlations of onset strength and level, F1 of onsets, events.

All at lag 0: a sound that is right but late is wrong. T frames at 50 Hz, n events, S samples at 16 kHz.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, SAMPLE_RATE
from vab.evaluate.metrics.signal import onset_agreement
from vab.timing.curve import TimingCurve, events
from vab.timing.sound import level_db, onset_strength, onset_times

SMOOTHING_FRAMES = 3  # 60 ms: hits of two sounds that are 20 ms apart still agree in part
CONSTANT = 1e-6  # a curve that varies less has no shape
TOLERANCES: Mapping[str, float] = MappingProxyType({"onset_f1_50ms": 0.05, "onset_f1_100ms": 0.1})
CORRELATIONS = ("onset_correlation", "level_correlation")
MEASURES = (*TOLERANCES, *CORRELATIONS)


@dataclass(frozen=True)
class Heard:
    """What a sound does over time; None is not known, as the level of a metronome."""

    seconds: float
    onsets: NDArray[np.floating]  # [n], seconds, ascending
    strength: NDArray[np.floating] | None  # [T], of onsets
    level: NDArray[np.floating] | None  # [T], dB relative to the loudest part

    @classmethod
    def of(cls, waveform: NDArray[np.float32]) -> Self:
        """What is heard of a waveform [S]."""
        seconds = len(waveform) / SAMPLE_RATE
        return cls(seconds, onset_times(waveform), onset_strength(waveform), level_db(waveform))

    @classmethod
    def of_curve(cls, curve: TimingCurve) -> Self:
        """What a timing curve says, as if it were heard."""
        onsets = np.zeros(0) if curve.onset is None else events(curve.onset)[0]
        return cls(curve.num_frames / FRAME_RATE, onsets, curve.onset, curve.level)

    @property
    def shapeless(self) -> bool:
        """True for silence and for an even tone: neither its onset strength nor its level ever changes."""
        return all(x is None or _constant(x) for x in (self.strength, self.level))


@dataclass(frozen=True)
class Agreement:
    """How a sound agrees with the clip's own, over the time that both have."""

    values: Mapping[str, float]  # of MEASURES; NaN where there is none
    expected: int  # onsets of the clip's own sound
    found: int  # onsets of the other


def compare(reference: Heard, estimate: Heard) -> Agreement:
    """How a sound agrees with the clip's own.

    A reference without onsets has no F1, one without any change no correlation. An estimate without onsets
    finds none of them (F1 0), one without any change agrees with nothing (correlation 0).
    """
    seconds = min(reference.seconds, estimate.seconds)
    expected, found = (x.onsets[x.onsets < seconds] for x in (reference, estimate))
    values = {
        name: onset_agreement(expected, found, tolerance) if len(expected) else math.nan
        for name, tolerance in TOLERANCES.items()
    }
    pairs = ((reference.strength, estimate.strength), (reference.level, estimate.level))
    for name, (a, b) in zip(CORRELATIONS, pairs, strict=True):
        values[name] = math.nan if a is None or b is None else correlation(a, b)
    return Agreement(values, len(expected), len(found))


def correlation(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Pearson's correlation at lag 0 of two curves [T], smoothed over 60 ms; the longer is cut.

    NaN for a reference that does not change, else 0 for an estimate that does not.
    """
    common = min(len(reference), len(estimate))
    a, b = (smoothed(x[:common]) for x in (reference, estimate))
    if _constant(a):
        return math.nan
    return 0.0 if _constant(b) else float(np.corrcoef(a, b)[0, 1])


def smoothed(curve: NDArray[np.floating]) -> NDArray[np.floating]:
    """The mean of each value [T] and its neighbours within 60 ms; the ends are repeated."""
    if not len(curve):
        return np.zeros(0)
    padded = np.pad(np.asarray(curve, np.float64), SMOOTHING_FRAMES // 2, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING_FRAMES).mean(1)


def _constant(curve: NDArray[np.floating]) -> bool:
    return not len(curve) or float(np.ptp(curve)) < CONSTANT
