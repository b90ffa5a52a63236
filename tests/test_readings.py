"""Where the paper can be read in two ways: each reading is a field, and the field does what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.training import META, PRESET, fill, preset
from vab.cli import main
from vab.config import Preset, TrainConfig
from vab.data.shard import Latents
from vab.data.store import LatentStore
from vab.models.vab import AudioEmbedding
from vab.presets import PRESETS, paper_says
from vab.training.batches import ClipBatches, make_generator
from vab.training.losses import contrastive
from vab.training.masking import sample_mask_ratio
from vab.training.objectives import build, contrastive_step
from vab.training.trainer import train


def test_smoothing_of_the_contrast_is_that_of_cross_entropy() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(5, 8), torch.randn(5, 8)
    logits = 3.0 * functional.normalize(audio, dim=1) @ functional.normalize(video, dim=1).T
    own = torch.arange(5)
    both = [functional.cross_entropy(each, own, label_smoothing=0.1) for each in (logits, logits.T)]
    assert contrastive(audio, video, 3.0, smoothing=0.1).item() == pytest.approx(
        float(sum(both)) / 2, rel=1e-6
    )

    # Of a row with two candidates left, each gets half of what is spread.
    alike = torch.ones(3, 3, dtype=torch.bool).fill_diagonal_(False)
    alike[0, 1] = alike[1, 0] = False
    a, b = 2.0, 0.0  # own and other similarity of rows 0 and 1
    log_p = torch.tensor([a, b]).log_softmax(0)
    row = -(0.9 * log_p[0] + 0.1 * log_p.mean())
    got = contrastive(torch.eye(3), torch.eye(3), 2.0, alike, 0.1)
    assert got.item() == pytest.approx(float(2 * row / 3), rel=1e-6)


def test_the_contrast_is_trained_with_its_smoothing(tmp_path: Path) -> None:
    store = LatentStore.open(fill(tmp_path / "store", clips=12))
    losses = []
    for smoothing in (0.0, 0.3):
        chosen = preset("contrastive", contrast_smoothing=smoothing, label_smoothing=0.5)
        batch = ClipBatches(store, chosen, "train").train_batch(0)
        torch.manual_seed(0)
        network = build(chosen, torch.from_numpy(store.codebook_vectors()))
        audio, video, scale = network(batch.tokens, batch.features, batch.token_padding, batch.video_padding)
        losses.append(contrastive_step(network, batch, chosen).loss.item())
        assert losses[-1] == pytest.approx(contrastive(audio, video, scale, None, smoothing).item(), rel=1e-6)
    assert losses[0] != losses[1]


def test_a_ratio_is_drawn_for_a_clip_or_for_a_batch(tmp_path: Path) -> None:
    each = sample_mask_ratio(64, TrainConfig(), make_generator(0))
    one = sample_mask_ratio(64, TrainConfig(mask_ratio_per="batch"), make_generator(0))
    assert len(each.unique()) == 64 and one.shape == (64,) and len(one.unique()) == 1
    draws = [
        sample_mask_ratio(2, TrainConfig(mask_ratio_per="batch"), make_generator(n))[0] for n in range(99)
    ]
    assert torch.stack(draws).std() > 0.08  # the law is the same

    store = LatentStore.open(fill(tmp_path / "store"))
    clips = ClipBatches(store, preset("masked", mask_ratio_per="batch"), "train")
    shares = clips.train_batch(3).mask.float().mean((1, 2))
    apart = ClipBatches(store, preset("masked"), "train").train_batch(3).mask.float().mean((1, 2))
    assert shares.std() < apart.std()


@pytest.mark.parametrize("together", [False, True])
def test_a_short_sound_rolls_within_itself_or_with_its_padding(tmp_path: Path, together: bool) -> None:
    store = LatentStore.create(tmp_path / "store", META, np.ones((2, 16, 4), np.float32))
    tokens, features = np.zeros(META.token_shape, np.uint16), np.zeros(META.feature_shape, np.float16)
    store.add([Latents(f"c{n}", "a", "train", tokens, features, real_tokens=8 + n % 13) for n in range(24)])
    chosen = preset("classification", inputs=("audio",), roll_prob=1.0, mixup_prob=0.0, roll_padding=together)
    clips = ClipBatches(store, chosen, "train")
    real = store.num_valid("tokens", np.arange(len(store)))
    length = store.meta.token_shape[1]
    cut = 0
    for step in range(4):
        batch = clips.train_batch(step)
        for ident, padding in zip(batch.ids, batch.token_padding, strict=True):
            own = int(real[store.ids.index(ident)])
            assert int((~padding).sum()) == own
            cut += own < length and bool(padding[:own].any())
    assert (cut > 0) is together


def test_codes_are_summed_or_projected_one_by_one() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(16, (2, 2, 7))
    for codec, projection, shared in (
        ("dac", "by-codec", False),
        ("dac", "shared", True),
        ("encodec", "by-codec", True),
        ("encodec", "separate", False),
    ):
        config = replace(PRESET.model, codec=codec, code_projection=projection)  # type: ignore[arg-type]
        embedding = AudioEmbedding(config, None)
        vectors = [embedding.vectors[k][tokens[:, k]] for k in range(2)]
        weight, bias = embedding.projection.weight, embedding.projection.bias
        assert weight.shape[1] == config.codebook_dim * (1 if shared else 2)
        parts = [weight, weight] if shared else weight.chunk(2, dim=1)
        expected = sum(vector @ part.T for vector, part in zip(vectors, parts, strict=True)) + bias
        assert torch.allclose(embedding(tokens), expected, atol=1e-5)


@pytest.mark.parametrize("standardised", [True, False])
def test_features_are_standardised_or_left_as_they_are(tmp_path: Path, standardised: bool) -> None:
    from safetensors.torch import load_file

    chosen = replace(PRESET, model=replace(PRESET.model, standardise_features=standardised))
    store = fill(tmp_path / "store", clips=12)
    weights = load_file(train(chosen, store, tmp_path / "run", max_steps=1) / "model.safetensors")
    mean, std = LatentStore.open(store).feature_statistics()
    assert np.array_equal(weights["feature_mean"].numpy(), mean if standardised else np.zeros_like(mean))
    assert np.array_equal(weights["feature_std"].numpy(), std if standardised else np.ones_like(std))


def test_a_run_from_before_a_setting_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that says nothing of a field was made with its default."""
    from vab.training import checkpoint
    from vab.training.run import TrainingRun

    new = {"contrast_smoothing", "mask_ratio_per", "roll_padding", "code_projection", "standardise_features"}
    identity = TrainingRun._identity

    def former(run: TrainingRun) -> dict[str, object]:
        found = identity(run)
        for part in ("model", "train"):
            found[part] = {name: value for name, value in found[part].items() if name not in new}
        return found

    store = fill(tmp_path / "store", clips=12)
    chosen = replace(PRESET, train=replace(PRESET.train, save_every=1))
    with monkeypatch.context() as before:
        before.setattr(TrainingRun, "_identity", former)
        train(chosen, store, tmp_path / "run", max_steps=2)
    saved = checkpoint.all_checkpoints(tmp_path / "run" / "checkpoints")[0]
    about = checkpoint.read_about(saved)
    assert about is not None and not new & about["identity"]["train"].keys()
    train(chosen, store, tmp_path / "run", max_steps=2)
    other: Preset = replace(chosen, train=replace(chosen.train, mask_ratio_per="batch"))
    with pytest.raises(Exception, match="mask_ratio_per was clip, is batch"):
        train(other, store, tmp_path / "run", max_steps=2)


def test_the_screen_of_a_preset_says_what_the_paper_says(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("vab-encodec-contrastive", "vab-dac", "vab-dac-coarse2fine", "vab-tiny"):
        with pytest.raises(SystemExit):
            main(["presets", name, "--json"])
        document = json.loads(capsys.readouterr().out)
        for field in document["paper"]:
            part, _, own = field.partition(".")
            assert own in document[part], field
        assert (name == "vab-tiny") is not bool(document["paper"])
    # Neither is a setting of the contrast.
    assert not {"train.loss", "train.label_smoothing"} & paper_says("vab-dac-contrastive").keys()
    assert paper_says("vab-dac-contrastive")["train.contrast_smoothing"] == "0.1"
    assert PRESETS["vab-dac-contrastive"].train.contrast_smoothing == 0.1
    assert "not said" in paper_says("vab-dac-coarse2fine")["train.epochs"]


def test_a_preset_stands_beside_its_own_numbers_of_the_paper() -> None:
    """Every number that the paper prints is the preset's, but for the heads that it gives twice."""
    compared = 0
    for name, one in PRESETS.items():
        for field, said in paper_says(name).items():
            part, _, own = field.partition(".")
            try:
                number = float(said.replace("K", "e3").partition(";")[0].partition(":")[0].partition(",")[0])
            except ValueError:  # words
                continue
            value = getattr(getattr(one, part), own)
            if field == "model.num_heads" and "12 in the text" in said:
                assert (number, value) == (8, 12)
            elif (field, name) != ("model.num_expert_layers", "vab-dac-coarse2fine"):
                assert value == number, (name, field)
            compared += 1
    assert compared > 300
    epochs = [paper_says(name)["train.epochs"] for name in ("vab-encodec", "vab-dac", "vab-dac-test-spc1")]
    assert epochs == ["17", "9", "5"]
