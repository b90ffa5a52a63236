"""Steps of training taken one at a time, by one process or by two."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from vab.config import Compute, Preset
from vab.data.store import LatentStore
from vab.training.batches import Batch, ClipBatches
from vab.training.launch import launched, open_fabric
from vab.training.run import TrainingRun

PATIENCE = 300.0  # seconds after which processes that wait for each other in vain end


def training(
    chosen: Preset, store: Path, folder: Path, compute: Compute, fabric: Fabric | None = None
) -> TrainingRun:
    chosen = replace(chosen, train=replace(chosen.train, max_steps=chosen.train.max_steps or 9))
    latents = LatentStore.open(store)
    clips, dev = (ClipBatches(latents, chosen, split) for split in ("train", "dev"))
    fabric = fabric or open_fabric("cpu", chosen.train.precision)
    return TrainingRun(fabric, chosen, clips, dev, folder, compute=compute, log=lambda _: None)


def gradients(run: TrainingRun) -> dict[str, torch.Tensor]:
    """Loss and gradient of the third step, before it is clipped to a smaller norm."""
    for optimizer in run.optimizers:
        optimizer.zero_grad = lambda *_: None
    batch = run.clips.train_batch(2, run.fabric.global_rank, run.fabric.world_size)
    values = run.update(batch, measure=True)
    kept = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
    return kept | {name: torch.as_tensor(value) for name, value in values.items()}


def steps_of_two(
    cases: Mapping[str, tuple[Preset, Compute]], store: Path, folder: Path, log: Callable[[str], None]
) -> None:
    """In each of two processes: the gradient of a step of each case, and a run that one is asked to stop.

    Written: ``folder/<case>-<rank>.safetensors``, which holds the gradient, and how many bytes of gradients
    were exchanged and all weights have, and ``folder/stopped-<rank>``, the exit code and the step.
    """
    lost = threading.Timer(PATIENCE, os._exit, [3])
    lost.daemon = True
    lost.start()
    fabric = open_fabric("cpu", "32-true")
    rank = fabric.global_rank
    with launched(fabric, folder, log):
        # 1. Steps.
        for case, (chosen, compute) in cases.items():
            run = training(chosen, store, folder, compute, fabric)
            exchanged: list[int] = []
            # without annotations, which PyTorch would want to be classes
            run.network._forward_module.register_comm_hook(
                None,
                lambda group, bucket, to=exchanged: (
                    to.append(bucket.buffer().nbytes) or allreduce_hook(group, bucket)
                ),
            )
            found = {name: value.contiguous() for name, value in gradients(run).items()}
            weights = sum(parameter.nbytes for parameter in run.parameters)
            sizes = {"exchanged": torch.tensor(sum(exchanged)), "weights": torch.tensor(weights)}
            save_file(found | sizes, folder / f"{case}-{rank}.safetensors")

        # 2. The second process alone gets a signal, while its 13th batch is made.
        chosen, compute = next(iter(cases.values()))
        quiet = {"max_steps": 10_000, "log_every": 10**9, "save_every": 10**9}
        chosen = replace(chosen, train=replace(chosen.train, **quiet))
        run = training(chosen, store, folder, compute, fabric)
        make = run.clips.train_batch

        def signalled(step: int, **options: int) -> Batch:
            if rank == 1 and step == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            return make(step, **options)

        run.clips.train_batch = signalled  # type: ignore[method-assign,assignment]
        try:
            run.loop()
        except SystemExit as stopped:
            (folder / f"stopped-{rank}").write_text(f"{stopped.code} {run.step}")
