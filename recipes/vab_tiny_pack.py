"""A trained run and its codec -> the model directory that ships, weights in half precision.

python recipes/vab_tiny_pack.py runs/tiny/vab runs/tiny/codec src/vab/assets/vab-tiny
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main(run: Path, codec: Path, out: Path) -> None:
    """Copy what generating needs; the run's record goes along."""
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(run / "model.safetensors")
    # the codebooks stand in the codec's file as halves too: both must be the same numbers
    save_file({name: tensor.half() for name, tensor in weights.items()}, out / "model.safetensors")
    for source in (
        run / "config.json",
        run / "record.json",
        codec / "codec.json",
        codec / "codec.safetensors",
    ):
        shutil.copyfile(source, out / source.name)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
