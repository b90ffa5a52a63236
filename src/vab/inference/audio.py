"""``Audio``: a generated sound, and what was behind it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from vab.media.loudness import Level
from vab.media.muxing.tags import COMMENT, pack
from vab.media.write import write_audio
from vab.models.known import Known


@dataclass(frozen=True, repr=False, eq=False)  # arrays have no one answer to ==
class Audio:
    """A finished sound, with the model's own, the tokens and features behind it and the time it took.

    >>> audio = pipe.generate("cat.mp4", seed=7, steps=2)
    >>> audio.waveform.shape, audio.rate
    ((128000,), 16000)
    >>> audio.save("cat.flac")
    """

    waveform: np.ndarray  # float32 [S], or [C,S] of several channels: no new sound in it passes -1 dBTP
    rate: int
    raw: np.ndarray  # float32 [S] at 16 kHz: the model's own, at its own level, with what was kept
    level: Level  # of the model's own sound
    gain_db: float  # what the new sound got to come to its loudness, before the limiter
    timings: dict[str, float] = field(default_factory=dict)  # seconds of each stage
    tokens: Tensor | None = None  # int64 [K,T] that it was decoded from, at least a window
    features: Tensor | None = None  # [F,dim] of the video, as long as the tokens
    made_with: dict[str, Any] = field(default_factory=dict)  # model, seed, settings in effect, gain
    notes: tuple[str, ...] = ()  # sentences for the user
    known: Known | None = None  # whether the model knows what the video shows; None if it cannot tell

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a file with this sound; none if nothing in it is made by a model."""
        return {COMMENT: pack(self.made_with)} if self.made_with else {}

    def save(self, path: str | Path, bits: int = 16) -> None:
        """Write a sound file, complete or not at all; its ending chooses WAV, FLAC, Ogg, Opus, MP3 or M4A.

        WAV and FLAC have 16 or 24 bits. ``MediaError`` for another ending.
        """
        write_audio(path, self.waveform, self.rate, bits, self.tags)

    def __repr__(self) -> str:
        channels = 1 if self.waveform.ndim == 1 else len(self.waveform)
        kind = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
        return f"Audio({self.waveform.shape[-1] / self.rate:.2f} s, {self.rate} Hz, {kind})"

    def _repr_html_(self) -> str:
        """A player for notebooks, with the sound in it."""
        with TemporaryDirectory() as folder:
            self.save(Path(folder) / "sound.wav")
            data = base64.b64encode((Path(folder) / "sound.wav").read_bytes()).decode()
        return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
