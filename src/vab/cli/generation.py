"""vab evaluate generation, vab evaluate join."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from vab.cli.options import Device, Devices, Model, Precision, Shard, WeightsPath
from vab.cli.output import log, print_result
from vab.cli.progress import file_progress
from vab.errors import SettingError
from vab.presets import Speed
from vab.utils import count_of
from vab.utils.files import scratch_folder

MAX_CLIPS_NAMED = 10  # in the log


def generation(
    reference: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[REFERENCE]")] = None,
    generated: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[GENERATED]")] = None,
    store: Annotated[Path | None, tyro.conf.arg(metavar="STORE")] = None,
    model: Model = None,
    split: str = "test",
    clips: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    seed: int = 0,
    speed: Speed | None = None,
    run: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    codec_path: WeightsPath = None,
    seconds: float = 10.0,
    backbones: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="NAME ...")] = None,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    allow_missing: bool = False,
    resamples: int = 200,
    precision: Precision = "float32",
    device: Device = "auto",
    devices: Devices = 1,
    batch: Annotated[int, tyro.conf.arg(metavar="N")] = 8,
    shard: Shard = None,
    json: bool = False,
) -> int:
    """Compare generated sounds with real ones: FAD, KLD, IS, and metrics that need no network.

    Evaluates the folder GENERATED, or the sounds a model generates for the videos of a store (--store,
    --model), against REFERENCE, or, without it, against the store's own sounds.

    Files are paired by name without extension; the audio of a video is used where no sound file has its name.
    If a clip is missing, unreadable, silent, too short or present twice, it is named and nothing is measured.
    Extracted features are cached in the file format of av-benchmark and reused.

    Always measured: FD of log-mel statistics, multi-scale mel distance, onset agreement. With weights of
    vggish: FAD; of passt: KLD, FD, IS; of panns: FD, KL, IS; of yamnet: FD, KL, IS. If REFERENCE holds
    videos, with imagebind: IB-Score; with synchformer: DeSync.

    Args:
        reference: folder of real sounds or videos, or of features from av-benchmark; or a manifest, whose
            clips count by their ids, whatever their files are called.
        generated: the same for the generated sounds.
        store: store made by vab extract. Its sounds have passed through the codec, so without REFERENCE the
            losses of the codec do not count.
        model: a model directory or a Hub id, decoded with its own settings or those of --speed. Default: the
            bundled vab-tiny.
        split: the split of the store, or of a manifest, to evaluate.
        clips: the largest number of clips, spread over the split. Default: all with audio and video.
        seed: the random seed of generation.
        speed: how much is computed for a sound, as in vab generate. Default: the model's own settings.
        run: folder for the generated sounds, to resume an interrupted call. Default: they are deleted.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        seconds: the length measured of each clip, from its start: 10 in the paper, 8 in av-benchmark. A model
            that generates less at once is measured on that length.
        backbones: any of vggish, panns, passt, yamnet, imagebind, synchformer. Default: those whose weights
            are found.
        weights: the folder of their weights. Default: $VAB_WEIGHTS and the caches of other tools.
        cache: folder for the extracted features. Default: inside the two folders.
        allow_missing: leave out clips that cannot be measured, and report how many.
        resamples: bootstrap resamples for the 95 % intervals of FD and IS; 0 computes none.
        precision: what the model's networks compute in, for --store; auto is bfloat16 where that is measured
            to be fast, tf32 needs an NVIDIA GPU.
        device: the device to compute on.
        devices: number of GPUs to share the clips out to, or of processes on a CPU.
        batch: number of clips that a GPU makes at once; a CPU makes one after another.
        shard: make this share of the sounds, from 1/N to N/N, into --run, and measure nothing. Default: make
            what is not there, and measure all; torchrun and SLURM are not asked.
        json: print one JSON document to standard output.
    """
    if clips is not None and clips < 2:
        raise SettingError("--clips must be 2 or more")
    if batch < 1:
        raise SettingError("--batch must be 1 or more")
    if shard is not None and (run is None or store is None):
        raise SettingError(
            "--shard is for --store, with a --run where the sounds of all shares come together"
        )

    from vab.evaluate.generation.clips import of_split
    from vab.evaluate.generation.from_model import evaluate_model
    from vab.evaluate.generation.protocol import EvaluationSettings, Incomplete, evaluate
    from vab.utils.shares import ALL, Share

    share = ALL if shard is None else Share.parse(shard)
    settings = EvaluationSettings(
        seconds=seconds,
        backbones=backbones,
        weights=weights,
        cache=cache,
        allow_missing=allow_missing,
        resamples=resamples,
        device=device,
        devices=devices,
    )
    try:
        with file_progress() as progress, scratch_folder("run") as kept_nowhere:
            if store is not None and generated is None:
                found = evaluate_model(
                    model,
                    store,
                    run or kept_nowhere,
                    settings,
                    split=split,
                    clips=clips,
                    seed=seed,
                    reference=reference,
                    codec_path=codec_path,
                    speed=speed,
                    precision=precision,
                    batch=batch,
                    share=share,
                    progress=progress,
                )
                if found is None:
                    print_result({"run": str(run), "share": str(share)}, f"{run}: made share {share}", json)
                    return 0
            elif store is None and reference is not None and generated is not None:
                if (model, clips, run, codec_path, speed, precision) != (*(None,) * 5, "float32"):
                    raise SettingError(
                        "--model, --clips, --speed, --run, --codec-path and --precision are for --store"
                    )
                settings = replace(settings, clips=of_split(reference, split))
                found = evaluate(reference, generated, settings, progress)
            else:
                raise SettingError("what to measure: REFERENCE GENERATED, or --store STORE with --model DIR")
    except Incomplete as error:
        _log_faults(error.faults)
        log(f"vab: {error}")
        if json:
            print_result({"error": str(error), "left_out": [vars(fault) for fault in error.faults]}, "", json)
        return 1
    _log_faults(found.faults)
    for name, reason in found.absent.items():
        log(f"not measured with {name}: {reason}")
    if found.unwritten:
        log(found.unwritten)
    if found.external:
        log(f"features made elsewhere were taken as they are: {', '.join(found.external)}")
    print_result(found.document(), found.markdown(), json)
    return 1 if found.faults else 0


def join(
    parts: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FOLDER...", help_behavior_hint="(required)"),
    ],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")],
    starts: Annotated[tuple[float, ...], tyro.conf.arg(metavar="X ...")],
    seconds: float = 10.0,
    json: bool = False,
) -> int:
    """Join sounds of systems that make shorter ones, as the paper did (appendix E): OUT/<name>.wav.

    Each FOLDER has one part of every sound under the same name. A part goes on where those before it end, so
    an earlier one counts where two overlap. IM2WAV: three folders, --starts 0 4 8. Diff-Foley: two folders,
    --starts 0 1.8.

    Args:
        parts: the folders of the parts, in their order.
        out: the folder for the whole sounds, created if needed.
        starts: for each folder the time at which its part begins, in seconds.
        seconds: the length of the whole; what is longer is cut.
        json: print one JSON document to standard output.
    """
    from vab.evaluate.generation.join import join_folders

    done, faults = join_folders(parts, starts, seconds, out)
    _log_faults(faults)
    text = f"{out}: {count_of(len(done), 'sound')} of {seconds:g} s, {len(faults)} failed"
    print_result({"out": str(out), "joined": done, "failed": [vars(fault) for fault in faults]}, text, json)
    return 1 if faults else 0


def _log_faults(faults: Any) -> None:
    """Log the first clips that cannot be measured, and why."""
    for fault in faults[:MAX_CLIPS_NAMED]:
        log(f"{fault.id}: {fault.reason}")
    if len(faults) > MAX_CLIPS_NAMED:
        log(f"and {len(faults) - MAX_CLIPS_NAMED:,} more: --json has them all")
