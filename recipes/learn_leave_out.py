"""A store without two labels, a folder that teaches them, and photos of them that nobody learns from.

    python recipes/learn_leave_out.py ../shared/data runs/tiny/store runs/left sea big_cat
    cd runs/left
    vab pretrain vab-tiny --store store --out model --max-steps 1000
    python ../../recipes/vab_tiny_rehearsal.py store model
    vab learn folder -o taught --model model
    python ../../recipes/learn_measure.py ../../../shared/data ../tiny/store held model taught

So a model is taught labels of which it has seen and heard nothing before. The folder has 20 sounds and 30
photos of each label, of the split train; the photos to measure with are of the split dev.
"""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vab.data.store import CODEBOOKS, LatentStore, spread

SOUNDS, PHOTOS = 20, 30  # of a label, to learn from
SHARD = 500  # clips


def main(data: Path, store_dir: Path, out: Path, labels: list[str]) -> None:
    """Write ``store``, ``folder`` and ``held`` into ``out``."""
    # 1. The store.
    store = LatentStore.open(store_dir)
    kept = np.flatnonzero(~np.isin(store.labels, labels))
    left = LatentStore.create(out / "store", store.meta, load_file(store.directory / CODEBOOKS)["codebooks"])
    for start in range(0, len(kept), SHARD):
        left.add([store[int(row)] for row in kept[start : start + SHARD]])

    # 2. The files.
    for kind, count in (("sounds", SOUNDS), ("photos", PHOTOS)):
        with (data / f"{kind}.csv").open(encoding="utf-8") as stream:
            rows = sorted(csv.DictReader(stream), key=lambda row: row["file"])
        for label in labels:
            train, dev = (
                [r for r in rows if (r["label"], r["split"]) == (label, s)] for s in ("train", "dev")
            )
            few = [train[n] for n in spread(len(train), count)]
            for name, chosen in (("folder", few), ("held", dev if kind == "photos" else [])):
                (out / name / label).mkdir(parents=True, exist_ok=True)
                for row in chosen:
                    shutil.copy(data / row["file"], out / name / label)
    print(f"{out}: {len(left)} of {len(store)} clips are without {', '.join(labels)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
