"""Training speed of vab-encodec: steps per second, model FLOP utilisation, memory, the loader."""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vab.bench.gpu.runner import report
from vab.bench.gpu.sizes import preset_of, synthetic_store
from vab.bench.gpu.speed import SIDE, SMALL_SIDE, Row, numbers
from vab.bench.timing import finish, matmul_rate, timed
from vab.config import Preset
from vab.models.flops import training_flops
from vab.training.batches import ClipBatches
from vab.training.launch import open_fabric
from vab.training.run import TrainingRun
from vab.utils.device import pick_device

NUM_WARMUP_STEPS = 8  # not timed
NUM_BLOCKS = 5  # each of which is timed
BLOCK_STEPS = 10


def training(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Training of vab-encodec in bfloat16 on a synthetic store, as `vab pretrain` does it."""
    where = pick_device(device)
    preset = preset_of("vab-encodec", small)
    size = preset.train.batch_size
    warm, blocks, block = (1, 2, 1) if small else (NUM_WARMUP_STEPS, NUM_BLOCKS, BLOCK_STEPS)
    total = warm + blocks * block
    quiet = replace(preset.train, log_every=10**9, save_every=10**9, max_steps=total)
    preset = replace(preset, train=quiet)
    with tempfile.TemporaryDirectory() as scratch, numbers("bfloat16"):
        store = synthetic_store(Path(scratch) / "store", preset.model, 4 * size)
        store.verify()
        clips = ClipBatches(store, preset, "train")
        dev = ClipBatches(store, preset, "dev")
        fabric = open_fabric(device, preset.train.precision)
        fabric.launch()
        rate = matmul_rate(where, SMALL_SIDE if small else SIDE, dtype=torch.bfloat16)
        # the run itself, step by step: its loop would also write checkpoints of gigabytes
        with where:  # its weights are drawn there: half a billion of them take a CPU half a minute
            place = Path(scratch) / "run"
            run = TrainingRun(fabric, preset, clips, dev, place, log=lambda line: None)
        run.start(None)
        # how long a batch takes to make, when nobody waits for it
        loads = [timed(partial(clips.train_batch, step), torch.device("cpu")) for step in range(3)]
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(where)
        passed: list[float] = []  # seconds of a step, by block
        waits: list[float] = []  # for the loader
        row: Row = {"objective": "masked", "batch": size, "numbers": preset.train.precision}
        with ThreadPoolExecutor(1) as ahead:
            upcoming = ahead.submit(clips.train_batch, 0)
            begin = time.perf_counter()
            for step in range(total):
                # the loader works a step ahead: waiting means that it is slower than the device
                asked = time.perf_counter()
                batch = upcoming.result()
                waits.append(time.perf_counter() - asked)
                batch = batch.to(fabric.device)
                upcoming = ahead.submit(clips.train_batch, step + 1)
                loss = run.update(batch, measure=False)["loss"]
                # blocks of steps are timed, for a device is waited for only at their ends
                if step + 1 == warm:
                    finish(where)
                    begin, waits = time.perf_counter(), []
                elif step >= warm and (step + 1 - warm) % block == 0:
                    finish(where)
                    passed.append((time.perf_counter() - begin) / block)
                    begin = time.perf_counter()
                    row |= _figures(preset, size, statistics.median(passed), rate, where)
                    row["loader alone, ms a step"] = 1e3 * statistics.median(loads)
                    row["waiting for it, ms a step"] = 1e3 * statistics.mean(waits)
                    report([row])
    parameters = sum(p.numel() for p in run.parameters)
    lines = [
        f"{parameters / 1e6:.1f} M learned numbers; {total} steps, the first {warm} not timed; "
        f"a step {min(passed):.3g} to {max(passed):.3g} s; the last loss {loss:.3f}.",
        f"Model FLOP: three forward passes a clip. The device's own product of matrices in bfloat16: "
        f"{rate / 1e12:.3g} TFLOP/s.",
    ]
    return {"rows": [row], "lines": lines}


def _figures(preset: Preset, size: int, seconds: float, rate: float, device: torch.device) -> Row:
    flops = size * training_flops(preset, preset.model.video_length, preset.model.audio_length)
    return {
        "steps a second": 1 / seconds,
        "clips a second": size / seconds,
        "TFLOP/s": flops / seconds / 1e12,
        "MFU, of the product's rate": flops / seconds / rate,
        "peak GiB": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }
