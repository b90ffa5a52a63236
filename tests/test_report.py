"""`vab generate --report`: one file that needs nothing else, opened in a real Chromium."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny import write_video
from vab.cli import main
from vab.inference.batch import BatchSettings, Result
from vab.inference.html_report import COLUMNS, mel_image, waveform_path, write_report

NASTY = """<img src=x onerror=alert(1)>&"'{}$made"""


def vab(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_a_run_as_one_page_that_plays_and_asks_for_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Any
) -> None:
    clip = write_video(tmp_path / "<b>dog & 'cat'.mp4", frames=20, fps=10)
    out = tmp_path / "out"
    words = ("generate", clip, tmp_path / "gone.mp4", "-o", out, "--model", model, "--samples", 2, "--report")
    assert vab(*words) == 1  # one input is missing
    assert capsys.readouterr().out.splitlines()[-1] == str(out / "report.html")
    asked: list[str] = []
    faults: list[str] = []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("request", lambda request: asked.append(request.url.split(",")[0]))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    page.goto((out / "report.html").as_uri())
    assert page.locator("h2").all_inner_texts() == [clip.name, "gone.mp4"]
    assert page.locator("b").count() == 0
    assert page.locator("article").count() == 2
    assert "no such file" in page.locator(".error").inner_text()
    for n in range(2):
        audio = page.locator("audio").nth(n)
        moved = """async (audio) => {
            await audio.play();
            while (audio.currentTime < 0.1) await new Promise((done) => setTimeout(done, 20));
            return audio.duration;
        }"""
        assert audio.evaluate(moved) == pytest.approx(2.0, abs=0.01)
    still = page.evaluate("[...document.querySelectorAll('audio')].map(audio => audio.paused)")
    assert still == [True, False], "only one plays at a time"
    drawn = page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert drawn and len(page.locator(".strip img").all()) == 2 * 10
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    assert faults == []
    kinds = {re.sub(r"^file:.*/", "", url).partition(";")[0] for url in asked}
    assert kinds <= {"report.html", "data:image/jpeg", "data:image/png", "data:audio/wav", "data:"}, kinds
    assert not [path for path in out.iterdir() if ".tmp" in path.name]


@pytest.mark.parametrize("field", ["input", "error"])
def test_names_and_reasons_are_text_and_nothing_else(tmp_path: Path, field: str) -> None:
    result = Result(**({"input": "a.mp4", "status": "failed", "error": "why"} | {field: NASTY}))
    write_report(tmp_path / "report.html", [result], BatchSettings(codec_path=NASTY))
    text = (tmp_path / "report.html").read_text()
    assert "onerror" in text and "<img src=x" not in text and "$made" in text


def test_a_name_that_is_not_utf_8_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", [Result("c\udce9t.mp4", "failed", error="why")], BatchSettings())
    assert "<h2>c?t.mp4</h2>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "dog.mp4", frames=5, fps=10)
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    assert vab("generate", clip, "-o", tmp_path / "out", "--model", model, "--report") == 2
    assert "report.html: is a folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_report_goes_on_without_what_is_gone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = write_video(tmp_path / "dog.mp4", frames=5, fps=10), tmp_path / "out"
    assert vab("generate", clip, "-o", out, "--model", model, "--report", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == str(out / "report.html")
    rows: list[dict[str, Any]] = document["results"]
    (out / "dog.wav").unlink()
    clip.unlink()
    again = [Result(row["input"], row["status"], tuple(row["outputs"])) for row in rows]
    write_report(out / "report.html", again, BatchSettings())
    assert (out / "report.html").read_text().count("no such file") == 2


def test_a_broken_disk_leaves_the_old_report(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(AttributeError):
        write_report(path, [Result("a.mp4", "done"), None], BatchSettings())  # type: ignore[list-item]
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@given(st.integers(1, 40_000), st.integers(0, 9))
def test_the_outline_holds_every_sample(length: int, seed: int) -> None:
    waveform = np.random.default_rng(seed).uniform(-1, 1, length).astype(np.float32)
    points = [tuple(map(float, point.split())) for point in waveform_path(waveform)[1:-1].split("L")]
    assert all(0 <= x <= COLUMNS for x, _ in points)
    assert min(y for _, y in points) == pytest.approx(-waveform.max(), abs=1e-3)
    assert max(y for _, y in points) == pytest.approx(-waveform.min() + 0.01, abs=1e-3)


@pytest.mark.parametrize("hertz", [200, 1000, 6000])
def test_a_tone_is_bright_where_it_belongs(hertz: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(32_000) / 16_000).astype(np.float32)
    picture = mel_image(tone).sum(2)
    mel = [1127 * np.log1p(f / 700) for f in (50.0, hertz, 8000.0)]
    place = (mel[1] - mel[0]) / (mel[2] - mel[0])
    middle = picture[:, picture.shape[1] // 2]
    assert 1 - np.argmax(middle) / len(middle) == pytest.approx(place, abs=0.03)


@pytest.mark.parametrize("samples", [1, 100, 16_000 * 600])
def test_a_mel_picture_of_any_length_is_small(samples: int) -> None:
    height, width, channels = mel_image(np.zeros(samples, np.float32)).shape
    assert channels == 3 and 1 <= width <= COLUMNS + 1 and height == 96
