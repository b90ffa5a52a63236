"""Weights are verified when they are read, and a model has one fingerprint wherever it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.cli import vab
from helpers.tiny import write_model
from vab.codecs.codec import CodecError, load_codec
from vab.models.heads import load_finetuned
from vab.models.hub import ASSETS, BUNDLED, ModelError, folder_fingerprint
from vab.sampling.stages import load_fine, load_stage
from vab.training.checkpoint import read_about, save_checkpoint
from vab.utils.files import DamagedError, load_tensors, save_tensors, tensors_checksum


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), fine=True)


def flip(path: Path, offset: int = -100) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def damaged(path: Path) -> str:
    return f"{path} is damaged: its contents do not match its checksum; download or save it again"


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", {"b": torch.arange(300.0), "checksum": torch.ones(2).half()}
    save_tensors(path, tensors, {"about": '{"checksum":"' + "0" * 64 + '"}'})
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_tensors(path).items())
    for offset in (-1, 8 + path.read_bytes()[8:].index(b"about")):  # a number, and the header
        flip(path, offset)
        with pytest.raises(DamagedError) as caught:
            load_tensors(path)
        assert str(caught.value) == damaged(path)
        flip(path, offset)
    # Files of other tools and of version 0.1.0 have no checksum, but the same content has the same one.
    save_file(load_tensors(path), tmp_path / "plain.safetensors")
    save_tensors(path, tensors)
    assert load_tensors(tmp_path / "plain.safetensors").keys() == tensors.keys()
    assert tensors_checksum(path) == tensors_checksum(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    ("part", "load"),
    [
        (".", load_stage),
        ("fine", load_fine),
        ("contrastive", load_finetuned),
        ("classes", load_finetuned),
    ],
)
def test_every_network_of_a_model_is_verified(model: Path, part: str, load: object, tmp_path: Path) -> None:
    path = shutil.copytree(model, tmp_path / "model") / part / "model.safetensors"
    flip(path)
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "model")  # type: ignore[operator]
    assert str(caught.value) == damaged(path)


def test_the_bundled_weights_have_checksums_that_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(ASSETS / BUNDLED, tmp_path / "model")
    for path in (folder / "codec.safetensors", folder / "model.safetensors"):
        flip(path)
        code, _, err = vab(capsys, "generate", "examples/cat.mp4", "-o", tmp_path, "--model", folder)
        assert code == 2 and damaged(path) in err
        flip(path)
    flip(folder / "codec.safetensors")
    with pytest.raises(CodecError, match="do not match its checksum"):
        load_codec("tiny", folder)


def test_a_checkpoint_with_a_flipped_bit_is_passed_over(tmp_path: Path) -> None:
    network = torch.nn.Linear(30, 30)
    save_checkpoint(tmp_path, 1, network, [torch.optim.AdamW(network.parameters())], [], {"identity": {}})
    path = tmp_path / "000000001.safetensors"
    assert read_about(path) == {"identity": {}}
    flip(path)
    assert read_about(path) is None


def test_a_fingerprint_goes_with_the_model_and_not_with_its_place(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "elsewhere")
    first = folder_fingerprint(model)
    assert folder_fingerprint(folder) == first and len(first) == 64
    codec = tmp_path / "codec"
    codec.mkdir()
    for name in ("codec.json", "codec.safetensors"):
        shutil.move(folder / name, codec / name)
    assert folder_fingerprint(folder, codec) == first  # the same codec, given separately
    others = {
        first,
        folder_fingerprint(folder),
        folder_fingerprint(folder, codec, codec / "codec.safetensors"),
    }
    for path in sorted(folder.rglob("*.safetensors")):
        weights = load_file(path)
        save_tensors(path, {name: tensor + 1 for name, tensor in weights.items()})
        others.add(folder_fingerprint(folder, codec))
        save_tensors(path, weights)
    assert len(others) == 3 + 4
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        folder_fingerprint(folder, codec)
