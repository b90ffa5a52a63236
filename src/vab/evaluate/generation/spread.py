"""Sounds for the clips of a store, shared out to a process for each device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vab.config import DecodeConfig, Preset
from vab.data.store import LatentStore
from vab.evaluate.generation.synthesis import (
    GROUP,
    Synthesizer,
    chosen_rows,
    reconstruct_true,
    synthesize,
)
from vab.training.batches import ClipBatches
from vab.utils.device import FLOAT32, Chosen
from vab.utils.processes import Worker, run_processes
from vab.utils.progress import FileProgress
from vab.utils.shares import ALL, Share


@dataclass(frozen=True)
class Synthesis:
    """What to synthesize: the clips of a store by a model, once for each of some settings of decoding."""

    model: Path  # a model directory
    store: Path
    preset: Preset  # by which the clips are taken
    split: str
    clips: int | None  # at most, spread over the split; None: all that have audio and video
    seed: int
    takes: tuple[tuple[DecodeConfig, Path], ...]  # settings of decoding, and the folder of their sounds
    true: Path | None  # where the true sounds, through the codec, are wanted; None: nowhere
    codec_path: str | Path | None = None
    fine: Path | None = None  # a second stage in place of the model's own
    true_coarse: bool = False  # as in ``Synthesizer``
    batch: int = GROUP  # clips at once, on a GPU
    share: Share = ALL  # of the sounds; the others are made elsewhere
    precision: Chosen = FLOAT32


@dataclass(frozen=True)
class Synthesized:
    """Where the sounds are."""

    true: Path | None  # the folder of the true ones
    names: frozenset[str]  # of the files in each folder, without their ending


def synthesize_on(
    devices: Sequence[torch.device], wanted: Synthesis, progress: FileProgress = lambda *_: None
) -> Synthesized:
    """Make the sounds that are not there; each device has a process, a model and every n-th batch.

    The batches are those of a single process, and so are the sounds. Raises as ``Synthesizer.load``,
    ``reconstruct_true`` and ``synthesize`` do; ``ProcessError`` if the process of a device dies. What is made
    stays, and another call goes on from there.
    """
    calls = [wanted] * len(devices)
    return run_processes(_synthesize, calls, devices, lambda rank, news: progress(*news))[0]


def _synthesize(worker: Worker, wanted: Synthesis) -> Synthesized:
    """The work of one process."""
    # 1. The clips; a wrong call fails here, before a model is loaded.
    clips = ClipBatches(LatentStore.open(wanted.store), wanted.preset, wanted.split)
    rows = chosen_rows(clips, wanted.clips)

    # 2. The model.
    maker = Synthesizer.load(wanted.model, wanted.codec_path, worker.device, wanted.fine, wanted.precision)
    maker = replace(maker, true_coarse=wanted.true_coarse, batch=wanted.batch)

    # 3. Its share of the sounds: the true ones, and those of each take.
    def report(*news: object) -> None:
        worker.tell(news)

    share = wanted.share.part(worker.rank, worker.count)
    true = None
    if wanted.true is not None:
        true = reconstruct_true(clips.store, rows, maker, wanted.true, report, share)
    names: frozenset[str] = frozenset()
    for decode, folder in wanted.takes:
        names = synthesize(maker, clips, rows, decode, wanted.seed, folder, report, share)
    return Synthesized(true, names)
