"""The small codec at its least size, a brief training, and sounds for it."""

from __future__ import annotations

import numpy as np

from vab.codecs.tiny import TinyCodecConfig
from vab.config import SAMPLE_RATE
from vab.training.codec.train import CodecTrainConfig

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
