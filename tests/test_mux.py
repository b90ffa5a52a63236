"""Films with new sound: which container, copied or encoded, what stays of the source, how long they are."""

from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from helpers.films import bars, edit_list, number, shown, write_film
from helpers.tiny import write_model
from vab.errors import SettingError
from vab.inference.batch import BatchSettings, generate_files
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.muxing import tracks

RATE = 16_000
EVEN = [n / 25 for n in range(10)]
VARIABLE = [0, 0.04, 0.4, 0.44, 1.2]


def muxed(source: Path, out: Path, **options: Any) -> list[str]:
    with MediaFile(source) as file:
        wave = 0.3 * np.sin(np.arange(round(file.seconds * RATE)) / 5)
        return file.mux(wave, RATE, out, **options)


def codecs(path: Path) -> list[str]:
    with av.open(str(path)) as film:
        return [stream.codec_context.codec.canonical_name for stream in film.streams if stream.codec_context]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "suffix", "found"),
    [
        ("a.mkv", "libx264", "yuv420p", ".mp4", "h264 aac"),
        ("a.ts", "libx265", "yuv420p", ".mp4", "hevc aac"),
        ("a.avi", "mpeg4", "yuv420p", ".mp4", "mpeg4 aac"),
        ("a.mov", "prores_ks", "yuv422p10le", ".mov", "prores pcm_s24le"),
        ("a.webm", "libvpx", "yuv420p", ".webm", "vp8 opus"),
        ("a.mp4", "libvpx-vp9", "yuv420p", ".webm", "vp9 opus"),
        ("a.gif", "gif", "rgb8", ".mp4", "h264 aac"),
        ("a.apng", "apng", "rgb24", ".mp4", "h264 aac"),
        ("a.mkv", "ffv1", "yuv420p", ".mp4", "h264 aac"),
        ("a.avi", "huffyuv", "yuv422p", ".mp4", "h264 aac"),
        ("a.avi", "mjpeg", "yuvj420p", ".mp4", "h264 aac"),
        ("a.mpg", "mpeg2video", "yuv420p", ".mp4", "h264 aac"),
        ("a.wmv", "wmv2", "yuv420p", ".mp4", "h264 aac"),
        ("a.flv", "flv", "yuv420p", ".mp4", "h264 aac"),
        ("a.mov", "png", "rgb24", ".mp4", "h264 aac"),
    ],
)
def test_every_picture_finds_a_container_that_players_open(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, suffix: str, found: str
) -> None:
    source = write_film(tmp_path / name, EVEN, codec=codec, pix_fmt=pix_fmt)
    with MediaFile(source) as file:
        assert file.film_suffix() == suffix
        was, seconds = file.codec, file.seconds
    notes = muxed(source, tmp_path / f"out{suffix}")
    assert " ".join(codecs(tmp_path / f"out{suffix}")) == found
    assert [n for _, n in shown(tmp_path / f"out{suffix}")] == list(range(10))
    encoded = found.split()[0] != was
    assert notes == (
        [f"its {was} picture was encoded as H.264: players do not open it in mp4"] if encoded else []
    )
    with MediaFile(tmp_path / f"out{suffix}") as film:
        assert film.seconds == pytest.approx(seconds, abs=0.002)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_a_container_can_be_chosen(tmp_path: Path, container: str, codec: str) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    source = write_film(tmp_path / "a.mkv", EVEN, codec=codec, pix_fmt=pix_fmt)
    with MediaFile(source) as file:
        out = tmp_path / f"out{file.film_suffix(container)}"
        was = file.codec
    notes = muxed(source, out)
    assert out.suffix == f".{container}" and [n for _, n in shown(out)] == list(range(10))
    assert (codecs(out)[0] == was) is not bool(notes)


def test_an_unknown_container_is_refused(tmp_path: Path) -> None:
    source = write_film(tmp_path / "a.mp4", EVEN)
    with MediaFile(source) as file:
        with pytest.raises(SettingError, match="auto, mp4, mov, mkv, webm, not ogg"):
            file.film_suffix("ogg")
        with pytest.raises(SettingError, match="a film ends in"):
            file.mux(np.zeros(9), RATE, tmp_path / "out.avi")


def test_a_film_does_not_take_its_own_place(tmp_path: Path) -> None:
    source = write_film(tmp_path / "a.mp4", EVEN)
    (tmp_path / "b.mp4").symlink_to(source)
    before = source.read_bytes()
    for out in ("a.mp4", "b.mp4"):
        with MediaFile(source) as file, pytest.raises(MediaError, match="is the film itself"):
            file.mux(np.zeros(9, np.float32), RATE, tmp_path / out)
    assert source.read_bytes() == before


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.mkv", "ffv1")])
def test_variable_frame_rates_stay(tmp_path: Path, name: str, codec: str) -> None:
    source = write_film(tmp_path / name, VARIABLE, codec=codec)
    muxed(source, tmp_path / "out.mp4")
    assert shown(tmp_path / "out.mp4") == list(zip(VARIABLE, range(5), strict=True))
    with MediaFile(source) as before, MediaFile(tmp_path / "out.mp4") as after:
        assert after.seconds == pytest.approx(before.seconds, abs=0.001)


def test_an_encoded_picture_is_upright_even_square_and_white_below(tmp_path: Path) -> None:
    """Odd sides, pixels twice as wide as high, a quarter turn; and a GIF of which half is transparent."""

    def turned(_: Any, stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        stream.set_display_rotation(90)

    source = write_film(
        tmp_path / "a.mov", EVEN, codec="mjpeg", pix_fmt="yuvj444p", size=(63, 47), prepare=turned
    )
    with MediaFile(source) as file:
        before = next(file.frames(25.0))
    muxed(source, tmp_path / "out.mp4")
    with MediaFile(tmp_path / "out.mp4") as film, av.open(str(tmp_path / "out.mp4")) as plain:
        after = next(film.frames(25.0))
        context = plain.streams.video[0].codec_context
        assert (context.width, context.height, context.pix_fmt) == (48, 126, "yuv420p")
        assert plain.streams.video[0].sample_aspect_ratio in (None, 0, 1)
    assert before.shape == (126, 47, 3)
    assert np.abs(after[:, :47].astype(int) - before).mean() < 6

    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    clear.paste((0, 0, 200, 255), (0, 0, 16, 32))
    clear.save(tmp_path / "b.gif", save_all=True, append_images=[clear.rotate(180)], duration=100, disposal=2)
    muxed(tmp_path / "b.gif", tmp_path / "b.mp4")
    with MediaFile(tmp_path / "b.mp4") as film:
        first, second = film.frames(10.0)
    for left, right in ((first[:, :12], first[:, 20:]), (second[:, 20:], second[:, :12])):
        assert np.abs(left.mean((0, 1)) - (0, 0, 200)).max() < 12 and right.mean() > 245


def test_an_interlaced_picture_that_is_encoded_is_whole(tmp_path: Path) -> None:
    """A bar moves between the two fields of each frame: every second line shows it elsewhere."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=128, height=96, format="yuv420p", time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    with av.open(str(tmp_path / "a.mpg"), "w") as target:
        stream: Any = target.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 96, "yuv420p", 4_000_000
        for n in range(12):
            picture = np.zeros((96, 128, 3), np.uint8)
            picture[::2, 6 * n : 6 * n + 32] = 255
            picture[1::2, 6 * n + 3 : 6 * n + 35] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, 25)
            source.push(frame)
            target.mux(stream.encode(graph.pull()))
        target.mux(stream.encode(None))
    muxed(tmp_path / "a.mpg", tmp_path / "a.mp4")

    # Lines beside each other differ by the comb before, and hardly after; no frame is lost, nor late.
    combs, times = [], []
    for name in ("a.mpg", "a.mp4"):
        with MediaFile(tmp_path / name) as file:
            pictures = [picture.astype(float) for picture in file.frames(25.0)]
            times.append((len(pictures), file.seconds))
        combs.append(np.mean([np.abs(np.diff(picture, axis=0)).mean() for picture in pictures]))
    assert combs[1] < 0.5 * combs[0]
    assert times[0] == pytest.approx(times[1], abs=0.001) and times[0][0] == 12


@pytest.mark.parametrize(
    ("edits", "numbers", "group"),
    [
        ([(0.4, 10 * 512), (0.4, 25 * 512)], [*range(10, 20), *range(25, 35)], "8"),
        ([(0.2, 5 * 512), (0.2, 20 * 512), (0.2, 0)], [*range(5, 10), *range(20, 25), *range(5)], "8"),
        ([(0.4, 30 * 512), (0.4, 25 * 512)], [*range(30, 40), *range(25, 35)], "40"),
    ],
    ids=["two", "three", "a second before they are shown"],
)
def test_what_several_edits_show_is_encoded(
    tmp_path: Path, edits: list[tuple[float, int]], numbers: list[int], group: str
) -> None:
    """The last one: frames are decoded from one key frame, long before those that are shown."""
    times = [n / 25 for n in range(40)]
    source = edit_list(write_film(tmp_path / "a.mp4", times, options={"bf": "0", "g": group}), edits)
    notes = muxed(source, tmp_path / "out.mp4")
    assert notes == ["its h264 picture was encoded as H.264: its cuts cannot be copied"]
    assert [n for _, n in shown(tmp_path / "out.mp4")] == numbers


@pytest.mark.parametrize("kind", ["mp4", "mov"])
def test_a_cut_among_reordered_frames_is_copied(tmp_path: Path, kind: str) -> None:
    """Some of these end on a frame that needs a later one, which is not shown."""
    times = [n / 25 for n in range(40)]
    options = {"bf": "2", "g": "20", "preset": "medium"}
    film = write_film(tmp_path / f"a.{kind}", times, options=options, sounds=[("aac", 2.0)])
    for last in range(20, 24):
        source = tmp_path / f"{last}.{kind}"
        source.write_bytes(film.read_bytes())
        edit_list(source, [((last - 9) / 25, 10 * 512 + 1024)])
        for length, seconds in (("video", (last - 9) / 25), ("container", 2.0)):
            out = tmp_path / f"out.{kind}"
            with MediaFile(source, length=length) as file:  # type: ignore[arg-type]
                notes = file.mux(np.zeros(9), RATE, out)
                assert file.seconds == pytest.approx(seconds, abs=0.05)
            assert not any("encoded" in note for note in notes)
            assert [n for _, n in shown(out)] == list(range(10, last + 1))
            with av.open(str(out)) as result:
                for stream in result.streams:
                    assert float(stream.duration * stream.time_base) == pytest.approx(seconds, abs=0.05)


def rich(path: Path, text: str = "mov_text", sound: str = "aac") -> Path:
    """A film with everything: tags, time code, chapters, a second language, subtitles."""

    def prepare(target: Any, stream: Any) -> None:
        target.metadata.update(title="Scene 12", comment="their own")
        stream.metadata["timecode"] = "01:00:00:00"
        target.set_chapters(
            [
                {"id": n, "start": 200 * n, "end": 200 * (n + 1), "time_base": Fraction(1, 1000),
                 "metadata": {"title": f"part {n}"}}
                for n in range(2)
            ]
        )  # fmt: skip
        second = target.streams.audio[1]
        second.metadata.update(language="fra", title="Commentary")

    return write_film(path, EVEN, sounds=[(sound, 0.4), (sound, 0.4)], prepare=prepare)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("keep", [False, True])
def test_all_else_stays(tmp_path: Path, suffix: str, keep: bool) -> None:
    source = rich(tmp_path / "a.mp4")
    out = tmp_path / f"out{suffix}"
    assert muxed(source, out, tags={"comment": "vab {}"}, keep_original=keep) == []
    with av.open(str(out)) as film:
        tags = {name.lower(): text for name, text in film.metadata.items()}
        assert (tags["title"], tags["comment"]) == ("Scene 12", "their own\nvab {}")
        assert [chapter["metadata"]["title"] for chapter in film.chapters()] == ["part 0", "part 1"]
        sounds = film.streams.audio
        assert [bool(sound.disposition & av.stream.Disposition.default) for sound in sounds] == [
            True,
            *[False] * (1 + keep),
        ]
        assert sounds[-1].language == "fra" and len(sounds) == 2 + keep
        codes = {t for s in film.streams for name, t in s.metadata.items() if name.lower() == "timecode"}
        assert codes == {"01:00:00:00"}


def test_the_second_sound_is_untouched_or_encoded(tmp_path: Path) -> None:
    source = rich(tmp_path / "a.mov", sound="pcm_s16le")
    muxed(source, tmp_path / "out.mov", keep_original=True)
    muxed(source, tmp_path / "out.webm", keep_original=True)
    assert codecs(tmp_path / "out.mov")[1:] == ["pcm_s24le", "pcm_s16le", "pcm_s16le"]
    assert codecs(tmp_path / "out.webm")[1:] == ["opus"] * 3
    for out in ("out.mov", "out.webm"):
        with av.open(str(source)) as before, av.open(str(tmp_path / out)) as after:
            waves = [
                np.concatenate(
                    [frame.to_ndarray().astype(float).reshape(-1) for frame in film.decode(audio=n)]
                )
                for film, n in ((before, 1), (after, 2))
            ]
            assert len(waves[1]) == pytest.approx(len(waves[0]), abs=4000)


def test_a_second_sound_that_is_encoded_is_whole(tmp_path: Path) -> None:
    """FFmpeg decodes FLAC in several threads, so the last blocks come only when the decoder is flushed."""
    source = write_film(tmp_path / "a.mkv", EVEN, sounds=[("flac", 0.4)])
    muxed(source, tmp_path / "out.mov", keep_original=True)
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mov")) as after:
        samples = [sum(f.samples for f in film.decode(audio=n)) for film, n in ((before, 0), (after, 1))]
    assert samples[1] == samples[0] > 0


@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
@pytest.mark.parametrize("profile", ["Proxy", "LT", "Standard", "HQ", "4444"])
def test_prores_stays_of_its_kind(tmp_path: Path, profile: str, suffix: str) -> None:
    pix_fmt = "yuva444p10le" if profile == "4444" else "yuv422p10le"
    options = {"profile": profile.lower()}
    source = write_film(tmp_path / "a.mov", EVEN, codec="prores_ks", pix_fmt=pix_fmt, options=options)
    assert muxed(source, tmp_path / f"out{suffix}") == []
    with av.open(str(source)) as before, av.open(str(tmp_path / f"out{suffix}")) as after:
        kinds = [film.streams.video[0].codec_context.codec_tag for film in (before, after)]
        pictures = [[bytes(f.planes[0]) for f in film.decode(video=0)] for film in (before, after)]
    assert kinds[0] == kinds[1] and kinds[0] == tracks._PRORES_TAGS[profile]
    assert pictures[0] == pictures[1]


def test_what_a_container_cannot_hold_is_told(tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    write_film(tmp_path / "plain.mkv", EVEN)
    with av.open(str(tmp_path / "plain.mkv")) as film, av.open(str(source), "w") as target:
        copy = target.add_stream_from_template(film.streams.video[0], opaque=True)
        target.add_attachment("font.ttf", "font/ttf", b"letters")
        for packet in film.demux(film.streams.video[0]):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    assert muxed(source, tmp_path / "out.mkv") == []
    with av.open(str(tmp_path / "out.mkv")) as film:
        assert film.streams[2].type == "attachment"
    notes = muxed(source, tmp_path / "out.mp4")
    assert notes == ["its attachment stream (font.ttf) was left out: mp4 cannot hold it"]


# ---- length


def test_a_song_with_a_cover_is_sound(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.m4a", "a.mp4"):
        song = write_film(tmp_path / name, [0], sounds=[("aac", 3.0)])
        with MediaFile(song) as file:
            assert file.kind == "audio" and file.seconds == pytest.approx(3.0, abs=0.05)
            assert len(file.audio()) == pytest.approx(3.0 * RATE, abs=800)
    short = write_film(tmp_path / "short.mkv", [0], sounds=[("aac", 0.2)])
    with MediaFile(short) as file:
        assert file.kind == "video"


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_the_length_is_that_of_the_picture_or_of_all(tmp_path: Path, codec: str) -> None:
    options = {"bf": "2", "preset": "medium"} if codec == "libx264" else {}
    talk = write_film(
        tmp_path / "talk.mkv", [0, 0.2, 0.4], codec=codec, options=options, sounds=[("aac", 3.0)]
    )
    with MediaFile(talk) as file:
        assert file.seconds == pytest.approx(0.44, abs=0.01)
        notes = file.mux(np.zeros(9), RATE, tmp_path / "out.mp4")
    assert "its own sound goes on for 2.6 s after the picture" in notes[-1]
    with MediaFile(talk, length="container") as file:
        assert file.seconds == pytest.approx(3.0, abs=0.05)
        assert [number(frame) for frame in file.frames(5.0, seconds=3.0)] == [0, 1, *[2] * 13]
        assert len(list(file.frames(5.0))) in (15, 16)
        notes = file.mux(np.zeros(round(3 * RATE)), RATE, tmp_path / "long.mp4")
        assert not any("its own sound" in note for note in notes)
        whole = file.seconds
    with av.open(str(tmp_path / "long.mp4")) as film:
        for stream in film.streams:
            assert float(stream.duration * stream.time_base) == pytest.approx(whole, abs=0.002)


# ---- faults


def test_nothing_is_left_of_a_film_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no fault of the picture, which is not encoded for that."""
    model = write_model(tmp_path / "model")
    source = write_film(tmp_path / "a.mp4", EVEN)
    real = tracks.NewSound.until

    def full(self: Any, seconds: float) -> None:
        real(self, seconds)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tracks.NewSound, "until", full)
        (result,) = generate_files(
            [source], tmp_path / "out", BatchSettings(str(model), steps=1, device="cpu")
        )
    assert result.status == "failed" and "No space left on device" in str(result.error)
    assert result.outputs == () and list((tmp_path / "out").iterdir()) == []
    (result,) = generate_files([source], tmp_path / "out", BatchSettings(str(model), steps=1, device="cpu"))
    assert result.status == "done" and len(list((tmp_path / "out").iterdir())) == 2


def test_a_picture_without_one_good_frame(tmp_path: Path) -> None:
    source = write_film(tmp_path / "a.avi", EVEN, codec="png", pix_fmt="rgb24")
    data = bytearray(source.read_bytes())
    begin = data.index(b"movi")
    data[begin + 40 : data.rindex(b"idx1")] = bytes(data.rindex(b"idx1") - begin - 40)
    source.write_bytes(data)
    with MediaFile(source) as file, pytest.raises(MediaError, match=r"a\.avi"):
        file.mux(np.zeros(9), RATE, tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*out*"))


def test_bars_are_read_as_they_are_drawn() -> None:
    assert [number(bars(n)) for n in range(256)] == list(range(256))
