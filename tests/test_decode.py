"""Parallel decoding: the schedule, the law of what is sampled, what is kept, and who depends on whom."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from helpers.decoding import nothing, seeds
from vab.config import DecodeConfig
from vab.sampling.parallel import (
    DecodeError,
    LogitsFn,
    classifier_free_guidance,
    generate,
    generate_long,
    sample,
    sample_like_the_cpu,
    windows,
)

ONE_DRAW_BELOW_ONE = 1 - 2**-24  # the largest number torch.rand gives


def config(steps: int = 8, temperature: float = 10.5, top_k: int = 0) -> DecodeConfig:
    return DecodeConfig(num_steps=steps, mask_temperature=temperature, top_k=top_k)


def oracle(answer: Tensor, codebook_size: int, num_conditioning_codebooks: int = 0) -> LogitsFn:
    """Knows the answer [B,K,T]."""
    logits = torch.nn.functional.one_hot(answer, codebook_size)[:, num_conditioning_codebooks:].float() * 1e4
    return lambda tokens, step=1: logits


def constant(logits: Tensor) -> LogitsFn:
    """The same logits [V] everywhere."""
    return lambda tokens, step=1: logits.expand(*tokens.shape, len(logits))


def neighbours(tokens: Tensor, codebook_size: int, num_conditioning_codebooks: int = 0) -> Tensor:
    """A network of whole numbers: each logit depends on its place and on the tokens beside it.

    Its results are exact, so they cannot depend on the batch. No two logits of a place are equal.
    """
    _, num_codebooks, frames = tokens.shape
    k = torch.arange(num_codebooks)[:, None, None]
    t = torch.arange(frames)[:, None]
    v = torch.arange(codebook_size)
    left = torch.nn.functional.pad(tokens, (1, 0), value=0)[..., :-1]
    below = torch.nn.functional.pad(tokens, (0, 0, 1, 0), value=0)[:, :-1]
    context = (left * 5 + below * 3 + tokens)[..., None] + 11 * k + 7 * t
    return (((context + 37 * v) % 101).float() / 20)[:, num_conditioning_codebooks:]


def toy(codebook_size: int, num_conditioning_codebooks: int = 0) -> LogitsFn:
    return lambda tokens, step=1: neighbours(tokens, codebook_size, num_conditioning_codebooks)


def watch(logits_fn: LogitsFn, seen: list[Tensor]) -> LogitsFn:
    """``logits_fn`` that also writes down its inputs."""

    def watching(tokens: Tensor, step: int = 1) -> Tensor:
        seen.append(tokens)
        return logits_fn(tokens, step)

    return watching


def slow_reference(
    logits_fn: LogitsFn, tokens: Tensor, known: Tensor, codebook_size: int, config: DecodeConfig, seed: int
) -> list[list[int]]:
    """Section 3.3 for one clip [K,T], in plain loops over Python numbers."""
    generator = torch.Generator().manual_seed(seed)
    num_codebooks, frames = tokens.shape
    grid = [
        [int(tokens[k, t]) if known[k, t] else codebook_size for t in range(frames)]
        for k in range(num_codebooks)
    ]
    hidden = [(k, t) for k in range(num_codebooks) for t in range(frames) if not known[k, t]]
    total = len(hidden)
    for n in range(1, config.num_steps + 1):
        remain = (
            0 if n == config.num_steps else math.floor(math.cos(math.pi * n / (2 * config.num_steps)) * total)
        )
        if remain == len(hidden):
            continue
        logits = logits_fn(torch.tensor(grid)[None], n)[0]
        noise = torch.rand(2, len(hidden), generator=generator).tolist()
        scored = []
        for i, (k, t) in enumerate(hidden):
            order = list(range(codebook_size))
            if config.top_k:
                order = sorted(order, key=lambda v: -float(logits[k, t, v]))[: config.top_k]
            weights = [math.exp(float(logits[k, t, v])) for v in order]
            p = [weight / sum(weights) for weight in weights]
            below, choice = 0.0, -1
            while below <= noise[0][i]:
                choice += 1
                below += p[choice]
            tau = config.mask_temperature * (1 - n / config.num_steps)
            score = math.log(p[choice]) + tau * -math.log(-math.log(noise[1][i]))
            scored.append((score, k, t, order[choice]))
        scored.sort()
        for _, k, t, token in scored[remain:]:
            grid[k][t] = token
        hidden = sorted((k, t) for _, k, t, _ in scored[:remain])
    return grid


@pytest.mark.parametrize("seed", range(12))
def test_equals_the_slow_reference(seed: int) -> None:
    draw = torch.Generator().manual_seed(1000 + seed)
    codebook_size = 6
    tokens = torch.randint(codebook_size, (1, 3, 5), generator=draw)
    known = torch.rand(tokens.shape, generator=draw) < 0.2 * (seed % 4)
    chosen = config(steps=1 + seed % 7, temperature=[0.0, 1.0, 25.5][seed % 3], top_k=[0, 3][seed % 2])
    result = generate(toy(codebook_size), tokens, known, codebook_size, chosen, seeds(seed))
    expected = slow_reference(toy(codebook_size), tokens[0], known[0], codebook_size, chosen, seed)
    assert result[0].tolist() == expected


@pytest.mark.parametrize("share_given", [0.0, 0.6])
@pytest.mark.parametrize("steps", [1, 2, 13, 16])
def test_an_oracle_gets_its_answer(steps: int, share_given: float) -> None:
    answer = torch.randint(32, (2, 4, 25), generator=seeds(0)[0])
    known = torch.rand(answer.shape, generator=seeds(1)[0]) < share_given
    start = torch.where(known, answer, -5)  # what is not given does not matter, whatever it is
    result = generate(oracle(answer, 32), start, known, 32, config(steps, 25.5), seeds(2, 3))
    assert torch.equal(result, answer)


def test_coarse_to_fine_predicts_the_last_codebooks_alone() -> None:
    answer = torch.randint(16, (2, 6, 9), generator=seeds(0)[0])
    known = nothing(answer)
    known[:, :4] = True
    seen: list[Tensor] = []
    logits_fn = watch(oracle(answer, 16, 4), seen)
    result = generate(logits_fn, answer, known, 16, config(), seeds(1, 2), num_conditioning_codebooks=4)
    assert torch.equal(result, answer)
    assert all(torch.equal(tokens[:, :4], answer[:, :4]) for tokens in seen)
    assert bool((seen[0][:, 4:] == 16).all())


def test_the_number_hidden_after_each_step_is_the_formula() -> None:
    steps, codebook_size = 16, 10
    tokens = torch.zeros(2, 4, 50, dtype=torch.long)
    known = nothing(tokens)
    known[1, :, 10:] = True  # the second clip has fewer to generate
    seen: list[Tensor] = []
    generate(watch(toy(codebook_size), seen), tokens, known, codebook_size, config(steps), seeds(1, 2))
    for clip, total in ((0, 200), (1, 40)):
        counts = [int((step[clip] == codebook_size).sum()) for step in seen]
        assert counts == [math.floor(math.cos(math.pi / 2 * n / steps) * total) for n in range(steps)]


def test_every_number_of_steps_ends_without_a_mask() -> None:
    tokens = torch.zeros(1, 2, 6, dtype=torch.long)
    for steps in range(1, 60):
        result = generate(constant(torch.zeros(4)), tokens, nothing(tokens), 4, config(steps), seeds(0))
        assert int(result.max()) < 4


def test_steps_that_decide_nothing_cost_no_forward() -> None:
    tokens = torch.zeros(1, 1, 3, dtype=torch.long)
    seen: list[Tensor] = []
    told: list[tuple[int, int]] = []
    generate(
        watch(toy(5), seen),
        tokens,
        nothing(tokens),
        5,
        config(steps=20),
        seeds(0),
        progress=lambda *now: told.append(now),
    )
    assert [int((step == 5).sum()) for step in seen] == [3, 2, 1]
    assert told == [(n, 20) for n in range(1, 21)]


@st.composite
def tasks(draw: Callable) -> tuple[Tensor, Tensor, int, DecodeConfig, int]:
    batch, num_codebooks, frames = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    seed, codebook_size = draw(st.integers(0, 2**31)), draw(st.integers(2, 12))
    chosen = config(draw(st.integers(1, 20)), draw(st.floats(0, 100)), draw(st.integers(0, 14)))
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(codebook_size, (batch, num_codebooks, frames), generator=random)
    known = torch.rand(tokens.shape, generator=random) < draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    return tokens, known, codebook_size, chosen, seed


@settings(max_examples=60, deadline=None)
@examples(tasks())
def test_given_tokens_never_change_and_decided_ones_stay(
    task: tuple[Tensor, Tensor, int, DecodeConfig, int],
) -> None:
    tokens, known, codebook_size, chosen, seed = task
    before = tokens.clone()
    seen: list[Tensor] = []
    generators = seeds(*range(seed, seed + len(tokens)))
    result = generate(watch(toy(codebook_size), seen), tokens, known, codebook_size, chosen, generators)
    assert torch.equal(tokens, before)  # the argument is not written to
    assert torch.equal(result[known], tokens[known])
    assert int(result.min()) >= 0
    assert int(result.max()) < codebook_size
    for state in seen:
        decided = state != codebook_size
        assert bool(decided[known].all())
        assert torch.equal(state[decided], result[decided])


def test_everything_given_needs_no_forward() -> None:
    tokens = torch.randint(7, (2, 3, 4))
    seen: list[Tensor] = []
    result = generate(watch(toy(7), seen), tokens, ~nothing(tokens), 7, config(), seeds(0, 1))
    assert torch.equal(result, tokens)
    assert seen == []


@pytest.mark.parametrize("steps", [1, 6])
def test_uniform_logits_give_a_uniform_law(steps: int) -> None:
    tokens = torch.zeros(4, 4, 250, dtype=torch.long)
    result = generate(
        constant(torch.zeros(16)), tokens, nothing(tokens), 16, config(steps), seeds(0, 1, 2, 3)
    )
    assert stats.chisquare(torch.bincount(result.flatten(), minlength=16)).pvalue > 1e-3


@pytest.mark.parametrize("top_k", [0, 5])
def test_one_step_without_noise_samples_the_softmax(top_k: int) -> None:
    logits = torch.linspace(-2, 2, 12)[torch.randperm(12, generator=seeds(5)[0])]
    tokens = torch.zeros(2, 4, 1000, dtype=torch.long)
    result = generate(constant(logits), tokens, nothing(tokens), 12, config(1, 0.0, top_k), seeds(8, 9))
    kept = logits.argsort(descending=True)[: top_k or 12]
    counts = torch.bincount(result.flatten(), minlength=12)
    assert int(counts.sum()) == int(counts[kept].sum())
    expected = logits[kept].double().softmax(0) * tokens.numel()
    assert stats.chisquare(counts[kept].double(), expected).pvalue > 1e-3


def test_high_temperature_hides_by_chance_and_zero_by_probability() -> None:
    # Half the places are sure of their token, half have no idea.
    logits = torch.zeros(1, 1, 400, 50)
    logits[:, :, :200, 3] = 20.0
    tokens = torch.zeros(1, 1, 400, dtype=torch.long)
    shares = []
    for temperature in (0.0, 1e4):
        seen: list[Tensor] = []
        logits_fn = watch(lambda tokens, step: logits, seen)
        generate(logits_fn, tokens, nothing(tokens), 50, config(3, temperature), seeds(0))
        hidden_after_two = seen[2][0, 0] == 50
        shares.append(float(hidden_after_two[:200].sum() / hidden_after_two.sum()))
    assert shares[0] == 0.0
    assert abs(shares[1] - 0.5) < 0.1


def test_a_clip_depends_on_its_seed_alone() -> None:
    codebook_size, chosen = 30, config(10, 25.5)
    tokens = torch.zeros(3, 4, 20, dtype=torch.long)
    known = nothing(tokens)
    known[1, :, :8] = True  # clips of one batch may differ in what is given
    alone = [
        generate(toy(codebook_size), tokens[b, None], known[b, None], codebook_size, chosen, seeds(40 + b))[0]
        for b in range(3)
    ]
    for order in ([0, 1, 2], [2, 0, 1], [1, 0]):
        generators = seeds(*(40 + b for b in order))
        together = generate(
            toy(codebook_size), tokens[order], known[order], codebook_size, chosen, generators
        )
        assert all(torch.equal(together[i], alone[b]) for i, b in enumerate(order))
    other = generate(toy(codebook_size), tokens[:1], known[:1], codebook_size, chosen, seeds(99))[0]
    assert not torch.equal(other, alone[0])


def test_padding_changes_nothing() -> None:
    tokens = torch.zeros(1, 3, 12, dtype=torch.long)
    alone = generate(toy(20), tokens[..., :7], nothing(tokens)[..., :7], 20, config(), seeds(4))
    padded = nothing(tokens)
    padded[..., 7:] = True
    result = generate(toy(20), tokens, padded, 20, config(), seeds(4))
    assert torch.equal(result[..., :7], alone)


def test_the_layout_in_memory_does_not_matter() -> None:
    tokens = torch.zeros(2, 9, 3, dtype=torch.long).transpose(1, 2)
    plain = tokens.contiguous()
    result = generate(toy(20), tokens, nothing(plain), 20, config(), seeds(4, 5))
    assert torch.equal(result, generate(toy(20), plain, nothing(plain), 20, config(), seeds(4, 5)))


def test_top_one_is_greedy() -> None:
    tokens = torch.zeros(2, 3, 8, dtype=torch.long)
    logits = torch.randn(2, 3, 8, 40, generator=seeds(0)[0])
    result = generate(
        lambda tokens, step: logits, tokens, nothing(tokens), 40, config(4, 10.5, top_k=1), seeds(1, 2)
    )
    assert torch.equal(result, logits.argmax(-1))


def test_a_token_of_probability_zero_is_never_sampled() -> None:
    rows = torch.randn(2000, 64, generator=seeds(0)[0])
    rows[:, 0] = rows[:, 31] = rows[:, -1] = -1e4
    for draw in (0.0, 0.5, ONE_DRAW_BELOW_ONE):
        token, log_p = sample(rows, torch.full((2000,), draw), 0)
        assert not bool(torch.isin(token, torch.tensor([0, 31, 63])).any())
        torch.testing.assert_close(log_p, rows.log_softmax(1).gather(1, token[:, None])[:, 0])


@pytest.mark.parametrize("spread", [0.0, 1.0, 6.0])
def test_a_device_with_other_sums_takes_the_tokens_of_the_cpu(spread: float) -> None:
    """What runs on a GPU runs here, too; of 80,000 draws some fall where rounding decides."""
    generator = torch.Generator().manual_seed(7)
    logits = spread * torch.randn(80_000, 512, generator=generator)
    uniform = torch.rand(len(logits), generator=generator)
    # every second draw is put on a border between two tokens, or next to one
    borders = logits[1::2].softmax(1).cumsum(1)[:, 200] + 6e-8 * torch.randint(
        -2, 3, (40_000,), generator=generator
    )
    uniform[1::2] = borders.clamp(0, ONE_DRAW_BELOW_ONE)
    token, log_p = sample(logits, uniform, 0)
    other, other_log_p = sample_like_the_cpu(logits, uniform)
    assert torch.equal(token, other)
    torch.testing.assert_close(log_p, other_log_p, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guidance_is_the_formula_in_one_forward(dtype: torch.dtype) -> None:
    calls: list[tuple[Tensor, Tensor, list[bool]]] = []

    def model_fn(tokens: Tensor, features: Tensor, drop: Tensor) -> Tensor:
        calls.append((tokens, features, drop.tolist()))
        seen = features.sum((1, 2)).where(~drop, torch.zeros(()))
        return (tokens[..., None] + seen[:, None, None, None]).expand(*tokens.shape, 3).to(dtype)

    tokens = torch.tensor([[[1, 2]], [[3, 4]]])
    features = torch.tensor([[[2.0]], [[4.0]]])
    logits = classifier_free_guidance(model_fn, features, 5.0)(tokens)
    (both, twice, drop) = calls.pop()
    assert calls == []
    assert torch.equal(both, torch.cat([tokens, tokens]))
    assert torch.equal(twice, torch.cat([features, features]))
    assert drop == [False, False, True, True]
    # u is the token, c the token plus the feature: u + 5 (c - u) = token + 5 feature
    assert logits[..., 0].tolist() == [[[11.0, 12.0]], [[23.0, 24.0]]]
    assert logits.dtype == torch.float32

    plain = classifier_free_guidance(model_fn, features, 1.0)(tokens)
    assert [(len(rows), dropped) for rows, _, dropped in calls] == [(2, [False, False])]
    assert plain[..., 0].tolist() == [[[3.0, 4.0]], [[7.0, 8.0]]]
    assert plain.dtype == torch.float32


@examples(st.integers(1, 2000), st.integers(1, 300), st.data())
def test_windows_cover_all(total: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    spans = windows(total, window, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == total
    assert all(stop - start == min(window, total) for start, stop in spans)
    for (start, stop), (after, end) in pairwise(spans):
        assert start < after <= stop - overlap
        assert end > stop
    assert all(start % (window - overlap) == 0 for start, _ in spans[:-1])


@pytest.mark.parametrize(("total", "window", "overlap"), [(0, 5, 1), (9, 5, 5), (9, 5, -1), (9, 0, 0)])
def test_windows_that_cannot_be(total: int, window: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="no windows"):
        windows(total, window, overlap)


def test_windows_share_their_tokens() -> None:
    answer = torch.randint(25, (2, 4, 47), generator=seeds(0)[0])
    known = nothing(answer)
    known[0, :, 30:33] = True  # and something ahead is given too
    spans: list[tuple[int, int]] = []
    seen: list[list[Tensor]] = []
    told: list[tuple[int, int]] = []

    def logits_fn_for(start: int, stop: int) -> LogitsFn:
        spans.append((start, stop))
        seen.append([])
        return watch(lambda tokens, step: neighbours(tokens, 25), seen[-1])

    result = generate_long(
        logits_fn_for,
        answer,
        known,
        25,
        config(4),
        seeds(1, 2),
        window=20,
        overlap=6,
        progress=lambda *now: told.append(now),
    )
    assert spans == windows(47, 20, 6) == [(0, 20), (14, 34), (27, 47)]
    decided = known.clone()
    for (start, stop), states in zip(spans, seen, strict=True):
        assert len(states) == 4
        old = decided[..., start:stop]
        for state in states:
            assert torch.equal(state[old], result[..., start:stop][old])
        assert torch.equal(states[0] == 25, ~old)
        decided[..., start:stop] = True
    assert torch.equal(result[known], answer[known])
    assert int(result.max()) < 25
    assert told == [(n, 12) for n in range(1, 13)]


def test_a_long_oracle_gets_its_answer_with_coarse_codebooks_given() -> None:
    answer = torch.randint(12, (3, 100), generator=seeds(0)[0])
    known = nothing(answer)
    known[0] = True
    result = generate_long(
        lambda start, stop: oracle(answer[None, :, start:stop], 12, 1),
        answer,
        known,
        12,
        config(),
        seeds(3)[0],
        window=30,
        overlap=7,
        num_conditioning_codebooks=1,
    )
    assert torch.equal(result, answer)


def test_long_clips_depend_on_their_seeds_alone() -> None:
    tokens = torch.zeros(2, 2, 33, dtype=torch.long)

    def run(b: slice | int, generators: torch.Generator | list[torch.Generator]) -> Tensor:
        return generate_long(
            lambda *span: toy(15),
            tokens[b],
            nothing(tokens)[b],
            15,
            config(),
            generators,
            window=10,
            overlap=3,
        )

    together = run(slice(None), seeds(5, 6))
    assert torch.equal(together[0], run(0, seeds(5)[0]))
    assert torch.equal(together[1], run(1, seeds(6)[0]))
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("frames", [1, 7, 20])
def test_one_window_is_plain_generation(frames: int) -> None:
    tokens = torch.zeros(2, 4, frames, dtype=torch.long)
    short = generate(toy(25), tokens, nothing(tokens), 25, config(), seeds(1, 2))
    long = generate_long(
        lambda *span: toy(25), tokens, nothing(tokens), 25, config(), seeds(1, 2), window=20, overlap=5
    )
    assert torch.equal(long, short)


def test_a_window_without_work_is_not_asked_for() -> None:
    tokens = torch.zeros(1, 2, 30, dtype=torch.long)
    known = ~nothing(tokens)
    known[..., 24] = False
    spans: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []

    def logits_fn_for(start: int, stop: int) -> LogitsFn:
        spans.append((start, stop))
        return toy(9)

    generate_long(
        logits_fn_for,
        tokens,
        known,
        9,
        config(2),
        seeds(0),
        window=10,
        overlap=0,
        progress=lambda *now: told.append(now),
    )
    assert spans == [(20, 30)]
    assert told == [(2, 6), (4, 6), (5, 6), (6, 6)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_numbers_name_the_clip(bad: float) -> None:
    tokens = torch.zeros(3, 2, 4, dtype=torch.long)
    known = nothing(tokens)
    known[2] = True

    def logits_fn(tokens: Tensor, step: int) -> Tensor:
        logits = neighbours(tokens, 6)
        logits[2] = bad  # nothing is asked of this clip
        logits[1, 0, 3, 5] = bad
        return logits

    with pytest.raises(DecodeError, match="clip 1 of the batch: logits are NaN or infinite at step 1"):
        generate(logits_fn, tokens, known, 6, config(), seeds(0, 1, 2))


def test_arguments_that_do_not_fit() -> None:
    tokens = torch.zeros(2, 3, 4, dtype=torch.long)
    known = nothing(tokens)
    pair = seeds(0, 1)
    shared = seeds(0) * 2
    mistakes: dict[str, tuple[Any, ...]] = {
        "of the same shape": (tokens, known[:, :2], 6, config(), pair),
        "torch.int64": (tokens, known.long(), 6, config(), pair),
        "each of the 2 clips": (tokens, known, 6, config(), pair[:1]),
        "generator of its own": (tokens, known, 6, config(), shared),
        "steps >= 1": (tokens, known, 6, config(steps=0), pair),
        "top_k >= 0": (tokens, known, 6, config(top_k=-1), pair),
        r"not in 0\.\.5": (tokens + 6, ~known, 6, config(), pair),
        r"logits \[2, 2, 4, 6\] do not": (tokens, known, 6, config(), pair),
    }
    for message, arguments in mistakes.items():
        with pytest.raises(ValueError, match=message):
            generate(toy(6, num_conditioning_codebooks=1), *arguments)
    with pytest.raises(ValueError, match="first 1 codebooks"):
        generate(toy(6), tokens, known, 6, config(), pair, num_conditioning_codebooks=1)
