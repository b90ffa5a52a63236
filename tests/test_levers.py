"""Less work per sound: guidance on a part of the steps, places known beforehand, sets of both by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.cli import vab
from helpers.decoding import nothing, seeds
from helpers.tiny import write_model, write_video
from vab import VABPipeline
from vab.config import LEVERS, DecodeConfig, former_fields, levers
from vab.errors import SettingError
from vab.inference.made_with import tag_of
from vab.models.hub import read_config
from vab.presets import PRESETS, at_speed
from vab.sampling import autoregressive
from vab.sampling.parallel import (
    LogitsFn,
    classifier_free_guidance,
    decode_settings,
    generate,
    generate_long,
    guided_steps,
    halton_ranks,
    windows,
)
from vab.sampling.stages import load_stage

V = 12  # codebook size
OTHERS: list[dict[str, object]] = [
    {"guidance_from": 0.5},
    {"guidance_every": 3},
    {"order": "halton"},
    {"order": "random", "top_k": 3},
    {"guidance_from": 0.3, "guidance_every": 2, "order": "halton", "last_window": "short"},
]


def network(tokens: Tensor, features: Tensor, drop: Tensor) -> Tensor:
    """Logits of whole numbers, exact: of a place's neighbours, and of the features where they count."""
    left = torch.nn.functional.pad(tokens, (1, 0), value=0)[..., :-1]
    below = torch.nn.functional.pad(tokens, (0, 0, 1, 0), value=0)[:, :-1]
    seen = torch.where(drop, 0, features[:, 0, 0].long())[:, None, None]
    place = 7 * torch.arange(tokens.shape[2]) + 11 * torch.arange(tokens.shape[1])[:, None]
    context = left * 5 + below * 3 + tokens + place + 13 * seen
    return ((context[..., None] + 37 * torch.arange(V)) % 101).float() / 32


def guided(batch: int, config: DecodeConfig) -> LogitsFn:
    """The network with guidance as a stage makes it."""
    features = 1.0 + torch.arange(batch)[:, None, None]
    return classifier_free_guidance(network, features, 3.0, guided_steps(config), config.guidance_every)


def test_guidance_is_computed_from_its_step_on_and_used_again_in_between() -> None:
    rows: list[int] = []

    def watched(tokens: Tensor, features: Tensor, drop: Tensor) -> Tensor:
        rows.append(len(tokens))
        return network(tokens, features, drop)

    features = torch.tensor([[[1.0]], [[2.0]]])
    logits_fn = classifier_free_guidance(watched, features, 5.0, range(3, 9), every=3)
    kept, dropped = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    for step in range(1, 11):
        tokens = torch.randint(V + 1, (2, 3, 4), generator=torch.Generator().manual_seed(step))
        seen, unseen = (network(tokens, features, drop) for drop in (kept, dropped))
        if step in (3, 6):
            residual = seen - unseen
        expected = seen + 4 * residual if 3 <= step <= 8 else seen
        assert torch.allclose(logits_fn(tokens, step), expected, atol=1e-5)
    assert rows == [2, 2, 4, 2, 2, 4, 2, 2, 2, 2]


def test_what_guidance_adds_at_the_step_by_which_it_is_settled_serves_all_that_follow() -> None:
    rows: list[int] = []

    def watched(tokens: Tensor, features: Tensor, drop: Tensor) -> Tensor:
        rows.append(len(tokens))
        return network(tokens, features, drop)

    features = torch.tensor([[[1.0]], [[2.0]]])
    logits_fn = classifier_free_guidance(watched, features, 5.0, range(1, 13), settled=3)
    kept, dropped = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    for step in range(1, 13):
        tokens = torch.randint(V + 1, (2, 3, 4), generator=torch.Generator().manual_seed(step))
        seen, unseen = (network(tokens, features, drop) for drop in (kept, dropped))
        if step <= 3:
            residual = seen - unseen
        assert torch.allclose(logits_fn(tokens, step), seen + 4 * residual, atol=1e-5)
    assert rows == [4, 4, 4] + [2] * 9


def test_a_step_that_is_left_out_does_not_lose_its_residual() -> None:
    """Whichever step of a stretch comes first computes it."""
    rows: list[int] = []

    def watched(tokens: Tensor, features: Tensor, drop: Tensor) -> Tensor:
        rows.append(len(tokens))
        return network(tokens, features, drop)

    logits_fn = classifier_free_guidance(watched, torch.ones(1, 1, 1), 5.0, every=4)
    for step in (2, 4, 8, 9, 12):  # of the stretches 1-4, 5-8 and 9-12
        logits_fn(torch.zeros(1, 1, 1).long(), step)
    assert rows == [2, 1, 2, 2, 1]


@st.composite
def tasks(draw: Callable) -> tuple[Tensor, Tensor, DecodeConfig, int]:
    batch, num_codebooks, frames = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    seed = draw(st.integers(0, 2**31))
    begin, end = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    chosen = DecodeConfig(
        num_steps=draw(st.integers(1, 12)),
        mask_temperature=4.5,
        top_k=draw(st.sampled_from([0, 3])),
        guidance_from=begin,
        guidance_until=end,
        guidance_every=draw(st.integers(1, 5)),
        order=draw(st.sampled_from(["confidence", "halton", "random"])),
    )
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (batch, num_codebooks, frames), generator=random)
    # clips that differ in how much they know: some decide nothing where others do
    share = torch.rand(batch, 1, 1, generator=random) ** 3
    return tokens, torch.rand(tokens.shape, generator=random) > share, chosen, seed


@settings(max_examples=60, deadline=None)
@examples(tasks())
def test_a_clip_is_the_same_alone_and_among_others(task: tuple[Tensor, Tensor, DecodeConfig, int]) -> None:
    tokens, known, chosen, seed = task
    batch = len(tokens)
    together = generate(guided(batch, chosen), tokens, known, V, chosen, seeds(*range(seed, seed + batch)))
    assert torch.equal(together[known], tokens[known])
    assert int(together.min()) >= 0
    assert int(together.max()) < V
    features = 1.0 + torch.arange(batch)[:, None, None]
    for n in range(batch):
        one = slice(n, n + 1)
        logits_fn = classifier_free_guidance(
            network, features[one], 3.0, guided_steps(chosen), chosen.guidance_every
        )
        alone = generate(logits_fn, tokens[one], known[one], V, chosen, seeds(seed + n))
        assert torch.equal(alone, together[one])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (4, 250), (3, 7), (12, 50), (5, 1)])
def test_halton_visits_every_place_once_and_evenly(shape: tuple[int, int]) -> None:
    num_codebooks, num_frames = shape
    ranks = halton_ranks(*shape)
    assert sorted(ranks.tolist()) == list(range(num_codebooks * num_frames))
    if shape != (4, 250):
        return
    order = ranks.argsort()
    places = torch.stack([order // num_frames / num_codebooks, order % num_frames / num_frames])

    def discrepancy(points: Tensor) -> float:
        """Largest error of a rectangle at the origin: its share of the points against its area."""
        corners = [(a / 4, b / 25) for a in range(1, 5) for b in range(1, 26)]
        shares = [float(((points[0] < a) & (points[1] < b)).float().mean()) - a * b for a, b in corners]
        return max(map(abs, shares))

    mixed = places[:, torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    for count in (20, 50, 100, 300):
        assert discrepancy(places[:, :count]) < 0.6 * discrepancy(mixed[:, :count])


@pytest.mark.parametrize("order", ["halton", "random"])
def test_places_are_known_before_the_logits(order: str) -> None:
    """Two networks that are sure of other things decide the same places in the same steps."""
    chosen = DecodeConfig(num_steps=6, order=order)  # type: ignore[arg-type]
    tokens = torch.randint(V, (1, 4, 25))
    known = torch.rand(tokens.shape) < 0.3

    def hidden(features: float) -> list[Tensor]:
        seen: list[Tensor] = []

        def watched(tokens: Tensor, step: int = 1) -> Tensor:
            seen.append(tokens == V)
            return network(tokens, torch.full((1, 1, 1), features), torch.zeros(1, dtype=torch.bool))

        generate(watched, tokens, known, V, chosen, seeds(5))
        return seen

    one, other = hidden(1.0), hidden(3.0)
    assert len(one) == len(other) == 6 and all(map(torch.equal, one, other))
    total = int((~known).sum())
    expected = [total, *(math.floor(math.cos(math.pi / 2 * n / 6) * total) for n in range(1, 6))]
    assert [int(step.sum()) for step in one] == expected
    if order == "halton":  # of the places that are not known, those next in the sequence
        ranks = torch.where(known[0].flatten(), 1000, halton_ranks(4, 25))
        for step in one:
            decided = ranks[(~step & ~known).flatten()]
            assert decided.sort().values.equal(ranks.sort().values[: len(decided)])


@pytest.mark.parametrize("order", ["halton", "random"])
def test_tokens_are_drawn_where_they_are_kept_alone(order: str) -> None:
    """One number for each place, after those that make the order."""
    chosen = DecodeConfig(num_steps=5, order=order)  # type: ignore[arg-type]
    tokens, mine, other = torch.zeros(1, 4, 9).long(), *seeds(3, 3)
    generate(guided(1, chosen), tokens, nothing(tokens), V, chosen, [mine])
    if order == "random":
        torch.randperm(36, generator=other)
    totals = [36, *(math.floor(math.cos(math.pi / 2 * n / 5) * 36) for n in range(1, 5)), 0]
    for before, after in pairwise(totals):
        torch.rand(before - after, generator=other)
    assert torch.equal(mine.get_state(), other.get_state())


@pytest.mark.parametrize("changes", OTHERS)
def test_windows_of_a_long_clip_go_on_from_each_other(changes: dict[str, object]) -> None:
    chosen = replace(DecodeConfig(num_steps=4), **changes)  # type: ignore[arg-type]
    tokens, known = torch.randint(V, (2, 25)), torch.zeros(2, 25, dtype=torch.bool)
    known[:, 8:11] = True

    def made(tokens: Tensor) -> Tensor:
        return generate_long(
            lambda start, stop: guided(1, chosen), tokens, known, V, chosen, *seeds(1), window=10, overlap=4
        )

    result = made(tokens)
    assert torch.equal(result[known], tokens[known])
    assert torch.equal(result, made(tokens.where(known, 0)))  # the other tokens do not count


@settings(max_examples=60, deadline=None)
@examples(st.integers(1, 300), st.integers(2, 60), st.data())
def test_a_short_last_window_has_what_it_shares_and_what_is_new(
    total: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    short, full = windows(total, window, overlap, "short"), windows(total, window, overlap)
    assert len(short) == len(full) and short[:-1] == full[:-1] and short[-1][1] == full[-1][1] == total
    for (_, stop), (start, after) in pairwise(short):
        assert start == stop - overlap and after > stop
    if len(full) == 1:
        assert short == full


def test_the_last_window_is_as_short_as_it_is_told() -> None:
    seen: list[tuple[int, int]] = []

    def logits_fn_for(start: int, stop: int) -> LogitsFn:
        seen.append((start, stop))
        return guided(1, DecodeConfig())

    tokens, chosen = torch.zeros(2, 25).long(), DecodeConfig(num_steps=2, last_window="short")
    generate_long(logits_fn_for, tokens, tokens.bool(), V, chosen, *seeds(1), window=10, overlap=4)
    assert seen == [(0, 10), (6, 16), (12, 22), (18, 25)]


def test_the_defaults_are_the_paper_s_and_leave_no_trace() -> None:
    own = DecodeConfig()
    assert [getattr(own, name) for name in LEVERS] == [0, 1, 1, "confidence", "full"]
    assert not set(former_fields(own)) & set(LEVERS)
    changed = replace(own, guidance_from=0.5, order="halton")
    assert former_fields(changed) == former_fields(own) | {"guidance_from": 0.5, "order": "halton"}


def test_a_stage_computes_what_its_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = load_stage(write_model(tmp_path / "model"))
    rows: list[int] = []
    forward = stage.network.forward

    def watched(tokens: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        rows.append(len(tokens))
        return forward(tokens, *others, **named)

    monkeypatch.setattr(stage.network, "forward", watched)
    tokens, features = torch.zeros(2, 100).long(), torch.randn(2, 1280)

    def made(**changes: object) -> tuple[list[int], Tensor]:
        rows.clear()
        chosen = replace(DecodeConfig(num_steps=8), **changes)  # type: ignore[arg-type]
        result = stage.fill(tokens, tokens.bool(), features, chosen, *seeds(1))
        return list(rows), result

    assert made()[0] == [2] * 8
    assert made(guidance_from=0.25)[0] == [1, 1] + [2] * 6
    assert made(guidance_from=0.3)[0] == [1, 1, 1] + [2] * 5  # 2.4 steps must have passed
    assert made(guidance_every=2)[0] == [2, 1] * 4
    assert made(guidance_from=0.5, guidance_every=3)[0] == [1, 1, 1, 1, 2, 1, 1, 2]
    assert made(guidance_until=0.5, guidance_every=2)[0] == [2, 1, 2, 1, 1, 1, 1, 1]
    never, without = made(guidance_from=1.0), made(guidance_scale=1.0)
    assert never[0] == without[0] == [1] * 8 and torch.equal(never[1], without[1])


def test_a_speed_is_a_set_of_fields_and_others_go_over_it() -> None:
    own = replace(PRESETS["vab-tiny"].decode, num_steps=24, order="random")
    assert at_speed(own, None) == own
    paper, fast = at_speed(own, "paper"), at_speed(own, "fast")
    assert paper == replace(DecodeConfig(), guidance_scale=4.0, mask_temperature=4.5)
    assert fast != paper
    for each in (paper, fast):  # what a model sounds like stays its own
        assert (each.guidance_scale, each.mask_temperature) == (own.guidance_scale, own.mask_temperature)
    assert decode_settings(fast, steps=3) == replace(fast, num_steps=3)
    assert at_speed(replace(own, num_steps=2), "fast") == replace(fast, num_steps=2)
    for name, preset in PRESETS.items():
        if name.startswith(("vab-encodec", "vab-dac")) and not name.endswith(("coarse2fine", "student")):
            assert at_speed(preset.decode, "paper") == preset.decode
    with pytest.raises(SettingError, match="speed must be paper or fast or None, not 'quick'"):
        at_speed(own, "quick")  # type: ignore[arg-type]


def test_guidance_that_ends_before_it_begins_is_refused() -> None:
    config = DecodeConfig(num_steps=2, guidance_from=0.5, guidance_until=0.25)
    tokens = torch.zeros(1, 2, 3).long()
    with pytest.raises(SettingError, match="must not end before it begins"):
        generate(lambda tokens, step=1: torch.zeros(1, 2, 3, V), tokens, tokens.bool(), V, config, seeds(0))


def test_foleygen_has_no_levers() -> None:
    own = PRESETS["foleygen-tiny"].decode
    assert at_speed(own, "fast") == at_speed(own, "paper") == own
    tokens = torch.zeros(1, 2, 3).long()
    changed = replace(own, guidance_every=2, order="halton")
    with pytest.raises(SettingError, match="has no guidance_every, order"):
        autoregressive.generate(
            lambda tokens, step=1: torch.zeros(1, 2, V), tokens, tokens.bool(), V, changed, seeds(0)
        )


def test_the_command_line_takes_a_speed_and_the_record_says_what_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip = write_model(tmp_path / "model"), write_video(tmp_path / "clip.mp4", 8, 10)
    own = read_config(model).decode

    def made(*words: object) -> dict[str, object]:
        call = ("generate", clip, "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--json")
        code, out, err = vab(capsys, *call, *words)
        assert code == 0, err
        document = json.loads(out)
        tag = tag_of(tmp_path / "out" / "clip.wav")
        assert tag is not None
        for name in ("steps", *LEVERS):
            assert document["settings"].get(name) == tag.get(name)
        return tag | {"again": document["results"][0]["status"]}

    plain, fast = made(), made("--speed", "fast")
    expected = at_speed(own, "fast")
    assert not set(plain) & set(LEVERS) and plain["steps"] == 4
    assert fast["steps"] == expected.num_steps
    assert {name: fast[name] for name in LEVERS if name in fast} == levers(expected)
    # the same is not made again, at another speed it is; a single setting goes over the set
    assert made("--speed", "fast", "--skip-existing")["again"] == "skipped"
    few = made("--speed", "paper", "--steps", 2, "--skip-existing")
    assert (few["again"], few["steps"]) == ("done", 2) and not set(few) & set(LEVERS)
    pipe = VABPipeline.from_pretrained(model, device="cpu")
    same = pipe.generate(clip, speed="paper", steps=2).made_with
    assert (same["steps"], set(same) & set(LEVERS)) == (2, set())
    code, _, err = vab(capsys, "generate", clip, "-o", tmp_path / "out", "--speed", "quick")
    assert code == 2 and "paper" in err
