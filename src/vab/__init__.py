"""VAB: from vision to audio and beyond (Su, Liu and Shlizerman, ICML 2024).

The public names are loaded when they are first used, so that ``import vab`` is quick and torch-free.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vab.config import PRESETS, DecodeConfig, ModelConfig, Preset, TrainConfig, preset
    from vab.media import MediaError
    from vab.model import VAB
    from vab.pipeline import Audio, VABPipeline
    from vab.weights import ModelError

__all__ = [
    "PRESETS",
    "VAB",
    "Audio",
    "DecodeConfig",
    "MediaError",
    "ModelConfig",
    "ModelError",
    "Preset",
    "TrainConfig",
    "VABPipeline",
    "preset",
]

_HOMES = {
    "vab.config": ("PRESETS", "DecodeConfig", "ModelConfig", "Preset", "TrainConfig", "preset"),
    "vab.media": ("MediaError",),
    "vab.model": ("VAB",),
    "vab.pipeline": ("Audio", "VABPipeline"),
    "vab.weights": ("ModelError",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
