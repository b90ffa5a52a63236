"""Small films whose frames show their own number, edit lists, and what a player shows of a film."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, BITS = 64, 48, 8
CODEC_OPTIONS = {
    "libx264": {"preset": "ultrafast", "x264-params": "log=-1"},
    "libx265": {"x265-params": "log-level=none"},
}


def as_urgent_as_others() -> None:
    """Give up real-time priority.

    SVT-AV1, which encodes with ``libsvtav1``, gives it to the thread that calls it where it may (as root),
    and never takes it back.
    """
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def bars(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB [height, width, 3] that shows ``number`` as eight bars, the most significant bit on the left."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        if number >> (BITS - 1 - bit) & 1:
            picture[:, bit * width // BITS : (bit + 1) * width // BITS] = 255
    return picture


def number(picture: np.ndarray) -> int:
    """The number that a picture [H,W,3] shows."""
    height, width = picture.shape[:2]
    row = picture[height // 4 : 3 * height // 4].mean((0, 2))
    return sum(int(row[round((bit + 0.5) * width / BITS)] > 127) << (BITS - 1 - bit) for bit in range(BITS))


def write_film(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    first: int = 0,
    base: Fraction = Fraction(1, 12_800),
    rate: int = 25,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sounds: Sequence[tuple[str, float]] = (),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    prepare: Any = None,
) -> Path:
    """Frame n shows ``first + n`` from ``times[n]`` seconds on; beside it tracks of noise: (codec, seconds).

    ``prepare`` is called with the container and the video stream before anything is written.
    """
    if codec not in ("libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1", "ffv1"):
        base = Fraction(1, rate)
    with av.open(str(path), "w", container_options=container or {}) as target:
        stream: Any = target.add_stream(
            codec, rate=rate, options=CODEC_OPTIONS.get(codec, {}) | (options or {})
        )
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.time_base = stream.codec_context.time_base = base
        voices = [
            (target.add_stream(name, rate=48_000, layout="stereo"), seconds) for name, seconds in sounds
        ]
        if prepare is not None:
            prepare(target, stream)
        for n, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(bars(first + n, *size), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(time / base), base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        for voice, seconds in voices:
            noise = 0.1 * np.random.default_rng(0).standard_normal((2, round(seconds * 48_000)))
            block = av.AudioFrame.from_ndarray(noise.astype(np.float32), format="fltp", layout="stereo")
            block.sample_rate, block.pts, block.time_base = 48_000, 0, Fraction(1, 48_000)
            context: Any = voice.codec_context
            resampler = av.AudioResampler(context.format.name, "stereo", 48_000, context.frame_size or None)
            for part in [*resampler.resample(block), *resampler.resample(None)]:
                target.mux(voice.encode(part))
            target.mux(voice.encode(None))
    return path


def change_times(path: Path, changes: dict[int, int]) -> Path:
    """In a small Matroska file, give the block at one time another one (milliseconds)."""
    data = bytearray(path.read_bytes())
    for wrong_for, wrong in changes.items():
        block = next(
            at
            for at in range(len(data) - 8)
            if data[at] == 0xA3  # SimpleBlock: size of 1 to 4 bytes, track 1, time in two bytes
            and data[(time := at + 11 - data[at + 1].bit_length()) - 1] == 0x81
            and int.from_bytes(data[time : time + 2], "big") == wrong_for
        )
        time = block + 11 - data[block + 1].bit_length()
        data[time : time + 2] = wrong.to_bytes(2, "big")
    path.write_bytes(data)
    return path


def shown(path: Path) -> list[tuple[float, int]]:
    """(seconds, number) of each frame that the decoder shows, in order."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        return [
            (round(float(frame.pts * stream.time_base), 3), number(frame.to_ndarray(format="rgb24")))
            for frame in film.decode(stream)
        ]


def boxes(data: bytes, begin: int, end: int) -> list[tuple[bytes, int, int]]:
    """(kind, start, end) of the MP4 boxes in a range."""
    found = []
    while begin + 8 <= end:
        size = int.from_bytes(data[begin : begin + 4], "big") or end - begin
        if size == 1:
            size = int.from_bytes(data[begin + 8 : begin + 16], "big")
        found.append((data[begin + 4 : begin + 8], begin, begin + size))
        begin += size
    return found


def edit_list(path: Path, edits: Sequence[tuple[float, int]]) -> Path:
    """Give the first track of an MP4 or MOV these edits: (seconds, first tick of the media; -1 for none)."""

    def box(kind: bytes, content: bytes) -> bytes:
        return (8 + len(content)).to_bytes(4, "big") + kind + content

    data = path.read_bytes()
    moov = next(found for found in boxes(data, 0, len(data)) if found[0] == b"moov")
    assert moov[2] == len(data)  # nothing else moves
    trak = next(found for found in boxes(data, moov[1] + 8, moov[2]) if found[0] == b"trak")
    rows = b"".join(
        round(1000 * seconds).to_bytes(4, "big") + tick.to_bytes(4, "big", signed=True) + b"\0\1\0\0"
        for seconds, tick in edits
    )
    parts = [data[start:end] for kind, start, end in boxes(data, trak[1] + 8, trak[2]) if kind != b"edts"]
    edts = box(b"edts", box(b"elst", bytes(4) + len(edits).to_bytes(4, "big") + rows))
    new = box(b"trak", parts[0] + edts + b"".join(parts[1:]))
    content = data[moov[1] + 8 : trak[1]] + new + data[trak[2] : moov[2]]
    path.write_bytes(data[: moov[1]] + box(b"moov", content))
    return path
