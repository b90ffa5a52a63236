"""Clips to compare, of a folder or a manifest: which sounds there are, and checks of each sound."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.data.manifest import read_manifest
from vab.evaluate.metrics.statistics import EvaluationError
from vab.media.container import MediaError
from vab.media.copies import copies
from vab.media.inputs import AUDIO, VIDEOS, Inputs, NoInputs, expand
from vab.media.reader import read_audio

MIN_CLIP_SECONDS = 0.975  # one patch of VGGish
# by which a generated sound may end before its reference: AAC fills its last frames
ALIGNMENT_SLACK_SECONDS = 0.25
MIN_PEAK = 1e-4  # -80 dB below full scale: a clip with no louder sample is silent


@dataclass(frozen=True)
class ClipError:
    """A clip that cannot be measured, and why."""

    id: str
    reason: str


@dataclass
class Folder:
    """The sounds of a folder by their names without endings, which are their ids; or those of a manifest."""

    path: Path
    sounds: dict[str, Path]  # what is measured; a video's own sound where no sound file has its name
    videos: dict[str, Path]
    faults: list[ClipError] = field(default_factory=list)  # two files of one name, or with the same bytes

    def stamp(self, name: str, from_video: bool = False) -> str | None:
        """Size and time of a clip's file, to see that it has changed; None for a clip in the cache alone."""
        files = self.videos if from_video else self.sounds
        if name not in files:
            return None
        try:
            state = files[name].stat()
        except OSError:  # reading it will say why
            return "gone"
        return f"{state.st_size} {state.st_mtime_ns}"


def file_name(clip: str) -> str:
    """The file name of the sound that a model makes for a clip of this id, without its ending."""
    return re.sub(r"[^\w.-]", "_", clip)


def open_folder(path: Path, only: Container[str] | None = None) -> Folder:
    """List the clips of a folder and of those below it, or of a manifest; of ``only`` these names, if given.

    There are none without sounds or videos. A file of a manifest may be called anything, but is read from its
    beginning: a clip that begins later, or lies on another machine, is a fault.
    Raises ``EvaluationError`` if it is neither, or part of it cannot be read, ``ManifestError`` as
    ``read_manifest``.
    """
    # 1. What there is.
    if path.is_dir():
        folder = _of_files(path, only)
    elif path.is_file() and path.suffix.lower() not in AUDIO + VIDEOS:
        folder = _of_manifest(path, only)
    else:
        raise EvaluationError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")

    # 2. A clip counted twice would falsify every metric.
    names: dict[Path, str] = {}
    for name, file in folder.sounds.items():
        if names.setdefault(file, name) != name:
            folder.faults.append(ClipError(name, f"{file}: is that of {names[file]} too"))
    for copy, first in copies(names).items():
        folder.faults.append(ClipError(names[copy], f"{copy}: is a copy of {first}"))
    for fault in folder.faults:
        folder.sounds.pop(fault.id, None)
    return folder


def of_split(path: Path, split: str) -> frozenset[str] | None:
    """The ids of a manifest's clips of that split; None for a folder, which has no splits."""
    if not path.is_file() or path.suffix.lower() in AUDIO + VIDEOS:
        return None
    return frozenset(clip.id for clip in read_manifest(path) if clip.split == split)


def _of_files(path: Path, only: Container[str] | None) -> Folder:
    """The clips of a folder, by the names of its files."""
    try:
        found = expand([path], kinds=AUDIO + VIDEOS)
    except NoInputs:
        found = Inputs()
    for line in found.faults.values():
        raise EvaluationError(line)
    # files by their names without endings, which must be unique among sounds and among videos
    sounds: dict[str, list[Path]] = {}
    videos: dict[str, list[Path]] = {}
    for file in found.paths:
        if only is None or file.stem in only:
            by_name = videos if file.suffix.lower() in VIDEOS else sounds
            by_name.setdefault(file.stem, []).append(file)
    # a video stands for its own sound where no sound file has its name
    folder = Folder(path, {}, {name: several[0] for name, several in videos.items()})
    for name in sorted(sounds.keys() | videos.keys()):
        several = max(sounds.get(name, []), videos.get(name, []), key=len)
        if len(several) == 1:
            folder.sounds[name] = sounds.get(name, several)[0]
        else:
            folder.faults.append(ClipError(name, f"{several[1]}: has the name of {several[0]}"))
    return folder


def _of_manifest(path: Path, only: Container[str] | None) -> Folder:
    """The clips of a manifest, by their ids, or those of ``only`` by the names that a model's sounds have."""
    folder = Folder(path, {}, {})
    for clip in read_manifest(path):
        name = clip.id if only is None or clip.id in only else file_name(clip.id)
        if only is not None and name not in only:
            continue
        if clip.start or not isinstance(clip.audio, Path):
            why = f"begins at {clip.start:g} s of its file" if clip.start else "has no sound on this machine"
            folder.faults.append(ClipError(name, f"{path}: {clip.id} {why}"))
            continue
        folder.sounds[name] = clip.audio
        if isinstance(clip.video, Path):
            folder.videos[name] = clip.video
    return folder


def read_clip(path: Path, rate: int, seconds: float | None) -> NDArray[np.float32]:
    """Read the first ``seconds`` of a file (None: all): mono [S] at ``rate``, minus the mean of the whole.

    As av-benchmark reads it; what ``vab generate`` made at the level that its model gave it. Raises
    ``MediaError`` if there is no sound in it, or what it holds is no number.
    """
    waveform = read_audio(path, rate=rate, model_level=True)
    if not len(waveform):
        raise MediaError(f"{path}: its audio stream is empty")
    if not np.isfinite(waveform).all():
        raise MediaError(f"{path}: holds NaN or infinity")
    # the mean of the whole file, then the cut: av-benchmark's order
    waveform = waveform - waveform.mean(dtype=np.float64)
    return waveform[: None if seconds is None else round(seconds * rate)].astype(np.float32)


def check_clip(path: Path, waveform: NDArray[np.float32], rate: int) -> None:
    """Raises ``MediaError`` for a waveform [S] that is too short or silent."""
    if len(waveform) < MIN_CLIP_SECONDS * rate:
        raise MediaError(f"{path}: too short, {len(waveform) / rate:.2f} s; {MIN_CLIP_SECONDS} s are needed")
    if np.abs(waveform).max() < MIN_PEAK:
        raise MediaError(f"{path}: silent")
