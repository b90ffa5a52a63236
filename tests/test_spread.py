"""Extraction by several processes: any mixture of them, killed at any time, ends in the same latents."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecConfig, EncodecModel

from helpers.cli import vab
from helpers.encoders import VIT_TINY, random_network, save
from helpers.extraction import run, small_codec
from helpers.forked import Forked
from helpers.training import META
from vab.cli import main
from vab.cli.extract import most_failed
from vab.codecs.codec import Codec, EnCodec, load_codec
from vab.config import SAMPLE_RATE
from vab.data.datasets.synthetic import write_synthetic
from vab.data.extraction.failures import settle_failures, write_failures
from vab.data.extraction.stored import StoredFeatures
from vab.data.manifest import Clip, read_manifest, write_manifest
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.errors import SettingError
from vab.utils.shares import Share
from vab.vision import RECIPES, TimmEncoder, VisionEncoder, load_vision


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine short clips, one that is missing, and a sound alone."""
    manifest = write_synthetic(tmp_path_factory.mktemp("balls"), clips=9, seconds=1.0)
    clips = read_manifest(manifest)
    clips.insert(4, Clip("missing", None, manifest.parent / "none.mp4"))
    write_manifest(manifest, [*clips, Clip("sound", clips[0].audio, None)])
    return manifest


@pytest.fixture(scope="module")
def whole(balls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process makes by itself, as the command line does."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    assert here(balls, folder) == 1  # one is missing
    return folder


def command(manifest: Path, store: Path, *options: str) -> list[str]:
    words = ["extract", str(manifest), "-o", str(store), "--device", "cpu", "--seconds", "1", "--fps", "4"]
    return [*words, "--shard-clips", "2", *options]


def here(*call: object) -> int | str | None:
    """The exit code of such a command in this process."""
    with pytest.raises(SystemExit) as left:
        main(command(*call))  # type: ignore[arg-type]
    return left.value.code


def content(store: Path) -> tuple[str, list[str]]:
    """What must be the same however a store was made: its fingerprint, and the clips that failed."""
    lines = (store / "failures.csv").read_text().splitlines()
    return LatentStore.open(store).fingerprint(), [line.partition(",")[0] for line in lines]


# --- a clip's bits


def eva() -> TimmEncoder:
    from dataclasses import replace

    recipe = replace(VIT_TINY, architecture="eva02_tiny_patch14_224.mim_in22k", dim=192)
    network = random_network(recipe)
    network.reset_classifier(0)
    return TimmEncoder("eva", recipe, network)


def encodec() -> Codec:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_filters": 4, "codebook_size": 64, "num_lstm_layers": 1}
    return EnCodec(
        EncodecModel(
            EncodecConfig(
                sampling_rate=SAMPLE_RATE,
                target_bandwidths=[0.6],
                upsampling_ratios=[8, 5, 4, 2],
                normalize=False,
                **sizes,
            )
        )
    )


@pytest.mark.parametrize("name", ["lite0", "eva", "lite0 in bfloat16"])
def test_features_do_not_depend_on_the_neighbours(name: str) -> None:
    encoder = eva() if name == "eva" else load_vision("efficientnet-lite0")
    if "bfloat16" in name:
        encoder.precision = "bfloat16"
    random_ = np.random.default_rng(0)
    crops = [torch.from_numpy(random_.integers(0, 256, (3, 224, 224), np.uint8)) for _ in range(7)]
    together = encoder.encode_crops(crops, 4)
    order = [5, 0, 6, 3, 1, 2, 4]
    assert torch.equal(encoder.encode_crops([crops[n] for n in order], 4), together[order])
    for n in (0, 6):
        assert torch.equal(encoder.encode_crops([crops[n]], 4)[0], together[n])


@pytest.mark.parametrize(
    "make", [lambda: load_codec("tiny"), small_codec, encodec], ids=["tiny", "dac", "encodec"]
)
def test_tokens_do_not_depend_on_the_neighbours(make: object) -> None:
    from vab.data.extraction.encoding import _tokens

    codec = make()  # type: ignore[operator]
    torch.manual_seed(0)
    waveforms = 0.1 * torch.randn(7, SAMPLE_RATE)
    together = _tokens(codec, waveforms, "cpu", 4)
    order = [5, 0, 6, 3, 1, 2, 4]
    assert torch.equal(_tokens(codec, waveforms[order], "cpu", 4), together[order])
    assert torch.equal(_tokens(codec, waveforms[6:], "cpu", 4)[0], together[6])


def test_passes_have_one_size() -> None:
    """Kernels are chosen by it: another size may round otherwise."""
    seen = []

    class Sizes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((len(x), torch.get_num_threads()))
            return x.mean((2, 3))

    encoder = TimmEncoder("sizes", RECIPES["efficientnet-lite0"], Sizes())
    encoder.dim = 3
    crops = [torch.full((3, 224, 224), n, dtype=torch.uint8) for n in range(5)]
    assert encoder.encode_crops(crops, 4).shape == (5, 3) and [n for n, _ in seen] == [4, 4]


# --- shares and processes


def test_shares_of_a_store_at_once_and_again(
    balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder
) -> None:
    one = run(balls, tmp_path / "one", codec, vision, seconds=1.0)
    parts = [run(balls, tmp_path / "s", codec, vision, seconds=1.0, share=Share(n, 3)) for n in (0, 1, 2)]
    assert sum(part.done for part in parts) == one.done == 10
    assert content(tmp_path / "s") == content(tmp_path / "one")
    again = run(balls, tmp_path / "s", codec, vision, seconds=1.0, share=Share(1, 2))
    assert again.done == 0 and again.present == sum(
        Share(1, 2).has(i) for i in LatentStore.open(tmp_path / "s").ids
    )


@pytest.mark.slow
def test_killed_in_one_sharing_and_resumed_in_another(balls: Path, whole: Path, tmp_path: Path) -> None:
    dice = random.Random(0)
    store = tmp_path / "store"
    # 1. Two shares and a run on two devices, all at once in one folder, killed at some moment.
    calls = [("--shard", "1/2"), ("--shard", "2/2"), ("--devices", "2", "--shard", "2/3")]
    started = [Forked(tmp_path, main, command(balls, store, *call)) for call in calls]
    wanted = dice.randint(1, 3)
    while len(list(store.glob("shard-*"))) < wanted and any(p.poll() is None for p in started):
        time.sleep(0.02)
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.wait()
    LatentStore.open(store)  # is a store at any time

    # 2. Another sharing ends it.
    for shard in ("1/3", "2/3", "3/3"):
        assert here(balls, store, "--shard", shard) in (0, 1)
    assert content(store) == content(whole)
    assert not LatentStore.open(store).check()
    assert not list(store.glob("failures-*")) and not list(store.glob(".*tmp*"))


@pytest.mark.slow
def test_several_devices_are_one_run(
    balls: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = command(balls, tmp_path / "s", "--devices", "2", "--json", "--allow-failed", "10%")
    # more threads for torch, by whose number kernels on the CPU round: the latents must not tell
    threads = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        code, out, err = vab(capsys, *call)
    finally:
        torch.set_num_threads(threads)
    told = json.loads(out)
    assert code == 0, err
    assert (told["done"], told["present"], list(told["failed"]), told["share"]) == (10, 0, ["missing"], "1/1")
    assert err.count("none.mp4") == 1 and content(tmp_path / "s") == content(whole)


# --- what failed


def test_failures_of_several_writers(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(12)]
    halves = [Share(n, 2) for n in (0, 1)]
    store = LatentStore.create(tmp_path / "store", META, np.zeros((2, 16, 4), np.float32))
    for share in halves:
        write_failures(store, share, {name: "gone" for name in names if share.has(name)})
    # the last one to leave joins the lists; one of its own has come good, and one of the other's is there
    mine = [name for name in names if halves[1].has(name)]
    other = [name for name in names if halves[0].has(name)]
    settle_failures(store.directory, halves[1], dict.fromkeys(mine[1:], "bad"), {other[0]})
    assert [path.name for path in store.directory.glob("failures*")] == ["failures.csv"]
    told = dict(line.split(",") for line in (store.directory / "failures.csv").read_text().splitlines()[1:])
    assert told == {**dict.fromkeys(other[1:], "gone"), **dict.fromkeys(mine[1:], "bad")}
    # a run of everything says everything
    settle_failures(store.directory, Share(), {}, ())
    assert not list(store.directory.glob("failures*"))


def test_a_clip_that_is_mended_leaves_the_list(
    balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder
) -> None:
    clips = read_manifest(balls)
    late = tmp_path / "late.mp4"
    write_manifest(
        tmp_path / "m.csv", [clips[0], Clip("late", None, late), Clip("never", None, tmp_path / "x")]
    )
    store = tmp_path / "s"
    for share in (Share(0, 2), Share(1, 2)):
        run(tmp_path / "m.csv", store, codec, vision, share=share)
    assert content(store)[1] == ["id", "late", "never"] or content(store)[1] == ["id", "never", "late"]
    assert clips[0].video is not None
    late.write_bytes(Path(clips[0].video).read_bytes())
    for share in (Share(0, 3), Share(1, 3), Share(2, 3)):
        run(tmp_path / "m.csv", store, codec, vision, share=share)
    assert content(store)[1] == ["id", "never"] and "late" in LatentStore.open(store)


def test_how_many_may_fail() -> None:
    assert [most_failed(text, 1000) for text in ("0", "3", "0.1%", "1.59%", "100%", ".5%")] == [
        0,
        3,
        1,
        15,
        1000,
        5,
    ]
    for text in ("-1", "x", "1.5", "101%", "%", ""):
        with pytest.raises(SettingError, match=r"such as 0\.1%"):
            most_failed(text, 10)


# --- image features of another store


def test_features_of_another_store(balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder) -> None:
    clips = read_manifest(balls)
    write_manifest(tmp_path / "some.csv", clips[:3])
    run(tmp_path / "some.csv", tmp_path / "first", codec, vision)
    stored = StoredFeatures(tmp_path / "first")
    other = small_codec(seed=1)
    plain = run(balls, tmp_path / "plain", other, vision)
    taken = run(balls, tmp_path / "taken", other, vision, features_from=stored)
    assert taken == plain and content(tmp_path / "taken") == content(tmp_path / "plain")

    # without an encoder what is not stored fails, by its name
    without = run(balls, tmp_path / "without", other, None, features_from=stored)
    assert without.done == 4 and set(without.failed) == {clip.id for clip in clips[3:-1]}
    assert all("image features are not stored" in reason for reason in without.failed.values())
    found = LatentStore.open(tmp_path / "without")
    assert found.meta == LatentStore.open(tmp_path / "plain").meta
    # and they are read from there: a damaged one is seen
    shard = next((tmp_path / "first").glob("shard-*"))
    damaged = bytearray(shard.read_bytes())
    damaged[damaged.index(found[0].features.tobytes())] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"is damaged \(the features of clip"):
        run(balls, tmp_path / "again", other, None, features_from=StoredFeatures(tmp_path / "first"))


def test_other_features_are_refused_in_one_line(
    balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder
) -> None:
    run(balls, tmp_path / "first", codec, vision)
    stored = StoredFeatures(tmp_path / "first")
    message = (
        r"first: its image features are other ones: seconds is 2.0, now 1.0; fps is 2.0, now 3.0; fill is"
    )
    with pytest.raises(StoreError, match=message):
        run(balls, tmp_path / "s", codec, vision, seconds=1.0, fps=3.0, fill="repeat", features_from=stored)
    assert not (tmp_path / "s").exists()


def test_features_of_another_store_need_no_weights(
    balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "mae-vit-l", VIT_TINY)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save(random_network(VIT_TINY).state_dict(), tmp_path / "model.safetensors")
    clips = [clip for clip in read_manifest(balls) if clip.id != "missing"][:2]
    write_manifest(tmp_path / "m.csv", clips)
    words = [tmp_path / "m.csv", "--vision", "mae-vit-l", "--seconds", "1", "--device", "cpu"]
    first, second = tmp_path / "1", tmp_path / "2"
    code, _, _ = vab(
        capsys, "extract", *words, "-o", first, "--vision-path", tmp_path, "--precision", "bfloat16"
    )
    assert code == 0 and LatentStore.open(first).meta.precision == "bfloat16"
    words += ["-o", second, "--features-from", first]
    code, _, told = vab(capsys, "extract", *words)
    assert code == 2 and "precision is 'bfloat16', now 'float32'" in told
    code, _, _ = vab(capsys, "extract", *words, "--precision", "bfloat16")
    assert code == 0 and LatentStore.open(second).fingerprint() == LatentStore.open(first).fingerprint()


def test_bad_calls_are_one_line(balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("--shard", "0/2"), "a share is I/N, from 1/N"),
        (("--devices", "0"), "--devices must be 1 or more"),
        (("--readers", "0"), "--readers and --shard-clips must be 1 or more"),
        (("--allow-failed", "some"), "--allow-failed is a number of clips or a percentage"),
        (("--precision", "tf32"), "TF32 is a number format of NVIDIA's GPUs"),
        (("--features-from", str(tmp_path)), "holds no store"),
    ):
        code, _, told = vab(capsys, "extract", balls, "-o", tmp_path / "s", "--device", "cpu", *words)
        assert code == 2 and message in told and told.count("\n") == 1
