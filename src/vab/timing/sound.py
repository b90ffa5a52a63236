"""What a sound says of its own timing: onset strength, onset times and level, at 50 Hz.

The log-mel frames are relative to the sound's loudest part, so a gain changes nothing here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, HOP_LENGTH, SAMPLE_RATE, samples_to_frames
from vab.timing.curve import LEVEL_FLOOR, TimingCurve, bumps, level_units
from vab.utils.mel import BANDS, FFT, MAX_HERTZ, MIN_HERTZ, STEP, WINDOW, magnitudes, mel_filters

MEL_RANGE = 1e-3  # of the loudest band's magnitude: what is 60 dB below it counts as that
LAG = 2  # mel frames, 20 ms, over which a rise is measured
PEAK_RADIUS = 3  # mel frames, 30 ms, within which an onset is the highest
MEAN_RADIUS = 10  # mel frames, 100 ms: the surroundings that it must stand above
MIN_RISE = 0.4  # nats, mean over the bands: by how much it must do so
FULL_RISE = 2.5  # nats: the rise of an event of strength 1
SILENCE = -120.0  # dB re full scale: a level that no sound of 16 bits is below


def onset_strength(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Onset strength [T] of a waveform [S] at 16 kHz: its spectral flux in nats, 0 where nothing rises.

    The flux at a time is the mean over 64 mel bands of what has risen within 20 ms, in windows of 25 ms
    around it. A frame of 20 ms holds the larger of two values.
    """
    # [2T], at 100 Hz -> [T]
    return _flux(waveform).reshape(-1, 2).max(1).astype(np.float32)


def onset_times(waveform: NDArray[np.floating]) -> NDArray[np.float64]:
    """Onset times of a waveform [S] at 16 kHz: seconds, ascending [n], to 10 ms.

    An onset is the highest flux within 30 ms and 0.4 nats above the mean of that within 100 ms. A sound that
    starts amid something has none there: a cut is no event.
    """
    return peaks(_flux(waveform))[0] / (2 * FRAME_RATE)


def level_db(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Level [T] of a waveform [S] at 16 kHz: dB relative to its loudest part, -45 at least.

    It is the mean power within 40 ms around the middle of each frame. Silence is at -45 dB throughout.
    """
    absolute = _absolute_level(waveform)
    return relative(absolute, absolute.max(initial=SILENCE))


def relative(level: NDArray[np.floating], loudest: float) -> NDArray[np.float32]:
    """Levels [T] in dB relative to full scale -> relative to the ``loudest``, -45 at least."""
    if loudest <= SILENCE:
        return np.full(level.shape, LEVEL_FLOOR, np.float32)
    return (level - loudest).clip(LEVEL_FLOOR, 0.0).astype(np.float32)


def curve_of(waveform: NDArray[np.floating]) -> TimingCurve:
    """The timing curve of a sound: its onsets, each as strong as it rises, and its level."""
    places, rises = peaks(_flux(waveform))
    level = level_units(level_db(waveform))
    return TimingCurve(bumps(places / (2 * FRAME_RATE), len(level), _strengths(rises)), level)


def stored_curve(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """What training needs of a sound's curve, [T,2]: an event's strength in its frame (else 0), level in dB.

    The level is relative to full scale, so that pieces of several sounds keep theirs when they are joined.
    """
    places, rises = peaks(_flux(waveform))
    result = np.zeros((samples_to_frames(len(waveform)), 2), np.float32)
    result[places // 2, 0] = _strengths(rises)
    result[:, 1] = _absolute_level(waveform)
    return result


def _strengths(rises: NDArray[np.float64]) -> NDArray[np.float64]:
    return (rises / FULL_RISE).clip(0.0, 1.0)


def _flux(waveform: NDArray[np.floating]) -> NDArray[np.float64]:
    """Spectral flux [2T] at 100 Hz, value n at n / 100 seconds."""
    # Windows stand around their times: half a window is added on either side, mirrored, as a rise there
    # would be one of ours. The last frame may be less than whole.
    frames = 2 * samples_to_frames(len(waveform))
    if not frames:
        return np.zeros(0)
    half = WINDOW // 2
    padded = np.pad(
        np.asarray(waveform, np.float64), (half, 0), mode="reflect" if len(waveform) > half else "edge"
    )
    padded = np.pad(padded, (0, max(0, (frames - 1) * STEP + WINDOW - len(padded))), mode="edge")
    filters = mel_filters(BANDS, FFT, SAMPLE_RATE, MIN_HERTZ, MAX_HERTZ)
    mel = (magnitudes(padded, WINDOW, STEP, FFT) @ filters)[:frames]
    loudest = mel.max(initial=0.0)
    if loudest == 0:
        return np.zeros(frames)
    log_mel = np.log(np.maximum(mel / loudest, MEL_RANGE))
    flux = np.zeros(frames)
    flux[LAG:] = np.maximum(log_mel[LAG:] - log_mel[:-LAG], 0.0).mean(1)
    return flux


def peaks(
    flux: NDArray[np.floating], min_rise: float = MIN_RISE
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places [n] of the onsets in a flux [N] at 100 Hz, and the flux there.

    Each is the highest within 30 ms and ``min_rise`` nats above the mean within 100 ms.
    """
    if not len(flux):
        return np.zeros(0, np.int64), np.zeros(0)
    highest = _neighbours(flux, PEAK_RADIUS).max(1)
    around = _neighbours(flux, MEAN_RADIUS).mean(1)
    # a plateau has one onset: its first value
    first = np.concatenate([[True], flux[1:] > flux[:-1]])
    places = np.flatnonzero(first & (flux >= highest) & (flux > around + min_rise))
    return places, flux[places].astype(np.float64)


def _neighbours(values: NDArray[np.floating], radius: int) -> NDArray[np.floating]:
    """Neighbours [n, 2 radius + 1] of each of values [n]; the ends are repeated."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, radius, mode="edge"), 2 * radius + 1)


def _absolute_level(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Level [T] in dB relative to full scale, from the mean power within 40 ms around each frame's middle."""
    frames = samples_to_frames(len(waveform))
    # Power of each half frame, with one half on either side: [2T + 2]
    half = HOP_LENGTH // 2
    samples = np.zeros((2 * frames + 2) * half)
    samples[half : half + len(waveform)] = waveform
    power = (samples.reshape(-1, half) ** 2).mean(1)
    # What is not there, before the first sample and after the last, takes no part in the mean.
    there = np.zeros_like(samples)
    there[half : half + len(waveform)] = 1.0
    weight = there.reshape(-1, half).mean(1)

    def over_40_ms(halves: NDArray[np.float64]) -> NDArray[np.float64]:
        frames = halves.reshape(-1, 2).sum(1)  # [2T + 2] -> [T + 1]
        return frames[:-1] + frames[1:]

    mean = over_40_ms(power) / over_40_ms(weight).clip(min=1e-9)
    floor = 10 ** (SILENCE / 10)
    return (10 * np.log10(np.maximum(mean, floor))).astype(np.float32)
