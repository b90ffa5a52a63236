"""Resolve a model's name, folder or Hub id to a model directory, and list those at hand. Imports no torch.

A model directory holds ``config.json`` (a ``Preset`` as nested values) and ``model.safetensors``; that of a
model on the small codec may also hold ``codec.json`` and ``codec.safetensors``. Networks fine-tuned from it
may stand in the folders ``contrastive`` and ``classes``, a second stage (coarse to fine) in ``fine``. What it
rehearses while it is taught more is in ``rehearsal.safetensors``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vab.config import Preset, check_preset, from_dict
from vab.errors import MAX_LINE_LENGTH, VABError, failure, first_line
from vab.presets import PRESETS
from vab.utils.files import DamagedError, check_tensors, read_json, tensors_checksum
from vab.utils.provenance import sha256

CONFIG, MODEL, CODEC = "config.json", "model.safetensors", "codec.json"
KNOWN = "known.safetensors"  # beside a classifier: by which it tells what it does not know
REHEARSAL = "rehearsal.safetensors"  # what it goes on hearing while it is taught more
FOLDERS = {"contrastive": "contrastive", "classification": "classes"}  # objective of fine-tuning -> folder
FINE = "fine"  # folder of a second stage
ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = "vab-tiny"
_CODEC_FILES = [CODEC, "codec.safetensors"]
_FILES = [CONFIG, MODEL, "motion.safetensors", "motion.json", *_CODEC_FILES]  # vab.timing.MOTION_FILES
_FILES += [f"{folder}/{file}" for folder in (*FOLDERS.values(), FINE) for file in (CONFIG, MODEL)]
_FILES += [f"{FOLDERS['classification']}/{KNOWN}", KNOWN]
_FILES += [REHEARSAL]
_WEIGHTS = (".json", ".safetensors", ".bin", ".pt", ".pth", ".th")  # endings of codecs and image encoders
# What ``snapshot_download`` may be told beside the name.
HUB_KEYWORDS = ["cache_dir", "endpoint", "etag_timeout", "force_download", "headers", "library_name"]
HUB_KEYWORDS += ["library_version", "local_dir", "local_files_only", "max_workers", "revision", "token"]
HUB_KEYWORDS += ["tqdm_class", "user_agent"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ModelError(VABError):
    """A model that cannot be loaded or cannot do what is asked. The message is one line, shown as is."""


@dataclass(frozen=True)
class KnownModel:
    """A model by name, and where its files are."""

    name: str
    state: str  # bundled, local, cached (from the Hub), missing, or damaged
    path: Path | None
    bytes: int
    note: str  # what it is, or what to do to have it
    classes: tuple[str, ...] = ()  # what its classifier tells apart
    pictured: tuple[str, ...] = ()  # those of them that it learned from pictures too, as far as is known


def find_model(source: str | Path | None = None, **hub: Any) -> Path:
    """The directory of a model: the bundled one (None or its name), a folder, or a Hub id (downloaded).

    ``hub`` goes to ``huggingface_hub.snapshot_download`` (revision, token, cache_dir ...).
    ``ModelError`` says why there is none and what to do.
    """
    name = BUNDLED if source is None else str(source)
    path = Path(name).expanduser()
    # 1. A folder comes first, whatever its name.
    if path.is_dir():
        missing = [file for file in (CONFIG, MODEL) if not (path / file).is_file()]
        if missing:
            raise ModelError(f"{path}: is no model directory, it has no {' and no '.join(missing)}")
        return path
    # 2. The bundled model, and presets whose weights are not published.
    if name == BUNDLED:
        folder = ASSETS / BUNDLED
        if not is_model(folder):
            raise ModelError(
                f"the model {BUNDLED} is not in this installation ({folder}); "
                "install the released package, or train it with recipes/vab_tiny.sh"
            )
        return folder
    if name in PRESETS:
        raise ModelError(
            f"{name}: nobody has published weights of it; train it with the commands in recipes/ "
            "and pass the run's folder as the model"
        )
    # 3. What remains can only be a Hub id.
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{name}: no model of that name, and no such folder; `vab models` shows what there is"
        )
    return _download(name, hub)


def _download(name: str, hub: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    # Only files of a model directory: never code, never other weights of the repository.
    try:
        folder = Path(snapshot_download(name, allow_patterns=_FILES, **hub))
    except Exception as error:  # the Hub, the network and the disk each raise their own kinds
        raise ModelError(
            f"{name}: is no folder here, and cannot be fetched from the Hub ({first_line(error)})"
        ) from error
    if not is_model(folder):
        raise ModelError(f"{name}: this Hub repository has no {CONFIG} and {MODEL}, so it is no VAB model")
    return folder


def is_model(folder: Path) -> bool:
    """True for a model directory whose configuration can be read."""
    try:
        read_config(folder)
    except ModelError:
        return False
    return (folder / MODEL).is_file()


def model_files(folder: Path) -> list[str]:
    """The files of a model directory that make the model, by their paths inside it."""
    return [file for file in _FILES if (folder / file).is_file()]


def codec_source(folder: Path, codec_path: str | Path | None = None) -> str | Path | None:
    """Where to load the codec from: ``codec_path`` if it is named, else beside the weights, else None."""
    if codec_path is None and (folder / CODEC).is_file():
        return folder
    return codec_path


def folder_fingerprint(
    folder: Path, codec_path: str | Path | None = None, vision_path: str | Path | None = None
) -> str:
    """Hash, 64 hex digits, of all that a model is made of: the same wherever the files lie.

    That is each ``config.json`` and the checksums of the weights, which are not loaded: of the directory, its
    fine-tuned networks and its second stage, of the codec and of the image encoder where they have files.
    ``ModelError`` if a file cannot be read.
    """
    # The small codec is that of the directory, or else the one of the package.
    codec = codec_source(folder, codec_path)
    if codec is None and read_config(folder).model.codec == "tiny":
        codec = ASSETS / BUNDLED
    try:
        # No sound depends on what a model rehearses.
        networks = _contents(folder, [file for file in _FILES if file not in (*_CODEC_FILES, REHEARSAL)])
        return sha256(*networks, "codec", *_contents(codec, _CODEC_FILES), "vision", *_contents(vision_path))
    except DamagedError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({first_line(error)})") from error


def _contents(source: str | Path | None, names: Sequence[str] = ()) -> Iterator[str]:
    """Yield names and hashes of the files of a folder, ``names`` or all that may be weights; of one file."""
    path = Path(source or "").expanduser()
    if source is None or not path.exists():  # a Hub id stands for itself
        yield str(source)
    elif path.is_file():
        yield _content_hash(path)
    else:
        files = [path / name for name in names if (path / name).is_file()]
        for file in files or sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS):
            yield file.relative_to(path).as_posix()
            yield _content_hash(file)


def _content_hash(path: Path) -> str:
    if path.suffix == ".safetensors":
        return tensors_checksum(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_config(folder: Path) -> Preset:
    """The preset in a model directory's ``config.json``; ``ModelError`` if it is not one."""
    return read_preset(folder / CONFIG)


def read_preset(path: Path) -> Preset:
    """The preset in a file; ``ModelError`` if it is not one."""
    try:
        preset = from_dict(Preset, read_json(path))
        check_preset(preset)
    except OSError as error:
        raise ModelError(f"{path}: {first_line(error)}") from error
    except ValueError as error:
        raise ModelError(f"{path}: is no configuration of a VAB model ({error})") from error
    return preset


def known_models(folders: Iterable[Path] = ()) -> list[KnownModel]:
    """The presets, then model directories in ``folders`` (up to two levels down), then the Hub's cache."""
    models = []
    # 1. Presets. Fine-tuned ones have no directory of their own, but a folder in that of their model.
    for preset in PRESETS.values():
        if preset.train.objective in FOLDERS:
            continue
        folder = ASSETS / preset.name
        if is_model(folder):
            models.append(_known(preset.name, "bundled", folder, preset.note))
        else:
            why = "not in this installation" if preset.name == BUNDLED else "weights not published"
            note = f"{why}: train it with the commands in recipes/"
            models.append(KnownModel(preset.name, "missing", None, 0, note))
    # 2. Model directories on disk.
    for folder in folders:
        # the folder itself, its models, and the folders of models fine-tuned from those
        for pattern in (CONFIG, f"*/{CONFIG}", f"*/*/{CONFIG}"):
            for path in sorted(folder.glob(pattern)):
                models += _local(path.parent)
    # 3. Downloads.
    for repo, snapshot in hub_cache():
        if is_model(snapshot):
            models.append(_known(repo, "cached", snapshot, read_config(snapshot).note))
    return models


def _local(folder: Path) -> Iterator[KnownModel]:
    """Yield the model of a folder, or why it is none although it has weights."""
    try:
        if (folder / MODEL).is_file():
            yield _known(str(folder), "local", folder, read_config(folder).note)
    except (ModelError, OSError) as error:
        yield KnownModel(str(folder), "damaged", folder, 0, failure(folder, error))


def _known(name: str, state: str, folder: Path, note: str) -> KnownModel:
    size = sum((folder / file).stat().st_size for file in _FILES if (folder / file).is_file())
    own = folder / FOLDERS["classification"]
    source = own if is_model(own) else folder
    classes = read_config(source).classes
    # Notes and names are anybody's: short lines, without codes that a terminal would follow.
    pictured = _pictured(source / KNOWN, classes)
    lines = [tuple(map(_line, names)) for names in (classes, pictured)]
    return KnownModel(name, state, folder, size, _line(note), *lines)


def _line(text: str) -> str:
    return "".join(filter(str.isprintable, " ".join(text.split())))[:MAX_LINE_LENGTH]


def _pictured(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of which the statistics in ``path`` hold a mean picture; none if it cannot be read."""
    from safetensors.numpy import load_file

    try:
        check_tensors(path)
        means = load_file(path)["means"]
        return tuple(name for name, mean in zip(classes, means, strict=False) if mean.any())
    except (OSError, DamagedError, KeyError, TypeError):  # or other arrays
        return ()


def hub_cache() -> Iterator[tuple[str, Path]]:
    """(Hub id, newest snapshot's folder) of every model in the Hub's cache on this machine."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        if repo.repo_type == "model" and newest is not None:
            yield repo.repo_id, newest.snapshot_path
