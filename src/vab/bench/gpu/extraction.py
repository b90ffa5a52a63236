"""Extraction: what `vab extract` does on a device, in each precision, and the speed of its two networks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from vab.bench.gpu.checks import ROUGH
from vab.bench.gpu.runner import report
from vab.bench.gpu.runs import apart
from vab.bench.gpu.sizes import codec_of, vision_of
from vab.bench.gpu.speed import SIDE, SMALL_SIDE, Row, flops_of, kinds, numbers
from vab.bench.timing import matmul_rate, median, timed
from vab.config import SAMPLE_RATE
from vab.data.extraction.encoding import Decoded, encode, latents_meta
from vab.data.manifest import Clip
from vab.utils import Precision
from vab.utils.device import pick_device

FRAMES, CLIPS = (32, 128, 512), (1, 8, 32)  # at once: the product takes 32 frames, and one clip
NUM_CLIPS = 4  # whose latents are compared


@torch.no_grad()
def extraction(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Extraction: EVA02-CLIP-L and EnCodec, random weights."""
    where = pick_device(device)
    rows: list[Row] = []
    lines: list[str] = []
    failed: list[str] = []
    vision: Any = vision_of(small).to(where)
    codec: Any = codec_of("encodec", small).to(where)
    seconds = 1 if small else 10
    frames, clips = ((2,), (1,)) if small else (FRAMES, CLIPS)
    # 1. The latents of a few clips, and frames from the CPU's memory, in each precision of the image encoder.
    decoded = _noise(NUM_CLIPS, seconds, vision.size)
    pixels = torch.randint(256, (frames[-1], 3, vision.size, vision.size), dtype=torch.uint8)
    wanted: list[torch.Tensor] = []  # tokens, features in float32
    for precision in get_args(Precision):
        if precision in ("tf32", "float16") and where.type != "cuda":
            continue
        vision.precision = precision
        meta = latents_meta(codec, vision, seconds, fps=1)
        work = partial(
            encode,
            codec=codec,
            vision=vision,
            meta=meta,
            device=where,
            batch_clips=NUM_CLIPS,
            batch_frames=32,
        )
        found, (alone,) = work(decoded), work(decoded[:1])
        tokens, features = (
            torch.from_numpy(np.stack([getattr(item, name) for item in found]).astype(np.float32))
            for name in ("tokens", "features")
        )
        wanted = wanted or [tokens, features]
        row: Row = {"what": "latents of clips", "numbers": precision, "at once": NUM_CLIPS}
        row["tokens as in float32"] = float((tokens == wanted[0]).float().mean())
        row["features apart, relative L2"] = apart([features], wanted[1:])
        cosine = torch.cosine_similarity(features, wanted[1], dim=-1)
        row["their least cosine"] = float(cosine.min())
        same = all(
            np.array_equal(getattr(alone, name), getattr(found[0], name)) for name in ("tokens", "features")
        )
        row["a clip alone has the same bits"] = same
        rows.append(row)
        if row["tokens as in float32"] < 1:  # a codec computes in float32, whatever the image encoder does
            failed.append(f"tokens of a clip ({precision})")
        if not row["features apart, relative L2"] <= ROUGH:
            failed.append(f"features of a clip ({precision})")
        if not same:
            failed.append(f"a clip alone ({precision})")
        for n in frames:
            run = partial(vision.encode_crops, list(pixels), n)
            run()
            rows.append(_row("vab extract, frames", precision, n, len(pixels) / timed(run, where)))
        report(rows, lines, failed)
    vision.precision = "float32"
    for kind in kinds(where):
        with numbers(kind) as dtype:
            rate = matmul_rate(where, SMALL_SIDE if small else SIDE, dtype=dtype)
            model = vision.model.to(dtype)
            # 2. Frames, as pixels made ready: the network alone.
            for n in frames:
                pictures = torch.randn(n, 3, vision.size, vision.size, device=where, dtype=dtype)
                flops = flops_of(partial(model, pictures))
                took = median(partial(model, pictures), 3, where)
                rows.append(_row("EVA02-CLIP-L, frames", kind, n, n / took, flops / took, rate))
            # 3. Sound, a clip of ten seconds each.
            codec.model.to(dtype)
            for n in clips:
                sound = 0.1 * torch.randn(n, seconds * SAMPLE_RATE, device=where, dtype=dtype)
                flops = flops_of(partial(codec.encode, sound))  # its LSTM is not in it
                took = median(partial(codec.encode, sound), 3, where)
                speed = n * seconds / took
                rows.append(_row("EnCodec, seconds of sound", kind, n, speed, flops / took, rate))
            report(rows, lines, failed)
    # 4. With what the CPU does to each frame before.
    film = np.random.default_rng(0).integers(0, 256, (2 if small else 64, 720, 1280, 3), np.uint8)
    vision.model.float()
    with numbers("float32"):
        vision.encode(film[:2])
        speed = len(film) / timed(partial(vision.encode, film), where)
    lines.append(
        "With the frames made ready on the CPU, by one thread, in float32: "
        f"{speed:.3g} frames of 1280 x 720 a second."
    )
    return {"rows": rows, "lines": lines, "failed": failed}


def _noise(count: int, seconds: int, size: int) -> list[Decoded]:
    """Clips of noise with a frame a second, as the encoders take them."""
    draw = np.random.default_rng(0)
    places = list(range(seconds))
    return [
        Decoded(
            Clip(f"clip{n}", None, None),
            (0.1 * draw.standard_normal(seconds * SAMPLE_RATE)).astype(np.float32),
            [torch.from_numpy(draw.integers(0, 256, (3, size, size), np.uint8)) for _ in places],
            places,
        )
        for n in range(count)
    ]


def _row(
    what: str, kind: str, n: int, speed: float, flops: float | None = None, rate: float | None = None
) -> Row:
    row: Row = {"what": what, "numbers": kind, "at once": n, "a second": speed}
    if flops is not None and rate is not None:
        row |= {"GFLOP/s": flops / 1e9, "of the product's rate": flops / rate}
    return row
