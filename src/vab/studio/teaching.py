"""Models of one's own: the studio teaches its model a folder of labelled sounds and pictures.

The folder arrives file by file and is looked at as other uploads are. Then a process of its own learns as
``vab learn`` does, nice to the others; it ends with the studio. All of it lies in ``models/.teaching`` until
the model is whole and gets its name, ``models/NAME``. What is cut off goes on with the next studio.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any

from vab.errors import first_line, for_people
from vab.media.inputs import AUDIO, IMAGES, VIDEOS
from vab.models.hub import CONFIG, ModelError, find_model, is_model, read_config
from vab.studio.project import DELETED, delete_folder
from vab.studio.queue import INTERNAL_ERROR, UserError
from vab.studio.uploads import UploadError, look_at_folder, shown_name
from vab.utils import count_of
from vab.utils.device import Device
from vab.utils.files import json_object, read_json, sync_folder, write_json
from vab.utils.locks import LockedError, exclusive, lock
from vab.utils.processes import PATIENCE

ENDINGS = AUDIO + IMAGES + VIDEOS  # of the files that are learned from
MAX_FILES = 5000  # of a folder
MAX_FOLDER_BYTES = 4 << 30
MAX_DEPTH = 8  # folders in one another
MAX_PART = 200  # bytes of the name of each
MAX_SHOWN = 20  # files that are named as left out
KILLED = "The process that learns was killed, as the system does when memory runs out."
NICENESS = 10  # takes that are asked for meanwhile come first
_NAME = re.compile(r"\w(?:[\w .-]{0,58}[\w-])?")
_STEP = re.compile(r"(\d+) of (\d+): (.*)")  # what vab learn says it is at
_TRAINING = re.compile(r"training, ([\d,]+) steps?(?:, going on at (\d+))?")


class Clock:
    """How much of a step is done, and how long the rest takes."""

    def __init__(self) -> None:
        self.total = self.done = self._first = 0
        self._begin = self._last = 0.0

    def set(self, done: int, total: int) -> None:
        """So much of it is done; what is told first may have been done before."""
        if total != self.total:
            self.total, self.done, self._first = total, done, done
            self._begin = self._last = time.monotonic()
        elif done != self.done:
            self.done, self._last = done, time.monotonic()

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def left(self) -> float | None:
        """Seconds; None if nobody knows yet."""
        if self.done <= self._first:
            return None
        rest = (self._last - self._begin) / (self.done - self._first) * (self.total - self.done)
        return max(0.0, rest - (time.monotonic() - self._last))


class Teaching:
    """The models in a folder, and one that is being made there. Its methods may be called by any thread."""

    def __init__(
        self,
        folder: Path,
        model: str | Path | None = None,
        *,
        steps: int | None = None,
        device: Device = "auto",
        codec_path: str | None = None,
        vision_path: str | None = None,
    ) -> None:
        """``model``, ``device`` and paths are those of the studio, ``steps`` as of ``vab learn``.

        What another studio was cut off in is gone on with.
        """
        self.folder = folder
        self._place = folder / ".teaching"
        self._files = self._place / "files"  # of the folder to learn
        self._job = self._place / "job.json"  # what is asked of vab learn
        self._model, self._device = model, device
        self._how = {"steps": steps, "codec_path": codec_path, "vision_path": vision_path}
        self._lock = threading.RLock()
        self._held = ExitStack()  # the lock against other studios, while there is something in that place
        self._is_held = False
        self._id = ""  # of the folder that is there: files of one that was given up are refused
        self._bytes = 0
        self._state: dict[str, Any] | None = None
        self._clock = Clock()
        self._child: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._base: Path | None = None  # what the studio's model was loaded from
        self._use = ExitStack()  # the lock that tells other studios so
        with suppress(ModelError, OSError):
            self._base = find_model(model).resolve()
            lock(self._use.enter_context((self._base / CONFIG).open("rb")), shared=True, wait=True)
        for gone in folder.glob(f".*{DELETED}"):  # by a process that was killed meanwhile
            delete_folder(gone)
        if self._place.exists():
            with suppress(UserError):  # another studio is at it
                self._hold()
                self._go_on()

    # ---- what there is

    def models(self) -> dict[Path, list[str]]:
        """The models that were made here, and the labels that each was taught."""
        found = {}
        for path in sorted(self.folder.glob("*")):
            if path.name[0] != "." and is_model(path):
                labels: list[str] = []
                with suppress(OSError, ValueError, TypeError):
                    labels = list(read_json(path / "record.json").get("labels", []))
                found[path] = labels
        return found

    def is_used(self, path: Path) -> bool:
        """True for a model that this studio or another one has loaded, or from which one is being made."""
        bases = [self._base]
        with suppress(OSError, ValueError, KeyError):
            bases.append(Path(read_json(self._job)["model"]).resolve())
        if path.resolve() in bases:
            return True
        try:
            with (path / CONFIG).open("rb") as file:
                lock(file)
        except BlockingIOError:
            return True
        except OSError:  # no locks on this file system
            pass
        return False

    def delete(self, name: str) -> None:
        """Delete a model that was made here; of a link, the link. ``UserError`` if it is none, or is used."""
        with self._lock:
            path = next((path for path in self.models() if path.name == name), None)
            if path is None:
                raise UserError("There is no such model here.")
            if self.is_used(path):
                raise UserError("This model is in use, by a studio or by what is being learned.")
            gone = path.with_name(f".{name}{DELETED}")  # so that there is never half a model
            path.rename(gone)
        delete_folder(gone)

    def state(self) -> dict[str, Any] | None:
        """What is being made; None if nothing is.

        ``state``: ``arriving`` (with ``files``), ``looking``, ``found`` (``labels`` with sounds, pictures and
        what they lack, ``left_out``), ``learning`` (``step`` of ``steps``, ``doing``, ``share`` and ``left``,
        the seconds that this step takes yet), ``failed`` (``error``), ``done`` (``labels``, ``left_out``).
        """
        with self._lock:
            if self._state is None:
                return None
            if self._state["state"] != "learning":
                return self._state
            self._look_at_training()
            return self._state | {"share": self._clock.share, "left": self._clock.left}

    # ---- a folder arrives

    def begin(self) -> str:
        """Get ready for the files of a folder, instead of those that were sent; the number of the new one."""
        with self._lock:
            if self._child is not None:
                raise UserError("A model is being made already: wait for it, or cancel it.")
            if read_config(find_model(self._model)).train.objective != "masked":
                raise UserError("The studio's model cannot be taught: only VAB itself can.")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            shutil.rmtree(self._place, ignore_errors=True)
            self._files.mkdir(parents=True)
            self._id, self._bytes = secrets.token_hex(8), 0
            self._state = {"state": "arriving", "files": 0}
            return self._id

    def add(self, number: str, name: str, file: Path) -> None:
        """Take in a file of the folder ``number``; ``name``: its path there, as in ``door/one.wav``.

        ``UserError`` for another folder than the last, ``UploadError`` for a name or a file that cannot be.
        """
        path = self._files / _safe(name)
        with self._lock:
            state = self._need(number, "arriving")
            self._bytes += file.stat().st_size
            number_of_files = state["files"] + 1
            if number_of_files > MAX_FILES or self._bytes > MAX_FOLDER_BYTES:
                most = f"{MAX_FILES} files and {MAX_FOLDER_BYTES >> 30} GB"
                raise UploadError(f"The folder is too large: {most} are the most.")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, path)
            self._state = state | {"files": number_of_files}

    def look(self, number: str) -> None:
        """Look at the folder ``number``, all of whose files are there."""
        from vab.training.teaching.learn import MIN_SOUNDS

        with self._lock:
            self._need(number, "arriving")
            self._state = {"state": "looking"}
        try:
            found = look_at_folder(self._files)
        except UploadError:
            with self._lock:
                self._need(number, "looking")
                self._discard()
            raise
        labels = []
        for name, (sounds, pictures) in sorted(found["labels"].items()):
            lacks = [count_of(MIN_SOUNDS - sounds, "more sound")] * (sounds < MIN_SOUNDS)
            lacks += ["a picture"] * (not pictures) + ["a name without ;"] * (";" in name)
            labels.append({"name": name, "sounds": sounds, "pictures": pictures, "lacks": lacks})
        with self._lock:
            self._need(number, "looking")
            if not labels:
                self._discard()
                reasons = " ".join(f"{line}." for line in found["left_out"][:MAX_SHOWN])
                raise UserError(f"There is nothing in this folder to learn from. {reasons}".strip())
            self._state = {"state": "found", "labels": labels, "left_out": found["left_out"][:MAX_SHOWN]}

    # ---- it is learned

    def start(self, name: str) -> None:
        """Make a model of this name of the folder; or go on with one that failed, whatever the name."""
        with self._lock:
            state = "" if self._state is None else self._state["state"]
            if state == "found":
                assert self._state is not None
                name = self._free(name)
                if all(label["lacks"] for label in self._state["labels"]):
                    raise UserError("No label has all that it needs, so there is nothing to learn.")
                base = find_model(self._model).absolute()
                write_json(self._job, {"name": name, "model": str(base), **self._how})
            elif state != "failed":
                raise UserError("There is no folder to learn from: choose one.")
            self._go_on()

    def cancel(self, number: str | None = None) -> None:
        """Give up what is being made, or the folder ``number`` if it is the last; nothing of it is kept."""
        with self._lock:
            if number not in (None, self._id):
                return
            self._id = ""
            child, thread = self._child, self._thread
            if child is None:
                self._discard()
                return
            child.kill()
        assert thread is not None
        thread.join(PATIENCE)

    def close(self) -> None:
        """End the process that learns; what it has done is kept for the next studio."""
        with self._lock:
            self._id = "closed"
            child, thread = self._child, self._thread
        if child is not None and thread is not None:
            child.terminate()  # in the midst of training it saves what it has
            thread.join(PATIENCE)
            child.kill()
            thread.join(PATIENCE)
        self._let_go()
        self._use.close()

    def _go_on(self) -> None:
        """Start the process that learns, and the thread that hears of it; nothing without a job."""
        try:
            name = read_json(self._job)["name"]
        except (OSError, ValueError, KeyError):
            self._discard()
            return
        self._id = "learning"
        self._state = {"state": "learning", "name": name, "step": 0, "steps": 0, "doing": "starting"}
        self._clock = Clock()
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "vab.studio.teaching", str(self._place), str(self._device)],
            stdin=subprocess.PIPE,  # nothing is written to it: it is closed when the studio has gone
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal is for the studio
        )
        self._thread = threading.Thread(target=self._follow, args=(self._child, name), daemon=True)
        self._thread.start()

    def _follow(self, child: subprocess.Popen[str], name: str) -> None:
        """Hear what the process says until it has ended; then its model gets its name."""
        told: dict[str, Any] = {}
        with child:
            assert child.stdout is not None
            for line in child.stdout:
                with suppress(ValueError):
                    told = json_object(line)
                    self._hear(told)
        with self._lock:
            self._child = self._thread = None
            if not self._id:  # cancelled
                self._discard()
            elif self._id == "learning":
                try:
                    if "labels" in told:
                        self._finish(name, told)
                        return
                    message = self._without_paths(told.get("error", KILLED))
                except OSError as error:
                    message = f"this could not be done: {first_line(error)}."
                self._state = {"state": "failed", "name": name, "error": message[:1].upper() + message[1:]}

    def _hear(self, told: dict[str, Any]) -> None:
        with self._lock:
            if self._state is None or self._state["state"] != "learning":
                return
            if found := _STEP.fullmatch(str(told.get("said"))):
                doing = self._without_paths(found[3].split(";")[0])
                self._state |= {"step": int(found[1]), "steps": int(found[2]), "doing": doing}
                self._clock = Clock()
                if training := _TRAINING.match(doing):
                    self._clock.set(int(training[2] or 0), int(training[1].replace(",", "")))
            elif "done" in told:
                self._clock.set(told["done"], told["total"])

    def _look_at_training(self) -> None:
        """How far the training is stands in its journal."""
        assert self._state is not None
        if _TRAINING.match(self._state["doing"]):
            lines = self._place / "model.learning" / "vab" / "metrics.jsonl"
            with suppress(OSError, ValueError, IndexError, KeyError):
                self._clock.set(json_object(lines.read_text().splitlines()[-1])["step"], self._clock.total)

    def _finish(self, name: str, told: dict[str, Any]) -> None:
        names = chain([name], (f"{name}-{n}" for n in count(2)))  # somebody may have made one by hand
        path = next(self.folder / each for each in names if not (self.folder / each).exists())
        os.rename(self._place / "model", path)
        sync_folder(self.folder)
        self._discard()
        left_out = [self._without_paths(line) for line in told["left_out"][:MAX_SHOWN]]
        self._state = {"state": "done", "name": path.name, "labels": told["labels"], "left_out": left_out}

    # ---- the place

    def _hold(self) -> None:
        """Keep other studios from the place. ``UserError`` if one has it."""
        if self._is_held:
            return
        try:
            self._held.enter_context(exclusive(self.folder / ".lock", "teaches a model here"))
        except LockedError as error:
            message = str(error)
            raise UserError(f"{message[:1].upper()}{message[1:]}.") from None
        self._is_held = True

    def _let_go(self) -> None:
        self._held.close()
        self._is_held = False

    def _discard(self) -> None:
        """Remove what is in the place, unless it is another studio's."""
        self._state = None
        if self._is_held:
            shutil.rmtree(self._place, ignore_errors=True)
            self._let_go()

    def _need(self, number: str, state: str) -> dict[str, Any]:
        """The state, if it is this one, of the folder ``number``."""
        if number != self._id or self._state is None or self._state["state"] != state:
            raise UserError("Another folder was chosen meanwhile, or this one was given up.")
        return self._state

    def _free(self, name: str) -> str:
        """A name that a model can get."""
        name = " ".join(name.split())
        if _NAME.fullmatch(name) is None:
            raise UserError("A name has up to 60 letters, digits, dots, hyphens and spaces.")
        if name.casefold() in {path.name.casefold() for path in self.folder.glob("*")}:
            raise UserError(f"There is a model {name} already: choose another name.")
        return name

    def _without_paths(self, line: str) -> str:
        """A line without where things lie on the disk of the studio."""
        line = line.replace(f"{self._files}{os.sep}", "").replace(str(self._files), "the folder")
        return line.replace(f"{self._place}{os.sep}", "")


def _safe(name: str) -> Path:
    """The place of a file in a folder, as its sender names it. ``UploadError`` if there can be none."""
    parts = name.split("/")
    if not 2 <= len(parts) <= MAX_DEPTH or Path(name).suffix.lower() not in ENDINGS:
        raise UploadError("It is no sound, picture or film in a subfolder.")
    for part in parts:
        is_name = part[:1] not in ("", ".") and part == shown_name(part) == Path(part).name
        if not is_name or len(part.encode()) > MAX_PART:
            raise UploadError(f"It has a name that cannot be kept here: rename {shown_name(name)}.")
    return Path(*parts)


# ---- in the child


def _learn(place: Path, device: Device) -> dict[str, Any]:
    """Learn what lies in ``place``; the last thing to tell the studio."""
    from vab.training.teaching.learn import RECORD, STEPS, learn

    try:
        job, model = read_json(place / "job.json"), place / "model"
        if is_model(model):  # the studio was ended when all was done
            return {"labels": list(read_json(model / RECORD)["labels"]), "left_out": []}
        learned = learn(
            place / "files",
            model,
            job["model"],
            steps=job["steps"] or STEPS,
            device=device,
            codec_path=job["codec_path"],
            vision_path=job["vision_path"],
            log=lambda line: _tell({"said": line}),
            advance=lambda done, total, failed: _tell({"done": done, "total": total}),
        )
    except OSError as error:  # a full disk, a file that has gone
        return {"error": f"this could not be done: {first_line(error)}."}
    except Exception as error:
        message = for_people(error)
        if message is None:
            traceback.print_exc()  # into the log of the studio
        return {"error": INTERNAL_ERROR if message is None else f"{message}."}
    return {"labels": list(learned.labels), "left_out": list(learned.left_out.values())}


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _end_with_studio() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_studio, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    _tell(_learn(Path(sys.argv[1]), sys.argv[2]))
