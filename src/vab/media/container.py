"""Packets: opening a file, the clock of its picture, and new sound beside an untouched picture.

Nothing here makes pixels or samples; :mod:`vab.media.reader` does, on top of this. "Picture" is the video
stream that a player would show, "sound" the audio stream it would play. A picture's clock starts at its first
shown frame.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from vab.errors import VABError, first_line
from vab.utils.files import atomic

_COVER = Disposition.attached_pic | Disposition.timed_thumbnails
_NOT_MEDIA = {"tty", "concat", "hls", "dash"}  # text that FFmpeg would draw, or follow to other files


class MediaError(VABError):
    """A file that cannot be used. The message is one line with the file and the reason, shown as is."""


def check_file(path: Path) -> None:
    """``MediaError`` unless ``path`` is a readable file with something in it."""
    if path.is_dir():
        raise MediaError(f"{path}: is a folder, not a media file")
    if not path.exists():
        raise MediaError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: no permission to read it")


def open_media(path: Path) -> InputContainer:
    """Open ``path`` with PyAV; only local files are ever followed. ``MediaError`` if it is no media file."""
    check_file(path)
    try:
        container = av.open(
            f"file:{path}",
            "r",
            metadata_errors="ignore",
            container_options={"protocol_whitelist": "file"},
        )
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path}: not a readable media file ({first_line(error)})") from error
    if _NOT_MEDIA & set(container.format.name.split(",")):
        container.close()
        raise MediaError(f"{path}: not a media file (it holds text)")
    return container


def picture_of(container: InputContainer) -> VideoStream | None:
    """The video stream to show; cover art is none."""
    streams = [s for s in container.streams.video if s.codec_context and not s.disposition & _COVER]
    return max(streams, key=lambda s: bool(s.disposition & Disposition.default), default=None)


def sound_of(container: InputContainer) -> AudioStream | None:
    """The audio stream to play."""
    streams = [s for s in container.streams.audio if s.codec_context]
    return max(streams, key=lambda s: bool(s.disposition & Disposition.default), default=None)


def packets(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The packets of one stream, those with data; a file that breaks off just ends."""
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    demuxer = container.demux(stream)
    while True:
        try:
            packet = next(demuxer)
        except (StopIteration, FFmpegError):
            return
        if packet.size:
            yield packet


def decoded(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames of one stream in the order they are shown; packets that cannot be decoded are left out."""
    for packet in chain(packets(container, stream), [None]):  # None: the frames that the decoder still holds
        with suppress(FFmpegError):
            yield from stream.codec_context.decode(packet)


def picture_start(path: Path) -> tuple[Fraction, bool]:
    """When the picture's first frame is shown, on the container's clock, and whether its frames carry times.

    Raw streams and AVI files with reordered frames do not: their times follow from the order alone.
    """
    with open_media(path) as container:
        stream = picture_of(container)
        if stream is None:
            raise MediaError(f"{path}: has no video stream")
        first: int | None = None
        for packet in packets(container, stream):
            if packet.pts is None or _counts(container, stream):
                return Fraction(0), False
            if first is not None and packet.dts is not None and packet.dts > first:
                break
            if not packet.is_discard:
                first = packet.pts if first is None else min(first, packet.pts)
        if first is None:
            raise MediaError(f"{path}: its video stream has no frames")
        return first * _time_base(stream), True


def _counts(container: InputContainer, stream: VideoStream) -> bool:
    return container.format.name == "avi" and bool(stream.codec_context.has_b_frames)


def _time_base(stream: Any) -> Fraction:
    return stream.time_base or Fraction(1, 90_000)


def interval(stream: VideoStream) -> Fraction:
    """Seconds between two frames as the header says; 1/25 s if it is silent."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / Fraction(rate) if rate else Fraction(1, 25)


@dataclass(frozen=True)
class PictureTimes:
    """The times of N packets in file order, in ticks of ``time_base``; ``start`` is the first shown frame."""

    pts: np.ndarray  # int64 [N]
    dts: np.ndarray  # int64 [N], rising, never after pts
    start: int
    end: int
    frames: int
    time_base: Fraction

    @property
    def seconds(self) -> float:
        """Time on screen, the last frame's own time included."""
        return float((self.end - self.start) * self.time_base)


def picture_times(path: Path) -> PictureTimes:
    """Read every packet of the picture; decode only if they carry no times. ``MediaError`` if none."""
    _, timed = picture_start(path)
    pts, dts, lengths, shown = array("q"), array("q"), array("q"), array("b")
    missing = False
    with open_media(path) as container:
        stream: Any = picture_of(container)
        time_base = _time_base(stream)
        step = max(1, round(interval(stream) / time_base))
        for packet in packets(container, stream):
            time = packet.pts if timed and packet.pts is not None else packet.dts
            if time is None:
                time = pts[-1] + (lengths[-1] or step) if pts else 0
            missing = missing or packet.dts is None
            pts.append(time)
            dts.append(packet.dts if packet.dts is not None else time)
            lengths.append(packet.duration or 0)
            shown.append(not packet.is_discard)
    times, visible = np.array(pts, dtype=np.int64), np.array(shown, dtype=bool)
    if not visible.any():
        raise MediaError(f"{path}: its video stream has no frames")
    if not timed:
        times = np.sort(times)[_display_order(path, len(times))]
    start, last = int(times[visible].min()), int(np.where(visible, times, times.min()).argmax())
    frames = int(visible.sum())
    if not lengths[last]:  # a container that keeps no durations: as long as the frames before it
        lengths[last] = round((int(times[last]) - start) / (frames - 1)) if frames > 1 else step
    order = np.array(dts, dtype=np.int64)
    if missing or (np.diff(order) <= 0).any() or (order > times).any():
        order = np.sort(times)
        order = order - max(0, int((order - times).max()))
    return PictureTimes(times, order, start, int(times[last]) + lengths[last], frames, time_base)


def _display_order(path: Path, count: int) -> np.ndarray:
    """For each packet [N] the place at which its frame is shown; found by decoding."""
    place = np.arange(count)
    with open_media(path) as container:
        stream: Any = picture_of(container)
        context = stream.codec_context
        context.copy_opaque = True
        sequence: list[int] = []
        for index, packet in enumerate(chain(packets(container, stream), [None])):
            if packet is not None:
                packet.opaque = index
            with suppress(FFmpegError):
                sequence.extend(frame.opaque for frame in context.decode(packet))
        if sorted(sequence) == list(range(count)):  # else some frames are broken: file order is all there is
            for rank, index in enumerate(sequence):
                place[index] = rank
    return place


def mux(video_path: str | Path, waveform: np.ndarray, rate: int, out_path: str | Path) -> None:
    """Write an MP4: the picture of ``video_path``, copied packet by packet, and ``waveform`` [S] as AAC.

    The picture starts at time 0 and keeps its spacing and rotation; nothing is encoded again. The sound is
    cut, or filled with silence, to last as long as the picture. The file gets its name when complete.
    ``MediaError``: no picture, a picture codec that MP4 cannot hold, a waveform that is empty or not finite.
    """
    video_path, out_path = Path(video_path), Path(out_path)
    sound = checked(waveform, out_path)
    times = picture_times(video_path)
    samples = np.zeros(max(1, round(times.seconds * rate)), dtype=np.float32)
    samples[: len(sound)] = np.clip(sound[: len(samples)], -1, 1)
    with atomic(out_path) as temporary, open_media(video_path) as source:
        stream: Any = picture_of(source)
        try:
            with av.open(
                f"file:{temporary}",
                "w",
                format="mp4",
                container_options={"movflags": "+faststart", "movie_timescale": str(rate)},
            ) as target:
                _write(source, stream, target, times, samples, rate)
        except (FFmpegError, ValueError) as error:
            name = stream.codec_context.codec.canonical_name
            raise MediaError(
                f"{video_path}: its {name} picture cannot be copied into mp4 ({first_line(error)})"
            ) from error


def checked(waveform: np.ndarray, path: Path) -> np.ndarray:
    """``waveform`` as float32 [S]; ``MediaError`` naming ``path`` if it is empty or not finite."""
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim != 1:
        raise ValueError(f"a waveform has one axis [S], not the shape {list(samples.shape)}")
    if not len(samples):
        raise MediaError(f"{path}: the waveform to write is empty")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path}: the waveform to write holds NaN or infinite samples")
    return samples


def _write(
    source: InputContainer,
    stream: VideoStream,
    target: OutputContainer,
    times: PictureTimes,
    samples: np.ndarray,
    rate: int,
) -> None:
    """Both streams in step, so that neither waits in memory for the other."""
    picture: Any = target.add_stream_from_template(stream, opaque=True)
    if stream.codec_context.codec.canonical_name == "hevc" and stream.codec_context.extradata:
        picture.codec_context.codec_tag = "hvc1"  # the name Apple's players know it by
    voice: Any = target.add_stream("aac", rate=rate, layout="mono", format="fltp")
    voice.bit_rate = 6 * rate  # the most that mono AAC can use
    voice.time_base = Fraction(1, rate)
    sent = 0
    due = zip(packets(source, stream), times.pts.tolist(), times.dts.tolist(), strict=True)
    for packet, pts, dts in due:
        packet.pts, packet.dts = pts - times.start, dts - times.start
        until = float(packet.dts * times.time_base)
        packet.stream = picture
        target.mux(packet)
        sent = _send(samples, sent, round(until * rate), voice, target, rate)
    _send(samples, sent, len(samples), voice, target, rate)
    target.mux(voice.encode())


def _send(samples: np.ndarray, sent: int, until: int, voice: Any, target: OutputContainer, rate: int) -> int:
    """Encode ``samples`` from ``sent`` until ``until`` is passed; where it stopped."""
    while sent < min(until, len(samples)):
        block = samples[sent : sent + 1024]
        frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, sent, Fraction(1, rate)
        target.mux(voice.encode(frame))
        sent += len(block)
    return sent
