"""Write results and answers of a study: CSV, JSON, and a plot like Figure 4."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vab.listening.answers import Answer
from vab.listening.figure import plot
from vab.listening.results import Results
from vab.listening.study import Study
from vab.utils.files import atomic


def export_answers(study: Study, answers: Sequence[Answer], folder: Path) -> list[Path]:
    """Write answers.csv and answers.json, of all raters; nothing if there are none. Errors as ``export``."""
    rows = table(study, answers)
    if not rows:
        return []
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files = {"answers.csv": text.getvalue().encode(), "answers.json": json.dumps(rows, indent=1).encode()}
    return _write(files, folder)


def export(results: Results, folder: Path) -> list[Path]:
    """Write results.json, and preference.png if there are preferences.

    ``EvaluationError`` if the plot cannot be made, ``OSError`` if the folder cannot be written to; each file
    is complete or not there.
    """
    files = {"results.json": json.dumps(results.document(), indent=1).encode()}
    if results.preferences:
        files["preference.png"] = plot(results.preferences)
    return _write(files, folder)


def _write(files: dict[str, bytes], folder: Path) -> list[Path]:
    for name, data in files.items():
        with atomic(folder / name) as temporary:
            temporary.write_bytes(data)
    return [folder / name for name in files]


def table(study: Study, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A row for each answer, checks too: rater, times, the system in each place, and the grades as shown."""
    trials = {trial.id: trial for trial in study.trials}
    rows = []
    for each in answers:
        trial = trials[each.trial]
        # in the order in which the rater saw them
        systems = [system or "(beeps)" for system in trial.systems]
        if each.swapped:
            systems.reverse()
        rows.append(
            {
                "rater": each.rater,
                "survey": trial.survey,
                "clip": trial.clip,
                "video_1": systems[0],
                "video_2": systems[1] if len(systems) > 1 else None,
                **{name: each.grades.get(name) for name in ("quality", "relevance", "score")},
                "check": trial.check,
                "asked": _timestamp(each.asked),
                "answered": _timestamp(each.answered),
            }
        )
    return rows


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
