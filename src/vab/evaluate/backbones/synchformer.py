"""Synchformer, for DeSync of av-benchmark: by how many seconds are sound and picture apart?

Iashin et al., "Synchformer: Efficient Synchronization from Sparse Cues" (2024), model 24-01-04T16-39-21. The
part that compares is written out here, so DeSync of features that are there needs its weights alone; making
features needs the package av_bench, which holds the extractors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vab.errors import first_line
from vab.evaluate.backbones.frames import normalised, resized
from vab.evaluate.backbones.weights import load_weights
from vab.evaluate.metrics.statistics import EvaluationError
from vab.media.container import MediaError
from vab.utils.device import pick_device
from vab.utils.mel import mel_filters

WIDTH, HEADS, LAYERS = 768, 8, 3
SEGMENTS = 14  # of 0.64 s, one every 0.32 s: 4.8 s are compared at once
TOKENS = (8, 6)  # of a segment of picture, of sound
GRID = tuple(np.linspace(-2, 2, 21))  # seconds that the classes stand for
LEAST = 4.8  # seconds
RATE, SEGMENT, BANDS, FRAMES = 16_000, 10_240, 128, 66
FPS, PICTURES = 25.0, 16  # frames of a segment


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = _Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vis_in_lnorm, self.aud_in_lnorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.OFF_tok, self.MOD_tok = (nn.Parameter(torch.zeros(1, 1, WIDTH)) for _ in range(2))
        places = torch.zeros(1, 2 + SEGMENTS * sum(TOKENS), WIDTH)
        self.pos_emb_cfg = nn.ParameterDict({"pos_emb": nn.Parameter(places)})
        self.blocks = nn.Sequential(*(_Block() for _ in range(LAYERS)))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.off_head = nn.Linear(WIDTH, len(GRID))

    def forward(self, picture: Tensor, sound: Tensor) -> Tensor:
        offset, other = (token.expand(len(sound), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        x = torch.cat([offset, self.vis_in_lnorm(picture), other, self.aud_in_lnorm(sound)], 1)
        return self.off_head(self.ln_f(self.blocks(x + self.pos_emb_cfg["pos_emb"]))[:, 0])


class Comparison(nn.Module):
    """Features of picture [B, 14, 8, 768] and sound [B, 14, 6, 768] -> logits [B, 21] of their offset.

    The names of the weights are those of ``synchformer_state_dict.pth`` without its extractors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vproj, self.aproj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.transformer = _Transformer()

    def forward(self, picture: Tensor, sound: Tensor) -> Tensor:
        return self.transformer(self.vproj(picture).flatten(1, 2), self.aproj(sound).flatten(1, 2))


@torch.inference_mode()
def offsets(
    weights: Path, device: str, pictures: Sequence[Tensor], sounds: Sequence[Tensor]
) -> NDArray[np.float64]:
    """|seconds| between pictures [n, 8, 768] and sounds [n, 6, 768] of N clips: [N].

    Each is the mean of two: over the first 4.8 s, and over the last.
    """
    network = load_weights(Comparison(), weights, but=("vfeat_extractor.", "afeat_extractor."))
    network, found = network.to(place := pick_device(device)), []
    for picture, sound in zip(pictures, sounds, strict=True):
        ends = [torch.stack([x[:SEGMENTS], x[-SEGMENTS:]]).float().to(place) for x in (picture, sound)]
        found.append(np.abs(np.array(GRID)[network(*ends).argmax(1).cpu().numpy()]).mean())
    return np.array(found)


def sound_input(waveform: NDArray[np.float32]) -> Tensor:
    """Log-mel segments [1, n, 1, 128, 66] of a waveform [S]. ``MediaError`` below 4.8 s."""
    if len(waveform) < LEAST * RATE:
        raise MediaError(f"too short for DeSync: {len(waveform) / RATE:.2f} s, where 4.8 s are needed")
    segments = torch.from_numpy(waveform).unfold(0, SEGMENT, SEGMENT // 2)
    window = F.pad(torch.hann_window(400), (312, 312))
    spectrum = torch.stft(segments, 1024, 160, window=window, return_complex=True).abs().square()
    filters = torch.from_numpy(mel_filters(BANDS, 1024, RATE, 0.0, RATE / 2, straight_in="hertz")).float()
    mel = torch.einsum("nft,fm->nmt", spectrum, filters)
    mel = F.pad(torch.log(mel + 1e-6), (0, FRAMES - mel.shape[-1]))
    return ((mel + 4.2677393) / (2 * 4.5689974))[None, :, None]


def picture_input(path: Path, seconds: float) -> Tensor:
    """Segments [n, 1, 16, 3, 224, 224] of a video. ``MediaError`` below 4.8 s."""
    frames = normalised(resized(path, FPS, seconds, 224), (0.5,) * 3, (0.5,) * 3)
    if len(frames) < LEAST * FPS:
        raise MediaError(f"too short for DeSync: {len(frames) / FPS:.2f} s, where {LEAST} s are needed")
    y, x = (round((size - 224) / 2) for size in frames.shape[-2:])
    frames = frames[:, :, y : y + 224, x : x + 224]
    starts = range(0, len(frames) - PICTURES + 1, PICTURES // 2)
    return torch.stack([frames[start : start + PICTURES] for start in starts])[:, None]


@cache
def _network(weights: Path, device: torch.device) -> Any:
    try:
        from av_bench.synchformer.synchformer import Synchformer
    except Exception as error:  # its dependencies break in many ways
        advice = "make these features with av-benchmark itself"
        raise EvaluationError(
            f"the package av_bench cannot be used ({first_line(error)}); {advice}"
        ) from None
    return load_weights(Synchformer(), weights).to(device)


class SynchformerSound:
    """Waveform [S] at 16 kHz -> features [n, 6, 768]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network, self.device = _network(weights, device), device

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Tensor]:
        return (self.network.extract_afeats(sound_input(waveform).to(self.device))[0].cpu(),)


class SynchformerPicture:
    """A video and how many of its seconds -> features [n, 8, 768]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network, self.device = _network(weights, device), device

    @torch.inference_mode()
    def __call__(self, path: Path, seconds: float) -> tuple[Tensor]:
        return (self.network.extract_vfeats(picture_input(path, seconds).to(self.device))[:, 0].cpu(),)
