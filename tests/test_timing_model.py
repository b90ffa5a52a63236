"""A timing curve as an input: exactly nothing without it, guided with the picture, cut like the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny import write_model, write_video
from helpers.training import MODEL, PRESET
from vab import VABPipeline
from vab.config import DecodeConfig, former_fields, written
from vab.errors import SettingError
from vab.inference.made_with import difference
from vab.models.flops import pass_flops
from vab.models.foleygen import FoleyGen
from vab.models.vab import VAB
from vab.sampling.parallel import classifier_free_guidance, windows
from vab.sampling.stages import Stage, load_stage
from vab.sampling.student import Student
from vab.timing.curve import TimingCurve

TIMED = replace(MODEL, timing=True)


def network(config: object = TIMED, heeds: bool = True) -> VAB:
    """A small network with weights of one seed; its adapter ``heeds`` the curve, or is as at the start."""
    torch.manual_seed(0)
    made = VAB(config).eval()  # type: ignore[arg-type]
    if heeds and made.timing is not None:
        torch.nn.init.normal_(made.timing.out.weight)
    return made


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, features and a curve."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(17, (batch, 2, 20), generator=random)
    features = torch.randn(batch, 2, 8, generator=random)
    timing = torch.rand(batch, 20, 4, generator=random)
    timing[:, :, 2:] = 1.0
    return tokens, features, timing


@torch.no_grad()
def test_without_a_curve_the_network_is_what_it_was() -> None:
    tokens, features, timing = inputs()
    plain, fresh, heeds = network(MODEL), network(heeds=False), network()
    assert "timing" not in " ".join(plain.state_dict())
    same = {n: t for n, t in fresh.state_dict().items() if not n.startswith("timing.")}
    assert same.keys() == plain.state_dict().keys()
    assert all(torch.equal(same[name], value) for name, value in plain.state_dict().items())
    wanted = plain(tokens, features)
    assert torch.equal(fresh(tokens, features), wanted) and torch.equal(heeds(tokens, features), wanted)
    # an adapter that has learned nothing, and a curve that says nothing
    assert torch.equal(fresh(tokens, features, timing=timing), wanted)
    unknown = timing.clone()
    unknown[:, :, 2:] = 0.0
    assert torch.equal(heeds(tokens, features, timing=unknown), wanted)


@torch.no_grad()
def test_a_curve_acts_around_what_it_says() -> None:
    tokens, features, timing = inputs()
    heeds = network(replace(TIMED, num_layers=0, num_expert_layers=0))  # no attention: places stay apart
    timing[:, :10] = 0.0
    changed = (heeds(tokens, features, timing=timing) != heeds(tokens, features)).any(-1).any(1)
    assert torch.equal(changed, (torch.arange(20) >= 10).expand(2, -1))


def test_who_takes_no_curve_says_so_in_a_line() -> None:
    tokens, features, timing = inputs()
    with pytest.raises(SettingError, match="this model takes no timing curve"):
        network(MODEL)(tokens, features, timing=timing)
    with pytest.raises(ValueError, match="the timing curve is"):
        network()(tokens, features, timing=timing[:, :5])
    baseline = replace(MODEL, num_expert_layers=0)
    with pytest.raises(SettingError, match="FoleyGen takes no timing curve"):
        FoleyGen(replace(baseline, timing=True))
    with pytest.raises(SettingError, match="takes no timing curve"):
        FoleyGen(baseline)(tokens.clamp(max=15), features, timing=timing)


def test_the_adapter_is_counted_apart_from_the_trunk() -> None:
    counts = [VAB(config).parameter_counts() for config in (MODEL, TIMED)]
    adapter = 4 * 64 * 9 + 64 + 64 * 32 + 32
    assert counts[1]["parameters"] - counts[0]["parameters"] == adapter
    assert counts[1]["expert_parameters"] == counts[0]["expert_parameters"]
    assert pass_flops(TIMED, 2, 20) - pass_flops(MODEL, 2, 20) == 20 * 2 * 64 * (9 * 4 + 32)


def test_fields_at_their_defaults_are_not_written() -> None:
    assert "timing" not in written(MODEL) and written(TIMED)["timing"] is True
    own = DecodeConfig()
    assert "timing_scale" not in {**written(own), **former_fields(own)}
    assert former_fields(replace(own, timing_scale=5.0)) == former_fields(own) | {"timing_scale": 5.0}
    assert written(replace(PRESET, model=TIMED))["model"]["timing"] is True


FEATURES, CURVE = torch.tensor([[[1.0]], [[2.0]]]), torch.full((2, 3, 4), 0.5)


def sums(watched: list[int]) -> Callable[..., Tensor]:
    """A network whose logits say what it sees: 10 for the picture, the sum of the curve; and its rows."""

    def model_fn(tokens: Tensor, features: Tensor, drop: Tensor, timing: Tensor | None = None) -> Tensor:
        watched.append(len(tokens))
        seen = 10 * features[:, 0, 0] * ~drop
        if timing is not None:
            seen = seen + timing.flatten(1).sum(1)
        return seen[:, None, None, None].expand(-1, 1, 1, 2)

    return model_fn


@pytest.mark.parametrize(
    ("scale", "own", "wanted", "kinds"),
    [
        (4.0, 0.0, lambda v, m: 4 * (v + m), 2),
        (1.0, 0.0, lambda v, m: v + m, 1),
        (4.0, 6.0, lambda v, m: 4 * v + 6 * m, 3),
        (4.0, 4.0, lambda v, m: 4 * (v + m), 2),
        (1.0, 3.0, lambda v, m: v + 3 * m, 2),
    ],
)
def test_guidance_covers_picture_and_curve(
    scale: float, own: float, wanted: Callable[[float, float], float], kinds: int
) -> None:
    rows: list[int] = []
    guide = classifier_free_guidance(sums(rows), FEATURES, scale, timing=CURVE, timing_scale=own)
    logits = guide(torch.zeros(2, 1, 1).long())[:, 0, 0, 0]
    assert logits.tolist() == pytest.approx([wanted(10.0, 6.0), wanted(20.0, 6.0)])
    assert rows == [2 * kinds]
    # without a curve its scale does nothing
    plain = classifier_free_guidance(sums(rows), FEATURES, scale, timing_scale=own)
    assert plain(torch.zeros(2, 1, 1).long())[:, 0, 0, 0].tolist() == pytest.approx([10 * scale, 20 * scale])


def test_the_guided_part_of_the_steps_is_that_of_the_curve_too() -> None:
    rows: list[int] = []
    guide = classifier_free_guidance(
        sums(rows), FEATURES, 4.0, range(2, 5), every=2, timing=CURVE, timing_scale=6.0
    )
    said = [guide(torch.zeros(2, 1, 1).long(), step)[0, 0, 0, 0].item() for step in range(1, 7)]
    assert said == pytest.approx([16, 76, 76, 76, 16, 16])
    assert rows == [2, 6, 2, 6, 2, 2]


@torch.no_grad()
def test_a_student_s_teacher_is_told_the_curve_and_guided_by_it() -> None:
    tokens, features, timing = inputs()
    teacher, student = network(), Student(TIMED)
    settings = replace(PRESET, model=TIMED, decode=DecodeConfig(guidance_scale=3.0))
    student.taught_by = (Stage(teacher, settings),)
    dropped = torch.tensor([False, True])
    found = student.teacher_logits(tokens, features, dropped, timing)
    c = teacher(tokens, features, drop_features=dropped, timing=timing)
    u = teacher(tokens, features, drop_features=torch.ones(2, dtype=torch.bool))
    assert torch.allclose(found, u + 3 * (c - u), atol=1e-4)


@given(st.integers(1, 400), st.integers(2, 60), st.data(), st.sampled_from(["full", "short"]))
def test_windows_begin_at_cuts_and_span_none_where_it_can_be_avoided(
    total: int, window: int, data: st.DataObject, last: str
) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    cuts = data.draw(st.lists(st.integers(-5, total + 5), max_size=5))
    shortest = data.draw(st.integers(1, 40))
    spans = windows(total, window, overlap, last, cuts, shortest)  # type: ignore[arg-type]
    assert spans[0][0] == 0 and spans[-1][1] == total
    assert all(0 < stop - start <= window for start, stop in spans)
    assert all(after <= stop for (_, stop), (after, _) in pairwise(spans))  # nothing is left out
    begins = {start for start, _ in spans}
    joints = [0, *(start for (_, stop), (start, _) in pairwise(spans) if start == stop), total]
    if overlap:  # else all windows share nothing
        assert set(joints[1:-1]) <= set(cuts)
        assert all(b - a >= min(shortest, total) for a, b in pairwise(joints))
    for cut in cuts:
        far = all(abs(cut - other) >= shortest for other in (0, total, *(c for c in cuts if c != cut)))
        if far and 0 < cut < total:
            assert cut in begins and not any(start < cut < stop for start, stop in spans)
    assert windows(total, window, overlap, last, (), shortest) == windows(total, window, overlap, last)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("timed"), fine=True, timing=True)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> VABPipeline:
    return VABPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 45, 10)


def curve(seconds: float = 4.5, at: float = 1.0) -> TimingCurve:
    return TimingCurve.from_events(
        [at], round(50 * seconds), level=np.linspace(-1.5, 1.5, round(50 * seconds))
    )


def test_a_stage_cuts_the_curve_like_the_features(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = load_stage(folder)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    forward = stage.network.forward

    def watched(tokens: Tensor, features: Tensor, **named: Tensor) -> Tensor:
        seen.append((features, named["drop_features"], named["timing"]))
        return forward(tokens, features, **named)

    monkeypatch.setattr(stage.network, "forward", watched)
    tokens, known = torch.zeros(2, 250).long(), torch.zeros(2, 250, dtype=torch.bool)
    features, timing = torch.arange(5.0)[:, None].expand(5, 1280) + 1, torch.rand(250, 4)

    def spans(cuts: tuple[int, ...] = ()) -> list[tuple[int, int, list[int]]]:
        """Where each window begins and ends, and the numbers of the features that it sees."""
        seen.clear()
        one = replace(stage.preset.decode, num_steps=1, guidance_scale=3.0)
        stage.fill(tokens, known, features, one, torch.Generator().manual_seed(0), timing=timing, cuts=cuts)
        found = []
        for pictures, drop, told in seen:
            (start,) = (n for n in range(250) if torch.equal(timing[n : n + told.shape[1]], told[0]))
            assert drop.tolist() == [False, True] and not told[1].any()
            found.append((start, start + told.shape[1], [int(number - 1) for number in pictures[0, :, 0]]))
        return found

    assert spans() == [(0, 100, [0, 1]), (50, 150, [1, 2]), (100, 200, [2, 3]), (150, 250, [3, 4])]
    # windows begin anew at a cut, to the frame, and see no picture of the shot before; one at the end is none
    assert spans((110, 240)) == [(0, 100, [0, 1]), (10, 110, [0, 1]), (110, 210, [3, 4]), (150, 250, [3, 4])]
    assert spans((120,))[-1] == (150, 250, [3, 4]) and spans((130,))[-2:] == [
        (130, 230, [3, 4]),
        (150, 250, [3, 4]),
    ]
    # features that are given window by window are the same
    given = spans((110, 240))
    whole, features = features, lambda first, last: whole[first:last]  # type: ignore[assignment]
    assert spans((110, 240)) == given


def test_a_curve_is_guided_up_to_the_last_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = load_stage(folder)
    rows: list[int] = []
    forward = stage.network.forward

    def watched(tokens: Tensor, *others: Tensor, **named: Tensor) -> Tensor:
        rows.append(len(tokens))
        return forward(tokens, *others, **named)

    monkeypatch.setattr(stage.network, "forward", watched)
    tokens, features = torch.zeros(2, 100).long(), torch.randn(2, 1280)

    def passes(timing: Tensor | None, **changes: float) -> list[int]:
        rows.clear()
        chosen = replace(DecodeConfig(num_steps=8, guidance_scale=3.0), **changes)  # type: ignore[arg-type]
        noise = torch.Generator().manual_seed(0)
        stage.fill(tokens, tokens.bool(), features, chosen, noise, timing=timing)
        return list(rows)

    told = torch.rand(100, 4)
    assert passes(None, guidance_until=0.25) == [2, 2] + [1] * 6
    # with a curve up to the last step, beyond that quarter by what its last step computed: no row is more
    assert passes(told, guidance_until=0.25) == [2, 2] + [1] * 6 and passes(told) == [2] * 8
    # that alone: when it begins, and how often, is as it was set
    assert passes(told, guidance_from=0.25, guidance_until=0.5) == [1, 1, 2, 2, 1, 1, 1, 1]
    assert passes(told, guidance_every=2) == [2, 1] * 4
    assert passes(told, guidance_until=0.5, guidance_every=2) == [2, 1, 2] + [1] * 5
    assert passes(told, guidance_until=0.0) == passes(None, guidance_until=0.0) == [1] * 8


def test_a_curve_leads_the_sound_and_none_leaves_it(pipe: VABPipeline, clip: Path) -> None:
    plain, led = pipe.generate(clip, seed=3), pipe.generate(clip, seed=3, timing=curve())
    assert not np.array_equal(plain.waveform, led.waveform)
    assert np.array_equal(led.waveform, pipe.generate(clip, seed=3, timing=curve()).waveform)
    other = pipe.generate(clip, seed=3, timing=curve(at=2.0))
    assert not np.array_equal(other.waveform, led.waveform)
    # the settings say which it was, and nothing where there was none
    assert "timing" not in plain.made_with and led.made_with["timing"] == f"curve#{curve().fingerprint}"
    assert difference(other.made_with, led.made_with) == "made anew: it was made with another timing"
    # a curve may be shorter than the clip, or longer
    short, long = (pipe.generate(clip, seed=3, timing=curve(seconds)) for seconds in (0.3, 9.0))
    assert len(short.waveform) == len(long.waveform) == len(plain.waveform)


def test_a_curve_goes_with_keep_samples_rerank_and_lists(pipe: VABPipeline, clip: Path) -> None:
    led = pipe.generate(clip, seed=3, timing=curve())
    first, second = pipe.generate_many(clip, 2, seed=3, timing=curve())
    assert np.array_equal(first.waveform, led.waveform)
    assert not np.array_equal(second.waveform, led.waveform)
    kept = pipe.generate(clip, seed=3, timing=curve(), keep=[(1.0, 2.5)], loudness=None)
    whole = pipe.generate(clip, seed=3, keep=[(1.0, 2.5)], loudness=None)
    assert np.array_equal(kept.waveform[16000:40000], whole.waveform[16000:40000])
    assert not np.array_equal(kept.waveform, whole.waveform)
    ranked = pipe.generate(clip, seed=3, timing=curve(), rerank=2)
    assert ranked.tokens.shape == led.tokens.shape
    both = pipe.generate([clip, clip], seed=3, timing=curve())
    assert all(np.array_equal(each.waveform, led.waveform) for each in both)


def test_both_stages_are_told(pipe: VABPipeline, clip: Path) -> None:
    """The second one's own share: for the same coarse tokens, other fine ones."""
    assert pipe.fine is not None and pipe.fine.preset.model.timing
    coarse = torch.randint(32, (2, 100), generator=torch.Generator().manual_seed(0))
    tokens, known = torch.zeros(5, 100).long(), torch.zeros(5, 100, dtype=torch.bool)
    timing, features = torch.from_numpy(curve(2.0).channels()), torch.randn(2, 1280)

    def refined(stage: Stage, told: Tensor | None) -> Tensor:
        noise = torch.Generator().manual_seed(1)
        return stage.refine(coarse, tokens, known, features, noise, timing=told)

    assert not torch.equal(refined(pipe.fine, timing), refined(pipe.fine, None))
    # one that is told none does without
    untold = replace(pipe.fine.preset, model=replace(pipe.fine.preset.model, timing=False))
    torch.manual_seed(0)
    stage = Stage(VAB(untold.model).eval(), untold)
    assert torch.equal(refined(stage, timing), refined(stage, None))


def test_a_model_without_refuses_a_curve_before_it_looks(tmp_path: Path) -> None:
    plain = VABPipeline.from_pretrained(write_model(tmp_path / "plain"), device="cpu")
    for source in ("absent.mp4", tmp_path):
        with pytest.raises(SettingError, match="test takes no timing curve: it was trained without one"):
            plain.generate(source, timing=curve())
