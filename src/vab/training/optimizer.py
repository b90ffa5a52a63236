"""Optimizers of a run and their learning rate (appendix B.4, Table 8)."""

from __future__ import annotations

import math

import torch
from torch import nn

from vab.config import TrainConfig


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to 0 after ``total`` steps (Table 8)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2


def optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all trained parameters (section B.4). With ``muon``, the layers' matrices are left to Muon.

    Muon (Jordan et al., 2024) makes the update of a matrix orthogonal; here it is as large as AdamW's would
    be (Liu et al., 2025), so both have the same learning rate.
    """
    rate = config.learning_rate
    decay = config.weight_decay
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [p for name, p in learned if config.optimizer == "muon" and "blocks." in name and p.ndim == 2]
    rest = [p for _, p in learned if not any(p is matrix for matrix in hidden)]
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, betas=config.betas, weight_decay=decay, fused=True)
    ]
    if hidden:
        result.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return result
