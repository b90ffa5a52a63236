"""Rooms: what belongs to one visitor, and goes with all its files when the visitor does."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vab.studio.queue import Job, JobQueue, UserError
from vab.studio.takes import Take
from vab.studio.uploads import Clip
from vab.utils.locks import lock

IDLE = 30 * 60.0  # seconds without a sign of life until a room is cleared
LEFT = 60.0  # the same after the page said that it was closed, which it also does when it is loaded anew
MOST_ROOMS = 50
TOO_MANY = "Too many people are here right now; please try again in half an hour."
PREFIX, LOCK = "vab-studio-", "lock"
BEGINNING = 60.0  # seconds in which the folder of a server that begins gets its lock


@dataclass(eq=False)
class TakeHistory:
    """A take and those it came from, the newest last."""

    id: str
    takes: list[Take]
    tries: int = 0  # redone or extended so often, undone or not: each try has a seed of its own


@dataclass(eq=False)
class Session:
    """One visitor's clip, takes and jobs. ``lock`` is held while any of it changes."""

    id: str  # cannot be guessed; whoever has it is this visitor
    clip: Clip | None = None
    tracks: list[TakeHistory] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)  # the newest of each kind
    answers: dict[str, Any] = field(default_factory=dict)  # what was found and understood
    until: float = 0.0  # monotonic seconds
    lock: threading.RLock = field(default_factory=threading.RLock)

    def track(self, name: object) -> TakeHistory:
        """The track of that id; ``UserError`` if there is none."""
        for track in self.tracks:
            if track.id == name:
                return track
        raise UserError("This take is not here any more.")

    def take(self, name: str) -> Take | None:
        """The take of that id, also one that was redone since."""
        return next((take for track in self.tracks for take in track.takes if take.id == name), None)


class SessionStore:
    """All rooms, and the temporary folder that holds the folder of each one's clip."""

    def __init__(self, line: JobQueue) -> None:
        self.line = line
        _clear_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held = (self.folder / LOCK).open("w")
        with suppress(OSError):  # where there are no locks nobody clears up after others
            lock(self._held)
        self._rooms: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._tidy, name="rooms", daemon=True).start()

    @property
    def full(self) -> bool:
        """Whether there can be no more rooms."""
        return len(self._rooms) >= MOST_ROOMS

    def find(self, name: str | None) -> Session | None:
        """The room of that id, which lives on; None if there is none."""
        with self._lock:
            room = self._rooms.get(name or "")
            if room is not None:
                room.until = time.monotonic() + IDLE
            return room

    def open(self) -> Session:
        """A new room; ``UserError`` if there are too many."""
        with self._lock:
            if self.full:
                raise UserError(TOO_MANY)
            name = secrets.token_urlsafe(32)
            room = self._rooms[name] = Session(name, until=time.monotonic() + IDLE)
            return room

    def leave(self, room: Session) -> None:
        """The page was closed: the room goes soon, unless it is opened again."""
        with self._lock:
            room.until = min(room.until, time.monotonic() + LEFT)

    def clear(self, room: Session, clip: Clip | None = None) -> None:
        """Cancel and delete everything in a room; ``clip`` is what it holds from now on."""
        with room.lock:
            old, jobs = room.clip, list(room.jobs.values())
            room.clip = clip
            room.tracks, room.jobs, room.answers = [], {}, {}
        for job in jobs:
            self.line.cancel(job)
        if old is not None:
            shutil.rmtree(old.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove the rooms whose time is over."""
        with self._lock:
            over = [room for room in self._rooms.values() if room.until < time.monotonic()]
            for room in over:
                del self._rooms[room.id]
        for room in over:
            self.clear(room)

    def close(self) -> None:
        """Remove everything, at the end."""
        self._closed.set()
        for room in list(self._rooms.values()):
            self.clear(room)
        self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tidy(self) -> None:
        while not self._closed.wait(10):
            self.sweep()


def _clear_leftovers() -> None:
    """Delete the folders of servers that were killed: nobody holds their lock, or there is none for long."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or a living server's
            try:
                with (folder / LOCK).open("r+") as file:
                    lock(file)
            except FileNotFoundError:
                if time.time() - folder.stat().st_mtime < BEGINNING:
                    continue
            shutil.rmtree(folder)
