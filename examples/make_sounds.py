"""Makes ``sounds/`` again, which `make demo` searches: what vab-tiny itself hears in one photo of each class.

No recording is among them, so they may ship with the code. Run it with

    python examples/make_sounds.py PHOTOS [--model DIR] [--rerank 4]

PHOTOS has a folder of photos for each class. Where PHOTOS.csv (file,label,split) stands beside it, photos of
the split dev are taken, of the classes that are in the split train.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import av
import numpy as np

from vab import VABPipeline
from vab.config import SAMPLE_RATE
from vab.utils.files import atomic

SECONDS, FADE = 4.0, 0.1
BITS = 24_000  # a second


def photos(folder: Path) -> dict[str, Path]:
    """The first photo of each class."""
    listing = folder.with_suffix(".csv")
    if listing.is_file():
        rows = list(csv.DictReader(listing.open()))
        known = {row["label"] for row in rows if row["split"] == "train"}
        rows = [row for row in rows if row["split"] == "dev" and row["label"] in known]
        found = [(row["label"], listing.parent / row["file"]) for row in rows]
    else:
        found = [(path.parent.name, path) for path in sorted(folder.glob("*/*"))]
    return dict(sorted(found, reverse=True))


def write_opus(path: Path, waveform: np.ndarray) -> None:
    """Ogg Opus of float32 [S] at 16 kHz, complete or not at all."""
    with atomic(path) as temporary, av.open(str(temporary), "w", format="ogg") as output:
        stream = output.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"b": str(BITS)})
        frame = av.AudioFrame.from_ndarray(waveform[None], format="flt", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def main() -> None:
    """Writes ``sounds/<class>/<class>.ogg`` beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", help="as vab generate --model; left out: the bundled vab-tiny")
    parser.add_argument("--rerank", type=int, default=4, help="sounds drawn for each, of which one is kept")
    chosen = parser.parse_args()
    pipeline = VABPipeline.from_pretrained(chosen.model)
    folder, size = Path(__file__).with_name("sounds"), 0
    for label, photo in sorted(photos(chosen.photos).items()):
        waveform = pipeline.generate(photo, rerank=chosen.rerank).waveform[: round(SECONDS * SAMPLE_RATE)]
        fade = round(FADE * SAMPLE_RATE)
        waveform[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        path = folder / label / f"{label}.ogg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_opus(path, waveform)
        size += path.stat().st_size
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    print(f"{size / 1000:.0f} kB in all")


if __name__ == "__main__":
    main()
