"""A student of few steps: its loss, what its teacher is shown and says, a run, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.training import PRESET, QUIET, fill, metrics, same_weights
from vab.cli import main
from vab.config import Compute, DecodeConfig, Preset
from vab.data.store import LatentStore
from vab.errors import SettingError, TrainError
from vab.models.heads import save_network
from vab.models.hub import read_config
from vab.sampling import stages
from vab.sampling.parallel import num_masked_after
from vab.sampling.student import Student, states
from vab.training.batches import Batch, ClipBatches
from vab.training.losses import distillation
from vab.training.objectives import build, distillation_step
from vab.training.trainer import train

V = PRESET.model.codebook_size
STUDENT = replace(
    PRESET,
    decode=DecodeConfig(num_steps=4, guidance_scale=1.0, mask_temperature=4.5),
    train=replace(PRESET.train, objective="distillation", mask_min=1.0, learning_rate=1e-3, **QUIET),
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("latents") / "store", clips=40)


@pytest.fixture(scope="module")
def teacher(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with guidance, which has learned something."""
    guided = replace(PRESET, decode=DecodeConfig(num_steps=8, guidance_scale=3.0, sampling_temperature=0.8))
    return train(guided, latents, tmp_path_factory.mktemp("runs") / "teacher", max_steps=40)


def fresh(latents: Path, teacher: Path, preset: Preset = STUDENT) -> tuple[Student, Batch]:
    """A student with weights of its own, and a batch."""
    clips = ClipBatches(LatentStore.open(latents), preset, "train")
    torch.manual_seed(1)
    student = build(preset, torch.from_numpy(clips.store.codebook_vectors()))
    assert isinstance(student, Student)
    student.learn_from(teacher, preset)
    return student, clips.train_batch(0)


# --- the loss ---


def test_the_loss_against_sums_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = 3 * torch.randn(2, 3, 2, 5, 7, generator=generator)
    mask = torch.rand(3, 2, 5, generator=generator) < 0.5
    mask[2] = False  # a clip without a masked token counts nothing
    q, p = (np.exp(x.double().numpy()) for x in (logits, target))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    each = (p * np.log(p / q)).sum(-1)
    expected = [each[b][mask[b].numpy()].mean() for b in range(2)] + [0.0]
    assert distillation(logits, target, mask).tolist() == pytest.approx(expected, rel=1e-5)
    # Softmax does not see what is added to all logits of a token.
    assert distillation(target + 5, target, mask).abs().max() < 1e-6


def test_only_the_student_gets_a_gradient_and_only_at_masks() -> None:
    logits, target = torch.randn(2, 1, 1, 4, 6).requires_grad_().unbind()
    mask = torch.tensor([[[True, False, True, False]]])
    logits.retain_grad(), target.retain_grad()
    distillation(logits, target, mask).sum().backward()
    assert target.grad is None and logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, mask)


# --- the teacher ---


def test_the_teacher_speaks_with_its_guidance(latents: Path, teacher: Path) -> None:
    student, batch = fresh(latents, teacher)
    network = stages.load_stage(teacher).network
    tokens = batch.tokens.masked_fill(batch.mask, V)
    drop = torch.zeros(len(tokens), dtype=torch.bool)
    drop[0] = True
    with torch.no_grad():
        seen, unseen = network(tokens, batch.features), network(tokens, None)
    expected = (unseen + 3.0 * (seen - unseen)) / 0.8
    expected[0] = unseen[0] / 0.8  # a clip that goes without its picture
    found = student.teacher_logits(tokens, batch.features, drop)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad
    # It is no part of the student: neither saved with it nor learned.
    assert student.state_dict().keys() == network.state_dict().keys()
    distillation_step(student, batch, STUDENT).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert student.taught_by is not None
    assert all(p.grad is None and not p.requires_grad for p in student.taught_by[0].network.parameters())


# --- what the teacher is shown ---


def noise(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_the_teacher_is_shown_some_of_what_a_step_decides() -> None:
    """Counted against the schedule: before a step, shown to the teacher, after the step."""
    tokens = torch.arange(50 * 2 * 20).view(50, 2, 20) % V
    known = torch.zeros_like(tokens, dtype=torch.bool)
    known[:, 0, :7] = True
    before, shown = states(tokens, known, V, 4, noise(50))
    schedule = [num_masked_after(n, 4, 33) for n in range(5)]
    assert schedule[0] == 33 and schedule[4] == 0
    used, shares = set(), []
    for b in range(50):
        hidden, hides = before[b] == V, shown[b] == V
        step = schedule.index(int(hidden.sum()))
        assert max(1, schedule[step + 1]) <= hides.sum() <= schedule[step]
        assert not (hides & ~hidden).any() and not (hidden & known[b]).any()
        assert torch.equal(before[b][~hidden], tokens[b][~hidden])
        assert torch.equal(shown[b][~hides], tokens[b][~hides])
        used.add(step)
        shares.append(float((hidden.sum() - hides.sum()) / (schedule[step] - schedule[step + 1])))
    assert used == {0, 1, 2, 3} and min(shares) < 0.2 and max(shares) > 0.8
    # A clip's are the same alone and among others.
    alone = states(tokens[:1], known[:1], V, 4, noise(1))
    assert torch.equal(alone[0], before[:1]) and torch.equal(alone[1], shown[:1])
    # Not the order of places, nor that of another clip.
    hidden = (before == V).flatten(1)
    assert len({tuple(row.tolist()) for row in hidden[hidden.sum(1) == schedule[2]]}) > 3


def test_what_depends_on_nothing_needs_no_correction(latents: Path, teacher: Path, tmp_path: Path) -> None:
    """A teacher without guidance whose tokens tell it nothing: a student that is its copy has loss 0."""
    stage = stages.load_stage(teacher)
    torch.nn.init.zeros_(stage.network.audio_embedding.projection.weight)
    plain = replace(stage.preset, decode=DecodeConfig(guidance_scale=1.0))
    save_network(tmp_path / "deaf", stage.network.state_dict(), plain)
    student, batch = fresh(latents, tmp_path / "deaf")
    assert distillation_step(student, batch, STUDENT).loss > 0.01
    student.load_state_dict(stage.network.state_dict())
    outcome = distillation_step(student, batch, STUDENT)
    assert outcome.loss.item() == pytest.approx(0, abs=1e-6) and outcome.weight == len(batch.ids)
    overlap, count = outcome.metrics()["overlap"]
    assert overlap / count == pytest.approx(1, abs=1e-5)
    # A process that has no clip of a small batch takes part with nothing.
    nothing = distillation_step(student, batch._part(0, 0), STUDENT)
    assert nothing.loss == 0 and nothing.weight == 0
    nothing.loss.backward()


# --- a run ---


def test_a_run_ends_in_a_model_of_four_steps(latents: Path, teacher: Path, tmp_path: Path) -> None:
    """By the command line: the dev loss falls, and what comes out is a model like any other."""
    model = [f"--model.{name.replace('_', '-')}={getattr(PRESET.model, name)}" for name in SIZES]
    options = [
        "--model.no-timing",  # the latents here have no curves
        "--train.batch-size=6",
        "--train.splice-prob=0",
        "--train.crop-seconds=0",
        "--train.precision=32-true",
        "--max-steps=40",
    ]
    options += [
        "--decode.num-steps=4",
        "--train.warmup-steps=3",
        "--train.learning-rate=4e-3",
        "--train.validate-every=1",
        "--train.log-every=1",
    ]
    run = tmp_path / "run"
    words = ["finetune", "distill", "vab-tiny-student", *model, *options, f"--store={latents}"]
    with pytest.raises(SystemExit) as end:
        main([*words, f"--out={run}", f"--init={teacher}"])
    assert end.value.code == 0
    losses = [line["loss"] for line in metrics(run, "dev")]
    assert losses[-1] < 0.6 * losses[0]
    stage = stages.load_stage(run)
    assert (stage.preset.decode.num_steps, stage.preset.decode.guidance_scale) == (4, 1.0)
    calls = []
    stage.network.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    empty = torch.zeros(2, 20, dtype=torch.long)
    tokens = stage.fill(
        empty, empty.bool(), torch.randn(2, 8), stage.preset.decode, torch.Generator().manual_seed(0)
    )
    assert calls == [1, 1, 1, 1]  # four steps, of one row each
    assert tokens.max() < V


SIZES = ("seconds", "fps", "num_codebooks", "codebook_size", "codebook_dim", "vision_dim", "hidden_dim")
SIZES += ("num_layers", "num_expert_layers", "num_heads", "positions")


def test_parts_and_a_second_start_change_nothing(latents: Path, teacher: Path, tmp_path: Path) -> None:
    whole = train(STUDENT, latents, tmp_path / "whole", init=teacher, max_steps=7)
    parts = train(
        STUDENT, latents, tmp_path / "parts", init=teacher, max_steps=7, compute=Compute(accumulate=3)
    )
    one, other = (metrics(run, "train")[-1] for run in (whole, parts))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)

    # Stopped after five steps and begun again it is the same to the last bit, and wants the same teacher.
    cut = tmp_path / "cut"
    train(STUDENT, latents, cut, init=teacher, max_steps=7)
    for late in (
        *cut.glob("checkpoints/*7.safetensors"),
        *cut.glob("checkpoints/best/*"),
        cut / "model.safetensors",
    ):
        late.unlink()
    with pytest.raises(TrainError, match="a student needs a teacher: init"):
        train(STUDENT, latents, cut, max_steps=7)
    with pytest.raises(TrainError, match=r"holds another run: .*teacher\.weights was"):
        train(STUDENT, latents, cut, init=whole, max_steps=7)
    two = replace(STUDENT, decode=replace(STUDENT.decode, num_steps=2))
    with pytest.raises(TrainError, match=r"holds another run: decode\.num_steps was 4, is 2"):
        train(two, latents, cut, init=teacher, max_steps=7)
    assert same_weights(train(STUDENT, latents, cut, init=teacher, max_steps=7), whole)


def test_who_cannot_teach_is_told_why(latents: Path, teacher: Path, tmp_path: Path) -> None:
    causal = replace(
        PRESET,
        model=replace(PRESET.model, num_expert_layers=0),
        train=replace(PRESET.train, objective="causal"),
    )
    foleygen = train(causal, latents, tmp_path / "foleygen", max_steps=1)
    same = replace(STUDENT, model=causal.model)
    with pytest.raises(TrainError, match="FoleyGen makes frame after frame; only a VAB can teach"):
        train(same, latents, tmp_path / "run", init=foleygen)
    with pytest.raises(TrainError, match=r"other settings than test's: model\.num_expert_layers is 1, not 0"):
        train(same, latents, tmp_path / "run", init=teacher)
    guided = replace(STUDENT, decode=replace(STUDENT.decode, guidance_scale=2.0))
    with pytest.raises(
        SettingError, match=r"a student does without guidance: decode\.guidance_scale must be 1"
    ):
        train(guided, latents, tmp_path / "run", init=teacher)
    led = replace(STUDENT, decode=replace(STUDENT.decode, timing_scale=6.0))
    with pytest.raises(
        SettingError, match=r"without guidance, by a curve too: decode\.timing_scale must be 0"
    ):
        train(led, latents, tmp_path / "run", init=teacher)


def test_a_second_stage_can_have_a_student(latents: Path, tmp_path: Path) -> None:
    """The conditioning codebook is the clip's own, and never hidden."""
    model = replace(PRESET.model, num_conditioning_codebooks=1, num_expert_layers=0)
    fine = train(replace(PRESET, model=model), latents, tmp_path / "fine", max_steps=1)
    preset = replace(STUDENT, model=model)
    student, batch = fresh(latents, fine, preset)
    given = []
    student.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    assert distillation_step(student, batch, preset).weight == len(batch.ids)
    assert torch.equal(given[0][:, 0], batch.tokens[:, 0]) and (given[0][:, 1] == V).any()
    assert read_config(train(preset, latents, tmp_path / "run", init=fine, max_steps=2)).decode.num_steps == 4
