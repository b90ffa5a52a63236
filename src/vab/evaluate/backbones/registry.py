"""The networks that generated sound is measured with: one protocol, loaded when needed, from weights on disk.

Nothing is downloaded. Each network is written out here, so that only its published weights are missing, and a
machine without a GPU can run it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vab.errors import first_line
from vab.evaluate.metrics.statistics import EvaluationError
from vab.utils.provenance import sha256

Features = Any  # a tensor, or tensors by name


class Backbone(Protocol):
    """A network for sounds on a device."""

    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Features, ...]:
        """Features of one sound [S], mono, at the rate of its kind: one for each table of the kind."""


class PictureBackbone(Protocol):
    """A network for videos on a device."""

    def __call__(self, path: Path, seconds: float) -> tuple[Features, ...]:
        """Features of the first seconds of a video: one for each table of the kind."""


@dataclass(frozen=True)
class FeatureSpec:
    """Features that a backbone makes, and where it leaves them in the cache."""

    name: str
    rate: int  # Hz of the sound; 0 if they are made of the picture
    tables: tuple[str, ...]  # files of the cache, without ".pth"; av-benchmark's where it has them
    version: str = ""  # of what needs no weights
    file: str = ""  # of the published weights
    source: str = ""  # where they come from
    made_by: str = ""  # module:class
    whole: bool = False  # made of the whole file, however many seconds are measured


VGGISH = FeatureSpec(
    "vggish",
    16_000,
    ("vggish_features",),
    file="vggish-10086976.pth",
    source="https://github.com/harritaylor/torchvggish/releases/tag/v0.1",
    made_by="vggish:VGGishBackbone",
)
PANNS = FeatureSpec(
    "panns",
    16_000,
    ("pann_features",),
    file="Cnn14_16k_mAP=0.438.pth",
    source="https://zenodo.org/records/3987831",
    made_by="panns:PANNsBackbone",
)
PASST = FeatureSpec(
    "passt",
    32_000,
    ("passt_features_embed", "passt_logits"),
    file="passt-s-f128-p16-s10-ap.476-swa.pt",
    source="https://github.com/kkoutini/PaSST/releases/tag/v0.0.1-audioset",
    made_by="passt:PaSSTBackbone",
)
YAMNET = FeatureSpec(
    "yamnet",
    16_000,
    ("yamnet_features", "yamnet_logits"),
    file="yamnet_spectra_in.tflite",
    source="https://github.com/google-coral/coralmicro/tree/main/models",
    made_by="yamnet:YamnetBackbone",
)
IMAGEBIND_SOUND = FeatureSpec(
    "imagebind_audio",
    16_000,
    ("imagebind_audio",),
    file="imagebind_huge.pth",
    source="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    made_by="imagebind:ImageBindSound",
    whole=True,
)
IMAGEBIND_PICTURE = replace(
    IMAGEBIND_SOUND,
    name="imagebind_video",
    rate=0,
    tables=("imagebind_video",),
    made_by="imagebind:ImageBindPicture",
)
SYNCHFORMER_SOUND = FeatureSpec(
    "synchformer_audio",
    16_000,
    ("synchformer_audio",),
    file="synchformer_state_dict.pth",
    source="https://github.com/hkchengrex/MMAudio/releases/tag/v0.1",
    made_by="synchformer:SynchformerSound",
)
SYNCHFORMER_PICTURE = replace(
    SYNCHFORMER_SOUND,
    name="synchformer_video",
    rate=0,
    tables=("synchformer_video",),
    made_by="synchformer:SynchformerPicture",
)
BACKBONES = {  # what is made of the reference, and of what was generated
    "vggish": (VGGISH, VGGISH),
    "panns": (PANNS, PANNS),
    "passt": (PASST, PASST),
    "yamnet": (YAMNET, YAMNET),
    "imagebind": (IMAGEBIND_PICTURE, IMAGEBIND_SOUND),
    "synchformer": (SYNCHFORMER_PICTURE, SYNCHFORMER_SOUND),
}


def find(kind: FeatureSpec, weights: Path | None) -> tuple[Path, str]:
    """The weights of a kind and the start of their sha256. ``EvaluationError`` if they are not there."""
    from vab.evaluate.backbones.weights import find_weights

    path = find_weights(kind.file, kind.source, weights)
    try:
        return path, sha256(path.read_bytes())[:16]
    except OSError as error:
        raise EvaluationError(f"{path}: {first_line(error)}") from None


def load(kind: FeatureSpec, path: Path, device: str) -> Any:
    """The backbone of a kind with its weights on a device (``auto``: the best there is); a ``Backbone`` for
    sounds, a ``PictureBackbone`` for pictures.

    ``EvaluationError`` for weights that do not fit or a package that is missing; ``SettingError`` for a
    device that is not there.
    """
    from vab.utils.device import pick_device

    module, name = kind.made_by.split(":")
    return getattr(import_module(f"{__package__}.{module}"), name)(path, pick_device(device))
