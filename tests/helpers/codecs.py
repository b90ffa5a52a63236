"""Small codecs: the bundled kind at its least size with a brief training; random ones as the Hub has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vab.codecs.tiny import TinyCodecConfig
from vab.config import HOP_LENGTH, SAMPLE_RATE
from vab.training.codec.train import CodecTrainConfig, train_codec

SMALL = TinyCodecConfig(
    num_codebooks=3,
    codebook_size=32,
    dim=16,
    decoder_width=24,
    decoder_layers=1,
    detail_width=16,
    detail_layers=1,
)


BRIEF = CodecTrainConfig(
    steps=6,
    adversarial_from=4,
    code_seconds=24.0,
    code_rounds=5,
    batch_size=4,
    save_every=2,
    log_every=1,
    warmup_steps=2,
)


def tones(seconds: float = 1.0) -> dict[str, list[np.ndarray]]:
    """Two labels: tones and noise."""
    time_ = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    random = np.random.default_rng(0)
    sines = [8000 * np.sin(2 * np.pi * f * time_) for f in (220, 440, 880)]
    noises = [3000 * random.standard_normal(len(time_)) for _ in range(3)]
    return {"noise": [n.astype(np.int16) for n in noises], "tone": [s.astype(np.int16) for s in sines]}


def train_brief(folder: Path) -> None:
    """Train the small codec with one thread, and print each step."""
    torch.set_num_threads(1)
    train_codec(tones(), folder, BRIEF, SMALL, lambda line: print(line["step"], flush=True))


def save_encodec(folder: Path, **changes: int) -> None:
    """A random EnCodec of the true structure, by transformers."""
    from transformers import EncodecConfig, EncodecModel

    values = {
        "sampling_rate": 16000,
        "num_filters": 2,
        "hidden_size": 8,
        "codebook_size": 32,
        "target_bandwidths": [0.5, 1.0],  # 2 and 4 codebooks
        "use_causal_conv": False,
        "use_conv_shortcut": False,
        "pad_mode": "constant",
    }
    torch.manual_seed(0)
    model = EncodecModel(EncodecConfig(**(values | changes)))
    with torch.no_grad():  # they start at zero; as k-means would, take what the encoder says
        heard = model.encoder(0.3 * torch.randn(1, changes.get("audio_channels", 1), 32 * HOP_LENGTH))[0].T
        for level, layer in enumerate(model.quantizer.layers):
            layer.codebook.embed.copy_(heard if level == 0 else torch.randn_like(heard) * heard.std() / 4)
    model.save_pretrained(folder)


def save_dac(folder: Path, **changes: int | list[int]) -> None:
    """A random DAC of the true structure, by transformers."""
    from transformers import DacConfig, DacModel

    values = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [2, 4, 5, 8],
        "n_codebooks": 12,
        "codebook_size": 64,
        "quantizer_dropout": 1.0,  # as trained; must not act
        "sampling_rate": 16000,
        "hop_length": 512,  # stale, as in the Hub's file
    }
    torch.manual_seed(0)
    model = DacModel(DacConfig(**(values | changes)))
    for parameter in model.parameters():  # the default law is so narrow that everything is silence
        if parameter.ndim > 1 and parameter.shape[0] != 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
