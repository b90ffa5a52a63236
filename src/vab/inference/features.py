"""Features of a whole file, in one pass that also finds out how long it is (section 3.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from vab.config import SAMPLE_RATE
from vab.config import video_frames as num_video_frames
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo
from vab.media.image import moving_crop
from vab.utils.progress import StageProgress
from vab.vision import VisionEncoder

IMAGE_SECONDS = 10.0  # of sound for an image
MAX_VIDEO_SECONDS = 2 * 3600.0


def file_features(
    file: MediaFile,
    vision: VisionEncoder,
    fps: float,
    seed: int,
    timings: dict[str, float],
    report: StageProgress,
) -> Tensor:
    """Features [F,dim] of a file at ``fps`` a second; of an image, of a crop that moves as ``seed`` says.

    Adds the seconds of ``decode_video`` and ``features`` to ``timings``.
    """
    if file.is_image:
        expected = num_video_frames(IMAGE_SECONDS, fps)
        frames = _moving(file, expected, seed, vision.decode_size)
    else:
        expected = num_video_frames(file.nominal_seconds, fps)
        frames = _not_too_long(file, file.frames(fps, size=vision.decode_size))
    # One pass: frames are decoded while they are encoded: what remains of the time is the encoder's.
    begin = time.perf_counter()
    with torch.no_grad():
        counted = _counted(frames, timings, lambda done: report("features", done, max(done, expected)))
        features = vision.encode(counted)
    timings["features"] = time.perf_counter() - begin - timings["decode_video"]
    return features


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


def fit(features: Tensor, num_video: int) -> Tensor:
    """Features [num_video,dim]: cut, or with the last one repeated (section 3.1)."""
    last = features[-1:].expand(max(0, num_video - len(features)), -1)
    return torch.cat([features[:num_video], last])


def _moving(file: MediaFile, num_frames: int, seed: int, size: int) -> Iterator[np.ndarray]:
    """Frames of an image, as in training: a slowly moving crop."""
    yield from moving_crop(next(file.frames(1.0)), num_frames, seed, size)


def _not_too_long(file: MediaFile, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass frames through; ``MediaError`` as soon as the file turns out to exceed MAX_VIDEO_SECONDS."""
    for frame in frames:
        if file.seconds_read > MAX_VIDEO_SECONDS:
            sound_length(file.info)
        yield frame


def _counted(
    frames: Iterator[np.ndarray], timings: dict[str, float], report: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Pass frames through, and add up the time it takes to decode them as ``decode_video``."""
    # A for loop could not tell the decoder's time from the consumer's.
    timings["decode_video"] = 0.0
    done = 0
    while True:
        begin = time.perf_counter()
        frame = next(frames, None)
        timings["decode_video"] += time.perf_counter() - begin
        if frame is None:
            return
        done += 1
        report(done)
        yield frame
