"""DeSync of av-benchmark for pairs of any video and any sound, where Synchformer is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vab.evaluate.backbones.registry import SYNCHFORMER_AUDIO, SYNCHFORMER_VIDEO, find, load
from vab.evaluate.backbones.synchformer import SEGMENTS, offsets
from vab.media.container import MediaError

Features = Any  # a tensor [n, tokens, 768]; None for what is too short


class DeSync:
    """Synchformer on a device: features of videos and of sounds, and the offset between any two."""

    def __init__(self, weights: Path, device: str, audio: Any, video: Any) -> None:
        self._weights, self._device, self._audio, self._video = weights, device, audio, video

    @classmethod
    def load(cls, weights: Path | None, device: str) -> Self:
        """With the weights of a folder (None: the usual places). ``EvaluationError`` if it is not there."""
        path, _ = find(SYNCHFORMER_AUDIO, weights)
        return cls(
            path, device, *(load(spec, path, device) for spec in (SYNCHFORMER_AUDIO, SYNCHFORMER_VIDEO))
        )

    def of_sound(self, waveform: NDArray[np.float32]) -> Features:
        """Features of a waveform [S] at 16 kHz; None below 4.8 s."""
        return self._features(self._audio, waveform)

    def of_video(self, path: Path, seconds: float) -> Features:
        """Features of the first ``seconds`` of a video; None below 4.8 s or without a picture."""
        return self._features(self._video, path, seconds)

    def _features(self, network: Any, *source: Any) -> Features:
        try:
            (features,) = network(*source)
        except MediaError:
            return None
        return features if len(features) >= SEGMENTS else None

    def offsets(self, videos: Sequence[Features], sounds: Sequence[Features]) -> NDArray[np.float64]:
        """|seconds| between N videos and N sounds: [N]; NaN where either has no features."""
        pairs = list(zip(videos, sounds, strict=True))
        known = [n for n, (video, sound) in enumerate(pairs) if video is not None and sound is not None]
        result = np.full(len(videos), np.nan)
        if known:
            both = [videos[n] for n in known], [sounds[n] for n in known]
            result[known] = offsets(self._weights, self._device, *both)
        return result
