"""Compute devices and precisions: choose one, and what it is good at.

A precision has one set of words. In ``float32``, ``bfloat16`` and ``float16`` a network's weights are cast;
``tf32`` are float32 weights whose products an NVIDIA GPU rounds; ``auto`` is bfloat16 where it is measured to
be fast, else float32.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard, get_args

import torch

from vab.errors import SettingError
from vab.utils import Precision
from vab.utils.files import read_json, user_cache, write_json

Device: TypeAlias = str | int | torch.device | None

ENOUGH_GAIN = 1.5  # times as fast a product must be in bfloat16 for ``auto`` to take it
REPEATS = 15
ROWS, SIDE = 512, 1024  # of the product that is measured: a window of tokens, the paper's width
SIDE_GPU = 2048  # of two square matrices; smaller ones would measure how fast work is handed over
MEASURED = "bfloat16.json"  # in the user's cache folder: gains by processor, PyTorch and threads


class Chosen(NamedTuple):
    """The precision that networks compute in and, where ``auto`` chose it, why."""

    precision: Precision
    gain: float | None = None  # times as fast as in float32 a product was in bfloat16; None: not measured

    @property
    def dtype(self) -> torch.dtype:
        """The format of the weights."""
        return DTYPES[self.precision]

    @property
    def is_narrow(self) -> bool:
        """True for a format whose kernels round otherwise with other numbers of rows."""
        return self.dtype != torch.float32

    def document(self) -> dict[str, Any]:
        """For JSON: ``precision`` and, where ``auto`` chose it, ``bfloat16_gain``."""
        gain = {} if self.gain is None else {"bfloat16_gain": round(self.gain, 2)}
        return {"precision": self.precision, **gain}


DType: TypeAlias = str | torch.dtype | Chosen | None
FLOAT32 = Chosen("float32")

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
}


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


def pick_precision(name: DType = None, device: Device = "cpu") -> Chosen:
    """The precision of this name on a device: a word, a ``torch.dtype``, or one chosen before, which stays.

    None is float32. ``auto`` is bfloat16 where a product is measured to be at least ``ENOUGH_GAIN`` times as
    fast in it, else float32. ``SettingError`` for a precision that is unusable there.
    """
    where = pick_device(device)
    if name == "auto":
        gain = bfloat16_gain(where)
        return Chosen("bfloat16" if gain is not None and gain >= ENOUGH_GAIN else "float32", gain)
    if not isinstance(name, Chosen):
        word = "float32" if name is None else str(name).removeprefix("torch.")
        if word not in DTYPES:
            raise SettingError(f"a precision is auto, {', '.join(DTYPES)}, not {name}")
        name = Chosen(next(each for each in get_args(Precision) if each == word))
    if name.precision == "tf32" and where.type != "cuda":
        raise SettingError(f"TF32 is a number format of NVIDIA's GPUs, not of a device {where}")
    return name


def bfloat16_gain(device: torch.device) -> float | None:
    """How many times as fast as in float32 a product is in bfloat16 here; None for a device of no bfloat16.

    Measured once for a machine, PyTorch and number of threads, and kept in the user's cache folder; where
    that is damaged or cannot be written, measured again.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    key = f"{_processor(device)}, PyTorch {torch.__version__}"
    if device.type == "cpu":
        key += f", {torch.get_num_threads()} threads"
    path: Path | None = None
    kept: dict[str, Any] = {}
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: there is no home
        path = user_cache() / MEASURED
        kept = read_json(path)
    gain = kept.get(key)
    if isinstance(gain, int | float) and not isinstance(gain, bool) and 0 < gain < math.inf:
        return float(gain)
    gain = measure_gain(device)
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, kept | {key: round(gain, 3)})
    return gain


@torch.no_grad()
def measure_gain(device: torch.device) -> float:
    """How many times as fast a product is in bfloat16: the ratio of the fastest of 15 each, taken by turns.

    What disturbs a product only ever slows it down, and a bad moment would be kept for good.
    """
    sizes = [(SIDE_GPU, SIDE_GPU)]
    if device.type == "cpu":
        # A small one first: where bfloat16 is emulated, the large one would take seconds.
        sizes = [(ROWS // 16, SIDE // 4), (ROWS, SIDE)]
    gain = 0.0
    random = torch.Generator(device)  # of its own: whoever asks keeps the numbers of the seed that is set
    with tf32(False):
        for rows, side in sizes:
            pairs = [
                tuple(torch.rand(n, side, device=device, generator=random).to(kind) for n in (rows, side))
                for kind in (torch.float32, torch.bfloat16)
            ]
            seconds: list[list[float]] = [[], []]
            for repeat in range(REPEATS + 1):
                for (a, b), times in zip(pairs, seconds, strict=True):
                    begin = time.perf_counter()
                    torch.nn.functional.linear(a, b)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    if repeat:  # the first chooses kernels
                        times.append(time.perf_counter() - begin)
            slow, fast = map(min, seconds)
            gain = slow / max(fast, 1e-9)
            if gain < 0.5:
                break
    return gain


def _processor(device: torch.device) -> str:
    """What a device is, to tell measurements apart: no choice depends on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name, features = platform.processor() or platform.machine(), platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = [line.partition(":") for line in lines]
        about = {key.strip(): value.strip() for key, _, value in pairs}
        name = about.get("model name", name)
        features = about.get("flags") or about.get("Features") or features
    # Machines that share a home may call processors of other features by the same name.
    return f"{name} {hashlib.sha256(features.encode()).hexdigest()[:8]}"


def names_dtype(value: object) -> TypeGuard[str]:
    """True for the name of a precision, or of any number format of torch's, usable here or not."""
    if not isinstance(value, str):
        return False
    return value in DTYPES or isinstance(getattr(torch, value, None), torch.dtype)


def cpu_has_bfloat16() -> bool:
    """True if bfloat16 is fast on this CPU; without oneDNN's help a convolution takes 20 times as long."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def products(precision: Precision) -> AbstractContextManager[None]:
    """What float32 weights are multiplied in: TF32 if that is the precision, else as it is set."""
    return tf32(True) if precision == "tf32" else nullcontext()


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
