"""Media that is no file gives what a file of the same content gives, or one line that says what is taken."""

from __future__ import annotations

import gzip
import io
import tempfile
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import write_model, write_video
from vab import MediaError, MediaFile, SettingError, VABError, VABPipeline
from vab.media.reader import read_audio


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> VABPipeline:
    return VABPipeline.from_pretrained(write_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """33 frames at 10 a second, with sound."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 33, 10)


@pytest.fixture(scope="module")
def frames(clip: Path) -> np.ndarray:
    """Its decoded frames, uint8 [33,H,W,3]."""
    return np.stack(list(MediaFile(clip).frames(10)))


class Socket(io.RawIOBase):
    """Can only be read onwards, and gives less than it is asked for."""

    def __init__(self, content: bytes) -> None:
        self._rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._rest.read(min(len(buffer), 5000))
        buffer[: len(part)] = part
        return len(part)


class Upload:
    """As web frameworks hand an upload over: the file is inside, and its own ``read`` wants to be awaited."""

    def __init__(self, content: bytes, filename: str) -> None:
        self.filename = filename
        self.file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
        self.file.write(content)

    async def read(self, size: int = -1) -> bytes:
        raise AssertionError


def at_end(content: bytes) -> io.BytesIO:
    buffer = io.BytesIO()
    buffer.write(content)
    return buffer


def zipped(content: bytes) -> Any:
    archive = zipfile.ZipFile(at_end(b""), "w")
    archive.writestr("a.mp4", content)
    return archive.open("a.mp4")


CONTENT: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "buffer, written to its end": at_end,
    "socket": Socket,
    "upload": lambda content: Upload(content, "../dog.mp4"),
    "zip": zipped,
    "gzip": lambda content: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content))),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_bytes_are_as_good_as_their_file(pipe: VABPipeline, clip: Path, kind: str) -> None:
    settings: dict[str, Any] = {"steps": 1, "seed": 5, "keep": [(1.0, 1.5)]}
    made = pipe.generate(CONTENT[kind](clip.read_bytes()), **settings)
    assert np.array_equal(made.waveform, pipe.generate(clip, **settings).waveform)
    if kind in ("bytes", "socket"):
        content = CONTENT[kind](clip.read_bytes())
        own, told = pipe.embed(clip), pipe.embed(content)
        assert own.keys() == told.keys() == {"audio", "video"}
        assert all(np.array_equal(own[name], told[name]) for name in own)
        assert pipe.classify(clip) == pipe.classify(clip.read_bytes())


def test_an_open_file_is_its_path_and_stays_where_it_was(clip: Path, tmp_path: Path) -> None:
    with clip.open("rb") as file:
        file.read(1000)
        opened = MediaFile(file)
        assert opened.path == clip and opened.info == MediaFile(clip).info
        assert file.tell() == 1000
    written = (tmp_path / "a.mp4").open("wb")  # not flushed yet
    written.write(clip.read_bytes())
    assert MediaFile(written).seconds == 3.3
    (tmp_path / "a.mp4").rename(tmp_path / "b.mp4")  # its name leads nowhere now, and it cannot be read
    with pytest.raises(MediaError, match=r"a\.mp4.*cannot be read"):
        MediaFile(written)
    buffer = io.BytesIO(clip.read_bytes())
    buffer.seek(7)
    assert MediaFile(buffer).seconds == 3.3 and buffer.tell() == 7


def test_a_photo_is_the_same_in_every_form(pipe: VABPipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    forms = [
        path.read_bytes(),
        Image.open(path),
        Image.fromarray(pixels),
        pixels,
        torch.from_numpy(pixels).permute(2, 0, 1),
        pixels.astype(np.float64) / 255,
        torch.from_numpy(pixels) / 255,
    ]
    for form in forms:
        assert np.array_equal(next(MediaFile(form).frames(1)), pixels) and MediaFile(form).is_image
    made = pipe.generate(path, steps=1)
    assert len(made.waveform) == 160_000
    assert np.array_equal(pipe(forms[1], steps=1).waveform, made.waveform)
    vector = pipe.embed(path)["video"]
    path.rename(tmp_path / "other.png")
    for form in (forms[0], tmp_path / "other.png"):
        assert np.array_equal(pipe.embed(form)["video"], vector)


def test_images_stand_upright_and_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 48), (255, 0, 0, 128))
    exif = image.getexif()
    exif[0x0112] = 6  # turned
    image.save(tmp_path / "a.png", exif=exif)
    expected = next(MediaFile(tmp_path / "a.png").frames(1))
    assert expected.shape == (64, 48, 3) and tuple(expected[0, 0]) == (255, 127, 127)
    given = Image.open(tmp_path / "a.png")
    assert np.array_equal(next(MediaFile(given).frames(1)), expected)
    assert np.array_equal(np.asarray(given), np.asarray(image)), "the caller's image is untouched"


def test_frames_are_as_good_as_the_film(pipe: VABPipeline, clip: Path, frames: np.ndarray) -> None:
    film = pipe.generate(clip, steps=1)
    tensor = torch.from_numpy(frames)
    images = [Image.fromarray(frame) for frame in frames]
    forms = [frames, tensor, tensor.permute(0, 3, 1, 2), tensor / 255, frames / 255.0, images, list(frames)]
    for form in [*forms, iter(images)]:
        shown = MediaFile(form, fps=10).frames(10)
        assert all(np.array_equal(a, b) for a, b in zip(shown, frames, strict=True))
    made = pipe.generate(tensor / 255, fps=10, steps=1)
    assert torch.equal(made.features, film.features)
    assert np.array_equal(made.waveform, film.waveform)
    vector = pipe.embed(frames, fps=10)
    assert vector.keys() == {"video"}
    np.testing.assert_array_equal(vector["video"], pipe.embed(clip)["video"])
    assert pipe.classify(frames, fps=10) == pipe.classify(clip, by="video")


@pytest.mark.parametrize("fps", [25, 29.97, Fraction(30000, 1001), 0.5, np.float32(12.5)])
def test_a_film_in_memory_keeps_time(frames: np.ndarray, fps: float) -> None:
    file = MediaFile(frames[:12], fps=fps)
    exact = fps if isinstance(fps, Fraction) else Fraction(float(fps)).limit_denominator(1001)
    assert file.seconds == pytest.approx(float(12 / exact), abs=1e-9)
    assert file.times.fps == pytest.approx(float(fps), rel=1e-6) and file.nominal_seconds == file.seconds
    rate = float(fps) * 2
    shown = list(file.frames(rate, start=5 / float(fps), seconds=3 / float(fps)))
    assert [next(n for n in range(12) if np.array_equal(frames[n], frame)) for frame in shown] == [
        next(n for n in range(12) if np.array_equal(frames[n], frames[5 + k // 2])) for k in range(6)
    ]


def test_a_film_may_have_its_sound(pipe: VABPipeline, clip: Path, frames: np.ndarray, tmp_path: Path) -> None:
    sound = read_audio(clip)
    both = MediaFile(frames, fps=10, sound=sound, rate=16000)
    assert both.has_audio and np.array_equal(both.audio(), sound)
    assert np.array_equal(both.audio(1.0, 0.5), sound[16000:24000])
    assert pipe.embed(frames, fps=10, sound=torch.from_numpy(sound)).keys() == {"audio", "video"}
    assert pipe.classify(both, by="both").keys() == pipe.classify(clip).keys()
    kept = pipe.generate(both, keep=(1.0, 2.0), steps=1)
    assert kept.waveform.shape == pipe.generate(clip, steps=1).waveform.shape


def test_the_sound_of_frames_stays_as_a_second_track(frames: np.ndarray, tmp_path: Path) -> None:
    sound = 0.2 * np.sin(np.arange(16_000 * 5) / 9).astype(np.float32)  # goes on after the picture
    file = MediaFile(frames, fps=10, sound=sound)
    for name, tracks in (("a.mkv", 2), ("b.mp4", 1)):
        notes = file.mux(np.zeros(52_800, np.float32), 16_000, tmp_path / name, keep_original=tracks == 2)
        assert [note[:32] for note in notes] == [
            "its frames were encoded as H.264",
            "its own sound goes on for 1.7 s ",
        ]
        with av.open(str(tmp_path / name)) as made:
            assert len(made.streams.audio) == tracks and len(made.streams.video) == 1
            own = [f.to_ndarray() for f in made.decode(made.streams.audio[-1])]
        with MediaFile(tmp_path / name) as film:
            assert film.seconds == pytest.approx(3.3) and not film.audio().any()
        assert (np.abs(np.concatenate(own, axis=1)).max() > 0.1) == (tracks == 2)


def test_a_waveform_has_a_vector(pipe: VABPipeline, clip: Path) -> None:
    sound = read_audio(clip)
    vector = pipe.embed(sound, rate=16000)
    assert vector.keys() == {"audio"}
    assert np.allclose(vector["audio"], pipe.embed(clip)["audio"], atol=0.02)
    again = pipe.embed(np.stack([sound, sound]), rate=16000)["audio"]
    assert np.array_equal(again, vector["audio"])
    made = pipe.generate(clip, steps=1)
    assert np.array_equal(pipe.embed(made)["audio"], pipe.embed(made.waveform, rate=made.rate)["audio"])
    whole = (sound * 20000).astype(np.int16)
    assert np.array_equal(MediaFile(whole, rate=16000).audio(), whole / np.float32(32768))


def test_lists_are_inputs_one_by_one(pipe: VABPipeline, clip: Path, frames: np.ndarray) -> None:
    photo = Image.fromarray(frames[0])
    alone = [pipe(x, seconds=1.0, steps=1).waveform for x in (clip, photo)]
    together = pipe([clip, clip.read_bytes(), photo], seconds=1.0, steps=1)
    assert [np.array_equal(a.waveform, b) for a, b in zip(together, [alone[0], *alone], strict=True)] == [
        True
    ] * 3
    films = pipe.generate([frames, frames[:20], [photo, photo]], fps=10, steps=1)
    assert [len(made.waveform) for made in films] == [52800, 32000, 3200]
    film = MediaFile(frames, fps=10)
    assert [type(made) for made in pipe((film, film), steps=1)] == [type(films[0])] * 2
    assert len(pipe.embed([clip, photo])) == len(pipe.classify([photo, photo])) == 2
    assert pipe.generate([]) == pipe.embed([]) == []
    with pytest.raises(MediaError, match=r"^input 2 of 2: not a readable media file"):
        pipe([clip, b"no film at all"], steps=1)
    with pytest.raises(SettingError, match="images, which make one film, or films: not both"):
        pipe([photo, frames], fps=10)


WHAT_IS_NO_MEDIA: list[tuple[Any, dict[str, Any], type[VABError], str]] = [
    (b"", {}, MediaError, "the given bytes: the file is empty"),
    (io.BytesIO(), {}, MediaError, "the given file object: the file is empty"),
    (b"text " * 100, {}, MediaError, "the given bytes: not a readable media file"),
    (io.StringIO("text"), {}, MediaError, "open it with 'rb'"),
    (None, {}, SettingError, "an input is a path, bytes.*not NoneType"),
    (3, {}, SettingError, "not int"),
    ("dog.mp4", {"fps": 25}, SettingError, "fps= belongs to frames"),
    (Image.new("RGB", (8, 8)), {"fps": 25}, SettingError, "fps= belongs to frames"),
    (np.zeros((8, 8, 3), np.uint8), {"fps": 25}, SettingError, "this is one image"),
    (Image.new("RGB", (0, 8)), {}, MediaError, "no pixels"),
    (np.zeros((3, 8, 8, 3), np.uint8), {}, SettingError, "frames need fps="),
    ([np.zeros((8, 8, 3), np.uint8)] * 2, {"fps": 0}, SettingError, "fps= is a number"),
    (np.zeros((3, 8, 8, 3), np.uint8), {"fps": float("nan")}, SettingError, "fps= is a number"),
    (np.zeros((3, 8, 8, 3), np.uint8), {"fps": "fast"}, SettingError, "fps= is a number"),
    (np.zeros((0, 8, 8, 3), np.uint8), {"fps": 25}, MediaError, "there is nothing in"),
    ([], {"fps": 25}, MediaError, "not one frame"),
    (np.zeros((5, 8, 8), np.uint8), {"fps": 25}, SettingError, r"\[T,H,W,3\].*not uint8 \[5, 8, 8\]"),
    (np.zeros((3, 8, 8, 4), np.uint8), {"fps": 25}, SettingError, r"\[T,H,W,3\].*not uint8 \[3, 8, 8, 4\]"),
    (np.zeros((8, 8), np.uint8), {}, SettingError, r"an image is .*\[H,W,3\].*not uint8 \[8, 8\]"),
    (np.zeros((3, 8, 8, 3), np.int64), {"fps": 25}, SettingError, "uint8, or floats of 0..1.*not int64"),
    (np.full((3, 8, 8, 3), 200.0), {"fps": 25}, SettingError, "not floats of 200..200"),
    (torch.full((3, 8, 8, 3), torch.nan), {"fps": 25}, MediaError, "not numbers"),
    (torch.zeros(3, 8, 8, 3, device="meta"), {"fps": 25}, SettingError, "no array of numbers"),
    ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], {"fps": 25}, SettingError, "frame 1 is 9 x 8"),
    (["a.png", "b.png"], {"fps": 25}, SettingError, "a film is a list of images.*not of str"),
    (np.zeros(100), {}, SettingError, "a waveform needs rate="),
    (np.zeros(100), {"rate": 0}, SettingError, "1000 to 768000"),
    (np.zeros(0), {"rate": 16000}, MediaError, "no samples"),
    (np.full(9, np.inf), {"rate": 16000}, MediaError, "not numbers"),
    (np.zeros((100, 2)), {"rate": 16000}, SettingError, r"\[S\] or \[C,S\]"),
    (b"RIFF", {"rate": 16000}, SettingError, "rate= belongs to a waveform"),
    (np.zeros((3, 8, 8, 3), np.uint8), {"sound": np.zeros(9)}, SettingError, "need fps="),
]  # fmt: skip


@pytest.mark.parametrize(("source", "keywords", "kind", "words"), WHAT_IS_NO_MEDIA)
def test_what_is_no_media_is_refused_in_a_line(
    source: Any, keywords: dict[str, Any], kind: type[VABError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        print(MediaFile(source, **keywords).info)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


# --- moving images


def write_moving(path: Path, milliseconds: list[int], size: tuple[int, int] = (64, 48)) -> Path:
    """A moving image, lossless as far as its format is, each frame of another grey."""
    pages = [Image.new("RGB", size, (40 * n, 40 * n, 40 * n)) for n in range(len(milliseconds))]
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=milliseconds, loop=3, **options)
    return path


@pytest.mark.parametrize("ending", [".webp", ".avif", ".gif", ".png"])
def test_moving_images_are_short_films(pipe: VABPipeline, tmp_path: Path, ending: str) -> None:
    path = write_moving(tmp_path / f"a{ending}", [100, 200, 300, 400, 500])
    greys = [0] + [40] * 2 + [80] * 3 + [120] * 4 + [160] * 5
    for source in (path, path.read_bytes(), Image.open(path)):
        with MediaFile(source) as file:
            assert (file.kind, file.has_audio, file.info.width, file.info.height) == ("video", False, 64, 48)
            assert file.seconds == pytest.approx(1.5) and file.times.frames == 5
            assert [round(int(f[0, 0, 0]) / 40) * 40 for f in file.frames(10)] == greys
            assert [round(int(f[0, 0, 0]) / 40) * 40 for f in file.frames(10, 0.65, 0.5)] == [120] * 4 + [160]
        assert len(pipe.generate(source, steps=1).waveform) == 24_000
        assert pipe.embed(source).keys() == {"video"}


@pytest.mark.parametrize("kind", ["moving", "frames"])
def test_films_are_written_with_their_times(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 47, 63, 3), np.uint8)
    moving = write_moving(tmp_path / "a.webp", [100, 200, 300, 400, 500])
    film = MediaFile(moving) if kind == "moving" else MediaFile(pixels, fps=Fraction(30000, 1001))
    assert film.film_suffix() == ".mp4" and film.film_suffix("webm") == ".webm"
    notes = film.mux(np.zeros(4000, np.float32), 16000, tmp_path / "a.mp4", tags={"comment": "as said"})
    assert notes == ["its frames were encoded as H.264"]
    with av.open(str(tmp_path / "a.mp4")) as plain:
        assert plain.metadata["comment"] == "as said"
    with MediaFile(tmp_path / "a.mp4") as made:
        assert made.has_audio and (made.info.width % 2, made.info.height % 2) == (0, 0)
        assert made.seconds == pytest.approx(film.seconds, abs=1e-4)
        shown = [np.sort(file.times.pts) * float(file.times.time_base) for file in (film, made)]
        np.testing.assert_allclose(shown[0], shown[1] - shown[1][0], atol=1e-4)


def test_a_picture_wider_than_players_decode_is_scaled_and_that_is_told(tmp_path: Path) -> None:
    film = MediaFile(np.zeros((2, 16, 8192, 3), np.uint8), fps=2)
    (note,) = film.mux(np.zeros(16_000, np.float32), 16_000, tmp_path / "a.mp4")
    assert note == "its frames were encoded as H.264, with 4096 pixels on the longer side"
    with MediaFile(tmp_path / "a.mp4") as made:
        assert (made.info.width, made.info.height) == (4096, 8)


def test_moving_images_that_are_damaged(tmp_path: Path) -> None:
    content = write_moving(tmp_path / "a.webp", [100] * 5, (320, 240)).read_bytes()
    whole = MediaFile(content)
    assert whole.seconds == 0.5
    (tmp_path / "cut.webp").write_bytes(content[: len(content) - 60])
    with pytest.raises(MediaError, match=r"cut\.webp: "):
        print(MediaFile(tmp_path / "cut.webp").info)


def test_a_moving_image_that_lasts_for_hours_is_refused(pipe: VABPipeline, tmp_path: Path) -> None:
    hours = write_moving(tmp_path / "a.webp", [16_000_000, 100])
    with pytest.raises(MediaError, match=r"a\.webp: lasts 4\.44 hours"):
        pipe.generate(hours, steps=1)


def test_frames_without_a_time_last_as_in_a_browser(tmp_path: Path) -> None:
    assert MediaFile(write_moving(tmp_path / "a.webp", [0, 0, 0])).seconds == pytest.approx(0.3)


def test_still_images_stay_still(tmp_path: Path) -> None:
    for ending in (".webp", ".avif", ".gif", ".png"):
        assert MediaFile(write_moving(tmp_path / f"a{ending}", [100])).is_image
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "scan.tiff", save_all=True, append_images=pages[1:])
    assert (
        MediaFile(tmp_path / "scan.tiff").is_image and MediaFile(Image.open(tmp_path / "scan.tiff")).is_image
    )


def test_images_of_a_film_are_read_as_in_files(pipe: VABPipeline) -> None:
    # A phone's photo lies on its side; a scan has 16 bits.
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), "white").save(buffer, "JPEG", exif=exif)
    photo = Image.open(buffer)
    grey = Image.fromarray(np.full((16, 12), 128 * 257, np.uint16))
    film = MediaFile([photo, grey], fps=1)
    assert (film.info.width, film.info.height) == (12, 16)
    upright, scan = film.frames(1)
    assert (upright == 255).all() and (scan == 128).all()


def test_rounding_beside_0_to_1_is_no_error(pipe: VABPipeline) -> None:
    white, black = torch.full((3, 8, 8), 1.0000001), torch.full((3, 8, 8), -1e-4)
    shown = list(MediaFile(torch.stack([white, black]), fps=1).frames(1))
    assert (shown[0] == 255).all() and (shown[1] == 0).all()
    with pytest.raises(SettingError, match=r"floats of 0..1.*not floats of 0..1.01"):
        pipe(torch.tensor([0, 1.01]).repeat(3, 8, 4))


def test_a_list_says_which_input_makes_no_sense(pipe: VABPipeline) -> None:
    with pytest.raises(SettingError, match=r"^input 1 of 2: an input is a path"):
        pipe([None, "clip.mp4"])
