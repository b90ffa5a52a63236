"""Fréchet distance, KL and inception score where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg

from vab.evaluate.metrics.distances import (
    divergences,
    frechet,
    frechet_interval,
    inception_interval,
    inception_score,
    log_softmax,
)
from vab.evaluate.metrics.statistics import EvaluationError

RANDOM = np.random.default_rng(0)


def exactly(n: int, mean: NDArray, covariance: NDArray, seed: int = 0) -> NDArray:
    """n points whose own mean and covariance are these, to rounding."""
    points = np.random.default_rng(seed).standard_normal((n, len(mean)))
    white, _ = np.linalg.qr(points - points.mean(0))
    white -= white.mean(0)
    return mean + np.sqrt(n - 1) * white @ linalg.cholesky(covariance)


def by_scipy(a: NDArray, b: NDArray) -> float:
    """The formula as everyone writes it, with a matrix root."""
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    between = a.mean(0) - b.mean(0)
    root = linalg.sqrtm(one @ other)
    return float(between @ between + np.trace(one) + np.trace(other) - 2 * np.trace(root).real)


def test_frechet_of_normal_laws_that_have_a_closed_form() -> None:
    one, other = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    a = exactly(50, np.zeros(3), np.diag(one))
    b = exactly(40, np.array([1.0, -2.0, 3.0]), np.diag(other), seed=1)
    assert frechet(a, b) == pytest.approx(14 + np.square(np.sqrt(one) - np.sqrt(other)).sum(), rel=1e-10)
    # two dimensions, no common axes: tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2)
    first, second = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.9], [-0.9, 3.0]])
    c, d = exactly(30, np.zeros(2), first), exactly(30, np.zeros(2), second, seed=2)
    product = first @ second
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    assert frechet(c, d) == pytest.approx(np.trace(first) + np.trace(second) - 2 * root, rel=1e-10)


@settings(max_examples=30)
@given(st.integers(2, 12), st.integers(3, 60), st.integers(3, 60), st.integers(0, 999))
def test_frechet_is_scipys_where_that_can_be_trusted(size: int, n: int, m: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.standard_normal((n + size, size)) @ random.standard_normal((size, size))
    b = random.standard_normal((m + size, size)) * random.uniform(0.5, 2, size) + random.standard_normal(size)
    assert frechet(a, b) == pytest.approx(by_scipy(a, b), rel=1e-6, abs=1e-8)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (5, 12), (300, 20)])
def test_fewer_clips_than_dimensions_are_no_other_problem(n: int, m: int) -> None:
    # a law of 4 dimensions laid into 512: the distance must not change
    a, b = RANDOM.standard_normal((n, 4)), RANDOM.standard_normal((m, 4)) * 2 + 1
    basis, _ = np.linalg.qr(RANDOM.standard_normal((512, 4)))
    assert frechet(a @ basis.T, b @ basis.T) == pytest.approx(frechet(a, b), rel=1e-9)
    if n > 4 and m > 4:
        assert frechet(a @ basis.T, b @ basis.T) == pytest.approx(by_scipy(a, b), rel=1e-6)


@pytest.mark.parametrize("size", [3, 128, 700])
def test_equal_sets_are_at_zero_in_any_precision(size: int) -> None:
    a = (1000 + RANDOM.standard_normal((200, size))).astype(np.float32)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-12 * size)
    assert frechet(a, a + np.float32(3)) == pytest.approx(9 * size, rel=1e-6)


def test_a_set_of_one_has_no_covariance() -> None:
    with pytest.raises(EvaluationError, match="two clips"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_an_interval_of_frechet_holds_its_value_and_shrinks() -> None:
    widths = []
    for n in (50, 800):
        a = [RANDOM.standard_normal((2, 6)) for _ in range(n)]
        b = [RANDOM.standard_normal((3, 6)) + 0.5 for _ in range(n)]
        found = frechet_interval(a, b, 100)
        assert found.value == pytest.approx(frechet(np.concatenate(a), np.concatenate(b)))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < 0.5 * widths[0]
    same = frechet_interval(a, a, 20)
    assert max(same.value, same.low, same.high) < 1e-10
    assert math.isnan(frechet_interval(a, b, 0).low)


def test_divergence_of_known_laws_has_the_reference_in_front() -> None:
    real, made = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.9, 0.1], [0.9, 0.1]]) + 7.0
    wanted = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert divergences(real, made) == pytest.approx([wanted, 0.0], abs=1e-12)
    assert divergences(made, real)[0] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    # logits of any size: neither overflow nor log of zero
    far = divergences(np.array([[1000.0, 0.0]]), np.array([[0.0, 1000.0]]))
    assert far == pytest.approx([1000.0])
    assert np.exp(log_softmax(RANDOM.standard_normal((4, 9)) * 50)).sum(1) == pytest.approx(np.ones(4))


def test_inception_score_of_known_laws() -> None:
    assert inception_score(np.tile(RANDOM.standard_normal(5), (60, 1))) == pytest.approx((1.0, 0.0))
    sure = 50.0 * np.eye(4)[np.arange(8000) % 4]  # four classes, as many clips each
    mean, deviation = inception_score(sure)
    assert mean == pytest.approx(4.0, rel=2e-3)
    assert deviation < 0.01
    assert inception_score(RANDOM.standard_normal((3, 4)))[0] == pytest.approx(1.0)  # parts of one clip


def test_inception_score_is_av_benchmarks() -> None:
    # its arithmetic, retold: ten parts of the clips shuffled by RandomState(2020)
    logits = RANDOM.standard_normal((43, 20)) * 3
    shuffled = logits[np.random.RandomState(2020).permutation(43)]
    scores = []
    for i in range(10):
        part = shuffled[i * 43 // 10 : (i + 1) * 43 // 10]
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores)))
    found = inception_interval(logits, 100)
    assert found.low < np.mean(scores) < found.high and found.value == pytest.approx(np.mean(scores))
