"""Many files in, many files out: names of results, what is skipped, what failed, and how long it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vab.errors import SettingError, failure
from vab.media.inputs import expand
from vab.utils.progress import Progress

if TYPE_CHECKING:
    from vab.inference.pipeline import VABPipeline

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class Settings:
    """What to generate, and with what."""

    model: str | None = None  # None is the bundled one
    seed: int = 0
    steps: int | None = None  # None: the model's own, as for the next three
    guidance: float | None = None
    temperature: float | None = None
    rerank: int | None = None
    samples: int = 1
    keep: tuple[tuple[float, float], ...] = ()  # spans in seconds; the end may be infinite
    skip_existing: bool = False
    device: str = "auto"
    codec_path: str | None = None
    vision_path: str | None = None


@dataclass(frozen=True)
class Result:
    """What became of one input."""

    input: str
    status: Status
    outputs: tuple[str, ...] = ()
    seconds: float | None = None  # length of the sound
    error: str | None = None
    timings: dict[str, float] | None = None  # seconds of load, decode_video, features, sampling, codec, mux


def generate_files(
    names: Iterable[str | Path], out: str | Path, settings: Settings, show: Progress = lambda *_: None
) -> Iterator[Result]:
    """Sounds for all that ``names`` stand for (``inputs.expand``), one result per file as it is done.

    Sample n of ``dog.mp4`` is ``out/dog.wav`` and ``out/dog.mp4``, later ones ``dog_2``, ``dog_3`` ... An
    image gives no mp4. If two inputs would write the same name, the later one fails; so does one whose
    result would take the place of an input. The model is loaded when the first file needs it.
    Raises ``SettingError`` or ``NoInputs`` for a call that makes no sense, ``OSError`` if ``out`` is no
    folder, and as ``VABPipeline.from_pretrained``; what is wrong with one file is that file's result.
    """
    out = Path(out)
    check(settings)
    entries = expand(names, leave_out=out)
    out.mkdir(parents=True, exist_ok=True)
    sources = {path.resolve(): path for path, reason in entries if reason is None}
    owners: dict[Path, Path] = {}
    pipe: VABPipeline | None = None
    for index, (path, reason) in enumerate(entries):
        if reason is None:
            reason = _claim(path, out, settings.samples, owners, sources)
        if reason is not None:
            yield Result(str(path), "failed", error=f"{path}: {reason}")
            continue
        if settings.skip_existing and (existing := _finished(path, out, settings.samples)):
            yield Result(str(path), "skipped", tuple(map(str, existing)))
            continue
        load = 0.0
        if pipe is None:
            show(index, len(entries), path, "load", 0, 1)
            begin = time.perf_counter()
            pipe = _load(settings)
            load = time.perf_counter() - begin

        def report(stage: str, done: int, total: int, n: int = index, file: Path = path) -> None:
            show(n, len(entries), file, stage, done, total)

        yield _one(pipe, path, out, settings, load, report)


def check(settings: Settings) -> None:
    """``SettingError`` for values that make no sense, before anything is loaded."""
    values = asdict(settings)
    for name, least in (("samples", 1), ("rerank", 1), ("steps", 1), ("seed", 0), ("temperature", 0)):
        if values[name] is not None and not values[name] >= least:
            raise SettingError(f"{name} must be {least} or more, not {values[name]}")
    for name in ("guidance", "temperature"):
        if values[name] is not None and not math.isfinite(values[name]):
            raise SettingError(f"{name} must be a finite number, not {values[name]}")
    for start, stop in settings.keep:
        if not 0 <= start < stop:
            raise SettingError(f"a span to keep goes from a time to a later one, not from {start} to {stop}")


def summary(results: Iterable[Result], settings: Settings) -> dict[str, Any]:
    """All results as one JSON document."""
    rows = list(results)
    counts = {status: sum(row.status == status for row in rows) for status in ("done", "skipped", "failed")}
    keep = [[start, stop if math.isfinite(stop) else None] for start, stop in settings.keep]
    return {
        "settings": asdict(settings) | {"keep": keep},
        **counts,
        "results": [asdict(row) for row in rows],
    }


def _names(path: Path, out: Path, samples: int) -> list[Path]:
    """Where the sounds of one input go, one wav per sample."""
    return [out / f"{path.stem}{f'_{n}' if n > 1 else ''}.wav" for n in range(1, samples + 1)]


def _claim(
    path: Path, out: Path, samples: int, owners: dict[Path, Path], sources: dict[Path, Path]
) -> str | None:
    """Take the names of one input's results; the reason if another one has them."""
    names = [name for wav in _names(path, out, samples) for name in (wav, wav.with_suffix(".mp4"))]
    for name in names:
        if name in owners:
            return f"its result {name} would overwrite that of {owners[name]}; give it another folder with -o"
        if name.resolve() in sources:
            return f"its result {name} would overwrite the input of that name; choose another folder with -o"
    owners.update(dict.fromkeys(names, path))
    return None


def _finished(path: Path, out: Path, samples: int) -> list[Path]:
    """All results of one input if they exist; files appear under their names only when complete."""
    from vab.media.container import MediaError
    from vab.media.file import MediaFile

    sounds = _names(path, out, samples)
    videos = [name.with_suffix(".mp4") for name in sounds]
    if not all(name.is_file() for name in sounds):
        return []
    if all(name.is_file() for name in videos):
        return [*sounds, *videos]
    try:
        with MediaFile(path) as file:
            return sounds if file.kind == "image" else []
    except MediaError:
        return []


def _load(settings: Settings) -> VABPipeline:
    from vab.inference.pipeline import VABPipeline

    pipe = VABPipeline.from_pretrained(
        settings.model,
        device=settings.device,
        codec_path=settings.codec_path,
        vision_path=settings.vision_path,
    )
    if (settings.rerank or 1) > 1:
        _ = pipe.embedder.contrastive  # a model without embeddings says so before the first file
    return pipe


def _one(
    pipe: VABPipeline,
    path: Path,
    out: Path,
    settings: Settings,
    load: float,
    report: Callable[[str, int, int], None],
) -> Result:
    """Generate for one file and write; any fault of it becomes its result."""
    from vab.media.file import MediaFile
    from vab.media.reader import write_wav
    from vab.sampling.parallel import decode_settings

    decode = decode_settings(
        pipe.config.decode, settings.steps, settings.guidance, settings.temperature, settings.rerank
    )
    timings = {"load": load, "mux": 0.0}
    outputs: list[str] = []
    length = 0.0
    try:
        with MediaFile(path) as file:
            sounds = pipe.generate_many(
                file, settings.samples, seed=settings.seed, decode=decode, keep=settings.keep, progress=report
            )
            for name, audio in zip(_names(path, out, settings.samples), sounds, strict=True):
                # The sound alone first: a picture that mp4 cannot hold must not cost it.
                begin = time.perf_counter()
                write_wav(name, audio.waveform, audio.rate)
                outputs.append(str(name))
                if not file.is_image:
                    file.mux(audio.waveform, audio.rate, name.with_suffix(".mp4"))
                    outputs.append(str(name.with_suffix(".mp4")))
                timings["mux"] += time.perf_counter() - begin
                length = len(audio.waveform) / audio.rate
                for stage, seconds in audio.timings.items():
                    timings[stage] = timings.get(stage, 0.0) + seconds
    except Exception as error:  # one bad file out of many must not end the others
        return Result(str(path), "failed", tuple(outputs), error=failure(path, error))
    return Result(str(path), "done", tuple(outputs), length, timings=timings)
