"""Systems with random weights: at full size on a GPU, at a size for two cores without one.

The small ones have the same parts: EnCodec and DAC of transformers, EVA-02 of timm, the presets' networks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from vab.bench.systems import SECOND_STAGES, System, fill, random_codec, random_system, random_vision
from vab.codecs.codec import Codec
from vab.config import ModelConfig, Preset
from vab.models.foleygen import build_network
from vab.models.vab import VAB
from vab.presets import PRESETS
from vab.vision import RECIPES, TimmEncoder, VisionEncoder

SMALL_VISION = replace(
    RECIPES["eva02-clip-l"], architecture="eva02_tiny_patch14_224", dim=192, size=56, short_side=56
)
SMALL_MODEL = {
    "seconds": 1.0,
    "hidden_dim": 64,
    "num_layers": 2,
    "num_heads": 2,
    "vision_dim": SMALL_VISION.dim,
}
SMALL_CODECS: dict[str, dict[str, int]] = {
    # 8 would give a convolution of 16 channels, which oneDNN computes wrongly in bfloat16 on a CPU with AMX
    "encodec": {"num_filters": 16},
    "dac": {"encoder_hidden_size": 8, "decoder_hidden_size": 64},
}


def preset_of(name: str, small: bool) -> Preset:
    """The preset, or one of the same kind that two cores can do."""
    preset = PRESETS[name]
    if not small:
        return preset
    sizes: dict[str, Any] = SMALL_MODEL | {"num_expert_layers": min(1, preset.model.num_expert_layers)}
    decode = replace(preset.decode, num_steps=min(2, preset.decode.num_steps))
    train = replace(preset.train, batch_size=min(4, preset.train.batch_size))
    return replace(preset, model=replace(preset.model, **sizes), decode=decode, train=train)


def network_of(preset: Preset) -> VAB:
    """Its network, on the CPU."""
    return fill(lambda: build_network(preset)).eval().requires_grad_(False)


def codec_of(name: Literal["encodec", "dac"], small: bool) -> Codec:
    """That codec, on the CPU."""
    return random_codec(name, **SMALL_CODECS[name] if small else {})


def vision_of(small: bool) -> VisionEncoder:
    """EVA02-CLIP-L, on the CPU."""
    if not small:
        return random_vision("eva02-clip-l")
    import timm

    model: Any = fill(
        lambda: timm.create_model(
            SMALL_VISION.architecture, pretrained=False, img_size=SMALL_VISION.size, depth=2
        )
    )
    model.reset_classifier(0)
    return TimmEncoder("eva02-tiny", SMALL_VISION, model)


def system_of(name: str, small: bool, device: torch.device) -> System:
    """Everything needed to generate sound for a video."""
    preset = preset_of(name, small)
    second = preset_of(SECOND_STAGES[name], small) if name in SECOND_STAGES else None
    assert preset.model.codec != "tiny"
    codec, vision = codec_of(preset.model.codec, small), vision_of(small)
    return random_system(name, preset, second, codec, vision, device)


def inputs(config: ModelConfig, batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B,K,T] of a window, half of them [MASK] where a codebook is predicted; features [B,F,dim]."""
    # drawn on the CPU, so that every device gets the same
    draw = torch.Generator().manual_seed(0)
    shape = (batch, config.num_codebooks, config.audio_length)
    tokens = torch.randint(config.codebook_size, shape, generator=draw)
    hidden = torch.rand(shape, generator=draw) < 0.5
    hidden[:, : config.num_conditioning_codebooks] = False
    features = torch.randn(batch, config.video_length, config.vision_dim, generator=draw)
    return tokens.masked_fill(hidden, config.codebook_size).to(device), features.to(device)
