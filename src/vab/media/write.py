"""Waveforms -> sound files: the ending of the name chooses the format."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from vab.errors import SettingError, first_line
from vab.media.container import MediaError, check_waveform
from vab.media.filters import audio_frames, layout
from vab.utils.files import atomic


class Format(NamedTuple):
    """A container of FFmpeg, and its encoder."""

    container: str
    codec: str
    bit_rate: int | None = None  # of a channel; None: every sample is kept


FORMATS = {
    ".wav": Format("wav", "pcm_s{bits}le"),
    ".flac": Format("flac", "flac"),
    ".ogg": Format("ogg", "libopus", 96_000),
    ".opus": Format("ogg", "libopus", 96_000),
    ".mp3": Format("mp3", "libmp3lame", 128_000),
    ".m4a": Format("ipod", "aac", 96_000),
}


def check_format(path: Path) -> Format:
    """The format that the ending of ``path`` stands for; ``MediaError`` naming the endings that there are."""
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        endings = ", ".join(FORMATS)
        raise MediaError(
            f"{path}: cannot be written as sound; the name may end in one of {endings}"
        ) from None


def write_audio(
    path: str | Path,
    waveform: NDArray[np.floating],
    rate: int,
    bits: int = 16,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write ``waveform`` [S] or [C,S] in [-1, 1] (louder is clipped), complete or not at all.

    WAV and FLAC keep every sample, rounded to ``bits`` (16 or 24); Ogg Opus, MP3 and M4A (AAC) do not, and
    take the next rate that they have. ``tags``: title, comment ... by FFmpeg's names. ``MediaError``: another
    ending, a waveform that is empty or holds NaN or infinity; ``SettingError`` for other bits.
    """
    path = Path(path)
    chosen = check_format(path)
    if not isinstance(bits, int) or bits not in (16, 24):
        raise SettingError(f"a sample has 16 or 24 bits, not {bits}")
    sound = check_waveform(waveform, path)
    with atomic(path) as temporary:
        try:
            encode_audio(f"file:{temporary}", sound, rate, bits, tags, chosen)
        except (FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise  # a full disk, no rights ...
            reason = first_line(error)
            raise MediaError(f"{path}: cannot be written as {chosen.container} ({reason})") from error


def encode_audio(
    file: BinaryIO | str,
    waveform: NDArray[np.float32],
    rate: int,
    bits: int = 16,
    tags: Mapping[str, str] | None = None,
    chosen: Format = FORMATS[".wav"],
) -> None:
    """As :func:`write_audio`, into a file of FFmpeg's, or one in memory."""
    # 1. FFmpeg cuts off the bits that there are too many, so round before.
    sound = np.atleast_2d(waveform)
    if chosen.bit_rate is None:
        sound = np.rint(sound * np.float32(2 ** (bits - 1))) / np.float32(2 ** (bits - 1))

    # 2. The same bytes whatever FFmpeg writes them, without a tag that names it.
    codec = av.Codec(chosen.codec.format(bits=bits), "w")
    with av.open(file, "w", format=chosen.container, options={"fflags": "+bitexact"}) as target:
        stream: Any = target.add_stream(
            codec.name, rate=_nearest_rate(codec, rate), layout=layout(len(sound))
        )
        if chosen.bit_rate is None:
            stream.format = "s16" if bits == 16 else "s32"
        else:
            stream.bit_rate = chosen.bit_rate * len(sound)
        for tagged in (target, stream):  # Ogg has its tags in the stream
            tagged.metadata.update(tags or {})
        for frame in audio_frames(sound, rate):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def _nearest_rate(codec: av.Codec, rate: int) -> int:
    """The rate itself if the codec has it, else its next higher one, or else its highest."""
    rates = sorted(codec.audio_rates or [rate])
    return next((other for other in rates if other >= rate), rates[-1])
