"""A tiny codec of a real kind, and extraction at the size of the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import DacConfig, DacModel

from vab.codecs.codec import DAC, Codec
from vab.config import SAMPLE_RATE
from vab.data.extraction.run import Extraction, extract
from vab.vision import VisionEncoder

SECONDS = 2.0


FPS = 2.0


def small_codec(seed: int = 0) -> Codec:
    """A real DAC with the rates of the 16 kHz one, tiny and with random weights."""
    torch.manual_seed(seed)
    config = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        downsampling_ratios=[2, 4, 5, 8],
        upsampling_ratios=[8, 5, 4, 2],
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
        sampling_rate=SAMPLE_RATE,
    )
    return DAC(DacModel(config))


def run(manifest: Path, out: Path, codec: Codec, vision: VisionEncoder, **options: object) -> Extraction:
    settings = {"seconds": SECONDS, "fps": FPS, "batch_clips": 2, "shard_clips": 3, **options}
    return extract(manifest, out, codec, vision, **settings)
