"""A folder that teaches labels, photos of them that nobody learns from, and a store without these labels.

    python recipes/learn_folder.py ../shared/data runs/learn rain=101_ObjectCategories/umbrella \\
        frog=101_ObjectCategories/lotus
    vab learn runs/learn/folder -o runs/learn/taught
    python recipes/learn_measure.py ../shared/data runs/tiny/store runs/learn/held vab-tiny runs/learn/taught

So vab-tiny is taught labels that it knows by their sounds alone, with photos from elsewhere. Or a model that
has neither seen nor heard them, with photos of DATA:

    python recipes/learn_folder.py ../shared/data runs/left sea big_cat --without runs/tiny/store
    vab pretrain vab-tiny --store runs/left/store --out runs/left/model --max-steps 1000
    python recipes/vab_tiny_rehearsal.py runs/left/store runs/left/model

The folder has 20 sounds and 30 photos of each label, spread over those of the split train or, of a folder of
photos, over all; what is held out are the photos of the split dev, or the others.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from vab.data.store import CODEBOOKS, LatentStore, spread

SOUNDS, PHOTOS = 20, 30  # of a label, to learn from
SHARD = 500  # clips


def files_of(data: Path, kind: str, label: str, split: str) -> list[Path]:
    """The files of ``kind``, sounds or photos, of a label and a split."""
    with (data / f"{kind}.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["label"], row["split"]) == (label, split)]
    return sorted(data / row["file"] for row in rows)


def copy(files: Iterable[Path], folder: Path) -> None:
    """Copy files into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder)


def main(data: Path, out: Path, labels: dict[str, str], without: Path | None) -> None:
    """Write ``folder``, ``held`` and ``store`` into ``out``; each label has a folder of photos, or none."""
    for label, place in labels.items():
        photos = sorted(Path(place).iterdir()) if place else files_of(data, "photos", label, "train")
        few = [photos[n] for n in spread(len(photos), PHOTOS)]
        held = [photo for photo in photos if photo not in few]
        sounds = files_of(data, "sounds", label, "train")
        copy([*few, *(sounds[n] for n in spread(len(sounds), SOUNDS))], out / "folder" / label)
        copy(held if place else files_of(data, "photos", label, "dev"), out / "held" / label)
    if without is None:
        return
    store = LatentStore.open(without)
    rows = np.flatnonzero(~np.isin(store.labels, list(labels)))
    left = LatentStore.create(out / "store", store.meta, load_file(store.directory / CODEBOOKS)["codebooks"])
    for start in range(0, len(rows), SHARD):
        left.add([store[int(row)] for row in rows[start : start + SHARD]])
    print(f"{left.directory}: {len(left)} of {len(store)} clips are of other labels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with sounds.csv and photos.csv")
    parser.add_argument("out", type=Path)
    parser.add_argument("labels", nargs="+", metavar="LABEL[=PHOTOS]")
    parser.add_argument("--without", type=Path, metavar="STORE")
    given = parser.parse_args()
    main(
        given.data, given.out, {x.partition("=")[0]: x.partition("=")[2] for x in given.labels}, given.without
    )
