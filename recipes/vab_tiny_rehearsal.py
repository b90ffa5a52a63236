"""Write what a model rehearses while `vab learn` teaches it more: image features of a few training pictures.

    python recipes/vab_tiny_rehearsal.py runs/tiny/store runs/tiny/model

They are those of 8 pictures of each label that has sounds and pictures in the split train. No recording and
no picture is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vab.data.mixture import Mixture
from vab.models.hub import REHEARSAL, read_config
from vab.training.teaching.rehearsal import few_pictures


def main(store: Path, model: Path) -> None:
    """Write the file into the model directory."""
    rehearsal = few_pictures(Mixture.open(store), read_config(model).model.fps)
    rehearsal.save(model)
    size = (model / REHEARSAL).stat().st_size
    labels = len({*rehearsal.labels})
    print(f"{model / REHEARSAL}: {len(rehearsal.labels)} pictures of {labels} labels, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
