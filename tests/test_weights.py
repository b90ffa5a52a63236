"""Published weights, where there are: the product's loaders take them, and they do what they are known for.

The tests marked ``weights`` run where a variable says where the weights are (CONTRIBUTING.md has a table).
Their checks are tried on what is at hand: random networks of the same kinds, which have the shapes and fail
what only a trained network can do, and the trained networks of packages, which pass it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from helpers.codecs import save_dac, save_encodec
from helpers.encoders import random_network
from helpers.networks import write_weights
from vab.codecs.codec import Codec, load_codec
from vab.config import HOP_LENGTH, SAMPLE_RATE
from vab.evaluate.backbones.registry import PASST, VGGISH, YAMNET, FeatureSpec, find, load
from vab.evaluate.metrics.signal import mel_distance
from vab.media.reader import read_audio
from vab.presets import PRESETS
from vab.vision import RECIPES, VisionEncoder, load_vision

Vectors = dict[str, NDArray[np.float32]]  # [N, D] of each class
SOUNDS = Path(__file__).resolve().parents[1] / "examples" / "sounds"
DOGS = range(72, 81)  # AudioSet's classes from Animal, Domestic animals, Dog, Bark to Whimper (dog)


def given(variable: str) -> str:
    """What a variable says; the test is skipped where it is not set."""
    if not os.environ.get(variable):
        pytest.skip(f"${variable} does not say where the weights are (see CONTRIBUTING.md)")
    return os.environ[variable]


def weights_of(spec: FeatureSpec) -> Path:
    """The folder of evaluation networks, if it has this one's."""
    folder = Path(given("VAB_WEIGHTS"))
    if not (folder / spec.file).is_file():
        pytest.skip(f"$VAB_WEIGHTS has no {spec.file}")
    return folder


# --- what is checked ---------------------------------------------------------------------------------


def check_codec(codec: Codec, codebooks: int, size: int, dim: int) -> None:
    """Rates, codebooks and lengths."""
    assert (codec.sample_rate, codec.hop_length) == (SAMPLE_RATE, HOP_LENGTH) == (16_000, 320)
    assert (codec.num_codebooks, codec.codebook_size, codec.dim) == (codebooks, size, dim)
    assert codec.codebook_vectors().shape == (codebooks, size, dim)
    for samples, frames in ((16_000, 50), (16_001, 51), (15_999, 50), (8_000, 25)):
        tokens = codec.encode(0.1 * torch.randn(1, samples))
        assert tokens.shape == (1, codebooks, frames) and tokens.min() >= 0 and tokens.max() < size
        for k in (1, codebooks):
            sound = codec.decode(tokens[:, :k])
            assert sound.shape == (1, frames * 320) and sound.isfinite().all()


def heard_through(codec: Codec) -> tuple[float, float, float]:
    """Mel distances to three sounds: of all codebooks, of the first alone, and of noise that is as loud."""
    distances = []
    for path in sorted(SOUNDS.rglob("*.ogg"))[:3]:
        sound = read_audio(path)
        tokens = codec.encode(torch.from_numpy(sound)[None])
        whole, first = (codec.decode(tokens[:, :k])[0].cpu().numpy() for k in (codec.num_codebooks, 1))
        noise = np.random.default_rng(0).standard_normal(len(sound)) * sound.std()
        distances.append([mel_distance(sound, other) for other in (whole, first, noise)])
    whole, first, noise = np.mean(distances, axis=0)
    return float(whole), float(first), float(noise)


def sounds_like_it(codec: Codec) -> bool:
    """Is a sound through the codec much nearer than noise, and nearer with all codebooks than with one?"""
    whole, first, noise = heard_through(codec)
    return whole < first < noise and whole < noise / 2


def own_kind_is_nearer(vectors: Vectors) -> bool:
    """Is the mean cosine within a class greater than that between classes, for every pair of classes?"""
    units = {name: each / np.linalg.norm(each, axis=1, keepdims=True) for name, each in vectors.items()}
    # within a class without the vectors themselves, whose cosine is 1
    within = {name: float(np.mean([a @ b for a, b in combinations(each, 2)])) for name, each in units.items()}
    between = {(a, b): float(np.mean(units[a] @ units[b].T)) for a, b in combinations(units, 2)}
    return all(min(within[a], within[b]) > value for (a, b), value in between.items())


def photos(data: Path, encoder: VisionEncoder) -> Vectors:
    """Features of four photos of each class."""
    found = {}
    for name in ("cat", "helicopter", "piano"):
        files = sorted((data / "photos" / name).glob("*.jpg"))[:4]
        features = encoder.encode(np.asarray(Image.open(file).convert("RGB")) for file in files)
        assert features.shape == (4, encoder.dim) and features.dtype == torch.float32
        assert features.isfinite().all()
        found[name] = features.numpy()
    return found


def sounds(data: Path, name: str, spec: FeatureSpec, count: int) -> list[NDArray[np.float32]]:
    """So many sounds of a class, of 5 s at most, at the network's rate."""
    files = sorted((data / "sounds" / name).glob("*.ogg"))[:count]
    return [read_audio(file, seconds=5.0, rate=spec.rate) for file in files]


def share_of_dogs(tops: list[int]) -> float:
    """The share of AudioSet's classes that are a dog's."""
    return sum(top in DOGS for top in tops) / len(tops)


# --- with published weights --------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "variable", "codebooks"), [("encodec", "VAB_TEST_ENCODEC", 4), ("dac", "VAB_TEST_DAC", 12)]
)
def test_a_published_codec(name: str, variable: str, codebooks: int) -> None:
    codec = load_codec(name, given(variable))  # type: ignore[arg-type]
    model = PRESETS[f"vab-{name}"].model
    check_codec(codec, codebooks, model.codebook_size, model.codebook_dim)
    assert sounds_like_it(codec)


@pytest.mark.weights
def test_published_eva02(data: Path) -> None:
    encoder = load_vision("eva02-clip-l", given("VAB_TEST_EVA02"))
    assert (encoder.dim, encoder.size) == (768, 224)
    assert own_kind_is_nearer(photos(data, encoder))


@pytest.mark.weights
def test_published_vggish(data: Path) -> None:
    network = load(VGGISH, find(VGGISH, weights_of(VGGISH))[0], "cpu")
    found = {}
    for name in ("dog", "sea"):
        embeddings = [network(sound)[0] for sound in sounds(data, name, VGGISH, 4)]
        assert all(each.shape[1:] == (128,) for each in embeddings)
        found[name] = np.stack([each.mean(0).numpy() for each in embeddings])
    assert own_kind_is_nearer(found)


@pytest.mark.weights
def test_published_passt(data: Path) -> None:
    network = load(PASST, find(PASST, weights_of(PASST))[0], "cpu")
    tops = []
    for sound in sounds(data, "dog", PASST, 8):
        embedding, logits = network(sound)
        assert (embedding.shape, logits.shape) == ((768,), (527,))
        tops.append(int(logits.argmax()))
    assert share_of_dogs(tops) >= 0.75


# --- the checks themselves, on what is at hand -------------------------------------------------------


@pytest.mark.parametrize(("save", "codebooks"), [(save_encodec, 4), (save_dac, 12)])
def test_random_codecs_have_the_shapes_alone(
    save: Callable[[Path], None], codebooks: int, tmp_path: Path
) -> None:
    save(tmp_path)
    name = save.__name__.removeprefix("save_")
    codec = load_codec(name, str(tmp_path))  # type: ignore[arg-type]
    check_codec(codec, codebooks, codec.codebook_size, 8)
    assert not sounds_like_it(codec)
    with pytest.raises(AssertionError):
        check_codec(codec, codebooks + 1, codec.codebook_size, 8)


def test_the_bundled_codec_is_heard_to_be_trained() -> None:
    codec = load_codec("tiny")
    check_codec(codec, 12, 1024, 64)
    assert sounds_like_it(codec)


def test_features_of_a_trained_encoder_tell_photos_apart(data: Path) -> None:
    assert own_kind_is_nearer(photos(data, load_vision("efficientnet-lite0")))


def test_random_eva02_is_loaded_and_has_the_shape(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(RECIPES["eva02-clip-l"], architecture="eva02_tiny_patch14_224.mim_in22k", dim=192)
    save_file(random_network(small).state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setitem(RECIPES, "eva02-clip-l", small)
    assert not own_kind_is_nearer(photos(data, load_vision("eva02-clip-l", str(tmp_path))))


def test_scores_of_a_trained_tagger_tell_sounds_apart(data: Path) -> None:
    network = load(YAMNET, find(YAMNET, data / "weights" / "yamnet")[0], "cpu")
    found = {
        name: np.stack([network(sound)[0].numpy() for sound in sounds(data, name, YAMNET, 4)])
        for name in ("dog", "sea")
    }
    assert own_kind_is_nearer(found)


def test_made_up_networks_have_the_shapes_alone(data: Path, tmp_path: Path) -> None:
    """VGGish and PaSST at their true size: loaded as the published ones, told apart from them."""
    folder = write_weights(tmp_path, "vggish", "passt")
    (embeddings,) = load(VGGISH, find(VGGISH, folder)[0], "cpu")(sounds(data, "dog", VGGISH, 1)[0])
    assert embeddings.shape[1:] == (128,)
    embedding, logits = load(PASST, find(PASST, folder)[0], "cpu")(sounds(data, "dog", PASST, 1)[0])
    assert (embedding.shape, logits.shape) == ((768,), (527,))
    assert share_of_dogs([int(logits.argmax())]) == 0


def test_which_classes_are_a_dogs(data: Path) -> None:
    lines = (data / "lists" / "audioset_class_labels.csv").read_text(encoding="utf-8").splitlines()[1:]
    names = [line.split(",", 2)[2].strip('"') for line in lines]
    assert [names[n] for n in DOGS][:4] == ["Animal", "Domestic animals, pets", "Dog", "Bark"]
    assert names[DOGS[-1]] == "Whimper (dog)" and len(names) == 527
