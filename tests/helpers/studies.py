"""Small results of systems to build studies from: real H.264 and AAC, as `vab generate` writes."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vab.media.reader import mux

RATE = 16000
ROOT = Path(__file__).parents[2]


def screenshots(folder: Path) -> Path:
    """Where pictures for docs/listening.md go: in ``folder``, or in ``$VAB_SCREENSHOTS`` (``docs``)."""
    wanted = os.environ.get("VAB_SCREENSHOTS")
    place = (ROOT / wanted if wanted else folder / "screenshots") / "listening"
    place.mkdir(parents=True, exist_ok=True)
    return place


def write_result(
    path: Path,
    seconds: float = 1.0,
    pitch: float = 440.0,
    hue: int = 0,
    codec: str = "libx264",
    colours: str = "yuv420p",
    **options: str,
) -> Path:
    """A video of a bar that wanders, as H.264 in MP4, with a tone as its sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    silent = path.with_name(f"{path.stem}.silent.mkv")
    with av.open(str(silent), "w") as container:
        stream: Any = container.add_stream(
            codec, rate=Fraction(10), options=options or {"preset": "ultrafast"}
        )
        stream.width, stream.height, stream.pix_fmt = 320, 180, colours
        for n in range(round(10 * seconds)):
            picture = np.zeros((180, 320, 3), np.uint8)
            picture[:] = np.roll((40, 90, 150), hue)
            picture[:, 40 + 20 * n % 240 : 70 + 20 * n % 240] = np.roll((240, 190, 90), hue)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    time = np.arange(round(seconds * RATE)) / RATE
    mux(silent, (0.2 * np.sin(2 * np.pi * pitch * time)).astype(np.float32), RATE, path)
    silent.unlink()
    return path


def write_systems(root: Path, systems: tuple[str, ...], clips: tuple[str, ...]) -> list[Path]:
    """A folder of results for each system, the same clips in all."""
    for n, system in enumerate(systems):
        for k, clip in enumerate(clips):
            write_result(root / system / f"{clip}.mp4", pitch=300.0 + 150 * n + 40 * k, hue=k)
    return [root / system for system in systems]
