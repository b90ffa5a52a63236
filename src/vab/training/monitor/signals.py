"""Signals that end a run after the step it is at: Ctrl-C, a scheduler's SIGTERM, SLURM's SIGUSR1."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SECOND_AFTER = 1.0  # seconds: launchers pass on a signal that the process has got already


class Stop:
    """Whether somebody wants the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.since = 0.0

    def __bool__(self) -> bool:
        return self.signal is not None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; a second one ends the process at once."""
        if self.signal is None:
            self.signal, self.since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self.since > SECOND_AFTER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def leave(self, message: str) -> NoReturn:
        """End the process as the signal would, by an exception: 128 + its number is the exit code.

        In another process than the one that heard it, it was a scheduler's.
        """
        heard = self.signal or signal.SIGTERM
        if heard == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + heard)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Hear signals as long as this lasts, if this is the thread that they come to."""
    stop = Stop()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = {number: signal.signal(number, stop.hear) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
