"""One open file: how often it is read, what it remembers, and that passes do not disturb each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageFile

from helpers.tiny import write_video
from vab.cli import main
from vab.config import video_frames
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.reader import mux, probe, read_audio, read_frames
from vab.studio.uploads import make_clip


class Reads:
    """Counts what is read of files, around the real ``av.open``, ``Path.open``, Pillow and ``demux``."""

    def __init__(self) -> None:
        self.opened: Counter[Path] = Counter()  # for reading, by either library or for the first bytes
        self.video_packets: Counter[Path] = Counter()
        self.still_open = 0  # containers

    def media(self, file: Any, mode: str | None = None, *rest: Any, **options: Any) -> Any:
        container = _open_media(file, mode, *rest, **options)
        if mode == "w":
            return container
        path = Path(str(file).removeprefix("file:"))
        self.opened[path] += 1
        self.still_open += 1
        return Watched(container, path, self)

    def first_bytes(self, path: Path, *rest: Any, **options: Any) -> Any:
        self.opened[path] += 1
        return _open_path(path, *rest, **options)

    def image(self, image: ImageFile.ImageFile, file: Any = None, *rest: Any) -> None:
        self.opened[Path(str(file))] += 1
        _open_image(image, file, *rest)


class Watched:
    """A container whose video packets are counted as they are demuxed."""

    def __init__(self, container: Any, path: Path, reads: Reads) -> None:
        self._container, self._path, self._reads = container, path, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, *streams: Any) -> Iterator[Any]:
        for packet in self._container.demux(*streams):
            if packet.size and packet.stream.type == "video":
                self._reads.video_packets[self._path] += 1
            yield packet

    def close(self) -> None:
        self._reads.still_open -= 1
        self._container.close()


_open_media, _open_path, _open_image = av.open, Path.open, ImageFile.ImageFile.__init__


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    counted = Reads()
    monkeypatch.setattr(av, "open", counted.media)
    monkeypatch.setattr(Path, "open", lambda *args, **options: counted.first_bytes(*args, **options))
    monkeypatch.setattr(ImageFile.ImageFile, "__init__", lambda *args: counted.image(*args))
    return counted


def film(path: Path, frames: int = 60, fps: int = 25) -> Path:
    """H.264 with B-frames, each frame brighter than the last, and a tone where the container takes one."""
    with _open_media(str(path), "w") as file:
        video = file.add_stream("libx264", rate=fps, options={"g": "12", "bf": "2", "x264-params": "log=-1"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = None
        if path.suffix not in (".h264", ".avi"):
            audio = file.add_stream("aac", rate=44_100, layout="mono")
        for n in range(frames):
            picture = np.full((48, 64, 3), 4 * n, np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(video.encode(None))
        if audio is not None:
            wave = 0.3 * np.sin(np.arange(round(frames / fps * 44_100)) / 20).astype(np.float32)
            block = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            block.sample_rate = 44_100
            file.mux(audio.encode(block))
            file.mux(audio.encode(None))
    return path


def packets_in(path: Path) -> int:
    with _open_media(str(path)) as file:
        return sum(packet.size > 0 for packet in file.demux(file.streams.video[0]))


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


# ---- how often


@pytest.mark.parametrize(
    ("name", "options", "opens"),
    [
        ("a.mp4", (), 2),  # the first bytes, whether it is an image; then one container for both passes
        # And one for each look at its sound: for the model, for what is measured, and as it is for the film.
        ("a.mp4", ("--samples", "1", "--keep", "0.5:1.5"), 5),
        ("a.mkv", (), 3),  # what its demuxer gives after a seek is not always the same
        ("a.ts", (), 3),
        ("a.avi", (), 3),  # reordered frames without times
        ("a.h264", (), 3),
    ],
)
def test_generating_demuxes_the_video_twice_at_most(
    model: Path, tmp_path: Path, reads: Reads, name: str, options: tuple[str, ...], opens: int
) -> None:
    source = film(tmp_path / name)
    assert not run("generate", source, "-o", tmp_path / "out", "--model", model, "--steps", "1", *options)
    assert (tmp_path / "out" / "a.mp4").is_file()
    assert reads.video_packets[source] <= 2 * packets_in(source)
    assert reads.opened[source] == opens
    assert reads.still_open == 0


def test_generating_for_an_image_opens_it_twice(model: Path, tmp_path: Path, reads: Reads) -> None:
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "a.png")
    assert not run("generate", tmp_path / "a.png", "-o", tmp_path / "out", "--model", model, "--steps", "1")
    assert reads.opened[tmp_path / "a.png"] == 2  # the first bytes, then Pillow


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_studio_reads_an_upload_twice_at_most(tmp_path: Path, reads: Reads, name: str) -> None:
    """Once for its packets, once for its frames; and the beginning of its sound."""
    upload = film(tmp_path / name)
    clip = make_clip(upload, tmp_path)
    assert clip.picture.is_file() and clip.has_sound
    assert reads.video_packets[upload] <= 2 * packets_in(upload)
    assert reads.opened[upload] <= 6 and reads.still_open == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.h264"])
def test_probing_reads_a_file_once(tmp_path: Path, reads: Reads, name: str) -> None:
    source = film(tmp_path / name)
    assert probe(source).seconds == pytest.approx(2.4, abs=0.002)
    assert reads.opened[source] == 2 and reads.video_packets[source] == packets_in(source)
    assert reads.still_open == 0


# ---- what it remembers


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.h264"])
def test_frames_leave_the_packet_times_behind(tmp_path: Path, name: str) -> None:
    source = film(tmp_path / name)
    with MediaFile(source) as first:
        frames = list(first.frames(7.0, size=24))
        assert first.seconds_read == first.times.seconds
    with MediaFile(source) as second:
        times = second.times  # by the packets alone
        again = list(second.frames(7.0, size=24))
    assert len(frames) == video_frames(times.seconds, 7.0)
    assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    for one, other in ((first.times.pts, times.pts), (first.times.dts, times.dts)):
        np.testing.assert_array_equal(one, other)
    assert (first.times.start, first.times.end, first.times.frames) == (times.start, times.end, times.frames)
    assert first.info == second.info == probe(source)


def test_what_is_known_outlives_the_open_file(tmp_path: Path, reads: Reads) -> None:
    source = film(tmp_path / "a.mp4")
    with MediaFile(source) as file:
        info = file.info
    assert reads.still_open == 0
    opened = reads.opened[source]
    assert file.info == info and file.nominal_size == (64, 48) and file.nominal_seconds == 2.4
    assert reads.opened[source] == opened
    assert len(file.audio(0.0, 1.0)) == 16_000 and reads.opened[source] == opened + 1
    file.close()
    assert reads.still_open == 0


# ---- passes do not disturb each other


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_one_file_gives_the_same_in_any_order(tmp_path: Path, name: str) -> None:
    source = film(tmp_path / name)
    wave = 0.2 * np.sin(np.arange(30_000) / 9).astype(np.float32)

    def copied(write: Callable[[Path], None]) -> bytes:
        write(tmp_path / "out.mp4")
        return (tmp_path / "out.mp4").read_bytes()

    frames, part = list(read_frames(source, 9.0)), list(read_frames(source, 9.0, 0.9, 0.7))
    audio, window = read_audio(source), read_audio(source, 0.7, 0.8)
    whole = copied(lambda out: mux(source, wave, 16_000, out))
    with MediaFile(source) as file:
        for _ in range(2):
            np.testing.assert_array_equal(list(file.frames(9.0, 0.9, 0.7)), part)
            np.testing.assert_array_equal(file.audio(0.7, 0.8), window)
            assert copied(lambda out: file.mux(wave, 16_000, out)) == whole
            np.testing.assert_array_equal(list(file.frames(9.0)), frames)
            np.testing.assert_array_equal(file.audio(), audio)


def test_passes_may_overlap(tmp_path: Path, reads: Reads) -> None:
    source = film(tmp_path / "a.mp4")
    alone = list(read_frames(source, 25.0))
    with MediaFile(source) as file:
        first, second = file.frames(25.0), file.frames(25.0)
        begun = [next(first) for _ in range(10)]
        together = []
        for frame in second:
            together.append(frame)
            assert len(file.audio(0.0, 0.1)) == 1600
        np.testing.assert_array_equal(together, alone)
        np.testing.assert_array_equal([*begun, *first], alone)
    assert reads.still_open == 0


def test_a_pass_that_is_given_up_leaves_nothing_half_known(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mkv")
    with MediaFile(source) as file:
        next(file.frames(25.0))
        assert file.seconds_read < 1
        assert file.seconds == pytest.approx(2.4, abs=0.002)


def test_a_video_without_times_is_put_in_order(tmp_path: Path) -> None:
    """Reordered H.264 without one time stamp: the decoder tells which packet is shown when."""
    source, out = film(tmp_path / "a.h264"), tmp_path / "out.mp4"
    mux(source, np.zeros(100, np.float32), 16_000, out)
    shades = [frame.mean() for frame in read_frames(out, 25.0)]
    assert len(shades) == 60 and np.all(np.diff(shades) > 0)


def test_what_a_file_lacks_is_said(tmp_path: Path) -> None:
    silent = write_video(tmp_path / "a.mp4", 5, Fraction(10), sound=False)
    with MediaFile(silent) as file:
        assert (file.kind, file.has_audio) == ("video", False)
        with pytest.raises(MediaError, match=r"a\.mp4: has no audio stream"):
            file.audio()
    with MediaFile(tmp_path / "none.mp4") as file, pytest.raises(MediaError, match="no such file"):
        _ = file.kind
