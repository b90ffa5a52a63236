"""The timing curve: bumps where events are, levels in its units, its file, and what a sound has of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vab.timing.curve import TimingCurve, TimingError, decibels, events, level_units, read_curve, write_curve
from vab.timing.sound import curve_of, level_db, onset_strength, onset_times, stored_curve

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


def test_an_event_is_a_bump_of_30_ms_at_its_time() -> None:
    curve = TimingCurve.from_events([0.51, 1.005], 100, [1.0, 0.5])
    assert curve.onset is not None and curve.onset.dtype == np.float32 and curve.num_frames == 100
    assert curve.onset[25] == pytest.approx(1.0)  # the frame of 0.50 to 0.52 s
    assert curve.onset[26] == pytest.approx(np.exp(-0.5 * (0.02 / 0.03) ** 2), abs=1e-6)
    assert curve.onset[50] == pytest.approx(0.5 * np.exp(-0.5 * (0.005 / 0.03) ** 2), abs=1e-6)
    assert curve.onset[:15].max() == 0.0
    # bumps add up, but not beyond 1; beside the curve nothing is left
    assert TimingCurve.from_events([0.5] * 3 + [-5, 70], 50).onset.max() == 1.0  # type: ignore[union-attr]


def test_events_that_are_no_numbers_are_refused() -> None:
    for times, strengths in (([0.5, np.nan], None), ([np.inf], None), ([0.5], [np.nan])):
        with pytest.raises(TimingError, match="times and strengths of events must be numbers"):
            TimingCurve.from_events(times, 50, strengths)


def test_channels_say_what_is_known() -> None:
    level = np.linspace(-1.5, 1.5, 50)
    both = TimingCurve.from_events([0.5], 50, level=level)
    onset, only = TimingCurve(both.onset), TimingCurve(level=both.level)
    assert both.channels().shape == (50, 4) and both.channels().dtype == np.float32
    assert np.array_equal(both.channels()[:, 2:], np.ones((50, 2)))
    assert np.array_equal(onset.channels()[:, [1, 3]], np.zeros((50, 2)))
    assert np.array_equal(onset.channels()[:, 0], both.channels()[:, 0])
    assert np.array_equal(only.channels()[:, [0, 2]], np.zeros((50, 2)))
    assert np.array_equal(only.cut(10, 99).channels(), only.channels()[10:])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs onsets or levels"),
        ({"onset": np.zeros((2, 3))}, r"the onset of a timing curve is \[T\], not \[2, 3\]"),
        ({"onset": np.zeros(3), "level": np.zeros(4)}, "one length, not 3 of onset and 4 of level"),
        ({"level": np.array([0.0, np.nan])}, "level of a timing curve holds values that are not numbers"),
    ],
)
def test_a_curve_that_is_none_is_refused(given: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(TimingError, match=words):
        TimingCurve(**given)


def test_levels_are_45_db_over_three_units() -> None:
    assert level_units([0.0, -45.0, -22.5, -80.0, 3.0]).tolist() == [1.5, -1.5, 0.0, -1.5, 1.5]
    values = np.linspace(-45, 0, 20)
    assert np.allclose(decibels(level_units(values)), values, atol=1e-5)


def test_a_file_holds_a_curve(tmp_path: Path) -> None:
    times, strengths = [0.033, 0.52, 1.234, 1.9], [0.3, 1.0, 0.55, 0.8]
    level = np.interp(np.arange(100), [0, 30, 99], [-1.5, 1.5, 0.2])
    curve = TimingCurve.from_events(times, 100, strengths, level)
    write_curve(tmp_path / "curve.csv", curve)
    assert (tmp_path / "curve.csv").read_text().splitlines()[0] == "seconds,onset,level_db"
    again = read_curve(tmp_path / "curve.csv")
    assert again.num_frames == 100
    assert np.abs(again.channels() - curve.channels()).max() < 2e-3
    assert np.allclose(events(curve.onset)[0], times, atol=1e-3)  # type: ignore[arg-type]
    assert np.allclose(events(curve.onset)[1], strengths, atol=1e-3)  # type: ignore[arg-type]
    # that nothing happens is known, too
    write_curve(tmp_path / "quiet.csv", TimingCurve(np.zeros(40)))
    quiet = read_curve(tmp_path / "quiet.csv", 40)
    assert quiet.level is None and np.array_equal(quiet.onset, np.zeros(40))  # type: ignore[arg-type]


def test_a_file_by_hand_is_linear_in_between_and_as_long_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "hand.csv"
    path.write_text("seconds,onset,level_db\n1.0,,0\n0,,-40\n0.5,1,\n", encoding="utf-8")
    curve = read_curve(path, 100)
    assert curve.onset is not None and curve.level is not None and curve.num_frames == 100
    assert curve.onset.argmax() in (24, 25) and curve.onset[60:].max() == 0
    assert decibels(curve.level)[[25, 49, 99]] == pytest.approx([-19.6, -0.4, 0.0], abs=0.01)
    assert read_curve(path).num_frames == 50
    path.write_text("seconds;onset\n0,5;1\n".replace("0,5", "0.5"), encoding="utf-8")
    assert read_curve(path, 50).level is None
    # times alone are events, as hands tap them
    path.write_text("seconds\n1.51\n0.51\n", encoding="utf-8")
    tapped = read_curve(path, 100)
    assert tapped.level is None and tapped.onset is not None
    assert [np.round(values, 2).tolist() for values in events(tapped.onset)] == [[0.51, 1.51], [1.0, 1.0]]


def test_events_alone_suggest_a_level_that_falls() -> None:
    curve = TimingCurve.from_events([0.5, 1.0], 100, [1.0, 0.5]).with_level()
    level = decibels(curve.level)  # type: ignore[arg-type]
    middles = (np.arange(100) + 0.5) / 50
    assert level[24:26] == pytest.approx([0.0, -1.2], abs=0.1)
    assert level[middles < 0.48].max() == level[(middles > 0.9) & (middles < 0.97)].max() == -45.0
    assert level[(middles > 0.52) & (middles < 0.86)] == pytest.approx(
        -120 * (middles[(middles > 0.52) & (middles < 0.86)] - 0.5), abs=0.2
    )
    assert level[50] == pytest.approx(20 * np.log10(0.5) - 1.2, abs=0.2)
    # what is known stays, and so does that nothing happens
    for known in (curve, TimingCurve(np.zeros(40)), TimingCurve(level=np.zeros(40))):
        assert known.with_level() is known


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,onset\n1,1\n", "needs the columns seconds,onset,level_db; it has columns time, onset"),
        ("seconds\n", "has neither an onset nor a level_db"),
        ("seconds,loud\n1,1\n", "needs the columns"),
        ("seconds,onset\n1,\n", "has neither an onset nor a level_db"),
        ("seconds,onset\n1,2\n", r"line 2, column onset: '2' is not a strength from 0 to 1"),
        ("seconds,onset\n1,1\nx,1\n", r"line 3, column seconds: 'x' is not a time in seconds"),
        ("seconds,level_db\n-1,0\n", r"line 2, column seconds: '-1' is not a time"),
        ("seconds,onset\n1e9,1\n", r"line 2, column seconds: '1e9' is not a time in seconds, a day at most"),
        ("seconds,level_db\n1,inf\n", r"line 2, column level_db: 'inf' is not a level"),
        ("", "needs the columns"),
    ],
)
def test_a_file_that_is_no_curve_is_refused_in_a_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "curve.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TimingError, match=words) as caught:
        read_curve(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(TimingError, match="No such file"):
        read_curve(tmp_path / "absent.csv")


@pytest.mark.parametrize("times", [[0.5, 1.1, 2.0, 3.35], [0.05, 3.9], [1.0, 1.15, 1.3], []])
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_onsets_stand_where_the_clicks_are_at_any_gain(times: list[float], gain: float) -> None:
    sound = gain * clicks(times)
    found = onset_times(sound)
    assert len(found) == len(times)
    assert np.abs(found - np.array(times)).max(initial=0) <= 0.015
    strength = onset_strength(sound)
    assert len(strength) == 200
    for time in times:
        begin = max(0, round(time * 50) - 5)
        assert abs(begin + strength[begin : begin + 10].argmax() - time * 50) <= 1


def test_what_does_not_change_has_no_onset() -> None:
    time = np.arange(3 * RATE) / RATE
    noise = np.random.default_rng(0).standard_normal(RATE)
    for steady in (0.2 * np.sin(2 * np.pi * 440 * time), noise, np.zeros(RATE), np.zeros(9), np.zeros(0)):
        assert len(onset_times(steady.astype(np.float32))) == 0
        assert len(onset_strength(steady)) == len(level_db(steady)) == -(-len(steady) // 320)


def test_levels_of_known_gains() -> None:
    gains = np.repeat([1.0, 0.1, 0.01, 1e-5], RATE)
    sound = gains * np.random.default_rng(0).standard_normal(len(gains)) * 0.1
    level = level_db(sound)
    for n, wanted in enumerate([0.0, -20.0, -40.0, -45.0]):
        assert np.median(level[50 * n + 5 : 50 * n + 45]) == pytest.approx(wanted, abs=1.5)
    assert level.max() == 0.0
    assert np.allclose(level_db(0.01 * sound), level, atol=1e-3)
    assert np.array_equal(level_db(np.zeros(RATE)), np.full(50, -45.0))
    # at the ends too: a mean over what is there alone
    assert np.abs(level_db(np.full(RATE + 7, 0.3))).max() < 1e-3


def test_the_curve_of_a_sound_has_its_onsets_and_its_level() -> None:
    sound = clicks([0.5, 1.1, 2.0])
    curve, stored = curve_of(sound), stored_curve(sound)
    assert curve.onset is not None and curve.level is not None
    assert events(curve.onset)[0] == pytest.approx([0.5, 1.1, 2.0], abs=0.015)
    assert np.array_equal(curve.level, level_units(level_db(sound)))
    # what is stored says the same, frame by frame and in dB of full scale
    assert stored.shape == (200, 2)
    frames = np.flatnonzero(stored[:, 0])
    assert np.abs(frames / 50 - [0.5, 1.1, 2.0]).max() <= 0.02
    assert np.allclose(stored[frames, 0], events(curve.onset)[1], atol=0.02)
    assert np.allclose(level_units(stored[:, 1] - stored[:, 1].max()), curve.level, atol=1e-5)
