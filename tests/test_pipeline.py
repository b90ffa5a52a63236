from __future__ import annotations

import json
import os
import shutil
import threading
import time
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.tiny import picture_packets, write_model, write_video
from vab import Audio, MediaError, ModelError, VABPipeline
from vab.config import FRAME_RATE, SAMPLE_RATE
from vab.evaluate.generation.synthesis import Synthesizer
from vab.inference import features
from vab.inference.batch import BatchSettings, Result, generate_files
from vab.inference.embedder import Embedder, audio_video_similarity
from vab.inference.features import FeatureReader
from vab.inference.pipeline import sound_length
from vab.inference.splice import FADE, kept_samples
from vab.inference.tokens import waveform_of
from vab.media.file import MediaFile, MediaInfo
from vab.media.reader import probe, read_audio
from vab.models.heads import Contrastive, Finetuned
from vab.models.hub import ASSETS, find_model, is_model, known_models
from vab.presets import PRESETS
from vab.sampling.parallel import windows
from vab.sampling.stages import feature_step, padded_length, window_overlap
from vab.vision import Recipe, crop

DATA = Path(os.environ.get("VAB_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))


@pytest.fixture(scope="module")
def pipe(model: Path) -> VABPipeline:
    return VABPipeline.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 33, 10)


@pytest.mark.parametrize(
    ("frames", "fps"), [(6, 30), (33, 10), (89, 7), (50, Fraction(24000, 1001)), (1, 5), (2, 1)]
)
def test_sound_is_as_long_as_the_video_to_the_sample(
    pipe: VABPipeline, tmp_path: Path, frames: int, fps: Fraction | int
) -> None:
    audio = pipe.generate(write_video(tmp_path / "a.mp4", frames, fps), steps=1)
    assert audio.waveform.shape == (round(frames / Fraction(fps) * SAMPLE_RATE),)
    assert audio.waveform.dtype == np.float32 and audio.rate == SAMPLE_RATE
    assert np.isfinite(audio.waveform).all() and audio.waveform.std() > 0
    assert set(audio.timings) == {"decode_video", "features", "sampling", "codec", "finish"}


def test_same_seed_same_sound_whatever_else_is_done(pipe: VABPipeline, clip: Path, tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mp4", 12, 10, colour=(0, 0, 250))
    alone = pipe.generate(clip, seed=3).waveform
    pipe.generate(other, seed=3)
    first, second = pipe.generate_many(clip, 2, seed=3)
    assert np.array_equal(alone, first.waveform)
    assert not np.array_equal(alone, second.waveform)
    assert not np.array_equal(alone, pipe.generate(clip, seed=4).waveform)


def test_the_picture_and_the_settings_matter(pipe: VABPipeline, tmp_path: Path) -> None:
    red = write_video(tmp_path / "red.mp4", 12, 10, colour=(250, 0, 0))
    blue = write_video(tmp_path / "blue.mp4", 12, 10, colour=(0, 0, 250))
    assert not np.array_equal(
        pipe.generate(red, guidance=20).waveform, pipe.generate(blue, guidance=20).waveform
    )
    # without guidance towards it (u + 0 (c - u)) the picture is not seen
    assert np.array_equal(pipe.generate(red, guidance=0).waveform, pipe.generate(blue, guidance=0).waveform)
    assert not np.array_equal(
        pipe.generate(red, steps=1).waveform, pipe.generate(red, temperature=0).waveform
    )
    for bad in ({"steps": 0}, {"temperature": -1.0}, {"guidance": float("nan")}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            pipe.generate(red, **bad)


def test_kept_sound_stays_as_it_is(pipe: VABPipeline, clip: Path) -> None:
    own = read_audio(clip, 0.0, 3.3)
    new = pipe.generate(clip).waveform
    kept = pipe.generate(clip, keep=[(1.0, 1.5), (2.51, float("inf"))]).waveform
    for start, stop in ((16000, 24000), (40160, 52800)):
        assert np.array_equal(kept[start:stop], own[start:stop])
    between = kept[24000 + FADE : 40160 - FADE]
    assert np.abs(between - own[24000 + FADE : 40160 - FADE]).max() > 1e-3
    assert len(kept) == len(new) == 52800
    jump = np.abs(np.diff(kept))[16000 - FADE : 16000 + FADE].max()
    assert jump < np.abs(np.diff(own)).max() + np.abs(np.diff(new)).max() + np.abs(own - new).max() / FADE


def test_new_sound_knows_what_is_kept(pipe: VABPipeline, clip: Path) -> None:
    """The kept span is a window's given tokens, so tokens far from it change too."""
    new = pipe.generate(clip, temperature=0, guidance=1).waveform
    kept = pipe.generate(clip, temperature=0, guidance=1, keep=[(0.0, 1.5)]).waveform
    assert not np.array_equal(new[-8000:], kept[-8000:])


def test_spans_to_keep() -> None:
    info = MediaInfo(Path("a.mp4"), "video", 4.0, True, 64, 48, 25.0)
    length = 64000
    assert kept_samples(info, [(3, 9), (0, 1), (0.5, 2)], length) == [(0, 32000), (48000, 64000)]
    with pytest.raises(ValueError, match="later"):
        kept_samples(info, [(2, 1)], length)
    with pytest.raises(MediaError, match=r"a\.mp4.*ends at 4 s"):
        kept_samples(info, [(4, 5)], length)
    with pytest.raises(MediaError, match=r"a\.mp4: has no sound"):
        kept_samples(replace(info, has_audio=False), [(0, 1)], length)


@given(st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 12.5]), st.integers(2, 12), st.integers(1, 40_000))
def test_every_window_starts_with_a_feature(fps: float, seconds: int, frames: int) -> None:
    config = replace(PRESETS["vab-tiny"].model, fps=fps, seconds=2.0 * seconds)
    total, window, overlap = padded_length(frames, config), config.audio_length, window_overlap(config)
    assert total >= frames and total >= window and total - max(frames, window) < feature_step(config)
    for start, stop in windows(total, window, overlap):
        place = start / FRAME_RATE * fps
        assert place == pytest.approx(round(place), abs=1e-9) and stop - start == window
    assert overlap >= FRAME_RATE


def test_lengths_that_are_refused() -> None:
    info = MediaInfo(Path("a.mp4"), "video", 7200.0, False, 64, 48, 25.0)
    assert sound_length(info) == 7200 * SAMPLE_RATE
    for seconds, words in ((7201.0, "longest"), (0.0, "0 s"), (1e-5, "0 s")):
        with pytest.raises(MediaError, match=rf"a\.mp4.*{words}"):
            sound_length(replace(info, seconds=seconds))
    with pytest.raises(MediaError, match="no video stream"):
        sound_length(replace(info, kind="audio"))


def test_an_image_gets_ten_seconds(pipe: VABPipeline, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)).save(tmp_path / "a.png")
    assert len(pipe.generate(tmp_path / "a.png", steps=1).waveform) == 160_000
    with pytest.raises(MediaError, match="no sound"):
        pipe.generate(tmp_path / "a.png", keep=[(0, 1)])


def test_a_model_survives_saving(pipe: VABPipeline, clip: Path, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "copy")
    files = {path.name for path in (tmp_path / "copy").iterdir()}
    expected = {"config.json", "model.safetensors", "codec.json", "codec.safetensors", "README.md"}
    assert files == expected | {"contrastive", "classes"}
    again = VABPipeline.from_pretrained(tmp_path / "copy", device="cpu")
    assert again.config == pipe.config
    assert np.array_equal(again.generate(clip).waveform, pipe.generate(clip).waveform)
    assert [m.state for m in known_models([tmp_path])][-1] == "local"


def test_bad_models_are_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    def broken(name: str, file: str, content: bytes | None) -> Path:
        folder = shutil.copytree(model, tmp_path / name)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        return folder

    config = json.loads((model / "config.json").read_text())
    wider = json.dumps(config | {"model": config["model"] | {"hidden_dim": 64}}).encode()
    unknown = json.dumps(config | {"colour": "red"}).encode()
    weights = (model / "model.safetensors").read_bytes()
    cases: list[tuple[Path | str, str]] = [
        (broken("a", "config.json", b"{"), "config"),
        (broken("b", "config.json", unknown), "colour"),
        (broken("c", "config.json", wider), "does not fit"),
        (broken("d", "model.safetensors", weights[:-100]), "cannot be read"),
        (broken("e", "model.safetensors", None), "no model.safetensors"),
        ("vab-encodec", "nobody has published"),
        ("no such model", "no model of that name"),
    ]
    for source, words in cases:
        with pytest.raises(ModelError, match=words) as caught:
            VABPipeline.from_pretrained(source, device="cpu")
        assert "\n" not in str(caught.value)


def test_a_model_is_not_run_on_another_codec(model: Path, tmp_path: Path) -> None:
    from vab.codecs.tiny import TinyCodec

    other = TinyCodec.from_pretrained(model)
    other.vectors.normal_()
    other.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="another codec"):
        VABPipeline.from_pretrained(model, device="cpu", codec_path=tmp_path)
    # Nor does it embed, or make the sounds that are evaluated.
    with pytest.raises(ModelError, match="another codec"):
        Embedder.from_pretrained(ASSETS / "vab-tiny", device="cpu", codec_path=tmp_path)
    with pytest.raises(ModelError, match="another codec"):
        Synthesizer.load(model, tmp_path, "cpu")


def test_the_bundled_model(tmp_path: Path) -> None:
    if not is_model(ASSETS / "vab-tiny"):
        with pytest.raises(ModelError, match="not in this installation"):
            find_model()
        pytest.skip("the bundled model is not in this checkout")
    audio = VABPipeline.from_pretrained(device="cpu").generate(write_video(tmp_path / "a.mp4", 33, 10))
    assert isinstance(audio, Audio) and len(audio.waveform) == 52800


# --- many files ---


def run(names: list[Path | str], out: Path, model: Path, **settings: object) -> list[Result]:
    chosen = BatchSettings(model=str(model), device="cpu", steps=1, **settings)
    return list(generate_files(names, out, chosen))


def test_results_have_the_inputs_names_and_the_picture_is_copied(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    (result,) = run([clip], tmp_path / "out", model, samples=2)
    assert result.status == "done" and result.seconds == 3.3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip.wav",
        "clip.mp4",
        "clip_2.wav",
        "clip_2.mp4",
    }
    assert set(result.timings or ()) == {
        "load",
        "decode_video",
        "features",
        "sampling",
        "codec",
        "finish",
        "mux",
    }
    with wave.open(str(tmp_path / "out" / "clip_2.wav")) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (52800, 16000, 1)
    assert list(picture_packets(tmp_path / "out" / "clip.mp4")) == list(picture_packets(clip))
    info = probe(tmp_path / "out" / "clip.mp4")
    assert info.has_audio and info.seconds == pytest.approx(3.3)


def test_order_and_company_do_not_matter(model: Path, clip: Path, tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mp4", 8, 10)
    run([clip, other], tmp_path / "one", model)
    run([other, clip], tmp_path / "two", model)
    for name in ("clip.wav", "other.wav"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_skip_existing_leaves_whole_results_alone(model: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Image.new("RGB", (40, 40)).save(tmp_path / "still.png")
    inputs: list[Path | str] = [clip, tmp_path / "still.png"]
    run(inputs, out, model)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 3
    assert [r.status for r in run(inputs, out, model, skip_existing=True)] == ["skipped", "skipped"]
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "clip.mp4").unlink()
    assert [r.status for r in run(inputs, out, model, skip_existing=True)] == ["done", "skipped"]
    assert [r.status for r in run([clip], out, model, skip_existing=True, samples=2)] == ["done"]


def test_skip_existing_compares_what_the_results_were_made_with(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip = write_video(tmp_path / "clip.mp4", 5, 10)

    def again(folder: Path = model, **settings: object) -> str:
        """ "skipped", or why it was made anew."""
        stages: list[str] = []
        chosen = BatchSettings(
            model=str(folder), device="cpu", skip_existing=True, **({"steps": 1} | settings)
        )
        (result,) = generate_files([clip], out, chosen, lambda *news: stages.append(news[3]))
        assert ("load" in stages) == (
            result.status == "done"
        )  # the model is not loaded to see that all is there
        return " ".join(result.notes) if result.status == "done" else result.status

    assert again() == "" and again() == "skipped"
    assert again(seed=9) == "made anew: it was made with another seed"
    assert (
        again(seed=9, steps=2, guidance=1.5)
        == "made anew: it was made with another number of steps and guidance"
    )
    assert again() == "made anew: it was made with another seed, number of steps and guidance"
    assert again(rate=48000) == "made anew: it was made with another rate"
    assert again(rate=48000) == "skipped"
    (out / "clip.mp4").write_bytes(clip.read_bytes())  # as a film that is none of ours
    assert again(rate=48000) == "made anew: nothing in the file says what it was made with"
    # the same model elsewhere is the same, one with other weights is not
    copy = shutil.copytree(model, tmp_path / "copy")
    assert again(copy, rate=48000) == "skipped"
    other = write_model(tmp_path / "other", like="foleygen-tiny")
    assert again(other, rate=48000, steps=None).startswith("made anew: it was made with another model")
    write_video(clip, 9, 10)
    assert again(other, rate=48000, steps=None) == "made anew: it was made with another input"


def test_no_result_overwrites_another_or_an_input(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "dog.mp4", 4, 10)
    results = run([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "dog.mp4"], tmp_path / "out", model)
    assert [r.outputs[0] for r in results] == [
        str(tmp_path / "out" / name / "dog.wav") for name in ("a", "b")
    ]
    content = (tmp_path / "a" / "dog.mp4").read_bytes()
    (result,) = run([tmp_path / "a"], tmp_path / "a", model)
    assert result.status == "failed" and "overwrite the input" in str(result.error)
    assert (tmp_path / "a" / "dog.mp4").read_bytes() == content


def test_values_that_make_no_sense(clip: Path, tmp_path: Path) -> None:
    for bad in (
        {"samples": 0},
        {"steps": 0},
        {"seed": -1},
        {"temperature": -1},
        {"guidance": -1},
        {"keep": ((2, 1),)},
    ):
        with pytest.raises(ValueError):
            list(generate_files([clip], tmp_path / "out", BatchSettings(**bad)))
    assert not (tmp_path / "out").exists()


def test_real_clips(model: Path, tmp_path: Path) -> None:
    clips = sorted((DATA / "clips").glob("*.mp4"))[:3]
    if not clips:
        pytest.skip(f"no real clips in {DATA / 'clips'}")
    for result in run([*clips], tmp_path, model):
        assert result.status == "done", result.error
        source = Path(result.input)
        with wave.open(result.outputs[0]) as file:
            assert file.getnframes() == round(probe(source).seconds * SAMPLE_RATE)
        assert list(picture_packets(Path(result.outputs[1]))) == list(picture_packets(source))


def test_rerank_keeps_the_candidate_nearest_to_the_picture(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = VABPipeline.from_pretrained(model, device="cpu")
    clip = write_video(tmp_path / "clip.mp4", 30, 10)  # 3 s: two windows
    seen: list[torch.Tensor] = []

    def watch(network: Contrastive, drawn: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        near = []
        for tokens in drawn:
            spans = [(0, 100, 0, 2), (100, 200, 2, 4)]  # audio frames and video frames of 2 s
            pairs = [
                (network.embed(tokens[None, :, a:b], None), network.embed(None, features[None, c:d]))
                for a, b, c, d in spans
                if a < tokens.shape[1]
            ]
            near.append(sum(float((a * v).sum()) for a, v in pairs) / len(pairs))
        seen.extend(drawn)
        assert len(set(near)) == len(near) == 3
        scores = audio_video_similarity(network, drawn, features)
        assert int(scores.argmax()) == int(np.argmax(near))
        return scores

    alone = pipe.generate(clip, seed=1)
    monkeypatch.setattr("vab.inference.pipeline.audio_video_similarity", watch)
    ranked = pipe.generate(clip, seed=1, rerank=3)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    first = waveform_of(pipe.codec, seen[0][:, :150], 48_000)
    assert np.array_equal(first, alone.raw)  # the first candidate is what there is without
    assert ranked.waveform.shape == alone.waveform.shape
    pipe.finetuned = Finetuned()
    with pytest.raises(ModelError, match="vab finetune contrastive"):
        pipe.generate(clip, rerank=2)


def test_the_picture_is_read_ahead_but_not_far_and_gives_the_same_features(
    pipe: VABPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_video(tmp_path / "long.mp4", 90, 1)
    cropped: list[str] = []

    def count(frame: np.ndarray, recipe: Recipe) -> torch.Tensor:
        cropped.append(threading.current_thread().name)
        return crop(frame, recipe)

    whole = pipe.vision.encode(MediaFile(film).frames(1.0, size=pipe.vision.decode_size))
    monkeypatch.setattr(features, "crop", count)
    timings: dict[str, float] = {}
    with FeatureReader(MediaFile(film), pipe.vision, 1.0, 0, timings) as picture:
        rows = picture.rows(0, 5)
        time.sleep(0.3)
        assert 8 <= len(cropped) <= 8 + features.READ_AHEAD_SECONDS + 2 * pipe.vision.default_batch_size
        assert torch.equal(rows, whole[:5]) and torch.equal(picture.rows(3, 40), whole[3:40])
        beyond = picture.rows(85, 93)
        assert torch.equal(beyond, torch.cat([whole[85:], whole[-1:].expand(3, -1)]))
        assert torch.equal(picture.all(), whole) and len(cropped) == 90
    assert all(name.startswith("ahead") for name in cropped) and set(timings) == {"decode_video", "features"}

    # a sound begins before the picture is read, and whatever ends it ends the thread
    cropped.clear()

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "sampling":
            raise KeyboardInterrupt(len(cropped))

    with pytest.raises(KeyboardInterrupt) as ended:
        pipe.generate(film, steps=1, progress=stop)
    assert ended.value.args[0] < 60
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_goes_wrong_while_reading_ahead_is_told_as_ever(
    pipe: VABPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of a raw stream only the thread that decodes it finds out how long it is
    film = tmp_path / "long.h264"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    assert not MediaFile(film).tells_length
    monkeypatch.setattr(features, "MAX_VIDEO_SECONDS", 20.0)
    with pytest.raises(MediaError, match=r"long\.h264: lasts 0\.01 hours; the longest that can be done is"):
        pipe.generate(film, steps=1)
