"""vab extract, vab pretrain, vab finetune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from vab.cli.options import Device, WeightsPath
from vab.cli.output import log, print_result
from vab.config import DecodeConfig, ModelConfig, Preset, TrainConfig, VisionName
from vab.errors import SettingError
from vab.presets import PRESETS, preset

T = TypeVar("T")


def extract(
    manifest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STORE")],
    preset_name: Annotated[str, tyro.conf.arg(name="preset")] = "vab-tiny",
    fill: Literal["zero", "repeat"] = "zero",
    seconds: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    fps: Annotated[float | None, tyro.conf.arg(metavar="X")] = None,
    vision: VisionName | None = None,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    device: Device = "auto",
    batch_clips: int = 16,
    shard_clips: int = 512,
    json: bool = False,
) -> int:
    """Encode the clips of a manifest into a store of latents. Run again, it resumes.

    Args:
        manifest: CSV file with the columns id,audio,video,start,seconds,label,split.
        out: the folder of the store.
        preset_name: the preset whose codec, image encoder, window and frame rate to use.
        fill: how to fill the window after a shorter clip: with silence, or by repeating it (video too).
        seconds: the length of the window, instead of the preset's.
        fps: image features per second, instead of the preset's.
        vision: the image encoder, instead of the preset's (the paper's ablation C.6).
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        device: the device to compute on.
        batch_clips: the number of clips encoded at once.
        shard_clips: the number of clips in one file of the store.
        json: print one JSON document to standard output.
    """
    model = preset(preset_name).model
    if batch_clips < 1 or shard_clips < 1:
        raise SettingError("--batch-clips and --shard-clips must be 1 or more")
    window = model.seconds if seconds is None else seconds
    rate = model.fps if fps is None else fps
    if not (window > 0 and rate > 0):
        raise SettingError("--seconds and --fps must be positive")

    from vab.codecs.codec import load_codec
    from vab.data.extract import extract as run
    from vab.data.manifest import read_manifest
    from vab.utils.device import pick_device
    from vab.vision import load_vision

    read_manifest(manifest)  # before anything large is loaded
    result = run(
        manifest,
        out,
        load_codec(model.codec, codec_path),
        load_vision(vision or model.vision, vision_path),
        seconds=window,
        fps=rate,
        fill=fill,
        device=pick_device(device),
        batch_clips=batch_clips,
        shard_clips=shard_clips,
    )
    for reason in result.failed.values():
        log(reason)
    text = f"{out}: {result.done} clips written, {result.present} were there, {len(result.failed)} failed"
    print_result({"store": str(out), **asdict(result)}, text, json)
    return 1 if result.failed else 0


def _arg(metavar: str | None = None) -> Any:
    """An option that may be left out: its help shows no default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True)
class Run:
    """Train on a store. Run again, it resumes from the newest checkpoint. Any setting can be overridden."""

    name: tyro.conf.Suppress[str]
    note: tyro.conf.Suppress[str]
    store: Annotated[Path, tyro.conf.arg(metavar="STORE")]  # store of latents made by vab extract
    run: Annotated[Path, tyro.conf.arg(metavar="DIR")]  # folder for checkpoints and, at the end, the model
    model: ModelConfig
    train: TrainConfig
    decode: DecodeConfig
    init: Annotated[Path | None, _arg("DIR")] = None  # model directory to take initial weights from
    devices: int = 1  # number of GPUs, or of processes on a CPU
    max_steps: Annotated[int | None, _arg("N")] = None  # training steps, instead of the number of epochs
    json: Annotated[bool, _arg()] = False  # print one JSON document to standard output

    @property
    def settings(self) -> Preset:
        """The preset with the settings overridden on the command line."""
        return Preset(self.name, self.note, self.model, self.train, self.decode)


def _runs(*objectives: str) -> Any:
    """A union type for tyro: one subcommand per preset of these objectives, with its values as defaults."""
    chosen = [p for p in PRESETS.values() if p.train.objective in objectives]
    return tyro.extras.subcommand_type_from_defaults(
        {p.name: Run(p.name, p.note, tyro.MISSING, tyro.MISSING, p.model, p.train, p.decode) for p in chosen},
        {p.name: p.note for p in chosen},
    )


if TYPE_CHECKING:
    Pretraining = Run
    Contrasting = Run
    Classifying = Run
else:
    Pretraining = _runs("masked", "causal")
    Contrasting = _runs("contrastive")
    Classifying = _runs("classification")


def pretrain(chosen: Annotated[Pretraining, tyro.conf.arg(name="")]) -> int:
    """Train a preset by masked audio token prediction: vab pretrain PRESET --store STORE --run DIR.

    Presets of the baseline FoleyGen are trained to predict each token from those before it.
    """
    return _train(chosen)


def contrastive(chosen: Annotated[Contrasting, tyro.conf.arg(name="")]) -> int:
    """Train the first layers to embed audio and video in one space (section 3.4).

    vab finetune contrastive PRESET --store STORE --run DIR [--init DIR]: from a pre-trained model with
    --init, else from scratch.
    """
    return _train(chosen)


def classify(chosen: Annotated[Classifying, tyro.conf.arg(name="")]) -> int:
    """Train the first layers and a linear head to classify the clips of a store (section 3.5).

    vab finetune classify PRESET --store STORE --run DIR [--init DIR]: from a contrastive or a pre-trained
    model with --init, else from scratch. --train.inputs audio|video|both selects the modalities (also
    several); --train.freeze-trunk trains a linear probe. If pictures are among them, the run's folder also
    gets known.safetensors, from the pictures of the splits train and dev: by it the model says of a picture
    that it may not know it.
    """
    return _train(chosen)


def carry_out(work: Callable[..., T], chosen: Run) -> T:
    """Call ``vab.training.trainer.train``, or a function like it, with the options of the call."""
    if chosen.devices < 1 or (chosen.max_steps is not None and chosen.max_steps < 1):
        raise SettingError("--devices and --max-steps must be 1 or more")
    return work(
        chosen.settings,
        chosen.store,
        chosen.run,
        init=chosen.init,
        devices=chosen.devices,
        max_steps=chosen.max_steps,
        log=log,
    )


def _train(chosen: Run) -> int:
    from vab.training.trainer import train

    carry_out(train, chosen)
    document = {"run": str(chosen.run), "settings": asdict(chosen.settings)}
    print_result(document, f"{chosen.run}: done", chosen.json)
    return 0
