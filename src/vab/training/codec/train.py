"""Training the small codec: codes from statistics, then a decoder by a spectral energy distance.

The codes are principal components and k-means. The decoder cannot know the fine structure of noise, and a
loss against one target would teach it the mean, which is a hum. The generalised energy distance
(Gritsenko et al., 2020) compares two draws of the decoder with the target and rewards them for differing
from each other as much as they differ from it: the best answer is then the distribution, texture
included. Patch discriminators on log spectrograms sharpen the result once that has settled.
"""

from __future__ import annotations

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
from vab.config import FRAME_RATE, HOP_LENGTH, check_config, within
from vab.errors import SettingError, TrainError, first_line, naming
from vab.training.checkpoint import check_identity, cut_metrics, resume, save_checkpoint
from vab.utils.device import cpu_has_bfloat16
from vab.utils.files import json_object, write_whole
from vab.utils.locks import exclusive
from vab.utils.provenance import sha256

MAX_GRAD_NORM = 5.0

Precision = Literal["32-true", "bf16-mixed"]


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
    precision: Precision = "bf16-mixed"  # of the decoder and the discriminators
    seed: int = 0
    save_every: int = 200
    log_every: int = 20


class MultiScaleLogSpectrogram(nn.Module):
    """Log spectrograms at four resolutions: bins, and mel bands of three kinds."""

    fine: Tensor  # [bins, 64]
    coarse: Tensor  # [bins, 16]

    def __init__(self, config: TinyCodecConfig) -> None:
        super().__init__()
        self.scale = 4.0 / config.window  # a sine of amplitude one has a peak near one
        self.register_buffer("fine", hertz_mel_filters(64, config.window))
        self.register_buffer("coarse", hertz_mel_filters(16, config.window))

    def forward(self, magnitude: Tensor) -> list[Tensor]:
        """Magnitudes [B, 2 T, bins] -> log spectrograms: bins, 64 bands, 16 bands, 64 bands over 40 ms."""
        magnitude = magnitude * self.scale
        bands = magnitude @ self.fine
        slow = F.avg_pool1d(bands.transpose(1, 2), 4)  # [B, 64, T / 2]
        return [torch.log(x + 3e-5) for x in (magnitude, bands, magnitude @ self.coarse, slow)]


def energy_distance(target: list[Tensor], first: list[Tensor], second: list[Tensor]) -> Tensor:
    """2 E|x - y| - E|y - y'| over all resolutions: least when y, y' are distributed as x.

    Each list is what ``MultiScaleLogSpectrogram`` returns: of the target x, and of two draws y and y'.
    """
    total = target[0].new_zeros(())
    for x, y, other in zip(target, first, second, strict=True):
        total = total + (x - y).abs().mean() + (x - other).abs().mean() - (y - other).abs().mean()
    return total


class PatchDiscriminator(nn.Module):
    """Judges patches of a log spectrogram [B, frames, bands]: -> (scores, features of every layer)."""

    def __init__(self, strides: tuple[int, ...], channels: int = 24) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        widths = [1] + [channels] * (len(strides) - 1) + [2 * channels]
        self.layers = nn.ModuleList(
            norm(nn.Conv2d(before, after, 5, stride=(1 if index == 0 else 2, stride), padding=2))
            for index, (before, after, stride) in enumerate(zip(widths, widths[1:], strides, strict=False))
        )
        self.score = norm(nn.Conv2d(2 * channels, 1, 3, padding=1))

    def forward(self, spectrogram: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = spectrogram[:, None] / 3.0 + 2.0  # [B, 1, frames, bands], about zero mean and unit variance
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.score(x), features


def discriminators() -> nn.ModuleList:
    """One for all bins, one for the 64 bands: fine structure, and what an ear sums up."""
    return nn.ModuleList((PatchDiscriminator((4, 2, 2, 2)), PatchDiscriminator((1, 2, 2))))


def excerpts(sounds: dict[str, list[np.ndarray]], config: CodecTrainConfig, step: int) -> Tensor:
    """The batch [B, S] of one step: labels equally often, random position, gain and polarity.

    A function of the seed and the step alone, so a run goes on where it was cut.
    """
    rng = np.random.default_rng((config.seed, step))
    labels = sorted(sounds)
    samples = HOP_LENGTH * round(config.seconds * FRAME_RATE)
    batch = np.zeros((config.batch_size, samples), dtype=np.float32)
    for row in batch:
        choices = sounds[labels[rng.integers(len(labels))]]
        sound = choices[rng.integers(len(choices))]

        # Up to a quarter of the excerpt may lie before the sound's start or after its end, as silence.
        start = int(rng.integers(-samples // 4, max(1, len(sound) - 3 * samples // 4)))
        piece = sound[max(0, start) : start + samples].astype(np.float32) / 32768.0
        row[max(0, -start) : max(0, -start) + len(piece)] = piece

        # -12 to +8 dB, but never clipped; either polarity.
        peak = float(np.abs(row).max()) + 1e-6
        row *= min(10.0 ** rng.uniform(-0.6, 0.4), 0.95 / peak) * rng.choice((-1.0, 1.0))
    return torch.from_numpy(batch)


def train_codec(
    sounds: dict[str, list[np.ndarray]],
    run: Path,
    config: CodecTrainConfig,
    codec_config: TinyCodecConfig | None = None,
    report: Callable[[dict[str, float]], None] = lambda line: None,
    init: Path | None = None,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> TinyCodec:
    """Train on ``sounds`` (label -> int16 waveforms at 16 kHz) and leave the codec in ``run``.

    ``run/checkpoints`` get one every ``save_every`` steps, of which two are kept; called again, the run goes
    on from the newest good one, or from the ``state.pt`` of version 0.1. ``run/metrics.jsonl`` has its lines.
    ``run/codec.json`` and ``run/codec.safetensors`` are the codec so far, its weights averaged. ``init`` is a
    codec to start from, whose sizes count where none are given: its decoder is trained on and its codes stay;
    codebooks that ``codec_config`` wants beyond them are fitted on what they leave over. How long codes last
    (``hold``) may change. If it has no codebook of levels (``level_dim``) and is to get one, all codes are
    fitted anew. Excerpts are drawn on the CPU, all else happens on ``device``; a processor without bfloat16
    starts a run in float32.
    ``LockedError`` while another process trains in ``run``; ``TrainError`` for a folder of another run
    and for a loss that is not finite (the last good checkpoint stays).
    """
    check_settings(config, codec_config or TinyCodecConfig())
    run.mkdir(parents=True, exist_ok=True)
    with exclusive(run / ".lock", f"trains in {run}"):
        training = _Run(sounds, run, config, codec_config, init, torch.device(device))
        training.start(log)
        training.loop(report)
        return training.finish()


class _Run:
    """One run and its state: the codec, its average, the discriminators, both optimizers, step, precision."""

    def __init__(
        self,
        sounds: dict[str, list[np.ndarray]],
        folder: Path,
        config: CodecTrainConfig,
        codec_config: TinyCodecConfig | None,
        init: Path | None,
        device: torch.device,
    ) -> None:
        self.sounds, self.folder, self.config, self.device = sounds, folder, config, device

        # The codec, fresh or from ``init``, and its moving average, which is the codec that is saved.
        torch.manual_seed(config.seed)
        first = None if init is None else cast(TinyCodec, load_codec("tiny", init))
        if codec_config is None and first is not None:
            codec_config = first.config
        self.codec = TinyCodec(codec_config)
        # Codebooks that came with ``init`` and stay.
        self.num_fitted = 0 if first is None else _start_from(self.codec, first)
        self.has_components = first is not None
        self.codec.to(device)
        self.average = AveragedModel(self.codec, avg_fn=_averaging(config.ema))

        # What judges its sounds.
        self.judges = discriminators().to(device)
        self.spectrogram = MultiScaleLogSpectrogram(self.codec.config).to(device)

        rate, betas = config.learning_rate, (0.8, 0.99)
        self.optimizer = torch.optim.AdamW(self.codec.parameters(), rate, betas, weight_decay=1e-3)
        self.judge_optimizer = torch.optim.AdamW(self.judges.parameters(), rate / 2, betas)

        self.step = 0
        self.precision: Precision = config.precision
        if self.precision == "bf16-mixed" and device.type == "cpu" and not cpu_has_bfloat16():
            self.precision = "32-true"
        self.identity = _identity(config, self.codec.config, sounds)

    @property
    def averaged(self) -> TinyCodec:
        """The codec with averaged weights."""
        return cast(TinyCodec, self.average.module)

    @property
    def _networks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"codec": self.codec, "average": self.average, "judges": self.judges})

    def start(self, log: Callable[[str], None]) -> None:
        """Resume from the folder, or fit the codes and save step 0."""
        optimizers = [self.optimizer, self.judge_optimizer]
        saved = resume(self.folder, self.identity, self._networks, optimizers, [], log)
        if saved is not None:
            # A run keeps the precision it began with, on whatever processor it goes on.
            self.step, about = saved
            self.precision = about["precision"]
        resumes = saved is not None or self._start_from_state()
        cut_metrics(self.folder / "metrics.jsonl", self.step)
        if not resumes:
            fit_codes(self.codec, self.sounds, self.config, self.num_fitted, self.has_components)
            self.average.update_parameters(self.codec)
            self.save()

    def _start_from_state(self) -> bool:
        """Resume from ``state.pt``, which version 0.1 wrote; False if there is none."""
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if "identity" in state:
                check_identity(self.folder, json_object(state.pop("identity")), self.identity)
            self.step = state.pop("step")
            self.precision = state.pop("precision", self.config.precision)
            for name, values in state.items():
                getattr(self, name).load_state_dict(values)
        except TrainError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the reader
            raise TrainError(f"{path} is damaged ({first_line(error)}); delete it to begin anew") from None
        return True

    def save(self) -> None:
        """Write a checkpoint to go on from, and the codec so far."""
        save_checkpoint(
            self.folder / "checkpoints",
            self.step,
            self._networks,
            [self.optimizer, self.judge_optimizer],
            [],
            {"identity": self.identity, "precision": self.precision},
        )
        self.averaged.save_pretrained(self.folder)

    def loop(self, report: Callable[[dict[str, float]], None]) -> None:
        """Train up to the last step."""
        config = self.config
        last_step, clock = self.step, time.perf_counter()
        while self.step < config.steps:
            line = self._update()
            if self.step % config.log_every == 0 or self.step == config.steps:
                line["seconds"] = (time.perf_counter() - clock) / (self.step - last_step)
                last_step, clock = self.step, time.perf_counter()
                path = self.folder / "metrics.jsonl"
                with naming(path), path.open("a") as log:
                    log.write(json.dumps(line) + "\n")
                report(line)
            if self.step % config.save_every == 0 or self.step == config.steps:
                self.save()

    def _update(self) -> dict[str, float]:
        """One step of the codec and, once they have joined, of the discriminators -> its metrics."""
        config = self.config
        rate = config.learning_rate * _schedule(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for group in self.judge_optimizer.param_groups:
            group["lr"] = rate / 2

        # 1. Excerpts [B, S] -> what the decoder gets, and the spectrograms it should reach. The seed depends
        # on the step alone, so a run that was cut goes on bit for bit.
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        waveform = excerpts(self.sounds, config, self.step).to(self.device)
        frames, target = self._analyse(waveform)

        # 2. Two draws for each excerpt, one after the other along the batch: [2 B, ...] -> 2 x [B, ...].
        with self._autocast():
            tone, noise = self.codec.synthesise(frames, draws=2)
        draws = [scale.chunk(2) for scale in self.spectrogram((tone + noise).abs())]
        first = [pair[0] for pair in draws]
        second = [pair[1] for pair in draws]
        distance = energy_distance(target, first, second)
        loss = distance
        line = {"step": self.step + 1, "distance": distance.item()}

        # 3. The discriminators learn first; then the first draw has to fool them.
        if self.step >= config.adversarial_from:
            judged = self._update_judges(target, first)
            with self._autocast():
                fooling, matching = _fool(self.judges, target, first)
            loss = loss + config.adversarial * fooling + config.matching * matching
            line |= {"judged": judged, "fooling": fooling.item(), "matching": matching.item()}

        # 4. The codec's step, and its average.
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.codec.parameters(), MAX_GRAD_NORM))
        self.step += 1
        if not all(map(math.isfinite, [*line.values(), norm])):
            raise TrainError(
                f"step {self.step}: the loss of the codec or its gradient is not finite. Stopped; the last "
                f"checkpoint in {self.folder} is good"
            )
        self.optimizer.step()
        self.average.update_parameters(self.codec)
        return line

    @torch.no_grad()
    def _analyse(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Frames decoded from the codes of excerpts [B, S], and the log spectrograms of the excerpts."""
        codes = self.codec.quantise(self.codec.analyse(waveform))
        frames = self.codec.dequantise(codes)
        if self.config.coarse:
            frames[::2] = self.codec.dequantise(codes[::2, : self.config.coarse])
        return frames, self.spectrogram(self.codec.spectrogram(waveform).abs())

    def _update_judges(self, target: list[Tensor], generated: list[Tensor]) -> float:
        """One step of the discriminators; returns their loss."""
        with self._autocast():
            loss = _judge(self.judges, target, [spectrogram.detach() for spectrogram in generated])
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.judge_optimizer.step()
        return loss.item()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def finish(self) -> TinyCodec:
        """Write down the settings; returns the averaged codec."""
        settings = asdict(replace(self.config, precision=self.precision))
        write_whole(self.folder / "training.json", (json.dumps(settings, indent=2) + "\n").encode())
        return self.averaged.eval()


def check_settings(config: CodecTrainConfig, codec: TinyCodecConfig) -> None:
    """Raise a ``SettingError`` for a number that no codec or no training can use."""
    check_config(config)
    check_config(codec, "codec.")
    within("codec.dim", codec.dim, 1, 2 * codec.bands)
    within("codec.level_dim", codec.level_dim, 0, codec.dim)


def _identity(
    config: CodecTrainConfig, codec: TinyCodecConfig, sounds: dict[str, list[np.ndarray]]
) -> dict[str, Any]:
    """Settings and sounds that must not change when a run resumes, as JSON reads them back."""
    training = asdict(config)
    for free in ("save_every", "log_every", "precision"):  # a run keeps the precision it began with
        del training[free]
    content: list[bytes | str] = []
    for label in sorted(sounds):
        content += [label, *(sound.tobytes() for sound in sounds[label])]
    identity = {"training": training, "codec": asdict(codec), "sounds": sha256(*content)[:16]}
    return json.loads(json.dumps(identity))


@torch.no_grad()
def fit_codes(
    codec: TinyCodec,
    sounds: dict[str, list[np.ndarray]],
    config: CodecTrainConfig,
    num_fitted: int = 0,
    has_components: bool = False,
) -> None:
    """Set the principal components, and the codebooks by k-means on what the ones before leave over.

    The first ``num_fitted`` codebooks stay as they are, and so do components that it has.
    """
    c = codec.config
    if num_fitted >= c.num_codebooks:
        return

    # 1. Log-mel frames of other excerpts than training will see. A code stands for two: [N, 2 T, bands] ->
    # [n, 2 bands]
    num_batches = math.ceil(config.code_seconds / (config.batch_size * config.seconds))
    batches = (excerpts(sounds, config, config.steps + n).to(codec.mean.device) for n in range(num_batches))
    mel = torch.cat([codec.log_mel(x) for x in batches])
    pairs = mel.reshape(-1, 2 * c.bands)

    # 2. Principal components; eigh sorts them upwards.
    if not has_components:
        codec.mean.copy_(pairs.mean(0))
        codec.basis.copy_(torch.linalg.eigh(torch.cov(pairs.T)).eigenvectors.flip(1)[:, : c.dim])
    if len(pairs) < c.codebook_size:
        raise SettingError(
            f"{len(pairs)} frames are too few to fit {c.codebook_size} codes on; raise code_seconds"
        )

    # 3. Residual quantisation: each codebook is fitted on what the ones before leave over, the first one on
    # the level alone where it is to have one of its own: zeros stand for the other components.
    rest = (pairs - codec.mean) @ codec.basis  # [n, C]
    for k, table in enumerate(codec.vectors):
        if k >= num_fitted:
            dim = c.level_dim if k == 0 and c.level_dim else c.dim
            table.zero_()
            table[:, :dim] = _k_means(rest[:, :dim].contiguous(), c.codebook_size, config.code_rounds)
        rest = rest - table[nearest(rest, table)]


def _start_from(codec: TinyCodec, first: TinyCodec) -> int:
    """Take over a codec with as many codebooks or fewer; returns how many of them stay.

    None do where a codebook of levels is to come first: its components and decoder stay alone.
    """
    free = {name: getattr(first.config, name) for name in ("num_codebooks", "hold", "level_hold")}
    new_codes = first.config.level_dim == 0 < codec.config.level_dim
    if new_codes:
        free["level_dim"] = 0
    if first.config != replace(codec.config, **free) or first.num_codebooks > codec.num_codebooks:
        raise SettingError(f"the codec to start from has other sizes: {first.config}, not {codec.config}")
    num_fitted = 0 if new_codes else first.num_codebooks
    weights = first.state_dict()
    weights["vectors"] = torch.cat((first.vectors[:num_fitted], codec.vectors[num_fitted:]))
    codec.load_state_dict(weights)
    return num_fitted


def _k_means(points: Tensor, count: int, rounds: int) -> Tensor:
    """Lloyd's algorithm: points [n, C] -> centres [count, C]; an empty one starts again at a random point."""
    centres = points[torch.randperm(len(points))[:count]]
    for _ in range(rounds):
        assigned = nearest(points, centres)  # [n]
        sizes = torch.bincount(assigned, minlength=count)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        restarts = points[torch.randint(len(points), (count,))]
        centres = torch.where(sizes > 0, sums / sizes.clamp_min(1), restarts)
    return centres


def _schedule(step: int, config: CodecTrainConfig) -> float:
    """Factor of the learning rate: before and after the discriminators join, a warm-up and half a cosine."""
    first = config.adversarial_from
    begin, end = (0, min(first, config.steps)) if step < first else (first, config.steps)
    rise = min(1.0, (step - begin + 1) / config.warmup_steps)
    return rise * (0.05 + 0.95 * (1.0 + math.cos(math.pi * (step - begin) / (end - begin))) / 2)


def _averaging(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average of weights; early on it must forget the random start faster."""

    def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        return torch.lerp(old, new, 1.0 - min(decay, (1 + int(count)) / (10 + int(count))))

    return average


def _judge(judges: nn.ModuleList, real: list[Tensor], generated: list[Tensor]) -> Tensor:
    """Hinge loss of the discriminators."""
    total = real[0].new_zeros(())
    for judge, x, y in zip(judges, real, generated, strict=False):
        score_real, score_generated = judge(torch.cat((x, y)))[0].chunk(2)
        total = total + F.relu(1.0 - score_real).mean() + F.relu(1.0 + score_generated).mean()
    return total / len(judges)


def _fool(judges: nn.ModuleList, real: list[Tensor], generated: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(Hinge loss of the decoder, distance of the discriminators' features)."""
    fooling = real[0].new_zeros(())
    matching = real[0].new_zeros(())

    # Gradients go through the discriminators, not into them.
    judges.requires_grad_(False)
    for judge, x, y in zip(judges, real, generated, strict=False):
        score, features = judge(y)
        with torch.no_grad():
            targets: list[Tensor] = judge(x)[1]
        fooling = fooling - score.mean()
        for feature, target in zip(features, targets, strict=True):
            relative = (feature - target).abs().mean() / (target.abs().mean() + 1e-6)
            matching = matching + relative / len(targets)
    judges.requires_grad_(True)
    return fooling / len(judges), matching / len(judges)
