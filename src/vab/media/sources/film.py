"""Films that no demuxer reads: frames in memory, and moving WebP and AVIF, which Pillow decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vab.media.clock import PacketTimes
from vab.media.container import MediaError, Opener

MOVING_FORMATS = ("WEBP", "AVIF")  # FFmpeg reads the first frame of these, at most
MILLISECOND = Fraction(1, 1000)
_DEFAULT_MILLISECONDS = 100  # of a frame that names no time on screen: what browsers give it

# Each frame's pixels, uint8 [H,W,3] RGB or [H,W,4] RGBA, and its time on screen in ticks.
Pictures = Callable[[], Iterator[tuple[np.ndarray, int]]]


class Film:
    """Frames with their times; it stands where a file has a video stream and a decoder.

    ``read`` gives the pictures from the first one on, each time it is called. A film never holds them: one is
    made after another. ``count``: their number, if it is known and each lasts one tick.
    """

    sample_aspect_ratio = None  # as a stream of PyAV's: pixels are square

    def __init__(self, name: str, read: Pictures, time_base: Fraction, count: int | None = None) -> None:
        self.name = name
        self.time_base = time_base  # seconds of a tick
        self.seconds_read = 0.0  # by the latest pass
        self._read = read
        self._times = None if count is None else _times([1] * count, time_base)

    @property
    def times(self) -> PacketTimes:
        """When each frame is shown. Reads through the film if no pass has done so yet."""
        if self._times is None:
            self._times = _times([ticks for _, ticks in self._pictures()], self.time_base)
        return self._times

    @property
    def nominal_seconds(self) -> float:
        """Its length, 0 as long as it is not known."""
        return 0.0 if self._times is None else self._times.seconds

    def size(self) -> tuple[int, int]:
        """Width and height of the first frame; reads it."""
        height, width = next(self._pictures())[0].shape[:2]
        return width, height

    def frames(self, start: Fraction | None = None) -> Iterator[Any]:
        """The frames as PyAV's, from the one on screen at ``start`` seconds on."""
        durations: list[int] = []
        time = 0
        first = 0 if start is None else start / self.time_base
        for pixels, ticks in self._pictures():
            # The last frame stays for good, so it is wanted whatever the time.
            durations.append(ticks)
            self.seconds_read = float(time * self.time_base)
            if time + ticks > first or len(durations) == self._count:
                yield self._frame(pixels, time, ticks)
            time += ticks
        self._times = self._times or _times(durations, self.time_base)

    @property
    def _count(self) -> int | None:
        return None if self._times is None else self._times.frames

    def _pictures(self) -> Iterator[tuple[np.ndarray, int]]:
        """The pictures; ``MediaError`` if there is none."""
        pictures = self._read()
        first = next(pictures, None)
        if first is None:
            raise MediaError(f"{self.name}: not one frame of it can be decoded")
        yield first
        yield from pictures

    def _frame(self, pixels: np.ndarray, time: int, ticks: int) -> Any:
        kind = "rgba" if pixels.shape[2] == 4 else "rgb24"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
        frame.time_base = self.time_base
        frame.pts = time
        frame.duration = ticks
        return frame


def moving_film(path: Path, opener: Opener | None = None) -> Film:
    """The film of a moving image that Pillow reads: of the file at ``path``, or of what ``opener`` opens."""

    def read() -> Iterator[tuple[np.ndarray, int]]:
        source = path if opener is None else opener()
        with Image.open(source, formats=MOVING_FORMATS) as image:
            yield from moving_pictures(image)

    return Film(str(path), read, MILLISECOND)


def is_moving(image: Image.Image) -> bool:
    """True for an image of several frames in time; the pages of a TIFF are none."""
    return image.format in ("GIF", "PNG", *MOVING_FORMATS) and getattr(image, "n_frames", 1) > 1


def moving_pictures(image: Image.Image) -> Iterator[tuple[np.ndarray, int]]:
    """Pixels and milliseconds of each frame of a moving image; one that is cut off just ends."""
    for number in range(getattr(image, "n_frames", 1)):
        try:
            image.seek(number)
            image.load()
            pixels = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        except (OSError, EOFError, SyntaxError, ValueError):
            return
        yield pixels, round(image.info.get("duration") or 0) or _DEFAULT_MILLISECONDS


def _times(durations: list[int], time_base: Fraction) -> PacketTimes:
    ends = np.cumsum(durations, dtype=np.int64)
    starts = ends - durations
    return PacketTimes(starts, starts, np.ones(len(starts), dtype=bool), 0, int(ends[-1]), time_base)
