"""The manifests vab-tiny is trained from: ``codec.csv`` and ``latents.csv``.

``codec.csv`` lists every sound, ``latents.csv`` every 5 s of sound that is not a single spoken digit, and
every photo. A photo has no sound of its own: training pairs it with sounds of the same label.

    python recipes/vab_tiny_data.py ../shared/data runs/tiny [--sounds runs/sounds]

A folder of --sounds (vab_tiny_sounds.py makes one) adds its split train; dev stays what it is, so that
numbers before and after can be compared. A new label needs four sounds; others are for the codec alone.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

from vab.data.manifest import Clip, write_manifest
from vab.media.reader import probe
from vab.presets import preset

SHORTEST_REST = 2.5  # seconds: what is left of a sound after whole windows counts from here on
FEWEST = 4  # sounds of a label that a folder of --sounds brings along


def windows_of(seconds: float, window: float) -> list[float]:
    """Start times of the windows of a sound: one at least, then whole ones, then a rest worth having."""
    starts = [0.0]
    while seconds - (starts[-1] + window) >= SHORTEST_REST:
        starts.append(starts[-1] + window)
    return starts


def main(data: Path, out: Path, more: list[Path]) -> None:
    """Write both manifests into ``out``, with the training sounds of the folders ``more``."""
    window = preset("vab-tiny").model.seconds
    sounds, latents = [], []
    rows = [(data, row) for row in csv.DictReader((data / "sounds.csv").open(encoding="utf-8"))]
    known = {row["label"] for _, row in rows}
    for folder in more:
        with (folder / "sounds.csv").open(encoding="utf-8") as stream:
            rows += [(folder, row) for row in csv.DictReader(stream) if row["split"] == "train"]
    counts = Counter(row["label"] for _, row in rows)
    for folder, row in rows:
        path = folder / row["file"]
        name = row["file"] if folder == data else f"{folder.name}/{row['file']}"
        clip = Clip(id=name, audio=path, video=None, label=row["label"], split=row["split"])
        sounds.append(clip)
        rare = row["label"] not in known and counts[row["label"]] < FEWEST
        if rare or row["label"].startswith("digit_"):
            continue
        for start in windows_of(probe(path).seconds, window):
            latents.append(replace(clip, id=f"{name}@{start:g}", start=start))
    for row in csv.DictReader((data / "photos.csv").open()):
        path = data / row["file"]
        latents.append(Clip(id=row["file"], audio=None, video=path, label=row["label"], split=row["split"]))
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / "codec.csv", sounds)
    write_manifest(out / "latents.csv", latents)
    print(f"{out}: {len(sounds)} sounds for the codec, {len(latents)} sounds and photos for latents")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder with sounds.csv and photos.csv")
    parser.add_argument("out", type=Path, help="the folder for the manifests")
    parser.add_argument("--sounds", type=Path, action="append", default=[], metavar="FOLDER")
    given = parser.parse_args()
    main(given.data, given.out, given.sounds)
