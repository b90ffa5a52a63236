"""Makes ``clock.mp4`` again: eight silent seconds of a wall clock, whose second hand jumps once a second.

Every line of it is drawn here, so it may ship with the code, and what one sees happen has exact times: the
hand jumps at 0.5, 1.5, ... 7.5 s, goes a little too far and swings back. Run it with

    python examples/make_clock.py
"""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

SECONDS, FPS = 8, 25
WIDTH, HEIGHT = 320, 240
SCALE = 3  # drawn larger, then scaled down: smooth edges
JUMPS = [0.5 + second for second in range(SECONDS)]


def hand_of(time: float) -> float:
    """Where the second hand points at ``time``, in seconds of the face: it jumps too far and swings back."""
    angle = 20.0
    for jump in JUMPS:
        since = time - jump
        if since >= 0:
            angle += 1.0 - math.exp(-since / 0.05) * math.cos(2 * math.pi * since / 0.12)
    return angle


def point(second: float, radius: float) -> tuple[float, float]:
    """A point of the face, in pixels of the large drawing."""
    angle = 2 * math.pi * second / 60
    x, y = WIDTH * SCALE / 2, HEIGHT * SCALE / 2
    return x + radius * SCALE * math.sin(angle), y - radius * SCALE * math.cos(angle)


def disc(draw: ImageDraw.ImageDraw, radius: float, colour: str) -> None:
    """A filled circle around the middle."""
    x, y = point(0, 0)
    draw.ellipse((x - radius * SCALE, y - radius * SCALE, x + radius * SCALE, y + radius * SCALE), colour)


def view(time: float) -> Image.Image:
    """The picture at ``time``: a wall, the rim, the face with its marks, three hands."""
    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "#c9bfae")
    draw = ImageDraw.Draw(picture)
    for radius, colour in ((106, "#8a7f6e"), (103, "#4b3524"), (94, "#2d2018"), (91, "#f7f4ea")):
        disc(draw, radius, colour)
    for minute in range(60):
        hour = minute % 5 == 0
        ends = [point(minute, 84), point(minute, 73 if hour else 79)]
        draw.line(ends, "#222222", width=(5 if hour else 2) * SCALE)
    seconds = hand_of(time)
    minutes = 9 + seconds / 60
    for second, length, width, colour in (
        (5 * (10 + minutes / 60), 46, 8, "#151515"),
        (minutes, 68, 5, "#151515"),
        (seconds, 78, 3, "#b3261e"),
    ):
        draw.line([point(second + 30, 14), point(second, length)], colour, width=width * SCALE)
    disc(draw, 5, "#b3261e")
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def main() -> None:
    """Writes ``clock.mp4`` beside this file."""
    path = Path(__file__).with_name("clock.mp4")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "24", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(SECONDS * FPS):
            frame = np.asarray(view(index / FPS))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
