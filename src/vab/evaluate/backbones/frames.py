"""Video frames in the formats of the evaluation networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vab.media.file import MediaFile


def resized(path: Path, fps: float, seconds: float, side: int) -> Tensor:
    """Sample a frame every 1 / fps seconds, its short side scaled to ``side``: uint8 [T, 3, H, W].

    As FFmpeg's filter ``fps`` picks them, av-benchmark's way: the last one before the middle of its interval.
    From the first ``seconds``, or as many as there are.
    Bicubic with antialiasing, as torchvision's Resize. ``MediaError`` as ``MediaFile.frames``.
    """
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as resize

    middle = 0.5 / fps - 0.001  # MediaFile.frames takes frames that are half a millisecond late
    frames = []
    with MediaFile(path) as file:
        for frame in file.frames(fps, middle, min(seconds, file.times.seconds)):
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)  # [3, H, W]
            frames.append(resize.resize(pixels, [side], InterpolationMode.BICUBIC, antialias=True))
    return torch.stack(frames)


def normalised(frames: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """uint8 [T, 3, H, W] -> float32, standardised for each colour."""
    # [3] -> [3, 1, 1]
    channel_mean = torch.tensor(mean)[:, None, None]
    channel_deviation = torch.tensor(deviation)[:, None, None]
    return (frames.float() / 255 - channel_mean) / channel_deviation
