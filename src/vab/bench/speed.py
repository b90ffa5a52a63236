"""Seconds of each stage of generation, for one clip alone and for several at once (Table 1).

The stages are those of ``vab.inference.pipeline``: decode the video, features, sampling, refining (a second
stage), codec, and mux. Each is run once to warm up and then timed several times; what counts is the median.
What takes long is timed once, without: a warm-up of milliseconds does not show there.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vab.bench.costs import token_cost
from vab.bench.systems import System, clip_of, load_system
from vab.bench.timing import ONCE, fill_in, matmul_rate, median, some_passes, unknown
from vab.config import SAMPLE_RATE, samples_to_frames
from vab.errors import SettingError
from vab.media.reader import mux, probe, read_frames, write_wav
from vab.models.foleygen import FoleyGen
from vab.sampling.stages import Stage, padded_length
from vab.utils.device import pick_device
from vab.utils.provenance import code_version

NAMES = ("vab-tiny", "vab-tiny-coarse", "foleygen-tiny", "vab-encodec", "vab-dac", "foleygen-encodec")
STAGES = ("decode video", "features", "sampling", "refining", "codec", "mux")
LONGEST = 20.0  # seconds that all passes of one clip may take; else some are timed and multiplied
SOME = {"passes": 1, "steps": 16}  # so many: passes of VAB, steps of FoleyGen
PATIENCE = 10.0  # seconds of one timing after which no larger batch is tried

Show = Callable[[int, int, str, str], None]  # system n, of, its name, what is timed


@dataclass(frozen=True)
class Settings:
    """What to time, and how often."""

    names: tuple[str, ...] = NAMES
    clip: Path | None = None  # None: 10 s of 1280 x 720 pixels, made on the spot
    repeats: int = 3
    largest_batch: int = 8
    threads: int | None = None  # None: as PyTorch chooses
    device: str = "auto"


@dataclass(frozen=True)
class Timing:
    """So many clips at once."""

    batch: int
    seconds: dict[str, float]  # of one clip, by stage: medians
    timed: dict[str, int]  # of sampling and refining: the passes that were timed, of all

    @property
    def total(self) -> float:
        """Seconds of one clip, all stages together."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Speed:
    """One system."""

    name: str
    weights: str
    parameters: int  # learned numbers of all networks that make tokens
    passes: dict[str, int]  # of sampling and refining
    flops: dict[str, float]
    timings: list[Timing]

    @property
    def best(self) -> Timing:
        """The batch of the fewest seconds a clip."""
        return min(self.timings, key=lambda timing: timing.total)


def bench(settings: Settings, show: Show = lambda *_: None) -> dict[str, Any]:
    """Time every system; the whole as a document for JSON (and for :mod:`vab.bench.report`).

    Raises ``ValueError`` for settings that make no sense, ``MediaError`` for a clip that cannot be read, and
    what :func:`vab.bench.systems.load_system` raises.
    """
    if settings.repeats < 1 or settings.largest_batch < 1 or (settings.threads or 1) < 1:
        raise SettingError("repeats, the largest batch and threads must be 1 or more")
    if not settings.names:
        raise SettingError("nothing to time")
    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        clip = settings.clip or clip_of(Path(folder))
        seconds = probe(clip).seconds
        show(0, len(settings.names), settings.names[0], "matrix product")
        rate = matmul_rate(device)
        for n, name in enumerate(settings.names):
            show(n, len(settings.names), name, "build")
            system = load_system(name, device)
            tell = partial(show, n, len(settings.names), name)
            speeds.append(measure(system, clip, Path(folder), settings, device, tell))
            del system
    return {
        "machine": machine(device) | {"load_before": load},
        "matmul_flops": rate,
        "code": code_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "repeats": settings.repeats,
        "clip": {"seconds": seconds, "own": settings.clip is not None},
        "systems": [_document(speed, seconds, rate) for speed in speeds],
    }


@torch.inference_mode()
def measure(
    system: System,
    clip: Path,
    folder: Path,
    settings: Settings,
    device: torch.device,
    tell: Callable[[str], None] = lambda stage: None,
) -> Speed:
    """Time one system: one clip at a time, then 2, 4, 8 ... until that takes longer for each."""
    stages = {"sampling": system.first}
    if system.fine is not None:
        stages["refining"] = system.fine
    samples = round(probe(clip).seconds * SAMPLE_RATE)
    frames = samples_to_frames(samples)
    model = system.first.preset.model
    num_codebooks = (system.fine or system.first).preset.model.num_codebooks
    costs = {name: token_cost(stage.preset, frames) for name, stage in stages.items()}

    def pictures() -> list[Any]:
        return list(
            read_frames(clip, model.fps, seconds=samples / SAMPLE_RATE, size=system.vision.decode_size)
        )

    def write() -> None:
        write_wav(folder / "sound.wav", silence, SAMPLE_RATE)
        mux(clip, silence, SAMPLE_RATE, folder / "sound.mp4")

    silence = torch.zeros(samples).numpy()
    tell("decode video")
    shots = pictures()
    alone = {"decode video": median(pictures, settings.repeats, device)}
    alone["mux"] = median(write, settings.repeats, device)
    timings: list[Timing] = []
    for batch in _doubling(settings.largest_batch):
        seconds, timed, longest = dict(alone), {}, 0.0
        for name, stage in stages.items():
            tell(f"{name}, {batch} at once")
            found = _tokens(stage, batch, frames, costs[name].passes, settings.repeats, device)
            seconds[name], timed[name] = found.seconds / batch, found.passes
            longest = max(longest, found.once)
        tell(f"features and codec, {batch} at once")
        encode = partial(system.vision.encode, shots * batch)
        tokens = torch.randint(model.codebook_size, (batch, num_codebooks, frames), device=device)
        decode = partial(system.codec.decode, tokens)
        if timings and timings[0].seconds["features"] > ONCE:  # the frames of one clip are a batch already
            seconds["features"] = timings[0].seconds["features"]
        else:
            seconds["features"] = median(encode, settings.repeats, device) / batch
        seconds["codec"] = median(decode, settings.repeats, device) / batch
        timings.append(Timing(batch, {name: seconds[name] for name in STAGES if name in seconds}, timed))
        if longest > PATIENCE or (len(timings) > 1 and timings[-1].total > timings[-2].total):
            break
    return Speed(
        system.name,
        system.weights,
        sum(stage.network.parameter_counts()["parameters"] for stage in stages.values()),
        {name: cost.passes for name, cost in costs.items()},
        {name: cost.flops for name, cost in costs.items()},
        timings,
    )


@dataclass(frozen=True)
class _Tokens:
    """What sampling or refining of a batch takes."""

    seconds: float  # all passes, the whole batch
    passes: int  # that were timed
    once: float  # seconds of one timing


def _tokens(
    stage: Stage, batch: int, frames: int, passes: int, repeats: int, device: torch.device
) -> _Tokens:
    """Time all passes, or some of them if all would take too long."""
    some = min(SOME["steps" if isinstance(stage.network, FoleyGen) else "passes"], passes)
    begin = time.perf_counter()
    one = some_passes(stage, batch, frames, some)
    once = time.perf_counter() - begin
    if one * passes > LONGEST:
        if once < ONCE:
            one = statistics.median(some_passes(stage, batch, frames, some) for _ in range(repeats))
        return _Tokens(one * passes, some, once)
    empty = unknown(stage, batch, padded_length(frames, stage.preset.model))
    whole = median(partial(fill_in, stage, *empty), repeats, device)
    return _Tokens(whole, passes, whole)


def _doubling(largest: int) -> Iterator[int]:
    batch = 1
    while batch <= largest:
        yield batch
        batch *= 2


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers stand for."""
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


def _document(speed: Speed, seconds: float, rate: float) -> dict[str, Any]:
    """One system for JSON: seconds of a clip by stage, and how they compare with counted operations."""
    return {
        "name": speed.name,
        "weights": speed.weights,
        "parameters": speed.parameters,
        "passes": speed.passes,
        "flops": speed.flops,
        "best_batch": speed.best.batch,
        "batches": [
            {
                "batch": timing.batch,
                "seconds": timing.seconds,
                "total": timing.total,
                "times_real_time": seconds / timing.total,
                "times_real_time_by_stage": {n: seconds / each for n, each in timing.seconds.items()},
                "passes_timed": timing.timed,
                "flops_per_second": {n: f / timing.seconds[n] for n, f in speed.flops.items()},
                "share_of_matmul_rate": {n: f / timing.seconds[n] / rate for n, f in speed.flops.items()},
            }
            for timing in speed.timings
        ],
    }


def rows_of(document: dict[str, Any]) -> Sequence[tuple[dict[str, Any], dict[str, Any]]]:
    """Each system with its timing for one clip, and with that for the best batch if it is another."""
    found = []
    for system in document["systems"]:
        chosen = [b for b in system["batches"] if b["batch"] in (1, system["best_batch"])]
        found += [(system, batch) for batch in chosen]
    return found
