"""Coarse to fine in one call: a second stage from a model's folder fills in the finer codebooks."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.tiny import write_model, write_video
from vab import ModelError, VABPipeline
from vab.codecs.codec import Codec, encode_long
from vab.inference import pipeline
from vab.inference.batch import BatchSettings, generate_files
from vab.inference.embedder import audio_video_similarity
from vab.inference.splice import read_original
from vab.inference.tokens import waveform_of
from vab.media.file import MediaFile
from vab.models.heads import Contrastive
from vab.models.hub import FINE, known_models
from vab.models.vab import VAB
from vab.presets import PRESETS
from vab.sampling.parallel import generate
from vab.sampling.stages import Stage, check_fine, load_stage, save_stage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), fine=True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 33, 10)  # 3.3 s: three windows


@pytest.fixture
def pipe(model: Path) -> VABPipeline:
    return VABPipeline.from_pretrained(model, device="cpu")


def without_fine(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    shutil.rmtree(folder / FINE)
    return folder


def played(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tokens [K,T] of each sound that is made from now on."""
    seen: list[Tensor] = []

    def watch(codec: Codec, tokens: Tensor, length: int) -> np.ndarray:
        seen.append(tokens)
        return waveform_of(codec, tokens, length)

    monkeypatch.setattr(pipeline, "waveform_of", watch)
    return seen


def test_the_second_stage_adds_to_the_first(
    pipe: VABPipeline, model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = VABPipeline.from_pretrained(without_fine(model, tmp_path / "coarse"), device="cpu")
    assert pipe.fine is not None and alone.fine is None
    seen = played(monkeypatch)
    sounds = [one.generate(clip, seed=2) for one in (pipe, alone)]
    both, coarse = seen
    assert both.shape == (5, 165) and coarse.shape == (2, 165)
    assert torch.equal(both[:2], coarse)  # the first stage does not know that there is a second
    assert set(sounds[0].timings) - set(sounds[1].timings) == {"refining"}
    assert not np.array_equal(sounds[0].waveform, sounds[1].waveform)
    again = list(pipe.generate_many(clip, 2, seed=2))
    assert np.array_equal(again[0].waveform, sounds[0].waveform)
    assert not torch.equal(seen[3][2:], seen[2][2:])


def test_an_oracle_s_fine_tokens_are_what_is_played(
    pipe: VABPipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second stage that knows how fine tokens follow from coarse ones is right at every place."""
    assert pipe.fine is not None
    known: list[bool] = []

    def forward(tokens: Tensor, features: Tensor, **_: object) -> Tensor:
        known.append(bool((tokens[:, :2] < 32).all()))
        answer = torch.stack([(tokens[:, 0] + k * tokens[:, 1]) % 32 for k in range(2, 5)], dim=1)
        return torch.nn.functional.one_hot(answer, 32) * 1e4

    monkeypatch.setattr(pipe.fine.network, "forward", forward)
    seen = played(monkeypatch)
    pipe.generate(clip)
    assert known and all(known)
    for k in range(2, 5):
        assert torch.equal(seen[0][k], (seen[0][0] + k * seen[0][1]) % 32)


def test_one_window_is_generate_with_given_codebooks(pipe: VABPipeline) -> None:
    stage = pipe.fine
    assert stage is not None
    draw = torch.Generator().manual_seed(0)
    coarse, features = torch.randint(32, (2, 100), generator=draw), torch.randn(2, 1280, generator=draw)
    nothing = torch.zeros(5, 100, dtype=torch.bool)
    fine = stage.refine(
        coarse, torch.zeros(5, 100).long(), nothing, features, torch.Generator().manual_seed(1)
    )
    tokens, known = torch.zeros(1, 5, 100).long(), nothing[None].clone()
    tokens[0, :2], known[0, :2] = coarse, True
    expected = generate(
        lambda tokens, step: stage.network(tokens, features[None]),
        tokens,
        known,
        32,
        stage.preset.decode,
        [torch.Generator().manual_seed(1)],
        num_conditioning_codebooks=2,
    )
    assert torch.equal(fine, expected[0])


def test_several_clips_at_once_are_as_each_alone(pipe: VABPipeline) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 1280, generator=draw)
    tokens = torch.zeros(2, 5, 150).long()
    known = torch.zeros_like(tokens, dtype=torch.bool)
    assert pipe.fine is not None

    def made(rows: list[int]) -> Tensor:
        noise = [[torch.Generator().manual_seed(10 * n + row) for row in rows] for n in range(2)]
        start = (tokens[rows, :2], known[rows, :2], features[rows])
        coarse = pipe.first.fill(*start, pipe.config.decode, noise[0])
        return pipe.fine.refine(coarse, tokens[rows], known[rows], features[rows], noise[1])

    together = made([0, 1])
    assert together.shape == (2, 5, 150)
    alone = torch.cat([made([0]), made([1])])
    # a product of matrices may round otherwise in a larger batch, and a rare choice tip over
    assert float((together == alone).float().mean()) > 0.95


def test_what_is_kept_is_known_to_both_stages(
    pipe: VABPipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = played(monkeypatch)
    pipe.generate(clip, keep=[(1.0, 2.0)])
    with MediaFile(clip) as file:
        own = encode_long(pipe.codec, partial(read_original, file), 50, 100, context=50)
    assert own.shape == (5, 50)
    assert torch.equal(seen[0][:, 50:100], own)


def test_reranking_refines_the_chosen_sound_alone(
    pipe: VABPipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = played(monkeypatch)
    drawn: list[Tensor] = []

    def watch(network: Contrastive, several: Tensor, features: Tensor) -> Tensor:
        drawn.append(several)
        return audio_video_similarity(network, several, features)

    monkeypatch.setattr("vab.inference.pipeline.audio_video_similarity", watch)
    pipe.generate(clip, rerank=2)
    assert drawn[0].shape[:2] == (2, 2) and seen[0].shape[0] == 5
    assert any(torch.equal(seen[0][:2], one[:, :165]) for one in drawn[0])


def test_a_second_stage_survives_saving(pipe: VABPipeline, clip: Path, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    again = VABPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert again.fine is not None and pipe.fine is not None and again.fine.preset == pipe.fine.preset
    assert np.array_equal(again.generate(clip).waveform, pipe.generate(clip).waveform)
    assert str(tmp_path / "copy" / FINE) in [known.name for known in known_models([tmp_path])]


def test_foleygen_may_have_a_second_stage_too(clip: Path, tmp_path: Path) -> None:
    pipe = VABPipeline.from_pretrained(write_model(tmp_path, "foleygen-tiny", fine=True), device="cpu")
    assert pipe.generate(clip).timings["refining"] > 0


def test_many_files_on_the_command_line_s_path(model: Path, clip: Path, tmp_path: Path) -> None:
    (result,) = generate_files([clip], tmp_path, BatchSettings(model=str(model), device="cpu"))
    assert result.status == "done" and (result.timings or {})["refining"] > 0


def test_stages_that_do_not_fit_are_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    fine = load_stage(model / FINE)
    cases = {
        "refines 1 codebooks, the first stage makes 2": {"num_conditioning_codebooks": 1},
        "fps is 5": {"fps": 5.0},
    }
    for words, change in cases.items():
        folder = tmp_path / words[:4]
        shutil.copytree(model, folder)
        config = asdict(replace(fine.preset, model=replace(fine.preset.model, **change)))
        network = VAB(replace(fine.preset.model, **change))
        save_stage(folder / FINE, Stage(network, fine.preset))
        (folder / FINE / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=words) as caught:
            VABPipeline.from_pretrained(folder, device="cpu")
        assert "\n" not in str(caught.value)
    other = shutil.copytree(model, tmp_path / "other")
    fine.network.audio_embedding.vectors.normal_()
    save_stage(other / FINE, fine)
    with pytest.raises(ModelError, match="another codec"):
        VABPipeline.from_pretrained(other, device="cpu")
    (other / FINE / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"fine.*cannot be read"):
        VABPipeline.from_pretrained(other, device="cpu")
    shutil.copytree(model / FINE, tmp_path / "lonely")
    shutil.copy(model / "codec.json", tmp_path / "lonely")
    shutil.copy(model / "codec.safetensors", tmp_path / "lonely")
    with pytest.raises(ModelError, match="refines 2 codebooks of another model, in whose folder 'fine'"):
        VABPipeline.from_pretrained(tmp_path / "lonely", device="cpu")


def test_the_presets_stages_fit_each_other() -> None:
    for first, second, num_codebooks in (
        ("vab-tiny-coarse", "vab-tiny-fine", 4),
        ("vab-dac", "vab-dac-coarse2fine", 12),
    ):
        check_fine(PRESETS[second].model, PRESETS[first].model)
        assert PRESETS[second].decode.num_steps == 36
        assert PRESETS[second].model.num_codebooks == num_codebooks
