"""Ctrl-C that is never lost: remembered by a signal handler and raised again at safe points.

Python turns Ctrl-C into ``KeyboardInterrupt`` wherever it happens to be. Inside PyAV, while that raises an
error of its own (the end of a file is one), the exception is dropped: 2 of 100 were. So it is kept in mind
too, and raised again at the next ``check``.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_asked = threading.Event()


@contextmanager
def remembering() -> Iterator[None]:
    """Remember Ctrl-C as long as this lasts; a last check stands at its end."""
    if threading.current_thread() is not threading.main_thread():  # signals do not come here
        yield
        return
    _asked.clear()
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
        check()
    finally:
        signal.signal(signal.SIGINT, before)


def check() -> None:
    """``KeyboardInterrupt`` if Ctrl-C was pressed."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _interrupt(*_: Any) -> None:
    _asked.set()
    raise KeyboardInterrupt
