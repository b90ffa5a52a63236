"""VGGSound: ``vggsound.csv`` or ``test.csv`` and ``train.csv`` (hche11/VGGSound, data/) -> clips."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vab.data.datasets.common import Report, Row, gather, hold_out, segment_names
from vab.data.datasets.videos import Exclusion
from vab.data.manifest import Clip
from vab.utils.findings import Findings
from vab.utils.tables import ListError, read_csv

SECONDS = 10  # length of every clip
PER_CLASS = 5  # clips of each class in the subset for retrieval
SPLITS = ("train", "test")

_NAME = re.compile(r"(.+)_(\d{6})\.mp4")


def read_list(path: str | Path) -> list[Row]:
    """Rows of an official list, in its order; ``ListError`` names the first line that is none.

    ``vggsound.csv`` has lines ``YouTube id,start,label,split``; ``test.csv`` and ``train.csv`` have lines
    ``id_start.mp4,label``, and their split is in their name.
    """
    rows: list[Row] = []
    for line, fields in read_csv(path):
        # The two forms of the list differ in the number of fields.
        match = _NAME.fullmatch(fields[0])
        if len(fields) == 4 and fields[1].isdecimal() and fields[3] in SPLITS:
            ytid, start, label, split = fields[0], int(fields[1]), fields[2], fields[3]
        elif len(fields) == 2 and match:
            ytid, start, label, split = match[1], int(match[2]), fields[1], _split_of(path)
        else:
            raise ListError(
                f"{path}: line {line}: neither 'YouTube id,start,label,split' nor 'id_start.mp4,label'"
            )
        if not ytid or not label:
            raise ListError(f"{path}: line {line}: the id or the label is empty")
        # the id says which ten seconds of the video they are
        names = segment_names(ytid, start, start + SECONDS)
        rows.append(Row(f"{ytid}_{start:06d}", names, label, split, SECONDS))
    if not rows:
        raise ListError(f"{path}: no clips in it")
    return rows


def _split_of(path: str | Path) -> str:
    splits = [split for split in SPLITS if split in Path(path).stem.lower()]
    if len(splits) != 1:
        raise ListError(f"{path}: its name must say which split it is: train.csv or test.csv")
    return splits[0]


def retrieval_subset(rows: Sequence[Row]) -> list[Row]:
    """The first 5 rows of each class: of the official ``test.csv``, the 1,545 clips of 309 classes.

    These are CAV-MAE's retrieval clips (vgg_test_5_per_class_for_retrieval), in the same order.
    """
    # the order of the list decides, so it must be the official one
    counts: Counter[str] = Counter()
    subset: list[Row] = []
    for row in rows:
        counts[row.label] += 1
        if counts[row.label] <= PER_CLASS:
            subset.append(row)
    return subset


def vggsound_clips(
    listing: str | Path,
    media: str | Path,
    subset: Literal["all", "retrieval"] = "all",
    drop_still: bool = False,
    dev_share: float = 0.0,
    exclusion: Exclusion | None = None,
    findings: Findings | None = None,
) -> tuple[list[Clip], Report]:
    """Clips of an official list that are there, and what became of the others.

    A file is called ``<id>_<start>`` (``common.segment_names``), in any folder below ``media``. The subset
    for retrieval depends on the order of ``test.csv``: ``ListError`` for any other list. ``dev_share`` of the
    videos of the split train is dev (``common.hold_out``), ``exclusion`` keeps videos out.
    """
    rows = read_list(listing)
    if subset == "retrieval":
        _, first = next(read_csv(listing))
        if len(first) != 2 or rows[0].split != "test":
            raise ListError(f"{listing}: the retrieval subset goes by the order of the official test.csv")
        rows = retrieval_subset(rows)
    clips, report = gather(rows, media, drop_still, exclusion, findings)
    return hold_out(clips, dev_share), report
