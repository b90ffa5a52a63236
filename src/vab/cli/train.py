"""vab extract, vab pretrain, vab finetune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from vab.cli.options import Device, Place
from vab.cli.output import show, tell
from vab.config import DecodeConfig, ModelConfig, Preset, TrainConfig, VisionName
from vab.errors import SettingError
from vab.presets import PRESETS, preset

T = TypeVar("T")


def extract(
    manifest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STORE")],
    preset_name: Annotated[str, tyro.conf.arg(name="preset")] = "vab-tiny",
    fill: Literal["zero", "repeat"] = "zero",
    seconds: float | None = None,
    fps: float | None = None,
    vision: VisionName | None = None,
    codec_path: Place = None,
    vision_path: Place = None,
    device: Device = "auto",
    batch_clips: int = 16,
    shard_clips: int = 512,
    json: bool = False,
) -> int:
    """Bring the clips of a manifest into a store of latents. Called again, it goes on where it was.

    Args:
        manifest: csv file: id,audio,video,start,seconds,label,split.
        out: the store's folder.
        preset_name: whose codec, image encoder, window and frame rate to use.
        fill: what follows a sound shorter than the window: silence, or itself again (picture too).
        seconds: the window, if not the preset's.
        fps: image features per second, if not the preset's.
        vision: the image encoder, if not the preset's (the paper's ablation C.6).
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        vision_path: file, folder or Hub id of the image encoder's weights, if not the usual ones.
        device: where to compute.
        batch_clips: clips encoded at once.
        shard_clips: clips in one file of the store.
        json: one JSON document on standard output.
    """
    model = preset(preset_name).model
    if batch_clips < 1 or shard_clips < 1:
        raise SettingError("--batch-clips and --shard-clips must be 1 or more")
    window, rate = seconds or model.seconds, fps or model.fps
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
        tell(reason)
    text = f"{out}: {result.done} clips written, {result.present} were there, {len(result.failed)} failed"
    show({"store": str(out), **asdict(result)}, text, json)
    return 1 if result.failed else 0


@dataclass(frozen=True)
class Run:
    """Train on a store; called again, it goes on from the newest checkpoint. Any field can be given."""

    name: tyro.conf.Suppress[str]
    note: tyro.conf.Suppress[str]
    store: Path  # made by vab extract
    run: Path  # folder for checkpoints and, at the end, the model
    model: ModelConfig
    train: TrainConfig
    decode: DecodeConfig
    init: Path | None = None  # model directory whose weights to start from
    devices: int = 1  # how many GPUs, or processes on a CPU
    max_steps: int | None = None  # instead of the length that the epochs give
    json: bool = False  # one JSON document on standard output

    @property
    def settings(self) -> Preset:
        """The preset with what the call changed."""
        return Preset(self.name, self.note, self.model, self.train, self.decode)


def _runs(*objectives: str) -> Any:
    """One subcommand per preset of these objectives, with its values as defaults."""
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

    FoleyGen, the baseline, learns each token from those before it.
    """
    return _train(chosen)


def contrastive(chosen: Annotated[Contrasting, tyro.conf.arg(name="")]) -> int:
    """Teach the first layers one space for sound and picture (section 3.4).

    vab finetune contrastive PRESET --store STORE --run DIR [--init DIR]: from a pre-trained model, or fresh.
    """
    return _train(chosen)


def classify(chosen: Annotated[Classifying, tyro.conf.arg(name="")]) -> int:
    """Teach the first layers and a linear head the classes of a store (section 3.5).

    vab finetune classify PRESET --store STORE --run DIR [--init DIR]: from a contrastive or a pre-trained
    model, or fresh. --train.inputs audio|video|both (or several); --train.freeze-trunk is a linear probe.
    """
    return _train(chosen)


def carry_out(work: Callable[..., T], chosen: Run) -> T:
    """Do ``vab.training.trainer.train``, or what takes the same, as the call says."""
    if chosen.devices < 1 or (chosen.max_steps is not None and chosen.max_steps < 1):
        raise SettingError("--devices and --max-steps must be 1 or more")
    return work(
        chosen.settings,
        chosen.store,
        chosen.run,
        init=chosen.init,
        devices=chosen.devices,
        max_steps=chosen.max_steps,
        log=tell,
    )


def _train(chosen: Run) -> int:
    from vab.training.trainer import train

    carry_out(train, chosen)
    document = {"run": str(chosen.run), "settings": asdict(chosen.settings)}
    show(document, f"{chosen.run}: done", chosen.json)
    return 0
