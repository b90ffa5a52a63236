"""Classification (section 4, Tables 4 to 6): accuracy, mean average precision and d', with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.data.manifest import labels_of
from vab.evaluate.metrics.statistics import RESAMPLES, EvaluationError, Interval, bootstrap, intervals
from vab.evaluate.metrics.tables import markdown
from vab.utils import count_of

CUTOFFS = (1, 5)
MAX_PRINTED_CLASSES = 60  # in a table for people


@dataclass(frozen=True)
class OneClass:
    """One class; None where a measure has no value."""

    name: str
    clips: int  # that have it
    accuracy: float | None  # top-1 among its clips; None for clips of several labels
    average_precision: float | None  # None without a clip


@dataclass(frozen=True)
class Classification:
    """N clips of C classes. Shares are 0 to 1."""

    kept: NDArray[np.int64]  # [N] rows that were used
    left_out: NDArray[np.int64]  # rows without scores, or without a label among the classes
    multi_label: bool
    accuracy: dict[int, Interval] | None  # k -> top-k accuracy; None for clips of several labels
    mean_average_precision: Interval  # over the classes that have a clip
    d_prime: Interval  # sqrt(2) * ppf(mean area under the ROC curve)
    classes: list[OneClass]

    @property
    def empty(self) -> int:
        """Classes without a clip: they are not in the means."""
        return sum(each.clips == 0 for each in self.classes)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        accuracy = {f"top-{k}": each.document() for k, each in (self.accuracy or {}).items()}
        return {
            "clips": len(self.kept),
            "classes": len(self.classes),
            "classes_without_clips": self.empty,
            "multi_label": self.multi_label,
            "accuracy": accuracy or None,
            "mAP": self.mean_average_precision.document(),
            "d_prime": self.d_prime.document(),
            "per_class": [vars(each) for each in self.classes],
        }

    def markdown(self) -> str:
        """A table of the measures, and one of the classes if they are not too many to read."""
        rows = [[f"top-{k} accuracy %", each.percent()] for k, each in (self.accuracy or {}).items()]
        rows.append(["mAP %", self.mean_average_precision.percent()])
        d = self.d_prime
        rows.append(["d'", f"{d.value:.3f} [{d.low:.3f}, {d.high:.3f}]"])
        parts = [markdown(("measure", "value [95 % interval]"), rows)]
        if self.empty:
            parts.append(
                f"{self.empty} of {len(self.classes)} classes have no clip and are left out of the means."
            )
        if len(self.classes) <= MAX_PRINTED_CLASSES:
            lines = [
                [each.name, str(each.clips), _percent(each.accuracy), _percent(each.average_precision)]
                for each in self.classes
            ]
            parts.append(markdown(("class", "N", "accuracy %", "AP %"), lines))
        else:
            parts.append(f"The {len(self.classes)} classes one by one: --json.")
        return "\n\n".join(parts)


def targets_of(labels: Sequence[str], classes: Sequence[str]) -> tuple[NDArray[np.bool_], list[str]]:
    """The classes of clips as bool [N, C], and the labels that are no class, sorted."""
    number = {name: n for n, name in enumerate(classes)}
    targets = np.zeros((len(labels), len(classes)), bool)
    unknown = set()
    for target, text in zip(targets, labels, strict=True):
        for label in labels_of(text):
            if label in number:
                target[number[label]] = True
            else:
                unknown.add(label)
    return targets, sorted(unknown)


def classification(
    scores: NDArray[np.floating],
    targets: NDArray[np.bool_],
    classes: Sequence[str],
    multi_label: bool | None = None,
) -> Classification:
    """Measures of scores [N, C] against targets [N, C] (which classes a clip has).

    Rows with a NaN or infinity, or without a target, are left out. ``multi_label`` None: whether any clip has
    several. Top-k accuracy gives equal scores equal shares of the places they stand on, so that a classifier
    that says the same of everything reaches chance. mAP and d' are unweighted means over the classes with a
    clip (with scikit-learn's average precision and ROC area); intervals resample the clips.
    Raises ``EvaluationError``: shapes that differ, nothing left, two labels where one is due, or no
    scikit-learn, which comes with ``vab[eval]``.
    """
    try:
        from scipy import sparse, stats
        from sklearn import metrics
    except ImportError as error:
        reason = f"classification is measured with scikit-learn and scipy ({error})"
        raise EvaluationError(f"{reason}: pip install 'vab[eval]'") from None
    # 1. Clips that have scores and a class.
    if scores.shape != targets.shape or scores.ndim != 2 or scores.shape[1] != len(classes):
        sizes = f"scores {scores.shape}, targets {targets.shape}, {len(classes)} classes"
        raise EvaluationError(f"{sizes}: they do not fit together")
    usable = np.isfinite(scores).all(1) & targets.any(1)
    kept = np.flatnonzero(usable)
    if not len(kept):
        raise EvaluationError("no clip has both scores and a label among the classes")
    wide: NDArray[np.float64] = scores[kept].astype(np.float64)
    targets = targets[kept]
    several = bool((targets.sum(1) > 1).any())
    if multi_label is False and several:
        count = int((targets.sum(1) > 1).sum())
        raise EvaluationError(f"{count_of(count, 'clip')} with several labels, where accuracy needs one")
    multi_label = several if multi_label is None else multi_label

    # 2. Class by class: accuracy, average precision, ROC area, and the last two on resampled clips.
    right = None if multi_label else _right(wide, targets.argmax(1))
    weights = _weights(len(kept))
    one_by_one = []
    areas = []
    resampled = np.full((2, len(classes), RESAMPLES), np.nan)  # of average precision and of ROC area
    for n, name in enumerate(classes):
        target = targets[:, n]
        score = wide[:, n]
        clips = int(target.sum())
        if not clips:
            one_by_one.append(OneClass(name, 0, None, None))
            continue
        accuracy = None if right is None else float(right[target, 0].mean())
        precision = float(metrics.average_precision_score(target, score))
        one_by_one.append(OneClass(name, clips, accuracy, precision))
        # without a negative there is no ROC curve
        if clips < len(target):
            areas.append(float(metrics.roc_auc_score(target, score)))
        resampled[:, n] = _resampled(score, target, weights, sparse)
    # 3. Unweighted means over the classes that have a clip.
    precisions = [each.average_precision for each in one_by_one if each.average_precision is not None]
    mean_area = float(np.mean(areas)) if areas else math.nan
    root = math.sqrt(2)

    return Classification(
        kept=kept,
        left_out=np.flatnonzero(~usable),
        multi_label=multi_label,
        accuracy=None if right is None else dict(zip(CUTOFFS, intervals(right), strict=True)),
        mean_average_precision=_centred(float(np.mean(precisions)), _mean(resampled[0])),
        d_prime=Interval.of(root * stats.norm.ppf(mean_area), root * stats.norm.ppf(_mean(resampled[1]))),
        classes=one_by_one,
    )


def _right(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Top-k hit of each clip, [N, len(CUTOFFS)]: 1 or 0, and between where scores tie."""
    # a class stands on one of the places after those above it; equal scores share these places
    own = scores[np.arange(len(scores)), classes, None]
    above = np.count_nonzero(scores > own, axis=1)
    level = np.count_nonzero(scores == own, axis=1)  # with the class itself, so at least 1
    return np.stack([np.clip((k - above) / level, 0, 1) for k in CUTOFFS], axis=1)


def _weights(n: int) -> NDArray[np.float32]:
    """Multiplicity of each of n clips in each resample: [n, R]."""

    def counts(rows: NDArray[np.int64]) -> NDArray[np.floating]:
        # one bincount for all resamples: each counts in cells of its own
        cells = rows + n * np.arange(len(rows))[:, None]
        return np.bincount(cells.ravel(), minlength=n * len(rows)).reshape(-1, n).astype(np.float32)

    return np.ascontiguousarray(bootstrap(counts, n).T, dtype=np.float32)


def _resampled(
    score: NDArray[np.float64], target: NDArray[np.bool_], weights: NDArray[np.float32], sparse: ModuleType
) -> NDArray[np.float64]:
    """Average precision and ROC area of one class, [2, R], of clips [N] that count ``weights`` [N, R] times.

    The clips fall into segments of falling score: those of one score that a clip of the class has, and the
    runs between. NaN where a resample has no clip of the class (or, for the area, no other).
    """
    # 1. Clips by falling score; equal scores are one level.
    order = np.argsort(-score, kind="stable")
    score, target = score[order], target[order]
    level = np.concatenate([[0], np.cumsum(score[1:] != score[:-1])])
    # 2. Levels without a clip of the class join with their neighbours: they only add false positives.
    matters = np.zeros(level[-1] + 1, bool)
    matters[level[target]] = True
    segment = np.concatenate([[0], np.cumsum(matters[1:] | matters[:-1])])[level]
    # 3. Weighted counts [segments, R] of others and of the class, by one sparse product.
    cells = (np.ones(len(order), np.float32), (2 * segment + target, order))
    sums = sparse.csr_matrix(cells, shape=(2 * (segment[-1] + 1), len(order))) @ weights
    others = sums[0::2].astype(np.float64)
    own = sums[1::2].astype(np.float64)
    # 4. Both areas as sums over the segments, in all resamples at once.
    hits = own.cumsum(0)
    misses = others.cumsum(0)
    precision = hits / np.maximum(hits + misses, 1)  # weights are whole numbers
    with np.errstate(invalid="ignore"):
        area = (own * (misses[-1] - misses + others / 2)).sum(0) / (hits[-1] * misses[-1])
        return np.stack([(own * precision).sum(0) / hits[-1], area])


def _mean(resampled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes [C, R] that a resample has; NaN if it has none."""
    known = ~np.isnan(resampled)
    with np.errstate(invalid="ignore"):
        return np.where(known, resampled, 0).sum(0) / known.sum(0)


def _centred(value: float, resampled: NDArray[np.float64]) -> Interval:
    """The spread of resampled values about the measured one.

    A resample holds clips twice, side by side in the ranking, which lifts average precision: percentiles as
    they are could lie above the value itself.
    """
    return Interval.of(value, resampled - np.nanmean(resampled) + value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
