"""What needs no network: clicks at known times, known gains, known bands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vab.evaluate.metrics.signal import mel_distance, onset_agreement, onsets, statistics
from vab.utils.mel import log_mel_frames, magnitudes, mel_filters, patches

RATE = 16_000


def clicks(times: list[float], seconds: float = 4.0, noise: float = 1e-3) -> np.ndarray:
    """Bursts that fade within 50 ms, over faint noise."""
    random = np.random.default_rng(0)
    sound = noise * random.standard_normal(round(seconds * RATE))
    burst = 0.5 * random.standard_normal(800) * np.exp(-np.arange(800) / 200)
    for time in times:
        at = round(time * RATE)
        sound[at : at + 800] += burst[: len(sound) - at]
    return sound.astype(np.float32)


@pytest.mark.parametrize("times", [[0.5, 1.1, 2.0, 3.35], [0.05, 3.9], [1.0, 1.15, 1.3], []])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
def test_onsets_of_known_clicks(times: list[float], noise: float) -> None:
    found = onsets(clicks(times, noise=noise))
    assert len(found) == len(times)
    assert np.abs(found - np.array(times)).max(initial=0) <= 0.02


def test_steady_sound_has_no_onset_nor_has_its_beginning() -> None:
    time = np.arange(3 * RATE) / RATE
    for steady in (0.2 * np.sin(2 * np.pi * 440 * time), clicks([], noise=0.1), np.zeros(RATE), np.zeros(9)):
        assert len(onsets(steady.astype(np.float32))) == 0


def test_agreement_of_onsets() -> None:
    real = onsets(clicks([0.5, 1.0, 2.0, 3.0]))
    assert onset_agreement(real, real) == 1.0
    assert onset_agreement(real, onsets(clicks([0.53, 1.03, 2.03, 3.03]))) == 1.0
    assert onset_agreement(real, onsets(clicks([0.7, 1.2, 2.2, 3.2]))) == 0.0
    assert onset_agreement(real, onsets(clicks([0.5, 1.0]))) == pytest.approx(2 * 2 / 6)
    assert onset_agreement(real[:0], real[:0]) == 1.0
    assert onset_agreement(real, real[:0]) == 0.0


def best_matching(a: list[float], b: list[float]) -> int:
    """The most pairs at most 50 ms apart, by trying everything."""
    if not a:
        return 0
    rest = [best_matching(a[1:], b[:n] + b[n + 1 :]) + 1 for n in range(len(b)) if abs(a[0] - b[n]) < 0.0501]
    return max([best_matching(a[1:], b), *rest])


@given(*[st.lists(st.integers(0, 25), max_size=5, unique=True).map(sorted)] * 2)
def test_agreement_finds_the_most_pairs(a: list[int], b: list[int]) -> None:
    one, other = [x / 100 for x in a], [x / 100 for x in b]
    total = len(a) + len(b)
    wanted = 2 * best_matching(one, other) / total if total else 1.0
    assert onset_agreement(np.array(one), np.array(other)) == pytest.approx(wanted)


def test_mel_distance_of_known_gains() -> None:
    sound = 0.05 * np.random.default_rng(1).standard_normal(RATE)
    assert mel_distance(sound, sound) == 0.0
    assert mel_distance(sound, 10 * sound) == pytest.approx(1.0)  # 20 dB
    assert mel_distance(sound, -sound) == pytest.approx(0.0)
    assert mel_distance(sound, np.tile(sound, 2)) == 0.0  # what is longer is cut
    other = 0.05 * np.random.default_rng(2).standard_normal(RATE)
    assert 0.1 < mel_distance(sound, other) == pytest.approx(mel_distance(other, sound))
    with pytest.raises(ValueError, match="2048"):
        mel_distance(sound, sound[:2000])


def test_statistics_are_mean_and_deviation_over_time() -> None:
    steady, beating = (0.1 * np.random.default_rng(3).standard_normal(2 * RATE) for _ in range(2))
    beating = beating * (np.arange(2 * RATE) // 4000 % 2)
    frames = log_mel_frames(beating, 1e-3)
    assert statistics(beating) == pytest.approx(np.concatenate([frames.mean(0), frames.std(0)]))
    assert statistics(steady)[64:].mean() < 0.5 * statistics(beating)[64:].mean()


def test_a_tone_is_in_its_band() -> None:
    filters = mel_filters(64, 512, RATE, 125.0, 7500.0)
    assert filters.shape == (257, 64) and filters.min() == 0 and filters.max() <= 1
    assert (filters > 0).any(0).all()
    mel = 1127 * np.log1p(np.array([125.0, 1000.0, 7500.0]) / 700)
    band = round((mel[1] - mel[0]) / (mel[2] - mel[0]) * 65) - 1
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    assert abs(int(log_mel_frames(tone, 0.01).mean(0).argmax()) - band) <= 1


def test_frames_and_patches_are_whole_ones() -> None:
    assert magnitudes(np.ones(399), 400, 160, 512).shape == (0, 257)
    assert magnitudes(np.ones(400 + 95 * 160), 400, 160, 512).shape == (96, 257)
    frames = np.arange(200 * 64, dtype=np.float32).reshape(200, 64)
    found = patches(frames, 96, 48)
    assert found.shape == (3, 96, 64)
    assert (found[1] == frames[48:144]).all()
    assert patches(frames[:95], 96, 96).shape == (0, 96, 64)
