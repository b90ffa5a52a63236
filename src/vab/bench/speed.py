"""Time of each stage of generation, by precision and speed, for one clip and for batches (Table 1).

The stages are those of ``vab.inference.pipeline``: decode the video, features, sampling, refining (a second
stage), codec, and mux. Each is run once to warm up and then timed several times; the median counts. Long
stages are timed once, without a warm-up: its milliseconds would not show.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vab.bench.costs import Cost, token_cost
from vab.bench.systems import System, load_system, write_clip
from vab.bench.timing import MAX_REPEATED_SECONDS, blank_inputs, fill_in, median, peak_rate, some_passes
from vab.config import SAMPLE_RATE, DecodeConfig, audio_frames, samples_to_frames
from vab.errors import SettingError
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile
from vab.media.reader import mux, probe, write_wav
from vab.models.foleygen import FoleyGen
from vab.presets import Speed, at_speed
from vab.sampling.parallel import windows
from vab.sampling.stages import Stage, padded_length, window_overlap
from vab.timing.curve import NUM_CHANNELS
from vab.timing.motion import MotionReader
from vab.timing.sources import MOTION, NONE
from vab.utils.device import Chosen, pick_device, pick_precision, products
from vab.utils.files import scratch_folder
from vab.utils.provenance import code_version

NAMES = ("vab-tiny", "foleygen-tiny", "vab-encodec", "vab-dac", "foleygen-encodec")
BRIEF = ("vab-dac",)  # of these, the ones that are timed at their fastest alone
STAGES = ("decode video", "features", "sampling", "refining", "codec", "mux")
FEATURES = (  # of processors, that products of matrices are fast by: Linux's names on x86, then on ARM
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve", "sme"),
)
MAX_FULL_SECONDS = 20.0  # of all passes of a clip; beyond, a few are timed and scaled up
NUM_TIMED_PASSES = 1  # of VAB, then
NUM_TIMED_STEPS = 16  # of FoleyGen, then
MAX_BATCH_SECONDS = 10.0  # of one timing; beyond, no larger batch is tried

Show = Callable[[int, int, str, str], None]  # system n, of, its name, what is timed


class Run(NamedTuple):
    """How a system is timed."""

    chosen: Chosen  # the precision
    speed: Speed | None  # None: of FoleyGen, which makes one step after another
    timing: str | None = None  # motion or none; None: of a system that follows no motion


@dataclass(frozen=True)
class BenchSettings:
    """Systems, clip and effort of a benchmark."""

    names: tuple[str, ...] = ()  # none: NAMES
    clip: Path | None = None  # None: 10 s of 1280 x 720 pixels, made on the spot
    repeats: int = 3
    largest_batch: int = 8
    threads: int | None = None  # None: as PyTorch chooses
    device: str = "auto"
    precision: str = "auto"  # to be compared with float32


def bench(settings: BenchSettings, show: Show = lambda *_: None) -> dict[str, Any]:
    """Time every system; returns a document for JSON and :mod:`vab.bench.report`.

    Raises ``ValueError`` for settings that make no sense, ``MediaError`` for a clip that cannot be read, and
    what :func:`vab.bench.systems.load_system` raises.
    """
    threads = 1 if settings.threads is None else settings.threads
    if min(settings.repeats, settings.largest_batch, threads) < 1:
        raise SettingError("repeats, the largest batch and threads must be 1 or more")
    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    load = cores_in_use()
    other = pick_precision(settings.precision, device)
    precisions = [pick_precision("float32", device)] + ([] if other.precision == "float32" else [other])
    names = settings.names or NAMES
    systems = []
    with scratch_folder("bench") as folder:
        clip = settings.clip or write_clip(folder)
        seconds = probe(clip).seconds
        show(0, len(names), names[0], "matrix product")
        rates: dict[str, float] = {}
        for chosen in precisions:
            with products(chosen.precision):
                rates[chosen.precision] = peak_rate(device, chosen.dtype)
        for n, name in enumerate(names):
            show(n, len(names), name, "build")
            system = load_system(name, device)
            runs = runs_of(system, precisions)
            if not settings.names and name in BRIEF:
                runs = runs[-1:]
            report_stage = partial(show, n, len(names), name)
            systems += measure(system, clip, folder, settings, device, rates, runs, report_stage)
            del system
    return {
        "machine": machine(device) | {"load_before": load},
        "matmul_flops": rates,
        "precision": other.document(),
        "code": code_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "repeats": settings.repeats,
        "clip": {"seconds": seconds, "own": settings.clip is not None},
        "systems": systems,
    }


def runs_of(system: System, precisions: Sequence[Chosen]) -> list[Run]:
    """How a system is timed: float32 as in the paper, then the other precision, last the other speed too.

    What follows a film's motion by itself is then timed once more, as it generates for a video.
    """
    if isinstance(system.first.network, FoleyGen):
        return [Run(chosen, None) for chosen in precisions]
    timing = None if system.predictor is None else NONE
    runs = [Run(chosen, "paper", timing) for chosen in precisions]
    runs.append(Run(precisions[-1], "fast", timing))
    return runs if timing is None else [*runs, Run(precisions[-1], "fast", MOTION)]


@torch.inference_mode()
def measure(
    system: System,
    clip: Path,
    folder: Path,
    settings: BenchSettings,
    device: torch.device,
    rates: dict[str, float],
    runs: Sequence[Run],
    report_stage: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Time one system with batches of 1, 2, 4, 8, ... clips, until the time per clip grows: for JSON.

    One dictionary for each of ``runs``. ``rates``: operations per second of the
    product of matrices in each precision, beside which its own are set.
    """
    # 1. What is made: as many audio frames as the clip has, by one or two networks.
    pipe = as_pipeline(system, device)
    stages = {"sampling": system.first}
    if system.fine is not None:
        stages["refining"] = system.fine
    duration = probe(clip).seconds
    samples = round(duration * SAMPLE_RATE)
    frames = samples_to_frames(samples)
    model = system.first.preset.model
    num_codebooks = (system.fine or system.first).preset.model.num_codebooks

    def decode_video(follow_motion: bool = False) -> list[Any]:
        watch = MotionReader() if follow_motion else None
        with MediaFile(clip) as file:
            size, seconds = system.vision.decode_size, samples / SAMPLE_RATE
            images = list(file.frames(model.fps, seconds=seconds, size=size, watch=watch))
        if watch is not None and system.predictor is not None:
            system.predictor.curve(watch.motion(), audio_frames(duration))
        return images

    def write() -> None:
        write_wav(folder / "sound.wav", silence, SAMPLE_RATE)
        mux(clip, silence, SAMPLE_RATE, folder / "sound.mp4")

    # 2. Stages that go file by file, in any precision.
    silence = torch.zeros(samples).numpy()
    report_stage("decode video")
    images = decode_video()
    decoding = {
        timing: median(partial(decode_video, timing == MOTION), settings.repeats, device)
        for timing in dict.fromkeys(run.timing for run in runs)
    }
    writing = median(write, settings.repeats, device)

    # 3. Image features and codec, for a whole batch: once in each precision, at whatever speed.
    ends: dict[tuple[str, int], dict[str, float]] = {}

    def encode_and_decode(precision: str, batch: int) -> dict[str, float]:
        if (precision, batch) not in ends:
            report_stage(f"features and codec in {precision}, {batch} at once")
            encode = partial(system.vision.encode, images * batch)
            tokens = torch.randint(model.codebook_size, (batch, num_codebooks, frames), device=device)
            decode = partial(system.codec.decode, tokens)
            features = ends.get((precision, 1), {}).get("features", 0.0)
            # Too slow to time again, and the frames of one clip are a batch already.
            if features <= MAX_REPEATED_SECONDS:
                features = median(encode, settings.repeats, device) / batch
            codec = median(decode, settings.repeats, device) / batch
            ends[precision, batch] = {"features": features, "codec": codec}
        return ends[precision, batch]

    results = []
    for chosen, speed, timing in runs:
        follow_motion = timing == MOTION
        pipe.to(dtype=chosen)
        decodes = {name: stage.preset.decode for name, stage in stages.items()}
        decodes["sampling"] = at_speed(decodes["sampling"], speed)
        costs = {
            name: token_cost(stage.preset, frames, decodes[name], follow_motion)
            for name, stage in stages.items()
        }
        batches: list[dict[str, Any]] = []
        for batch in (2**n for n in range(settings.largest_batch.bit_length())):
            # 4. Tokens: sampling, and refining with a second network.
            seconds = {"decode video": decoding[timing], "mux": writing}  # of one clip
            seconds |= encode_and_decode(chosen.precision, batch)
            timed: dict[str, int] = {}  # passes
            longest = 0.0  # seconds of one timing
            for name, stage in stages.items():
                about = (name, chosen.precision, speed, timing, f"{batch} at once")
                report_stage(" ".join(filter(None, about)))
                with products(chosen.precision):
                    whole, timed[name], once = _time_tokens(
                        stage,
                        batch,
                        frames,
                        decodes[name],
                        costs[name],
                        settings.repeats,
                        device,
                        follow_motion,
                    )
                seconds[name] = whole / batch
                longest = max(longest, once)

            # 5. Seconds per clip by stage, in order, and rates from the counted operations.
            seconds = {name: seconds[name] for name in STAGES if name in seconds}
            total = sum(seconds.values())
            speeds = {name: cost.flops / seconds[name] for name, cost in costs.items()}
            rate = rates[chosen.precision]
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
        results.append(
            {
                "name": system.name,
                "weights": system.weights,
                "precision": chosen.precision,
                "speed": speed,
                "timing": timing,
                # learned numbers of all networks that make tokens
                "parameters": sum(s.network.parameter_counts()["parameters"] for s in stages.values()),
                "passes": {name: cost.passes for name, cost in costs.items()},
                "guided_passes": {name: cost.guided for name, cost in costs.items()},
                "flops": {name: cost.flops for name, cost in costs.items()},
                "best_batch": min(batches, key=lambda each: each["total"])["batch"],
                "batches": batches,
            }
        )
    return results


def as_pipeline(system: System, device: torch.device) -> VABPipeline:
    """The pipeline of a system: it knows which part computes in what, whatever the precision."""
    first = system.first
    return VABPipeline(first.preset, first.network, system.codec, system.vision, device, system.fine)


def _time_tokens(
    stage: Stage,
    batch: int,
    frames: int,
    decode: DecodeConfig,
    cost: Cost,
    repeats: int,
    device: torch.device,
    told: bool = False,
) -> tuple[float, int, float]:
    """Time sampling or refining of a batch: all passes, or a few if all would take too long.

    ``told``: with a timing curve, but for the few. Seconds of all passes, how many were timed, and seconds of
    one timing.
    """
    few = NUM_TIMED_STEPS if isinstance(stage.network, FoleyGen) else NUM_TIMED_PASSES
    few = min(few, cost.passes)
    # Passes with both halves of guidance, and with one, over windows of each length: how many there are, and
    # how they are asked for.
    whole = replace(decode, guidance_from=0.0, guidance_until=1.0, guidance_every=1)
    alone = replace(whole, guidance_scale=1.0)
    lengths = _window_lengths(stage, frames, decode)
    kinds = []
    for length, count in Counter(lengths).items():
        share = count / len(lengths)
        kinds += [(share * cost.guided, length, whole), (share * (cost.passes - cost.guided), length, alone)]
    kinds = [kind for kind in kinds if kind[0]]

    def once() -> float:
        return sum(count * some_passes(stage, batch, length, few, each) for count, length, each in kinds)

    begin = time.perf_counter()
    estimate = once()
    longest = time.perf_counter() - begin
    if estimate > MAX_FULL_SECONDS:
        if longest < MAX_REPEATED_SECONDS:
            estimate = statistics.median(once() for _ in range(repeats))
        return estimate, few * len(kinds), longest
    length = padded_length(frames, stage.preset.model)
    inputs = blank_inputs(stage, batch, length)
    told = told and stage.preset.model.timing
    curve = torch.rand(batch, length, NUM_CHANNELS, device=device) if told else None
    seconds = median(partial(fill_in, stage, *inputs, decode, timing=curve), repeats, device)
    return seconds, cost.passes, seconds


def _window_lengths(stage: Stage, frames: int, decode: DecodeConfig) -> list[int]:
    """Audio frames of each window of a clip, the last one perhaps short; of FoleyGen those of a whole one."""
    config = stage.preset.model
    total = padded_length(frames, config)
    if isinstance(stage.network, FoleyGen):
        return [min(total, config.audio_length)]
    spans = windows(total, config.audio_length, window_overlap(config), decode.last_window)
    return [stop - start for start, stop in spans]


def machine(device: torch.device) -> dict[str, Any]:
    """Describe this machine."""
    processor, flags = platform.processor() or platform.machine(), ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        processor = about.get("model name", processor)
        flags = about.get("flags", about.get("Features", ""))  # of x86, of ARM
    return {
        "processor": processor,
        "features": [name for name in FEATURES if name in flags.split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def rows_of(document: dict[str, Any]) -> Sequence[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair each system with its timing for one clip, and with that of the best batch if it differs."""
    rows = []
    for system in document["systems"]:
        chosen = [b for b in system["batches"] if b["batch"] in (1, system["best_batch"])]
        rows += [(system, batch) for batch in chosen]
    return rows


def cores_in_use(seconds: float = 1.0) -> float | None:
    """The number of cores that are busy at this moment; None where the system does not count that.

    The load average would still speak of what ended a minute ago.
    """
    counts = []
    for pause in (seconds, 0.0):
        try:
            first = Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        # user nice system idle iowait irq softirq steal, in ticks of all cores together since the start
        counts.append(np.array(first.split()[1:9], np.int64))
        time.sleep(pause)
    ticks = counts[1] - counts[0]
    idle = int(ticks[3] + ticks[4])
    return round((os.cpu_count() or 1) * (1 - idle / max(1, int(ticks.sum()))), 2)
