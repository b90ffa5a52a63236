"""Containers and packets: open files, pick streams, read and decode packets.

No pixels or samples are made here; :mod:`vab.media.file` does that on top of this module. A file's clock
starts at the first frame of its video stream that is shown.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from vab.errors import VABError, first_line
from vab.media.clock import MAX_GAP_SECONDS, Clock, frame_interval, time_base

_COVER_ART = Disposition.attached_pic | Disposition.timed_thumbnails
# What FFmpeg must not open: lists of other files, text that it would draw, devices, and still images, which
# Pillow reads. All else may be a film or a sound.
# fmt: off
_REFUSED_FORMATS = {
    "adf", "alias_pix", "alsa", "bin", "brender_pix", "concat", "dash", "fbdev", "ffmetadata", "fits", "frm",
    "hls", "ico", "idf", "iff", "image2", "image2pipe", "jpegxl_anim", "kmsgrab", "lavfi", "mjpeg_2000",
    "msp", "oss", "rtp", "rtsp", "sap", "sdp", "tty", "txd", "v4l2", "video4linux2", "video4linux2,v4l2",
    "vobsub", "webm_dash_manifest", "x11grab", "xbin",
}
# fmt: on
_FORMATS = {name for name in av.formats_available if not name.endswith("_pipe")} - _REFUSED_FORMATS
MAX_FRAME_PIXELS = 8192 * 4320  # of a video: 8K
_MAX_FRAME_BYTES = 192 << 20  # and of these with more than 8 bits a channel, or transparency
_MAX_CHANNELS = 64  # that FFmpeg resamples
_SAMPLE_RATES = 1_000, 6_000_000  # per second; telephones have 8,000, and DSD512 is decoded to 2,822,400
_MAX_THREADED_BYTES = 64 << 20  # of a frame, of which each thread has its own
_MAX_REPEATS = 10  # times that an edit list may show each frame,
_MAX_REPEATED = 20_000  # if that is more frames than these
_MAX_HEAD = 1000  # packets read in search of a stream's first shown frame; many more than any reordering
_BEFORE_ALL = -(1 << 40)  # ticks: before the first packet of any file
_MAX_DECODER_THREADS = 4
_MAX_COVER_HEAD = 1000  # packets, and bytes, read in search of a picture's second frame and of sound, ...
_MAX_COVER_BYTES = 32 << 20  # ... before another pass looks for them
_COVER_SECONDS = 0.5  # by which the sound beside a cover is longer, at least

Opener: TypeAlias = Callable[[], BinaryIO]  # of a file that can seek, anew each time


class MediaError(VABError):
    """A file that cannot be used. The message is one line with the file and the reason, shown as is."""


@dataclass(frozen=True)
class MediaInfo:
    """Facts about a media file. Sizes are as displayed: pixels made square, rotation applied."""

    path: Path
    kind: Literal["video", "audio", "image"]
    seconds: float  # of the video if there is one, else of the audio; 0 for an image
    has_audio: bool
    width: int  # 0 for audio
    height: int
    fps: float  # mean frame rate of a video, else 0


def check_file(path: Path) -> None:
    """Raise ``MediaError`` unless ``path`` is a readable file that is not empty: no pipe, no device."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(remote(path) or f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be opened ({first_line(error)})") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path}: is a folder, not a media file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path}: is a pipe or a device, not a file")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: no permission to read it")


def remote(name: str | Path) -> str | None:
    """The line to say of an address, such as https://..., which is no local file; None for other names."""
    # Path has made one slash of two.
    address = re.fullmatch(r"([a-z][a-z0-9+.-]+):/{1,2}(?=.)(.*)", str(name), re.IGNORECASE | re.DOTALL)
    if address is None:
        return None
    return f"{address[1]}://{address[2]}: is an address; only local files are read, by their path"


def open_media(path: Path, opener: Opener | None = None) -> InputContainer:
    """Open ``path`` with PyAV; only local files are ever followed. ``MediaError`` if it is no media file.

    ``opener``: opens what is no local file; then ``path`` is just its name.
    """
    if opener is None:
        check_file(path)
    source: Any = f"file:{path}" if opener is None else opener()
    try:
        container = av.open(
            source,
            "r",
            metadata_errors="ignore",
            container_options={"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)},
        )
    except ArgumentError as error:  # what the whitelist answers
        raise MediaError(
            f"{path}: not a readable media file (images of this format, playlists and text are not read)"
        ) from error
    except (FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path}: not a readable media file ({first_line(error)})") from error
    try:
        _check_header(path, container)
    except MediaError:
        container.close()
        raise
    return container


def _check_header(path: Path, container: InputContainer) -> None:
    """Refuse what would take memory or time without end, and a HEIF image: to FFmpeg its tiles are films."""
    if "mif1" in container.metadata.get("compatible_brands", ""):
        raise MediaError(f"{path}: the HEIF image is damaged, or of a kind that is not read")
    low, high = _SAMPLE_RATES
    for audio in filter(None, (stream.codec_context for stream in container.streams.audio)):
        if not low <= (audio.sample_rate or low) <= high:
            raise MediaError(f"{path}: its sound has {audio.sample_rate} Hz; {low} to {high} Hz are read")
        layout = audio.layout
        if layout.nb_channels > _MAX_CHANNELS:
            raise MediaError(
                f"{path}: its sound has {layout.nb_channels} channels; {_MAX_CHANNELS} are the most"
            )
        # PyAV frees a list of channels in an order of its own ("8 channels (FL+FR+SL+...)") again with each
        # frame (18.1): take the usual layout of that many.
        if " channels (" in layout.name:
            audio.layout = f"{layout.nb_channels}c"
    for stream in container.streams.video:
        picture = stream.codec_context
        if picture is not None and picture.width * picture.height > MAX_FRAME_PIXELS:
            size = f"{picture.width}x{picture.height}"
            raise MediaError(f"{path}: its frames of {size} are more than {MAX_FRAME_PIXELS:,} pixels")
        if picture is not None and picture.format is not None:
            # Planes of more than 8 bits are kept in 16.
            deep = max((component.bits for component in picture.format.components), default=8)
            memory = picture.width * picture.height * picture.format.bits_per_pixel // 8
            if memory * (16 if deep > 8 else deep) // deep > _MAX_FRAME_BYTES:
                name = f"{picture.width}x{picture.height} in {picture.format.name}"
                raise MediaError(f"{path}: its frames of {name} are more than {_MAX_FRAME_BYTES >> 20} MiB")
        shown = len(stream.index_entries) if stream.frames else 0  # FFmpeg applies an edit list to its index
        if shown > max(_MAX_REPEATED, _MAX_REPEATS * stream.frames):
            raise MediaError(f"{path}: its edit list shows its {stream.frames} frames {shown:,} times")


def video_stream(container: InputContainer) -> VideoStream | None:
    """The video stream that a player would show: the default one, else the first; cover art is none."""
    streams = [s for s in container.streams.video if s.codec_context and not s.disposition & _COVER_ART]
    return max(streams, key=lambda s: bool(s.disposition & Disposition.default), default=None)


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The audio stream that a player would play: the default one, else the first."""
    streams = [s for s in container.streams.audio if s.codec_context]
    return max(streams, key=lambda s: bool(s.disposition & Disposition.default), default=None)


class OpenFile:
    """An open container with the streams that a player would use, and what has been done with it."""

    def __init__(self, container: InputContainer) -> None:
        self.container = container
        self.video: Any = video_stream(container)
        self.audio: Any = audio_stream(container)
        self.used = False
        self.head: list[Any] = []  # packets that were read before the first pass, which gets them
        # The video of MP4 and MOV is read by an index that a seek just starts anew. Other demuxers keep more
        # state, and so do audio decoders and MP4's own count of samples to skip: what they give after a seek
        # may differ from what a file just opened gives.
        self.can_rewind = "mp4" in container.format.name.split(",")
        self._discards = [stream.discard for stream in container.streams]
        for stream in filter(None, (self.video, self.audio)):
            stream.codec_context.thread_count = min(_MAX_DECODER_THREADS, os.cpu_count() or 1)
            stream.codec_context.thread_type = "AUTO"
        if self.video is not None:
            context = self.video.codec_context
            context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # later frames may be larger
            depth = context.format.bits_per_pixel if context.format else 0
            if context.width * context.height * depth > 8 * _MAX_THREADED_BYTES:
                context.thread_type = "SLICE"  # threads that share a frame; others hold one each

    @property
    def nominal_seconds(self) -> float:
        """Duration of the video, or else of the whole file, by the header; 0 if it does not say."""
        stream = self.video or self.audio
        if stream is not None and stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        return (self.container.duration or 0) / av.time_base

    @property
    def nominal_sound_end(self) -> float | None:
        """When the sound ends on the container's clock, by the header; None if it does not say."""
        if self.audio is not None and self.audio.duration:
            return float(((self.audio.start_time or 0) + self.audio.duration) * time_base(self.audio))
        if self.container.duration:
            return ((self.container.start_time or 0) + self.container.duration) / av.time_base
        return None

    def number_frames(self) -> None:
        """Make the decoder, before its first packet, pass the packets' numbers on with the frames.

        Without frame threads: they release the numbers, which are Python objects, and would wait for the
        interpreter's lock while the thread that holds it waits for them.
        """
        if not self.video.codec_context.is_open:  # else an earlier pass without times has done so
            self.video.codec_context.thread_type = "SLICE"
            self.video.codec_context.copy_opaque = True

    def reset(self, rewind: bool) -> bool:
        """Prepare for another pass, from the beginning if ``rewind``; False if the demuxer cannot."""
        # ``demux`` told the container to skip the other streams.
        for stream, discard in zip(self.container.streams, self._discards, strict=True):
            stream.discard = discard
        self.head = []
        if not rewind:
            return True
        with suppress(FFmpegError):
            self.container.seek(_BEFORE_ALL, stream=self.video or self.audio)
            return True
        return False

    def seek(self, stream: Any, seconds: Fraction) -> bool:
        """Go to the last key frame at or before ``seconds``; False if the demuxer cannot."""
        self.head = []
        with suppress(FFmpegError):
            self.container.seek(int(seconds / stream.time_base), stream=stream)
            return True
        return False

    def demux(self, stream: Any) -> Iterator[Any]:
        """The packets of one stream that carry data; a truncated file just ends."""
        # The demuxer need not read the other streams at all.
        for other in self.container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        head, self.head = self.head, []
        packets = chain((p for p in head if p.stream.index == stream.index), _read(self.container, stream))
        return (packet for packet in packets if packet.size)  # an empty one only tells decoders to flush

    def drop_cover(self, reopen: Callable[[], OpenFile]) -> None:
        """Let a picture of one frame beside longer sound be no video: it is the cover of a song.

        Few containers count their frames. Of others the first packets tell; the first pass gets them too.
        If they do not, another pass has to, over what ``reopen`` gives.
        """
        if self.video is None or self.audio is None or self.video.frames > 1:
            return
        if self.video.frames == 1:
            lengths = [float((s.duration or 0) * time_base(s)) for s in (self.video, self.audio)]
        else:
            whole = self._read_head()
            pictures = self._of(self.video)
            if len(pictures) != 1:
                return
            sound = self._of(self.audio) or pictures
            lengths = [
                float(pictures[0].duration * pictures[0].time_base) or float(frame_interval(self.video)),
                float(((sound[-1].pts or 0) - (sound[0].pts or 0)) * sound[0].time_base),
            ]
            if not whole:
                other = reopen()
                with other.container:
                    if sum(1 for _ in islice(other.demux(other.video), 2)) > 1:
                        return
        if lengths[1] > lengths[0] + _COVER_SECONDS:
            self.video = None

    def _read_head(self) -> bool:
        """Read packets up to a second picture and the first sound; True if the file has ended before."""
        counts = {self.video.index: 0, self.audio.index: 0}
        size = 0
        for packet in _read(self.container):
            self.head.append(packet)
            size += packet.size
            if packet.size and packet.stream.index in counts:
                counts[packet.stream.index] += 1
            found = counts[self.video.index] > 1 and counts[self.audio.index] > 0
            if found or len(self.head) == _MAX_COVER_HEAD or size > _MAX_COVER_BYTES:
                return False
        return True

    @property
    def sound_found(self) -> bool:
        """True if the header, as MP4's, or the packets read so far show that the audio is not empty."""
        return self.audio is not None and (self.audio.frames > 0 or bool(self._of(self.audio)))

    def _of(self, stream: Any) -> list[Any]:
        return [packet for packet in self.head if packet.size and packet.stream.index == stream.index]


def _read(container: InputContainer, *streams: Any) -> Iterator[Any]:
    """Packets as long as they can be read."""
    packets = container.demux(*streams)
    with suppress(FFmpegError):
        yield from packets


def decode(context: Any, packet: Any | None) -> list[Any]:
    """The frames that a decoder returns for a packet, in display order; none if it cannot be decoded.

    ``packet=None`` flushes the decoder: the frames that it still holds.
    """
    with suppress(FFmpegError):
        frames: list[Any] = context.decode(packet)
        return frames
    return []


@dataclass(frozen=True)
class VideoStart:
    """Start of a video stream's clock, and whether its packets carry presentation times."""

    seconds: Fraction  # presentation time of the first shown frame on the container's clock
    timed: bool  # False: raw streams, and AVI with reordered frames; times follow from the order alone


def find_start(
    container: InputContainer, stream: VideoStream, packets: Iterator[Any]
) -> tuple[VideoStart | None, list[Any]]:
    """The start of a video stream by its first packets, and the packets that were read to find it.

    Reads no further than needed: a packet that is decoded after the earliest presentation time so far cannot
    be shown before it. None if there is no packet whose frame is shown.
    """
    # AVI numbers its frames in decoding order; with B-frames that is not the order on screen.
    counted = container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
    earliest: int | None = None  # presentation time in ticks
    head: list[Any] = []
    for packet in packets:
        head.append(packet)
        # Without times the clock starts at 0, and frames are counted.
        if packet.pts is None or counted:
            return VideoStart(Fraction(0), timed=False), head
        # Whatever is decoded from here on is shown later.
        if earliest is not None and packet.dts is not None and packet.dts > earliest:
            break
        if earliest is not None and len(head) == _MAX_HEAD:  # packets without decoding times
            break
        if not packet.is_discard:
            earliest = packet.pts if earliest is None else min(earliest, packet.pts)
    if earliest is None:
        return None, head
    return VideoStart(earliest * time_base(stream), timed=True), head


def sound_span(file: OpenFile, clock: Clock, start: Fraction | None) -> tuple[Fraction | None, Fraction]:
    """When the audio of a file starts and ends on its clock: one pass, which decodes the first frame only.

    ``start``, if it is known, saves that. None if not one frame can be decoded.
    """
    timed_end: Fraction | None = None  # of the latest packet that carries a time
    untimed = Fraction(0)  # seconds of the packets from there on
    stream = file.audio
    for packet in chain(clock.repair(file.demux(stream)), [None]):
        if start is None:
            frame = next(iter(decode(stream.codec_context, packet)), None)
            start = None if frame is None else (frame.pts or 0) * stream.time_base
        if packet is None:
            break
        if packet.pts is not None:
            timed_end, untimed = packet.pts * packet.time_base, Fraction(0)
        duration = (packet.duration or 0) * packet.time_base
        if duration < MAX_GAP_SECONDS:  # the last packet of some Ogg files claims 2^32 samples
            untimed += duration
    # The last known time, and what follows it.
    return start, (timed_end if timed_end is not None else start or Fraction(0)) + untimed


def check_waveform(waveform: np.ndarray, path: Path) -> np.ndarray:
    """``waveform`` as float32 [S] or [C,S]; ``MediaError`` naming ``path`` if it is empty or not finite."""
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim not in (1, 2):
        raise ValueError(f"a waveform has axes [S] or [C,S], not the shape {list(samples.shape)}")
    if not samples.size:
        raise MediaError(f"{path}: the waveform to write is empty")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path}: the waveform to write holds NaN or infinite samples")
    return samples
