"""A small store's settings and clips, for tests in this process and in others."""

from __future__ import annotations

import numpy as np

from vab.data.shard import Latents, StoreMeta

META = StoreMeta("tiny", "efficientnet-lite0", 2, 8, 3, vision_dim=4, seconds=0.1, fps=10.0)
VECTORS = np.arange(2 * 8 * 3, dtype=np.float32).reshape(2, 8, 3)


def latents(name: str, value: int = 1, tokens: bool = True, features: bool = True) -> Latents:
    return Latents(
        name,
        "label",
        "train",
        np.full(META.token_shape, value, np.uint16) if tokens else None,
        np.full(META.feature_shape, value, np.float16) if features else None,
    )
