"""Containers that films are written to: what each holds, and which one a picture goes to."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.error import FFmpegError

from vab.errors import SettingError
from vab.media.clock import PacketTimes


class Container(NamedTuple):
    """A container that players open: FFmpeg's name, codecs of pictures to copy, encoders for what it gets."""

    format: str
    copies: tuple[str, ...]  # () takes what FFmpeg can put there
    picture: str
    sound: str
    hides_frames: bool = False  # by an edit list, those before the first shown one and after the last
    options: Mapping[str, str] = {}

    @property
    def picture_name(self) -> str:
        """What a picture that is encoded becomes, as people call it."""
        return {"libx264": "H.264", "libvpx-vp9": "VP9"}[self.picture]


_FAST = {"movflags": "+faststart"}  # the index stands first, so that a browser can play while it loads
CONTAINERS = {
    ".mp4": Container("mp4", ("h264", "hevc", "mpeg4", "av1", "vp9"), "libx264", "aac", True, _FAST),
    ".mov": Container(
        "mov",
        ("h264", "hevc", "mpeg4", "prores", "dnxhd", "mjpeg", "dvvideo"),
        "libx264",
        "pcm_s24le",
        True,
        _FAST,
    ),
    ".mkv": Container("matroska", (), "libx264", "aac"),
    ".webm": Container("webm", ("vp8", "vp9", "av1"), "libvpx-vp9", "libopus"),
}
FILM_SUFFIXES = tuple(CONTAINERS)
_HOMES = {"prores": ".mov", "dnxhd": ".mov", "vp8": ".webm", "vp9": ".webm", "av1": ".webm"}


def suffix_for(codec: str, container: str | None = None) -> str:
    """The ending of a film with this picture; ``container`` (``"mov"``) chooses it. ``SettingError``."""
    if container in (None, "auto"):
        return _HOMES.get(codec, ".mp4")
    if f".{container}" not in CONTAINERS:
        raise SettingError(f"container must be auto, {', '.join(s[1:] for s in CONTAINERS)}, not {container}")
    return f".{container}"


def container_of(path: Path) -> Container:
    """The container that the ending of ``path`` stands for; ``SettingError`` for another ending."""
    try:
        return CONTAINERS[path.suffix.lower()]
    except KeyError:
        raise SettingError(f"{path}: a film ends in {', '.join(CONTAINERS)}") from None


def reason_to_encode(stream: Any, times: PacketTimes, container: Container) -> str | None:
    """Why a picture cannot be copied into a container, in words; None if it can."""
    codec = stream.codec_context.codec.canonical_name
    if (container.copies and codec not in container.copies) or not holds(container, stream):
        return f"players do not open it in {container.format}" if container.copies else "it cannot be copied"
    # Frames that are needed but not shown can only lie before the first shown one, or after the last.
    hidden = times.pts[: times.needed][~times.shown[: times.needed]]
    outside = (hidden < times.start) | (hidden >= times.end)
    if len(hidden) and not (container.hides_frames and outside.all()):
        return "its cuts cannot be copied"
    return None


def holds(container: Container, stream: Any) -> bool:
    """True if the container takes a stream with this codec, by trying."""
    with suppress(FFmpegError, ValueError), av.open(io.BytesIO(), "w", format=container.format) as trial:
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()
        return True
    return False


def end_edit_list(path: Path, seconds: float) -> None:
    """Let what the first track of an MP4 or MOV shows end after ``seconds``; FFmpeg cuts only its start.

    A frame that earlier ones need is then in the file, but not shown. ``ValueError`` if it has no edit list.
    """
    with path.open("r+b") as file:
        # 1. The box of all descriptions, and where it lies.
        moov, at = b"", 0
        while head := file.read(8):
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"moov":
                moov = head + file.read(size - 8)
                break
            at += int.from_bytes(file.read(8), "big") if size == 1 else size
            file.seek(at)

        # 2. Durations in it, in units of the movie's clock: of the edit, of the track, and of the whole.
        mvhd, trak = moov.index(b"mvhd"), moov.index(b"trak")
        tkhd, elst = moov.index(b"tkhd", trak), moov.find(b"elst", trak, moov.index(b"mdia", trak))
        if elst < 0:
            raise ValueError("no edit list hides the frames after its end")
        wide = moov[mvhd + 4], moov[tkhd + 4], moov[elst + 4]  # versions: 1 has 64 bits
        units = int.from_bytes(moov[(scale := mvhd + (24 if wide[0] else 16)) : scale + 4], "big")
        count = int.from_bytes(moov[elst + 8 : elst + 12], "big")
        edit = elst + 12 + (count - 1) * (20 if wide[2] else 12)
        places = (
            (mvhd + (28 if wide[0] else 20), wide[0]),
            (tkhd + (32 if wide[1] else 24), wide[1]),
            (edit, wide[2]),
        )
        for place, is_wide in places:
            file.seek(at + place)
            file.write(round(seconds * units).to_bytes(8 if is_wide else 4, "big"))
