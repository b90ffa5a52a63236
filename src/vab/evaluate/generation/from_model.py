"""Evaluation of a model on the clips of a store: synthesize, then compare (section 4, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from vab.data.store import LatentStore
from vab.evaluate.generation.protocol import Generation, Settings, evaluate
from vab.evaluate.generation.synthesis import (
    Synthesizer,
    chosen_rows,
    file_name,
    reconstruct_true,
    synthesize,
)
from vab.models.hub import find_model, read_config
from vab.training.batches import ClipBatches
from vab.utils.progress import FileProgress


@dataclass(frozen=True)
class Task:
    """The clips that a model makes sounds for, and where these go."""

    store: Path  # of latents, made by vab extract
    run: Path  # sounds/<model's name>/<id>.wav, and the true ones in true
    model: str | None = None  # a model directory or a Hub id; None: the bundled one
    split: str = "test"
    clips: int | None = None  # at most, spread evenly; None: all that have audio and video
    seed: int = 0
    reference: Path | None = None  # real sounds named <id>; None: the store's own, through the codec
    codec_path: str | None = None


def evaluate_model(task: Task, settings: Settings, progress: FileProgress = lambda *_: None) -> Generation:
    """Make the sounds that are not there, as the model's preset decodes, and measure them.

    Measured are at most as many seconds as the model's window has.
    Raises as loading does (``ModelError``, ``CodecError``, ``StoreError``), and as ``evaluate``.
    """
    # 1. The model, and the clips of the store that it can be measured on.
    folder = find_model(task.model)
    preset = read_config(folder)
    clips = ClipBatches(LatentStore.open(task.store), preset, task.split)
    rows = chosen_rows(clips, task.clips)
    maker = Synthesizer.load(folder, task.codec_path, settings.device)
    # 2. Sounds: the true ones through the codec, unless real ones are given, and the model's.
    reference = task.reference or reconstruct_true(clips.store, rows, maker, task.run, progress)
    sounds = task.run / "sounds" / folder.name
    synthesize(maker, clips, rows, preset.decode, task.seed, sounds, progress)
    # 3. Compare, over no more seconds than the model makes.
    measured = frozenset(file_name(clips.store.ids[row]) for row in rows)
    settings = replace(settings, seconds=min(settings.seconds, preset.model.seconds), clips=measured)
    result = evaluate(reference, sounds, settings, progress)
    return replace(result, reference=task.reference or task.store, generated=Path(folder.name))
