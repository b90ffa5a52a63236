"""Timing of work on a device: matrix products, and passes over windows of tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vab.config import FRAME_RATE, DecodeConfig, video_frames
from vab.models.foleygen import FoleyGen
from vab.sampling.stages import Stage

MAX_REPEATED_SECONDS = 5.0  # a longer timing is not repeated
SIDE = 2048  # of the matrices whose product gives the machine's rate
SIDES = (512, 1024, SIDE)  # among which the fastest is sought


def matmul_rate(device: torch.device, side: int = SIDE, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the product of two square random matrices: the median of five."""
    a = torch.rand(side, side, device=device).to(dtype)
    b = torch.rand(side, side, device=device).to(dtype)
    return 2 * side**3 / median(lambda: a @ b, 5, device)


def peak_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the product of two square matrices of the size that is fastest here."""
    return max(matmul_rate(device, side, dtype) for side in SIDES)


def median(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median seconds of ``work``; the first timing if that is long."""
    first = timed(work, device)
    if first > MAX_REPEATED_SECONDS:
        return first
    return statistics.median(timed(work, device) for _ in range(repeats))


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of ``work``, until the device has finished it."""
    # a GPU works on while Python goes on: wait before and after
    finish(device)
    begin = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - begin


def finish(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def some_passes(
    stage: Stage, batch: int, length: int, some: int, decode: DecodeConfig | None = None
) -> float:
    """Seconds per pass, from ``some`` passes over one window of ``length`` audio frames for a batch of clips.

    Every pass of VAB costs the same that has guidance, and every one that has none. Those of FoleyGen cost
    more the later they are, so it does ``some`` steps in the middle of the window, with all tokens before
    them known.
    """
    tokens, known, features = blank_inputs(stage, batch, length)
    if not isinstance(stage.network, FoleyGen):
        begin = time.perf_counter()
        fill_in(stage, tokens, known, features, one_step(stage, decode, some))
        finish(tokens.device)
        return (time.perf_counter() - begin) / some
    # All but `some` steps in the middle are known, so only those are drawn.
    first = (length - some) // 2
    known[:] = True
    known[:, :, first : first + some] = False
    marks: list[float] = []  # the end of each step; the first one also reads the known tokens

    def mark(*_: int) -> None:
        finish(tokens.device)
        marks.append(time.perf_counter())

    fill_in(stage, tokens, known, features, decode, progress=mark)
    return (marks[some] - marks[0]) / some


def blank_inputs(stage: Stage, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of a stage without known tokens: tokens [B,K,T], known mask [B,K,T], random features [B,F,E].

    Only the codebooks that the stage is conditioned on count as known.
    """
    config = stage.preset.model
    device = stage.network.feature_mean.device
    tokens = torch.zeros(batch, config.num_codebooks, length, dtype=torch.int64, device=device)
    known = torch.zeros_like(tokens, dtype=torch.bool)
    known[:, : config.num_conditioning_codebooks] = True
    # [B,F,E] of as many frames as the tokens last
    num_video = video_frames(length / FRAME_RATE, config.fps)
    return tokens, known, torch.randn(batch, num_video, config.vision_dim, device=device)


def one_step(stage: Stage, decode: DecodeConfig | None = None, steps: int = 1) -> DecodeConfig:
    """The settings of a stage, or others, for a single step or a few."""
    return replace(decode or stage.preset.decode, num_steps=steps)


def fill_in(
    stage: Stage,
    tokens: Tensor,
    known: Tensor,
    features: Tensor,
    decode: DecodeConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
    timing: Tensor | None = None,
) -> Tensor:
    """Sample tokens [B,K,T] for the inputs of :func:`blank_inputs`, with one seed for each clip.

    ``timing``: timing curves [B,T,4].
    """
    decode = decode or stage.preset.decode
    generators = [torch.Generator().manual_seed(n) for n in range(len(tokens))]
    return stage.fill(tokens, known, features, decode, generators, timing=timing, progress=progress)
