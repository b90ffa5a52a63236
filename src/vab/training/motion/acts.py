"""What things do when they sound: paths of sprites over time, tied to a sound's onsets and level.

A strike is fastest just before it is heard and stands still after; what recoils moves after it; a mouth opens
before and as far as it is loud; what is rubbed is as loud as it is fast. A path is sampled at ``RATE`` on the
clock of the sound, so its moments are exact whatever the frame rate of the film it is rendered into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE

RATE = 200  # samples of a path a second
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """What is heard: onsets at ``times`` [n] seconds of ``strengths`` [n] 0..1, ``level`` [T] in dB."""

    times: Floats
    strengths: Floats
    level: Floats

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.level) / FRAME_RATE

    @property
    def clock(self) -> Floats:
        """Seconds of each sample of a path [N]."""
        return np.arange(round(self.seconds * RATE)) / RATE

    def loudness(self, lead: float, smoothing: float) -> Floats:
        """0..1 [N], ``lead`` seconds before the sound, smoothed by a Gaussian of so many seconds."""
        middles = (np.arange(len(self.level)) + 0.5) / FRAME_RATE
        share = np.interp(self.clock + lead, middles, (self.level / 35 + 1).clip(0, 1))
        reach = max(1, round(3 * smoothing * RATE))
        bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (smoothing * RATE)) ** 2)
        return np.convolve(np.pad(share, reach, mode="edge"), bell / bell.sum(), mode="valid")


@dataclass
class Path:
    """Where a sprite is, relative to its place, and its shape, each [N]."""

    x: Floats  # pixels to the right
    y: Floats  # pixels downwards
    turn: Floats  # radians
    wide: Floats  # factors of its size
    high: Floats
    opacity: Floats
    wild: bool = field(default=False)  # it flickers: its texture is never the same

    @classmethod
    def still(cls, heard: Heard) -> Path:
        """A sprite that does not move."""
        length = len(heard.clock)
        zeros, ones = np.zeros((3, length)), np.ones((3, length))
        return cls(*zeros, *ones)


Act = Callable[[np.random.Generator, Heard], Path]


def stroke_heights(random: np.random.Generator, heard: Heard) -> Floats:
    """Heights 0..1 [N] of what strikes: 0 at each onset, lifted after it, held, and swung down before it."""
    clock = heard.clock
    swing, lift = random.uniform(0.06, 0.3), random.uniform(0.12, 0.6)
    power, wind_up = random.uniform(1.4, 3.2), random.choice([0.0, 0.0, 0.25])
    rest = random.uniform(0.35, 1.0)
    heights = np.full(len(clock), rest)
    times = np.concatenate([[-np.inf], heard.times, [np.inf]])
    for number in range(len(times) - 1):
        begin, end = times[number], times[number + 1]
        inside = (clock >= begin) & (clock < end)
        gap = end - begin
        strength = heard.strengths[number] if number < len(heard.times) else 0.5
        top = rest if number == len(heard.times) else min(1.0, gap / 0.3) * (0.4 + 0.6 * strength)
        up, down = min(lift, 0.5 * gap), min(swing * random.uniform(0.8, 1.25), 0.45 * gap)
        now = clock[inside]
        height = np.full(len(now), top)
        if np.isfinite(begin):
            raised = ((now - begin) / up).clip(0, 1)
            height = top * raised**2 * (3 - 2 * raised)
        if np.isfinite(end):
            before = ((now - (end - 2 * down)) / down).clip(0, 1)
            height = height * (1 + wind_up * before)
            fallen = ((now - (end - down)) / down).clip(0, 1)
            height = height * (1 - fallen**power)
        heights[inside] = height
    return heights


def recoils(random: np.random.Generator, heard: Heard, seconds: float) -> Floats:
    """0..1 [N]: a jerk after each onset, farthest after ``seconds``, that dies away."""
    result = np.zeros(len(heard.clock))
    for time, strength in zip(heard.times, heard.strengths, strict=True):
        since = ((heard.clock - time) / seconds).clip(0)
        result += (0.4 + 0.6 * strength) * since * np.exp(1 - since)
    return result.clip(0, 1.5)


def direction(random: np.random.Generator) -> tuple[float, float]:
    """(x, y) of the way to what is struck: downwards more often than not."""
    angle = random.normal(0, 0.5) if random.random() < 0.65 else random.uniform(-np.pi, np.pi)
    return float(np.sin(angle)), float(np.cos(angle))


def strike(random: np.random.Generator, heard: Heard) -> Path:
    """A tool that strikes, or an arm that swings about a shoulder."""
    path = Path.still(heard)
    height = stroke_heights(random, heard) * random.uniform(4, 30)
    x, y = direction(random)
    path.x, path.y = -x * height, -y * height
    if random.random() < 0.4:
        path.turn = height * random.choice([-1, 1]) * random.uniform(0.01, 0.04)
    return path


def bounce(random: np.random.Generator, heard: Heard) -> Path:
    """A ball under gravity that touches the ground at each onset."""
    path = Path.still(heard)
    gravity = random.uniform(30, 160)
    edges = np.concatenate([[heard.times[0] - 0.5 if len(heard.times) else 0], heard.times, [heard.seconds]])
    for begin, end in pairwise(edges):
        inside = (heard.clock >= begin) & (heard.clock < end)
        share = (heard.clock[inside] - begin) / max(end - begin, 1e-3)
        path.y[inside] = -min(45.0, gravity * (end - begin) ** 2) * 4 * share * (1 - share)
    path.x = random.uniform(-8, 8) * heard.clock
    return path


def recoil(random: np.random.Generator, heard: Heard) -> Path:
    """What jerks as it sounds: a gun, a barking dog, a struck cymbal that swings on."""
    path = Path.still(heard)
    jerk = recoils(random, heard, random.uniform(0.025, 0.13)) * random.uniform(2, 10)
    if random.random() < 0.4:  # it draws back before
        jerk -= 0.4 * recoils(random, shifted(heard, -random.uniform(0.1, 0.25)), 0.08) * jerk.max()
    if random.random() < 0.3:
        rate = random.uniform(3, 8)
        jerk *= np.cos(2 * np.pi * rate * heard.clock + random.uniform(0, 6))
    x, y = direction(random)
    path.x, path.y = x * jerk, y * jerk * random.choice([-1, 1])
    path.turn = jerk * random.uniform(-0.04, 0.04)
    return path


def drop(random: np.random.Generator, heard: Heard) -> Path:
    """Things that fall and land at each onset, one after another."""
    path = Path.still(heard)
    fall, stay, height = random.uniform(0.15, 0.5), random.uniform(0.05, 0.5), random.uniform(15, 60)
    path.opacity[:] = 0.0
    for time in heard.times:
        inside = (heard.clock >= time - fall) & (heard.clock < time + stay)
        path.opacity[inside] = 1.0
        path.y[inside] = -height * (1 - ((heard.clock[inside] - time + fall) / fall).clip(0, 1) ** 2)
    return path


def opening(random: np.random.Generator, heard: Heard) -> Path:
    """A mouth, a beak, a muzzle: it opens a little before, and as far as it is loud."""
    path = Path.still(heard)
    share = heard.loudness(random.uniform(0.0, 0.12), random.uniform(0.02, 0.08))
    path.high = 0.25 + share * random.uniform(0.6, 2.0)
    path.wide = 1 + share * random.uniform(-0.2, 0.4)
    path.y = share * random.uniform(-6, 6)
    return path


def raised(random: np.random.Generator, heard: Heard) -> Path:
    """A body, a neck, a bellows: it stretches and leans with what it sounds."""
    path = Path.still(heard)
    share = heard.loudness(random.uniform(0.0, 0.2), random.uniform(0.05, 0.25))
    x, y = direction(random)
    reach = random.uniform(2, 15) * random.choice([-1, 1])
    path.x, path.y = x * share * reach, y * share * reach
    path.turn = share * random.uniform(-0.3, 0.3)
    return path


def rub(random: np.random.Generator, heard: Heard) -> Path:
    """What is drawn over a surface, a bow, a file: as loud as it is fast; it turns where it is quiet."""
    path = Path.still(heard)
    share = heard.loudness(random.uniform(-0.02, 0.06), random.uniform(0.02, 0.06))
    quiet = np.flatnonzero((share[1:-1] < share[:-2]) & (share[1:-1] <= share[2:])) + 1
    sign = np.ones(len(share))
    last = 0
    for place in quiet.tolist():
        if place - last > 0.12 * RATE:
            sign[place:] *= -1
            last = place
    way = np.cumsum(sign * share ** random.uniform(1, 2)) / RATE * random.uniform(20, 90)
    way -= np.linspace(way[0], way[-1], len(way)) if random.random() < 0.7 else 0
    x, y = direction(random)
    path.x, path.y = y * way, x * way  # to and fro more than up and down
    return path


def shake(random: np.random.Generator, heard: Heard) -> Path:
    """What is shaken: faster or wider as it is louder."""
    path = Path.still(heard)
    share = heard.loudness(random.uniform(-0.02, 0.08), random.uniform(0.05, 0.15))
    phase = 2 * np.pi * np.cumsum(random.uniform(2, 7) * (0.7 + 0.3 * share)) / RATE
    way = share * np.sin(phase) * random.uniform(2, 12)
    x, y = direction(random)
    path.x, path.y = x * way, y * way
    path.turn = way * random.uniform(-0.03, 0.03)
    return path


def turning(random: np.random.Generator, heard: Heard) -> Path:
    """What goes to and fro and sounds where it turns, or half-way: a saw, a shaker, a step."""
    path = Path.still(heard)
    halves = np.zeros(len(heard.clock))
    longest = random.uniform(0.25, 0.6)
    times = heard.times
    for number, time in enumerate(times):
        begin = max(time - longest, times[number - 1] if number else -np.inf)
        share = ((heard.clock - begin) / max(time - begin, 1e-3)).clip(0, 1)
        halves += share**2 * (3 - 2 * share)
    way = np.cos(np.pi * halves + random.choice([0, 0, np.pi / 2])) * random.uniform(3, 18)
    x, y = direction(random)
    path.x, path.y = x * way, y * way
    return path


def walk(random: np.random.Generator, heard: Heard) -> Path:
    """Somebody who walks by, lowest at each step."""
    path = Path.still(heard)
    steps = np.interp(heard.clock, heard.times, np.arange(len(heard.times))) if len(heard.times) else 0.0
    path.y = -np.abs(np.sin(np.pi * (steps + np.zeros(len(heard.clock))))) * random.uniform(1, 5)
    path.x = (heard.clock - heard.seconds / 2) * random.uniform(-12, 12)
    return path


def glow(random: np.random.Generator, heard: Heard) -> Path:
    """A flash, a spark, a splash at each onset, that fades."""
    path = Path.still(heard)
    fade, light = random.uniform(0.05, 0.5), np.zeros(len(heard.clock))
    for time, strength in zip(heard.times, heard.strengths, strict=True):
        since = heard.clock - time
        light = np.maximum(light, (since >= 0) * (0.3 + 0.7 * strength) * np.exp(-since.clip(0) / fade))
    path.opacity = light
    path.wide = path.high = 0.6 + 0.8 * light
    path.wild = random.random() < 0.3
    return path


def seethe(random: np.random.Generator, heard: Heard) -> Path:
    """Water, fire, a crowd: it seethes as it is loud."""
    path = Path.still(heard)
    share = heard.loudness(random.uniform(0, 0.05), random.uniform(0.03, 0.2))
    path.opacity = 0.1 + 0.9 * share
    path.wild = True
    return path


def drift(random: np.random.Generator, heard: Heard) -> Path:
    """What moves without a sound, smoothly."""
    path = Path.still(heard)
    knots = np.linspace(0, heard.seconds, random.integers(3, 12))
    size = random.uniform(1, 15)
    path.x = _smooth(heard.clock, knots, random.normal(0, size, len(knots)))
    path.y = _smooth(heard.clock, knots, random.normal(0, size * 0.6, len(knots)))
    path.turn = _smooth(heard.clock, knots, random.normal(0, 0.1, len(knots)))
    return path


def passing(random: np.random.Generator, heard: Heard) -> Path:
    """What passes through the picture."""
    path = Path.still(heard)
    path.x = (heard.clock - random.uniform(0, heard.seconds)) * random.uniform(-50, 50)
    return path


def _smooth(clock: Floats, knots: Floats, values: Floats) -> Floats:
    """Values at knots [n], along cosines in between."""
    number = np.searchsorted(knots, clock, side="right").clip(1, len(knots) - 1)
    share = ((clock - knots[number - 1]) / (knots[number] - knots[number - 1])).clip(0, 1)
    share = (1 - np.cos(np.pi * share)) / 2
    return values[number - 1] * (1 - share) + values[number] * share


def shifted(heard: Heard, seconds: float) -> Heard:
    """The same events, later by so much; the level stays."""
    return Heard(heard.times + seconds, heard.strengths, heard.level)


def seen(random: np.random.Generator, heard: Heard) -> Heard:
    """What of the sound is to be seen, when: a little before it or after, not all of it, and more besides."""
    # 1. The offset of a film's sound, and of each event.
    offset = random.normal(-0.02, 0.03)
    times = heard.times + offset + random.normal(0, 0.015, len(heard.times))
    strengths = heard.strengths.copy()
    # 2. Some are out of sight; some strokes miss.
    kept = random.random(len(times)) >= random.uniform(0, 0.3)
    times, strengths = times[kept], strengths[kept]
    missed = random.uniform(0, heard.seconds, random.poisson(random.uniform(0, 0.6) * heard.seconds))
    times = np.concatenate([times, missed if random.random() < 0.5 else missed[:0]])
    strengths = np.concatenate([strengths, random.uniform(0.2, 1, len(times) - len(strengths))])
    # 3. What follows at once belongs to what was before.
    order = np.argsort(times)
    times, strengths = times[order], strengths[order]
    apart = np.diff(times, prepend=-np.inf) > 0.09
    middles = (np.arange(len(heard.level)) + 0.5) / FRAME_RATE
    level = np.interp(middles - offset, middles, heard.level)
    return Heard(times[apart], strengths[apart], level)


# How often each is acted, where there are onsets and where it is level alone that one could see.
SOUNDING: dict[Act, float] = {strike: 4, recoil: 2.5, bounce: 1, drop: 1, opening: 3, raised: 1.5, rub: 2}
SOUNDING |= {shake: 1, turning: 1.5, walk: 0.7, glow: 0.8, seethe: 0.7}
SILENT: tuple[Act, ...] = (drift, drift, passing)


def pick(random: np.random.Generator) -> Act:
    """One of the sounding acts."""
    acts, weights = list(SOUNDING), np.array(list(SOUNDING.values()))
    return acts[random.choice(len(acts), p=weights / weights.sum())]
