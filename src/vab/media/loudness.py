"""Loudness and true peak (EBU R128, ITU-R BS.1770), and sound brought to a target, by FFmpeg's filters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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
_CERTAIN = 0.05  # dB, ten times what the meter's decimals leave open
_MAX_ROUNDS = 8
# Of the true peak, which the meter finds by resampling:
_METER_RATE = 192_000  # Hz
_DECIMALS = 3
_BLOCK = 32  # samples whose values at the meter's rate are one row of a product
_ROWS = 1024  # of a product: a few MB
_REACH = 16  # samples on either side that its filter reaches
_ROUNDING = 2e-5  # of a peak of about 1: 64 sums in float32


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
    return Level(_loudness(sound, rate), _true_peak(sound, rate))


def _loudness(sound: NDArray[np.float32], rate: int) -> float | None:
    """Integrated loudness of a sound [C,S] in LUFS, at its last whole tenth of a second."""
    tenths = sound.shape[1] // (rate // 10)
    peak = _peak(sound)
    if not peak or tenths < 10 * BLOCK_SECONDS:
        return None
    loudness = _told(sound, rate, peak, "")[tenths - 1]["lavfi.r128.I"]
    loudness = float(loudness) + _decibels(peak)
    return loudness if loudness > GATE else None


def _true_peak(sound: NDArray[np.float32], rate: int) -> float | None:
    """True peak of a sound [C,S] in dBTP."""
    peak = _peak(sound)
    if not peak:
        return None
    highest = interpolated_peak(sound * np.float32(1 / peak), rate)
    if highest is None:
        highest = float(_told(sound, rate, peak, "peak=true:")[-1]["lavfi.r128.true_peak"])
    return _decibels(highest) + _decibels(peak)


def _told(sound: NDArray[np.float32], rate: int, peak: float, options: str) -> list[dict[str, str]]:
    """What the meter says of a sound [C,S], every tenth of a second."""
    # It gives three decimals of the peak's amplitude: measure at full scale, whatever the level. Silence
    # behind the end brings the last peaks to light.
    chain = (
        ("volume", f"{1 / peak:.9g}"),
        ("apad", f"pad_len={2 * (rate // 10)}"),
        ("ebur128", f"{options}metadata=1:framelog=quiet"),
    )
    said = [frame.metadata for frame in filter_frames(sound, rate, *chain)]
    return [values for values in said if "lavfi.r128.I" in values]


def _peak(sound: NDArray[np.float32]) -> float:
    """The largest absolute sample."""
    return max(float(sound.max(initial=0.0)), -float(sound.min(initial=0.0)))


def _decibels(amplitude: float) -> float:
    return 20 * float(np.log10(amplitude))


def limited(sound: NDArray[np.float32], rate: int) -> tuple[NDArray[np.float32], Level]:
    """Sound [C,S] with its peaks lowered to at most -1 dBTP, and its level; as it is if none is higher."""
    level = measure(sound, rate)
    if level.true_peak is None or level.true_peak <= MAX_TRUE_PEAK:
        return sound, level
    return _lowered(sound, rate)


def _lowered(sound: NDArray[np.float32], rate: int) -> tuple[NDArray[np.float32], Level]:
    """``limited`` for a sound that has a higher peak."""
    # FFmpeg's limiter looks 5 ms ahead, and changes no sample far from a peak. It knows samples only, and the
    # true peak lies between them: lower the samples' limit by what the meter finds too much.
    goal = MAX_TRUE_PEAK - _HEADROOM
    threshold = goal
    excess = 0.0
    for _ in range(_MAX_ROUNDS):
        threshold -= excess
        limit = max(0.0625, 10 ** (threshold / 20))  # its lowest
        result = filtered(sound, rate, ("alimiter", f"limit={limit:.6f}:{_LIMITER}"))
        highest = _true_peak(result, rate)
        excess = (highest or goal) - goal
        if excess <= _HEADROOM / 2:
            return result, Level(_loudness(result, rate), highest)

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
    levelled = with_gain(sound, rate, gain, own.true_peak)
    for _ in range(_MAX_ROUNDS):
        if target is None or own.loudness is None:
            break
        better = min(most, levelled.gain + target - (levelled.level.loudness or GATE))
        if abs(better - levelled.gain) <= _TOLERANCE:
            break
        levelled = with_gain(sound, rate, better, own.true_peak)
    return levelled


def with_gain(sound: NDArray[np.float32], rate: int, gain: float, highest: float | None = None) -> Levelled:
    """Sound [C,S] with ``gain`` dB, rounded to two decimals, and never above -1 dBTP.

    ``highest``: the true peak of the sound, if it is known.
    """
    gain = round(gain, 2)  # as it stands in the tag of a file
    louder = sound * np.float32(10 ** (gain / 20))
    # What is above the limit for certain need not be measured again.
    above = highest is not None and highest + gain > MAX_TRUE_PEAK + _CERTAIN
    return Levelled(*(_lowered if above else limited)(louder, rate), gain)


def interpolated_peak(sound: NDArray[np.float32], rate: int) -> float | None:
    """The largest absolute value of a sound [C,S] between its samples, as FFmpeg's meter rounds it.

    The sound's largest sample is 1. The meter resamples to 192 kHz; its answer to an impulse tells with which
    filter. Here the same sums are one product of matrices in float32, in a quarter of the time: all decimals
    agree unless a sum lies next to the border between two of them. None: there, and for a rate that does not
    divide the meter's own, the meter itself must be asked.
    """
    if _METER_RATE % rate:
        return None
    taps = _interpolation(rate)
    highest = 0.0
    for channel in sound:
        # 1. The channel with its mirror image before it, as the resampler begins, and silence behind it, cut
        # into overlapping rows [n,reach + block + reach].
        num_rows = len(channel) // _BLOCK + 2
        padded = np.zeros(num_rows * _BLOCK + len(taps), dtype=np.float32)
        padded[_REACH : _REACH + len(channel)] = channel
        padded[:_REACH] = padded[2 * _REACH : _REACH : -1]
        rows = np.lib.stride_tricks.sliding_window_view(padded, len(taps))[: num_rows * _BLOCK : _BLOCK]
        # 2. All that the meter sees: [n,..] @ [..,block * meter rate / rate].
        for begin in range(0, num_rows, _ROWS):
            values = rows[begin : begin + _ROWS] @ taps
            highest = max(highest, float(values.max()), -float(values.min()))
    low, high = (round(highest + error, _DECIMALS) for error in (-_ROUNDING, _ROUNDING))
    return low if low == high else None


@cache
def _interpolation(rate: int) -> NDArray[np.float32]:
    """The meter's filter for rows of samples: [reach + block + reach,block * meter rate / rate]."""
    # 1. Its answer to an impulse, from one end of its reach to the other.
    factor = _METER_RATE // rate
    impulse = np.zeros((1, 4 * _REACH + 1), dtype=np.float32)
    impulse[0, 2 * _REACH] = 1.0
    chain = (("aformat", "sample_fmts=dbl"), ("aresample", str(_METER_RATE)))
    whole = np.concatenate([frame.to_ndarray()[0] for frame in filter_frames(impulse, rate, *chain)])
    answer = whole[_REACH * factor : 3 * _REACH * factor + 1]

    # 2. To the value at place p of a row the sample at place k contributes answer(p - factor (k - reach)).
    starts = np.arange(-_REACH, _BLOCK + _REACH) * factor
    place = np.arange(_BLOCK * factor) - starts[:, None] + _REACH * factor
    inside = (place >= 0) & (place < len(answer))
    return np.where(inside, answer[place.clip(0, len(answer) - 1)], 0.0).astype(np.float32)
