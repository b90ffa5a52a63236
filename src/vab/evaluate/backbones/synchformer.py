"""Synchformer, the network of av-benchmark's DeSync: the offset in seconds between audio and video.

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
TOKENS = (8, 6)  # of a segment of video, of audio
OFFSETS = tuple(np.linspace(-2, 2, 21))  # seconds, one for each class
MIN_SECONDS = 4.8
RATE, SEGMENT, BANDS, FRAMES = 16_000, 10_240, 128, 66
FPS, SEGMENT_FRAMES = 25.0, 16  # video frames a second, in a segment


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        # [B, L, 768] -> [B, heads, L, 96]
        q = self.query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k = self.key(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        v = self.value(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
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
        self.off_head = nn.Linear(WIDTH, len(OFFSETS))

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        # [OFF, 112 video tokens, MOD, 84 audio tokens]; the offset is read from the first
        offset = self.OFF_tok.expand(len(audio), -1, -1)
        separator = self.MOD_tok.expand(len(audio), -1, -1)
        x = torch.cat([offset, self.vis_in_lnorm(video), separator, self.aud_in_lnorm(audio)], 1)
        return self.off_head(self.ln_f(self.blocks(x + self.pos_emb_cfg["pos_emb"]))[:, 0])


class Comparison(nn.Module):
    """Features of video [B, 14, 8, 768] and audio [B, 14, 6, 768] -> logits [B, 21] of their offset.

    The names of the weights are those of ``synchformer_state_dict.pth`` without its extractors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.vproj, self.aproj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.transformer = _Transformer()

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        # segments and their tokens become one sequence: [B, 14, n, 768] -> [B, 14 * n, 768]
        return self.transformer(self.vproj(video).flatten(1, 2), self.aproj(audio).flatten(1, 2))


@torch.inference_mode()
def offsets(
    weights: Path, device: str, videos: Sequence[Tensor], audios: Sequence[Tensor]
) -> NDArray[np.float64]:
    """|seconds| between video [n, 8, 768] and audio [n, 6, 768] of N clips: [N].

    Each is the mean of two: over the first 4.8 s, and over the last.
    """
    place = pick_device(device)
    network = load_weights(Comparison(), weights, but=("vfeat_extractor.", "afeat_extractor.")).to(place)
    results = []
    for video, audio in zip(videos, audios, strict=True):
        # [n, tokens, 768] -> [2, 14, tokens, 768]: the two ends of the clip as one batch
        video_ends = torch.stack([video[:SEGMENTS], video[-SEGMENTS:]]).float().to(place)
        audio_ends = torch.stack([audio[:SEGMENTS], audio[-SEGMENTS:]]).float().to(place)
        classes = network(video_ends, audio_ends).argmax(1).cpu().numpy()
        results.append(np.abs(np.array(OFFSETS)[classes]).mean())
    return np.array(results)


def audio_input(waveform: NDArray[np.float32]) -> Tensor:
    """Log-mel segments [1, n, 1, 128, 66] of a waveform [S]. ``MediaError`` below 4.8 s."""
    if len(waveform) < MIN_SECONDS * RATE:
        raise MediaError(f"too short for DeSync: {len(waveform) / RATE:.2f} s, where 4.8 s are needed")
    # [S] -> [n, 10240]: segments of 0.64 s that overlap by a half
    segments = torch.from_numpy(waveform).unfold(0, SEGMENT, SEGMENT // 2)
    window = F.pad(torch.hann_window(400), (312, 312))
    spectrum = torch.stft(segments, 1024, 160, window=window, return_complex=True).abs().square()
    filters = torch.from_numpy(mel_filters(BANDS, 1024, RATE, 0.0, RATE / 2, straight_in="hertz")).float()
    mel = torch.einsum("nft,fm->nmt", spectrum, filters)
    mel = F.pad(torch.log(mel + 1e-6), (0, FRAMES - mel.shape[-1]))
    return ((mel + 4.2677393) / (2 * 4.5689974))[None, :, None]


def video_input(path: Path, seconds: float) -> Tensor:
    """Segments [n, 1, 16, 3, 224, 224] of a video. ``MediaError`` below 4.8 s."""
    frames = normalised(resized(path, FPS, seconds, 224), (0.5,) * 3, (0.5,) * 3)
    if len(frames) < MIN_SECONDS * FPS:
        raise MediaError(f"too short for DeSync: {len(frames) / FPS:.2f} s, where {MIN_SECONDS} s are needed")
    # the middle 224 x 224
    y = round((frames.shape[-2] - 224) / 2)
    x = round((frames.shape[-1] - 224) / 2)
    frames = frames[:, :, y : y + 224, x : x + 224]
    starts = range(0, len(frames) - SEGMENT_FRAMES + 1, SEGMENT_FRAMES // 2)
    return torch.stack([frames[start : start + SEGMENT_FRAMES] for start in starts])[:, None]


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


class SynchformerAudio:
    """Waveform [S] at 16 kHz -> features [n, 6, 768]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network, self.device = _network(weights, device), device

    @torch.inference_mode()
    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Tensor]:
        return (self.network.extract_afeats(audio_input(waveform).to(self.device))[0].cpu(),)


class SynchformerVideo:
    """A video and how many of its seconds -> features [n, 8, 768]."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        self.network, self.device = _network(weights, device), device

    @torch.inference_mode()
    def __call__(self, path: Path, seconds: float) -> tuple[Tensor]:
        return (self.network.extract_vfeats(video_input(path, seconds).to(self.device))[:, 0].cpu(),)
