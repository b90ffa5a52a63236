"""Systems to time: models with their weights, or the architecture of a preset with random ones.

How long a network takes does not depend on its weights, so the paper's presets can be timed although nobody
has published them: network, codec and image encoder are built at full size and filled with random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from vab.codecs.codec import DAC, Codec, EnCodec, load_codec
from vab.config import SAMPLE_RATE, Preset
from vab.errors import SettingError
from vab.models.foleygen import build_network
from vab.models.hub import BUNDLED
from vab.presets import PRESETS
from vab.sampling.stages import Stage
from vab.vision import RECIPES, TimmEncoder, VisionEncoder, load_vision

if TYPE_CHECKING:
    from vab.timing.predictor import MotionPredictor  # which needs a video library

SECOND_STAGES = {
    "vab-dac": "vab-dac-coarse2fine",
    "vab-dac-test": "vab-dac-coarse2fine",
    "vab-tiny-coarse": "vab-tiny-fine",
}
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class System:
    """Everything needed to generate sound for a video."""

    name: str
    weights: Literal["trained", "random"]
    first: Stage
    fine: Stage | None
    codec: Codec
    vision: VisionEncoder
    predictor: MotionPredictor | None = None  # of a timing curve, from a film's motion


def load_system(name: str, device: torch.device) -> System:
    """Load the bundled model, a preset (with random weights), a model directory or a Hub id.

    Raises ``ValueError`` for a preset that makes no sound of its own, and as ``VABPipeline.from_pretrained``.
    """
    if name == BUNDLED or name not in PRESETS:
        from vab.inference.pipeline import (
            VABPipeline,  # which needs a video library; what is random needs none
        )

        pipe = VABPipeline.from_pretrained(name, device=device.type)
        return System(name, "trained", pipe.first, pipe.fine, pipe.codec, pipe.vision, pipe.predictor)
    preset = PRESETS[name]
    if preset.train.objective not in ("masked", "causal") or preset.model.num_conditioning_codebooks:
        raise SettingError(
            f"{name} makes no sound from a picture; take {BUNDLED}, vab-encodec, foleygen-encodec ..."
        )
    second = PRESETS[SECOND_STAGES[name]] if name in SECOND_STAGES else None
    codec = random_codec(preset.model.codec)
    vision = random_vision(preset.model.vision)
    return random_system(name, preset, second, codec, vision, device)


def random_system(
    name: str,
    preset: Preset,
    second: Preset | None,
    codec: Codec,
    vision: VisionEncoder,
    device: torch.device,
) -> System:
    """Networks with random weights for these presets, around that codec and image encoder."""
    codec = codec.to(device)
    vision = vision.to(device)
    first = random_stage(preset, codec, device)
    fine = None if second is None else random_stage(second, codec, device)
    return System(name, "random", first, fine, codec, vision)


def random_stage(preset: Preset, codec: Codec, device: torch.device) -> Stage:
    """The network of a preset with the vectors of a codec and otherwise random weights."""
    network = fill(lambda: build_network(preset))
    vectors = codec.codebook_vectors()[: preset.model.num_codebooks]
    network.audio_embedding.vectors = vectors.detach().float().clone()
    return Stage(network.eval().requires_grad_(False).to(device), preset)


def random_codec(name: Literal["encodec", "dac", "tiny"], **sizes: Any) -> Codec:
    """AudioGen's EnCodec or the 16 kHz DAC at full size; the small codec as it is, for it is here.

    ``sizes`` are settings of transformers' class to change.
    """
    if name == "tiny":
        return load_codec(name)
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    # 1. EnCodec: 64 filters are AudioGen's, 32 would be transformers' default.
    codec: Any
    if name == "encodec":
        settings: dict[str, Any] = {
            "num_filters": 64,
            "codebook_size": 2048,
            "target_bandwidths": [2.2],  # 4 codebooks of 11 bits, 50 times a second
            "use_causal_conv": False,
            "use_conv_shortcut": False,
        }
        codec = EncodecModel(EncodecConfig(sampling_rate=SAMPLE_RATE, **settings | sizes))
        for layer in codec.quantizer.layers:
            layer.codebook.embed.normal_()
        return EnCodec(codec)
    # 2. DAC.
    settings = {"downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12}
    codec = DacModel(DacConfig(sampling_rate=SAMPLE_RATE, **settings | sizes))
    with torch.no_grad():  # its own law is so narrow that numbers would get too small to be computed fast
        for parameter in codec.parameters():
            if parameter.ndim > 1 and parameter.shape[0] != 1:
                # and with more they grow until the sine of its Snake is noise in bfloat16
                parameter.normal_(std=0.7 * _fan_in(parameter))
    return DAC(codec)


def random_vision(name: str) -> VisionEncoder:
    """EVA02-CLIP-L or MAE ViT-L at full size; EfficientNet-Lite0 as it is, for it is here."""
    if name == "efficientnet-lite0":
        return load_vision("efficientnet-lite0")
    import timm

    recipe = RECIPES[name]
    model: Any = fill(lambda: timm.create_model(recipe.architecture, pretrained=False))
    if model.num_classes != recipe.dim:
        model.reset_classifier(0)
    return TimmEncoder(name, recipe, model)


def fill(build: Callable[[], N]) -> N:
    """A network whose own initialisation, slow at this size, is left out: random numbers of a sane size."""
    # no memory is touched while it is built
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            assert tensor.is_floating_point(), f"{name} is no weight to fill with random numbers"
            if tensor.ndim > 1:
                std = _fan_in(tensor)
                tensor.uniform_(-1.7 * std, 1.7 * std)
            else:  # norms and deviations are one, biases and means zero
                tensor.fill_(float(name.endswith(("weight", "std"))))
    return network


def _fan_in(weight: Tensor) -> float:
    return weight[0].numel() ** -0.5


def write_clip(folder: Path, seconds: float = 10.0) -> Path:
    """Write a silent H.264 video, 1280 x 720 pixels at 25 frames per second, of a moving texture."""
    import av
    import numpy as np

    # blocks of 16 x 16 pixels, shifted from frame to frame: as hard to decode as film
    random = np.random.default_rng(0)
    texture = np.kron(random.integers(0, 256, (45, 80, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    path = folder / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for n in range(round(25 * seconds)):
            image = np.roll(texture, 3 * n, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
