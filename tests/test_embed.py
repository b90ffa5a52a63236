"""Embeddings and classes of media: what comes out, for which files, and the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny import write_video
from vab.cli import main
from vab.data.extraction.decoding import decode
from vab.data.extraction.encoding import Decoded, encode, latents_meta
from vab.data.shard import Latents
from vab.inference.embedder import Embedder, embed_latents, windows
from vab.inference.embeddings import Embedded, EmbeddingsError, read_embeddings
from vab.inference.pipeline import VABPipeline
from vab.media.container import MediaError
from vab.media.reader import write_wav


@pytest.fixture(scope="module")
def source(model: Path) -> Embedder:
    return Embedder.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bell/long.wav of 5.5 s, dog/silent.mp4 of 3 s, dog/both.mp4 of 2 s, cat/photo.png, cat/bad.mp4."""
    folder = tmp_path_factory.mktemp("media")
    for name in ("bell", "cat", "dog"):
        (folder / name).mkdir()
    random = np.random.default_rng(0)
    write_wav(folder / "bell" / "long.wav", 0.3 * random.standard_normal(88_000).astype(np.float32))
    write_video(folder / "dog" / "silent.mp4", 30, 10, sound=False)
    write_video(folder / "dog" / "both.mp4", 20, 10)
    from PIL import Image

    Image.fromarray(random.integers(0, 255, (60, 80, 3), np.uint8)).save(folder / "cat" / "photo.png")
    (folder / "cat" / "bad.mp4").write_text("no video at all")
    return folder


def vab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return int(caught.value.code or 0), out.out, out.err


def test_windows(media: Path) -> None:
    spans = [(clip.start, clip.seconds) for clip in windows(media / "bell" / "long.wav", 2.0)]
    assert spans == [(0.0, 2.0), (2.0, 2.0), (4.0, 1.5)]
    clip = windows(media / "bell" / "long.wav", 5.0)  # the rest of half a second is left out
    assert [(c.start, c.seconds) for c in clip] == [(0.0, 5.0)]
    assert clip[0].video is None and clip[0].audio is not None
    (photo,) = windows(media / "cat" / "photo.png", 2.0)
    assert photo.audio is None and photo.video is not None


def test_each_stream_has_a_vector_where_there_is_one(source: Embedder, media: Path) -> None:
    long = source.embed_file(media / "bell" / "long.wav")
    assert long.video is None and long.audio is not None and long.audio.shape == (3, 32)
    assert np.allclose(np.linalg.norm(long.audio, axis=1), 1, atol=1e-5)
    assert long.starts.tolist() == [0, 2, 4] and long.ends.tolist() == [2, 4, 5.5]
    mean = long.audio.mean(0)
    assert np.allclose(long.mean("audio"), mean / np.linalg.norm(mean), atol=1e-6)
    silent = source.embed_file(media / "dog" / "silent.mp4")
    assert silent.audio is None and silent.video is not None and silent.mean("audio") is None
    both = source.embed_file(media / "dog" / "both.mp4")
    assert both.audio is not None and both.video is not None
    with pytest.raises(MediaError, match=r"bad\.mp4"):
        source.embed_file(media / "cat" / "bad.mp4")


def test_company_changes_nothing(source: Embedder, media: Path) -> None:
    paths = sorted(path for path in media.rglob("*.*"))
    together = dict(source.embed_files(paths))
    assert [path for path, found in together.items() if isinstance(found, str)] == [media / "cat" / "bad.mp4"]
    assert list(together) == paths
    for path, found in together.items():
        if isinstance(found, Embedded):
            alone = source.embed_file(path)
            for kind in ("audio", "video"):
                a, b = getattr(found, kind), getattr(alone, kind)
                assert (a is None) == (b is None)
                assert a is None or np.allclose(a, b, atol=1e-5)


def test_a_file_that_cannot_be_encoded_fails_alone(
    source: Embedder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the codec or the network raises, and whether or not it is in a batch with others."""

    def failing(batch: list[Decoded], *rest: Any) -> list[Latents]:
        if any(item.clip.audio == media / "bell" / "long.wav" for item in batch):
            raise RuntimeError("out of memory")
        return encode(batch, *rest)

    monkeypatch.setattr("vab.inference.embedder.encode", failing)
    paths = [media / "dog" / "both.mp4", media / "bell" / "long.wav", media / "dog" / "silent.mp4"]
    found = dict(source.embed_files(paths))
    assert [isinstance(result, str) for result in found.values()] == [False, True, False]
    assert found[paths[1]] == f"{paths[1]}: RuntimeError: out of memory"
    meta = latents_meta(source.codec, source.vision, 2.0, 1.0)
    batch = [decode(windows(path, 2.0)[0], meta, source.vision.recipe) for path in paths]
    assert [isinstance(result, str) for result in source._encode(batch, meta)] == [False, True, False]


def test_what_is_filled_up_does_not_count(source: Embedder) -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 32, (2, 100)).astype(np.uint16)
    other = tokens.copy()
    other[:, 40:] = 7
    rows = [Latents("a", "", "", t, None, 40, 0) for t in (tokens, other)]
    audio, video = embed_latents(source.contrastive, rows, torch.device("cpu"))
    assert np.allclose(audio[0], audio[1], atol=1e-6) and np.isnan(video).all()
    whole, _ = embed_latents(source.contrastive, [Latents("a", "", "", other, None)], torch.device("cpu"))
    assert not np.allclose(whole[0], audio[0], atol=1e-4)


def test_pipeline_embeds_and_saves_what_it_learned(model: Path, media: Path, tmp_path: Path) -> None:
    pipeline = VABPipeline.from_pretrained(model, device="cpu")
    found = pipeline.embed(media / "dog" / "both.mp4")
    assert {name: vector.shape for name, vector in found.items()} == {"audio": (32,), "video": (32,)}
    assert list(pipeline.embed(media / "cat" / "photo.png")) == ["video"]
    pipeline.save_pretrained(tmp_path / "copy")
    again = VABPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert np.array_equal(again.embed(media / "dog" / "both.mp4")["audio"], found["audio"])
    assert again.embedder.fingerprint() == pipeline.embedder.fingerprint()
    assert again.embedder.classifier[1].classes == ("bell", "cat", "dog")


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_embed_command(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    out = tmp_path / f"all.{ending}"
    code, text, error = vab(capsys, "embed", media, "-o", out, "--model", model, "--json")
    document = json.loads(text)
    assert code == 1 and "bad.mp4" in error and list(document["failed"]) == [str(media / "cat" / "bad.mp4")]
    found = read_embeddings(out)
    assert [Path(name).name for name in found.ids] == ["long.wav", "photo.png", "both.mp4", "silent.mp4"]
    assert found.labels == ["bell", "cat", "dog", "dog"]
    assert found.audio.shape == found.video.shape == (4, 32)
    assert np.isnan(found.audio).all(1).tolist() == [False, True, False, True]
    assert np.isnan(found.video).all(1).tolist() == [True, False, False, False]
    if ending == "npz":
        with np.load(out) as file:
            assert file["window_row"].tolist() == [0, 0, 0, 1, 2, 3, 3][: len(file["window_row"])]
            assert file["window_audio"].shape == (len(file["window_row"]), 32)


def test_classify_command(model: Path, media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = vab(capsys, "classify", media, "--model", model, "--json")
    files = {Path(one["file"]).name: one for one in json.loads(text)["files"]}
    assert code == 1 and len(files) == 4
    assert {name: one["by"] for name, one in files.items()} == {
        "long.wav": "audio",
        "photo.png": "video",
        "both.mp4": "both",
        "silent.mp4": "video",
    }
    for one in files.values():
        shares = list(one["labels"].values())
        assert sum(shares) == pytest.approx(1, abs=1e-3) and shares == sorted(shares, reverse=True)
        assert set(one["labels"]) == {"bell", "cat", "dog"}
    code, text, error = vab(capsys, "classify", media / "dog", "--by", "audio", "--model", model)
    assert code == 1 and "silent.mp4: has no audio" in error and "both.mp4" in text


def test_bad_calls(model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in [
        (("embed", media, "-o", tmp_path / "x.txt", "--model", model), ".npz or .parquet"),
        (("embed", media, "-o", tmp_path / "no" / "x.npz", "--model", model), "no folder"),
        (("embed", tmp_path, "-o", tmp_path / "x.npz", "--model", model), "no media"),
        (("embed", media / "cat" / "bad.mp4", "-o", tmp_path / "x.npz", "--model", model), "none of the"),
        (("classify", media, "-k", 0, "--model", model), "-k"),
        (("evaluate", "retrieval"), "--store"),
        (("evaluate", "retrieval", "--store", tmp_path, "--model", model), "holds no store"),
    ]:
        code, _, error = vab(capsys, *words)
        assert code == 2 and part in error.splitlines()[-1], error
    assert list(tmp_path.iterdir()) == []


def test_damaged_embeddings_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 cut")
    (tmp_path / "b.npz").write_bytes(b"")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    np.savez(tmp_path / "d.npz", id=np.array(["a"]), audio=np.zeros((1, 3)))
    np.savez(tmp_path / "e.npz", id=np.array(["a"]), audio=np.zeros((1, 3)), video=np.zeros((2, 3)))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(EmbeddingsError, match=path.name):
            read_embeddings(path)
    with pytest.raises(EmbeddingsError, match=r"nothing\.npz"):
        read_embeddings(tmp_path / "nothing.npz")


def test_evaluate_a_model_on_a_store(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store's numbers are those of the embeddings of the same media."""
    manifest, store = tmp_path / "m.csv", tmp_path / "store"
    code, _, _ = vab(capsys, "data", "folder", media, "-o", manifest, "--seconds", 2, "--dev-share", 1)
    assert code == 1
    words = ("--seconds", 2, "--codec-path", model, "--device", "cpu")
    assert vab(capsys, "extract", manifest, "-o", store, *words)[0] == 0
    code, text, _ = vab(
        capsys, "evaluate", "retrieval", "--store", store, "--model", model, "--split", "dev", "--json"
    )
    assert code == 1 and json.loads(text)["clips"] == 1  # only both.mp4 has both
    code, text, _ = vab(
        capsys, "evaluate", "classification", "--store", store, "--model", model, "--split", "dev",
        "--inputs", "a", "--json",
    )  # fmt: skip
    document = json.loads(text)
    assert code == 0 and document["clips"] == 4


def test_the_bundled_model_knows_things(data: Path) -> None:
    """A dev photo and a dev sound of each class: named, and found by each other, far above chance."""
    source = Embedder.from_pretrained(device="cpu")
    files: dict[str, dict[str, Path]] = {}
    for kind in ("photos", "sounds"):
        with (data / f"{kind}.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                if row["split"] == "dev":
                    files.setdefault(row["label"], {}).setdefault(kind, data / row["file"])
    paired = {label: found for label, found in sorted(files.items()) if len(found) == 2}
    assert len(paired) >= 20
    classes = source.classifier[1].classes
    vectors: dict[str, list[np.ndarray]] = {"photos": [], "sounds": []}
    right = {"photos": 0, "sounds": 0}
    for label, found in paired.items():
        for kind, path in found.items():
            _, result = next(source.classify_files([path]))
            assert not isinstance(result, str)
            right[kind] += classes[result[1].argmax()] == label
            mean = source.embed_file(path).mean("audio" if kind == "sounds" else "video")
            assert mean is not None
            vectors[kind].append(mean)
    assert right["photos"] > 0.6 * len(paired) and right["sounds"] > 0.4 * len(paired)
    similar = np.stack(vectors["photos"]) @ np.stack(vectors["sounds"]).T
    first = (similar > similar.diagonal()[:, None]).sum(1) == 0
    assert first.mean() > 0.4  # chance is 0.05
