"""Sounds of other systems joined as appendix E says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vab.cli import main
from vab.errors import SettingError
from vab.evaluate.generation.join import join
from vab.media.file import MediaFile
from vab.media.write import write_audio

RATE = 22_050


def ramp(start: float, seconds: float) -> np.ndarray:
    """A waveform that says its own time: 0 at 0 s, 1 at 12 s."""
    return ((np.arange(round(seconds * RATE)) + round(start * RATE)) / (12 * RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("starts", "length"), [((0.0, 4.0, 8.0), 4.0), ((0.0, 1.8), 8.2)], ids=["im2wav", "diff-foley"]
)
def test_joined_parts_are_the_whole(tmp_path: Path, starts: tuple[float, ...], length: float) -> None:
    # The second part of Diff-Foley is told from the first: where both sound, the first counts.
    parts = [ramp(start, length) + (0.02 if n else 0.0) for n, start in enumerate(starts)]
    whole = join(parts, starts, 10.0, RATE)
    assert len(whole) == 10 * RATE
    second = np.arange(len(whole)) >= round(length * RATE)
    assert np.array_equal(whole, np.where(second, ramp(0, 10) + np.float32(0.02), ramp(0, 10)))

    folders = []
    for start, part in zip(starts, parts, strict=True):
        folders.append(str(tmp_path / f"{start:g}"))
        Path(folders[-1]).mkdir()
        write_audio(Path(folders[-1]) / "a.wav", part, RATE, bits=24)
    times = [f"{start:g}" for start in starts]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "join", *folders, "-o", str(tmp_path / "out"), "--starts", *times])
    assert ended.value.code == 0
    with MediaFile(tmp_path / "out" / "a.wav") as file:
        assert file.audio_format[0] == RATE
        assert np.abs(file.audio(rate=RATE) - whole).max() < 2**-22


def test_a_gap_and_an_early_end_are_refused() -> None:
    with pytest.raises(SettingError, match=r"nothing sounds from 4\.000 s to 5 s"):
        join([ramp(0, 4), ramp(5, 5)], (0, 5), 10.0, RATE)
    with pytest.raises(SettingError, match=r"end at 8\.000 s, before 10 s"):
        join([ramp(0, 4), ramp(4, 4)], (0, 4), 10.0, RATE)


def test_a_clip_without_one_of_its_parts_is_named_and_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, names in (("first", "ab"), ("second", "b")):
        (tmp_path / folder).mkdir()
        for name in names:
            write_audio(tmp_path / folder / f"{name}.wav", ramp(ord(name) / 100, 8.2), RATE)
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "join", *folders, "-o", str(tmp_path / "out"), "--starts", "0", "1.8"])
    told = capsys.readouterr()
    assert ended.value.code == 1 and f"a: {tmp_path / 'second'} has no a" in told.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.wav"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "join", *folders, "-o", str(tmp_path / "out"), "--starts", "0"])
    assert ended.value.code == 2 and "--starts needs 2 times" in capsys.readouterr().err
