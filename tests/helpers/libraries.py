"""Files of a library and vectors made of their bytes."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vab.inference.embeddings import Embedded, unit
from vab.media.container import MediaError

DIM = 16


def embed(path: Path) -> Embedded:
    """Vectors from a hash of the file's bytes: 1 to 5 windows, some without sound or without picture."""
    content = path.read_bytes()
    if content.startswith(b"broken"):
        raise MediaError(f"{path}: is not media")
    chance = np.random.default_rng(list(hashlib.sha256(content).digest()))
    windows, kind = int(chance.integers(1, 6)), int(chance.integers(5))
    audio, video = (unit(chance.normal(size=(windows, DIM)).astype(np.float32)) for _ in range(2))
    if kind == 2:  # the sound begins late
        audio[: windows - 1] = np.nan
    starts = 10.0 * np.arange(windows)
    return Embedded(starts, starts + 10, None if kind == 0 else audio, None if kind == 1 else video)


def each(one: Any = embed, ahead: int = 1) -> Any:
    """Many files by a function for one, as ``Embedder.embed_files``; ``ahead`` are taken at once."""

    def answer(path: Path) -> tuple[Path, Embedded | str]:
        try:
            return path, one(path)
        except MediaError as error:
            return path, str(error)

    def many(paths: Iterable[Path]) -> Iterator[tuple[Path, Embedded | str]]:
        taken: deque[Path] = deque()
        for path in paths:
            taken.append(path)
            if len(taken) >= ahead:
                yield answer(taken.popleft())
        yield from map(answer, taken)

    return many


def queries(number: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(number, DIM)).astype(np.float32)


def files_of(folder: str | Path) -> list[Path]:
    return sorted(Path(folder).rglob("*.wav"))
