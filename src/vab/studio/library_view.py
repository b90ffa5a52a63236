"""A library as the studio shows it: sounds by number, search hits, labels.

A visitor names a sound by its number, never by a path, and hears what is decoded from it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.library.library import Hit, Library
from vab.library.table import Filters, composed
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.reader import read_audio
from vab.studio.mix import RATE
from vab.studio.queue import UserError
from vab.utils.provenance import sha256

MAX_ROW = 2**48 - 1
PREVIEW_SECONDS = 10.0  # of a sound, played from the best window on


@dataclass(frozen=True)
class SoundHit:
    """A search hit: number of the sound, start of its best window, and cosine similarity if there is one."""

    row: int
    start: float  # seconds
    score: float | None


class LibraryView:
    """Sounds of a library by number: a hash of the path, so that no number ever means another sound.

    A sound is there once it was found; a page from before a restart is told to search again.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._paths: dict[int, Path] = {}
        self.labels: dict[int, str] = {}

    def _row(self, path: str, label: str) -> int:
        """The number of a file that was found."""
        row = int(sha256(os.fsencode(path))[:12], 16)
        self._paths[row], self.labels[row] = Path(path), composed(label)
        return row

    def path(self, row: int) -> Path:
        """The file of a number. ``UserError`` if it was not found since the start."""
        if row not in self._paths:
            raise UserError("This was found before the studio was started again: search once more.")
        return self._paths[row]

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

    def heard(self, row: int, start: float, seconds: float) -> NDArray[np.float32]:
        """Up to ``seconds`` of a sound from ``start`` on as a layer has it: [C,S] at 48 kHz, C up to 2.

        ``UserError`` as :meth:`path`; ``MediaError`` if the file cannot be read, or ends before that.
        """
        path = self.path(row)
        missing = round(seconds * RATE)
        blocks = []
        with MediaFile(path) as file:
            if not file.has_audio:
                raise MediaError(f"{path}: has no sound")
            channels = "mono" if file.audio_format[1] == "mono" else "stereo"
            for block in file.channel_blocks(start, RATE, channels):
                blocks.append(block[:, :missing])
                missing -= blocks[-1].shape[1]
                if not missing:
                    break
        if not blocks:
            raise MediaError(f"{path}: ends before {start:g} s")
        return np.nan_to_num(np.concatenate(blocks, axis=1), posinf=1.0, neginf=-1.0).clip(-1, 1)

    def sound(self, row: int, start: float, seconds: float = PREVIEW_SECONDS) -> NDArray[np.float32]:
        """Read up to ``seconds`` of a sound from ``start`` on: float32 [S]; shorter where the file ends.

        ``UserError`` as :meth:`path`, ``MediaError`` if the file cannot be read.
        """
        padded = read_audio(self.path(row), start, seconds)
        # What is missing was filled with silence: cut it off again.
        nonzero = np.flatnonzero(padded)
        return padded[: nonzero[-1] + 1] if len(nonzero) else padded[:1]
