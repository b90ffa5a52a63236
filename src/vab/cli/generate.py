"""vab generate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vab.cli.options import Device, Files, Model, Place
from vab.cli.output import show, tell
from vab.errors import SettingError, first_line

if TYPE_CHECKING:
    from vab.inference.batch import Result, Settings

REPORT = "report.html"
Number = Annotated[float | None, tyro.conf.arg(metavar="X")]


def generate(
    inputs: Files,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")],
    model: Model = None,
    seed: int = 0,
    steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    guidance: Number = None,
    temperature: Number = None,
    rerank: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    samples: int = 1,
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FROM:TO")] = (),
    skip_existing: bool = False,
    report: bool = False,
    device: Device = "auto",
    codec_path: Place = None,
    vision_path: Place = None,
    json: bool = False,
) -> int:
    """Make the sound of videos and images.

    Results are FOLDER/<input stem>.wav and, for a video, .mp4 with its picture copied as it is; further
    samples end in _2, _3 ... The sound is as long as the video, to the sample; an image gets 10 s.
    If two inputs have the same stem, the later one fails: give it another folder.

    Args:
        inputs: videos, images, folders (all in them and below), quoted patterns, or CSV lists with a
            column "video" (a manifest will do; whole files are used).
        out: the folder for the results; made if it is missing.
        model: a name (see vab models), a model directory or a Hub id. Left out: the bundled vab-tiny.
        seed: the same seed gives the same sound for the same file and settings, whatever else is done.
        steps: steps of decoding. Left out: the model's own, as for the next three. Not for FoleyGen.
        guidance: how strongly the sound follows the picture; 1 is not at all stronger than learned.
        temperature: randomness of the order in which tokens are decided; for FoleyGen, of the tokens.
        rerank: how many sounds to draw for each, of which the one nearest to the picture is kept.
        samples: how many different sounds for each input.
        keep: seconds of the video's own sound that stay, such as 2.0:5.5, :3 or 7: (may be repeated).
        skip_existing: leave out inputs whose results all exist.
        report: also write FOLDER/report.html: this run's pictures, sounds, settings and timings in one file.
        device: where to compute.
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        vision_path: file, folder or Hub id of the image encoder's weights, if not the usual ones.
        json: one JSON document on standard output: settings, and result and timings of each input.
    """
    from vab.cli.progress import file_progress
    from vab.inference.batch import Settings, generate_files, summary

    settings = Settings(
        model=model,
        seed=seed,
        steps=steps,
        guidance=guidance,
        temperature=temperature,
        rerank=rerank,
        samples=samples,
        keep=tuple(_span(text) for text in keep),
        skip_existing=skip_existing,
        device=device,
        codec_path=codec_path,
        vision_path=vision_path,
    )
    page = out / REPORT
    if report and page.is_dir():
        raise SettingError(f"{page}: is a folder, so no report can be written there; choose another with -o")
    results = []
    with file_progress() as watch:
        for result in generate_files(inputs, out, settings, watch):
            results.append(result)
            if result.status == "failed":
                tell(str(result.error))
            elif not json:
                print(f"{result.input}: {result.status}, {', '.join(result.outputs)}", flush=True)
    document = summary(results, settings)
    written = not report or _report(page, results, settings, json)
    if json:
        show(document | ({"report": str(page) if written else None} if report else {}), "", True)
    return 1 if document["failed"] or not written else 0


def _report(page: Path, results: Sequence[Result], settings: Settings, json: bool) -> bool:
    """Write the report; whether that worked, which is said."""
    from vab.inference.html_report import write_report

    try:
        write_report(page, results, settings)
    except OSError as error:
        tell(f"{page}: the report cannot be written ({first_line(error)}); the sounds are there")
        return False
    if not json:
        print(page)
    return True


def _span(text: str) -> tuple[float, float]:
    """``2.0:5.5`` in seconds; either end may be left out."""
    start, colon, stop = text.partition(":")
    try:
        span = (float(start or 0), float(stop or math.inf))
    except ValueError:
        span = (math.nan, math.nan)
    if not colon or math.isnan(sum(span)):
        raise SettingError(f"--keep {text}: a span looks like 2.0:5.5 (seconds, from and to)")
    return span
