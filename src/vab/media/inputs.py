"""Names on the command line -> media files: files, folders, patterns, lists."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vab.errors import VABError, first_line
from vab.media.container import remote
from vab.utils.tables import ListError, read_table

# Endings of files that a folder is searched for.
# fmt: off
VIDEOS = (
    ".3g2", ".3gp", ".apng", ".asf", ".avi", ".dv", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m2v", ".m4v",
    ".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".ts",
    ".vob", ".webm", ".wmv",
)
IMAGES = (
    ".avif", ".bmp", ".heic", ".heif", ".hif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".psd", ".tga",
    ".tif", ".tiff", ".webp",
)
AUDIO = (
    ".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg",
    ".opus", ".wav", ".wma", ".wv",
)
# fmt: on

LISTS = {".csv": ",", ".tsv": "\t"}  # endings, and the separator that goes without saying
COLUMNS = ("video", "image", "file", "path", "filename")  # of a list; the first that a row fills is used


class NoInputs(VABError, ValueError):
    """Nothing that was named holds a file to work on."""


@dataclass(frozen=True)
class Input:
    """A file to work on, and where it was found."""

    path: Path
    tree: Path | None = None  # the folder that was named, or that of the pattern or list; None: named alone

    @property
    def folder(self) -> Path:
        """The absolute folder from which ``place`` goes."""
        return Path(os.path.abspath(self.path.parent if self.tree is None else self.tree))

    @property
    def place(self) -> Path:
        """The path of the file below ``folder``."""
        return Path(os.path.relpath(os.path.abspath(self.path), self.folder))


@dataclass
class Inputs:
    """What names stand for. What cannot be used is told, and so is what is left out on purpose."""

    files: list[Input] = field(default_factory=list)  # each once
    faults: dict[str, str] = field(default_factory=dict)  # name -> the line that says why it cannot be used
    notes: list[str] = field(default_factory=list)  # lines on links to the same folder, and on unusual lists

    @property
    def paths(self) -> list[Path]:
        """The files alone."""
        return [file.path for file in self.files]


def expand(
    names: Iterable[str | Path], leave_out: Path | None = None, kinds: tuple[str, ...] = VIDEOS + IMAGES
) -> Inputs:
    """The files that ``names`` stand for, each once, in order.

    A folder is every file of these ``kinds`` (endings) in it and below, in the order of ``Tree``; hidden
    files, and those in the folder ``leave_out``, are not looked at. A name with ``*``, ``?`` or ``[`` that
    does not exist is a pattern (``**`` is any folders). A list (``.csv``, ``.tsv``) names files in one of
    ``COLUMNS``, relative to its own folder; its rows may be those of a manifest, if they start at 0. Anything
    else is a file and stays as it is. ``NoInputs`` if that is nothing at all.
    """
    search = _Search(kinds, Tree(leave_out))
    empty = {str(name): reason for name in names if (reason := search.add(str(name)))}
    faults = search.faults | search.tree.faults
    if not search.files and not faults:
        raise NoInputs("; ".join(empty.values()) or "no input is given")
    return Inputs(
        [*search.files.values()], empty | faults, list(dict.fromkeys(search.notes + search.tree.notes))
    )


class Tree:
    """Folders and all that is below them, each folder once, however many links and names lead to it.

    What cannot be read goes to ``faults`` and what is passed over to ``notes``, as in ``Inputs``. Hidden
    files and folders, and the folder ``leave_out``, are not looked at.
    """

    def __init__(self, leave_out: Path | None = None) -> None:
        self.leave_out = None if leave_out is None else os.path.realpath(leave_out)
        self.faults: dict[str, str] = {}
        self.notes: list[str] = []
        self._seen: dict[str, str] = {}  # real path of a folder -> the name by which it was first reached

    def __contains__(self, folder: str) -> bool:
        """True for a folder whose files have been given out."""
        return os.path.realpath(folder) in self._seen

    def leaves_out(self, path: str | Path) -> bool:
        """True for what lies in the folder that is not looked at."""
        return self.leave_out is not None and Path(os.path.realpath(path)).is_relative_to(self.leave_out)

    def folders(self, root: str) -> Iterator[tuple[str, list[str]]]:
        """(folder, sorted names of its files) of ``root`` and of the folders below it, sorted.

        Linked folders come last, so that what can be reached without a link keeps its own name.
        """
        waiting = deque([root])
        while waiting:
            start = waiting.popleft()
            if start != root and self._leads_back(start):
                continue
            for folder, below, files in os.walk(start, onerror=self._unreadable):
                # 1. Each folder once.
                real = os.path.realpath(folder)
                first = self._seen.setdefault(real, folder)
                if first is not folder or (real == self.leave_out and folder != root):
                    if os.path.abspath(first) != os.path.abspath(folder):
                        self.notes.append(f"{folder}: is the folder {first} by another name; it is done once")
                    below.clear()
                    continue

                # 2. os.walk goes only into the folders that are left in this list, in its order.
                visible = sorted(name for name in below if not name.startswith("."))
                links = [name for name in visible if os.path.islink(os.path.join(folder, name))]
                below[:] = [name for name in visible if name not in links]
                waiting.extend(os.path.join(folder, name) for name in links)
                yield folder, sorted(name for name in files if not name.startswith("."))

    def files(self, root: str, endings: Collection[str] | None = None) -> Iterator[str]:
        """The files with these endings (None: all) in ``root`` and below."""
        for folder, names in self.folders(root):
            for name in names:
                path = os.path.join(folder, name)
                if endings is None or os.path.splitext(name)[1].lower() in endings:
                    yield path
                elif os.path.islink(path) and not os.path.exists(path):  # it may have been a folder
                    self.faults[path] = f"{path}: is a link to {os.readlink(path)}, which is not there"

    def again(self) -> Tree:
        """A second look at the same folders, which adds to the same lines."""
        tree = Tree()
        tree.leave_out, tree.faults, tree.notes = self.leave_out, self.faults, self.notes
        return tree

    def _leads_back(self, link: str) -> bool:
        """True, with a note, for a link to a folder that it lies in: following it would never end."""
        real = os.path.realpath(link)
        around = os.path.realpath(os.path.dirname(link))
        if real not in (around, *map(str, Path(around).parents)):
            return False
        self.notes.append(f"{link}: is a link to a folder around it, {real}; it is not followed")
        return True

    def _unreadable(self, error: OSError) -> None:
        self.faults[str(error.filename)] = f"{error.filename}: cannot be searched ({first_line(error)})"


class _Search:
    """What has been found for the names so far."""

    def __init__(self, kinds: tuple[str, ...], tree: Tree) -> None:
        self.kinds = kinds
        self.tree = tree
        self.files: dict[tuple[str, str], Input] = {}  # by real folder and name
        self.faults: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, name: str) -> str | None:
        """Add what one name stands for; the line to say if it stands for nothing."""
        path = Path(name)
        if os.path.isdir(name):
            wanted = "video or image" if self.kinds == VIDEOS + IMAGES else "media"
            return None if self._add_folder(name, path) else f"{name}: has no {wanted} in it"
        if path.suffix.lower() in LISTS and os.path.isfile(name):
            return self._add_list(path)
        if not os.path.lexists(name):
            if line := remote(name):
                self.faults[name] = line
                return None
            if pattern := _pattern(path):
                return None if self._add_matches(*pattern) else f"{name}: no file matches"
        self._add(path)
        return None

    def _add(self, path: Path, tree: Path | None = None) -> None:
        """Add a file; one that is there already by another name is told."""
        real = os.path.realpath(path.parent)
        first = self.files.setdefault((real, path.name), Input(path, tree)).path
        if os.path.abspath(first) != os.path.abspath(path):
            self.notes.append(f"{path}: is {first} by another name; it is done once")

    def _add_folder(self, name: str, tree: Path) -> bool:
        """Add the media in a folder, as found in ``tree``; False if there are none."""
        found = name in self.tree
        told = len(self.tree.notes)
        for file in self.tree.files(name, self.kinds):
            self._add(Path(file), tree)
            found = True
        return found or len(self.tree.notes) > told

    def _add_matches(self, folder: Path, parts: Sequence[str]) -> bool:
        """Add what matches a pattern below a folder; False if nothing does."""
        found = False
        for match in sorted(set(_matches(str(folder), parts, self.tree))):
            if self.tree.leaves_out(match) and not self.tree.leaves_out(folder):
                continue
            if os.path.isdir(match):
                found = self._add_folder(match, folder) or found
            else:
                self._add(Path(match), folder)
                found = True
        return found

    def _add_list(self, path: Path) -> str | None:
        """Add the files that the rows of a list name; the line to say if it has no rows."""
        # 1. The columns with names, in the order of preference.
        wanted = COLUMNS if self.kinds == VIDEOS + IMAGES else (*COLUMNS, "audio")
        try:
            table = read_table(path, wanted)
            chosen = [name for name in wanted if name in table.names]
            if not chosen:
                raise ListError(
                    f"{path}: has no column called video (or {', '.join(wanted[1:])}); it has {table}"
                )
            rows = list(table.rows)
        except ListError as error:
            self.faults[str(path)] = str(error)
            return None
        if chosen[0] != "video" or table.separator != LISTS[path.suffix.lower()]:
            self.notes.append(f"{path}: read by its column {chosen[0]}; it has {table}")

        # 2. Each row, relative to the list.
        for number, fields in rows:
            row = dict(zip(table.names, fields, strict=False))
            name = next((row[column] for column in chosen if row.get(column, "").strip()), None)
            key = f"{path}:{number}"
            if name is None:
                self.faults[key] = f"{path}: line {number} names no {chosen[0]}"
            elif row.get("start", "").strip(" 0.,"):
                reason = f"starts at {row['start']} s; only whole files can be used here"
                self.faults[key] = f"{path}: line {number} {reason}"
            elif line := remote(name):
                self.faults[key] = f"{path}: line {number}: {line}"
            else:
                file = _spelled(path.parent, name)
                below = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(path.parent))
                self._add(file, path.parent if below else None)
        return None if rows else f"{path}: is a list without a row; it has {table}"


def _pattern(path: Path) -> tuple[Path, tuple[str, ...]] | None:
    """The folder from which a pattern goes, and its parts below; None for a name that is no pattern."""
    # A folder may have a name that looks like a pattern.
    folder = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    while parts and (os.path.isdir(folder / parts[0]) or not glob.has_magic(parts[0])):
        folder /= parts[0]
        parts = parts[1:]
    return (folder, parts) if parts else None


def _matches(folder: str, parts: Sequence[str], tree: Tree) -> Iterator[str]:
    """The files and folders that match the parts of a pattern below a folder."""
    if "**" not in parts:
        yield from (os.path.join(folder, match) for match in glob.glob(os.path.join(*parts), root_dir=folder))
        return
    # `**` is the walk of a tree, which knows links that lead back.
    at = parts.index("**")
    rest = parts[at + 1 :]
    for start in [folder] if at == 0 else [*_matches(folder, parts[:at], tree)]:
        if not rest:
            yield start
        elif os.path.isdir(start):
            for below, _ in tree.again().folders(start):
                yield from _matches(below, rest, tree)


def _spelled(folder: Path, name: str) -> Path:
    """The file that a row of a list names: as it stands there, or as the disk may spell it."""
    text = name.strip()
    spellings = [name, text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    for encoding in ("utf-8", "cp1252"):  # in which the names on disk may be, whatever the locale says
        with suppress(UnicodeEncodeError):
            spellings.append(os.fsdecode(text.encode(encoding)))
    return next((folder / one for one in spellings if os.path.lexists(folder / one)), folder / text)
