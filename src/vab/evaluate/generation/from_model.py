"""Evaluation of a model on the clips of a store: synthesize, then compare (section 4, Table 1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vab.evaluate.generation.protocol import EvaluationSettings, Generation, evaluate
from vab.evaluate.generation.spread import Synthesis, synthesize_on
from vab.evaluate.generation.synthesis import GROUP
from vab.models.hub import find_model, read_config
from vab.presets import Speed, at_speed
from vab.utils import PrecisionChoice
from vab.utils.device import pick_precision
from vab.utils.processes import devices_for
from vab.utils.progress import FileProgress
from vab.utils.shares import ALL, Share


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
    speed: Speed | None = None,
    precision: PrecisionChoice = "float32",
    batch: int = GROUP,
    share: Share = ALL,
    progress: FileProgress = lambda *_: None,
) -> Generation | None:
    """Make the sounds that are not there, as the model's preset decodes or at a ``speed``, and measure them.

    ``model`` is a model directory or a Hub id (None: the bundled one). It makes sounds for at most ``clips``
    clips of the store that have audio and video, spread evenly over the split (None: all), in
    ``run/sounds/<model's name>/<id>.wav``; a ``speed`` stands behind the name. ``reference`` holds real
    sounds named <id>; None: the store's own, through the codec, in ``run/true``. ``precision`` is that of the
    model's networks. Measured are at most as many seconds as the model's window has. A ``share`` of the
    sounds is made and not measured: None.
    Raises as loading does (``ModelError``, ``CodecError``, ``StoreError``), as ``synthesize_on`` and as
    ``evaluate``.
    """
    # 1. Sounds: the model's, and the true ones through the codec, unless real ones are given.
    folder = find_model(model)
    preset = read_config(folder)
    name = folder.name if speed is None else f"{folder.name}-{speed}"
    sounds = run / "sounds" / name
    devices = devices_for(settings.devices, settings.device)
    chosen = pick_precision(precision, devices[0])
    wanted = Synthesis(
        model=folder,
        store=store,
        preset=preset,
        split=split,
        clips=clips,
        seed=seed,
        takes=((at_speed(preset.decode, speed), sounds),),
        true=run if reference is None else None,
        codec_path=codec_path,
        batch=batch,
        share=share,
        precision=chosen,
    )
    made = synthesize_on(devices, wanted, progress)
    if share.count > 1:
        return None
    # 2. Compare, over no more seconds than the model makes.
    true = reference or made.true
    assert true is not None
    settings = replace(settings, seconds=min(settings.seconds, preset.model.seconds), clips=made.names)
    result = evaluate(true, sounds, settings, progress)
    source = reference or store
    return replace(result, reference=source, generated=Path(name), made_in=chosen.document())
