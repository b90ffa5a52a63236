"""Errors for people: one line that names the input, whatever went wrong underneath."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.disk import files_of_at_most
from helpers.tiny import write_model
from vab.cli import main
from vab.codecs.codec import CodecError, load_codec
from vab.config import check_preset
from vab.data.datasets.synthetic import write_synthetic
from vab.data.store import LatentStore, StoreError
from vab.errors import (
    MAX_LINE_LENGTH,
    SettingError,
    TrainError,
    VABError,
    failure,
    first_line,
    for_people,
    naming,
)
from vab.inference.pipeline import VABPipeline
from vab.models.heads import Finetuned
from vab.models.hub import CONFIG, MODEL, ModelError, read_config
from vab.presets import PRESETS
from vab.sampling.parallel import DecodeError
from vab.utils.files import save_tensors, write_whole
from vab.utils.provenance import sha256, whole_folder


def vab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """Exit code and the lines on standard error of a call."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code, capsys.readouterr().err.splitlines()


# --- the rules ---


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n\n  first \nsecond"), "first"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 9999), "x" * MAX_LINE_LENGTH),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "No such file or directory"),
        (RuntimeError("Error(s) in loading state_dict for VAB:\n\tMissing key(s): a"), "Missing key(s): a"),
        (MemoryError(), "not enough memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "a"), "not enough memory"),
        (
            RuntimeError("lance error: x, No space (os error 28), /root/.cargo/a.rs:5"),
            "No space left on device",
        ),
    ],
)
def test_the_first_line_of_any_exception(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_what_people_are_shown_and_what_is_a_bug() -> None:
    assert for_people(StoreError("st is damaged")) == "st is damaged"
    assert (
        for_people(OSError(errno.ENOSPC, "No space left on device", "out")) == "out: No space left on device"
    )
    assert for_people(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    for bug in (ValueError("x"), KeyError("x"), RuntimeError("x"), TypeError("x"), AssertionError()):
        assert for_people(bug) is None


def test_memory_that_runs_out_is_no_bug() -> None:
    for greedy in (lambda: np.empty(10**16), lambda: torch.empty(10**16)):
        with pytest.raises((MemoryError, RuntimeError)) as caught:
            greedy()
        assert (for_people(caught.value) or "").startswith("not enough memory")
        assert failure("a.mp4", caught.value).startswith("a.mp4: not enough memory")


def test_who_caught_a_value_error_still_does() -> None:
    assert all(issubclass(kind, ValueError) for kind in (SettingError, StoreError, DecodeError))
    assert issubclass(TrainError, RuntimeError) and issubclass(CodecError, VABError)


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("train", {"batch_size": 0}, "train.batch_size must be 1 or more, not 0"),
        ("train", {"learning_rate": float("nan")}, "train.learning_rate must be 0 or more, not nan"),
        ("train", {"betas": (0.9, 2.0)}, "train.betas must be from 0 to"),
        ("train", {"mask_std": 0.0}, "train.mask_std must be more than 0"),
        ("train", {"inputs": ()}, "train.inputs must name one"),
        ("model", {"num_heads": 5}, "model.hidden_dim 192 is not a multiple of 5 heads"),
        ("model", {"num_expert_layers": 99}, "model.num_expert_layers must be from 0 to"),
        ("decode", {"guidance_scale": float("nan")}, "decode.guidance_scale must be from 0 to 1000, not nan"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(part: str, changes: dict[str, Any], says: str) -> None:
    whole = PRESETS["vab-tiny"]
    with pytest.raises(SettingError, match=re.escape(says)):
        check_preset(replace(whole, **{part: replace(getattr(whole, part), **changes)}))


def test_every_preset_makes_sense() -> None:
    for each in PRESETS.values():
        check_preset(each)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_json_that_is_none_is_an_error_for_people(tmp_path: Path, text: str) -> None:
    for name in (CONFIG, "store.json"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(CodecError, match="is no configuration of a codec"):
        load_codec("encodec", tmp_path)
    with pytest.raises(ModelError, match="is no configuration of a VAB model"):
        read_config(tmp_path)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path))):
        LatentStore.open(tmp_path)


# --- the disk ---


def test_the_file_is_named_and_not_its_temporary_name(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught, naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert for_people(caught.value) == f"{tmp_path / 'a'}: No space left on device"
    folder = tmp_path / "folder"
    folder.mkdir()
    for write in (lambda: write_whole(folder, b""), lambda: save_tensors(folder, {"a": torch.zeros(1)})):
        with pytest.raises(OSError) as caught:
            write()
        assert for_people(caught.value) == f"{folder}: Is a directory"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_disk_that_takes_no_more_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, large = tmp_path / "file", torch.zeros(100_000)
    write_whole(file, b"old")
    with files_of_at_most(4096):
        for write in (lambda: write_whole(file, bytes(10_000)), lambda: save_tensors(file, {"a": large})):
            with pytest.raises(OSError) as caught:
                write()
            assert for_people(caught.value) == f"{file}: File too large"
        code, lines = vab(capsys, "data", "synthetic", "-o", tmp_path / "clips", "--clips", 1)
    assert code == 2 and len(lines) == 1 and "File too large" in lines[0]
    assert file.read_bytes() == b"old"


def hashes(folder: Path) -> dict[str, str]:
    return {str(path): sha256(path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_model_directory_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = VABPipeline.from_pretrained(write_model(tmp_path / "model"), device="cpu")
    before = hashes(tmp_path / "model")
    pipe.config = PRESETS["vab-tiny"]  # what is written from now on differs

    def full(folder: Path, finetuned: Finetuned) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vab.inference.pipeline.save_finetuned", full)
    with pytest.raises(OSError) as caught:
        pipe.save_pretrained(tmp_path / "model")
    assert for_people(caught.value) == f"{tmp_path / 'model'}: No space left on device"
    assert hashes(tmp_path / "model") == before  # neither a new file nor half of one


def test_the_file_that_makes_a_folder_a_model_comes_last(tmp_path: Path) -> None:
    (tmp_path / "in the way").mkdir()
    with pytest.raises(OSError), whole_folder(tmp_path, CONFIG) as place:
        (place / CONFIG).touch()
        (place / "in the way").touch()  # a file cannot take the place of a folder
    assert not (tmp_path / CONFIG).exists()


# --- a model whose weights are not numbers, in every verb that decodes ---


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with NaN in the bias of its heads."""
    folder = write_model(tmp_path_factory.mktemp("broken"))
    state = load_file(folder / MODEL)
    name = next(name for name in state if name.startswith("heads") and name.endswith("bias"))
    save_file(state | {name: torch.full_like(state[name], float("nan"))}, folder / MODEL)
    return folder


@pytest.fixture(scope="module")
def latents(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that fits the broken model."""
    from vab.data.extraction.run import extract
    from vab.data.manifest import read_manifest, write_manifest

    folder = tmp_path_factory.mktemp("latents")
    manifest = write_synthetic(folder / "clips", 2, 3.0, 0)
    write_manifest(manifest, [replace(clip, split="dev") for clip in read_manifest(manifest)])
    pipe = VABPipeline.from_pretrained(broken, device="cpu")
    model = pipe.config.model
    extract(manifest, folder / "store", pipe.codec, pipe.vision, seconds=model.seconds, fps=model.fps)
    return folder / "store"


@pytest.mark.parametrize(
    "call",
    [
        ("generate", "CLIP", "-o", "OUT", "--model", "MODEL"),
        ("evaluate", "generation", "--store", "STORE", "--model", "MODEL", "--split", "dev", "--run", "OUT"),
        ("evaluate", "ablation", "guidance", "--store", "STORE", "--model", "MODEL", "--run", "OUT"),
        ("bench", "MODEL", "--clip", "CLIP", "--repeats", "1", "--largest-batch", "1"),
    ],
    ids=lambda call: " ".join(call[:2]),
)
def test_a_model_that_is_not_numbers_is_one_line_in_every_verb(
    call: tuple[str, ...], broken: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = next(latents.parent.rglob("*.mp4"))
    places = {"MODEL": broken, "STORE": latents, "OUT": tmp_path / "out", "CLIP": clip}
    code, lines = vab(capsys, *(places.get(word, word) for word in call))
    assert code == (1 if call[0] == "generate" else 2)  # of many inputs each one fails
    assert [line for line in lines if "logits are NaN or infinite" in line] == lines[-1:]
    assert "Error" not in lines[-1]
