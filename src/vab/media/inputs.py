"""Names on the command line -> media files: files, folders, patterns, CSV lists."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from vab.errors import VABError

# Endings of files that a folder is searched for.
# fmt: off
VIDEOS = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
    ".ogv", ".ts", ".vob", ".webm", ".wmv",
)
IMAGES = (".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
AUDIO = (
    ".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg",
    ".opus", ".wav", ".wma", ".wv",
)
# fmt: on

Entry = tuple[Path, str | None]  # a file, and why it cannot be used (None: it can be tried)


class NoInputs(VABError, ValueError):
    """Nothing that was named holds a file to work on."""


def expand(
    names: Iterable[str | Path], leave_out: Path | None = None, kinds: tuple[str, ...] = VIDEOS + IMAGES
) -> list[Entry]:
    """The files that ``names`` stand for, each once, in order.

    A folder is every file of these ``kinds`` (endings) in it and below, sorted; hidden files, and those in
    the folder ``leave_out``, are not looked at. A name with ``*``, ``?`` or ``[`` that does not exist is a
    pattern (``**`` is any folders). A ``.csv`` lists files in its column ``video``, relative to its own
    folder; its rows may be those of a manifest, if they start at 0. Anything else is a file and stays as it
    is. ``NoInputs`` if that is nothing at all.
    """
    # Keyed by absolute path, so that a file which is named twice comes once.
    entries: dict[tuple[str, str | None], Entry] = {}
    empty: list[Entry] = []
    for name in names:
        matches = list(_expand(Path(name), leave_out, kinds))
        if not matches:
            wanted = "video or image" if kinds == VIDEOS + IMAGES else "media"
            reason = f"has no {wanted} in it" if Path(name).is_dir() else "no file matches"
            empty.append((Path(name), reason))
        for entry in matches:
            entries.setdefault((os.path.abspath(entry[0]), entry[1]), entry)
    if not entries:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in empty)
        raise NoInputs(reasons or "no input is given")
    return [*entries.values(), *empty]


def _expand(path: Path, leave_out: Path | None, kinds: tuple[str, ...]) -> Iterator[Entry]:
    """The files that one name stands for; none for an empty folder or a pattern without a match."""
    if path.is_dir():
        yield from ((file, None) for file in _media_below(path, leave_out, kinds))
    elif path.suffix.lower() == ".csv" and path.is_file():
        yield from _read_list(path)
    elif not path.exists() and glob.has_magic(str(path)):
        for match in sorted(glob.glob(str(path), recursive=True)):
            yield from _expand(Path(match), leave_out, kinds)
    else:
        yield path, None


def _media_below(folder: Path, leave_out: Path | None, kinds: tuple[str, ...]) -> Iterator[Path]:
    """The files of these kinds in a folder and below, sorted, without hidden ones."""
    excluded = leave_out.resolve() if leave_out is not None else None
    for directory, folders, files in os.walk(folder):
        here = Path(directory)
        # os.walk goes only into the folders that are left in this list, in its order.
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and (here / name).resolve() != excluded
        )
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in kinds:
                yield here / name


def _read_list(path: Path) -> Iterator[Entry]:
    """The files in the column ``video`` of a CSV; a row that cannot be used comes with the reason."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if "video" not in (reader.fieldnames or []):
                yield path, "has no column called video"
                return
            for row in reader:
                line = f"line {reader.line_num}"
                if not row["video"]:
                    yield path.with_name(f"{path.name}:{reader.line_num}"), f"{line} names no video"
                elif (row.get("start") or "").strip(" 0."):
                    reason = f"{line} of {path} starts at {row['start']} s; only whole files can be used here"
                    yield path.parent / row["video"], reason
                else:
                    yield path.parent / row["video"], None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        yield path, f"cannot be read as a list ({error})"


def copies(paths: Iterable[Path]) -> dict[Path, Path]:
    """Map each file with the same bytes as one before it to the first of these; unreadable ones are none."""
    # Only files of the same size can be alike: hash no others.
    sizes: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        with suppress(OSError):
            sizes.setdefault(path.stat().st_size, []).append(path)
    originals: dict[Path, Path] = {}
    for candidates in sizes.values():
        if len(candidates) < 2:
            continue
        first_of: dict[str, Path] = {}  # by hash
        for path in candidates:
            with suppress(OSError), path.open("rb") as stream:
                original = first_of.setdefault(hashlib.file_digest(stream, "sha256").hexdigest(), path)
                if original != path:
                    originals[path] = original
    return originals
