"""What a model that `vab learn` made knows of held-out pictures, and still knows of its former classes.

    python recipes/learn_measure.py ../shared/data runs/tiny/store HELD MODEL... [--seeds 2]

HELD is a folder like the one that was learned, of other pictures; MODEL the model before, then those after,
each with its difference from the first for the same pictures and seeds. Sounds are judged as in
vab_tiny_measure.py (the judge lies beside the store). One picture has several sounds, so the intervals, 95 %,
are of pictures drawn again. STORE has dev photos of the former classes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from vab_tiny_measure import fitted_judge, generated, sounds_of

from vab.data.store import LatentStore
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile

OLD_PHOTOS = 120  # dev photos of the former classes, every class alike where it has as many


def share(values: NDArray, pictures: NDArray) -> str:
    """A share, its interval, and how many values of how many pictures it is of."""
    random, names = np.random.default_rng(0), np.unique(pictures)
    by_picture = [values[pictures == name].astype(float) for name in names]
    drawn = random.integers(len(names), size=(2000, len(names)))
    means = [np.concatenate([by_picture[n] for n in row]).mean() for row in drawn]
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}] ({len(values)} of {len(names)} pictures)"


def old_photos(store: LatentStore, new: set[str]) -> tuple[torch.Tensor, list[str], list[str]]:
    """Features [N,F,dim], labels and ids of dev photos of other classes than the new ones."""
    by_label: dict[str, list[int]] = {}
    for row in np.flatnonzero(store.has("features")):
        if store.splits[row] == "dev" and store.labels[row] not in new:
            by_label.setdefault(store.labels[row], []).append(int(row))
    each = -(-OLD_PHOTOS // len(by_label))
    rows = [row for label in sorted(by_label) for row in by_label[label][:each]]
    features = torch.from_numpy(store.gather("features", np.array(rows))).float()
    return features, [store.labels[row] for row in rows], [store.ids[row] for row in rows]


@torch.no_grad()
def main(data: Path, store_dir: Path, held: Path, models: list[str], seeds: int) -> None:
    """Measure and print."""
    kept, manifest = store_dir.parent / "judge.pickle", store_dir.parent / "codec.csv"
    judge = fitted_judge(data, kept, *(([], []) if kept.exists() else sounds_of(manifest, "train", data)))
    store = LatentStore.open(store_dir)
    files = sorted(path for path in held.glob("*/*") if path.is_file())
    before: dict[str, NDArray[np.bool_]] = {}  # by the kind of pictures
    for model in models:
        pipeline = VABPipeline.from_pretrained(model, device="cpu", dtype="bfloat16")
        length = pipeline.config.model.video_length
        looked = []
        for path in files:
            with MediaFile(path) as file:
                looked.append(pipeline.look_at(file)[:length].float())
        new = torch.stack(looked), [path.parent.name for path in files], [str(path) for path in files]
        old = old_photos(store, {*new[1]})
        for kind, (features, labels, names) in (("new", new), ("old", old)):
            # 1. What the judge takes the sounds for.
            wanted, pictures = np.array(labels * seeds), np.array(names * seeds)
            sounds = generated(pipeline, features.repeat(seeds, 1, 1), pipeline.config.decode, True)
            right = judge.name(list(sounds)) == wanted
            print(f"{model}: {kind}: sounds: {share(right, pictures)}", flush=True)
            parts = {name: round(float(right[wanted == name].mean()), 2) for name in sorted({*labels})}
            print(f"{model}: {kind}: by class: {json.dumps(parts)}", flush=True)
            less = right.astype(float) - before.setdefault(kind, right)
            print(f"{model}: {kind}: less the first model's: {share(less, pictures)}", flush=True)
            if pipeline.finetuned.classifier is None:
                continue

            # 2. What the classifier names the pictures, and whether it says that it knows them.
            network, preset = pipeline.embedder.classifier
            named, told = [], []
            for one, label in zip(features, labels, strict=True):
                known = pipeline.embedder.known(one)
                logits = network(None, one[None].to(network.head.weight.dtype))[0]
                named.append(preset.classes[int(logits.argmax())] == label)
                told.append(known is not None and known.is_known)
            print(f"{model}: {kind}: named: {share(np.array(named), np.array(names))}", flush=True)
            print(f"{model}: {kind}: known: {share(np.array(told), np.array(names))}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("held", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seeds", type=int, default=2, help="sounds of each picture")
    given = parser.parse_args()
    main(given.data, given.store, given.held, given.models, given.seeds)
