"""Evaluation of a model on the clips of a store: synthesize, then compare (section 4, Table 1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vab.data.store import LatentStore
from vab.evaluate.generation.protocol import EvaluationSettings, Generation, evaluate
from vab.evaluate.generation.synthesis import Synthesizer, chosen_rows, reconstruct_true, synthesize
from vab.models.hub import find_model, read_config
from vab.training.batches import ClipBatches
from vab.utils.progress import FileProgress


def evaluate_model(
    model: str | None,
    store: Path,
    run: Path,
    settings: EvaluationSettings,
    *,
    split: str,
    clips: int | None,
    seed: int,
    reference: Path | None,
    codec_path: str | None,
    progress: FileProgress = lambda *_: None,
) -> Generation:
    """Make the sounds that are not there, as the model's preset decodes, and measure them.

    ``model`` is a model directory or a Hub id (None: the bundled one). It makes sounds for at most ``clips``
    clips of the store that have audio and video, spread evenly over the split (None: all), in
    ``run/sounds/<model's name>/<id>.wav``. ``reference`` holds real sounds named <id>; None: the store's own,
    through the codec, in ``run/true``. Measured are at most as many seconds as the model's window has.
    Raises as loading does (``ModelError``, ``CodecError``, ``StoreError``), and as ``evaluate``.
    """
    # 1. The model, and the clips of the store that it can be measured on.
    folder = find_model(model)
    preset = read_config(folder)
    batches = ClipBatches(LatentStore.open(store), preset, split)
    rows = chosen_rows(batches, clips)
    maker = Synthesizer.load(folder, codec_path, settings.device)
    # 2. Sounds: the true ones through the codec, unless real ones are given, and the model's.
    true = reference or reconstruct_true(batches.store, rows, maker, run, progress)
    sounds = run / "sounds" / folder.name
    names = synthesize(maker, batches, rows, preset.decode, seed, sounds, progress)
    # 3. Compare, over no more seconds than the model makes.
    settings = replace(settings, seconds=min(settings.seconds, preset.model.seconds), clips=names)
    result = evaluate(true, sounds, settings, progress)
    return replace(result, reference=reference or store, generated=Path(folder.name))
