"""Weights that need no room: the true shapes, filled with numbers that are the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vab.evaluate.backbones.panns import Cnn14
from vab.evaluate.backbones.passt import PaSST
from vab.evaluate.backbones.registry import BACKBONES
from vab.evaluate.backbones.vggish import VGGish

NETWORKS: dict[str, type[nn.Module]] = {"vggish": VGGish, "panns": Cnn14, "passt": PaSST}


def made_up(network: nn.Module) -> dict[str, Tensor]:
    """A state dict for the network. Rows of a matrix are overlapping parts of one line of numbers."""
    state = {}
    for seed, (name, tensor) in enumerate(sorted(network.state_dict().items())):
        if not tensor.is_floating_point():
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
            continue
        rows = tensor.shape[0] if tensor.ndim else 1
        inside = tensor.numel() // rows
        line = np.random.default_rng(seed).standard_normal(inside + 7 * rows).astype(np.float32)
        if "melW" in name or "running_var" in name:
            line = np.abs(line) + 0.1
        elif tensor.ndim < 2:
            line = 0.1 * line + (0.01 if name == "bn0.weight" else "weight" in name)  # PANNs' input is in dB
        elif tensor.shape[0] != 1:  # not a position or a token
            line = line * np.float32((2.0 / inside) ** 0.5)
        strides = (7, *(int(np.prod(tensor.shape[n + 1 :])) for n in range(1, tensor.ndim)))
        state[name] = torch.from_numpy(line).as_strided(tensor.shape, strides[: tensor.ndim])
    return state


def write_weights(folder: Path, *names: str) -> Path:
    """Files with the published names for these backbones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with torch.device("meta"):
            network = NETWORKS[name]()
        state = made_up(network)
        # a sampler's state as in PANNs' published file
        checkpoint = {"model": state, "sampler": {"indexes": np.arange(3)}} if name == "panns" else state
        torch.save(checkpoint, folder / BACKBONES[name].reference.file)
    return folder


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """White noise under a slow wave: float32 [S]."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.1 * np.random.default_rng(seed).standard_normal(len(time))
    return (wave * (1.1 + np.sin(2 * np.pi * 0.7 * time))).astype(np.float32)
