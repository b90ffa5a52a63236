"""Extraction speed: frames per second of EVA02-CLIP-L and seconds of sound per second of EnCodec."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vab.bench.gpu.runner import report
from vab.bench.gpu.sizes import codec_of, vision_of
from vab.bench.gpu.speed import SIDE, SMALL_SIDE, Row, flops_of, kinds, numbers
from vab.bench.timing import matmul_rate, median, timed
from vab.config import SAMPLE_RATE
from vab.utils.device import pick_device

FRAMES, CLIPS = (32, 128, 512), (1, 8, 32)  # at once: the product takes 32 frames, and one clip


@torch.no_grad()
def extraction(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Extraction: EVA02-CLIP-L and EnCodec, random weights."""
    where = pick_device(device)
    rows: list[Row] = []
    lines: list[str] = []
    vision: Any = vision_of(small).to(where)
    codec: Any = codec_of("encodec", small).to(where)
    length = (1 if small else 10) * SAMPLE_RATE
    frames, clips = ((2,), (1,)) if small else (FRAMES, CLIPS)
    for kind in kinds(where):
        with numbers(kind) as dtype:
            rate = matmul_rate(where, SMALL_SIDE if small else SIDE, dtype=dtype)
            model = vision.model.to(dtype)
            # 1. Frames, as pixels made ready: the network alone.
            for n in frames:
                pictures = torch.randn(n, 3, vision.size, vision.size, device=where, dtype=dtype)
                flops = flops_of(partial(model, pictures))
                seconds = median(partial(model, pictures), 3, where)
                rows.append(_row("EVA02-CLIP-L, frames", kind, n, n / seconds, flops / seconds, rate))
            # 2. Sound, a clip of ten seconds each.
            codec.model.to(dtype)
            for n in clips:
                sound = 0.1 * torch.randn(n, length, device=where, dtype=dtype)
                flops = flops_of(partial(codec.encode, sound))  # its LSTM is not in it
                seconds = median(partial(codec.encode, sound), 3, where)
                rate_of = n * length / SAMPLE_RATE / seconds
                rows.append(_row("EnCodec, seconds of sound", kind, n, rate_of, flops / seconds, rate))
            report(rows, lines)
    # 3. With what the CPU does to each frame before.
    film = np.random.default_rng(0).integers(0, 256, (2 if small else 64, 720, 1280, 3), np.uint8)
    vision.model.float()
    with numbers("float32"):
        vision.encode(film[:2])
        speed = len(film) / timed(partial(vision.encode, film), where)
    lines.append(
        "With the frames made ready on the CPU, as `vab extract` does it, in float32: "
        f"{speed:.3g} frames of 1280 x 720 a second."
    )
    return {"rows": rows, "lines": lines}


def _row(what: str, kind: str, n: int, speed: float, flops: float, rate: float) -> Row:
    return {
        "what": what,
        "numbers": kind,
        "at once": n,
        "a second": speed,
        "GFLOP/s": flops / 1e9,
        "of the product's rate": flops / rate,
    }
