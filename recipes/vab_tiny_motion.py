"""The motion predictor of vab-tiny, from raw data: rendered films of photos and sounds, then training.

    python recipes/vab_tiny_motion.py ../shared/data runs/motion

It resumes. Never shown: ``clips``, the real films that it is measured on.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vab.media.reader import read_audio
from vab.training.motion.train import MotionTrainConfig, train_predictor

PER_LABEL = 60  # sounds and photos of each
LONGEST = 12.0  # seconds of a sound
SIDE = 256  # pixels: the longer side of a photo


def rows(table: Path) -> list[dict[str, str]]:
    """Rows of the split train, as many of each label as are used; single digits count as one label."""
    found: dict[str, list[dict[str, str]]] = {}
    with table.open() as file:
        for row in csv.DictReader(file):
            label = "digit" if row["label"].startswith("digit_") else row["label"]
            if row["split"] == "train" and len(found.setdefault(label, [])) < PER_LABEL:
                found[label].append(row)
    return [row for label in sorted(found) for row in found[label]]


def photo(path: Path) -> np.ndarray:
    """A photo, small and grey: uint8 [h,w]."""
    image = Image.open(path).convert("L")
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def main(data: Path, run: Path) -> None:
    """Render, train, and leave ``motion.safetensors`` and ``motion.json`` in ``run``."""
    torch.set_num_threads(1)
    sounds = [read_audio(data / row["file"])[: round(LONGEST * 16_000)] for row in rows(data / "sounds.csv")]
    photos = [photo(data / row["file"]) for row in rows(data / "photos.csv")]
    photos = [pixels for pixels in photos if min(pixels.shape) >= 64]
    print(f"{len(sounds)} sounds, {len(photos)} photos", flush=True)

    def report(line: dict[str, float]) -> None:
        print("  ".join(f"{name} {value:.4g}" for name, value in line.items()), flush=True)

    train_predictor(
        sounds, photos, run, MotionTrainConfig(), report=report, log=lambda text: print(text, flush=True)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
