"""What is asked of decoding."""

from __future__ import annotations

import torch
from torch import Tensor


def seeds(*values: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(value) for value in values]


def nothing(tokens: Tensor) -> Tensor:
    """A mask in which nothing is given."""
    return torch.zeros(tokens.shape, dtype=torch.bool)
