"""One run of training: its state, the loop over steps, validation, what it saves (section 3.2, B.4)."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vab.config import DEFAULT_COMPUTE, FREE_FIELDS, Compute, Preset, written
from vab.errors import TrainError
from vab.models.flops import training_flops
from vab.models.heads import Classifier, start_from
from vab.models.hub import CONFIG, KNOWN, MODEL
from vab.models.vab import VAB
from vab.sampling.student import Student
from vab.training.batches import Batch, ClipBatches
from vab.training.checkpoint import BEST, KEPT, resume, save_checkpoint
from vab.training.known import class_statistics
from vab.training.loader import made_ahead
from vab.training.monitor.journal import Logger, journal
from vab.training.monitor.samples import Examine, Samples
from vab.training.monitor.signals import stopping
from vab.training.monitor.throughput import Throughput
from vab.training.monitor.validation import Validation, means
from vab.training.objectives import OBJECTIVES, build
from vab.training.optimizer import learning_rate, optimizers
from vab.training.step import backward, prepare
from vab.utils import count_of
from vab.utils.files import save_tensors, tensors_checksum, write_json
from vab.utils.progress import step_bar
from vab.utils.provenance import code_version

CHECK_EVERY = 10  # steps after which the loss is looked at, and whether a process wants to stop


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
        compute: Compute = DEFAULT_COMPUTE,
        fold: str | None = None,
        lengthen: bool = False,
        if_longer: str = "",
        loggers: Sequence[Logger] = (),
        codec_path: str | Path | None = None,
        examine: Examine | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.fabric, self.preset, self.clips, self.dev = fabric, preset, clips, dev
        self.folder, self.fold, self.objective = folder, fold, OBJECTIVES[preset.train.objective]
        self.compute = compute
        self.log = log if fabric.is_global_zero else lambda line: None
        self.lengthen, self.if_longer, self.own_loggers = lengthen, if_longer, loggers
        self.codec_path, self.examine = codec_path, examine
        self.total = preset.train.max_steps or clips.steps(preset.train.epochs)
        config = preset.train

        # Fresh weights, and the statistics by which the network normalises its features.
        torch.manual_seed(config.seed)
        self.model = build(preset, torch.from_numpy(clips.mixture.codebook_vectors()))
        statistics = clips.mixture.feature_statistics() if preset.model.standardise_features else ()
        for name, values in zip(("feature_mean", "feature_std"), statistics, strict=False):
            next(b for n, b in self.model.named_buffers() if n.endswith(name)).copy_(torch.from_numpy(values))

        prepare(self.model, compute, fabric.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.network, *self.optimizers = fabric.setup(self.model, *optimizers(self.model, config))
        self.ema = [p.detach().clone() for p in self.parameters] if config.ema else []
        self.step = 0
        self.seconds = 0.0
        self.shown = ""  # beside the bar: the loss as of the last check
        self.pending: list[tuple[int, Tensor]] = []  # steps since, with [loss, gradient norm]
        self.best: dict[str, Any] | None = None  # step, measure and score of the best validation
        self.lengths = [[0, self.total]]  # [at step, the length that the run has from there on]
        self.left = False  # a signal left what was due at this step undone
        self.loggers: list[Logger] = []
        self.samples: Samples | Literal["none"] | None = None  # None: not tried yet
        self.validation = Validation(dev, preset, fabric, whole=fold is not None)
        self.speed = Throughput(config.batch_size, fabric.device, fabric.world_size)
        self.identity = self._identity()

    def _identity(self) -> dict[str, Any]:
        """Settings and data that must not change when a run resumes, as JSON reads them back."""
        train = written(self.preset.train)
        for free in FREE_FIELDS:
            del train[free]
        identity = {
            "model": written(self.preset.model),
            "train": train,
            "store": self.clips.mixture.fingerprint(),
            "steps": self.total,
            "classes": self.preset.classes,
            "fold": self.fold,
        }
        return json.loads(json.dumps(identity))

    def start(self, init: Path | None) -> None:
        """Fresh weights, those of ``init``, or the newest checkpoint of the run's folder.

        A student's teacher is ``init``, at every start.
        """
        if isinstance(self.model, Student):
            if init is None:
                raise TrainError("a student needs a teacher: init, the model that it learns from")
            teacher = self.model.learn_from(init, self.preset, self.fabric.autocast)
            self.identity |= {
                "teacher": {
                    "weights": tensors_checksum(init / MODEL),
                    "guidance_scale": teacher.preset.decode.guidance_scale,
                },
                "decode": {"num_steps": self.preset.decode.num_steps},  # what the student is made for
            }
        optimizers = self._optimizers()
        saved = resume(
            self.folder,
            self.identity,
            self.model,
            optimizers,
            self.ema,
            self.log,
            lengthen=self.lengthen,
            if_longer=self.if_longer,
        )
        if saved is not None:
            self.step, about = saved
            self.seconds = about["seconds"]
            self.best = about.get("best")
            self.left = about.get("left", False)
            self.lengths = about.get("lengths", [[0, about["identity"]["steps"]]])
            self.log(f"resuming {self.folder} at step {self.step} of {self.total}")
            if self.lengths[-1][1] != self.total:
                self.lengths.append([self.step, self.total])
                self.log(
                    f"the run was to end at step {self.lengths[-2][1]}: from here on "
                    f"the learning rate is that of a run of {count_of(self.total, 'step')}"
                )
        else:
            if init is not None:
                start_from(self.model, init)
                for average, parameter in zip(self.ema, self.parameters, strict=False):
                    average.copy_(parameter.detach())
            self.log(
                f"training {self.preset.name} in {self.folder}: {count_of(len(self.clips), 'clip')}, "
                f"{count_of(self.total, 'step')}"
            )
        self._warn()
        if self.fabric.is_global_zero:
            write_json(self.folder / CONFIG, written(self.preset))
        self.fabric.barrier()

    def _warn(self) -> None:
        """Say before the first step what will be missed after the last."""
        warmup = self.preset.train.warmup_steps
        if self.step < self.total < warmup:
            self.log(
                f"warm-up {warmup} steps, the run {self.total}: the learning rate ends at "
                f"{100 * self.total / warmup:.2g} % of {self.preset.train.learning_rate:g}; "
                "set --train.warmup-steps"
            )
        if self.step < self.total and not len(self.dev):
            self.log("no clip in the split dev: nothing will be validated; see vab data --dev-share")

    def loop(self) -> None:
        """Train up to the last step, or to the one at which a signal asks to stop."""
        config, speed = self.preset.train, self.speed
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        bar = step_bar(self.preset.name, self.total, self.step, show=self.fabric.is_global_zero)
        self._clock = time.perf_counter()
        ahead = made_ahead(
            partial(self.clips.train_batch, rank=rank, world_size=world_size),
            range(self.step, self.total),
            workers=self.compute.workers,
            prefetch=self.compute.prefetch,
            pin=self.fabric.device.type == "cuda",
        )
        with stopping() as stop, self._journal() as self.loggers, bar as advance, ahead as batches:
            if self.left:
                self._milestone()
            while self.step < self.total:
                # 1. This process's share of each global batch, made ahead.
                speed.begin()
                batch = next(batches).to(self.fabric.device)
                speed.got_batch()

                # 2. The update, which moves on ``self.step``. The device is waited for now and then only.
                logs = self._due(config.log_every, self.step + 1)
                values = self.update(batch, measure=logs)
                stops = world_size == 1 and bool(stop)
                if logs or stops or self._due(CHECK_EVERY) or self._is_milestone():
                    stops = self.check(bool(stop))
                speed.end(training_flops(self.preset, batch.features.shape[1], batch.tokens.shape[2]))
                advance(self.shown)

                # 3. Metrics; then what is due now and then. Whoever is asked to stop has no time for that.
                if logs:
                    self._tell("train", {name: float(v) for name, v in values.items()} | speed.values())
                if stops:
                    self.left = True
                    self._save()
                    message = f"stopped at step {self.step}, saved; start the same command to go on"
                    self.log(message)
                    stop.leave(message)
                self._milestone()

    def _due(self, every: int, step: int | None = None) -> bool:
        """True at every so many steps, and at the last; never if ``every`` is 0."""
        step = self.step if step is None else step
        return every > 0 and (step % every == 0 or step == self.total)

    def _is_milestone(self) -> bool:
        config = self.preset.train
        every = (config.save_every, config.validate_every, config.sample_every, config.keep_every)
        return any(map(self._due, every))

    def _milestone(self) -> None:
        """Validation, samples and checkpoint, those of them that are due at this step."""
        config = self.preset.train
        self.left = False
        roles = set()
        if len(self.dev) and self._due(config.validate_every or config.save_every):
            begin = time.perf_counter()
            with self._averaged():
                values = self.validation(self.model)
            self._tell("dev", values | {"validation_seconds": time.perf_counter() - begin})
            score = self.validation.score(values)
            if self.best is None or score > self.best["score"]:
                self.best = {"step": self.step, "measure": self.validation.measure, "score": score}
                roles.add(BEST)
        if self._due(config.sample_every) and self.fabric.is_global_zero:
            self._sample()
        if config.keep_every and self.step % config.keep_every == 0:
            roles.add(KEPT)
        if roles or self._due(config.save_every):
            self._save(roles)

    def _sample(self) -> None:
        """Sounds for a few dev clips by the present weights, and how close they are to the true ones."""
        if self.samples is None:
            config = self.preset.train
            first = self.step <= config.sample_every
            opened = Samples.open(self.dev, self.preset, self.codec_path, self.fabric.device, self.log)
            self.samples = opened or "none"
            if opened and first:
                opened.show(self.loggers, self.step, opened.true, "/true")
        if isinstance(self.samples, Samples):
            assert isinstance(self.model, VAB)  # or there are no samples
            with self._averaged():
                sounds = self.samples(self.model)
            self.samples.show(self.loggers, self.step, sounds)
            if self.examine is not None:
                self._tell("samples", self.examine(self.samples.true, sounds))

    def _tell(self, split: str, values: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.scalars(self.step, split, values)

    def update(self, batch: Batch, measure: bool) -> dict[str, float | Tensor]:
        """One step of the optimizers -> loss, rate, gradient norm and, with ``measure``, the metrics.

        Without ``measure`` nothing here waits for the device; ``check`` looks at the loss.
        """
        config, fabric = self.preset.train, self.fabric
        rate = learning_rate(self.step, self.total, config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

        # Dropout is the one thing drawn on the device: a stream of its own for each step and process.
        seed = hash((config.seed, self.step, fabric.global_rank)) & 0xFFFFFFFF
        loss, metrics = backward(
            fabric,
            self.network,
            batch,
            self.preset,
            parts=self.compute.accumulate,
            seed=seed,
            measure=measure,
        )
        norm = nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        values: dict[str, float | Tensor] = {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm.detach(),
        }
        self.pending.append((self.step, torch.stack([loss, norm.detach()])))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.ema:
            # Early on the average must forget the random start faster.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - decay)
        if measure:
            values |= means(fabric, metrics)
        return values

    def check(self, stop: bool = False) -> bool:
        """Wait for the device, and see what the steps since the last check have come to.

        Returns whether any process of the run wants to ``stop``. ``TrainError`` if a loss is not finite.
        """
        done = torch.stack([row for _, row in self.pending]).tolist()
        for (step, _), (loss, norm) in zip(self.pending, done, strict=True):
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise TrainError(
                    f"step {step + 1}: the loss is {loss}, the norm of its gradient {norm}. Stopped; "
                    "the last checkpoint is good. The clips of this batch: "
                    + ", ".join(self.clips.ids_of_step(step))
                )
        self.pending.clear()
        self.shown = f"loss {done[-1][0]:.3f}"
        asked = self.fabric.all_reduce(torch.tensor(float(stop), device=self.fabric.device), reduce_op="sum")
        return bool(asked)

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

    def _save(self, roles: Collection[str] = ()) -> None:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        if self.fabric.is_global_zero:
            about = {
                "identity": self.identity,
                "seconds": self.seconds,
                "best": self.best,
                "lengths": self.lengths,
                "left": self.left,  # what was due at this step is still to be done
                "record": self._record(),
            }
            save_checkpoint(
                self.folder / "checkpoints",
                self.step,
                self.model,
                self._optimizers(),
                self.ema,
                about,
                roles,
            )
        self.fabric.barrier()

    def _journal(self) -> AbstractContextManager[list[Logger]]:
        """Who hears of the run; only the first process speaks."""
        if self.fabric.is_global_zero:
            return journal(self.folder, self.step, written(self.preset), self.own_loggers)
        return nullcontext([])

    def _record(self) -> dict[str, Any]:
        """How the weights are trained."""
        return {
            "code": code_version(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "seed": self.preset.train.seed,
            "objective": self.preset.train.objective,
            "steps": self.total,
            "lengths": self.lengths,  # [at step, the length that the run has from there on]
            "best": self.best,
            "fold": self.fold,
            "clips": {"train": len(self.clips), "dev": len(self.dev)},
            "store": self.clips.mixture.record(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {self.fabric.device}",
            "processes": self.fabric.world_size,
        }

    def export(self) -> None:
        """Make the run's folder a model directory: weights, config, and a record of how they were trained."""
        with self._averaged():
            save_tensors(self.folder / MODEL, self.model.state_dict())
            self._write_statistics()
        write_json(self.folder / CONFIG, written(self.preset))
        record = self._record()
        record["seconds"] = round(self.seconds, 1)
        record["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(self.folder / "record.json", record)
        self.log(f"{self.folder}: done, {count_of(self.total, 'step')} in {self.seconds / 60:.1f} min")

    def _write_statistics(self) -> None:
        """What a classifier of pictures tells the unknown by, if the store has pictures in both splits."""
        (self.folder / KNOWN).unlink(missing_ok=True)  # of an earlier end of this run
        if isinstance(self.model, Classifier) and "video" in self.preset.train.inputs:
            self.model.eval()
            statistics = class_statistics(self.model, self.clips.mixture, self.preset)
            if statistics is not None:
                statistics.save(self.folder)
