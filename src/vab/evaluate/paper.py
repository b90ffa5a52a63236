"""The numbers of the paper's tables, and of one system after it: percent, as printed. Nothing is computed.

They stand beside this file, in ``paper.json``. CAV-MAE Sync was published after the paper.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RetrievalBenchmark = Literal["audioset", "vggsound", "msrvtt"]
ClassificationBenchmark = Literal["audioset-2m", "audioset-20k", "vggsound", "esc50", "spc1"]
Inputs = Literal["av", "v", "a"]
Way = Literal["video to audio", "audio to video"]
Recall = tuple[float, float, float]  # R@1, R@5, R@10
Scores = tuple[float | None, float | None, float | None]  # from V+A, V, A; None: not given

WAYS: tuple[Way, Way] = ("video to audio", "audio to video")
RETRIEVAL_TITLES: dict[RetrievalBenchmark, str] = {
    "audioset": "AudioSet eval subset",
    "vggsound": "VGGSound eval subset",
    "msrvtt": "MSR-VTT (zero-shot)",
}
RETRIEVAL_SIZES: dict[RetrievalBenchmark, int] = {"audioset": 1725, "vggsound": 1545}  # of CAV-MAE's lists
CLASSIFICATION_TITLES: dict[ClassificationBenchmark, str] = {
    "audioset-2m": "AudioSet, trained on AS-2M",
    "audioset-20k": "AudioSet, trained on AS-20K",
    "vggsound": "VGGSound",
    "esc50": "ESC-50",
    "spc1": "SPC-1",
}
# measured by mAP; the others by accuracy
MULTI_LABEL: tuple[ClassificationBenchmark, ...] = ("audioset-2m", "audioset-20k")
AUDIO_ONLY: tuple[ClassificationBenchmark, ...] = ("esc50", "spc1")
FINE_TUNED = (
    "VAB is fine-tuned by contrast on the training sets of AudioSet and VGGSound; CAV-MAE Sync calls its own "
    "numbers zero-shot, lists VAB as an upper bound, and had about 1,520 of VGGSound's 1,545 clips."
)


@dataclass(frozen=True)
class GenerationRow:
    """One system on the test set of VGGSound: 15,546 clips of 10 s."""

    source: str
    system: str
    fad: float  # on VGGish
    kld: float | None = None  # on PaSST; None: not given
    seconds: float | None = None  # of a clip, on one A6000


@dataclass(frozen=True)
class OpinionRow:
    """Mean opinion score of one system: 150 clips of VGGSound's test set, three raters each, from 1 to 5."""

    source: str
    system: str
    mean: float
    deviation: float


@dataclass(frozen=True)
class RetrievalRow:
    """One system one way: R@1, R@5, R@10 in percent on each benchmark it was measured on."""

    source: str
    system: str
    way: Way
    recall: dict[RetrievalBenchmark, Recall]


@dataclass(frozen=True)
class ClassificationRow:
    """One system: percent from V+A, V and A on each benchmark; accuracy, or mAP on AudioSet."""

    source: str
    system: str
    scores: dict[ClassificationBenchmark, Scores]


def _by_benchmark(table: dict[str, Any], numbers: Sequence[Any]) -> dict[Any, Any]:
    """A printed row as benchmark -> its three numbers."""
    return {name: tuple(numbers[3 * n : 3 * n + 3]) for n, name in enumerate(table["benchmarks"])}


# As printed, a row of a table for each system; null where the paper gives no number.
_PRINTED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
RETRIEVAL = tuple(
    RetrievalRow(table["source"], system, table["way"], _by_benchmark(table, numbers))
    for table in _PRINTED["retrieval"]
    for system, numbers in table["rows"].items()
)
CLASSIFICATION = tuple(
    ClassificationRow(table["source"], system, _by_benchmark(table, numbers))
    for table in _PRINTED["classification"]
    for system, numbers in table["rows"].items()
)
GENERATION = tuple(GenerationRow(*row) for row in _PRINTED["generation"])
OPINIONS = tuple(OpinionRow(*row) for row in _PRINTED["opinions"])
