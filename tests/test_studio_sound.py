"""The sound of a project: uploads as they came, the mix, what is exported of it, and what is found in it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.disk import files_of_at_most
from helpers.films import bars, shown, write_film
from vab.data.datasets.synthetic import draw_frames
from vab.errors import SettingError
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.loudness import measure
from vab.media.reader import probe, read_audio
from vab.media.write import write_audio
from vab.studio import uploads
from vab.studio.analysis import analyse, peaks
from vab.studio.export import Exported, export, exported, frame_number, safe_name, timecode
from vab.studio.mix import RATE, heard, mix_length, read_sound, summed, track, tracks, write_sound
from vab.studio.uploads import Clip, UploadError, make_clip, prepare, prepare_sound

STEP = 2.0**-23  # of 24 bits
LAYER: dict[str, Any] = {
    "id": "a",
    "name": "a",
    "sound": "one",
    "offset": 0.0,
    "start": 0.0,
    "stop": 1.0,
    "fade_in": 0.0,
    "fade_out": 0.0,
    "gain_db": 0.0,
    "mute": False,
    "solo": False,
}


def noise(seconds: float, channels: int = 2, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """[C,S] at 48 kHz."""
    wave = np.random.default_rng(seed).standard_normal((channels, round(seconds * RATE)))
    return (level * wave).clip(-1, 1).astype(np.float32)


def mix(folder: Path, layers: Sequence[dict[str, Any]], seconds: float) -> np.ndarray:
    """The mix of a project's layers under a clip of ``seconds``, [2,S]."""
    return summed(tracks(folder, layers), mix_length(layers, seconds))


# ---- the mix


def naive(sounds: dict[str, np.ndarray], layers: Sequence[dict[str, Any]], seconds: float) -> np.ndarray:
    """The mix sample by sample, in float64, as its rules say it."""
    solo = any(layer["solo"] for layer in layers)
    values: dict[tuple[int, int], float] = {}
    length = round(seconds * RATE)
    for layer in layers:
        if layer["mute"] or (solo and not layer["solo"]):
            continue
        sound = sounds[layer["sound"]]
        first, count = round(layer["start"] * RATE), round((layer["stop"] - layer["start"]) * RATE)
        fade_in, fade_out = round(layer["fade_in"] * RATE), round(layer["fade_out"] * RATE)
        place = round(layer["offset"] * RATE)
        length = max(length, place + count)
        for n in range(count):
            for channel in range(2):
                row = sound[channel if len(sound) == 2 else 0]
                value = float(row[first + n]) if first + n < len(row) else 0.0
                value *= 10 ** (layer["gain_db"] / 20)
                value *= min(1.0, (n + 1) / (fade_in + 1)) * min(1.0, (count - n) / (fade_out + 1))
                at = place + n
                if at >= 0:
                    values[channel, at] = values.get((channel, at), 0.0) + value
    result = np.zeros((2, length))
    for (channel, at), value in values.items():
        result[channel, at] = value
    return result


ticks = st.integers(0, 60).map(lambda n: n / RATE)
layers = st.builds(
    lambda start, length, **rest: {**LAYER, "start": start, "stop": start + length, **rest},
    start=ticks,
    length=ticks,
    sound=st.sampled_from(["one", "two"]),
    offset=st.integers(-50, 80).map(lambda n: n / RATE),
    fade_in=ticks,  # also longer than the layer
    fade_out=ticks,
    gain_db=st.floats(-60, 12),
    mute=st.booleans(),
    solo=st.booleans(),
)
SOUNDS = {"one": noise(40 / RATE, 1, 1, 0.5), "two": noise(70 / RATE, 2, 2, 0.5)}


def mixed(chosen: Sequence[dict[str, Any]], seconds: float) -> np.ndarray:
    """The mix of layers of ``SOUNDS``, without their files."""
    parts = [track(SOUNDS[layer["sound"]], layer) for layer in heard(chosen)]
    return summed(parts, mix_length(chosen, seconds))


@given(st.lists(layers, max_size=5), ticks)
def test_the_mix_is_what_its_rules_say_sample_by_sample(chosen: list[dict[str, Any]], seconds: float) -> None:
    found, expected = mixed(chosen, seconds), naive(SOUNDS, chosen, seconds)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * STEP)


@given(st.lists(layers, min_size=2, max_size=5), st.randoms())
def test_the_order_of_layers_is_not_heard(chosen: list[dict[str, Any]], random: Any) -> None:
    other = random.sample(chosen, len(chosen))
    np.testing.assert_allclose(mixed(chosen, 0.001), mixed(other, 0.001), rtol=0, atol=4 * STEP)


@given(layers, st.floats(-40, 20))
def test_a_gain_is_a_factor_and_a_mono_sound_is_in_both_channels(layer: dict[str, Any], gain: float) -> None:
    layer = layer | {"mute": False, "sound": "one"}
    plain = mixed([layer | {"gain_db": 0.0}], 0.001)
    np.testing.assert_allclose(
        mixed([layer | {"gain_db": gain}], 0.001), plain * 10 ** (gain / 20), rtol=1e-6, atol=STEP
    )
    assert np.array_equal(plain[0], plain[1])


@pytest.mark.parametrize(
    "states, expected",
    [  # (mute, solo) of each layer -> those that are heard
        ([(False, False), (False, False)], [0, 1]),
        ([(True, False), (False, False)], [1]),
        ([(True, False), (True, False)], []),
        ([(False, True), (False, False)], [0]),
        ([(False, True), (True, False), (False, True)], [0, 2]),
        ([(True, True), (False, False)], []),  # what is solo and muted is silent, and the others too
        ([(True, True), (False, True)], [1]),
    ],
)
def test_which_layers_are_heard(states: list[tuple[bool, bool]], expected: list[int]) -> None:
    chosen = [{"mute": mute, "solo": solo, "n": n} for n, (mute, solo) in enumerate(states)]
    assert [layer["n"] for layer in heard(chosen)] == expected


def test_nothing_heard_is_silence_as_long_as_the_clip(tmp_path: Path) -> None:
    assert np.array_equal(mix(tmp_path, [], 0.5), np.zeros((2, 24_000), np.float32))
    assert mix(tmp_path, [LAYER | {"mute": True, "sound": "not there"}], 0.5).shape == (2, 24_000)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_is_read_as_it_was_written(tmp_path: Path, channels: int) -> None:
    wave = noise(1.0, channels, level=0.4)
    wave[0, :3] = -1, 1, 1.5  # the ends of the range, and beyond
    write_sound(tmp_path / "a.wav", wave)
    found = read_sound(tmp_path / "a.wav")
    assert found.dtype == np.float32 and found.shape == wave.shape
    assert np.abs(found - wave.clip(-1, 1 - STEP)).max() <= STEP / 2
    write_sound(tmp_path / "b.wav", found)
    assert np.array_equal(read_sound(tmp_path / "b.wav"), found)
    facts = av.open(str(tmp_path / "a.wav")).streams.audio[0].codec_context
    assert (facts.name, facts.sample_rate, facts.layout.nb_channels) == ("pcm_s24le", 48_000, channels)


# ---- uploads


def upload(folder: Path, name: str, **options: Any) -> Clip:
    """The clip of a project in ``folder``, of a small film that is uploaded by this name."""
    folder.mkdir(exist_ok=True)
    times = options.pop("times", [n / 25 for n in range(50)])
    film = write_film(folder.parent / f"film{Path(name).suffix}", times, **options)
    return prepare(film, folder, name)


def test_an_upload_stays_as_it_came_beside_a_picture_to_look_at(tmp_path: Path) -> None:
    original = write_film(
        tmp_path / "a.mov", [n / 25 for n in range(5)], size=(1600, 900), sounds=[("aac", 0.2)]
    ).read_bytes()
    (tmp_path / "p").mkdir()
    clip = prepare(tmp_path / "a.mov", tmp_path / "p", "../my/Scene 12.MOV")
    assert (clip.name, clip.upload, clip.source) == ("Scene 12.MOV", "upload.mov", tmp_path / "p/upload.mov")
    assert clip.source.read_bytes() == original
    assert (clip.kind, clip.seconds, clip.fps, clip.width, clip.height) == ("video", 0.2, 25.0, 1600, 900)
    assert clip.has_sound and clip.shown == (1280, 720)
    assert shown(clip.picture) == shown(clip.source)
    with Image.open(clip.poster) as poster:
        assert poster.size == (640, 360)
    assert Clip.of(tmp_path / "p", json.loads(json.dumps(clip.values))) == clip


def test_every_frame_of_a_variable_rate_keeps_its_own_time(tmp_path: Path) -> None:
    # Much happens within a second, then a frame at 19 s and the last one at 20 s.
    times = [n / 30 for n in range(30)] + [19.0, 20.0]
    clip = upload(tmp_path / "p", "burst.mp4", times=times, options={"tune": "zerolatency"})
    for (time, found), (n, expected) in zip(shown(clip.picture), enumerate(times), strict=True):
        assert found == n and abs(time - expected) < 0.002
    assert abs(probe(clip.picture).seconds - clip.seconds) < 1 / 30


def test_only_what_is_faster_than_thirty_frames_is_thinned_out(tmp_path: Path) -> None:
    clip = upload(tmp_path / "p", "fast.mp4", times=[n / 60 for n in range(120)], rate=60)
    found = shown(clip.picture)
    assert [n for _, n in found] == list(range(0, 120, 2))  # whole frames ...
    assert all(abs(time - n / 60) < 0.001 for time, n in found)  # ... at their own times
    assert abs(probe(clip.picture).seconds - 2.0) <= 1 / 60 and clip.fps == 60
    # A recording that comes a little early or late loses nothing.
    jitter = np.random.default_rng(0).uniform(-0.004, 0.004, 60)
    times = [n / 30 + jitter[n] + 0.004 for n in range(60)]
    clip = upload(tmp_path / "q", "phone.mp4", times=times)
    assert [n for _, n in shown(clip.picture)] == list(range(60))


@pytest.mark.parametrize(
    "made, name, expected",
    [
        ("a.mkv", "a.mkv", "upload.mkv"),
        ("a.mkv", "a.mp4", "upload.mkv"),  # it says what it is not
        ("a.mp4", "clip", "upload.mp4"),
        ("a.mov", "a.mp4", "upload.mov"),
        ("a.jpg", "a.JPEG", "upload.jpeg"),
        ("a.png", "a.jpg", "upload.png"),
    ],
)
def test_the_ending_is_that_of_what_was_found(tmp_path: Path, made: str, name: str, expected: str) -> None:
    path = tmp_path / made
    if path.suffix in (".jpg", ".png"):
        Image.new("RGB", (64, 48), "red").save(path)
    else:
        write_film(path, [0.0, 0.04])
    path = path.rename(tmp_path / f"upload{Path(name).suffix}".lower())
    assert make_clip(path, tmp_path).upload == expected


def test_names_that_no_disk_would_take_are_shown_without_harm(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.mkv", [0.0, 0.04])
    (tmp_path / "p").mkdir()
    clip = prepare(film, tmp_path / "p", "a/caf\udce9\n\x07.MP4")
    assert clip.name == "caf?.MP4"
    # By its name it is what it is not: it gets the ending of what was found, and stays the only one.
    assert [path.name for path in (tmp_path / "p").glob("upload*")] == [clip.upload] == ["upload.mkv"]
    json.dumps(clip.values).encode()


def test_a_photo_stays_as_it_came_too(tmp_path: Path) -> None:
    Image.new("RGB", (3000, 1000), "red").save(tmp_path / "a.png")
    (tmp_path / "p").mkdir()
    clip = prepare(tmp_path / "a.png", tmp_path / "p", "a.png")
    assert (clip.kind, clip.seconds, clip.width, clip.height) == ("image", 10.0, 3000, 1000)
    assert clip.shown == (1280, 428) and not clip.has_sound
    assert probe(clip.source).kind == "image" and probe(clip.picture).seconds == 10.0
    with Image.open(tmp_path / "p" / "photo.png") as photo:
        assert photo.size == (1280, 427)


def test_the_sound_of_an_upload_keeps_its_channels_and_its_place(tmp_path: Path) -> None:
    # A click on the right at 0.5 s, in a film whose sound begins at 0.25 s.
    wave = np.zeros((2, 44_100), np.float32)
    wave[1, round(0.25 * 44_100)] = 0.9
    write_audio(tmp_path / "a.wav", wave, 44_100)
    assert prepare_sound(tmp_path / "a.wav", tmp_path / "out.wav") == (1.0, 2)
    found = read_sound(tmp_path / "out.wav")
    assert found.shape == (2, 48_000) and not found[0].any()
    assert abs(int(np.abs(found[1]).argmax()) - 12_000) <= 1
    assert prepare_sound(tmp_path / "a.wav", tmp_path / "out.wav", length=1.5) == (1.5, 2)
    assert read_sound(tmp_path / "out.wav").shape == (2, 72_000)
    assert np.array_equal(read_sound(tmp_path / "out.wav")[:, :48_000], found)
    # Of a clip it lasts as long as the picture.
    clip = upload(tmp_path / "p", "a.mkv", sounds=[("flac", 3.0)])
    assert prepare_sound(clip.source, tmp_path / "own.wav", clip.seconds) == (2.0, 2)


def test_what_cannot_be_used_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = write_film(tmp_path / "a.mp4", [n / 10 for n in range(20)], rate=10)
    content = film.read_bytes()
    for name, data in (("text", b"no video"), ("half", content[:900]), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UploadError, match=r"^It cannot be used: .*\.$") as caught:
            prepare(tmp_path / name, tmp_path, "a.mp4")
        assert str(tmp_path) not in str(caught.value)
    for reason, options in (("takes too long", {"seconds": 0.01}), ("Cancelled", {"unwanted": lambda: True})):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(UploadError, match=reason):
            prepare(tmp_path / "b", tmp_path, "a.mp4", **options)
    (tmp_path / "b").write_bytes(content)
    with files_of_at_most(1000), pytest.raises(UploadError, match="cannot keep it just now: File too large"):
        prepare(tmp_path / "b", tmp_path, "a.mp4")
    assert not (tmp_path / "picture.mp4").exists()

    monkeypatch.setattr(uploads, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    with pytest.raises(UploadError, match="64 x 48 pixels"):
        make_clip(film, tmp_path)
    monkeypatch.setattr(uploads, "MAX_FRAME_PIXELS", 64 * 48)
    monkeypatch.setattr(uploads, "MAX_VIDEO_SECONDS", 1.9)
    with pytest.raises(UploadError, match="lasts 2 s"):
        make_clip(film, tmp_path)
    monkeypatch.setattr(uploads, "MAX_PHOTO_PIXELS", 99)
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(UploadError, match="10 x 10 pixels"):
        make_clip(tmp_path / "a.png", tmp_path)


def test_a_frame_larger_than_the_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for n, size in enumerate([(64, 48), (320, 240)]):
            picture = io.BytesIO()
            Image.new("RGB", size, "red").save(picture, "JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, n, n, Fraction(1, 10)
            container.mux(packet)
    monkeypatch.setattr(uploads, "MAX_FRAME_PIXELS", 64 * 48)
    with pytest.raises(UploadError, match="320 x 240 pixels"):
        make_clip(tmp_path / "a.mkv", tmp_path)


def test_a_limit_that_the_system_does_not_have_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    limits = {}

    def limit(kind: int, values: tuple[int, int]) -> None:
        if kind == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")  # as on a Mac
        limits[kind] = values

    monkeypatch.setattr(resource, "setrlimit", limit)
    film = write_film(tmp_path / "a.mp4", [n / 10 for n in range(10)], rate=10)
    answer = uploads._answer("clip", film, tmp_path)
    assert "error" not in answer and answer["seconds"] == 1.0
    assert limits[resource.RLIMIT_CPU] == (900, 900) and limits[resource.RLIMIT_CORE] == (0, 0)


def test_what_has_no_sound_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no sound")
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    write_film(tmp_path / "a.mp4", [0.0, 0.04])
    for name in ("text", "a.png", "a.mp4"):
        with pytest.raises(UploadError, match=r"^It .*\.$") as caught:
            prepare_sound(tmp_path / name, tmp_path / "out.wav")
        assert str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "out.wav").exists()
    monkeypatch.setattr(uploads, "MAX_SOUND_SECONDS", 0.5)
    write_sound(tmp_path / "a.wav", noise(0.6))
    with pytest.raises(UploadError, match="lasts more than"):
        uploads.make_sound(tmp_path / "a.wav", tmp_path / "out.wav")


# ---- exports


def write_frames(path: Path, frames: Sequence[np.ndarray]) -> None:
    """A film of frames [H,W,3] at 25 a second."""
    with av.open(str(path), "w") as target:
        stream: Any = target.add_stream("libx264", rate=25, options={"x264-params": "log=-1"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        target.mux(stream.encode(None))


def make_project(
    folder: Path,
    layers: Sequence[dict[str, Any]] = (),
    sounds: dict[str, np.ndarray] | None = None,
    name: str = "Scene 12.mov",
    marks: Sequence[dict[str, Any]] = (),
    made_with: dict[str, Any] | None = None,
    **film: Any,
) -> dict[str, Any]:
    """The document of a project in ``folder``: a film of two seconds, and sounds; "one" is a take."""
    folder.mkdir()
    path = folder / f"upload{Path(name).suffix}"
    if "frames" in film:
        write_frames(path, film.pop("frames"))
    elif path.suffix == ".png":
        Image.fromarray(bars(5, 640, 480)).save(path)
    else:
        write_film(path, film.pop("times", [n / 25 for n in range(50)]), **film)
    clip = make_clip(path, folder).values | {"name": name}
    sounds = {"one": noise(1.0, 1), "two": noise(1.5, 2, 1)} if sounds is None else sounds
    for sound, wave in sounds.items():
        write_sound(folder / "sounds" / f"{sound}.wav", wave)
    made = {"generated": True, "model": "vab-tiny", "seed": 7} if made_with is None else made_with
    described = {sound: {"kind": "take", "made_with": made if sound == "one" else None} for sound in sounds}
    arrangement = {"layers": list(layers), "marks": list(marks)}
    return {
        "name": "Scene 12",
        "clip": clip,
        "sounds": described,
        "history": [{"did": "", "arrangement": {"layers": []}}, {"did": "", "arrangement": arrangement}],
        "at": 1,
    }


TWO = [
    LAYER | {"name": "A", "gain_db": -3.0, "offset": 0.25, "fade_in": 0.1},
    LAYER | {"name": "muted", "mute": True},
    LAYER | {"name": "door: open/closed?", "sound": "two", "start": 0.3, "stop": 1.5, "fade_out": 2.0},
]


def read(path: Path) -> np.ndarray:
    """A file's sound [C,S] at 48 kHz, in float64 from FFmpeg's own decoder."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        assert frames[0].sample_rate == RATE
        scale = 2.0**31 if frames[0].format.name.startswith("s32") else 1.0
        return np.concatenate(
            [f.to_ndarray().reshape(-1, f.layout.nb_channels).T / scale for f in frames]
            if not frames[0].format.is_planar
            else [f.to_ndarray() / scale for f in frames],
            axis=1,
        )


def comment(path: Path) -> dict[str, Any] | None:
    """What the file says that it was made with."""
    with MediaFile(path) as file:
        return file.made_with


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_heard_is_what_is_exported(tmp_path: Path, format: str, channels: int) -> None:
    document = make_project(tmp_path / "p", TWO)
    done = export(tmp_path / "p", document, "mix", format=format, channels=channels)
    assert [path.name for path in done.files] == [f"Scene 12_mix.{format}"] and not done.notes
    heard_now = mix(tmp_path / "p", TWO, 2.0)
    expected = heard_now if channels == 2 else heard_now.mean(0, keepdims=True)
    found = read(done.files[0])
    assert found.shape == (channels, 96_000) and np.abs(found - expected).max() <= STEP
    # The stems are as long, and add up to it.
    stems = export(tmp_path / "p", document, "stems", format=format, channels=channels).files
    assert [path.name for path in stems] == [
        f"Scene 12_01 A.{format}",
        f"Scene 12_03 door_ open_closed_.{format}",
    ]
    parts = [read(path) for path in stems]
    assert {part.shape for part in parts} == {(channels, 96_000)}
    assert np.abs(sum(parts) - expected).max() <= len(parts) * STEP
    # Of the two layers one is a take: its stem says so, the other does not, and the mix does.
    assert [bool(comment(path)) for path in stems] == [True, False]
    said = comment(done.files[0])
    assert said is not None and said["generated"] and said["layers"] == 2
    assert said["takes"] == [{"generated": True, "model": "vab-tiny", "seed": 7}]
    assert exported(tmp_path / "p") == sorted([*done.files, *stems])


@pytest.mark.parametrize(
    "name, options, container, codec",
    [
        ("Scene 12.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, ".mov", "pcm_s24le"),
        ("a.mp4", {"options": {"tune": "zerolatency"}}, ".mp4", "aac"),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}, ".webm", "opus"),
        ("phone.mov", {}, ".mov", "pcm_s24le"),
        ("a.mkv", {}, ".mkv", "aac"),
    ],
)
def test_the_film_has_the_picture_as_it_came_and_the_mix(
    tmp_path: Path, name: str, options: dict[str, Any], container: str, codec: str
) -> None:
    times = [0.0, 0.04, 0.08, 1.0, 1.5, 1.6] if container == ".mp4" else [n / 25 for n in range(50)]
    document = make_project(tmp_path / "p", TWO, name=name, times=times, size=(640, 360), **options)
    done = export(tmp_path / "p", document, "film")
    (film,) = done.files
    assert film.name == f"{Path(name).stem}_vab{container}"
    source = tmp_path / "p" / document["clip"]["upload"]

    def packets(path: Path) -> list[tuple[float, bytes]]:
        with av.open(str(path)) as opened:
            stream = opened.streams.video[0]
            return [
                (round(float(packet.pts * stream.time_base), 3), bytes(packet))
                for packet in opened.demux(stream)
                if packet.size
            ]

    assert packets(film) == packets(source)
    with av.open(str(film)) as opened:
        sound = opened.streams.audio[0]
        assert (sound.codec_context.name.replace("lib", ""), sound.codec_context.sample_rate) == (codec, RATE)
        assert sound.codec_context.layout.nb_channels == 2
    expected = mix(tmp_path / "p", TWO, document["clip"]["seconds"])
    found = read(film)[:, : expected.shape[1]]
    if codec.startswith("pcm"):
        assert np.abs(found - expected).max() <= STEP
        assert np.array_equal(found, read(export(tmp_path / "p", document, "mix").files[0]))
    else:
        # Lossy, but at its time and level: white noise correlates at no other shift.
        wave = read_audio(film, rate=RATE)[: expected.shape[1]]
        plain = expected.mean(0)[: len(wave)]
        assert np.corrcoef(wave, plain)[0, 1] > 0.9
    assert said_of(done) == {"pcm_s24le": "PCM of 24 bits", "aac": "AAC", "opus": "Opus"}[codec]
    assert comment(film)


def said_of(done: Exported) -> str:
    return done.notes[-1].removeprefix("Its sound is ").removesuffix(" at 48 kHz, stereo.")


def test_what_is_heard_after_the_end_stays_or_is_cut(tmp_path: Path) -> None:
    late = [LAYER | {"offset": 1.5, "sound": "two", "stop": 1.5}]
    document = make_project(tmp_path / "p", late, name="a.mp4")
    done = export(tmp_path / "p", document, "film")
    (film,) = done.files
    assert abs(probe(film).seconds - 3.0) < 0.001 and len(shown(film)) == 50
    assert abs(len(read_audio(film)) / 16_000 - 3.0) < 0.05
    assert done.notes[0] == "The film is 1.00 s longer than the clip: its last frame stands still there."
    done = export(tmp_path / "p", document, "film", past_end="cut")
    assert probe(done.files[0]).seconds == 2.0
    assert done.notes[0] == "1.00 s of sound after the clip's end are cut off."
    done = export(tmp_path / "p", document, "mix")
    assert read(done.files[0]).shape == (2, 144_000) and done.notes == ["It is 1.00 s longer than the clip."]
    (wave,) = export(tmp_path / "p", document, "mix", past_end="cut").files
    assert read(wave).shape == (2, 96_000)
    document["history"][1]["arrangement"]["layers"] = [LAYER | {"offset": 1.0}]  # up to the end
    assert export(tmp_path / "p", document, "mix").notes == []


def test_a_photo_becomes_a_still_film(tmp_path: Path) -> None:
    document = make_project(tmp_path / "p", [LAYER], name="photo.png")
    document["clip"]["seconds"] = 2.0  # less to encode
    (film,) = export(tmp_path / "p", document, "film").files
    found = shown(film)
    assert film.name == "photo_vab.mp4" and len(found) == 50
    assert {n for _, n in found} == {5} and abs(probe(film).seconds - 2.0) < 0.001
    assert (probe(film).width, probe(film).height) == (640, 480) and comment(film)


def test_a_loudness_is_reached_and_peaks_are_told(tmp_path: Path) -> None:
    loud = [LAYER | {"sound": "two", "stop": 1.5, "gain_db": 24.0}]
    document = make_project(tmp_path / "p", loud)
    done = export(tmp_path / "p", document, "mix")
    assert len(done.notes) == 1 and "dB above full scale" in done.notes[0]
    done = export(tmp_path / "p", document, "mix", loudness=-23.0)
    level = measure(read(done.files[0]).astype(np.float32), RATE)
    assert level.loudness == pytest.approx(-23.0, abs=0.1) and level.true_peak <= -1.0 and not done.notes
    quiet = [LAYER | {"gain_db": -45.0}]
    document["history"][1]["arrangement"]["layers"] = quiet
    done = export(tmp_path / "p", document, "mix", loudness=-23.0)
    assert "not -23" in done.notes[0]


def test_exports_replace_those_of_their_kind_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, TWO)
    export(folder, document, "mix")
    export(folder, document, "stems")
    export(folder, document, "mix", format="flac", name="Other")
    assert [path.name for path in exported(folder)] == [
        "Other_mix.flac",
        "Scene 12_01 A.wav",
        "Scene 12_03 door_ open_closed_.wav",
    ]
    document["history"][1]["arrangement"]["layers"] = TWO[:1]
    export(folder, document, "stems")
    assert [path.name for path in exported(folder)] == ["Other_mix.flac", "Scene 12_01 A.wav"]


def test_exports_of_a_stranger_s_project_lead_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, TWO, marks=MARKS)
    (tmp_path / "mine.txt").write_text("not theirs")
    (folder / "exports").mkdir(exist_ok=True)
    names = [str(tmp_path / "mine.txt"), "../../mine.txt", "..", ".kinds.json", "", 3]
    for kinds in ({"markers edl": names, "mix": 5}, [1], "x", {"markers edl": {"a": 1}}):
        (folder / "exports" / ".kinds.json").write_text(json.dumps(kinds))
        assert export(folder, document, "markers").files[0].is_file()
        assert (tmp_path / "mine.txt").read_text() == "not theirs"


@pytest.mark.parametrize("target", ["../elsewhere", "sounds", "."])
def test_exports_are_not_written_through_a_link(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, TWO, marks=MARKS)
    (folder / target).mkdir(exist_ok=True)
    (folder / target / "theirs.wav").touch()
    (folder / "exports").symlink_to(target)
    before = set(tmp_path.rglob("*"))
    for what in ("film", "mix", "stems", "markers"):
        with pytest.raises(SettingError, match="exports of this project is a link to another place"):
            export(folder, document, what)
    assert set(tmp_path.rglob("*")) == before and exported(folder) == []
    (folder / "exports").unlink()
    assert export(folder, document, "mix").files == exported(folder)


def test_an_export_that_differs_in_case_alone_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac and on Windows both names are one file."""
    folder = tmp_path / "p"
    document = make_project(folder, TWO)
    export(folder, document, "mix", name="Scene")
    gone: list[str] = []
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: gone.append(path.name))
    export(folder, document, "mix", name="scene")
    assert "Scene_mix.wav" not in gone


def test_an_export_that_is_cancelled_leaves_the_last_one(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, TWO)
    before = export(folder, document, "mix").files[0].read_bytes()

    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if done == total:
            raise Stopped

    document["history"][1]["arrangement"]["layers"] = TWO[:1]
    with pytest.raises(Stopped):
        export(folder, document, "mix", progress=stop)
    assert [path.read_bytes() for path in exported(folder)] == [before]
    assert len(list((folder / "exports").iterdir())) == 2  # with the list of kinds


def test_a_film_that_has_to_be_encoded_says_how_far_it_is_and_can_be_cancelled(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, TWO, name="a.mkv", codec="ffv1")
    told: list[tuple[str, float]] = []

    def tell(stage: str, done: int, total: int) -> None:
        told.append((stage, done / total))
        if told[-1][1] > 0.5 and cancel:
            raise KeyboardInterrupt

    cancel = True
    with pytest.raises(KeyboardInterrupt):
        export(folder, document, "film", progress=tell)
    assert told[-1][1] < 0.6 and not list((folder / "exports").iterdir())
    told.clear()
    cancel = False
    done = export(folder, document, "film", progress=tell)
    assert len(told) > 50 and told[-1] == ("writing", 1.0)
    assert [share for _, share in told[1:]] == sorted(share for _, share in told[1:])
    assert done.notes[0].startswith("Its ffv1 picture was encoded as H.264")
    # Cancelled again, the last one stays.
    cancel = True
    with pytest.raises(KeyboardInterrupt):
        export(folder, document, "film", progress=tell)
    assert exported(folder) == done.files


def test_a_full_disk_leaves_the_last_export(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, TWO)
    (film,) = export(folder, document, "film").files
    before = film.read_bytes()
    stems = export(folder, document, "stems").files
    for what in ("film", "stems"):
        with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
            export(folder, document, what)
    assert film.read_bytes() == before and exported(folder) == sorted([film, *stems])
    assert not [path for path in (folder / "exports").iterdir() if path.name.endswith(".tmp")]


def test_what_cannot_be_exported_gets_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    document = make_project(folder, [LAYER | {"mute": True}])
    with pytest.raises(SettingError, match="Nothing is heard"):
        export(folder, document, "mix")
    document["history"][1]["arrangement"]["layers"] = TWO
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("song", {}),
        ("mix", {"format": "mp3"}),
        ("mix", {"channels": 6}),
        ("mix", {"loudness": 5.0}),
        ("stems", {"loudness": -23.0}),
        ("film", {"format": "avi"}),
        ("film", {"past_end": "loop"}),
    ]
    for what, options in wrong:
        with pytest.raises(SettingError):
            export(folder, document, what, **options)
    (folder / "sounds" / "two.wav").unlink()
    with pytest.raises(MediaError, match="no such file"):
        export(folder, document, "mix")
    assert not exported(folder)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Scene 12", "Scene 12"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("..hidden. ", "hidden"),
        ("", "clip"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("caf\udce9\n", "caf__"),
        ("e\u0301", "é"),
    ],
)
def test_names_are_safe_on_every_system(text: str, expected: str) -> None:
    assert safe_name(text, 80) == expected


def test_names_fit_on_a_disk() -> None:
    assert len(safe_name("音" * 300, 80).encode()) <= 160


def test_layers_of_one_name_are_files_of_their_own(tmp_path: Path) -> None:
    document = make_project(tmp_path / "p", [LAYER | {"name": "Hit"}, LAYER | {"name": "hit"}])
    files = export(tmp_path / "p", document, "stems").files
    assert [path.name for path in files] == ["Scene 12_01 Hit.wav", "Scene 12_02 hit.wav"]


# ---- marks

MARKS = [
    {"id": "b", "time": 1.0, "label": "bark | loud\nand long"},
    {"id": "a", "time": 0.5, "label": "door"},
    {"id": "c", "time": 1.001, "label": ""},
]


def test_marks_are_an_edit_list_that_editors_read(tmp_path: Path) -> None:
    document = make_project(tmp_path / "p", marks=MARKS)  # 25 frames a second; nothing need be heard
    (path,) = export(tmp_path / "p", document, "markers").files
    assert path.name == "Scene 12_markers.edl"
    assert path.read_bytes().decode().split("\r\n") == [
        "TITLE: Scene 12",
        "FCM: NON-DROP FRAME",
        "",
        "001  AX       V     C        01:00:00:12 01:00:00:13 01:00:00:12 01:00:00:13",
        " |C:ResolveColorBlue |M:door |D:1",
        "* LOC: 01:00:00:12 BLUE    door",
        "",
        "002  AX       V     C        01:00:01:00 01:00:01:01 01:00:01:00 01:00:01:01",
        " |C:ResolveColorBlue |M:bark / loud and long / mark |D:1",
        "* LOC: 01:00:01:00 BLUE    bark / loud and long / mark",
        "",
    ]
    (table,) = export(tmp_path / "p", document, "markers", format="csv").files
    assert list(csv.reader(io.StringIO(table.read_bytes().decode()))) == [
        ["label", "seconds", "timecode"],
        ["door", "0.500", "01:00:00:12"],
        ["bark | loud and long", "1.000", "01:00:01:00"],
        ["mark", "1.001", "01:00:01:00"],
    ]
    assert exported(tmp_path / "p") == sorted([path, table])  # one does not take the place of the other


@pytest.mark.parametrize("seconds", [1.28, 1.2933, 1.31, 1.279])  # 1.279: typed, to the millisecond below
def test_a_mark_is_at_the_frame_that_was_on_screen(tmp_path: Path, seconds: float) -> None:
    document = make_project(tmp_path / "p", marks=[{"id": "a", "time": seconds, "label": "hit"}])
    text = export(tmp_path / "p", document, "markers").files[0].read_text()
    assert "* LOC: 01:00:01:07 BLUE" in text  # frame 32 of 25 a second


def test_marks_count_from_the_time_code_of_the_clip(tmp_path: Path) -> None:
    rate = Fraction(30_000, 1001)

    def code(target: Any, stream: Any) -> None:
        stream.metadata["timecode"] = "09:59:59;28"

    document = make_project(
        tmp_path / "p",
        marks=MARKS[1:2],
        times=[float(n / rate) for n in range(60)],
        rate=rate,
        base=Fraction(1, 30_000),
        prepare=code,
    )
    assert document["clip"]["timecode"] == "09:59:59;28"
    text = export(tmp_path / "p", document, "markers").files[0].read_text()
    assert "FCM: DROP FRAME" in text and "* LOC: 10:00:00;13 BLUE" in text  # 15 frames later


def test_a_drop_frame_code_at_a_whole_rate_is_read_as_it_is_written(tmp_path: Path) -> None:
    def code(target: Any, stream: Any) -> None:
        stream.metadata["timecode"] = "01:00:00;00"

    times = [n / 30 for n in range(60)]
    document = make_project(tmp_path / "p", marks=MARKS[1:2], times=times, rate=Fraction(30), prepare=code)
    text = export(tmp_path / "p", document, "markers").files[0].read_text()
    assert "FCM: NON-DROP FRAME" in text and "* LOC: 01:00:00:15 BLUE" in text


@pytest.mark.parametrize("rate", [Fraction(30_000, 1001), Fraction(60_000, 1001)])
def test_drop_frame_numbers_go_forth_and_back(rate: Fraction) -> None:
    whole = round(rate)
    first = frame_number(f"00:01:00;{whole // 15:02d}", rate, True)
    assert timecode(first - 1, rate, True) == f"00:00:59;{whole - 1}"
    for frame in [*range(0, 40_000, 37), *range(first - 3, first + 3)]:
        assert frame_number(timecode(frame, rate, True), rate, True) == frame
    assert frame_number("00:10:00;00", rate, True) == round(600 * rate)


# ---- analysis


def test_cuts_motion_and_onsets_are_found_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    clicks = np.zeros((1, 2 * RATE), np.float32)
    for time in (0.5, 1.25):
        clicks[0, round(time * RATE) :][:2400] += noise(0.05, 1, 3, 0.3)[0]
    # A grey picture that becomes another one at 1.2 s.
    rng = np.random.default_rng(0)
    shots = [rng.integers(0, 256, (9, 12, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1) for _ in "ab"]
    document = make_project(folder, sounds={"clicks": clicks}, frames=[shots[n >= 30] for n in range(50)])
    found = analyse(folder, document)
    assert np.abs(np.array(found["onsets"]["clicks"]) - [0.5, 1.25]).max() < 0.02
    assert len(found["cuts"]) == 1 and abs(found["cuts"][0] - 1.2) < 0.05
    assert not found["motion"]  # a cut is none
    (folder / "picture.mp4").unlink()
    (folder / "sounds" / "clicks.wav").unlink()
    assert analyse(folder, document) == found


def test_frames_that_come_unevenly_have_their_own_times(tmp_path: Path) -> None:
    times = [n / 30 for n in range(30)] + [19.0, 20.0]
    document = make_project(tmp_path / "p", sounds={}, name="burst.mp4", times=times)
    assert analyse(tmp_path / "p", document)["frames"] == pytest.approx(times, abs=0.002)
    # What was known before this was looked for is looked at once more.
    picture = tmp_path / "p" / "picture.json"
    picture.write_text(json.dumps({"cuts": [], "motion": []}))
    assert len(analyse(tmp_path / "p", document)["frames"]) == 32
    jittered = [n / 25 + 0.003 * (n % 3) for n in range(50)]
    document = make_project(tmp_path / "q", sounds={}, name="even.mp4", times=jittered)
    assert analyse(tmp_path / "q", document)["frames"] is None
    document = make_project(tmp_path / "r", sounds={}, name="photo.png")
    assert analyse(tmp_path / "r", document)["frames"] is None


def test_motion_is_found_where_a_ball_bounces(tmp_path: Path) -> None:
    bounces = np.array([0.4, 1.1, 1.8])
    document = make_project(tmp_path / "p", sounds={}, frames=draw_frames(bounces, 2.0, "small"))
    with av.open(str(tmp_path / "p" / "picture.mp4")) as picture:  # any frame is on screen at once
        alone = [n for n, frame in enumerate(picture.decode(video=0)) if frame.key_frame]
    assert np.diff([*alone, 50]).max() <= 24
    found = analyse(tmp_path / "p", document)
    assert not found["cuts"] and len(found["motion"]) == 3
    assert np.abs(np.array(found["motion"]) - bounces).max() < 0.06


def test_an_outline_has_the_peaks_of_each_bin(tmp_path: Path) -> None:
    wave = noise(1.001, 2, level=0.3)
    wave[0, 240], wave[1, 479] = 1.0, -1.0
    write_sound(tmp_path / "a.wav", wave)
    for _ in range(2):  # the second time it is there already
        data = peaks(tmp_path / "a.wav")
        assert int.from_bytes(data[:4], "little") == 200
        bins = np.frombuffer(data, np.int8, offset=4).reshape(-1, 2)
        assert len(bins) == 201 and bins[1].tolist() == [-127, 127]
        expected = [wave[:, n * 240 : (n + 1) * 240] for n in range(201)]
        assert np.abs(bins[:, 0] / 127 - [part.min() for part in expected]).max() < 1 / 127
        assert np.abs(bins[:, 1] / 127 - [part.max() for part in expected]).max() < 1 / 127
        (tmp_path / "a.wav").unlink(missing_ok=True)
