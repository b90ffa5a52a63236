"""ESC-50 (karolpiczak/ESC-50): its five folds, or one of them for testing and the others for training."""

from __future__ import annotations

from pathlib import Path

from vab.data.datasets.common import Report, Row, gather, read_columns
from vab.data.manifest import Clip
from vab.utils.findings import Findings
from vab.utils.tables import ListError

SECONDS = 5.0
FOLDS = range(1, 6)


def read_list(path: str | Path, fold: int | None = None, esc10: bool = False) -> list[Row]:
    """Rows of ``meta/esc50.csv``: the splits are fold1 to fold5, or with ``fold`` test (that one) and train.

    The official protocol takes each fold in turn and reports the mean accuracy
    (``vab.evaluate.cross_validation``). With ``esc10`` only the ten classes of ESC-10. ``ListError`` for a
    line that makes no sense.
    """
    if fold is not None and fold not in FOLDS:
        raise ListError(f"{path}: the folds are 1 to 5, not {fold}")
    rows: list[Row] = []
    for line, row in read_columns(path, ("filename", "fold", "category", "esc10")):
        if not row["fold"].isdecimal() or int(row["fold"]) not in FOLDS:
            raise ListError(f"{path}: line {line}: column fold: {row['fold']!r} is not 1 to 5")
        if row["esc10"] not in ("True", "False"):
            raise ListError(f"{path}: line {line}: column esc10: {row['esc10']!r} is not True or False")
        if esc10 and row["esc10"] != "True":
            continue
        # by fold, or for one experiment: that fold against the others
        name = row["filename"].removesuffix(".wav")
        split = f"fold{row['fold']}"
        if fold is not None:
            split = "test" if int(row["fold"]) == fold else "train"
        rows.append(Row(name, (name,), row["category"], split, SECONDS))
    if not rows:
        raise ListError(f"{path}: no clips in it")
    return rows


def esc50_clips(
    root: str | Path, fold: int | None = None, esc10: bool = False, findings: Findings | None = None
) -> tuple[list[Clip], Report]:
    """Clips of the set's folder (``meta/esc50.csv``, ``audio/*.wav``), and what became of those not there."""
    rows = read_list(Path(root) / "meta" / "esc50.csv", fold, esc10)
    return gather(rows, Path(root) / "audio", findings=findings)
