"""The studio without its page: uploads, takes, the queue, rooms, and what the server lets through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tiny import write_model, write_video
from vab.keep import FADE
from vab.media import probe, read_audio
from vab.pipeline import VABPipeline
from vab.studio import uploads
from vab.studio.takes import Maker, Take
from vab.studio.uploads import Clip, UploadError, make_clip, prepare


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def maker(model: Path) -> Maker:
    return Maker(VABPipeline.from_pretrained(model, device="cpu"))


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    (tmp_path / "clip").mkdir()
    return make_clip(write_video(tmp_path / "a.mkv", 30, 10), tmp_path / "clip")


@pytest.fixture
def take(maker: Maker, clip: Clip) -> Take:
    return next(maker.new(clip, 1, 0, maker.pipeline.config.decode))


def test_an_upload_becomes_a_picture_a_browser_plays(tmp_path: Path) -> None:
    clip = prepare(write_video(tmp_path / "../x; rm.mkv", 20, 10), tmp_path)
    assert (clip.kind, clip.seconds, clip.width, clip.height, clip.has_sound) == ("video", 2.0, 64, 48, True)
    assert len(clip.sound()) == 32000 and np.abs(clip.sound()).max() > 0.1
    with av.open(str(clip.picture)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert not container.streams.audio
    Image.new("RGB", (3000, 1000), "red").save(tmp_path / "a.png")
    photo = prepare(tmp_path / "a.png", tmp_path)
    assert (photo.kind, photo.seconds, photo.width, photo.height) == ("image", 10.0, 1280, 427)
    assert probe(photo.source).kind == "image" and probe(photo.picture).seconds == 10.0


def test_what_cannot_be_used_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "a.mp4", 20, 10)
    (tmp_path / "text").write_text("no video")
    (tmp_path / "half").write_bytes(video.read_bytes()[:900])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "half", "empty"):
        with pytest.raises(UploadError, match=r"^It cannot be used: .*\.$") as caught:
            prepare(tmp_path / name, tmp_path)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UploadError, match="takes too long"):
        prepare(video, tmp_path, seconds=0.01)
    monkeypatch.setattr(uploads, "MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(UploadError, match="64 x 48 pixels"):
        make_clip(video, tmp_path)
    monkeypatch.setattr(uploads, "MOST_PIXELS", 64 * 48)
    monkeypatch.setattr(uploads, "MOST_SECONDS", 1.9)
    with pytest.raises(UploadError, match="lasts 2 s"):
        make_clip(video, tmp_path)
    monkeypatch.setattr(uploads, "MOST_PHOTO_PIXELS", 99)
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(UploadError, match="10 x 10 pixels"):
        make_clip(tmp_path / "a.png", tmp_path)


def test_a_take_is_the_sound_that_generate_makes(maker: Maker, clip: Clip, take: Take) -> None:
    assert np.array_equal(take.waveform, maker.pipeline.generate(clip.picture).waveform)
    assert take.score is not None and -1 <= take.score <= 1
    assert {"features", "sampling", "codec"} <= set(take.timings)
    assert probe(take.video).seconds == pytest.approx(3.0) and probe(take.video).has_audio
    assert np.abs(read_audio(take.sound) - take.waveform).max() < 1e-4
    assert take.outline.startswith("M0 ") and Image.open(take.mel).height == 96
    two = list(maker.new(clip, 2, 0, maker.pipeline.config.decode))
    assert np.array_equal(two[0].waveform, take.waveform)
    assert not np.array_equal(two[1].waveform, take.waveform)
    assert len({take.id for take in two}) == 2
    take.remove()
    assert not [path for path in (take.video, take.sound, take.mel) if path.exists()]


@pytest.mark.parametrize("span", [(1.0, 2.0), (0.0, 0.517), (2.4999, 9.0)])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_kept_is_bit_equal(
    maker: Maker, clip: Clip, take: Take, span: tuple[float, float], inside: bool
) -> None:
    settings = maker.pipeline.config.decode
    made = maker.redo(clip, take, span, inside, seed=5, decode=settings)
    first, last = (round(min(edge, 3.0) * 16000) for edge in span)
    marked = np.zeros(len(take.waveform), bool)
    marked[first:last] = True
    new = marked if inside else ~marked
    assert np.array_equal(made.waveform[~new].view(np.int32), take.waveform[~new].view(np.int32))
    deep = new.copy()  # past the cross-fade there is nothing of the old take
    for edge in (first, last):
        deep[max(0, edge - FADE) : edge + FADE] = False
    assert np.mean(made.waveform[deep] == take.waveform[deep]) < 0.1
    again = maker.redo(clip, take, span, inside, seed=5, decode=settings)
    assert np.array_equal(made.waveform, again.waveform)
    with_another = maker.redo(clip, take, span, inside, seed=6, decode=settings)
    assert not np.array_equal(made.waveform, with_another.waveform)


def test_a_longer_take_begins_with_the_take(maker: Maker, clip: Clip, take: Take) -> None:
    made = maker.extend(clip, take, 1.5, seed=1, decode=maker.pipeline.config.decode)
    assert len(made.waveform) == 72000 and made.again == (3.0, 4.5)
    assert np.array_equal(made.waveform[:48000], take.waveform)
    assert np.abs(made.waveform[48000 + FADE :]).max() > 0
    assert probe(made.video).seconds == pytest.approx(4.5)
    for seconds in (0, -1, 58, float("nan")):
        with pytest.raises(ValueError, match="60 s at most"):
            maker.extend(clip, take, seconds, seed=1, decode=maker.pipeline.config.decode)


def test_a_sound_that_is_there_can_be_a_take(maker: Maker, clip: Clip) -> None:
    own = clip.sound()
    made = maker.place(clip, own[:40000], "as it came")
    assert np.array_equal(made.waveform[:40000], own[:40000]) and not made.waveform[40000:].any()
    assert len(made.waveform) == 48000 and made.score is not None


def test_spans_that_cannot_be_redone(maker: Maker, clip: Clip, take: Take) -> None:
    settings = replace(maker.pipeline.config.decode, steps=1)
    for span, inside in (
        ((1, 1), True),
        ((2, 1), True),
        ((float("nan"), 1), True),
        ((0, 3), True),
        ((0, 3), False),
    ):
        with pytest.raises(ValueError, match=r"\.$"):
            maker.redo(clip, take, span, inside, seed=0, decode=settings)
