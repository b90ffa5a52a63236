"""The evaluation networks at their true size, with made-up weights under the published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.networks import NETWORKS, made_up, noise, write_weights
from vab.evaluate.backbones.registry import BACKBONES, Backbone, find, load
from vab.evaluate.backbones.weights import find_weights, folders
from vab.evaluate.metrics.statistics import EvaluationError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), *NETWORKS)


def backbone(name: str, weights: Path) -> Backbone:
    return load(BACKBONES[name].reference, find(BACKBONES[name].reference, weights)[0], "cpu")


# The numbers below come from the packages that published the weights: torchvggish 0.2 (last ReLU off),
# panns-inference 0.1.1 (Cnn14 at 16 kHz) and hear21passt 0.0.26, with the same weights and the same sound.


def test_vggish_is_torchvggish(weights: Path) -> None:
    network = backbone("vggish", weights)
    (found,) = network(noise(3.0, 16_000))
    assert found.shape == (3, 128) and found.dtype == torch.float32
    assert found[0, :4].numpy() == pytest.approx([0.45841, 0.87537, -0.23793, 0.39917], abs=2e-4)
    assert float(found.std()) == pytest.approx(0.47726, abs=1e-4)
    assert found.min() < 0  # the last ReLU is off
    assert (network(noise(3.0, 16_000))[0] == found).all()
    assert [len(network(noise(seconds, 16_000))[0]) for seconds in (0.975, 8.0, 10.0)] == [1, 8, 10]


def test_panns_is_panns_inference(weights: Path) -> None:
    network = backbone("panns", weights)
    (found,) = network(noise(3.0, 16_000))
    assert {name: tuple(value.shape) for name, value in found.items()} == {"2048": (2048,), "logits": (527,)}
    assert found["2048"][:4].numpy() == pytest.approx([11.98827, 0.0, 5.7766, 0.0], abs=5e-3)
    assert float(found["2048"].std()) == pytest.approx(11.32753, rel=1e-3)
    assert float(found["logits"][2]) == pytest.approx(3.50493, abs=5e-2)


def test_passt_is_hear21passt(weights: Path) -> None:
    network = backbone("passt", weights)
    embedding, logits = network(noise(3.0, 32_000))
    assert (embedding.shape, logits.shape) == ((768,), (527,))
    assert embedding[:4].numpy() == pytest.approx([0.66536, 0.31747, 0.0549, 0.41779], abs=2e-3)
    assert logits[:4].numpy() == pytest.approx([1.79975, -0.67686, 0.94524, 1.36272], abs=5e-3)
    assert float(embedding.std()) == pytest.approx(0.87667, rel=1e-3)
    assert float(logits.std()) == pytest.approx(1.37556, rel=1e-3)


def test_yamnet_names_real_sounds(data: Path) -> None:
    network = backbone("yamnet", data / "weights" / "yamnet")
    from vab.media.reader import read_audio

    lines = (data / "weights" / "yamnet" / "yamnet_class_map.csv").read_text().splitlines()[1:]
    names = [line.split(",")[2].strip() for line in lines]
    for folder, wanted in (("dog", {"Dog", "Bark", "Animal"}), ("helicopter", {"Helicopter", "Vehicle"})):
        sound = next(iter(sorted((data / "sounds" / folder).glob("*.ogg"))))
        features, logits = network(read_audio(sound))
        assert (features.shape, logits.shape) == ((521,), (521,))
        assert wanted & {names[n] for n in logits.topk(3).indices}
    assert torch.isfinite(logits).all()


def test_weights_are_looked_for_where_they_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("VAB_WEIGHTS", str(tmp_path / "mine"))
    with pytest.raises(EvaluationError) as told:
        find_weights("a.pth", "https://where", None)
    assert str(told.value) == (
        f"no a.pth: get it from https://where and put it into {tmp_path / 'mine'}, or pass --weights"
    )
    for folder in reversed(folders(tmp_path / "given")):
        folder.mkdir(parents=True)
        (folder / "a.pth").touch()
        assert find_weights("a.pth", "", tmp_path / "given") == folder / "a.pth"
    with pytest.raises(EvaluationError, match=f"no b.pth in {tmp_path / 'given'}"):
        find_weights("b.pth", "https://where", tmp_path / "given")


@pytest.mark.parametrize("content", ["text", "other network", "part", "code"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / BACKBONES["vggish"].reference.file
    if content == "text":
        path.write_text("<html>not found</html>")
    elif content == "code":  # nothing in a file is ever run
        torch.save({"model": pytest.fail}, path)
    else:
        with torch.device("meta"):
            state = made_up(NETWORKS["panns" if content == "other network" else "vggish"]())
        torch.save(dict(list(state.items())[:3]), path)
    with pytest.raises(EvaluationError, match=r"vggish-10086976.pth: no weights of VGGish \(") as told:
        load(BACKBONES["vggish"].reference, path, "cpu")
    assert "\n" not in str(told.value) and len(str(told.value)) < 400


def test_yamnet_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / BACKBONES["yamnet"].reference.file
    path.write_bytes(b"no model")
    with pytest.raises(EvaluationError, match=r"no TFLite model"):
        load(BACKBONES["yamnet"].reference, path, "cpu")
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(EvaluationError, match=r"pip install 'vab\[eval\]'"):
        load(BACKBONES["yamnet"].reference, path, "cpu")
