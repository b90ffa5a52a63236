"""The small codec that ships in the package: residual VQ of log-mel frames, a ConvNeXt decoder, Griffin-Lim.

The encoder is not learned by gradients: the principal components of log-mel frames are quantised by K
codebooks every 20 ms, so tokens do not depend on the decoder. A code lasts until another one saves more
error than a change is worth (``hold``): what a sound's texture does from frame to frame would be noise in
the tokens, and nobody could predict it. The decoder turns the quantised frames into a magnitude spectrogram
of two parts: tone, and noise under an envelope. Sea, rain and rotors are noise, and a decoder that can only
predict a mean turns them into a hum. Phases come from Griffin-Lim iterations. The noise is drawn from a fixed
seed, so the waveform is a function of the tokens alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vab.config import HOP_LENGTH, SAMPLE_RATE, from_dict, samples_to_frames, within
from vab.errors import SettingError
from vab.utils.files import DamagedError, load_tensors, read_json, save_tensors, write_whole
from vab.utils.mel import mel_filters

MIN_MEL_MAGNITUDE = 0.008  # about 90 dB below full scale
MAX_LOG_MAGNITUDE = 8.0  # keeps the exponential finite for codes that no sound gives
PART = 256  # frames of a spectrogram that Griffin-Lim takes through an iteration at once: 1 MB
COMPONENT_SCALE = 4.0  # divides a frame's components, so that the decoder sees numbers near one


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
    level_dim: int = 0  # the first codebook quantises so many leading components, the frame's level; 0: all
    level_hold: float = 5.0  # hold of such a first codebook, whose codes follow a sound's decay
    iterations: int = 32  # of Griffin-Lim

    @property
    def hop_length(self) -> int:
        """Samples between spectrogram frames: half a token."""
        return HOP_LENGTH // 2

    @property
    def bins(self) -> int:
        """Frequencies of one spectrogram frame."""
        return self.window // 2 + 1

    def switch_cost(self, codebook: int) -> float:
        """Squared error that a change of code must save in a codebook."""
        if codebook >= self.lasting:
            return 0.0
        return self.level_hold if codebook == 0 and self.level_dim else self.hold


def hertz_mel_filters(bands: int, fft: int) -> Tensor:
    """Mel filters float32 [fft // 2 + 1, bands] from 20 Hz up, triangles straight over hertz."""
    filters = mel_filters(bands, fft, SAMPLE_RATE, 20.0, SAMPLE_RATE / 2, straight_in="hertz")
    return torch.from_numpy(filters).float()


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index [n] of the nearest of the centres [V, C] for each point [n, C]."""
    # argmin |p - c|^2 = argmin |c|^2 / 2 - p.c; in pieces, for [n, V] would not fit into memory.
    half = centres.square().sum(1) / 2
    return torch.cat([(half - part @ centres.T).argmin(1) for part in points.split(8192)])


def viterbi_quantize(frames: Tensor, centres: Tensor, switch_cost: float) -> Tensor:
    """Index [B, T] of a centre [V, C] for each of the frames [B, T, C], with a penalty for switching.

    It minimises the sum of squared errors plus ``switch_cost`` for each frame whose index differs from that
    of the frame before, by Viterbi's algorithm. Without a ``switch_cost`` that is the nearest centre.
    """
    # Squared errors [B, T, V], less |frame|^2, which is the same for every centre.
    error = centres.square().sum(1) - 2 * frames @ centres.T
    if not switch_cost:
        return error.argmin(2)

    # 1. Forward: the cost [B, V] of the best path that ends at each centre, and the centre it comes from.
    own = torch.arange(len(centres), device=frames.device)
    cost = error[:, 0]
    predecessors = []
    for frame_error in error.unbind(1)[1:]:
        lowest, best = cost.min(1, keepdim=True)
        stays = cost <= lowest + switch_cost  # else it is cheaper to come from the best centre of all
        predecessors.append(torch.where(stays, own, best))
        cost = torch.where(stays, cost, lowest + switch_cost) + frame_error

    # 2. Backward: follow the best path from its end.
    path = [cost.argmin(1, keepdim=True)]
    for predecessor in reversed(predecessors):
        path.append(predecessor.gather(1, path[-1]))
    return torch.cat(path[::-1], dim=1)


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
        y = self.norm(self.depthwise(x).transpose(1, 2))  # [B, T, width]
        y = self.scale * self.fall(F.gelu(self.rise(y)))
        return x + y.transpose(1, 2)


def _blocks(width: int, num_layers: int) -> nn.Sequential:
    return nn.Sequential(*(ConvNeXtBlock(width, 1.0 / num_layers) for _ in range(num_layers)))


class TinyCodec(nn.Module):
    """Waveform [B, S] at 16 kHz <-> tokens [B, K, T] at 50 Hz."""

    hann: Tensor  # [window]
    filters: Tensor  # [bins, bands]
    spread: Tensor  # [bands, bins]
    mean: Tensor  # [2 * bands]
    basis: Tensor  # [2 * bands, C]
    vectors: Tensor  # [K, V, C]

    name = "tiny"
    hop_length = HOP_LENGTH
    sample_rate = SAMPLE_RATE

    def __init__(self, config: TinyCodecConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or TinyCodecConfig()
        self.num_codebooks = c.num_codebooks
        self.codebook_size = c.codebook_size
        self.dim = c.dim

        # Between waveforms and mel bands: computed, not stored.
        self.register_buffer("hann", torch.hann_window(c.window), persistent=False)
        filters = hertz_mel_filters(c.bands, c.window)
        self.register_buffer("filters", filters, persistent=False)
        # Bands back to bins: each bin is the mean of the bands it is in, each band is spread over its bins.
        spread = filters / filters.sum(1, keepdim=True).clamp_min(1e-6) / (filters.sum(0) + 1e-2)
        self.register_buffer("spread", spread.T.contiguous(), persistent=False)

        # Between mel bands and codes: found from data, without gradients.
        self.register_buffer("mean", torch.zeros(2 * c.bands))  # of the two log-mel frames of a token
        self.register_buffer("basis", torch.eye(2 * c.bands, c.dim))  # their principal components
        self.register_buffer("vectors", torch.zeros(c.num_codebooks, c.codebook_size, c.dim))

        # The decoder: at the rate of tokens, then at that of spectrogram frames.
        self.from_code = nn.Conv1d(c.dim, c.decoder_width, 7, padding=3)
        self.decoder = _blocks(c.decoder_width, c.decoder_layers)
        self.to_detail = nn.Linear(c.decoder_width, 2 * c.detail_width)
        self.add_noise = nn.Linear(c.noise, c.detail_width)
        self.detail = _blocks(c.detail_width, c.detail_layers)
        self.norm = nn.LayerNorm(c.detail_width)
        self.to_spectrum = nn.Linear(c.detail_width, 2 * c.bins)
        nn.init.normal_(self.to_spectrum.weight, std=0.02)
        nn.init.constant_(self.to_spectrum.bias, -0.7)  # begin with the envelope, half tone and half noise

    # ---- between waveforms and continuous frames, as training needs them

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 320 T] -> complex frames [B, 2 T, bins], centred on every 160th sample."""
        return self._stft(waveform).transpose(1, 2)[:, :-1]  # [B, bins, 2 T + 1] -> [B, 2 T, bins]

    def _stft(self, waveform: Tensor) -> Tensor:
        c = self.config
        return torch.stft(
            waveform, c.window, c.hop_length, window=self.hann, pad_mode="constant", return_complex=True
        )

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 320 T] -> log-mel frames [B, 2 T, bands]."""
        return torch.log(self.spectrogram(waveform).abs() @ self.filters + MIN_MEL_MAGNITUDE)

    def analyse(self, waveform: Tensor) -> Tensor:
        """Waveform [B, 320 T] -> frames [B, T, C], before quantising."""
        # Two spectrogram frames are one token: [B, 2 T, bands] -> [B, T, 2 * bands] -> [B, T, C].
        pairs = self.log_mel(waveform).reshape(len(waveform), -1, 2 * self.config.bands)
        return (pairs - self.mean) @ self.basis

    def quantise(self, frames: Tensor) -> Tensor:
        """Frames [B, T, C] -> codes [B, K, T]: each codebook follows what those before it leave over."""
        residual = frames
        codes = []
        for k, table in enumerate(self.vectors):
            codes.append(viterbi_quantize(residual, table, self.config.switch_cost(k)))
            residual = residual - table[codes[-1]]
        return torch.stack(codes, dim=1)

    def dequantise(self, codes: Tensor) -> Tensor:
        """Codes [B, K, T] -> frames [B, T, C]; fewer than K codebooks give a coarser frame."""
        tables = self.vectors[: codes.shape[1]]
        return torch.stack([table[codes[:, k]] for k, table in enumerate(tables)]).sum(0)

    def spectral_envelope(self, frames: Tensor) -> Tensor:
        """Quantised frames [B, T, C] -> the log magnitudes [B, 2 T, bins] they stand for, unsharpened."""
        # Undo ``analyse``: components -> log-mel pairs -> one frame each -> magnitudes spread over the bins.
        mel = (frames @ self.basis.T + self.mean).reshape(len(frames), -1, self.config.bands)
        bands = (mel.clamp(max=MAX_LOG_MAGNITUDE).exp() - MIN_MEL_MAGNITUDE).clamp_min(0.0)
        return torch.log(bands @ self.spread + 1e-3)

    def synthesise(
        self, frames: Tensor, generator: torch.Generator | None = None, draws: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Quantised frames [B, T, C] -> tone (real) and noise (complex), both [draws * B, 2 T, bins].

        The magnitude of their sum is the spectrogram; several draws differ in their noise.
        """
        c = self.config
        batch = draws * frames.shape[0]
        length = frames.shape[1]

        # 1. At 50 Hz: [B, T, C] -> [B, T, decoder_width]; then two frames of detail each, for every draw.
        x = self.decoder(self.from_code(frames.transpose(1, 2) / COMPONENT_SCALE)).transpose(1, 2)
        x = self.to_detail(x).repeat(draws, 1, 1).reshape(batch, 2 * length, c.detail_width)

        # 2. White noise as a waveform, and as channels that the network may use. Training draws where it
        #    computes. The waveform is float32, as a GPU has no Fourier transform of less.
        where = frames.device if generator is None else generator.device
        white = torch.randn(batch, HOP_LENGTH * length, generator=generator, device=where).to(frames)
        channels = torch.randn(batch, 2 * length, c.noise, generator=generator, device=where).to(x)
        white = self.spectrogram(white)  # [draws * B, 2 T, bins], complex

        # 3. At 100 Hz: how tone and noise differ from the envelope that the codes stand for.
        x = self.detail((x + self.add_noise(channels)).transpose(1, 2)).transpose(1, 2)
        tone_change, noise_change = self.to_spectrum(self.norm(x)).chunk(2, dim=-1)
        envelope = self.spectral_envelope(frames).repeat(draws, 1, 1)
        tone = (envelope + tone_change).clamp(max=MAX_LOG_MAGNITUDE).exp()
        noise = (envelope + noise_change).clamp(max=MAX_LOG_MAGNITUDE).exp()
        return tone, noise * white / self.hann.norm()  # white noise has magnitudes near the window's norm

    def griffin_lim(self, tone: Tensor, noise: Tensor) -> Tensor:
        """Tone and noise [B, 2 T, bins] -> waveform [B, 320 T], by fast Griffin-Lim (Perraudin et al., 2013).

        It starts from tones whose phases run on from frame to frame, and from the noise's own phases. What
        ``torch.istft`` and ``torch.stft`` do is written out, so that a part of the frames stays in the
        processor's cache from its spectrum to its next one, and the windows are summed up once: the same
        bits in half the time.
        """
        c = self.config
        batch, length = len(tone), c.hop_length * tone.shape[1]
        num_frames = tone.shape[1] + 1  # with the one at the very end
        magnitude = F.pad((tone + noise).abs(), (0, 0, 0, 1))

        # Bin k turns by k * hop / window between two frames; whole turns are dropped while still integers.
        turns = torch.arange(c.bins)[:, None] * torch.arange(tone.shape[1]) * c.hop_length % c.window
        running = torch.polar(tone, (turns.T * (2.0 * math.pi / c.window)).to(tone).expand_as(tone))
        spectrum = F.pad(running + noise, (0, 0, 0, 1))  # [B, 2 T + 1, bins]

        # Frame n begins at sample n * hop of the sums; the waveform lies half a window from their ends.
        reach = -(-c.window // c.hop_length)  # frames that begin within a window
        sums = tone.new_zeros(batch, (num_frames + reach - 1) * c.hop_length)
        weights = torch.zeros_like(sums[:1])
        self._add_frames(weights, self.hann.square().expand(1, num_frames, -1), 0)
        first, last = c.window // 2, c.window // 2 + length
        padded = tone.new_zeros(batch, length + c.window)
        waveform = padded[:, first:last]
        framed = padded.unfold(1, c.window, c.hop_length)  # [B, 2 T + 1, window], a view

        # Parts of frames, each longer than the frames of the next that reach into it.
        starts = [n for n in range(0, num_frames, PART) if n == 0 or num_frames - n >= reach]
        parts = list(pairwise([*starts, num_frames]))
        # Complex numbers as pairs of real ones, each magnitude twice: what is the same in both is faster so.
        pairs = torch.view_as_real(spectrum), magnitude[..., None].expand(*magnitude.shape, 2)
        spectra, magnitudes = ([x[:, a:b].contiguous() for a, b in parts] for x in pairs)
        previous = [torch.zeros_like(part) for part in spectra]

        def rebuild(part: int) -> None:
            """The next spectrum of a part, all of whose samples are there: beyond that of a true signal."""
            start, stop = parts[part]
            begin, end = max(first, start * c.hop_length), min(last, (stop - 1) * c.hop_length + c.window)
            torch.div(sums[:, begin:end], weights[:, begin:end], out=padded[:, begin:end])
            rebuilt = torch.view_as_real(torch.fft.rfft(framed[:, start:stop] * self.hann))
            spectra[part] = torch.sub(rebuilt, previous[part], alpha=0.5)
            previous[part] = rebuilt

        # Keep the magnitudes, take the phases of a signal that exists, and go a little beyond: momentum.
        for _ in range(c.iterations + 1):
            sums.zero_()
            for part, (start, _) in enumerate(parts):
                size = torch.view_as_complex(spectra[part]).abs().add_(1e-9)
                kept = torch.view_as_complex(magnitudes[part] * spectra[part]).div_(size)
                self._add_frames(sums, torch.fft.irfft(kept, c.window).mul_(self.hann), start)
                if part:
                    rebuild(part - 1)
            rebuild(len(parts) - 1)
        return waveform.clone()

    def _add_frames(self, sums: Tensor, frames: Tensor, start: int) -> None:
        """Add overlapping frames [B, n, window], the first of number ``start``, to sums [B, S] of samples."""
        hop = self.config.hop_length
        blocks = sums.unflatten(1, (-1, hop))
        # The earliest frame of each sample first, as ``torch.istft`` adds them: a frame's last block.
        for n in reversed(range(-(-self.config.window // hop))):
            block = frames[:, :, n * hop : (n + 1) * hop]
            blocks[:, start + n : start + n + block.shape[1], : block.shape[2]] += block

    # ---- the codec interface

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform [B, S] -> tokens [B, K, ceil(S / 320)]; the end is padded with silence."""
        missing = HOP_LENGTH * samples_to_frames(waveform.shape[1]) - waveform.shape[1]
        return self.quantise(self.analyse(F.pad(waveform, (0, missing))))

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K, T] -> waveform [B, 320 T], always the same; the first k <= K codebooks suffice."""
        # One by one, each with the same noise, so that a clip's sound depends on no other of its batch.
        waveforms = []
        for frames in self.dequantise(tokens)[:, None]:
            tone, noise = self.synthesise(frames, torch.Generator().manual_seed(0))
            waveforms.append(self.griffin_lim(tone, noise))
        return torch.cat(waveforms)

    def codebook_vectors(self) -> Tensor:
        """The quantiser's vectors [K, V, C], a copy."""
        return self.vectors.clone()

    # ---- on disk: codec.json and codec.safetensors in half precision

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``codec.json`` and ``codec.safetensors`` (float16)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "codec.json", (json.dumps(asdict(self.config), indent=2) + "\n").encode())
        save_tensors(folder / "codec.safetensors", {k: v.half() for k, v in self.state_dict().items()})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TinyCodec:
        """Read what ``save_pretrained`` wrote; ready to encode and decode.

        ``SettingError`` for a ``codec.json`` that no codec can have, ``DamagedError`` for weights that are
        damaged or another codec's, ``OSError`` for files that are not there.
        """
        # 1. The sizes.
        path = Path(folder) / "codec.json"
        try:
            config = from_dict(TinyCodecConfig, read_json(path))
            within("dim", config.dim, 1, 2 * config.bands)
            within("level_dim", config.level_dim, 0, config.dim)
        except ValueError as error:
            raise SettingError(f"{path}: is no configuration of a small codec ({error})") from error

        # 2. The weights, which must fit before memory is taken for as many as the sizes say.
        path = Path(folder) / "codec.safetensors"
        weights = load_tensors(path)
        with torch.device("meta"):
            expected = cls(config).state_dict()
        for name in sorted(set(weights) ^ set(expected)):
            raise DamagedError(f"{path}: is not of this codec: {name} does not match")
        for name, tensor in weights.items():
            if tensor.shape != expected[name].shape or not tensor.is_floating_point():
                kind = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
                raise DamagedError(f"{path}: does not fit its codec.json, {name} is {kind}")

        # 3. The codec.
        codec = cls(config)
        codec.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return codec.eval()

    def code_weights(self) -> dict[str, Tensor]:
        """The weights that tokens depend on; the others may be trained further and tokens stay the same."""
        prefixes = ("mean", "basis", "vectors")
        weights = {k: v for k, v in self.state_dict().items() if k.startswith(prefixes)}
        c = self.config
        level = [c.level_dim, c.level_hold] if c.level_dim else []
        return weights | {"hold": torch.tensor([c.hold, c.lasting, *level])}
