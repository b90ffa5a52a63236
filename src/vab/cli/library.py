"""vab library, vab search."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vab.cli.options import Device, Files, Model, Precision, WeightsPath, load_embedder
from vab.cli.output import log, print_result, printable, table
from vab.errors import SettingError
from vab.utils import count_of

if TYPE_CHECKING:
    import torch

    from vab.inference.embeddings import Embedded, Kind
    from vab.library.library import Hit, Library
    from vab.utils.device import Chosen

Database = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DB")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Seconds = Annotated[float | None, tyro.conf.arg(metavar="SECONDS")]


def add(
    db: Database,
    inputs: Files,
    model: Model = None,
    precision: Precision | None = None,
    device: Device = "auto",
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    json: bool = False,
) -> int:
    """Add sounds, videos and images to a library for vab search; the folder is made if it is new.

    Run again, it embeds only files that are new or have changed (path, size, time); interrupted at any
    moment, it resumes from there. The label of a file is the name of its folder. From 100,000 vectors on, an
    approximate index is built and its recall is reported.

    Args:
        db: the folder of the library.
        inputs: sounds, videos, images, folders (searched recursively), quoted glob patterns, or CSV files
            with a column "video".
        model: a name (see vab models), a model directory or a Hub id. Default: the library's own; the
            bundled vab-tiny for a new one.
        precision: what the network and the image encoder compute in; auto is bfloat16 where that is measured
            to be fast. Default: the library's own; float32 for a new one. A library holds one alone.
        device: the device to compute on.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        json: print one JSON document to standard output.
    """
    from vab.cli.progress import file_progress
    from vab.library.library import Library
    from vab.media.inputs import AUDIO, IMAGES, VIDEOS, expand

    found = expand(inputs, leave_out=db, kinds=AUDIO + VIDEOS + IMAGES)
    library = Library.create(db)
    source = _source(library, model)
    chosen = _precision(library, precision, device)
    network = load_embedder(source or None, device, chosen, codec_path, vision_path)
    failed = found.faults
    counts = {"added": 0, "replaced": 0, "unchanged": 0, "failed": len(failed)}
    for line in (*found.notes, *failed.values()):
        log(line)
    with file_progress() as watch:
        results = library.add(
            found.paths, network.embed_files, network.fingerprint(), source, watch, chosen.precision
        )
        for result in results:
            counts[result.status] += 1
            if result.error is not None:
                failed[result.path] = result.error
                log(result.error)
    document = {"library": str(db), **counts, "failed_files": failed, **_state(library)}
    summary = ", ".join(f"{number} {status}" for status, number in counts.items())
    print_result(document, "\n".join([f"{db}: {summary}", *_lines(document)]), json)
    return 1 if failed else 0


def prune(db: Database, dry_run: bool = False, json: bool = False) -> int:
    """Remove files that are no longer on disk from a library.

    Args:
        db: the folder of the library.
        dry_run: only list them.
        json: print one JSON document to standard output.
    """
    from vab.library.library import Library

    library = Library.open(db)
    gone = library.prune(dry_run)
    document = {"library": str(db), "removed": [] if dry_run else gone, "gone": gone, **_state(library)}
    verb = "would be taken out" if dry_run else "taken out"
    lines = [printable(path) for path in gone]
    print_result(
        document, "\n".join([*lines, f"{db}: {count_of(len(gone), 'file')} {verb}", *_lines(document)]), json
    )
    return 0


def show(db: Database, json: bool = False) -> int:
    """Describe the contents of a library: files, windows, labels, the model, the indexes.

    Args:
        db: the folder of the library.
        json: print one JSON document to standard output.
    """
    from vab.library.library import Library

    document = {"library": str(db), **_state(Library.open(db))}
    rows = [(label or "(none)", str(files)) for label, files in document["labels"].items()]
    lines = _lines(document)
    print_result(document, "\n".join([*lines, table(("label", "files"), rows)] if rows else lines), json)
    return 0


def search(
    db: Database,
    video: File = None,
    audio: File = None,
    label: Annotated[str | None, tyro.conf.arg(metavar="LABEL")] = None,
    words: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], metavar="N")] = 10,
    kind: Annotated[Literal["audio", "video"] | None, tyro.conf.arg(metavar="audio|video")] = None,
    under: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    longer_than: Seconds = None,
    shorter_than: Seconds = None,
    windows: bool = False,
    model: Model = None,
    precision: Precision | None = None,
    device: Device = "auto",
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    json: bool = False,
) -> int:
    """Search a library for files that match a sound, a video or image, a label, or words.

    Each hit is a file of the library with its best window in seconds, the stream that was compared, and the
    score: the cosine similarity in the model's own embedding, -1 to 1. It says how near the two are to the
    model, not how good the sound is. The query is the mean embedding of the windows of a file.

    Args:
        db: the folder of the library, made by vab library add.
        video: a video or image to search by.
        audio: a sound to search by, or a video whose audio is used.
        label: only files whose label has these words, in upper or lower case: dog also finds "Dog barking",
            but not "hotdog". Alone, it lists them.
        words: files whose label, name or folder has all of these words, the best first; a plural is found as
            its singular, DogBark_01.wav by "dogs bark".
        k: the largest number of hits.
        kind: the stream of the library to compare with. Default: audio; with --label alone, both.
        under: only files in this folder, at any depth.
        longer_than: only files that last longer than this.
        shorter_than: only files that last less than this.
        windows: list every matching window, not only the best one of each file.
        model: the model that made the library, if it is no longer where it was.
        precision: what the query is computed in. Default: what the library was; float32 in place of a TF32
            that is not there.
        device: the device to compute on.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        json: print one JSON document to standard output.
    """
    if video is None and audio is None and label is None and words is None:
        raise SettingError("what to search for? give one of --video, --audio, --label, --words")
    if words is not None and (video is not None or audio is not None or windows):
        raise SettingError("--words searches by itself: leave out --video, --audio and --windows")
    if video is not None and audio is not None:
        raise SettingError("give --video or --audio, not both")
    if k < 1:
        raise SettingError(f"-k must be 1 or more, not {k}")
    for name, value in (("longer-than", longer_than), ("shorter-than", shorter_than)):
        if value is not None and not 0 <= value < float("inf"):
            raise SettingError(f"--{name} must be 0 or more seconds, not {value}")

    from vab.library.library import Library
    from vab.library.table import Filters

    library = Library.open(db)
    filters = Filters(under, label, longer_than, shorter_than)
    filters.sql()  # a filter that makes no sense is told before anything is loaded
    file = video or audio
    vector: Any = None
    stream = kind
    if file is not None:
        chosen = query_precision(library, precision, device)
        network = load_embedder(_source(library, model) or None, device, chosen, codec_path, vision_path)
        library.check(network.fingerprint())
        vector = _query(network.embed_file(file), file, "video" if video else "audio")
        stream = kind or "audio"
    # Without a query file words decide, or the label alone, and hits come by path.
    if words is not None:
        hits = library.words(words, kind, k, filters)
    else:
        hits = library.search(vector, stream, k, filters, windows)
    query = {"video": _text(video), "audio": _text(audio), "label": label, "words": words, "kind": stream}
    document = {"library": str(db), "query": query, "hits": [asdict(hit) for hit in hits]}
    print_result(document, _table(hits) if hits else f"{db}: nothing found", json)
    return 0


def _query(embedded: Embedded, file: Path, kind: Kind) -> Any:
    """Mean embedding [D] of a query file; ``SettingError`` if it does not have that stream."""
    vector = embedded.mean(kind)
    if vector is None:
        raise SettingError(f"{file}: has no {'picture' if kind == 'video' else 'sound'} to search by")
    return vector


def _source(library: Library, model: str | None) -> str:
    """Name of the model: as given, else as recorded in the library; "" is the bundled one."""
    if model is None:
        return library.meta.source if library.meta is not None else ""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def _precision(library: Library, precision: Precision | None, device: Device) -> Chosen:
    """The precision to add in: as given, else the library's own; of a new one float32."""
    from vab.utils.device import pick_precision

    if precision is not None or library.meta is None:
        return pick_precision(precision, device)
    if not _has_tf32(device) and library.meta.precision == "tf32":
        raise SettingError(
            f"{library.directory} was made in tf32, which only NVIDIA's GPUs have: add to it on one, or use "
            "another folder; it can be searched anywhere"
        )
    return pick_precision(library.meta.precision, device)


def query_precision(library: Library, precision: Precision | None, device: Device | torch.device) -> Chosen:
    """The precision of a query: as given, else the library's; float32 where that is TF32 and not there."""
    from vab.utils.device import pick_precision

    if precision is not None or library.meta is None:
        return pick_precision(precision, device)
    if library.meta.precision == "tf32" and not _has_tf32(device):
        log(f"{library.directory} was made in tf32, which this device has not: the query is in float32")
        return pick_precision("float32", device)
    return pick_precision(library.meta.precision, device)


def _has_tf32(device: Device | torch.device) -> bool:
    from vab.utils.device import pick_device

    return pick_device(device).type == "cuda"


def _state(library: Library) -> dict[str, Any]:
    meta = None if library.meta is None else asdict(library.meta)
    return {"model": None, "dim": None, "source": "", "indexes": {}, **(meta or {}), **library.counts()}


def _lines(state: dict[str, Any]) -> list[str]:
    """Lines that describe a library for people."""
    files, windows = count_of(state["files"], "file"), count_of(state["windows"], "window")
    lines = [
        f"{files} of {state['seconds']:.0f} s in all: {windows}, "
        f"{state['audio']} with sound, {state['video']} with a picture",
    ]
    if state["model"] is not None:
        source = state["source"] or "the bundled model"
        lines.append(f"made with {source} ({state['model'][:12]}), {state['dim']} numbers a vector")
    for kind, index in state["indexes"].items():
        effort = f"{index['probes']} of {count_of(index['parts'], 'part')} a query"
        lines.append(f"index of {kind}: recall@10 {index['recall']:.3f}, {effort}")
    return lines


def _table(hits: list[Hit]) -> str:
    rows = [
        (
            "" if hit.score is None else f"{hit.score:.3f}",
            f"{hit.start:.1f}-{hit.end:.1f}",
            hit.stream,
            hit.label,
            hit.path,
        )
        for hit in hits
    ]
    return table(("score", "seconds", "stream", "label", "file"), rows)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
