"""FoleyGen: the delay pattern, who sees whom, the cache, training and the command line."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.foleygen import SEQUENCE, SMALL, TIME, clips, sure
from helpers.tiny import write_model, write_video
from helpers.training import MODEL, TRAIN, fill, metrics, same_weights
from vab import VABPipeline
from vab.cli import main
from vab.config import ModelConfig, Preset
from vab.models.foleygen import FoleyGen, IncrementalDecoder, delay, undelay
from vab.models.vab import parameter_counts
from vab.presets import PRESETS
from vab.training.checkpoint import checkpoints
from vab.training.trainer import train

CAUSAL = Preset(
    "test", "a small FoleyGen", replace(MODEL, num_expert_layers=0), replace(TRAIN, objective="causal")
)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_the_delay_pattern_there_and_back(batch: int, num_codebooks: int, frames: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (batch, num_codebooks, frames), generator=draw)
    steps = delay(tokens, 50)
    assert steps.shape == (batch, num_codebooks, frames + num_codebooks - 1)
    for k in range(num_codebooks):
        for step in range(steps.shape[2]):
            inside = 0 <= step - k < frames
            expected = tokens[:, k, step - k] if inside else torch.full((batch,), 50)
            assert torch.equal(steps[:, k, step], expected)
    assert torch.equal(undelay(steps), tokens)
    logits = torch.nn.functional.one_hot(steps, 51)
    assert torch.equal(undelay(logits).argmax(-1), tokens)


@pytest.mark.parametrize("config", [SEQUENCE, TIME], ids=["sequence", "time"])
def test_a_token_depends_on_those_before_it_alone(config: ModelConfig) -> None:
    network = sure(config)
    tokens, features = clips(config, batch=1, frames=6)
    logits = network(tokens, features)
    num_codebooks, frames = tokens.shape[1:]
    for k in range(num_codebooks):
        for t in range(frames):
            other = tokens.clone()
            other[0, k, t] = (other[0, k, t] + 1) % config.codebook_size
            changed = (network(other, features) != logits).any(-1)[0]
            later = torch.tensor([[j + i > k + t for i in range(frames)] for j in range(num_codebooks)])
            assert torch.equal(changed, later), (k, t)  # and every later one does depend on it


def test_every_token_sees_every_picture() -> None:
    network = sure(TIME)
    tokens, features = clips(TIME, batch=1, frames=6)
    logits = network(tokens, features)
    for place in range(features.shape[1]):
        other = features.clone()
        other[0, place] += 1
        assert bool((network(tokens, other) != logits).any(-1).all())
    dropped = network(tokens, features, drop_features=torch.tensor([True]))
    assert torch.equal(dropped, network(tokens, torch.zeros_like(features)))
    assert not torch.equal(dropped, logits)
    assert network(tokens, None).shape == logits.shape  # with the F of T, not of the S steps


def test_padding_does_not_matter() -> None:
    network = sure(SEQUENCE)
    tokens, features = clips(SEQUENCE, batch=2, frames=9)
    whole = network(tokens, features)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 5:] = True
    longer = network(tokens, features, token_padding=padding)
    torch.testing.assert_close(longer[0, :, :2], network(tokens[:1, :, :5], features[:1])[0, :, :2])
    assert torch.equal(longer, whole)
    unseen = torch.tensor([[True] * 3, [False] * 3])
    assert bool(network(tokens, features, feature_padding=unseen).isfinite().all())


@pytest.mark.parametrize("config", [SEQUENCE, TIME], ids=["sequence", "time"])
@pytest.mark.parametrize("pieces", [[1] * 26, [7, 1, 1, 17], [26]], ids=["single", "mixed", "all"])
def test_cached_steps_equal_the_parallel_pass(config: ModelConfig, pieces: list[int]) -> None:
    network = sure(config)
    tokens, features = clips(config)
    drop = torch.tensor([False, True])
    with torch.no_grad():
        logits = network(tokens, features, drop_features=drop)
    steps = torch.nn.functional.pad(delay(tokens, config.codebook_size), (1, 0), value=config.codebook_size)
    continuation = IncrementalDecoder(network, tokens.shape[2])
    done, seen = 0, 0
    for piece in pieces:
        found = continuation(steps[:, :, done : done + piece], features, drop)
        done += piece
        for k in range(config.num_codebooks):
            if 0 <= done - 1 - k < tokens.shape[2]:
                torch.testing.assert_close(found[:, k], logits[:, k, done - 1 - k], atol=2e-5, rtol=1e-5)
                seen += 1
    assert seen >= 1 and done == 26
    with pytest.raises(ValueError, match="room for 26 steps"):
        continuation(steps[:, :, :1], features)


def test_sizes() -> None:
    counts = parameter_counts(PRESETS["foleygen-encodec"].model)
    # 24 layers of 12 D^2 and some; the paper names no number
    assert 302e6 < counts["parameters"] < 305e6
    assert parameter_counts(PRESETS["foleygen-tiny"].model)["parameters"] < 4e6
    with torch.device("meta"):
        assert FoleyGen(PRESETS["foleygen-encodec"].model).parameter_counts() == counts
    model = PRESETS["foleygen-encodec"].model
    assert (model.num_layers, model.hidden_dim, model.num_heads) == (24, 1024, 16)
    with pytest.raises(ValueError, match="experts"):
        FoleyGen(replace(SMALL, num_expert_layers=1))
    with pytest.raises(ValueError, match="all of its codebooks"):
        FoleyGen(replace(SMALL, num_conditioning_codebooks=1))


def test_the_presets_decode_as_the_paper_says() -> None:
    for name in ("foleygen-encodec", "foleygen-tiny"):
        decode = PRESETS[name].decode
        assert (decode.guidance_scale, decode.top_k, decode.sampling_temperature) == (3.0, 256, 1.0)
    tiny, ours = PRESETS["foleygen-tiny"], PRESETS["vab-tiny"]
    # ours is told a timing curve, and trained so that it needs one
    assert replace(tiny.model, num_expert_layers=3, timing=True) == ours.model
    assert replace(tiny.train, objective="masked", splice_prob=0.7, mask_min=0.6) == ours.train


def test_training_learns_resumes_and_measures(tmp_path: Path) -> None:
    store = fill(tmp_path / "store")
    whole = train(CAUSAL, store, tmp_path / "whole", max_steps=40)
    losses = [line["loss"] for line in metrics(whole, "train")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    assert metrics(whole, "dev")[-1]["accuracy/1"] > 0.15
    died = tmp_path / "died"
    train(CAUSAL, store, died, max_steps=40)
    checkpoints(died / "checkpoints")[0].unlink()  # as if it had died before the last one
    (died / "model.safetensors").unlink()
    said: list[str] = []
    train(CAUSAL, store, died, max_steps=40, log=said.append)
    assert said[0] == f"resuming {died} at step 35 of 40" and same_weights(whole, died)
    assert [line["step"] for line in metrics(died, "train")] == list(range(1, 41))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "foleygen-tiny")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 33, 10)  # 3.3 s: two windows


def test_the_pipeline_plays_it(model: Path, clip: Path, tmp_path: Path) -> None:
    pipe = VABPipeline.from_pretrained(model, device="cpu")
    assert isinstance(pipe.network, FoleyGen)
    sound = pipe.generate(clip, seed=3)
    assert sound.waveform.shape == (52_800,) and sound.waveform.std() > 0
    red = write_video(tmp_path / "red.mp4", 12, 10, colour=(250, 0, 0))
    blue = write_video(tmp_path / "blue.mp4", 12, 10, colour=(0, 0, 250))
    pipe.generate(red, seed=3)
    assert np.array_equal(pipe.generate(clip, seed=3).waveform, sound.waveform)
    assert not np.array_equal(pipe.generate(clip, seed=4).waveform, sound.waveform)
    waves = [pipe.generate(path, guidance=20).waveform for path in (red, blue)]
    assert not np.array_equal(*waves)
    waves = [pipe.generate(path, guidance=0).waveform for path in (red, blue)]
    assert np.array_equal(*waves)
    kept = pipe.generate(clip, seed=3, keep=[(0.0, 1.0)]).waveform
    assert not np.array_equal(kept[20_000:], sound.waveform[20_000:])
    with pytest.raises(ValueError, match="steps cannot be chosen"):
        pipe.generate(clip, steps=8)
    pipe.save_pretrained(tmp_path / "copy")
    again = VABPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert np.array_equal(again.generate(clip, seed=3).waveform, sound.waveform)


def test_sound_of_any_length_continues_itself(
    model: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.3 s are three windows of 2 s; the later ones are told a second of the one before, at once."""
    pipe = VABPipeline.from_pretrained(model, device="cpu")
    told: dict[IncrementalDecoder, list[Tensor]] = {}
    call = IncrementalDecoder.__call__

    def watch(self: IncrementalDecoder, steps: Tensor, *rest: Tensor) -> Tensor:
        told.setdefault(self, []).append(steps)
        return call(self, steps, *rest)

    monkeypatch.setattr(IncrementalDecoder, "__call__", watch)
    pipe.generate(clip)
    lines = [torch.cat(steps, dim=2) for steps in told.values()]  # [2, 2, start and 100 of 101 steps]
    assert [steps[0].shape[2] for steps in told.values()] == [1, 51, 51]
    for before, after in pairwise(lines):
        assert bool((after[:, :, 0] == 32).all())
        assert torch.equal(after[:, 0, 1:51], before[:, 0, 51:101])
        assert torch.equal(after[:, 1, 2:51], before[:, 1, 52:101])


def test_from_a_store_to_a_wav_on_the_command_line(
    model: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vab extract, vab pretrain foleygen-tiny, vab generate, at the least size."""
    sounds = tmp_path / "sounds.csv"
    sounds.write_text(f"id,audio,video,start,seconds,label,split\na,{clip},{clip},0,2,x,train\n")
    store, run = tmp_path / "store", tmp_path / "run"
    extract = f"extract {sounds} -o {store} --preset foleygen-tiny --seconds 2 --codec-path {model}"
    sizes = "--model.seconds 2 --model.num-codebooks 2 --model.codebook-size 32 --model.codebook-dim 8"
    sizes += " --model.hidden-dim 32 --model.num-layers 2 --model.num-heads 2"
    learn = f"pretrain foleygen-tiny --store {store} --run {run} --max-steps 2 {sizes}"
    play = f"generate {clip} -o {tmp_path} --model {run} --codec-path {model} --device cpu --json"
    for call in (extract, learn, play):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(call.split())
        assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1
    with wave.open(str(tmp_path / "clip.wav")) as file:
        assert file.getnframes() == 52_800
    assert json.loads((run / "record.json").read_text())["objective"] == "causal"
