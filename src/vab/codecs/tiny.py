"""The small codec that ships in the package: residual VQ of log-mel frames, a ConvNeXt decoder, Griffin-Lim.

The encoder is not learned by gradients: the principal components of log-mel frames are quantised by K
codebooks every 20 ms, so tokens do not depend on the decoder. A code lasts until another one saves more
error than a change is worth (``hold``): what a sound's texture does from frame to frame would be noise in
the tokens, and nobody could predict it. The decoder turns the quantised frames
into a magnitude spectrogram of two parts: tone, and noise under an envelope. Sea, rain and rotors are
noise, and a decoder that can only predict a mean turns them into a hum. Phases come from Griffin-Lim
iterations. The noise is drawn from a fixed seed, so the waveform is a function of the tokens alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vab.config import HOP, SAMPLE_RATE, current_names, samples_to_frames
from vab.utils.files import save_tensors, write_whole
from vab.utils.mel import mel_filters

FLOOR = 0.008  # of mel magnitudes, about 90 dB below full scale
SPREAD = 4.0  # brings a frame's components to a size networks like


@dataclass(frozen=True)
class TinyCodecConfig:
    """Sizes of the small codec. The spectrogram runs at twice the token rate, for sharper onsets."""

    num_codebooks: int = 12  # K; VAB models the first four, as with DAC
    codebook_size: int = 1024  # V
    dim: int = 64  # C, principal components of a frame
    bands: int = 100  # mel bands
    window: int = 1024  # samples of one spectrogram frame, hop 160
    decoder_width: int = 256  # at 50 Hz
    decoder_layers: int = 4
    detail_width: int = 160  # at 100 Hz
    detail_layers: int = 2
    noise: int = 16  # channels of noise the decoder may use
    hold: float = 60.0  # squared error that a change of code must save; 0: the nearest code, frame by frame
    lasting: int = 4  # hold goes for the first so many codebooks, those that VAB models
    iterations: int = 32  # of Griffin-Lim

    @property
    def hop(self) -> int:
        """Samples between spectrogram frames: half a token."""
        return HOP // 2

    @property
    def bins(self) -> int:
        """Frequencies of one spectrogram frame."""
        return self.window // 2 + 1


def hertz_mel_filters(bands: int, fft: int) -> Tensor:
    """Mel filters float32 [fft // 2 + 1, bands] from 20 Hz up, triangles straight over hertz."""
    filters = mel_filters(bands, fft, SAMPLE_RATE, 20.0, SAMPLE_RATE / 2, straight_in="hertz")
    return torch.from_numpy(filters).float()


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index [n] of the nearest of the centres [V, C] for each point [n, C]."""
    half = centres.square().sum(1) / 2
    return torch.cat([(half - part @ centres.T).argmin(1) for part in points.split(8192)])


def lasting(frames: Tensor, centres: Tensor, hold: float) -> Tensor:
    """The index [B, T] of a centre [V, C] for each of the frames [B, T, C], such that indices last.

    Least is the sum of squared errors plus ``hold`` for each place where the index changes: Viterbi's
    algorithm finds it. With a ``hold`` of 0 that is the nearest centre.
    """
    error = centres.square().sum(1) - 2 * frames @ centres.T  # [B, T, V], less what a frame adds to all
    if not hold:
        return error.argmin(2)
    own = torch.arange(len(centres), device=frames.device)
    cost, moves = error[:, 0], []  # of the best way to each centre, and where that way comes from
    for now in error.unbind(1)[1:]:
        least, best = cost.min(1, keepdim=True)
        stays = cost <= least + hold
        moves.append(torch.where(stays, own, best))
        cost = torch.where(stays, cost, least + hold) + now
    way = [cost.argmin(1, keepdim=True)]
    for move in reversed(moves):
        way.append(move.gather(1, way[-1]))
    return torch.cat(way[::-1], dim=1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer network per frame: [B, width, T] -> same."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.rise = nn.Linear(width, 3 * width)
        self.fall = nn.Linear(3 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))
        y = self.scale * self.fall(F.gelu(self.rise(y)))
        return x + y.transpose(1, 2)


def _blocks(width: int, layers: int) -> nn.Sequential:
    return nn.Sequential(*(ConvNeXtBlock(width, 1.0 / layers) for _ in range(layers)))


class TinyCodec(nn.Module):
    """Waveform [B, S] at 16 kHz <-> tokens [B, K, T] at 50 Hz."""

    hann: Tensor  # [window]
    filters: Tensor  # [bins, bands]
    spread: Tensor  # [bands, bins]
    mean: Tensor  # [2 * bands]
    basis: Tensor  # [2 * bands, C]
    vectors: Tensor  # [K, V, C]

    name = "tiny"
    hop = HOP
    sample_rate = SAMPLE_RATE

    def __init__(self, config: TinyCodecConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or TinyCodecConfig()
        self.num_codebooks, self.codebook_size, self.dim = c.num_codebooks, c.codebook_size, c.dim
        self.register_buffer("hann", torch.hann_window(c.window), persistent=False)
        filters = hertz_mel_filters(c.bands, c.window)
        self.register_buffer("filters", filters, persistent=False)
        # bands back to bins: each bin is the mean of the bands it is in, each band spread over its bins
        spread = filters / filters.sum(1, keepdim=True).clamp_min(1e-6) / (filters.sum(0) + 1e-2)
        self.register_buffer("spread", spread.T.contiguous(), persistent=False)

        self.register_buffer("mean", torch.zeros(2 * c.bands))  # of the two log-mel frames of a token
        self.register_buffer("basis", torch.eye(2 * c.bands, c.dim))  # their principal components
        self.register_buffer("vectors", torch.zeros(c.num_codebooks, c.codebook_size, c.dim))

        self.from_code = nn.Conv1d(c.dim, c.decoder_width, 7, padding=3)
        self.decoder = _blocks(c.decoder_width, c.decoder_layers)
        self.to_detail = nn.Linear(c.decoder_width, 2 * c.detail_width)
        self.add_noise = nn.Linear(c.noise, c.detail_width)
        self.detail = _blocks(c.detail_width, c.detail_layers)
        self.norm = nn.LayerNorm(c.detail_width)
        self.to_spectrum = nn.Linear(c.detail_width, 2 * c.bins)
        nn.init.normal_(self.to_spectrum.weight, std=0.02)
        nn.init.constant_(self.to_spectrum.bias, -0.7)  # begin with the outline, half tone and half noise

    # --- between waveforms and continuous frames: what training needs ---

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 320 T] -> complex frames [B, 2 T, bins], centred on every 160th sample."""
        c = self.config
        spectrum = torch.stft(
            waveform, c.window, c.hop, window=self.hann, pad_mode="constant", return_complex=True
        )
        return spectrum.transpose(1, 2)[:, :-1]

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 320 T] -> log-mel frames [B, 2 T, bands]."""
        return torch.log(self.spectrogram(waveform).abs() @ self.filters + FLOOR)

    def analyse(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 320 T] -> frames [B, T, C], before quantising."""
        pairs = self.log_mel(waveform).reshape(len(waveform), -1, 2 * self.config.bands)
        return (pairs - self.mean) @ self.basis

    def quantise(self, frames: Tensor) -> Tensor:
        """Frames [B, T, C] -> codes [B, K, T]: each codebook follows what those before it leave over."""
        rest, codes = frames, []
        for k, table in enumerate(self.vectors):
            codes.append(lasting(rest, table, self.config.hold if k < self.config.lasting else 0.0))
            rest = rest - table[codes[-1]]
        return torch.stack(codes, dim=1)

    def dequantise(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> frames [B, T, C]; fewer than K codebooks give a coarser frame."""
        return torch.stack(
            [table[codes[:, k]] for k, table in enumerate(self.vectors[: codes.shape[1]])]
        ).sum(0)

    def spectral_envelope(self, frames: Tensor) -> Tensor:
        """Quantised frames [B, T, C] -> the log magnitudes [B, 2 T, bins] they stand for, unsharpened."""
        mel = (frames @ self.basis.T + self.mean).reshape(len(frames), -1, self.config.bands)
        return torch.log((mel.clamp(max=8.0).exp() - FLOOR).clamp_min(0.0) @ self.spread + 1e-3)

    def synthesise(
        self, frames: Tensor, generator: torch.Generator | None = None, draws: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Quantised frames [B, T, C] -> tone (real) and noise (complex), both [draws * B, 2 T, bins].

        The magnitude of their sum is the spectrogram; several draws differ in their noise.
        """
        c = self.config
        batch, length = draws * frames.shape[0], frames.shape[1]
        x = self.decoder(self.from_code(frames.transpose(1, 2) / SPREAD)).transpose(1, 2)
        x = self.to_detail(x).repeat(draws, 1, 1).reshape(batch, 2 * length, c.detail_width)
        # training draws where it computes; float32, as a GPU has no Fourier transform of less
        where = frames.device if generator is None else generator.device
        hiss = torch.randn(batch, HOP * length, generator=generator, device=where).to(frames)
        noise = torch.randn(batch, 2 * length, c.noise, generator=generator, device=where).to(x)
        hiss = self.spectrogram(hiss)
        x = self.detail((x + self.add_noise(noise)).transpose(1, 2)).transpose(1, 2)
        spectral_envelope = self.spectral_envelope(frames).repeat(draws, 1, 1)
        tone, envelope = self.to_spectrum(self.norm(x)).chunk(2, dim=-1)
        tone, envelope = ((spectral_envelope + change).clamp(max=8.0).exp() for change in (tone, envelope))
        return tone, envelope * hiss / self.hann.norm()

    def griffin_lim(self, tone: Tensor, noise: Tensor) -> Tensor:
        """Tone and noise [B, 2 T, bins] -> waveform [B, 320 T], by fast Griffin-Lim (Perraudin et al., 2013).

        It starts from tones whose phases run on from frame to frame, and from the noise's own phases.
        """
        c, length = self.config, self.config.hop * tone.shape[1]
        magnitude = F.pad((tone + noise).abs().transpose(1, 2), (0, 1))  # and the frame at the very end
        turns = torch.arange(c.bins)[:, None] * torch.arange(tone.shape[1]) * c.hop % c.window
        running = torch.polar(tone, (turns.T * (2.0 * math.pi / c.window)).to(tone).expand_as(tone))
        spectrum = F.pad((running + noise).transpose(1, 2), (0, 1))
        waveform, before = torch.empty(0), torch.zeros_like(spectrum)
        for _ in range(c.iterations + 1):
            spectrum = magnitude * spectrum / (spectrum.abs() + 1e-9)
            waveform = torch.istft(spectrum, c.window, c.hop, window=self.hann, length=length)
            again = torch.stft(
                waveform, c.window, c.hop, window=self.hann, pad_mode="constant", return_complex=True
            )
            spectrum, before = again - 0.5 * before, again
        return waveform

    # --- the codec interface ---

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform [B, S] -> tokens [B, K, ceil(S / 320)]; the end is padded with silence."""
        missing = HOP * samples_to_frames(waveform.shape[1]) - waveform.shape[1]
        return self.quantise(self.analyse(F.pad(waveform, (0, missing))))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K, T] -> waveform [B, 320 T], the same for the same tokens. The first few will do."""
        pieces = []
        # each draws the same noise, so a clip's sound is its own affair
        for clip in self.dequantise(tokens)[:, None]:
            pieces.append(self.griffin_lim(*self.synthesise(clip, torch.Generator().manual_seed(0))))
        return torch.cat(pieces)

    def codebook_vectors(self) -> Tensor:
        """The quantiser's vectors [K, V, C]."""
        return self.vectors.clone()

    # --- on disk: codec.json and codec.safetensors, half precision ---

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``codec.json`` and ``codec.safetensors`` (float16)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "codec.json", (json.dumps(asdict(self.config), indent=2) + "\n").encode())
        save_tensors(folder / "codec.safetensors", {k: v.half() for k, v in self.state_dict().items()})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TinyCodec:
        """Read what ``save_pretrained`` wrote; ready to encode and decode."""
        folder = Path(folder)
        values = json.loads((folder / "codec.json").read_text())
        codec = cls(TinyCodecConfig(**current_names("TinyCodecConfig", values)))
        weights = load_file(folder / "codec.safetensors")
        expected = codec.state_dict()
        if set(weights) != set(expected):
            odd = sorted(set(weights) ^ set(expected))
            raise ValueError(f"{folder / 'codec.safetensors'} is not of this codec: {odd[0]} does not match")
        codec.load_state_dict({k: v.to(expected[k].dtype) for k, v in weights.items()})
        return codec.eval()

    def code_weights(self) -> dict[str, Tensor]:
        """What tokens depend on; the decoder may be trained further without making them anew."""
        codes = ("mean", "basis", "vectors")
        weights = {k: v for k, v in self.state_dict().items() if k.startswith(codes)}
        return weights | {"hold": torch.tensor([self.config.hold, self.config.lasting])}
