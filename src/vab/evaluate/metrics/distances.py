"""Fréchet distance, KL divergence and inception score on features of any network (section 4), in float64.

N, M clips, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vab.evaluate.metrics.statistics import EvaluationError, Interval, bootstrap

RESAMPLES = 200  # for metrics of whole sets, which are slow to compute anew
NUM_SPLITS = 10  # of the inception score
SHUFFLE_SEED = 2020  # of its order, as in av-benchmark


def frechet(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Fréchet distance of the normal laws that fit features a [N, D] and b [M, D], N and M at least 2.

    |mean a - mean b|^2 + tr A + tr B - 2 tr (A B)^(1/2), with A and B the covariances. The eigenvalues of
    (A B)^(1/2) are the singular values of L R^T, where A = L^T L and B = R^T R. So no covariance is ever
    squared or inverted, nothing turns complex or negative, and N may be below D.
    """
    if min(len(a), len(b)) < 2:
        raise EvaluationError("a Fréchet distance needs two clips or more on either side")
    # the covariances as factors: A = L^T L, B = R^T R
    left = _factor(a)
    right = _factor(b)
    between = np.asarray(a, np.float64).mean(0) - np.asarray(b, np.float64).mean(0)
    # tr (A B)^(1/2) is the sum of the singular values of L R^T
    overlap = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    # rounding may leave equal laws a hair below zero
    return max(0.0, float(between @ between + np.square(left).sum() + np.square(right).sum() - 2 * overlap))


def _factor(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """L [min(N, D), D] with L^T L = the covariance of features [N, D] (divided by N - 1)."""
    wide = np.asarray(features, np.float64)
    return np.asarray(np.linalg.qr((wide - wide.mean(0)) / np.sqrt(len(wide) - 1), mode="r"))


def frechet_interval(
    a: list[NDArray[np.floating]], b: list[NDArray[np.floating]], resamples: int = RESAMPLES
) -> Interval:
    """Fréchet distance of clips that have rows [n, D] each, with its interval by resampling the clips.

    Clip i of ``a`` belongs to clip i of ``b`` (they are drawn together). A resample holds clips twice and so
    fewer different ones, which lifts the distance: its spread is moved to the measured value.
    """
    value = frechet(np.concatenate(a), np.concatenate(b))

    def distance(rows: NDArray[np.int64]) -> float:
        return frechet(np.concatenate([a[row] for row in rows]), np.concatenate([b[row] for row in rows]))

    return _spread(value, _resampled(distance, len(a), resamples))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities [N, C] of logits [N, C]."""
    wide = np.asarray(logits, np.float64)
    # the largest logit becomes 0, so that exp cannot overflow
    wide = wide - wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def divergences(reference: NDArray[np.floating], generated: NDArray[np.floating]) -> NDArray[np.float64]:
    """KL(reference || generated) [N] in nats, pair by pair, of the softmax of logits [N, C]."""
    log_p = log_softmax(reference)
    log_q = log_softmax(generated)
    return (np.exp(log_p) * (log_p - log_q)).sum(1)


def inception_score(logits: NDArray[np.floating]) -> tuple[float, float]:
    """Mean and deviation over ten parts of exp E KL(p(class | clip) || p(class)), of logits [N, C].

    The clips are shuffled as av-benchmark does. Fewer than ten clips make as many parts.
    """
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(logits))
    scores = _scores(log_softmax(logits)[order])
    return float(np.mean(scores)), float(np.std(scores))


def inception_interval(logits: NDArray[np.floating], resamples: int = RESAMPLES) -> Interval:
    """The inception score of logits [N, C] with its interval, moved to the value as for Fréchet distances."""
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(logits))
    log_p = log_softmax(logits)[order]
    resampled = _resampled(lambda rows: float(np.mean(_scores(log_p[rows]))), len(log_p), resamples)
    return _spread(float(np.mean(_scores(log_p))), resampled)


def _scores(log_p: NDArray[np.float64]) -> list[float]:
    """The score of each part of log-probabilities [N, C]."""
    n = len(log_p)
    parts = min(NUM_SPLITS, n)
    scores = []
    for i in range(parts):
        part = log_p[i * n // parts : (i + 1) * n // parts]
        probability = np.exp(part)
        # log of the marginal p(class); a class that no clip has must not make it -inf
        mean = np.log(np.maximum(probability.mean(0), np.finfo(np.float64).tiny))
        scores.append(float(np.exp((probability * (part - mean)).sum(1).mean())))
    return scores


def _resampled(
    statistic: Callable[[NDArray[np.int64]], float], n: int, resamples: int
) -> NDArray[np.floating]:
    """A metric of whole sets on resamples of n clips: [R]; NaN if no resamples are asked for."""
    if not resamples:
        return np.full(1, np.nan)
    one_by_one = bootstrap(lambda rows: np.array([[statistic(row)] for row in rows]), n, resamples)
    return one_by_one[:, 0]


def _spread(value: float, resampled: NDArray[np.floating]) -> Interval:
    """The spread of resampled values about the measured one; distances do not go below zero."""
    interval = Interval.of(value, resampled - resampled.mean() + value)
    if interval.low < 0:
        return Interval(value, 0.0, interval.high)
    return interval
