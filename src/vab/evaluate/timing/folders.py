"""Which results belong to which clip, and which clips are measured: a list, a beginning of names, a half."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from vab.evaluate.metrics.statistics import EvaluationError, read_ids
from vab.media.inputs import AUDIO, VIDEOS, NoInputs, expand
from vab.utils.provenance import sha256

Half = Literal[1, 2]
SAMPLE = re.compile(r"(.+)_\d+")  # the name of a clip's second sound and of those after it


def samples_of(folder: Path, ids: Collection[str]) -> dict[str, list[Path]]:
    """The sounds of each clip in a folder and those below it, as ``vab generate`` names them, in order.

    ``<clip>.wav``, ``<clip>_2.wav``, ``<clip>_3.wav``; a film's own sound where no sound file lies beside it.
    A folder of every seed may lie in ``folder``: equal names in several are several sounds of the clip.
    Raises ``EvaluationError`` if it is no folder, or has no sound of any clip.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    try:
        found = expand([folder], kinds=AUDIO + VIDEOS)
    except NoInputs:
        raise EvaluationError(f"{folder}: has no sounds or videos in it") from None
    for line in found.faults.values():
        raise EvaluationError(line)
    # 1. One file for each sound: beside its film the sound file.
    sounds: dict[Path, Path] = {}
    for path in found.paths:
        if path.suffix.lower() in AUDIO or path.with_suffix("") not in sounds:
            sounds[path.with_suffix("")] = path
    # 2. A clip's name is a sound's whole name, or what stands before its number.
    samples: dict[str, list[Path]] = {}
    for name, path in sorted(sounds.items(), key=lambda item: _natural(item[0])):
        clip = name.name
        if clip not in ids and (numbered := SAMPLE.fullmatch(clip)):
            clip = numbered[1]
        if clip in ids:
            samples.setdefault(clip, []).append(path)
    if not samples:
        raise EvaluationError(f"{folder}: none of its sounds has the name of a clip")
    return samples


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts _10 behind _9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def chosen(ids: Iterable[str], clips: str | None, half: Half | None) -> list[str]:
    """The ids that are in the list ``clips``, or begin with it where it is no file; of them the half.

    None takes all. An id is of the half that its sha256 says, in every list. ``EvaluationError`` if none is
    left.
    """
    kept = sorted(ids)
    if clips is not None:
        listed = set(read_ids(clips)) if Path(clips).is_file() else None
        kept = [name for name in kept if (name.startswith(clips) if listed is None else name in listed)]
        if not kept:
            what = "no clip's name begins so, and no such file" if listed is None else "has none of the clips"
            raise EvaluationError(f"{clips}: {what}")
    if half is not None:
        kept = [name for name in kept if half_of(name) == half]
        if not kept:
            raise EvaluationError(f"none of the clips is of half {half}")
    return kept


def half_of(name: str) -> Half:
    """The half that a clip belongs to, by the sha256 of its name."""
    return 2 if int(sha256(name)[:8], 16) % 2 else 1
