"""Seconds of work on a device: of a product of matrices, and of passes over windows of tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vab.config import FRAME_RATE, video_frames
from vab.models.foleygen import FoleyGen
from vab.sampling.stages import Stage, padded_length

ONCE = 5.0  # seconds of one timing that is not repeated
SIDE = 2048  # of the matrices whose product gives the machine's rate


def matmul_rate(
    device: torch.device, side: int = SIDE, repeats: int = 5, dtype: torch.dtype = torch.float32
) -> float:
    """Operations a second of a product of two square matrices of random numbers: the median."""
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / median(lambda: a @ b, repeats, device)


def median(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """The median of the seconds that ``work`` takes; of what takes long, the first."""
    first = timed(work, device)
    return first if first > ONCE else statistics.median(timed(work, device) for _ in range(repeats))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that ``work`` takes, until the device has done it."""
    finish(device)
    begin = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - begin


def finish(device: torch.device) -> None:
    """Wait for what a device still computes."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def some_passes(stage: Stage, batch: int, frames: int, some: int) -> float:
    """Seconds of a pass, when ``some`` passes over one window are done for a batch of clips.

    Every pass of VAB costs the same. Those of FoleyGen cost more the later they are, so it does ``some``
    steps in the middle of the window, with all before them given.
    """
    config = stage.preset.model
    length = min(padded_length(frames, config), config.audio_length)
    tokens, given, features = unknown(stage, batch, length)
    if not isinstance(stage.network, FoleyGen):
        begin = time.perf_counter()
        fill_in(stage, tokens, given, features, steps=some)
        finish(tokens.device)
        return (time.perf_counter() - begin) / some
    first = (length - some) // 2
    given[:] = True
    given[:, :, first : first + some] = False
    marks: list[float] = []  # the end of each step; the first one also read what is given

    def mark(*_: int) -> None:
        finish(tokens.device)
        marks.append(time.perf_counter())

    fill_in(stage, tokens, given, features, progress=mark)
    return (marks[some] - marks[0]) / some


def unknown(stage: Stage, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing known of ``length`` audio frames but what the stage is given, and some features."""
    config = stage.preset.model
    device = stage.network.feature_mean.device
    tokens = torch.zeros(batch, config.num_codebooks, length, dtype=torch.int64, device=device)
    given = torch.zeros_like(tokens, dtype=torch.bool)
    given[:, : config.num_conditioning_codebooks] = True
    places = video_frames(length / FRAME_RATE, config.fps)
    return tokens, given, torch.randn(batch, places, config.vision_dim, device=device)


def fill_in(
    stage: Stage,
    tokens: Tensor,
    given: Tensor,
    features: Tensor,
    steps: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Tokens [B,K,T] for what :func:`unknown` gave, drawn with a seed for each clip."""
    decode = stage.preset.decode if steps is None else replace(stage.preset.decode, num_steps=steps)
    noise = [torch.Generator().manual_seed(n) for n in range(len(tokens))]
    return stage.fill(tokens, given, features, decode, noise, progress)
