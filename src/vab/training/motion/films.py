"""Rendered films as training takes them: the motion that is seen and the sound that is heard."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, SAMPLE_RATE, audio_frames
from vab.timing.curve import LEVEL_FLOOR, bumps, events, level_units
from vab.timing.motion import frames_of
from vab.timing.sound import curve_of, level_db
from vab.training.motion.acts import Heard
from vab.training.motion.render import Picture, render

SECONDS = 5.0  # of a film
LEAD_SECONDS = 0.01  # of a hit before its onset
_LEAST = 0.08  # strength of an onset of a recording that something is to be seen of


def film(
    seed: int,
    recordings: Sequence[NDArray[np.float32]],
    photos: Sequence[Picture],
    hits: Sequence[NDArray[np.float32]] = (),
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """The motion [T,P,C] of one rendered film, at 50 Hz and not scaled, and its onset and level [2,T]."""
    random = np.random.default_rng(seed)
    if random.random() >= 0.4:
        heard = recorded(random, recordings)
    else:
        heard = invented(random)
        if len(hits) and random.random() < 0.5:
            heard = struck(random, heard, hits[int(random.integers(len(hits)))])
    rendered = render(random, heard, photos)
    motion = frames_of(zip(rendered.seconds, rendered.frames, strict=True))
    frames = audio_frames(SECONDS)
    onset = bumps(heard.times, frames, heard.strengths**0.5)
    return motion.resampled(frames).astype(np.float16), np.stack([onset, level_units(heard.level)]).astype(
        np.float16
    )


def recorded(random: np.random.Generator, recordings: Sequence[NDArray[np.float32]]) -> Heard:
    """What is heard in one to four pieces of recordings, some with silence between them."""
    length = round(SECONDS * SAMPLE_RATE)
    sound = random.standard_normal(length).astype(np.float32) * 1e-4
    at = int(random.integers(length // 2)) if random.random() < 1 / 3 else 0
    for _ in range(random.integers(1, 5)):
        piece = recordings[int(random.integers(len(recordings)))]
        piece = piece[random.integers(max(1, len(piece) - SAMPLE_RATE)) :] if random.random() < 0.5 else piece
        piece = piece[: length - at] * 10 ** (random.uniform(-12, 0) / 20) / max(np.abs(piece).max(), 1e-3)
        sound[at : at + len(piece)] += piece
        at += len(piece) + int(random.choice([0, random.exponential(0.5) * SAMPLE_RATE]))
        if at > length - SAMPLE_RATE // 4:
            break
    curve = curve_of(sound)
    assert curve.onset is not None
    times, strengths = events(curve.onset)
    kept = strengths > _LEAST
    return Heard(times[kept], strengths[kept], level_db(sound).astype(np.float64))


def invented(random: np.random.Generator) -> Heard:
    """Single events, regular or not, which ring on for a while over a quieter ground."""
    # 1. When: a rhythm with rests, or at any time.
    if random.random() < 0.6:
        beat = np.exp(random.uniform(np.log(0.18), np.log(1.6)))
        times = np.arange(random.uniform(0, beat), SECONDS, beat)
        times = times + random.normal(0, random.choice([0, 0.02, 0.1]) * beat, len(times))
        times = times[random.random(len(times)) > random.uniform(0, 0.4)]
    else:
        times = random.uniform(0, SECONDS, 1 + random.poisson(random.uniform(0.2, 2.5) * SECONDS))
    times = np.sort(times[(times > 0) & (times < SECONDS)])
    times = times[np.diff(times, prepend=-1) > 0.12]

    # 2. How loud: a fall in dB per second from each, and a ground.
    strengths = random.uniform(0.4, 1, len(times)) ** random.uniform(0.3, 1)
    fade = np.exp(random.uniform(np.log(30), np.log(300)))
    ground = random.uniform(-45, -20)
    clock = (np.arange(audio_frames(SECONDS)) + 0.5) / FRAME_RATE
    level = np.full(len(clock), ground)
    for time, strength in zip(times, strengths, strict=True):
        since = clock - time
        level = np.maximum(
            level, np.where(since >= -0.01, 20 * np.log10(strength) - fade * since, LEVEL_FLOOR)
        )
    level = level + random.normal(0, 1.0, len(level))
    return Heard(times, strengths, (level - level.max()).clip(LEVEL_FLOOR, 0))


def struck(random: np.random.Generator, heard: Heard, hit: NDArray[np.float32]) -> Heard:
    """The same events, each the sound of one thing that is hit, over a quieter ground.

    ``hit`` is a waveform [S] that begins ``LEAD_SECONDS`` before its onset.
    """
    sound = np.zeros(round(heard.seconds * SAMPLE_RATE), np.float32)
    hit = hit / max(np.abs(hit).max(), 1e-3)
    for time, strength in zip(heard.times, heard.strengths, strict=True):
        start = max(0, round((time - LEAD_SECONDS) * SAMPLE_RATE))
        piece = hit[: len(sound) - start]
        sound[start : start + len(piece)] += strength * piece
    level = np.maximum(level_db(sound), random.uniform(-45, -20)) + random.normal(0, 1.0, len(heard.level))
    return Heard(heard.times, heard.strengths, (level - level.max()).clip(LEVEL_FLOOR, 0))
