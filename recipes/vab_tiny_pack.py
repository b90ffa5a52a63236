"""Trained runs and their codec -> the model directory that ships, weights in half precision.

python recipes/vab_tiny_pack.py RUN CODEC CONTRASTIVE CLASSES src/vab/assets/vab-tiny
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from vab.training.checkpoint import ship


def main(run: Path, codec: Path, contrastive: Path, classes: Path, out: Path) -> None:
    """Copy what generating, embedding and classifying need; the runs' records go along."""
    ship(run, out)
    ship(contrastive, out / "contrastive")
    ship(classes, out / "classes")
    for name in ("codec.json", "codec.safetensors"):
        shutil.copyfile(codec / name, out / name)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:6]))
