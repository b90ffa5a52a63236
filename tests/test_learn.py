"""``vab learn``: a model of one's own from a folder of labelled sounds and pictures, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import wavfile

from helpers.tiny import write_model, write_video
from vab.cli import main
from vab.models.known import ClassStatistics

RATE = 16000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three classes that knows what it knows."""
    folder = write_model(tmp_path_factory.mktemp("base") / "model")
    means = torch.nn.functional.normalize(torch.randn(3, 32), dim=1)
    ClassStatistics(means, 0.2).save(folder / "classes")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sounds and pictures of the new label door, films of the known label dog."""
    root = tmp_path / "my sounds"
    (root / "door").mkdir(parents=True)
    (root / "Dog" / "garden").mkdir(parents=True)
    for n in range(4):
        wave = 0.3 * np.sin(np.arange(RATE) * (0.2 + 0.01 * n))
        wavfile.write(root / "door" / f"{n}.wav", RATE, wave.astype(np.float32))
        write_video(root / "Dog" / "garden" / f"{n}.mp4", 12, 12)
    for n in range(3):
        Image.new("RGB", (96, 96), (20, 60 + 10 * n, 220)).save(root / "door" / f"picture_{n}.png")
    return root


def vab(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_a_folder_becomes_a_model_that_generates_and_names_its_labels(
    tmp_path: Path, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    code, said, err = vab(capsys, "learn", folder, "-o", out, "--model", model, "--steps", "3")
    assert code == 0, err
    assert f"vab studio --model {out}" in said
    assert [line[:6] for line in err.splitlines() if " of 4" in line] == [f"{n} of 4" for n in (1, 2, 3, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "my sounds"]

    # Old classes keep their rows, the known label has another one, the new one comes last.
    config = json.loads((out / "classes" / "config.json").read_text())
    assert config["classes"] == ["bell", "cat", "dog", "door"]
    heads = [load_file(place / "classes" / "model.safetensors")["head.weight"] for place in (model, out)]
    same = [torch.equal(a, b) for a, b in zip(*heads, strict=False)]
    assert same == [True, True, False]
    networks = [load_file(place / "model.safetensors") for place in (model, out)]
    assert any(not torch.equal(networks[0][name], tensor) for name, tensor in networks[1].items())

    # The card says what it was made from, and nothing of the disk.
    card = (out / "README.md").read_text()
    assert "| door | 4 | 3 |" in card and "| dog | 4 | 4 |" in card and "3 steps" in card
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".md", ".json")]
    assert len(texts) >= 5 and not [text for text in texts if str(tmp_path) in text or "my sounds" in text]

    # It is a model like any other.
    new = tmp_path / "new.png"
    Image.new("RGB", (96, 96), (20, 75, 220)).save(new)
    code, said, _ = vab(capsys, "classify", new, folder / "door" / "1.wav", "--model", out, "--json")
    assert code == 0
    found = json.loads(said)
    assert [next(iter(one["labels"])) for one in found["files"]] == ["door", "door"]
    assert found["files"][0]["known"]["is_known"]
    code, _, err = vab(capsys, "generate", new, "-o", tmp_path / "sound", "--model", out)
    assert code == 0, err
    assert (tmp_path / "sound" / "new.wav").is_file()


def test_interrupted_it_goes_on(
    tmp_path: Path, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "mine", tmp_path / "mine.learning"
    words = ("learn", folder, "-o", out, "--model", model, "--steps", "60")

    def interrupt() -> None:
        limit = time.monotonic() + 60
        while not list(work.glob("vab/checkpoints/0*")) and time.monotonic() < limit:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, _, err = vab(capsys, *words)
    thread.join()
    assert code == 130 and "the same command goes on" in err and "Traceback" not in err
    assert not out.exists()

    # Another call may not take the work for its own.
    code, _, err = vab(capsys, *words[:-1], "50")
    assert code == 2 and "--steps" in err and "mine.learning" in err

    code, _, err = vab(capsys, *words)
    assert code == 0 and "60 steps, going on at " in err
    assert (out / "model.safetensors").is_file() and not work.exists()


def test_what_cannot_be_learned_is_said_in_one_line(
    tmp_path: Path, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str | Path) -> str:
        code, _, err = vab(capsys, "learn", *words, "--model", model)
        assert code == 2 and len(err.splitlines()) == 1, err
        return err

    assert "no folder" in refused(tmp_path / "nowhere", "-o", tmp_path / "mine")
    (tmp_path / "there").mkdir()
    assert "exists already" in refused(folder, "-o", tmp_path / "there")
    assert "--steps must be" in refused(folder, "-o", tmp_path / "mine", "--steps", "0")
    (tmp_path / "empty").mkdir()
    assert "nothing to learn" in refused(tmp_path / "empty", "-o", tmp_path / "mine")
    assert not (tmp_path / "mine").exists() and not (tmp_path / "mine.learning").exists()

    # Files and labels of no use are named; the others are learned.
    (folder / "door" / "broken.wav").write_bytes(b"no sound")
    Image.new("RGB", (64, 64)).save(folder / "stray.png")
    (folder / "bell").mkdir()
    wavfile.write(folder / "bell" / "one.wav", RATE, np.zeros(RATE, np.float32))
    code, said, err = vab(
        capsys, "learn", folder, "-o", tmp_path / "mine", "--model", model, "--steps", "1", "--json"
    )
    assert code == 1
    for what in (
        "broken.wav",
        "stray.png: lies in no subfolder",
        "bell: has 1 sounds of at least 4 and no picture",
    ):
        assert [line for line in err.splitlines() if what in line], what
    assert list(json.loads(said)["labels"]) == ["dog", "door"]
