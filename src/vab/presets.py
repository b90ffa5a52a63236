"""Tables 7 and 8 of the paper as named presets: model, training and decoding of each run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from vab.config import LEVERS, DecodeConfig, ModelConfig, Preset, TrainConfig, check_value
from vab.errors import SettingError

# The networks (Table 7).
_ENCODEC = ModelConfig()
_DAC = replace(_ENCODEC, codec="dac", codebook_size=1024, codebook_dim=8)
_DAC_TEST = replace(_DAC, hidden_dim=768, num_layers=20, num_heads=12)
_DAC_FINE = replace(
    _DAC,
    num_codebooks=12,
    num_conditioning_codebooks=4,
    hidden_dim=1280,
    num_layers=16,
    num_expert_layers=0,
    num_heads=20,
)
_TINY = ModelConfig(
    codec="tiny",
    vision="efficientnet-lite0",
    seconds=5.0,
    num_codebooks=4,
    codebook_size=1024,
    codebook_dim=64,
    vision_dim=1280,
    hidden_dim=192,
    num_layers=6,
    num_expert_layers=3,
    num_heads=6,
    positions="time",
)
_TINY_TIMED = replace(_TINY, timing=True)

# Training (Table 8). Pre-training on EnCodec's tokens is the default, on DAC's it is shorter.
_DAC_TRAIN = TrainConfig(epochs=9.0)
_CONTRASTIVE = TrainConfig(
    objective="contrastive", batch_size=108, cond_drop_prob=0.0, contrast_smoothing=0.1
)
_CLASSIFICATION = TrainConfig(
    objective="classification", learning_rate=1e-4, warmup_steps=0, batch_size=60, cond_drop_prob=0.0
)
_FOLEYGEN_TRAIN = TrainConfig(
    objective="causal",
    learning_rate=1e-4,
    weight_decay=0.1,
    warmup_steps=4000,
    label_smoothing=0.0,
    mixup_prob=0.0,
    roll_prob=0.0,
)
_TINY_TRAIN = TrainConfig(
    optimizer="muon",
    learning_rate=3e-3,
    warmup_steps=100,
    epochs=35.0,
    batch_size=20,
    label_smoothing=0.0,
    crop_seconds=2.0,
    mixup_prob=0.0,
    mask_mean=1.0,
    pair_by_label=True,
    class_balanced=True,
    ema=0.995,
    save_every=500,
)
# What is told a timing curve must need one: rhythms that nobody can know by heart, of which much is hidden.
_TINY_TIMED_TRAIN = replace(_TINY_TRAIN, splice_prob=0.7, mask_min=0.6)
_TINY_CONTRASTIVE = TrainConfig(
    objective="contrastive",
    learning_rate=1e-3,
    warmup_steps=50,
    epochs=15.0,
    batch_size=64,
    crop_seconds=2.0,
    cond_drop_prob=0.0,
    pair_by_label=True,
    class_balanced=True,
    ema=0.99,
    save_every=250,
)
# A student: whole windows of nothing but masks, as it generates. The teacher's weights are a good start.
_STUDENT = TrainConfig(
    objective="distillation",
    learning_rate=5e-5,
    warmup_steps=1000,
    epochs=1.0,
    mask_min=1.0,
    mixup_prob=0.0,
    roll_prob=0.0,
    cond_drop_prob=0.0,
    ema=0.999,
)
_TINY_STUDENT = replace(
    _STUDENT,
    optimizer="muon",
    learning_rate=1e-3,
    warmup_steps=10,
    batch_size=16,
    crop_seconds=2.0,
    pair_by_label=True,
    class_balanced=True,
    splice_prob=0.7,
    ema=0.97,
    max_steps=450,
    save_every=50,
)

# Decoding (appendices D and E). That of EnCodec is the default.
_DAC_DECODE = DecodeConfig(mask_temperature=10.5)
_TINY_DECODE = DecodeConfig(guidance_scale=4.0, mask_temperature=4.5)
_FOLEYGEN_DECODE = DecodeConfig(num_steps=0, guidance_scale=3.0, mask_temperature=0.0, top_k=256)

Speed = Literal["paper", "fast"]
# What decides how much is computed for a sound: all that the paper does; and less, as far as vab-tiny was not
# heard to be worse by it (docs/decisions/decoding.md).
_PAPER: dict[str, Any] = {name: getattr(DecodeConfig, name) for name in ("num_steps", *LEVERS)}
_FAST: dict[str, Any] = {"num_steps": 12, "guidance_until": 0.25, "last_window": "short"}

# The paper's words for each column of Table 8; a pair is VAB-EnCodec / VAB-DAC.
_TABLE_8_FIELDS = (
    "learning_rate",
    "warmup_steps",
    "epochs",
    "batch_size",
    "roll_prob",
    "class_balanced",
    "loss",
)
_TABLE_8 = {
    "pre-training": ("2e-4", "100K", "17/9", "60", "0.1", "N/A", "CE"),
    "contrastive": ("2e-4", "100K", "14/15", "108", "0.1", "N/A", "CE"),
    "as2m": ("1e-4", "0", "2", "60", "0.1", "True", "BCE"),
    "as20k": ("1e-4", "0", "10", "60", "0.1", "False", "BCE"),
    "vggsound": ("1e-4", "0", "5", "48", "0.1", "True", "BCE"),
    "esc50": ("1e-4", "0", "50", "60", "1.0", "False", "BCE"),
    "spc1": ("1e-4", "0", "10/5", "60", "1.0", "False", "BCE"),
}

# Column of Table 8 -> note, training, and epochs on EnCodec's and on DAC's tokens.
_FINETUNED: dict[str, tuple[str, TrainConfig, tuple[float, float]]] = {
    "contrastive": ("sound and picture in one space", _CONTRASTIVE, (14.0, 15.0)),
    "as2m": ("classes of AudioSet-2M", replace(_CLASSIFICATION, class_balanced=True), (2.0, 2.0)),
    "as20k": ("classes of AudioSet-20K", _CLASSIFICATION, (10.0, 10.0)),
    "vggsound": (
        "classes of VGGSound",
        replace(_CLASSIFICATION, batch_size=48, class_balanced=True),
        (5.0, 5.0),
    ),
    "esc50": ("classes of ESC-50", replace(_CLASSIFICATION, roll_prob=1.0, inputs=("audio",)), (50.0, 50.0)),
    "spc1": (
        "classes of Speech Commands v1",
        replace(_CLASSIFICATION, roll_prob=1.0, inputs=("audio",)),
        (10.0, 5.0),
    ),
}

_PRETRAINED = (
    Preset("vab-encodec", "the paper's best model: EnCodec 16 kHz, 4 codebooks of 2048", _ENCODEC),
    Preset(
        "vab-dac",
        "the paper's model on DAC 16 kHz, the first 4 of 12 codebooks of 1024",
        _DAC,
        _DAC_TRAIN,
        _DAC_DECODE,
    ),
    Preset(
        "vab-dac-test",
        "the smaller model of the paper's ablations (12 heads as the text says; Table 7 says 8)",
        _DAC_TEST,
        _DAC_TRAIN,
        _DAC_DECODE,
    ),
    Preset(
        "vab-dac-test-no-experts",
        "vab-dac-test whose first layers share their feed-forward networks (ablation C.2)",
        replace(_DAC_TEST, experts=False),
        _DAC_TRAIN,
        _DAC_DECODE,
    ),
)


def _finetuned() -> list[Preset]:
    """The other columns of Table 8, for each pre-trained model."""
    presets = []
    for base in _PRETRAINED:
        for column, (note, train, epochs) in _FINETUNED.items():
            train = replace(train, epochs=epochs[base.model.codec == "dac"])
            presets.append(Preset(f"{base.name}-{column}", f"{base.name}: {note}", base.model, train))
    return presets


_OTHERS = (
    Preset(
        "vab-dac-coarse2fine",
        "second stage: the fine 8 codebooks of DAC from the coarse 4",
        _DAC_FINE,
        _DAC_TRAIN,
        replace(_DAC_DECODE, num_steps=36),
    ),
    Preset(
        "vab-tiny",
        "the model inside the package: small enough to ship and for a laptop",
        _TINY_TIMED,
        _TINY_TIMED_TRAIN,
        replace(_TINY_DECODE, **_FAST),
    ),
    Preset(
        "vab-tiny-coarse",
        "the first of two stages at vab-tiny's size: the first 2 codebooks of the small codec",
        replace(_TINY_TIMED, num_codebooks=2),
        _TINY_TIMED_TRAIN,
        _TINY_DECODE,
    ),
    Preset(
        "vab-tiny-fine",
        "the second of two stages: the next 2 codebooks from the first 2",
        replace(_TINY, num_conditioning_codebooks=2, num_expert_layers=0),
        _TINY_TRAIN,
        DecodeConfig(num_steps=36, guidance_scale=1.0, mask_temperature=4.5),
    ),
    Preset(
        "foleygen-encodec",
        "the baseline FoleyGen as the paper rebuilt it: a decoder on the tokens of vab-encodec",
        replace(_ENCODEC, num_expert_layers=0),
        _FOLEYGEN_TRAIN,
        _FOLEYGEN_DECODE,
    ),
    Preset(
        "foleygen-tiny",
        "FoleyGen at the size and with the training of vab-tiny, but for the curve",
        replace(_TINY, num_expert_layers=0),
        replace(_TINY_TRAIN, objective="causal"),
        _FOLEYGEN_DECODE,
    ),
    Preset("vab-tiny-contrastive", "vab-tiny: sound and picture in one space", _TINY, _TINY_CONTRASTIVE),
    Preset(
        "vab-tiny-classes",
        "vab-tiny: classes from sound, picture or both",
        _TINY,
        replace(_TINY_CONTRASTIVE, objective="classification", inputs=("audio", "video", "both"), loss="ce"),
    ),
)


def _student(base: Preset, train: TrainConfig) -> Preset:
    """A student of ``base``: half as many steps, without guidance."""
    decode = replace(base.decode, num_steps=8, guidance_scale=1.0)
    return Preset(
        f"{base.name}-student", f"{base.name} in few steps without guidance", base.model, train, decode
    )


_STUDENTS = (
    *(_student(base, _STUDENT) for base in _PRETRAINED[:2]),
    *(_student(base, _TINY_STUDENT) for base in _OTHERS if base.name == "vab-tiny"),
)

PRESETS: dict[str, Preset] = {one.name: one for one in (*_PRETRAINED, *_finetuned(), *_OTHERS, *_STUDENTS)}


def table_8(name: str) -> dict[str, str]:
    """The paper's own words on a preset's training (Table 8), by field; empty for a preset of this project.

    A pair such as ``17/9`` is VAB-EnCodec / VAB-DAC.
    """
    if not _is_paper_s(name) or name.endswith("coarse2fine"):
        return {}
    column = name.rpartition("-")[2]
    if column not in _TABLE_8:
        column = "pre-training"
    cells = dict(zip(_TABLE_8_FIELDS, _TABLE_8[column], strict=True))
    if PRESETS[name].train.objective != "classification":
        del cells["loss"]  # the field is a classifier's
    smoothing = "contrast_smoothing" if column == "contrastive" else "label_smoothing"
    cells |= {"optimizer": "AdamW", "weight_decay": "1e-5", "mixup_prob": "0.5", smoothing: "0.1"}
    return {f"train.{field}": cell for field, cell in cells.items()}


# The paper's words for each column of Table 7; what is derived from one has its cells.
_TABLE_7_FIELDS = (
    "num_codebooks",
    "codebook_dim",
    "codebook_size",
    "hidden_dim",
    "num_layers",
    "num_expert_layers",
    "num_heads",
)
_TABLE_7 = {
    "vab-encodec": ("4", "128", "2048", "1024", "24", "12", "16"),
    "vab-dac": ("4", "8", "1024", "1024", "24", "12", "16"),
    "vab-dac-test": ("4", "8", "1024", "768", "20", "12", "8; 12 in the text"),
    "vab-dac-coarse2fine": ("12", "8", "1024", "1280", "16", "N/A", "20"),
}

# Field -> what the paper's text says of it, for the presets of one objective or, by "", for all.
_TEXT = {
    "": {
        "model.vision": "EVA02-CLIP-L; pixels: not said",
        "model.seconds": "10",
        "model.fps": "1; VGGSound has 5, of which one is drawn for each second",
        "model.positions": "ALiBi; between which places: not said",
        "model.code_projection": "embedded and summed",
        "model.standardise_features": "not said",
        "train.betas": "not found",
        "train.max_grad_norm": "not said",
        "train.roll_padding": "tokens are rolled as a spectrogram is, which reads as True",
        "train.cond_drop_prob": "0: pre-training alone drops features",
    },
    "masked": {
        "train.mask_ratio_per": "not said",
        "train.mask_mean": "0.55",
        "train.mask_std": "0.25",
        "train.mask_min": "0.5",
        "train.mask_max": "1",
        "train.cond_drop_prob": "0.1",
        "decode.num_steps": "16",
        "decode.guidance_scale": "5",
        "decode.mask_temperature": "25.5, the best of Table 17",
    },
}
_DAC_TEXT = {
    "model.code_projection": "embedded and summed, which reads as shared",
    "decode.mask_temperature": "not found",
}
# Of its training the paper says that it is close to VampNet's; Table 8 has no column for it.
_SECOND_STAGE = dict.fromkeys(
    [f"train.{field}" for field in _TABLE_8_FIELDS if field != "loss"]
    + [f"train.{field}" for field in ("weight_decay", "mixup_prob", "label_smoothing", "cond_drop_prob")]
    + [f"train.mask_{field}" for field in ("mean", "std", "min", "max")]
    + ["decode.guidance_scale", "decode.mask_temperature"],
    "not said",
) | {
    "model.num_conditioning_codebooks": "4",
    "train.optimizer": "not said; settings are close to VampNet's",
    "decode.num_steps": "36",
}


def paper_says(name: str) -> dict[str, str]:
    """What the paper says of a preset's fields, in Tables 7 and 8 or its text; empty for one of this project.

    "Not said", and "not found" for what may be in the paper but not in our copy, mark our guesses.
    """
    if not _is_paper_s(name):
        return {}
    own = PRESETS[name]
    dac = own.model.codec == "dac"
    # 1. The text, with Table 7; a name that is longer than a column's is of that column.
    column = max((each for each in _TABLE_7 if name.startswith(each)), key=len)
    says = {f"model.{field}": cell for field, cell in zip(_TABLE_7_FIELDS, _TABLE_7[column], strict=True)}
    says |= _TEXT[""] | _TEXT.get(own.train.objective, {})
    if dac:
        says |= {field: text for field, text in _DAC_TEXT.items() if field in says}
    if name.endswith("coarse2fine"):
        says |= _SECOND_STAGE
    # 2. Table 8. Of a pair such as 17/9 it is the preset's own that stands beside it.
    for field, cell in table_8(name).items():
        first, slash, second = cell.partition("/")
        says[field] = (second if dac else first) if slash and cell != "N/A" else cell
    return says


def _is_paper_s(name: str) -> bool:
    return name.startswith(("vab-encodec", "vab-dac")) and not name.endswith("-student")


def at_speed(decode: DecodeConfig, speed: Speed | None) -> DecodeConfig:
    """``decode`` with the settings of a speed in place of its own; None leaves it as it is.

    So does FoleyGen, which has none of these settings. Guidance scale and temperatures stay the model's own.

    >>> at_speed(DecodeConfig(num_steps=24), "paper").num_steps
    16
    """
    check_value("speed", speed, Speed | None)
    if speed is None or decode.num_steps == 0:
        return decode
    if speed == "paper":
        return replace(decode, **_PAPER)
    # a student's steps are few as they are
    return replace(decode, **_PAPER | _FAST | {"num_steps": min(decode.num_steps, _FAST["num_steps"])})


def preset(name: str) -> Preset:
    """Look up a preset by name; ``SettingError`` lists the names there are."""
    if name not in PRESETS:
        raise SettingError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
