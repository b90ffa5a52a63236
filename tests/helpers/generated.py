"""Sounds of the bundled model with every setting spelled out, and the kind of machine that made them.

``python generated.py CLIPS OUT``: run as a program of its own, so that nothing but one thread of a fresh
process has a hand in the numbers. Writes ``OUT/<case>.wav``, ``OUT/sounds.safetensors`` (of each case the
tokens [K,T], the features [F,dim] they were made for, the levels of the sound) and ``OUT/kind.json``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

# names that 0.1.0 has too, so that it can be run there
from vab import DecodeConfig, VABPipeline
from vab.config import from_dict

EXAMPLE = Path(__file__).parents[2] / "examples" / "cat.mp4"
DECODE = {"steps": 16, "guidance": 4.0, "temperature": 4.5, "top_k": 0, "candidates": 1}
# 0.1.0 knew nothing of timing
UNTOLD = {"timing": "none"} if "timing" in inspect.signature(VABPipeline.generate_many).parameters else {}
# a case's file, seed, spans of its own sound that stay, and whether by the folder ``model`` beside ``clips``
CASES: dict[str, dict[str, Any]] = {
    "cat": {"file": str(EXAMPLE), "seed": 0},
    "wide": {"file": "wide.mp4", "seed": 1},
    "odd": {"file": "odd.mkv", "seed": 2},
    "short": {"file": "short.webm", "seed": 3},
    "kept": {"file": "kept.mkv", "seed": 4, "keep": [(0.5, 1.3), (5.0, 6.0)]},
    "photo": {"file": "photo.png", "seed": 5},
    "stages": {"file": "odd.mkv", "seed": 6, "own": True},
}


def machine() -> str:
    """What floating point results depend on: the processor, its best instructions, those in use, versions."""
    fields: dict[str, str] = {}
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    best = next((flag for flag in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if flag in flags), "other")
    processor = f"{fields.get('vendor_id', 'unknown')} family {fields.get('cpu family', '?')} {best}"
    versions = f"torch {'.'.join(torch.__version__.split('.')[:2])}, av {av.__version__.split('.')[0]}"
    return f"{processor} as {torch.backends.cpu.get_cpu_capability()}, {versions}"


def read_machine(out: Path) -> str:
    """The kind of machine that made the sounds in ``out``."""
    return json.loads((out / "kind.json").read_text())["machine"]


def hashes(out: Path) -> dict[str, dict[str, str]]:
    """Of each case's tokens and WAV file: SHA-256."""
    tensors = load_file(out / "sounds.safetensors")
    data = {
        name: {
            "tokens": tensors[f"{name}.tokens"].numpy().tobytes(),
            "wav": (out / f"{name}.wav").read_bytes(),
        }
        for name in CASES
    }
    return {
        name: {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()}
        for name, parts in data.items()
    }


def levels(waveform: np.ndarray) -> Tensor:
    """Decibels [n] of each tenth of a second, against full scale."""
    tenths = waveform[: len(waveform) // 1600 * 1600].reshape(-1, 1600).astype(np.float64)
    return torch.from_numpy(10 * np.log10((tenths**2).mean(1) + 1e-8))


def write_wav(path: Path, waveform: np.ndarray) -> None:
    """As 0.1.0 wrote the model's own sound [S]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((waveform.clip(-1, 1) * 32767).round().astype("<i2").tobytes())


def main(clips: Path, out: Path) -> None:
    """Make every case's sound, on the CPU with one thread, in float32."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    bundled = VABPipeline.from_pretrained(None, device="cpu")
    small = VABPipeline.from_pretrained(clips.parent / "model", device="cpu")
    tensors = {}
    for name, case in CASES.items():
        path, seed, keep = clips / case["file"], case["seed"], case.get("keep", ())
        if case.get("own"):  # with the settings in its own config.json
            made = next(small.generate_many(path, 1, seed=seed))
        else:
            decode = from_dict(DecodeConfig, DECODE)
            made = next(bundled.generate_many(path, 1, seed=seed, decode=decode, keep=keep, **UNTOLD))
        raw = getattr(made, "raw", made.waveform)  # 0.1.0 had no other
        write_wav(out / f"{name}.wav", raw)
        assert made.tokens is not None and made.features is not None
        tensors[f"{name}.tokens"] = made.tokens.to(torch.int16).contiguous()
        tensors[f"{name}.features"] = made.features.float().contiguous()
        tensors[f"{name}.levels"] = levels(raw)
    save_file(tensors, out / "sounds.safetensors")
    (out / "kind.json").write_text(json.dumps({"machine": machine()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
