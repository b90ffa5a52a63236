"""Where to compute."""

from __future__ import annotations

import torch

from vab.errors import SettingError


def pick_device(name: str) -> torch.device:
    """``auto`` is the best there is; ``SettingError`` for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    if not there.get(name):
        have = ", ".join(kind for kind, available in there.items() if available)
        raise SettingError(f"there is no device {name} here; there is: {have}")
    return torch.device(name)


def cpu_has_bfloat16() -> bool:
    """Whether bfloat16 is quick here; without oneDNN's help a convolution in it takes 20 times as long."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
