"""What becomes of each file that is to be in a library: it is known, it fails, or it is embedded."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vab.errors import first_line
from vab.inference.batch import Show
from vab.inference.embeddings import Embedded
from vab.library.table import File, dim_of, fault_of

State = tuple[int, int]  # size, mtime_ns
Known = dict[str, State]  # by path
# files -> each of them in its order, with its vectors or the reason why there are none
Embed = Callable[[Iterable[Path]], Iterator[tuple[Path, Embedded | str]]]


@dataclass(frozen=True)
class Added:
    """What became of one file; told when its rows are on disk."""

    path: str
    status: Literal["added", "replaced", "unchanged", "failed"]
    windows: int = 0
    error: str | None = None  # one line that names the file


def embed_each(
    paths: Sequence[Path], known: Known, embed: Embed, dim: int | None, show: Show
) -> Iterator[File | Added]:
    """Every file once: embedded if it is new or changed, else what there is to tell of it.

    ``embed`` may take files ahead of its answers, so that they are decoded meanwhile; those that are not
    embedded are told between. ``dim``: the length that vectors must have; None is that of the first.
    """
    told: deque[Added] = deque()
    asked: deque[tuple[Path, State]] = deque()

    def wanted() -> Iterator[Path]:
        for number, path in enumerate(paths):
            show(number, len(paths), path, "embed", 0, 1)
            state = _look(path, known)
            if isinstance(state, Added):
                told.append(state)
            else:
                asked.append((path, state))
                yield path

    for _, embedded in embed(wanted()):
        while told:
            yield told.popleft()
        path, state = asked.popleft()
        fault = embedded if isinstance(embedded, str) else fault_of(embedded, dim)
        if isinstance(embedded, str) or fault:
            yield _failed(path, fault)
            continue
        dim = dim or dim_of(embedded)
        yield File(os.path.abspath(path), *state, embedded)
    yield from told


def _look(path: Path, known: Known) -> State | Added:
    """The state of a file to embed, from before it is read: a change meanwhile is seen the next time."""
    name = os.path.abspath(path)
    try:
        name.encode()
        found = os.stat(name)
    except UnicodeEncodeError:
        return _failed(path, "its name is not UTF-8")
    except OSError as error:
        return _failed(path, first_line(error))
    state = found.st_size, found.st_mtime_ns
    if known.get(name) == state:
        return Added(name, "unchanged")
    return state if stat.S_ISREG(found.st_mode) else _failed(path, "is not a file")


def _failed(path: Path, fault: str) -> Added:
    line, named = " ".join(fault.split()), os.fsencode(path).decode(errors="backslashreplace")
    return Added(os.path.abspath(path), "failed", error=line if named in line else f"{named}: {line}")
