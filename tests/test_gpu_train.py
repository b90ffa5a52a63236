"""``make gpu-train``: what it learns from can travel, its parts follow on, what comes of it makes sound."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.tiny import write_video
from vab.bench.gpu import tiny
from vab.data.manifest import Clip, read_manifest, write_manifest
from vab.data.store import LatentStore
from vab.inference.pipeline import VABPipeline
from vab.models.hub import MODEL, find_model, read_config
from vab.training.codec.sounds import read_sounds

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import vab_tiny_gpu as recipe

RECIPES = Path(recipe.__file__).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all parts have run at the small size; ``first.tar`` is the model after the first."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for part in (tiny.network, tiny.contrast, tiny.classes, tiny.decoder):
            result = part("cpu", True, Path("pages"))
            assert result["failed"] == [] and len(result["rows"]) >= 1
            if part is tiny.network:
                shutil.copyfile(root / "pages" / tiny.MODEL_TAR, root / "first.tar")
    assert not [path.name for path in (root / "pages").iterdir() if path.name.startswith(".")]
    for tar in ("pages/" + tiny.MODEL_TAR, "pages/" + tiny.CODEC_TAR):
        unpacked(root / tar, root / "model")
    return root


def unpacked(tar: Path, out: Path) -> Path:
    with tarfile.open(tar) as stream:
        stream.extractall(out, filter="data")
    return out


def weights(folder: Path, name: str = MODEL) -> dict[str, torch.Tensor]:
    return load_file(folder / name)


def test_the_model_brought_back_makes_sound(trained: Path, tmp_path: Path) -> None:
    """Its network, space, classes and decoder are new, its codes are not; it can be brought back."""
    new, shipped = trained / "model", find_model()
    for folder, frozen in ((".", False), ("contrastive", False), ("classes", True)):
        config = read_config(new / folder)
        assert config.note.endswith("2 steps of 8 on a cpu") and config.train.freeze_trunk == frozen
        assert config.train.epochs == pytest.approx(2 * 8 / 12, abs=0.01)
        mine, theirs = weights(new / folder), weights(shipped / folder)
        assert {tensor.dtype for tensor in mine.values()} == {torch.float16}
        assert mine.keys() == theirs.keys()
        assert any(
            mine[name].shape != theirs[name].shape or not mine[name].equal(theirs[name]) for name in mine
        )
    # two steps after its start the contrastive network is still near the new network, far from what ships
    matrix = "blocks.0.attention.qkv.weight"
    tuned, before = weights(new / "contrastive")[f"trunk.{matrix}"].float(), weights(new)[matrix].float()
    assert (tuned - before).norm() < 0.1 * before.norm() < (tuned - weights(shipped)[matrix]).norm()
    mine, theirs = weights(new, "codec.safetensors"), weights(shipped, "codec.safetensors")
    changed = {name for name in theirs if not mine[name].equal(theirs[name])}
    assert "to_spectrum.weight" in changed and not changed & {"mean", "basis", "vectors"}
    size = {tar: (trained / "pages" / tar).stat().st_size for tar in (tiny.MODEL_TAR, tiny.CODEC_TAR)}
    assert max(size.values()) < tiny.MAX_FILE_BYTES

    pipeline = VABPipeline.from_pretrained(new, device="cpu")
    assert pipeline.finetuned.classifier is not None
    assert pipeline.finetuned.classifier[1].classes == ("high", "low")
    sound = pipeline.generate(write_video(tmp_path / "silent.mp4", 25, 25, sound=False), steps=2)
    assert np.isfinite(sound.waveform).all() and np.abs(sound.waveform).max() > 0


def test_a_run_cut_after_its_first_part_brings_a_whole_model(trained: Path, tmp_path: Path) -> None:
    first, shipped = unpacked(trained / "first.tar", tmp_path), find_model()
    same = {name: weights(trained / "model")[name].equal(value) for name, value in weights(first).items()}
    assert all(same.values())
    for folder in ("contrastive", "classes"):
        mine, theirs = weights(first / folder), weights(shipped / folder)
        assert mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)
    VABPipeline.from_pretrained(first, device="cpu")


def test_steps_fill_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny.LIMITS, "network", 100.0)
    found = tiny._steps("network", 20.0, time.perf_counter() - 35.0, small=False)
    assert found == pytest.approx(0.9 * 20 * (100 - 20 - 35), abs=2)
    assert tiny._steps("network", 20.0, time.perf_counter() - 200.0, small=False) == 1


def test_without_anything_packed_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"vab_tiny_gpu\.sh pack"):
        tiny.network("cpu", False, tmp_path)


def test_what_is_packed_comes_out_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The store but for its rounding, the sounds in their own files; what would not fit is refused."""
    store, manifest = tmp_path / "store", tmp_path / "sounds" / "sounds.csv"
    tiny.write_noise(store, manifest)
    recipe.pack(store, manifest, tmp_path / "packed")
    tiny.unpack(tmp_path / "packed", tmp_path / "out")
    before, after = LatentStore.open(store), LatentStore.open(tmp_path / "out" / "store")
    assert (after.ids, after.labels, after.splits) == (before.ids, before.labels, before.splits)
    rows = range(len(before))
    assert np.array_equal(after.gather("tokens", rows), before.gather("tokens", rows))
    off = after.gather("features", rows).astype(float) - before.gather("features", rows)
    assert 0 < np.abs(off).max() <= 0.5 / recipe.ROUNDING
    assert np.array_equal(after.codebook_vectors(), before.codebook_vectors())
    old, new = (tiny.read_sounds(path) for path in (manifest, tmp_path / "out" / "sounds" / "sounds.csv"))
    assert old.keys() == new.keys() == {"high", "low"}
    assert all(np.array_equal(old[label][0], new[label][0]) for label in old)

    monkeypatch.setattr(recipe, "LARGEST", recipe.MIB)
    with pytest.raises(SystemExit, match="Pack a smaller store"):
        recipe.pack(store, manifest, tmp_path / "packed")
    assert list((tmp_path / "packed").iterdir()) == []


def test_every_label_has_its_share_of_the_room(tmp_path: Path) -> None:
    """A rare label is there whole, the frequent ones share what it leaves."""
    sizes = {"rare": [700] * 2, "short": [900] * 40, "long": [4000] * 40}
    clips = []
    for label, several in sizes.items():
        for n, size in enumerate(several):
            path = tmp_path / f"{label}{n}.wav"
            path.write_bytes(bytes(size))
            clips.append(Clip(path.name, path, None, label=label))
    room = 60_000
    found = recipe.chosen(clips, room)
    taken = {
        label: sum(recipe.in_tar(c.audio) for c in found if c.audio and c.label == label) for label in sizes
    }
    assert room - 5000 < sum(taken.values()) <= room
    assert taken["rare"] == 2 * 1536 and abs(taken["short"] - taken["long"]) <= 4608
    assert recipe.chosen(reversed(clips), room) == found


def test_it_is_imported_without_what_a_gpu_machine_lacks() -> None:
    code = "import sys; sys.modules.update(av=None, tyro=None, lancedb=None); import vab.bench.gpu.tiny"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_soundfile_reads_what_av_reads(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason="no soundfile: what a machine without av reads sounds with")
    paths = [next((data / "sounds" / label).glob("*.ogg")) for label in ("cat", "sea", "harp")]
    clips = [Clip(path.name, path, None, label=path.parent.name) for path in paths]
    write_manifest(tmp_path / "sounds.csv", clips)
    mine, theirs = tiny.read_sounds(tmp_path / "sounds.csv"), read_sounds(tmp_path / "sounds.csv")
    assert mine.keys() == theirs.keys() == {"cat", "sea", "harp"}
    for label in mine:
        a, b = mine[label][0].astype(int), theirs[label][0].astype(int)
        assert 0 <= len(b) - len(a) < 128  # av gives the last block whole
        assert np.abs(a).max() > 100 and np.abs(a - b[: len(a)]).max() <= 1


def test_real_sounds_and_photos_are_packed_and_learned_from(
    data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The recipe's own command on a few files, then a part from what it packed."""
    for table, labels in (("sounds", ("cat", "digit_3")), ("photos", ("cat",))):
        with (data / f"{table}.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        few = [row for row in rows if row["label"] in labels and row["split"] == "train"][::60]
        (tmp_path / "data").mkdir(exist_ok=True)
        with (tmp_path / "data" / f"{table}.csv").open("w") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(few)
        for row in few:
            (tmp_path / "data" / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data / row["file"], tmp_path / "data" / row["file"])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    source = str(RECIPES.parent / "src")
    subprocess.run(
        ["bash", str(RECIPES / "vab_tiny_gpu.sh"), "pack", "data", "run"],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": source},
        check=True,
        timeout=300,
    )
    monkeypatch.chdir(tmp_path)
    assert tiny.network("cpu", True, tmp_path)["failed"] == []
    store, packed = LatentStore.open("run/store"), LatentStore.open(tiny.STORE)
    assert packed.ids == store.ids and store.meta.codec_fingerprint == packed.meta.codec_fingerprint
    train = [clip for clip in read_manifest("run/codec.csv") if clip.split == "train"]
    sounds = tiny.read_sounds(tiny.MANIFEST)
    assert sorted(sounds) == ["cat", "digit_3"] and sum(map(len, sounds.values())) == len(train)


def test_packed_sounds_keep_to_the_room_there_is(tmp_path: Path) -> None:
    """As a tar, with all that it needs beside the sounds themselves."""
    clips = []
    for n in range(120):
        path = tmp_path / f"{n}.ogg"
        path.write_bytes(bytes(700 + 13 * n))
        clips.append(Clip(f"c{n}", path, None, 0.0, 1.0, "ab"[n % 2], "train"))
    write_manifest(tmp_path / "codec.csv", clips)
    room = 150_000
    packed = recipe.pack_sounds(tmp_path / "codec.csv", tmp_path / "sounds.tar", room)
    assert 20 < len(packed) < len(clips)
    assert 0.8 * room < (tmp_path / "sounds.tar").stat().st_size <= room
