"""What was found out about files, kept on disk: a look at a million of them that is cut off goes on."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

from vab.errors import first_line
from vab.utils.progress import step_bar

Found = TypeVar("Found", bound=int | str)

CHUNK = 1024  # files that are looked at between two writes; sets that are no larger leave nothing behind
THREADS = min(32, 4 + (os.cpu_count() or 1))  # most of them wait for the disk
LOCK_TIMEOUT_SECONDS = 30.0
NAME = "looked_at.sqlite"


class Findings:
    """What was found in files, by the file's path, size and times; in an SQLite file, or nowhere.

    A context: what is known at its end, also at Ctrl-C, is known the next time. The file is only a memory: it
    may be deleted, and where it cannot be used ``fault`` says why and the work is done without it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.fault: str | None = None
        self._new: list[tuple[bytes, int | str]] = []
        self._database: sqlite3.Connection | None = None
        if path is not None and path.exists():
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Small sets leave no file, unless they were cut off.
        if kind is not None or self._database is not None:
            self._write()
        if self._database is not None:
            self._database.close()

    def find(
        self,
        kind: str | None,
        look: Callable[..., Found],
        calls: Iterable[tuple[Any, ...]],
        total: int,
        title: str,
    ) -> Iterator[tuple[Any, Found | Exception]]:
        """((path, ...), ``look(path, ...)``) for each of ``total`` calls, in order; in threads, with a bar.

        An exception of ``look`` stands in place of what it would have found. Anything else is kept under
        ``kind`` (None: is not) and not looked for again while path, size and times of the file and what else
        the call has are the same. A change of what ``look`` means needs another ``kind``.
        """
        with step_bar(title, total, 0) as advance:
            for found in self._find(kind, look, iter(calls)):
                yield found
                advance("")

    def _find(
        self, kind: str | None, look: Callable[..., Found], calls: Iterator[tuple[Any, ...]]
    ) -> Iterator[tuple[Any, Found | Exception]]:
        def attempt(call: tuple[Any, ...]) -> Found | Exception:
            try:
                return look(*call)
            except Exception as error:
                return error

        keep = kind is not None and self.path is not None
        pool = ThreadPoolExecutor(THREADS)
        try:
            while chunk := list(islice(calls, CHUNK)):
                # 1. What is known. To ask a network's disk for a file's size takes time too.
                keys = list(pool.map(lambda call: _key(kind, call), chunk)) if keep else [None] * len(chunk)
                known = {key: value for key in keys if key and (value := self._known(key)) is not None}

                # 2. The rest, noted as it comes.
                fresh = pool.map(
                    attempt, [call for call, key in zip(chunk, keys, strict=True) if key not in known]
                )
                for call, key in zip(chunk, keys, strict=True):
                    value = known[key] if key in known else next(fresh)
                    if key is not None and key not in known and not isinstance(value, Exception):
                        self._new.append((key, value))
                    yield call, value
                if len(self._new) >= CHUNK:
                    self._write()
        finally:
            pool.shutdown(cancel_futures=True)

    def _known(self, key: bytes) -> Any:
        if self._database is None:
            return None
        with suppress(sqlite3.Error):  # looked for again
            row = self._database.execute("SELECT value FROM findings WHERE key = ?", (key,)).fetchone()
            return None if row is None else row[0]
        return None

    def _write(self) -> None:
        """Write what is new in one transaction, which is there whole or not at all."""
        if self.path is None or self.fault or not self._new:
            return
        if self._database is None:
            self._open()
        if self._database is not None:
            try:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO findings VALUES (?, ?)", self._new)
            except sqlite3.Error as error:
                self._give_up(error)
        self._new.clear()

    def _open(self) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_SECONDS)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS findings (key BLOB PRIMARY KEY, value) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Some network disks know no locks, others are full: that is no reason to stop."""
        self.fault = f"{self.path}: cannot be used ({first_line(error)}); if this is cut off it begins anew"
        if self._database is not None:
            self._database.close()
            self._database = None


def _key(kind: str | None, call: tuple[Any, ...]) -> bytes | None:
    """A hash of what a finding depends on; None for a file that cannot be asked."""
    try:
        status = os.stat(call[0])
    except (OSError, ValueError):
        return None
    # A program that copies can set the first time, but not the second.
    state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    facts = (kind, os.path.abspath(call[0]), *call[1:], *state)
    return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).digest()[:16]
