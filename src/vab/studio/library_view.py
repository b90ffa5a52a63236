"""A library as the studio shows it: sounds by number, search hits, labels.

A visitor names a sound by its number, never by a path, and hears what is decoded from it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.library.library import Hit, Library
from vab.library.table import Filters, composed
from vab.media.reader import read_audio

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

    def _row(self, path: str, label: str) -> int:
        """The number of a file, a new one if it has none."""
        with self._lock:
            if path not in self._rows:
                self._rows[path] = len(self.paths)
                self.paths.append(Path(path))
                self.labels.append(composed(label))
            return self._rows[path]

    def search(self, vector: NDArray[np.float32], count: int) -> list[SoundHit]:
        """The sounds nearest to an audio or video vector [D]. ``LibraryError`` as ``Library.search``."""
        return self._numbered(self._library.search(vector, "audio", count))

    def contents(self) -> dict[str, Any]:
        """``sounds``: the number of files; ``labels``: each with its number, the most frequent first."""
        counts = self._library.counts()
        labels = [(label, count) for label, count in counts["labels"].items() if label]
        return {"sounds": counts["files"], "labels": sorted(labels, key=lambda each: -each[1])}

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
