"""Compute devices and number formats: choose one, and what it is good at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeGuard

import torch

from vab.errors import SettingError

Device: TypeAlias = str | int | torch.device | None
DType: TypeAlias = str | torch.dtype | None

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: Device = "auto") -> torch.device:
    """The device of any of torch's forms: ``"cuda"``, ``"cuda:1"``, ``1``, a ``torch.device``.

    ``auto`` and None are the fastest there is. ``SettingError`` if the device is not there; it lists those
    that are.
    """
    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name is None or name == "auto":
        return torch.device(next(kind for kind, count in counts.items() if count))
    try:
        device = torch.device(f"cuda:{name}" if isinstance(name, int) else name)
        there = (device.index or 0) < counts.get(device.type, 0)
    except (RuntimeError, TypeError, ValueError):
        there = False
    if not there:
        kinds = {kind: f"{kind} (0..{count - 1})" if count > 1 else kind for kind, count in counts.items()}
        here = ", ".join(kinds[kind] for kind, count in counts.items() if count)
        raise SettingError(f"there is no device {name} here; there is: {here}")
    return device


def pick_dtype(name: DType = None) -> torch.dtype:
    """The number format of this name; float32 for None and ``auto``. ``SettingError`` if it is unusable."""
    if name is None or name == "auto":
        return torch.float32
    dtype = DTYPES.get(str(name).removeprefix("torch."))
    if dtype is None:
        raise SettingError(f"dtype= is {', '.join(DTYPES)}, not {name}")
    return dtype


def names_dtype(value: object) -> TypeGuard[str]:
    """True for the name of a number format of torch's, usable here or not."""
    return isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)


def cpu_has_bfloat16() -> bool:
    """True if bfloat16 is fast on this CPU; without oneDNN's help a convolution takes 20 times as long."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Float32 products and convolutions of a GPU in TF32, or in float32 as it says; then as before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
