"""Embedding of the files to add to a library: unchanged ones are skipped, failures reported."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vab.errors import first_line
from vab.inference.embeddings import Embedded
from vab.library.table import File, dim_of, fault_of
from vab.utils.progress import FileProgress

State = tuple[int, int]  # size, mtime_ns
Known = dict[str, State]  # by path
# files -> each of them in its order, with its vectors or the reason why there are none
Embed = Callable[[Iterable[Path]], Iterator[tuple[Path, Embedded | str]]]


@dataclass(frozen=True)
class Added:
    """Result for one file, reported when its rows are on disk."""

    path: str
    status: Literal["added", "replaced", "unchanged", "failed"]
    windows: int = 0
    error: str | None = None  # one line that names the file


def embed_each(
    paths: Sequence[Path], known: Known, embed: Embed, dim: int | None, show: FileProgress
) -> Iterator[File | Added]:
    """Yield every file once: embedded if it is new or changed, else its result.

    ``embed`` may take files ahead of its answers, so that they are decoded meanwhile; results of files that
    are not embedded come in between. ``dim``: the required length of vectors; None is that of the first.
    """
    # Filled by `to_embed` while `embed` draws from it, emptied in the loop below.
    skipped: deque[Added] = deque()
    pending: deque[tuple[Path, State]] = deque()

    def to_embed() -> Iterator[Path]:
        for number, path in enumerate(paths):
            show(number, len(paths), path, "embed", 0, 1)
            state = _examine(path, known)
            if isinstance(state, Added):
                skipped.append(state)
            else:
                pending.append((path, state))
                yield path

    for _, embedded in embed(to_embed()):
        while skipped:
            yield skipped.popleft()
        path, state = pending.popleft()
        fault = embedded if isinstance(embedded, str) else fault_of(embedded, dim)
        if isinstance(embedded, str) or fault:
            yield _failed(path, fault)
            continue
        dim = dim or dim_of(embedded)
        yield File(os.path.abspath(path), *state, embedded)
    yield from skipped


def _examine(path: Path, known: Known) -> State | Added:
    """State of a file to embed, from before it is read: later changes are seen next time. Else its result."""
    name = os.path.abspath(path)
    try:
        name.encode()
        status = os.stat(name)
    except UnicodeEncodeError:
        return _failed(path, "its name is not UTF-8")
    except OSError as error:
        return _failed(path, first_line(error))
    state = status.st_size, status.st_mtime_ns
    if known.get(name) == state:
        return Added(name, "unchanged")
    return state if stat.S_ISREG(status.st_mode) else _failed(path, "is not a file")


def _failed(path: Path, fault: str) -> Added:
    """A failure in one line that names the file."""
    line = " ".join(fault.split())
    named = os.fsencode(path).decode(errors="backslashreplace")
    return Added(os.path.abspath(path), "failed", error=line if named in line else f"{named}: {line}")
