"""The timing curve: when something happens and how loud it is, for each audio frame, as the model takes it.

Two channels at 50 Hz, each of which may be unknown. Onset: a bump for each event. Level: the loudness over
time, relative to the loudest part. Where a curve comes from (a sound, a film's motion, a hand that taps) is
no concern of this module.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vab.config import FRAME_RATE
from vab.errors import VABError
from vab.utils.files import write_whole
from vab.utils.provenance import sha256
from vab.utils.tables import ListError, read_table

BUMP_SECONDS = 0.03  # standard deviation of an event's bump
LEVEL_FLOOR = -45.0  # dB relative to the loudest part: what is quieter counts as this
LEVEL_UNITS = 1.5  # the loudest part in the curve's own units; the floor is the negative
LONGEST_SECONDS = 86_400.0  # of a file of times
NUM_CHANNELS = 4  # onset, level, and of each whether it is known
COLUMNS = ("seconds", "onset", "level_db")
MIN_STRENGTH = 0.02  # of an event that is written: less is the foot of another's bump
FALL = 120.0  # dB a second by which it gets quieter after an event of which no level is known


class TimingError(VABError, ValueError):
    """A timing curve that cannot be used; the message is one line: its name and the reason."""


@dataclass(frozen=True)
class TimingCurve:
    """Onset and level at 50 Hz, float32 [T] each; None is unknown. ``TimingError`` if neither is known.

    ``onset`` is 0..1: Gaussian bumps (standard deviation 30 ms) as high as the events are strong, added and
    clipped at 1. ``level`` is -1.5..1.5: dB relative to the loudest part, -45 and less to 0.
    """

    onset: NDArray[np.float32] | None = None
    level: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        limits = {"onset": (0.0, 1.0), "level": (-LEVEL_UNITS, LEVEL_UNITS)}
        known = {}
        for name, (low, high) in limits.items():
            if (given := getattr(self, name)) is None:
                continue
            values = np.asarray(given, np.float32)
            if values.ndim != 1 or not len(values):
                raise TimingError(f"the {name} of a timing curve is [T], not {list(values.shape)}")
            if not np.isfinite(values).all():
                raise TimingError(f"the {name} of a timing curve holds values that are not numbers")
            known[name] = values.clip(low, high)
            object.__setattr__(self, name, known[name])
        if not known:
            raise TimingError("a timing curve needs onsets or levels; without both there is no curve")
        if len({len(values) for values in known.values()}) == 2:
            lengths = " and ".join(f"{len(values)} of {name}" for name, values in known.items())
            raise TimingError(f"a timing curve has one length, not {lengths}")

    @classmethod
    def from_events(
        cls,
        times: ArrayLike,
        num_frames: int,
        strengths: ArrayLike | None = None,
        level: ArrayLike | None = None,
    ) -> Self:
        """The curve [T] of events at ``times`` [n] in seconds; those outside of it leave their foot at most.

        ``strengths`` [n], 0..1, default 1. ``level`` [T] in the curve's own units; None is unknown.
        """
        values = None if level is None else np.asarray(level, np.float32)
        return cls(bumps(times, num_frames, strengths), values)

    @property
    def num_frames(self) -> int:
        """T, the number of audio frames."""
        return len(self._known)

    @property
    def _known(self) -> NDArray[np.float32]:
        known = self.level if self.onset is None else self.onset
        assert known is not None
        return known

    @property
    def fingerprint(self) -> str:
        """16 hex digits: equal for equal curves."""
        return sha256(self.channels().tobytes())[:16]

    def with_level(self) -> Self:
        """With the level that events alone suggest: 0 dB at one of strength 1, then falling by ``FALL``.

        A model that is told no level fills the time between the events (docs/decisions/timing.md). A curve
        whose level is known, or that has no event, stays as it is.
        """
        if self.onset is None or self.level is not None:
            return self
        level = np.full(self.num_frames, LEVEL_FLOOR)
        reach = math.ceil(-LEVEL_FLOOR / FALL * FRAME_RATE) + 2
        times, strengths = events(self.onset)
        for time, strength in zip(times, strengths, strict=True):
            first = max(0, math.floor(time * FRAME_RATE - 0.5))  # the frame in which it sets in
            part = level[first : first + reach]
            since = (np.arange(first, first + len(part)) + 0.5) / FRAME_RATE - time
            np.maximum(part, 20 * math.log10(strength) - FALL * since.clip(0), out=part)
        return type(self)(self.onset, level_units(level)) if len(times) else self

    def cut(self, start: int, stop: int) -> Self:
        """The frames ``start`` to ``stop``, as far as there are; one of them must be there."""
        parts = (None if values is None else values[start:stop] for values in (self.onset, self.level))
        return type(self)(*parts)

    def channels(self) -> NDArray[np.float32]:
        """As the network takes it, [T,4]: onset, level, and 1 where each is known; zeros where it is not."""
        result = np.zeros((self.num_frames, NUM_CHANNELS), np.float32)
        for n, values in enumerate((self.onset, self.level)):
            if values is not None:
                result[:, n] = values
                result[:, 2 + n] = 1.0
        return result


def bumps(times: ArrayLike, num_frames: int, strengths: ArrayLike | None = None) -> NDArray[np.float32]:
    """The onset channel [T] of events at ``times`` [n] in seconds, of ``strengths`` [n] (default 1)."""
    times = np.asarray(times, np.float64).reshape(-1)
    heights = np.ones(len(times)) if strengths is None else np.asarray(strengths, np.float64).reshape(-1)
    if len(heights) != len(times):
        raise TimingError(f"{len(times)} events need as many strengths, not {len(heights)}")
    if not np.isfinite(times).all() or not np.isfinite(heights).all():
        raise TimingError("times and strengths of events must be numbers, not infinite or missing ones")
    # [T, n] would be large for an hour of events: each is put where it is seen.
    reach = math.ceil(4 * BUMP_SECONDS * FRAME_RATE)
    onset = np.zeros(num_frames)
    for time, height in zip(times, heights, strict=True):
        first = max(0, math.floor(time * FRAME_RATE) - reach)
        middles = (np.arange(first, min(num_frames, first + 2 * reach + 2)) + 0.5) / FRAME_RATE
        onset[first : first + len(middles)] += height * np.exp(-0.5 * ((middles - time) / BUMP_SECONDS) ** 2)
    return onset.clip(0.0, 1.0).astype(np.float32)


def level_units(level_db: ArrayLike) -> NDArray[np.float32]:
    """Levels in dB relative to the loudest part -> the curve's own units, -1.5..1.5."""
    shares = np.clip(np.asarray(level_db, np.float32), LEVEL_FLOOR, 0.0) / -LEVEL_FLOOR + 0.5
    return (2 * LEVEL_UNITS * shares).astype(np.float32)


def decibels(level: ArrayLike) -> NDArray[np.float32]:
    """The curve's own units -> dB relative to the loudest part: the inverse of :func:`level_units`."""
    return ((np.asarray(level, np.float32) / (2 * LEVEL_UNITS) - 0.5) * -LEVEL_FLOOR).astype(np.float32)


def events(onset: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times in seconds and strengths, [n] each, of the bumps of an onset channel [T].

    Bumps closer than about two standard deviations (60 ms) have run into one.
    """
    padded = np.pad(onset.astype(np.float64), 1)
    before, here, after = padded[:-2], padded[1:-1], padded[2:]
    # Of equal neighbours, as where a sum is clipped, the first is the top.
    tops = np.flatnonzero((here > before) & (here >= after) & (here >= MIN_STRENGTH))
    times, strengths = np.asarray((tops + 0.5) / FRAME_RATE, np.float64), here[tops]
    # The logarithm of a bump is a parabola: three frames tell where it stands, and how high.
    inner = (tops > 0) & (tops < len(onset) - 1) & (before[tops] > 0) & (after[tops] > 0)
    left, middle, right = (np.log(part[tops[inner]]) for part in (before, here, after))
    bend = left - 2 * middle + right
    shift = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend < 0).clip(-0.5, 0.5)
    times[inner] += shift / FRAME_RATE
    strengths[inner] = np.exp(middle - 0.25 * (left - right) * shift).clip(0.0, 1.0)
    return times, strengths


def read_curve(path: str | Path, num_frames: int | None = None) -> TimingCurve:
    """The curve of a CSV file with the columns ``seconds,onset,level_db``, of which one of the last may lack.

    With no column but ``seconds`` each row is an event of strength 1, as a list of taps. Else it has a time,
    an event's strength there (0..1) or nothing, and a level in dB (0 is the loudest part) or nothing. Levels
    are linear between the given times, and stay as they are before the first and after the last.
    ``num_frames``: T of the curve, default up to the last time. A column without any value is unknown.
    ``TimingError`` names the file, the line and the mistake.
    """
    # 1. The rows.
    rows: list[tuple[float, float | None, float | None]] = []
    try:
        table = read_table(path, COLUMNS)
        taps = table.names == ["seconds"]
        if not taps and ("seconds" not in table.names or not {"onset", "level_db"} & set(table.names)):
            raise TimingError(f"{path}: needs the columns {','.join(COLUMNS)}; it has {table}")
        for line, fields in table.rows:
            time, strength, db = _row(path, line, dict(zip(table.names, fields, strict=False)))
            rows.append((time, 1.0 if taps else strength, db))
    except ListError as error:
        raise TimingError(str(error)) from None

    # 2. Their onsets and levels.
    if num_frames is None:
        num_frames = max(1, math.ceil(round(max((row[0] for row in rows), default=0) * FRAME_RATE, 6)))
    hits = [(time, strength) for time, strength, _ in rows if strength is not None]
    levels = sorted((time, level) for time, _, level in rows if level is not None)
    if not hits and not levels:
        raise TimingError(f"{path}: has neither an onset nor a level_db in any row")
    onset = None
    if hits:
        times, strengths = zip(*hits, strict=True)
        onset = bumps(times, num_frames, strengths)
    level = None
    if levels:
        times, values = zip(*levels, strict=True)
        level = level_units(np.interp((np.arange(num_frames) + 0.5) / FRAME_RATE, times, values))
    return TimingCurve(onset, level)


def _row(path: str | Path, line: int, row: dict[str, str]) -> tuple[float, float | None, float | None]:
    """Time, strength and level of a row; ``TimingError`` names what is wrong in it."""
    limits = {"seconds": (0.0, LONGEST_SECONDS), "onset": (0.0, 1.0), "level_db": (-math.inf, math.inf)}
    values: list[float | None] = []
    for name in COLUMNS:
        text = row.get(name, "").strip()
        if not text and name != "seconds":
            values.append(None)
            continue
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        low, high = limits[name]
        if not math.isfinite(number) or not low <= number <= high:
            wanted = {
                "seconds": "a time in seconds, a day at most",
                "onset": "a strength from 0 to 1",
                "level_db": "a level",
            }
            raise TimingError(f"{path}: line {line}, column {name}: {text!r} is not {wanted[name]}")
        values.append(number)
    seconds, onset, level = values
    assert seconds is not None
    return seconds, onset, level


def write_curve(path: str | Path, curve: TimingCurve) -> None:
    """Write a curve as ``read_curve`` reads it: a row for each event, and one for the level of each frame."""
    rows: list[tuple[float, str, str]] = []
    if curve.onset is not None:
        times, strengths = events(curve.onset)
        found = list(zip(times.tolist(), strengths.tolist(), strict=True))
        # an event of strength 0 says that nothing happens, which no row at all would not
        rows += [(max(0.0, time), f"{height:.4g}", "") for time, height in found or [(0.0, 0.0)]]
    if curve.level is not None:
        middles = (np.arange(curve.num_frames) + 0.5) / FRAME_RATE
        rows += [
            (time, "", f"{level:.2f}")
            for time, level in zip(middles.tolist(), decibels(curve.level).tolist(), strict=True)
        ]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((f"{time:.4f}", onset, level) for time, onset, level in sorted(rows))
    write_whole(Path(path), text.getvalue().encode())
