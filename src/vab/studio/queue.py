"""The queue: one thread works for all visitors, one job after another, in the order they came."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from vab.errors import VABError

ProgressFn = Callable[[str, int, int], None]  # stage, done, in all
State = Literal["waiting", "working", "done", "failed", "cancelled"]
INTERNAL_ERROR = "This did not work; what it was is in the log of the server. The rest of the studio goes on."


class UserError(VABError):
    """What was asked for cannot be; the message is a sentence for the visitor."""


class Cancelled(Exception):
    """The visitor does not want this job any more."""


@dataclass(eq=False)
class Job:
    """Something to be done, and how far it is. ``work`` is called in the queue's thread."""

    kind: str
    work: Callable[[ProgressFn], None]
    state: State = "waiting"
    stage: str = ""
    share: float = 0.0  # of that stage, 0..1
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """Whether it waits or is being worked on."""
        return self.state in ("waiting", "working")

    def tell(self, stage: str, done: int, total: int) -> None:
        """Note how far it is. Raises ``Cancelled`` in the midst of the work if it is not wanted any more."""
        if self.stop.is_set():
            raise Cancelled
        self.stage, self.share = stage, done / max(1, total)


class JobQueue:
    """Jobs of all visitors and the thread that does them."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []  # the first one is being worked on
        self._change = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="studio", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Put a job at the end."""
        with self._change:
            self._jobs.append(job)
            self._change.notify_all()

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one; 0 while it is being worked on."""
        with self._change:
            return self._jobs.index(job) if job in self._jobs else 0

    def cancel(self, job: Job) -> None:
        """A job that waits is taken out; one that is worked on ends at its next step."""
        with self._change:
            job.stop.set()
            if job.state == "waiting":
                job.state = "cancelled"
                if job in self._jobs:
                    self._jobs.remove(job)

    def close(self) -> None:
        """Cancel everything and let the thread end."""
        with self._change:
            self._open = False
            jobs = list(self._jobs)
            self._change.notify_all()
        for job in jobs:
            self.cancel(job)
        self._thread.join(10)

    def _run(self) -> None:
        for job in self._next():
            try:
                job.tell("", 0, 1)
                job.work(job.tell)
                job.state = "done"  # also if it was cancelled too late
            except Cancelled:
                job.state = "cancelled"
            except UserError as error:
                job.error, job.state = str(error), "failed"
            except Exception:  # one visitor's trouble must not end the others' work
                if job.stop.is_set():  # its files are gone: the visitor left
                    job.state = "cancelled"
                else:
                    logging.getLogger(__name__).exception("a job of the kind %r failed", job.kind)
                    job.error, job.state = INTERNAL_ERROR, "failed"

    def _next(self) -> Iterator[Job]:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._jobs or not self._open)
                if not self._open:
                    return
                job = self._jobs[0]
                job.state = "working"
            yield job
            with self._change:
                self._jobs.remove(job)
