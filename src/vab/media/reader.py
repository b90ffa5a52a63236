"""Files -> frames and waveform, by presentation time (section 3.1); waveform -> files.

Time 0 of a file is its first shown frame, or the first sample if there is no picture; sound that starts later
keeps its distance as silence. Memory follows the window that is read, never the file's length.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from vab.config import SAMPLE_RATE, video_frames
from vab.media.container import (
    MediaError,
    checked,
    decoded,
    interval,
    mux,
    open_media,
    packets,
    picture_of,
    picture_start,
    picture_times,
    sound_of,
)
from vab.media.image import moving_crop, open_image, read_pixels
from vab.utils.files import atomic

__all__ = [
    "MediaError",
    "MediaInfo",
    "atomic",
    "moving_crop",
    "mux",
    "probe",
    "read_audio",
    "read_frames",
    "stream_audio",
    "write_wav",
]

_SLACK = 0.05  # seconds by which a sound's timestamps may be off before they are believed
_LONGEST_GAP = 3600.0  # seconds; a longer leap of the clock is a fault, not a pause
_LONGEST_RETURN = 1.0  # seconds; a longer leap back is a clock that starts again

Check = Callable[[int, int], None]  # width, height of a frame


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. Sizes are as displayed: pixels made square, rotation applied."""

    path: Path
    kind: Literal["video", "audio", "image"]
    seconds: float  # of the picture if there is one, else of the sound; 0 for an image
    has_audio: bool
    width: int  # 0 for sound
    height: int
    fps: float  # mean frame rate of a video, else 0


def probe(path: str | Path, check: Check | None = None) -> MediaInfo:
    """Say what ``path`` holds; the length comes from the packets' times, not from the header.

    ``check`` as in :func:`read_frames`. ``MediaError`` if it is missing, a folder, empty, not media, or has
    not one frame that can be decoded.
    """
    path = Path(path)
    image = open_image(path)
    if image is not None:
        height, width = read_pixels(path, image, None).shape[:2]
        return MediaInfo(path, "image", 0.0, False, width, height, 0.0)
    with open_media(path) as container:
        stream, has_audio = picture_of(container), sound_of(container) is not None
        if stream is None and not has_audio:
            raise MediaError(f"{path}: has neither a video nor an audio stream")
        if stream is not None:
            frame = next(decoded(container, stream), None)
            if frame is None:
                raise MediaError(f"{path}: not one frame of its video stream can be decoded")
            height, width = _Painter(None, check)(frame, stream).shape[:2]
    if stream is None:
        return MediaInfo(path, "audio", _sound_seconds(path), True, 0, 0, 0.0)
    times = picture_times(path)
    rate = times.frames / times.seconds if times.seconds > 0 else 0.0
    return MediaInfo(path, "video", times.seconds, has_audio, width, height, rate)


def _sound_seconds(path: Path) -> float:
    origin = end = _sound_start(path)
    with open_media(path) as container:
        stream: Any = sound_of(container)
        for packet in packets(container, stream):
            if packet.pts is not None:
                end = packet.pts * packet.time_base
            lasts = (packet.duration or 0) * packet.time_base
            if lasts < _LONGEST_GAP:  # the last packet of some Ogg files claims 2^32 samples
                end += lasts
    return float(end - origin)


def read_frames(
    path: str | Path,
    fps: float,
    start: float = 0.0,
    seconds: float | None = None,
    size: int | None = None,
    check: Check | None = None,
) -> Iterator[np.ndarray]:
    """The frames on screen at ``start + i / fps`` seconds: uint8 [H,W,3] RGB, upright.

    There are ``config.video_frames(seconds, fps)`` of them; ``seconds=None`` is all that remains. A video
    that ends sooner repeats its last frame; an image is a video that stands still (one frame if ``seconds``
    is None).
    ``size``: the short side is scaled down to it, in the decoder's own pixel format. ``check`` is told the
    width and height of each frame of a video before its pixels are made, whatever the header said, and may
    raise. ``MediaError`` as in :func:`probe`, or if there is no video stream.
    """
    path = Path(path)
    if fps <= 0 or start < 0:
        raise ValueError(f"fps must be positive and start not negative, not {fps} and {start}")
    image = open_image(path)
    if image is not None:
        pixels = read_pixels(path, image, size)
        for _ in range(video_frames(seconds or 0.0, fps)):
            yield pixels
        return
    if seconds is None:
        seconds = max(0.0, picture_times(path).seconds - start)
    wanted, given = video_frames(seconds, fps), 0
    paint = _Painter(size, check)
    shown: np.ndarray | None = None
    waiting: tuple[Any, Any] | None = None  # newest frame not after the wanted time, pixels not made yet
    for time, frame, stream in _timed_frames(path, start):
        while waiting is not None and time > start + given / fps:
            shown = paint(*waiting) if shown is None else shown
            yield shown
            given += 1
            if given == wanted:
                return
        waiting, shown = (frame, stream), None
    if waiting is None:
        raise MediaError(f"{path}: not one frame of its video stream can be decoded")
    shown = paint(*waiting) if shown is None else shown
    for _ in range(given, wanted):
        yield shown


def _timed_frames(path: Path, start: float) -> Iterator[tuple[float, Any, Any]]:
    """(seconds since the first shown frame, frame, stream), from the frame on screen at ``start`` or before.

    Times are lowered by half a millisecond: many containers keep whole ones.
    """
    origin, timed = picture_start(path)
    position = origin + Fraction(start) if timed and start > 0 else None
    first: int | None = None
    for index, (frame, stream) in enumerate(_decode(path, picture_of, position)):
        base = stream.time_base
        if timed and frame.pts is not None:
            time = frame.pts * base - origin
        elif frame.dts is not None:
            first = frame.dts if first is None else first
            time = (frame.dts - first) * base
        else:
            time = index * (frame.duration * base if frame.duration else interval(stream))
        yield float(time) - 0.0005 - 1e-6, frame, stream


def _decode(path: Path, pick: Callable[[Any], Any], position: Fraction | None) -> Iterator[tuple[Any, Any]]:
    """(frame, stream) of the picked stream; the first one is at or before ``position`` if any frame is.

    A seek may land too late (a bad index, frames that need earlier ones): then from further back, at last
    from the beginning.
    """
    for back in (Fraction(1, 2), Fraction(10), None) if position is not None else (None,):
        with open_media(path) as container:
            stream = pick(container)
            stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
            stream.thread_type = "AUTO"
            if back is not None and position is not None:
                try:
                    container.seek(int((position - back) / stream.time_base), stream=stream)
                except FFmpegError:
                    continue
            good = back is None
            for frame in decoded(container, stream):
                if not good and (frame.pts is None or frame.pts * stream.time_base > (position or 0)):
                    break
                good = True
                yield frame, stream
            if good:
                return


class _Painter:
    """Decoded frames of one stream -> pixels as displayed, with one scaler and one look at the orientation.

    Asking a frame for its side data ties it into a reference cycle; done for each, frames would pile up.
    """

    def __init__(self, size: int | None, check: Check | None) -> None:
        self.size, self.check = size, check
        self.scaler = VideoReformatter()
        self.turn: tuple[bool, int, int] | None = None

    def __call__(self, frame: Any, stream: Any) -> np.ndarray:
        """uint8 [H,W,3] RGB."""
        if self.turn is None:
            self.turn = _orientation(frame)
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = max(1, round(frame.width * aspect)), frame.height
        if self.check is not None:
            self.check(width, height)
        scale = min(1.0, self.size / min(width, height)) if self.size else 1.0
        alpha = any(component.is_alpha for component in frame.format.components)
        pixels: np.ndarray = self.scaler.reformat(
            frame,
            width=max(1, round(width * scale)),
            height=max(1, round(height * scale)),
            format="rgba" if alpha else "rgb24",
            interpolation="BICUBIC",
            threads=1,
        ).to_ndarray()
        if alpha:
            cover = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * cover + 255 * (255 - cover) + 127) // 255).astype(np.uint8)
        swap, down, right = self.turn
        if swap:
            pixels = pixels.transpose(1, 0, 2)
        return np.array(pixels[::down, ::right], order="C")


def _orientation(frame: Any) -> tuple[bool, int, int]:
    """(swap the axes, step down, step right) of the display matrix, to the nearest quarter turn."""
    for data in frame.side_data:
        if data.type == SideDataType.DISPLAYMATRIX:  # x' = a x + c y, y' = b x + d y
            a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
            swap = abs(b) + abs(c) > abs(a) + abs(d)
            across, along = (c, b) if swap else (a, d)
            return swap, -1 if along < 0 else 1, -1 if across < 0 else 1
    return False, 1, 1


def _sound_start(path: Path) -> Fraction:
    """Time of the first decoded sample on the container's clock. ``MediaError`` if there is none."""
    with open_media(path) as container:
        stream: Any = sound_of(container)
        if stream is None:
            raise MediaError(f"{path}: has no audio stream")
        for frame in decoded(container, stream):
            return (frame.pts or 0) * stream.time_base
    raise MediaError(f"{path}: its audio stream cannot be decoded")


def _sound(path: Path, start: float, rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Blocks of mono float32 at ``rate`` from ``start`` seconds on; silence where the file has none."""
    first = _sound_start(path)
    with open_media(path) as container:
        has_picture = picture_of(container) is not None
    origin = picture_start(path)[0] if has_picture else first
    position = origin + Fraction(start) if start > 0 and origin + Fraction(start) > first else None
    written = 0  # samples given since ``start``
    for at, block in _placed(path, position, float(origin) + start, rate):
        while written < at:
            silence = np.zeros(min(rate, at - written), dtype=np.float32)
            written += len(silence)
            yield silence
        kept = block[written - at :]
        written += len(kept)
        if len(kept):
            yield kept


def _placed(
    path: Path, position: Fraction | None, zero: float, rate: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first sample after ``zero`` seconds, block of mono float32 at ``rate``), in order.

    One resampler runs on until the clock leaps or the sample rate, the layout or the sample format changes.
    Mono is the mean of the channels; FFmpeg's own mixing would make equal channels 3 dB louder.
    """
    resampler: Any = None
    shape: tuple[int, str, str] = (SAMPLE_RATE, "", "")
    begin, heard, at, shift = 0.0, 0, 0, 0.0  # of this run: first time, samples in, next place; clock repair
    for frame, stream in _decode(path, sound_of, position):
        expected = begin + heard / shape[0]
        time = float(frame.pts * stream.time_base) - zero + shift if frame.pts is not None else expected
        if time - expected > _LONGEST_GAP or (resampler and time - expected < -_LONGEST_RETURN):
            shift += expected - time
            time = expected
        new = (frame.sample_rate, frame.layout.name, frame.format.name)
        if resampler is None or new != shape or abs(time - expected) > _SLACK:
            for part in resampler.resample(None) if resampler else ():
                yield at, part.to_ndarray().mean(0)
                at += part.samples
            resampler = av.AudioResampler(format="fltp", rate=rate)
            shape, begin, heard, at = new, time, 0, round(time * rate)
        heard += frame.samples
        frame.pts = None
        for part in resampler.resample(frame):
            yield at, part.to_ndarray().mean(0)
            at += part.samples
    for part in resampler.resample(None) if resampler else ():
        yield at, part.to_ndarray().mean(0)
        at += part.samples


def stream_audio(path: str | Path, block_seconds: float = 10.0) -> Iterator[np.ndarray]:
    """The whole sound in blocks of ``block_seconds``: float32 [S] mono 16 kHz, the last one shorter.

    One resampler runs through the file. ``MediaError`` if there is no audio stream or none of it decodes.
    """
    size = round(block_seconds * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"block_seconds must be positive, not {block_seconds}")
    yield from _regroup(_sound(Path(path), 0.0), size)


def _regroup(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += len(block)
        while count >= size:
            joined = np.concatenate(held)
            yield joined[:size].copy()
            held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)


def read_audio(
    path: str | Path, start: float = 0.0, seconds: float | None = None, rate: int = SAMPLE_RATE
) -> np.ndarray:
    """The sound from ``start`` on: float32 [S] mono at ``rate``; S = round(seconds * rate), zeros at the end.

    ``seconds=None`` reads to the end. Only what is needed is decoded. ``MediaError`` as :func:`stream_audio`.
    """
    if start < 0 or (seconds is not None and seconds < 0):
        raise ValueError("start and seconds must not be negative")
    wanted = None if seconds is None else round(seconds * rate)
    parts, count = [np.zeros(0, dtype=np.float32)], 0
    for block in _sound(Path(path), start, rate):
        parts.append(block)
        count += len(block)
        if wanted is not None and count >= wanted:
            break
    sound = np.concatenate(parts)[:wanted]
    return sound if wanted is None else np.pad(sound, (0, wanted - len(sound)))


def write_wav(path: str | Path, waveform: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    """Write ``waveform`` [S] in [-1, 1] (louder is clipped) as 16-bit PCM, complete or not at all.

    ``MediaError`` if it is empty or holds NaN or infinity.
    """
    samples = checked(waveform, Path(path)).clip(-1, 1)
    with atomic(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
