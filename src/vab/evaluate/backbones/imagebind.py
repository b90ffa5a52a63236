"""ImageBind, the network of av-benchmark's IB-Score: audio-video similarity. Needs the package imagebind.

Girdhar et al., "ImageBind: One Embedding Space To Bind Them All" (2023); weights under CC-BY-NC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.errors import first_line
from vab.evaluate.backbones.frames import normalised, resized
from vab.evaluate.backbones.weights import load_weights
from vab.evaluate.metrics.statistics import EvaluationError
from vab.utils.mel import mel_filters

RATE, BANDS, FRAMES = 16_000, 128, 204
CLIPS, CLIP_SECONDS = 3, 2.0  # of sound
FPS = 0.5  # of pictures: each two that follow one another are a clip
SIDE = 224
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def kaldi_log_mel(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Kaldi's log-mel energies [T, 128] of a waveform [S] at 16 kHz: 25 ms Hann windows every 10 ms."""
    wide = np.asarray(waveform, np.float64)
    # [S] -> [T, 400]: windows of 25 ms, each without its mean
    frames = np.lib.stride_tricks.sliding_window_view(wide - wide.mean(), 400)[::160]
    frames = frames - frames.mean(1, keepdims=True)
    # pre-emphasis within a window: its first sample has no predecessor and stands for one
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft((frames - 0.97 * before) * np.hanning(400), 512)) ** 2
    energies = power @ mel_filters(BANDS, 512, RATE, 20.0, RATE / 2)
    return np.log(np.maximum(energies, np.finfo(np.float32).eps)).astype(np.float32)


def audio_input(waveform: NDArray[np.floating]) -> Tensor:
    """[1, 3, 1, 128, 204] of a whole waveform [S]: three clips of 2 s, from its beginning to its end."""
    # the last clip ends where the sound ends; a shorter sound is filled with silence
    size = round(CLIP_SECONDS * RATE)
    filled = np.pad(waveform, (0, max(0, size - len(waveform))))
    clips = []
    for n in range(CLIPS):
        start = int((len(filled) - size) / RATE * n / (CLIPS - 1) * RATE)
        mel = kaldi_log_mel(filled[start : start + size])
        mel = np.pad(mel, ((0, FRAMES - len(mel)), (0, 0)))
        # [204, 128] -> [1, 128, 204], normalised with AudioSet's mean and twice its deviation
        clips.append((mel.T[None] + 4.268) / 9.138)
    return torch.from_numpy(np.stack(clips)[None].astype(np.float32))


def video_input(path: Path, seconds: float) -> Tensor:
    """[1, n, 3, 2, 224, 224] of a video: one picture each 2 s, pairs of them, three crops of each pair."""
    frames = normalised(resized(path, FPS, seconds, SIDE), MEAN, DEVIATION)  # [t, 3, H, W]
    height, width = frames.shape[-2:]
    # a video of one frame is a still: a pair needs two
    if len(frames) == 1:
        frames = frames.expand(2, -1, -1, -1)
    # the short side is SIDE already, so one of these is zero: crops go left to right, or top to bottom
    down = height - SIDE
    right = width - SIDE
    places = ((0, 0), (-(-down // 2), -(-right // 2)), (down, right))
    crops = torch.stack([frames[:, :, y : y + SIDE, x : x + SIDE] for y, x in places])
    pairs = torch.cat([crops[:, t : t + 2] for t in range(len(frames) - 1)])  # [n, 2, 3, 224, 224]
    return pairs.transpose(1, 2)[None]  # [1, n, 3, 2, 224, 224]


@cache
def _network(weights: Path, device: torch.device) -> Any:
    try:
        from imagebind.models import imagebind_model
    except Exception as error:  # its dependencies break in many ways
        raise EvaluationError(
            f"the package imagebind is needed and cannot be used ({first_line(error)})"
        ) from None
    return load_weights(imagebind_model.imagebind_huge(pretrained=False), weights).to(device)


class ImageBindAudio:
    """Waveform [S] at 16 kHz -> embedding [1024]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network, self.device = _network(weights, device), device

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Tensor]:
        return (self.network({"audio": audio_input(waveform).to(self.device)})["audio"][0].cpu(),)


class ImageBindVideo:
    """A video and how many of its seconds -> embedding [1024]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network, self.device = _network(weights, device), device

    @torch.inference_mode()
    def __call__(self, path: Path, seconds: float) -> tuple[Tensor]:
        return (self.network({"vision": video_input(path, seconds).to(self.device)})["vision"][0].cpu(),)


def cosines(videos: Sequence[Tensor], audios: Sequence[Tensor]) -> NDArray[np.float64]:
    """Cosine similarity [N] of the embeddings [1024] of N videos and their audio."""
    a = np.stack([each.float().numpy() for each in videos]).astype(np.float64)
    b = np.stack([each.float().numpy() for each in audios]).astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
