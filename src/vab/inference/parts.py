"""The parts of a pipeline: whether they belong together, and where they compute."""

from __future__ import annotations

import torch
from torch import nn

from vab.codecs.codec import Codec
from vab.config import ModelConfig
from vab.models.heads import check_codebooks
from vab.models.hub import FINE, ModelError
from vab.models.vab import VAB
from vab.utils import Precision
from vab.utils.device import Chosen
from vab.vision import VisionEncoder


def place(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Ready a network for inference. Its buffers, statistics and codebook vectors, stay in float32."""
    network.eval().requires_grad_(False).to(device)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)


def rows_at_once(network: nn.Module, most: int) -> int:
    """How many rows go through a network together: ``most``, or one in a narrow format on a CPU.

    There the kernels for bfloat16 and float16 differ by the number of rows, and with them the bits of a row.
    """
    weight = next(network.parameters())
    return 1 if weight.is_cpu and weight.dtype != torch.float32 else most


def vision_precision(chosen: Chosen, vision: VisionEncoder, device: torch.device) -> Precision:
    """The precision of an image encoder beside networks in ``chosen``: the same, or float32.

    That is where its features would be too far off, or where a CPU has no quick convolutions (float16).
    """
    far_off = chosen.precision == "bfloat16" and not vision.recipe.stands_bfloat16
    slow = chosen.precision == "float16" and device.type == "cpu"
    return "float32" if far_off or slow else chosen.precision


def place_vision(vision: VisionEncoder, chosen: Chosen, device: torch.device) -> VisionEncoder:
    """Ready an image encoder to compute beside networks in ``chosen``; returns it."""
    vision.precision = vision_precision(chosen, vision, device)
    vision.folds = chosen.is_narrow  # in float32 every bit is that of version 0.1.0
    return vision.to(device)


def check_parts(config: ModelConfig, network: VAB, codec: Codec, vision: VisionEncoder) -> None:
    """``ModelError`` if the parts do not belong together, which would silently generate noise."""
    if config.num_conditioning_codebooks:
        raise ModelError(
            f"this model refines {config.num_conditioning_codebooks} codebooks of another model, in "
            f"whose folder {FINE!r} it belongs; it makes no sound from a picture alone"
        )
    if vision.dim != config.vision_dim:
        raise ModelError(
            f"{vision.name} gives {vision.dim} numbers a frame, the model needs {config.vision_dim}"
        )
    check_codec(network, codec)


def check_codec(network: nn.Module, codec: Codec) -> None:
    """``ModelError`` if the network was trained on another codec's codebook vectors."""
    message = (
        "the model was trained on the tokens of another codec than this one; "
        "put its codec.json and codec.safetensors into its folder, or name it with --codec-path"
    )
    check_codebooks(network, codec.codebook_vectors(), message)
