"""Contrastive fine-tuning and classification: the networks, what they learn from, and how a run goes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.training import META, PRESET, fill, metrics, preset
from vab.config import Preset, TrainConfig
from vab.data.shard import Latents
from vab.data.store import LatentStore
from vab.errors import TrainError
from vab.evaluate.embedding import classify_store, embed_store
from vab.models.heads import Classifier, Contrastive, load_finetuned, start_from
from vab.models.hub import ModelError, read_config
from vab.models.vab import VAB, Trunk, parameter_counts
from vab.presets import PRESETS, table_8
from vab.training.batches import ClipBatches
from vab.training.losses import contrastive
from vab.training.objectives import build, contrastive_step
from vab.training.trainer import train


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips of four labels, each with sound and picture; the sounds of some are short."""
    return fill(tmp_path_factory.mktemp("latents") / "store", clips=40)


@pytest.fixture(scope="module")
def pretrained(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(PRESET, latents, tmp_path_factory.mktemp("runs") / "vab", max_steps=3)


@pytest.mark.parametrize("network", [Contrastive(PRESET.model), Classifier(PRESET.model, 3)])
def test_padding_does_not_count(network: Contrastive | Classifier) -> None:
    torch.manual_seed(0)
    tokens, features = torch.randint(16, (2, 2, 20)), torch.randn(2, 2, 8)
    own = [torch.zeros(2, n, dtype=torch.bool) for n in (20, 2)]
    own[0][:, 13:], own[1][:, 1:] = True, True
    short = network(tokens[:, :, :13], features[:, :1])
    padded = network(tokens, features, *own)
    other = network(torch.where(own[0][:, None], 5, tokens), features, *own)
    whole = network(tokens, features)
    for a, b, c, d in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (short, padded, other, whole)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5) and torch.allclose(b, c, atol=1e-6)
        assert a.ndim == 0 or not torch.allclose(b, d, rtol=1e-4, atol=1e-5)


def test_vectors_have_length_one_and_streams_do_not_mix() -> None:
    network = Contrastive(PRESET.model)
    tokens, features = torch.randint(16, (3, 2, 20)), torch.randn(3, 2, 8)
    audio, video, scale = network(tokens, features)
    assert torch.allclose(audio.norm(dim=1), torch.ones(3)) and torch.allclose(
        video.norm(dim=1), torch.ones(3)
    )
    assert torch.equal(network(tokens, torch.randn(3, 2, 8))[0], audio)
    assert torch.equal(network(torch.randint(16, (3, 2, 20)), features)[1], video)
    assert scale.item() == pytest.approx(1 / 0.07)
    assert torch.allclose(audio, torch.nn.functional.normalize(network.trunk.encode(tokens, None).mean(1)))


def test_clips_that_are_alike_are_not_held_against_each_other() -> None:
    """By hand: rows 0 and 1 share a label, so each has one wrong candidate, not two."""
    audio, video = torch.eye(3), torch.eye(3)
    alike = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    expected = [np.log(1 + np.exp(-2.0))] * 2 + [np.log(1 + 2 * np.exp(-2.0))]
    assert contrastive(audio, video, 2.0, alike).item() == pytest.approx(np.mean(expected), rel=1e-6)
    assert contrastive(audio, video, 2.0).item() == pytest.approx(np.log(1 + 2 * np.exp(-2.0)), rel=1e-6)


def test_sound_and_picture_find_each_other(latents: Path, pretrained: Path, tmp_path: Path) -> None:
    run = train(preset("contrastive"), latents, tmp_path / "run", init=pretrained, max_steps=40)
    before, after = metrics(run, "train")[0], metrics(run, "dev")[-1]
    assert after["loss"] < 0.8 * before["loss"]
    assert {"R@1/video to audio", "R@1/audio to video"} <= after.keys()
    finetuned = load_finetuned(run)
    found, classifier = finetuned.contrastive, finetuned.classifier
    assert found is not None and classifier is None
    assert found[0].log_scale.item() != pytest.approx(-np.log(0.07), abs=1e-4)


def test_latents_of_another_codec_are_not_embedded(latents: Path) -> None:
    clips = ClipBatches(LatentStore.open(latents), preset("contrastive"), "dev")
    vectors = torch.from_numpy(clips.store.codebook_vectors())
    assert len(embed_store(Contrastive(PRESET.model, vectors), clips).ids) == len(clips)
    with pytest.raises(ModelError, match="store holds the tokens of another codec than the model's"):
        embed_store(Contrastive(PRESET.model, vectors.flip(1)), clips)
    with pytest.raises(ModelError, match="store holds the tokens of another codec than the model's"):
        classify_store(Classifier(PRESET.model, 3, vectors.flip(1)), clips, "both", "bce")


def test_clips_without_a_picture_take_no_part(tmp_path: Path) -> None:
    """Label 3 has no picture: the loss is that of the others, and no number is lost on it."""
    store = LatentStore.open(fill(tmp_path / "store", pictures="other"))
    paired = preset("contrastive", pair_by_label=True)
    clips = ClipBatches(store, paired, "train")
    batch = next(batch for batch in map(clips.train_batch, range(9)) if batch.targets[:, 3].any())
    network = build(paired, torch.from_numpy(store.codebook_vectors()))
    seen = batch.has_video
    assert seen.any() and not seen.all()
    outcome = contrastive_step(network, batch, paired)
    outcome.loss.backward()
    assert outcome.weight == seen.sum()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    audio, video, scale = network(batch.tokens[seen], batch.features[seen])
    own = batch.targets[seen]
    assert torch.allclose(outcome.loss, contrastive(audio, video, scale, own @ own.T > 0), rtol=1e-5)


def test_a_contrastive_batch_without_video_is_not_counted(tmp_path: Path) -> None:
    """Of eight clips four have a picture: a batch of two without one has loss 0, and the run goes on."""
    rng = np.random.default_rng(0)
    store = LatentStore.create(tmp_path / "store", META, rng.normal(size=(2, 16, 4)).astype(np.float32))
    tokens = rng.integers(0, 16, (8, *META.token_shape), dtype=np.uint16)
    features = rng.normal(size=(8, *META.feature_shape)).astype(np.float16)
    store.add([Latents(f"c{n}", "", "train", tokens[n], features[n] if n < 4 else None) for n in range(8)])
    small = preset("contrastive", batch_size=2, log_every=1)
    run = train(small, tmp_path / "store", tmp_path / "run", max_steps=8)
    clips = ClipBatches(store, small, "train")
    counts = [int(clips.train_batch(step).has_video.sum()) for step in range(8)]
    assert set(counts) == {0, 1, 2}
    for line, count in zip(metrics(run, "train"), counts, strict=True):
        assert np.isfinite(line["loss"]) and (line["loss"] != 0) == (count == 2)
        assert ("R@1/video to audio" in line) == (count > 0)


def test_a_contrastive_run_needs_video(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="no clip with sound and picture in the split train"):
        train(preset("contrastive"), fill(tmp_path / "store", pictures="other"), tmp_path / "run")


@pytest.mark.parametrize("inputs", ["audio", "video", "both"])
def test_classes_are_learned(latents: Path, tmp_path: Path, inputs: str) -> None:
    chosen = preset("classification", inputs=(inputs,), loss="ce")
    run = train(chosen, latents, tmp_path / "run", max_steps=60)
    assert metrics(run, "dev")[-1][f"accuracy/{inputs}"] == 1.0
    assert read_config(run).classes == ("0", "1", "2", "3")
    classifier = load_finetuned(run).classifier
    assert classifier is not None and classifier[1].train.inputs == (inputs,)


def test_one_network_for_all_inputs(latents: Path, tmp_path: Path) -> None:
    chosen = preset("classification", inputs=("audio", "video", "both"))
    run = train(chosen, latents, tmp_path / "run", max_steps=60)
    last = metrics(run, "dev")[-1]
    assert min(last[f"accuracy/{kind}"] for kind in ("audio", "video", "both")) > 0.7


def test_a_linear_probe_moves_the_head_alone(latents: Path, pretrained: Path, tmp_path: Path) -> None:
    run = train(
        preset("classification", freeze_trunk=True), latents, tmp_path / "run", init=pretrained, max_steps=30
    )
    before, after = load_file(pretrained / "model.safetensors"), load_file(run / "model.safetensors")
    trunk = {name.removeprefix("trunk."): value for name, value in after.items() if name.startswith("trunk.")}
    assert all(torch.equal(before[name], value) for name, value in trunk.items())
    assert metrics(run, "train")[-1]["loss"] < metrics(run, "train")[0]["loss"]


def test_a_probe_without_a_trunk_stands_on_the_contrastive_one(
    latents: Path, pretrained: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    model = tmp_path / "model"
    train(preset("contrastive"), latents, model / "contrastive", init=pretrained, max_steps=3)
    probe = preset("classification", freeze_trunk=True)
    train(probe, latents, model / "classes", init=model / "contrastive", max_steps=3)
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((pretrained / name).read_bytes())
    whole = load_finetuned(model).classifier
    path = model / "classes" / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if name.startswith("head.")}, path)
    again = load_finetuned(model).classifier
    assert whole is not None and again is not None
    for name, value in whole[0].state_dict().items():
        assert torch.equal(again[0].state_dict()[name], value)


def test_weights_are_taken_over_both_ways(pretrained: Path, tmp_path: Path) -> None:
    """Masked prediction first and contrast second, and the other order (C.3)."""
    source = load_file(pretrained / "model.safetensors")
    vectors = source["audio_embedding.vectors"]
    contrast = Contrastive(PRESET.model, vectors)
    start_from(contrast, pretrained)
    assert all(torch.equal(source[name], value) for name, value in contrast.trunk.state_dict().items())
    from safetensors.torch import save_file

    save_file(contrast.state_dict(), tmp_path / "model.safetensors")
    network = VAB(PRESET.model, vectors)
    upper = network.blocks[-1].attention.qkv.weight.clone()
    start_from(network, tmp_path)
    assert all(
        torch.equal(source[name], network.state_dict()[name]) for name in Trunk(PRESET.model).state_dict()
    )
    assert torch.equal(network.blocks[-1].attention.qkv.weight, upper)
    with pytest.raises(ModelError, match="trained on the tokens of another codec"):
        start_from(VAB(PRESET.model, vectors.flip(1)), pretrained)
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="is no model to start from"):
        start_from(network, tmp_path)
    with pytest.raises(ModelError, match="size mismatch"):
        start_from(VAB(replace(PRESET.model, hidden_dim=16), vectors), pretrained)


def test_without_labels_there_is_nothing_to_classify(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = LatentStore.create(tmp_path / "store", META, rng.normal(size=(2, 16, 4)).astype(np.float32))
    tokens, features = np.zeros(META.token_shape, np.uint16), np.zeros(META.feature_shape, np.float16)
    store.add([Latents("a", "", "train", tokens, features)])
    with pytest.raises(TrainError, match="no labels"):
        train(preset("classification"), tmp_path / "store", tmp_path / "run", max_steps=1)


def test_several_labels_balance_and_mixup(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = LatentStore.create(tmp_path / "store", META, rng.normal(size=(2, 16, 4)).astype(np.float32))
    shape, frames = META.token_shape, META.token_shape[1]
    labels = ["often"] * 18 + ["rare;often", "rare"]
    store.add(
        [
            Latents(
                f"c{n}",
                label,
                "train",
                np.full(shape, n % 16, np.uint16),
                np.ones(META.feature_shape, np.float16),
            )
            for n, label in enumerate(labels)
        ]
    )
    clips = ClipBatches(
        store, preset("classification", class_balanced=True, batch_size=200, mixup_prob=1.0), "train"
    )
    assert clips.classes == {"often": 0, "rare": 1}
    drawn = [store.labels[row] for row in clips.rows_of_step(0)]
    weights = {"often": 18 * 1000 / 19.01, "rare;often": 1000 / 19.01 + 1000 / 2.01, "rare": 1000 / 2.01}
    for label, weight in weights.items():
        expected = 200 * weight / sum(weights.values())
        assert abs(drawn.count(label) - expected) < 4 * np.sqrt(expected) + 1
    batch = clips.train_batch(0)
    mixed = (batch.targets > 0) & (batch.targets < 1)
    assert mixed.any() and batch.targets.max() <= 1
    # what mixup made is the share of the frames: tokens name the clip, clips name the labels
    for tokens, target in zip(batch.tokens[:20], batch.targets[:20], strict=True):
        owners = [n.item() for n in tokens[0]]
        share = torch.zeros(2)
        for owner in owners:
            several = [i for i in range(20) if i % 16 == owner]
            if len({labels[i] for i in several}) > 1:
                break
            for label in labels[several[0]].split(";"):
                share[clips.classes[label]] += 1 / frames
        else:
            assert torch.allclose(share, target, atol=1e-5)


def test_short_clips_are_padded_and_stay_so_through_augmentation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = LatentStore.create(tmp_path / "store", META, rng.normal(size=(2, 16, 4)).astype(np.float32))
    real = 7  # of 20 frames
    tokens = np.zeros(META.token_shape, np.uint16)
    tokens[:, :real] = 9
    features = np.ones(META.feature_shape, np.float16)
    store.add([Latents(f"c{n}", "x", "train", tokens, features, real, 1) for n in range(8)])
    again = LatentStore.open(tmp_path / "store")
    assert again.real("tokens").tolist() == [real] * 8 and again[3].real_features == 1
    clips = ClipBatches(again, preset("classification", mixup_prob=0.5, roll_prob=1.0), "train")
    batch = clips.train_batch(0)
    assert torch.equal(batch.token_padding, batch.tokens[:, 0] == 0)
    assert batch.token_padding.any() and batch.feature_padding.any()


@pytest.mark.parametrize("inputs", [("audio",), ("both",), ("video",)])
def test_the_classes_of_mixed_short_clips_are_those_of_what_is_left_of_them(
    tmp_path: Path, inputs: tuple[Literal["audio", "video", "both"], ...]
) -> None:
    rng = np.random.default_rng(0)
    store = LatentStore.create(tmp_path / "store", META, rng.normal(size=(2, 16, 4)).astype(np.float32))
    clips = []
    for n, (heard, seen) in enumerate(((3, 2), (7, 4), (12, 4), (0, 1))):  # of 20 frames, of 4 pictures
        tokens = np.zeros(META.token_shape, np.uint16)
        tokens[:, :heard] = n
        pictures = np.full(META.feature_shape, n, np.float16)
        clips.append(Latents(f"c{n}", f"l{n}", "train", tokens, pictures, heard, seen))
    store.add(clips)
    taught = preset("classification", mixup_prob=1.0, roll_prob=1.0, batch_size=64, inputs=inputs)
    batch = ClipBatches(store, taught, "train").train_batch(0)
    shown = inputs == ("video",)
    owners = batch.features[:, :, 0].long() if shown else batch.tokens[:, 0]
    padding = batch.feature_padding if shown else batch.token_padding
    mixed = 0
    for owner, filled, target in zip(owners, padding, batch.targets, strict=True):
        left = owner[~filled]
        assert target.sum().item() == pytest.approx(1)
        if len(left):
            share = torch.bincount(left, minlength=4) / len(left)
            torch.testing.assert_close(share, target)
            mixed += bool((share > 0).sum() > 1)
    assert mixed > 5


def test_the_presets_are_table_8() -> None:
    seen = 0
    for name, one in PRESETS.items():
        for field, said in table_8(name).items():
            own = getattr(one.train, field.removeprefix("train."))
            dac = one.model.codec == "dac"
            text = said.split("/")[dac] if "/" in said and said != "N/A" else said
            if text == "N/A":
                continue
            if text in ("True", "False"):
                assert own is (text == "True"), (name, field)
            elif text == "AdamW":
                assert own == "adamw", (name, field)
            elif text in ("CE", "BCE"):
                assert one.train.objective == "classification" and own == text.lower(), (name, field)
            else:
                assert own == float(text.replace("K", "e3")), (name, field)
            seen += 1
    assert seen > 200


def test_without_experts_the_first_layers_are_shared() -> None:
    shared = replace(PRESET.model, experts=False)
    counts, alone = parameter_counts(PRESET.model), parameter_counts(shared)
    width = PRESET.model.hidden_dim
    one = 8 * width * width + 5 * width + 2 * width  # a feed-forward network with its norm
    assert counts["parameters"] - alone["parameters"] == one * PRESET.model.num_expert_layers
    assert Trunk(shared).pooled(torch.zeros(1, 2, 20, dtype=torch.long), None).shape == (1, width)


def test_config_round_trip() -> None:
    from vab.config import from_dict

    chosen = replace(preset("classification", inputs=("audio", "both")), classes=("a", "b"))
    assert from_dict(Preset, json.loads(json.dumps(asdict(chosen)))) == chosen
    assert TrainConfig().objective == "masked"
