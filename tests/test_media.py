from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vab.config import video_frames
from vab.media.container import MediaError
from vab.media.image import moving_crop
from vab.media.reader import mux, probe, read_audio, read_frames, write_wav
from vab.utils.files import atomic

DATA = Path(os.environ.get("VAB_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
RATE = 16_000


def grey(frame: np.ndarray) -> int:
    """The number that a test picture shows."""
    return int(frame[-8:, -8:].mean().round())


def picture(value: int, width: int, height: int) -> np.ndarray:
    """Grey of the given value, with a red corner at the top left that shows which way is up."""
    image = np.full((height, width, 3), value, np.uint8)
    image[: height // 3, : width // 3] = (255, 0, 0)
    return image


def make(
    path: Path,
    times: list[float] | None = None,
    *,
    frames: int = 20,
    fps: float = 10,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    rotation: int | None = None,
    mirror: bool = False,
    tone: tuple[float, float] | None = None,
    tone_rate: int = 44_100,
    values: list[int] | None = None,
) -> Path:
    """A video whose frame i shows the grey 5 i (or ``values``) from ``times[i]`` seconds on; a tone from
    ``tone[0]`` to ``tone[1]`` seconds."""
    times = [i / fps for i in range(frames)] if times is None else times
    base = Fraction(1, 90_000)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = width, height
        stream.pix_fmt = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if codec == "libx264":
            stream.options = {
                "crf": "10",
                "preset": "ultrafast",
                "g": "8",
                "bf": "2",
                "x264-params": "log=-1",
            }
        if width % 2 or height % 2:
            stream.pix_fmt = "yuv444p"
        if path.suffix in (".mp4", ".mkv", ".ts", ".flv") and codec in ("libx264", "libx265"):
            stream.codec_context.time_base = base
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=mirror)
        sound = None
        if tone:
            kind = {".webm": "libopus", ".mpg": "mp2", ".mov": "pcm_s16le"}.get(path.suffix, "aac")
            sound = file.add_stream(kind, rate=48_000 if kind == "libopus" else tone_rate, layout="stereo")
        for i, time in enumerate(times):
            image = picture(values[i] if values else 5 * i, width, height)
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=stream.pix_fmt)
            tick = base if stream.codec_context.time_base == base else Fraction(1, 1) / Fraction(fps)
            frame.pts, frame.time_base = round(time / tick), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None and tone:
            n = round((tone[1] - tone[0]) * sound.rate)
            wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(n) / sound.rate).astype(np.float32)
            for at in range(0, n, 9600):
                part = av.AudioFrame.from_ndarray(
                    np.tile(wave[None, at : at + 9600], (2, 1)), format="fltp", layout="stereo"
                )
                part.sample_rate, part.time_base = sound.rate, Fraction(1, sound.rate)
                part.pts = at + round(tone[0] * sound.rate)
                if sound.codec_context.format.name != "fltp":
                    part = av.AudioResampler(format=sound.codec_context.format.name).resample(part)[0]
                file.mux(sound.encode(part))
            file.mux(sound.encode())
    return path


def tone_wav(path: Path, seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    wave = (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    write_wav(path, wave, rate)
    return wave


def shown(path: Path, fps: float, **options: float) -> list[int]:
    return [grey(frame) for frame in read_frames(path, fps, **options)]


def near(found: list[int], wanted: list[int]) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) <= 2 for a, b in zip(found, wanted, strict=True))


# ---- frames


@pytest.mark.parametrize("fps", [10, 25, 120, 30000 / 1001])
def test_every_frame_in_order(tmp_path: Path, fps: float) -> None:
    path = make(tmp_path / "a.mp4", fps=fps)
    info = probe(path)
    assert (info.kind, info.width, info.height, info.has_audio) == ("video", 64, 48, False)
    assert info.seconds == pytest.approx(20 / fps, abs=1e-3)
    assert info.fps == pytest.approx(fps, rel=1e-3)
    assert near(shown(path, info.fps), [5 * i for i in range(20)])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mkv", "libx264"),
        ("a.ts", "libx264"),
        ("a.flv", "libx264"),
        ("a.avi", "libx264"),
        ("a.h264", "libx264"),
        ("b.avi", "mpeg4"),
        ("c.avi", "mjpeg"),
        ("a.mpg", "mpeg2video"),
        ("b.mpg", "mpeg1video"),
        ("a.webm", "libvpx"),
        ("b.webm", "libvpx-vp9"),
        ("a.wmv", "wmv2"),
    ],
)
def test_containers_and_codecs(tmp_path: Path, name: str, codec: str) -> None:
    """B-frames, a clock that starts late (mpg, ts, flv) or is missing (avi, raw) give the same frames."""
    path = make(tmp_path / name, fps=25, codec=codec)
    assert probe(path).seconds == pytest.approx(0.8, abs=0.002)
    whole = shown(path, 25)
    assert all(abs(a - 5 * i) <= 6 for i, a in enumerate(whole)) and len(whole) == 20
    assert shown(path, 25, start=0.48, seconds=0.2) == whole[12:17]


VARIABLE = [0.0, 0.05, 0.5, 0.55, 0.6, 1.4, 1.45, 2.0]


@pytest.fixture(scope="module")
def variable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("vfr") / "vfr.mp4", VARIABLE)


@settings(max_examples=25, deadline=None)
@given(start=st.floats(0, 1.9), fps=st.sampled_from([1, 3, 5, 8, 24, 50.0]), seconds=st.floats(0.05, 1.0))
def test_variable_rate_shows_what_a_player_shows(
    variable: Path, start: float, fps: float, seconds: float
) -> None:
    found = shown(variable, fps, start=start, seconds=seconds)
    assert len(found) == video_frames(seconds, fps)
    for i, value in enumerate(found):
        time = start + i / fps
        allowed = [5 * sum(t <= time + slack for t in VARIABLE) - 5 for slack in (0, 0.001)]
        assert min(abs(value - a) for a in allowed) <= 2


def test_offset_start_counts_from_the_first_frame(tmp_path: Path) -> None:
    path = make(tmp_path / "late.mkv", [3.0 + i / 10 for i in range(20)], tone=(3.5, 5.0))
    assert probe(path).seconds == pytest.approx(2.0, abs=0.01)
    assert near(shown(path, 5), [10 * i for i in range(10)])
    sound = read_audio(path)
    assert np.abs(sound[: int(0.48 * RATE)]).max() < 0.02  # the pause before the tone stays
    assert np.abs(sound[int(0.55 * RATE) :]).max() > 0.3


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("mirror", [False, True])
def test_rotation_and_mirror(tmp_path: Path, rotation: int, mirror: bool) -> None:
    path = make(tmp_path / "r.mp4", frames=2, width=64, height=32, rotation=rotation, mirror=mirror)
    info = probe(path)
    assert (info.width, info.height) == ((32, 64) if rotation % 180 else (64, 32))
    frame = next(read_frames(path, 1))
    upright = picture(0, 64, 32)
    expected = np.rot90(upright, rotation // 90)
    if mirror:
        expected = expected[:, ::-1]
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 12
    scaled = next(read_frames(path, 1, size=16))
    assert scaled.shape[:2] == ((32, 16) if rotation % 180 else (16, 32))


def test_odd_size_and_short_side(tmp_path: Path) -> None:
    path = make(tmp_path / "odd.mp4", frames=3, width=97, height=61)
    assert next(read_frames(path, 1)).shape == (61, 97, 3)
    assert next(read_frames(path, 1, size=30)).shape == (30, 48, 3)
    assert next(read_frames(path, 1, size=500)).shape == (61, 97, 3)  # never scaled up


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_very_short_video_repeats_its_last_frame(tmp_path: Path, frames: int) -> None:
    path = make(tmp_path / "short.mp4", frames=frames, fps=30)
    assert probe(path).seconds == pytest.approx(frames / 30, abs=0.002)
    assert near(shown(path, 30, seconds=0.5), [5 * min(i, frames - 1) for i in range(15)])
    assert len(shown(path, 1)) == 1
    assert near(shown(path, 10, start=7, seconds=0.2), [5 * (frames - 1)] * 2)


# ---- sound


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_tone_survives_resampling(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.wav"
    tone_wav(path, 2.0, rate)
    sound = read_audio(path)
    assert sound.dtype == np.float32
    assert abs(len(sound) - 32_000) <= 1
    assert np.argmax(np.abs(np.fft.rfft(sound))) == pytest.approx(880, abs=1)
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    info = probe(path)
    assert (info.kind, info.width, info.fps) == ("audio", 0, 0)
    assert info.seconds == pytest.approx(2.0)


@pytest.fixture(scope="module")
def chirp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("chirp") / "chirp.wav"
    time = np.arange(5 * RATE) / RATE
    wave = (0.5 * np.sin(2 * np.pi * (100 * time + 200 * time**2))).astype(np.float32)
    write_wav(path, wave)
    return path, wave


@settings(max_examples=20, deadline=None)
@given(start=st.floats(0, 6), seconds=st.floats(0, 3))
def test_a_window_is_a_part_of_the_whole(
    chirp: tuple[Path, np.ndarray], start: float, seconds: float
) -> None:
    path, wave = chirp
    part = read_audio(path, start, seconds)
    assert len(part) == round(seconds * RATE)
    first = round(start * RATE)
    wanted = np.zeros(len(part), np.float32)
    have = wave[first : first + len(part)]
    wanted[: len(have)] = have
    edge = min(len(have) + 1, len(part))  # rounding may shift by one sample
    shifts = [
        np.abs(np.roll(part, k)[2 : edge - 2] - wanted[2 : edge - 2]).max(initial=0) for k in (-1, 0, 1)
    ]
    assert min(shifts) < 1e-3
    assert not part[len(have) + 1 :].any()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.mpg", "a.ts"])
def test_seeking_in_compressed_sound_stays_in_time(tmp_path: Path, name: str) -> None:
    codec = {".webm": "libvpx", ".mpg": "mpeg2video"}.get(Path(name).suffix, "libx264")
    path = make(tmp_path / name, frames=100, fps=25, codec=codec, tone=(0.0, 4.0), values=[90] * 100)
    whole = read_audio(path)
    part = read_audio(path, 2.0, 0.5)
    there = whole[32_000:40_000]
    lags = range(-24, 25)
    score = [float(np.dot(part[100:-100], there[100 + k : len(there) - 100 + k])) for k in lags]
    assert abs(lags[int(np.argmax(score))]) <= 16  # a millisecond: webm keeps whole ones
    assert probe(path).has_audio


@pytest.mark.parametrize("tone", [(0.0, 0.7), (0.0, 3.5), (0.8, 1.5)])
def test_sound_shorter_longer_and_later_than_the_picture(tmp_path: Path, tone: tuple[float, float]) -> None:
    path = make(tmp_path / "a.mp4", tone=tone)
    assert probe(path).seconds == pytest.approx(2.0, abs=0.01)
    sound = read_audio(path, 0.0, 2.0)
    assert len(sound) == 2 * RATE
    loud = np.abs(sound[: 2 * RATE].reshape(-1, 800)).max(axis=1) > 0.2  # 50 ms steps
    middle = (np.arange(40) + 0.5) / 20
    clear = (np.abs(middle - tone[0]) > 0.06) & (np.abs(middle - tone[1]) > 0.06)
    np.testing.assert_array_equal(loud[clear], ((middle > tone[0]) & (middle < tone[1]))[clear])
    assert len(read_audio(path)) / RATE == pytest.approx(tone[1], abs=0.06)


def test_a_pause_in_the_packets_is_silence_and_a_new_rate_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for at in [*range(0, 8000, 800), *range(16_000, 24_000, 800)]:
            frame = av.AudioFrame.from_ndarray(np.full((1, 800), 8000, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, at, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    sound = read_audio(path)
    assert len(sound) == pytest.approx(24_000, abs=20)
    assert not sound[8100:15_900].any()
    assert sound[4000] > 0.2 and sound[20_000] > 0.2
    joined = tmp_path / "joined.mp3"
    parts = []
    for rate, layout in ((44_100, "stereo"), (48_000, "mono")):
        one = tmp_path / f"{rate}.mp3"
        with av.open(str(one), "w", options={"write_xing": "0", "id3v2_version": "0"}) as file:
            stream = file.add_stream("libmp3lame", rate=rate, layout=layout)
            wave = 0.4 * np.sin(2 * np.pi * 500 * np.arange(rate) / rate).astype(np.float32)
            channels = np.tile(wave, (2 if layout == "stereo" else 1, 1))
            frame = av.AudioFrame.from_ndarray(channels, "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            file.mux([*stream.encode(frame), *stream.encode()])
        parts.append(one.read_bytes())
    joined.write_bytes(b"".join(parts))
    assert len(read_audio(joined)) / RATE == pytest.approx(2.0, abs=0.2)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as file:
        sound = file.add_stream("libmp3lame", rate=44_100, layout="mono")
        cover = file.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        still = av.VideoFrame.from_ndarray(picture(9, 32, 32), "rgb24").reformat(format="yuvj420p")
        file.mux([*cover.encode(still), *cover.encode()])
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        file.mux([*sound.encode(frame), *sound.encode()])
    with av.open(str(path)) as file:
        assert file.streams.video  # the cover is there
    info = probe(path)
    assert info.kind == "audio" and info.seconds == pytest.approx(1.0, abs=0.1)
    with pytest.raises(MediaError, match=r"song\.mp3.*no video stream"):
        next(read_frames(path, 1))


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", frames=3)
    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w") as file:
        file.metadata["title"] = "xxxxTITLExxxx"
        stream = file.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    assert b"xxxxTITLExxxx" in data
    (tmp_path / "b.mp4").write_bytes(data.replace(b"xxxxTITLExxxx", b"\xff\xfe\xe9\x80TITLExxxx"))
    assert probe(tmp_path / "b.mp4").kind == "video"
    assert len(list(read_frames(tmp_path / "b.mp4", 10))) == 3


# ---- images


def test_images(tmp_path: Path) -> None:
    image = Image.fromarray(picture(100, 60, 40))
    for name in ("a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"):
        image.save(tmp_path / name)
        info = probe(tmp_path / name)
        assert (info.kind, info.seconds, info.width, info.height) == ("image", 0.0, 60, 40)
        frames = list(read_frames(tmp_path / name, 5, seconds=1))
        assert len(frames) == 5 and frames[0].shape == (40, 60, 3) and abs(grey(frames[0]) - 100) < 3
        assert next(read_frames(tmp_path / name, 1, size=20)).shape == (20, 30, 3)


def test_image_modes(tmp_path: Path) -> None:
    def value(image: Image.Image, name: str = "m.png", **options: object) -> list[int]:
        image.save(tmp_path / name, **options)
        return next(read_frames(tmp_path / name, 1))[0, 0].tolist()

    assert value(Image.new("L", (8, 8), 70)) == [70] * 3
    assert value(Image.fromarray(np.full((8, 8), 51 * 257, np.uint16))) == [51] * 3
    assert value(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == [255] * 3
    assert value(Image.new("RGBA", (8, 8), (255, 0, 0, 128)))[1] == pytest.approx(127, abs=1)
    assert value(Image.new("LA", (8, 8), (10, 0))) == [255] * 3
    assert value(Image.new("RGB", (8, 8), (1, 2, 3)).convert("P")) is not None
    assert max(value(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "m.jpg")) < 5


def test_image_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright
    Image.fromarray(picture(50, 64, 32)).save(tmp_path / "e.jpg", exif=exif, quality=95)
    frame = next(read_frames(tmp_path / "e.jpg", 1))
    assert frame.shape == (64, 32, 3)
    assert frame[3, -4, 0] > 200 and frame[3, -4, 1] < 60


def test_moving_gif_is_a_video(tmp_path: Path) -> None:
    images = [Image.new("L", (20, 20), 40 * i) for i in range(5)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=200, loop=0)
    info = probe(tmp_path / "a.gif")
    assert info.kind == "video" and info.seconds == pytest.approx(1.0)
    assert near(shown(tmp_path / "a.gif", 5), [0, 40, 80, 120, 160])


@given(seed=st.integers(0, 1000), width=st.integers(1, 90), height=st.integers(1, 90))
@settings(max_examples=20, deadline=None)
def test_moving_crop(seed: int, width: int, height: int) -> None:
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    video = moving_crop(image, 4, seed, size=32)
    assert video.shape == (4, 32, 32, 3) and video.dtype == np.uint8
    np.testing.assert_array_equal(video, moving_crop(image, 4, seed, size=32))


def test_moving_crop_moves() -> None:
    image = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (100, 1, 3))
    videos = [moving_crop(image, 5, seed, size=32) for seed in range(20)]
    assert sum(np.abs(v[0].astype(int) - v[-1]).mean() > 1 for v in videos) > 15
    slopes = [int(v[0, 0, -1, 0]) - int(v[0, 0, 0, 0]) for v in videos]
    assert min(slopes) < 0 < max(slopes)  # some are mirrored


# ---- bad input


def test_bad_files_say_their_name_and_reason(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no film\n" * 200)
    (tmp_path / "text.txt").write_text("nor is this\n" * 200)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    good = make(tmp_path / "good.mp4", frames=30)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:300])
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 20)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{good}'\n")
    names = "text.mp4 text.txt empty.mp4 folder.mp4 noise.mp4 cut.mp4 cut.png list.mp4 none.mp4"
    for name in names.split():
        for use in (probe, read_audio, lambda p: next(read_frames(p, 1))):
            with pytest.raises(MediaError) as error:
                use(tmp_path / name)
            message = str(error.value)
            assert name in message and "\n" not in message and len(message) > len(str(tmp_path / name)) + 8
    with pytest.raises(MediaError, match="no audio stream"):
        read_audio(good)


def test_a_name_is_a_name(tmp_path: Path) -> None:
    """Nothing in a file's name is a protocol or a pattern."""
    for name in ("http:x.mp4", "%03d é.mp4", "concat:a.mp4"):
        path = make(tmp_path / "a.mp4", frames=2).rename(tmp_path / name)
        assert probe(path).seconds == pytest.approx(0.2, abs=0.01)


def test_a_file_that_breaks_off_gives_what_it_has(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", frames=40, fps=10, tone=(0, 4), width=160, height=120)
    data = path.read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: len(data) // 2])
    info = probe(tmp_path / "cut.ts")
    assert 0.2 < info.seconds < 4
    assert len(list(read_frames(tmp_path / "cut.ts", 10))) == video_frames(info.seconds, 10)
    broken = bytearray(data)
    broken[len(data) // 2 : len(data) // 2 + 600] = np.random.default_rng(1).bytes(600)
    (tmp_path / "broken.ts").write_bytes(broken)
    assert len(list(read_frames(tmp_path / "broken.ts", 10, seconds=4))) == 40


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [0.0, np.inf], []])
def test_waveforms_that_cannot_be_written(tmp_path: Path, bad: list[float]) -> None:
    video = make(tmp_path / "v.mp4", frames=2)
    with pytest.raises(MediaError, match=r"x\.wav"):
        write_wav(tmp_path / "x.wav", np.array(bad, np.float32))
    with pytest.raises(MediaError, match=r"x\.mp4"):
        mux(video, np.array(bad, np.float32), RATE, tmp_path / "x.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_atomic(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.wav"
    with pytest.raises(RuntimeError), atomic(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with atomic(target) as temporary:
        assert temporary.suffix == ".wav" and temporary.parent == target.parent
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and len(list(target.parent.iterdir())) == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=50))
def test_wav_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("wav") / "a.wav"
    write_wav(path, np.array(values, np.float32))
    np.testing.assert_allclose(read_audio(path), np.clip(values, -1, 1), atol=1e-4)


# ---- mux


def payloads(path: Path) -> list[str]:
    with av.open(str(path)) as file:
        found = [p for p in file.demux(file.streams.video[0]) if p.size]
        return [hashlib.sha256(bytes(p)).hexdigest() for p in found]


def stamps(path: Path) -> list[Fraction]:
    with av.open(str(path)) as file:
        return [
            p.pts * p.time_base for p in file.demux(file.streams.video[0]) if p.size and p.pts is not None
        ]


def all_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as file:
        return [frame.to_ndarray() for frame in file.decode(file.streams.video[0])]


@pytest.mark.parametrize(
    ("name", "codec", "exact"),
    [
        ("a.mp4", "libx264", True),
        ("vfr.mp4", "libx264", True),
        ("late.mkv", "libx264", True),
        ("a.ts", "libx264", False),  # the same data in the other framing: start codes become lengths
        ("a.avi", "libx264", False),
        ("a.h264", "libx264", False),
        ("a.mp4", "libx265", True),
        ("a.webm", "libvpx-vp9", True),
        ("a.mp4", "libsvtav1", True),
        ("a.mp4", "mpeg4", True),
        ("a.avi", "mpeg4", True),
    ],
)
def test_mux_copies_the_picture(tmp_path: Path, name: str, codec: str, exact: bool) -> None:
    times = VARIABLE if name == "vfr.mp4" else [7 + i / 25 for i in range(20)] if name == "late.mkv" else None
    source, out = make(tmp_path / name, times, fps=25, codec=codec), tmp_path / "out.mp4"
    wave = 0.3 * np.sin(np.arange(5000) / 5).astype(np.float32)
    mux(source, wave, RATE, out)
    if exact:
        assert payloads(out) == payloads(source)
    found, wanted = all_frames(out), all_frames(source)
    assert len(found) == len(wanted)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
    before, after = probe(source), probe(out)
    assert after.seconds == pytest.approx(before.seconds, abs=0.001)
    assert (after.width, after.height, after.has_audio) == (before.width, before.height, True)
    assert min(stamps(out)) == 0
    if source.suffix in (".mp4", ".mkv", ".ts"):
        first = min(stamps(source))
        assert stamps(out) == [time - first for time in stamps(source)]
    assert shown(out, 25) == shown(source, 25)
    with av.open(str(out)) as file:
        sound = file.streams.audio[0]
        assert sound.codec_context.name == "aac"
        assert float(sound.duration * sound.time_base) == pytest.approx(before.seconds, abs=0.001)
    heard = read_audio(out)
    assert abs(len(heard) - before.seconds * RATE) <= 1024
    assert np.corrcoef(heard[1000:4000], wave[1000:4000])[0, 1] > 0.99  # in time, to the sample
    assert np.abs(heard[6500:]).max() < 0.01
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({name, "out.mp4"})


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_mux_keeps_rotation(tmp_path: Path, rotation: int) -> None:
    source = make(tmp_path / "r.mp4", frames=3, rotation=rotation, mirror=True)
    mux(source, np.zeros(9), RATE, tmp_path / "out.mp4")
    a, b = next(read_frames(source, 1)), next(read_frames(tmp_path / "out.mp4", 1))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("frames", "fps"), [(1, 25), (2, 10), (24, 120), (20, 10)])
def test_mux_length_to_the_sample(tmp_path: Path, frames: int, fps: int) -> None:
    """The sound track lasts as long as the picture, whether the waveform is longer or shorter."""
    source = make(tmp_path / "a.mp4", frames=frames, fps=fps)
    for samples in (1, 100_000):
        mux(source, np.full(samples, 0.1), RATE, tmp_path / "out.mp4")
        with av.open(str(tmp_path / "out.mp4")) as file:
            sound = file.streams.audio[0]
            assert abs(float(sound.duration * sound.time_base) - frames / fps) <= 0.001
        assert probe(tmp_path / "out.mp4").seconds == pytest.approx(frames / fps, abs=0.001)


def test_mux_wants_a_picture(tmp_path: Path) -> None:
    tone_wav(tmp_path / "a.wav", 0.5)
    with pytest.raises(MediaError, match=r"a\.wav.*no video stream"):
        mux(tmp_path / "a.wav", np.zeros(100), RATE, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


# ---- real clips and long files


@pytest.mark.skipif(not (DATA / "clips").is_dir(), reason=f"no real clips at {DATA / 'clips'}")
def test_real_clips() -> None:
    clips = sorted((DATA / "clips").iterdir())
    assert clips
    for clip in clips:
        info = probe(clip)
        assert info.kind == "video" and info.has_audio and 1 < info.seconds < 60, clip
        sound = read_audio(clip, 0.0, 1.0)
        assert sound.shape == (RATE,) and np.isfinite(sound).all(), clip
        frames = list(read_frames(clip, 2, seconds=1, size=64))
        assert len(frames) == 2 and min(frames[0].shape[:2]) == 64, clip


_MEMORY = """
import resource, sys
from vab.media.file import MediaFile
from vab.media.reader import probe, read_frames
path, what = sys.argv[1:]
probe(path)
next(MediaFile(path).audio_blocks()); next(read_frames(path, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if what == "audio":
    n = sum(len(block) for block in MediaFile(path).audio_blocks())
else:
    n = sum(1 for _ in read_frames(path, 2.0))
print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_follow_the_length(tmp_path: Path) -> None:
    """20 minutes: 77 MB of samples, 22 MB of pixels; neither may be held."""
    path = make(
        tmp_path / "long.mov",
        fps=2,
        frames=2400,
        values=[i % 250 for i in range(2400)],
        tone=(0, 1200),
        tone_rate=RATE,
    )
    for what, count, most in (("audio", 1200 * RATE, 12), ("frames", 2400, 12)):
        run = [sys.executable, "-c", _MEMORY, str(path), what]
        found = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
        assert int(found[0]) == pytest.approx(count, rel=0.001)
        assert float(found[1]) < most, f"{what} grew by {found[1]} MB"


def test_mono_is_the_mean_of_the_channels_at_any_rate(tmp_path: Path) -> None:
    # FFmpeg's own mixing makes equal channels 3 dB louder, which clips what was loud
    time = np.arange(44_100) / 44_100
    left = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    for name, right, peak in (("equal", left, 0.5), ("one", 0 * left, 0.25), ("opposite", -left, 0.0)):
        path = tmp_path / f"{name}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(2)
            file.setsampwidth(2)
            file.setframerate(44_100)
            file.writeframes((np.stack([left, right], 1) * 32767).astype("<i2").tobytes())
        for rate in (16_000, 32_000):
            sound = read_audio(path, rate=rate)
            assert abs(len(sound) - rate) <= 2
            assert np.abs(sound[200:-200]).max() == pytest.approx(peak, abs=2e-3)
