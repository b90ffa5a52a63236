"""vab evaluate generation."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro

from vab.cli.options import Device, Model, Place
from vab.cli.output import show, tell
from vab.cli.progress import file_progress
from vab.errors import SettingError

NAMED = 10  # clips named for people


def generation(
    reference: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[REFERENCE]")] = None,
    generated: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[GENERATED]")] = None,
    store: Annotated[Path | None, tyro.conf.arg(metavar="STORE")] = None,
    model: Model = None,
    split: str = "test",
    clips: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    seed: int = 0,
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    codec_path: Place = None,
    seconds: float = 10.0,
    backbones: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    allow_missing: bool = False,
    resamples: int = 200,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Measure generated sounds against real ones: FAD, KLD, IS, and what needs no network.

    What is measured is GENERATED, a folder, or what a model makes for the pictures of a store (--store,
    --model), against REFERENCE, or without it against the store's own sounds.

    Sounds belong together that have the same name without its ending; a video's own sound counts where no
    sound file has its name. A clip that is missing, unreadable, silent, too short or there twice is named,
    and nothing is measured. The features are kept and used again, in av-benchmark's own files.

    Always there: FD of log-mel statistics, multi-scale mel distance, agreement of onsets. With the weights of
    vggish: FAD; of passt: KLD, FD, IS; of panns: FD, KL, IS; of yamnet: FD, KL, IS. Where REFERENCE holds
    videos, with imagebind: IB-Score; with synchformer: DeSync.

    Args:
        reference: a folder of sounds or videos, or of av-benchmark's features.
        generated: the same of what was generated.
        store: latents made by vab extract. Its sounds went through the codec, so without REFERENCE what the
            codec loses is not counted.
        model: a model directory or a Hub id, decoded as its preset says. Left out: the bundled vab-tiny.
        split: of the store.
        clips: at most so many, spread over the split. Left out: all that have sound and picture.
        seed: of the model's noise.
        run: folder for the sounds, where a call that was cut goes on. Left out: they are not kept.
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        seconds: of each clip, from its beginning: 10 as in the paper, 8 as in av-benchmark. Of a model that
            makes less at once, that.
        backbones: vggish, panns, passt, yamnet, imagebind, synchformer. Left out: those with weights here.
        weights: the folder of their weights. Left out: $VAB_WEIGHTS and where other tools keep them.
        cache: a folder for the features. Left out: in the two folders.
        allow_missing: leave out clips that cannot be measured, and say how many.
        resamples: of the clips, for the 95 % intervals of FD and IS; 0: no such intervals.
        device: cpu, cuda, mps, or auto.
        json: one JSON document on standard output.
    """
    if clips is not None and clips < 2:
        raise SettingError("--clips must be 2 or more")

    from vab.evaluate.generation.from_model import Task, evaluate_model
    from vab.evaluate.generation.protocol import Incomplete, Settings, evaluate

    settings = Settings(
        seconds=seconds,
        backbones=backbones,
        weights=weights,
        cache=cache,
        allow_missing=allow_missing,
        resamples=resamples,
        device=device,
    )
    try:
        with file_progress() as progress, TemporaryDirectory() as kept_nowhere:
            if store is not None and generated is None:
                place = run or Path(kept_nowhere)
                task = Task(
                    store=store,
                    run=place,
                    model=model,
                    split=split,
                    clips=clips,
                    seed=seed,
                    reference=reference,
                    codec_path=codec_path,
                )
                found = evaluate_model(task, settings, progress)
            elif store is None and reference is not None and generated is not None:
                if (model, clips, run, codec_path) != (None, None, None, None):
                    raise SettingError("--model, --clips, --run and --codec-path are for --store")
                found = evaluate(reference, generated, settings, progress)
            else:
                raise SettingError("what to measure: REFERENCE GENERATED, or --store STORE with --model DIR")
    except Incomplete as error:
        _name(error.faults)
        tell(f"vab: {error}")
        if json:
            show({"error": str(error), "left_out": [vars(fault) for fault in error.faults]}, "", json)
        return 1
    _name(found.faults)
    for name, reason in found.absent.items():
        tell(f"not measured with {name}: {reason}")
    if found.unwritten:
        tell(found.unwritten)
    if found.external:
        tell(f"features made elsewhere were taken as they are: {', '.join(found.external)}")
    show(found.document(), found.markdown(), json)
    return 1 if found.faults else 0


def _name(faults: Any) -> None:
    """The first clips that cannot be measured, and why, on standard error."""
    for fault in faults[:NAMED]:
        tell(f"{fault.id}: {fault.reason}")
    if len(faults) > NAMED:
        tell(f"and {len(faults) - NAMED:,} more: --json has them all")
