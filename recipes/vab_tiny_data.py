"""The manifests vab-tiny is trained from: ``codec.csv`` and ``latents.csv``.

``codec.csv`` lists every sound, ``latents.csv`` every 5 s of sound that is not a single spoken digit, and
every photo. A photo has no sound of its own: training pairs it with sounds of the same label.

    python recipes/vab_tiny_data.py ../shared/data runs/tiny
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from vab.data.manifest import Clip, write_manifest
from vab.media.reader import probe
from vab.presets import preset

SHORTEST_REST = 2.5  # seconds: what is left of a sound after whole windows counts from here on


def windows_of(seconds: float, window: float) -> list[float]:
    """Start times of the windows of a sound: one at least, then whole ones, then a rest worth having."""
    starts = [0.0]
    while seconds - (starts[-1] + window) >= SHORTEST_REST:
        starts.append(starts[-1] + window)
    return starts


def main(data: Path, out: Path) -> None:
    """Write both manifests into ``out``."""
    window = preset("vab-tiny").model.seconds
    sounds, latents = [], []
    for row in csv.DictReader((data / "sounds.csv").open()):
        path = data / row["file"]
        clip = Clip(id=row["file"], audio=path, video=None, label=row["label"], split=row["split"])
        sounds.append(clip)
        if row["label"].startswith("digit_"):
            continue
        for start in windows_of(probe(path).seconds, window):
            latents.append(
                Clip(
                    id=f"{row['file']}@{start:g}",
                    audio=path,
                    video=None,
                    start=start,
                    label=row["label"],
                    split=row["split"],
                )
            )
    for row in csv.DictReader((data / "photos.csv").open()):
        path = data / row["file"]
        latents.append(Clip(id=row["file"], audio=None, video=path, label=row["label"], split=row["split"]))
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out / "codec.csv", sounds)
    write_manifest(out / "latents.csv", latents)
    print(f"{out}: {len(sounds)} sounds for the codec, {len(latents)} sounds and photos for latents")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
