"""vab embed, vab classify."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vab.cli.options import Device, Files, Model, Place, load_embedder
from vab.cli.output import show, table, tell
from vab.errors import SettingError


def embed(
    inputs: Files,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    model: Model = None,
    device: Device = "auto",
    codec_path: Place = None,
    vision_path: Place = None,
    json: bool = False,
) -> int:
    """Bring sounds, videos and images into one space: a vector for sound and a vector for picture of each.

    FILE.npz or FILE.parquet holds id (the path), label (the name of the file's folder), audio [N, D] and
    video [N, D], with NaN rows where a stream is absent, and the windows of each file. Vectors have length
    one; that of a long file is the mean of its windows.

    Args:
        inputs: sounds, videos, images, folders (all in them and below), quoted patterns, or CSV lists.
        out: the file to write, .npz or .parquet.
        model: a name (see vab models), a model directory or a Hub id. Left out: the bundled vab-tiny.
        device: where to compute.
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        vision_path: file, folder or Hub id of the image encoder's weights, if not the usual ones.
        json: one JSON document on standard output.
    """
    if out.suffix not in (".npz", ".parquet"):
        raise SettingError(f"{out}: embeddings are written as .npz or .parquet")
    if not out.parent.is_dir():
        raise SettingError(f"{out}: there is no folder {out.parent}")
    files, failed = _files(inputs)
    from vab.inference.embeddings import collect, write_embeddings

    source = load_embedder(model, device, codec_path, vision_path)
    done, found = [], []
    dim = source.contrastive.trunk.config.hidden_dim
    for path, result in _watched(source.embed_files(files), len(files), "embed"):
        if isinstance(result, str):
            failed[str(path)] = result
            tell(result)
        else:
            done.append(path)
            found.append(result)
    if not done:
        raise SettingError("none of the inputs could be embedded")
    labels = [path.absolute().parent.name for path in done]
    write_embeddings(out, collect([str(path) for path in done], found, labels, dim))
    document = {
        "embeddings": str(out),
        "dim": dim,
        "files": [
            {
                "id": str(path),
                "windows": len(one.starts),
                "audio": one.audio is not None,
                "video": one.video is not None,
            }
            for path, one in zip(done, found, strict=True)
        ],
        "failed": failed,
    }
    show(document, f"{out}: {len(done)} files, {dim} numbers each, {len(failed)} failed", json)
    return 1 if failed else 0


def classify(
    inputs: Files,
    by: Annotated[Literal["audio", "video", "both"] | None, tyro.conf.arg(metavar="audio|video|both")] = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], metavar="N")] = 5,
    model: Model = None,
    device: Device = "auto",
    codec_path: Place = None,
    vision_path: Place = None,
    json: bool = False,
) -> int:
    """Say what sounds, videos and images are: labels with probabilities.

    Args:
        inputs: sounds, videos, images, folders (all in them and below), quoted patterns, or CSV lists.
        by: go by the sound, by the picture or by both. Left out: all that a file has.
        k: how many of the likeliest labels to show.
        model: a name (see vab models), a model directory or a Hub id. Left out: the bundled vab-tiny.
        device: where to compute.
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        vision_path: file, folder or Hub id of the image encoder's weights, if not the usual ones.
        json: one JSON document on standard output, with every label.
    """
    if k < 1:
        raise SettingError("-k must be 1 or more")
    files, failed = _files(inputs)

    source = load_embedder(model, device, codec_path, vision_path)
    done: list[dict] = []
    classes = source.classifier[1].classes
    for path, result in _watched(source.classify_files(files, by), len(files), "classify"):
        if isinstance(result, str):
            failed[str(path)] = result
            tell(result)
            continue
        chosen, scores = result
        order = scores.argsort()[::-1]
        labels = {classes[n]: round(float(scores[n]), 4) for n in order}
        done.append({"file": str(path), "by": chosen, "labels": labels})
    rows = []
    for one in done:
        best = list(one["labels"].items())[:k]
        rows.append((one["file"], one["by"], ", ".join(f"{name} {share:.2f}" for name, share in best)))
    show({"files": done, "failed": failed}, table(("file", "by", "labels"), rows), json)
    return 1 if failed else 0


def _files(inputs: tuple[str, ...]) -> tuple[list[Path], dict[str, str]]:
    """The files to work on, and those that cannot be used, which are told."""
    from vab.media.inputs import AUDIO, IMAGES, VIDEOS, expand

    entries = expand(inputs, kinds=AUDIO + VIDEOS + IMAGES)
    failed = {str(path): f"{path}: {reason}" for path, reason in entries if reason is not None}
    for reason in failed.values():
        tell(reason)
    return [path for path, reason in entries if reason is None], failed


def _watched(items: Iterator[tuple[Path, Any]], total: int, stage: str) -> Iterator[tuple[Path, Any]]:
    """The same items, with a progress bar for people."""
    from vab.cli.progress import file_progress

    with file_progress() as watch:
        for done, (path, result) in enumerate(items):
            watch(done, total, path, stage, done + 1, total)
            yield path, result
