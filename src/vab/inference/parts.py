"""The parts of a pipeline: whether they belong together, and where they compute."""

from __future__ import annotations

import torch
from torch import nn

from vab.codecs.codec import Codec
from vab.config import ModelConfig
from vab.models.heads import check_codebooks
from vab.models.hub import FINE, ModelError
from vab.models.vab import VAB
from vab.utils.device import Chosen
from vab.utils.precision import Precision
from vab.vision import VisionEncoder


def place(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Ready a network for inference. Its buffers, statistics and codebook vectors, stay in float32."""
    network.eval().requires_grad_(False).to(device)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)


def vision_precision(chosen: Chosen, device: torch.device) -> Precision:
    """The precision of the image encoder beside networks in ``chosen``: the same, where it is fast.

    A CPU has no quick convolutions in float16.
    """
    return "float32" if chosen.precision == "float16" and device.type == "cpu" else chosen.precision


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
