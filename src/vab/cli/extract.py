"""vab extract."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from functools import partial
from typing import Annotated, Literal

import tyro

from vab.cli.interrupt import check
from vab.cli.options import Device, Devices, Precision, Shard, WeightsPath
from vab.cli.output import log, print_result
from vab.config import VisionName
from vab.errors import SettingError
from vab.presets import preset
from vab.utils import count_of
from vab.utils.progress import count_bar
from vab.utils.remote import is_url
from vab.utils.shares import Share

Count = Annotated[int | None, tyro.conf.arg(metavar="N")]


def extract(
    manifest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")],
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="STORE")],
    preset_name: Annotated[str, tyro.conf.arg(name="preset")] = "vab-tiny",
    fill: Literal["zero", "repeat"] = "zero",
    seconds: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    fps: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    vision: VisionName | None = None,
    timing: bool = False,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    precision: Precision = "float32",
    features_from: Annotated[str | None, tyro.conf.arg(metavar="STORE")] = None,
    device: Device = "auto",
    devices: Devices = 1,
    engine: Literal["threads", "ray"] = "threads",
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT|auto")] = None,
    shard: Shard = None,
    batch_clips: Count = None,
    batch_frames: Count = None,
    readers: Count = None,
    shard_clips: int = 512,
    allow_failed: Annotated[str, tyro.conf.arg(metavar="N|X%")] = "0",
    json: bool = False,
) -> int:
    """Encode the clips of a manifest into a store of latents. Run again, it resumes.

    Any number of processes may write to one store at once, on one machine or on several that share its disk,
    and be killed at any time: with the same options and kind of device they end in the same latents.

    Args:
        manifest: CSV file with the columns id,audio,video,start,seconds,label,split. It, and the files it
            lists, may be URLs: s3://bucket/a.mp4, https://..., tar://a.mp4::s3://bucket/part.tar.
        out: the folder of the store, or its URL, such as s3://bucket/store.
        preset_name: the preset whose codec, image encoder, window and frame rate to use.
        fill: how to fill the window after a shorter clip: with silence, or by repeating it (video too).
        seconds: the length of the window, instead of the preset's.
        fps: image features per second, instead of the preset's.
        vision: the image encoder, instead of the preset's (the paper's ablation C.6).
        timing: also store the timing curve of each sound, as for a preset whose model is told one.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        precision: what the image encoder computes in: a setting of the store, so auto, bfloat16 where that is
            measured to be fast, may find another one elsewhere. tf32 needs an NVIDIA GPU. The codec stays in
            float32.
        features_from: a store whose image features, made with the same settings, to take for the clips that
            it has. The image encoder's weights are only needed for other clips.
        device: the device to compute on.
        devices: number of GPUs to share the clips out to, or of processes on a CPU.
        engine: what does the work: threads of this process (of each, with --devices), or a Ray cluster, whose
            CPUs decode and whose GPUs, with --device cpu its CPUs, encode. All of its machines must reach
            the media and the store by the same names: on a shared disk, or by URL.
        address: the Ray cluster that is there already; this machine must be one of it. Without it one of
            this machine alone is started, and ended with the run.
        shard: do this share of the clips, from 1/N to N/N; which clips, a hash of their ids says. Default:
            the share of this process under torchrun, srun or an array of SLURM, else 1/1, which is all.
        batch_clips: the number of clips the codec encodes at once. Default: 16, on a CPU 4.
        batch_frames: the number of frames the image encoder encodes at once. Default: 32, on a CPU 4. With
            another number of either the latents may differ by rounding.
        readers: the number of threads that decode, in each process. Default: its share of the cores.
        shard_clips: the number of clips in one file of the store.
        allow_failed: how many clips may fail, as a number or a percentage, until the exit code is 1.
        json: print one JSON document to standard output.
    """
    model = preset(preset_name).model
    if min(n for n in (batch_clips, batch_frames, readers, shard_clips, 1) if n is not None) < 1:
        raise SettingError("--batch-clips, --batch-frames, --readers and --shard-clips must be 1 or more")
    window = model.seconds if seconds is None else seconds
    rate = model.fps if fps is None else fps
    if not (window > 0 and rate > 0):
        raise SettingError("--seconds and --fps must be positive")
    if engine == "ray" and devices != 1:
        raise SettingError("--devices is for one machine; a Ray cluster uses all of its GPUs")
    if engine != "ray" and address is not None:
        raise SettingError("--address is that of a Ray cluster; it needs --engine ray")
    share = Share.chosen(shard)
    most_failed(allow_failed, 0)

    import torch

    from vab.data.extraction.job import Job, extract_on
    from vab.data.extraction.ray import on_ray
    from vab.data.manifest import read_manifest
    from vab.utils.device import pick_precision
    from vab.utils.processes import devices_for
    from vab.vision import RECIPES

    read_manifest(manifest)  # before anything large is loaded
    on = devices_for(devices, "auto" if engine == "ray" else device)
    if engine == "ray":
        # Processes elsewhere work in other folders, and may have a GPU that this one has not.
        names = [manifest, out, features_from or ""]
        names = [name if is_url(name) or not name else os.path.abspath(name) for name in names]
        manifest, out, features_from = names[0], names[1], names[2] or None
        on = on if device == "auto" else [torch.device(device)]
    if precision == "auto":
        # Generation keeps an encoder that bfloat16 does not suit in float32 too.
        stands = RECIPES[vision or model.vision].stands_bfloat16
        precision = pick_precision("auto" if stands else "float32", on[0]).precision
    job = Job(
        manifest=manifest,
        out=out,
        codec=model.codec,
        vision=vision or model.vision,
        seconds=window,
        fps=rate,
        fill=fill,
        timing=timing or model.timing,
        # Its words other than auto are for the devices that encode, which a Ray cluster has elsewhere.
        precision=precision,
        codec_path=codec_path,
        vision_path=vision_path,
        share=share,
        features_from=features_from,
        batch_clips=batch_clips,
        batch_frames=batch_frames,
        shard_clips=shard_clips,
        readers=readers,
        engine=partial(on_ray, address=address) if engine == "ray" else None,
    )
    with count_bar("extract") as advance:

        def report(done: int, total: int, failed: int) -> None:
            check()
            advance(done, total, f"({failed} failed)")

        result = extract_on(job, on, report)
    for reason in result.failed.values():
        log(reason)
    of = "" if share.count == 1 else f" (share {share})"
    written = f"{count_of(result.done, 'clip')} written"
    text = f"{out}: {written}, {result.present} were there, {len(result.failed)} failed{of}"
    print_result({"store": str(out), **asdict(result), "share": str(share)}, text, json)
    total = result.done + result.present + len(result.failed)
    return 1 if len(result.failed) > most_failed(allow_failed, total) else 0


def most_failed(text: str, total: int) -> int:
    """How many clips of ``total`` may fail, by a number or a percentage; ``SettingError`` for other text."""
    found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?|\.\d+)%", text.strip())
    if found is None or (found[2] and float(found[2]) > 100):
        raise SettingError(f"--allow-failed is a number of clips or a percentage such as 0.1%, not {text!r}")
    return int(found[1]) if found[1] else int(total * float(found[2]) / 100)
