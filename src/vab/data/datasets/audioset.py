"""AudioSet: the official segment lists -> clips with several labels each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vab.data.datasets.common import Report, Row, gather, hold_out, read_columns, segment_names
from vab.data.datasets.videos import Exclusion
from vab.data.manifest import Clip
from vab.utils.files import json_object
from vab.utils.findings import Findings
from vab.utils.tables import ListError, read_csv, read_text

Part = Literal["2m", "20k", "eval"]
EVAL = "eval_segments.csv"
BALANCED = "balanced_train_segments.csv"
UNBALANCED = "unbalanced_train_segments.csv"
PARTS: dict[Part, tuple[str, ...]] = {"2m": (UNBALANCED, BALANCED), "20k": (BALANCED,), "eval": (EVAL,)}
LABELS = "class_labels_indices.csv"


@dataclass(frozen=True)
class Segment:
    """One line of a segment list."""

    ytid: str
    start: float  # seconds
    end: float
    mids: tuple[str, ...]  # such as /m/09x0r


def read_labels(path: str | Path) -> dict[str, str]:
    """mid -> display name, of ``class_labels_indices.csv``."""
    return {row["mid"]: row["display_name"] for _, row in read_columns(path, ("mid", "display_name"))}


def read_segments(path: str | Path) -> Iterator[tuple[int, Segment]]:
    """(line number, segment) of ``eval_segments.csv`` and its like: ``YTID, start, end, "mid,mid"``."""
    for line, fields in read_csv(path):
        if len(fields) != 4:
            raise ListError(f'{path}: line {line}: {len(fields)} fields, not YTID, start, end, "mid,mid"')
        try:
            start, end = float(fields[1]), float(fields[2])
        except ValueError:
            raise ListError(f"{path}: line {line}: {fields[1]!r} to {fields[2]!r} is no time") from None
        if not fields[0] or not 0 <= start < end or not fields[3]:
            raise ListError(f"{path}: line {line}: no id, no labels, or an end before the start")
        yield line, Segment(fields[0], start, end, tuple(fields[3].split(",")))


def read_subset(path: str | Path) -> set[str]:
    """YouTube ids of a json file ``{"data": [{"video_id": ...}, ...]}``, as CAV-MAE writes its lists."""
    text = read_text(path, ListError)
    try:
        ids = {entry["video_id"] for entry in json_object(text)["data"]}
    except (ValueError, KeyError, TypeError):
        raise ListError(f'{path}: not json like {{"data": [{{"video_id": "..."}}]}}') from None
    if not ids:
        raise ListError(f"{path}: no ids in it")
    return ids


def file_names(segment: Segment) -> tuple[str, ...]:
    """Names under which a segment may lie: with its times (``common.segment_names``), or its id alone.

    Each also after a ``Y``, as PANNs and DCASE keep them (a name should not begin with a minus). In any case
    the file is the segment, not the whole video.
    """
    named = (*segment_names(segment.ytid, segment.start, segment.end), segment.ytid)
    return (*named, *(f"Y{name}" for name in named))


def read_rows(lists: str | Path, parts: Sequence[Part], subset: set[str] | None = None) -> Iterator[Row]:
    """Rows of the lists of those parts, in their order; of ``subset`` only, if given. Labels joined by ";".

    ``lists`` is the folder with the official csv files. 2M is unbalanced and balanced together, 20K is
    balanced; both are the split train, eval is test.
    """
    # The lists name labels by machine ids.
    names = read_labels(Path(lists) / LABELS)
    # Two parts may share a list, which is then read once.
    for file in dict.fromkeys(file for part in parts for file in PARTS[part]):
        path = Path(lists) / file
        split = "test" if file == EVAL else "train"
        for line, segment in read_segments(path):
            if subset is not None and segment.ytid not in subset:
                continue
            unknown = [mid for mid in segment.mids if mid not in names]
            if unknown:
                raise ListError(f"{path}: line {line}: label {unknown[0]} is not in {LABELS}")
            label = ";".join(names[mid] for mid in segment.mids)
            yield Row(segment.ytid, file_names(segment), label, split, segment.end - segment.start)


def audioset_clips(
    lists: str | Path,
    media: str | Path,
    parts: Sequence[Part],
    subset: str | Path | None = None,
    drop_still: bool = False,
    dev_share: float = 0.0,
    exclusion: Exclusion | None = None,
    findings: Findings | None = None,
) -> tuple[list[Clip], Report]:
    """Clips of the official lists that are there, and what became of the others.

    ``dev_share`` of the videos of the split train is dev (``common.hold_out``), ``exclusion`` keeps videos
    out. ``subset`` is a file of ids (``read_subset``), such as the 1,725 of the eval set that retrieval is
    measured on (CAV-MAE's ``sample_json_as.json``, not compared byte by byte with the list of its paper).
    ``ListError`` if one of them stands in none of the lists.
    """
    if subset is None:
        rows: Iterable[Row] = read_rows(lists, parts)
    else:
        # All rows at once, to see whether the lists hold the whole subset.
        wanted = read_subset(subset)
        rows = list(read_rows(lists, parts, wanted))
        unlisted = wanted - {row.id for row in rows}
        if unlisted:
            raise ListError(
                f"{subset}: {len(unlisted)} of its {len(wanted)} ids stand in none of the lists read "
                f"({', '.join(parts)}), such as {min(unlisted)}"
            )
    clips, report = gather(rows, media, drop_still, exclusion, findings)
    return hold_out(clips, dev_share), report
