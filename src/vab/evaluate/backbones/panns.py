"""PANNs' Cnn14 at 16 kHz, av-benchmark's tagger for FD, KL and IS: published weights.

Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks" (2020).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vab.evaluate.backbones.weights import load_weights

CLASSES = 527
FFT, STEP, BANDS = 512, 160, 64  # samples, samples, mel bands from 50 to 8000 Hz
WIDTHS = (64, 128, 256, 512, 1024, 2048)


class _Fourier(nn.Module):
    """Power spectrum [B, T, bins] of waveforms [B, S]. The file holds the window and the waves as kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_real = nn.Conv1d(1, FFT // 2 + 1, FFT, stride=STEP, bias=False)
        self.conv_imag = nn.Conv1d(1, FFT // 2 + 1, FFT, stride=STEP, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # [B, S] -> [B, bins, T] twice, real and imaginary part
        x = F.pad(x[:, None], (FFT // 2, FFT // 2), mode="reflect")
        return (self.conv_real(x).square() + self.conv_imag(x).square()).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Cnn14(nn.Module):
    """Waveforms [B, S] at 16 kHz -> embeddings [B, 2048] (after the ReLU), logits [B, 527].

    The names of the weights are those of ``Cnn14_16k_mAP=0.438.pth``, which also holds the mel filters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spectrogram_extractor = nn.ModuleDict({"stft": _Fourier()})
        self.logmel_extractor = nn.ParameterDict({"melW": nn.Parameter(torch.zeros(FFT // 2 + 1, BANDS))})
        self.bn0 = nn.BatchNorm2d(BANDS)
        for n, (before, width) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"conv_block{n}", _Block(before, width))
        self.fc1 = nn.Linear(2048, 2048)
        self.fc_audioset = nn.Linear(2048, CLASSES)

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        # log-mel in dB
        mel = self.spectrogram_extractor["stft"](waveforms) @ self.logmel_extractor["melW"]
        x = 10 * torch.log10(mel.clamp_min(1e-10))[:, None]  # [B, 1, T, bands]
        # batch norm over the bands: they must stand where channels do
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for n in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"conv_block{n}")(x)
            x = F.avg_pool2d(x, 2) if n < len(WIDTHS) else x
        # over the bands the mean, over time the mean and the maximum
        x = x.mean(3)  # [B, 2048, T / 32]
        x = F.relu(self.fc1(x.amax(2) + x.mean(2)))
        return x, self.fc_audioset(x)


class PANNsBackbone:
    """Waveform [S] at 16 kHz -> {"2048": [2048], "logits": [527]}, as av-benchmark keeps it."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network = load_weights(Cnn14(), weights).to(device)

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32]) -> tuple[dict[str, Tensor]]:
        x = torch.from_numpy(waveform)[None]
        embedding, logits = self.network(x.to(self.network.fc1.weight.device))
        return ({"2048": embedding[0].cpu(), "logits": logits[0].cpu()},)
