"""Runs of training on random latents, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vab.config import Compute, ModelConfig, Preset
from vab.data.mixture import Mixture
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.training.batches import Batch, ClipBatches
from vab.training.launch import open_fabric
from vab.training.monitor.journal import Logger
from vab.training.run import TrainingRun
from vab.training.step import backward

WEIGHTS = (1.0, 2.0)  # of the two stores of a mixture


def synthetic_store(
    folder: Path, model: ModelConfig, clips: int, fps: float | None = None, name: str = "clip"
) -> LatentStore:
    """A store of random latents that fit ``model``; every second clip says its label with each token.

    ``fps`` are its features a second, a multiple of the model's (None: the model's own); ids begin with
    ``name``.
    """
    draw = np.random.default_rng([*name.encode()])
    meta = StoreMeta.for_model(model)
    meta = replace(meta, fps=fps or meta.fps)
    vectors = np.random.default_rng(0).standard_normal(
        (model.num_codebooks, model.codebook_size, model.codebook_dim), np.float32
    )
    store = LatentStore.create(folder, meta, vectors)
    rows = []
    for n in range(clips):
        tokens = draw.integers(model.codebook_size, size=meta.token_shape).astype(np.uint16)
        # something that can be learned
        if n % 2:
            tokens[:] = n % 7
        features = draw.standard_normal(meta.feature_shape, np.float32).astype(np.float16)
        rows.append(Latents(f"{name}{n:05d}", f"label{n % 7}", "train", tokens, features))
    with store.writing():
        store.add(rows)
    return store


def synthetic_mixture(folder: Path, model: ModelConfig, clips: int) -> Mixture:
    """Two such stores, as the paper's are: one with five features for each of the model's, one with one."""
    dense = synthetic_store(folder / "dense", model, clips // 2, 5 * model.fps, "dense")
    sparse = synthetic_store(folder / "sparse", model, clips - clips // 2, name="sparse")
    return Mixture([dense, sparse], WEIGHTS)


def run_of(
    preset: Preset,
    latents: LatentStore | Mixture,
    folder: Path,
    compute: Compute,
    loggers: Sequence[Logger] = (),
) -> TrainingRun:
    """A run of training that is ready to begin, on one device.

    Its weights are drawn there: half a billion of them take a CPU half a minute.
    """
    clips, dev = (ClipBatches(latents, preset, split) for split in ("train", "dev"))
    fabric = open_fabric(compute.device, preset.train.precision)
    fabric.launch()
    with fabric.device:
        run = TrainingRun(
            fabric, preset, clips, dev, folder, compute=compute, loggers=loggers, log=lambda line: None
        )
    return run


def gradient(run: TrainingRun, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Loss of a batch by the run's present weights, and the gradient of each of them; nothing is learned."""
    loss, _ = backward(
        run.fabric,
        run.network,
        batch,
        run.preset,
        parts=run.compute.accumulate,
        seed=0,
        measure=False,
    )
    found = [p.grad.clone() for p in run.parameters if p.grad is not None]
    run.model.zero_grad()
    return loss, found


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Relative L2 distance of tensors taken together, on their device; infinite if one is not a number."""
    distance = torch.stack([(f - w).double().norm() for f, w in zip(found, wanted, strict=True)]).norm()
    value = float(distance / torch.stack([w.double().norm() for w in wanted]).norm().clamp(min=1e-30))
    return value if value == value else float("inf")
