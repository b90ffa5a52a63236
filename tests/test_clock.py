"""Packet times that are wrong, and files in which the clock starts again: every frame is shown, in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.films import change_times, edit_list, number, shown, write_film
from vab.media.file import MediaFile

RATE = 16_000
EVEN = [n / 25 for n in range(30)]


def film(path: Path, **options: object) -> Path:
    return write_film(path, EVEN, options={"bf": "0", "g": "10"}, **options)  # type: ignore[arg-type]


def copied(source: Path, out: Path) -> list[tuple[float, int]]:
    """What a player shows of the film that is made of ``source``."""
    with MediaFile(source) as file:
        file.mux(np.zeros(round(file.seconds * RATE)), RATE, out)
    return shown(out)


@pytest.mark.parametrize(
    ("kind", "codec", "sound"),
    [
        ("ts", "libx264", "aac"),
        ("mpg", "mpeg2video", "mp2"),
        ("mkv", "libx264", "aac"),
        ("webm", "libvpx-vp9", "libopus"),
    ],
)
def test_joined_recordings_are_one_film(tmp_path: Path, kind: str, codec: str, sound: str) -> None:
    """`cat a b`: the clock starts again with the second part, for the picture and for the sound."""
    parts = [
        write_film(
            tmp_path / f"{n}.{kind}", EVEN[:length], codec=codec, first=first, sounds=[(sound, length / 25)]
        )
        for n, (first, length) in enumerate([(0, 30), (100, 20)])
    ]
    joined = tmp_path / f"joined.{kind}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    numbers = [*range(30), *range(100, 120)]
    with MediaFile(joined) as file:
        assert [number(frame) for frame in file.frames(25.0)] == numbers
        assert file.seconds == pytest.approx(2.0, abs=0.002)
        assert [number(frame) for frame in file.frames(25.0, start=1.4)] == numbers[35:]  # no seek finds it
        assert len(file.audio()) == pytest.approx(2.0 * RATE, abs=0.05 * RATE)
        assert np.abs(file.audio(1.4, 0.2)).mean() > 0.02
    assert [n for _, n in copied(joined, tmp_path / "out.mp4")] == numbers


@pytest.mark.parametrize(
    "changes",
    [{1160: 0}, {600: 0}, {600: 0, 640: 0}, {600: 560}, {600: 560, 640: 560}, {600: 20_000}],
    ids=["zero at the end", "zero", "two zeros", "twice", "three times", "far ahead"],
)
def test_times_that_cannot_be_right_are_mended(tmp_path: Path, changes: dict[int, int]) -> None:
    source = change_times(film(tmp_path / "a.mkv"), changes)
    with MediaFile(source) as file:
        assert file.seconds == pytest.approx(1.2, abs=0.002)
    found = copied(source, tmp_path / "out.mp4")
    assert [n for _, n in found] == list(range(30))
    np.testing.assert_allclose([time for time, _ in found], EVEN, atol=0.002)


def test_a_pause_is_no_fault(tmp_path: Path) -> None:
    times = [0, 0.2, 0.4, 9.0, 9.04]
    source = write_film(tmp_path / "a.mkv", times, options={"bf": "0"})
    assert copied(source, tmp_path / "out.mp4") == list(zip(times, range(5), strict=True))


def test_the_last_frame_lasts_as_long_as_the_others(tmp_path: Path) -> None:
    """MPEG-TS says of no frame how long it lasts."""
    source = film(tmp_path / "a.ts")
    copied(source, tmp_path / "out.mp4")
    with MediaFile(tmp_path / "out.mp4") as file:
        assert file.seconds == pytest.approx(1.2, abs=1e-6)


@pytest.mark.parametrize("kind", ["mp4", "mov"])
@pytest.mark.parametrize(
    ("edits", "numbers"),
    [
        ([(0.8, 3 * 512)], range(3, 23)),
        ([(0.4, 0)], range(10)),
        ([(0.2, -1), (1.2, 0)], range(30)),
    ],
    ids=["both ends", "end", "late"],
)
def test_a_trimmed_film_shows_no_trimmed_frame(
    tmp_path: Path, kind: str, edits: list[tuple[float, int]], numbers: range
) -> None:
    source = edit_list(film(tmp_path / f"a.{kind}"), edits)
    found = copied(source, tmp_path / "out.mp4")
    assert [n for _, n in found] == list(numbers)
    np.testing.assert_allclose([time for time, _ in found], EVEN[: len(numbers)], atol=0.002)
