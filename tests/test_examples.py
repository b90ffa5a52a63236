"""The examples: small sounds that the demo searches, and the script that makes them."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vab.cli import main
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile
from vab.media.loudness import measure
from vab.media.reader import probe, read_audio
from vab.timing.sound import onset_times

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import make_clock
import make_sounds

ROOT = Path(__file__).parents[1]
SOUNDS = sorted((ROOT / "examples" / "sounds").rglob("*.*"))


def test_sounds_are_small_one_for_each_class_and_not_silent() -> None:
    assert len(SOUNDS) == len({path.parent for path in SOUNDS}) >= 10
    assert sum(path.stat().st_size for path in SOUNDS) < 400_000
    for path in SOUNDS:
        assert path.name == f"{path.parent.name}.ogg"  # what the script writes; a recording has other names
        assert probe(path).kind == "audio" and probe(path).seconds == pytest.approx(4, abs=0.05)
        assert np.abs(read_audio(path)).max() > 0.01


def test_opus_keeps_a_tone(tmp_path: Path) -> None:
    time = np.arange(64_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    make_sounds.write_opus(tmp_path / "a" / "tone.ogg", tone)
    assert (tmp_path / "a" / "tone.ogg").stat().st_size < 20_000
    back = read_audio(tmp_path / "a" / "tone.ogg")
    assert abs(len(back) - len(tone)) < 800
    spectrum = np.abs(np.fft.rfft(back[16_000:32_000]))
    assert spectrum.argmax() == 440 and spectrum.max() == pytest.approx(0.15 * 16_000, rel=0.1)


def test_one_photo_of_each_class_the_model_knows(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("dog/a", "dog/b", "cat/c", "frog/d"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(photos / f"{name}.png")
    found = make_sounds.photos(photos)
    assert {label: path.name for label, path in found.items()} == {
        "dog": "a.png",
        "cat": "c.png",
        "frog": "d.png",
    }
    rows = ["train,dog/a,dog", "dev,dog/b,dog", "dev,cat/c,cat", "train,cat/d,cat", "dev,frog/d,frog"]
    lines = ["split,file,label", *(row.replace(",", ",photos/", 1) for row in rows)]
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n")
    assert make_sounds.photos(photos) == {"dog": photos / "dog" / "b", "cat": photos / "cat" / "c"}


def test_the_demo_finds_sounds_for_its_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lancedb")
    lines = (ROOT / "Makefile").read_text().splitlines()
    steps = [line.split()[1:] for line in lines if "/vab library add" in line or "/vab search" in line]
    places = {
        '"$(OUT)/vab-demo-library"': str(tmp_path / "db"),
        '"$(CLIP)"': str(ROOT / "examples" / "cat.mp4"),
    }
    places["examples/sounds"] = str(ROOT / "examples" / "sounds")
    assert len(steps) == 2
    for words in steps:
        with pytest.raises(SystemExit) as left:
            main([*(places.get(word, word) for word in words), "--json"])
        assert left.value.code == 0
        said = capsys.readouterr().out
    hits = json.loads(said)["hits"]
    assert len(hits) == 5 and len({hit["label"] for hit in hits}) == 5
    assert hits[0]["score"] > hits[-1]["score"]


def heard_jumps(waveform: np.ndarray) -> int:
    """How many of the clock's eight jumps have an onset within 0.1 s."""
    onsets = onset_times(waveform)
    return sum(float(np.abs(onsets - jump).min(initial=9)) < 0.1 for jump in make_clock.JUMPS)


def test_the_clock_jumps_when_its_script_says() -> None:
    """In the film that ships, by what changes from one picture to the next."""
    with MediaFile(ROOT / "examples" / "clock.mp4") as film:
        seconds, pictures = zip(*film.pictures(), strict=True)
    moved = np.array([np.abs(a.astype(int) - b).mean() for a, b in pairwise(pictures)])
    moving = np.array(seconds[1:])[moved > 0.2 * moved.max()]
    since = [moving[moving >= jump - 0.001].min() - jump for jump in make_clock.JUMPS]
    assert max(since) <= 0.041  # a frame
    assert all(
        min(time - jump for jump in make_clock.JUMPS if time >= jump - 0.001) < 0.25 for time in moving
    )


def test_the_model_makes_the_clock_tick_where_it_jumps_and_so_do_the_sounds_that_ship() -> None:
    shown = ROOT / "docs" / "sounds"
    assert heard_jumps(read_audio(shown / "clock.mp4")) == 8
    for name in ("cat", "clock"):
        sound = read_audio(shown / f"{name}.mp4")
        assert len(sound) == pytest.approx(8 * 16_000, abs=400)  # AAC has whole frames
        level = measure(sound, 16_000)
        assert level.loudness == pytest.approx(-23, abs=1) and level.true_peak < 0
    # the model as it is now: the film's motion is its default, and without it the jumps are not met
    pipe = VABPipeline.from_pretrained(device="cpu")
    assert heard_jumps(pipe.generate(ROOT / "examples" / "clock.mp4").waveform) >= 7
    assert heard_jumps(pipe.generate(ROOT / "examples" / "clock.mp4", timing="none").waveform) <= 6
