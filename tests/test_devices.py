"""One call on several devices: the results of one, in the same order, and what a killed process leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.cli import vab
from helpers.networks import noise
from helpers.tiny import write_video
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.errors import SettingError
from vab.evaluate.backbones.registry import PANNS, YAMNET
from vab.evaluate.embedding import Measured, _classify_part, classify_store_on, embed_store_on
from vab.evaluate.generation.protocol import EvaluationSettings, evaluate
from vab.evaluate.generation.spread import Synthesis, synthesize_on
from vab.evaluate.generation.synthesis import MADE, Synthesizer
from vab.evaluate.metrics.statistics import EvaluationError
from vab.inference import batch as inference_batch
from vab.inference.batch import BatchSettings, generate_files
from vab.media.reader import write_wav
from vab.models.hub import read_config
from vab.training.batches import ClipBatches
from vab.utils.device import Chosen
from vab.utils.processes import Worker, devices_for
from vab.utils.shares import Share

CPU = devices_for(1, "cpu")

pytestmark = pytest.mark.usefixtures("one_thread")  # in each process, however many there are


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos, a photo, and a file that cannot be read."""
    folder = tmp_path_factory.mktemp("media")
    for n in range(5):
        write_video(folder / f"{n}.mp4", 8 + 4 * n, 10)
    Image.new("RGB", (40, 40)).save(folder / "still.png")
    (folder / "2b.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty clips of the split dev, one of them without picture."""
    vectors = Synthesizer.load(model, device="cpu").codec.codebook_vectors().numpy()
    folder = tmp_path_factory.mktemp("latents") / "store"
    meta = StoreMeta("tiny", "efficientnet-lite0", 2, 32, 8, 1280, seconds=2.0, fps=1.0)
    random = np.random.default_rng(0)
    rows = [
        Latents(
            f"clip {n}",
            "cat",
            "dev",
            random.integers(0, 32, meta.token_shape, dtype=np.uint16),
            None if n == 3 else random.normal(size=meta.feature_shape).astype(np.float16),
        )
        for n in range(40)
    ]
    LatentStore.create(folder, meta, vectors).add(rows)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_on_two_devices(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names, bytes, order, failures, exit code and JSON are those of one process."""
    found = []
    for devices in (1, 2):
        out = tmp_path / f"on {devices}"
        call = ("generate", media, "-o", out, "--model", model, "--device", "cpu", "--steps", 1)
        call = (*call, "--precision", "bfloat16")  # which each process has to be told
        code, text, err = vab(capsys, *call, "--devices", devices, "--json")
        document = json.loads(text.replace(str(out), "OUT"))
        assert document["settings"].pop("devices") == devices
        loads = [row["timings"].pop("load") for row in document["results"] if row["timings"]]
        assert sum(seconds > 0 for seconds in loads) == devices  # each process loads once
        for row in document["results"]:
            row.pop("timings")
        found.append((code, document, err, contents(out)))
    one, two = found
    assert one == two and one[0] == 1 and (one[1]["done"], one[1]["failed"]) == (6, 1)
    assert len(one[3]) == 11
    code, text, _ = vab(capsys, *call, "--devices", 2, "--skip-existing", "--json")
    assert (code, json.loads(text)["skipped"]) == (1, 6)

    # the shares of two machines hold each file once
    shares = []
    for n in (1, 2):
        share = ("--shard", f"{n}/2", "--skip-existing", "--json", "--report")
        _, text, err = vab(capsys, *call, *share)
        document = json.loads(text)
        shares.append([row["input"] for row in document["results"]])
        assert document["report"] == str(out / f"report-{n}-of-2.html")
        assert f"share {n}/2: " in err
    assert sorted(shares[0] + shares[1]) == sorted(row["input"] for row in two[1]["results"])
    assert all(shares)


def test_each_process_of_a_machine_generates_on_a_gpu_of_its_own(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a machine with two GPUs, as far as torch is asked how many there are, and torchrun's second process
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)

    def load(settings: BatchSettings, device: str, precision: Chosen) -> NoReturn:
        raise SettingError(f"loads on {device}")

    monkeypatch.setattr(inference_batch, "_load", load)
    with pytest.raises(SettingError, match=r"^loads on cuda:1$"):
        list(generate_files([media / "0.mp4"], tmp_path, BatchSettings(shard="1/1")))


def test_a_killed_process_is_one_line_and_the_rest_is_made_later(
    model: Path, media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [media / f"{n}.mp4" for n in range(5)] + [media / "still.png"]
    call = ("generate", *videos, "--model", model, "--device", "cpu", "--steps", 1, "-o")
    assert vab(capsys, *call, tmp_path / "whole")[0] == 0
    out = tmp_path / "killed"

    def kill() -> None:
        while not (out / "1.mp4").exists():  # its first: it has two more to do
            time.sleep(0.001)
        second = next(each for each in multiprocessing.active_children() if each.name == "process 2 of 2")
        assert second.pid is not None
        os.kill(second.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    code, _, err = vab(capsys, *call, out, "--devices", 2)
    thread.join()
    assert code == 2 and err.count("\n") == 1 and "process 2 of 2 (on cpu) was killed (SIGKILL)" in err
    whole = contents(tmp_path / "whole")
    made = {name: content for name, content in contents(out).items() if not name.startswith(".")}
    assert made.items() < whole.items() and not multiprocessing.active_children()

    code, text, _ = vab(capsys, *call, out, "--skip-existing", "--json")
    assert code == 0 and json.loads(text)["skipped"] >= 1 and contents(out) == whole


def test_sounds_of_a_store_are_those_of_the_clips_alone(
    model: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By several processes or shares, in batches of any size, among other clips."""
    preset = read_config(model)
    preset = replace(preset, train=replace(preset.train, pair_by_label=False))  # each with its own video
    base = Synthesis(
        model=model,
        store=store,
        preset=preset,
        split="dev",
        clips=9,
        seed=3,
        takes=((preset.decode, tmp_path / "alone"),),
        true=None,
        batch=1,
    )

    def at(name: str, **changes: object) -> Synthesis:
        return replace(base, takes=((preset.decode, tmp_path / name),), **changes)  # type: ignore[arg-type]

    made = synthesize_on(CPU, base)
    alone = contents(tmp_path / "alone")
    assert len(alone) == 10 and set(made.names) == {Path(name).stem for name in alone if name != MADE}

    # two processes, with one folder of true sounds between them
    found = synthesize_on(devices_for(2, "cpu"), at("on two", true=tmp_path / "run"))
    assert found.names == made.names and contents(tmp_path / "on two") == alone
    assert found.true is not None and contents(found.true).keys() == alone.keys()

    # two machines, the first of which lost a sound: its batch is made again, whatever is in it
    for index in (0, 1):
        synthesize_on(CPU, at("shared", share=Share(index, 2)))
        assert len(contents(tmp_path / "shared")) == (9, 10)[index]
    (tmp_path / "shared" / "clip_0.wav").unlink()
    together: set[int] = set()
    make = Synthesizer._tokens
    with monkeypatch.context() as patch:
        patch.setattr(Synthesizer, "_tokens", lambda *words: together.add(len(words[1].ids)) or make(*words))
        synthesize_on(CPU, at("shared", batch=16))
    assert contents(tmp_path / "shared") == alone
    assert together == {1}  # larger matrices would round otherwise

    # other clips beside them, in another order
    synthesize_on(CPU, at("more", clips=3))
    more = contents(tmp_path / "more")
    both = (alone.keys() & more.keys()) - {MADE}
    assert len(both) > 1 and all(alone[name] == more[name] for name in both)
    with pytest.raises(EvaluationError, match="other clips; use another --run"):
        synthesize_on(CPU, at("more"))


def test_which_video_a_clip_gets_does_not_depend_on_the_size_of_a_batch(
    model: Path, store: Path, tmp_path: Path
) -> None:
    """With ``pair_by_label`` it is one of its label, drawn for the clips that are taken together."""
    preset = read_config(model)
    preset = replace(preset, train=replace(preset.train, pair_by_label=True))
    decode = replace(preset.decode, num_steps=1, guidance_scale=1.0)
    for batch in (8, 12):
        takes = ((decode, tmp_path / f"{batch}"),)
        wanted = Synthesis(model, store, preset, "dev", 14, 3, takes, true=None, batch=batch)
        synthesize_on(CPU, wanted)
    assert contents(tmp_path / "8") == contents(tmp_path / "12")
    clips = ClipBatches(LatentStore.open(store), preset, "dev")
    own, shown = clips.store.gather("features", clips.rows), clips.dev_batch(clips.rows).features.numpy()
    assert not np.array_equal(own, shown)  # others than their own


def test_files_and_clips_embedded_and_classified_on_two_devices(
    model: Path, media: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = []
    for devices in (1, 2):
        call = ("embed", media, "-o", tmp_path / f"{devices}.npz", "--model", model, "--device", "cpu")
        code, text, err = vab(capsys, *call, "--devices", devices, "--json")
        documents.append((code, err, json.loads(text) | {"embeddings": ""}))
    assert documents[0] == documents[1] and documents[0][0] == 1 and len(documents[0][2]["files"]) == 6
    assert documents[0][2]["dim"] == 32
    with np.load(tmp_path / "1.npz") as one, np.load(tmp_path / "2.npz") as two:
        assert set(one) == set(two)
        for key in one:  # NaN where a stream is absent
            assert np.array_equal(one[key], two[key], equal_nan=one[key].dtype.kind == "f"), key

    # of a store: the batches are the same ones, whoever has them
    measured = Measured(model, store, "dev")
    vectors = [embed_store_on(devices_for(count, "cpu"), measured) for count in (1, 2)]
    assert vectors[0].ids == vectors[1].ids and len(vectors[0].ids) == 40
    assert np.array_equal(vectors[0].audio, vectors[1].audio)
    assert np.array_equal(vectors[0].video, vectors[1].video, equal_nan=True)
    names, scores = classify_store_on(CPU, measured, "audio")
    parts = [
        list(_classify_part(Worker(rank, 2, CPU[0], print), (measured, "audio"), range(0, 40, 16)[rank::2]))
        for rank in (0, 1)
    ]
    assert names == vectors[0].ids == [*parts[0][0][0], *parts[1][0][0], *parts[0][1][0]]
    assert np.array_equal(scores[16:32], parts[1][0][1])


def test_features_on_two_devices_are_those_of_one(data: Path, tmp_path: Path) -> None:
    """The bytes of the caches, what is left out and why; also where a run is stopped and another goes on."""
    for side in ("real", "made"):
        for n in range(5):
            write_wav(
                tmp_path / side / f"{n}.wav", noise(1 + n / 3, 16_000, n + len(side) * (side == "made"))
            )
    folders = (tmp_path / "real", tmp_path / "made")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / YAMNET.file).symlink_to(data / "weights" / "yamnet" / YAMNET.file)
    (weights / PANNS.file).write_bytes(b"torn")
    settings = EvaluationSettings(weights=weights, device="cpu", resamples=10, cache=tmp_path / "one")
    one = evaluate(*folders, settings)
    assert one.get("FD-YAMNET") is not None and "no weights of Cnn14" in one.absent["panns"]

    settings = replace(settings, devices=2, cache=tmp_path / "two")
    stages = []

    def stop(number: int, of: int, path: Path, stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stages.count("features") == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*folders, settings, stop)
    assert not multiprocessing.active_children()
    assert [path.parts[-3][:4] for path in (tmp_path / "two").rglob("*.part")] == ["made"]  # real: all there
    two = evaluate(*folders, settings)
    assert two == one
    caches = [
        {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.*") if path.is_file()}
        for cache in (tmp_path / "one", tmp_path / "two")
    ]
    assert caches[0] == caches[1] and len(caches[0]) == 12
