"""Predictions of a classifier, read from an npz."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.errors import first_line
from vab.evaluate.metrics.statistics import EvaluationError

ARRAYS = ("id", "label", "scores", "classes")
NEEDED = "id [N], label [N], scores [N, C], classes [C]"


@dataclass(frozen=True)
class Predictions:
    """Scores of N clips for C classes: logits or probabilities, more is likelier. A row of NaN: no score."""

    ids: list[str]
    scores: NDArray[np.floating]  # [N, C]
    labels: list[str]  # the truth; several are joined by ";", "" where nothing is known
    classes: list[str]  # of the columns

    def rows(self, rows: NDArray[np.int64]) -> Predictions:
        """Select rows."""
        ids = [self.ids[row] for row in rows]
        labels = [self.labels[row] for row in rows]
        return Predictions(ids, self.scores[rows], labels, self.classes)


def read_predictions(path: str | Path) -> Predictions:
    """Read an npz of ``id``, ``label``, ``scores`` and ``classes``, whatever wrote it.

    Raises ``EvaluationError`` with the file and the reason.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file}
    except OSError as error:
        raise EvaluationError(f"{path}: {first_line(error)}") from None
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise EvaluationError(
            f"{path}: not an npz of predictions ({first_line(error)}); needed: {NEEDED}"
        ) from None
    # check names, types and shapes before anything is used
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise EvaluationError(f"{path}: has no {', '.join(missing)}; needed: {NEEDED}")
    scores = arrays["scores"]
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise EvaluationError(f"{path}: scores is not a table of numbers [N, C]")
    # all arrays must agree on N and C
    sizes = (len(arrays["id"]), len(arrays["label"]), len(arrays["classes"]))
    if sizes != (len(scores), len(scores), scores.shape[1]):
        raise EvaluationError(f"{path}: id, label, classes have lengths {sizes} for scores {scores.shape}")
    classes = _texts(arrays["classes"])
    if len(set(classes)) < len(classes):
        raise EvaluationError(f"{path}: a class stands there twice")
    return Predictions(_texts(arrays["id"]), scores, _texts(arrays["label"]), classes)


def _texts(values: Sequence[object] | NDArray) -> list[str]:
    return [str(value) for value in values]
