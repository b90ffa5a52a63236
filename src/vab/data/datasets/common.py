"""Shared by the official sets: read their lists, find their media on disk, report what is left."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import track

from vab.data.manifest import Clip
from vab.errors import failure
from vab.media.file import MediaFile
from vab.media.inputs import Tree, copies
from vab.media.reader import read_frames
from vab.media.sources.given import Source
from vab.utils.tables import ListError, read_table, read_text

VIDEO = frozenset((".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".3gp", ".mpg", ".mpeg"))
AUDIO = frozenset((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"))
MIN_MOVEMENT = (
    0.5  # grey levels of 255, mean over a frame; compressed photos reach 0.4, real video 1 and more
)
STILL_FPS = 1.3  # frames compared; what comes back every second, like a clock's hand, must not look still
STILL_SIDE = 64  # pixels of the short side that are compared
STILL_SECONDS = 10.0  # of a clip whose length the list does not say
CHUNK = 4096  # clips handed to the threads at once

Finding = Literal["good", "silent", "still", "unreadable"]
Index = dict[str, dict[str, str]]  # name without ending -> audio, video -> path


@dataclass(frozen=True)
class Row:
    """One clip of an official list."""

    id: str
    names: tuple[str, ...]  # file names without ending under which it may lie, the likeliest first
    label: str
    split: str
    seconds: float | None = None


@dataclass(frozen=True)
class Report:
    """Outcome for the rows of a list: left + duplicates + gone + silent + still frames + unreadable."""

    listed: int  # rows of the list, of the subset asked for
    left: int  # clips in the manifest
    gone: int  # no file of that name is there
    duplicates: int  # rows whose id stands in the list already
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
        out = ", ".join(f"{count} {outcome}" for count, outcome in counts if count)
        copies = f"; {len(self.copies)} are copies of another's file" if self.copies else ""
        return f"{self.left} clips of {self.listed} listed{f' ({out})' if out else ''}{copies}"


def read_csv(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of a csv file without comments (``#``) and empty lines; else ``ListError``."""
    reader = csv.reader(
        io.StringIO(read_text(path, ListError), newline=""), skipinitialspace=True, strict=True
    )
    try:
        for fields in reader:
            if fields and not fields[0].startswith("#"):
                yield reader.line_num, [field.strip() for field in fields]
    except csv.Error as error:
        raise ListError(f"{path}: line {reader.line_num}: {error}") from None


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
    # for the start and for the end: padded, plain, milliseconds, decimals
    shapes = [(f"{time:06.0f}", f"{time:.0f}", f"{time * 1000:.0f}", f"{time:.3f}") for time in (start, end)]
    stems = [*shapes[0], *(f"{a}_{b}" for a, b in zip(*shapes, strict=True))]
    return tuple(f"{ytid}_{stem}" for stem in dict.fromkeys(stems))


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


def gather(rows: Iterable[Row], folder: str | Path, drop_still: bool = False) -> tuple[list[Clip], Report]:
    """The clips of a list whose media lie in ``folder`` or below, in the list's order, and what is left.

    A file is the clip: it has been cut already. Audio and video of the same name are one clip.
    """
    # Each id once, with the first of its possible names that is there.
    index = media_index(folder)
    candidates: list[Clip] = []
    seen: set[str] = set()
    listed = gone = 0
    for row in rows:
        listed += 1
        if row.id in seen:
            continue
        seen.add(row.id)
        files = next((index[name] for name in row.names if name in index), None)
        if files is None:
            gone += 1
            continue
        audio = Path(files["audio"]) if "audio" in files else None
        video = Path(files["video"]) if "video" in files else None
        candidates.append(Clip(row.id, audio, video, 0.0, row.seconds, row.label, row.split))
    return examine(candidates, listed, gone, listed - len(seen), drop_still)


def examine(
    candidates: Sequence[Clip], listed: int, gone: int = 0, duplicates: int = 0, drop_still: bool = False
) -> tuple[list[Clip], Report]:
    """Open every candidate's files: clips with audio that can be opened, and what became of the others.

    A clip without an audio file gets the audio of its video. With ``drop_still`` clips whose video never
    moves (``is_still``) are left out; that decodes a frame a second.
    """
    clips: list[Clip] = []
    unreadable: dict[str, str] = {}
    counts: dict[Finding, int] = {"silent": 0, "still": 0}

    def examine_one(clip: Clip) -> tuple[Finding, Clip, str]:
        return _examine_clip(clip, drop_still)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # ``map`` submits all it gets at once, so it gets a chunk at a time.
        chunks = (candidates[n : n + CHUNK] for n in range(0, len(candidates), CHUNK))
        examined = chain.from_iterable(pool.map(examine_one, chunk) for chunk in chunks)
        quiet = not sys.stderr.isatty()
        console = Console(stderr=True)
        for finding, clip, reason in track(examined, "look", len(candidates), console=console, disable=quiet):
            if finding == "good":
                clips.append(clip)
            elif finding == "unreadable":
                unreadable[clip.id] = reason
            else:
                counts[finding] += 1
    report = Report(
        listed=listed,
        left=len(clips),
        gone=gone,
        duplicates=duplicates,
        silent=counts["silent"],
        still_frames=counts["still"] if drop_still else None,
        unreadable=unreadable,
        copies=copied(clips),
    )
    return clips, report


def _examine_clip(clip: Clip, drop_still: bool) -> tuple[Finding, Clip, str]:
    """The finding, the clip with only the streams it has, and the reason if it cannot be read."""
    try:
        # The audio is that of the first file that has any, mostly the video itself.
        streams = {path: _streams(path) for path in (clip.audio, clip.video) if path is not None}
        clip = replace(
            clip,
            audio=next((path for path, (_, has_audio) in streams.items() if has_audio), None),
            video=clip.video if clip.video is not None and streams[clip.video][0] else None,
        )
        if clip.audio is None:
            return "silent", clip, ""
        if drop_still and clip.video is not None and is_still(clip.video, clip.seconds, clip.start):
            return "still", clip, ""
    except Exception as error:  # one clip out of a million must not end the run
        return "unreadable", clip, failure(clip.video or clip.audio or clip.id, error)
    return "good", clip, ""


def _streams(path: Source) -> tuple[bool, bool]:
    """(has video, has audio) of a file; ``MediaError`` if it cannot be opened or has neither."""
    with MediaFile(path) as file:
        return file.kind != "audio", file.has_audio


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


def copied(clips: Sequence[Clip]) -> dict[str, str]:
    """Clips whose file has the same bytes as that of an earlier one: id -> the earlier one's id."""
    owners: dict[Path, str] = {}
    for clip in clips:
        path = clip.video or clip.audio
        if isinstance(path, Path):  # files on other machines are not compared
            owners.setdefault(path, clip.id)  # several clips may be windows of one file
    return {owners[path]: owners[first] for path, first in copies(owners).items()}
