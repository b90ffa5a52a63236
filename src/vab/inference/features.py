"""Features of a whole file, encoded while they are needed; a thread reads the picture ahead (section 3.1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import islice, repeat
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vab.config import FRAME_RATE, SAMPLE_RATE
from vab.config import video_frames as num_video_frames
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo
from vab.media.image import moving_crop
from vab.timing.motion import Motion, MotionReader, read_motion
from vab.timing.sources import MOTION, NONE, Timing, is_named
from vab.utils.ahead import run_ahead
from vab.vision import VisionEncoder, crop

IMAGE_SECONDS = 10.0  # of sound for an image
MAX_VIDEO_SECONDS = 2 * 3600.0
READ_AHEAD_SECONDS = 10.0  # of the picture


class FeatureReader:
    """Features of a file at ``fps`` a second; of an image, of a crop that moves as ``seed`` says.

    A thread decodes and crops frames up to ``READ_AHEAD_SECONDS`` ahead, while its user computes. They are
    encoded by whoever asks for features, in passes of the encoder's own size whatever is asked for. So the
    features are those of ``vision.encode`` over all frames, bit for bit.

    Adds the seconds that were waited for frames to ``timings`` as ``decode_video``, those of the encoder as
    ``features``. The thread ends with ``close``, or a ``with`` block. If ``features`` [F,dim] of the file are
    given, nothing is read.

    If ``timing`` is a source of a curve, the same pass looks at every frame that is decoded, for what moves
    in it and for shot cuts.
    """

    def __init__(
        self,
        file: MediaFile,
        vision: VisionEncoder,
        fps: float,
        seed: int,
        timings: dict[str, float],
        features: Tensor | None = None,
        timing: Timing = None,
    ) -> None:
        self._file = file
        self._vision = vision
        self._fps = fps
        self._timings = timings
        self._rows: list[Tensor] = [] if features is None else list(features)  # [dim] each
        told = not (timing is None or is_named(timing, NONE) or file.is_image)
        self._watch = MotionReader() if told and features is None else None
        # Features that are given may be of a part of the film, and so may the curve beside them.
        self._has_cuts = told and (features is None or is_named(timing, MOTION))
        self._motion: Motion | None = None
        self._batches = _cropped_ahead(file, vision, fps, seed, self._watch)
        self._is_whole = features is not None
        timings |= {"decode_video": 0.0, "features": 0.0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread."""
        self._batches.close()

    def begin(self, window: int, report: Callable[[int, int], None]) -> MediaInfo:
        """Encode the first ``window`` frames of a long video, all of any other; the facts of the file.

        To know how long a video is before it was decoded takes another pass over its packets. That pays where
        sound can be made meanwhile; of a raw stream only decoding tells. ``report`` is told how many frames
        are encoded, and of how many. ``MediaError`` for a file that cannot be read.
        """
        is_long = self._file.nominal_seconds > READ_AHEAD_SECONDS and self._file.tells_length
        info = self._file.info if is_long else None
        count = window if is_long else math.inf
        expected = min(count, num_video_frames(self._file.nominal_seconds or IMAGE_SECONDS, self._fps))
        self.read(count, lambda done: report(done, max(done, round(expected))))
        return info or self._file.info

    @torch.no_grad()
    def read(self, count: float, report: Callable[[int], None] = lambda done: None) -> None:
        """Encode frames until there are features of ``count``, or of all that the file has.

        ``report`` is told how many there are. ``MediaError`` for a file that cannot be read.
        """
        while len(self._rows) < count and not self._is_whole:
            # What remains of the time is the encoder's.
            begin = time.perf_counter()
            crops = next(self._batches, None)
            read = time.perf_counter()
            self._timings["decode_video"] += read - begin
            if crops is None:
                self._is_whole = True
                return
            self._rows.extend(self._vision.encode_crops(crops))
            self._timings["features"] += time.perf_counter() - read
            report(len(self._rows))

    def all(self) -> Tensor:
        """The features [F,dim] of the whole file."""
        self.read(math.inf)
        return torch.stack(self._rows)

    def motion(self, report: Callable[[int, int], None] = lambda done, total: None) -> Motion:
        """The motion of the whole film, which is read to its end for it, if need be by a pass of its own.

        ``report`` is told how much is read, and of about how much.
        """
        if self._motion is None:
            expected = num_video_frames(self._file.nominal_seconds, self._fps)
            self.read(math.inf, lambda done: report(done, max(done, expected)))
            self._motion = read_motion(self._file, report) if self._watch is None else self._watch.motion()
        return self._motion

    def cuts(self) -> list[int]:
        """Audio frames at which another shot begins; none without a curve, for which frames are left out."""
        return [round(time * FRAME_RATE) for time in self.motion().cuts()] if self._has_cuts else []

    def rows(self, first: int, last: int) -> Tensor:
        """Features [last - first,dim]; beyond the end of the file the last one is repeated (section 3.1)."""
        self.read(last)
        end = len(self._rows) - 1
        return torch.stack([self._rows[min(number, end)] for number in range(first, last)])


def sound_length(info: MediaInfo) -> int:
    """Number of samples S for a file; ``MediaError`` if it has no video, or lasts 0 s or too long."""
    if info.kind == "image":
        return round(IMAGE_SECONDS * SAMPLE_RATE)
    if info.kind == "audio":
        raise MediaError(f"{info.path}: has no video stream, only sound")
    if info.seconds > MAX_VIDEO_SECONDS:
        hours, limit = info.seconds / 3600, MAX_VIDEO_SECONDS / 3600
        raise MediaError(f"{info.path}: lasts {hours:.2f} hours; the longest that can be done is {limit:g}")
    length = round(info.seconds * SAMPLE_RATE)
    if length < 1:
        raise MediaError(f"{info.path}: the video lasts 0 s")
    return length


def _cropped_ahead(
    file: MediaFile, vision: VisionEncoder, fps: float, seed: int, watch: MotionReader | None
) -> Generator[list[Tensor], None, None]:
    """What the encoder sees of the frames, for one pass after another; a thread is some passes ahead."""
    if file.is_image:
        frames = _moving(file, num_video_frames(IMAGE_SECONDS, fps), seed, vision.decode_size)
    else:
        frames = _not_too_long(file, file.frames(fps, size=vision.decode_size, watch=watch))
    size = vision.default_batch_size
    depth = -(-round(READ_AHEAD_SECONDS * fps) // size)

    def some(_: None) -> list[Tensor]:
        return [crop(frame, vision.recipe) for frame in islice(frames, size)]

    with closing(run_ahead(some, repeat(None), 1, depth)) as batches:
        for _, crops in batches:
            if not crops:
                return
            yield crops


def _moving(file: MediaFile, num_frames: int, seed: int, size: int) -> Iterator[np.ndarray]:
    """Frames of an image, as in training: a slowly moving crop."""
    yield from moving_crop(next(file.frames(1.0)), num_frames, seed, size)


def _not_too_long(file: MediaFile, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass frames through; ``MediaError`` as soon as the file turns out to exceed MAX_VIDEO_SECONDS."""
    for frame in frames:
        if file.seconds_read > MAX_VIDEO_SECONDS:
            sound_length(file.info)
        yield frame
