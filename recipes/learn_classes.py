"""What the classifier knows of labels that were left out of it, before `vab learn` adds them and after.

    python recipes/learn_classes.py runs/tiny/store sea big_cat

The rows of the labels are taken out of vab-tiny's classifier, then added from a few training clips as
`vab learn` does it; what is counted is all dev photos. Its embedding has seen the labels. Intervals are
Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from vab_tiny_known import wilson

from vab.data.mixture import Mixture
from vab.data.store import CODEBOOKS, LatentStore
from vab.models.heads import load_finetuned
from vab.models.hub import find_model
from vab.training.teaching.classes import add_classes

SOUNDS, PHOTOS = 20, 30  # of a label, to learn from


def few_clips(store: LatentStore, labels: list[str], folder: Path) -> LatentStore:
    """A store of ``SOUNDS`` windows of sound and ``PHOTOS`` photos of each label, of the split train."""
    few = LatentStore.create(folder, store.meta, load_file(store.directory / CODEBOOKS)["codebooks"])
    random, train = np.random.default_rng(0), np.array(store.splits) == "train"
    for label in labels:
        own = train & (np.array(store.labels) == label)
        for kind, count in (("tokens", SOUNDS), ("features", PHOTOS)):
            rows = random.permutation(np.flatnonzero(own & store.has(kind)))[:count]
            few.add([store[int(row)] for row in rows])
    return few


@torch.no_grad()
def main(store_dir: Path, labels: list[str], model: str | None) -> None:
    """Measure and print."""
    store, finetuned = LatentStore.open(store_dir), load_finetuned(find_model(model))
    assert finetuned.classifier is not None and finetuned.known is not None
    network, preset = finetuned.classifier

    # 1. Dev photos of all classes that were learned from photos.
    dev = store.has("features") & (np.array(store.splits) == "dev")
    rows = np.flatnonzero(dev & np.isin(store.labels, finetuned.pictured))
    shown = np.array([store.labels[row] for row in rows])
    features = torch.from_numpy(store.gather("features", rows).astype(np.float32))

    # 2. The classifier without the labels; then with them.
    kept = [n for n, name in enumerate(preset.classes) if name not in labels]
    preset = replace(preset, classes=tuple(preset.classes[n] for n in kept))
    known = replace(finetuned.known, means=finetuned.known.means[kept])
    weight, bias = network.head.weight[kept], network.head.bias[kept]
    for when in ("before", "after"):
        classes = preset.classes
        if when == "after":
            with TemporaryDirectory() as folder, torch.enable_grad():
                latents = Mixture([few_clips(store, labels, Path(folder))])
                head = add_classes(network, preset, known, latents)
            assert head.known is not None
            classes, weight, bias, known = head.classes, head.weight, head.bias, head.known
        network.head = nn.Linear(weight.shape[1], len(weight))
        network.head.weight.copy_(weight)
        network.head.bias.copy_(bias)
        vectors, logits = network.picture_vectors(features)
        right = np.array(classes)[logits.argmax(1).numpy()] == shown
        is_known = (known.scores(vectors, logits)[0] >= known.threshold).numpy()
        for name, which in (("left out", np.isin(shown, labels)), ("others", ~np.isin(shown, labels))):
            print(f"{when}, {name}: right {wilson(right[which])}; known {wilson(is_known[which])}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("store", type=Path, help="the store that vab-tiny was trained from")
    parser.add_argument("labels", nargs="+", help="the labels to leave out")
    parser.add_argument("--model")
    given = parser.parse_args()
    main(given.store, given.labels, given.model)
