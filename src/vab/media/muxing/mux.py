"""A film is made: the picture of a file, copied or encoded, new sound, and all that the file also holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from vab.errors import first_line
from vab.media.container import MediaError, OpenFile, check_waveform
from vab.media.muxing.formats import Container, container_of, end_edit_list, reason_to_encode
from vab.media.muxing.tracks import (
    LONGEST_SIDE,
    CopiedPicture,
    EncodedPicture,
    NewSound,
    OtherStreams,
    kept_tags,
    of_the_stream,
    other_streams,
)
from vab.utils.files import atomic

_MORE_SOUND = 0.5  # seconds of sound after the picture that are worth a word


def mux(
    file: Any,
    waveform: np.ndarray,
    rate: int,
    out_path: Path,
    tags: Mapping[str, str],
    keep_original: bool,
    seconds: float | None = None,
) -> list[str]:
    """Write a film of ``file``, a ``MediaFile``: its method of this name."""
    waveform = np.atleast_2d(check_waveform(waveform, out_path))
    if not file.has_video:
        raise MediaError(f"{file.path}: has no video stream")
    if out_path.exists() and file.path.exists() and out_path.samefile(file.path):
        raise MediaError(f"{out_path}: is the film itself; choose another name for the one with new sound")

    length = file.seconds if seconds is None else max(seconds, file.times.seconds)
    notes = _make(file, out_path, _fitted(waveform, rate, length), tags, keep_original, length)
    return [*notes, *(_dropped_sound(file) if seconds is None else ())]


def copy(file: Any, out_path: Path, sound: tuple[np.ndarray, int] | None = None) -> list[str]:
    """Write the picture of ``file``, a ``MediaFile``, and its sound or another ([S], rate), and nothing else.

    No tag says where they come from. Returns notes as ``mux``.
    """
    new = None if sound is None else _fitted(np.atleast_2d(sound[0]), sound[1], file.seconds)
    return _make(file, out_path, new, None, False, file.seconds)


def _fitted(waveform: np.ndarray, rate: int, seconds: float) -> tuple[np.ndarray, int]:
    """``waveform`` [C,S] cut, or filled with silence, to ``seconds``, in [-1, 1]; and its rate."""
    samples = np.zeros((len(waveform), max(1, round(seconds * rate))), dtype=np.float32)
    part = waveform[:, : samples.shape[1]]
    samples[:, : part.shape[1]] = part.clip(-1, 1)
    return samples, rate


def _make(
    file: Any,
    out_path: Path,
    sound: tuple[np.ndarray, int] | None,
    tags: Mapping[str, str] | None,
    keep_original: bool,
    seconds: float,
) -> list[str]:
    """Write a film: the picture copied, or else encoded; without ``tags`` nothing of the file but that."""
    container = container_of(out_path)
    times = file.times
    with file.handle.lend() if file.handle.has_container else nullcontext() as source:
        write = partial(_write, file, source, out_path, sound, tags, keep_original, seconds)
        film = file.handle.film is not None  # no stream of a container: it cannot be copied
        picture = "frames" if film else f"{file.codec} picture"
        reason = "" if source is None or film else reason_to_encode(source.video, times, container)
        if reason is None:
            try:
                return write(encode=False)
            except (FFmpegError, ValueError) as error:
                if not of_the_stream(error):
                    raise
                reason = f"it cannot be copied ({first_line(error)})"
        try:
            notes = write(encode=True)
        except (FFmpegError, ValueError) as error:
            if not of_the_stream(error):
                raise
            raise MediaError(
                f"{file.path}: its {picture} can be neither copied nor encoded ({first_line(error)})"
            ) from error
    done = f"its {picture} {'were' if film else 'was'} encoded as {container.picture_name}"
    if max(file.nominal_size) > LONGEST_SIDE:
        done += f", with {LONGEST_SIDE} pixels on the longer side"
    return [f"{done}: {reason}" if reason else done, *notes]


def _write(
    file: Any,
    source: OpenFile | None,
    out_path: Path,
    sound: tuple[np.ndarray, int] | None,
    tags: Mapping[str, str] | None,
    keep_original: bool,
    seconds: float,
    *,
    encode: bool,
) -> list[str]:
    """Write the film in one of the two ways; returns notes of what could not be carried over."""
    times = file.times
    zero = file.video_start().seconds
    with atomic(out_path) as temporary, ExitStack() as files:
        # 1. The picture.
        picture: CopiedPicture | EncodedPicture
        if encode:
            rate = Fraction(times.fps).limit_denominator(1001)
            pictures = file.pictures()
            first = next(pictures, None)
            if first is None:
                raise MediaError(f"{file.path}: not one frame of its video stream can be decoded")
            pictures = chain([first], pictures)
            stream = None if source is None else source.video
            picture = EncodedPicture(pictures, stream, times.time_base, rate, seconds)
        else:
            assert source is not None
            picture = CopiedPicture(source.video, file.video_packets(source), times, seconds)

        # 2. What stands beside it: read by another pass, if there is anything.
        def beside(opened: OpenFile) -> list[Any]:
            if tags is None:
                return [opened.audio] if sound is None and opened.audio is not None else []
            return other_streams(opened.container, opened.video, None if keep_original else opened.audio)

        others = None
        if source is not None and beside(source):
            opened = files.enter_context(file.handle.lend(fresh=True))
            others = OtherStreams(opened.container, beside(opened), times, zero, seconds)

        # 3. All of it.
        write_film(
            temporary,
            container_of(out_path),
            picture,
            None if sound is None else NewSound(*sound),
            others,
            None if tags is None else _merged_tags(source.container.metadata if source else {}, tags),
            _shifted_chapters(source.container, zero, seconds) if source and tags is not None else [],
        )
    lost = others.lost if others is not None else []
    return [f"its {what} was left out: {out_path.suffix[1:]} cannot hold it" for what in lost]


def write_film(
    out: Path,
    container: Container,
    picture: CopiedPicture | EncodedPicture,
    sound: NewSound | None = None,
    others: OtherStreams | None = None,
    tags: Mapping[str, str] | None = None,
    chapters: Sequence[Any] = (),
) -> None:
    """Write a film; without ``tags`` nothing says where it comes from.

    ``FFmpegError`` or ``ValueError`` if the container does not take the picture.
    """
    options = dict(container.options)
    if sound is not None and container.format in ("mp4", "mov"):
        options["movie_timescale"] = str(sound.rate)  # the sound's length to the sample
    if any(name.startswith("com.") for name in tags or ()):
        options["movflags"] = f"{options.get('movflags', '')}+use_metadata_tags"  # as Apple's cameras write
    with av.open(f"file:{out}", "w", format=container.format, container_options=options) as target:
        # 1. The streams, in this order, and what is said of them.
        picture.open(target, container)
        followers = [part for part in (sound, others) if part is not None]
        for part in followers:
            part.open(target, container)
        target.metadata.update(tags or {})
        if tags is None:
            for stream in target.streams:
                stream.metadata.clear()
        if chapters:
            target.set_chapters(list(chapters))

        # 2. All of them in step, so that none waits in memory for the others.
        for packet in picture.packets():
            decoded_at = float(packet.dts * packet.time_base)
            target.mux(packet)
            for part in followers:
                part.until(decoded_at)
        for part in followers:
            part.until(math.inf)
    if picture.edit_seconds is not None:
        end_edit_list(out, picture.edit_seconds)


def _shifted_chapters(source: InputContainer, zero: Fraction, seconds: float) -> list[Any]:
    """The chapters of a file, counted from the start of its picture, as far as that goes."""
    found = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        start = max(0, round(chapter["start"] - zero / base))
        end = min(round(chapter["end"] - zero / base), round(seconds / base))
        if start < end:
            found.append({**chapter, "start": start, "end": end})
    return found


def _merged_tags(own: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """The tags of a file and new ones, which win; but a new comment goes below the file's own one."""
    kept = {("comment" if name.lower() == "comment" else name): text for name, text in kept_tags(own).items()}
    if "comment" in kept:  # a line that an earlier run wrote is no longer true
        lines = [line for line in kept["comment"].splitlines() if not line.startswith("vab {")]
        kept["comment"] = "\n".join(lines)
    comments = [tags["comment"] for tags in (kept, new) if tags.get("comment")]
    return kept | dict(new) | ({"comment": "\n".join(comments)} if comments else {})


def _dropped_sound(file: Any) -> list[str]:
    """A note on sound that goes on after the picture; takes another pass unless the header denies it."""
    if not file.has_audio or file.length == "container":
        return []
    start = float(file.video_start().seconds)
    told = file.handle.header.sound_end
    if told is not None and told - start < file.seconds + _MORE_SOUND:
        return []
    more = file.sound_end() - file.seconds
    if more < _MORE_SOUND:
        return []
    return [
        f"its own sound goes on for {more:.1f} s after the picture; the new sound ends with the picture "
        "(--length container: with the last of both)"
    ]
