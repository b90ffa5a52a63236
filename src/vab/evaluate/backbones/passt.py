"""PaSST, the tagger of the paper's KLD and of av-benchmark: published weights at 32 kHz.

Koutini et al., "Efficient Training of Audio Transformers with Patchout" (2022), passt_s_swa_p16_128_ap476.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from vab.evaluate.backbones.weights import load_weights
from vab.utils.mel import mel_filters

RATE, SAMPLES = 32_000, 320_000  # Hz; the network takes 10 s; shorter waveforms are padded with zeros
CLASSES, WIDTH, DEPTH, HEADS = 527, 768, 12, 12
PATCH, STRIDE = 16, 10  # mel bands and frames
GRID = (12, 99)  # patches over 128 bands and 1000 frames
FFT, WINDOW, STEP, BANDS = 1024, 800, 320, 128


class PaSST(nn.Module):
    """Waveforms [B, 320000] at 32 kHz -> embeddings [B, 768], logits [B, 527].

    The names of the weights are those of ``passt-s-f128-p16-s10-ap.476-swa.pt``. The embedding is the mean of
    the class and the distillation token, before the head.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        filters = torch.from_numpy(mel_filters(BANDS, FFT, RATE, 0.0, 15_000.0)).float()
        self.register_buffer("filters", filters, persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, WIDTH))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, WIDTH, GRID[0], 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, WIDTH, 1, GRID[1]))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, WIDTH, PATCH, stride=STRIDE)})
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.Sequential(
            *(Block(WIDTH, HEADS, qkv_bias=True, norm_layer=norm) for _ in range(DEPTH))
        )
        self.norm = norm(WIDTH)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))
        self.head_dist = nn.Linear(WIDTH, CLASSES)  # in the file, but not used

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """[B, 128, 1000] of waveforms [B, 320000]: pre-emphasis, power, Kaldi's filters up to 15 kHz."""
        # [B, 319999]: one sample fewer
        x = waveforms[:, 1:] - 0.97 * waveforms[:, :-1]
        # [B, 513, 1000]
        spectrum = torch.stft(x, FFT, STEP, WINDOW, self.window, return_complex=True)
        mel = torch.einsum("bft,fm->bmt", spectrum.abs().square(), self.filters)
        return (torch.log(mel + 1e-5) + 4.5) / 5

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        # patches [B, 768, 12, 99] with their positions in frequency and time -> [B, 1188, 768]
        x = self.patch_embed["proj"](self.log_mel(waveforms)[:, None])
        x = (x + self.time_new_pos_embed + self.freq_new_pos_embed).flatten(2).transpose(1, 2)
        # the class and the distillation token come first
        tokens = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        x = self.norm(self.blocks(torch.cat([tokens.expand(len(x), -1, -1), x], 1)))
        embedding = x[:, :2].mean(1)
        return embedding, self.head(embedding)


class PaSSTBackbone:
    """Waveform [S] at 32 kHz -> embedding [768], logits [527]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network = load_weights(PaSST(), weights).to(device)

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(waveform[:SAMPLES])
        x = F.pad(x, (0, SAMPLES - len(x)))[None]
        embedding, logits = self.network(x.to(self.network.norm.weight.device))
        return embedding[0].cpu(), logits[0].cpu()
