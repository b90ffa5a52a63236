"""Neural audio codecs: waveform <-> tokens (section 3.1).

EnCodec (AudioGen's, 4 codebooks of 2048) and DAC (12 codebooks of 1024) stand behind one protocol.
Both run at 16 kHz with 320 samples per frame, which is 50 frames per second.

Shapes: B batch, K codebooks, T audio frames, V codebook size, C codebook vector size, S samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from vab.codecs.audiocraft import AUDIOCRAFT_FILE, ENCODEC_SOURCE, read_audiocraft
from vab.config import HOP_LENGTH, SAMPLE_RATE, samples_to_frames
from vab.errors import CodecError, VABError, first_line
from vab.utils.files import read_json

if TYPE_CHECKING:
    from transformers import DacModel, EncodecModel

DAC_SOURCE = "descript/dac_16khz"
TINY_SOURCE = Path(__file__).parents[1] / "assets" / "vab-tiny"
_HUB_FILES = ["config.json", "model.safetensors", "codec.json", "codec.safetensors", AUDIOCRAFT_FILE]


class Codec(Protocol):
    """The interface of every codec. It has no state: the same input gives the same output."""

    name: str
    num_codebooks: int  # K
    codebook_size: int  # V
    dim: int  # C
    hop_length: int  # samples per frame
    sample_rate: int  # Hz

    def encode(self, waveform: Tensor) -> Tensor:
        """Tokens int64 [B, K, ceil(S / hop_length)] of a mono waveform [B, S] in -1..1."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Waveform [B, hop_length * T] of tokens [B, k, T]; k may be any first k <= K codebooks."""

    def codebook_vectors(self) -> Tensor:
        """The codec's own vectors [K, V, C], as the lookup returns them."""

    def to(self, device: str | torch.device) -> Self:
        """Moves the codec; returns itself."""


def has_codebooks(codec: Codec, vectors: NDArray[np.float32]) -> bool:
    """True if ``vectors`` [K,V,C] are those of the codec's first K codebooks, but for rounding.

    Tokens of other codebooks would decode to noise.
    """
    own = codec.codebook_vectors()[: len(vectors)].float().cpu().numpy()
    return own.shape == vectors.shape and np.allclose(own, vectors, atol=1e-3)


class EnCodec:
    """EnCodec at 16 kHz, as AudioGen uses it, on a ``transformers.EncodecModel``."""

    name = "encodec"
    hop_length = HOP_LENGTH
    sample_rate = SAMPLE_RATE

    def __init__(self, model: EncodecModel) -> None:
        config = model.config
        _check_rates(config.sampling_rate, config.upsampling_ratios)
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            raise CodecError("this EnCodec works on stereo, loudness or chunks; VAB needs the plain mono one")
        self.model = model.eval()
        self._folded: tuple[EncodecModel, tuple[torch.dtype, torch.device]] | None = None
        self.num_codebooks: int = config.num_quantizers
        self.codebook_size: int = config.codebook_size
        self.dim: int = config.codebook_dim or config.hidden_size

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Tokens int64 [B, K, ceil(S / 320)] of a waveform [B, S]."""
        if waveform.shape[-1] == 0:
            return waveform.new_zeros(len(waveform), self.num_codebooks, 0, dtype=torch.int64)
        # Without a bandwidth transformers takes the smallest, which may be fewer codebooks.
        bandwidth = self.model.config.target_bandwidths[-1]
        # [B, S] -> [B, 1, S] -> codes [chunks, B, K, T], of which there is one chunk
        return self._network().encode(waveform[:, None], bandwidth=bandwidth).audio_codes[0]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Waveform [B, 320 * T] of tokens [B, k, T], k <= K."""
        _check_tokens(tokens, self.num_codebooks, self.codebook_size)
        if tokens.shape[-1] == 0:
            return torch.zeros(len(tokens), 0, device=tokens.device)
        # [1 chunk, B, k, T], and no scale for it -> [B, 1, S]
        return self._network().decode(tokens[None], [None]).audio_values[:, 0]

    def _network(self) -> Any:
        """The model with its weight norm folded into the weights: the same bits, and less to compute.

        ``model`` stays as it was loaded, to be saved and to be told by its weights; what has no weight norm
        is shared with it.
        """
        weight = next(self.model.parameters())
        made_for = weight.dtype, weight.device
        if self._folded is None or self._folded[1] != made_for:
            shared = {id(tensor): tensor for tensor in chain(self.model.parameters(), self.model.buffers())}
            folded = copy.deepcopy(self.model, shared)
            modules: list[Any] = [each for each in folded.modules() if is_parametrized(each, "weight")]
            for module in modules:
                # By hand: remove_parametrizations would change the class, which is also that of ``model``'s.
                product = module.weight.detach()
                module.__class__ = type_before_parametrizations(module)
                del module.parametrizations
                module.weight = nn.Parameter(product, requires_grad=False)
            self._folded = folded, made_for  # in a tuple: it has no weights of its own to be told by
        return self._folded[0]

    def codebook_vectors(self) -> Tensor:
        """[K, V, C]."""
        return torch.stack([layer.codebook.embed for layer in self.model.quantizer.layers]).clone()

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        return self


class DAC:
    """Descript's codec at 16 kHz on a ``transformers.DacModel``.

    ``codebook_vectors`` are the un-normalised rows: DAC normalises both sides for the search only.
    """

    name = "dac"
    hop_length = HOP_LENGTH
    sample_rate = SAMPLE_RATE

    def __init__(self, model: DacModel) -> None:
        config = model.config
        # config.hop_length is not to be trusted: the Hub's file says 512.
        _check_rates(config.sampling_rate, config.downsampling_ratios)
        self.model = model.eval()  # in train mode the quantizer may drop codebooks
        self.num_codebooks: int = config.n_codebooks
        self.codebook_size: int = config.codebook_size
        self.dim: int = config.codebook_dim

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Tokens int64 [B, K, ceil(S / 320)] of a waveform [B, S]; the last frame is filled with silence."""
        samples = waveform.shape[-1]
        if samples == 0:
            return waveform.new_zeros(len(waveform), self.num_codebooks, 0, dtype=torch.int64)
        padded = F.pad(waveform, (0, samples_to_frames(samples) * HOP_LENGTH - samples))
        return self.model.encode(padded[:, None]).audio_codes  # [B, 1, S] -> [B, K, T]

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Waveform [B, 320 * T] of tokens [B, k, T], k <= K.

        The network itself returns 8 samples fewer (its transposed convolution of stride 5 trims one
        too many), so the end is filled with zeros.
        """
        _check_tokens(tokens, self.num_codebooks, self.codebook_size)
        frames = tokens.shape[-1]
        if frames == 0:
            return torch.zeros(len(tokens), 0, device=tokens.device)
        waveform = self.model.decode(audio_codes=tokens).audio_values
        return F.pad(waveform, (0, HOP_LENGTH * frames - waveform.shape[-1]))

    def codebook_vectors(self) -> Tensor:
        """[K, V, C]."""
        return torch.stack([q.codebook.weight.detach() for q in self.model.quantizer.quantizers])

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        return self


def load_codec(
    name: Literal["encodec", "dac", "tiny"],
    source: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Codec:
    """Load the codec called ``name`` onto ``device``.

    ``source`` is a local file or folder, or a Hub id. Without one: AudioGen's EnCodec
    (``compression_state_dict.bin`` of facebook/audiogen-medium), descript/dac_16khz, or the small
    codec inside the package. EnCodec is read in audiocraft's layout or in transformers' own.
    Raises ``CodecError`` if it cannot be found or is not the codec named.
    """
    if name == "encodec":
        path = _find(source or ENCODEC_SOURCE)
        if path.is_dir() and (path / AUDIOCRAFT_FILE).is_file():
            path = path / AUDIOCRAFT_FILE
        model = _read_transformers(path, "encodec") if path.is_dir() else read_audiocraft(path)
        return EnCodec(model).to(device)
    if name == "dac":
        return DAC(_read_transformers(_find(source or DAC_SOURCE), "dac")).to(device)
    if name == "tiny":
        from vab.codecs.tiny import TinyCodec

        folder = _find(source or TINY_SOURCE)
        try:
            return TinyCodec.from_pretrained(folder).to(device)
        except VABError as error:
            raise CodecError(str(error)) from error
        except Exception as error:  # JSON and torch each raise their own kinds
            raise CodecError(f"{folder} holds no small codec: {first_line(error)}") from error
    raise CodecError(f"no codec is called {name!r}; there are: encodec, dac, tiny")


def save_codec(folder: Path, codec: Codec) -> None:
    """Write the small codec into a model directory; the others have a home of their own."""
    from vab.codecs.tiny import TinyCodec

    if isinstance(codec, TinyCodec):
        codec.save_pretrained(folder)


def encode_long(
    codec: Codec,
    read_audio: Callable[[int, int], np.ndarray],
    first: int,
    last: int,
    context: int,
    chunk: int = 1500,
) -> Tensor:
    """Encode frames ``first`` to ``last`` of audio of any length: tokens int64 [K, last - first].

    ``read_audio(begin, samples)`` returns float32 [samples] of it, or fewer at its end. Chunks of ``chunk``
    frames are encoded with ``context`` frames of the audio on either side, whose own tokens are dropped: what
    lies beyond a chunk's edge counts as in one piece, and no more than one chunk is held.
    """
    device = codec.codebook_vectors().device
    parts = []
    for start in range(first, last, chunk):
        # 1. Read the chunk with its context on both sides, in samples.
        stop = min(start + chunk, last)
        before = min(start, context)  # the beginning has nothing before it
        begin = (start - before) * codec.hop_length
        end = (stop + context) * codec.hop_length
        waveform = torch.from_numpy(read_audio(begin, end - begin)).to(device)

        # 2. Encode it, and keep the chunk's own tokens.
        tokens = codec.encode(waveform[None])[0]  # [K, before + chunk + what follows]
        parts.append(tokens[:, before : before + stop - start])
    return torch.cat(parts, dim=1)


def decode_long(codec: Codec, tokens: Tensor, chunk: int = 1500, overlap: int = 50) -> Iterator[Tensor]:
    """Decode tokens [K, T] of any length piece by piece: waveforms [S_i], 320 * T samples in all.

    Chunks of ``chunk`` frames share ``overlap`` frames with the next; no more than one chunk is held.
    The seam is a linear cross-fade (both sides are the same sound, so their amplitudes add) over the
    middle half of what is shared; the outer quarters, next to a chunk's edge, serve as context only.
    Up to ``chunk`` frames the result is ``codec.decode``'s.
    """
    if not 0 <= overlap < chunk:
        raise ValueError(f"overlap must be at least 0 and less than chunk: {overlap}, {chunk}")
    total = tokens.shape[-1]
    shared = overlap * codec.hop_length
    tail: Tensor | None = None
    start = 0
    while True:
        stop = min(start + chunk, total)
        waveform = codec.decode(tokens[None, :, start:stop])[0]

        # Fade over what is shared with the chunk before: 0 for the first quarter, then up, 1 for the last.
        if tail is not None:
            steps = torch.arange(shared, device=waveform.device, dtype=waveform.dtype) + 0.5
            fade = (2 * steps / max(shared, 1) - 0.5).clamp(0, 1)
            waveform = torch.cat([torch.lerp(tail, waveform[:shared], fade), waveform[shared:]])
        if stop == total:
            yield waveform
            return

        # Hold back what is shared with the next chunk.
        cut = len(waveform) - shared
        yield waveform[:cut]
        tail = waveform[cut:].clone()  # so that the rest of the chunk can be freed
        start = stop - overlap


def _read_transformers(folder: Path, kind: Literal["encodec", "dac"]) -> Any:
    """Read a transformers model from a folder of ``save_pretrained``; every weight must be there."""
    from transformers import DacModel, EncodecModel

    config = folder / "config.json"
    if not config.is_file():
        raise CodecError(f"{folder} has no config.json; pass the codec's own folder with --codec-path")
    try:
        model_type = read_json(config).get("model_type")
    except (OSError, ValueError) as error:
        raise CodecError(f"{config}: is no configuration of a codec ({first_line(error)})") from error
    if model_type != kind:
        raise CodecError(f"{folder} holds a model of type {model_type!r}, not {kind!r}")
    network: Any = {"encodec": EncodecModel, "dac": DacModel}[kind]
    try:
        model, report = network.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CodecError(f"{folder} cannot be loaded as {kind}: {first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CodecError(f"{folder} lacks {len(missing)} weights of {kind}, such as {missing[0]}")
    return model


def _find(source: str | Path) -> Path:
    """Resolve ``source`` to a local file or folder; if there is none, download the Hub repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = Path(source).expanduser()
    if path.exists():
        return path
    try:
        return Path(snapshot_download(str(source), allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise CodecError(f"there is no codec at {source}; put the file there or pass --codec-path") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CodecError(
            f"no codec at {source}: it is no local file, and it cannot be downloaded from the Hub "
            f"({first_line(error)}); download it elsewhere and pass --codec-path"
        ) from error


def _check_rates(sample_rate: int, ratios: list[int] | tuple[int, ...]) -> None:
    hop_length = math.prod(ratios)
    if (sample_rate, hop_length) != (SAMPLE_RATE, HOP_LENGTH):
        raise CodecError(
            f"this codec has {sample_rate} Hz and {hop_length} samples per frame; "
            f"VAB needs {SAMPLE_RATE} and {HOP_LENGTH}"
        )


def _check_tokens(tokens: Tensor, num_codebooks: int, codebook_size: int) -> None:
    if tokens.ndim != 3 or not 1 <= tokens.shape[1] <= num_codebooks:
        raise ValueError(f"tokens must be [B, 1..{num_codebooks}, T], not {list(tokens.shape)}")
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= codebook_size):
        raise ValueError(f"tokens must lie in 0..{codebook_size - 1}; is a [MASK] left?")
