"""Bootstrap intervals, id lists and their hash, shared by all evaluations."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.errors import VABError
from vab.utils.tables import read_text

RESAMPLES = 1000
CHUNK_NUMBERS = 2**20  # drawn rows in one chunk of resamples: bounds the memory of a bootstrap


class EvaluationError(VABError, ValueError):
    """Something that cannot be evaluated; the message is one line that says why."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: NDArray[np.floating]) -> Interval:
        """Percentile interval of a value from its resampled values [R]; NaN does not count."""
        known = resampled[~np.isnan(resampled)]
        if not len(known):
            return cls(float(value), math.nan, math.nan)
        # no interpolation: between two infinite values there is no number
        low, high = np.quantile(known, [0.025, 0.975], method="inverted_cdf")
        return cls(float(value), float(low), float(high))

    def percent(self) -> str:
        """``33.5 [31.1, 35.8]``: for shares, times a hundred."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def plain(self) -> str:
        """``2.69 [2.61, 2.77]``; without brackets if there is no interval."""
        between = "" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.value:.3g}{between}"

    def document(self) -> dict[str, float | None]:
        """For JSON, which knows no infinity: None instead."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.floating]],
    n: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.floating]:
    """A statistic on ``resamples`` draws of n of n things with replacement: [R, M].

    ``statistic`` is handed the drawn rows of some resamples [S, n] and returns its M values for each [S, M].
    The same seed and n draw the same rows, so two systems on the same clips are compared on the same draws.
    """
    generator = np.random.default_rng(seed)
    # a chunk holds as many resamples as fit, so memory does not grow with their number
    size = max(1, CHUNK_NUMBERS // n)
    sizes = [min(size, resamples - start) for start in range(0, resamples, size)]
    return np.concatenate([statistic(generator.integers(0, n, (count, n))) for count in sizes])


def intervals(values: NDArray[np.floating]) -> list[Interval]:
    """The M means over N things of values [N, M], each with its bootstrap interval."""
    # [resamples, N] rows -> [resamples, M] means
    resampled = bootstrap(lambda rows: values[rows].mean(1), len(values))
    return [Interval.of(float(mean), resampled[:, n]) for n, mean in enumerate(values.mean(0))]


def list_hash(ids: Collection[str]) -> str:
    """Order-independent hash of the evaluated clip ids: sha256 of them sorted and joined by newlines."""
    return hashlib.sha256("\n".join(sorted(ids)).encode(errors="surrogateescape")).hexdigest()


def read_ids(path: str | Path) -> list[str]:
    """Ids of a list: one per line, a JSON list, or CAV-MAE's ``{"data": [{"video_id": ...}]}``.

    Empty lines do not count, nor does an id's second mention. Raises ``EvaluationError`` with the file.
    """
    text = read_text(path, EvaluationError)
    # JSON begins with a bracket, which no id does
    if text.lstrip().startswith(("[", "{")):
        try:
            entries: Any = json.loads(text)
            if isinstance(entries, dict):
                entries = [entry["video_id"] for entry in entries["data"]]
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            reason = f"neither a JSON list of ids nor a list as CAV-MAE writes it ({error})"
            raise EvaluationError(f"{path}: {reason}") from None
        if not all(isinstance(name, str) for name in entries):
            raise EvaluationError(f"{path}: a JSON list, but not of ids (strings)")
    else:
        entries = [line.strip() for line in text.splitlines()]
    # each once, in the order of the file
    ids = list(dict.fromkeys(name for name in entries if name))
    if not ids:
        raise EvaluationError(f"{path}: has no ids in it")
    return ids


def choose(ids: Sequence[str], wanted: Collection[str] | None) -> tuple[NDArray[np.int64], list[str]]:
    """Rows of ``ids`` that are wanted (None: all), in their order, and the wanted ids that are missing.

    Raises ``EvaluationError`` if an id stands there twice or no row is left.
    """
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        raise EvaluationError(f"the id {repeated[0]!r}{more} stands there more than once")
    chosen = set(ids if wanted is None else wanted)
    rows = [row for row, name in enumerate(ids) if name in chosen]
    if not rows:
        raise EvaluationError("no clips in it" if wanted is None else "none of the wanted ids is in it")
    there = set(ids)
    return np.array(rows, dtype=np.int64), [name for name in wanted or () if name not in there]
