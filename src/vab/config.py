"""Configurations of network, training and decoding, and the lengths that follow from their rates.

The fields are those of the paper's Tables 7 and 8, which are named presets in ``vab.presets``. Lengths are
never written down twice: they follow from the window's seconds and the two rates. Nothing here imports torch,
so that the command line stays quick.

Legend used by the whole package: B batch, K codebooks, T audio frames, F video frames, L = F + T,
D width, V codebook size, C codebook vector size, S samples.
"""

from __future__ import annotations

import math
import numbers
import os
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vab.errors import MAX_LINE_LENGTH, SettingError

SAMPLE_RATE = 16_000  # Hz, mono, everywhere (section 3.1)
LOUDNESS = -23.0  # LUFS of finished sounds: the target of EBU R128
HOP_LENGTH = 320  # samples of one audio frame: every codec of the paper runs at 50 Hz
FRAME_RATE = SAMPLE_RATE / HOP_LENGTH  # audio frames per second

VisionName = Literal["eva02-clip-l", "eva02-clip-l-336", "mae-vit-l", "efficientnet-lite0"]


@dataclass(frozen=True)
class ModelConfig:
    """The network (Table 7). The defaults are VAB-Encodec."""

    codec: Literal["encodec", "dac", "tiny"] = "encodec"
    vision: VisionName = "eva02-clip-l"
    seconds: float = 10.0  # the window the model is trained on
    fps: float = 1.0  # video features per second
    num_codebooks: int = 4  # K: levels of audio tokens in the input
    num_conditioning_codebooks: int = 0  # the first so many are never masked (coarse to fine: 4)
    codebook_size: int = 2048  # V
    codebook_dim: int = 128  # C
    vision_dim: int = 768
    hidden_dim: int = 1024  # D
    num_layers: int = 24
    num_expert_layers: int = 12  # L1: the first layers, which also embed; a feed-forward network per modality
    experts: bool = True  # or one for both modalities (ablation C.2)
    num_heads: int = 16
    dropout: float = 0.0
    positions: Literal["sequence", "time"] = "sequence"  # distances of ALiBi: index, or common clock
    # codebook vectors of a frame: summed, then projected; or each projected, then summed. by-codec: EnCodec's
    # are summed first, those of the others, whose codebooks have spaces of their own, are projected first
    code_projection: Literal["by-codec", "shared", "separate"] = "by-codec"
    standardise_features: bool = True  # by mean and deviation of the training images; False: as extracted
    timing: bool = False  # is told when something happens: a timing curve (vab.timing) is one of its inputs

    @property
    def audio_length(self) -> int:
        """T of one window."""
        return audio_frames(self.seconds)

    @property
    def video_length(self) -> int:
        """F of one window."""
        return video_frames(self.seconds, self.fps)

    @property
    def sums_codes(self) -> bool:
        """True if a frame's codebook vectors are summed before the projection."""
        if self.code_projection == "by-codec":
            return self.codec == "encodec"
        return self.code_projection == "shared"

    @property
    def num_predicted_codebooks(self) -> int:
        """Number of prediction heads."""
        return self.num_codebooks - self.num_conditioning_codebooks


@dataclass(frozen=True)
class TrainConfig:
    """One training run (Table 8). The defaults are the pre-training of VAB-Encodec."""

    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the layers' matrices, the rest by AdamW
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 100_000
    epochs: float = 17.0
    batch_size: int = 60  # clips per step, over all processes together
    max_grad_norm: float = 1.0  # largest norm of the gradient
    label_smoothing: float = 0.1
    contrast_smoothing: float = 0.0  # label smoothing of the contrast (eq. 4 has none, Table 8 0.1)
    mask_mean: float = 0.55  # the masking ratio's truncated normal law (section 3.2)
    mask_std: float = 0.25
    mask_min: float = 0.5
    mask_max: float = 1.0
    mask_ratio_per: Literal["clip", "batch"] = "clip"  # for what one ratio is drawn
    crop_seconds: float = 0.0  # seconds of each clip that a step sees; 0 is the whole window
    mixup_prob: float = 0.5  # chance of temporal mixup (B.3)
    roll_prob: float = 0.1  # chance of temporal rolling (B.3)
    roll_padding: bool = False  # a short sound without video rolls together with the padding after it
    cond_drop_prob: float = 0.1  # chance that all video features are dropped, for guidance (B.3)
    timing_drop_prob: float = 0.15  # of a model with timing: chance that the curve is dropped, by itself
    splice_prob: float = 0.0  # chance that a clip is made anew of 2 to 5 pieces of clips of its label
    pair_by_label: bool = False  # draw the video from any clip of the same label
    class_balanced: bool = False  # draw clips of rare labels as often as others (Table 8)
    # eq. 1, FoleyGen (appendix E), eq. 4, section 3.5, vab.sampling.student
    objective: Literal["masked", "causal", "contrastive", "classification", "distillation"] = "masked"
    inputs: tuple[Literal["audio", "video", "both"], ...] = ("both",)  # what a classifier is trained on
    loss: Literal["bce", "ce"] = "bce"  # of a classifier
    freeze_trunk: bool = False  # only the classifier's head learns (linear probe, Table 6)
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "bf16-mixed"  # tf32: float32, quicker and coarser
    seed: int = 0
    max_steps: int = 0  # training steps, instead of the number of epochs; 0: as many as the epochs give
    log_every: int = 10  # steps between lines of the log
    save_every: int = 1000  # steps between checkpoints, of which the last two stay
    keep_every: int = 0  # steps between checkpoints that stay for good; 0: none
    validate_every: int = 0  # steps between validations on the split dev; 0: with each checkpoint
    sample_every: int = 0  # steps between sounds generated for dev clips; 0: none
    sample_clips: int = 8  # of these


# Fields of TrainConfig that may change while a run goes on; its length is looked after by itself.
FREE_FIELDS: tuple[str, ...] = ("max_steps", "log_every", "save_every", "keep_every", "validate_every")
FREE_FIELDS += ("sample_every", "sample_clips")


@dataclass(frozen=True)
class DecodeConfig:
    """Parallel decoding (section 3.3, appendix D), or that of FoleyGen, step by step (appendix E)."""

    num_steps: int = 16  # N; 0 for FoleyGen, which takes one for each audio frame
    guidance_scale: float = 5.0  # s of u + s (c - u); 1 is none
    mask_temperature: float = 25.5  # tau of VAB: Gumbel noise of the confidence at the first step (eq. 2)
    sampling_temperature: float = 1.0  # the logits are divided by it; 0 takes the likeliest token
    timing_scale: float = 0.0  # of the timing curve alone; 0: guidance_scale goes for it too
    top_k: int = 0  # sample among the k likeliest tokens; 0 is all
    num_candidates: int = 1  # drawn for each sound; the one most similar to the video (section 3.4) is kept
    # The defaults of the next five are the paper's; they are for parallel decoding alone.
    guidance_from: float = 0.0  # share of the steps that pass before guidance begins
    guidance_until: float = 1.0  # share of the steps after which it ends, or its last serves a curve
    guidance_every: int = 1  # steps from one unconditional pass to the next; its residual serves in between
    # places that are decided first: the most confident; or, known beforehand, evenly spread; or any
    order: Literal["confidence", "halton", "random"] = "confidence"
    # of a clip of several windows: as long as the others, or as long as it must be
    last_window: Literal["full", "short"] = "full"


LEVERS: tuple[str, ...] = ("guidance_from", "guidance_until", "guidance_every", "order", "last_window")


# Fields that came after version 0.1, by class. Files that a model or a run writes hold these only if they are
# not at their defaults: what is without them stays as it was, byte for byte.
LATER_FIELDS: dict[str, tuple[str, ...]] = {
    "ModelConfig": ("timing",),
    "TrainConfig": ("timing_drop_prob", "splice_prob"),
    "DecodeConfig": ("timing_scale",),
}


def written(config: Any) -> dict[str, Any]:
    """The fields of a configuration, and of those inside it, as they are written into files."""
    values: dict[str, Any] = {}
    for field_ in fields(config):
        value = getattr(config, field_.name)
        later = field_.name in LATER_FIELDS.get(type(config).__name__, ())
        if not later or value != field_.default:
            values[field_.name] = written(value) if is_dataclass(value) else value
    return values


def levers(decode: DecodeConfig) -> dict[str, Any]:
    """The fields by which a sound costs less than the paper's, as far as they are not at their defaults.

    Version 0.1 did not have them, so records and fingerprints hold these alone.
    """
    values = {name: getattr(decode, name) for name in LEVERS}
    return {name: value for name, value in values.items() if value != getattr(DecodeConfig, name)}


@dataclass(frozen=True)
class Compute:
    """How a run is computed, not what it is: a resumed run may have another. Results differ by rounding."""

    device: str = "auto"  # cpu, cuda, mps; auto is the best there is
    devices: int | None = None  # GPUs (or processes) of this machine; None: one, or those of torchrun or srun
    accumulate: int = 1  # parts that a step's clips are computed in, one after another
    checkpoint_activations: bool = False  # compute activations again in the backward pass, to keep fewer
    compile: bool = False  # make kernels for the layers by torch.compile
    workers: int = 1  # threads that make batches
    prefetch: int = 2  # batches that they make ahead


DEFAULT_COMPUTE = Compute()


@dataclass(frozen=True)
class Preset:
    """A named configuration: network, training and decoding together."""

    name: str
    note: str
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    classes: tuple[str, ...] = ()  # of a classifier, in the order of its logits; empty: the store's own


def audio_frames(seconds: float) -> int:
    """Number of audio frames T that cover ``seconds``."""
    return samples_to_frames(round(seconds * SAMPLE_RATE))


def samples_to_frames(samples: int) -> int:
    """Number of audio frames T that cover ``samples``."""
    return math.ceil(samples / HOP_LENGTH)


def video_frames(seconds: float, fps: float) -> int:
    """Number of video frames F that cover ``seconds``; at least one."""
    # Rounded first: 1.1 s at 10 frames/s are 11.000000000000002 as a float, which would count as 12.
    return max(1, math.ceil(round(seconds * fps, 6)))


_MIN_POSITIVE = 1e-6  # stands for "more than 0" in the ranges below
_LARGEST = 1000.0  # of numbers that a network computes with
MAX_POSITIONS = 4096  # audio and video frames of one window: more would not fit into memory as attention

# Class -> (lowest, highest) -> the fields that a network or a run can work with only in that range. What a
# model directory says is bounded above too: it may be anybody's, and must neither fill the memory nor run on
# without end.
_RANGES: dict[str, dict[tuple[float, float], str]] = {
    "ModelConfig": {
        (HOP_LENGTH / SAMPLE_RATE, 120): "seconds",
        (_MIN_POSITIVE, 120): "fps",
        (1, 64): "num_codebooks",
        (0, 64): "num_conditioning_codebooks",
        (1, 1 << 16): "codebook_size codebook_dim vision_dim hidden_dim",
        (1, 1000): "num_layers",
        (0, 1000): "num_expert_layers",
        (1, 128): "num_heads",
        (0, 1): "dropout",
    },
    "TrainConfig": {
        (1, math.inf): "batch_size save_every log_every sample_clips",
        (0, math.inf): "learning_rate weight_decay warmup_steps max_grad_norm crop_seconds max_steps "
        "keep_every validate_every sample_every",
        (0, (1 << 63) - 1): "seed",
        (
            0,
            1,
        ): "label_smoothing contrast_smoothing mask_min mask_max mixup_prob roll_prob cond_drop_prob ema "
        "timing_drop_prob splice_prob",
        (_MIN_POSITIVE, math.inf): "epochs mask_std",
        (-_LARGEST, _LARGEST): "mask_mean",
    },
    "Compute": {(1, math.inf): "devices accumulate workers prefetch"},
    "DecodeConfig": {
        (0, 10_000): "num_steps",
        (1, 1000): "num_candidates",
        (0, 1): "guidance_from guidance_until",
        (1, 10_000): "guidance_every",
        (0, _LARGEST): "guidance_scale timing_scale mask_temperature sampling_temperature",
        (0, math.inf): "top_k",
    },
    "StoreMeta": {
        (HOP_LENGTH / SAMPLE_RATE, 3600): "seconds",
        (_MIN_POSITIVE, 120): "fps",
        (1, 64): "num_codebooks",
        (1, 1 << 16): "codebook_size codebook_dim vision_dim",
    },
    "TinyCodecConfig": {
        (1, 64): "num_codebooks",
        (1, 1 << 16): "codebook_size",
        (1, 4096): "dim bands decoder_width detail_width",
        (HOP_LENGTH // 2, 1 << 14): "window",
        (1, 100): "decoder_layers detail_layers",
        (0, 4096): "noise level_dim",
        (0, math.inf): "lasting",
        (0, 100_000): "hold level_hold",
        (0, 1000): "iterations",
    },
    "CodecTrainConfig": {
        (1, math.inf): "batch_size warmup_steps save_every log_every code_rounds",
        (0, math.inf): "steps adversarial_from coarse learning_rate adversarial matching",
        (0, (1 << 40) - 1): "seed",
        (1 / FRAME_RATE, math.inf): "seconds code_seconds",
        (0, 1): "ema",
    },
}
_LIMITS = {
    (kind, name): limits
    for kind, ranges in _RANGES.items()
    for limits, names in ranges.items()
    for name in names.split()
}
_UNIONS = (UnionType, Union)  # of types; with a Literal among them it is the second
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "None"}


def within(name: str, value: float, minimum: float, maximum: float) -> None:
    """Raise ``SettingError`` that names the allowed range, unless ``minimum <= value <= maximum``."""
    # Written so that NaN, which compares as false, is refused too.
    if not minimum <= value <= maximum:
        if maximum < math.inf and minimum != _MIN_POSITIVE:
            allowed = f"from {minimum:g} to {maximum:g}"
        else:
            allowed = "more than 0" if minimum == _MIN_POSITIVE else f"{minimum:g} or more"
        raise SettingError(f"{name} must be {allowed}, not {value}"[:MAX_LINE_LENGTH])


@cache
def _types(kind: type) -> dict[str, Any]:
    """The types of a config's fields, which are annotations: to evaluate them takes longer than to check."""
    return get_type_hints(kind)


def check_config(config: Any, prefix: str = "") -> None:
    """Raise ``SettingError`` that names a field, after ``prefix``, of another type or out of its range."""
    kind: type = type(config)
    for name in _types(kind):
        check_field(kind, name, getattr(config, name), f"{prefix}{name}")


def check_field(kind: type, name: str, value: Any, label: str) -> None:
    """Raise ``SettingError`` that says ``label`` for a value that the field of a config cannot have."""
    check_value(label, value, _types(kind)[name], *_LIMITS.get((kind.__name__, name), ()))


def check_value(label: str, value: Any, hint: Any, *limits: float) -> None:
    """Raise ``SettingError`` for a value of another type than ``hint``, or not within ``limits``."""
    if not _fits(value, hint):
        raise SettingError(f"{label} must be {_described(hint)}, not {reprlib.repr(value)}")
    if limits and value is not None:
        within(label, value, *limits)


def _fits(value: Any, hint: Any) -> bool:
    """True for a value of a type that a field may have; a whole number is a number, True is not."""
    if get_origin(hint) in _UNIONS:
        return any(_fits(value, kind) for kind in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, tuple | list) or (kinds[-1] is not ... and len(value) != len(kinds)):
            return False
        return all(_fits(item, kinds[0]) for item in value)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, (str, os.PathLike) if hint is str else hint)


def _described(hint: Any) -> str:
    """The type of a field, in words."""
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) in _UNIONS:
        return " or ".join(map(_described, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list, each {_described(get_args(hint)[0])}"
    return _WORDS.get(hint) or f"a {hint.__name__}"


def check_preset(preset: Preset) -> None:
    """Raise ``SettingError`` that names the option of a field which no network or run can work with."""
    # 1. Each field by itself.
    check_config(preset)
    for part in ("model", "train", "decode"):
        check_config(getattr(preset, part), f"{part}.")

    # 2. Fields beside one another.
    model = preset.model
    training = preset.train
    within("model.num_conditioning_codebooks", model.num_conditioning_codebooks, 0, model.num_codebooks - 1)
    within("model.num_expert_layers", model.num_expert_layers, 0, model.num_layers)
    within("train.mask_min", training.mask_min, 0, training.mask_max)
    for beta in training.betas:
        within("train.betas", beta, 0, 1 - _MIN_POSITIVE)
    if model.hidden_dim % model.num_heads:
        raise SettingError(
            f"model.hidden_dim {model.hidden_dim} is not a multiple of {model.num_heads} heads"
        )
    positions = model.audio_length + model.video_length
    if positions > MAX_POSITIONS:
        raise SettingError(
            f"model.seconds {model.seconds:g} and model.fps {model.fps:g} make windows of {positions} "
            f"positions; the most are {MAX_POSITIONS}"
        )
    if not training.inputs:
        raise SettingError("train.inputs must name one or more of audio, video, both")


# Former name -> present one, of fields up to version 0.1: in files, and as options such as --model.width.
FORMER_NAMES: dict[str, dict[str, str]] = {
    "ModelConfig": {
        "codebooks": "num_codebooks",
        "given_codebooks": "num_conditioning_codebooks",
        "vocabulary": "codebook_size",
        "width": "hidden_dim",
        "layers": "num_layers",
        "expert_layers": "num_expert_layers",
        "heads": "num_heads",
    },
    "TrainConfig": {
        "clip_gradient": "max_grad_norm",
        "crop": "crop_seconds",
        "mixup": "mixup_prob",
        "roll": "roll_prob",
        "drop_features": "cond_drop_prob",
        "balanced": "class_balanced",
        "frozen": "freeze_trunk",
    },
    "DecodeConfig": {
        "steps": "num_steps",
        "guidance": "guidance_scale",
        "temperature": "mask_temperature",
        "candidates": "num_candidates",
    },
    "StoreMeta": {"codebooks": "num_codebooks", "vocabulary": "codebook_size"},
    "TinyCodecConfig": {"codebooks": "num_codebooks", "vocabulary": "codebook_size"},
}


def current_names(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration of class ``kind`` by the present names of its fields."""
    former = FORMER_NAMES.get(kind, {})
    current = {former.get(name, name): value for name, value in values.items()}
    # One field had two meanings: FoleyGen, which has no steps and no masks, divided its logits by it.
    if kind == "DecodeConfig" and values.get("steps") == 0 and "temperature" in values:
        current |= {"sampling_temperature": values["temperature"], "mask_temperature": 0.0}
    return current


def former_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration by their names of version 0.1, for what must not change."""
    former = {new: old for old, new in FORMER_NAMES.get(type(config).__name__, {}).items()}
    values = written(config)
    if isinstance(config, DecodeConfig):
        sampling = values.pop("sampling_temperature")
        if config.num_steps == 0 and config.mask_temperature == 0:  # FoleyGen
            values["mask_temperature"] = sampling
        elif sampling != 1:  # there was no such setting
            values["sampling_temperature"] = sampling
        values = {name: value for name, value in values.items() if name not in LEVERS} | levers(config)
    return {former.get(name, name): value for name, value in values.items()}


def from_dict(kind: type, values: Any, prefix: str = "") -> Any:
    """Build a config of type ``kind`` (and the configs inside it) from plain values, as read from JSON.

    Names of version 0.1 are understood. ``SettingError`` names, as it is written and after ``prefix``, a key
    that is unknown (a config of a newer version must not be half read), missing or there twice, and a value
    of another type or out of its range.
    """
    if not isinstance(values, dict):
        what = prefix.rstrip(".") or "it"
        raise SettingError(f"{what} must hold names and values, not {reprlib.repr(values)}")
    former = FORMER_NAMES.get(kind.__name__, {})
    written = {former.get(name, name): name for name in values}
    twice = [name for name in values if former.get(name) in values]
    current = current_names(kind.__name__, values)
    known = {f.name: f for f in fields(kind)}
    for name in twice:
        raise SettingError(f"{prefix}{name} is there twice, as {former[name]} too")
    for name in sorted(set(current) - set(known)):
        raise SettingError(f"{prefix}{name} is no setting that is known here"[:MAX_LINE_LENGTH])

    arguments = {}
    hints = _types(kind)
    for name, field_ in known.items():
        label = prefix + written.get(name, name)
        if name not in current:
            if field_.default is MISSING and field_.default_factory is MISSING:
                raise SettingError(f"{label} is missing")
            continue
        value = current[name]
        if is_dataclass(hints[name]) and not is_dataclass(value):
            value = from_dict(hints[name], value, f"{name}.")
        elif isinstance(value, list):  # JSON knows no tuples
            value = tuple(value)
        check_field(kind, name, value, label)
        arguments[name] = value
    return kind(**arguments)
