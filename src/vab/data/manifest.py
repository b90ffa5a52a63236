"""Manifests: CSV files that list clips with their files, labels and splits."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vab.errors import VABError
from vab.utils.files import write_whole
from vab.utils.remote import RemoteFile, locate
from vab.utils.tables import ListError, read_table

if TYPE_CHECKING:  # a machine that only trains has no PyAV
    from vab.media.sources.given import InMemory

COLUMNS = ("id", "audio", "video", "start", "seconds", "label", "split")
MAX_MISTAKES_SHOWN = 20


class ManifestError(VABError, ValueError):
    """A manifest that cannot be used; the message lists line, column and mistake."""


@dataclass(frozen=True)
class Clip:
    """One row of a manifest. At least one of ``audio`` and ``video`` is given; both may be one file."""

    id: str
    audio: Path | RemoteFile | None
    video: Path | RemoteFile | None  # a video or an image
    start: float = 0.0  # seconds into the files
    seconds: float | None = None  # how much of them; None is all, up to the window
    label: str = ""
    split: str = "train"
    memory: InMemory | None = None  # what ``audio`` and ``video`` just name, if it is no file


def labels_of(text: str) -> list[str]:
    """The labels of a clip: several are joined by ";"."""
    return [label for label in text.split(";") if label]


def read_manifest(path: str | Path) -> list[Clip]:
    """Clips of a csv file with the columns ``id,audio,video,start,seconds,label,split`` (more are ignored).

    Paths are relative to the manifest's folder; they, and the manifest, may be URLs that fsspec opens, also
    of members of archives (``vab.utils.remote``). Empty ``start``: 0; ``seconds``: all; ``split``: train.
    Raises ``ManifestError`` with every mistake found (the first 20). The files it lists are not opened here.
    """
    place = locate(path)

    # 1. The header.
    mistakes: list[str] = []
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    try:
        table = read_table(place, COLUMNS)
        missing = [column for column in COLUMNS if column not in table.names]
        if missing:
            reason = f"no column {', '.join(missing)}; needed: {','.join(COLUMNS)}; there is {table}"
            raise ManifestError(f"{path}: line 1: {reason}")
        rows = list(table.rows)
    except ListError as error:
        raise ManifestError(str(error)) from None

    # 2. The rows; mistakes are collected, so that one run shows them all.
    for line, fields in rows:
        row = dict(zip(table.names, fields, strict=False))
        wrong = list(_row_mistakes(row, len(fields) - len(table.names)))
        if not wrong and row["id"] in lines:
            wrong = [f"column id: {row['id']!r} stands already in line {lines[row['id']]}"]
        if wrong:
            mistakes += [f"line {line}: {mistake}" for mistake in wrong]
            continue
        lines[row["id"]] = line
        clips.append(
            Clip(
                id=row["id"],
                audio=locate(row["audio"], place) if row["audio"] else None,
                video=locate(row["video"], place) if row["video"] else None,
                start=float(row["start"] or 0),
                seconds=float(row["seconds"]) if row["seconds"] else None,
                label=row["label"],
                split=row["split"] or "train",
            )
        )
    if mistakes:
        more = len(mistakes) - MAX_MISTAKES_SHOWN
        shown = mistakes[:MAX_MISTAKES_SHOWN] + ([f"... and {more} more"] if more > 0 else [])
        raise ManifestError("\n".join([f"{path}:", *shown]))
    if not clips:
        raise ManifestError(f"{path}: no clips in it")
    return clips


def _row_mistakes(row: dict[str, str], surplus: int) -> Iterator[str]:
    if surplus:
        yield f"{'more' if surplus > 0 else 'fewer'} fields than the header has"
        return
    # every mistake of the row, not only the first
    if not row["id"]:
        yield "column id: is empty"
    if not row["audio"] and not row["video"]:
        yield "columns audio, video: both are empty"
    for column in ("start", "seconds"):
        try:
            value = float(row[column] or 1)
        except ValueError:
            yield f"column {column}: {row[column]!r} is not a number"
            continue
        if not math.isfinite(value) or value < 0 or (column == "seconds" and value == 0):
            kind = "positive time" if column == "seconds" else "time"
            yield f"column {column}: {row[column]!r} is not a {kind} in seconds"


def write_manifest(path: str | Path, clips: Iterable[Clip]) -> None:
    """Write clips as ``read_manifest`` reads them: paths relative to the manifest's folder, URLs whole.

    Raises ``ManifestError`` for a path that is not UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def relative(file: Path | RemoteFile | None) -> str:
        if isinstance(file, RemoteFile):
            return str(file)
        return "" if file is None else Path(os.path.relpath(file, path.parent)).as_posix()

    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    # times with as many digits as they have, empty where the whole file counts
    for c in clips:
        seconds = "" if c.seconds is None else f"{c.seconds:.6g}"
        writer.writerow(
            [c.id, relative(c.audio), relative(c.video), f"{c.start:.9g}", seconds, c.label, c.split]
        )
    try:
        content = text.getvalue().encode()
    except UnicodeEncodeError as error:
        named = text.getvalue()[: error.end].splitlines()[-1]
        raise ManifestError(f"{path}: {named}: is not UTF-8, so no manifest can hold it; rename it") from None
    write_whole(path, content)
