"""What version 0.1.0 wrote is read, goes on to the same weights, and sounds the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import generated
from helpers.cli import vab
from vab.codecs.tiny import TinyCodecConfig
from vab.config import Preset, from_dict
from vab.data.extraction.run import extract
from vab.data.store import LatentStore
from vab.inference.pipeline import VABPipeline
from vab.listening.answers import Answers
from vab.listening.study import open_study
from vab.media.reader import read_audio
from vab.training.codec.train import CodecTrainConfig, train_codec
from vab.training.trainer import train

GOLDEN = Path(__file__).parent / "golden" / "version_0.1.0"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of everything, so that no test changes what version 0.1.0 wrote."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "old"))


def assert_same_weights(found: dict[str, Tensor], wanted: dict[str, Tensor], off: float) -> None:
    """Equal up to ``off``: two machines with the same processor ended 1.2e-4 apart after these steps."""
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert torch.allclose(value.float(), wanted[name].float(), rtol=0, atol=off), name


@pytest.mark.slow
def test_the_same_files_and_seeds_give_the_same_sounds(tmp_path: Path) -> None:
    call = [sys.executable, generated.__file__, str(GOLDEN / "clips"), str(tmp_path)]
    subprocess.run(call, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    kind = generated.read_machine(tmp_path)
    if kind in EXPECTED:
        assert generated.hashes(tmp_path) == EXPECTED[kind]
    # on any machine: the same pictures are seen, and all but a few decisions fall alike
    found, wanted = load_file(tmp_path / "sounds.safetensors"), load_file(GOLDEN / "sounds.safetensors")
    assert found.keys() == wanted.keys()
    alike = {}
    for name in generated.CASES:
        features = f"{name}.features"
        assert torch.allclose(found[features], wanted[features].float(), rtol=2e-3, atol=1e-2)
        alike[name] = (found[f"{name}.tokens"] == wanted[f"{name}.tokens"]).float().mean().item()
        if alike[name] == 1:
            difference = found[f"{name}.levels"] - wanted[f"{name}.levels"].double()
            assert difference.abs().max() < 0.5  # decibels, in any tenth of a second
    assert np.mean(list(alike.values())) > 0.9 and list(alike.values()).count(1.0) >= 4, alike


def test_a_pretraining_run_goes_on_to_the_same_weights(old: Path, one_thread: None) -> None:
    preset = from_dict(Preset, json.loads((old / "run_preset.json").read_text()))
    said: list[str] = []
    train(preset, old / "store", old / "run", log=said.append)
    assert any("step 6 of 9" in line for line in said)
    whole = load_file(old / "run_whole.safetensors")
    assert_same_weights(load_file(old / "run" / "model.safetensors"), whole, off=1e-3)
    steps = [json.loads(line)["step"] for line in (old / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 10))


def test_a_codec_in_training_goes_on_to_the_same_weights(old: Path, one_thread: None) -> None:
    settings = json.loads((old / "codec_settings.json").read_text())
    n = np.arange(24_000, dtype=np.int64)  # the two sounds that make.py draws
    sounds = {
        name: [((n * pitch % 16_000 * 12_000 // 16_000 - 6000) * (n // 4000 % 2)).astype(np.int16)]
        for name, pitch in (("high", 880), ("low", 110))
    }
    steps: list[float] = []
    codec, run = from_dict(TinyCodecConfig, settings["codec"]), from_dict(CodecTrainConfig, settings["train"])
    train_codec(sounds, old / "codec_run", run, codec, lambda line: steps.append(line["step"]))
    assert steps == [4, 5, 6]
    whole = load_file(old / "codec_whole.safetensors")
    assert_same_weights(load_file(old / "codec_run" / "codec.safetensors"), whole, off=5e-3)


def test_a_store_is_read_and_gone_on_with(old: Path) -> None:
    store = LatentStore.open(old / "store")
    assert len(store) == 16 and store.splits.count("dev") == 4 and set(store.labels) == {"bars", "stripes"}
    pipeline = VABPipeline.from_pretrained(old / "model", device="cpu")
    manifest = old / "manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, "new,clips/wide.mp4,clips/wide.mp4,0.1,1.5,bars,train", ""]))
    made = extract(manifest, old / "store", pipeline.codec, pipeline.vision, seconds=2.0, fps=2.0)
    assert (made.done, made.present) == (1, 16) and not made.failed
    again = extract(manifest, old / "again", pipeline.codec, pipeline.vision, seconds=2.0, fps=2.0)
    assert again.done == 17
    stores = [LatentStore.open(old / name) for name in ("store", "again")]
    rows = [{row.id: row for row in map(each.__getitem__, range(17))} for each in stores]
    for name, row in rows[0].items():
        other = rows[1][name]
        assert row.tokens is not None and other.tokens is not None
        assert row.features is not None and other.features is not None
        assert (row.tokens == other.tokens).mean() > 0.95
        np.testing.assert_allclose(row.features.astype(float), other.features.astype(float), atol=0.05)


def test_a_model_directory_makes_sound_embeds_and_classifies(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its sound is a case of the test above; here, that all its parts are there under the same settings."""
    clip, words = old / "clips" / "kept.mkv", ("--model", old / "model", "--device", "cpu")
    code, _, err = vab(capsys, "generate", clip, "-o", old / "out", *words, "--rerank", 2)
    assert code == 0, err
    assert len(read_audio(old / "out" / "kept.wav")) == 105_984  # Matroska counts in ms
    code, out, err = vab(capsys, "classify", clip, *words, "--json")
    assert code == 0 and "bars" in out and "stripes" in out, err
    pipeline = VABPipeline.from_pretrained(old / "model", device="cpu")
    assert {name: vector.shape for name, vector in pipeline.embed(clip).items()} == {
        "audio": (16,),
        "video": (16,),
    }
    assert pipeline.fine is not None
    pipeline.save_pretrained(old / "saved")
    names = [path.relative_to(old / "model") for path in sorted((old / "model").rglob("*.safetensors"))]
    assert len(names) == 5
    for name in names:
        saved, first = load_file(old / "saved" / name), load_file(old / "model" / name)
        assert saved.keys() == first.keys() and all(torch.equal(saved[key], first[key]) for key in first)


def test_a_library_is_searched_and_added_to(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lancedb")
    library, low = old / "library", old / "sounds" / "low" / "low.wav"
    code, out, err = vab(capsys, "search", library, "--audio", low, "-k", 2, "--device", "cpu", "--json")
    best = json.loads(out)["hits"][0]
    assert code == 0 and Path(best["path"]).name == "low.wav" and best["score"] > 0.999, err
    # the same model, so what is new can be added
    code, out, err = vab(capsys, "index", "add", library, old / "sounds", "--device", "cpu", "--json")
    assert code == 0 and json.loads(out)["added"] == 2, err
    code, out, _ = vab(capsys, "index", "show", library, "--json")
    assert code == 0 and json.loads(out)["files"] == 9
    code, out, _ = vab(capsys, "index", "prune", library, "--json")
    assert code == 0 and len(json.loads(out)["removed"]) == 7  # they are no longer where they were


def test_a_study_is_gone_on_with(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = open_study(old / "study")
    assert (study.systems, study.clips) == (("ours", "theirs"), ("bell", "dog"))
    answers = Answers(study)
    first = answers.invite(2)[0]
    before = answers.all()
    assert len(before) == 4 and {answer.rater for answer in before} == {first}
    following = answers.next(first)
    assert following.done == 4 and following.trial is not None
    asked = {"preference": ("quality", "relevance"), "mos": ("score",)}[following.trial.survey]
    answers.answer(first, following.trial.id, dict.fromkeys(asked, 2))
    assert answers.all()[:4] == before and len(answers.all()) == 5
    code, out, err = vab(capsys, "evaluate", "listening", "results", old / "study", "--json")
    assert code == 0 and json.loads(out)["systems"] == ["ours", "theirs"], err
