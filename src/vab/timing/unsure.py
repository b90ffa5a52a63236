"""The timing curves that a model is trained with: those of the training sounds, made less sure.

A sound's own curve is exact, one drawn by hand or seen in a film is not: events are some milliseconds off,
missing, or none at all, and levels are guesses. A model that has only seen exact curves would follow
each slip.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vab.config import FRAME_RATE
from vab.timing.curve import NUM_CHANNELS, TimingCurve, bumps, level_units
from vab.timing.sound import relative

KNOWN_SHARES = {"both": 0.6, "onset": 0.25, "level": 0.15}  # of the curves that are not dropped
JITTER_SECONDS = (0.005, 0.03)  # standard deviation of the events' times; one value for each curve
MAX_MISSING = 0.2  # share of a curve's events that are left out: from none up to this
MAX_FALSE = 0.4  # events a second that are no event of the sound: from none up to this
ALIKE = 0.25  # share of the curves whose events are all of strength 1, as those that a hand taps
STRENGTH_NOISE = 0.3  # standard deviation of the logarithm of a strength
GAIN_DB = 3.0  # standard deviation of a curve's level as a whole, and
LEVEL_NOISE_DB = 2.0  # of what is added to it as it goes
MAX_SMOOTHING = 0.12  # seconds: standard deviation of the level's smoothing, from none up to this


def timing_of(
    stored: NDArray[np.float16],
    owners: Tensor,
    loudest: NDArray[np.floating],
    drop_prob: float = 0.0,
    seeds: Tensor | None = None,
) -> NDArray[np.float32]:
    """Curves [n,T,4] for a network, of what is stored [n,T,2] (``vab.timing.sound.stored_curve``).

    ``loudest`` [n]: the level in dB that those of a clip are relative to. Padding, where ``owners`` [n,T] is
    0, is unknown. With ``seeds`` [n] the curves are augmented and, by chance, dropped; without, exact.
    """
    curves = np.zeros((*stored.shape[:2], NUM_CHANNELS), np.float32)
    for n, clip in enumerate(stored.astype(np.float32)):
        strengths, level = clip[:, 0], relative(clip[:, 1], float(loudest[n]))
        if seeds is None:
            curve: TimingCurve | None = exact(strengths, level)
        else:
            curve = unsure(strengths, level, drop_prob, np.random.default_rng(int(seeds[n])))
        if curve is not None:
            curves[n] = curve.channels()
    curves[owners.numpy() == 0] = 0.0
    return curves


def exact(strengths: NDArray[np.float32], level: NDArray[np.float32]) -> TimingCurve:
    """The curve of events' strengths [T] (0 where there is none) and levels [T] in dB."""
    frames = np.flatnonzero(strengths)
    onset = bumps((frames + 0.5) / FRAME_RATE, len(strengths), strengths[frames])
    return TimingCurve(onset, level_units(level))


def unsure(
    strengths: NDArray[np.float32],
    level: NDArray[np.float32],
    drop_prob: float,
    random: np.random.Generator,
) -> TimingCurve | None:
    """The same curve as somebody might have guessed it; None if it is dropped."""
    if random.random() < drop_prob:
        return None
    known = random.choice(list(KNOWN_SHARES), p=list(KNOWN_SHARES.values()))
    length = len(strengths)

    # 1. Events: some are missing, all are a little off, a few are none.
    frames = np.flatnonzero(strengths)
    frames = frames[random.random(len(frames)) >= random.uniform(0, MAX_MISSING)]
    jitter = random.normal(0.0, random.uniform(*JITTER_SECONDS), len(frames))
    heights = strengths[frames] * np.exp(random.normal(0.0, STRENGTH_NOISE, len(frames)))
    false = random.poisson(random.uniform(0, MAX_FALSE) * length / FRAME_RATE)
    times = np.concatenate([(frames + 0.5) / FRAME_RATE + jitter, random.random(false) * length / FRAME_RATE])
    heights = np.concatenate([heights, random.uniform(0.1, 1.0, false)]).clip(0.05, 1.0)
    if random.random() < ALIKE:
        heights[:] = 1.0
    onset = bumps(times, length, heights)

    # 2. The level: smoother, louder or quieter, and wrong by some dB that come and go.
    level = _smooth(level, random.uniform(0, MAX_SMOOTHING))
    wander = _smooth(random.normal(0.0, 1.0, length), 0.2)
    wander *= LEVEL_NOISE_DB / max(wander.std(), 1e-6)
    guessed = level_units(level + random.normal(0.0, GAIN_DB) + wander)
    return TimingCurve(None if known == "level" else onset, None if known == "onset" else guessed)


def _smooth(values: NDArray[np.floating], seconds: float) -> NDArray[np.floating]:
    """Values [T] smoothed by a Gaussian with this standard deviation; the ends are repeated."""
    reach = int(np.ceil(3 * seconds * FRAME_RATE))
    if reach == 0:
        return values
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (seconds * FRAME_RATE)) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), "valid")
