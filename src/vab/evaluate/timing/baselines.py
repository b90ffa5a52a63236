"""What a system must beat that sees nothing or makes nothing: a metronome, and a gain over a given sound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, SAMPLE_RATE
from vab.timing.curve import TimingCurve, events

METRONOMES = (0.2, 0.5)  # seconds between ticks
GAIN_FLOOR = 0.1  # -20 dB between events
ATTACK_SECONDS = 0.01  # in which the gain rises before an event
DECAY_SECONDS = 0.15  # in which it falls to 1/e after one


def metronome(period: float, seconds: float) -> TimingCurve:
    """A tick every ``period`` seconds, the first after half of one."""
    ticks = np.arange(period / 2, seconds, period)
    return TimingCurve.from_events(ticks, max(1, round(seconds * FRAME_RATE)))


def with_gain(waveform: NDArray[np.float32], curve: TimingCurve) -> NDArray[np.float32]:
    """A waveform [S] made loud at a curve's events and 20 dB quieter between them.

    The gain rises in 10 ms up to an event's strength and falls by e in 150 ms; of several the highest counts.
    """
    gain = np.zeros(len(waveform))
    if curve.onset is not None:
        places = np.arange(len(waveform)) / SAMPLE_RATE
        for time, strength in zip(*events(curve.onset), strict=True):
            after = places - time
            shape = np.where(after < 0, 1 + after / ATTACK_SECONDS, np.exp(-after.clip(0) / DECAY_SECONDS))
            gain = np.maximum(gain, strength * shape)
    return (waveform * (GAIN_FLOOR + (1 - GAIN_FLOOR) * gain)).astype(np.float32)
