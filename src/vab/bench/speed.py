"""Time of each stage of generation, for one clip alone and for batches (Table 1).

The stages are those of ``vab.inference.pipeline``: decode the video, features, sampling, refining (a second
stage), codec, and mux. Each is run once to warm up and then timed several times; the median counts. Long
stages are timed once, without a warm-up: its milliseconds would not show.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vab.bench.costs import token_cost
from vab.bench.systems import System, load_system, write_clip
from vab.bench.timing import MAX_REPEATED_SECONDS, blank_inputs, fill_in, matmul_rate, median, some_passes
from vab.config import SAMPLE_RATE, samples_to_frames
from vab.errors import SettingError
from vab.media.reader import mux, probe, read_frames, write_wav
from vab.models.foleygen import FoleyGen
from vab.sampling.stages import Stage, padded_length
from vab.utils.device import pick_device
from vab.utils.files import temporary_folder
from vab.utils.provenance import code_version

NAMES = ("vab-tiny", "vab-tiny-coarse", "foleygen-tiny", "vab-encodec", "vab-dac", "foleygen-encodec")
STAGES = ("decode video", "features", "sampling", "refining", "codec", "mux")
MAX_FULL_SECONDS = 20.0  # of all passes of a clip; beyond, a few are timed and scaled up
NUM_TIMED_PASSES = 1  # of VAB, then
NUM_TIMED_STEPS = 16  # of FoleyGen, then
MAX_BATCH_SECONDS = 10.0  # of one timing; beyond, no larger batch is tried

Show = Callable[[int, int, str, str], None]  # system n, of, its name, what is timed


@dataclass(frozen=True)
class BenchSettings:
    """Systems, clip and effort of a benchmark."""

    names: tuple[str, ...] = NAMES
    clip: Path | None = None  # None: 10 s of 1280 x 720 pixels, made on the spot
    repeats: int = 3
    largest_batch: int = 8
    threads: int | None = None  # None: as PyTorch chooses
    device: str = "auto"


def bench(settings: BenchSettings, show: Show = lambda *_: None) -> dict[str, Any]:
    """Time every system; returns a document for JSON and :mod:`vab.bench.report`.

    Raises ``ValueError`` for settings that make no sense, ``MediaError`` for a clip that cannot be read, and
    what :func:`vab.bench.systems.load_system` raises.
    """
    threads = 1 if settings.threads is None else settings.threads
    if min(settings.repeats, settings.largest_batch, threads) < 1:
        raise SettingError("repeats, the largest batch and threads must be 1 or more")
    if not settings.names:
        raise SettingError("nothing to time")
    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    systems = []
    with temporary_folder(Path(tempfile.gettempdir(), "bench")) as folder:
        clip = settings.clip or write_clip(folder)
        seconds = probe(clip).seconds
        show(0, len(settings.names), settings.names[0], "matrix product")
        rate = matmul_rate(device)
        for n, name in enumerate(settings.names):
            show(n, len(settings.names), name, "build")
            system = load_system(name, device)
            report_stage = partial(show, n, len(settings.names), name)
            systems.append(measure(system, clip, folder, settings, device, rate, report_stage))
            del system
    return {
        "machine": machine(device) | {"load_before": load},
        "matmul_flops": rate,
        "code": code_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "repeats": settings.repeats,
        "clip": {"seconds": seconds, "own": settings.clip is not None},
        "systems": systems,
    }


@torch.inference_mode()
def measure(
    system: System,
    clip: Path,
    folder: Path,
    settings: BenchSettings,
    device: torch.device,
    rate: float,
    report_stage: Callable[[str], None],
) -> dict[str, Any]:
    """Time one system with batches of 1, 2, 4, 8, ... clips, until the time per clip grows: for JSON.

    ``rate``: operations per second of the product of matrices, beside which its own are set.
    """
    # 1. What is made: as many audio frames as the clip has, by one or two networks.
    stages = {"sampling": system.first}
    if system.fine is not None:
        stages["refining"] = system.fine
    duration = probe(clip).seconds
    samples = round(duration * SAMPLE_RATE)
    frames = samples_to_frames(samples)
    model = system.first.preset.model
    num_codebooks = (system.fine or system.first).preset.model.num_codebooks
    costs = {name: token_cost(stage.preset, frames) for name, stage in stages.items()}

    def decode_video() -> list[Any]:
        frames = read_frames(clip, model.fps, seconds=samples / SAMPLE_RATE, size=system.vision.decode_size)
        return list(frames)

    def write() -> None:
        write_wav(folder / "sound.wav", silence, SAMPLE_RATE)
        mux(clip, silence, SAMPLE_RATE, folder / "sound.mp4")

    # 2. Stages that go file by file.
    silence = torch.zeros(samples).numpy()
    report_stage("decode video")
    images = decode_video()
    alone = {"decode video": median(decode_video, settings.repeats, device)}
    alone["mux"] = median(write, settings.repeats, device)
    batches: list[dict[str, Any]] = []
    for batch in (2**n for n in range(settings.largest_batch.bit_length())):
        # 3. Tokens: sampling, and refining with a second network.
        seconds = dict(alone)  # of one clip
        timed: dict[str, int] = {}  # passes
        longest = 0.0  # seconds of one timing
        for name, stage in stages.items():
            report_stage(f"{name}, {batch} at once")
            passes = costs[name].passes
            whole, timed[name], once = _time_tokens(stage, batch, frames, passes, settings.repeats, device)
            seconds[name] = whole / batch
            longest = max(longest, once)

        # 4. Image features and codec, for the whole batch.
        report_stage(f"features and codec, {batch} at once")
        encode = partial(system.vision.encode, images * batch)
        tokens = torch.randint(model.codebook_size, (batch, num_codebooks, frames), device=device)
        decode = partial(system.codec.decode, tokens)
        if batches and batches[0]["seconds"]["features"] > MAX_REPEATED_SECONDS:
            # Too slow to time again, and the frames of one clip are a batch already.
            seconds["features"] = batches[0]["seconds"]["features"]
        else:
            seconds["features"] = median(encode, settings.repeats, device) / batch
        seconds["codec"] = median(decode, settings.repeats, device) / batch

        # 5. Seconds per clip by stage, in order, and rates from the counted operations.
        seconds = {name: seconds[name] for name in STAGES if name in seconds}
        total = sum(seconds.values())
        speeds = {name: cost.flops / seconds[name] for name, cost in costs.items()}
        batches.append(
            {
                "batch": batch,
                "seconds": seconds,
                "total": total,
                "times_real_time": duration / total,
                "times_real_time_by_stage": {name: duration / each for name, each in seconds.items()},
                "passes_timed": timed,
                "flops_per_second": speeds,
                "share_of_matmul_rate": {name: speed / rate for name, speed in speeds.items()},
            }
        )
        # 6. Stop when larger batches are slower per clip, or take too long.
        if longest > MAX_BATCH_SECONDS or (len(batches) > 1 and total > batches[-2]["total"]):
            break
    return {
        "name": system.name,
        "weights": system.weights,
        # learned numbers of all networks that make tokens
        "parameters": sum(stage.network.parameter_counts()["parameters"] for stage in stages.values()),
        "passes": {name: cost.passes for name, cost in costs.items()},
        "flops": {name: cost.flops for name, cost in costs.items()},
        "best_batch": min(batches, key=lambda each: each["total"])["batch"],
        "batches": batches,
    }


def _time_tokens(
    stage: Stage, batch: int, frames: int, passes: int, repeats: int, device: torch.device
) -> tuple[float, int, float]:
    """Time sampling or refining of a batch: all passes, or a few if all would take too long.

    Seconds of all passes, how many were timed, and seconds of one timing.
    """
    few = NUM_TIMED_STEPS if isinstance(stage.network, FoleyGen) else NUM_TIMED_PASSES
    few = min(few, passes)
    begin = time.perf_counter()
    one = some_passes(stage, batch, frames, few)
    once = time.perf_counter() - begin
    if one * passes > MAX_FULL_SECONDS:
        if once < MAX_REPEATED_SECONDS:
            one = statistics.median(some_passes(stage, batch, frames, few) for _ in range(repeats))
        return one * passes, few, once
    inputs = blank_inputs(stage, batch, padded_length(frames, stage.preset.model))
    whole = median(partial(fill_in, stage, *inputs), repeats, device)
    return whole, passes, whole


def machine(device: torch.device) -> dict[str, Any]:
    """Describe this machine."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = next(iter(names), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": "float32",
    }


def rows_of(document: dict[str, Any]) -> Sequence[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair each system with its timing for one clip, and with that of the best batch if it differs."""
    rows = []
    for system in document["systems"]:
        chosen = [b for b in system["batches"] if b["batch"] in (1, system["best_batch"])]
        rows += [(system, batch) for batch in chosen]
    return rows
