"""The motion predictor of vab-tiny, from raw data: rendered films of photos and sounds, then training.

    python recipes/vab_tiny_motion.py ../shared/data runs/motion [SOUNDS...]

SOUNDS are more folders of sounds, as vab_tiny_sounds.py makes them: their ``sounds.csv`` gives rhythms and
levels as that of DATA does, ``events.csv`` what single hits sound like. It resumes. Never shown: ``clips``,
the real films that it is measured on.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vab.media.reader import read_audio
from vab.training.motion.train import MotionTrainConfig, train_predictor

PER_LABEL = 60  # sounds and photos of each
LONGEST = 12.0  # seconds of a sound
SIDE = 256  # pixels: the longer side of a photo


def rows(folders: Sequence[Path], table: str) -> list[Path]:
    """Files of the split train, as many of each label as are used; single digits count as one label."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        with (folder / table).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                label = "digit" if row["label"].startswith("digit_") else row["label"]
                if row["split"] == "train" and len(found.setdefault(label, [])) < PER_LABEL:
                    found[label].append(folder / row["file"])
    return [path for label in sorted(found) for path in found[label]]


def photo(path: Path) -> np.ndarray:
    """A photo, small and grey: uint8 [h,w]."""
    image = Image.open(path).convert("L")
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def main(data: Path, run: Path, more: Sequence[Path] = ()) -> None:
    """Render, train, and leave ``motion.safetensors`` and ``motion.json`` in ``run``."""
    torch.set_num_threads(1)
    longest = round(LONGEST * 16_000)
    sounds = [read_audio(path)[:longest] for path in rows([data, *more], "sounds.csv")]
    hits = [read_audio(path)[:longest] for path in rows(more, "events.csv")]
    photos = [photo(path) for path in rows([data], "photos.csv")]
    photos = [pixels for pixels in photos if min(pixels.shape) >= 64]
    print(f"{len(sounds)} sounds, {len(hits)} hits, {len(photos)} photos", flush=True)

    def report(line: dict[str, float]) -> None:
        print("  ".join(f"{name} {value:.4g}" for name, value in line.items()), flush=True)

    def log(text: str) -> None:
        print(text, flush=True)

    train_predictor(sounds, photos, run, MotionTrainConfig(), report=report, log=log, hits=hits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
