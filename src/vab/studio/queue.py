"""Job queue: for all projects one thread works with the model, another without. First come, first served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from vab.errors import VABError, first_line
from vab.utils.progress import StageProgress

State = Literal["waiting", "working", "done", "failed", "cancelled"]
INTERNAL_ERROR = "This did not work; what it was is in the log of the server. The rest of the studio goes on."


class UserError(VABError):
    """A request that cannot be met; the message is a sentence for the user."""


class Cancelled(Exception):
    """Ends a job that has been cancelled."""


@dataclass(eq=False)
class Job:
    """A piece of work and its progress. ``work`` is called in the thread of the queue, then let go."""

    kind: str
    work: Callable[[StageProgress], None]
    state: State = "waiting"
    stage: str = ""
    share: float = 0.0  # of that stage, 0..1
    error: str = ""
    result: Any = None  # for whoever waits for it
    since: Any = None  # the step of the project when it was asked for
    by_model: bool = True  # it computes with the model; False: it need not wait for those that do
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """True while it waits or is being worked on."""
        return self.state in ("waiting", "working")

    def report(self, stage: str, done: int, total: int) -> None:
        """Record progress. Raises ``Cancelled``, which ends the work here, if the job has been cancelled."""
        if self.cancelled.is_set():
            raise Cancelled
        self.stage = stage
        self.share = done / max(1, total)

    def end(self) -> None:
        """Tell those who wait, and let go of the sounds that its work holds."""
        self.work = _nothing
        self.ended.set()


def _nothing(_: StageProgress) -> None:
    """What is left to do of a job that has ended."""


class JobQueue:
    """The jobs of all projects and the two threads that run them: with the model, and without."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []  # of each thread the first one is being worked on
        self._change = threading.Condition()
        self._is_open = True
        self._threads = [
            threading.Thread(target=self._run, args=(by_model,), name="studio", daemon=True)
            for by_model in (True, False)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, job: Job) -> None:
        """Append a job."""
        with self._change:
            self._jobs.append(job)
            self._change.notify_all()

    def ahead(self, job: Job) -> int:
        """Number of jobs that it waits for; 0 while it is being worked on."""
        with self._change:
            same = [other for other in self._jobs if other.by_model == job.by_model]
            return same.index(job) if job in same else 0

    def cancel(self, job: Job) -> None:
        """Remove a job that waits; one that is being worked on ends at its next progress report."""
        with self._change:
            job.cancelled.set()
            if job.state == "waiting":
                job.state = "cancelled"
                job.end()
                if job in self._jobs:
                    self._jobs.remove(job)

    def close(self) -> None:
        """Cancel everything and let the threads end."""
        with self._change:
            self._is_open = False
            jobs = list(self._jobs)
            self._change.notify_all()
        for job in jobs:
            self.cancel(job)
        for thread in self._threads:
            thread.join(10)

    def _run(self, by_model: bool) -> None:
        for job in self._next(by_model):
            try:
                job.report("", 0, 1)
                job.work(job.report)
                job.state = "done"  # also if it was cancelled too late
            except Cancelled:
                job.state = "cancelled"
            # Whatever happens, the thread goes on with the next job.
            except UserError as error:
                job.error, job.state = str(error), "failed"
            except OSError as error:  # a full disk, a file that is missing
                job.error, job.state = f"This could not be done: {first_line(error)}.", "failed"
            except Exception:  # the trouble of one project must not end the work on others
                logging.getLogger(__name__).exception("a job of the kind %r failed", job.kind)
                job.error, job.state = INTERNAL_ERROR, "failed"

    def _next(self, by_model: bool) -> Iterator[Job]:
        """Yield the first job, which stays in the list while it is worked on, until the queue is closed."""

        def first() -> Job | None:
            return next((job for job in self._jobs if job.by_model == by_model), None)

        while True:
            with self._change:
                self._change.wait_for(lambda: first() or not self._is_open)
                job = first()
                if job is None or not self._is_open:
                    return
                job.state = "working"
            yield job
            with self._change:
                self._jobs.remove(job)
                job.end()
