"""Training a preset on a store, for every objective (section 3.2, appendix B.4, Table 8).

A run is a function of its preset, its store and its seed. It resumes by itself from its folder, after any
kind of death bit for bit, and any number of processes share the same global batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vab.config import DEFAULT_COMPUTE, Compute, Preset, check_config, check_preset, check_value
from vab.data.mixture import Mixture
from vab.errors import SettingError, TrainError
from vab.training.batches import ClipBatches, classes_of, hold_out
from vab.training.launch import launched, open_fabric, own_processes, start_processes
from vab.training.monitor.journal import Logger
from vab.training.monitor.samples import Examine
from vab.training.run import TrainingRun
from vab.utils.device import tf32


def train(
    preset: Preset,
    store_dir: str | Path | Sequence[str | Path],
    run_dir: str | Path,
    *,
    weights: Sequence[float] | None = None,
    init: str | Path | None = None,
    compute: Compute = DEFAULT_COMPUTE,
    max_steps: int | None = None,
    fold: str | None = None,
    lengthen: bool = False,
    if_longer: str = "",
    loggers: Sequence[Logger] = (),
    codec_path: str | Path | None = None,
    examine: Examine | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Train, or go on with the run in ``run_dir``; returns ``run_dir``, then a model directory.

    Of several stores an epoch holds each clip as often as the store's of ``weights`` says (default: once).
    ``init`` is a model directory whose weights to start from. ``compute`` says how it is computed: by several
    devices in processes that import the caller's main module (so a script needs its
    ``if __name__ == "__main__"``), or, if torchrun or srun has started this process, with the others.
    ``max_steps`` is ``train.max_steps``. With ``fold`` that fold of the store is validated on,
    every clip of it, and the other folds are learned. With ``lengthen`` a run may go on to more steps than it
    was begun with; without it the error adds ``if_longer``, what else the caller can do. ``loggers`` hear of
    it beside the run's own; samples (``train.sample_every``) are decoded by the codec at ``codec_path`` and
    scored by ``examine``. Written: ``config.json``, ``checkpoints/``, ``metrics.jsonl``, TensorBoard's
    events, and at the end ``model.safetensors`` (averaged weights if there are), ``record.json``. Ctrl-C
    (``KeyboardInterrupt``), SIGTERM and SIGUSR1 (``SystemExit``) end it after the step it is at, with a
    checkpoint.
    Raises ``SettingError`` for a preset that makes no sense, ``StoreError`` for latents that do not fit,
    ``TrainError`` for devices that are not there, for a split without the clips that the objective needs,
    for a folder that holds another run and for a loss that is not finite (the last good checkpoint stays),
    ``ModelError`` for an ``init`` that is no model, ``LockedError`` while another process trains there.
    """
    check_preset(preset)
    check_config(compute)
    if max_steps is not None:
        check_value("max_steps", max_steps, int, 1, math.inf)
        preset = replace(preset, train=replace(preset.train, max_steps=max_steps))
    work = partial(
        _train,
        preset,
        store_dir,
        Path(run_dir),
        weights=weights,
        init=init,
        compute=compute,
        fold=fold,
        lengthen=lengthen,
        if_longer=if_longer,
        loggers=loggers,
        codec_path=codec_path,
        examine=examine,
    )
    if (processes := own_processes(compute.devices)) > 1:
        start_processes(work, processes, compute.device, log)
    else:
        work(log=log)
    return Path(run_dir)


def _train(
    preset: Preset,
    store_dir: str | Path | Sequence[str | Path],
    folder: Path,
    *,
    weights: Sequence[float] | None,
    init: str | Path | None,
    compute: Compute,
    fold: str | None,
    log: Callable[[str], None],
    **options: Any,
) -> None:
    """:func:`train` in one of the processes of a run; ``options`` are those of a ``TrainingRun``."""
    # 1. The latents, and the classes to learn.
    latents = Mixture.open(store_dir, weights)
    latents.verify()
    if fold is not None:
        hold_out(latents, fold)
    if preset.train.objective == "classification" and not preset.classes:
        preset = replace(preset, classes=classes_of(latents))
        if not preset.classes:
            raise TrainError(f"{latents} has no labels in the split train to learn")
    clips, dev = ClipBatches(latents, preset, "train"), ClipBatches(latents, preset, "dev")
    if not len(clips):
        raise TrainError(f"{latents} has no clip with sound in the split train")
    if not clips.epoch_length:
        raise SettingError(f"weights {latents.weights} leave no clip in an epoch")
    if preset.train.objective == "contrastive" and not len(clips.rows_with_video()):
        raise TrainError(f"{latents} has no clip with sound and picture in the split train")

    # 2. The run.
    fabric = open_fabric(compute.device, preset.train.precision)
    folder.mkdir(parents=True, exist_ok=True)
    with launched(fabric, folder, log), tf32(preset.train.precision == "tf32"):
        run = TrainingRun(fabric, preset, clips, dev, folder, compute=compute, fold=fold, log=log, **options)
        run.start(None if init is None else Path(init))
        run.loop()
        if fabric.is_global_zero:
            run.export()
        fabric.barrier()
