"""Training the motion predictor: rendered films, then a small network. Both go on where they were cut.

The measure that counts is how well a predicted curve correlates with the sound's own in time, whatever the
scale; so the loss is that correlation, film by film, beside the plain distance, which keeps the scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vab.config import within
from vab.errors import TrainError, naming
from vab.timing.motion import scaled
from vab.timing.predictor import SIDEWAYS, MotionPredictor, PredictorConfig, look, save_predictor
from vab.training.checkpoint import cut_metrics, resume, save_checkpoint
from vab.training.motion.films import film
from vab.training.motion.render import Picture
from vab.utils.device import cpu_has_bfloat16
from vab.utils.files import atomic
from vab.utils.locks import exclusive
from vab.utils.provenance import sha256

MAX_GRAD_NORM = 1.0
_SHARD = 100  # films of one file of the pool


@dataclass(frozen=True)
class MotionTrainConfig:
    """One run of training the motion predictor."""

    films: int = 2000  # of 5 s, rendered once
    steps: int = 1200
    batch_size: int = 24
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    distance: float = 1.0  # weight of the mean squared error beside the correlation
    seed: int = 0
    save_every: int = 100
    log_every: int = 20


def train_predictor(
    recordings: Sequence[NDArray[np.float32]],
    photos: Sequence[Picture],
    run: Path,
    config: MotionTrainConfig,
    sizes: PredictorConfig | None = None,
    report: Callable[[dict[str, float]], None] = lambda line: None,
    log: Callable[[str], None] = lambda line: None,
    hits: Sequence[NDArray[np.float32]] = (),
) -> MotionPredictor:
    """Render films of ``recordings`` (waveforms at 16 kHz) and grey ``photos``, and train on them.

    ``hits`` are waveforms of single hits, 10 ms before their onset on: half of the invented rhythms sound so.
    ``run`` gets the pool, checkpoints, ``metrics.jsonl`` and, at the end, the predictor's two files. Raises
    ``TrainError`` if the folder is that of another run, or the loss is not finite; ``SettingError`` for
    numbers that make no sense.
    """
    within("films", config.films, 1, math.inf)
    within("batch_size", config.batch_size, 1, math.inf)
    run.mkdir(parents=True, exist_ok=True)
    with exclusive(run / ".lock", f"trains in {run}"):
        # 1. The films. Who resumes with other pictures or sounds would mix two pools.
        given = (recordings, photos, hits)
        content = sha256(*(part.tobytes() for parts in given for part in parts))[:16]
        pool = Pool(run / "films", recordings, photos, hits, config, content)
        pool.render(log)

        # 2. The network, fresh or from the last checkpoint.
        torch.manual_seed(config.seed)
        network = MotionPredictor(sizes)
        optimizer = torch.optim.AdamW(
            network.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=1e-2
        )
        identity = json.loads(json.dumps({"train": asdict(config), "sizes": asdict(network.config)}))
        for free in ("save_every", "log_every"):
            del identity["train"][free]
        identity = {"motion": identity["train"], "sizes": identity["sizes"], "content": content}
        saved = resume(run, identity, network, [optimizer], [], log)
        step = 0 if saved is None else saved[0]
        cut_metrics(run / "metrics.jsonl", step)

        # 3. The steps.
        data = pool.load(network.config.patches)
        while step < config.steps:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(step, config)
            losses = film_losses(network, *batch(data, config, step))
            total = losses["onset"] + losses["level"] + config.distance * losses["distance"]
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(network.parameters(), MAX_GRAD_NORM))
            step += 1
            line = {"step": float(step), **{name: value.item() for name, value in losses.items()}}
            if not all(map(math.isfinite, [*line.values(), norm])):
                raise TrainError(f"step {step}: the predictor's loss is not finite. Stopped; {run} is good")
            optimizer.step()
            if step % config.log_every == 0 or step == config.steps:
                path = run / "metrics.jsonl"
                with naming(path), path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                report(line)
            if step % config.save_every == 0 or step == config.steps:
                save_checkpoint(run / "checkpoints", step, network, [optimizer], [], {"identity": identity})
        save_predictor(run, network)
        return network.eval()


class Pool:
    """Rendered films in a folder, ``_SHARD`` of them a file; film n is that of seed n, whoever renders it."""

    def __init__(
        self,
        folder: Path,
        recordings: Sequence[NDArray[np.float32]],
        photos: Sequence[Picture],
        hits: Sequence[NDArray[np.float32]],
        config: MotionTrainConfig,
        content: str,
    ) -> None:
        self.folder, self.config = folder, config
        self.recordings, self.photos, self.hits = recordings, photos, hits
        # Named by what is in them: a pool that grows renders its last file anew.
        self.files = {
            first: folder / f"{content}-{config.seed}-{first:06d}-{min(first + _SHARD, config.films):06d}.npz"
            for first in range(0, config.films, _SHARD)
        }

    def render(self, log: Callable[[str], None]) -> None:
        """Render what is not there yet."""
        self.folder.mkdir(exist_ok=True)
        for first, path in self.files.items():
            if path.is_file():
                continue
            numbers = range(first, min(first + _SHARD, self.config.films))
            seeds = [self.config.seed * 1_000_003 + number for number in numbers]
            films = [film(seed, self.recordings, self.photos, self.hits) for seed in seeds]
            motions, curves = (np.stack(part) for part in zip(*films, strict=True))
            with atomic(path) as temporary, temporary.open("wb") as file:
                np.savez(file, motions=motions, curves=curves)
            log(f"{numbers[-1] + 1} of {self.config.films} films are rendered")

    def load(self, patches: int) -> tuple[Tensor, Tensor]:
        """What the network sees, float16 [N,T,p,VIEWS], and onset and level float16 [N,2,T]."""
        views, curves = [], []
        for path in self.files.values():
            with np.load(path) as shard:
                for motion in shard["motions"]:
                    values = torch.from_numpy(scaled(motion.astype(np.float32)))
                    views.append(look(values[None], patches)[0].half())
                curves.append(torch.from_numpy(shard["curves"]))
        return torch.stack(views), torch.cat(curves)


def batch(data: tuple[Tensor, Tensor], config: MotionTrainConfig, step: int) -> tuple[Tensor, Tensor]:
    """The films of one step, float32: by the seed and the step alone. Half of them are mirrored."""
    random = np.random.default_rng((config.seed, step))
    chosen = torch.from_numpy(random.integers(len(data[0]), size=config.batch_size))
    views, curves = data[0][chosen].float(), data[1][chosen].float()
    mirrored = torch.from_numpy(random.random(config.batch_size) < 0.5)
    for channel in SIDEWAYS:
        views[mirrored, :, :, channel] *= -1
    return views, curves


def film_losses(network: MotionPredictor, views: Tensor, curve: Tensor) -> dict[str, Tensor]:
    """1 - correlation of onset and of level, film by film, and the squared distance of both."""
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
        onset, level = (part.float() for part in network.read(views))
    likely = onset.sigmoid()
    distance = F.mse_loss(likely, curve[:, 0]) * 4 + F.mse_loss(level, curve[:, 1]) / 4
    return {
        "onset": 1 - correlation(likely, curve[:, 0]).mean(),
        "level": 1 - correlation(level, curve[:, 1]).mean(),
        "distance": distance,
    }


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation over time of [B,T] and [B,T]: [B], 0 where one hardly changes."""
    first, second = (values - values.mean(1, keepdim=True) for values in (first, second))
    scale = (first.square().sum(1) * second.square().sum(1)).clamp_min(1e-4).sqrt()
    return (first * second).sum(1) / scale


def _schedule(step: int, config: MotionTrainConfig) -> float:
    """Factor of the learning rate: a warm-up, then half a cosine."""
    rise = min(1.0, (step + 1) / config.warmup_steps)
    return rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / config.steps)) / 2)
