"""Media -> a window's waveform and frames, as the encoders take them; threads read ahead (section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vab.config import SAMPLE_RATE, samples_to_frames, video_frames
from vab.data.extraction.encoding import Decoded
from vab.data.manifest import Clip
from vab.data.shard import StoreMeta
from vab.errors import failure
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.image import moving_crop
from vab.media.reader import probe
from vab.utils.ahead import run_ahead
from vab.utils.processes import available_cores
from vab.utils.provenance import sha256
from vab.vision import Recipe, crop


def decode(clip: Clip, meta: StoreMeta, recipe: Recipe) -> Decoded:
    """Decode one clip: a waveform of exactly the window, frames cropped as the image encoder's recipe says.

    ``MediaError`` if a file cannot be read, ends before the clip starts, or holds no numbers.
    """
    with ExitStack() as files:
        # Audio and video are mostly streams of one file, which is then opened once for both.
        paths = {path for path in (clip.audio, clip.video) if path}
        opened = {path: files.enter_context(MediaFile(clip.memory or path)) for path in paths}
        waveform, real_tokens = None, 0
        if clip.audio is not None:
            waveform, real_tokens = _decode_audio(clip, opened[clip.audio], meta)
        if clip.video is None:
            return Decoded(clip, waveform, [], [], real_tokens)
        frames, indices, real_features = _decode_video(clip, opened[clip.video], meta, recipe)
        return Decoded(clip, waveform, frames, indices, real_tokens, real_features)


def _decode_audio(clip: Clip, file: MediaFile, meta: StoreMeta) -> tuple[NDArray[np.float32], int]:
    """The window's waveform [S], and the number of its audio frames that are not padding."""
    num_samples = round(meta.seconds * SAMPLE_RATE)
    waveform = file.audio(clip.start, _length(clip, file, meta.seconds), model_level=True)
    if not np.isfinite(waveform).all():
        raise MediaError(f"{file.path}: the sound holds values that are not numbers")
    if meta.fill == "repeat":
        waveform = np.resize(waveform, num_samples)  # starts again until the window is full
    real_tokens = samples_to_frames(min(len(waveform), num_samples))
    return np.pad(waveform[:num_samples], (0, max(0, num_samples - len(waveform)))), real_tokens


def _decode_video(
    clip: Clip, file: MediaFile, meta: StoreMeta, recipe: Recipe
) -> tuple[list[Tensor], list[int], int]:
    """The clip's frames, the frame's index for each of the window's F features, and how many are valid."""
    num_features = video_frames(meta.seconds, meta.fps)
    if file.is_image:
        # An image: a slow moving crop of it, one frame for each feature.
        pixels = next(file.frames(meta.fps))
        seed = int(sha256(clip.id)[:8], 16)
        moving = moving_crop(pixels, num_features, seed, recipe.decode_size)
        return [crop(frame, recipe) for frame in moving], list(range(num_features)), num_features
    length = _length(clip, file, meta.seconds)
    frames = file.frames(meta.fps, clip.start, length, size=recipe.decode_size)
    crops = [crop(frame, recipe) for frame in frames]

    # A window that is longer than the clip starts it again, or goes on with its last frame.
    times = np.arange(num_features) / meta.fps
    if meta.fill == "repeat":
        times %= length
    indices = np.minimum((times * meta.fps + 1e-6).astype(int), len(crops) - 1)
    real = num_features if meta.fill == "repeat" else min(num_features, video_frames(length, meta.fps))
    return crops, indices.tolist(), real


_info = lru_cache(maxsize=64)(probe)  # many clips may be windows of one file


def _length(clip: Clip, file: MediaFile, window: float) -> float:
    """Length of the clip in seconds: that of the window, of its manifest or of its file."""
    # a still image has no length of its own
    info = _info(file.source) if isinstance(file.source, Path) else file.info
    length = min(window, clip.seconds or window)
    if info.kind != "image":
        length = min(length, info.seconds - clip.start)
    if length * SAMPLE_RATE < 1:
        raise MediaError(
            f"{file.path}: the clip starts at {clip.start:g} s, the file ends at {info.seconds:g} s"
        )
    return length


def attempt(clip: Clip, meta: StoreMeta, recipe: Recipe) -> Decoded | str:
    """Decode one clip, or say in a line why that cannot be done: one of a million must not end the run."""
    try:
        return decode(clip, meta, recipe)
    except Exception as error:
        return failure(clip.audio or clip.video or clip.id, error)


def read_ahead(
    clips: Iterable[Clip], meta: StoreMeta, recipe: Recipe, depth: int, readers: int | None = None
) -> Iterator[tuple[Clip, Decoded | str]]:
    """Yield each clip with its streams or the reason why not, in order.

    ``readers`` threads run ``depth`` clips ahead; there are as many as cores if none are said.
    """
    work = partial(attempt, meta=meta, recipe=recipe)
    yield from run_ahead(work, clips, readers or available_cores(), depth)
