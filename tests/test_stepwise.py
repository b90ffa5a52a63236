"""Decoding step by step: oracles, the law of what is sampled, what is told to whom, who depends on whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from helpers.decoding import nothing, seeds
from helpers.foleygen import TIME, clips, sure
from vab.config import DecodeConfig
from vab.models.foleygen import IncrementalDecoder, delay
from vab.sampling.autoregressive import generate, generate_long
from vab.sampling.parallel import DecodeError, LogitsFn, classifier_free_guidance

GREEDY = DecodeConfig(num_steps=0, sampling_temperature=0.0)
PLAIN = DecodeConfig(num_steps=0, sampling_temperature=1.0)


def memory(law: Callable[[Tensor], Tensor]) -> LogitsFn:
    """A step function that asks ``law`` for the logits [B,K,V] after all steps [B,K,n] it was told."""
    told: list[Tensor] = []

    def step_fn(steps: Tensor) -> Tensor:
        told.append(steps)
        return law(torch.cat(told, dim=2))

    return step_fn


def oracle(answer: Tensor, codebook_size: int) -> LogitsFn:
    """Knows the answer [B,K,T], and that a step was left out or told twice."""
    steps = delay(answer, 0)
    return memory(
        lambda told: torch.nn.functional.one_hot(steps[:, :, told.shape[2] - 1], codebook_size) * 1e4
    )


def toy(codebook_size: int) -> LogitsFn:
    """A law of whole numbers that depends on every step so far; exact, and no two logits are equal."""

    def law(told: Tensor) -> Tensor:
        place = torch.arange(told.shape[2]) + 1
        context = (told * place).sum((1, 2))[:, None, None] + 11 * torch.arange(told.shape[1])[:, None]
        return ((context + 37 * torch.arange(codebook_size)) % 101).float() / 20

    return memory(law)


@settings(deadline=None, max_examples=40)
@examples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 15), st.floats(0, 1), st.integers(0, 999))
def test_an_oracle_gets_its_answer(
    batch: int, num_codebooks: int, frames: int, share: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    answer = torch.randint(32, (batch, num_codebooks, frames), generator=draw)
    known = torch.rand(answer.shape, generator=draw) < share
    start = torch.where(known, answer, -5)  # what is not given does not matter, whatever it is
    if known.all():
        assert torch.equal(
            generate(oracle(answer, 32), start, known, 32, PLAIN, seeds(*range(batch))), answer
        )
        return
    for config in (GREEDY, PLAIN, DecodeConfig(num_steps=0, sampling_temperature=2.0, top_k=3)):
        result = generate(oracle(answer, 32), start, known, 32, config, seeds(*range(batch)))
        assert torch.equal(result, answer)


def test_what_is_given_stays_and_is_told_at_once() -> None:
    tokens = torch.randint(20, (1, 3, 12), generator=seeds(0)[0])
    known = nothing(tokens)
    known[:, :, :5] = True
    known[:, 1, 8] = True
    seen: list[Tensor] = []
    step_fn = toy(20)

    def watch(steps: Tensor) -> Tensor:
        seen.append(steps)
        return step_fn(steps)

    result = generate(watch, tokens, known, 20, PLAIN, seeds(1))
    assert torch.equal(result[known], tokens[known])
    assert [steps.shape[2] for steps in seen] == [6] + [
        1
    ] * 8  # the start and 5 frames; then to step 13 of 14
    line = torch.cat(seen, dim=2)
    assert bool((line[:, :, 0] == 20).all())
    assert torch.equal(line[:, :, 1:], delay(result, 20)[:, :, :-1])


def test_a_token_never_depends_on_later_ones() -> None:
    tokens = torch.zeros(1, 3, 10, dtype=torch.long)
    known = nothing(tokens)
    known[:, :, 6:8] = True
    early = torch.tensor([[k + t < 6 for t in range(10)] for k in range(3)])
    one, two = (
        generate(toy(20), torch.full_like(tokens, value), known, 20, PLAIN, seeds(3))[0] for value in (4, 9)
    )
    assert torch.equal(one[early], two[early])
    assert not torch.equal(one[:, 8:], two[:, 8:])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 5])
def test_samples_follow_the_law(temperature: float, top_k: int) -> None:
    logits = torch.linspace(-2, 2, 12)[torch.randperm(12, generator=seeds(5)[0])]
    tokens = torch.zeros(2, 4, 1000, dtype=torch.long)
    config = DecodeConfig(num_steps=0, sampling_temperature=temperature, top_k=top_k)
    result = generate(lambda steps: logits.expand(2, 4, 12), tokens, nothing(tokens), 12, config, seeds(8, 9))
    kept = logits.argsort(descending=True)[: top_k or 12]
    counts = torch.bincount(result.flatten(), minlength=12)
    assert int(counts.sum()) == int(counts[kept].sum())
    expected = (logits[kept].double() / temperature).softmax(0) * tokens.numel()
    assert stats.chisquare(counts[kept].double(), expected).pvalue > 1e-3


def test_a_clip_depends_on_its_seed_alone() -> None:
    tokens = torch.zeros(3, 4, 20, dtype=torch.long)
    known = nothing(tokens)
    known[1, :, :8] = True  # clips of one batch may differ in what is given
    config = DecodeConfig(num_steps=0, sampling_temperature=1.0, top_k=12)
    alone = [
        generate(toy(30), tokens[b, None], known[b, None], 30, config, seeds(40 + b))[0] for b in range(3)
    ]
    for order in ([0, 1, 2], [2, 0, 1], [1, 0]):
        together = generate(toy(30), tokens[order], known[order], 30, config, seeds(*(40 + b for b in order)))
        assert all(torch.equal(together[i], alone[b]) for i, b in enumerate(order))
    assert not torch.equal(generate(toy(30), tokens[:1], known[:1], 30, config, seeds(99))[0], alone[0])


def test_padding_changes_nothing() -> None:
    def law(told: Tensor) -> Tensor:
        logits = (told.shape[2] * 7 + 37 * torch.arange(20)) % 101 / 20
        return logits.expand(1, 3, 20)

    tokens = torch.zeros(1, 3, 12, dtype=torch.long)
    alone = generate(memory(law), tokens[..., :7], nothing(tokens)[..., :7], 20, PLAIN, seeds(4))
    padded = nothing(tokens)
    padded[..., 7:] = True
    result = generate(memory(law), tokens, padded, 20, PLAIN, seeds(4))
    assert torch.equal(result[..., :7], alone)


def test_a_network_samples_as_if_it_had_seen_all_at_once() -> None:
    """Greedy tokens are the likeliest of one parallel, guided pass over them."""
    network = sure(TIME)
    tokens, features = clips(TIME, frames=30)
    step_fn = classifier_free_guidance(IncrementalDecoder(network, 30), features, 3.0)
    result = generate(step_fn, tokens, nothing(tokens), TIME.codebook_size, GREEDY, seeds(0, 1))
    with torch.no_grad():
        seen = network(result, features)
        unseen = network(result, features, drop_features=torch.tensor([True, True]))
    assert torch.equal((unseen + 3.0 * (seen - unseen)).argmax(-1), result)


def test_long_sound_is_windows_that_continue() -> None:
    answer = torch.randint(32, (3, 70), generator=seeds(0)[0])
    asked: list[tuple[int, int]] = []
    done: list[tuple[int, int]] = []

    def step_fn_for(start: int, stop: int) -> LogitsFn:
        asked.append((start, stop))
        return oracle(answer[None, :, start:stop], 32)

    known = nothing(answer)
    known[:, 40:60] = True
    start = torch.where(known, answer, 0)
    lengths = {"window": 20, "overlap": 5}
    call = (start, known, 32, PLAIN, seeds(1)[0])
    result = generate_long(
        step_fn_for, *call, **lengths, progress=lambda step, steps: done.append((step, steps))
    )
    assert torch.equal(result, answer)
    assert asked == [(0, 20), (15, 35), (30, 50), (45, 65), (50, 70)]
    assert done == sorted(done) and done[-1] == (5 * 22, 5 * 22)
    one = generate(toy(32), answer[None, :, :15], nothing(answer[None, :, :15]), 32, PLAIN, seeds(2))[0]
    short = (answer[:, :15], nothing(answer[:, :15]), 32, PLAIN, seeds(2)[0])
    assert torch.equal(generate_long(lambda start, stop: toy(32), *short, **lengths), one)


def test_what_cannot_be_decoded() -> None:
    tokens = torch.zeros(2, 3, 4, dtype=torch.long)
    bad = torch.zeros(2, 3, 8)
    bad[1, 0] = torch.nan
    with pytest.raises(DecodeError, match="clip 1 of the batch: logits are NaN or infinite at step 1"):
        generate(lambda steps: bad, tokens, nothing(tokens), 8, PLAIN, seeds(0, 1))
    with pytest.raises(ValueError, match="do not start with"):
        generate(lambda steps: bad[:, :2], tokens, nothing(tokens), 8, PLAIN, seeds(0, 1))
    with pytest.raises(ValueError, match="generator of its own"):
        generate(lambda steps: bad, tokens, nothing(tokens), 8, PLAIN, seeds(0))
    with pytest.raises(ValueError, match=r"not in 0\.\.7"):
        generate(lambda steps: bad, tokens + 8, ~nothing(tokens), 8, PLAIN, seeds(0, 1))
