"""Trained runs and their codec -> the model directory that ships, weights in half precision.

python recipes/vab_tiny_pack.py RUN CODEC CONTRASTIVE CLASSES src/vab/assets/vab-tiny [MOTION]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from vab.timing import MOTION_FILES
from vab.training.checkpoint import ship


def main(
    run: Path, codec: Path, contrastive: Path, classes: Path, out: Path, motion: Path | None = None
) -> None:
    """Copy what generating, embedding and classifying need; the runs' records go along.

    ``motion``: the folder of a motion predictor, for a model that is told a timing curve.
    """
    ship(run, out)
    ship(contrastive, out / "contrastive")
    ship(classes, out / "classes")
    for name in ("codec.json", "codec.safetensors"):
        shutil.copyfile(codec / name, out / name)
    if motion is not None:
        for name in MOTION_FILES:
            shutil.copyfile(motion / name, out / name)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:7]))
