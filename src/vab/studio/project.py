"""A project: a folder with a clip, sounds, and a document that says what was done with them (docs/studio.md).

Nothing that was told is lost: a sound is on the disk before the document names it, and the document before
anybody is told. What cannot be written changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vab.config import SAMPLE_RATE
from vab.errors import first_line
from vab.inference.html_report import mel_image
from vab.media.container import MediaError
from vab.media.filters import resampled
from vab.studio import arrangement as arrangements
from vab.studio.arrangement import Arrangement
from vab.studio.mix import RATE, SOUNDS, read_sound, sound_path, write_sound
from vab.studio.queue import Job, UserError
from vab.studio.takes import Take
from vab.studio.uploads import MAX_SOUND_SECONDS, MAX_VIDEO_SECONDS, UPLOAD, Clip
from vab.utils.files import atomic, leads_elsewhere, read_json, sync_folder, temporary_folder, write_whole
from vab.utils.locks import LockedError, exclusive

FORMAT, VERSION = "vab project", 1
DOCUMENT = "project.json"
LOCK = "lock"
DELETED = ".deleted"  # ends the name of a project that is being deleted
MAX_STEPS = 100  # of the history
MAX_OPEN = 20  # projects that stay open though nobody asks for them
IDLE_SECONDS = 600.0  # then nobody does: a page that is open asks again and again
MAX_SLUG = 40  # characters of a project's name in that of its folder
UNREADABLE = "A file of this project cannot be read any more."
GONE = "There is no such project: it was deleted, or its folder was moved or renamed."
_ID = re.compile(r"[0-9a-z]{1,32}")  # of a sound: it is the name of a file
_UPLOAD = re.compile(rf"{UPLOAD}(\.[a-z0-9]{{1,8}})?")
_ABOUT: dict[str, tuple[type, ...]] = {  # what a document says of a sound
    "kind": (str,),
    "title": (str,),
    "seconds": (int, float),
    "channels": (int,),
    "editable": (bool,),
    "own": (bool,),
    "score": (int, float, type(None)),
    "gain_db": (int, float),
    "timings": (dict,),
    "again": (list, type(None)),
    "num_tries": (int,),
    "made_with": (dict,),
}

Step = dict[str, Any]


class ProjectError(UserError):
    """A project that cannot be opened; the message is a sentence for the user."""


class NoProject(ProjectError):
    """There is no project of this name."""


class DiskError(UserError):
    """Something that the disk refuses, as a full one does; the message is a sentence, nothing has changed."""


@contextmanager
def keeping() -> Iterator[None]:
    """Turn what the disk refuses into a ``DiskError``."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"This cannot be kept on the disk: {first_line(error)}. Everything is as it was before."
        ) from error


class Project:
    """An open project. ``document`` is what project.json holds; it is never altered, only replaced.

    So it can be read at any time; ``lock`` is held by those who replace it.
    """

    def __init__(self, folder: Path) -> None:
        """Open the project in ``folder`` for this process alone. ``ProjectError`` if that cannot be."""
        self.folder = folder
        self.id = folder.name
        self.jobs: dict[str, Job] = {}  # the newest of each kind
        self.answers: dict[str, Any] = {}  # of finished jobs that make no sound, by kind
        self.lock = threading.RLock()
        self.is_closed = False
        self.asked = time.monotonic()  # seconds, when it was last asked for
        for name in (LOCK, SOUNDS):  # the folder may be a stranger's: nothing elsewhere is written or deleted
            if leads_elsewhere(folder / name):
                raise ProjectError(
                    f"This project cannot be opened: {name} in its folder is a link to another place. "
                    "Put what it leads to in its place."
                )
        with ExitStack() as held:
            held.enter_context(_alone(folder))
            self.document = read_document(folder)
            self._held = held.pop_all()
        self.clip = Clip.of(folder, self.document["clip"])

    def close(self) -> None:
        """Let others open it; whoever still has it here can change nothing any more."""
        self.is_closed = True
        self._held.close()

    # ---- what it holds

    @property
    def arrangement(self) -> Arrangement:
        """The arrangement as it is now."""
        found: Arrangement = self.step["arrangement"]
        return found

    @property
    def step(self) -> Step:
        """The current step of the history."""
        document = self.document
        found: Step = document["history"][document["at"]]
        return found

    def sound(self, name: str) -> dict[str, Any]:
        """What the document says of a sound; ``UserError`` if there is none."""
        try:
            found: dict[str, Any] = self.document["sounds"][name]
            return found
        except KeyError:
            raise UserError("This sound is not here any more.") from None

    def path(self, name: str, ending: str = "wav") -> Path:
        """A file of a sound."""
        return sound_path(self.folder, name, ending)

    def take(self, name: str) -> Take:
        """A sound that the model can go on from; ``UserError`` if it is none, or its files are missing."""
        about = self.sound(name)
        if not about["editable"]:
            raise UserError("The model cannot go on from this sound.")
        try:
            with np.load(self.path(name, "npz"), allow_pickle=False) as file:
                waveform, raw = file["waveform"], file["raw"]
            heard = read_sound(self.path(name))
        except (OSError, ValueError, KeyError, BadZipFile, MediaError):
            raise UserError(self._lacks(name)) from None
        return Take.of(about, heard, waveform, raw)

    def problems(self) -> list[str]:
        """A sentence for each sound of the arrangement whose file is missing."""
        names = dict.fromkeys(layer["sound"] for layer in self.arrangement["layers"])
        return [self._lacks(name) for name in names if not self.path(name).is_file()]

    def _lacks(self, name: str) -> str:
        title = self.document["sounds"][name]["title"]
        return f"The sound “{title}” cannot be read: put sounds/{name}.wav back, or remove its layer."

    # ---- changes

    def change(
        self,
        did: str,
        how: Callable[[Arrangement], Arrangement],
        sounds: Mapping[str, Any] | None = None,
        amended: Step | None = None,
        since: Step | None = None,
    ) -> Step:
        """Add a step to the history: ``how`` makes the new arrangement of that which is there.

        ``sounds``: what the document says of new ones, whose files are written. ``amended``: a step whose
        place the new one takes, undone or not, if it is still the last one. Else those that were undone are
        gone, unless the current step is another one than that of the request, ``since``: then the new step
        comes after them. Returns the step. ``DiskError`` if the disk refuses it.
        """
        with self.lock:
            steps, at = list(self.document["history"]), self.document["at"]
            if amended is not None and steps[-1] is amended:
                before = steps.pop()
            else:
                before = steps[at]
                if since is None or since is before:
                    del steps[at + 1 :]
                at = len(steps)
            step = {"did": did, "arrangement": how(before["arrangement"])}
            steps.append(step)
            too_many = max(0, len(steps) - MAX_STEPS)
            everything = {**self.document["sounds"], **(sounds or {})}
            self._keep({"sounds": everything, "history": steps[too_many:], "at": max(0, at - too_many)})
            return step

    def go(self, at: int) -> None:
        """Make another step of the history the current one. ``UserError`` if there is none."""
        with self.lock:
            if not 0 <= at < len(self.document["history"]):
                raise UserError("There is no such step.")
            if at != self.document["at"]:
                self._keep({"at": at})

    def rename(self, name: str) -> None:
        """Give the project another name; its folder stays where it is."""
        if not name:
            raise UserError("A project needs a name.")
        with self.lock:
            self._keep({"name": name})

    def count_try(self, name: str) -> int:
        """Number of the next try at a sound, undone or not: each has a seed of its own."""
        with self.lock:
            about = self.sound(name)
            tries: int = about["num_tries"] + 1
            self._keep({"sounds": {**self.document["sounds"], name: about | {"num_tries": tries}}})
            return tries

    def write_sound(self, take: Take) -> str:
        """Write the files of a new sound, which no document names yet; its id. ``DiskError``."""
        self._check_folder()
        name = secrets.token_hex(6)
        try:
            with keeping():
                self.path(name).parent.mkdir(exist_ok=True)
                write_sound(self.path(name), take.heard)
                if take.waveform is not None and take.raw is not None:
                    with atomic(self.path(name, "npz")) as temporary, temporary.open("wb") as file:
                        np.savez(file, waveform=take.waveform, raw=take.raw)
                with atomic(self.path(name, "png")) as temporary:
                    Image.fromarray(mel_image(_as_seen(take))).save(temporary)
        except BaseException:
            self.forget_sound(name)
            raise
        return name

    def forget_sound(self, name: str) -> None:
        """Delete the files of a sound that no document names, as far as the disk lets them go."""
        for path in self.path(name).parent.glob(f"{name}.*"):  # with what was computed from it
            with suppress(OSError):
                path.unlink()

    def _check_folder(self) -> None:
        """``ProjectError`` if it was let go, or is not there: writing into it would make another one."""
        if not (self.folder / DOCUMENT).is_file():
            raise NoProject(GONE)
        if self.is_closed:
            raise ProjectError("This project was closed meanwhile: load its page again.")

    def _keep(self, values: Mapping[str, Any]) -> None:
        """Write the document with other values, then go by it; sounds that no step refers to go."""
        self._check_folder()
        document = {**self.document, **values, "id": self.id, "changed": _now()}
        used = {layer["sound"] for step in document["history"] for layer in step["arrangement"]["layers"]}
        unused = document["sounds"].keys() - used
        if unused:
            kept = {name: about for name, about in document["sounds"].items() if name in used}
            document = {**document, "sounds": kept}
        write_document(self.folder, document)
        self.document = document
        for name in unused:
            self.forget_sound(name)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a project's lock. ``ProjectError`` if another process has it, or the disk refuses it."""
    try:
        with exclusive(folder / LOCK, "has this project open"):
            yield
    except LockedError as error:
        raise ProjectError(f"{str(error)[0].upper()}{str(error)[1:]}.") from None
    except OSError as error:
        raise ProjectError(f"This project cannot be opened: {first_line(error)}.") from None


class Projects:
    """The projects in a folder, and those of them that this process has open."""

    def __init__(self, folder: Path) -> None:
        """``OSError`` if the folder is missing and cannot be made."""
        folder.mkdir(parents=True, exist_ok=True)
        for gone in folder.glob(f".*{DELETED}"):  # by a process that was killed meanwhile
            delete_folder(gone)
        self.folder = folder
        self._open: dict[str, Project] = {}
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[object, dict[str, Any]]] = {}  # entries, by what their file was then

    def entries(self) -> list[dict[str, Any]]:
        """What a list of the projects shows of each, the one that was changed last first.

        One that cannot be read has a ``problem``, a sentence.
        """
        folders = [path.parent for path in self.folder.glob(f"*/{DOCUMENT}") if path.parent.name[0] != "."]
        entries = [self._entry(folder) for folder in folders]
        return sorted(entries, key=lambda entry: str(entry["changed"]), reverse=True)

    def _entry(self, folder: Path) -> dict[str, Any]:
        try:
            status = (folder / DOCUMENT).stat()
            now = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._known.get(folder)
            if known is not None and known[0] == now:
                return known[1]
            entry = _entry(folder, status.st_mtime)
        except OSError as error:
            return _troubled(folder, f"This project cannot be read: {first_line(error)}.", 0)
        self._known[folder] = (now, entry)
        return entry

    def open(self, name: str) -> Project:
        """A project by the name of its folder, opened if it is not. ``NoProject``, ``ProjectError``."""
        with self._lock:
            if name in self._open and not (self._open[name].folder / DOCUMENT).exists():
                self._open.pop(name).close()
            project = self._open.pop(name, None) or Project(self.path(name))
            project.asked = time.monotonic()
            self._open[name] = project  # those that were asked for last are the last ones
            self._close_idle()
            return project

    def _close_idle(self) -> None:
        """Close those that nobody looks at and that nothing is made for; a few may stay open."""
        for project in list(self._open.values())[:-MAX_OPEN]:
            is_idle = time.monotonic() - project.asked > IDLE_SECONDS
            if is_idle and not any(job.active for job in list(project.jobs.values())):
                self._open.pop(project.id).close()

    def path(self, name: str) -> Path:
        """The folder of a project. ``NoProject``."""
        folder = self.folder / name
        # os.path.exists is False for what no folder can be called, too
        if Path(name).name != name or name[:1] in ("", ".") or not os.path.exists(folder / DOCUMENT):
            raise NoProject(GONE)
        return folder

    def jobs(self, name: str) -> list[Job]:
        """The newest jobs of a project; none of one that this process does not have open."""
        with self._lock:
            return list(self._open[name].jobs.values()) if name in self._open else []

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """An empty folder for a clip that becomes a project, or goes in the end."""
        with temporary_folder(self.folder / "new") as folder:
            yield folder

    def create(self, clip: Clip, name: str, settings: Mapping[str, Any]) -> Project:
        """Make a project of a clip, whose folder is one of ``new_folder``. ``OSError``."""
        # 1. The document, and everything beside it on the disk.
        now = _now()
        name = " ".join(name.split())[: arrangements.MAX_TEXT] or "Untitled"
        path = self.folder / f"{_slug(name)}-{_random(6)}"
        step = {"did": "project made", "arrangement": arrangements.empty(settings)}
        document = {
            "format": f"{FORMAT} {VERSION}",
            "id": path.name,
            "name": name,
            "created": now,
            "changed": now,
            "clip": clip.values,
            "sounds": {},
            "history": [step],
            "at": 0,
        }
        for file in clip.folder.iterdir():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        write_document(clip.folder, document)

        # 2. Its own name: from now on it is there.
        clip.folder.rename(path)
        sync_folder(self.folder)
        return self.open(path.name)

    def delete(self, name: str) -> None:
        """Delete a project with all of its files, also one that cannot be opened; nothing that a link names.

        ``NoProject``; ``ProjectError`` if another process has it open; ``DiskError``.
        """
        with self._lock, ExitStack() as held:
            folder, project = self.path(name), self._open.get(name)
            if project is not None:
                held.enter_context(project.lock)
            elif not leads_elsewhere(folder / LOCK):  # else nobody can have it open
                held.enter_context(_alone(folder))
            # First the name, so that there is never half a project; that needs no room on a full disk.
            gone = folder.with_name(f".{name}{DELETED}")
            with keeping():
                folder.rename(gone)
            if project is not None:
                self._open.pop(name).close()
        delete_folder(gone)

    def close(self) -> None:
        """Let others open them."""
        with self._lock:
            for project in self._open.values():
                project.close()
            self._open.clear()


def delete_folder(folder: Path) -> None:
    """Delete a folder as far as the disk lets it go; of one that is a link, the link."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def read_document(folder: Path) -> dict[str, Any]:
    """The document of a project, as this version has it. ``ProjectError`` says why it cannot be used."""
    try:
        document = read_json(folder / DOCUMENT)
        _as_bytes(document)  # what could not be written again is not taken either
    except (ValueError, RecursionError) as error:
        raise ProjectError(_damaged(_unread(error))) from None
    except OSError as error:
        raise ProjectError(f"{DOCUMENT} cannot be read: {first_line(error)}.") from None
    found = re.fullmatch(rf"{FORMAT} (\d{{1,9}})", str(document.get("format")))
    if found is None:
        raise ProjectError(_damaged(f'its "format" is not "{FORMAT} {VERSION}"'))
    if int(found[1]) > VERSION:
        raise ProjectError(
            f"This project was made by a newer version of vab (format {found[1]}, and this one reads up to "
            f"{VERSION}): update vab to open it."
        )
    try:
        _check(document)
    except UserError as error:
        raise ProjectError(_damaged(str(error).rstrip("."))) from None
    except KeyError as error:
        raise ProjectError(_damaged(f"{error} is missing in it")) from None
    except (TypeError, ValueError, AttributeError, IndexError):
        raise ProjectError(_damaged("something in it is not as it is written here")) from None
    return document


def write_document(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the document whole or not at all. ``DiskError``."""
    content, path = _as_bytes(document), folder / DOCUMENT
    with keeping():
        try:
            write_whole(path, content)
        except OSError:
            if path.read_bytes() != content:  # else it has its name, and only a sync after that was refused
                raise


def _as_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as JSON in UTF-8. ``ValueError`` for NaN, an endless number, and half a letter."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _damaged(reason: str) -> str:
    return (
        f"This project's {DOCUMENT} is damaged: {reason}. Nothing else in its folder was touched: put a copy "
        f"of {DOCUMENT} back to open it."
    )


def _unread(error: Exception) -> str:
    """What is wrong with a file that is no document at all, in words of those who do not know JSON."""
    if not isinstance(error, json.JSONDecodeError):  # no text, or text of another kind
        return str(error) if str(error).startswith("it ") else "it holds something else than a project"
    if not error.doc.strip("\0 \r\n\t"):
        return "it is empty"
    if not error.doc.rstrip().endswith("}"):
        return "it ends in the middle, as if its writing or copying had been cut off"
    return f"it was changed by another program, or its disk failed (line {error.lineno})"


def _check(document: Mapping[str, Any]) -> None:
    """Raise UserError, KeyError, TypeError or ValueError for a document that is not as it is written here."""
    # 1. What the clip is: the name of its file has no folders.
    for name in ("id", "name", "created", "changed"):
        _is(document[name], name, str)
    clip = Clip.of(Path(), document["clip"])
    if clip.kind not in ("video", "image") or _UPLOAD.fullmatch(clip.upload) is None:
        raise UserError("its clip is none")
    _is(clip.name, "the name of its clip", str)
    _is(clip.has_sound, "has_sound", bool)
    _is(clip.timecode, "the timecode of its clip", str, type(None))
    _is_in(clip.seconds, "the seconds of its clip", MAX_VIDEO_SECONDS)
    _is_in(clip.fps, "the frame rate of its clip", math.inf)
    width, height = clip.shown
    for value in (clip.width, clip.height, width, height):
        _is(value, "a side of its clip", int)
        _is_in(value, "a side of its clip", math.inf)

    # 2. The sounds.
    for sound, about in document["sounds"].items():
        if _ID.fullmatch(sound) is None:
            raise UserError(f"{sound!r:.80} is no name of a sound")
        for name, kinds in _ABOUT.items():
            _is(about[name], f"{name} of a sound", *kinds)
        _is(about.get("parent"), "the parent of a sound", str, type(None))
        _is_in(about["seconds"], "the seconds of a sound", MAX_SOUND_SECONDS)
        for value in [*about["timings"].values(), *(about["again"] or ())]:
            _is(value, "a time of a sound", int, float)

    # 3. The history refers to sounds that there are.
    steps = document["history"]
    _is(document["at"], '"at"', int)
    if not 0 <= document["at"] < len(steps):
        raise UserError('"at" is no step of its history')
    for step in steps:
        _is(step["did"], "did", str)
        arrangement = step["arrangement"]
        for name in arrangements.SETTINGS:
            arrangement["settings"][name]
        arrangements.checked_settings({}, arrangement["settings"])
        if arrangements.checked_marks(arrangement["marks"]) != arrangement["marks"]:
            raise UserError("its marks are not as they are written here")
        if arrangements.checked_curve(arrangement["curve"]) != arrangement["curve"]:
            raise UserError("its curve is not as it is written here")
        _is(arrangement["layers"], "layers", list)
        arrangements.with_layers({}, arrangement["layers"])
        for layer in arrangement["layers"]:
            if layer["sound"] not in document["sounds"]:
                raise UserError(f"a layer has the sound {layer['sound']!r:.80}, which is not in the list")
            for name in ("id", "name"):
                _is(layer[name], f"the {name} of a layer", str)
            for name in arrangements.EDITS:
                layer[name]
            if arrangements.changed(layer, layer, document["sounds"])["stop"] != layer["stop"]:
                raise UserError("a layer goes beyond the end of its sound")


def _is(value: object, name: str, *kinds: type) -> None:
    if type(value) not in kinds:  # True is no number
        raise UserError(f"{name} is {value!r:.80}")


def _is_in(value: Any, name: str, most: float) -> None:
    """A number above 0, up to ``most``."""
    _is(value, name, int, float)
    if not 0 < value <= most:
        raise UserError(f"{name} is {value!r:.80}")


def _entry(folder: Path, modified: float) -> dict[str, Any]:
    try:
        document = read_document(folder)
    except ProjectError as error:
        return _troubled(folder, str(error), modified)
    layers = document["history"][document["at"]]["arrangement"]["layers"]
    return {
        "id": folder.name,
        "name": document["name"],
        "changed": document["changed"],
        "kind": document["clip"]["kind"],
        "seconds": document["clip"]["seconds"],
        "num_layers": len(layers),
        "poster": True,
        "problem": None,
    }


def _troubled(folder: Path, problem: str, modified: float) -> dict[str, Any]:
    changed = datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds")
    about = {"kind": None, "seconds": None, "num_layers": 0, "poster": (folder / "poster.jpg").is_file()}
    return {"id": folder.name, "name": folder.name, "changed": changed, **about, "problem": problem}


def _as_seen(take: Take) -> NDArray[np.float32]:
    """The sound [S] at 16 kHz for its mel spectrogram."""
    if take.waveform is not None:
        return take.waveform
    heard = take.heard.mean(0, keepdims=True)
    return resampled(heard, RATE, SAMPLE_RATE, max(1, round(heard.shape[1] * SAMPLE_RATE / RATE)))[0]


def _slug(name: str) -> str:
    """A name in small ASCII letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:MAX_SLUG].strip("-") or "project"


def _random(count: int) -> str:
    return "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(count))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
