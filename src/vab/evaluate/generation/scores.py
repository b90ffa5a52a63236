"""Features of two sets of sounds -> measures with intervals, under the names av-benchmark gives them.

N clips; clip i of the one set belongs to clip i of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vab.evaluate.backbones.registry import Features
from vab.evaluate.metrics import signal
from vab.evaluate.metrics.distances import divergences, frechet_interval, inception_interval, inception_score
from vab.evaluate.metrics.statistics import Interval, intervals

Rows = Sequence[tuple[Features, ...]]  # N clips: one of each table


@dataclass(frozen=True)
class Measure:
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
PICTURES: dict[str, tuple[str, Literal["lower", "higher"]]] = {
    "imagebind": ("IB-Score", "higher"),
    "synchformer": ("DeSync", "lower"),
}
AV_BENCHMARK = (
    *("FD-VGG", "FD-PANN", "FD-PASST", "KL-PANNS-softmax", "KL-PASST-softmax"),
    *("ISC-PANNS-mean", "ISC-PASST-mean", "IB-Score", "DeSync"),
)  # what stands in its output_metrics.json, and the deviations of the inception scores


def of_backbone(name: str, reference: Rows, generated: Rows, resamples: int) -> list[Measure]:
    """FD, and where the backbone is a tagger KL(reference || generated) and IS of the generated sounds.

    FD is over the patches of all clips for VGGish, which has some for each, and over clips for the others.
    """
    distance, divergence, score = KEYS[name]
    embeddings = [[_embedding(name, clip) for clip in clips] for clips in (reference, generated)]
    value = frechet_interval(embeddings[0], embeddings[1], resamples)
    found = [Measure(f"FD-{distance}", "lower", value, len(reference))]
    if divergence:
        logits = [np.stack([_logits(name, clip) for clip in clips]) for clips in (reference, generated)]
        each = divergences(logits[0], logits[1])
        found.append(Measure(f"KL-{divergence}-softmax", "lower", intervals(each[:, None])[0], len(each)))
        known = inception_interval(logits[1], resamples)
        deviation = inception_score(logits[1])[1]
        found.append(Measure(f"ISC-{score}-mean", "higher", known, len(each), deviation))
    return found


def of_pictures(name: str, distances: NDArray[np.floating]) -> list[Measure]:
    """IB-Score or DeSync of N clips: the mean."""
    key, better = PICTURES[name]
    return [Measure(key, better, intervals(distances[:, None])[0], len(distances))]


def similarities(pictures: Rows, sounds: Rows) -> NDArray[np.floating]:
    """Cosine of each picture and its sound: [N]."""
    a, b = (
        np.stack([clip[0].float().numpy() for clip in clips]).astype(np.float64)
        for clips in (pictures, sounds)
    )
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def of_sound(reference: Rows, generated: Rows, distances: Sequence[float], resamples: int) -> list[Measure]:
    """What needs no network: FD of log-mel statistics, mel distance and agreement of onsets, pair by pair."""
    statistics = [[clip[0]["statistics"].numpy()[None] for clip in clips] for clips in (reference, generated)]
    onsets = [[clip[0]["onsets"].numpy() for clip in clips] for clips in (reference, generated)]
    agreement = [signal.onset_agreement(a, b) for a, b in zip(*onsets, strict=True)]
    mel, same = intervals(np.stack([np.asarray(distances), np.asarray(agreement)], axis=1))
    n = len(reference)
    return [
        Measure("FD-LOGMEL", "lower", frechet_interval(statistics[0], statistics[1], resamples), n),
        Measure("MEL-distance", "lower", mel, n),
        Measure("ONSET-F1", "higher", same, n),
    ]


def _embedding(name: str, clip: tuple[Features, ...]) -> NDArray[np.floating]:
    """Rows [n, D] of one clip."""
    features = clip[0]["2048"] if name == "panns" else clip[0]
    return np.atleast_2d(features.float().numpy())


def _logits(name: str, clip: tuple[Features, ...]) -> NDArray[np.floating]:
    """[C] of one clip."""
    return (clip[0]["logits"] if name == "panns" else clip[1]).float().numpy()
