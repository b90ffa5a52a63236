"""A library as the studio shows it: sounds by number, search hits, and a map in two dimensions.

A visitor names a sound by its number, never by a path, and hears what is decoded from it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.library.library import Hit, Library
from vab.library.table import Filters, composed
from vab.media.reader import read_audio

MAX_MAP_POINTS = 2000
PREVIEW_SECONDS = 10.0  # of a sound, played from the best window on


@dataclass(frozen=True)
class SoundHit:
    """A search hit: number of the sound, start of its best window, and cosine similarity if there is one."""

    row: int
    start: float  # seconds
    score: float | None


class LibraryView:
    """Numbered sounds of a library. Numbers stay as they are while files are added."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}  # by path
        self.paths: list[Path] = []
        self.labels: list[str] = []
        files, vectors = self._read()
        self.centre = vectors.mean(0) if len(vectors) else np.zeros(vectors.shape[1], np.float32)
        # The map: the two principal components of the vectors, scaled to -1..1.
        self.axes = _principal_axes(vectors - self.centre)
        self.scale = float(np.abs((vectors - self.centre) @ self.axes.T).max(initial=0)) or 1.0
        self.points = [(row, *self.place(vector)) for row, vector in zip(files, vectors, strict=True)]

    def _read(self) -> tuple[list[int], NDArray[np.float32]]:
        """Number up to ``MAX_MAP_POINTS`` files; also the audio vector [n, D] of the first window of each."""
        if not self._library.table:
            return [], np.zeros((0, 1), np.float32)
        table = self._library.table.take(10 * MAX_MAP_POINTS, ("path", "number", "label", "audio"))
        # One row for each file: its first window, or any if that was not sampled or has no sound.
        by_path = {}
        for row in table.to_pylist():
            if row["audio"] is not None and (row["path"] not in by_path or row["number"] == 0):
                by_path[row["path"]] = row
        chosen = [by_path[path] for path in sorted(by_path)][:MAX_MAP_POINTS]
        vectors = np.array([row["audio"] for row in chosen] or np.zeros((0, 1)), np.float32)
        return [self._row(row["path"], row["label"]) for row in chosen], vectors

    def _row(self, path: str, label: str) -> int:
        """The number of a file, a new one if it has none."""
        with self._lock:
            if path not in self._rows:
                self._rows[path] = len(self.paths)
                self.paths.append(Path(path))
                self.labels.append(composed(label))
            return self._rows[path]

    def place(self, vector: NDArray[np.float32]) -> tuple[float, float]:
        """Coordinates of a vector [D] on the map, within -1..1 for vectors of the library."""
        x, y = (self.axes @ (vector - self.centre) / self.scale).tolist()
        return round(x, 4), round(y, 4)

    def search(self, vector: NDArray[np.float32], count: int) -> list[SoundHit]:
        """The sounds nearest to an audio or video vector [D]. ``LibraryError`` as ``Library.search``."""
        return self._numbered(self._library.search(vector, "audio", count))

    @property
    def labels_with_counts(self) -> list[tuple[str, int]]:
        """All labels of the library with the number of files of each, the most frequent first."""
        labels = self._library.counts()["labels"]
        return sorted(((label, count) for label, count in labels.items() if label), key=lambda each: -each[1])

    def words(self, text: str, count: int) -> list[SoundHit]:
        """The sounds whose label, name or folder has these words. ``LibraryError`` if there is no word."""
        return self._numbered(self._library.words(text, "audio", count))

    def labelled(self, label: str, count: int) -> list[SoundHit]:
        """The sounds whose label has these words, by path."""
        return self._numbered(self._library.search(None, "audio", count, Filters(label=label)))

    def _numbered(self, hits: list[Hit]) -> list[SoundHit]:
        return [SoundHit(self._row(hit.path, hit.label), hit.start, hit.score) for hit in hits]

    def sound(self, row: int, start: float, seconds: float = PREVIEW_SECONDS) -> NDArray[np.float32]:
        """Read up to ``seconds`` of a sound from ``start`` on: float32 [S]; shorter where the file ends.

        ``IndexError`` for a number that does not exist, ``MediaError`` if the file cannot be read.
        """
        if not 0 <= row < len(self.paths):
            raise IndexError(row)
        padded = read_audio(self.paths[row], start, seconds)
        # What is missing was filled with silence: cut it off again.
        nonzero = np.flatnonzero(padded)
        return padded[: nonzero[-1] + 1] if len(nonzero) else padded[:1]


def _principal_axes(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first two principal components [2, D] of centred vectors [n, D]; zeros where there are fewer."""
    axes = np.zeros((2, vectors.shape[1]), np.float32)
    if len(vectors) > 1:
        components = np.linalg.svd(vectors, full_matrices=False)[2][:2]
        axes[: len(components)] = components
    return axes
