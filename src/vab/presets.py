"""Tables 7 and 8 of the paper as named presets: model, training and decoding of each run."""

from __future__ import annotations

from dataclasses import replace

from vab.config import (
    TABLE_8,
    DecodeConfig,
    Preset,
    TrainConfig,
    _classes,
    _contrastive,
    _dac,
    _dac_decode,
    _dac_test,
    _encodec,
    _stepwise,
    _tiny,
)
from vab.errors import SettingError

_FINETUNED: dict[str, tuple[str, TrainConfig, tuple[float, float]]] = {
    "contrastive": ("sound and picture in one space", _contrastive, (14.0, 15.0)),
    "as2m": ("classes of AudioSet-2M", replace(_classes, class_balanced=True), (2.0, 2.0)),
    "as20k": ("classes of AudioSet-20K", _classes, (10.0, 10.0)),
    "vggsound": ("classes of VGGSound", replace(_classes, batch_size=48, class_balanced=True), (5.0, 5.0)),
    "esc50": ("classes of ESC-50", replace(_classes, roll_prob=1.0, inputs=("audio",)), (50.0, 50.0)),
    "spc1": (
        "classes of Speech Commands v1",
        replace(_classes, roll_prob=1.0, inputs=("audio",)),
        (10.0, 5.0),
    ),
}


def _presets() -> list[Preset]:
    found = [
        Preset("vab-encodec", "the paper's best model: EnCodec 16 kHz, 4 codebooks of 2048", _encodec),
        Preset(
            "vab-dac",
            "the paper's model on DAC 16 kHz, the first 4 of 12 codebooks of 1024",
            _dac,
            TrainConfig(epochs=9.0),
            _dac_decode,
        ),
        Preset(
            "vab-dac-test",
            "the smaller model of the paper's ablations (12 heads as the text says; Table 7 says 8)",
            _dac_test,
            TrainConfig(epochs=9.0),
            _dac_decode,
        ),
        Preset(
            "vab-dac-test-no-experts",
            "vab-dac-test whose first layers share their feed-forward networks (ablation C.2)",
            replace(_dac_test, experts=False),
            TrainConfig(epochs=9.0),
            _dac_decode,
        ),
    ]
    for base in list(found):
        for column, (note, train, epochs) in _FINETUNED.items():
            chosen = replace(train, epochs=epochs[base.model.codec == "dac"])
            found.append(Preset(f"{base.name}-{column}", f"{base.name}: {note}", base.model, chosen))
    found += [
        Preset(
            "vab-dac-coarse2fine",
            "second stage: the fine 8 codebooks of DAC from the coarse 4",
            replace(
                _dac,
                num_codebooks=12,
                num_conditioning_codebooks=4,
                hidden_dim=1280,
                num_layers=16,
                num_expert_layers=0,
                num_heads=20,
            ),
            TrainConfig(epochs=9.0),
            replace(_dac_decode, num_steps=36),
        ),
        Preset(
            "vab-tiny",
            "the model inside the package: small enough to ship and for a laptop",
            _tiny,
            TrainConfig(
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
            ),
            DecodeConfig(guidance_scale=4.0, mask_temperature=4.5),
        ),
    ]
    tiny, tiny_decode = found[-1].train, found[-1].decode
    found += [
        Preset(
            "vab-tiny-coarse",
            "the first of two stages at vab-tiny's size: the first 2 codebooks of the small codec",
            replace(_tiny, num_codebooks=2),
            tiny,
            tiny_decode,
        ),
        Preset(
            "vab-tiny-fine",
            "the second of two stages: the next 2 codebooks from the first 2",
            replace(_tiny, num_conditioning_codebooks=2, num_expert_layers=0),
            tiny,
            DecodeConfig(num_steps=36, guidance_scale=1.0, mask_temperature=4.5),
        ),
        Preset(
            "foleygen-encodec",
            "the baseline FoleyGen as the paper rebuilt it: a decoder on the tokens of vab-encodec",
            replace(_encodec, num_expert_layers=0),
            TrainConfig(
                objective="causal",
                learning_rate=1e-4,
                weight_decay=0.1,
                warmup_steps=4000,
                label_smoothing=0.0,
                mixup_prob=0.0,
                roll_prob=0.0,
            ),
            _stepwise,
        ),
        Preset(
            "foleygen-tiny",
            "FoleyGen at the size and with the training of vab-tiny",
            replace(_tiny, num_expert_layers=0),
            replace(tiny, objective="causal"),
            _stepwise,
        ),
    ]
    tiny = TrainConfig(
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
    found += [
        Preset("vab-tiny-contrastive", "vab-tiny: sound and picture in one space", _tiny, tiny),
        Preset(
            "vab-tiny-classes",
            "vab-tiny: classes from sound, picture or both",
            _tiny,
            replace(tiny, objective="classification", inputs=("audio", "video", "both"), loss="ce"),
        ),
    ]
    return found


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _presets()}


def table_8(name: str) -> dict[str, str]:
    """What the paper's Table 8 says of a preset's training, by field; empty for a preset that is ours."""
    if not name.startswith(("vab-encodec", "vab-dac")) or name.endswith("coarse2fine"):
        return {}
    column = name.rpartition("-")[2]
    if column not in TABLE_8:
        column = "pre-training"
    fields = ("learning_rate", "warmup_steps", "epochs", "batch_size", "roll_prob", "class_balanced", "loss")
    said = dict(zip(fields, TABLE_8[column], strict=True))
    said |= {"optimizer": "AdamW", "weight_decay": "1e-5", "mixup_prob": "0.5", "label_smoothing": "0.1"}
    return {f"train.{field}": value for field, value in said.items()}


def preset(name: str) -> Preset:
    """The preset of that name; ``SettingError`` names the ones there are."""
    if name not in PRESETS:
        raise SettingError(f"no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
