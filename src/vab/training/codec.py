"""Training the small codec: codes from statistics, then a decoder by a spectral energy distance.

The codes are principal components and k-means. The decoder cannot know the fine structure of noise, and a
loss against one target would teach it the mean, which is a hum. The generalised energy distance
(Gritsenko et al., 2020) compares two draws of the decoder with the target and rewards them for differing
from each other as much as they differ from it: the best answer is then the distribution, texture
included. Patch discriminators on log spectrograms sharpen the result once that has settled.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vab.codecs.codec import load_codec
from vab.codecs.tiny import TinyCodec, TinyCodecConfig, hertz_mel_filters, nearest
from vab.config import FRAME_RATE, HOP, within
from vab.errors import SettingError, TrainError, first_line
from vab.training.checkpoint import cut_metrics, differences
from vab.utils.device import cpu_has_bfloat16
from vab.utils.files import write_whole
from vab.utils.locks import exclusive
from vab.utils.provenance import sha256


@dataclass(frozen=True)
class CodecTrainConfig:
    """One run of training the small codec."""

    steps: int = 6_000
    adversarial_from: int = 1_300  # the step at which the discriminators join
    code_seconds: float = 2560.0  # of sound the codes are fitted on
    code_rounds: int = 12  # of k-means over it
    batch_size: int = 16
    seconds: float = 1.0  # of each excerpt
    coarse: int = 4  # every other excerpt is decoded from its first so many codebooks; 0 is never
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    adversarial: float = 0.1  # weight of fooling the discriminators
    matching: float = 0.5  # weight of matching their features
    ema: float = 0.998  # decay of the averaged weights, which are the codec that is saved
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"  # of the decoder and the discriminators
    seed: int = 0
    save_every: int = 200
    log_every: int = 20


class MultiScaleLogSpectrogram(nn.Module):
    """What two magnitude spectrograms are compared on: bins, and mel bands at several blurs."""

    fine: Tensor  # [bins, 64]
    coarse: Tensor  # [bins, 16]

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        self.scale = 4.0 / config.window  # a sine of amplitude one has a peak near one
        self.register_buffer("fine", hertz_mel_filters(64, config.window))
        self.register_buffer("coarse", hertz_mel_filters(16, config.window))

    def forward(self, magnitude: Tensor) -> list[Tensor]:
        """Magnitudes [B, 2 T, bins] -> log pictures: bins, 64 bands, 16 bands, 64 bands over 40 ms."""
        magnitude = magnitude * self.scale
        bands = magnitude @ self.fine
        slow = F.avg_pool1d(bands.transpose(1, 2), 4)
        return [torch.log(x + 3e-5) for x in (magnitude, bands, magnitude @ self.coarse, slow)]


def energy_distance(target: list[Tensor], first: list[Tensor], second: list[Tensor]) -> Tensor:
    """2 E|x - y| - E|y - y'| over all pictures: least when the draws y, y' are distributed as x."""
    total = target[0].new_zeros(())
    for x, y, other in zip(target, first, second, strict=True):
        total = total + (x - y).abs().mean() + (x - other).abs().mean() - (y - other).abs().mean()
    return total


class PatchDiscriminator(nn.Module):
    """Judges patches of a log picture [B, frames, bands]: -> (scores, features of every layer)."""

    def __init__(self, strides: tuple[int, ...], channels: int = 24) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        widths = [1] + [channels] * (len(strides) - 1) + [2 * channels]
        self.layers = nn.ModuleList(
            norm(nn.Conv2d(before, after, 5, stride=(1 if index == 0 else 2, stride), padding=2))
            for index, (before, after, stride) in enumerate(zip(widths, widths[1:], strides, strict=False))
        )
        self.score = norm(nn.Conv2d(2 * channels, 1, 3, padding=1))

    def forward(self, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = picture[:, None] / 3.0 + 2.0
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


def discriminators() -> nn.ModuleList:
    """One for all bins, one for the 64 bands: fine structure, and what an ear sums up."""
    return nn.ModuleList((PatchDiscriminator((4, 2, 2, 2)), PatchDiscriminator((1, 2, 2))))


def excerpts(sounds: dict[str, list[np.ndarray]], config: CodecTrainConfig, step: int) -> Tensor:
    """The batch [B, S] of one step: every label alike, random place, gain and polarity.

    A function of the seed and the step alone, so a run goes on where it was cut.
    """
    random = np.random.default_rng((config.seed, step))
    labels = sorted(sounds)
    samples = HOP * round(config.seconds * FRAME_RATE)
    batch = np.zeros((config.batch_size, samples), dtype=np.float32)
    for row in batch:
        choices = sounds[labels[random.integers(len(labels))]]
        sound = choices[random.integers(len(choices))]
        start = int(random.integers(-samples // 4, max(1, len(sound) - 3 * samples // 4)))
        piece = sound[max(0, start) : start + samples].astype(np.float32) / 32768.0
        row[max(0, -start) : max(0, -start) + len(piece)] = piece
        peak = float(np.abs(row).max()) + 1e-6
        row *= min(10.0 ** random.uniform(-0.6, 0.4), 0.95 / peak) * random.choice((-1.0, 1.0))
    return torch.from_numpy(batch)


def train_codec(
    sounds: dict[str, list[np.ndarray]],
    run: Path,
    config: CodecTrainConfig,
    codec_config: TinyCodecConfig | None = None,
    report: Callable[[dict[str, float]], None] = lambda line: None,
    init: Path | None = None,
    device: str = "cpu",
) -> TinyCodec:
    """Train on ``sounds`` (label -> int16 waveforms at 16 kHz) and leave the codec in ``run``.

    ``run/state.pt`` is renewed every ``save_every`` steps; called again, the run goes on from there.
    ``run/codec.json`` and ``run/codec.safetensors`` are the codec so far, its weights averaged. ``init`` is a
    codec to start from: its decoder is trained on and its codes stay; codebooks that ``codec_config`` wants
    beyond them are fitted on what they leave over. How long codes last (``hold``) may change. Excerpts are
    drawn on the CPU, all else happens on ``device``; a processor without bfloat16 starts a run in float32.
    ``LockedError`` while another process trains in ``run``; ``TrainError`` for a ``state.pt`` of another run
    or a damaged one.
    """
    check_settings(config, codec_config or TinyCodecConfig())
    run.mkdir(parents=True, exist_ok=True)
    with exclusive(run / ".lock", f"trains in {run}"):
        return _train(sounds, run, config, codec_config, report, init, device)


def _train(
    sounds: dict[str, list[np.ndarray]],
    run: Path,
    config: CodecTrainConfig,
    codec_config: TinyCodecConfig | None,
    report: Callable[[dict[str, float]], None],
    init: Path | None,
    device: str,
) -> TinyCodec:
    torch.manual_seed(config.seed)
    codec, given = TinyCodec(codec_config), 0
    if init is not None:
        given = _start_from(codec, cast(TinyCodec, load_codec("tiny", init)))
    codec.to(device)
    average = AveragedModel(codec, avg_fn=_averaging(config.ema))
    averaged = cast(TinyCodec, average.module)
    judges = discriminators().to(device)
    pictures = MultiScaleLogSpectrogram(codec.config).to(device)
    betas = (0.8, 0.99)
    optimizer = torch.optim.AdamW(codec.parameters(), config.learning_rate, betas, weight_decay=1e-3)
    judge_optimizer = torch.optim.AdamW(judges.parameters(), config.learning_rate / 2, betas)
    parts: dict[str, Any] = {
        "codec": codec,
        "average": average,
        "judges": judges,
        "optimizer": optimizer,
        "judge_optimizer": judge_optimizer,
    }
    state, begin, precision = run / "state.pt", 0, config.precision
    identity = _identity(config, codec.config, sounds)
    if precision == "bf16-mixed" and torch.device(device).type == "cpu" and not cpu_has_bfloat16():
        precision = "32-true"
    if state.exists():
        saved = _read_state(state, identity)
        begin = saved.pop("step")
        precision = saved.pop("precision", config.precision)  # a run ends as it began, wherever it goes on
        for name, values in saved.items():
            parts[name].load_state_dict(values)
    cut_metrics(run / "metrics.jsonl", begin)

    def save(step: int) -> None:
        whole = {name: part.state_dict() for name, part in parts.items()}
        whole |= {"step": step, "identity": json.dumps(identity), "precision": precision}
        buffer = io.BytesIO()
        torch.save(whole, buffer)
        write_whole(state, buffer.getvalue())
        averaged.save_pretrained(run)

    if not state.exists():
        fit_codes(codec, sounds, config, given)
        average.update_parameters(codec)
        save(0)
    mixed = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16-mixed")
    clock = time.perf_counter()
    for step in range(begin, config.steps):
        rate = _schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate
        for group in judge_optimizer.param_groups:
            group["lr"] = config.learning_rate * rate / 2

        torch.manual_seed(config.seed * 1_000_003 + step)
        x = excerpts(sounds, config, step).to(device)
        with torch.no_grad():
            codes = codec.quantise(codec.analyse(x))
            frames = codec.dequantise(codes)
            if config.coarse:
                frames[::2] = codec.dequantise(codes[::2, : config.coarse])
            target = pictures(codec.spectrogram(x).abs())
        with mixed:
            tone, noise = codec.synthesise(frames, draws=2)
        both = pictures((tone + noise).abs())
        first, second = [p[: len(x)] for p in both], [p[len(x) :] for p in both]
        distance = energy_distance(target, first, second)
        loss = distance
        line = {"step": step + 1, "distance": distance.item()}

        if step >= config.adversarial_from:
            with mixed:
                judged = _judge(judges, target, [p.detach() for p in first])
            judge_optimizer.zero_grad(set_to_none=True)
            judged.backward()
            judge_optimizer.step()
            with mixed:
                fooling, matching = _fool(judges, target, first)
            loss = loss + config.adversarial * fooling + config.matching * matching
            line |= {"judged": judged.item(), "fooling": fooling.item(), "matching": matching.item()}

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(codec)
        if not torch.isfinite(loss):
            raise TrainError(
                f"the codec's loss is not finite at step {step + 1}; {state} is the last good one"
            )
        if (step + 1) % config.log_every == 0:
            line["seconds"] = (time.perf_counter() - clock) / config.log_every
            clock = time.perf_counter()
            with (run / "metrics.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            report(line)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save(step + 1)
    document = asdict(replace(config, precision=precision))
    write_whole(run / "training.json", (json.dumps(document, indent=2) + "\n").encode())
    return averaged.eval()


def check_settings(config: CodecTrainConfig, codec: TinyCodecConfig) -> None:
    """``SettingError`` for a number that no codec or no training can do with."""
    for name in ("batch_size", "warmup_steps", "save_every", "log_every", "code_rounds"):
        within(name, getattr(config, name), 1, math.inf)
    for name in ("steps", "adversarial_from", "coarse", "learning_rate", "adversarial", "matching", "seed"):
        within(name, getattr(config, name), 0, math.inf)
    for name in ("seconds", "code_seconds"):
        within(name, getattr(config, name), 1 / FRAME_RATE, math.inf)
    within("ema", config.ema, 0, 1)
    least = {"noise": 0, "hold": 0, "lasting": 0, "iterations": 0, "window": codec.hop}
    for name, size in asdict(codec).items():
        within(f"codec.{name}", size, least.get(name, 1), math.inf)
    within("codec.dim", codec.dim, 1, 2 * codec.bands)


def _identity(
    config: CodecTrainConfig, codec: TinyCodecConfig, sounds: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    """What must not change while a run goes on."""
    training = asdict(config)
    for free in ("save_every", "log_every", "precision"):  # a run keeps the precision it began with
        del training[free]
    content: list[bytes | str] = []
    for label in sorted(sounds):
        content += [label, *(sound.tobytes() for sound in sounds[label])]
    return {"training": training, "codec": asdict(codec), "sounds": sha256(*content)[:16]}


def _read_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """What ``save`` wrote, without its identity; ``TrainError`` if it is damaged or of another run."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        was = saved.pop("identity", None)  # older runs have none
        was = identity if was is None else json.loads(was)
    except Exception as error:  # a damaged file can fail anywhere in the reader
        raise TrainError(f"{path} is damaged ({first_line(error)}); delete it to begin anew") from None
    other = sorted(differences(was, json.loads(json.dumps(identity))))
    if other:
        raise TrainError(f"{path.parent} holds another run: {'; '.join(other)}. Use another folder.")
    return saved


@torch.no_grad()
def fit_codes(
    codec: TinyCodec, sounds: dict[str, list[np.ndarray]], config: CodecTrainConfig, given: int = 0
) -> None:
    """Set the principal components, and the codebooks by k-means on what the ones before leave over.

    The first ``given`` codebooks and, if there are any, the components stay as they are.
    """
    c = codec.config
    if given >= c.num_codebooks:
        return
    batches = math.ceil(config.code_seconds / (config.batch_size * config.seconds))
    batch = (excerpts(sounds, config, config.steps + n).to(codec.mean.device) for n in range(batches))
    mel = torch.cat([codec.log_mel(x) for x in batch])
    pairs = mel.reshape(-1, 2 * c.bands)
    if not given:
        codec.mean.copy_(pairs.mean(0))
        codec.basis.copy_(torch.linalg.eigh(torch.cov(pairs.T)).eigenvectors.flip(1)[:, : c.dim])
    if len(pairs) < c.codebook_size:
        raise SettingError(
            f"{len(pairs)} frames are too few to fit {c.codebook_size} codes on; raise code_seconds"
        )
    rest = (pairs - codec.mean) @ codec.basis
    for k, table in enumerate(codec.vectors):
        if k >= given:
            table.copy_(_k_means(rest, c.codebook_size, config.code_rounds))
        rest = rest - table[nearest(rest, table)]


def _start_from(codec: TinyCodec, first: TinyCodec) -> int:
    """Take over a codec with as many codebooks or fewer; returns how many."""
    own = replace(codec.config, num_codebooks=first.num_codebooks, hold=first.config.hold)
    if first.config != own or first.num_codebooks > codec.num_codebooks:
        raise SettingError(f"the codec to start from has other sizes: {first.config}, not {codec.config}")
    weights = first.state_dict()
    weights["vectors"] = torch.cat((first.vectors, codec.vectors[first.num_codebooks :]))
    codec.load_state_dict(weights)
    return first.num_codebooks


def _k_means(points: Tensor, count: int, rounds: int) -> Tensor:
    """Lloyd's algorithm: points [n, C] -> centres [count, C]; an empty one starts again at a random point."""
    centres = points[torch.randperm(len(points))[:count]]
    for _ in range(rounds):
        own = nearest(points, centres)
        sizes = torch.bincount(own, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, own, points)
        again = points[torch.randint(len(points), (count,))]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), again)
    return centres


def _schedule(step: int, config: CodecTrainConfig) -> float:
    """In each of the two parts a short warm-up, then half a cosine down to a twentieth."""
    first = config.adversarial_from
    begin, end = (0, min(first, config.steps)) if step < first else (first, config.steps)
    rise = min(1.0, (step - begin + 1) / config.warmup_steps)
    return rise * (0.05 + 0.95 * (1.0 + math.cos(math.pi * (step - begin) / (end - begin))) / 2)


def _averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The moving average of weights; early on it must forget the random start faster."""

    def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(old, new, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))

    return average


def _judge(judges: nn.ModuleList, real: list[Tensor], made: list[Tensor]) -> Tensor:
    """Hinge loss of the discriminators."""
    total = real[0].new_zeros(())
    for judge, x, y in zip(judges, real, made, strict=False):
        score_real, score_made = judge(torch.cat((x, y)))[0].chunk(2)
        total = total + F.relu(1.0 - score_real).mean() + F.relu(1.0 + score_made).mean()
    return total / len(judges)


def _fool(judges: nn.ModuleList, real: list[Tensor], made: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(Hinge loss of the decoder, distance of the discriminators' features)."""
    fooling, matching = real[0].new_zeros(()), real[0].new_zeros(())
    judges.requires_grad_(False)
    for judge, x, y in zip(judges, real, made, strict=False):
        score, features = judge(y)
        with torch.no_grad():
            targets: list[Tensor] = judge(x)[1]
        fooling = fooling - score.mean()
        for feature, target in zip(features, targets, strict=True):
            matching = matching + (feature - target).abs().mean() / (target.abs().mean() + 1e-6) / len(
                targets
            )
    judges.requires_grad_(True)
    return fooling / len(judges), matching / len(judges)
