"""Decoded frames -> pixels and samples: scaled and upright; mono, resampled and placed in time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from vab.config import SAMPLE_RATE

LEAVES_OUT = ("h264",)  # codecs that say which frames no other needs; HEVC means by it those of one layer
LOOK_AHEAD = 32  # packets, among which the next frame on screen is found
_TIMESTAMP_TOLERANCE_SECONDS = 0.05  # an audio timestamp may be off by so much before it is believed

FrameCheck = Callable[[int, int], None]  # width, height of a frame as displayed; may raise


class FrameConverter:
    """Convert decoded frames of one stream to pixels as displayed; the orientation is read once.

    ``size``: the short side is scaled down to it. Asking a frame for its side data ties it into a reference
    cycle; done for each, frames would pile up.
    """

    def __init__(self, size: int | None, check: FrameCheck | None) -> None:
        self.size = size
        self.check = check
        self._scaler = VideoReformatter()
        self._orientation: tuple[bool, int, int] | None = None

    def __call__(self, frame: Any, stream: Any) -> np.ndarray:
        """Convert one frame to uint8 [H,W,3] RGB."""
        if self._orientation is None:
            self._orientation = orientation(frame)
        width, height = square_pixels(frame, stream)
        if self.check is not None:
            self.check(width, height)

        # Scale and convert in one step; transparency goes over white.
        scale = min(1.0, self.size / min(width, height)) if self.size else 1.0
        alpha = any(component.is_alpha for component in frame.format.components)
        pixels: np.ndarray = self._scaler.reformat(
            frame,
            width=max(1, round(width * scale)),
            height=max(1, round(height * scale)),
            format="rgba" if alpha else "rgb24",
            interpolation="BICUBIC",
            threads=1,
        ).to_ndarray()
        if alpha:  # [H,W,4] -> [H,W,3], rounded to the nearest
            opacity = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)

        # Turn it upright.
        swap, down, right = self._orientation
        if swap:
            pixels = pixels.transpose(1, 0, 2)
        return np.array(pixels[::down, ::right], order="C")


def progressive(timed: Iterator[tuple[float, Any, Any]]) -> Iterator[tuple[float, Any, Any]]:
    """(seconds, frame, stream): interlaced frames made whole by FFmpeg's bwdif, others as they are."""
    graph: Any = None
    shape: tuple[int, int, str] | None = None
    waiting: deque[tuple[float, Any]] = deque()  # bwdif looks one frame ahead

    def out(frame: Any | None) -> Iterator[tuple[float, Any, Any]]:
        graph.push(frame)
        while True:
            try:
                whole = graph.pull()
            except (BlockingIOError, EOFError):
                return
            time, stream = waiting.popleft()
            yield time, whole, stream

    for time, frame, stream in timed:
        found = (frame.width, frame.height, frame.format.name)
        if graph is not None and found != shape:
            yield from out(None)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield time, frame, stream
                continue
            shape = found
            graph = av.filter.Graph()
            source = graph.add_buffer(template=stream, width=found[0], height=found[1], format=frame.format)
            deinterlace = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            graph.link_nodes(source, deinterlace, graph.add("buffersink")).configure()
        waiting.append((time, stream))
        yield from out(frame)
    if graph is not None:
        yield from out(None)


def on_screen(
    timed: Iterator[tuple[float, Any, Any]], start: float, fps: float, convert: FrameConverter
) -> Iterator[np.ndarray]:
    """The pixels on screen at ``start + i / fps`` seconds; after the last of ``timed``, that one without end.

    ``timed``: (seconds, frame, stream) in order. A frame is on screen until the next one is: the newest is
    held, and given out for every wanted time before that of the one that follows. Its pixels are made only if
    it is wanted at all.
    """
    done = 0
    newest: tuple[Any, Any] | None = None
    pixels: np.ndarray | None = None  # of the newest
    for time, frame, stream in timed:
        while newest is not None and time > start + done / fps:
            pixels = convert(*newest) if pixels is None else pixels
            yield pixels
            done += 1
        newest = (frame, stream)
        pixels = None
    while newest is not None:
        pixels = convert(*newest) if pixels is None else pixels
        yield pixels


class Moments(NamedTuple):
    """The moments ``start + i / fps`` in seconds, for i from 0 on."""

    start: float
    fps: float

    def first(self, time: float) -> float:
        """The first of them that is not before ``time``."""
        number = max(0, math.ceil((time - self.start) * self.fps))
        # The quotient is rounded: one more or less may be the one.
        while number > 0 and self.start + (number - 1) / self.fps >= time:
            number -= 1
        while self.start + number / self.fps < time:
            number += 1
        return self.start + number / self.fps


def with_sight(
    packets: Iterable[Any], moments: Moments, seconds_of: Callable[[Any], float]
) -> Iterator[tuple[Any, bool]]:
    """Each packet in decoding order, with False if its frame is on screen at none of the moments.

    A frame is on screen from its own time, which ``seconds_of`` gives of its packet, until the next frame's.
    From the first packet without a time on, whose frame is shown some while after the one before, all count
    as seen. A decoder need not decode the others where no other frame is predicted from them.
    """
    waiting: deque[tuple[Any, float | None]] = deque()  # with its time, if it has one and is shown
    times: deque[float] = deque(maxlen=2 * LOOK_AHEAD + 1)  # of those that wait, and of as many before
    timed = True

    def seen(time: float | None) -> bool:
        if time is None or not timed or time == min(times):  # the first is on screen before its time, too
            return True
        following = min((other for other in times if other > time), default=math.inf)
        return moments.first(time) < following

    for packet in packets:
        timed = timed and packet.pts is not None
        time = None
        if timed and not packet.is_discard:
            time = seconds_of(packet)
            times.append(time)
        waiting.append((packet, time))
        if len(waiting) > LOOK_AHEAD:
            oldest, time = waiting.popleft()
            yield oldest, seen(time)
    for packet, time in waiting:
        yield packet, seen(time)


@contextmanager
def leaving_out(context: Any, unseen: bool) -> Iterator[None]:
    """A decoder that leaves out the frame of its next packet, if it is ``unseen`` and no other needs it."""
    if unseen:
        context.skip_frame = "NONREF"
    try:
        yield
    finally:
        if unseen:
            context.skip_frame = "DEFAULT"


def contiguous(placed: Iterator[tuple[int, np.ndarray]], rate: int) -> Iterator[np.ndarray]:
    """The blocks [C,n] of :func:`place_audio` from offset 0 on: gaps are silence, what overlaps is cut."""
    written = 0
    for offset, block in placed:
        while written < offset:
            silence = np.zeros((len(block), min(rate, offset - written)), dtype=np.float32)
            written += silence.shape[1]
            yield silence
        rest = block[:, written - offset :]
        written += rest.shape[1]
        if rest.shape[1]:
            yield rest


def square_pixels(frame: Any, stream: Any) -> tuple[int, int]:
    """Width and height of a frame with its pixels made square, before rotation."""
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    return max(1, round(frame.width * aspect)), frame.height


def orientation(frame: Any) -> tuple[bool, int, int]:
    """(swap the axes, step down, step right) of the display matrix, to the nearest quarter turn."""
    for data in frame.side_data:
        if data.type == SideDataType.DISPLAYMATRIX:  # x' = a x + c y, y' = b x + d y
            a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
            # A quarter turn has its weight off the diagonal; negative numbers flip an axis.
            swap = abs(b) + abs(c) > abs(a) + abs(d)
            across, along = (c, b) if swap else (a, d)
            return swap, -1 if along < 0 else 1, -1 if across < 0 else 1
    return False, 1, 1


def place_audio(
    frames: Iterator[tuple[Any, Any]], zero: float, rate: int, layout: str | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """(offset in samples from ``zero`` seconds, block float32 [C,n] at ``rate``), in order.

    One resampler runs on until the clock leaps or the sample rate, the layout or the sample format changes.
    Without a ``layout`` C is one, the mean of the channels; FFmpeg's own mixing would make equal channels
    3 dB louder. What has the rate and the layout already is passed on as it is.
    """

    def block(part: Any) -> np.ndarray:
        samples = np.ascontiguousarray(part.to_ndarray().reshape(part.samples, -1).T)
        return samples if layout else samples.mean(0, keepdims=True)

    resampler: Any = None
    shape: tuple[int, str, str] = (SAMPLE_RATE, "", "")  # sample rate, layout, sample format
    # Of the present run of the resampler:
    run_start = 0.0  # seconds, its first sample
    samples_in = 0
    offset = 0  # of the next sample out
    for frame, stream in frames:
        # 1. When this frame should come by the samples so far, and when the file says that it does.
        expected = run_start + samples_in / shape[0]
        time = expected
        if frame.pts is not None:
            time = float(frame.pts * stream.time_base) - zero

        # 2. A new run where the samples do not follow the last ones, or are of another kind.
        new_shape = (frame.sample_rate, frame.layout.name, frame.format.name)
        if resampler is None or new_shape != shape or abs(time - expected) > _TIMESTAMP_TOLERANCE_SECONDS:
            for part in resampler.resample(None) if resampler else ():
                yield offset, block(part)
                offset += part.samples
            # Interleaved: PyAV reads beyond the planes of a frame that has eight of them (7.1).
            resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
            shape = new_shape
            run_start = time
            samples_in = 0
            offset = round(time * rate)

        # 3. Resample the frame by the count of samples, not by its own time.
        samples_in += frame.samples
        frame.pts = None
        for part in resampler.resample(frame):
            yield offset, block(part)
            offset += part.samples

    # 4. What the last resampler still holds.
    for part in resampler.resample(None) if resampler else ():
        yield offset, block(part)
        offset += part.samples
