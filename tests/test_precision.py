"""Precision: how ``auto`` chooses, what does not change with the company of a clip, and what records say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from helpers.cli import vab
from helpers.tiny import write_video
from vab import VABPipeline
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.errors import SettingError
from vab.evaluate.embedding import Measured, classify_store_on, embed_store_on
from vab.evaluate.generation.spread import Synthesis, synthesize_on
from vab.evaluate.generation.synthesis import MADE, Synthesizer
from vab.evaluate.metrics.statistics import EvaluationError
from vab.inference.embedder import Embedder, embed_latents
from vab.inference.made_with import difference, tag_of
from vab.models.hub import read_config
from vab.utils import device
from vab.utils.device import MEASURED, Chosen, pick_precision
from vab.vision import load_vision

CPU = torch.device("cpu")
HALF = Chosen("bfloat16")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, where nothing is kept yet."""
    monkeypatch.setenv("VAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pipe(model: Path) -> VABPipeline:
    return VABPipeline.from_pretrained(model, device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Films of one and of two windows, with frames that fill no whole pass of the image encoder."""
    folder = tmp_path_factory.mktemp("clips")
    films = ((14, (200, 60, 30)), (33, (20, 200, 30)), (9, (20, 60, 200)))
    return [write_video(folder / f"{n}.mp4", n, 10, colour=colour) for n, colour in films]


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, two of which end sooner than their window."""
    vectors = Synthesizer.load(model, device="cpu").codec.codebook_vectors().numpy()
    meta = StoreMeta("tiny", "efficientnet-lite0", 2, 32, 8, 1280, seconds=2.0, fps=1.0)
    random = np.random.default_rng(0)
    rows = [
        Latents(
            f"clip {n}",
            "cat",
            "dev",
            random.integers(0, 32, meta.token_shape, dtype=np.uint16),
            random.normal(size=meta.feature_shape).astype(np.float16),
            *((60, 1) if n in (1, 4) else ()),
        )
        for n in range(6)
    ]
    folder = tmp_path_factory.mktemp("latents") / "store"
    LatentStore.create(folder, meta, vectors).add(rows)
    return folder


def keep(cache: Path, gain: Any) -> Path:
    """As if the machine had been measured."""
    kept = cache / MEASURED
    pick_precision("auto")
    (key,) = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: gain}))
    return kept


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- which precision


@pytest.mark.parametrize(("gain", "precision"), [(0.02, "float32"), (1.49, "float32"), (1.5, "bfloat16")])
def test_auto_goes_by_what_was_measured_here(cache: Path, gain: float, precision: str) -> None:
    kept = keep(cache, gain)
    chosen = pick_precision("auto", "cpu")
    assert chosen == (precision, gain) and chosen.dtype == getattr(torch, precision)
    assert chosen.document() == {"precision": precision, "bfloat16_gain": round(gain, 2)}
    assert list(json.loads(kept.read_text()).values()) == [gain]
    torch.set_num_threads(2)  # another number is another measurement, beside the first
    pick_precision("auto", "cpu")
    assert [name.split(", ")[-1] for name in json.loads(kept.read_text())] == ["1 threads", "2 threads"]


@pytest.mark.parametrize("content", ["{", "[1]", "", "\0"])
def test_a_damaged_measurement_is_made_again(
    cache: Path, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir()
    (cache / MEASURED).write_text(content)
    chosen = pick_precision("auto")
    assert chosen.gain is not None and chosen.gain > 0
    assert (chosen.precision == "bfloat16") == (chosen.gain >= 1.5)
    assert list(json.loads((cache / MEASURED).read_text()).values()) == [round(chosen.gain, 3)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", ["fast", -1.0, True, float("nan"), None])
def test_a_measurement_that_is_none_is_made_again(cache: Path, value: Any) -> None:
    kept = keep(cache, value)
    gain = pick_precision("auto").gain
    assert gain is not None and gain > 0 and list(json.loads(kept.read_text()).values()) == [round(gain, 3)]


def test_a_cache_that_cannot_be_written_is_done_without(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")
    gain = pick_precision("auto").gain
    assert gain is not None and gain > 0
    assert cache.is_file() and capfd.readouterr() == ("", "")


def test_a_bad_moment_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most products in bfloat16 are disturbed while it is measured: the fastest tells what it can."""
    now, calls = 0.0, 0

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal now, calls
        calls += 1
        narrow = a.dtype == torch.bfloat16
        now += 1.0 if narrow and calls % 8 else 0.6 if not narrow else 0.2
        return a

    monkeypatch.setattr(torch.nn.functional, "linear", product)
    monkeypatch.setattr(device.time, "perf_counter", lambda: now)
    assert device.measure_gain(CPU) == pytest.approx(3.0)


def test_bfloat16_that_is_slow_is_found_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is emulated a large product takes seconds: it is not tried after a small one was slow."""
    sizes = []
    real = torch.nn.functional.linear

    def emulated(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(b))
        for _ in range(20 if a.dtype == torch.bfloat16 else 0):
            real(a, b)
        return real(a, b)

    monkeypatch.setattr(torch.nn.functional, "linear", emulated)
    assert device.measure_gain(CPU) < 0.5 and set(sizes) == {device.SIDE // 4}


def test_words() -> None:
    assert pick_precision() == pick_precision(torch.float32) == ("float32", None)
    assert pick_precision("float16") == pick_precision("torch.float16") == ("float16", None)
    assert pick_precision(Chosen("bfloat16", 1.7)) == ("bfloat16", 1.7)  # chosen before: it stays
    for name in ("half", "float64", "", 3):
        with pytest.raises(
            SettingError, match=r"^a precision is auto, float32, bfloat16, float16, tf32, not"
        ):
            pick_precision(name)  # type: ignore[arg-type]
    for name in ("tf32", Chosen("tf32")):
        with pytest.raises(SettingError, match="TF32 is a number format of NVIDIA's GPUs"):
            pick_precision(name, "cpu")


# --- the same bits, alone or among others


def test_a_clip_alone_and_among_others(pipe: VABPipeline, clips: list[Path]) -> None:
    assert pipe.network.heads.weight.dtype == torch.bfloat16
    assert pipe.vision.precision == "float32"  # this one would suffer
    assert all(tensor.dtype != torch.bfloat16 for tensor in pipe.codec.state_dict().values())
    together = pipe(clips, seed=5, rerank=3)
    for clip, sound in zip(clips, together, strict=True):
        alone = pipe(clip, seed=5, rerank=3)
        assert np.array_equal(alone.waveform, sound.waveform)
        assert torch.equal(alone.features, sound.features)  # type: ignore[arg-type]
    assert not np.array_equal(together[1].waveform, pipe(clips[1], seed=6).waveform)


def test_only_beside_a_narrow_network_the_image_encoder_folds(pipe: VABPipeline) -> None:
    assert (pipe.vision.folds, pipe.vision.precision) == (True, "float32")
    other = pipe.embedder.beside(Chosen("float32"))
    assert not other.vision.folds and pipe.vision.folds


def test_the_features_of_a_frame_do_not_depend_on_how_many_there_are() -> None:
    vision = load_vision("efficientnet-lite0", precision="bfloat16")
    frames = list(torch.randint(256, (7, 3, 224, 224), dtype=torch.uint8))
    # Not every machine's kernels tell numbers of rows apart, so the numbers are looked at too.
    passes: set[int] = set()
    vision._network().register_forward_hook(lambda _, args, __: passes.add(len(args[0])))  # type: ignore[attr-defined]
    features = vision.encode_crops(frames)
    for count in (1, 2, 5):
        assert torch.equal(vision.encode_crops(frames[:count]), features[:count])
    assert passes == {4}
    exact = load_vision("efficientnet-lite0").encode_crops(frames)
    cosine = torch.cosine_similarity(features, exact)
    assert features.dtype == torch.float32 and 0.99 < cosine.min() < 1


def test_sounds_of_a_store_for_any_batch(model: Path, store: Path, tmp_path: Path) -> None:
    preset = read_config(model)
    preset = replace(preset, train=replace(preset.train, pair_by_label=False))  # each with its own video

    def make(name: str, clips: int, batch: int, **changes: Any) -> dict[str, bytes]:
        takes = ((replace(preset.decode, num_steps=2), tmp_path / name),)
        wanted = Synthesis(model, store, preset, "dev", clips, 3, takes, None, batch=batch, **changes)
        synthesize_on([CPU], wanted)
        return contents(tmp_path / name)

    alone = make("alone", 3, 1, precision=HALF)
    assert json.loads(alone[MADE])["precision"] == "bfloat16"
    more = make("more", 6, 16, precision=HALF)
    assert all(more[name] == alone[name] for name in alone if name != MADE)
    # Another precision is another sound, and never comes into the same folder.
    exact = make("exact", 3, 8)
    assert "precision" not in json.loads(exact[MADE])  # as version 0.1 wrote it
    assert any(exact[name] != alone[name] for name in alone if name != MADE)
    for name, other in (("alone", Chosen("float32")), ("exact", HALF)):
        with pytest.raises(EvaluationError, match="sounds of other precision; use another --run"):
            make(name, 3, 8, precision=other)


def test_clips_of_a_store_are_embedded_each_alone(model: Path, store: Path) -> None:
    measured = Measured(model, store, "dev", HALF)
    found = embed_store_on([CPU], measured)
    exact = embed_store_on([CPU], replace(measured, precision=Chosen("float32")))
    for kind in ("audio", "video"):
        a, b = getattr(found, kind), getattr(exact, kind)
        assert not np.array_equal(a, b) and (a * b).sum(1).min() > 0.999
    scores = [classify_store_on([CPU], replace(measured, precision=each), "both")[1] for each in (HALF, HALF)]
    assert np.array_equal(*scores)

    embedder = Embedder.from_pretrained(model, device="cpu", dtype="bfloat16")
    latents = LatentStore.open(store)
    rows = [latents[n] for n in range(len(latents.ids))]
    passes: set[int] = set()
    for part in (embedder.contrastive.trunk.video_projection, embedder.contrastive.trunk.audio_embedding):
        part.register_forward_hook(lambda _, args, __: passes.add(len(args[0])))
    together = embed_latents(embedder.contrastive, rows, CPU)
    for n, row in enumerate(rows):
        for vectors, (vector,) in zip(together, embed_latents(embedder.contrastive, [row], CPU), strict=True):
            assert np.array_equal(vectors[n], vector)
    assert passes == {1}


# --- what records say


def test_the_precision_is_in_the_record_of_a_sound(
    cache: Path, model: Path, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ("generate", clips[0], "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--steps", 1)
    keep(cache, 1.6)
    code, text, _ = vab(capsys, *call, "--json")  # auto is the default
    document = json.loads(text)
    assert code == 0 and document["settings"]["precision"] == "bfloat16"
    assert document["settings"]["bfloat16_gain"] == 1.6
    tag = tag_of(tmp_path / "out" / f"{clips[0].stem}.mp4")
    assert tag is not None and (tag["precision"], tag["bfloat16_gain"]) == ("bfloat16", 1.6)

    def again(*options: object) -> Any:
        return json.loads(vab(capsys, *call, "--skip-existing", "--json", *options)[1])

    # Auto is content with what is there, also where another one would be chosen now.
    keep(cache, 1.2)
    assert again()["skipped"] == again("--precision", "bfloat16")["skipped"] == 1
    (row,) = again("--precision", "float32")["results"]
    assert row["notes"][0] == "made anew: it was made with another precision"
    assert row["made_with"]["precision"] == "float32" and "bfloat16_gain" not in row["made_with"]
    assert again()["skipped"] == 1


def test_tags_of_version_0_1_had_a_precision_too() -> None:
    wanted = {"seed": 1, "precision": "float32"}
    assert difference({"seed": 1}, wanted) is None
    assert difference({"seed": 1, "dtype": "bfloat16"}, wanted | {"precision": "bfloat16"}) is None
    assert difference({"seed": 1, "dtype": "bfloat16"}, wanted | {"precision": "auto"}) is None
    for found in ({"seed": 1, "dtype": "bfloat16"}, {"seed": 1, "precision": "bfloat16", "bfloat16_gain": 2}):
        assert difference(found, wanted) == "made anew: it was made with another precision"


def test_what_was_rounded_is_not_the_directory_any_more(model: Path) -> None:
    pipe = VABPipeline.from_pretrained(model, device="cpu")
    own = pipe.fingerprint
    assert pipe.to(torch.bfloat16).fingerprint == own  # the same weights, and the record has the precision
    assert pipe.to(torch.float32).fingerprint != own


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_and_classes_say_it(
    model: Path, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"e{suffix}"
    common = ("--model", model, "--device", "cpu", "--precision", "bfloat16", "--json")
    assert json.loads(vab(capsys, "embed", clips[0], "-o", out, *common)[1])["precision"] == "bfloat16"
    if suffix == ".npz":
        with np.load(out) as file:
            assert str(file["precision"]) == "bfloat16"
    else:
        assert pq.read_schema(out).metadata[b"precision"] == b"bfloat16"
    assert json.loads(vab(capsys, "classify", clips[0], *common)[1])["precision"] == "bfloat16"


def test_a_library_holds_one_precision(
    model: Path, clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = tmp_path / "db"

    def call(*words: object) -> tuple[int, Any, str]:
        code, text, err = vab(capsys, *words, "--model", model, "--device", "cpu", "--json")
        return code, json.loads(text) if text else None, err

    assert call("library", "add", db, clips[0], "--precision", "bfloat16")[1]["precision"] == "bfloat16"
    assert call("library", "add", db, clips[2])[1]["added"] == 1  # its own one
    code, _, err = call("library", "add", db, clips[1], "--precision", "float32")
    assert code == 2 and "was made in bfloat16, not in float32" in err
    # A query is no part of it, and the weights are the same in each precision.
    hits = call("search", db, "--video", clips[0], "--kind", "video", "--precision", "float32")[1]["hits"]
    assert hits[0]["path"] == str(clips[0]) and hits[0]["score"] > 0.999
    embedders = [Embedder.from_pretrained(model, device="cpu", dtype=each) for each in (None, "bfloat16")]
    assert embedders[0].fingerprint() == embedders[1].fingerprint()
    assert embedders[1].contrastive.trunk.blocks[0].attention.qkv.weight.dtype == torch.bfloat16
    assert embedders[0].fingerprint() == embedders[1].fingerprint()
