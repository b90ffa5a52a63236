"""A small synthetic set whose events are known: balls that bounce, with a click at each hit.

For tests of timing, and to try the whole path without any data. There are two classes: ``small`` (a small
red ball, high clicks) and ``large`` (a large blue one, low clicks).
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vab.config import SAMPLE_RATE
from vab.data.manifest import Clip, write_manifest
from vab.utils.files import atomic, write_json

RATE = 25  # video frames per second
SIZE = 128  # pixels
BALLS = {"small": (10, (220, 40, 40), 2400.0), "large": (22, (40, 60, 220), 400.0)}  # radius, colour, Hz


def hits(rng: np.random.Generator, seconds: float) -> NDArray[np.float64]:
    """Times at which a ball hits the ground, one steady period apart."""
    period = rng.uniform(0.4, 1.0)
    return np.arange(rng.uniform(0.1, period), seconds - 0.05, period)


def draw_frames(times: NDArray[np.float64], seconds: float, label: str) -> NDArray[np.uint8]:
    """Frames [N, SIZE, SIZE, 3] of a ball on the ground at ``times``; between them it flies a parabola."""
    radius, colour, _ = BALLS[label]
    # [SIZE, SIZE] coordinates of the pixels, and a bright wall behind the ball
    period = times[1] - times[0] if len(times) > 1 else seconds
    y, x = np.mgrid[:SIZE, :SIZE]
    frames = np.full((round(seconds * RATE), SIZE, SIZE, 3), 235, np.uint8)
    frames[:, SIZE - 12 :] = (90, 130, 80)  # the ground

    # phase is 0 at a hit; the ball's lower edge flies 4 p (1 - p), up to a margin below the top.
    for n, frame in enumerate(frames):
        phase = ((n / RATE - times[0]) / period) % 1.0
        height = 4 * phase * (1 - phase) * (SIZE - 2 * radius - 24)
        middle = SIZE - 12 - radius - height
        frame[(x - SIZE / 2) ** 2 + (y - middle) ** 2 <= radius**2] = colour
    return frames


def make_waveform(times: NDArray[np.float64], seconds: float, label: str) -> NDArray[np.float32]:
    """Waveform [S] with a decaying tone of 80 ms at each of ``times``."""
    waveform = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    t = np.arange(round(0.08 * SAMPLE_RATE)) / SAMPLE_RATE
    click = 0.8 * np.sin(2 * np.pi * BALLS[label][2] * t) * np.exp(-t / 0.015)

    # The tone's end is cut off where the waveform ends.
    for time in times:
        start = round(time * SAMPLE_RATE)
        part = waveform[start : start + len(click)]
        part += click[: len(part)]
    return waveform


def write_synthetic(folder: str | Path, clips: int = 16, seconds: float = 5.0, seed: int = 0) -> Path:
    """Write that many mp4 files, ``manifest.csv`` and ``events.json`` (id -> times of the hits, in seconds).

    Returns the manifest's path. Every fourth clip is dev. The same arguments give the same clips.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Clip] = []
    events: dict[str, list[float]] = {}
    for n in range(clips):
        # small and large in turn; a clip depends on its number and the seed alone
        label = list(BALLS)[n % len(BALLS)]
        times = hits(np.random.default_rng((seed, n)), seconds)
        name = f"ball_{n:04d}"
        path = folder / f"{name}.mp4"
        _write_video(path, draw_frames(times, seconds, label), make_waveform(times, seconds, label))
        rows.append(Clip(name, path, path, 0.0, seconds, label, "dev" if n % 4 == 3 else "train"))
        events[name] = [round(float(time), 4) for time in times]
    write_json(folder / "events.json", events)
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def _write_video(path: Path, frames: NDArray[np.uint8], waveform: NDArray[np.float32]) -> None:
    with atomic(path) as temporary, av.open(str(temporary), "w") as container:
        # Both streams must be there before the first packet.
        video = container.add_stream("mpeg4", rate=RATE)
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.bit_rate = 400_000
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))

        # The whole waveform as one frame, [1, S]; the encoder cuts it up.
        block = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
