"""What joins the paper's pieces: each test fails if one line of the wiring is lost."""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from helpers.cli import vab
from helpers.tiny import write_model, write_video
from helpers.training import MODEL, PRESET, fill, metrics, preset, with_train
from vab.data.store import LatentStore
from vab.inference.pipeline import VABPipeline
from vab.models.vab import VAB
from vab.sampling.stages import Stage
from vab.training.batches import ClipBatches
from vab.training.checkpoint import checkpoints
from vab.training.masking import apply_mask
from vab.training.objectives import classification_step, masked_prediction_step
from vab.training.optimizer import optimizers
from vab.training.trainer import train


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("latents") / "store")


class Random(nn.Module):
    """Gives back fixed logits, and keeps what it was called with."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.logits = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, *arguments: Any) -> Tensor:
        self.calls.append(arguments)
        return self.logits


def test_clips_without_a_picture_are_trained_as_guidance_needs_them(latents: Path) -> None:
    """Appendix B.3: a tenth of the clips is learned without features. A step of those clips alone must not
    depend on the features at all, and a step of the others must."""
    store = LatentStore.open(latents)
    losses = {}
    for share in (0.0, 1.0):
        chosen = with_train(cond_drop_prob=share, mixup_prob=0.0, roll_prob=0.0)
        batch = ClipBatches(store, chosen, "train").train_batch(0)
        assert batch.drop_features.float().mean() == share
        torch.manual_seed(0)
        network = VAB(MODEL, torch.from_numpy(store.codebook_vectors())).eval()
        other = replace(batch, features=batch.features.flip(0) + 1)
        with torch.no_grad():
            losses[share] = [
                float(masked_prediction_step(network, each, chosen).loss) for each in (batch, other)
            ]
    assert losses[1.0][0] == losses[1.0][1]
    assert losses[0.0][0] != losses[0.0][1]
    assert losses[0.0][0] != losses[1.0][0]


def by_hand(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Mean over rows [n,V] of the cross entropy with a target that keeps 1 - smoothing + smoothing / V."""
    log_p = logits.double().log_softmax(-1)
    goal = functional.one_hot(targets, logits.shape[-1]).double() * (1 - smoothing)
    return -((goal + smoothing / logits.shape[-1]) * log_p).sum(-1).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_pretraining_smooths_as_its_settings_say(latents: Path, smoothing: float) -> None:
    """Table 8: label smoothing 0.1 of masked prediction."""
    chosen = with_train(label_smoothing=smoothing)
    batch = ClipBatches(LatentStore.open(latents), chosen, "train").train_batch(0)
    logits = 3 * torch.randn(*batch.tokens.shape, 16, generator=torch.Generator().manual_seed(0))

    class Fixed(nn.Module):
        def forward(self, tokens: Tensor, features: Tensor, drop_features: Tensor, timing: None) -> Tensor:
            assert torch.equal(tokens, apply_mask(batch.tokens, batch.mask, 16))
            return logits

    loss = masked_prediction_step(Fixed(), batch, chosen).loss
    wanted = by_hand(logits[batch.mask], batch.tokens[batch.mask], smoothing)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("kind", ["ce", "bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_classification_smooths_as_its_settings_say(latents: Path, smoothing: float, kind: str) -> None:
    """Table 8: label smoothing 0.1 of every classification."""
    classes = tuple("0123")
    chosen = replace(preset("classification", loss=kind, label_smoothing=smoothing), classes=classes)
    batch = ClipBatches(LatentStore.open(latents), chosen, "train").train_batch(0)
    network = Random(len(batch.ids), 4)
    goal = batch.targets.double() * (1 - smoothing) + smoothing / 4
    logits = network.logits.double()
    if kind == "ce":
        wanted = -(goal * logits.log_softmax(-1)).sum(-1).mean()
    else:
        p = logits.sigmoid()
        wanted = -(goal * p.log() + (1 - goal) * (1 - p).log()).mean()
    loss = classification_step(network, batch, chosen).loss
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def test_the_second_stage_sees_the_coarse_codes(latents: Path) -> None:
    """Eq. 3: the codebooks of the first stage are given, and never masked; the fine ones are predicted."""
    fine = replace(PRESET, model=replace(MODEL, num_conditioning_codebooks=1, num_expert_layers=0))
    clips = ClipBatches(LatentStore.open(latents), fine, "train")
    hidden = torch.cat([clips.train_batch(step).mask for step in range(8)])
    assert not hidden[:, 0].any() and 0.5 <= hidden[:, 1].float().mean() < 1
    assert not clips.dev_batch(clips.dev_batches()[0]).mask[:, 0].any()
    network = Random(6, 1, MODEL.audio_length, MODEL.codebook_size)

    class Seen(nn.Module):
        def forward(self, tokens: Tensor, features: Tensor, drop_features: Tensor, timing: None) -> Tensor:
            return network(tokens)

    batch = clips.train_batch(0)
    masked_prediction_step(Seen(), batch, fine)
    (tokens,) = network.calls[0]
    assert torch.equal(tokens[:, 0], batch.tokens[:, 0])
    assert (tokens[:, 1] == MODEL.codebook_size).float().mean() >= 0.5


@pytest.mark.parametrize(
    ("betas", "decay"), [((0.9, 0.95), 0.3), ((0.5, 0.6), 0.3), ((0.9, 0.95), 0.0)], ids=str
)
def test_adamw_does_what_its_settings_say(betas: tuple[float, float], decay: float) -> None:
    """Table 8's optimizer, three steps beside its definition (Loshchilov and Hutter, 2019)."""
    torch.manual_seed(0)
    network = nn.Linear(5, 3).double()
    wanted = [parameter.detach().clone() for parameter in network.parameters()]
    first, second = ([torch.zeros_like(value) for value in wanted] for _ in range(2))
    rate, epsilon = 0.01, 1e-8
    config = replace(PRESET.train, learning_rate=rate, betas=betas, weight_decay=decay)
    (optimizer,) = optimizers(network, config)
    for step in range(1, 4):
        for n, parameter in enumerate(network.parameters()):
            gradient = torch.randn(parameter.shape, dtype=torch.float64) * step
            parameter.grad = gradient.clone()
            first[n] = betas[0] * first[n] + (1 - betas[0]) * gradient
            second[n] = betas[1] * second[n] + (1 - betas[1]) * gradient**2
            mean, square = first[n] / (1 - betas[0] ** step), second[n] / (1 - betas[1] ** step)
            wanted[n] = wanted[n] * (1 - rate * decay) - rate * mean / (square.sqrt() + epsilon)
        optimizer.step()
    for parameter, value in zip(network.parameters(), wanted, strict=True):
        assert torch.allclose(parameter, value, rtol=1e-6, atol=1e-9)


def test_a_run_uses_the_optimizer_s_settings(latents: Path, tmp_path: Path) -> None:
    """What the command line sets as --train.betas and --train.weight-decay reaches the weights."""
    ends = {}
    for name, changes in {
        "plain": {},
        "betas": {"betas": (0.5, 0.6)},
        "decay": {"weight_decay": 10.0},
        "clipped": {"max_grad_norm": 1e-9},
        "rate": {"learning_rate": 1e-4},
    }.items():
        run = train(with_train(ema=0.0, **changes), latents, tmp_path / name, max_steps=5)
        ends[name] = load_file(run / "model.safetensors")["heads.weight"]
    assert all(not torch.equal(ends["plain"], value) for name, value in ends.items() if name != "plain")
    assert ends["decay"].norm() < ends["plain"].norm()


def test_a_run_hands_out_its_averaged_weights(latents: Path, tmp_path: Path) -> None:
    """``ema``: what is exported are the averages of the last checkpoint, not the weights of the last step."""
    run = train(with_train(ema=0.9), latents, tmp_path / "run", max_steps=6)
    exported, kept = load_file(run / "model.safetensors"), load_file(checkpoints(run / "checkpoints")[0])
    learned = [name for name, p in VAB(MODEL).named_parameters() if p.requires_grad]
    for n, name in enumerate(learned):
        assert torch.equal(exported[name], kept[f"ema.{n}"])
    assert not torch.equal(exported["heads.weight"], kept["model.heads.weight"])


def test_a_frozen_trunk_stays_and_its_head_learns(latents: Path, tmp_path: Path) -> None:
    """Table 6's linear probe."""
    chosen = replace(preset("classification", freeze_trunk=True, loss="ce"), classes=tuple("0123"))
    first = train(PRESET, latents, tmp_path / "vab", max_steps=2)
    start = load_file(first / "model.safetensors")
    ends = {}
    for steps in (1, 4):
        run = train(chosen, latents, tmp_path / f"probe {steps}", init=first, max_steps=steps)
        ends[steps] = load_file(run / "model.safetensors")
    trunk = [name for name in ends[4] if name.startswith("trunk.blocks.")]
    head = [name for name in ends[4] if not name.startswith("trunk.")]
    assert trunk and all(torch.equal(ends[4][name], start[name.removeprefix("trunk.")]) for name in trunk)
    assert head and all(not torch.equal(ends[4][name], ends[1][name]) for name in head)


def test_a_run_is_judged_by_its_averaged_weights(latents: Path, tmp_path: Path) -> None:
    """The last line of the split dev is the loss of the weights that are handed out."""
    chosen = with_train(ema=0.9)
    run = train(chosen, latents, tmp_path / "run", max_steps=6)
    network = VAB(MODEL)
    network.load_state_dict(load_file(run / "model.safetensors"))
    clips = ClipBatches(LatentStore.open(latents), chosen, "dev")
    batches = [clips.dev_batch(rows) for rows in clips.dev_batches()]
    with torch.no_grad():
        outcomes = [masked_prediction_step(network.eval(), batch, chosen) for batch in batches]
    loss = sum(float(each.loss * each.weight) for each in outcomes) / sum(float(e.weight) for e in outcomes)
    assert metrics(run, "dev")[-1]["loss"] == pytest.approx(loss, rel=1e-5)


def samples(path: Path) -> bytes:
    """The samples of a WAV file, which has the settings in a tag beside them."""
    with wave.open(str(path)) as file:
        return file.readframes(file.getnframes())


def test_every_option_of_generate_reaches_the_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the words of the command line to the samples: what the pipeline makes with the same setting."""
    model, clip = write_model(tmp_path / "model"), write_video(tmp_path / "clip.mp4", 12, 10)
    pipelines = {
        name: VABPipeline.from_pretrained(model, device="cpu", dtype=name) for name in ("auto", "float16")
    }
    options: dict[str, dict[str, Any]] = {
        "": {},
        "--precision float16": {},  # which auto never is
        "--seed 7": {"seed": 7},
        "--steps 2": {"steps": 2},
        "--guidance 1": {"guidance": 1.0},
        "--temperature 0": {"temperature": 0.0},
        "--rerank 3": {"rerank": 3},
        "--keep 0.2:0.9": {"keep": [(0.2, 0.9)]},
        "--loudness -30": {"loudness": -30.0},
        "--rate 22050": {"rate": 22_050},
        "--channels 2": {"channels": 2},
        "--mix -6": {"mix": -6.0},
    }
    sounds = {}
    for words, setting in options.items():
        out = tmp_path / f"out{words}"
        code, _, err = vab(
            capsys, "generate", clip, "-o", out, "--model", model, "--device", "cpu", *words.split()
        )
        assert code == 0, err
        pipeline = pipelines["float16" if "float16" in words else "auto"]
        pipeline.generate(clip, **setting).save(tmp_path / "wanted.wav")
        sounds[words] = samples(out / "clip.wav")
        assert sounds[words] == samples(tmp_path / "wanted.wav"), words
    assert len(set(sounds.values())) == len(options)


def test_each_window_of_a_long_sound_sees_its_own_pictures() -> None:
    """Section 3.3 for any length: the features of a window are those of its own seconds."""
    seen: list[Tensor] = []

    class Watching(VAB):
        def forward(self, tokens: Tensor, features: Tensor, *rest: Any, **options: Any) -> Tensor:
            seen.append(features[0, :, 0].clone())
            return super().forward(tokens, features, *rest, **options)

    model = replace(MODEL, seconds=2.0, fps=5.0)
    decode = replace(PRESET.decode, num_steps=1, guidance_scale=1.0)
    stage = Stage(Watching(model).eval(), replace(PRESET, model=model, decode=decode))
    frames, pictures = 250, 25  # five seconds
    tokens = torch.zeros(2, frames, dtype=torch.int64)
    features = torch.arange(float(pictures))[:, None].expand(-1, model.vision_dim)
    stage.fill(tokens, tokens.bool(), features, decode, torch.Generator().manual_seed(0))
    starts = [int(numbers[0]) for numbers in seen]
    assert starts == [0, 5, 10, 15]  # windows of 2 s that share 1 s
    assert all(torch.equal(numbers, torch.arange(10.0) + numbers[0]) for numbers in seen)
