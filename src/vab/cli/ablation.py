"""vab evaluate ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vab.cli.output import show, tell
from vab.cli.progress import file_progress
from vab.evaluate.ablation.tables import ABLATIONS


def ablation(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="|".join(ABLATIONS))],
    store: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="STORE ...")],
    run: Annotated[Path, tyro.conf.arg(metavar="FOLDER")],
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR|HUB_ID")] = None,
    preset: str = "vab-tiny",
    pretraining: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="STORE ...")] = (),
    fine: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="DIR ...")] = (),
    split: str = "dev",
    clips: int = 200,
    seed: int = 0,
    max_steps: int | None = None,
    reference: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    resamples: int = 200,
    codec_path: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    json: bool = False,
) -> int:
    """Run an ablation of the paper: a Markdown table with the paper's column beside ours, a JSON, a plot.

    guidance, temperature, steps and fine (of a second stage) decode a finished model; scratch, experts,
    order, contrastive, masking, vision and positions train. What is in the folder already is not done again,
    and ablations share it. All rows are measured on the same clips; those left out are named.

    Args:
        name: which.
        store: latents made by vab extract. Several: each row takes the first that fits (vision needs two).
        run: folder for networks, sounds and results.
        model: what is decoded: a model directory or a Hub id. Left out: the bundled vab-tiny.
        preset: what is trained, with its -contrastive and -classes or -vggsound; the paper's is vab-dac-test.
        pretraining: latents for masked prediction and contrast, if other than the store that is measured on
            and whose classes are learned: in the paper AudioSet and VGGSound together.
        fine: second stages (vab-dac-coarse2fine), to make sound with what is trained. Several: each row takes
            the first that fits. Of a finished model, instead of its own.
        split: of the store, to measure on.
        clips: at most so many sounds are made for each row.
        seed: of their noise.
        max_steps: of each training, instead of the length that the presets' epochs give.
        reference: real sounds, named by the clips' ids. Left out: the store's own, through the codec.
        weights: the folder of weights for FAD, KLD ...; see vab evaluate generation.
        cache: a folder for the features. Left out: in the folders of the sounds.
        resamples: of the clips, for the 95 % intervals of whole sets.
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        device: where sounds are made.
        json: one JSON document on standard output.
    """
    from vab.evaluate.ablation import report
    from vab.evaluate.ablation.run import Settings, ablate

    settings = Settings(
        stores=store,
        run=run,
        model=model,
        preset=preset,
        split=split,
        clips=clips,
        seed=seed,
        max_steps=max_steps,
        reference=reference,
        weights=weights,
        resamples=resamples,
        codec_path=codec_path,
        device=device,
        pretraining=pretraining,
        fine=fine,
        cache=cache,
    )
    with file_progress() as move:
        result = ablate(name, settings, tell, move)
    written = report.write(result, run, tell)
    for path in written:
        tell(str(path))
    show(result.document(), report.as_markdown(result), json)
    absent = {name: reason for each in result.outcomes for name, reason in each.absent.items()}
    for name, reason in absent.items():
        tell(f"not measured with {name}: {reason}")
    return 1 if any(each.reason or each.left_out for each in result.outcomes) else 0
