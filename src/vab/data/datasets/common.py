"""Shared by the official sets: read their lists, find their media on disk, report what is left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from vab.data.datasets.videos import Exclusion, falls_into
from vab.data.manifest import Clip
from vab.errors import failure
from vab.media.copies import copies
from vab.media.file import MediaFile
from vab.media.inputs import Tree
from vab.media.reader import read_frames
from vab.media.sources.given import Source
from vab.utils import count_of
from vab.utils.findings import Findings
from vab.utils.tables import ListError, read_table

VIDEO = frozenset((".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".3gp", ".mpg", ".mpeg"))
AUDIO = frozenset((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"))
MIN_MOVEMENT = (
    0.5  # grey levels of 255, mean over a frame; compressed photos reach 0.4, real video 1 and more
)
STILL_FPS = 1.3  # frames compared; what comes back every second, like a clock's hand, must not look still
STILL_SIDE = 64  # pixels of the short side that are compared
STILL_SECONDS = 10.0  # of a clip whose length the list does not say

Index = dict[str, dict[str, str]]  # name without ending -> audio, video -> path


@dataclass(frozen=True)
class Row:
    """One clip of an official list."""

    id: str
    names: tuple[str, ...]  # file names without ending under which it may lie, the likeliest first
    label: str
    split: str
    seconds: float | None = None


Split = TypeVar("Split", Row, Clip)  # what has an id and a split


@dataclass(frozen=True)
class Report:
    """Outcome for the rows of a list: left, excluded, duplicates, gone, silent, still frames, unreadable."""

    listed: int  # rows of the list, of the subset asked for
    left: int  # clips in the manifest
    gone: int  # no file of that name is there
    duplicates: int  # rows whose id stands in the list already
    excluded: dict[str, int]  # list of videos to keep out -> rows of these videos, which are not taken
    kept_tests: dict[str, int]  # the same -> rows of the split test, which are
    silent: int  # files without an audio stream
    still_frames: int | None  # clips whose video never moves, left out; None: not examined
    unreadable: dict[str, str]  # id -> reason
    copies: dict[str, str]  # clips, not left out, whose file has the bytes of another one's: id -> that id

    def text(self) -> str:
        """One line for people."""
        counts = [
            (self.gone, "gone"),
            (self.duplicates, "listed twice"),
            (self.silent, "without sound"),
            (self.still_frames or 0, "still frames"),
            (len(self.unreadable), "unreadable"),
        ]
        parts = [f"{count} {outcome}" for count, outcome in counts if count]
        # also 0, for a list that has nothing in common with this one may be the wrong one
        parts += [f"{count} kept out by {name}" for name, count in self.excluded.items()]
        out = ", ".join(parts)
        copies = f"; {len(self.copies)} are copies of another's file" if self.copies else ""
        return f"{count_of(self.left, 'clip')} of {self.listed} listed{f' ({out})' if out else ''}{copies}"


def read_columns(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, field of each column) of a list with a header; ``ListError`` if one is missing."""
    table = read_table(path, columns)
    missing = [column for column in columns if column not in table.names]
    if missing:
        raise ListError(f"{path}: line 1: no column {', '.join(missing)}; it has {table}")
    for line, fields in table.rows:
        if len(fields) != len(table.names):
            raise ListError(f"{path}: line {line}: {len(fields)} fields, the header has {len(table.names)}")
        yield line, dict(zip(table.names, map(str.strip, fields), strict=True))


def segment_names(ytid: str, start: float, end: float) -> tuple[str, ...]:
    """Names that the usual downloaders give to ``start`` to ``end`` seconds of a YouTube video.

    Whole seconds padded to six places or plain, milliseconds, and seconds with three decimals, with or
    without the end.
    """
    return tuple(f"{ytid}_{stem}" for stem in _time_stems(start, end))


@lru_cache(10_000)  # of a list with two million rows, most have the times of others
def _time_stems(start: float, end: float) -> list[str]:
    # for the start and for the end: padded, plain, milliseconds, decimals
    shapes = [(f"{time:06.0f}", f"{time:.0f}", f"{time * 1000:.0f}", f"{time:.3f}") for time in (start, end)]
    return [*dict.fromkeys([*shapes[0], *(f"{a}_{b}" for a, b in zip(*shapes, strict=True))])]


def media_index(folder: str | Path, endings: Iterable[str] = VIDEO | AUDIO) -> Index:
    """Every media file of a folder and below, in one walk; of two with the same name and kind the first.

    Hidden files and folders are not looked at, linked folders are (``inputs.Tree``). ``ListError`` if there
    is no such folder, or part of it cannot be read.
    """
    if not Path(folder).is_dir():
        raise ListError(f"{folder}: no such folder")
    index: Index = {}
    tree = Tree()
    for path in tree.files(str(folder), frozenset(endings)):
        stem, ending = os.path.splitext(os.path.basename(path))
        kind = "audio" if ending.lower() in AUDIO else "video"
        index.setdefault(stem, {}).setdefault(kind, path)
    for line in tree.faults.values():
        raise ListError(line)
    return index


def gather(
    rows: Iterable[Row],
    folder: str | Path,
    drop_still: bool = False,
    exclusion: Exclusion | None = None,
    findings: Findings | None = None,
) -> tuple[list[Clip], Report]:
    """The clips of a list whose media lie in ``folder`` or below, in the list's order, and what is left.

    A file is the clip: it has been cut already. Audio and video of the same name are one clip.
    """
    # Each id once, with the first of its possible names that is there.
    index = media_index(folder)
    exclusion = exclusion or Exclusion()
    candidates: list[Clip] = []
    seen: set[str] = set()
    listed = gone = 0
    for row in rows:
        listed += 1
        if row.id in seen:
            continue
        seen.add(row.id)
        if exclusion.keeps_out(row.id, row.split):
            continue
        files = next((index[name] for name in row.names if name in index), None)
        if files is None:
            gone += 1
            continue
        audio = Path(files["audio"]) if "audio" in files else None
        video = Path(files["video"]) if "video" in files else None
        candidates.append(Clip(row.id, audio, video, 0.0, row.seconds, row.label, row.split))
    duplicates = listed - len(seen)
    del index, seen  # the names of a million files
    clips, report = examine(candidates, drop_still, findings)
    return clips, replace(
        report,
        listed=listed,
        gone=gone,
        duplicates=duplicates,
        excluded=exclusion.excluded,
        kept_tests=exclusion.kept_tests,
    )


def hold_out(clips: Iterable[Split], dev_share: float) -> list[Split]:
    """Rows or clips, those of ``dev_share`` of the videos of the split train as dev (``falls_into``)."""
    return [
        replace(clip, split="dev") if clip.split == "train" and falls_into(clip.id, dev_share) else clip
        for clip in clips
    ]


def examine(
    candidates: Sequence[Clip], drop_still: bool = False, findings: Findings | None = None
) -> tuple[list[Clip], Report]:
    """Open every candidate's files: clips with audio that can be opened, and what became of the others.

    A clip without an audio file gets the audio of its video. With ``drop_still`` clips whose video never
    moves (``is_still``) are left out; that decodes a frame a second. ``findings`` keeps what was seen.
    """
    findings = findings or Findings()
    unreadable: dict[str, str] = {}

    # 1. Which streams each file has; the audio is that of the first that has any, mostly the video itself.
    files = dict.fromkeys(path for clip in candidates for path in (clip.audio, clip.video) if path)
    looks = findings.find("streams", _streams, ((path,) for path in files), len(files), "look")
    streams = {path: found for (path,), found in looks}
    clips: list[Clip] = []
    silent = 0
    for clip in candidates:
        own = {path: streams[path] for path in (clip.audio, clip.video) if path is not None}
        error = next((found for found in own.values() if isinstance(found, Exception)), None)
        if error is not None:  # one clip out of a million must not end the run
            unreadable[clip.id] = failure(clip.video or clip.audio or clip.id, error)
            continue
        audio = next((path for path, found in own.items() if "audio" in str(found)), None)
        video = clip.video if clip.video is not None and "video" in str(own[clip.video]) else None
        if audio is None:
            silent += 1
        else:
            clips.append(replace(clip, audio=audio, video=video))

    # 2. Which videos never move.
    still: set[str] = set()
    if drop_still:
        still, unmoved = find_still([clip for clip in clips if clip.video is not None], findings)
        unreadable |= unmoved
        clips = [clip for clip in clips if clip.id not in still and clip.id not in unmoved]
    report = Report(
        listed=len(candidates),
        left=len(clips),
        gone=0,
        duplicates=0,
        excluded={},
        kept_tests={},
        silent=silent,
        still_frames=len(still) if drop_still else None,
        unreadable=unreadable,
        copies=copied(clips, findings),
    )
    return clips, report


def _streams(path: Source) -> str:
    """The streams of a file, such as "video audio"; ``MediaError`` if it cannot be opened or has neither."""
    with MediaFile(path) as file:
        found = [*(["video"] if file.kind != "audio" else []), *(["audio"] if file.has_audio else [])]
        return sys.intern(" ".join(found))


def find_still(films: Sequence[Clip], findings: Findings) -> tuple[set[str], dict[str, str]]:
    """Of clips with video, the ids of those that never move, and id -> reason of what cannot be decoded."""
    calls = ((clip.video, clip.seconds, clip.start) for clip in films)
    still: set[str] = set()
    unreadable: dict[str, str] = {}
    for clip, (_, found) in zip(
        films, findings.find("still", is_still, calls, len(films), "still"), strict=True
    ):
        if isinstance(found, Exception):
            unreadable[clip.id] = failure(clip.video or clip.id, found)
        elif found:
            still.add(clip.id)
    return still, unreadable


def is_still(path: Source, seconds: float | None = None, start: float = 0.0) -> bool:
    """True if the video never moves in ``seconds`` from ``start`` on.

    That is, no frame differs from the one about a second before by ``MIN_MOVEMENT``. VGGSound holds some
    6,000 such clips (hche11/VGGSound#6). Small frames are compared, in which the
    noise of compression does not count.
    ``MediaError`` if there is no video.
    """
    # [H, W, 3] in signed numbers, so that differences are not cut off at zero
    before: np.ndarray | None = None
    for pixels in read_frames(path, STILL_FPS, start, seconds or STILL_SECONDS, size=STILL_SIDE):
        frame = pixels.astype(np.int16)
        if before is not None and np.abs(frame - before).mean() >= MIN_MOVEMENT:
            return False
        before = frame
    return True


def copied(clips: Sequence[Clip], findings: Findings | None = None) -> dict[str, str]:
    """Clips whose file has the same bytes as that of an earlier one: id -> the earlier one's id."""
    owners: dict[Path, str] = {}
    for clip in clips:
        path = clip.video or clip.audio
        if isinstance(path, Path):  # files on other machines are not compared
            owners.setdefault(path, clip.id)  # several clips may be windows of one file
    return {owners[path]: owners[first] for path, first in copies(owners, findings).items()}
