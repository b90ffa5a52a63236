"""The paper's ablations (appendices C and D) as lists of rows: changed fields, and the paper's numbers.

A row names the few fields of a preset that differ. ``chain`` is the order of training; without one only the
decoding differs, and a finished model serves all rows. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from vab.config import Preset
from vab.evaluate.paper import CLASSIFICATION, RETRIEVAL, WAYS

Objective = Literal["masked", "contrastive", "classification"]
FAD, KLD = "FD-VGG", "KL-PASST-softmax"  # the paper's, as ``vab evaluate generation`` names them
COLUMNS = {"both": "V+A", "video": "V", "audio": "A"}  # inputs of a classifier, as the paper names them
ARROWS = dict(zip(WAYS, ("V → A", "A → V"), strict=True))

_PRETRAINED: tuple[Objective, ...] = ("masked", "classification")
_WHOLE: tuple[Objective, ...] = ("masked", "contrastive", "classification")


@dataclass(frozen=True)
class Row:
    """One row (or column) of a table."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # "decode.num_steps": 8
    paper: Mapping[str, float] = field(default_factory=dict)  # metric -> the paper's number
    chain: tuple[Objective, ...] = ()
    epochs: Mapping[str, float] = field(
        default_factory=dict
    )  # of trainings (``trainings``), if not the preset's

    @property
    def trainings(self) -> tuple[str, ...]:
        """A name for each training of the chain, from those up to it: masked, masked_contrastive."""
        return tuple("_".join(self.chain[: n + 1]) for n in range(len(self.chain)))


@dataclass(frozen=True)
class Ablation:
    """A table, or a part of one."""

    name: str
    title: str
    source: str  # where in the paper, and on which model there
    rows: tuple[Row, ...]
    measured: tuple[Objective, ...] = ()  # networks whose last objective is one of these are evaluated

    @property
    def trains(self) -> bool:
        """True if its rows are trained, not only decoded."""
        return any(row.chain for row in self.rows)


def changed(preset: Preset, changes: Mapping[str, Any]) -> Preset:
    """The preset with some fields changed; ``ValueError`` if it has no such field."""
    # "decode.num_steps": the part of the preset, and the field in it
    for name, value in changes.items():
        part, _, key = name.partition(".")
        config = getattr(preset, part, None)
        if config is None or key not in {f.name for f in fields(config)}:
            raise ValueError(f"a preset has no field {name}")
        preset = replace(preset, **{part: replace(config, **{key: value})})
    return preset


def _printed(system: str, accuracy: str = "", fad: float | None = None, recall: str = "") -> dict[str, float]:
    """What the paper prints of a system on VGGSound: accuracy and R@k in the tables named, and FAD."""
    numbers: dict[str, float] = {}
    # 1. Accuracy from V+A, V and A, as far as the table gives it.
    for scored in CLASSIFICATION:
        if (scored.source, scored.system) == (accuracy, system):
            pairs = zip(COLUMNS.values(), scored.scores["vggsound"], strict=True)
            numbers |= {f"accuracy {column} %": score for column, score in pairs if score is not None}
    # 2. FAD.
    if fad is not None:
        numbers[FAD] = fad
    # 3. Recall, a row for each way.
    for found in RETRIEVAL:
        if (found.source, found.system) == (recall, system):
            recall_at = zip((1, 5, 10), found.recall["vggsound"], strict=True)
            numbers |= {f"R@{k} {ARROWS[found.way]} %": share for k, share in recall_at}
    return numbers


def _decoding(name: str, values: Mapping[float, tuple[float, float]], **others: float) -> tuple[Row, ...]:
    """Rows that differ in one field of decoding, with the paper's FAD and KLD; ``others`` are set in all."""
    same = {f"decode.{key}": value for key, value in others.items()}
    return tuple(
        Row(
            "none" if (name, value) == ("guidance_scale", 1.0) else f"{value:g}",
            {f"decode.{name}": value, **same},
            dict(zip((FAD, KLD), numbers, strict=True)),
        )
        for value, numbers in values.items()
    )


_ABLATIONS = (
    Ablation(
        "scratch",
        "Classification from scratch and after pre-training",
        "Table 9, VAB-DAC-Test",
        (
            Row("from scratch", {}, _printed("VAB-DAC-Test From Scratch", "Table 9"), ("classification",)),
            Row("pre-trained", {}, _printed("VAB-DAC-Test", "Table 9"), _WHOLE),
        ),
        ("classification",),
    ),
    Ablation(
        "experts",
        "Feed-forward networks of each modality, or shared",
        "Table 9, VAB-DAC-Test",
        (
            Row(
                "without experts",
                {"model.experts": False},
                _printed("VAB-DAC-Test w.o. experts", "Table 9"),
                _WHOLE,
            ),
            Row("with experts", {}, _printed("VAB-DAC-Test", "Table 9"), _WHOLE),
        ),
        ("classification",),
    ),
    Ablation(
        "order",
        "Which comes first, contrast or masked prediction",
        "Table 10, VAB-DAC-Test",
        (
            Row(
                "contrastive, then masked",
                {},
                _printed("Contrastive (29), then Masked Prediction (9)", fad=4.14, recall="Table 10"),
                ("contrastive", "masked"),
                {"contrastive": 29.0},  # the rest, 9 and 15, are VAB-DAC-Test's own (Table 8)
            ),
            Row(
                "masked, then contrastive",
                {},
                _printed("Masked Prediction (9), then Contrastive (15)", fad=4.18, recall="Table 10"),
                ("masked", "contrastive"),
            ),
        ),
        ("masked", "contrastive"),
    ),
    Ablation(
        "contrastive",
        "Classification with and without contrastive fine-tuning before it",
        "Table 11, VAB-DAC-Test on VGGSound",
        (
            Row("without", {}, _printed("VAB-DAC-Test w.o. contrastive ft", "Table 11"), _PRETRAINED),
            Row("with", {}, _printed("VAB-DAC-Test w. contrastive ft", "Table 11"), _WHOLE),
        ),
        ("classification",),
    ),
    Ablation(
        "masking",
        "Mean of the masking ratio's law",
        "Table 12, VAB-DAC-Test",
        tuple(
            Row(f"{mean:g}", {"train.mask_mean": mean}, {"accuracy V+A %": accuracy, FAD: fad}, _PRETRAINED)
            for mean, accuracy, fad in ((0.35, 55.2, 6.04), (0.55, 56.2, 5.30), (0.75, 57.2, 6.55))
        ),
        _PRETRAINED,
    ),
    Ablation(
        "vision",
        "The image encoder",
        "Tables 13 and 14, VAB-DAC-Test on VGGSound",
        (
            Row(
                "MAE ViT-L",
                {"model.vision": "mae-vit-l", "model.vision_dim": 1024},
                _printed("VAB-DAC-Test (MAE)", "Table 13", 4.93, "Table 14"),
                _WHOLE,
            ),
            Row("the preset's", {}, _printed("VAB-DAC-Test", "Table 13", 4.18, "Table 14"), _WHOLE),
        ),
        _WHOLE,
    ),
    Ablation(
        "positions",
        "Distances of ALiBi: places in the sequence, or time",
        "not in the paper",
        tuple(Row(name, {"model.positions": name}, {}, _PRETRAINED) for name in ("sequence", "time")),
        _PRETRAINED,
    ),
    Ablation(
        "fine",
        "Decoding steps of the second stage, on the true coarse codebooks",
        "Table 15, VAB-DAC-Coarse2Fine",
        (
            Row("coarse alone", {"decode.num_steps": 0}),
            Row("24", {"decode.num_steps": 24}, {FAD: 1.32}),
            Row("36", {"decode.num_steps": 36}, {FAD: 1.28}),
        ),
    ),
    Ablation(
        "guidance",
        "Scale of classifier-free guidance",
        "Table 16, VAB-DAC",
        _decoding(
            "guidance_scale",
            {1.0: (5.93, 3.45), 3.0: (3.50, 2.90), 5.0: (3.24, 2.84), 7.0: (3.39, 2.83), 11.0: (4.18, 2.82)},
        ),
    ),
    Ablation(
        "temperature",
        "Temperature of the noise in the confidence",
        "Table 17, VAB-Encodec",
        _decoding(
            "mask_temperature",
            {4.5: (5.75, 3.08), 10.5: (3.1, 2.69), 12.5: (2.98, 2.61)}
            | {15.5: (2.83, 2.61), 20.5: (2.74, 2.59), 25.5: (2.69, 2.58)},
        ),
    ),
    Ablation(
        "steps",
        "Decoding steps",
        "Table 18, VAB-Encodec",
        _decoding(  # its 16 steps have the FAD of temperature 10.5 in Table 17
            "num_steps",
            {8: (3.52, 2.67), 16: (3.1, 2.65), 36: (3.25, 2.69), 48: (3.32, 2.71)},
            mask_temperature=10.5,
        ),
    ),
)
ABLATIONS = {each.name: each for each in _ABLATIONS}
