"""Seconds of each stage of generation on a device, alone and at the best batch, in each kind of numbers.

Random weights; 10 s clips; the stages are those of ``vab.inference.pipeline`` that run on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vab.bench.costs import token_cost
from vab.bench.gpu.runner import report
from vab.bench.gpu.sizes import system_of
from vab.bench.systems import System
from vab.bench.timing import blank_inputs, fill_in, finish, matmul_rate, median, one_step, timed
from vab.models.foleygen import FoleyGen
from vab.sampling.stages import Stage, padded_length
from vab.utils.device import pick_device, tf32

KINDS = {  # how float32 and bfloat16 are multiplied: type, whether in TF32
    "bfloat16": (torch.bfloat16, False),
    "TF32": (torch.float32, True),
    "float32": (torch.float32, False),
}
BATCHES, SMALL_BATCHES = (1, 4, 16, 64), (1, 2)
MAX_BATCH_SECONDS = 6.0  # expected of a batch; above, it is not tried
NUM_KERNELS = 8  # named in a profile
GAIN = 0.95  # a larger batch goes on only if a clip takes this share of the seconds, or less
SIDE, SMALL_SIDE = 8192, 256  # of the matrices whose product gives the device's rate

Row = dict[str, Any]


@contextmanager
def numbers(kind: str) -> Iterator[torch.dtype]:
    """The type of the weights, with products done as the kind says."""
    dtype, on = KINDS[kind]
    with tf32(on):
        yield dtype


def kinds(device: torch.device) -> list[str]:
    """Number formats that differ on this device: TF32 exists on CUDA only."""
    return [kind for kind in KINDS if device.type == "cuda" or kind != "TF32"]


def vab_encodec(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Speed of vab-encodec: 10 s clips, random weights."""
    return _measure("vab-encodec", pick_device(device), small)


def vab_dac(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Speed of vab-dac and its second stage, vab-dac-coarse2fine: 10 s clips, random weights."""
    return _measure("vab-dac", pick_device(device), small)


def foleygen(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Speed of FoleyGen with its cache: 10 s clips, random weights."""
    return _measure("foleygen-encodec", pick_device(device), small)


@torch.inference_mode()
def _measure(name: str, device: torch.device, small: bool) -> dict[str, Any]:
    rows: list[Row] = []
    lines: list[str] = []
    system = system_of(name, small, device)
    for kind in kinds(device):
        with numbers(kind) as dtype:
            # what the device can do at best in these numbers
            rate = matmul_rate(device, SMALL_SIDE if small else SIDE, dtype=dtype)
            convert(system, dtype)
            found = batches(system, kind, rate, device, SMALL_BATCHES if small else BATCHES)
            # one clip, and the batch of the fewest seconds a clip
            best = min(found, key=lambda row: row["seconds a clip"])
            rows += [found[0]] + ([best] if best is not found[0] else [])
            tried = ", ".join(f"{r['at once']}: {r['seconds a clip']:.3g}" for r in found)
            lines.append(
                f"{kind}: product of matrices {rate / 1e12:.3g} TFLOP/s; seconds a clip at once {tried}"
            )
            report(rows, lines)
            if kind == "bfloat16":
                try:
                    lines += profile(system.first, device)
                except RuntimeError as error:  # not every machine lets a profiler look
                    lines.append(f"no profile: {' '.join(str(error).split())[:200]}")
                report(rows, lines)
    return {"rows": rows, "lines": lines}


def convert(system: System, dtype: torch.dtype) -> None:
    """Convert all weights to ``dtype`` in place; random ones lose nothing by it."""
    parts: list[Any] = [system.first.network, system.codec, system.vision]
    parts += [] if system.fine is None else [system.fine.network]
    for part in parts:
        getattr(part, "model", part).to(dtype)


def batches(system: System, kind: str, rate: float, device: torch.device, sizes: Sequence[int]) -> list[Row]:
    """Time batches of growing size until one does not pay, takes too long or does not fit: a row for each."""
    found: list[Row] = []
    for batch in sizes:
        whole = [row["seconds a clip"] * row["at once"] for row in found]
        # the next is expected to grow as the last one did
        if whole and whole[-1] * whole[-1] / whole[-2 if len(whole) > 1 else -1] > MAX_BATCH_SECONDS:
            break
        try:
            row = _row(system, kind, batch, rate, device)
        # what does not fit ends the series, not the part
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        found.append(row)
        if len(found) > 1 and row["seconds a clip"] > GAIN * found[-2]["seconds a clip"]:
            break
    if not found:
        raise RuntimeError(f"{system.name} in {kind}: one clip does not fit into the memory of {device}")
    return found


def _row(system: System, kind: str, batch: int, rate: float, device: torch.device) -> Row:
    # 1. The networks that make tokens, and inputs of this batch for every stage.
    config = system.first.preset.model
    frames = config.audio_length
    stages: dict[str, Stage] = {"sampling": system.first}
    if system.fine is not None:
        stages["refining"] = system.fine
    vision: Any = system.vision
    dtype = KINDS[kind][0]
    size = (batch * config.video_length, 3, vision.size, vision.size)
    images = torch.randn(size, device=device, dtype=dtype)
    num_codebooks = (system.fine or system.first).preset.model.num_codebooks
    codes = torch.randint(config.codebook_size, (batch, num_codebooks, frames), device=device)
    # 2. The stages in their order, and the operations of those that are counted.
    jobs: dict[str, Callable[[], Any]] = {"features": partial(vision.model, images)}
    flops = {}
    for name, stage in stages.items():
        tokens, known, features = blank_inputs(stage, batch, padded_length(frames, stage.preset.model))
        jobs[name] = partial(fill_in, stage, tokens, known, features)
        flops[name] = batch * token_cost(stage.preset, frames).flops
        # a pass to warm up: every pass of VAB has the same shapes, FoleyGen's first ones do for it
        fill_in(stage, tokens, _but_some(known), features, one_step(stage))
    jobs["codec"] = partial(system.codec.decode, codes)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # 3. Seconds of each; sampling is warm already, and long.
    seconds = {}
    for name, job in jobs.items():
        if name in stages:
            first = timed(job, device)
            seconds[name] = first if first > 1 else min(first, median(job, 3, device))
        else:
            job()
            seconds[name] = median(job, 3, device)
    # 4. All of it for one clip.
    row: Row = {"numbers": kind, "at once": batch}
    row |= {f"{name}, s": seconds[name] / batch for name in jobs}
    row["seconds a clip"] = sum(seconds.values()) / batch
    row["times real time"] = config.seconds / row["seconds a clip"]
    for name in stages:
        row[f"{name}, GFLOP/s"] = flops[name] / seconds[name] / 1e9
        row[f"{name}, of the product's rate"] = flops[name] / seconds[name] / rate
    row["peak GiB"] = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return row


def _but_some(known: torch.Tensor) -> torch.Tensor:
    """Known mask in which at most the last sixteen frames are unknown."""
    known = known.clone()
    known[:, :, :-16] = True
    return known


def profile(stage: Stage, device: torch.device) -> list[str]:
    """The most expensive kernels of one pass (of sixteen steps for FoleyGen)."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    cuda = device.type == "cuda"
    tokens, known, features = blank_inputs(stage, 1, padded_length(1, stage.preset.model))
    if isinstance(stage.network, FoleyGen):
        known = _but_some(known)
    # once unseen, so that nothing is set up while the profiler looks
    work = partial(fill_in, stage, tokens, known, features, one_step(stage))
    work()
    finish(device)
    with record(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])) as recorded:
        work()
        finish(device)

    def own(event: Any) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    # on a card a kernel counts once, and not again as the operation that launched it
    events = [e for e in recorded.key_averages() if not cuda or str(e.device_type).endswith("CUDA")]
    total = sum(own(event) for event in events) or 1.0
    wall = timed(work, device)
    top = sorted(events, key=own, reverse=True)[:NUM_KERNELS]
    name = "sixteen steps" if isinstance(stage.network, FoleyGen) else "one pass"
    text = [f"Of {name} of one clip in bfloat16, {wall * 1e3:.3g} ms, {total / 1e3:.3g} ms are its kernels:"]
    text += [f"{100 * own(e) / total:.0f} % in {e.count} of {e.key[:100]}" for e in top]
    return text


def flops_of(work: Callable[[], Any]) -> float:
    """Floating-point operations of matrix products and convolutions in ``work``, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())
