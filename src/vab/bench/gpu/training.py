"""Training of vab-encodec as ``vab pretrain`` does it: its speed, and the ways to compute a step.

Weights and latents are random. Two stores are mixed, with five features a second and with one.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.bench.gpu.runner import report
from vab.bench.gpu.runs import apart, gradient, run_of, synthetic_mixture
from vab.bench.gpu.sizes import preset_of
from vab.bench.gpu.speed import SIDE, SMALL_SIDE, Row, numbers
from vab.bench.timing import matmul_rate, timed
from vab.config import Compute, Preset
from vab.data.mixture import Mixture
from vab.models.memory import training_memory
from vab.training.batches import ClipBatches
from vab.utils.device import pick_device

NUM_BLOCKS = 6  # each of which is timed, except the first: all is set up in it
BLOCK_STEPS = 10
GLOBAL_BATCH = 16  # processes of a large run, whose share of a batch is made here
WAY_STEPS = 6  # of each way to compute a step, of which the first is not timed
# Apart from the step at once, in bfloat16: sums of other orders and kernels round otherwise.
LOSS_LIMIT, GRADIENT_LIMIT = 1e-3, 0.03
CPU = torch.device("cpu")


class Enough(Exception):
    """All steps that were to be timed are."""


class Meter:
    """A run's logger that takes the run's own figures, a line each ``log_every`` steps, and ends the run.

    At the end of its own the run would write a checkpoint of gigabytes.
    """

    def __init__(self, enough: int, show: Callable[[list[dict[str, float]]], None]) -> None:
        self.enough, self.show = enough, show
        self.lines: list[dict[str, float]] = []

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Take a line; ``Enough`` with the last one."""
        self.lines.append(dict(values))
        self.show(self.lines)
        if len(self.lines) == self.enough:
            raise Enough

    def sound(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        """Nothing."""

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Nothing."""


def training(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Training of vab-encodec in bfloat16 on two synthetic stores, as `vab pretrain` does it."""
    where, compute = pick_device(device), Compute(device)
    blocks, block = (3, 1) if small else (NUM_BLOCKS, BLOCK_STEPS)
    preset = _endless(preset_of("vab-encodec", small), block)
    row: Row = {"objective": "masked", "batch": preset.train.batch_size, "numbers": preset.train.precision}
    with tempfile.TemporaryDirectory() as scratch, numbers("bfloat16"):
        place = Path(scratch)
        mixture = synthetic_mixture(place, preset.model, 4 * preset.train.batch_size)
        rate = matmul_rate(where, SMALL_SIDE if small else SIDE, dtype=torch.bfloat16)

        def show(lines: list[dict[str, float]]) -> None:
            if lines[1:]:
                row.update(_figures(lines[1:], rate))
            if where.type == "cuda":
                row["peak GiB"] = torch.cuda.max_memory_allocated(where) / 2**30
            report([row])

        # 1. How long a batch takes to make, when nobody waits for it; and one of many processes' shares.
        clips = ClipBatches(mixture, preset, "train")
        row["loader alone, ms a step"] = _loading(clips, 1)
        larger = replace(preset.train, batch_size=GLOBAL_BATCH * preset.train.batch_size)
        shares = _loading(ClipBatches(mixture, replace(preset, train=larger), "train"), GLOBAL_BATCH)
        # 2. The run with its own loop, loader and meter.
        run = run_of(preset, mixture, place / "run", compute, [meter := Meter(blocks, show)])
        (place / "run").mkdir()
        run.start(None)
        with suppress(Enough):
            run.loop()
    parameters = sum(p.numel() for p in run.parameters)
    seconds = [line["step_seconds"] for line in meter.lines]
    lines = [
        f"{parameters / 1e6:.1f} M learned numbers; {run.step} steps, the first {block} not timed; "
        f"a step {min(seconds[1:]):.3g} to {max(seconds[1:]):.3g} s; "
        f"the last loss {meter.lines[-1]['loss']:.3f}.",
        f"Model FLOP: three forward passes a clip. The device's own product of matrices in bfloat16: "
        f"{rate / 1e12:.3g} TFLOP/s.",
        f"One of {GLOBAL_BATCH} processes makes its {preset.train.batch_size} clips of a global batch of "
        f"{larger.batch_size} in {shares:.3g} ms.",
    ]
    return {"rows": [row], "lines": lines}


def _endless(preset: Preset, log_every: int) -> Preset:
    """The same training, without end or checkpoints."""
    far = 10**9
    quiet = replace(preset.train, log_every=log_every, save_every=far, max_steps=far)
    return replace(preset, train=quiet)


def _loading(clips: ClipBatches, processes: int) -> float:
    """Milliseconds in which one of several processes makes its share of a batch: the median of three."""
    make = partial(clips.train_batch, world_size=processes)
    make(0)
    return 1e3 * statistics.median(timed(partial(make, step), CPU) for step in range(1, 4))


def _figures(lines: list[dict[str, float]], rate: float) -> Row:
    """Figures of the block of median speed; ``rate`` is the device's product of matrices in FLOP/s."""
    line = sorted(lines, key=lambda each: each["step_seconds"])[len(lines) // 2]
    return {
        "steps a second": 1 / line["step_seconds"],
        "clips a second": line["clips_per_second"],
        "TFLOP/s": line["model_tflops"],
        "MFU, of the published peak": line.get("mfu"),
        "MFU, of the product's rate": line["model_tflops"] * 1e12 / rate,
        "waiting for data, share of a step": line["data_seconds"] / line["step_seconds"],
    }


def ways(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """A training step of vab-encodec at once, in parts, with activations computed again, and compiled."""
    where = pick_device(device)
    options: dict[str, dict[str, Any]] = {
        "at once": {},
        "in 4 parts": {"accumulate": 4},
        "activations computed again": {"checkpoint_activations": True},
        "compiled": {"compile": True},  # the last: what it compiles for may not be there
    }
    preset = _endless(preset_of("vab-encodec", small), 1)
    steps = 2 if small else WAY_STEPS
    rows: list[Row] = []
    failed: list[str] = []
    first: list[Tensor] = []  # loss and gradient of the first step at once
    # on a CPU layers would be compiled for minutes
    stance = torch.compiler.set_stance("force_eager" if where.type == "cpu" else "default")
    with tempfile.TemporaryDirectory() as scratch, numbers("bfloat16"), stance:
        mixture = synthetic_mixture(Path(scratch), preset.model, 2 * preset.train.batch_size)
        for name, chosen in options.items():
            row: Row = {"step": name}
            rows.append(row)
            try:
                compute = Compute(device, **chosen)
                first = _way(preset, mixture, Path(scratch), compute, steps, first, row)
            except torch.OutOfMemoryError:
                row["note"] = "does not fit into the device's memory"
            except Exception as error:  # one way that does not work must not keep the others from it
                row["note"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                failed.append(name)
            gc.collect()  # a run and its network know each other
            if where.type == "cuda":
                torch.cuda.empty_cache()
            for what, limit in (("loss apart", LOSS_LIMIT), ("gradient apart", GRADIENT_LIMIT)):
                if not row.get(what, 0.0) <= limit:
                    failed.append(f"{name}: {what}")
            if "ms a step" in row and "ms a step" in rows[0]:
                row["speed, that at once is 1"] = rows[0]["ms a step"] / row["ms a step"]
            report(rows, [], failed)
    lines = [
        f"Apart from the step at once, relative L2 in {preset.train.precision}: a loss may be {LOSS_LIMIT:g} "
        f"apart, a gradient {GRADIENT_LIMIT:g}. In float32 they are among the checks.",
        "Reckoned is what `vab presets vab-encodec --memory` says, with the same options.",
    ]
    return {"rows": rows, "lines": lines, "failed": failed}


def _way(
    preset: Preset,
    latents: Mixture,
    scratch: Path,
    compute: Compute,
    steps: int,
    first: list[Tensor],
    row: Row,
) -> list[Tensor]:
    """Fill the row of one way to compute ``steps`` steps; returns ``first``, or if that is empty its own.

    That is loss and gradient of the first step: those of the step at once.
    """
    # 1. Loss and gradient of the first step.
    where, begin = pick_device(compute.device), time.perf_counter()
    on_gpu = where.type == "cuda"
    before = torch.cuda.memory_allocated(where) if on_gpu else 0
    run = run_of(preset, latents, scratch, compute)
    batch = run.clips.train_batch(0).to(run.fabric.device)
    loss, found = gradient(run, batch)
    row["seconds to the first"] = time.perf_counter() - begin
    if first:
        row["loss apart"], row["gradient apart"] = apart([loss], first[:1]), apart(found, first[1:])
    else:
        first = [loss, *found]
        before += sum(tensor.nbytes for tensor in first)
    del found
    # 2. Whole steps, and their memory beside what was there before and what is kept to compare with.
    step = partial(run.update, batch, measure=False)
    step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(where)
    row["ms a step"] = 1e3 * statistics.median(timed(step, where) for _ in range(steps - 1))
    row["reckoned GB"] = training_memory(preset, compute).total / 1e9
    if on_gpu:
        row["peak GB"] = (torch.cuda.max_memory_allocated(where) - before) / 1e9
        row["reckoned too much, %"] = 100 * (row["reckoned GB"] / row["peak GB"] - 1)
    return first
