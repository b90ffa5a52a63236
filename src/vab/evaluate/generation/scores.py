"""Features of two sets of clips -> metrics with intervals, under the names av-benchmark gives them.

N clips; clip i of the one set belongs to clip i of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vab.evaluate.backbones.registry import Features, Rows
from vab.evaluate.metrics import signal
from vab.evaluate.metrics.distances import divergences, frechet_interval, inception_interval, inception_score
from vab.evaluate.metrics.statistics import Interval, intervals


@dataclass(frozen=True)
class Metric:
    """One number with its interval, on so many clips."""

    key: str  # av-benchmark's where it has it
    better: Literal["lower", "higher"]
    value: Interval
    clips: int
    deviation: float | None = None  # of an inception score over its parts


KEYS = {  # backbone: its name in the keys of FD, of KL and of IS; "" where it does not give one
    "vggish": ("VGG", "", ""),
    "panns": ("PANN", "PANNS", "PANNS"),
    "passt": ("PASST", "PASST", "PASST"),
    "yamnet": ("YAMNET", "YAMNET", "YAMNET"),
}
AUDIO_VIDEO: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "imagebind": ("IB-Score", "higher"),
    "synchformer": ("DeSync", "lower"),
}
AV_BENCHMARK = (
    *("FD-VGG", "FD-PANN", "FD-PASST", "KL-PANNS-softmax", "KL-PASST-softmax"),
    *("ISC-PANNS-mean", "ISC-PASST-mean", "IB-Score", "DeSync"),
)  # what stands in its output_metrics.json, and the deviations of the inception scores


def of_backbone(name: str, reference: Rows, generated: Rows, resamples: int) -> list[Metric]:
    """FD, and where the backbone is a tagger KL(reference || generated) and IS of the generated clips.

    FD is over the patches of all clips for VGGish, which has some for each, and over clips for the others.
    """
    # 1. FD, of all rows of features together.
    distance, divergence, score = KEYS[name]
    reference_embeddings = [_embedding(clip) for clip in reference]
    generated_embeddings = [_embedding(clip) for clip in generated]
    value = frechet_interval(reference_embeddings, generated_embeddings, resamples)
    metrics = [Metric(f"FD-{distance}", "lower", value, len(reference))]
    if not divergence:
        return metrics

    # 2. KL and IS of the classes: logits [N, C].
    reference_logits = np.stack([_logits(clip) for clip in reference])
    generated_logits = np.stack([_logits(clip) for clip in generated])
    each = divergences(reference_logits, generated_logits)
    metrics.append(Metric(f"KL-{divergence}-softmax", "lower", intervals(each[:, None])[0], len(each)))
    inception = inception_interval(generated_logits, resamples)
    _, deviation = inception_score(generated_logits)
    metrics.append(Metric(f"ISC-{score}-mean", "higher", inception, len(each), deviation))
    return metrics


def of_pairs(name: str, values: NDArray[np.floating]) -> list[Metric]:
    """IB-Score or DeSync: the mean of the values [N] of N clips."""
    key, better = AUDIO_VIDEO[name]
    return [Metric(key, better, intervals(values[:, None])[0], len(values))]


def of_signal(reference: Rows, generated: Rows, distances: Sequence[float], resamples: int) -> list[Metric]:
    """Metrics that need no network: FD of log-mel statistics, mel distance, onset F1 of each pair."""
    reference_statistics = [clip[0]["statistics"].numpy()[None] for clip in reference]
    generated_statistics = [clip[0]["statistics"].numpy()[None] for clip in generated]
    agreement = [
        signal.onset_agreement(real[0]["onsets"].numpy(), made[0]["onsets"].numpy())
        for real, made in zip(reference, generated, strict=True)
    ]
    # both means over the same resamples of the pairs
    mel, onset_f1 = intervals(np.stack([np.asarray(distances), np.asarray(agreement)], axis=1))
    n = len(reference)
    value = frechet_interval(reference_statistics, generated_statistics, resamples)
    return [
        Metric("FD-LOGMEL", "lower", value, n),
        Metric("MEL-distance", "lower", mel, n),
        Metric("ONSET-F1", "higher", onset_f1, n),
    ]


def _embedding(clip: tuple[Features, ...]) -> NDArray[np.floating]:
    """Rows [n, D] of one clip."""
    # av-benchmark keeps PANNs' embedding and logits in one table
    features = clip[0]["2048"] if isinstance(clip[0], dict) else clip[0]
    return np.atleast_2d(features.float().numpy())


def _logits(clip: tuple[Features, ...]) -> NDArray[np.floating]:
    """[C] of one clip."""
    return (clip[0]["logits"] if isinstance(clip[0], dict) else clip[1]).float().numpy()
