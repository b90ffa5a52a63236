"""Model folders of anybody: whatever they hold, one line names file and key, and nothing runs away."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.cli import vab
from helpers.tiny import write_model
from vab.codecs.codec import CodecError, load_codec
from vab.data.store import StoreError, read_meta
from vab.errors import SettingError
from vab.inference.pipeline import VABPipeline
from vab.models.heads import load_finetuned
from vab.models.hub import ModelError, known_models, read_config
from vab.sampling.stages import load_fine, load_stage

NESTED = "[" * 100_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), fine=True)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "model")


def change(path: Path, key: str, value: Any) -> None:
    """Give a key of a JSON file, dotted where it is inside another, a value."""
    document = json.loads(path.read_text())
    *outer, last = key.split(".")
    inner = document
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(document))


def load_whole(folder: Path) -> None:
    """Read all that ``VABPipeline.from_pretrained`` reads of a folder, but no image encoder."""
    load_stage(folder), load_codec("tiny", folder), load_fine(folder), load_finetuned(folder)


CONFIGS = [
    ("model.hidden_dim", "a", "must be a whole number, not 'a'"),
    ("model.hidden_dim", [1], "must be a whole number, not (1,)"),
    ("model.hidden_dim", None, "must be a whole number, not None"),
    ("model.hidden_dim", 32.5, "must be a whole number, not 32.5"),
    ("model.hidden_dim", True, "must be a whole number, not True"),
    ("model.hidden_dim", 10**9, "must be from 1 to 65536, not 1000000000"),
    ("model.hidden_dim", 10**400, "must be from 1 to 65536, not 1000"),
    ("model.num_heads", 0, "must be from 1 to 128, not 0"),
    ("model.num_layers", -1, "must be from 1 to 1000, not -1"),
    ("model.num_layers", 10**9, "must be from 1 to 1000"),
    ("model.num_codebooks", 10**6, "must be from 1 to 64"),
    ("model.seconds", float("nan"), "must be from 0.02 to 120, not nan"),
    ("model.seconds", 1e12, "must be from 0.02 to 120"),
    ("model.seconds", 100, "make windows of 5100 positions; the most are 4096"),
    ("model.fps", float("inf"), "must be more than 0, not inf"),
    ("model.codec", "pickle", "must be encodec or dac or tiny, not 'pickle'"),
    ("model.codec", {}, "must be encodec or dac or tiny, not {}"),
    ("model.experts", "no", "must be true or false, not 'no'"),
    ("model.colour", 3, "is no setting that is known here"),
    ("model", [], "must hold names and values, not []"),
    ("name", 7, "must be a text, not 7"),
    ("classes", ["a", 3], "must be a list, each a text, not ('a', 3)"),
    ("train.betas", [0.9], "must be a list, each a number, not (0.9,)"),
    ("decode.num_steps", 10**9, "must be from 0 to 10000"),
    ("decode.num_candidates", 10**9, "must be from 1 to 1000"),
    ("decode.guidance_scale", float("inf"), "must be from 0 to 1000, not inf"),
]


@pytest.mark.parametrize(("key", "value", "says"), CONFIGS, ids=lambda value: str(value)[:20])
def test_a_config_that_cannot_be_is_one_line(copy: Path, key: str, value: Any, says: str) -> None:
    change(copy / "config.json", key, value)
    with pytest.raises(ModelError) as caught:
        read_config(copy)
    line = str(caught.value)
    assert line.startswith(f"{copy / 'config.json'}: ") and key in line
    assert says in line and "\n" not in line and len(line) < 400


def test_a_key_is_named_as_the_file_has_it(copy: Path) -> None:
    config = copy / "config.json"
    document = json.loads(config.read_text())
    document["model"]["width"] = document["model"].pop("hidden_dim")
    for key, value, says in [
        ("model.width", "a", r"\(model.width must be a whole number"),
        ("model.width", 0, r"\(model.width must be from 1"),
        ("model.hidden_dim", 32, r"\(model.width is there twice, as hidden_dim too\)"),
    ]:
        config.write_text(json.dumps(document))
        change(config, key, value)
        with pytest.raises(ModelError, match=says):
            read_config(copy)
    del document["name"]
    config.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"\(name is missing\)"):
        read_config(copy)


@pytest.mark.parametrize("content", [NESTED, '{"model": ' * 9999, "[]", "", "\xff", "1" * 5000])
def test_json_of_any_kind_is_one_line_in_every_place(copy: Path, content: str) -> None:
    for name in ("config.json", "fine/config.json", "classes/config.json", "codec.json"):
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(content.encode("latin-1"))
        with pytest.raises((ModelError, CodecError)) as caught:
            load_whole(copy)
        assert str(copy / name) in str(caught.value) and "\n" not in str(caught.value)
        (copy / name).write_bytes(before)
    (copy / "store.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(StoreError, match=r"store\.json"):
        read_meta(copy)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("iterations", 10**9, "iterations must be from 0 to 1000"),
        ("window", 10**9, "window must be from 160 to 16384"),
        ("window", "a", "window must be a whole number"),
        ("decoder_layers", 10**9, "decoder_layers must be from 1 to 100"),
        ("num_codebooks", 0, "num_codebooks must be from 1 to 64"),
        ("dim", 4000, "dim must be from 1 to 200"),
        ("codebook_size", 65536, "vectors is float"),  # 34 GB that no weights fill
        ("octaves", 3, "octaves is no setting"),
        ("hold", float("nan"), "hold must be from 0"),
        ("level_hold", float("nan"), "level_hold must be from 0"),
        ("level_dim", 9, "level_dim must be from 0 to 8"),
        ("level_dim", -1, "level_dim must be from 0"),
    ],
)
def test_a_codec_that_cannot_be_is_one_line(copy: Path, key: str, value: Any, says: str) -> None:
    change(copy / "codec.json", key, value)
    if key == "codebook_size":
        change(copy / "codec.json", "num_codebooks", 64)
    with pytest.raises(CodecError) as caught:
        load_codec("tiny", copy)
    assert says in str(caught.value) and str(copy / "codec.") in str(caught.value)


@pytest.mark.parametrize("name", ["model", "fine/model", "contrastive/model", "classes/model", "codec"])
@pytest.mark.parametrize("kind", ["shape", "dtype", "missing", "extra", "empty"])
def test_weights_that_do_not_fit_are_one_line(copy: Path, name: str, kind: str) -> None:
    path = copy / f"{name}.safetensors"
    tensors = load_file(path)
    first = next(key for key in sorted(tensors) if tensors[key].dim() > 1)
    changed = {
        "shape": {first: torch.zeros(1, 1)},
        "dtype": {first: tensors[first].to(torch.int8)},
        "extra": {"zebra": torch.zeros(1)},
    }
    tensors = {} if kind == "empty" else tensors | changed.get(kind, {})
    if kind == "missing":
        del tensors[first]
    save_file(tensors, path)
    with pytest.raises((ModelError, CodecError)) as caught:
        load_whole(copy)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_models_lists_the_good_beside_the_bad(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("deep", "list", "pipe"):
        shutil.copytree(copy, copy.parent / name)
    (copy.parent / "deep" / "config.json").write_text(NESTED)
    (copy.parent / "list" / "config.json").write_text("[]")
    (copy.parent / "pipe" / "config.json").unlink()
    os.mkfifo(copy.parent / "pipe" / "config.json")  # nobody writes to it
    (copy.parent / "other").mkdir()
    (copy.parent / "other" / "config.json").write_text("{}")  # no weights: of something else
    change(copy / "config.json", "note", "\x1b[31m two\nlines " + "x" * 5000)
    names = json.loads((copy / "classes" / "config.json").read_text())["classes"]
    change(copy / "classes" / "config.json", "classes", ["\x1b]0;a", *names[1:]])
    save_file({"means": torch.ones(())}, copy / "classes" / "known.safetensors")  # of one number
    (copy.parent / "list" / "classes" / "known.safetensors").write_bytes(b"\xff" * 100)
    code, out, err = vab(capsys, "models", copy.parent)
    assert code == 0 and not err and "/other" not in out and "\x1b" not in out
    rows = [line for line in out.splitlines() if line.startswith(str(copy.parent)) and "learned:" not in line]
    states = {Path(row.split()[0]).relative_to(copy.parent).as_posix(): row.split()[1] for row in rows}
    for name in ("deep", "list", "pipe"):
        assert states[name] == "damaged" and states[f"{name}/classes"] == "local"
    assert states["model"] == "local" and all(len(row) < 400 for row in rows)
    reasons = [model.note for model in known_models([copy.parent]) if model.state == "damaged"]
    assert all(
        re.search(r"/(deep|list|pipe)/config\.json: is no configuration", reason) for reason in reasons
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 1.5), ("steps", "4"), ("steps", True), ("steps", 10**9), ("rerank", 2.0), ("rerank", 10**9),
        ("guidance", "much"), ("guidance", float("nan")), ("temperature", -1),
        ("seed", 0.5), ("seed", -1), ("seed", "a"), ("keep", 3), ("keep", [3]), ("keep", [("a", "b")]),
    ],
)  # fmt: skip
def test_a_setting_of_another_type_is_one_line(model: Path, setting: str, value: Any) -> None:
    pipe = VABPipeline.from_pretrained(model, device="cpu")
    with pytest.raises(SettingError, match=setting) as caught:
        pipe.generate("examples/cat.mp4", **{setting: value})
    assert "\n" not in str(caught.value)
