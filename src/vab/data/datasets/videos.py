"""Which video a clip is of: what keeps the same video from being learned from and tested on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vab.media.inputs import AUDIO, IMAGES, VIDEOS
from vab.utils.provenance import sha256
from vab.utils.tables import ListError, read_csv, read_table, read_text

# An id has 11 letters, digits, - and _. What may follow begins with _ and a digit, so that a Y in front is
# never mistaken for the first of the 11, nor the first of the 11 for such a Y.
_YOUTUBE = re.compile(r"Y?([A-Za-z0-9_-]{11})(?:_\d+(?:\.\d+)?){0,2}(?:\.[A-Za-z0-9]{1,5})?", re.ASCII)
_WINDOW = re.compile(r"#\d+$")  # of a long file, in the ids of vab data folder
COLUMNS = ("id", "ytid", "youtube_id", "video_id", "video", "audio", "file", "filename", "path", "name")
FILES = frozenset((*VIDEOS, *IMAGES, *AUDIO))


def youtube_id(name: str) -> str | None:
    """The 11 characters of the YouTube video that a clip or a file is named after; None if it is not.

    Names are ``<id>``, ``<id>_<start>`` or ``<id>_<start>_<end>``, with or without a ``Y`` in front, a folder
    and an ending: all that official lists and downloaders make of it.
    """
    found = _YOUTUBE.fullmatch(_WINDOW.sub("", name).rpartition("/")[2])
    return None if found is None else found[1]


def video_of(name: str) -> str:
    """The video that a clip is of: its YouTube id, or for other names the name without its ending."""
    name = _WINDOW.sub("", name)
    ending = Path(name).suffix
    return youtube_id(name) or (name.removesuffix(ending) if ending.lower() in FILES else name)


def falls_into(name: str, share: float) -> bool:
    """True for that share of all videos, by a hash of the id of the video that ``name`` is of.

    One video falls the same way in every list and on every machine, and into every larger share.
    """
    # other names by themselves, as in version 0.1.0
    return int(sha256(youtube_id(name) or name)[:8], 16) / 0x100000000 < share


@dataclass(frozen=True)
class VideoList:
    """The videos of a list, to be kept out of a set."""

    path: Path
    videos: frozenset[str]
    note: str = ""  # a line on rows that name no video


class Exclusion:
    """Keeps the videos of lists out of what is learned from, and counts their clips by list.

    Clips of the split test stay (unless ``tests_too``), for nothing learns from them, and a test set has to
    be whole: hundreds of VGGSound's are of videos that AudioSet tests on.
    """

    def __init__(self, lists: Sequence[VideoList] = (), tests_too: bool = False) -> None:
        self.lists = lists
        self.tests_too = tests_too
        self.excluded = {str(videos.path): 0 for videos in lists}
        self.kept_tests = dict(self.excluded)

    def keeps_out(self, name: str, split: str) -> bool:
        """True if the video of a clip of this name is in a list; counted for the first that has it."""
        video = video_of(name) if self.lists else ""
        for videos in self.lists:
            if video in videos.videos:
                stays = split == "test" and not self.tests_too
                (self.kept_tests if stays else self.excluded)[str(videos.path)] += 1
                return not stays
        return False


def read_videos(path: str | Path, youtube: bool = True) -> VideoList:
    """The videos of a list: of its split test if there is one, else all. ``youtube``: by their ids alone.

    A list is an official one (of VGGSound, AudioSet, MSR-VTT, CAV-MAE's JSON), a manifest, a table with one
    of ``COLUMNS``, or names one a line. ``ListError`` if it cannot be read or names no video.
    """
    path = Path(path)
    tested: set[str] = set()
    others: set[str] = set()
    rows = unread = 0
    odd = ""
    for names, split in _entries(path):
        rows += 1
        video = next(filter(None, map(youtube_id, names)), None)
        if video is None and names and not youtube:
            video = video_of(names[0])
        if video is not None:
            (tested if split == "test" else others).add(video)
        else:
            unread += 1
            odd = odd or next(iter(names), "")
    kind = "YouTube video" if youtube else "video"
    if not tested | others:
        about = f", its first says {odd[:40]!r}" if odd else ""
        raise ListError(f"{path}: none of its {rows} rows names a {kind}{about}; give a list of ids")
    note = f"{path}: {unread} of its {rows} rows name no {kind}, such as {odd[:40]!r}" if unread else ""
    return VideoList(path, frozenset(tested or others), note)


def _entries(path: Path) -> Iterator[tuple[list[str], str]]:
    """(what may name the video, the likeliest first; its split or nothing) of each row of a list."""
    # 1. JSON: {"data": [{"video_id": ...}]}, {"videos": [{"video_id": ..., "split": ...}]} or ["id", ...].
    if path.suffix.lower() == ".json":
        yield from _json_entries(path)
        return

    # 2. A table whose header has a column that we know.
    table = read_table(path, (*COLUMNS, "split"))
    columns = [column for column in COLUMNS if column in table.names]
    if columns:
        for _, fields in table.rows:
            row = dict(zip(table.names, map(str.strip, fields), strict=False))
            yield [row[name] for name in columns if row.get(name)], row.get("split", "").lower()
        return

    # 3. Rows without a header begin with the name; those of vggsound.csv end with the split.
    for _, fields in read_csv(path):
        split = fields[3] if len(fields) == 4 and fields[3] in ("train", "test") else ""
        yield [name for name in fields[0].split("\t")[:1] if name], split


def _json_entries(path: Path) -> Iterator[tuple[list[str], str]]:
    try:
        content: Any = json.loads(read_text(path))
        if isinstance(content, dict):
            content = content["data"] if "data" in content else content["videos"]
        for entry in content:
            if isinstance(entry, str):
                yield [entry], ""
            else:
                yield [str(entry["video_id"])], str(entry.get("split", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ListError(
            f'{path}: not json like {{"data": [{{"video_id": "..."}}]}} or ["...", "..."]'
        ) from None
