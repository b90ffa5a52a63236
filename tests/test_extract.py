from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.encoders import VIT_TINY, random_network, save
from helpers.extraction import FPS, SECONDS, run, run_slowly, small_codec
from helpers.forked import Forked
from vab.cli import main
from vab.codecs.codec import Codec
from vab.codecs.tiny import TinyCodec, TinyCodecConfig
from vab.config import SAMPLE_RATE
from vab.data.datasets.common import ListError
from vab.data.datasets.folder import folder_clips
from vab.data.datasets.synthetic import write_synthetic
from vab.data.extraction.decoding import decode
from vab.data.extraction.encoding import weights_fingerprint
from vab.data.extraction.run import Extraction
from vab.data.manifest import Clip, read_manifest, write_manifest
from vab.data.shard import StoreError, StoreMeta
from vab.data.store import LatentStore
from vab.media.reader import probe, read_audio, read_frames, write_wav
from vab.presets import PRESETS
from vab.studio.uploads import write_picture
from vab.training.batches import check_fits
from vab.vision import RECIPES, VisionEncoder, load_vision


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("balls"), clips=6, seconds=SECONDS)


def meta(**changes: object) -> StoreMeta:
    values = dict(codec="dac", vision="x", num_codebooks=3, codebook_size=16, codebook_dim=4, vision_dim=8)
    return StoreMeta(**{**values, "seconds": SECONDS, "fps": FPS, **changes})


def test_synthetic_clips_click_when_the_ball_hits(balls: Path) -> None:
    events = json.loads((balls.parent / "events.json").read_text())
    clips = read_manifest(balls)
    assert len(clips) == len(events) == 6 and {clip.split for clip in clips} == {"train", "dev"}
    for clip in clips:
        assert probe(clip.video).seconds == pytest.approx(SECONDS, abs=0.05)
        sound = np.abs(read_audio(clip.audio, 0.0, SECONDS))
        frames = np.stack(list(read_frames(clip.video, 25, 0.0, SECONDS))).astype(int)
        ball = np.abs(frames[..., 0] - frames[..., 2]) > 100  # red or blue, not ground or sky
        lowest = np.array([rows.any(1).nonzero()[0].max() for rows in ball])
        assert len(events[clip.id]) >= 1
        for hit in events[clip.id]:
            near = sound[max(0, round((hit - 0.05) * SAMPLE_RATE)) : round((hit + 0.05) * SAMPLE_RATE)]
            before = sound[
                max(0, round((hit - 0.2) * SAMPLE_RATE)) : max(1, round((hit - 0.08) * SAMPLE_RATE))
            ]
            assert near.max() > 0.3 > 5 * before.max()
            n = min(round(hit * 25), len(lowest) - 1)
            assert lowest[max(0, n - 1) : n + 2].max() == lowest[max(0, n - 4) : n + 5].max() > 100
        assert lowest.min() < 90


def test_latents_are_those_of_the_encoders(
    balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder
) -> None:
    assert run(balls, tmp_path / "store", codec, vision) == Extraction(6, 0, {})
    store = LatentStore.open(tmp_path / "store")
    clips = read_manifest(balls)
    assert store.ids == [clip.id for clip in clips] and store.labels[:2] == ["small", "large"]
    assert len(list(store.directory.glob("shard-*"))) == 2
    for clip, row in zip(clips, store, strict=True):
        waveform = torch.from_numpy(read_audio(clip.audio, 0.0, SECONDS))[None]
        assert row.tokens.shape == (3, 100)
        assert np.mean(row.tokens == codec.encode(waveform)[0].numpy()) > 0.99  # batches round otherwise
        features = vision.encode(read_frames(clip.video, FPS, 0.0, SECONDS)).numpy()
        assert row.features.shape == features.shape == (4, 1280)
        np.testing.assert_allclose(row.features.astype(np.float32), features, atol=0.02)
    assert np.array_equal(store.codebook_vectors(), codec.codebook_vectors().numpy())


def test_another_image_encoder(balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vab extract --vision (ablation C.6): MAE's recipe, on a network of the least size."""
    monkeypatch.setitem(RECIPES, "mae-vit-l", VIT_TINY)
    save(random_network(VIT_TINY).state_dict(), tmp_path / "model.safetensors")
    words = ("extract", balls, "-o", tmp_path / "store", "--vision", "mae-vit-l", "--vision-path", tmp_path)
    with pytest.raises(SystemExit) as left:
        main([*map(str, words), "--seconds", "2", "--fps", "2", "--device", "cpu"])
    assert left.value.code == 0
    store = LatentStore.open(tmp_path / "store")
    assert (store.meta.vision, store.meta.vision_dim, store.meta.codec) == ("mae-vit-l", 192, "tiny")
    other = load_vision("mae-vit-l", tmp_path)
    for clip, row in zip(read_manifest(balls), store, strict=True):
        features = other.encode(read_frames(clip.video, FPS, 0.0, SECONDS)).numpy()
        np.testing.assert_allclose(row.features.astype(np.float32), features, atol=0.02)
    with pytest.raises(StoreError, match="vision is 'mae-vit-l'"):
        check_fits(store, PRESETS["vab-tiny"])


def test_done_clips_are_skipped_and_failed_ones_tried_again(
    balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder
) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    clips = read_manifest(balls)[:3]
    late = tmp_path / "late.wav"
    bad = [
        Clip("missing", None, tmp_path / "none.mp4"),
        Clip("text", tmp_path / "text.mp4", None),
        Clip("beyond", clips[0].audio, clips[0].video, start=60.0),
        Clip("late", late, None),
    ]
    write_manifest(tmp_path / "m.csv", [*bad[:2], *clips, *bad[2:]])
    first = run(tmp_path / "m.csv", tmp_path / "store", codec, vision)
    assert (first.done, first.present, list(first.failed)) == (3, 0, ["missing", "text", "beyond", "late"])
    with (tmp_path / "store" / "failures.csv").open(newline="") as stream:
        assert {row["id"]: row["reason"] for row in csv.DictReader(stream)} == first.failed
    assert str(tmp_path / "none.mp4") in first.failed["missing"]
    assert "starts at 60 s" in first.failed["beyond"]
    write_wav(late, np.zeros(SAMPLE_RATE, np.float32))
    again = run(tmp_path / "m.csv", tmp_path / "store", codec, vision)
    assert (again.done, again.present, list(again.failed)) == (1, 3, ["missing", "text", "beyond"])
    assert LatentStore.open(tmp_path / "store").ids == [*(clip.id for clip in clips), "late"]


@pytest.mark.parametrize("way", ["repaired", "deleted by hand"])
def test_a_torn_shard_costs_nothing_but_itself(
    tmp_path: Path, codec: Codec, vision: VisionEncoder, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_synthetic(tmp_path / "balls", clips=14, seconds=1.0)
    store, names = tmp_path / "store", sorted(clip.id for clip in read_manifest(manifest))

    def again() -> Extraction:
        return run(manifest, store, codec, vision, seconds=1.0, fps=1.0, shard_clips=2)

    assert again().done == 14
    before = {path.name: path.read_bytes() for path in store.glob("shard-*")}
    fingerprint = LatentStore.open(store).fingerprint()
    torn = store / sorted(before)[1]
    torn.write_bytes(before[torn.name][:1000])
    with pytest.raises(StoreError, match=rf"{torn.name} is damaged .*vab store repair {store}"):
        again()
    if way == "repaired":
        with pytest.raises(SystemExit) as left:
            main(["store", "repair", str(store)])
        assert (
            not left.value.code and "make what is missing with the `vab extract`" in capsys.readouterr().out
        )
        assert (store / "damaged" / torn.name).read_bytes() == before[torn.name][:1000]
    else:
        torn.unlink()
    for done in (2, 0, 0):
        result = again()
        assert (result.done, result.present, result.failed) == (done, 14 - done, {})
        assert {path.name: path.read_bytes() for path in store.glob("shard-*")} == before
        whole = LatentStore.open(store)
        assert whole.ids == names and not whole.check() and whole.fingerprint() == fingerprint


def test_other_weights_are_refused(balls: Path, tmp_path: Path, codec: Codec, vision: VisionEncoder) -> None:
    run(balls, tmp_path / "store", codec, vision)
    with pytest.raises(StoreError, match="codec_fingerprint"):
        run(balls, tmp_path / "store", small_codec(seed=1), vision)
    with pytest.raises(StoreError, match=r"fps is 2\.0, now 1\.0"):
        run(balls, tmp_path / "store", codec, vision, fps=1.0)
    assert run(balls, tmp_path / "store", small_codec(), vision).present == 6


def test_a_photo_and_a_sound_alone(tmp_path: Path, codec: Codec, vision: VisionEncoder) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 140, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    write_wav(tmp_path / "sound.wav", rng.normal(0, 0.1, SAMPLE_RATE).astype(np.float32))
    photo, sound = tmp_path / "photo.png", tmp_path / "sound.wav"
    write_manifest(
        tmp_path / "m.csv", [Clip("p", None, photo), Clip("q", None, photo), Clip("s", sound, None)]
    )
    run(tmp_path / "m.csv", tmp_path / "store", codec, vision)
    run(tmp_path / "m.csv", tmp_path / "again", codec, vision, batch_clips=3)
    store, again = LatentStore.open(tmp_path / "store"), LatentStore.open(tmp_path / "again")
    p, q, s = store
    assert p.tokens is None and s.features is None and s.tokens is not None
    assert not np.array_equal(p.features, q.features)  # another crop for another id
    assert not np.array_equal(p.features[0], p.features[-1])  # it moves
    np.testing.assert_allclose(p.features, again[0].features, atol=0.02)


def test_what_is_shorter_than_the_window(balls: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", np.linspace(0.1, 0.5, 3 * SAMPLE_RATE // 4, dtype=np.float32))
    sound = Clip("s", tmp_path / "s.wav", None)
    n, window = 3 * SAMPLE_RATE // 4, round(SECONDS * SAMPLE_RATE)
    silent = decode(sound, meta(), RECIPES["efficientnet-lite0"]).waveform
    assert len(silent) == window and silent[:n].min() > 0.09 and not silent[n:].any()
    full = decode(sound, meta(fill="repeat"), RECIPES["efficientnet-lite0"]).waveform
    assert len(full) == window and full.min() > 0.09
    assert np.array_equal(full[n : 2 * n], full[:n])

    ball = read_manifest(balls)[0].video
    clip = Clip("v", ball, ball, 0.5, 1.0)
    held = decode(clip, meta(seconds=3.0, fps=4.0), RECIPES["efficientnet-lite0"])
    assert len(held.frames) == 4 and held.frame_indices == [0, 1, 2, 3] + 8 * [3]
    turned = decode(clip, meta(seconds=3.0, fps=4.0, fill="repeat"), RECIPES["efficientnet-lite0"])
    assert turned.frame_indices == 3 * [0, 1, 2, 3]
    assert np.array_equal(turned.waveform[:SAMPLE_RATE], turned.waveform[SAMPLE_RATE : 2 * SAMPLE_RATE])


def test_folder(balls: Path, tmp_path: Path) -> None:
    ball = read_manifest(balls)[0].video.read_bytes()
    for name in ("train/dog/a.mp4", "val/dog/b.mp4", "cat/c.mp4", "d.mp4", ".hidden/e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(ball)
    write_wav(tmp_path / "train/dog/long.wav", np.zeros(int(10.5 * SAMPLE_RATE), np.float32))
    write_wav(tmp_path / "cat/c.wav", np.zeros(SAMPLE_RATE, np.float32))
    (tmp_path / "notes.txt").write_text("no media")
    clips, left_out, _, _ = folder_clips(tmp_path, seconds=5.0, dev_share=0.0)
    assert list(left_out) == [str(tmp_path / "notes.txt")]
    found = {clip.id: clip for clip in clips}
    names = "cat/c.mp4 d.mp4 train/dog/a.mp4 train/dog/long.wav#0 train/dog/long.wav#1 val/dog/b.mp4"
    assert sorted(found) == names.split()
    assert found["cat/c.mp4"].audio == tmp_path / "cat/c.wav"
    assert found["d.mp4"].audio == found["d.mp4"].video == tmp_path / "d.mp4"
    labels = {name: (clip.label, clip.split) for name, clip in found.items()}
    assert labels["cat/c.mp4"] == ("cat", "train") and labels["d.mp4"] == ("", "train")
    assert labels["train/dog/a.mp4"] == ("dog", "train") and labels["val/dog/b.mp4"] == ("dog", "dev")
    second = found["train/dog/long.wav#1"]
    assert (second.start, second.seconds, second.video) == (5.0, 5.0, None)
    assert {clip.split for clip in folder_clips(tmp_path, dev_share=1.0)[0] if clip.label == "cat"} == {"dev"}
    with pytest.raises(ListError, match="no such folder"):
        folder_clips(tmp_path / "none")


def test_a_folders_copies_and_still_clips(
    balls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = read_manifest(balls)[0].video
    assert source is not None
    media, manifest = tmp_path / "media", tmp_path / "m.csv"
    media.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (media / name).write_bytes(source.read_bytes())
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "photo.png")
    write_picture(tmp_path / "photo.png", media / "still.mp4", 2.0, 5.0)
    with pytest.raises(SystemExit) as left:
        main(["data", "folder", str(media), "-o", str(manifest), "--drop-still", "--json"])
    assert not left.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["copies"], told["still_frames"]) == (2, {"b.mp4": "a.mp4"}, ["still.mp4"])


@pytest.mark.slow
def test_killed_extraction_goes_on_to_the_same_store(
    tmp_path: Path, codec: Codec, vision: VisionEncoder
) -> None:
    manifest = write_synthetic(tmp_path / "balls", clips=11, seconds=1.0)
    clips = read_manifest(manifest)
    clips.insert(4, Clip("missing", None, tmp_path / "none.mp4"))
    write_manifest(manifest, clips)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run(manifest, tmp_path / "whole", codec, vision)
    torch.set_num_threads(threads)
    store = tmp_path / "killed"
    for shards in (1, 2):
        process = Forked(tmp_path, run_slowly, manifest, store)
        while process.poll() is None and len(list(store.glob("shard-*"))) < shards:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert len(LatentStore.open(store)) in range(3 * shards, 11, 3)  # whole shards, several in a burst
    assert Forked(tmp_path, run_slowly, manifest, store).wait() == 0
    for file in sorted((tmp_path / "whole").iterdir()):
        if file.name != ".lock":
            assert (store / file.name).read_bytes() == file.read_bytes(), file.name
    assert sorted(path.name for path in store.iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_the_small_codec_s_fingerprint_is_that_of_its_codes() -> None:
    codec = TinyCodec(TinyCodecConfig(codebook_size=16, decoder_width=8, detail_width=8))
    before = weights_fingerprint(codec)
    with torch.no_grad():
        codec.to_detail.weight.add_(1)
    assert weights_fingerprint(codec) == before
    with torch.no_grad():
        codec.mean.add_(1)
    assert weights_fingerprint(codec) != before
