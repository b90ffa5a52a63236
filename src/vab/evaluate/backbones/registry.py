"""Registry of the networks that generated sound is measured with, loaded when needed from weights on disk.

Nothing is downloaded. Each network is written out here, so that only its published weights are missing, and a
machine without a GPU can run it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """An audio network on a device."""

    def __call__(self, waveform: NDArray[np.float32]) -> tuple[Features, ...]:
        """Features of one waveform [S], mono, at the spec's rate: one for each table of the spec."""


@dataclass(frozen=True)
class FeatureSpec:
    """One kind of feature: which network makes it, and where the cache holds it."""

    name: str
    rate: int  # Hz of the waveform; 0 if the features are made from video
    tables: tuple[str, ...]  # files of the cache, without ".pth"; av-benchmark's where it has them
    version: str = ""  # of features that need no weights
    file: str = ""  # of the published weights
    source: str = ""  # where they come from
    network: str = ""  # module:class in this package, made of weights and device
    whole: bool = False  # made from the whole file, however many seconds are measured

    @property
    def from_video(self) -> bool:
        """True if the network takes a video, not a waveform."""
        return self.rate == 0


Rows = Sequence[tuple[Features, ...]]  # N clips: one of each table


@dataclass(frozen=True)
class BackboneSpec:
    """A judge: the features it needs of the reference and of the generated clips, and what it computes."""

    reference: FeatureSpec
    generated: FeatureSpec
    # (weights, device, reference rows, generated rows) -> a number for each pair [N]; None: FD, KL and IS
    compare: Callable[[Path | None, str, Rows, Rows], NDArray[np.floating]] | None = None
    compares_with_weights: bool = False  # ``compare`` runs a network too, so cached features are not enough
    min_segments: int = 0  # of the features of a clip

    @property
    def specs(self) -> tuple[FeatureSpec, FeatureSpec]:
        """The features of the reference and of the generated clips."""
        return self.reference, self.generated


def _cosines(weights: Path | None, device: str, videos: Rows, audios: Rows) -> NDArray[np.floating]:
    from vab.evaluate.backbones.imagebind import cosines

    return cosines([clip[0] for clip in videos], [clip[0] for clip in audios])


def _offsets(weights: Path | None, device: str, videos: Rows, audios: Rows) -> NDArray[np.floating]:
    from vab.evaluate.backbones.synchformer import offsets

    assert weights is not None  # ``compares_with_weights``
    return offsets(weights, device, [clip[0] for clip in videos], [clip[0] for clip in audios])


VGGISH = FeatureSpec(
    "vggish",
    16_000,
    ("vggish_features",),
    file="vggish-10086976.pth",
    source="https://github.com/harritaylor/torchvggish/releases/tag/v0.1",
    network="vggish:VGGishBackbone",
)
PANNS = FeatureSpec(
    "panns",
    16_000,
    ("pann_features",),
    file="Cnn14_16k_mAP=0.438.pth",
    source="https://zenodo.org/records/3987831",
    network="panns:PANNsBackbone",
)
PASST = FeatureSpec(
    "passt",
    32_000,
    ("passt_features_embed", "passt_logits"),
    file="passt-s-f128-p16-s10-ap.476-swa.pt",
    source="https://github.com/kkoutini/PaSST/releases/tag/v0.0.1-audioset",
    network="passt:PaSSTBackbone",
)
YAMNET = FeatureSpec(
    "yamnet",
    16_000,
    ("yamnet_features", "yamnet_logits"),
    file="yamnet_spectra_in.tflite",
    source="https://github.com/google-coral/coralmicro/tree/main/models",
    network="yamnet:YamnetBackbone",
)
IMAGEBIND_AUDIO = FeatureSpec(
    "imagebind_audio",
    16_000,
    ("imagebind_audio",),
    file="imagebind_huge.pth",
    source="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    network="imagebind:ImageBindAudio",
    whole=True,
)
IMAGEBIND_VIDEO = replace(
    IMAGEBIND_AUDIO,
    name="imagebind_video",
    rate=0,
    tables=("imagebind_video",),
    network="imagebind:ImageBindVideo",
)
SYNCHFORMER_AUDIO = FeatureSpec(
    "synchformer_audio",
    16_000,
    ("synchformer_audio",),
    file="synchformer_state_dict.pth",
    source="https://github.com/hkchengrex/MMAudio/releases/tag/v0.1",
    network="synchformer:SynchformerAudio",
)
SYNCHFORMER_VIDEO = replace(
    SYNCHFORMER_AUDIO,
    name="synchformer_video",
    rate=0,
    tables=("synchformer_video",),
    network="synchformer:SynchformerVideo",
)
BACKBONES = {
    "vggish": BackboneSpec(VGGISH, VGGISH),
    "panns": BackboneSpec(PANNS, PANNS),
    "passt": BackboneSpec(PASST, PASST),
    "yamnet": BackboneSpec(YAMNET, YAMNET),
    "imagebind": BackboneSpec(IMAGEBIND_VIDEO, IMAGEBIND_AUDIO, compare=_cosines),
    "synchformer": BackboneSpec(
        SYNCHFORMER_VIDEO, SYNCHFORMER_AUDIO, compare=_offsets, compares_with_weights=True, min_segments=14
    ),
}


def find(spec: FeatureSpec, weights: Path | None) -> tuple[Path, str]:
    """The weights of a feature's network and the start of their sha256. ``EvaluationError`` if not there."""
    from vab.evaluate.backbones.weights import find_weights

    path = find_weights(spec.file, spec.source, weights)
    try:
        return path, sha256(path.read_bytes())[:16]
    except OSError as error:
        raise EvaluationError(f"{path}: {first_line(error)}") from None


def load(spec: FeatureSpec, path: Path, device: str) -> Any:
    """The network of a feature with its weights, on a device (``auto``: the best there is).

    A ``Backbone``; if the feature is made from video, it is called with a path and how many of its seconds.

    ``EvaluationError`` for weights that do not fit or a package that is missing; ``SettingError`` for a
    device that is not there.
    """
    from vab.utils.device import pick_device

    # imported only now: `vab doctor` lists the registry without any network's module
    module, _, kind = spec.network.partition(":")
    network = getattr(import_module(f"vab.evaluate.backbones.{module}"), kind)
    return network(path, pick_device(device))
