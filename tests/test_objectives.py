"""The objectives, on numbers worked out by hand and against torch's own functions."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vab.training.losses import classification, contrastive, masked_prediction

B, K, T, V = 2, 3, 5, 7


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, K, T, V, generator=generator)
    targets = torch.randint(0, V, (B, K, T), generator=generator)
    mask = torch.rand(B, K, T, generator=generator) < 0.6
    mask[0, 0, 0] = True
    return logits, targets, mask


# --- masked prediction (eq. 1, eq. 3) ---


def test_masked_prediction_by_hand() -> None:
    """One hidden token of two choices, probability 3/4 for the true one; the other token is not hidden."""
    logits = torch.tensor([[[[math.log(3.0), 0.0], [-50.0, 50.0]]]])
    targets = torch.zeros(1, 1, 2, dtype=torch.int64)
    mask = torch.tensor([[[True, False]]])
    plain = masked_prediction(logits, targets, mask, smoothing=0.0)
    assert plain.item() == pytest.approx(math.log(4 / 3))
    smooth = masked_prediction(
        logits, targets, mask, smoothing=0.1
    )  # 0.95 of the true one, 0.05 of the other
    assert smooth.item() == pytest.approx(0.95 * math.log(4 / 3) + 0.05 * math.log(4))


@given(seed=st.integers(0, 1000), smoothing=st.floats(0, 0.5))
@settings(deadline=None, max_examples=30)
def test_masked_prediction_is_the_mean_over_hidden_tokens(seed: int, smoothing: float) -> None:
    logits, targets, mask = case(seed)
    total = 0.0
    for b, k, t in mask.nonzero().tolist():
        log_p = logits[b, k, t].log_softmax(0)
        total -= (1 - smoothing) * log_p[targets[b, k, t]].item() + smoothing * log_p.mean().item()
    loss = masked_prediction(logits, targets, mask, smoothing)
    assert loss.item() == pytest.approx(total / mask.sum().item(), rel=1e-4)


def test_only_hidden_tokens_get_a_gradient() -> None:
    logits, targets, mask = case()
    logits.requires_grad_()
    masked_prediction(logits, targets, mask).backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum(-1) > 0
    assert torch.equal(moved, mask)


def test_masked_prediction_of_chance_and_of_nothing() -> None:
    logits, targets, mask = case()
    chance = masked_prediction(torch.zeros_like(logits), targets, mask)
    assert chance.item() == pytest.approx(math.log(V))
    logits.requires_grad_()
    nothing = masked_prediction(logits, targets, torch.zeros_like(mask))
    assert nothing.item() == 0.0
    nothing.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_masked_prediction_keeps_precision_and_layout() -> None:
    """bf16 logits are summed in float32, and the model's transposed view gives what a copy gives."""
    logits, targets, mask = case()
    half = masked_prediction(logits.bfloat16(), targets, mask)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(masked_prediction(logits, targets, mask).item(), abs=0.02)
    view = logits.transpose(1, 2).contiguous().transpose(1, 2)
    assert not view.is_contiguous()
    torch.testing.assert_close(
        masked_prediction(view, targets, mask), masked_prediction(logits, targets, mask)
    )


# --- contrast (eq. 4) ---


def test_contrastive_by_hand() -> None:
    audio = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # lengths do not matter
    video = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # cosines [[1, .6], [0, .8]] times 2; rows are audio to video, columns video to audio
    rows = [math.log(1 + math.exp(1.2 - 2)), math.log(1 + math.exp(0 - 1.6))]
    columns = [math.log(1 + math.exp(0 - 2)), math.log(1 + math.exp(1.2 - 1.6))]
    assert contrastive(audio, video, 2.0).item() == pytest.approx((sum(rows) + sum(columns)) / 4)


@given(seed=st.integers(0, 1000), size=st.integers(1, 6), scale=st.floats(0.5, 50))
@settings(deadline=None, max_examples=30)
def test_contrastive_properties(seed: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    audio, video = torch.randn(2, size, 8, generator=generator, dtype=torch.float64).unbind()
    loss = contrastive(audio, video, scale)
    torch.testing.assert_close(contrastive(video, audio, scale), loss)
    torch.testing.assert_close(contrastive(3 * audio, 0.1 * video, scale), loss, atol=1e-4, rtol=1e-4)
    order = torch.randperm(size, generator=generator)
    torch.testing.assert_close(contrastive(audio[order], video[order], scale), loss, atol=1e-4, rtol=1e-4)
    assert loss >= 0
    if size == 1:
        assert loss == 0
    alike = contrastive(torch.eye(size), torch.eye(size), scale)
    expected = math.log(1 + (size - 1) * math.exp(-scale))
    assert alike.item() == pytest.approx(expected, abs=1e-5)


def test_contrastive_learns_its_temperature() -> None:
    log_scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    contrastive(torch.eye(3), torch.eye(3), log_scale.exp()).backward()
    assert log_scale.grad is not None
    assert log_scale.grad < 0  # pairs that fit want a lower temperature


# --- classification (section 3.5) ---


def test_classification_against_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator)
    ids = torch.randint(0, 5, (6,), generator=generator)
    functional = torch.nn.functional
    torch.testing.assert_close(
        classification(logits, ids, "ce", 0.1), functional.cross_entropy(logits, ids, label_smoothing=0.1)
    )
    several = (torch.rand(6, 5, generator=generator) < 0.4).float()
    torch.testing.assert_close(
        classification(logits, several, "bce", 0.0),
        functional.binary_cross_entropy_with_logits(logits, several),
    )
    one_hot = functional.one_hot(ids, 5)
    for kind in ("bce", "ce"):
        torch.testing.assert_close(
            classification(logits, ids, kind), classification(logits, one_hot.float(), kind)
        )
        assert classification(logits.bfloat16(), ids, kind).dtype == torch.float32


def test_classification_smoothing_by_hand() -> None:
    """Two classes at probability one half each: only the target's weights count."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss = classification(logits, torch.tensor([0]), "bce", 0.1)  # targets 0.95 and 0.05
    first = 0.95 * math.log(4 / 3) + 0.05 * math.log(4)
    assert loss.item() == pytest.approx((first + math.log(2)) / 2)


@pytest.mark.parametrize("kind", ["bce", "ce"])
def test_classification_rewards_the_right_class(kind: Literal["bce", "ce"]) -> None:
    right = classification(torch.tensor([[4.0, -4.0]]), torch.tensor([0]), kind)
    wrong = classification(torch.tensor([[4.0, -4.0]]), torch.tensor([1]), kind)
    assert right < wrong
