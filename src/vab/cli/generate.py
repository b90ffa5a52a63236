"""vab generate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vab.cli.options import Device, Devices, Files, Model, Precision, Shard, WeightsPath
from vab.cli.output import log, print_result, say
from vab.config import LOUDNESS
from vab.errors import SettingError, first_line
from vab.presets import Speed
from vab.utils.shares import Share

if TYPE_CHECKING:
    from vab.inference.batch import BatchSettings, Result

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
    rerank: Annotated[int | None, tyro.conf.arg(aliases=["--candidates"], metavar="N")] = None,
    speed: Speed | None = None,
    timing: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None,
    samples: int = 1,
    keep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FROM:TO")] = (),
    loudness: Annotated[str, tyro.conf.arg(metavar="LUFS|off")] = f"{LOUDNESS:g}",
    mix: Annotated[float | None, tyro.conf.arg(metavar="DB")] = None,
    keep_original: bool = False,
    rate: Annotated[int | None, tyro.conf.arg(metavar="HZ")] = None,
    channels: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    bits: Literal[16, 24] = 16,
    format: Literal["wav", "flac"] = "wav",
    flat: bool = False,
    container: Literal["auto", "mp4", "mov", "mkv", "webm"] = "auto",
    length: Literal["video", "container"] = "video",
    skip_existing: bool = False,
    report: bool = False,
    precision: Precision = "auto",
    device: Device = "auto",
    devices: Devices = 1,
    shard: Shard = None,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    json: bool = False,
) -> int:
    """Generate sound for videos and images.

    Writes FOLDER/<input stem>.wav (or .flac) and, for a video, a film of the same name: its picture copied
    unchanged into a container that players open (.mp4, .mov or .webm), or encoded once more as H.264 where
    none holds it (GIF, FFV1, MPEG-2 ...), with its other tracks, chapters and tags. The names of more samples
    end in _2, _3, ... The sound is exactly as long as the picture; a still image gets 10 s. Files found in
    subfolders keep those subfolders below FOLDER. Equal names are told apart by the folders above (a/dog,
    b/dog), or else by their endings (cat_jpg, cat_png). If a picture is unlike anything the model learned, a
    line says so: its sound is then a guess.

    Args:
        inputs: videos, images, folders (searched recursively), quoted glob patterns, or CSV files with a
            column "video", "file" or "path", such as a manifest (whole files are used).
        out: the folder for the results, created if needed.
        model: a name (see vab models), a model directory or a Hub id. Default: the bundled vab-tiny.
        seed: the random seed; the same seed, file and settings give the same sound.
        steps: decoding steps (not for FoleyGen). Default: the model's own, as for the next three options.
        guidance: scale of classifier-free guidance: how closely the sound follows the video; 1 is none. With
            --speed fast, and with vab-tiny by itself, the first quarter of the steps has it; where a timing
            curve leads the sound, all of them have.
        temperature: randomness of the order in which tokens are decoded; for FoleyGen, of the tokens.
        rerank: number of candidates for each sound; the one that fits the video best is kept, that is, the
            one whose embedding, by the model itself, is nearest to the video's (cosine). A good fit is no
            measure of quality.
        speed: paper computes all that the paper does: 16 steps, each with guidance; fast leaves out what was
            not missed with vab-tiny (docs/results.md). The four options above go over it. Default: the
            model's own settings.
        timing: what says when something happens, and how loud it is: motion, that of the film; sound:FILE,
            another sound; a CSV file with the columns seconds,onset,level_db, or seconds alone; or none. For
            a model that is told; the others leave it to themselves. Default: motion where the model can and
            something moves, else none.
        samples: number of different sounds for each input.
        keep: a span of the video's own sound to keep, in seconds, such as 2.0:5.5, :3 or 7: . Its samples
            stay as they are, unless --rate or --channels converts them. Can be given several times.
        loudness: integrated loudness (EBU R128) that new sound is brought to, with at most 30 dB of gain; off
            leaves it at the model's own level. Either way its true peak is at most -1 dBTP.
        mix: leave the video's own sound in, and put the new one this many decibels above it, whatever
            --loudness says; -12 puts it well below.
        keep_original: leave the video's own sound in the film, as a second track.
        rate: sample rate of the results. Default: 16000, or with --keep or --mix that of the video's own
            sound. What the model makes ends at 8 kHz; a higher rate adds nothing above that.
        channels: number of channels of the results; new sound is mono, the same in all of them. Default: 1,
            or with --keep or --mix as many as the video's own sound has.
        bits: bits per sample of the sound file.
        format: format of the sound file.
        flat: write all results into FOLDER itself, without subfolders.
        container: the film's container; auto is the one that holds the picture as it is, or else mp4. A
            picture that the chosen one cannot hold is encoded once more.
        length: how long the sound is: as long as the picture (video), or until both picture and sound have
            ended (container), with the last frame standing still.
        skip_existing: skip inputs whose results all exist and were made by the same model with the same seed
            and settings; the others are made anew, with a line that says why.
        report: also write FOLDER/report.html: spectrograms, sounds, settings and timings of this run. Each
            share writes a page of its own, report-1-of-4.html.
        precision: what the networks and the image encoder compute in; the codec stays in float32. auto is
            bfloat16 where a product of matrices is measured to be at least 1.5 times as fast in it, else
            float32. The same seed gives the same sound within one precision. tf32 needs an NVIDIA GPU.
        device: the device to compute on.
        devices: number of GPUs to share the inputs out to, or of processes on a CPU.
        shard: do this share of the inputs, from 1/N to N/N; which ones, a hash of their names says. Default:
            the share of this process under torchrun, srun or an array of SLURM, else 1/1, which is all.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        json: print one JSON document to standard output with the settings, and
            the results and timings of each input.
    """
    from vab.cli.progress import file_progress
    from vab.inference.batch import BatchSettings, generate_files, summary

    settings = BatchSettings(
        model=model,
        seed=seed,
        steps=steps,
        guidance=guidance,
        temperature=temperature,
        rerank=rerank,
        speed=speed,
        timing=timing,
        samples=samples,
        keep=tuple(_span(text) for text in keep),
        loudness=_loudness(loudness),
        mix=mix,
        keep_original=keep_original,
        rate=rate,
        channels=channels,
        bits=bits,
        format=format,
        flat=flat,
        container=container,
        length=length,
        skip_existing=skip_existing,
        precision=precision,
        device=device,
        devices=devices,
        shard=shard,
        codec_path=codec_path,
        vision_path=vision_path,
    )
    share = Share.chosen(shard)
    page = out / (REPORT if share.count == 1 else f"report-{share.index + 1}-of-{share.count}.html")
    if report and page.is_dir():
        raise SettingError(f"{page}: is a folder, so no report can be written there; choose another with -o")
    results = []
    with file_progress() as watch, closing(generate_files(inputs, out, settings, watch, log)) as found:
        for result in found:
            results.append(result)
            if result.status == "failed":
                log(str(result.error))
            elif not json:
                say(f"{result.input}: {result.status}, {', '.join(result.outputs)}")
            for note in result.notes:
                log(f"{result.input}: {note}")
    # Failed inputs and a missing report make the exit code 1; the sounds that were made stay.
    document = summary(results, settings)
    written = not report or _report(page, results, settings, json)
    if json:
        print_result(document | ({"report": str(page) if written else None} if report else {}), "", True)
    return 1 if document["failed"] or not written else 0


def _report(page: Path, results: Sequence[Result], settings: BatchSettings, json: bool) -> bool:
    """Write the HTML report; False, with a log line, if that fails."""
    from vab.inference.html_report import write_report

    try:
        write_report(page, results, settings)
    except OSError as error:
        log(f"{page}: the report cannot be written ({first_line(error)}); the sounds are there")
        return False
    if not json:
        say(str(page))
    return True


def _loudness(text: str) -> float | None:
    """Parse LUFS, or ``off``."""
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"--loudness {text}: a number of LUFS such as {LOUDNESS:g}, or off") from None


def _span(text: str) -> tuple[float, float]:
    """Parse a span of seconds such as ``2.0:5.5``; either end may be left out."""
    start, colon, stop = text.partition(":")
    try:
        span = (float(start or 0), float(stop or math.inf))
    except ValueError:
        span = (math.nan, math.nan)
    if not colon or math.isnan(sum(span)):
        raise SettingError(f"--keep {text}: a span looks like 2.0:5.5 (seconds, from and to)")
    return span
