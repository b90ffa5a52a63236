"""A library as the studio shows it: sounds by number, hits, and a map in two dimensions.

A visitor names a sound by its number on the shelf, never by a path, and hears what is decoded from it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.library.library import Hit, Library
from vab.media.reader import read_audio

SHOWN = 2000  # points on the map
HEARD = 10.0  # seconds of a sound that are played


@dataclass(frozen=True)
class Found:
    """A sound of the shelf that was found: cosine ``score``, and the ``start`` of the best window."""

    row: int
    start: float  # seconds
    score: float


class LibraryView:
    """The sounds of a library. Its numbers stay as they are while files are added."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}  # by path
        self.paths: list[Path] = []
        self.labels: list[str] = []
        files, vectors = self._read()
        self.centre = vectors.mean(0) if len(vectors) else np.zeros(vectors.shape[1], np.float32)
        self.axes = _axes(vectors - self.centre)
        self.scale = float(np.abs((vectors - self.centre) @ self.axes.T).max(initial=0)) or 1.0
        self.points = [(row, *self.place(vector)) for row, vector in zip(files, vectors, strict=True)]

    def _read(self) -> tuple[list[int], NDArray[np.float32]]:
        """Numbers of up to ``SHOWN`` files and the audio vector [n, D] of the first window of each."""
        if not self._library.table:
            return [], np.zeros((0, 1), np.float32)
        table = self._library.table.some(10 * SHOWN, ("path", "number", "label", "audio"))
        found = {}
        for row in table.to_pylist():
            if row["audio"] is not None and (row["path"] not in found or row["number"] == 0):
                found[row["path"]] = row
        chosen = [found[path] for path in sorted(found)][:SHOWN]
        vectors = np.array([row["audio"] for row in chosen] or np.zeros((0, 1)), np.float32)
        return [self._row(row["path"], row["label"]) for row in chosen], vectors

    def _row(self, path: str, label: str) -> int:
        with self._lock:
            if path not in self._rows:
                self._rows[path] = len(self.paths)
                self.paths.append(Path(path))
                self.labels.append(label)
            return self._rows[path]

    def place(self, vector: NDArray[np.float32]) -> tuple[float, float]:
        """Where a vector [D] is on the map: -1..1, -1..1 for the library's own."""
        x, y = (self.axes @ (vector - self.centre) / self.scale).tolist()
        return round(x, 4), round(y, 4)

    def search(self, vector: NDArray[np.float32], count: int) -> list[Found]:
        """The sounds nearest to a vector [D] of a sound or a picture. ``LibraryError`` as ``Library``."""
        hits: list[Hit] = self._library.search(vector, "audio", count)
        return [Found(self._row(hit.path, hit.label), hit.start, hit.score or 0.0) for hit in hits]

    def sound(self, row: int, start: float, seconds: float = HEARD) -> NDArray[np.float32]:
        """Up to so many seconds of a sound: float32 [S]; shorter where it ends.

        ``IndexError`` for a number that is not on the shelf, ``MediaError`` if the file cannot be read.
        """
        if not 0 <= row < len(self.paths):
            raise IndexError(row)
        padded = read_audio(self.paths[row], start, seconds)
        heard = np.flatnonzero(padded)
        return padded[: heard[-1] + 1] if len(heard) else padded[:1]


def _axes(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The two directions [2, D] in which vectors [n, D] around 0 differ most (PCA)."""
    axes = np.zeros((2, vectors.shape[1]), np.float32)
    if len(vectors) > 1:
        found = np.linalg.svd(vectors, full_matrices=False)[2][:2]
        axes[: len(found)] = found
    return axes
