"""vab bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.options import Device, Precision
from vab.cli.output import log, print_result
from vab.cli.progress import file_progress


def bench(
    names: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PRESET|DIR|HUB_ID ...]")
    ] = (),
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = None,
    clip: Annotated[Path | None, tyro.conf.arg(metavar="VIDEO")] = None,
    repeats: int = 3,
    largest_batch: int = 8,
    threads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: bool = False,
) -> int:
    """Time every stage of generating 10 s of sound on this machine, and count what it costs.

    Each system is timed in float32 with the paper's settings, then in --precision, last at --speed fast too.
    Presets without published weights are built at full size with random ones, which does not change the time.
    Where all passes of a network would take too long, a few are timed and scaled up; the table says so.
    Run it on an idle machine: it warns if the machine is busy.

    Args:
        names: presets, model directories or Hub ids. Default: vab-tiny, the paper's models and FoleyGen; of
            vab-dac the fastest settings alone, to spare the minutes.
        out: also write speed_<hardware>_<date>.md and .json into this folder.
        clip: a video to use instead of a generated one of 10 s.
        repeats: the number of timings; the median is reported.
        largest_batch: the largest number of clips to process at once.
        threads: PyTorch threads. Default: chosen by PyTorch.
        device: the device to compute on.
        precision: the precision to compare with float32. auto: bfloat16 where it is measured to be fast.
        json: print one JSON document to standard output.
    """
    from vab.bench import report
    from vab.bench.speed import BenchSettings
    from vab.bench.speed import bench as run

    if out is not None:  # a folder that cannot be made is known before the minutes of timing
        out.mkdir(parents=True, exist_ok=True)
    settings = BenchSettings(names, clip, repeats, largest_batch, threads, device, precision)
    with file_progress() as move:
        document = run(settings, lambda n, of, name, stage: move(n, of, Path(name), stage, n, of))
    written = [] if out is None else report.write(out, document)
    if busy := report.busy(document):
        log(busy)
    for path in written:
        log(str(path))
    print_result(document, report.as_markdown(document), json)
    return 0
