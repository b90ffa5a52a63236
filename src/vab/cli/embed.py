"""vab embed, vab classify."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from vab.cli.options import Device, Devices, Files, Model, Precision, WeightsPath
from vab.cli.output import log, print_result, table
from vab.errors import SettingError
from vab.utils import count_of
from vab.utils.world import check_alone

if TYPE_CHECKING:
    from vab.inference.embedder import Embedder
    from vab.inference.embeddings import Embedded
    from vab.utils.device import Chosen
    from vab.utils.processes import Worker

R = TypeVar("R")
Kind = Literal["audio", "video", "both"]


@dataclass(frozen=True)
class _Source:
    """The model of a call, for each of its processes to load."""

    model: str | None
    precision: Chosen
    codec_path: str | None
    vision_path: str | None

    def load(self, worker: Worker) -> Embedder:
        from vab.inference.embedder import Embedder

        paths = {"codec_path": self.codec_path, "vision_path": self.vision_path}
        return Embedder.from_pretrained(self.model, device=worker.device, dtype=self.precision, **paths)


def embed(
    inputs: Files,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    model: Model = None,
    precision: Precision = "float32",
    device: Device = "auto",
    devices: Devices = 1,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    json: bool = False,
) -> int:
    """Embed sounds, videos and images in one space: an audio vector and a video vector for each file.

    FILE.npz or FILE.parquet holds id (the path), label (the name of the file's folder), audio [N, D] and
    video [N, D], with NaN rows where a stream is absent, and the windows of each file. Vectors have unit
    length; the vector of a long file is the mean over its windows.

    Args:
        inputs: sounds, videos, images, folders (searched recursively), quoted glob patterns, or CSV files.
        out: the file to write, .npz or .parquet.
        model: a name (see vab models), a model directory or a Hub id. Default: the bundled vab-tiny.
        precision: what the networks and the image encoder compute in; auto is bfloat16 where that is measured
            to be fast, tf32 needs an NVIDIA GPU. Results in different ones are close, not equal.
        device: the device to compute on.
        devices: number of GPUs to share the inputs out to, or of processes on a CPU.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        json: print one JSON document to standard output.
    """
    check_alone()
    if out.suffix not in (".npz", ".parquet"):
        raise SettingError(f"{out}: embeddings are written as .npz or .parquet")
    if not out.parent.is_dir():
        raise SettingError(f"{out}: there is no folder {out.parent}")
    files, failed = _files(inputs)
    from vab.inference.embeddings import collect, write_embeddings
    from vab.utils.device import pick_precision
    from vab.utils.processes import devices_for, in_order

    places = devices_for(devices, device)
    chosen = pick_precision(precision, places[0])  # once, for all processes
    found = in_order(_embed, _Source(model, chosen, codec_path, vision_path), files, places)
    done: list[Path] = []
    embeddings: list[Embedded] = []
    dim = 0
    for path, (result, length) in _watched(files, found, "embed"):
        dim = length
        if isinstance(result, str):
            failed[str(path)] = result
            log(result)
        else:
            done.append(path)
            embeddings.append(result)
    if not done:
        raise SettingError("none of the inputs could be embedded")
    labels = [path.absolute().parent.name for path in done]
    collected = collect([str(path) for path in done], embeddings, labels, dim)
    write_embeddings(out, replace(collected, precision=chosen.precision))
    document = {
        "embeddings": str(out),
        "dim": dim,
        **chosen.document(),
        "files": [
            {
                "id": str(path),
                "windows": len(one.starts),
                "audio": one.audio is not None,
                "video": one.video is not None,
            }
            for path, one in zip(done, embeddings, strict=True)
        ],
        "failed": failed,
    }
    print_result(
        document, f"{out}: {count_of(len(done), 'file')}, {dim} numbers each, {len(failed)} failed", json
    )
    return 1 if failed else 0


def classify(
    inputs: Files,
    by: Annotated[Kind | None, tyro.conf.arg(metavar="audio|video|both")] = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], metavar="N")] = 5,
    model: Model = None,
    precision: Precision = "float32",
    device: Device = "auto",
    devices: Devices = 1,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    json: bool = False,
) -> int:
    """Classify sounds, videos and images: labels with probabilities.

    Args:
        inputs: sounds, videos, images, folders (searched recursively), quoted glob patterns, or CSV files.
        by: classify by the audio, the video or both. Default: every stream a file has.
        k: the number of most probable labels to show.
        model: a name (see vab models), a model directory or a Hub id. Default: the bundled vab-tiny.
        precision: what the networks and the image encoder compute in; auto is bfloat16 where that is measured
            to be fast, tf32 needs an NVIDIA GPU. Results in different ones are close, not equal.
        device: the device to compute on.
        devices: number of GPUs to share the inputs out to, or of processes on a CPU.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        json: print one JSON document to standard output, with every label.
    """
    check_alone()
    if k < 1:
        raise SettingError("-k must be 1 or more")
    files, failed = _files(inputs)

    from vab.utils.device import pick_precision
    from vab.utils.processes import devices_for, in_order

    places = devices_for(devices, device)
    chosen = pick_precision(precision, places[0])
    source = _Source(model, chosen, codec_path, vision_path)
    found = in_order(_classify, (source, by), files, places)
    done: list[dict] = []
    for path, result in _watched(files, found, "classify"):
        if isinstance(result, str):
            failed[str(path)] = result
            log(result)
        else:
            done.append(result)
    # The JSON document has every label, the table the k most probable ones.
    rows = []
    for one in done:
        best = list(one["labels"].items())[:k]
        text = ", ".join(f"{name} {share:.2f}" for name, share in best)
        if one["known"] and not one["known"]["is_known"]:
            text += " (may be none of these: unlike all that was learned)"
        rows.append((one["file"], one["by"], text))
    document = {"files": done, "failed": failed, **chosen.document()}
    print_result(document, table(("file", "by", "labels"), rows), json)
    return 1 if failed else 0


def _files(inputs: tuple[str, ...]) -> tuple[list[Path], dict[str, str]]:
    """Expand the inputs to readable files, and log those that cannot be used."""
    from vab.media.inputs import AUDIO, IMAGES, VIDEOS, expand

    found = expand(inputs, kinds=AUDIO + VIDEOS + IMAGES)
    for line in (*found.notes, *found.faults.values()):
        log(line)
    return found.paths, found.faults


def _embed(worker: Worker, source: _Source, files: Sequence[Path]) -> Iterator[tuple[Embedded | str, int]]:
    """The vectors of each file, or why there are none, and how many numbers a vector has."""
    embedder = source.load(worker)
    dim = embedder.contrastive.trunk.config.hidden_dim
    for _, result in embedder.embed_files(files):
        yield result, dim


def _classify(
    worker: Worker, common: tuple[_Source, Kind | None], files: Sequence[Path]
) -> Iterator[dict[str, Any] | str]:
    """The classes of each file as JSON has them, or why there are none."""
    source, by = common
    embedder = source.load(worker)
    classes = embedder.classifier[1].classes
    for path, result in embedder.classify_files(files, by):
        if isinstance(result, str):
            yield result
            continue
        chosen, scores, known = result
        labels = {classes[n]: round(float(scores[n]), 4) for n in scores.argsort()[::-1]}
        judged = None if known is None else known.document()
        yield {"file": str(path), "by": chosen, "labels": labels, "known": judged}


def _watched(
    files: Sequence[Path], results: Generator[R, None, None], stage: str
) -> Iterator[tuple[Path, R]]:
    """Yield each file with its result while a progress bar follows them."""
    from vab.cli.progress import file_progress

    with file_progress() as watch, closing(results):
        for done, (path, result) in enumerate(zip(files, results, strict=True)):
            watch(done, len(files), path, stage, done + 1, len(files))
            yield path, result
