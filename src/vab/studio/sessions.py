"""Sessions: the clip, takes and jobs of one visitor, deleted with all files when the visitor leaves."""

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

IDLE_SECONDS = 30 * 60.0  # without a request until a session is deleted
LEFT_SECONDS = 60.0  # the same after the page said that it was closed, which it also does when reloaded
MAX_SESSIONS = 50
TOO_MANY = "Too many people are here right now; please try again in half an hour."
FOLDER_PREFIX = "vab-studio-"
LOCK = "lock"
STARTUP_SECONDS = 60.0  # in which the folder of a starting server gets its lock


@dataclass(eq=False)
class TakeHistory:
    """A take and its earlier versions, the newest last."""

    id: str
    takes: list[Take]
    num_tries: int = 0  # times it was redone or extended, undone or not: each try has a seed of its own


@dataclass(eq=False)
class Session:
    """One visitor's clip, takes and jobs. ``lock`` is held while any of it changes."""

    id: str  # cannot be guessed; whoever has it is this visitor
    clip: Clip | None = None
    tracks: list[TakeHistory] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)  # the newest of each kind
    answers: dict[str, Any] = field(default_factory=dict)  # of finished jobs that make no take, by kind
    expires: float = 0.0  # monotonic seconds
    lock: threading.RLock = field(default_factory=threading.RLock)

    def track(self, name: object) -> TakeHistory:
        """Look up a track by its id; ``UserError`` if there is none."""
        for track in self.tracks:
            if track.id == name:
                return track
        raise UserError("This take is not here any more.")

    def take(self, name: str) -> Take | None:
        """Look up a take by its id, also one that was redone since; None if there is none."""
        return next((take for track in self.tracks for take in track.takes if take.id == name), None)


class SessionStore:
    """All sessions, and the temporary folder that holds the folder of each one's clip."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        _clear_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self._held = (self.folder / LOCK).open("w")
        with suppress(OSError):  # where there are no locks nobody clears up after others
            lock(self._held)
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._tidy, name="sessions", daemon=True).start()

    @property
    def full(self) -> bool:
        """True if no more sessions can be opened."""
        return len(self._sessions) >= MAX_SESSIONS

    def find(self, name: str | None) -> Session | None:
        """Look up a session by its id and renew it; None if there is none."""
        with self._lock:
            session = self._sessions.get(name or "")
            if session is not None:
                session.expires = time.monotonic() + IDLE_SECONDS
            return session

    def open(self) -> Session:
        """Open a session; ``UserError`` if there are too many."""
        with self._lock:
            if self.full:
                raise UserError(TOO_MANY)
            name = secrets.token_urlsafe(32)
            session = self._sessions[name] = Session(name, expires=time.monotonic() + IDLE_SECONDS)
            return session

    def leave(self, session: Session) -> None:
        """The page was closed: the session expires soon, unless the page is opened again."""
        with self._lock:
            session.expires = min(session.expires, time.monotonic() + LEFT_SECONDS)

    def replace_clip(self, session: Session, clip: Clip | None) -> None:
        """Cancel and delete everything in a session; ``clip`` is what it holds from now on, if anything."""
        with session.lock:
            old_clip = session.clip
            jobs = list(session.jobs.values())
            session.clip = clip
            session.tracks, session.jobs, session.answers = [], {}, {}
        # Outside the lock: a job that is being worked on may hold or want it.
        for job in jobs:
            self.queue.cancel(job)
        if old_clip is not None:
            shutil.rmtree(old_clip.folder, ignore_errors=True)

    def clear(self, session: Session) -> None:
        """Cancel and delete everything in a session."""
        self.replace_clip(session, None)

    def sweep(self) -> None:
        """Remove expired sessions."""
        with self._lock:
            expired = [session for session in self._sessions.values() if session.expires < time.monotonic()]
            for session in expired:
                del self._sessions[session.id]
        for session in expired:
            self.clear(session)

    def close(self) -> None:
        """Remove everything, at the end."""
        self._closed.set()
        for session in list(self._sessions.values()):
            self.clear(session)
        self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tidy(self) -> None:
        while not self._closed.wait(10):
            self.sweep()


def _clear_leftovers() -> None:
    """Delete the folders of killed servers: nobody holds their lock, or they never got one."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # another user's, or a living server's
            try:
                with (folder / LOCK).open("r+") as file:
                    lock(file)
            except FileNotFoundError:
                if time.time() - folder.stat().st_mtime < STARTUP_SECONDS:
                    continue
            shutil.rmtree(folder)
