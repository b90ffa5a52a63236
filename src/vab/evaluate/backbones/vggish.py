"""VGGish, the network of the Fréchet Audio Distance: published weights, the last ReLU off, no PCA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vab.evaluate.backbones.weights import load_weights
from vab.utils.mel import log_mel_frames, patches

PATCH_FRAMES = 96  # 0.96 s; patches do not overlap
CHANNELS = (64, None, 128, None, 256, 256, None, 512, 512, None)  # of convolutions; None: halve both sides


class VGGish(nn.Module):
    """Log-mel patches [n, 96, 64] -> embeddings [n, 128], before the last ReLU.

    The names of the weights are those of ``vggish-10086976.pth``, the torch port of Google's checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        # their order is part of the weights' names
        for channels in CHANNELS:
            if channels is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x[:, None])  # [n, 512, 6, 4]
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))  # in TensorFlow's order


class VGGishBackbone:
    """Waveform [S] at 16 kHz -> embeddings [patches, 128]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network = load_weights(VGGish(), weights).to(device)

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Tensor]:
        # [S] -> [patches, 96, 64]
        x = torch.from_numpy(patches(log_mel_frames(waveform, 0.01), PATCH_FRAMES, PATCH_FRAMES))
        return (self.network(x.to(next(self.network.parameters()).device)).cpu(),)
