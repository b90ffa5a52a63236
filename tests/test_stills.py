"""Stills as stills: which images are read, which are refused, and what large or broken ones cost."""

from __future__ import annotations

import os
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vab.media import container
from vab.media import image as images
from vab.media.container import MediaError
from vab.media.copies import copies
from vab.media.file import MediaFile
from vab.media.reader import probe, read_audio

USUAL, APPLES = (0x10000, 0x63F, 0), (0x800008, 0, 0)  # layouts of eight channels in a MOV
COLOURS = np.array([[(220, 30, 30), (30, 220, 30)], [(30, 30, 220), (235, 235, 235)]], np.uint8)


def quarters() -> Image.Image:
    """A picture of four quarters: red, green, blue, white."""
    return Image.fromarray(COLOURS.repeat(60, 0).repeat(80, 1))


def assert_quarters(path: Path) -> None:
    """``path`` is a still image, and shows the four quarters upright."""
    with MediaFile(path) as file:
        assert file.info.kind == "image" and (file.info.width, file.info.height) == (160, 120)
        pixels = next(file.frames(1.0))
    seen = pixels[[30, 30, 90, 90], [40, 120, 40, 120]].astype(int)
    assert np.abs(seen - COLOURS.reshape(4, 3)).max() <= 25


def png(path: Path, width: int, height: int, *chunks: tuple[bytes, bytes]) -> Path:
    """A black grey-scale PNG; ``chunks`` come before its pixels."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), *chunks, (b"IDAT", rows), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ending", ["heic", "jp2", "tga", "pcx", "avif", "mpo", "gif", "tif", "webp", "bmp"])
def test_a_still_is_read_whole_whatever_its_format(tmp_path: Path, ending: str) -> None:
    quarters().save(tmp_path / f"a.{ending}")
    assert_quarters(tmp_path / f"a.{ending}")


@pytest.mark.parametrize(
    ("ending", "data"),
    [
        ("pix", struct.pack(">5H", 8, 4, 0, 0, 24) + bytes([8, 1, 2, 3]) * 4),
        ("frm", b"FRM\1" + struct.pack("<HH", 16, 2) + bytes(200)),
    ],
)
def test_an_image_that_only_ffmpeg_knows_is_no_film_of_one_frame(
    tmp_path: Path, ending: str, data: bytes
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(data)
    with pytest.raises(MediaError, match="images of this format"):
        probe(path)


@pytest.mark.parametrize("ending", ["heic", "jpg", "png", "tif", "webp"])
def test_a_photo_stands_upright_by_its_exif_data(tmp_path: Path, ending: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    quarters().rotate(90, expand=True).save(tmp_path / f"a.{ending}", exif=exif.tobytes())
    assert_quarters(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("chunk", [(b"zTXt", b"prompt\0\0"), (b"iCCP", b"profile\0\0")])
def test_a_png_may_carry_megabytes_of_text_but_no_bomb(tmp_path: Path, chunk: tuple[bytes, bytes]) -> None:
    kind, head = chunk
    workflow = head + zlib.compress(bytes(range(256)) * 8192)  # 2 MB
    assert probe(png(tmp_path / "long.png", 16, 12, (kind, workflow))).kind == "image"
    bomb = head + zlib.compress(bytes(80 << 20))
    with pytest.raises(MediaError, match=r"bomb\.png: the PNG image .*too large"):
        probe(png(tmp_path / "bomb.png", 16, 12, (kind, bomb)))


@pytest.mark.parametrize(
    ("begin", "words"),
    [(b"\xff\x0a", "JPEG XL"), (b"v/1\x01", "OpenEXR"), (b"<svg", "SVG"), (b"qoif", "QOI")],
)
def test_a_format_that_is_not_read_is_named(tmp_path: Path, begin: bytes, words: str) -> None:
    (tmp_path / "a.mp4").write_bytes(begin + bytes(100))
    with pytest.raises(MediaError, match=words):
        probe(tmp_path / "a.mp4")


@pytest.mark.parametrize("ending", ["heic", "png", "jpg", "webp", "gif", "avif", "tif", "bmp", "jp2"])
@pytest.mark.parametrize("share", [0.04, 0.5])
def test_a_broken_image_is_never_a_film(tmp_path: Path, ending: str, share: float) -> None:
    path = tmp_path / f"a.{ending}"
    quarters().save(path)
    path.write_bytes(path.read_bytes()[: max(16, int(path.stat().st_size * share))])
    with pytest.raises(MediaError, match=rf"a\.{ending}: "), MediaFile(path) as file:
        next(file.frames(1.0))


def test_too_many_pixels_are_refused_by_the_header_and_the_limit_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="66000000x1 are more than 65 million pixels"):
        probe(png(tmp_path / "a.png", 66_000_000, 1))
    # Each row takes memory of its own.
    with pytest.raises(MediaError, match="1x1000001 are longer than 1,000,000 pixels"):
        probe(png(tmp_path / "a.png", 1, 1_000_001))


def test_a_large_image_is_scaled_down_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_READ_PIXELS", 5000)
    monkeypatch.setattr(images, "_BAND_PIXELS", 1000)
    for ending in ("png", "jpg", "jp2"):
        quarters().save(tmp_path / f"a.{ending}")
        with MediaFile(tmp_path / f"a.{ending}") as file:
            pixels = next(file.frames(1.0))
        height, width = pixels.shape[:2]
        assert height * width <= 5000 and abs(width / height - 4 / 3) < 0.05
        seen = pixels[[height // 4, height // 4, -height // 4, -height // 4]][:, [width // 4, -width // 4]]
        assert np.abs(seen[[0, 2]].astype(int) - COLOURS).max() <= 25


def test_pipes_devices_and_playlists_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/fifo.mp4\n"
    )
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/fifo.mp4\n")
    for path, words in ((tmp_path / "fifo.mp4", "pipe"), (Path("/dev/zero"), "pipe or a device")):
        with pytest.raises(MediaError, match=words):
            probe(path)
    for name in ("list.m3u8", "list.mp4"):  # to follow them would be to wait for ever
        with pytest.raises(MediaError, match="playlists"):
            probe(tmp_path / name)
    os.mkfifo(tmp_path / "other.mp4")
    assert copies([tmp_path / "fifo.mp4", tmp_path / "other.mp4"]) == {}


def film(path: Path, size: tuple[int, int], sound: bool) -> Path:
    """Five frames; a sound track without a packet if ``sound``."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuvj420p"
        if sound:
            target.add_stream("aac", rate=48000, layout="mono").codec_context.open()
        for n in range(5):
            frame = av.VideoFrame(*size, "yuvj420p")
            frame.pts, frame.time_base = n, Fraction(1, 5)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def test_a_film_with_an_empty_sound_track_is_silent(tmp_path: Path) -> None:
    info = probe(film(tmp_path / "a.mkv", (64, 48), sound=True))
    assert info.kind == "video" and not info.has_audio
    with pytest.raises(MediaError, match="has no audio stream"):
        read_audio(tmp_path / "a.mkv")


def test_frames_that_are_too_large_are_refused_by_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = film(tmp_path / "a.mkv", (64, 48), sound=False)
    monkeypatch.setattr(container, "MAX_FRAME_PIXELS", 64 * 47)
    with pytest.raises(MediaError, match="64x48 are more than 3,008 pixels"):
        probe(path)


def test_channels_in_an_order_of_their_own_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("pcm_s16le", rate=16_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.full((1, 16_000 * 8), 8192, np.int16), "s16", "7.1")
        frame.sample_rate = 16_000
        target.mux(stream.encode(frame))
    # In place of the set of channels, Apple's tag for these eight with the side before the back.
    usual, apples = (b"chan" + struct.pack(">4I", 0, *numbers) for numbers in (USUAL, APPLES))
    assert usual in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(usual, apples))
    assert np.abs(read_audio(path) - 0.25).max() < 0.01


def test_deep_frames_are_refused_by_the_memory_that_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep.mkv"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("ffv1", rate=5, width=64, height=64, pix_fmt="yuv444p10le")
        target.mux(stream.encode(av.VideoFrame(64, 64, "yuv444p10le")))
        target.mux(stream.encode(None))
    assert probe(path).width == 64
    monkeypatch.setattr(container, "_MAX_FRAME_BYTES", 64 * 64 * 6 - 1)
    with pytest.raises(MediaError, match="frames of 64x64 in yuv444p10le are more than"):
        probe(path)


@pytest.mark.parametrize(("channels", "rate", "words"), [(65, 48000, "65 channels"), (1, 1, "has 1 Hz")])
def test_absurd_sound_is_refused(tmp_path: Path, channels: int, rate: int, words: str) -> None:
    head = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * 2, channels * 2, 16)
    data = bytes(channels * 2 * 5000)
    body = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(MediaError, match=words):
        probe(tmp_path / "a.wav")
