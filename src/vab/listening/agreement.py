"""Agreement of raters: Krippendorff's alpha for ordered grades."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray


def krippendorff_alpha(grades: NDArray[np.floating]) -> float:
    """Ordinal alpha of grades [raters, units]; NaN where somebody did not grade.

    1: all agree; 0: as by chance; NaN if no unit has two grades, or if all grades are the same, which says
    nothing. Krippendorff, *Computing Krippendorff's Alpha-Reliability* (2011), sections C and D.
    """
    units = [unit[~np.isnan(unit)] for unit in grades.T]
    units = [unit for unit in units if len(unit) > 1]
    if not units:
        return math.nan
    # index of each grade among the distinct ones, unit by unit
    values, indices = np.unique(np.concatenate(units), return_inverse=True)
    # coincidence matrix: how often two values meet in one unit, which counts as many grades as it has
    coincidences = np.zeros((len(values), len(values)))
    start = 0
    for unit in units:
        counts = np.bincount(indices[start : start + len(unit)], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
        start += len(unit)
    # ordinal distance: squared difference of mean ranks
    totals = coincidences.sum(1)
    mean_ranks = np.cumsum(totals) - totals / 2
    distances = (mean_ranks[:, None] - mean_ranks[None, :]) ** 2
    # alpha = 1 - observed / expected disagreement
    expected = (np.outer(totals, totals) * distances).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distances).sum() / expected) if expected > 0 else math.nan


def as_matrix(answers: Collection[tuple[str, str, float]]) -> NDArray[np.float64]:
    """(rater, unit, grade) of each answer -> grades [raters, units], NaN where there is none."""
    raters = {name: row for row, name in enumerate(sorted({rater for rater, _, _ in answers}))}
    units = {name: column for column, name in enumerate(sorted({unit for _, unit, _ in answers}))}
    grades = np.full((len(raters), len(units)), np.nan)
    for rater, unit, grade in answers:
        grades[raters[rater], units[unit]] = grade
    return grades
