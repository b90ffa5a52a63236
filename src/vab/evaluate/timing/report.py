"""The result of an evaluation of timing: for people a table, for machines a document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.evaluate.generation.clips import ClipError
from vab.evaluate.metrics.statistics import Interval, intervals, list_hash
from vab.evaluate.metrics.tables import markdown

Values = Mapping[
    str, NDArray[np.float64]
]  # a measure -> its value for each of N clips; NaN where there is none
TITLES = {
    "onset_f1_50ms": "onsets, F1 50 ms",
    "onset_f1_100ms": "F1 100 ms",
    "onset_correlation": "onset strength, corr.",
    "level_correlation": "level, corr.",
    "desync": "DeSync, s",
}


@dataclass(frozen=True)
class Row:
    """One system or baseline over N clips: the mean over its samples of each measure of each clip."""

    name: str
    sounds: int
    shapeless: int  # silent ones, or of an even tone: they agree with nothing
    own: Values
    other: Values | None  # the same of other clips' sounds; None: there are none, as for a metronome
    expected: float  # onsets of the clips
    found: float  # and of the sounds

    def document(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            "name": self.name,
            "sounds": self.sounds,
            "shapeless": self.shapeless,
            "onsets": {"estimated": self.found, "reference": self.expected},
            "measures": _document(self.own),
        }
        if self.other is not None:
            found["another_clip"] = _document(self.other)
            found["difference"] = _document(_less(self.own, self.other))
        return found


@dataclass(frozen=True)
class Timing:
    """The result of an evaluation; the rows have the same clips, and the systems come first among them."""

    against: Path
    seconds: float  # of each clip
    seed: int  # by which another clip was found for each
    clips: str | None  # the list or the beginning of names that chose them
    half: int | None
    ids: list[str]
    rows: list[Row]
    num_systems: int
    left_out: list[ClipError]
    absent: str  # why there is no DeSync; "" where there is

    def differences(self) -> list[tuple[str, str, Values]]:
        """The first system less each other one, clip by clip: their names, the differences [N]."""
        first, *further = self.rows[: self.num_systems]
        return [(first.name, row.name, _less(first.own, row.own)) for row in further]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "against": str(self.against),
            "seconds": self.seconds,
            "clips": len(self.ids),
            "ids_sha256": list_hash(self.ids),
            "chosen_by": self.clips,
            "half": self.half,
            "seed": self.seed,
            "rows": [row.document() for row in self.rows],
            "differences": [
                {"of": first, "less": second, "measures": _document(values)}
                for first, second, values in self.differences()
            ],
            "left_out": [vars(fault) for fault in self.left_out],
            "not_measured": {"synchformer": self.absent} if self.absent else {},
        }

    def markdown(self) -> str:
        """A heading, a table of the rows, and one of paired differences."""
        # 1. What was measured on what.
        among = "" if self.clips is None else f", clips of {self.clips}"
        among += "" if self.half is None else f", half {self.half}"
        heading = f"Timing against {self.against}, the first {self.seconds:g} s{among}"
        counts = f"N = {len(self.ids):,}, {len(self.left_out):,} left out; sha256 of the ids"
        notes = [f"{counts} {list_hash(self.ids)[:16]}. Brackets: 95 % bootstrap intervals over clips."]
        keys = [key for key in TITLES if key in self.rows[0].own]
        for key in keys:
            if known := _without(self.rows[0].own[key]):
                notes.append(f"{TITLES[key]}: of {len(self.ids) - known:,} clips, the others have none.")
        for row in self.rows:
            if row.shapeless:
                few = f"{row.shapeless:,} of {row.sounds:,} sounds"
                notes.append(f"{row.name}: {few} are silent or even and agree with nothing.")

        # 2. Each row, and that of other clips' sounds below it.
        lines = []
        for row in self.rows:
            ratio = f"{row.found / row.expected:.2f}" if row.expected else "-"
            lines.append([row.name, f"{row.sounds:,}", *_cells(row.own, keys), ratio])
            if row.other is not None:
                lines.append(["... of another clip", f"{row.sounds:,}", *_cells(row.other, keys), ""])
        columns = ["", "sounds", *(TITLES[key] for key in keys), "onsets, made / real"]
        parts = [heading, " ".join(notes), markdown(columns, lines)]

        # 3. Differences, clip by clip.
        pairs = [
            (f"{row.name} - another clip's", _less(row.own, row.other))
            for row in self.rows
            if row.other is not None
        ]
        pairs += [(f"{first} - {second}", values) for first, second, values in self.differences()]
        columns = ["paired difference", *(TITLES[key] for key in keys)]
        return "\n\n".join([*parts, markdown(columns, [[name, *_cells(v, keys)] for name, v in pairs])])


def _less(a: Values, b: Values) -> Values:
    return {key: a[key] - b[key] for key in a.keys() & b.keys()}


def _interval(values: NDArray[np.float64]) -> Interval:
    """The mean over the clips that have a value, with its interval."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Interval(math.nan, math.nan, math.nan)
    return intervals(known[:, None])[0]


def _document(values: Values) -> dict[str, Any]:
    ordered = {key: values[key] for key in TITLES if key in values}
    return {
        key: _interval(each).document() | {"clips": len(each) - _without(each)}
        for key, each in ordered.items()
    }


def _cells(values: Values, keys: list[str]) -> list[str]:
    return [_cell(_interval(values[key])) if key in values else "-" for key in keys]


def _cell(interval: Interval) -> str:
    """``0.512 [0.431, 0.590]``."""
    if math.isnan(interval.value):
        return "-"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _without(values: NDArray[np.float64]) -> int:
    return int(np.isnan(values).sum())
