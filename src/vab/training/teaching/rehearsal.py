"""What a model goes on hearing while it is taught more, so that it does not forget what it knew.

The recordings that a model learned from are not at hand when it is taught. Its directory may hold the image
features of a few training pictures of each label, and the model itself makes the sounds for them before its
weights change (pseudo-rehearsal, Robins 1995; learning without forgetting, Li and Hoiem, ECCV 2016).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from vab.codecs.codec import Codec
from vab.data.mixture import Mixture
from vab.data.shard import Latents
from vab.data.store import LatentStore, spread
from vab.models.hub import REHEARSAL, ModelError
from vab.sampling.stages import Stage
from vab.timing.sound import stored_curve
from vab.training.batches import make_generator
from vab.utils.files import DamagedError, load_tensors, save_tensors

PICTURES = 8  # of each label
CLIPS_PER_PASS = 16


@dataclass(frozen=True)
class Rehearsal:
    """Image features of pictures that a model learned from, one feature of each."""

    features: NDArray[np.float16]  # [N, dim]
    labels: tuple[str, ...]  # [N]

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, labels: Collection[str]) -> Rehearsal:
        """The pictures of other labels than these."""
        keep = [n for n, label in enumerate(self.labels) if label not in labels]
        return Rehearsal(self.features[keep], tuple(self.labels[n] for n in keep))

    def __add__(self, other: Rehearsal) -> Rehearsal:
        return Rehearsal(np.concatenate([self.features, other.features]), self.labels + other.labels)

    def save(self, folder: Path) -> None:
        """Write it into a model directory, in half precision."""
        features = torch.from_numpy(np.ascontiguousarray(self.features))
        save_tensors(folder / REHEARSAL, {"features": features}, {"labels": json.dumps(self.labels)})


def load_rehearsal(folder: Path, vision_dim: int) -> Rehearsal | None:
    """That of a model directory, if it has one; ``ModelError`` if it cannot be read or is another model's."""
    path = folder / REHEARSAL
    if not path.is_file():
        return None
    try:
        features = load_tensors(path)["features"]
        with safe_open(path, "np") as stream:
            labels = json.loads((stream.metadata() or {})["labels"])
    except (DamagedError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); delete it, or write it again") from error
    texts = isinstance(labels, list) and all(isinstance(label, str) and label for label in labels)
    if not texts or features.shape != (len(labels), vision_dim) or not features.isfinite().all():
        raise ModelError(f"{path}: does not fit the model beside it; delete it, or write it again")
    return Rehearsal(features.half().numpy(), tuple(labels))


def few_pictures(latents: Mixture, fps: float) -> Rehearsal:
    """At most ``PICTURES`` of each label that has sounds and pictures in the split train, spread evenly.

    Of each picture the feature in the middle of its window; ``fps`` is the model's.
    """
    labels, train = np.array(latents.labels), np.array(latents.splits) == "train"
    chosen: list[int] = []
    for label in sorted({*labels[train & latents.has("tokens")]} - {""}):
        rows = np.flatnonzero(train & latents.has("features") & (labels == label))
        chosen += rows[spread(len(rows), PICTURES)].tolist()
    features, _ = latents.features(np.array(chosen, np.int64), fps)
    return Rehearsal(features[:, features.shape[1] // 2], tuple(labels[chosen].tolist()))


@torch.no_grad()
def rehearse(
    rehearsal: Rehearsal,
    stage: Stage,
    codec: Codec,
    store: LatentStore,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fill ``store`` with the sound of one window that the model makes for each picture, in the split train.

    A picture stands still. What the store has already is not made again; noise depends on the number of the
    picture alone. The codec computes in float32. ``advance`` is told how many are done, of how many.
    """
    config, meta, total = stage.preset.model, store.meta, len(rehearsal)
    device = next(stage.network.parameters()).device
    for start in range(0, total, CLIPS_PER_PASS):
        advance(start, total)
        names = [f"rehearsal-{n:05}" for n in range(start, min(total, start + CLIPS_PER_PASS))]
        if names[-1] in store:
            continue
        still = rehearsal.features[start : start + len(names), None].repeat(config.video_length, axis=1)
        seen = torch.from_numpy(still).float().to(device)
        shape = len(names), config.num_codebooks, config.audio_length
        empty = torch.zeros(shape, dtype=torch.long, device=device)
        unknown = torch.zeros_like(empty, dtype=torch.bool)
        noise = [make_generator("rehearsal", name) for name in names]
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            tokens = stage.fill(empty, unknown, seen, stage.preset.decode, noise)

        # A store has all codebooks of the codec; the network reads those that it models.
        stored = np.zeros((len(names), *meta.token_shape), np.uint16)
        stored[:, : config.num_codebooks] = tokens.cpu().numpy()
        curves: list[NDArray[np.float16] | None] = [None] * len(names)
        if meta.timing:
            sounds = codec.decode(tokens).float().cpu().numpy()
            curves = [stored_curve(sound).astype(np.float16) for sound in sounds]
        labels = rehearsal.labels[start : start + len(names)]
        store.add(
            [
                Latents(name, label, "train", stored[n], still[n], timing=curves[n])
                for n, (name, label) in enumerate(zip(names, labels, strict=True))
            ]
        )
    advance(total, total)
