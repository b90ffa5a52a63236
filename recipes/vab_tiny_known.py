"""How often a model says that it may not know what a picture shows: of dev photos, and of real clips.

    python recipes/vab_tiny_known.py ../shared/data runs/tiny/store [MODEL]

Several scores of the literature beside the one that is used. Every threshold is the 5 % point of the dev
photos' scores; the clips choose nothing. For the dev photos themselves it is that of every second one, and
the others are counted. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.data.store import LatentStore
from vab.evaluate.metrics.tables import markdown
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile
from vab.training.known import FALSE_ALARMS

# What the clips show, looked up before anything was scored: source_id -> class. Those of UNSURE are in
# neither group (a guitar hardly seen, people who do not speak, a lake); all others show something else.
KNOWN = {"9WClEjrr_RA": "bird", "0nib7bMm8BA": "bird", "uJJ494MYSmo": "sea", "3qesirWAGt4": "dog"}
KNOWN |= {"5086467e0783": "dog", "61bed806d9a1": "dog", "82fef74f78d0": "rooster", "469895357bbf": "big_cat"}
KNOWN |= dict.fromkeys(("ebbc07cddfdf", "2968f1a31664", "05d14427eaf4", "a647e7b5361a"), "speech")
KNOWN |= dict.fromkeys(("c84e40bf344f", "8c1f62c0817b"), "speech")
UNSURE = {"-ByoSbgzr4M", "0mZQ6Q-viPw", "73950381f668", "F8Zt3mYlOqU", "84b93a963e3b", "00W1lcxW-WU"}
UNSURE |= {"2VjbDttFK44", "5XXAeSybGK0", "80nWT6sboTo", "_cYiqHDZGQk", "--Bu2xe4OSo"}

Score = Callable[[Tensor, Tensor], Tensor]  # vectors [B,D], logits [B,N] -> [B], high for what is known


def wilson(told: NDArray[np.bool_]) -> str:
    """A count with its share and Wilson's 95 % interval."""
    n, z = len(told), 1.96
    share = told.mean()
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return f"{told.sum()} of {n}: {share:.2f} [{max(0.0, middle - half):.2f}, {min(1.0, middle + half):.2f}]"


def scores_of(train: Tensor, labels: NDArray[np.str_], pipeline: VABPipeline) -> dict[str, Score]:
    """The scores that are compared; ``train`` [n,D] are the vectors of the training photos."""
    known, (_, preset) = pipeline.finetuned.known, pipeline.embedder.classifier
    assert known is not None
    pictured = [n for n, name in enumerate(preset.classes) if name in pipeline.finetuned.pictured]
    centres = torch.stack([train[labels == preset.classes[n]].mean(0) for n in pictured])
    which = np.array([list(pipeline.finetuned.pictured).index(label) for label in labels])
    spread = (train - centres[which]).T.cov()
    inverse = torch.linalg.inv(spread + 1e-4 * spread.diagonal().mean() * torch.eye(len(spread)))

    def mahalanobis(vectors: Tensor, logits: Tensor) -> Tensor:
        away = vectors[:, None] - centres
        return -torch.einsum("bnd,de,bne->bn", away, inverse, away).amin(1)

    return {
        "expected cosine (used)": lambda vectors, logits: known.scores(vectors, logits)[0],
        "largest probability (MSP)": lambda vectors, logits: logits.softmax(-1).amax(-1),
        "energy": lambda vectors, logits: logits.logsumexp(-1),
        "cosine to the nearest mean": lambda vectors, logits: known.scores(vectors, logits)[1].amax(-1),
        "Mahalanobis distance": mahalanobis,
        "10th nearest neighbour": lambda vectors, logits: (vectors @ train.T).topk(10).values[:, -1],
    }


@torch.no_grad()
def main(data: Path, store_dir: Path, model: Path | None) -> None:
    """Measure and print."""
    pipeline, store = VABPipeline.from_pretrained(model, device="cpu"), LatentStore.open(store_dir)
    network = pipeline.embedder.classifier[0]

    # 1. Photos of the classes that were learned from photos: vectors, logits, labels of each split.
    photos, labels = {}, {}
    for split in ("train", "dev"):
        rows = np.flatnonzero(store.has("features"))
        rows = np.array([n for n in rows if store.splits[n] == split])
        rows = np.array([n for n in rows if store.labels[n] in pipeline.finetuned.pictured])
        features = torch.from_numpy(store.gather("features", rows).astype(np.float32))
        photos[split] = network.picture_vectors(features)
        labels[split] = np.array([store.labels[n] for n in rows])

    # 2. The clips: windows of each.
    clips, shown = [], []
    with (data / "clips.csv").open() as file:
        for row in csv.DictReader(file):
            if row["source_id"] not in UNSURE:
                with MediaFile(data / row["file"]) as clip:
                    features = pipeline.look_at(clip)
                parts = features.split(network.trunk.config.video_length)
                clips.append([network.picture_vectors(part[None]) for part in parts])
                shown.append(KNOWN.get(row["source_id"], ""))
    foreign = np.array([not label for label in shown])

    # 3. What each score tells.
    lines = []
    for name, score in scores_of(photos["train"][0], labels["train"], pipeline).items():
        dev = score(*photos["dev"]).numpy()
        halves = [dev[n::2] < np.quantile(dev[1 - n :: 2], FALSE_ALARMS) for n in (0, 1)]
        of_clips = np.array([np.mean([float(score(*part)) for part in clip]) for clip in clips])
        told = of_clips < np.quantile(dev, FALSE_ALARMS)
        lines.append([name, wilson(np.concatenate(halves)), wilson(told[foreign]), wilson(told[~foreign])])
        if len(lines) == 1:
            used, used_dev = told, dev < np.quantile(dev, FALSE_ALARMS)
    print(markdown(["score", "dev photos told", "foreign clips told", "clips of known things told"], lines))

    # 4. By class, for the score that is used.
    print()
    lines = [[name, wilson(used_dev[labels["dev"] == name])] for name in sorted(set(labels["dev"]))]
    lines += [[f"clips: {name}", wilson(used[np.array(shown) == name])] for name in sorted(set(shown) - {""})]
    print(markdown(["class", "told"], lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
