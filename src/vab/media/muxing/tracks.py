"""The tracks of a film that is written: a picture copied or encoded, new sound, and all other streams."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import chain, islice, pairwise
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition

from vab.errors import SettingError, VABError
from vab.media.clock import PacketTimes, clock_of
from vab.media.container import decode
from vab.media.muxing.formats import Container, holds

_ENCODER_OPTIONS = {
    # In the order of time: else MP4 would not keep how long the last frame is shown.
    "libx264": {"preset": "veryfast", "crf": "18", "bf": "0"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "4", "row-mt": "1", "crf": "24", "b": "0"},
}
_MAX_THREADS = 4  # of an encoder
LONGEST_SIDE = 4096  # pixels of a side: what players decode, and what an encoder that looks ahead can hold
_PRORES_TAGS = {
    "Proxy": "apco",
    "LT": "apcs",
    "Standard": "apcn",
    "HQ": "apch",
    "4444": "ap4h",
    "XQ": "ap4x",
}
_BT709 = 1  # FFmpeg's number of these primaries, transfer and matrix
_SCALER_MATRICES = {1: 1, 5: 5, 6: 5, 7: 7, 9: 9}  # its number of each matrix; else that of old television
_AUDIO_BLOCK = 1024  # samples of one AAC frame
_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "6.1(back)", "7.1")  # by channels, as AAC has them
_OPUS_LAYOUTS = {4: "quad", 7: "6.1"}  # where Opus differs
_MAX_BIT_RATE = 192_000  # of a channel
_PRIMING = Fraction(1, 10)  # seconds of sound before the start that its decoder may need
_PAUSE = 0.05  # seconds between frames of sound that are no rounding of their times
_MAX_TIME_BASE = 1 << 31  # ticks a second
_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id", "rotate")
_STATISTICS = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS")  # of the packets, as Matroska's tags say
_TRACKS = {"audio": "sound track", "subtitle": "subtitle track", "video": "second picture"}
_DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}


def of_the_stream(error: BaseException) -> bool:
    """True if writing failed for what was written, not for want of space or rights, nor by our own error."""
    return not isinstance(error, VABError) and getattr(error, "errno", None) not in _DISK_FAULTS


def kept_tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """What the source says of itself, without what is true of that one file only."""
    return {
        name: value
        for name, value in metadata.items()
        if name.lower() not in _OF_THE_FILE and not name.startswith(_STATISTICS)
    }


# ---- the picture: two ways


class CopiedPicture:
    """The packets of a video stream as they are, with the times that they should have."""

    def __init__(self, stream: Any, packets: Iterator[Any], times: PacketTimes, seconds: float) -> None:
        self._source = stream
        self._packets = packets
        self._times = times
        self._end = times.start + max(times.end - times.start, round(seconds / times.time_base))
        # Frames after the end that others need: an edit list has to end before them.
        self._after = ~times.shown & (times.pts >= times.end)
        self.edit_seconds = seconds if self._after[: times.needed].any() else None

    def open(self, target: Any, _container: Container) -> None:
        """Add the stream to ``target``."""
        self._stream = target.add_stream_from_template(self._source, opaque=True)
        context = self._stream.codec_context
        source = self._source.codec_context
        if source.codec.canonical_name == "hevc" and context.extradata:
            context.codec_tag = "hvc1"  # the name Apple's players know it by
        if source.profile in _PRORES_TAGS:  # each kind has its own; FFmpeg would call all of them HQ
            context.codec_tag = _PRORES_TAGS[source.profile]
        if self._source.average_rate:  # by which a time code is counted
            context.framerate = self._source.average_rate
        if self._source.sample_aspect_ratio:
            context.sample_aspect_ratio = self._source.sample_aspect_ratio
        _describe(self._stream, self._source)

    def packets(self) -> Iterator[Any]:
        """The packets from time 0 on, in the order of the file, up to the last one that is shown."""
        times = self._times
        count = times.needed
        durations = times.durations
        last = int(np.where(times.shown, times.pts, times.start - 1).argmax())
        durations[last] = self._end - times.pts[last]
        final = count - 1  # the last one that is decoded
        durations[final] = _final_duration(
            times.pts[final],
            times.dts[final],
            durations[final],
            times.dts[0] - times.pts[:count].min(),
            self._end,
        )
        pts = times.pts + self._after * (self._end - times.end)
        ticks = zip(pts.tolist(), times.dts.tolist(), durations.tolist(), strict=True)
        for packet, (time, dts, duration) in islice(zip(self._packets, ticks, strict=True), count):
            packet.pts, packet.dts, packet.duration = time - times.start, dts - times.start, duration
            packet.stream = self._stream
            yield packet


def _final_duration(pts: int, dts: int, own: int, delay: int, end: int) -> int:
    """Ticks of the packet that is decoded last; MP4 adds them up in that order to the length of the track.

    ``delay``: decoding time less presentation time of the first packet. No frame may seem to outlast the end.
    """
    return int(own if pts + own >= end else max(own, min(delay + end - dts, end - pts)))


class EncodedPicture:
    """Frames encoded once more: upright, of even size, with square pixels, over white, at their own times."""

    def __init__(
        self,
        pictures: Iterator[tuple[float, np.ndarray]],
        stream: Any | None,
        base: Fraction,
        rate: Fraction,
        seconds: float,
        longest: int = LONGEST_SIDE,
        gop: int | None = None,
    ) -> None:
        self._pictures = pictures  # (seconds, uint8 [H,W,3])
        self._source = stream
        self._base = base if base.denominator < _MAX_TIME_BASE else Fraction(1, 90_000)  # seconds of a tick
        self._rate = max(Fraction(1), rate)  # frames a second, on average
        self._end = round(seconds / self._base)
        self._longest = longest  # pixels of the longer side, at most
        self._gop = gop  # frames from one that stands alone to the next, at most; None: as the encoder likes
        self.size = (0, 0)  # width, height; known when open
        self.edit_seconds: float | None = None  # nothing is hidden

    def open(self, target: Any, container: Container) -> None:
        """Add the stream to ``target``; the first frame says how large it is."""
        self._first = next(self._pictures)
        height, width = self._first[1].shape[:2]
        scale = min(1.0, self._longest / max(height, width))
        self.size = max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
        options = dict(_ENCODER_OPTIONS[container.picture])
        stream = target.add_stream(container.picture, rate=self._rate, options=options)
        stream.width, stream.height = self.size
        stream.codec_context.thread_count = _MAX_THREADS
        if self._gop is not None:
            stream.codec_context.gop_size = self._gop
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._base
        self._colours(stream.codec_context)
        if self._source is not None:
            _describe(stream, self._source)
        self._stream = stream

    def _colours(self, context: Any) -> None:
        """Colours keep their meaning: a picture that has a matrix keeps it, RGB gets that of HD."""
        source = None if self._source is None else self._source.codec_context
        self._matrix = _BT709
        if source is not None and source.pix_fmt and source.pix_fmt.startswith("yuv"):
            self._matrix = source.colorspace
            context.color_primaries, context.color_trc = source.color_primaries, source.color_trc
        else:
            context.color_primaries = context.color_trc = _BT709
        context.colorspace = self._matrix
        context.color_range = 1  # as television has it: what players expect of H.264

    def packets(self) -> Iterator[Any]:
        """The packets from time 0 on, as the encoder gives them; each says how long its frame is shown."""
        durations: dict[int, int] = {}  # by the frame's time; the encoder thinks that all are equal
        packets = self._encoded(durations)
        held = next(packets)
        delay = held.dts - held.pts
        for packet in packets:
            held.duration = durations.pop(held.pts)
            yield held
            held = packet
        held.duration = _final_duration(held.pts, held.dts, durations.pop(held.pts), delay, self._end)
        yield held

    def _encoded(self, durations: dict[int, int]) -> Iterator[Any]:
        """The encoder's packets; notes how long each frame lasts before it is encoded."""
        for (time, pixels), following in pairwise(self._with_end()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                *self.size,
                "yuv420p",
                dst_colorspace=_SCALER_MATRICES.get(self._matrix),
                interpolation="BICUBIC",
                dst_color_range=1,
            )
            frame.pts, frame.time_base = time, self._base
            durations[time] = following[0] - time
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)

    def _with_end(self) -> Iterator[tuple[int, Any]]:
        """(tick, pixels) of each frame, rising, and at last the end."""
        tick = -1
        for time, pixels in chain([self._first], self._pictures):
            tick = max(tick + 1, round(time / self._base))
            yield tick, pixels
        yield max(self._end, tick + 1), None


def _describe(stream: Any, source: Any) -> None:
    """Language, title, time code and disposition of a stream."""
    stream.metadata.update(kept_tags(source.metadata))
    stream.disposition = source.disposition


# ---- the sound


class NewSound:
    """A waveform [C,S] in [-1, 1], encoded step by step: the first sound track, and the default one."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self._samples = samples
        self.rate = rate
        self._sent = 0

    def open(self, target: Any, container: Container) -> None:
        """Add the track to ``target``."""
        self._target = target
        self._layout = layout(len(self._samples), container.sound)
        self._stream = _sound_stream(target, container, self.rate, self._layout)
        self._stream.disposition = Disposition.default
        self._resampler = _resampler(self._stream)

    def until(self, seconds: float) -> None:
        """Write what sounds before ``seconds``; infinity ends the track."""
        stop = self._samples.shape[1]
        stop = stop if math.isinf(seconds) else min(stop, round(seconds * self.rate))
        while self._sent < stop:
            block = self._samples[:, self._sent : self._sent + _AUDIO_BLOCK]
            interleaved = np.ascontiguousarray(block.T, dtype=np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=self._layout)
            frame.sample_rate, frame.pts = self.rate, self._sent
            frame.time_base = Fraction(1, self.rate)
            _encode(self._target, self._stream, self._resampler.resample(frame))
            self._sent += block.shape[1]
        if math.isinf(seconds):
            _encode(self._target, self._stream, [*self._resampler.resample(None), None])


def layout(channels: int, encoder: str) -> str:
    """FFmpeg's name of the layout that an encoder has for so many channels; ``SettingError`` if none."""
    if not 1 <= channels <= len(_LAYOUTS):
        raise SettingError(f"a film has 1 to {len(_LAYOUTS)} channels of sound, not {channels}")
    usual = _LAYOUTS[channels - 1]
    return _OPUS_LAYOUTS.get(channels, usual) if encoder == "libopus" else usual


def _sound_stream(target: Any, container: Container, rate: int, channels: str) -> Any:
    """A stream for new sound, at the rate itself or the next one that the encoder has."""
    rates = av.Codec(container.sound, "w").audio_rates
    if rates and rate not in rates:
        rate = min((r for r in rates if r >= rate), default=max(rates))
    stream = target.add_stream(container.sound, rate=rate, layout=channels)
    stream.time_base = Fraction(1, rate)
    if not container.sound.startswith("pcm"):
        count = stream.codec_context.layout.nb_channels
        stream.bit_rate = count * min(6 * rate, _MAX_BIT_RATE)  # AAC can use no more than 6 bits a sample
    return stream


def _resampler(stream: Any) -> av.AudioResampler:
    """Brings frames to what the encoder of ``stream`` wants."""
    context = stream.codec_context
    context.open(strict=False)
    size = context.frame_size or None
    return av.AudioResampler(context.format.name, context.layout.name, context.sample_rate, size)


def _encode(target: Any, stream: Any, frames: list[Any]) -> None:
    for frame in frames:
        target.mux(stream.encode(frame))


# ---- everything else


class OtherStreams:
    """The other sound tracks, subtitles, data and attachments of a file: copied, as far as they can be.

    Sound that the container cannot hold is encoded. ``lost``: what stays behind, in words.
    """

    def __init__(
        self, source: InputContainer, streams: list[Any], times: PacketTimes, zero: Fraction, seconds: float
    ) -> None:
        self.lost: list[str] = []
        self._source = source
        self._streams = streams
        self._zero = zero  # on the file's clock, after repair
        self._seconds = seconds
        self._clocks = {s.index: clock_of(source, s, lambda: times.leaps) for s in streams}
        self._waiting: Any = None
        self._sent: dict[int, int] = {}  # samples of the sound that is encoded, by stream

    def open(self, target: Any, container: Container) -> None:
        """Add the streams to ``target``."""
        self._target = target
        self._container = container
        self._copies: dict[int, Any] = {}
        self._encoders: dict[int, tuple[Any, Any]] = {}
        for stream in self._streams:
            context: Any = stream.codec_context
            pcm = stream.type == "audio" and context.name.startswith("pcm")
            if holds(container, stream) and not (pcm and container.format == "mp4"):
                new = target.add_stream_from_template(stream, opaque=True)
                self._copies[stream.index] = new
            elif stream.type == "audio" and context.layout.nb_channels <= len(_LAYOUTS):
                channels = layout(context.layout.nb_channels, container.sound)
                new = _sound_stream(target, container, context.sample_rate, channels)
                self._encoders[stream.index] = new, _resampler(new)
            else:
                self._lose(stream)
                continue
            _describe(new, stream)
            if stream.type == "audio":  # players start with the new sound
                new.disposition = stream.disposition & ~Disposition.default
        # Attachments have no packets; streams that stay behind need not be read.
        wanted = [s for s in self._streams if s.index in self._copies or s.index in self._encoders]
        for stream in self._source.streams:
            if stream not in wanted:
                stream.discard = Discard.all
        self._packets = self._read(wanted)

    def until(self, seconds: float) -> None:
        """Write what comes before ``seconds``; infinity writes all."""
        while True:
            found = self._waiting or next(self._packets, None)
            self._waiting = None
            if found is None:
                break
            time, stream, packet = found
            if time > seconds:
                self._waiting = found
                return
            try:
                self._write(stream, packet, time)
            except (FFmpegError, ValueError) as error:
                if not of_the_stream(error):
                    raise
                self._lose(stream)
                self._copies.pop(stream.index, None)
                self._encoders.pop(stream.index, None)
        for stream in self._streams:  # what decoders and encoders still hold
            if stream.index in self._encoders:
                self._encode(stream, None)
        for new, resampler in self._encoders.values():
            _encode(self._target, new, [*resampler.resample(None), None])
        self._encoders = {}

    def _read(self, streams: list[Any]) -> Iterator[tuple[float, Any, Any]]:
        """(seconds from the start of the picture, stream, packet)."""
        timed = [s for s in streams if s.type != "attachment"]
        if not timed:
            return
        packets = self._source.demux(timed)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, FFmpegError):
                return
            stream = packet.stream
            if not packet.size and stream.index in self._clocks and packet.dts is None:
                settled = self._clocks[stream.index].feed(None)
            else:
                settled = self._clocks[stream.index].feed(packet)
            for one in settled:
                if one.pts is None and one.dts is None and one.stream.type == "audio":
                    continue
                time = one.pts if one.pts is not None else one.dts or 0
                yield float(time * one.time_base - self._zero), stream, one

    def _write(self, stream: Any, packet: Any, time: float) -> None:
        """Copy or encode one packet, if it lies within the picture's time."""
        if stream.disposition & Disposition.attached_pic:
            packet.pts = packet.dts = 0
            self._mux(stream, packet)
            return
        length = float((packet.duration or 0) * packet.time_base)
        earliest = -float(_PRIMING) if self._container.hides_frames and stream.type == "audio" else 0.0
        if time >= self._seconds or (time < earliest and time + length <= earliest):
            return
        shift = round(self._zero / packet.time_base)
        if stream.index in self._copies:
            if time < 0 and earliest == 0:
                if stream.type == "audio":
                    return
                packet.duration = round((time + length) / packet.time_base)  # text that is on already
                packet.pts = packet.dts = shift
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            self._mux(stream, packet)
        elif stream.index in self._encoders:
            self._encode(stream, packet)

    def _encode(self, stream: Any, packet: Any) -> None:
        """Encode the sound of one packet; None: what its decoder still holds."""
        new, resampler = self._encoders[stream.index]
        for frame in decode(stream.codec_context, packet):
            # Samples follow each other, whatever the container makes of their times, but for pauses.
            rate = frame.sample_rate
            begin = round(((frame.pts or 0) * stream.time_base - self._zero) * rate)
            expected = self._sent.get(stream.index, begin)
            begin = begin if begin - expected > _PAUSE * rate else expected
            self._sent[stream.index] = begin + frame.samples
            if begin >= 0:
                frame.pts, frame.time_base = begin, Fraction(1, rate)
                _encode(self._target, new, resampler.resample(frame))

    def _mux(self, stream: Any, packet: Any) -> None:
        packet.stream = self._copies[stream.index]
        self._target.mux(packet)

    def _lose(self, stream: Any) -> None:
        codec = stream.codec_context.name if stream.codec_context else getattr(stream, "name", None)
        kind = _TRACKS.get(stream.type, f"{stream.type} stream")
        words = [stream.metadata.get("language", ""), kind, f"({codec})" if codec else ""]
        self.lost.append(" ".join(filter(None, words)))


def other_streams(source: InputContainer, picture: Any, sound: Any | None) -> list[Any]:
    """The streams of a file that stay beside its picture; ``sound`` is the track that new sound replaces."""
    main = {stream.index for stream in (picture, sound) if stream is not None}
    told = source.metadata if picture is None else source.metadata | picture.metadata
    has_code = "timecode" in told
    streams: list[Any] = list(source.streams)
    return [
        stream
        for stream in streams
        if stream.index not in main
        and stream.discard != Discard.all  # chapters, which the container's list holds
        and not stream.disposition & (Disposition.dependent | Disposition.timed_thumbnails)
        and not (has_code and stream.type == "data" and "timecode" in stream.metadata)  # made anew of the tag
        and stream.type in ("audio", "subtitle", "data", "attachment", "video")
        and (stream.codec_context is not None or stream.type in ("data", "attachment"))
        and not (stream.type == "audio" and not stream.codec_context.sample_rate)
    ]
