"""Codecs: lengths, purity, the traps of each library, and audiocraft's file layout."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from torch.torch_version import TorchVersion

from helpers.codecs import save_dac, save_encodec
from vab.codecs.codec import DAC, Codec, CodecError, EnCodec, decode_long, load_codec
from vab.data.extraction.encoding import weights_fingerprint

HOP_LENGTH = 320


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


SAVE = {"encodec": save_encodec, "dac": save_dac}


@pytest.fixture(scope="module", params=["encodec", "dac"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    folder = tmp_path_factory.mktemp(request.param)
    SAVE[request.param](folder)
    return load_codec(request.param, folder)


def random_tokens(codec: Codec, frames: int, batch: int = 1, num_codebooks: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(
        codec.codebook_size, (batch, num_codebooks or codec.num_codebooks, frames), generator=generator
    )


def test_importing_is_light() -> None:
    code = "import sys, vab.codecs.codec, vab.vision; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "torch" in loaded.split()
    assert not {"transformers", "timm", "torchvision", "huggingface_hub"} & set(loaded.split())


# --- every codec -------------------------------------------------------------------------------------


def test_sizes(codec: Codec) -> None:
    expected = {"encodec": (4, 32, 8), "dac": (12, 64, 8)}[codec.name]
    assert (codec.num_codebooks, codec.codebook_size, codec.dim) == expected
    assert (codec.hop_length, codec.sample_rate) == (HOP_LENGTH, 16000)
    assert codec.codebook_vectors().shape == expected


def test_folding_weight_norm_changes_no_bit_and_no_weight(codec: Codec) -> None:
    if codec.name == "dac":
        pytest.skip("transformers keeps no weight norm in DAC")
    codec = copy.deepcopy(codec)
    model = codec.model  # type: ignore[attr-defined]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fingerprint = weights_fingerprint(codec)
    tokens, waveform = random_tokens(codec, 9), noise(1, 3000)
    with torch.no_grad():
        plain = model.decode(tokens[None], [None]).audio_values[:, 0]
        codes = model.encode(waveform[:, None], bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]
    for _ in range(2):
        assert torch.equal(codec.decode(tokens), plain) and torch.equal(codec.encode(waveform), codes)
    folded = codec._network()  # type: ignore[attr-defined]
    assert not any(map(is_parametrized, folded.modules())) and any(map(is_parametrized, model.modules()))
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert weights_fingerprint(codec) == fingerprint


@settings(max_examples=30, deadline=None)
@given(samples=st.one_of(st.integers(0, 700), st.integers(0, 9).map(lambda n: 640 * n), st.integers(1, 6000)))
def test_encode_covers_any_length(codec: Codec, samples: int) -> None:
    tokens = codec.encode(noise(2, samples))
    assert tokens.shape == (2, codec.num_codebooks, math.ceil(samples / HOP_LENGTH))
    assert tokens.dtype == torch.int64
    assert ((tokens >= 0) & (tokens < codec.codebook_size)).all()


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(0, 30), data=st.data())
def test_decode_is_exactly_as_long_as_its_frames(codec: Codec, frames: int, data: st.DataObject) -> None:
    num_codebooks = data.draw(st.integers(1, codec.num_codebooks))
    waveform = codec.decode(random_tokens(codec, frames, batch=2, num_codebooks=num_codebooks))
    assert waveform.shape == (2, HOP_LENGTH * frames)
    assert waveform.isfinite().all() and not waveform.requires_grad


def test_a_batch_is_its_clips(codec: Codec) -> None:
    waveforms = noise(3, 5000)
    tokens = codec.encode(waveforms)
    assert tokens.unique().numel() > 4, "the random codec must not be constant"
    assert torch.equal(tokens, torch.cat([codec.encode(w[None]) for w in waveforms]))
    decoded = codec.decode(tokens)
    assert decoded.std() > 1e-4
    assert torch.allclose(decoded, torch.cat([codec.decode(t[None]) for t in tokens]), atol=1e-3)


def test_the_same_input_gives_the_same_output(codec: Codec) -> None:
    waveform = noise(1, 4001)
    state = torch.get_rng_state()
    first = codec.encode(waveform)
    assert torch.equal(torch.get_rng_state(), state), "a codec must draw no random numbers"
    torch.manual_seed(1)
    assert torch.equal(codec.encode(waveform), first)
    assert torch.equal(codec.decode(first), codec.decode(first))


def test_fewer_codebooks_are_another_sound(codec: Codec) -> None:
    tokens = random_tokens(codec, 20)
    assert not torch.allclose(codec.decode(tokens), codec.decode(tokens[:, :2]), atol=1e-4)


@pytest.mark.parametrize("wrong", ["mask", "negative", "codebooks", "shape"])
def test_wrong_tokens_are_refused(codec: Codec, wrong: str) -> None:
    tokens = random_tokens(codec, 5)
    if wrong == "mask":
        tokens[0, 0, 0] = codec.codebook_size
    elif wrong == "negative":
        tokens[0, 0, 0] = -1
    elif wrong == "codebooks":
        tokens = torch.cat([tokens, tokens[:, :1]], dim=1)
    else:
        tokens = tokens[0]
    with pytest.raises(ValueError, match="tokens must"):
        codec.decode(tokens)


# --- codebook vectors are the ones the quantizer uses ------------------------------------------------


def test_encodec_vectors_are_searched_and_looked_up(tmp_path: Path) -> None:
    save_encodec(tmp_path)
    codec = load_codec("encodec", tmp_path)
    assert isinstance(codec, EnCodec)
    vectors = codec.codebook_vectors()
    for level, layer in enumerate(codec.model.quantizer.layers):
        assert torch.equal(layer.decode(torch.arange(32)[None])[0].T, vectors[level])
    waveform = noise(1, 8000)
    with torch.no_grad():
        residual = codec.model.encoder(waveform[:, None])[0].T  # [T, C]
    tokens = codec.encode(waveform)[0]
    for level in range(4):
        nearest = torch.cdist(residual, vectors[level]).argmin(-1)
        assert torch.equal(nearest, tokens[level])
        residual = residual - vectors[level][nearest]
    vectors.zero_()
    assert codec.codebook_vectors().any(), "the codec's own table must not be shared"


def test_dac_vectors_are_searched_and_looked_up(tmp_path: Path) -> None:
    save_dac(tmp_path)
    codec = load_codec("dac", tmp_path)
    assert isinstance(codec, DAC)
    vectors = codec.codebook_vectors()
    assert not torch.allclose(vectors.norm(dim=-1), torch.ones(12, 64)), "rows must not be normalised"
    tokens = random_tokens(codec, 7)
    latents = codec.model.quantizer.from_codes(tokens)[1][0]  # [8 K, T]
    assert torch.equal(
        latents.reshape(12, 8, 7).transpose(1, 2), vectors[torch.arange(12)[:, None], tokens[0]]
    )
    waveform = noise(1, 6400)
    with torch.no_grad():
        first = codec.model.quantizer.quantizers[0].in_proj(codec.model.encoder(waveform[:, None]))[0].T
    cosine = F.normalize(first, dim=-1) @ F.normalize(vectors[0], dim=-1).T
    assert torch.equal(cosine.argmax(-1), codec.encode(waveform)[0, 0])
    vectors.zero_()
    assert codec.codebook_vectors().any(), "the codec's own table must not be shared"


def test_dac_fills_only_the_samples_its_network_leaves_out(tmp_path: Path) -> None:
    save_dac(tmp_path)
    codec = load_codec("dac", tmp_path)
    assert isinstance(codec, DAC)
    tokens = random_tokens(codec, 50)
    with torch.no_grad():
        own = codec.model.decode(audio_codes=tokens).audio_values
    assert own.shape[-1] == 50 * HOP_LENGTH - 8
    decoded = codec.decode(tokens)
    assert torch.equal(decoded[:, :-8], own) and not decoded[:, -8:].any()


# --- audiocraft's file -------------------------------------------------------------------------------

CONFIG = """
sample_rate: 16000
channels: 1
solver: compression
compression_model: encodec
encodec:
  autoencoder: seanet
  quantizer: rvq
  sample_rate: ${sample_rate}
  channels: ${channels}
  causal: false
  renormalize: false
seanet:
  dimension: 8
  channels: ${channels}
  causal: ${encodec.causal}
  n_filters: 2
  n_residual_layers: 1
  ratios: [8, 5, 4, 2]
  activation: ELU
  activation_params: {alpha: 1.0}
  norm: weight_norm
  norm_params: {}
  kernel_size: 7
  residual_kernel_size: 3
  last_kernel_size: 7
  dilation_base: 2
  pad_mode: PAD_MODE
  true_skip: true
  compress: 2
  lstm: 2
  disable_norm_outer_blocks: 0
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}
  encoder: {}
rvq: {n_q: 4, q_dropout: false, bins: 32, decay: 0.99, kmeans_init: true, kmeans_iters: 50}
"""


def audiocraft_state(filters: int = 2, dim: int = 8, bins: int = 32, levels: int = 4) -> dict[str, Tensor]:
    """Random weights under audiocraft's names: SEANet encoder and decoder, and the quantizer."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, scale: float = 1.0) -> None:
        state[name] = torch.randn(*shape, generator=generator) * scale

    def conv(name: str, inside: int, outside: int, kernel: int, kind: str = "conv") -> None:
        first, second = (outside, inside) if kind == "conv" else (inside, outside)
        put(f"{name}.{kind}.{kind}.bias", outside, scale=0.1)
        put(f"{name}.{kind}.{kind}.weight_g", first, 1, 1)
        put(f"{name}.{kind}.{kind}.weight_v", first, second, kernel)

    def residual(name: str, width: int) -> None:
        conv(f"{name}.block.1", width, width // 2, 3)
        conv(f"{name}.block.3", width // 2, width, 1)

    def lstm(name: str, width: int) -> None:
        for layer in range(2):
            for part in ("ih", "hh"):
                put(f"{name}.lstm.weight_{part}_l{layer}", 4 * width, width, scale=width**-0.5)
                put(f"{name}.lstm.bias_{part}_l{layer}", 4 * width, scale=0.1)

    conv("encoder.model.0", 1, filters, 7)
    width = filters
    for index, ratio in enumerate((2, 4, 5, 8)):
        residual(f"encoder.model.{1 + 3 * index}", width)
        conv(f"encoder.model.{3 + 3 * index}", width, 2 * width, 2 * ratio)
        width *= 2
    lstm("encoder.model.13", width)
    conv("encoder.model.15", width, dim, 7)

    conv("decoder.model.0", dim, width, 7)
    lstm("decoder.model.1", width)
    for index, ratio in enumerate((8, 5, 4, 2)):
        conv(f"decoder.model.{3 + 3 * index}", width, width // 2, 2 * ratio, "convtr")
        width //= 2
        residual(f"decoder.model.{4 + 3 * index}", width)
    conv("decoder.model.15", width, 1, 7)

    for level in range(levels):
        name = f"quantizer.vq.layers.{level}._codebook"
        state[f"{name}.inited"] = torch.ones(1)
        state[f"{name}.cluster_size"] = torch.ones(bins)
        put(f"{name}.embed", bins, dim)
        put(f"{name}.embed_avg", bins, dim)
    return state


def audiocraft_package(pad_mode: str = "constant") -> dict[str, object]:
    config = CONFIG.replace("PAD_MODE", pad_mode)
    return {"best_state": audiocraft_state(), "xp.cfg": config, "version": "1.0.0", "exported": True}


class Reference:
    """SEANet written out on audiocraft's names; lengths must be whole frames."""

    def __init__(self, state: dict[str, Tensor], pad_mode: str) -> None:
        self.state = state
        self.pad_mode = pad_mode

    def weight(self, name: str) -> Tensor:
        v = self.state[f"{name}.weight_v"]
        return v * self.state[f"{name}.weight_g"] / v.norm(dim=(1, 2), keepdim=True)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.weight(f"{name}.conv.conv")
        padding = weight.shape[-1] - stride
        x = F.pad(x, (padding - padding // 2, padding // 2), mode=self.pad_mode)
        return F.conv1d(x, weight, self.state[f"{name}.conv.conv.bias"], stride)

    def convtr(self, x: Tensor, name: str, stride: int) -> Tensor:
        bias = self.state[f"{name}.convtr.convtr.bias"]
        x = F.conv_transpose1d(x, self.weight(f"{name}.convtr.convtr"), bias, stride)
        return x[..., stride - stride // 2 : x.shape[-1] - stride // 2]

    def residual(self, x: Tensor, name: str) -> Tensor:
        return x + self.conv(F.elu(self.conv(F.elu(x), f"{name}.block.1")), f"{name}.block.3")

    def lstm(self, x: Tensor, name: str) -> Tensor:
        lstm = torch.nn.LSTM(x.shape[1], x.shape[1], 2)
        start = f"{name}.lstm."
        lstm.load_state_dict({k.removeprefix(start): v for k, v in self.state.items() if k.startswith(start)})
        rows = x.permute(2, 0, 1)
        return (lstm(rows)[0] + rows).permute(1, 2, 0)

    def encoder(self, waveform: Tensor) -> Tensor:
        """[B, S] -> [B, C, T]."""
        x = self.conv(waveform[:, None], "encoder.model.0")
        for index, ratio in enumerate((2, 4, 5, 8)):
            x = self.residual(x, f"encoder.model.{1 + 3 * index}")
            x = self.conv(F.elu(x), f"encoder.model.{3 + 3 * index}", ratio)
        return self.conv(F.elu(self.lstm(x, "encoder.model.13")), "encoder.model.15")

    def decoder(self, tokens: Tensor) -> Tensor:
        """[B, K, T] -> [B, S]."""
        tables = [self.state[f"quantizer.vq.layers.{k}._codebook.embed"] for k in range(tokens.shape[1])]
        x = torch.stack([table[tokens[:, k]] for k, table in enumerate(tables)]).sum(0).transpose(1, 2)
        x = self.lstm(self.conv(x, "decoder.model.0"), "decoder.model.1")
        for index, ratio in enumerate((8, 5, 4, 2)):
            x = self.convtr(F.elu(x), f"decoder.model.{3 + 3 * index}", ratio)
            x = self.residual(x, f"decoder.model.{4 + 3 * index}")
        return self.conv(F.elu(x), "decoder.model.15")[:, 0]


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
@torch.no_grad()
def test_audiocraft_file_gives_audiocraft_numbers(tmp_path: Path, pad_mode: str) -> None:
    package = audiocraft_package(pad_mode)
    state = audiocraft_state()
    assert len(state) == 116
    path = tmp_path / "compression_state_dict.bin"
    torch.save(package, path)
    codec = load_codec("encodec", path)
    assert isinstance(codec, EnCodec)
    assert codec.model.config.pad_mode == pad_mode
    assert (codec.num_codebooks, codec.codebook_size, codec.dim) == (4, 32, 8)
    for level, vectors in enumerate(codec.codebook_vectors()):
        assert torch.equal(vectors, state[f"quantizer.vq.layers.{level}._codebook.embed"])
    waveform, tokens = noise(2, 50 * HOP_LENGTH), random_tokens(codec, 50, batch=2)
    reference = Reference(state, pad_mode)
    encoded, decoded = reference.encoder(waveform), reference.decoder(tokens)
    assert torch.allclose(codec.model.encoder(waveform[:, None]), encoded, atol=1e-4 * float(encoded.std()))
    assert torch.allclose(codec.decode(tokens), decoded, atol=1e-4 * float(decoded.std()))
    other = Reference(state, "reflect" if pad_mode == "constant" else "constant")
    assert not torch.allclose(encoded[..., 0], other.encoder(waveform)[..., 0], rtol=0.01)
    assert not torch.allclose(decoded[..., 0], other.decoder(tokens)[..., 0], rtol=0.01)


def test_audiocraft_folder_and_file_are_the_same(tmp_path: Path) -> None:
    torch.save(audiocraft_package(), tmp_path / "compression_state_dict.bin")
    tokens = random_tokens(load_codec("encodec", tmp_path), 9)
    file = load_codec("encodec", tmp_path / "compression_state_dict.bin")
    assert torch.equal(load_codec("encodec", str(tmp_path)).decode(tokens), file.decode(tokens))


def test_audiocraft_survives_transformers_own_format(tmp_path: Path) -> None:
    torch.save(audiocraft_package("reflect"), tmp_path / "file.bin")
    first = load_codec("encodec", tmp_path / "file.bin")
    assert isinstance(first, EnCodec)
    first.model.save_pretrained(tmp_path / "folder")
    second = load_codec("encodec", tmp_path / "folder")
    waveform = noise(1, 3333)
    tokens = first.encode(waveform)
    assert torch.equal(tokens, second.encode(waveform))
    assert torch.equal(first.decode(tokens), second.decode(tokens))


# --- what people see when something is wrong ---------------------------------------------------------


class Harmful:
    """Its pickle would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({**audiocraft_package(), "extra": Harmful(tmp_path / "harm")}, tmp_path / "file.bin")
    with pytest.raises(CodecError, match=r"for safety\): it holds a posix\.mkdir$"):
        load_codec("encodec", tmp_path / "file.bin")
    assert not (tmp_path / "harm").exists()


def test_a_file_with_omegaconf_s_objects_is_the_same_codec(tmp_path: Path) -> None:
    package = audiocraft_package("reflect")
    torch.save(package, tmp_path / "text.bin")
    held = OmegaConf.create(str(package["xp.cfg"]))
    OmegaConf.set_struct(held, True)
    others = {"version": TorchVersion("2.1.0"), "epoch": np.float64(3), "history": [{"loss": np.int64(1)}]}
    torch.save({**package, "xp.cfg": held, **others}, tmp_path / "objects.bin")
    torch.save({**package, "xp.cfg": OmegaConf.to_container(held)}, tmp_path / "values.bin")

    waveform = noise(1, 3333)
    tokens = load_codec("encodec", tmp_path / "text.bin").encode(waveform)
    # another process: here OmegaConf's own classes are imported, and a user has not got them
    for name in ("objects.bin", "values.bin"):
        torch.save(waveform, tmp_path / "waveform.pt")
        code = (
            "import sys, torch; sys.modules['omegaconf'] = None; from vab.codecs.codec import load_codec; "
            "torch.save(load_codec('encodec', sys.argv[1]).encode(torch.load(sys.argv[2])), sys.argv[3])"
        )
        files = (tmp_path / name, tmp_path / "waveform.pt", tmp_path / "tokens.pt")
        subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True)
        assert torch.equal(torch.load(tmp_path / "tokens.pt"), tokens)


def test_an_object_of_another_class_is_named(tmp_path: Path) -> None:
    torch.save({**audiocraft_package(), "folder": tmp_path}, tmp_path / "file.bin")
    with pytest.raises(CodecError, match=r"it holds a pathlib\.PosixPath$"):
        load_codec("encodec", tmp_path / "file.bin")


def broken(kind: str) -> object:
    package = audiocraft_package()
    state = package["best_state"]
    assert isinstance(state, dict)
    if kind == "missing":
        del state["decoder.model.15.conv.conv.bias"]
    elif kind == "unexpected":
        state["encoder.model.99.bias"] = torch.zeros(1)
    elif kind == "shape":
        state["decoder.model.15.conv.conv.bias"] = torch.zeros(2)
    elif kind == "no pad mode":
        package["xp.cfg"] = CONFIG.replace("  pad_mode: PAD_MODE\n", "")
    elif kind == "not yaml":
        package["xp.cfg"] = "{"
    elif kind == "settings":
        package["xp.cfg"] = {"sample_rate": 16000}
    elif kind == "no settings":
        package["xp.cfg"] = None
    elif kind == "rate":
        package["xp.cfg"] = CONFIG.replace("16000", "32000").replace("PAD_MODE", "constant")
    elif kind == "pointer":
        return {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.0.0"}
    elif kind == "language model":
        return {"best_state": {}, "version": "1.0.0"}
    elif kind == "tensor":
        return torch.zeros(3)
    return package


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"1 missing \['decoder.layers.15.conv.bias'\], 0 unexpected"),
        ("unexpected", r"0 missing \[\], 1 unexpected \['encoder.layers.99.bias'\]"),
        ("shape", "does not fit its own xp.cfg"),
        ("no pad mode", "does not say 'pad_mode'"),
        ("not yaml", "cannot be understood"),
        ("settings", "does not say 'seanet'"),
        ("no settings", "cannot be understood"),
        ("rate", "32000 Hz and 320 samples per frame"),
        ("pointer", "pointer to 'facebook/encodec_32khz'"),
        ("language model", "no best_state and xp.cfg"),
        ("tensor", "holds a Tensor"),
    ],
)
def test_broken_audiocraft_files(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "file.bin"
    torch.save(broken(kind), path)
    with pytest.raises(CodecError, match=message) as caught:
        load_codec("encodec", path)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "song.bin").write_bytes(b"RIFF not a codec")
    with pytest.raises(CodecError, match=r"song\.bin cannot be read"):
        load_codec("encodec", tmp_path / "song.bin")
    with pytest.raises(CodecError, match=r"config\.json"):
        load_codec("dac", tmp_path)
    with pytest.raises(CodecError, match=r"config\.json"):
        load_codec("dac", tmp_path / "song.bin")


def test_a_folder_of_another_codec(tmp_path: Path) -> None:
    save_dac(tmp_path / "dac")
    with pytest.raises(CodecError, match="type 'dac', not 'encodec'"):
        load_codec("encodec", tmp_path / "dac")
    save_dac(tmp_path / "44khz", downsampling_ratios=[2, 4, 8, 8], sampling_rate=44100)
    with pytest.raises(CodecError, match="44100 Hz and 512 samples"):
        load_codec("dac", tmp_path / "44khz")
    save_encodec(tmp_path / "stereo", audio_channels=2)
    with pytest.raises(CodecError, match="mono"):
        load_codec("encodec", tmp_path / "stereo")


def test_a_folder_with_weights_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_dac(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("decoder.conv2.bias")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CodecError, match=r"lacks 1 weights of dac, such as decoder\.conv2\.bias"):
        load_codec("dac", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CodecError, match="cannot be loaded as dac"):
        load_codec("dac", tmp_path)


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CodecError, match="--codec-path"):
        load_codec("encodec", tmp_path / "no" / "file.bin")
    with pytest.raises(CodecError, match=r"nobody/nothing.*--codec-path") as caught:
        load_codec("dac", "nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(CodecError, match="there are: encodec, dac, tiny"):
        load_codec("opus")  # type: ignore[arg-type]


# --- decoding any length -----------------------------------------------------------------------------


class Lookup:
    """A codec without context: each frame is the sum of its tokens, held for 320 samples."""

    name, num_codebooks, codebook_size, dim, hop_length, sample_rate = "lookup", 2, 16, 1, HOP_LENGTH, 16000
    longest = 0

    def encode(self, waveform: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, tokens: Tensor) -> Tensor:
        self.longest = max(self.longest, tokens.shape[-1])
        return (tokens.sum(1) / 32).repeat_interleave(HOP_LENGTH, dim=-1)

    def codebook_vectors(self) -> Tensor:
        raise NotImplementedError

    def to(self, device: str | torch.device) -> Lookup:
        return self


@settings(max_examples=100, deadline=None)
@given(frames=st.integers(0, 60), chunk=st.integers(1, 20), data=st.data())
def test_decode_long_is_seamless(frames: int, chunk: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, chunk - 1))
    codec = Lookup()
    tokens = random_tokens(codec, frames)[0]
    pieces = list(decode_long(codec, tokens, chunk, overlap))
    assert torch.equal(torch.cat(pieces), codec.decode(tokens[None])[0])
    codec.longest = 0
    assert max(len(piece) for piece in decode_long(codec, tokens, chunk, overlap)) <= chunk * HOP_LENGTH
    assert codec.longest <= chunk


def test_decode_long_of_a_short_clip_is_decode(codec: Codec) -> None:
    tokens = random_tokens(codec, 12)
    (piece,) = decode_long(codec, tokens[0], chunk=12, overlap=5)
    assert torch.equal(piece, codec.decode(tokens)[0])


def test_decode_long_joins_chunks_of_a_real_codec(codec: Codec) -> None:
    tokens = random_tokens(codec, 100)
    joined = torch.cat(list(decode_long(codec, tokens[0], chunk=45, overlap=24)))
    whole = codec.decode(tokens)[0]
    assert joined.shape == whole.shape
    # What differs is the context cut off at a chunk's edge; 6 frames away it hardly matters.
    assert (joined - whole).pow(2).mean() < 1e-3 * whole.pow(2).mean()


class Ramp(Lookup):
    """Tells its chunks apart: the n-th call is n everywhere."""

    calls = 0

    def decode(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        return torch.full((1, HOP_LENGTH * tokens.shape[-1]), float(self.calls))


def test_the_seam_is_a_linear_fade_away_from_the_edges() -> None:
    joined = torch.cat(list(decode_long(Ramp(), torch.zeros(2, 16, dtype=torch.int64), chunk=10, overlap=4)))
    seam = joined[6 * HOP_LENGTH : 10 * HOP_LENGTH]
    assert (joined[: 7 * HOP_LENGTH] == 1).all() and (joined[9 * HOP_LENGTH :] == 2).all()
    middle = seam[HOP_LENGTH : 3 * HOP_LENGTH]
    assert torch.allclose(middle.diff(), torch.full((2 * HOP_LENGTH - 1,), 1 / (2 * HOP_LENGTH)), atol=1e-6)


@pytest.mark.parametrize(("chunk", "overlap"), [(10, 10), (10, -1), (0, 0)])
def test_decode_long_refuses_impossible_chunks(chunk: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        list(decode_long(Lookup(), torch.zeros(2, 5, dtype=torch.int64), chunk, overlap))


@pytest.mark.parametrize(
    ("file", "content"),
    [("codec.json", b"not JSON"), ("codec.json", b'{"octaves": 3}'), ("codec.safetensors", b"cut")],
)
def test_a_damaged_small_codec_is_one_line(tmp_path: Path, file: str, content: bytes) -> None:
    load_codec("tiny").save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(
        CodecError, match=r"codec\.json: is no configuration|codec\.safetensors: cannot be read"
    ) as caught:
        load_codec("tiny", tmp_path)
    assert "\n" not in str(caught.value)
