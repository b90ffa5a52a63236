"""Training data of the small codec: the audio of a manifest in memory, by label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.data.manifest import ManifestError, read_manifest
from vab.media.container import MediaError
from vab.media.reader import read_audio


def read_sounds(
    manifest: str | Path, log: Callable[[str], None] = lambda line: None
) -> dict[str, list[NDArray[np.int16]]]:
    """label -> waveforms int16 [S] at 16 kHz of the clips of the split train that have sound.

    A file that cannot be read, or is empty, is left out; ``log`` gets the reason. ``ManifestError`` if the
    manifest is bad or no sound remains.
    """
    sounds: dict[str, list[NDArray[np.int16]]] = {}
    for clip in read_manifest(manifest):
        if clip.split != "train" or clip.audio is None:
            continue
        try:
            waveform = read_audio(clip.audio, clip.start, clip.seconds, model_level=True)
        except MediaError as error:
            log(str(error))
            continue
        if not len(waveform) or not np.isfinite(waveform).all():
            log(f"{clip.audio}: it holds no sound, or values that are not numbers")
            continue
        # All of them stay in memory: as 16-bit integers they take half of what float32 does.
        samples = (waveform.clip(-1, 1) * 32767).round().astype(np.int16)
        sounds.setdefault(clip.label, []).append(samples)
    if not sounds:
        raise ManifestError(f"{manifest}: no clip of the split train has sound that can be read")
    return sounds
