"""Loudness and true peak (EBU R128, ITU-R BS.1770), and sound brought to a target, by FFmpeg's filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vab.media.filters import filter_frames, filtered

MAX_TRUE_PEAK = -1.0  # dBTP: no new sound goes above it
MAX_GAIN = 30.0  # dB
MAX_LIMITING = 12.0  # dB by which peaks are lowered; more would be heard as distortion
PEAK_ABOVE_LOUDNESS = 20.0  # dB, about as far as the peaks of the model's own sounds are above their loudness
GATE = -70.0  # LUFS: what is below is silence to R128
BLOCK_SECONDS = 0.4  # R128 measures in such blocks
_HEADROOM = 0.1  # dB under MAX_TRUE_PEAK, for what rounding and lossy codecs add
_LIMITER = "level=0:attack=5:release=50:latency=1"  # ms; no make-up gain, nothing late
_TOLERANCE = 0.05  # LU
_MAX_ROUNDS = 8


@dataclass(frozen=True)
class Level:
    """How loud a sound is. None stands for silence, and for a loudness that cannot be told."""

    loudness: float | None  # integrated, LUFS; None below 0.4 s, and below R128's gate of -70 LUFS
    true_peak: float | None  # dBTP


@dataclass(frozen=True)
class Levelled:
    """Sound brought to a loudness."""

    waveform: NDArray[np.float32]  # [C,S]
    level: Level  # after gain and limiter
    gain: float  # dB, before the limiter


def measure(waveform: NDArray[np.float32], rate: int) -> Level:
    """The level of a waveform [S] or [C,S]."""
    sound = np.atleast_2d(waveform)
    peak = float(np.abs(sound).max(initial=0.0))
    if peak == 0:
        return Level(None, None)

    # 1. The meter gives three decimals of the peak's amplitude: measure at full scale, whatever the level. It
    # says what it knows every tenth of a second, so silence behind the end brings the last peaks to light.
    hop = rate // 10
    chain = (
        ("volume", f"{1 / peak:.9g}"),
        ("apad", f"pad_len={2 * hop}"),
        ("ebur128", "metadata=1:peak=true:framelog=quiet"),
    )
    said = [frame.metadata for frame in filter_frames(sound, rate, *chain)]
    said = [values for values in said if "lavfi.r128.I" in values]

    # 2. Loudness at the last whole tenth of the sound, the peak at the end.
    shift = 20 * float(np.log10(peak))
    tenths = sound.shape[1] // hop
    loudness = float(said[tenths - 1]["lavfi.r128.I"]) + shift if tenths >= 10 * BLOCK_SECONDS else GATE
    true_peak = 20 * float(np.log10(float(said[-1]["lavfi.r128.true_peak"]))) + shift
    return Level(loudness if loudness > GATE else None, true_peak)


def limited(sound: NDArray[np.float32], rate: int) -> tuple[NDArray[np.float32], Level]:
    """Sound [C,S] with its peaks lowered to at most -1 dBTP, and its level; as it is if none is higher."""
    level = measure(sound, rate)
    if level.true_peak is None or level.true_peak <= MAX_TRUE_PEAK:
        return sound, level

    # FFmpeg's limiter looks 5 ms ahead, and changes no sample far from a peak. It knows samples only, and the
    # true peak lies between them: lower the samples' limit by what the meter finds too much.
    goal = MAX_TRUE_PEAK - _HEADROOM
    threshold = goal
    excess = 0.0
    for _ in range(_MAX_ROUNDS):
        threshold -= excess
        limit = max(0.0625, 10 ** (threshold / 20))  # its lowest
        result = filtered(sound, rate, ("alimiter", f"limit={limit:.6f}:{_LIMITER}"))
        level = measure(result, rate)
        excess = (level.true_peak or goal) - goal
        if excess <= _HEADROOM / 2:
            return result, level

    # Peaks that are left go down with everything else.
    result = result * np.float32(10 ** (-excess / 20))
    return result, measure(result, rate)


def to_loudness(sound: NDArray[np.float32], rate: int, target: float | None) -> Levelled:
    """Sound [C,S] at an integrated loudness of ``target`` LUFS (None: as it is), and never above -1 dBTP.

    Silence stays as it is. A sound shorter than 0.4 s, of which R128 has no block, gets its true peak 20 dB
    above the target: so far the peaks of the model's longer sounds are above their loudness. The target is
    not reached where that takes more than 30 dB of gain, or peaks lowered by more than 12 dB.
    """
    own = measure(sound, rate)
    most = MAX_GAIN
    if target is None or own.true_peak is None:
        gain = 0.0
    elif own.loudness is not None:
        most = min(most, MAX_TRUE_PEAK + MAX_LIMITING - own.true_peak)
        gain = min(most, target - own.loudness)
    elif sound.shape[1] < BLOCK_SECONDS * rate and own.true_peak > GATE:
        gain = min(most, min(MAX_TRUE_PEAK - _HEADROOM, target + PEAK_ABOVE_LOUDNESS) - own.true_peak)
    else:
        gain = 0.0

    # The limiter takes some of the loudness: give it back, until it is there.
    levelled = with_gain(sound, rate, gain)
    for _ in range(_MAX_ROUNDS):
        if target is None or own.loudness is None:
            break
        better = min(most, levelled.gain + target - (levelled.level.loudness or GATE))
        if abs(better - levelled.gain) <= _TOLERANCE:
            break
        levelled = with_gain(sound, rate, better)
    return levelled


def with_gain(sound: NDArray[np.float32], rate: int, gain: float) -> Levelled:
    """Sound [C,S] with ``gain`` dB, rounded to two decimals, and never above -1 dBTP."""
    gain = round(gain, 2)  # as it stands in the tag of a file
    return Levelled(*limited(sound * np.float32(10 ** (gain / 20)), rate), gain)
