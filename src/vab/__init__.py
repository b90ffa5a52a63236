"""VAB: from vision to audio and beyond (Su, Liu and Shlizerman, ICML 2024).

The public names are loaded when they are first used, so that ``import vab`` is quick and torch-free.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from vab.config import DecodeConfig, ModelConfig, Preset, TrainConfig
    from vab.errors import SettingError, VABError
    from vab.inference.audio import Audio
    from vab.inference.pipeline import VABPipeline
    from vab.media.container import MediaError
    from vab.media.file import MediaFile
    from vab.models.hub import ModelError
    from vab.models.vab import VAB
    from vab.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "VAB",
    "Audio",
    "DecodeConfig",
    "MediaError",
    "MediaFile",
    "ModelConfig",
    "ModelError",
    "Preset",
    "SettingError",
    "TrainConfig",
    "VABError",
    "VABPipeline",
    "__version__",
    "preset",
]

_HOMES = {
    "vab.config": ("DecodeConfig", "ModelConfig", "Preset", "TrainConfig"),
    "vab.presets": ("PRESETS", "preset"),
    "vab.errors": ("SettingError", "VABError"),
    "vab.media.container": ("MediaError",),
    "vab.media.file": ("MediaFile",),
    "vab.models.hub": ("ModelError",),
    "vab.models.vab": ("VAB",),
    "vab.inference.audio": ("Audio",),
    "vab.inference.pipeline": ("VABPipeline",),
}

if not TYPE_CHECKING:  # or a type checker would take every name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return version("vab")
        for home, names in _HOMES.items():
            if name in names:
                return getattr(import_module(home), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
