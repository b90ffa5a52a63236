"""Sounds through a codec and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
import torch
from torch import Tensor

from helpers.networks import noise
from helpers.tiny import write_video
from vab.cli import main
from vab.codecs.codec import decode_long, encode_long, load_codec
from vab.codecs.tiny import TinyCodec
from vab.evaluate.reconstruction import reconstruct_files
from vab.media.reader import read_audio, write_wav

EXAMPLES = Path(__file__).parents[1] / "examples" / "sounds"


class Exact:
    """A codec that keeps the mean of each frame in its first codebook, and half a step more in the second."""

    name, num_codebooks, codebook_size, dim, hop_length, sample_rate = "exact", 2, 256, 1, 320, 16_000

    def encode(self, waveform: Tensor) -> Tensor:
        filled = torch.nn.functional.pad(waveform, (0, -waveform.shape[-1] % self.hop_length))
        steps = (filled.unflatten(-1, (-1, self.hop_length)).mean(-1) + 1) * 127
        return torch.stack([steps.floor(), (steps % 1 * 2).floor()], 1).long()

    def decode(self, tokens: Tensor) -> Tensor:
        steps = tokens[:, 0] + (tokens[:, 1] / 2 if tokens.shape[1] > 1 else 0)
        return (steps / 127 - 1).repeat_interleave(self.hop_length, -1)

    def codebook_vectors(self) -> Tensor:
        return torch.zeros(2, 256, 1)

    def to(self, device: object) -> Exact:
        return self


def staircase(seconds: float) -> np.ndarray:
    """Steps of a frame each: [S]."""
    levels = np.random.default_rng(0).integers(-100, 100, round(seconds * 50) + 1) / 127
    return np.repeat(levels, 320)[: round(seconds * 16_000)].astype(np.float32)


def test_what_comes_back_is_the_codecs_and_as_long_as_the_input(tmp_path: Path) -> None:
    for seconds in (0.5, 1.2345, 65.43):  # longer than is encoded at once
        write_wav(tmp_path / "in" / f"{seconds}.wav", staircase(seconds))
    errors = {}
    for num_codebooks in (1, 2):
        out = tmp_path / str(num_codebooks)
        results = list(reconstruct_files([tmp_path / "in"], out, Exact(), num_codebooks))
        assert [result.status for result in results] == ["done"] * 3
        for file in (tmp_path / "in").iterdir():
            real, back = read_audio(file), read_audio(out / file.name)
            assert len(back) == len(real)
            errors[num_codebooks] = np.abs(real - back)[:-320].max()  # its last frame is filled
    assert errors[2] < errors[1] < 1 / 126
    again = reconstruct_files([tmp_path / "in"], out, Exact(), skip_existing=True)
    assert [result.status for result in again] == ["skipped"] * 3
    (other,) = reconstruct_files([tmp_path / "in" / "0.5.wav"], out, Exact(), 1, skip_existing=True)
    assert other.notes == ("made anew: it was made with another number of codebooks",)


def test_parts_of_a_sound_are_encoded_as_the_whole() -> None:
    sound = staircase(1.2345)
    whole = Exact().encode(torch.from_numpy(sound)[None])[0]
    for first, last, context, chunk in ((0, 62, 0, 7), (0, 62, 3, 7), (5, 41, 9, 4), (60, 62, 4, 100)):
        found = encode_long(Exact(), lambda begin, n: sound[begin : begin + n], first, last, context, chunk)
        assert torch.equal(found, whole[:, first:last])


def test_a_long_sound_comes_back_without_a_seam(tmp_path: Path) -> None:
    """What is said is encoded and decoded as in one piece, also where one chunk of 30 s meets the next."""
    voice = read_audio(next((EXAMPLES / "speech").iterdir()))
    long = np.concatenate([voice * gain for gain in np.linspace(1.0, 0.3, 99)])[: round(32.2 * 16_000)]
    assert len(long) == round(32.2 * 16_000)
    write_wav(tmp_path / "long.wav", long)
    codec = load_codec("tiny")
    assert isinstance(codec, TinyCodec)
    codec.config = replace(codec.config, iterations=1)  # of Griffin-Lim, which is not the subject
    (result,) = reconstruct_files([tmp_path / "long.wav"], tmp_path / "out", codec, num_codebooks=4)
    assert result.status == "done"
    with torch.inference_mode():
        tokens = codec.encode(torch.from_numpy(read_audio(tmp_path / "long.wav"))[None])[0, :4]
        wanted = torch.cat(list(decode_long(codec, tokens)))[: len(long)].numpy().clip(-1, 1)
    near = slice(29 * 16_000, 31 * 16_000)
    found = read_audio(tmp_path / "out" / "long.wav")
    assert np.abs(found[near] - wanted[near]).max() < 1e-3


def test_one_bad_file_does_not_end_the_others(tmp_path: Path) -> None:
    write_wav(tmp_path / "a" / "cat.wav", noise(1.0, 16_000))
    write_wav(tmp_path / "b" / "cat.wav", noise(1.0, 16_000))
    write_video(tmp_path / "a" / "mute.mp4", 25, 25, sound=False)
    (tmp_path / "a" / "text.wav").write_text("no sound")
    scipy.io.wavfile.write(tmp_path / "a" / "nan.wav", 16_000, np.full(16_000, np.nan, np.float32))
    results = list(reconstruct_files([tmp_path / "a", tmp_path / "b"], tmp_path / "out", Exact()))
    found = {Path(result.input).relative_to(tmp_path).as_posix(): result for result in results}
    names = ("a/cat.wav", "b/cat.wav", "a/mute.mp4", "a/text.wav", "a/nan.wav")
    assert [found[name].status for name in names] == ["done", "done", *["failed"] * 3]
    assert "holds NaN or infinity" in str(found["a/nan.wav"].error)
    assert "has no audio stream" in str(found["a/mute.mp4"].error)
    for name in names[:2]:
        assert found[name].outputs == (str(tmp_path / "out" / name),)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    write_wav(tmp_path / "cat.wav", noise(1.0, 16_000))
    before = (tmp_path / "cat.wav").read_bytes()
    (result,) = reconstruct_files([tmp_path / "cat.wav"], tmp_path, Exact())
    assert result.status == "failed" and "would overwrite the input" in str(result.error)
    assert (tmp_path / "cat.wav").read_bytes() == before


def test_codebooks_that_are_not_there(tmp_path: Path) -> None:
    for num_codebooks in (0, 3):
        with pytest.raises(ValueError, match=f"exact has 2 codebooks, so not {num_codebooks}"):
            list(reconstruct_files([tmp_path], tmp_path / "out", Exact(), num_codebooks))


def test_as_users_call_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_wav(tmp_path / "cat.wav", noise(1.0, 16_000))
    words = [
        "codec",
        "reconstruct",
        str(tmp_path / "cat.wav"),
        "-o",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--codebooks", "4", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (ended.value.code, document["codec"], document["codebooks"]) == (0, "tiny", 4)
    codec = load_codec("tiny")
    with torch.inference_mode():
        tokens = codec.encode(torch.from_numpy(read_audio(tmp_path / "cat.wav"))[None])[:, :4]
        wanted = codec.decode(tokens)[0, :16_000].numpy().clip(-1, 1)
    assert np.abs(read_audio(tmp_path / "out" / "cat.wav") - wanted).max() < 1e-3
    with pytest.raises(SystemExit) as ended:
        main([*words, "--codebooks", "13"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "vab: tiny has 12 codebooks, so not 13\n"
