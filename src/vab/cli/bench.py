"""vab bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vab.cli.output import show, tell
from vab.cli.progress import file_progress


def bench(
    names: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PRESET|DIR|HUB_ID ...]")
    ] = (),
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = None,
    clip: Annotated[Path | None, tyro.conf.arg(metavar="VIDEO")] = None,
    repeats: int = 3,
    largest_batch: int = 8,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    json: bool = False,
) -> int:
    """Measure how long 10 s of sound take here, stage by stage, and what that costs.

    Presets without published weights are built at full size with random ones: time does not depend on them.
    Where all passes of a network would take too long, some are timed and multiplied, which the table says.
    Run it alone: it warns if the machine is busy.

    Args:
        names: presets, model directories or Hub ids. Left out: vab-tiny, the paper's models and FoleyGen.
        out: write speed_<hardware>_<date>.md and .json into this folder.
        clip: a video to use in place of 10 s made on the spot.
        repeats: timings of which the median counts.
        largest_batch: clips done at once, at most.
        threads: of PyTorch. Left out: as PyTorch chooses.
        device: cpu, cuda, mps, or auto.
        json: one JSON document on standard output.
    """
    from vab.bench import report
    from vab.bench.speed import NAMES, Settings
    from vab.bench.speed import bench as run

    settings = Settings(names or NAMES, clip, repeats, largest_batch, threads, device)
    with file_progress() as move:
        document = run(settings, lambda n, of, name, stage: move(n, of, Path(name), stage, n, of))
    written = [] if out is None else report.write(out, document)
    if busy := report.busy(document):
        tell(busy)
    for path in written:
        tell(str(path))
    show(document, report.as_markdown(document), json)
    return 0
