"""The small codec: its interface, its texture, and how it is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from helpers.codecs import BRIEF, SMALL, tones, train_brief
from helpers.forked import Forked
from vab.codecs.codec import load_codec
from vab.codecs.tiny import TinyCodec, hertz_mel_filters, viterbi_quantize
from vab.config import HOP_LENGTH, SAMPLE_RATE
from vab.data.extraction.encoding import weights_fingerprint
from vab.errors import TrainError
from vab.training.checkpoint import checkpoints
from vab.training.codec.train import energy_distance, excerpts, fit_codes, train_codec
from vab.utils.locks import LockedError, exclusive


@pytest.fixture(scope="module")
def codec() -> TinyCodec:
    """A small codec with fitted codes and an untrained decoder."""
    torch.manual_seed(0)
    made = TinyCodec(SMALL)
    fit_codes(made, tones(), BRIEF)
    return made.eval()


@settings(max_examples=15)
@given(samples=st.integers(1, 5000), batch=st.integers(1, 3))
def test_lengths(codec: TinyCodec, samples: int, batch: int) -> None:
    tokens = codec.encode(torch.randn(batch, samples))
    frames = -(-samples // HOP_LENGTH)
    assert tokens.shape == (batch, 3, frames)
    assert tokens.min() >= 0 and tokens.max() < 32
    assert codec.decode(tokens).shape == (batch, HOP_LENGTH * frames)


def test_the_waveform_is_a_function_of_the_tokens(codec: TinyCodec) -> None:
    tokens = torch.randint(32, (3, 3, 20), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    together = codec.decode(tokens)
    torch.manual_seed(6)
    alone = torch.cat([codec.decode(clip[None]) for clip in tokens])
    assert torch.equal(together, alone)


def test_without_hold_codes_are_the_nearest_vectors_of_what_is_left(codec: TinyCodec) -> None:
    waveform = torch.from_numpy(tones()["tone"][0][None, : 40 * HOP_LENGTH] / 32768.0).float()
    rest = codec.analyse(waveform)[0]
    vectors = codec.codebook_vectors()
    expected = []
    for table in vectors:
        nearest = torch.cdist(rest, table).argmin(1)
        rest = rest - table[nearest]
        expected.append(nearest)
    free = TinyCodec(replace(SMALL, hold=0.0))
    free.load_state_dict(codec.state_dict())
    assert torch.equal(free.encode(waveform)[0], torch.stack(expected))


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), hold=st.floats(0.0, 6.0), frames=st.integers(1, 5))
def test_lasting_codes_are_the_cheapest_of_all(seed: int, hold: float, frames: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    points, centres = torch.randn(2, frames, 2, generator=draw), torch.randn(3, 2, generator=draw)

    def cost(way: torch.Tensor, clip: torch.Tensor) -> float:
        changes = (way[1:] != way[:-1]).sum()
        return float((clip - centres[way]).square().sum() + hold * changes)

    for clip, found in zip(points, viterbi_quantize(points, centres, hold), strict=True):
        ways = torch.cartesian_prod(*[torch.arange(3)] * frames).view(-1, frames)
        assert cost(found, clip) == pytest.approx(min(cost(way, clip) for way in ways), abs=1e-4)


def test_hold_makes_codes_last(codec: TinyCodec) -> None:
    noise = torch.from_numpy(tones()["noise"][0][None, : 45 * HOP_LENGTH] / 32768.0).float()
    frames = codec.analyse(noise)
    first = codec.vectors[0]
    changes = [
        int((c := viterbi_quantize(frames, first, hold))[:, 1:].ne(c[:, :-1]).sum()) for hold in (0, 10, 1000)
    ]
    assert changes[0] > 2 * changes[1] and changes[1] >= changes[2]
    assert viterbi_quantize(frames, first, 1e9).unique().numel() == 1


def test_the_shipped_codec_has_the_tokens_that_it_had() -> None:
    shipped = weights_fingerprint(load_codec("tiny"))
    assert shipped == "9e005114dfa39e282832ffbd55dbee961f8ef3066d8942a0328abc5bdbe15ca0"


def test_tokens_of_another_hold_are_other_latents(codec: TinyCodec) -> None:
    other = TinyCodec(replace(SMALL, hold=1.0))
    other.load_state_dict(codec.state_dict())
    assert weights_fingerprint(other) != weights_fingerprint(codec)


def test_more_codebooks_leave_less(codec: TinyCodec) -> None:
    frames = codec.analyse(torch.from_numpy(tones()["tone"][1][None] / 32768.0).float()[:, : 45 * HOP_LENGTH])
    codes = codec.quantise(frames)
    left = [frames.square().mean()]
    left += [(frames - codec.dequantise(codes[:, :k])).square().mean() for k in (1, 2, 3)]
    assert left == sorted(left, reverse=True) and left[-1] < 0.5 * left[0]


def test_the_first_codebooks_will_do(codec: TinyCodec) -> None:
    tokens = torch.randint(32, (1, 3, 20), generator=torch.Generator().manual_seed(1))
    coarse, whole = codec.decode(tokens[:, :2]), codec.decode(tokens)
    assert coarse.shape == whole.shape and not torch.equal(coarse, whole)


def test_griffin_lim_keeps_magnitudes(codec: TinyCodec) -> None:
    """True magnitudes come back as a waveform that has nearly the same ones."""
    waveform = torch.from_numpy(tones()["tone"][1][None, : 48 * HOP_LENGTH] / 32768.0).float()
    magnitude = codec.spectrogram(waveform).abs()
    back = codec.griffin_lim(magnitude, torch.zeros_like(magnitude).to(torch.complex64))
    error = (codec.spectrogram(back).abs() - magnitude).norm() / magnitude.norm()
    assert error < 0.2


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 5), (1, 127), (1, 130), (2, 300)])
def test_griffin_lim_has_the_bits_of_istft_and_stft(codec: TinyCodec, batch: int, length: int) -> None:
    """As it stood in version 0.1.0, for fewer frames than a window reaches, one part of them and several."""
    c = codec.config
    random = torch.Generator().manual_seed(length)
    tone = torch.rand(batch, 2 * length, c.bins, generator=random)
    noise = torch.randn(batch, 2 * length, c.bins, generator=random, dtype=torch.complex64)
    magnitude = torch.nn.functional.pad((tone + noise).abs(), (0, 0, 0, 1)).transpose(1, 2)
    turns = torch.arange(c.bins)[:, None] * torch.arange(2 * length) * c.hop_length % c.window
    running = torch.polar(tone, (turns.T * (2.0 * np.pi / c.window)).float().expand_as(tone))
    spectrum = torch.nn.functional.pad(running + noise, (0, 0, 0, 1)).transpose(1, 2)
    previous = torch.zeros_like(spectrum)
    for _ in range(c.iterations + 1):
        spectrum = (magnitude * spectrum).div_(spectrum.abs().add_(1e-9))
        size = c.window, c.hop_length
        waveform = torch.istft(spectrum, *size, window=codec.hann, length=length * HOP_LENGTH)
        rebuilt = codec._stft(waveform)
        spectrum = torch.sub(rebuilt, previous, alpha=0.5)
        previous = rebuilt
    assert torch.equal(codec.griffin_lim(tone, noise), waveform)


def test_draws_differ_in_noise_only(codec: TinyCodec) -> None:
    frames = codec.analyse(torch.randn(2, 20 * HOP_LENGTH))
    tone, noise = codec.synthesise(frames, torch.Generator().manual_seed(0), draws=2)
    assert tone.shape == noise.shape == (4, 40, 513)
    assert not torch.equal(noise[:2], noise[2:])


def test_round_trip_on_disk(codec: TinyCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    read = load_codec("tiny", tmp_path)
    assert isinstance(read, TinyCodec) and read.config == SMALL
    tokens = torch.randint(32, (1, 3, 30), generator=torch.Generator().manual_seed(2))
    assert (read.decode(tokens) - codec.decode(tokens)).abs().max() < 0.05 * codec.decode(tokens).abs().max()
    assert torch.allclose(read.codebook_vectors(), codec.codebook_vectors(), rtol=1e-3, atol=1e-2)
    again = TinyCodec.from_pretrained(tmp_path)
    assert torch.equal(again.decode(tokens), read.decode(tokens))


def test_weights_of_another_shape_are_refused(codec: TinyCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path)
    text = (tmp_path / "codec.json").read_text()
    (tmp_path / "codec.json").write_text(text.replace('"decoder_layers": 1', '"decoder_layers": 2'))
    with pytest.raises(ValueError, match="not of this codec"):
        TinyCodec.from_pretrained(tmp_path)


def test_mel_filters_are_triangles_that_cover_everything() -> None:
    filters = hertz_mel_filters(40, 1024)
    assert filters.shape == (513, 40) and filters.min() == 0 and filters.max() <= 1
    inside = filters[4:-40].sum(1)
    assert (inside > 0.5).all() and (inside < 1.01).all()


def test_energy_distance_is_least_for_the_distribution() -> None:
    """Draws from the target's own law beat the constant that is best for a plain distance."""
    generator = torch.Generator().manual_seed(0)
    target, first, second = torch.randn(3, 20_000, generator=generator)
    median = torch.zeros_like(target)
    of_law = energy_distance([target], [first], [second])
    of_median = energy_distance([target], [median], [median])
    assert of_law < of_median - 0.3
    assert (target - median).abs().mean() < (target - first).abs().mean()  # a plain distance prefers it
    exact = 2 / np.sqrt(np.pi)  # E|x - y| of two standard normals
    assert of_law.item() == pytest.approx(exact, rel=0.03)


def test_excerpts_depend_on_seed_and_step_alone() -> None:
    sounds = tones(0.3)
    assert torch.equal(excerpts(sounds, BRIEF, 3), excerpts(sounds, BRIEF, 3))
    assert not torch.equal(excerpts(sounds, BRIEF, 3), excerpts(sounds, BRIEF, 4))
    batch = excerpts(sounds, BRIEF, 5)
    assert batch.shape == (4, SAMPLE_RATE) and batch.abs().max() <= 0.96


def test_training_lowers_the_distance(tmp_path: Path) -> None:
    lines: list[dict[str, float]] = []
    config = replace(BRIEF, steps=60, adversarial_from=60, learning_rate=5e-3, save_every=60)
    train_codec(tones(), tmp_path, config, SMALL, lines.append)
    distances = [line["distance"] for line in lines]
    assert np.mean(distances[-10:]) < 0.8 * np.mean(distances[:5])


def test_what_is_saved_is_the_average(tmp_path: Path) -> None:
    saved = {}
    for ema in (0.0, 0.9):
        config = replace(BRIEF, steps=12, adversarial_from=12, ema=ema, learning_rate=1e-2)
        train_codec(tones(), tmp_path / str(ema), config, SMALL)
        saved[ema] = TinyCodec.from_pretrained(tmp_path / str(ema)).state_dict()
    state = load_file(checkpoints(tmp_path / "0.9" / "checkpoints")[0])
    last, average = (state[f"model.{part}.from_code.weight"] for part in ("codec", "average.module"))
    assert torch.allclose(saved[0.0]["from_code.weight"], last, atol=1e-4)
    assert torch.allclose(saved[0.9]["from_code.weight"], average, atol=1e-4)
    assert (last - average).abs().max() > 1e-3  # more than half precision loses


def test_a_codec_to_start_from_keeps_its_codes(codec: TinyCodec, tmp_path: Path) -> None:
    codec.save_pretrained(tmp_path / "first")
    first = TinyCodec.from_pretrained(tmp_path / "first")
    config, larger = replace(BRIEF, adversarial_from=0, steps=3, coarse=2), replace(SMALL, num_codebooks=5)
    second = train_codec(tones(), tmp_path / "second", config, larger, init=tmp_path / "first")
    assert torch.equal(second.mean, first.mean) and torch.equal(second.basis, first.basis)
    assert second.vectors.shape == (5, 32, 16) and torch.equal(second.vectors[:3], first.vectors)
    frames = second.analyse(
        torch.from_numpy(tones()["tone"][1][None] / 32768.0).float()[:, : 45 * HOP_LENGTH]
    )
    codes = second.quantise(frames)
    left = [(frames - second.dequantise(codes[:, :k])).square().mean() for k in (3, 4, 5)]
    assert left == sorted(left, reverse=True)
    assert not torch.equal(second.from_code.weight, first.from_code.weight)
    with pytest.raises(ValueError, match="other sizes"):
        train_codec(tones(), tmp_path / "third", config, SMALL, init=tmp_path / "second")


def test_a_codec_to_start_from_may_get_a_codebook_of_levels(codec: TinyCodec, tmp_path: Path) -> None:
    """Its components and decoder stay, and all codes are fitted anew."""
    codec.save_pretrained(tmp_path / "first")
    first = TinyCodec.from_pretrained(tmp_path / "first")
    level = replace(SMALL, level_dim=2, level_hold=1.0)
    made = train_codec(tones(), tmp_path / "made", replace(BRIEF, steps=0), level, init=tmp_path / "first")
    for name, weight in first.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight) == (name != "vectors"), name
    assert not made.vectors[0, :, 2:].any() and made.vectors[0, :, :2].all()
    assert made.vectors[1:].all()

    # It is trained on with its own sizes, which keep its codes.
    again = train_codec(tones(), tmp_path / "again", replace(BRIEF, steps=0), init=tmp_path / "made")
    assert again.config == level and torch.equal(again.vectors, made.vectors.half().float())
    with pytest.raises(ValueError, match="other sizes"):
        train_codec(tones(), tmp_path / "without", replace(BRIEF, steps=0), SMALL, init=tmp_path / "made")

    with pytest.raises(ValueError, match="level_dim must be from 0 to 16"):
        train_codec(tones(), tmp_path / "without", BRIEF, replace(SMALL, level_dim=17))

    # What the first codebook leaves of the level the second sees, with all the rest.
    frames = made.analyse(torch.from_numpy(tones()["tone"][1][None] / 32768.0).float()[:, : 45 * HOP_LENGTH])
    left = frames - made.dequantise(made.quantise(frames)[:, :1])
    assert torch.equal(left[..., 2:], frames[..., 2:])
    assert left[..., :2].square().mean() < 0.05 * frames[..., :2].square().mean()


def test_a_codebook_of_levels_has_a_hold_of_its_own(codec: TinyCodec) -> None:
    noise = torch.from_numpy(tones()["noise"][0][None, : 45 * HOP_LENGTH] / 32768.0).float()
    changes = {}
    for level_hold in (0.0, 10.0):
        other = TinyCodec(replace(SMALL, level_dim=2, level_hold=level_hold))
        other.load_state_dict(codec.state_dict())
        tokens = other.encode(noise)[0]
        changes[level_hold] = (tokens[:, 1:] != tokens[:, :-1]).sum(1).tolist()
        assert weights_fingerprint(other) != weights_fingerprint(codec)
    assert changes[0.0][0] > 2 * changes[10.0][0]
    assert max(changes[0.0][1:]) < 5  # those have the hold of 60


def test_a_run_that_goes_on_has_each_line_once(tmp_path: Path) -> None:
    steps = replace(BRIEF, save_every=4)
    whole = train_codec(tones(), tmp_path / "whole", steps, SMALL)
    lines: list[dict[str, float]] = []

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 5:  # the last state is that of step 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_codec(tones(), tmp_path / "cut", steps, SMALL, stop)
    again = train_codec(tones(), tmp_path / "cut", steps, SMALL, lines.append)
    assert [line["step"] for line in lines] == [5, 6]
    logged = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_another_codec_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    config = replace(BRIEF, steps=2, adversarial_from=2)
    train_codec(tones(), tmp_path, config, SMALL)
    newest = checkpoints(tmp_path / "checkpoints")[0]
    before = newest.read_bytes()
    for changed, codec_config, sounds, difference in (
        (
            replace(config, seed=9, steps=8),
            SMALL,
            tones(),
            r"training\.seed was 0, is 9; training\.st",
        ),
        (config, replace(SMALL, codebook_size=16), tones(), r"codec\.codebook_size was 32, is 16"),
        (config, SMALL, tones(0.5), "sounds was"),
    ):
        with pytest.raises(TrainError, match=f"holds another run: {difference}"):
            train_codec(sounds, tmp_path, changed, codec_config)
    assert newest.read_bytes() == before
    train_codec(tones(), tmp_path, replace(config, save_every=1), SMALL)
    with exclusive(tmp_path / ".lock", "trains"), pytest.raises(LockedError, match=f"trains in {tmp_path}"):
        train_codec(tones(), tmp_path, config, SMALL)
    assert not [path.name for path in tmp_path.iterdir() if ".tmp" in path.name]


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    config = replace(BRIEF, steps=3, adversarial_from=2, log_every=10, save_every=2)
    train_codec(tones(), tmp_path, config, SMALL)
    weights, logged = (tmp_path / "codec.safetensors").read_bytes(), tmp_path / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in logged.read_text().splitlines()] == [3]  # the last at least
    newest = checkpoints(tmp_path / "checkpoints")[0]
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 4
    for damaged in (b"garbage", whole[: len(whole) // 2], b"", bytes(flipped)):
        newest.write_bytes(damaged)
        said: list[str] = []
        train_codec(tones(), tmp_path, config, SMALL, log=said.append)
        assert said == [f"{newest} is damaged; trying the one before"]
        assert (tmp_path / "codec.safetensors").read_bytes() == weights
        assert len(logged.read_text().splitlines()) == 1
    logged.write_bytes(b'{"step": 1}\n\xff{\n')
    with pytest.raises(TrainError, match=r"metrics\.jsonl: line 2 is damaged; delete it to go on"):
        train_codec(tones(), tmp_path, config, SMALL)


def test_a_state_of_version_0_1_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    for damaged in (b"garbage", b""):
        (tmp_path / "state.pt").write_bytes(damaged)
        with pytest.raises(TrainError, match=r"state\.pt is damaged \(.+\); delete it to begin anew$"):
            train_codec(tones(), tmp_path, BRIEF, SMALL)


def test_numbers_that_are_none_end_a_run_and_leave_a_good_checkpoint(tmp_path: Path) -> None:
    config = replace(BRIEF, adversarial_from=9, warmup_steps=1, learning_rate=1e30)
    with pytest.raises(TrainError, match=r"^step \d: the loss of the codec or its gradient is not finite"):
        train_codec(tones(), tmp_path, config, SMALL)
    newest = checkpoints(tmp_path / "checkpoints")[0]
    assert all(tensor.isfinite().all() for tensor in load_file(newest).values())


def test_a_run_keeps_the_precision_it_began_with(tmp_path: Path) -> None:
    """Also where it goes on on another kind of processor, or with another setting."""
    config = replace(BRIEF, precision="32-true")
    train_codec(tones(), tmp_path / "whole", config, SMALL)

    class Stopped(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train_codec(tones(), tmp_path / "run", config, SMALL, stop)
    train_codec(tones(), tmp_path / "run", replace(config, precision="bf16-mixed"), SMALL)
    for name in ("codec.safetensors", "training.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bfloat16_is_left_to_processors_that_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = {}
    for there in (False, True):
        monkeypatch.setattr("vab.training.codec.train.cpu_has_bfloat16", lambda there=there: there)
        config = replace(BRIEF, steps=1, precision="bf16-mixed", adversarial_from=1)
        train_codec(tones(), tmp_path / str(there), config, SMALL)
        document = json.loads((tmp_path / str(there) / "training.json").read_text())
        precisions[there] = document["precision"]
    assert precisions == {False: "32-true", True: "bf16-mixed"}


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_codec(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder: Path) -> Forked:
        return Forked(tmp_path, train_brief, folder)

    assert start(whole).wait(300) == 0
    first = start(killed)
    try:
        first.printed("5\n")  # one saved step has been passed, and the discriminators have joined
    finally:
        first.kill()
    first.wait(60)
    assert start(killed).wait(300) == 0
    for name in ("codec.safetensors", "codec.json", "training.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
