"""One run of training: its state, the loop over steps, validation, what it saves (section 3.2, B.4)."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vab.config import Preset
from vab.errors import TrainError
from vab.models.heads import Classifier, start_from
from vab.models.hub import KNOWN
from vab.training.batches import MAX_DEV_CLIPS, Batch, ClipBatches
from vab.training.checkpoint import resume, save_checkpoint
from vab.training.journal import Write, journal
from vab.training.known import class_statistics
from vab.training.loader import made_ahead
from vab.training.objectives import OBJECTIVES, build
from vab.training.optimizer import learning_rate, optimizers
from vab.utils.files import save_tensors, write_json
from vab.utils.progress import step_bar
from vab.utils.provenance import code_version


class TrainingRun:
    """One run and its state: weights, averaged weights, optimizers, step, seconds."""

    def __init__(
        self,
        fabric: Fabric,
        preset: Preset,
        clips: ClipBatches,
        dev: ClipBatches,
        folder: Path,
        *,
        max_steps: int | None = None,
        fold: str | None = None,
        workers: int = 1,
        prefetch: int = 2,
        log: Callable[[str], None] = print,
    ) -> None:
        self.fabric, self.preset, self.clips, self.dev = fabric, preset, clips, dev
        self.workers, self.prefetch = workers, prefetch
        self.folder, self.fold, self.objective = folder, fold, OBJECTIVES[preset.train.objective]
        self.log = log if fabric.is_global_zero else lambda line: None
        self.total = clips.steps(preset.train.epochs) if max_steps is None else max_steps
        config = preset.train

        # Fresh weights, and the statistics by which the network normalises its features.
        torch.manual_seed(config.seed)
        self.model = build(preset, torch.from_numpy(clips.mixture.codebook_vectors()))
        for name, values in zip(
            ("feature_mean", "feature_std"), clips.mixture.feature_statistics(), strict=True
        ):
            next(b for n, b in self.model.named_buffers() if n.endswith(name)).copy_(torch.from_numpy(values))

        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.network, *self.optimizers = fabric.setup(self.model, *optimizers(self.model, config))
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.step = 0
        self.seconds = 0.0
        self.identity = self._identity()

    def _identity(self) -> dict[str, Any]:
        """Settings and data that must not change when a run resumes, as JSON reads them back."""
        train = asdict(self.preset.train)
        for free in ("save_every", "log_every"):
            del train[free]
        identity = {
            "model": asdict(self.preset.model),
            "train": train,
            "store": self.clips.mixture.fingerprint(),
            "steps": self.total,
            "classes": self.preset.classes,
            "fold": self.fold,
        }
        return json.loads(json.dumps(identity))

    def start(self, init: Path | None) -> None:
        """Fresh weights, those of ``init``, or the newest checkpoint of the run's folder."""
        saved = resume(self.folder, self.identity, self.model, self._optimizers(), self.ema, self.log)
        if saved is not None:
            self.step, about = saved
            self.seconds = about["seconds"]
            self.log(f"resuming {self.folder} at step {self.step} of {self.total}")
        else:
            if init is not None:
                start_from(self.model, init)
                for average, parameter in zip(self.ema, self.parameters, strict=False):
                    average.copy_(parameter.detach())
            self.log(
                f"training {self.preset.name} in {self.folder}: {len(self.clips)} clips, {self.total} steps"
            )
        self.fabric.barrier()

    def loop(self) -> None:
        """Train up to the last step."""
        config = self.preset.train
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        last_step, clock = self.step, time.perf_counter()
        bar = step_bar(self.preset.name, self.total, self.step, show=self.fabric.is_global_zero)
        ahead = made_ahead(
            partial(self.clips.train_batch, rank=rank, world_size=world_size),
            range(self.step, self.total),
            workers=self.workers,
            prefetch=self.prefetch,
            pin=self.fabric.device.type == "cuda",
        )
        with self._journal() as write, bar as advance, ahead as batches:
            # 1. This process's share of each global batch, made ahead.
            for batch in batches:
                batch = batch.to(self.fabric.device)

                # 2. The update, which moves on ``self.step``.
                logs = (self.step + 1) % config.log_every == 0 or self.step + 1 == self.total
                values = self.update(batch, measure=logs)
                advance(f"loss {values['loss']:.3f}")

                # 3. Metrics, validation and checkpoint; validation does not count as training speed.
                saves = self.step % config.save_every == 0 or self.step == self.total
                if logs or saves:
                    now = time.perf_counter()
                    self.seconds += now - clock
                    values["clips_per_second"] = (self.step - last_step) * config.batch_size / (now - clock)
                    last_step, clock = self.step, now
                if logs:
                    write(self.step, "train", values)
                if saves:
                    if len(self.dev):
                        write(self.step, "dev", self.validate())
                    self._save()
                    self.seconds += time.perf_counter() - clock
                    clock = time.perf_counter()

    def update(self, batch: Batch, measure: bool) -> dict[str, float]:
        """One step of the optimizers -> loss, rate, gradient norm and, with ``measure``, the metrics."""
        config, fabric = self.preset.train, self.fabric
        rate = learning_rate(self.step, self.total, config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

        # Dropout is the one thing drawn on the device: a stream of its own for each step and process.
        torch.manual_seed(hash((config.seed, self.step, fabric.global_rank)) & 0xFFFFFFFF)
        outcome = self.objective(self.network, batch, self.preset)
        sums = torch.stack([outcome.loss.detach().float() * outcome.weight, outcome.weight])
        total = fabric.all_reduce(sums, reduce_op="sum")

        # Processes average their gradients; the mean over all items of all processes is wanted. Without any
        # item (no video in a contrastive batch) the loss is 0.
        count = total[1].clamp(min=1)
        fabric.backward(outcome.loss * (outcome.weight * fabric.world_size / count))
        norm = nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        values = {"loss": float(total[0] / count), "learning_rate": rate, "gradient_norm": float(norm)}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient_norm"]):
            raise TrainError(
                f"step {self.step + 1}: the loss is {values['loss']}, the norm of its gradient "
                f"{values['gradient_norm']}. Stopped; the last checkpoint is good. The clips of this batch: "
                + ", ".join(self.clips.ids_of_step(self.step))
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.ema:
            # Early on the average must forget the random start faster.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        if measure:
            values |= self._means(outcome.metrics())
        return values

    def _means(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes of name -> [sum, count]; a name that counts nothing is left out."""
        # One reduction for all of them: [n, 2]
        total = self.fabric.all_reduce(torch.stack(list(sums.values())), reduce_op="sum")
        assert isinstance(total, Tensor)
        means = zip(sums, total[:, 1].tolist(), (total[:, 0] / total[:, 1]).tolist(), strict=True)
        return {name: mean for name, count, mean in means if count}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and metrics on the split dev, with fixed masks and, if there are, the averaged weights."""
        sums: dict[str, Tensor] = {}  # name -> [sum, count] so far
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        self.network.eval()
        with self._averaged(), self.fabric.autocast():
            for rows in self.dev.dev_batches(MAX_DEV_CLIPS if self.fold is None else len(self.dev)):
                batch = self.dev.dev_batch(rows, rank, world_size).to(self.fabric.device)
                outcome = self.objective(self.model, batch, self.preset)
                loss = torch.stack([outcome.loss.float() * outcome.weight, outcome.weight])
                # Sums, not means: the last batch may be smaller.
                for name, value in {"loss": loss, **outcome.metrics()}.items():
                    sums[name] = sums[name] + value if name in sums else value
        self.network.train()
        return self._means(sums)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights in the model's place inside the ``with`` block."""
        own = [parameter.detach().clone() for parameter in self.parameters] if self.ema else []
        for parameter, average in zip(self.parameters, self.ema, strict=False):
            parameter.data.copy_(average)
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, own, strict=False):
                parameter.data.copy_(value)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """The plain optimizers inside Fabric's wrappers."""
        return [each.optimizer for each in self.optimizers]

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            about = {"identity": self.identity, "seconds": self.seconds}
            save_checkpoint(
                self.folder / "checkpoints",
                self.step,
                self.model,
                self._optimizers(),
                self.ema,
                about,
            )
        self.fabric.barrier()

    def _journal(self) -> AbstractContextManager[Write]:
        """A function that writes metrics; only the first process does."""
        if self.fabric.is_global_zero:
            return journal(self.folder, self.step)
        return nullcontext(lambda step, split, values: None)

    def export(self) -> None:
        """Make the run's folder a model directory: weights, config, and a record of how they were trained."""
        with self._averaged():
            save_tensors(self.folder / "model.safetensors", self.model.state_dict())
            self._write_statistics()
        write_json(self.folder / "config.json", asdict(self.preset))
        write_json(
            self.folder / "record.json",
            {
                "code": code_version(),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "seed": self.preset.train.seed,
                "objective": self.preset.train.objective,
                "steps": self.total,
                "fold": self.fold,
                "clips": {"train": len(self.clips), "dev": len(self.dev)},
                "store": self.clips.mixture.record(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.fabric.device}",
                "processes": self.fabric.world_size,
                "seconds": round(self.seconds, 1),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
        )
        self.log(f"{self.folder}: done, {self.total} steps in {self.seconds / 60:.1f} min")

    def _write_statistics(self) -> None:
        """What a classifier of pictures tells the unknown by, if the store has pictures in both splits."""
        (self.folder / KNOWN).unlink(missing_ok=True)  # of an earlier end of this run
        if isinstance(self.model, Classifier) and "video" in self.preset.train.inputs:
            self.model.eval()
            statistics = class_statistics(self.model, self.clips.mixture, self.preset)
            if statistics is not None:
                statistics.save(self.folder)
