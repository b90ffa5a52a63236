"""``vab learn``: a model of one's own from a folder of labelled sounds and pictures, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.io import wavfile
from torch.nn import functional

from helpers.tiny import write_model, write_video
from vab.cli import main
from vab.codecs.codec import load_codec
from vab.config import Preset
from vab.data.mixture import Mixture
from vab.data.shard import StoreMeta
from vab.data.store import LatentStore
from vab.inference.pipeline import VABPipeline
from vab.models.hub import find_model, folder_fingerprint, known_models
from vab.models.known import ClassStatistics
from vab.sampling.stages import load_stage
from vab.training.batches import ClipBatches
from vab.training.teaching.learn import learn
from vab.training.teaching.rehearsal import Rehearsal, load_rehearsal, rehearse
from vab.training.trainer import train
from vab.utils.files import save_tensors

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


@pytest.fixture
def rehearsing(tmp_path: Path, model: Path) -> Path:
    """The same model with features of 20 pictures: 12 of a bell, 5 of a dog, 3 of a cat."""
    folder = tmp_path / "rehearsing"
    shutil.copytree(model, folder)
    features = np.random.default_rng(0).normal(size=(20, 1280)).astype(np.float16)
    Rehearsal(features, ("bell",) * 12 + ("dog",) * 5 + ("cat",) * 3).save(folder)
    return folder


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
    assert [line[:6] for line in err.splitlines() if " of 5" in line] == [f"{n} of 5" for n in range(1, 6)]
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
    tmp_path: Path, rehearsing: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "mine", tmp_path / "mine.learning"
    words = ("learn", folder, "-o", out, "--model", rehearsing, "--steps", "60")

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
        "bell: has 1 sound of at least 4 and no picture",
    ):
        assert [line for line in err.splitlines() if what in line], what
    assert list(json.loads(said)["labels"]) == ["dog", "door"]


def test_half_of_each_batch_is_what_it_knew(
    tmp_path: Path,
    model: Path,
    rehearsing: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert folder_fingerprint(rehearsing) == folder_fingerprint(model), "no sound depends on it"
    drawn: Counter[str] = Counter()

    def counting(preset: Preset, stores: list[Path], out: Path, **options: Any) -> None:
        clips = ClipBatches(Mixture.open(stores, options["weights"]), preset, "train")
        for step in range(100):
            drawn.update(clips.mixture.labels[row] for row in clips.rows_of_step(step))
        train(preset, stores, out, **options)

    monkeypatch.setattr("vab.training.teaching.learn.train", counting)
    out = tmp_path / "mine"
    code, _, err = vab(capsys, "learn", folder, "-o", out, "--model", rehearsing, "--steps", "1")
    assert code == 0 and "3 of 5: its own sounds for 15 pictures" in err
    # What the folder has is not rehearsed, so a known label may get another sound; labels count alike.
    share = {name: count / drawn.total() for name, count in drawn.items()}
    assert share == pytest.approx({"bell": 0.25, "cat": 0.25, "dog": 0.25, "door": 0.25}, abs=0.04)

    # The next time it rehearses these labels too, and the files say what was done.
    after = load_rehearsal(out, 1280)
    assert after is not None
    assert Counter(after.labels) == {"bell": 12, "cat": 3, "dog": 4, "door": 3}
    record = json.loads((out / "record.json").read_text())
    assert (record["rehearsed"], record["old_share"]) == (15, 0.0)
    assert "for 15 pictures\n  of what it knew" in (out / "README.md").read_text()


def test_a_model_that_was_loaded_and_saved_still_rehearses(
    tmp_path: Path, rehearsing: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for before, after in [(rehearsing, tmp_path / "saved"), (tmp_path / "saved", tmp_path / "again")]:
        VABPipeline.from_pretrained(before, device="cpu").save_pretrained(after)
    for n in (1, 2):
        (folder / "door" / f"picture_{n}.png").unlink()
    out = tmp_path / "mine"
    code, _, err = vab(capsys, "learn", folder, "-o", out, "--model", tmp_path / "again", "--steps", "1")
    assert code == 0 and "3 of 5: its own sounds for 15 pictures" in err, err
    assert "door (4 sounds, 1 picture)" in err and "4 of 5: training, 1 step\n" in err


def test_what_it_knew_stays_by_rehearsal(
    tmp_path: Path, rehearsing: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sounds that the model makes for the pictures of what the folder does not have.
    known = load_rehearsal(rehearsing, 1280)
    assert known is not None
    former, stage = known.without(["dog", "door"]), load_stage(rehearsing)
    codec = load_codec("tiny", rehearsing)
    meta = StoreMeta.for_model(stage.preset.model)
    store = LatentStore.create(tmp_path / "sounds", meta, codec.codebook_vectors().numpy())
    stage.network.eval()
    rehearse(former, stage, codec, store)
    rows = np.arange(len(former))
    tokens = torch.from_numpy(store.gather("tokens", rows).astype(np.int64))
    features = torch.from_numpy(store.gather("features", rows)).float()

    # Taught by the same steps with and without, and no average of weights: how well does it know them still?
    monkeypatch.setattr("vab.training.teaching.learn.OLD_SHARE", 0.0)
    losses = {}
    for name in ("with", "without"):
        learn(folder, tmp_path / name, rehearsing, steps=40, device="cpu", log=lambda line: None)
        (rehearsing / "rehearsal.safetensors").unlink(missing_ok=True)
        network = load_stage(tmp_path / name).network.eval()
        with torch.no_grad():
            logits = network(torch.full_like(tokens, 32), features)
        losses[name] = float(functional.cross_entropy(logits.flatten(0, 2), tokens.flatten()))
    assert losses["with"] < losses["without"] - 0.5


def test_rehearsal_goes_on_where_it_was_cut(tmp_path: Path, rehearsing: Path) -> None:
    known = load_rehearsal(rehearsing, 1280)
    assert known is not None
    stage, codec = load_stage(rehearsing), load_codec("tiny", rehearsing)
    meta = StoreMeta.for_model(stage.preset.model)
    stage.network.eval()

    def cut(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    stores = [LatentStore.create(tmp_path / name, meta, codec.codebook_vectors().numpy()) for name in "ab"]
    with pytest.raises(KeyboardInterrupt):
        rehearse(known, stage, codec, stores[0], advance=cut)
    assert 0 < len(stores[0]) < 20
    told: list[tuple[int, int]] = []
    for store in stores:
        rehearse(known, stage, codec, store, advance=lambda done, total: told.append((done, total)))
        assert told[-1] == (20, 20) and len(store) == 20
    assert stores[0].fingerprint() == stores[1].fingerprint()
    # Each picture has its own sound, and stands still in its window.
    rows = [stores[0][row] for row in range(20)]
    assert [row.label for row in rows] == list(known.labels)
    assert len({row.tokens.tobytes() for row in rows if row.tokens is not None}) == 20
    seen = [row.features for row in rows if row.features is not None]
    assert np.array_equal(seen, known.features[:, None].repeat(2, axis=1))


def test_a_damaged_rehearsal_is_told_in_one_line(
    tmp_path: Path, rehearsing: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rehearsing / "rehearsal.safetensors"
    features = torch.zeros(2, 1280, dtype=torch.float16)
    for tensors, about in (
        ({"features": features}, {}),
        ({"features": features}, {"labels": '["one"]'}),
        ({"features": features[:, :7]}, {"labels": '["one", "two"]'}),
        ({"features": features / 0}, {"labels": '["one", "two"]'}),
        ({"other": features}, {"labels": '["one", "two"]'}),
        ({"features": features}, {"labels": '{"one": 2}'}),
    ):
        save_tensors(path, tensors, about)
        code, _, err = vab(capsys, "learn", folder, "-o", tmp_path / "mine", "--model", rehearsing)
        assert code == 2 and "rehearsal.safetensors" in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "mine.learning").exists()


def test_vab_tiny_rehearses_all_that_it_learned_from_photos() -> None:
    folder = find_model("vab-tiny")
    known = load_rehearsal(folder, 1280)
    assert known is not None
    pictured = next(model.pictured for model in known_models() if model.name == "vab-tiny")
    assert {*pictured} <= {*known.labels} and len(known.labels) >= 8 * len(pictured)
    assert (folder / "rehearsal.safetensors").stat().st_size < 500_000
