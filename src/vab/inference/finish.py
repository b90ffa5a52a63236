"""From the model's own sound to one that can be used: loudness, rate, channels, the original with it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vab.config import LOUDNESS, SAMPLE_RATE, check_value
from vab.errors import SettingError
from vab.inference.splice import FADE_SECONDS, Original, Span, crossfade_into, slice_audio
from vab.media.filters import resampled
from vab.media.loudness import (
    MAX_GAIN,
    MAX_LIMITING,
    MAX_TRUE_PEAK,
    Level,
    Levelled,
    limited,
    measure,
    to_loudness,
    with_gain,
)

END_FADE_SECONDS = 0.005  # at both ends of new sound
RAW_PEAK_TOLD = 6.0  # dBTP of the model's own sound, from which on it is likely to be distorted
LEVELS_DIFFER = 6.0  # LU between kept and new sound that is told
LOUDEST = -14.0  # LUFS, about as loud as the model's own sounds can be made
TARGET_MISSED = 0.5  # LU that are told
CUT_OFF = 0.5  # dB of kept sound above full scale that are told


@dataclass(frozen=True)
class Finish:
    """How a sound is finished. ``SettingError`` for values out of range."""

    loudness: float | None = LOUDNESS  # LUFS, of new sound; None: the model's own level
    rate: int | None = None  # Hz; None: 16 kHz, beside the original its own
    channels: int | None = None  # all alike; None: one, beside the original as many as it has
    mix: float | None = None  # dB of new sound against the original, which lies under it; None: it does not

    def __post_init__(self) -> None:
        ranges = {"loudness": (-60.0, 0.0), "rate": (8000, 192_000), "channels": (1, 8), "mix": (-60.0, 60.0)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            check_value(name, value, int | None if isinstance(low, int) else float | None)
            if value is not None and not low <= value <= high:
                raise SettingError(f"{name} goes from {low:g} to {high:g}, not {value:g}")


@dataclass(frozen=True)
class Finished:
    """A finished sound, and what became of the model's own."""

    waveform: NDArray[np.float32]  # [S], or [C,S] of several channels
    rate: int
    level: Level  # the model's own
    gain: float  # dB that the new sound got, before the limiter
    notes: tuple[str, ...] = ()  # sentences for the user


def finish_sound(
    new: NDArray[np.float32],
    seconds: float,
    how: Finish,
    original: Original | None = None,
    keep: Sequence[Span] = (),
    gain: float | None = None,
) -> Finished:
    """Finish the model's own sound ``new`` [S] at 16 kHz as round(seconds * rate) samples.

    It fades in and out over 5 ms at its ends, and is brought to the loudness, with a true peak of -1 dBTP at
    most. ``keep``: spans in seconds, in order, in which the original stands sample for sample, with a
    cross-fade of 20 ms outside of them. With ``how.mix`` the original lies under (or over) all of it, as it
    is unless both together would pass -1 dBTP: then the limiter lowers the peaks of the sum. ``gain``: dB
    that the new sound gets, in place of those that bring it to its loudness.
    """
    # 1. Rate and channels: beside the original those that it has.
    beside = original if keep or how.mix is not None else None
    rate = how.rate or (beside.rate if beside else SAMPLE_RATE)
    num_channels = how.channels or (beside.num_channels if beside else 1)
    length = len(new) if rate == SAMPLE_RATE else round(seconds * rate)
    notes: list[str] = []

    # 2. The new sound: mono [S] -> [C,S] at the rate, faded at its ends.
    level = measure(new[_outside(_samples(keep, len(new), SAMPLE_RATE), len(new))], SAMPLE_RATE)
    if (level.true_peak or 0.0) > RAW_PEAK_TOLD:
        notes.append(
            f"the model's own sound peaks at {level.true_peak:+.1f} dBTP, far above full scale: "
            "it may be distorted"
        )
    spans = _samples(keep, length, rate)
    sound = np.repeat(resampled(new[None], SAMPLE_RATE, rate, length), num_channels, axis=0)
    _fade_ends(sound, rate, spans)

    # 3. The original, and how loud it is where it will be heard.
    own = beside.channels(length / rate, rate, num_channels) if beside else sound
    heard = [own[:, a:b] for a, b in spans] if how.mix is None else [own]
    own_loudness = measure(np.concatenate(heard, axis=1), rate).loudness if beside and heard else None

    # 4. Loudness, of what will be heard of it: its parts between the spans in a row.
    target = how.loudness
    if how.mix is not None and own_loudness is not None:
        target = own_loudness + how.mix
    elif how.mix is not None:
        notes.append(
            "its own sound is silent or too short to measure: the new one is as loud as it would be alone"
            if beside
            else "it has no sound of its own to mix with: the new one stands alone"
        )
    outside = _outside(spans, length) if spans else slice(None)  # all of it without a copy
    heard_of_it = sound[:, outside]
    levelled = to_loudness(heard_of_it, rate, target) if gain is None else with_gain(heard_of_it, rate, gain)
    sound[:, outside] = levelled.waveform
    notes += _told(levelled, target, own_loudness if how.mix is None else None)

    # 5. Together: the sum of both, then the original alone where it is kept.
    if how.mix is not None and beside is not None:
        mixed = own + sound
        sound, _ = limited(mixed, rate)
        if sound is not mixed:
            notes.append(
                f"together the two sounds exceed {MAX_TRUE_PEAK:g} dBTP: the limiter lowered their peaks, "
                "the original's too"
            )
    above = 20 * math.log10(max([1.0, *(np.abs(own[:, a:b]).max() for a, b in spans)]))
    if above > CUT_OFF:
        notes.append(f"the kept sound peaks {above:.1f} dB above full scale: a file cuts it off there")
    for start, stop in spans:
        crossfade_into(sound, partial(slice_audio, own), start, stop, round(FADE_SECONDS * rate))
    return Finished(sound[0] if num_channels == 1 else sound, rate, level, levelled.gain, tuple(notes))


def _told(levelled: Levelled, target: float | None, kept: float | None) -> Iterator[str]:
    """What is worth telling about the loudness of new sound; ``kept``: that of the sound it stands beside."""
    loudness = levelled.level.loudness
    if loudness is None:
        return
    if target is not None and loudness < target - TARGET_MISSED:
        limit = f"it gets at most {MAX_GAIN:g} dB of gain"
        if levelled.gain < MAX_GAIN:
            limit = f"its peaks are lowered by at most {MAX_LIMITING:g} dB"
        yield f"the new sound reaches {loudness:.1f} LUFS, not {target:.1f}: {limit}"
    if kept is not None and abs(kept - loudness) > LEVELS_DIFFER:
        # No advice that cannot be taken.
        advice = f"; a loudness of {kept:.0f} would bring them together" if -60 <= kept <= LOUDEST else ""
        yield f"the kept sound is at {kept:.1f} LUFS, the new one at {loudness:.1f}{advice}"


def _samples(keep: Sequence[Span], length: int, rate: int) -> list[tuple[int, int]]:
    """Spans in seconds as samples (from, to) of ``length``, without empty ones."""
    spans = [(round(start * rate), round(min(stop, length / rate) * rate)) for start, stop in keep]
    return [(first, last) for first, last in spans if first < last]


def _outside(spans: Sequence[tuple[int, int]], length: int) -> NDArray[np.bool_]:
    """True [S] at the samples that lie in none of the spans."""
    outside = np.ones(length, dtype=bool)
    for first, last in spans:
        outside[first:last] = False
    return outside


def _fade_ends(sound: NDArray[np.float32], rate: int, spans: Sequence[tuple[int, int]]) -> None:
    """Fade [C,S] in and out, unless it is the original that stands at the end."""
    length = sound.shape[1]
    samples = min(round(END_FADE_SECONDS * rate), length // 2)
    ramp = np.arange(samples, dtype=np.float32) / np.float32(max(1, samples))
    if all(first > 0 for first, _ in spans):
        sound[:, :samples] *= ramp
    if all(last < length for _, last in spans):
        sound[:, length - samples :] *= ramp[::-1]
