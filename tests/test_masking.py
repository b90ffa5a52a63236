"""Masking laws, the decoding schedule, and the augmentations of appendix B.3."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vab.config import TrainConfig
from vab.sampling.parallel import num_masked_after
from vab.training.augment import (
    Augmentation,
    Stream,
    augment,
    draw_crop,
    draw_mixup,
    draw_roll,
    drop_features,
    random_crop,
    temporal_mixup,
    temporal_roll,
)
from vab.training.masking import apply_mask, sample_mask_ratio, sample_token_mask


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- masking ---


def test_ratio_law_is_the_papers() -> None:
    ratio = sample_mask_ratio(200_000, TrainConfig(), make_generator())
    assert ratio.mean().item() == pytest.approx(0.694, abs=0.002)
    assert ratio.std().item() == pytest.approx(0.129, abs=0.002)
    quartiles = ratio.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert quartiles == pytest.approx([0.586, 0.676, 0.787], abs=0.003)


@pytest.mark.parametrize("mean", [0.35, 0.55, 0.75])
def test_ratio_law_is_a_truncated_normal(mean: float) -> None:
    """The share below any point is that of the normal law between the cuts."""
    config = replace(TrainConfig(), mask_mean=mean)
    ratio = sample_mask_ratio(100_000, config, make_generator(1))
    assert ratio.min() >= 0.5
    assert ratio.max() <= 1.0
    normal = torch.distributions.Normal(mean, 0.25)
    low, high = normal.cdf(torch.tensor(0.5)), normal.cdf(torch.tensor(1.0))
    for point in (0.55, 0.65, 0.8, 0.95):
        expected = (normal.cdf(torch.tensor(point)) - low) / (high - low)
        assert (ratio < point).float().mean().item() == pytest.approx(expected.item(), abs=0.006)


@settings(deadline=None)
@given(
    ratio=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    num_codebooks=st.integers(1, 5),
    frames=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_token_mask_hides_some_and_never_what_is_given(
    ratio: list[float], num_codebooks: int, frames: int, seed: int, data: st.DataObject
) -> None:
    num_conditioning_codebooks = data.draw(st.integers(0, num_codebooks - 1))
    mask = sample_token_mask(
        torch.tensor(ratio), num_codebooks, frames, make_generator(seed), num_conditioning_codebooks
    )
    assert mask.shape == (len(ratio), num_codebooks, frames)
    assert mask.dtype == torch.bool
    assert mask.flatten(1).any(1).all()
    assert not mask[:, :num_conditioning_codebooks].any()
    again = sample_token_mask(
        torch.tensor(ratio), num_codebooks, frames, make_generator(seed), num_conditioning_codebooks
    )
    assert torch.equal(mask, again)


def test_token_mask_draws_each_token_on_its_own_at_its_clips_ratio() -> None:
    ratio = torch.tensor([0.2, 0.5, 0.9])
    mask = sample_token_mask(ratio, 4, 20_000, make_generator()).float()
    for b, expected in enumerate(ratio.tolist()):
        assert mask[b].mean(1).tolist() == pytest.approx([expected] * 4, abs=0.015)
        between = torch.corrcoef(mask[b])  # codebooks do not follow one another
        assert (between - torch.eye(4)).abs().max() < 0.03
        next_in_time = torch.corrcoef(torch.stack([mask[b, 0, 1:], mask[b, 0, :-1]]))[0, 1]
        assert abs(next_in_time) < 0.03


def test_token_mask_at_the_ends() -> None:
    mask = sample_token_mask(torch.tensor([0.0, 1.0]), 3, 7, make_generator())
    assert mask.flatten(1).sum(1).tolist() == [1, 21]


def test_apply_mask() -> None:
    tokens = torch.tensor([[[1, 2], [3, 4]]])
    mask = torch.tensor([[[True, False], [False, True]]])
    assert apply_mask(tokens, mask, 9).tolist() == [[[9, 2], [3, 9]]]
    assert tokens.tolist() == [[[1, 2], [3, 4]]]


def test_cosine_schedule_by_hand() -> None:
    assert [num_masked_after(n, 4, 2000) for n in range(5)] == [2000, 1847, 1414, 765, 0]
    assert num_masked_after(2, 3, 10) == 5
    assert num_masked_after(83, 83, 1) == 0  # where pi / 2 * 83 / 83 is rounded to more than pi / 2


@given(steps=st.integers(1, 100), total=st.integers(0, 50_000))
def test_cosine_schedule_goes_from_all_to_none(steps: int, total: int) -> None:
    left = [num_masked_after(n, steps, total) for n in range(steps + 1)]
    assert left[0] == total
    assert left[-1] == 0
    assert left == sorted(left, reverse=True)


# --- augmentation: each latent says which clip and which second it came from ---

FPS = 1.0


def streams(tokens: Tensor, features: Tensor) -> tuple[Stream, Stream]:
    """Whole clips: every frame is the clip's own."""
    number = torch.arange(1, len(tokens) + 1)[:, None]
    owners = (number.expand(-1, tokens.shape[2]), number.expand(-1, features.shape[1]))
    return Stream(tokens, owners[0], 2), Stream(features, owners[1], 1)


def marked(batch: int = 4, seconds: int = 5, fps: float = FPS) -> tuple[Stream, Stream]:
    """tokens [B,2,T] = 1000 * clip + audio frame; features [B,F,3] = 1000 * clip + video frame."""
    clip = torch.arange(batch)[:, None] * 1000
    tokens = (clip + torch.arange(50 * seconds))[:, None].expand(-1, 2, -1)
    features = (clip + torch.arange(round(fps * seconds)))[:, :, None].expand(-1, -1, 3).float()
    return streams(tokens.clone(), features.clone())


Streams = tuple[Stream, Stream | None]


def mixed_up(audio: Stream, video: Stream | None, fps: float, seed: int = 0) -> Streams:
    """Every clip goes on as another one."""
    n, frames = audio.owners.shape
    return temporal_mixup(audio, video, *draw_mixup(n, 1.0, frames, make_generator(seed)), fps)


def rolled_round(audio: Stream, video: Stream | None, fps: float, seed: int = 0) -> Streams:
    """Every clip is rolled."""
    return temporal_roll(audio, video, draw_roll(len(audio.owners), 1.0, make_generator(seed)), fps)


def augmented(audio: Stream, video: Stream | None, config: TrainConfig, seed: int = 0) -> Streams:
    """As ``config`` says."""
    n, frames = audio.owners.shape
    return augment(audio, video, Augmentation.draw(n, config, frames, FPS, make_generator(seed)), FPS)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), batch=st.integers(2, 6), fps=st.sampled_from([1.0, 2.0, 5.0]))
def test_mixup_splices_sound_and_picture_at_one_time(seed: int, batch: int, fps: float) -> None:
    audio, video = marked(batch, fps=fps)
    mixed, pictures = mixed_up(audio, video, fps, seed)
    assert pictures is not None
    for b in range(batch):
        source = mixed.values[b, 0] // 1000
        point, other = int((source == b).sum()), int(source[-1])
        assert other != b
        assert 0 < point < 250
        assert torch.equal(mixed.owners[b], source + 1)
        assert source.tolist() == [b] * point + [other] * (250 - point)
        assert torch.equal(mixed.values[b] % 1000, audio.values[b] % 1000)  # time goes on
        for f, picture in enumerate(pictures.values[b, :, 0].int().tolist()):
            shown_at = (f + 0.5) * 50 / fps
            assert picture == 1000 * (b if shown_at < point else other) + f
            assert pictures.owners[b, f] == picture // 1000 + 1


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), fps=st.sampled_from([1.0, 2.0, 5.0]))
def test_roll_keeps_sound_and_picture_together(seed: int, fps: float) -> None:
    audio, video = marked(fps=fps)
    rolled, pictures = rolled_round(audio, video, fps, seed)
    assert pictures is not None
    per_picture = round(50 / fps)
    for b in range(len(audio.values)):
        turn = int(pictures.values[b, :, 0].argmin())
        assert turn > 0
        torch.testing.assert_close(pictures.values[b], video.values[b].roll(turn, 0))
        assert torch.equal(rolled.values[b], audio.values[b].roll(turn * per_picture, 1))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), fps=st.sampled_from([1.0, 2.0, 5.0]), seconds=st.integers(1, 7))
def test_a_crop_starts_with_a_picture(seed: int, fps: float, seconds: int) -> None:
    audio, video = marked(fps=fps)
    lengths, begin = draw_crop(len(audio.owners), float(seconds), 250, fps, make_generator(seed))
    cropped, pictures = random_crop(audio, video, lengths, begin, fps)
    assert pictures is not None
    kept = min(seconds, 5)
    assert cropped.values.shape[2] == 50 * kept
    assert pictures.values.shape[1] == round(fps * kept)
    for b in range(len(audio.values)):
        first = round(pictures.values[b, 0, 0].item()) - round(video.values[b, 0, 0].item())
        assert torch.equal(pictures.values[b], video.values[b, first : first + pictures.values.shape[1]])
        begin = first * round(50 / fps)
        assert torch.equal(cropped.values[b], audio.values[b, :, begin : begin + 50 * kept])


def test_crops_of_a_batch_differ_and_move_with_the_preset() -> None:
    audio, video = marked(64)
    whole, _ = augmented(audio, video, replace(TrainConfig(), mixup_prob=0.0, roll_prob=0.0))
    assert torch.equal(whole.values, audio.values)
    cut = replace(TrainConfig(), crop_seconds=1.0, mixup_prob=0.0, roll_prob=0.0)
    part, _ = augmented(audio, video, cut)
    assert part.values.shape == (64, audio.values.shape[1], 50)
    assert len({row for row in (part.values[:, 0, 0] - audio.values[:, 0, 0]).tolist()}) == 5


def test_augmentation_without_pictures() -> None:
    audio, _ = marked()
    rolled, none = rolled_round(audio, None, FPS)
    assert none is None
    turns = [int(row.argmin()) for row in rolled.values[:, 0]]
    assert any(turn % 50 for turn in turns)
    for b, turn in enumerate(turns):
        assert torch.equal(rolled.values[b], audio.values[b].roll(turn, 1))
    assert mixed_up(audio, None, FPS)[1] is None


@given(seed=st.integers(0, 2**31), real=st.integers(0, 60))
def test_a_short_sound_rolls_within_itself(seed: int, real: int) -> None:
    tokens = torch.zeros(3, 2, 60, dtype=torch.long)
    tokens[:, :, :real] = torch.arange(1, real + 1)
    owners = (torch.arange(60) < real).long().expand(3, -1)
    rolled, _ = rolled_round(Stream(tokens, owners, 2), None, FPS, seed)
    assert torch.equal(rolled.owners, owners)
    for row in rolled.values:
        turn = int(row[0, :real].argmin()) if real else 0
        assert torch.equal(row[:, :real], tokens[0, :, :real].roll(turn, 1))
        assert (turn > 0) == (real > 1)
        assert not row[:, real:].any()


@given(batch=st.integers(1, 5))
def test_chance_zero_changes_nothing(batch: int) -> None:
    audio, video = marked(batch)
    kept, pictures = augmented(audio, video, replace(TrainConfig(), mixup_prob=0.0, roll_prob=0.0))
    assert pictures is not None
    assert torch.equal(kept.values, audio.values)
    assert torch.equal(pictures.values, video.values)


def test_one_clip_or_one_picture_alone_is_left_as_it_is() -> None:
    audio, video = marked(batch=1)
    mixed, _ = mixed_up(audio, video, FPS)
    assert torch.equal(mixed.values, audio.values)
    audio, video = marked(seconds=1)
    rolled, _ = rolled_round(audio, video, FPS)
    assert torch.equal(rolled.values, audio.values)


def test_chances_are_those_of_the_configuration() -> None:
    config = TrainConfig()
    audio, video = marked(batch=4000)
    out, _ = augmented(audio, video, config, 3)
    share = (out.values[:, 0] // 1000 == torch.arange(4000)[:, None]).float().mean(1)
    mixed = share < 1
    assert mixed.float().mean().item() == pytest.approx(config.mixup_prob, abs=0.03)
    rolled = (out.values[:, 0] % 1000).argmin(1) != 0
    assert rolled.float().mean().item() == pytest.approx(config.roll_prob, abs=0.02)
    dropped = drop_features(4000, config.cond_drop_prob, make_generator(4))
    assert dropped.float().mean().item() == pytest.approx(config.cond_drop_prob, abs=0.02)
    assert share[mixed].mean().item() == pytest.approx(0.5, abs=0.02)
    assert share[mixed].min() >= 1 / 250


def test_augmentation_repeats_with_its_seed() -> None:
    audio, video = marked(batch=16)
    config = replace(TrainConfig(), roll_prob=0.5)
    first, again, other = (augmented(audio, video, config, s)[0].values for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
