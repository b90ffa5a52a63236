"""The mix: what the layers of an arrangement give together, at 48 kHz in two channels.

The page does the same arithmetic, so that what is heard is what is exported. Nothing limits here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vab.media.file import MediaFile
from vab.media.write import write_audio

RATE = 48_000  # Hz, of every sound of a project and of the mix
BITS = 24
CHANNELS = 2
SOUNDS = "sounds"  # the folder of a project's sounds

Layer = Mapping[str, Any]  # as the document has it


class Track(NamedTuple):
    """A layer as it is heard: ``waveform`` float32 [2,n], its first sample at sample ``first`` of the mix."""

    first: int  # may be negative: what lies before the start of the mix is not heard
    waveform: NDArray[np.float32]


def write_sound(path: Path, waveform: NDArray[np.floating]) -> None:
    """Write a waveform [S] or [C,S] at 48 kHz as a sound of a project: WAV of 24 bits, whole or not at all.

    Louder than full scale is cut off. ``MediaError`` if it is empty or not finite.
    """
    write_audio(path, waveform, RATE, BITS)


def read_sound(path: Path) -> NDArray[np.float32]:
    """A sound of a project, float32 [C,S] at 48 kHz: every sample as it was written. ``MediaError``."""
    with MediaFile(path) as file:
        blocks = list(file.channel_blocks(0.0, RATE, file.audio_format[1]))
    return np.concatenate(blocks, axis=1)


def sound_path(folder: Path, sound: str, ending: str = "wav") -> Path:
    """Where a project keeps a file of a sound."""
    return folder / SOUNDS / f"{sound}.{ending}"


def samples(seconds: float) -> int:
    """Seconds as samples, to the nearest one; halves upwards, as the page's own rounding has it."""
    return math.floor(seconds * RATE + 0.5)


def heard(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that are heard: the solo ones if there are any, and none that is muted."""
    solo = any(layer.get("solo") for layer in layers)
    return [layer for layer in layers if not layer.get("mute") and (layer.get("solo") or not solo)]


def track(sound: NDArray[np.float32], layer: Layer) -> Track:
    """A layer of ``sound`` [C,S]: its part, faded, at its level, in both channels.

    Beyond the ends of the sound is silence. Both fades are linear; where they meet they multiply.
    """
    # 1. The part [C,n]; a mono sound goes to both channels at the same level.
    start = samples(layer["start"])
    length = max(0, samples(layer["stop"] - layer["start"]))
    part = np.zeros((CHANNELS, length), np.float32)
    inside = sound[:CHANNELS, max(0, start) : max(0, start + length)]
    begin = max(0, -start)
    part[:, begin : begin + inside.shape[1]] = inside

    # 2. Its level: the gain, and the fades from its ends.
    level = np.full(length, 10 ** (layer["gain_db"] / 20), np.float32)
    level *= _fade(samples(layer["fade_in"]), length)
    level *= _fade(samples(layer["fade_out"]), length)[::-1]
    return Track(samples(layer["offset"]), part * level)


def _fade(fade: int, length: int) -> NDArray[np.float32]:
    """The factor [length] of a fade of so many samples at the beginning: (n + 1) / (fade + 1), then 1."""
    ramp = np.ones(length, np.float32)
    count = max(0, min(fade, length))
    ramp[:count] = np.arange(1, count + 1) / (fade + 1)
    return ramp


def tracks(folder: Path, layers: Sequence[Layer]) -> Iterator[Track]:
    """The heard layers of a project, in order, each read when it is asked for.

    ``MediaError`` for a sound that cannot be read.
    """
    for layer in heard(layers):
        yield track(read_sound(sound_path(folder, layer["sound"])), layer)


def mix_length(layers: Sequence[Layer], seconds: float) -> int:
    """Samples of the mix: as long as the clip, or to the end of the last heard layer if that is later."""
    ends = [samples(layer["offset"]) + samples(layer["stop"] - layer["start"]) for layer in heard(layers)]
    return max([samples(seconds), *ends])


def summed(parts: Iterable[Track], length: int) -> NDArray[np.float32]:
    """The sum of tracks, float32 [2,length]."""
    result = np.zeros((CHANNELS, length), np.float32)
    for first, waveform in parts:
        begin, end = max(0, first), min(length, first + waveform.shape[1])
        if begin < end:
            result[:, begin:end] += waveform[:, begin - first : end - first]
    return result
