"""Small networks of the baseline, and clips for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from helpers.training import MODEL
from vab.config import ModelConfig
from vab.models.foleygen import FoleyGen

SMALL = replace(MODEL, seconds=2.0, fps=2.0, num_codebooks=4, num_expert_layers=0, num_layers=3, num_heads=4)


SEQUENCE, TIME = SMALL, replace(SMALL, positions="time")


def sure(config: ModelConfig, seed: int = 0) -> FoleyGen:
    """A network whose every part matters."""
    torch.manual_seed(seed)
    network = FoleyGen(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def clips(config: ModelConfig, batch: int = 2, frames: int = 23, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens [B,K,T] and features [B,F,dim]."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.codebook_size, (batch, config.num_codebooks, frames), generator=draw)
    return tokens, torch.randn(batch, 3, config.vision_dim, generator=draw)
