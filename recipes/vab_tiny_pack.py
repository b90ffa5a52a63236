"""Trained runs and their codec -> the model directory that ships, weights in half precision.

python recipes/vab_tiny_pack.py RUN CODEC CONTRASTIVE CLASSES src/vab/assets/vab-tiny
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from vab.models.hub import CONFIG, MODEL


def pack(run: Path, out: Path) -> None:
    """A run's configuration, record and weights; a linear probe keeps its head alone."""
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / MODEL)
    if json.loads((run / CONFIG).read_text())["train"]["frozen"]:
        weights = {name: tensor for name, tensor in weights.items() if name.startswith("head.")}
    # the codebooks stand in the codec's file as halves too: both must be the same numbers
    save_file({name: tensor.half() for name, tensor in weights.items()}, out / MODEL)
    for name in (CONFIG, "record.json"):
        shutil.copyfile(run / name, out / name)


def main(run: Path, codec: Path, contrastive: Path, classes: Path, out: Path) -> None:
    """Copy what generating, embedding and classifying need; the runs' records go along."""
    pack(run, out)
    pack(contrastive, out / "contrastive")
    pack(classes, out / "classes")
    for name in ("codec.json", "codec.safetensors"):
        shutil.copyfile(codec / name, out / name)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:6]))
