"""File locks between processes that use one folder; the system frees those of dead processes."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vab.errors import VABError, naming


class LockedError(VABError):
    """Another process holds the lock. The message is one line that says which, and what it does."""


def lock(file: IO[Any] | int, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file, or the descriptor of one, until it is closed; ``shared`` with others that do so.

    ``wait`` until nobody else has it.
    ``BlockingIOError`` if somebody else has locked it, another ``OSError`` where there are no locks (Windows,
    some network file systems).
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, "no file locks on this system") from None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` alone, after those who have it; nothing where there are no locks."""
    with naming(path.parent, over=False), path.open("a") as file:
        with suppress(OSError):
            lock(file, wait=True)
        yield


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``, which is made and left there, alone among all processes.

    ``LockedError`` if somebody else does; ``what`` says what they do, as in "trains in runs/first". Where
    there are no locks nothing is held.
    """
    with naming(path.parent, over=False), path.open("a+") as file:
        try:
            lock(file)
        except BlockingIOError:
            # The holder wrote its process and host into the file.
            file.seek(0)
            about = file.read(200).strip()
            holder = f"another process {what}" + (f" ({about})" if about else "")
            raise LockedError(f"{holder}; wait until it has ended") from None
        except OSError:  # no locks on this file system
            pass

        # Say who holds it, for the message of others.
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def shared(path: Path, what: str) -> Iterator[Callable[[], bool]]:
    """Hold the lock file ``path`` together with any others that share it, but not with one ``exclusive``.

    Gives a function that is True if the lock is held alone now, and then until it is let go: the last one to
    leave can tidy up. ``LockedError`` and ``what`` as for ``exclusive``. Where there are no locks nothing is
    held, and nobody is known to be alone.
    """
    with naming(path.parent, over=False), path.open("a+") as file:
        try:
            lock(file, shared=True)
        except BlockingIOError:
            raise LockedError(f"another process {what}; wait until it has ended") from None
        except OSError:  # no locks on this file system
            yield lambda: False
            return

        def alone() -> bool:
            try:
                lock(file)
            except OSError:
                with suppress(OSError):
                    lock(file, shared=True)  # an exchange that fails may have lost it
                return False
            return True

        yield alone
