"""A tiny codec of a real kind, and extraction at the size of the tests."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import DacConfig, DacModel

from vab.codecs.codec import DAC, Codec
from vab.config import SAMPLE_RATE
from vab.data.extraction import run as job
from vab.data.extraction.run import Extraction, extract
from vab.vision import VisionEncoder, load_vision

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


def run_slowly(manifest: Path, out: Path) -> None:
    """The same with networks of its own, and time between shards to be killed in."""
    torch.set_num_threads(1)
    write = job.write_failures

    def slow(*arguments: Any) -> None:
        write(*arguments)
        time.sleep(0.2)

    job.write_failures = slow
    run(manifest, out, small_codec(), load_vision("efficientnet-lite0"))
