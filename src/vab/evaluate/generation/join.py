"""Results of systems that make shorter sounds, joined to the length that is measured (appendix E)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.errors import SettingError, failure
from vab.evaluate.generation.clips import ClipError, open_folder
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.write import write_audio
from vab.utils.progress import step_bar


def join(parts: Sequence[NDArray[np.float32]], starts: Sequence[float], seconds: float, rate: int) -> NDArray:
    """Parts [S] of one sound, each from its time in ``starts`` on, as one of ``seconds``: [S].

    Each goes on where those before it end: an earlier part counts where two overlap. Nothing is faded, as in
    appendix E. ``SettingError`` if a moment is left without sound.
    """
    total = round(seconds * rate)
    whole = np.zeros(0, np.float32)
    for part, start in zip(parts, starts, strict=True):
        begin = round(start * rate)
        if begin > len(whole):
            raise SettingError(f"nothing sounds from {len(whole) / rate:.3f} s to {start:g} s")
        whole = np.concatenate([whole, part[len(whole) - begin :]])
    if len(whole) < total:
        raise SettingError(f"the parts end at {len(whole) / rate:.3f} s, before {seconds:g} s")
    return whole[:total]


def join_folders(
    folders: Sequence[Path],
    starts: Sequence[float],
    seconds: float,
    out: Path,
) -> tuple[list[str], list[ClipError]]:
    """Write ``out/<name>.wav`` for each name in the first folder, from its parts in all; names and failures.

    Mono, at the rate of the first part, 24 bits. ``SettingError`` for starts that do not fit the folders,
    ``EvaluationError`` for a folder that cannot be read.
    """
    # 1. The parts, by the names that the first folder has.
    if not starts or len(starts) != len(folders) or starts[0] != 0 or list(starts) != sorted(starts):
        raise SettingError(f"--starts needs {len(folders)} times, one for each folder, from 0 upwards")
    opened = [open_folder(folder) for folder in folders]
    faults = [fault for folder in opened for fault in folder.faults]
    names = sorted(opened[0].sounds)

    # 2. Each by itself: one that cannot be joined does not keep the others from it.
    out.mkdir(parents=True, exist_ok=True)
    done: list[str] = []
    with step_bar("join", len(names), 0) as advance:
        for name in names:
            try:
                parts, rate = _read([folder.sounds.get(name) for folder in opened], name, folders)
                write_audio(out / f"{name}.wav", join(parts, starts, seconds, rate), rate, bits=24)
                done.append(name)
            except Exception as error:
                faults.append(ClipError(name, failure(name, error)))
            advance(name)
    return done, faults


def _read(
    paths: Sequence[Path | None], name: str, folders: Sequence[Path]
) -> tuple[list[NDArray[np.float32]], int]:
    """The parts [S] of one sound, mono, at the rate of the first; and that rate."""
    parts = []
    rate = 0
    for path, folder in zip(paths, folders, strict=True):
        if path is None:
            raise MediaError(f"{folder} has no {name}")
        with MediaFile(path) as file:
            rate = rate or file.audio_format[0]
            parts.append(file.audio(rate=rate, model_level=True))
    return parts, rate
