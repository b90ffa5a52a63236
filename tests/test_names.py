"""Names that people have, as files of every verb: long, with line breaks, not UTF-8, in any locale."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers.cli import vab
from helpers.tiny import write_video
from vab.inference.embeddings import read_embeddings
from vab.media.container import remote
from vab.utils.files import atomic

Capture = pytest.CaptureFixture[str]
LATIN = os.fsdecode(b"caf\xe9")  # a name from before UTF-8
NAMES = (
    "two\nlines",
    "50% off %03d",
    "a [b] 'd' \"e\" $f;h&i",
    "cat 🐈‍⬛",
    "-dash",
    "12:30",
    "音" * 80,
    LATIN,
)


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``films`` of one film under many names, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path("films")
    folder.mkdir()
    first = write_video(folder / "zz.mp4", 5, 10)
    try:
        for name in NAMES:
            shutil.copy(first, folder / f"{name}.mp4")
    except OSError as error:
        pytest.skip(f"no such names here: {error}")
    return folder


def test_every_name_gets_its_results(films: Path, model: Path, capsys: Capture) -> None:
    options = ["--model", model, "--steps", 1, "-o", "out"]
    code, out, err = vab(capsys, "generate", films, *options)
    assert (code, err) == (0, "")
    assert {path.stem for path in Path("out").iterdir()} == {*NAMES, "zz"}
    assert len(out.splitlines()) == len(NAMES) + 1
    assert "films/two\\nlines.mp4: done, out/two\\nlines.wav" in out
    assert "films/caf\\xe9.mp4: done, out/caf\\xe9.wav" in out
    code, out, _ = vab(
        capsys, "generate", films / f"{LATIN}.mp4", "films/[12]*.mp4", *options, "--json", "--report"
    )
    results = json.loads(out)["results"]
    assert code == 0 and [row["input"] for row in results] == [f"films/{LATIN}.mp4", "films/12:30.mp4"]
    assert "12:30.mp4" in Path("out/report.html").read_text(encoding="utf-8")


def test_a_name_that_cannot_be_used_ends_nothing(
    films: Path, model: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Path("films", "n" * 250 + ".mp4")
    (films / "zz.mp4").rename(long)
    inputs = [long, films / "12:30.mp4", "https://example.org/a.mp4", "m" * 300 + ".mp4"]
    options = ["--model", model, "--steps", 1, "-o", "out"]
    code, out, err = vab(capsys, "generate", *inputs, *options, "--samples", 2)
    assert code == 1 and "12:30_2.mp4" in out
    assert Path("out", "n" * 249 + "_2.wav").is_file()  # cut to leave room for the number
    url, name = err.splitlines()
    assert url == "https://example.org/a.mp4: is an address; only local files are read, by their path"
    assert "File name too long" in name
    monkeypatch.chdir(films)  # where a shell's *.mp4 stands for a name with a dash
    code, out, err = vab(capsys, "generate", "-dash.mp4", *options[:-1], tmp_path / "dash")
    assert (code, err) == (0, "") and (tmp_path / "dash" / "-dash.wav").is_file()
    monkeypatch.chdir(tmp_path)
    code, out, _ = vab(capsys, "generate", long, *options)
    assert code == 0 and Path("out", "n" * 250 + ".wav").is_file()
    code, _, err = vab(capsys, "generate", films, "--model", model, "-o", films / "12:30.mp4")
    assert (code, err) == (
        2,
        "vab: films/12:30.mp4: is a file, so no folder can be made there; name another one\n",
    )


def test_every_name_is_embedded_and_listed(films: Path, model: Path, capsys: Capture) -> None:
    for file in ("e.npz", "e.parquet"):
        code, out, err = vab(capsys, "embed", films, "-o", file, "--model", model)
        assert (code, err) == (0, ""), out
    assert f"films/{LATIN}.mp4" in read_embeddings(Path("e.npz")).ids
    assert "films/caf\\xe9.mp4" in pq.read_table("e.parquet")["id"].to_pylist()
    code, out, _ = vab(capsys, "classify", films, "--model", model)
    assert code == 0 and len(out.splitlines()) == len(NAMES) + 2
    code, out, err = vab(capsys, "data", "folder", films, "-o", "m.csv")
    assert (
        code == 1
        and err == "films/caf\\xe9.mp4: its name is not UTF-8, so no manifest can hold it; rename it\n"
    )
    code, _, err = vab(capsys, "extract", "m.csv", "-o", "store", "--seconds", 2, "--preset", "vab-tiny")
    assert (code, err) == (0, "")


def test_a_label_is_found_in_both_spellings_of_its_letters(
    model: Path, capsys: Capture, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb")
    folders = [tmp_path / name for name in ("x/café", "y/cafe\u0301", "y/CAFÉ")]
    for folder in folders:
        folder.mkdir(parents=True)
        write_video(folder / "a.mp4", 5, 10)
    assert (
        vab(capsys, "index", "add", tmp_path / "lib", tmp_path / "x", tmp_path / "y", "--model", model)[0]
        == 0
    )
    for label in ("café", "cafe\u0301", "Café"):
        code, out, _ = vab(capsys, "search", tmp_path / "lib", "--label", label, "--json")
        assert code == 0 and len(json.loads(out)["hits"]) == 3
    code, out, _ = vab(capsys, "index", "show", tmp_path / "lib", "--json")
    assert json.loads(out)["labels"] == {"CAFÉ": 1, "café": 2}


def test_a_linked_folder_is_part_of_every_verb(model: Path, capsys: Capture, tmp_path: Path) -> None:
    for folder in ("disk", "set/dogs"):
        (tmp_path / folder).mkdir(parents=True)
    write_video(tmp_path / "disk" / "cat.mp4", 5, 10)
    write_video(tmp_path / "set" / "dogs" / "dog.mp4", 5, 10)
    for link, target in {"cats": tmp_path / "disk", "loop": tmp_path / "set"}.items():
        (tmp_path / "set" / link).symlink_to(target)
    verbs = {
        "generate": ["--steps", 1, "-o", tmp_path / "out", "--model", model],
        "embed": ["-o", tmp_path / "e.npz", "--model", model],
        "classify": ["--model", model],
    }
    for verb, options in verbs.items():
        code, out, err = vab(capsys, verb, tmp_path / "set", *options)
        assert code == 0 and f"set/loop: is a link to a folder around it, {tmp_path / 'set'}" in err, out
        assert len(err.splitlines()) == 1
    assert (tmp_path / "out" / "cats" / "cat.wav").is_file()
    assert len(np.load(tmp_path / "e.npz")["id"]) == 2
    code, out, err = vab(capsys, "data", "folder", tmp_path / "set", "-o", tmp_path / "m.csv", "--json")
    assert code == 0 and json.loads(out)["clips"] == 2 and "set/loop: is a link" in err


def test_addresses_are_told_from_names() -> None:
    for name in ("12:30.mp4", "c:clip.mp4", "file:a.mp4", "a/b:c/d.mp4", "://x"):
        assert remote(name) is None
    for name in ("https://a.org/b.mp4", "https:/a.org/b.mp4", "RTSP://1.2.3.4", "s3://bucket/key"):
        assert "only local files" in str(remote(Path(name)))


def test_a_temporary_name_is_not_longer_than_a_disk_allows(tmp_path: Path) -> None:
    for stem in ("音" * 83, "n" * 251, LATIN):
        with atomic(tmp_path / f"{stem}.wav") as temporary:
            temporary.write_text("x")
            assert len(os.fsencode(temporary.name)) < 120
        assert (tmp_path / f"{stem}.wav").read_text() == "x"
