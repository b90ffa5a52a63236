"""Where vab-tiny's sounds lose their class: by class, what an outside judge takes them for.

    python recipes/vab_tiny_classes.py --data ../shared/data --store runs/tiny/store --out runs/levers SETTING

For each class with photos the judge's share (see judge.py) of real dev sounds, of their windows through the
codebooks that the network models, and of the sounds that ``vab_tiny_levers.py`` made for dev photos with a
setting and keeps in ``--out``; then what the others are most often taken for.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from vab_tiny_levers import Plan, named
from vab_tiny_measure import fitted_judge, sounds_of

MOST = 3  # wrong names of a class that are listed


def row(name: str, columns: Sequence[tuple[NDArray, NDArray]]) -> str:
    """Of each column's (names, labels) the share of class ``name``; then the wrong names of the last two."""
    own = [names[labels == name] for names, labels in columns]
    shares = [f"{(names == name).mean():.2f} ({len(names)})" if len(names) else "-" for names in own]
    wrong = [
        ", ".join(f"{other} {count}" for other, count in Counter(names[names != name]).most_common(MOST))
        for names in own[1:]
    ]
    return " | ".join([name, *shares, *wrong])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder of vab_tiny_levers.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    manifest = args.store.parent / "codec.csv"
    judge = fitted_judge(args.data, args.store.parent / "judge.pickle", [], [])  # the levers have fitted it
    plan = Plan.of(args.store.parent / "latents.csv")
    classes = sorted(set(plan.labels))

    # 1. Real sounds; those through the codec, each once; those that were made.
    sounds, labels = sounds_of(manifest, "dev", args.data)
    real = judge.name([sound for sound, label in zip(sounds, labels, strict=True) if label in classes])
    coded = dict(zip(plan.true, plan.labels, strict=True))
    with np.load(args.out / "true.npz") as file:
        through = named(judge, file["scores"])
    parts = [np.load(file)["scores"] for file in sorted((args.out / args.setting).glob("[0-9]*.npz"))]
    generated = named(judge, np.concatenate(parts))

    # 2. By class.
    columns = [
        (real, np.array([label for label in labels if label in classes])),
        (through, np.array([coded[name] for name in sorted(coded)])),
        (generated, np.array(plan.labels[: len(generated)])),
    ]
    print("class | real | through the codebooks | generated | through, taken for | generated, taken for")
    for name in classes:
        print(row(name, columns))


if __name__ == "__main__":
    main()
