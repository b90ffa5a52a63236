"""vab evaluate ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.options import Device, Devices, Precision, WeightsPath
from vab.cli.output import log, print_result
from vab.cli.progress import file_progress
from vab.evaluate.ablation.tables import ABLATIONS
from vab.presets import Speed
from vab.utils.world import check_alone


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
    speed: Speed | None = None,
    epochs: Annotated[dict[str, float] | None, tyro.conf.arg(metavar="TRAINING N ...")] = None,
    max_steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    reference: Annotated[Path | None, tyro.conf.arg(metavar="REFERENCE")] = None,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    resamples: int = 200,
    codec_path: WeightsPath = None,
    precision: Precision = "float32",
    device: Device = "auto",
    devices: Devices = 1,
    json: bool = False,
) -> int:
    """Run an ablation of the paper: a Markdown table with the paper's column beside ours, JSON, a plot.

    guidance, temperature, steps and fine (of a second stage) decode a finished model; scratch, experts,
    order, contrastive, masking, vision and positions train new ones. Results already in the folder are
    reused, also by other ablations. All rows are measured on the same clips; clips left out are named.

    Args:
        name: the ablation to run.
        store: stores made by vab extract. Of several, each row takes the first that fits (vision needs two).
        run: folder for networks, sounds and results.
        model: the model to decode: a model directory or a Hub id. Default: the bundled vab-tiny.
        preset: the preset to train, with its -contrastive and -classes or -vggsound variants; the paper's is
            vab-dac-test.
        pretraining: stores for masked prediction and contrastive learning, if they differ from the store that
            is classified and measured on (in the paper: AudioSet and VGGSound together). Each row mixes all
            of them that fit.
        fine: second-stage models (vab-dac-coarse2fine) that complete the tokens of trained models. With
            several, each row takes the first that fits. For a finished model, they replace its own.
        split: the split of the store to measure on.
        clips: the largest number of sounds to generate for each row.
        seed: the random seed of generation.
        speed: how much is computed for a sound, as in vab generate, but for what a row changes. Default: the
            settings of the model, or of the preset that is trained.
        epochs: epochs of trainings, each named after those up to it: contrastive 20 masked_contrastive 10.
            Default: the paper's (order: 29 for contrastive learning that comes first), else the presets'.
        max_steps: training steps of each run, instead of all epochs.
        reference: folder of real sounds named by clip id, or a manifest. Default: the store's own, decoded by
            the codec.
        weights: the folder of weights for FAD, KLD, ...; see vab evaluate generation.
        cache: folder for the extracted features. Default: in the folders of the sounds.
        resamples: bootstrap resamples for the 95 % intervals of whole-set metrics.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        precision: what the networks compute in when they are measured; how they are trained, the preset says.
            auto is bfloat16 where that is measured to be fast, tf32 needs an NVIDIA GPU.
        device: the device to train and generate on.
        devices: number of GPUs to train and generate on, or of processes on a CPU.
        json: print one JSON document to standard output.
    """
    check_alone()
    from vab.evaluate.ablation import report
    from vab.evaluate.ablation.run import AblationSettings, ablate

    settings = AblationSettings(
        stores=store,
        run=run,
        model=model,
        preset=preset,
        split=split,
        clips=clips,
        seed=seed,
        speed=speed,
        epochs=epochs or {},
        max_steps=max_steps,
        reference=reference,
        weights=weights,
        resamples=resamples,
        codec_path=codec_path,
        precision=precision,
        device=device,
        devices=devices,
        pretraining=pretraining,
        fine=fine,
        cache=cache,
    )
    with file_progress() as move:
        result = ablate(name, settings, log, move)
    written = report.write(result, run, log)
    for path in written:
        log(str(path))
    print_result(result.document(), report.as_markdown(result), json)
    absent = {name: reason for each in result.outcomes for name, reason in each.absent.items()}
    for name, reason in absent.items():
        log(f"not measured with {name}: {reason}")
    return 1 if any(each.reason or each.left_out for each in result.outcomes) else 0
