"""Files -> frames and waveform, by presentation time (section 3.1); waveform -> files.

Each function opens its file anew. To ask several things of one file, open a ``MediaFile``.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np

from vab.config import SAMPLE_RATE
from vab.errors import SettingError
from vab.media.container import check_waveform
from vab.media.file import MediaFile, MediaInfo
from vab.media.sources.given import Source
from vab.media.streams import FrameCheck
from vab.utils.files import atomic


@contextmanager
def as_media_file(source: Source | MediaFile, fps: float | Fraction | None = None) -> Iterator[MediaFile]:
    """Yield ``source`` itself if it is a ``MediaFile``, else open it and close it at the end."""
    if isinstance(source, MediaFile):
        if fps is not None:
            raise SettingError("fps= belongs to frames, and a MediaFile has them already")
        yield source
    else:
        with MediaFile(source, fps=fps) as file:
            yield file


def probe(path: Source, check: FrameCheck | None = None) -> MediaInfo:
    """Read the facts about ``path``; the length comes from the packets' times, not from the header.

    ``check`` as in ``MediaFile``. ``MediaError`` if it is missing, a folder, empty, not media, or has not one
    frame that can be decoded.
    """
    with MediaFile(path, check) as file:
        return file.info


def read_frames(
    path: Source,
    fps: float,
    start: float = 0.0,
    seconds: float | None = None,
    size: int | None = None,
    check: FrameCheck | None = None,
) -> Iterator[np.ndarray]:
    """The frames on screen at ``start + i / fps`` seconds, uint8 [H,W,3] RGB: ``MediaFile.frames``."""
    with MediaFile(path, check) as file:
        yield from file.frames(fps, start, seconds, size)


def read_audio(
    path: Source,
    start: float = 0.0,
    seconds: float | None = None,
    rate: int = SAMPLE_RATE,
    model_level: bool = False,
) -> np.ndarray:
    """The waveform from ``start`` on, float32 [S] mono at ``rate``: ``MediaFile.audio``."""
    with MediaFile(path) as file:
        return file.audio(start, seconds, rate, model_level)


def mux(video_path: str | Path, waveform: np.ndarray, rate: int, out_path: str | Path) -> list[str]:
    """Write a film: the video of ``video_path`` and ``waveform`` [S] or [C,S]: ``MediaFile.mux``."""
    with MediaFile(video_path) as file:
        return file.mux(waveform, rate, out_path)


def write_wav(path: str | Path, waveform: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    """Write ``waveform`` [S] in [-1, 1] (louder is clipped) as 16-bit PCM, complete or not at all.

    Sample for sample as version 0.1.0 wrote what is measured; what is heard goes through ``write_audio``.
    ``MediaError`` if it is empty or holds NaN or infinity.
    """
    # float32 in [-1, 1] -> little-endian int16, symmetric about zero
    samples = check_waveform(waveform, Path(path)).clip(-1, 1)
    with atomic(path) as temporary, temporary.open("wb") as stream, wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
