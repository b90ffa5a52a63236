"""One open media file: its streams, packet times, frames, waveform, and its video copied beside new audio.

Time 0 of a file is its first shown frame, or the first sample if it has no video; audio that starts later
keeps its distance as silence. Memory follows the window that is read, never the file's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from vab.config import SAMPLE_RATE, video_frames
from vab.media.clock import Clock, PacketLog, PacketTimes, clock_of, frame_interval
from vab.media.container import (
    MediaError,
    MediaInfo,
    OpenFile,
    VideoStart,
    decode,
    find_start,
    sound_span,
)
from vab.media.muxing import tags
from vab.media.muxing.formats import suffix_for
from vab.media.muxing.mux import mux
from vab.media.sources.film import Film
from vab.media.sources.given import ArrayLike, InMemory, Source, as_source
from vab.media.sources.handle import Handle
from vab.media.streams import (
    LEAVES_OUT,
    FrameCheck,
    FrameConverter,
    Moments,
    contiguous,
    leaving_out,
    on_screen,
    orientation,
    place_audio,
    progressive,
    square_pixels,
    with_sight,
)
from vab.utils.remote import RemoteFile

_ROUNDING_SECONDS = 0.0005 + 1e-6  # seconds; many containers keep whole milliseconds
_SEEK_MARGINS = (Fraction(1, 2), Fraction(10))  # seconds before the wanted time; a seek may land too late

Watch = Callable[[float, Any], None]  # seconds from which a frame is shown, and the frame


class MediaFile:
    """A media file that is opened on first use, and whose facts are read once.

    ``source``, ``fps``, ``sound`` and ``rate`` are those of ``media.sources.given.as_source``: what is in
    memory is read like a file of the same content.

    Whatever is learned on the way is kept: a pass over all frames leaves the packet times behind, so that
    frames and a copy of the video take two passes over the file in all. ``close`` (or a ``with`` block) lets
    go of the open file; the facts stay, and a later question opens it again. What happens to the file
    meanwhile is not noticed.

    ``check`` is called with the width and height of each video frame before its pixels are made, whatever
    the header said, and may raise.
    ``length``: a video lasts as long as its picture ("video"), or until the last of picture and sound ends
    ("container"); then the last frame stands still.
    Every method raises ``MediaError`` for a file that is missing, a folder, empty, or not media.
    """

    def __init__(
        self,
        source: Source | MediaFile,
        check: FrameCheck | None = None,
        *,
        fps: float | Fraction | None = None,
        sound: ArrayLike | None = None,
        rate: int | None = None,
        length: Literal["video", "container"] = "video",
    ) -> None:
        given = source.source if isinstance(source, MediaFile) else source
        self.source: Path | RemoteFile | InMemory = as_source(given, fps, sound=sound, rate=rate)
        self.handle = Handle(self.source)
        self.path = self.handle.path  # of what is no local file its name
        self._check = check
        self.length = length
        # Facts, as far as they are known.
        self._audio_found: bool | None = None  # a packet of it
        self._start: VideoStart | None = None
        self._times: PacketTimes | None = None
        self._log: PacketLog | None = None  # of the latest pass over the video
        self._size: tuple[int, int] | None = None  # width, height of the first frame as displayed
        self._first_sample: Fraction | None = None  # its time on the container's clock
        self._audio_seconds: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the open file. What is known of it stays."""
        self.handle.close()

    # ---- facts

    @property
    def kind(self) -> Literal["video", "audio", "image"]:
        """Type of the file, by its header alone. ``MediaError`` if it has neither video nor audio."""
        if self.is_image:
            return "image"
        if not self.has_video and not self.has_audio:
            raise MediaError(f"{self.path}: has neither a video nor an audio stream")
        return "video" if self.has_video else "audio"

    @property
    def is_image(self) -> bool:
        """True for a still image; a moving one is a video."""
        return self.handle.image_size is not None

    @property
    def has_video(self) -> bool:
        """True if there is a video stream other than cover art or one frame beside longer sound."""
        return self.handle.header.has_video

    @property
    def has_audio(self) -> bool:
        """True if there is an audio stream; one without a packet beside a video is none."""
        header = self.handle.header
        if not header.has_video or not header.has_audio or header.sound_found:
            return header.has_audio
        if self._audio_found is None:  # neither the header nor the first packets tell
            with self.handle.lend(fresh=True) as file:
                self._audio_found = any(True for _ in file.demux(file.audio))
        return self._audio_found

    @property
    def audio_format(self) -> tuple[int, str]:
        """Sample rate, and layout as FFmpeg calls it, of the audio stream, which there must be."""
        return self.handle.header.audio_format

    @property
    def made_with(self) -> dict[str, Any] | None:
        """What the file says that VAB made it with (``media.muxing.tags``); None for any other file."""
        return self.handle.header.made_with

    @property
    def nominal_seconds(self) -> float:
        """Duration by the header, 0 if it does not say; often wrong, so good for estimates only."""
        return self.handle.header.seconds

    @property
    def nominal_size(self) -> tuple[int, int]:
        """Width and height by the header: of an image upright, of a video not; 0 for audio."""
        return self.handle.header.size

    @property
    def codec(self) -> str:
        """The codec of the video, as FFmpeg calls it; "" if there is none."""
        return self.handle.header.codec

    @property
    def times(self) -> PacketTimes:
        """Packet times of the video. Reads through the file if no pass has done so yet."""
        if self._times is None:
            self._scan_video("none")
        assert self._times is not None
        return self._times

    @property
    def tells_length(self) -> bool:
        """True if the length of the video is found out without decoding it. Reads a few packets.

        Of raw streams, and of some moving images, only a pass over all frames tells.
        """
        if self._times is not None or self.is_image:
            return True
        return self._film.nominal_seconds > 0 if self._film is not None else self.video_start().timed

    @property
    def seconds(self) -> float:
        """Duration by the packets of the video if there is one, else of the audio; 0 for an image."""
        if self.kind == "image":
            return 0.0
        if not self.has_video:
            return self._scan_audio()
        if self.length == "container" and self.has_audio:
            return max(self.times.seconds, self.sound_end())
        return self.times.seconds

    @property
    def seconds_read(self) -> float:
        """Duration of the video as far as its packets have been read by now."""
        if self._times is not None:
            return self._times.seconds
        if self._log is not None:
            return self._log.seconds
        return self._film.seconds_read if self._film is not None else 0.0

    @property
    def info(self) -> MediaInfo:
        """All of the facts. ``MediaError`` too if not one frame, or no sample, can be decoded."""
        if self.kind == "image":
            return MediaInfo(self.path, "image", 0.0, False, *self.nominal_size, 0.0)
        if self.kind == "audio":
            return MediaInfo(self.path, "audio", self.seconds, True, 0, 0, 0.0)
        if self._size is None:
            self._scan_video("first")
        if self._size is None:
            raise MediaError(f"{self.path}: not one frame of its video stream can be decoded")
        return MediaInfo(self.path, "video", self.seconds, self.has_audio, *self._size, self.times.fps)

    # ---- frames, waveform, copies

    def frames(
        self,
        fps: float,
        start: float = 0.0,
        seconds: float | None = None,
        size: int | None = None,
        watch: Watch | None = None,
    ) -> Iterator[np.ndarray]:
        """The frames on screen at ``start + i / fps`` seconds: uint8 [H,W,3] RGB, upright.

        There are ``config.video_frames(seconds, fps)`` of them; ``seconds=None`` is all that remains. A video
        that ends sooner repeats its last frame; an image is a video that stands still (one frame if
        ``seconds`` is None). ``size``: the short side is scaled down to it, in the decoder's own pixel
        format. ``watch`` is called with the time and PyAV's frame of each one that is decoded for this,
        wanted or not; then the video is decoded to its end. ``MediaError`` if there is no video stream, or
        not one frame of it can be decoded.
        """
        if fps <= 0 or start < 0:
            raise ValueError(f"fps must be positive and start not negative, not {fps} and {start}")
        if self.is_image:
            pixels = self.handle.read_image(size)
            for _ in range(video_frames(seconds or 0.0, fps)):
                yield pixels
            return
        if not self.has_video:
            raise MediaError(f"{self.path}: has no video stream")

        # A pass over the whole video finds out on the way how long it is; any other must know before.
        if seconds is None and (start > 0 or self._times is not None):
            seconds = max(0.0, self.seconds - start)
        count = None if seconds is None else video_frames(seconds, fps)

        # Once the pass is over, all that remains shows the last frame.
        convert = FrameConverter(size, self._check)
        timed = self._timed_frames(start, fps if watch is None else None)
        if watch is not None:
            timed = _watched(timed, watch)
        for done, pixels in enumerate(on_screen(timed, start, fps, convert)):
            if count is None and self._times is not None:
                count = video_frames(self.seconds, fps)
            if count is None or done < count:
                yield pixels
            if count is not None and done + 1 >= count:
                for _ in timed if watch is not None else ():
                    pass
                return
        raise MediaError(f"{self.path}: not one frame of its video stream can be decoded")

    def audio(
        self,
        start: float = 0.0,
        seconds: float | None = None,
        rate: int = SAMPLE_RATE,
        model_level: bool = False,
    ) -> np.ndarray:
        """The waveform from ``start`` on: float32 [S] mono at ``rate``.

        S = round(seconds * rate), with zeros at the end; ``seconds=None`` reads to the end. Only what is
        needed is decoded. ``model_level``: as in :meth:`audio_blocks`. ``MediaError`` if there is no audio
        stream, or none of it can be decoded.
        """
        if start < 0 or (seconds is not None and seconds < 0):
            raise ValueError("start and seconds must not be negative")

        # Stop at the first block that has enough; decoding is lazy.
        count = None if seconds is None else round(seconds * rate)
        blocks = [np.zeros(0, dtype=np.float32)]
        read = 0
        for block in self.audio_blocks(start, rate, model_level):
            blocks.append(block)
            read += len(block)
            if count is not None and read >= count:
                break
        waveform = np.concatenate(blocks)[:count]
        return waveform if count is None else np.pad(waveform, (0, count - len(waveform)))

    def audio_blocks(
        self, start: float = 0.0, rate: int = SAMPLE_RATE, model_level: bool = False
    ) -> Iterator[np.ndarray]:
        """The waveform from ``start`` on as blocks float32 [n], mono at ``rate``; silence fills gaps.

        ``model_level``: of a file that VAB made, the level that the model gave the sound, without the gain
        that brought it to a loudness. So it is measured; any other file is the same either way.
        """
        gain = np.float32(10 ** (-tags.gain(self.made_with) / 20)) if model_level else np.float32(1)
        for block in self.channel_blocks(start, rate, None):
            yield block[0] * gain

    def channel_blocks(self, start: float, rate: int, layout: str | None) -> Iterator[np.ndarray]:
        """The waveform from ``start`` on as blocks float32 [C,n]: in a layout of FFmpeg's, or None for mono.

        What the stream has already (:attr:`audio_format`) is not converted; silence fills gaps.
        """
        if not self.has_audio:
            raise MediaError(f"{self.path}: has no audio stream")
        origin = self.video_start().seconds if self.has_video else None

        # Seek only if the wanted part begins after the first sample.
        position = None
        if start > 0:
            first_sample = self._first_sample_time()
            wanted = (first_sample if origin is None else origin) + Fraction(start)
            position = wanted if wanted > first_sample else None
        frames = self._audio_frames(position)

        # Without video the first sample is time 0; it is known once the first frame is decoded.
        if origin is None:
            if self._first_sample is None:
                frames = chain([next(frames)], frames)
            origin = self._first_sample_time()
        zero = float(origin) + start

        yield from contiguous(place_audio(frames, zero, rate, layout), rate)

    def film_suffix(self, container: str | None = None) -> str:
        """The ending of the film that :meth:`mux` makes: of the container that holds the picture as it is.

        Pictures that no player opens are encoded, in ".mp4". ``container`` (mp4, mov, mkv or webm) chooses
        it instead; ``SettingError`` for another one.
        """
        return suffix_for(self.codec, container)

    def mux(
        self,
        waveform: np.ndarray,
        rate: int,
        out_path: str | Path,
        *,
        tags: Mapping[str, str] | None = None,
        keep_original: bool = False,
        seconds: float | None = None,
    ) -> list[str]:
        """Write a film: the video, and ``waveform`` [S] or [C,S] as its first sound track, as long as it.

        The ending of ``out_path`` chooses the container (``muxing.formats``). The picture is copied where it
        can be for players, else encoded, upright, with its own times. Other streams, chapters and tags
        stay where they can, the track that the new sound replaces only with ``keep_original``. ``tags`` are
        added, a "comment" below the file's own. ``seconds``: how long the film is, at least as long as the
        video; its last frame then stands still. Returns notes for the user: what was encoded or left out.
        ``MediaError``: no video, not one frame can be decoded, a waveform that is empty or not finite;
        ``SettingError``: another ending.
        """
        return mux(self, waveform, rate, Path(out_path), tags or {}, keep_original, seconds)

    def pictures(self, size: int | None = None, apart: float = 0.0) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds, pixels uint8 [H,W,3]) of each frame, upright, not interlaced, with square pixels.

        ``size``: the short side is scaled down to it. A frame that comes sooner than ``apart`` seconds after
        the last one is left out.
        """
        convert = FrameConverter(size, self._check)
        latest = -math.inf
        for time, frame, stream in progressive(self._timed_frames(0.0)):
            if time - latest >= apart:
                latest = time
                yield max(0.0, time + _ROUNDING_SECONDS), convert(frame, stream)

    def sound_end(self) -> float:
        """Seconds from the start of the picture at which the sound ends; 0 if there is none."""
        try:
            length = self._scan_audio()
        except MediaError:  # a track without sound
            return 0.0
        return float(self._first_sample_time() - self.video_start().seconds) + length

    # ---- passes over the file

    @property
    def _film(self) -> Film | None:
        return self.handle.film

    def video_start(self) -> VideoStart:
        """Start of the video's clock; reads a few packets if no pass has done so yet."""
        if self._start is None and self._film is not None:
            self._start = VideoStart(Fraction(0), timed=True)
        if self._start is None:
            with self.handle.lend() as file:
                next(self.video_packets(file), None)
        if self._start is None:
            raise MediaError(f"{self.path}: its video stream has no frames")
        return self._start

    def video_packets(self, file: OpenFile, clock: Clock | None = None) -> Iterator[Any]:
        """All packets of the video, by a repaired clock. From the first one on its start is known."""
        packets = file.demux(file.video)
        if self._start is None:
            self._start, head = find_start(file.container, file.video, packets)
            if self._start is None:
                raise MediaError(f"{self.path}: its video stream has no frames")
            packets = chain(head, packets)  # those that were read in search of it come first
        if self._start.timed:
            packets = (clock or clock_of(file.container, file.video)).repair(packets)
        yield from packets

    def _whole_video(
        self,
        file: OpenFile,
        wanted: Literal["all", "first", "none"] = "all",
        moments: Moments | None = None,
    ) -> Iterator[Any]:
        """The frames of the whole video in display order. After the last one the packet times are known.

        ``wanted``: which frames to decode. Packets without times need them all to be put in order. With
        ``moments``, of the frames that are on screen at none of them some are left out.
        """
        context = file.video.codec_context
        clock = clock_of(file.container, file.video)
        log = None
        if self._times is None:
            log = self._log = PacketLog(file.video, clock)
        packets: Iterator[tuple[Any, bool]] = ((p, True) for p in self.video_packets(file, clock))
        if moments is not None and self.codec in LEAVES_OUT:
            packets = with_sight(self.video_packets(file, clock), moments, self._seconds_of)
        for packet, seen in chain(packets, [(None, True)]):  # None: what the decoder still holds
            assert self._start is not None
            timed = self._start.timed

            # 1. Note the packet's times.
            if packet is not None and log is not None:
                if not timed and not len(log):
                    file.number_frames()
                log.add(packet, timed)

            # 2. Decode it, unless its times were all that is wanted of it.
            if timed and (wanted == "none" or (wanted == "first" and self._size is not None)):
                continue
            with leaving_out(context, timed and not seen):
                frames = decode(context, packet)
            for frame in frames:
                if self._size is None:
                    swap, _, _ = orientation(frame)
                    self._note_size(*square_pixels(frame, file.video), swap)
                if log is not None and not timed:
                    log.display_order.append(frame.opaque[0])
                yield frame

        # 3. All packets have been seen.
        if log is not None:
            self._times = log.times()
            if self._times is None:
                raise MediaError(f"{self.path}: its video stream has no frames")

    def _scan_video(self, wanted: Literal["first", "none"]) -> None:
        """One pass for the packet times and, if the first frame is ``wanted``, for its size."""
        if not self.has_video:
            raise MediaError(f"{self.path}: has no video stream")
        if self._film is not None:
            self._times = self._film.times
            self._note_size(*self._film.size())
            return
        with self.handle.lend() as file:
            for _ in self._whole_video(file, wanted):
                if self._times is not None:  # known before: the frame was all that was missing
                    break

    def _note_size(self, width: int, height: int, swap: bool = False) -> None:
        """Keep the size of the first frame as displayed, after the check; ``swap``: it lies on its side."""
        if self._check is not None:
            self._check(width, height)
        self._size = (height, width) if swap else (width, height)

    def _timed_frames(self, start: float, fps: float | None = None) -> Iterator[tuple[float, Any, Any]]:
        """(seconds since the first shown frame, frame, stream), from the one shown at ``start`` or before.

        Times are lowered by half a millisecond: many containers keep whole ones. With ``fps`` some of the
        frames are left out that are on screen at none of ``start + i / fps``.
        """
        moments = None if fps is None else Moments(start, fps)
        position = None
        if start > 0 and self.video_start().timed:
            position = self.video_start().seconds + Fraction(start)
        first_dts: int | None = None
        time = Fraction(0)
        for index, (frame, stream) in enumerate(self._decode("video", position, moments)):
            # By the frame's own time, else after the frame before it; without times by its packet's, else by
            # its number.
            video_start = self.video_start()
            base = stream.time_base
            if video_start.timed:
                known = frame.pts is not None
                time = frame.pts * base - video_start.seconds if known else time + frame_interval(stream)
            elif frame.dts is not None:
                first_dts = frame.dts if first_dts is None else first_dts
                time = (frame.dts - first_dts) * base
            else:
                time = index * (frame.duration * base if frame.duration else frame_interval(stream))
            yield float(time) - _ROUNDING_SECONDS, frame, stream

    def _seconds_of(self, packet: Any) -> float:
        """When the frame of a packet is shown, as :meth:`_timed_frames` has it."""
        return float(packet.pts * packet.time_base - self.video_start().seconds) - _ROUNDING_SECONDS

    def _decode(
        self, kind: Literal["video", "audio"], position: Fraction | None, moments: Moments | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """(frame, stream) of a stream; the first one is at or before ``position`` if any frame is.

        A seek may land too late (a bad index, frames that need earlier ones): then from further back, at last
        from the beginning.
        """
        if self._film is not None and kind == "video":
            for frame in self._film.frames(position):
                yield frame, self._film
            self._times = self._film.times
            return
        # A file whose own times are wrong is read through; only of MPEG streams that is found out for this.
        known = self.has_video and (self._times is not None or self.handle.header.may_restart)
        seek = position is not None and not (known and self.times.repaired)
        margins = (*_SEEK_MARGINS, None) if seek else (None,)
        for margin in margins:
            # 1. Go there, if the demuxer can.
            with self.handle.lend(seek=margin is not None, fresh=kind == "audio") as file:
                stream = file.video if kind == "video" else file.audio
                if margin is not None and position is not None and not file.seek(stream, position - margin):
                    continue

                # 2. Decode. From the beginning a pass over the video notes what it sees on the way.
                if margin is None and kind == "video":
                    frames = self._whole_video(file, moments=moments)
                else:
                    packets = file.demux(stream)
                    if margin is None:
                        packets = clock_of(file.container, stream, self._leaps).repair(packets)
                    frames = (
                        f for packet in chain(packets, [None]) for f in decode(stream.codec_context, packet)
                    )

                # 3. Only the first frame can tell that the seek landed too late.
                early_enough = margin is None
                for frame in frames:
                    if not early_enough and (frame.pts is None or frame.pts * stream.time_base > position):
                        break
                    early_enough = True
                    yield frame, stream
                if early_enough:
                    return

    def _leaps(self) -> tuple[Fraction, ...]:  # of the picture's clock
        return self.times.leaps if self.has_video else ()

    def _first_sample_time(self) -> Fraction:
        """Time of the first decoded sample on the container's clock; decodes one frame if need be."""
        if self._first_sample is None:
            next(self._audio_frames(None), None)
        assert self._first_sample is not None
        return self._first_sample

    def _audio_frames(self, position: Fraction | None) -> Iterator[tuple[Any, Any]]:
        """(frame, stream) as :meth:`_decode`; a pass from the beginning notes where the audio starts."""
        frames = self._decode("audio", position)
        if self._first_sample is None and position is None:
            for frame, stream in frames:
                self._first_sample = (frame.pts or 0) * stream.time_base
                yield frame, stream
                break
            else:
                raise MediaError(f"{self.path}: its audio stream cannot be decoded")
        yield from frames

    def _scan_audio(self) -> float:
        """Seconds of the audio by its packets: one pass, which decodes the first frame only."""
        if self._audio_seconds is None:
            with self.handle.lend(fresh=True) as file:
                clock = clock_of(file.container, file.audio, self._leaps)
                start, end = sound_span(file, clock, self._first_sample)
            if start is None:
                raise MediaError(f"{self.path}: its audio stream cannot be decoded")
            self._first_sample = start
            self._audio_seconds = float(end - start)
        return self._audio_seconds


def _watched(timed: Iterator[tuple[float, Any, Any]], watch: Watch) -> Iterator[tuple[float, Any, Any]]:
    """Frames passed through, each shown to ``watch`` first."""
    for time, frame, stream in timed:
        watch(max(0.0, time + _ROUNDING_SECONDS), frame)
        yield time, frame, stream
