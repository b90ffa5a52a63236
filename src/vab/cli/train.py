"""vab pretrain, vab finetune, vab export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import tyro

from vab.cli.output import log, print_result
from vab.config import Compute, DecodeConfig, ModelConfig, Preset, TrainConfig, written
from vab.errors import SettingError
from vab.models.hub import ASSETS, BUNDLED, CONFIG, read_preset
from vab.presets import PRESETS

T = TypeVar("T")


def _arg(metavar: str | None = None) -> Any:
    """An option that may be left out: its help shows no default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


Stores = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="STORE")]
Weights = Annotated[tuple[float, ...] | None, _arg("X ...")]


@dataclass(frozen=True)
class Run:
    """Train on a store. Run again, it resumes from the newest checkpoint. Any setting can be overridden."""

    name: tyro.conf.Suppress[str]
    note: tyro.conf.Suppress[str]
    store: Stores  # store of latents made by vab extract, or its URL; several: --store A --store B
    out: Annotated[Path, tyro.conf.arg(aliases=["--run"], metavar="DIR")]  # folder of the run
    model: ModelConfig
    train: TrainConfig
    decode: DecodeConfig
    weights: Weights = None  # for each store how often an epoch has its clips; without it once
    init: Annotated[Path | None, _arg("DIR")] = None  # model directory to take initial weights from
    device: str = "auto"  # the device to train on: cpu, cuda, cuda:1, mps; auto is the best there is
    devices: Annotated[int | None, _arg("N")] = None  # number of GPUs to train on, or of processes on a CPU
    accumulate: int = 1  # parts that a step's clips are computed in, one after another
    checkpoint_activations: Annotated[bool, _arg()] = False  # compute activations twice, to keep fewer
    compile: Annotated[bool, _arg()] = False  # make kernels for the layers by torch.compile
    workers: int = 1  # threads that make batches
    prefetch: int = 2  # batches that they make ahead
    max_steps: Annotated[int | None, _arg("N")] = None  # training steps, instead of epochs (train.max-steps)
    lengthen: Annotated[bool, _arg()] = False  # go on with a run for more steps than it was begun with
    codec_path: Annotated[str | None, _arg("PATH|HUB_ID")] = None  # the codec of samples (train.sample-every)
    config: Annotated[Path | None, _arg("FILE")] = None  # config.json of a run or a model, for its settings
    json: Annotated[bool, _arg()] = False  # print one JSON document to standard output

    @property
    def compute(self) -> Compute:
        """How the run is computed."""
        return Compute(**{field.name: getattr(self, field.name) for field in fields(Compute)})

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


VERB_OF = {
    "masked": "pretrain",
    "causal": "pretrain",
    "contrastive": "finetune contrastive",
    "classification": "finetune classify",
    "distillation": "finetune distill",
}


def from_config(
    verb: str, command: Callable[..., int], words: list[str]
) -> tuple[Callable[..., int], list[str]]:
    """A verb that trains, with the settings of ``--config FILE`` for its defaults, and its other words.

    Without that option, and for other verbs, both are as they were. In its place stands no preset's name, or
    that of its own. ``ModelError`` if the file cannot be read, ``SettingError`` if it is of another verb.
    """
    hints = get_type_hints(command, include_extras=True)
    found = [n for n, word in enumerate(words) if word.partition("=")[0] == "--config"]
    if "chosen" not in hints or not found:
        return command, words
    # 1. The file: FILE may also be a model's folder, or the name of the bundled one.
    first = found[0]
    _, equals, name = words[first].partition("=")
    last = first if equals else first + 1
    if len(found) > 1 or last >= len(words):
        raise SettingError("--config takes one file: the config.json of a run or of a model")
    path = Path(name or words[last]).expanduser()
    if path.name == BUNDLED and not path.exists():
        path = ASSETS / BUNDLED
    own = read_preset(path / CONFIG if path.is_dir() else path)
    wanted = VERB_OF[own.train.objective]
    if verb != wanted and not (verb == "evaluate folds" and own.train.objective == "classification"):
        raise SettingError(f"{path} is of another kind of run: vab {wanted} --config {path}")

    # 2. The words that remain.
    rest = [*words[:first], *words[last + 1 :]]
    if rest and rest[0] in PRESETS:
        if rest[0] != own.name:
            raise SettingError(f"{path} is of {own.name}: leave {rest[0]} out")
        del rest[0]

    # 3. The same function, with other settings for its defaults, and no preset to choose.
    again = FunctionType(command.__code__, command.__globals__, command.__name__)
    run = Run(own.name, own.note, tyro.MISSING, tyro.MISSING, own.model, own.train, own.decode)
    again.__defaults__ = (run, *(command.__defaults__ or ()))
    again.__doc__ = command.__doc__
    again.__annotations__ = {**hints, "chosen": Annotated[Run, tyro.conf.arg(name="")]}
    return again, rest


if TYPE_CHECKING:
    Pretraining = Run
    Contrasting = Run
    Classifying = Run
    Distilling = Run
else:
    Pretraining = _runs("masked", "causal")
    Contrasting = _runs("contrastive")
    Classifying = _runs("classification")
    Distilling = _runs("distillation")


def pretrain(chosen: Annotated[Pretraining, tyro.conf.arg(name="")]) -> int:
    """Train a preset by masked audio token prediction: vab pretrain PRESET --store STORE --out DIR.

    Presets of the baseline FoleyGen are trained to predict each token from those before it. In place of
    PRESET, --config FILE takes the settings of a run's or a model's config.json; options override them.
    """
    return _train(chosen)


def contrastive(chosen: Annotated[Contrasting, tyro.conf.arg(name="")]) -> int:
    """Train the first layers to embed audio and video in one space (section 3.4).

    vab finetune contrastive PRESET --store STORE --out DIR [--init DIR]: from a pre-trained model with
    --init, else from scratch.
    """
    return _train(chosen)


def classify(chosen: Annotated[Classifying, tyro.conf.arg(name="")]) -> int:
    """Train the first layers and a linear head to classify the clips of a store (section 3.5).

    vab finetune classify PRESET --store STORE --out DIR [--init DIR]: from a contrastive or a pre-trained
    model with --init, else from scratch. --train.inputs audio|video|both selects the modalities (also
    several); --train.freeze-trunk trains a linear probe. If pictures are among them, the run's folder also
    gets known.safetensors, from the pictures of the splits train and dev: by it the model says of a picture
    that it may not know it.
    """
    return _train(chosen)


def distill(chosen: Annotated[Distilling, tyro.conf.arg(name="")]) -> int:
    """Train a student that generates in few steps, without guidance, what its teacher makes in many.

    vab finetune distill PRESET --store STORE --out DIR --init MODEL: MODEL, a VAB of the preset's size, is
    the teacher, with its own guidance, and the student's first weights; it stays as it is. --decode.num-steps
    says for how many steps the student is made: 8, 4, 2 or 1. The run's folder is a model like any other,
    for vab generate --model. A run that goes on needs the same --init.
    """
    if chosen.init is None:
        raise SettingError("a student needs a teacher: name a model with --init")
    return _train(chosen)


def carry_out(work: Callable[..., T], chosen: Run, **more: Any) -> T:
    """Call ``vab.training.trainer.train``, or a function like it, with the options of the call."""
    counts = (chosen.compute.devices, chosen.compute.accumulate, chosen.max_steps)
    if any(count is not None and count < 1 for count in counts):
        raise SettingError("--devices, --accumulate and --max-steps must be 1 or more")
    return work(
        chosen.settings,
        chosen.store[0] if len(chosen.store) == 1 else chosen.store,
        chosen.out,
        init=chosen.init,
        compute=chosen.compute,
        max_steps=chosen.max_steps,
        log=log,
        **more,
    )


def _train(chosen: Run) -> int:
    from vab.evaluate.generation.examine import Examiner
    from vab.training.trainer import train

    examine = Examiner(chosen.compute.device, log) if chosen.train.sample_every else None
    carry_out(
        train,
        chosen,
        weights=chosen.weights,
        lengthen=chosen.lengthen,
        if_longer="--lengthen to go on with it",
        codec_path=chosen.codec_path,
        examine=examine,
    )
    document = {"run": str(chosen.out), "settings": written(chosen.settings)}
    print_result(document, f"{chosen.out}: done", chosen.json, together=True)
    return 0


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    step: Annotated[str, tyro.conf.arg(metavar="N|best|last")] = "last",
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None,
    json: bool = False,
) -> int:
    """Write the model of one of a run's checkpoints, also while the run goes on.

    The folder is a model directory, with averaged weights if the run has them: for vab generate --model,
    vab finetune --init, vab evaluate. Its record.json says which step it is. A classifier of pictures gets
    its known.safetensors when the run ends, not before.

    Args:
        run: the folder of the run.
        step: the checkpoint's step (--train.keep-every keeps some), the best on the split dev, or the last.
        out: the folder to write. Default: RUN/exported/STEP.
        json: print one JSON document to standard output.
    """
    from vab.models.hub import KNOWN, read_config
    from vab.training.checkpoint import export_checkpoint

    if step not in ("best", "last") and not step.isdecimal():
        raise SettingError(f"--step is a number, best or last, not {step!r}")
    folder, number = export_checkpoint(run, int(step) if step.isdecimal() else step, out)
    learned = read_config(folder).train
    if learned.objective == "classification" and "video" in learned.inputs and not (folder / KNOWN).is_file():
        log(f"{folder}: without {KNOWN}, by which it tells what it does not know: made when the run ends")
    print_result({"model": str(folder), "step": number}, f"{folder}: the model of step {number}", json)
    return 0
