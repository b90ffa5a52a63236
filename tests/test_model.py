"""The network: sizes against the paper, numbers against a plain re-telling, and what must not change them.

``python tests/test_model.py`` writes the golden outputs anew; do that only when the model is meant to change.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from vab.config import FRAME_RATE, ModelConfig, video_frames
from vab.models.vab import VAB, Block, Experts, FeedForward, alibi_bias, alibi_slopes, parameter_counts
from vab.presets import preset

GOLDEN = Path(__file__).parent / "golden"
TINY = ModelConfig(
    codec="encodec",
    seconds=0.4,
    fps=10.0,
    num_codebooks=3,
    codebook_size=11,
    codebook_dim=6,
    vision_dim=5,
    hidden_dim=24,
    num_layers=3,
    num_expert_layers=2,
    num_heads=3,
)
CASES = {
    "sequence": TINY,
    "time": replace(TINY, positions="time"),
    "dac": replace(TINY, codec="dac", num_codebooks=5, num_conditioning_codebooks=2, num_heads=6),
    "no_experts": replace(TINY, num_expert_layers=0, num_heads=4),
}


def formula_model(config: ModelConfig) -> VAB:
    """A model whose weights follow from a formula, not from any library's random numbers."""
    model = VAB(config).eval()
    with torch.no_grad():
        for n, (name, value) in enumerate(sorted(model.state_dict().items())):
            place = torch.arange(1, value.numel() + 1, dtype=torch.float64)
            wave = torch.sin(place.square() * (0.7 + 0.013 * n) + n)  # squares, else matrices have rank 2
            scale = 0.1 if value.ndim == 1 else 0.9 if value.ndim == 3 else 1.4 / math.sqrt(value.shape[-1])
            value.copy_(
                (wave * scale).view(value.shape)
                + (1.0 if name.endswith(("norm.weight", "feature_std")) else 0.0)
            )
    return model


def formula_inputs(config: ModelConfig, batch: int = 2, frames: int = 20) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(batch * config.num_codebooks * frames) * 7919 % 1009 % (config.codebook_size + 1)
    video = video_frames(frames / FRAME_RATE, config.fps)
    features = torch.cos(torch.arange(batch * video * config.vision_dim, dtype=torch.float64) * 1.1).float()
    return tokens.view(batch, config.num_codebooks, frames), features.view(batch, video, config.vision_dim)


def golden_outputs(config: ModelConfig) -> dict[str, Tensor]:
    model = formula_model(config)
    tokens, features = formula_inputs(config)
    with torch.no_grad():
        outputs = {"logits": model(tokens, features), "unconditional": model(tokens, None)}
        if config.num_expert_layers:
            outputs["audio"] = model.pooled(tokens, None)
            outputs["video"] = model.pooled(None, features)
            outputs["both"] = model.pooled(tokens, features)
    return {name: value.contiguous() for name, value in outputs.items()}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    stored = load_file(GOLDEN / f"model_{case}.safetensors")
    found = golden_outputs(CASES[case])
    assert found.keys() == stored.keys()
    for name, value in found.items():
        assert value.std() > 0.1
        torch.testing.assert_close(value, stored[name], atol=1e-4, rtol=1e-4)


# --- sizes (section 4, Tables 7 and 8) ---


def test_sizes_are_the_papers() -> None:
    counts = parameter_counts(preset("vab-encodec").model)
    assert counts["parameters"] == pytest.approx(403e6, rel=0.005)
    assert counts["expert_parameters"] == pytest.approx(253e6, rel=0.005)
    assert counts["head_parameters"] == 4 * 2048 * (1024 + 1)
    assert counts["total_parameters"] == counts["parameters"] + counts["head_parameters"]


@pytest.mark.parametrize(
    ("name", "parameters", "expert_parameters"),
    [
        ("vab-encodec", 403_982_848, 252_826_112),
        ("vab-dac", 403_884_064, 252_727_328),
        ("vab-dac-test", 199_064_096, 142_359_584),
        ("vab-dac-coarse2fine", 315_952_736, 1_111_136),
    ],
)
def test_sizes_of_presets_stay(name: str, parameters: int, expert_parameters: int) -> None:
    counts = parameter_counts(preset(name).model)
    assert (counts["parameters"], counts["expert_parameters"]) == (parameters, expert_parameters)


@pytest.mark.parametrize("case", CASES)
def test_counts_on_no_memory_equal_those_of_a_real_model(case: str) -> None:
    model = VAB(CASES[case])
    counts = parameter_counts(CASES[case])
    assert counts == model.parameter_counts()
    assert counts["total_parameters"] == sum(p.numel() for p in model.parameters())
    used = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("heads."))
    assert counts["parameters"] == used


# --- ALiBi ---


def test_slopes() -> None:
    assert alibi_slopes(8) == [2.0**-h for h in range(1, 9)]
    assert alibi_slopes(16) == pytest.approx([2.0 ** (-h / 2) for h in range(1, 17)])
    assert alibi_slopes(1) == [2.0**-8]
    # by hand: 4 heads give 1/4 ... 1/256; of 8 heads the 1st and the 3rd
    assert alibi_slopes(6) == pytest.approx([1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8])
    assert alibi_slopes(12) == pytest.approx([*alibi_slopes(8), *alibi_slopes(16)[:8:2]])
    assert alibi_slopes(20) == pytest.approx([*alibi_slopes(16), *alibi_slopes(32)[:8:2]])


@given(st.integers(1, 40))
def test_slopes_are_distinct_and_between_0_and_1(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert len(set(slopes)) == len(slopes) == heads
    assert all(0 < slope < 1 for slope in slopes)


def bias_of(config: ModelConfig, video: int, audio: int) -> Tensor:
    cpu = torch.device("cpu")
    return alibi_bias(config, video, audio, cpu, torch.float32)


def test_bias_by_sequence() -> None:
    bias = bias_of(replace(TINY, num_heads=2), 2, 3)
    assert bias.shape == (1, 2, 5, 5)
    distance = torch.tensor([[abs(i - j) for j in range(5)] for i in range(5)], dtype=torch.float32)
    torch.testing.assert_close(bias[0, 0], -distance / 16)
    torch.testing.assert_close(bias[0, 1], -distance / 256)


def test_bias_by_time() -> None:
    """At 1 fps a picture stands in the middle of its second: 24.5 and 74.5 audio frames."""
    config = replace(TINY, num_heads=1, fps=1.0, positions="time")
    bias = bias_of(config, 2, 100)[0, 0] * -256
    assert bias[0, 1] == 50
    assert bias[0, 2] == 24.5  # first picture, first audio frame
    assert bias[0, 2 + 24] == bias[0, 2 + 25] == 0.5
    assert bias[1, 2 + 99] == 24.5
    assert bias[2, 2 + 99] == 99
    torch.testing.assert_close(bias, bias.T)


def test_bias_made_in_inference_mode_serves_training() -> None:
    alibi_bias.cache_clear()
    model = VAB(TINY)
    tokens, features = formula_inputs(TINY)
    with torch.inference_mode():
        model(tokens, features)
    model(tokens, features).sum().backward()
    assert alibi_bias.cache_info().hits == 1


# --- the numbers, against the method told plainly ---


def plain_forward(model: VAB, tokens: Tensor, features: Tensor) -> Tensor:
    """Section 3.2 for one clip, place by place: tokens [K,T], features [F,dim] -> logits [Kp,T,V]."""
    config, embedding = model.config, model.audio_embedding
    norm = torch.nn.functional.layer_norm
    gelu = torch.nn.functional.gelu
    standard = [(f - model.feature_mean) / model.feature_std for f in features]
    places = [model.video_projection(f) + model.modality[0] for f in standard]
    clock = [(i + 0.5) / config.fps * 50 - 0.5 for i in range(len(features))]
    for t in range(tokens.shape[1]):
        ids = [int(i) for i in tokens[:, t]]
        rows = [
            embedding.mask[k] if i == config.codebook_size else embedding.vectors[k, i]
            for k, i in enumerate(ids)
        ]
        if config.codec == "dac":  # each codebook's own part of the projection, then the sum
            parts = embedding.projection.weight.split(config.codebook_dim, dim=1)
            projected = sum(part @ row for part, row in zip(parts, rows, strict=True))
            places.append(projected + embedding.projection.bias + model.modality[1])
        else:
            places.append(embedding.projection(sum(rows)) + model.modality[1])
        clock.append(float(t))
    if config.positions == "sequence":
        clock = [float(i) for i in range(len(places))]
    x = torch.stack(places)
    size = config.hidden_dim // config.num_heads
    for n, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        attention = block.attention
        query, key, value = attention.qkv(attention.norm(x)).split(config.hidden_dim, dim=1)
        heads = []
        for h, slope in enumerate(alibi_slopes(config.num_heads)):
            part = slice(h * size, (h + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            for i, at in enumerate(clock):
                for j, other in enumerate(clock):
                    scores[i, j] -= slope * abs(at - other)
            heads.append(scores.softmax(1) @ value[:, part])
        x = x + attention.out(torch.cat(heads, dim=1))
        grown = []
        for i, row in enumerate(x):
            net = block.feed_forward
            assert isinstance(net, Experts if n < config.num_expert_layers else FeedForward)
            if isinstance(net, Experts):
                net = net.video if i < len(features) else net.audio
            normed = norm(row, (config.hidden_dim,), net.norm.weight, net.norm.bias)
            grown.append(row + net.out(gelu(net.up(normed))))
        x = torch.stack(grown)
    x = model.norm(x[len(features) :])
    weights = model.heads.weight.split(config.codebook_size)
    biases = model.heads.bias.split(config.codebook_size)
    return torch.stack([x @ w.T + b for w, b in zip(weights, biases, strict=True)])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_forward_is_the_method_told_plainly(case: str) -> None:
    model = formula_model(CASES[case]).double()
    tokens, features = formula_inputs(CASES[case], frames=9)
    logits = model(tokens, features.double())
    for b in range(2):
        torch.testing.assert_close(logits[b], plain_forward(model, tokens[b], features[b].double()))


def test_heads_learn_their_own_codebook_and_frame() -> None:
    """Tokens that differ in every codebook and frame come back in the place they came from."""
    torch.manual_seed(0)
    model = VAB(replace(TINY, num_layers=1, num_expert_layers=0))
    tokens = torch.randint(0, TINY.codebook_size, (1, TINY.num_codebooks, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(tokens, None)
        torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), tokens).backward()
        optimizer.step()
    assert torch.equal(model(tokens, None).argmax(-1), tokens)


# --- invariances ---


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest) -> VAB:
    return formula_model(CASES[request.param])


def test_features_of_zeros_are_no_picture(model: VAB) -> None:
    """Also where the training pictures' mean is not zero."""
    tokens, features = formula_inputs(model.config)
    assert model.feature_mean.abs().min() > 0
    with torch.no_grad():
        everything = model(tokens, torch.zeros_like(features))
        torch.testing.assert_close(everything, model(tokens, None))
        torch.testing.assert_close(everything, model(tokens, features, drop_features=torch.ones(2).bool()))


@torch.no_grad()
def test_shapes_without_and_with_features(model: VAB) -> None:
    config = model.config
    tokens, features = formula_inputs(config)
    shape = (2, config.num_predicted_codebooks, 20, config.codebook_size)
    assert model(tokens, features).shape == model(tokens, None).shape == shape


@torch.no_grad()
def test_a_batch_is_its_clips(model: VAB) -> None:
    tokens, features = formula_inputs(model.config, batch=3)
    together = model(tokens, features)
    alone = torch.cat([model(tokens[b : b + 1], features[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=15)
@given(case=st.sampled_from(sorted(CASES)), frames=st.integers(3, 18), extra=st.integers(1, 12))
@torch.no_grad()
def test_padding_changes_nothing(case: str, frames: int, extra: int) -> None:
    model = formula_model(CASES[case])
    tokens, features = formula_inputs(model.config, frames=frames)
    video = features.shape[1]
    long_tokens = torch.nn.functional.pad(tokens, (0, extra), value=3)
    long_features = torch.nn.functional.pad(features, (0, 0, 0, extra), value=math.nan)
    token_padding = (torch.arange(frames + extra) >= frames).expand(2, -1)
    feature_padding = (torch.arange(video + extra) >= video).expand(2, -1)
    padded = model(long_tokens, long_features, token_padding=token_padding, feature_padding=feature_padding)
    torch.testing.assert_close(padded[:, :, :frames], model(tokens, features), atol=1e-4, rtol=1e-4)
    unconditional = model(long_tokens, None, token_padding=token_padding)
    torch.testing.assert_close(unconditional[:, :, :frames], model(tokens, None), atol=1e-4, rtol=1e-4)
    if model.config.num_expert_layers:
        for audio, picture in ((True, True), (True, False), (False, True)):
            torch.testing.assert_close(
                model.pooled(
                    long_tokens if audio else None,
                    long_features if picture else None,
                    token_padding if audio else None,
                    feature_padding if picture else None,
                ),
                model.pooled(tokens if audio else None, features if picture else None),
                atol=1e-4,
                rtol=1e-4,
            )


@torch.no_grad()
def test_dropped_features_are_no_features(model: VAB) -> None:
    tokens, features = formula_inputs(model.config)
    mixed = model(tokens, features, drop_features=torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], model(tokens, None)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[1], model(tokens, features)[1], atol=1e-5, rtol=1e-5)
    assert (mixed[0] - model(tokens, features)[0]).abs().max() > 0.01


@torch.no_grad()
def test_every_token_and_feature_matters_everywhere(model: VAB) -> None:
    """Attention goes both ways: a change at one place is seen before and after it."""
    tokens, features = formula_inputs(model.config, batch=1)
    base = model(tokens, features)
    for k in range(model.config.num_codebooks):
        changed = tokens.clone()
        changed[0, k, 10] = (changed[0, k, 10] + 1) % model.config.codebook_size
        moved = (model(changed, features) - base).abs().amax((0, 1, 3))
        assert (moved > 1e-6).all()
    for f in range(features.shape[1]):
        changed_features = features.clone()
        changed_features[0, f] += 1
        assert ((model(tokens, changed_features) - base).abs().amax((0, 1, 3)) > 1e-6).all()


@torch.no_grad()
def test_masked_codebooks_are_hidden() -> None:
    """[MASK] has its own learned vector per codebook, and no codec vector shows through it."""
    model = formula_model(TINY)
    tokens, features = formula_inputs(TINY)
    tokens[:, 1] = TINY.codebook_size
    base = model(tokens, features)
    model.audio_embedding.vectors[1] += 1
    torch.testing.assert_close(model(tokens, features), base)
    model.audio_embedding.mask[1] += 1
    assert (model(tokens, features) - base).abs().max() > 0.01


@torch.no_grad()
def test_position_modes_differ() -> None:
    tokens, features = formula_inputs(TINY)
    sequence, time = (formula_model(CASES[case])(tokens, features) for case in ("sequence", "time"))
    assert (sequence - time).abs().max() > 0.01


@torch.no_grad()
def test_encode_uses_the_first_layers_and_each_modality_its_own_expert() -> None:
    model = formula_model(TINY)
    tokens, features = formula_inputs(TINY)
    audio, video = model.encode(tokens, None), model.encode(None, features)
    assert audio.shape == (2, 20, TINY.hidden_dim)
    assert video.shape == (2, 4, TINY.hidden_dim)
    assert model.encode(tokens, features).shape == (2, 24, TINY.hidden_dim)
    torch.testing.assert_close(model.pooled(tokens, None), audio.mean(1))
    for parameter in [*model.blocks[2].parameters(), *model.norm.parameters(), *model.heads.parameters()]:
        parameter.fill_(math.nan)
    for block in model.blocks[:2]:
        for name, parameter in block.named_parameters():
            if name.startswith("feed_forward.video."):
                parameter.fill_(math.nan)
    torch.testing.assert_close(model.encode(tokens, None), audio)
    assert model.encode(None, features).isnan().all()


@pytest.mark.parametrize("case", CASES)
def test_bf16_autocast_trains(case: str) -> None:
    config = CASES[case]
    model = formula_model(config).train()
    tokens, features = formula_inputs(config)
    exact = model(tokens, features)
    padding = torch.zeros(2, 20, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(tokens, features)
        padded = model(tokens, features, token_padding=padding)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() < 0.1 * exact.abs().max()
    torch.testing.assert_close(padded, logits)
    logits.float().pow(2).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_float16_features_of_the_store_are_taken() -> None:
    model = formula_model(TINY)
    tokens, features = formula_inputs(TINY)
    half = model(tokens, features.half())
    torch.testing.assert_close(half, model(tokens, features.half().float()))


# --- codebook vectors, bad input ---


def test_codebook_vectors_are_frozen_and_stored() -> None:
    config = replace(TINY, codec="dac", num_codebooks=2)
    vectors = torch.randn(4, 11, 6)
    model = VAB(config, vectors)  # of more codebooks, the first
    torch.testing.assert_close(model.state_dict()["audio_embedding.vectors"], vectors[:2])
    assert "audio_embedding.vectors" not in dict(model.named_parameters())
    other = VAB(config)
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 12, (1, 2, 7))
    torch.testing.assert_close(other(tokens, None), model(tokens, None))


def test_bad_input_is_named() -> None:
    model = formula_model(TINY)
    tokens, features = formula_inputs(TINY)
    with pytest.raises(ValueError, match=r"codebook vectors are \(3, 10, 6\)"):
        VAB(TINY, torch.zeros(3, 10, 6))
    with pytest.raises(ValueError, match="not a multiple of 5 heads"):
        VAB(replace(TINY, num_heads=5))
    with pytest.raises(ValueError, match=r"needs \[B,3,T\]"):
        model(tokens[:, :2], features)
    with pytest.raises(ValueError, match=r"needs \[B,F,5\]"):
        model(tokens, features[..., :4])
    with pytest.raises(ValueError, match="neither tokens nor features"):
        model.encode(None, None)
    with pytest.raises(ValueError, match="no layers that give"):
        formula_model(CASES["no_experts"]).encode(tokens, features)
    with pytest.raises(IndexError):  # not read as a row of the next codebook
        model(torch.full_like(tokens, TINY.codebook_size + 1), features)


if __name__ == "__main__":
    for case, config in CASES.items():
        save_file(golden_outputs(config), GOLDEN / f"model_{case}.safetensors")
