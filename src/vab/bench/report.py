"""Reports of ``vab bench``: Markdown tables, and files in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vab.bench.speed import STAGES, rows_of
from vab.bench.timing import MAX_REPEATED_SECONDS
from vab.evaluate.metrics.tables import markdown
from vab.evaluate.paper import GENERATION
from vab.timing.sources import MOTION
from vab.utils.files import write_whole

SYSTEM = ("system", "precision", "speed", "timing")
MAX_IDLE_LOAD = 0.3  # of the cores, in use before the start; above, the numbers are not to be trusted


def write(folder: Path, document: dict[str, Any]) -> list[Path]:
    """Write ``speed_<hardware>_<date>`` as .md and .json to ``folder``; returns the paths."""
    hardware = document["machine"]["device"]
    if hardware == "cpu":
        hardware = f"{document['machine']['cores']}-cores"
    name = f"speed_{re.sub(r'[^a-z0-9]+', '-', hardware.lower())}_{document['date'][:7]}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    texts = [as_markdown(document), json.dumps(document, indent=1)]
    for path, text in zip(paths, texts, strict=True):
        write_whole(path, f"{text}\n".encode())
    return paths


def busy(document: dict[str, Any]) -> str:
    """A warning if the machine was busy; else ""."""
    load, cores = document["machine"]["load_before"], document["machine"]["cores"]
    if load is None or load < MAX_IDLE_LOAD * cores:
        return ""
    return f"The machine was busy ({load:.1f} of {cores} cores in use before): these are not its own times."


def as_markdown(document: dict[str, Any]) -> str:
    """The whole report as Markdown."""
    # 1. What was timed, where and how.
    about = document["machine"]
    clip = document["clip"]
    where = f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['device']}"
    features = ", ".join(about["features"]) or "none that is known to matter"
    film = "one given" if clip["own"] else "H.264, 1280 x 720 pixels, 25 frames a second"
    rates = " and ".join(f"{rate / 1e9:.1f} in {name}" for name, rate in document["matmul_flops"].items())
    gain = document["precision"].get("bfloat16_gain")
    chosen = "" if gain is None else f" A product in bfloat16 was measured {gain:.2g} times as fast"
    chosen += f": {document['precision']['precision']} is what auto takes here." if chosen else ""
    parts = [
        f"# Seconds to give {clip['seconds']:.3g} s of video their sound",
        f"Machine: {where}; PyTorch {about['torch']}, Python {about['python']}.\n"
        f"Features of the processor: {features}.\n"
        f"GFLOP/s of a product of two matrices, of the size that is fastest: {rates}.{chosen}\n"
        f"Video: {film}.\n"
        f"Code: {document['code']['commit'] or document['code']['version']}, {document['date']}. "
        f"Medians of {document['repeats']}, or one timing where it took more than "
        f"{MAX_REPEATED_SECONDS:g} s; seconds of one clip, also where several are done at once.",
    ]
    parts += [busy(document)] if busy(document) else []
    # 2. The tables, each with what must be known to read it.
    parts.append(_seconds(document))
    parts.append(
        "Where the weights are random the architecture is the preset's at full size: network, codec, image "
        "encoder. Time does not depend on the weights. The speed `paper` is the paper's decoding, `fast` "
        "does less (docs/decisions). The timing `motion` is what a video gets by itself from a model that "
        "follows its motion: every frame is looked at before the first window is made. With several "
        "at once, sampling, features and codec run on all of them together; decoding the video and mux go "
        "file by file."
    )
    parts += ["## What making the tokens costs", _costs(document)]
    parts.append(
        "Of the passes, those with guidance do both its halves. FLOP are matrix products, counted from the "
        "sizes. A number of passes timed that is less than all means that the seconds above are those passes "
        "multiplied; FoleyGen's are in the middle of the clip, where its cache is half full."
    )
    parts += ["## Beside the paper", _beside(document)]
    return "\n\n".join(parts)


def _seconds(document: dict[str, Any]) -> str:
    header = (*SYSTEM, "weights", "at once", *STAGES, "in all", "times real time")
    rows = [
        [
            *_system(system),
            system["weights"],
            str(batch["batch"]),
            *(_number(batch["seconds"].get(stage)) for stage in STAGES),
            _number(batch["total"]),
            _number(batch["times_real_time"]),
        ]
        for system, batch in rows_of(document)
    ]
    return markdown(header, rows)


def _costs(document: dict[str, Any]) -> str:
    header = (
        *(*SYSTEM, "stage", "parameters", "passes", "with guidance", "TFLOP", "at once", "passes timed"),
        *("GFLOP/s", "of the matrix product's rate"),
    )
    rows = []
    for system, batch in rows_of(document):
        for stage, passes in system["passes"].items():
            rows.append(
                [
                    *_system(system),
                    stage,
                    f"{system['parameters'] / 1e6:.1f} M",
                    str(passes),
                    str(system["guided_passes"][stage]),
                    _number(system["flops"][stage] / 1e12),
                    str(batch["batch"]),
                    str(batch["passes_timed"][stage]),
                    _number(batch["flops_per_second"][stage] / 1e9),
                    f"{100 * batch['share_of_matmul_rate'][stage]:.0f} %",
                ]
            )
    return markdown(header, rows)


def _beside(document: dict[str, Any]) -> str:
    """Table 1's seconds, on one A6000, and ours; then who wins of VAB and FoleyGen on the same codec."""
    names = {"foleygen-encodec": "FoleyGen", "vab-dac": "VAB-DAC", "vab-encodec": "VAB-Encodec"}
    paper = {row.system: row.seconds for row in GENERATION if row.seconds is not None}
    rows = [
        [*_system(system), f"{paper[names[system['name']]]:g}", _number(system["batches"][0]["total"])]
        for system in document["systems"]
        if system["name"] in names
    ]
    parts = [markdown((*SYSTEM, "paper, one A6000", "here, one clip"), rows)] if rows else []
    # At each side's best precision, one clip alone and at the batch that is best for it. Without a film's
    # motion, for FoleyGen follows none.
    for vab, foleygen in (("vab-encodec", "foleygen-encodec"), ("vab-tiny", "foleygen-tiny")):
        for speed in ("paper", "fast"):
            fields = [(vab, speed), (foleygen, None)]
            sides = [
                [
                    each
                    for each in document["systems"]
                    if (each["name"], each["speed"]) == side and each["timing"] != MOTION
                ]
                for side in fields
            ]
            if all(sides):
                alone, many = ([min(map(total, side)) for side in sides] for total in (_alone, _at_best))
                factor = " (17 times in the paper)" if (vab, speed) == ("vab-encodec", "paper") else ""
                parts.append(
                    f"{vab} at speed {speed} against {foleygen}, each in its better precision: "
                    f"one clip alone, {_race(vab, foleygen, alone)}{factor}; "
                    f"many clips, each in its best batch, {_race(vab, foleygen, many)}."
                )
    return "\n\n".join(parts)


def _alone(system: dict[str, Any]) -> float:
    """Seconds of a clip that is done alone."""
    return system["batches"][0]["total"]


def _at_best(system: dict[str, Any]) -> float:
    """Seconds of a clip in the best batch."""
    return min(batch["total"] for batch in system["batches"])


def _race(first: str, second: str, seconds: Sequence[float]) -> str:
    """Who wins, by what factor: ``seconds`` of the first and of the second."""
    winner = first if seconds[0] <= seconds[1] else second
    factor = max(seconds) / min(seconds)
    return f"{_number(seconds[0])} s against {_number(seconds[1])} s, {winner} is {factor:.2g} times as fast"


def _system(system: dict[str, Any]) -> list[str]:
    """What was timed, as the columns of SYSTEM."""
    return [system["name"], system["precision"], system["speed"] or "", system["timing"] or ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
