"""What inference in bfloat16 on a CPU does otherwise: the same within rounding, and nothing anywhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from vab.models import linear
from vab.models import vab as network
from vab.models.foleygen import FoleyGen, IncrementalDecoder
from vab.models.linear import Linear
from vab.models.vab import VAB
from vab.presets import PRESETS

SMALL = replace(PRESETS["vab-tiny"].model, seconds=1.0, codebook_size=16, num_layers=4, num_expert_layers=2)


def built(kind: type[VAB] = VAB) -> VAB:
    torch.manual_seed(0)
    model = kind(SMALL if kind is VAB else replace(SMALL, num_expert_layers=0, timing=False)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:  # larger than at the start, so that attention and GELU matter
                parameter.mul_(3 if "heads" not in name else 1)
    return model


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(SMALL.codebook_size + 1, (batch, SMALL.num_codebooks, SMALL.audio_length))
    return tokens, torch.randn(batch, SMALL.video_length, SMALL.vision_dim)


def narrow(model: VAB) -> VAB:
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.fixture(params=["packed", "plain"])
def packs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With PyTorch's own operators, where this machine has them, and without."""
    packed = request.param == "packed"
    if packed and not linear.can_pack():
        pytest.skip("no packed weights on this machine")
    monkeypatch.setattr(linear, "can_pack", lambda: packed)
    return packed


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_layer_is_the_plain_one_within_rounding(packs: bool, rows: int) -> None:
    torch.manual_seed(0)
    layer = Linear(48, 80)
    x = torch.randn(2, rows, 48)
    expected = layer(x)
    assert torch.equal(expected, functional.linear(x, layer.weight, layer.bias))  # float32: bit for bit
    assert torch.equal(layer.gelu(x), functional.gelu(expected))
    layer.bfloat16()
    learning = layer(x.bfloat16())
    assert learning.requires_grad  # never packed where something may learn
    with torch.no_grad():
        assert error(layer(x.bfloat16()), expected.detach()) < 0.005
        assert error(layer.gelu(x.bfloat16()), functional.gelu(expected.detach())) < 0.007


def test_new_weights_are_packed_anew(packs: bool) -> None:
    layer = Linear(32, 32).bfloat16().requires_grad_(False)
    x = torch.randn(3, 32).bfloat16()

    def is_of_these_weights() -> bool:
        return error(layer(x), functional.linear(x.float(), layer.weight.float(), layer.bias.float())) < 0.01

    with torch.no_grad():
        assert is_of_these_weights()
        layer.weight.mul_(-2)
        assert is_of_these_weights()
        layer.load_state_dict(Linear(32, 32).state_dict())
        assert is_of_these_weights()
        layer.weight.data = torch.randn(32, 32).bfloat16()
        assert is_of_these_weights()
        layer = copy.deepcopy(layer)
        layer.weight.zero_()
        assert is_of_these_weights()


def test_a_layer_in_float32_holds_no_narrow_weights(packs: bool) -> None:
    layer = Linear(32, 32).requires_grad_(False)
    wide = layer.weight.data
    layer.weight.data, layer.bias.data = wide.bfloat16(), layer.bias.data.bfloat16()
    with torch.no_grad():
        layer(torch.ones(2, 32, dtype=torch.bfloat16))
        layer.weight.data, layer.bias.data = wide, layer.bias.data.float()
        found = layer(torch.ones(2, 32))
    assert torch.equal(found, functional.linear(torch.ones(2, 32), wide, layer.bias))
    assert layer._packed._value is None and layer._packed._made_from == []


def test_a_state_has_the_weights_alone(packs: bool) -> None:
    layer, plain = Linear(32, 32), nn.Linear(32, 32)
    with torch.no_grad():
        layer.bfloat16()(torch.ones(1, 32).bfloat16())
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)


@pytest.mark.parametrize(
    "missing", [AttributeError("no such operator"), RuntimeError("not here"), TypeError("other arguments")]
)
def test_without_the_operators_a_layer_is_the_plain_one(
    missing: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Tensor:
        raise missing

    monkeypatch.setattr(linear, "_pointwise", fails)
    linear.can_pack.cache_clear()
    try:
        assert not linear.can_pack()
        layer = Linear(32, 32).bfloat16().requires_grad_(False)
        x = torch.randn(3, 32).bfloat16()
        with torch.no_grad():
            assert torch.equal(layer.gelu(x), functional.gelu(functional.linear(x, layer.weight, layer.bias)))
    finally:
        linear.can_pack.cache_clear()


def test_operators_that_give_other_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Callable[..., Tensor] = linear._pointwise
    monkeypatch.setattr(linear, "_pointwise", lambda *args: right(*args) + 0.1)
    linear.can_pack.cache_clear()
    assert not linear.can_pack()
    linear.can_pack.cache_clear()


@torch.no_grad()
def test_a_network_in_bfloat16_is_that_in_float32_within_rounding(packs: bool) -> None:
    model, (tokens, features) = built(), inputs()
    assert (SMALL.audio_length + SMALL.video_length) % 32  # so that places are added
    drop = torch.tensor([False, True])
    expected = model(tokens, features, drop_features=drop)
    found = narrow(model)(tokens, features, drop_features=drop)
    assert found.shape == expected.shape and error(found, expected) < 0.02


@torch.no_grad()
def test_places_that_are_added_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, features) = narrow(built()), inputs()
    padding = torch.zeros(len(tokens), SMALL.audio_length, dtype=torch.bool)
    padding[1, -7:] = True
    found = model(tokens, features, token_padding=padding).float()
    lengths: list[int] = []

    def as_they_are(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        lengths.append(x.shape[1])
        return x, bias

    monkeypatch.setattr(network, "lengthened", as_they_are)
    plain = model(tokens, features, token_padding=padding).float()
    assert lengths == [SMALL.audio_length + SMALL.video_length]
    assert error(found[0], plain[0]) < 0.02 and error(found[1, :, :-7], plain[1, :, :-7]) < 0.02


@torch.no_grad()
def test_float32_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not(*_: object) -> Tensor:
        raise AssertionError("in float32 nothing is packed and no place is added")

    model, (tokens, features) = built(), inputs()
    monkeypatch.setattr(network, "lengthened", must_not)
    monkeypatch.setattr(linear, "_pointwise", must_not)
    assert model(tokens, features).isfinite().all()


@torch.no_grad()
def test_foleygen_step_by_step_in_bfloat16(packs: bool) -> None:
    model, (tokens, features) = built(FoleyGen), inputs()
    tokens.clamp_(max=SMALL.codebook_size - 1)
    exact, rounded = (IncrementalDecoder(each, 10) for each in (model, narrow(model)))
    for steps in (tokens[:, :, :3], tokens[:, :, 3:4], tokens[:, :, 4:5]):
        expected = exact(steps, features)
        assert error(rounded(steps, features), expected) < 0.02


def test_a_mask_vector_that_learns_is_looked_up_anew() -> None:
    model, (tokens, features) = built(), inputs()
    masked = torch.full_like(tokens, SMALL.codebook_size)
    with torch.no_grad():
        before = model(masked, features)
    model(masked, features).square().mean().backward()
    assert model.audio_embedding.mask.grad is not None
    with torch.no_grad():
        model.audio_embedding.mask.add_(1)
        assert not torch.equal(model(masked, features), before)


def test_what_learns_is_never_kept() -> None:
    """A fused optimizer changes weights without a trace in their version, between two validations."""
    model, (tokens, features) = built(), inputs()
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        model(tokens, features).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            assert torch.equal(model(tokens, features), copy.deepcopy(model)(tokens, features))
