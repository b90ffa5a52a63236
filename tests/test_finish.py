"""What a sound is like when it is finished: its loudness and peaks, its ends, the original beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.cli import vab
from helpers.tiny import write_video
from vab.errors import SettingError
from vab.inference.finish import Finish, finish_sound
from vab.inference.pipeline import VABPipeline
from vab.inference.splice import original_of
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.filters import filter_frames, resampled
from vab.media.loudness import Level, interpolated_peak, limited, measure, to_loudness
from vab.media.muxing import tags
from vab.media.reader import read_audio, write_wav
from vab.media.write import FORMATS, write_audio

RATE = 16_000


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


def sound(kind: str, seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    """[1,S]: sounds that a limiter and a meter find easy and hard."""
    n = round(seconds * rate)
    quiet = 0.01 * noise(n)
    if kind == "hits":  # a few, far above what lies between them
        quiet[0, :: n // 5] = 4.0
        return quiet
    if kind == "high":  # just below half the rate: the peaks lie between the samples
        return (np.sin(2 * np.pi * 0.24999 * np.arange(n) + 0.8)[None] * 3).astype(np.float32)
    return {"hot": 3 * noise(n), "quiet": 0.01 * noise(n), "burst": quiet * (np.arange(n) < n // 3) * 300}[
        kind
    ]


# ---- meter and limiter


def test_the_meter_knows_what_the_standard_says() -> None:
    # EBU Tech 3341: a stereo sine of 1 kHz at -23 dBFS is at -23 LUFS; one channel alone is 3 LU below.
    t = np.arange(48_000 * 5) / 48_000
    sine = (10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)
    stereo, mono = measure(np.stack([sine, sine]), 48_000), measure(sine, 48_000)
    assert stereo.loudness == pytest.approx(-23, abs=0.1) and mono.loudness == pytest.approx(-26, abs=0.1)
    assert stereo.true_peak == pytest.approx(-23, abs=0.05)
    # A sine at a quarter of the rate, whose samples all miss its peaks by 3 dB, at a level with no digits.
    between = (0.001 * np.sin(np.pi / 2 * np.arange(RATE) + np.pi / 4)).astype(np.float32)
    assert measure(between, RATE).true_peak == pytest.approx(-60, abs=0.7)
    # The last tenth of a second counts, and so does a sound of one sample.
    last = np.zeros(RATE + 100, np.float32)
    last[-1] = 0.5
    assert (measure(last, RATE).true_peak or -99) > -7
    assert (measure(last[-1:], RATE).true_peak or -99) > -7
    assert measure(np.zeros((2, 99)), RATE) == Level(None, None)


@pytest.mark.parametrize("kind", ["hot", "quiet", "hits", "high", "burst"])
@pytest.mark.parametrize("target", [-23.0, -14.0, None])
def test_loudness_is_reached_and_peaks_are_not_passed(kind: str, target: float | None) -> None:
    before = sound(kind)
    made = to_loudness(before, RATE, target)
    found = measure(made.waveform, RATE)
    assert found == made.level and made.waveform.shape == before.shape
    assert (found.true_peak or -99) <= -1.0 and np.abs(made.waveform).max() < 0.9
    assert found.loudness is not None and made.gain <= 30
    if target is None:
        assert made.gain == 0
    elif kind == "hits":  # single samples: no sane limiter makes them as loud as that
        assert found.loudness < target - 1
    else:
        assert found.loudness == pytest.approx(target, abs=0.2)


def test_the_true_peak_has_all_decimals_of_the_meter() -> None:
    rng = np.random.default_rng(0)
    asked = 0
    for rate in (8000, 16_000, 48_000, 96_000, 44_100):
        for n in range(40):
            wave = rng.standard_normal((1 + n % 2, int(rng.integers(1, 4000)))).astype(np.float32)
            wave *= np.exp(-np.arange(wave.shape[1]) / rng.uniform(1, 4000)).astype(np.float32)[:: (-1) ** n]
            peak = float(np.abs(wave).max())
            chain = (("volume", f"{1 / peak:.9g}"), ("apad", f"pad_len={rate // 5}"))
            told = [
                x.metadata for x in filter_frames(wave, rate, *chain, ("ebur128", "metadata=1:peak=true"))
            ]
            meter = float([values for values in told if values][-1]["lavfi.r128.true_peak"])
            found = interpolated_peak(wave / np.float32(peak), rate)
            asked += found is None
            assert found in (None, meter)
            assert measure(wave, rate).true_peak == 20 * float(np.log10(meter)) + 20 * float(np.log10(peak))
    assert 40 < asked < 60  # each of the rate that does not divide the meter's, and few others


def test_silence_stays_silence_and_short_sounds_go_by_their_peak() -> None:
    for level in (0.0, 1e-5):
        silence = level * noise(RATE)
        made = to_loudness(silence, RATE, -23.0)
        assert np.array_equal(made.waveform, silence) and made.gain == 0
    for samples in (1, 10, 6399):
        made = to_loudness(0.2 + 0.05 * noise(samples), RATE, -23.0)
        assert made.level.loudness is None and made.level.true_peak == pytest.approx(-3, abs=0.1)
    assert to_loudness(1e-9 * noise(100), RATE, -23.0).gain == 0


def test_the_limiter_leaves_alone_what_is_far_from_a_peak() -> None:
    before = 0.2 * np.tanh(noise(3 * RATE, 2))
    before[:, RATE : RATE + 50] *= 10
    after, level = limited(before, RATE)
    assert -1.3 < (level.true_peak or 0) <= -1
    assert np.array_equal(after[:, : RATE - 200], before[:, : RATE - 200])
    assert np.array_equal(after[:, 2 * RATE :], before[:, 2 * RATE :])
    assert limited(after, RATE)[0] is after


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 96_000])
def test_another_rate_shifts_nothing_and_has_the_length_to_the_sample(rate: int) -> None:
    click = np.zeros((1, 24_001), np.float32)
    click[0, 16_000] = 1
    length = round(24_001 / RATE * rate)
    made = resampled(click, RATE, rate, length)
    assert made.shape == (1, length) and abs(int(np.abs(made).argmax()) - rate) <= 1


# ---- files


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(("rate", "bits", "channels"), [(16_000, 16, 1), (44_100, 24, 2)])
def test_a_sound_file_by_its_ending(tmp_path: Path, ending: str, rate: int, bits: int, channels: int) -> None:
    wave = 0.1 * np.tanh(noise(rate, channels))
    made_with = {"generated": True, "gain_db": 6.0, "model": "é\n,"}
    path = tmp_path / f"new/a{ending.upper()}"
    write_audio(path, wave[0] if channels == 1 else wave, rate, bits, {"comment": tags.pack(made_with)})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with MediaFile(path) as file:
        assert file.made_with == made_with
        found_rate, layout = file.audio_format
        assert av.AudioLayout(layout).nb_channels == channels
        assert file.seconds == pytest.approx(1.0, abs=0.08)
        if FORMATS[ending].bit_rate is None:
            step = 2.0 ** (bits - 1)
            assert found_rate == rate
            read = original_of(file).read(1.0, rate, layout)
            assert np.array_equal(read * step, np.rint(wave * step))
        heard, measured = file.audio(), file.audio(model_level=True)
        assert np.allclose(measured * 10 ** (6 / 20), heard, atol=1e-6) and heard.std() > 0.02


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    wave = noise(100)[0] * 0.1
    for name in ("a.mp4", "a.txt", "a"):
        with pytest.raises(MediaError, match=rf"{name}: .*\.wav, \.flac, \.ogg"):
            write_audio(tmp_path / name, wave, RATE)
    for bad in ([np.nan], [np.inf, 0.0], []):
        with pytest.raises(MediaError, match=r"a\.flac"):
            write_audio(tmp_path / "a.flac", np.array(bad, np.float32), RATE)
    with pytest.raises(SettingError, match="16 or 24"):
        write_audio(tmp_path / "a.wav", wave, RATE, bits=20)
    with pytest.raises(MediaError, match=r"a\.mp3: cannot be written"):
        write_audio(tmp_path / "a.mp3", noise(RATE, 7), RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("call", ["write_audio(path, wave, 16000)", "write_wav(path, wave)"])
def test_a_full_disk_leaves_one_error_and_no_file(tmp_path: Path, call: str) -> None:
    program = f"""
import resource, sys, signal
import numpy as np
from vab.media.write import write_audio
from vab.media.reader import write_wav
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
wave, path = np.zeros(100_000, np.float32) + 0.1, sys.argv[1]
try:
    {call}
except OSError as error:
    print("told:", error.filename)
"""
    path = tmp_path / "a.wav"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == (f"told: {path}\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_tag_is_one_line_of_the_comment() -> None:
    made_with = {"generated": True, "gain_db": -3.5}
    comment = f'Take 3\nvab {{"gain_db": 9}}\nvabulous\n{tags.pack(made_with)}'
    assert tags.unpack({"title": "x", "COMMENT": comment}) == made_with
    assert tags.unpack({"title": "vab {}", "comment": "vabulous"}) is None
    for hostile in ("vab {", "vab 3", "vab " + "[" * 100_000, "vab", "", 'vab {"gain_db": "x"}'):
        assert tags.gain(tags.unpack({"comment": hostile})) == 0
    for gain in (1e9, -1e9, float("inf"), True, None):
        assert abs(tags.gain({"gain_db": gain})) <= 1
    assert tags.gain(made_with) == -3.5 and tags.gain(made_with | {"keep": [[0, 1]]}) == 0
    assert tags.gain(made_with | {"mix": -6.0}) == 0


# ---- beside the original


def stereo_clip(path: Path, rate: int = 44_100, level: float = 0.3, codec: str = "pcm_s16le") -> Path:
    """Two seconds of film with stereo sound, noise left and a tone right."""
    with av.open(str(path), "w") as file:
        film = file.add_stream("mpeg4", rate=25)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        track = file.add_stream(codec, rate=rate, layout="stereo")
        for n in range(50):
            image = np.full((48, 64, 3), 5 * n, np.uint8)
            file.mux(film.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        file.mux(film.encode())
        n = 2 * rate
        both = np.stack([np.tanh(noise(n)[0]), np.sin(0.1 * np.arange(n))]) * level
        frame = av.AudioFrame.from_ndarray(
            both.T.astype(np.float32).reshape(1, -1).copy(), format="flt", layout="stereo"
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        file.mux(track.encode(frame))
        file.mux(track.encode())
    return path


def decoded(path: Path, samples: int) -> np.ndarray:
    """The sound as FFmpeg decodes it, [2,samples]."""
    with av.open(str(path)) as file:
        resampler = av.AudioResampler(format="fltp")
        parts = [part.to_ndarray() for f in file.decode(audio=0) for part in resampler.resample(f)]
    found = np.concatenate(parts, axis=1)[:, :samples]
    return np.pad(found, ((0, 0), (0, samples - found.shape[1])))


@pytest.mark.parametrize(("ending", "codec"), [("mov", "pcm_s16le"), ("mkv", "flac"), ("mp4", "aac")])
def test_kept_sound_stays_sample_for_sample(tmp_path: Path, ending: str, codec: str) -> None:
    rate, new = 44_100, 0.5 * noise(2 * RATE)[0]
    clip = stereo_clip(tmp_path / f"a.{ending}", rate, codec=codec)
    with MediaFile(clip) as file:
        made = finish_sound(new, 2.0, Finish(), original_of(file), [(0.5, 1.00001), (1.9, float("inf"))])
    assert made.rate == rate and made.waveform.shape == (2, 2 * rate)
    own = decoded(clip, 2 * rate)
    first, last = round(0.5 * rate), round(1.00001 * rate)
    assert np.array_equal(made.waveform[:, first:last], own[:, first:last])
    assert np.array_equal(made.waveform[:, round(1.9 * rate) :], own[:, round(1.9 * rate) :])
    # New sound is the same on both sides, and fades in at its own end only: the last one is kept.
    fade = round(0.02 * rate)
    assert np.array_equal(made.waveform[0, : first - fade], made.waveform[1, : first - fade])
    assert made.waveform[0, 0] == 0 and np.abs(made.waveform[0, :20]).max() < 0.1
    rest = np.concatenate([made.waveform[:, : first - fade], made.waveform[:, last + fade : -8000]], axis=1)
    assert measure(rest, rate).loudness == pytest.approx(-23, abs=0.5)
    assert any("kept sound" in note for note in made.notes)
    # Half-way through the fade before the span both are heard, and there is no step into it.
    middle = made.waveform[:, first - fade // 2]
    assert not np.array_equal(middle, own[:, first - fade // 2])


@pytest.mark.parametrize(
    ("level", "advised", "cut"), [(0.03, True, False), (0.9, False, False), (1.5, False, True)]
)
def test_notes_on_kept_sound_can_be_followed(tmp_path: Path, level: float, advised: bool, cut: bool) -> None:
    clip = stereo_clip(tmp_path / "a.mkv", level=level, codec="pcm_f32le")
    how = Finish(loudness=-50.0 if advised else -23.0)
    with MediaFile(clip) as file:
        made = finish_sound(0.5 * noise(2 * RATE)[0], 2.0, how, original_of(file), [(0.5, 1.5)])
    notes = " ".join(made.notes)
    assert "the kept sound is at" in notes
    assert ("would bring them together" in notes) is advised
    assert ("above full scale: a file cuts it off there" in notes) is cut


@pytest.mark.parametrize("mix", [-12.0, 0.0, 6.0])
def test_new_sound_over_the_original(tmp_path: Path, mix: float) -> None:
    clip, rate = stereo_clip(tmp_path / "a.mkv", 48_000, level=0.1), 48_000
    with MediaFile(clip) as file:
        made = finish_sound(0.1 * noise(2 * RATE)[0], 2.0, Finish(mix=mix), original_of(file))
    own = decoded(clip, 2 * rate)
    new = made.waveform - own
    assert np.abs(new[0] - new[1]).max() < 1e-6  # the same on both sides: the original is untouched
    difference = (measure(new, rate).loudness or 0) - (measure(own, rate).loudness or 0)
    assert difference == pytest.approx(mix, abs=0.2) and not made.notes


def test_a_sum_that_is_too_high_is_limited_and_told(tmp_path: Path) -> None:
    clip = stereo_clip(tmp_path / "a.mkv", 48_000, level=1.0)
    with MediaFile(clip) as file:
        made = finish_sound(0.5 * noise(2 * RATE)[0], 2.0, Finish(mix=0.0), original_of(file))
    assert (measure(made.waveform, 48_000).true_peak or 0) <= -1
    assert any("limiter lowered their peaks" in note for note in made.notes)


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (44_100, 1), (16_000, 6)])
def test_any_rate_and_channels(rate: int, channels: int) -> None:
    seconds = 50 / 29.97
    new = 2.0 * noise(round(seconds * RATE))[0]
    made = finish_sound(new, seconds, Finish(rate=rate, channels=channels))
    shape = (round(seconds * rate),) if channels == 1 else (channels, round(seconds * rate))
    level = measure(made.waveform, rate)
    assert made.waveform.shape == shape and made.rate == rate
    assert level.loudness == pytest.approx(-23, abs=0.2) and (level.true_peak or 0) <= -1
    assert any("far above full scale" in note for note in made.notes)
    both = np.atleast_2d(made.waveform)
    assert not both[:, [0, -1]].any() and all(np.array_equal(one, both[0]) for one in both)


@pytest.mark.parametrize("bad", [{"loudness": 1.0}, {"loudness": -99.0}, {"rate": 100}, {"channels": 0}])
def test_settings_that_make_no_sense(bad: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(bad))):
        Finish(**bad)  # type: ignore[arg-type]


# ---- as a user


def test_levels_on_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out = write_video(tmp_path / "clip.mp4", 20, 10), tmp_path / "out"
    words = ("generate", clip, "--model", model, "--device", "cpu", "--json")
    code, said, err = vab(capsys, *words, "-o", out, "--loudness", "-30", "--report")
    assert code == 0, err
    document = json.loads(said)
    (result,), settings = document["results"], document["settings"]
    assert settings["steps"] == 4 and settings["guidance"] == 3.0 and settings["generated"] is True
    assert settings["version"] and len(settings["fingerprint"]) >= 16 and settings["loudness"] == -30
    raw = VABPipeline.from_pretrained(model, device="cpu", dtype="auto").generate(clip).raw
    (level,) = result["levels"]
    assert level["loudness"] == pytest.approx(measure(raw, RATE).loudness, abs=0.01)
    assert measure(read_audio(out / "clip.wav"), RATE).loudness == pytest.approx(-30, abs=0.2)
    assert f"gain {level['gain_db']:+.1f} dB" in (out / "report.html").read_text()
    for name in ("clip.wav", "clip.mp4"):  # both say what they were made with, and are measured without gain
        with MediaFile(out / name) as file:
            assert file.made_with is not None and file.made_with["seed"] == 0
            assert result["made_with"].items() <= file.made_with.items()
            heard = file.audio(0.0, 2.0, model_level=True)[200:-200]
            off = (heard - raw[200:-200]).std() / raw.std()
            assert off < (1e-3 if name == "clip.wav" else 0.2)

    code, said, err = vab(capsys, *words, "-o", out, "--loudness", "off", "--format", "flac", "--bits", "24")
    assert code == 0 and json.loads(said)["results"][0]["levels"][0]["gain_db"] == 0, err
    assert np.abs(read_audio(out / "clip.flac") - raw)[200:-200].max() < 1e-6
    for bad in (("--loudness", "loud"), ("--loudness", "nan"), ("--rate", 5), ("--mix", "inf")):
        code, _, err = vab(capsys, *words, "-o", out, *bad)
        assert code == 2 and err.count("\n") == 1, err


def test_a_silent_clip_has_nothing_to_mix_or_keep(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4", 20, 10, sound=False)
    words = ("generate", clip, "-o", tmp_path / "out", "--model", model, "--device", "cpu")
    code, _, err = vab(capsys, *words, "--mix", "-12", "--keep-original")
    assert code == 0 and "mix with" in err and "second track" in err
    assert measure(read_audio(tmp_path / "out" / "clip.wav"), RATE).loudness == pytest.approx(-23, abs=0.2)
    code, _, err = vab(capsys, *words, "--keep", "0:1")
    assert code == 1 and "no sound of its own to keep" in err


def test_what_others_made_is_measured_as_it_is(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 0.1 * noise(RATE)[0])
    with MediaFile(tmp_path / "a.wav") as file:
        assert file.made_with is None
        assert np.array_equal(file.audio(), file.audio(model_level=True))


def test_evaluation_undoes_the_gain_and_reports_how_loud_the_folders_are(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="no metrics: pip install 'vab[eval]'")
    from vab.evaluate.generation.protocol import EvaluationSettings, evaluate

    raw = {name: 0.02 * noise(2 * RATE, seed=n)[0] for n, name in enumerate("abc")}
    for name, wave in raw.items():
        write_wav(tmp_path / "real" / f"{name}.wav", noise(2 * RATE, seed=9)[0] * wave)
        write_audio(tmp_path / "raw" / f"{name}.wav", wave, RATE)
        louder = to_loudness(wave[None], RATE, -16.0)
        tag = {"comment": tags.pack({"gain_db": louder.gain})}
        write_audio(tmp_path / "ours" / f"{name}.wav", louder.waveform[0], RATE, tags=tag)
        write_audio(tmp_path / "theirs" / f"{name}.wav", louder.waveform[0], RATE)
    settings = EvaluationSettings(seconds=2.0, backbones=(), resamples=0)
    documents = {
        name: evaluate(tmp_path / "real", tmp_path / name, settings).document()
        for name in ("raw", "ours", "theirs")
    }
    values = {
        name: {key: row["value"] for key, row in each["measures"].items()} for name, each in documents.items()
    }
    assert all(value == pytest.approx(values["raw"][key], rel=0.02) for key, value in values["ours"].items())
    assert values["theirs"] != pytest.approx(values["raw"], rel=0.1)
    medians = {name: each["levels"]["generated"]["median_lufs"] for name, each in documents.items()}
    assert medians["ours"] == pytest.approx(medians["raw"], abs=0.1)
    assert medians["theirs"] == pytest.approx(-16, abs=0.3)
    assert documents["raw"]["levels"]["generated"]["spread_lu"] < 1


def test_keep_on_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = stereo_clip(tmp_path / "a.mov", 48_000)
    words = ("generate", clip, "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--json")
    code, said, err = vab(capsys, *words, "--keep", "0.25:0.75", "--bits", 24)
    assert code == 0, err
    own, made = decoded(clip, 96_000), decoded(tmp_path / "out" / "a.wav", 96_000)
    assert np.array_equal(made[:, 12_000:36_000], own[:, 12_000:36_000])
    with MediaFile(tmp_path / "out" / "a.mp4") as file:
        assert file.audio_format == (48_000, "stereo") and file.made_with is not None
        assert np.array_equal(file.audio(), file.audio(model_level=True))  # part of it is not ours
    (result,) = json.loads(said)["results"]
    assert result["made_with"]["keep"] == [[0.25, 0.75]] and result["made_with"]["rate"] == "original"
