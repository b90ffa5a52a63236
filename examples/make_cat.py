"""Makes ``cat.mp4`` again: eight silent seconds of Chelsea the cat.

The picture is scikit-image's ``skimage.data.chelsea()``, CC0 by its photographer Stefan van der
Walt. A crop moves slowly over it, as a hand-held camera would. Run it with

    python examples/make_cat.py
"""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from PIL import Image
from skimage import data

SECONDS, FPS = 8, 25
WIDTH, HEIGHT = 320, 240


def view(photo: Image.Image, time: float) -> Image.Image:
    """What the camera sees at ``time`` in 0..1: it starts wide and comes closer to the face."""
    width = photo.width * (0.88 - 0.30 * (1 - math.cos(math.pi * time)) / 2)
    height = width * HEIGHT / WIDTH
    # the face is a little right of the photo's middle; the hand is not quite still
    x = photo.width * (0.46 + 0.05 * time + 0.006 * math.sin(9 * time))
    y = photo.height * (0.47 + 0.01 * math.sin(13 * time))
    left = min(max(x - width / 2, 0), photo.width - width)
    top = min(max(y - height / 2, 0), photo.height - height)
    box = (left, top, left + width, top + height)
    return photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)


def main() -> None:
    """Writes ``cat.mp4`` beside this file."""
    photo = Image.fromarray(data.chelsea())
    path = Path(__file__).with_name("cat.mp4")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "26", "preset": "veryslow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(SECONDS * FPS):
            picture = np.asarray(view(photo, index / (SECONDS * FPS - 1)))
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
