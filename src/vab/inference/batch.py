"""Batch generation: output paths, skipping, per-file errors and timings, on one device or several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vab.config import LEVERS, LOUDNESS, DecodeConfig, check_config
from vab.errors import SettingError, failure
from vab.inference.finish import Finish
from vab.inference.made_with import difference, made_with, tag_of
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.inputs import expand
from vab.media.naming import Sources, result_stems
from vab.models.hub import find_model, folder_fingerprint, read_config
from vab.presets import Speed, at_speed
from vab.timing import MOTION_FILES
from vab.timing.sources import MOTION, Timing, choose, record
from vab.timing.sources import check as check_source
from vab.utils import PrecisionChoice
from vab.utils.device import Chosen, pick_precision
from vab.utils.processes import Worker, devices_for, in_order
from vab.utils.progress import FileProgress
from vab.utils.shares import Share

if TYPE_CHECKING:
    from vab.inference.pipeline import VABPipeline

MAX_SAMPLES = 1000  # of one input, in one call

Status = Literal["done", "skipped", "failed"]
LOSSLESS = ("wav", "flac")
EFFECTIVE = (
    *("generated", "version", "fingerprint", "steps", "guidance", "temperature", "top_k", *LEVERS),
    *("precision", "bfloat16_gain", "timing", "timing_scale"),
)


@dataclass(frozen=True)
class BatchSettings:
    """Options of a batch: model, decoding, outputs."""

    model: str | None = None  # None is the bundled one
    seed: int = 0
    steps: int | None = None  # None: the model's own, as for the next three
    guidance: float | None = None
    temperature: float | None = None
    rerank: int | None = None
    speed: Speed | None = None  # the set of settings that these replace; None: the model's own
    timing: str | None = None  # where the timing curve comes from; None: the motion, where the model can
    samples: int = 1
    keep: tuple[tuple[float, float], ...] = ()  # spans in seconds; the end may be infinite
    loudness: float | None = LOUDNESS  # LUFS of new sound; None: the model's own level
    rate: int | None = None  # Hz; None: 16 kHz, with keep or mix the original's, as for the next one
    channels: int | None = None
    mix: float | None = None  # dB of new sound against the original, which lies under it
    keep_original: bool = False  # as a second track of the video
    bits: int = 16  # of a sample of the sound file
    format: str = "wav"  # of the sound file: the ending of its name
    flat: bool = False  # all results in one folder, whatever the tree of the inputs
    container: str = "auto"  # of the film: mp4, mov, mkv, webm, or the one that holds the picture as it is
    length: Literal["video", "container"] = "video"  # how long a sound is, as in ``MediaFile``
    skip_existing: bool = False
    precision: PrecisionChoice = "float32"  # auto: bfloat16 where that is measured to be fast
    device: str = "auto"
    devices: int = 1  # number of GPUs, or of processes on a CPU
    shard: str | None = None  # the share I/N of the inputs; None: all, or what SLURM or torchrun says
    codec_path: str | None = None
    vision_path: str | None = None

    @property
    def finish(self) -> Finish:
        """How the sounds are finished; ``SettingError`` for values out of range."""
        return Finish(self.loudness, self.rate, self.channels, self.mix)


@dataclass(frozen=True)
class Result:
    """The outcome for one input file."""

    input: str
    status: Status
    outputs: tuple[str, ...] = ()
    seconds: float | None = None  # length of the sound
    error: str | None = None
    timings: dict[str, float] | None = None  # seconds of load, decode_video, features, sampling ... mux
    notes: tuple[str, ...] = ()  # sentences for the user
    levels: tuple[dict[str, float | None], ...] = ()  # of each sound: the model's own level, the gain it got
    made_with: dict[str, Any] | None = None  # settings in effect, of the first sound
    known: dict[str, Any] | None = None  # is_known, score, threshold, nearest; None if the model cannot tell


def generate_files(
    names: Iterable[str | Path],
    out: str | Path,
    settings: BatchSettings,
    show: FileProgress = lambda *_: None,
    log: Callable[[str], None] = lambda line: None,
) -> Generator[Result, None, None]:
    """Generate sound for all files that ``names`` expand to (``inputs.expand``); yields a result per file.

    Sample n of ``dog.mp4`` is ``out/dog.wav`` and ``out/dog.mp4``, later ones ``dog_2``, ``dog_3`` ...; what
    was found in a folder keeps its place in it (``naming.result_stems``). The film may end in .mov, .webm or
    .mkv (``MediaFile.film_suffix``); an image gives none. A file that fails leaves nothing behind; one whose
    result would take the place of an input fails. The model is loaded when the first file needs it, with
    several devices once in the process of each; the results come in the order of the files all the same.
    ``log`` gets the lines on what is left out on purpose.
    Raises ``SettingError`` or ``NoInputs`` for a call that makes no sense, ``OSError`` if ``out`` cannot be
    made, and as ``VABPipeline.from_pretrained``; what is wrong with one file is that file's result.
    ``ProcessError`` if the process of a device dies.
    """
    # 1. Check settings and expand names, before anything is loaded or written.
    out = Path(out)
    check(settings)
    devices = devices_for(settings.devices, settings.device)
    precision = pick_precision(settings.precision, devices[0])  # once, for all processes
    share = Share.chosen(settings.shard)
    folder = find_model(settings.model)
    check_source(_timing(settings, folder))
    inputs = expand(names, leave_out=out)
    out.mkdir(parents=True, exist_ok=True)
    for line in inputs.notes:
        log(line)
    for name, line in inputs.faults.items():
        yield Result(name, "failed", error=line)

    # 2. A name for each result, whichever process or machine makes it.
    stems = result_stems(inputs.files, settings.samples, settings.flat, f".{settings.format}")
    numbers = ["", *(f"_{n}" for n in range(2, settings.samples + 1))]
    named = [(found.path, stem) for found, stem in zip(inputs.files, stems, strict=True) if share.has(stem)]
    if share.count > 1:
        log(f"share {share}: {len(named)} of {len(inputs.files)} inputs")
    tasks = [
        _Task(index, path, tuple(out / f"{stem}{number}.{settings.format}" for number in numbers))
        for index, (path, stem) in enumerate(named)
    ]
    wanted = _wanted(settings, folder) if settings.skip_existing else []
    job = _Job(out, settings, precision, Sources(inputs.files), wanted, len(tasks))

    # 3. Here, or in a process for each device.
    if min(len(devices), len(tasks)) <= 1:
        yield from _generate(job, tasks, str(devices[0]), show)
        return
    show(0, len(tasks), tasks[0].path, "load", 0, 1)
    with closing(in_order(_generate_part, job, tasks, devices)) as results:
        for task, result in zip(tasks, results, strict=True):
            yield result
            show(task.index, len(tasks), task.path, result.status, task.index + 1, len(tasks))


@dataclass(frozen=True)
class _Task:
    """An input, and the sounds to make for it."""

    index: int
    path: Path
    sounds: tuple[Path, ...]


@dataclass(frozen=True)
class _Job:
    """What all inputs of a call share."""

    out: Path
    settings: BatchSettings
    precision: Chosen
    sources: Sources
    wanted: Sequence[dict[str, Any]]  # what the sounds of a file would be made with now, to skip others
    total: int


def _generate_part(worker: Worker, job: _Job, tasks: Sequence[_Task]) -> Iterator[Result]:
    """The work of one of several processes."""
    return _generate(job, tasks, str(worker.device))


def _generate(
    job: _Job, tasks: Sequence[_Task], device: str, show: FileProgress = lambda *_: None
) -> Iterator[Result]:
    """Yield the result of each task."""
    settings = job.settings
    pipe: VABPipeline | None = None
    for task in tasks:
        path = task.path
        with MediaFile(path, length=settings.length) as file:
            # 1. Files that cannot be done, by their header or their name, and files that are done already.
            try:
                results = [*task.sounds, *_films(file, task.sounds, settings)]
                if obstacle := job.sources.obstacle(results, job.out):
                    raise MediaError(f"{path}: {obstacle}")
            except Exception as error:  # one bad file out of many must not end the others
                yield Result(str(path), "failed", error=failure(path, error))
                continue
            anew = None
            if settings.skip_existing and all(result.is_file() for result in results):
                wanted = [_of_image(wish) for wish in job.wanted] if file.is_image else job.wanted
                anew = _difference(path, results, settings, wanted)
                if anew is None:
                    yield Result(str(path), "skipped", tuple(map(str, results)), made_with=tag_of(results[0]))
                    continue

            # 2. Load the model once, for the first file that needs it; that file's timings hold it.
            load_seconds = 0.0
            if pipe is None:
                show(task.index, job.total, path, "load", 0, 1)
                begin = time.perf_counter()
                pipe = _load(settings, device, job.precision)
                load_seconds = time.perf_counter() - begin

            # 3. Generate and write.
            report = partial(show, task.index, job.total, path)
            result = _generate_file(pipe, file, task.sounds, settings, load_seconds, report)
            yield replace(result, notes=(anew, *result.notes)) if anew else result


def check(settings: BatchSettings) -> None:
    """``SettingError`` for values out of range, before anything is loaded."""
    from vab.media.muxing.formats import suffix_for

    check_config(settings)
    values = asdict(settings)
    lowest = {"samples": 1, "devices": 1, "rerank": 1, "steps": 1, "seed": 0, "guidance": 0, "temperature": 0}
    for name, minimum in lowest.items():
        if values[name] is not None and not values[name] >= minimum:
            raise SettingError(f"{name} must be {minimum} or more, not {values[name]}")
    for name in ("guidance", "temperature"):
        if values[name] is not None and not math.isfinite(values[name]):
            raise SettingError(f"{name} must be a finite number, not {values[name]}")
    if settings.samples > MAX_SAMPLES:
        raise SettingError(f"samples must be {MAX_SAMPLES} or fewer, not {settings.samples}")
    suffix_for("", settings.container)
    if settings.length not in ("video", "container"):
        raise SettingError(f"length must be video or container, not {settings.length}")
    for start, stop in settings.keep:
        if not 0 <= start < stop:
            raise SettingError(f"a span to keep goes from a time to a later one, not from {start} to {stop}")
    _ = settings.finish  # its own check
    if settings.bits not in (16, 24):
        raise SettingError(f"bits must be 16 or 24, not {settings.bits}")
    if settings.format not in LOSSLESS:
        raise SettingError(f"format must be {' or '.join(LOSSLESS)}, not {settings.format}")


def summary(results: Iterable[Result], settings: BatchSettings) -> dict[str, Any]:
    """All results as one JSON document; the settings are those in effect, as far as a sound was made."""
    rows = list(results)
    used = next((row.made_with for row in rows if row.made_with), {})
    effective = {name: used[name] for name in EFFECTIVE if name in used}
    if used:
        effective |= {"model": settings.model or used["model"], "rerank": used["candidates"]}
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "skipped", "failed")}
    # JSON has no infinity: an open end is null.
    keep = [[start, stop if math.isfinite(stop) else None] for start, stop in settings.keep]
    return {
        "settings": asdict(settings) | {"keep": keep} | effective,
        **counts,
        "results": [asdict(row) for row in rows],
    }


def _wanted(settings: BatchSettings, folder: Path) -> list[dict[str, Any]]:
    """What each sample of a file would be made with now; the model is not loaded for it."""
    decode = _decode(read_config(folder).decode, settings)
    fingerprint = folder_fingerprint(folder, settings.codec_path, settings.vision_path)
    common = (str(folder), fingerprint, settings.seed)
    rest = {"precision": settings.precision} | record(_timing(settings, folder))
    return [
        made_with(*common, number, decode, settings.keep, settings.finish) | rest
        for number in range(settings.samples)
    ]


def _timing(settings: BatchSettings, folder: Path) -> Timing:
    """The source of the timing curve for the model in ``folder``; ``SettingError`` if it follows none."""
    return choose(settings.timing, read_config(folder), (folder / MOTION_FILES[0]).is_file())


def _of_image(wanted: dict[str, Any]) -> dict[str, Any]:
    """What an image would be made with: it has no motion."""
    return {name: value for name, value in wanted.items() if (name, value) != ("timing", MOTION)}


def _decode(own: DecodeConfig, settings: BatchSettings) -> DecodeConfig:
    """The model's ``own`` settings of decoding, with what is chosen in their place."""
    from vab.sampling.parallel import decode_settings

    chosen = (settings.steps, settings.guidance, settings.temperature, settings.rerank)
    return decode_settings(at_speed(own, settings.speed), *chosen)


def _films(file: MediaFile, sounds: Sequence[Path], settings: BatchSettings) -> list[Path]:
    """The films beside the sounds of a file; none for an image."""
    if file.is_image:
        return []
    suffix = file.film_suffix(settings.container)
    return [sound.with_suffix(suffix) for sound in sounds]


def _difference(
    path: Path, results: Sequence[Path], settings: BatchSettings, wanted: Sequence[dict[str, Any]]
) -> str | None:
    """Why results that are there, sounds and then films, must be made anew; None if they need not."""
    extra = _written(path, settings)
    reasons = (
        difference(tag_of(result), wish | extra)
        for result, wish in zip(results, [*wanted, *wanted], strict=False)
    )
    return next(filter(None, reasons), None)


def _written(path: Path, settings: BatchSettings) -> dict[str, Any]:
    """What the files of one input depend on beside what its sounds do."""
    length = {} if settings.length == "video" else {"length": settings.length}
    return length | {
        "bits": settings.bits,
        "keep_original": settings.keep_original,
        "source_bytes": path.stat().st_size,  # another film under the same name is rarely as long
    }


def _load(settings: BatchSettings, device: str, precision: Chosen) -> VABPipeline:
    from vab.inference.pipeline import VABPipeline

    pipe = VABPipeline.from_pretrained(
        settings.model,
        device=device,
        dtype=precision,
        codec_path=settings.codec_path,
        vision_path=settings.vision_path,
    )
    if (settings.rerank or 1) > 1:
        pipe.embedder.check_contrastive()  # before the first file
    return pipe


def _generate_file(
    pipe: VABPipeline,
    file: MediaFile,
    sounds: Sequence[Path],
    settings: BatchSettings,
    load_seconds: float,
    report: Callable[[str, int, int], None],
) -> Result:
    """Generate and write the sounds of one file; any error becomes its result."""
    decode = _decode(pipe.config.decode, settings)
    path = file.path
    timings = {"load": load_seconds, "mux": 0.0}
    outputs: list[str] = []
    notes: dict[str, None] = {}  # each sentence once
    levels: list[dict[str, float | None]] = []
    made_with: dict[str, Any] | None = None
    length = 0.0
    known: dict[str, Any] | None = None
    try:
        if settings.keep_original and (file.is_image or not file.has_audio):
            notes["there is no sound of its own to keep as a second track"] = None
        made = pipe.generate_many(
            file,
            settings.samples,
            seed=settings.seed,
            decode=decode,
            timing=settings.timing,
            keep=settings.keep,
            finish=settings.finish,
            progress=report,
        )
        for sound, audio in zip(sounds, made, strict=True):
            begin = time.perf_counter()
            audio = replace(audio, made_with=audio.made_with | _written(path, settings))
            audio.save(sound, settings.bits)
            outputs.append(str(sound))
            for film in _films(file, [sound], settings):
                told = file.mux(
                    audio.waveform, audio.rate, film, tags=audio.tags, keep_original=settings.keep_original
                )
                notes |= dict.fromkeys(told)
                outputs.append(str(film))
            timings["mux"] += time.perf_counter() - begin
            length = audio.waveform.shape[-1] / audio.rate
            notes |= dict.fromkeys(audio.notes)
            levels.append({**asdict(audio.level), "gain_db": audio.gain_db})
            made_with = made_with or audio.made_with
            known = None if audio.known is None else audio.known.document()
            for stage, seconds in audio.timings.items():
                timings[stage] = timings.get(stage, 0.0) + seconds
    except Exception as error:  # one bad file out of many must not end the others
        for name in outputs:  # half of the results would pass for all of them
            Path(name).unlink(missing_ok=True)
        return Result(str(path), "failed", error=failure(path, error))
    return Result(
        str(path),
        "done",
        tuple(outputs),
        length,
        timings=timings,
        notes=tuple(notes),
        levels=tuple(levels),
        made_with=made_with,
        known=known,
    )
