"""What ``make gpu-train`` learns from, packed small enough to travel; and two measurements side by side.

    python recipes/vab_tiny_gpu.py pack STORE MANIFEST OUT
    python recipes/vab_tiny_gpu.py beside A.json B.json

``pack`` writes ``latents.tar.xz``, the store with the codebooks that vab-tiny models and features rounded to
1/64 (0.01 of a feature's standard deviation, 0.04 at most), and ``sounds.tar``, as many of the manifest's
sounds for training as there is room for, every label alike, in the files that they are in.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vab.bench.gpu.tiny import LATENTS, SOUNDS
from vab.data.manifest import Clip, read_manifest, write_manifest
from vab.data.store import LatentStore
from vab.presets import preset
from vab.utils.provenance import sha256

MIB = 1 << 20
LARGEST = 25 * MIB  # of both files together
TRAVELS = 64 * MIB  # with everything that git tracks and the wheels that go along
WHEELS = 4 * MIB
ROUNDING = 64.0


def pack_latents(store: LatentStore, out: Path) -> None:
    """The store as a smaller one, compressed."""
    num_codebooks = preset("vab-tiny").model.num_codebooks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        meta = replace(store.meta, num_codebooks=num_codebooks)
        small = LatentStore.create(path, meta, store.codebook_vectors()[:num_codebooks])
        rows = []
        for row in (store[n] for n in range(len(store))):
            tokens = None if row.tokens is None else np.ascontiguousarray(row.tokens[:num_codebooks])
            features = row.features
            if features is not None:
                features = (np.round(features * ROUNDING) / ROUNDING).astype(np.float16)
            rows.append(replace(row, tokens=tokens, features=features))
        with small.writing():
            small.add(rows)
        with tarfile.open(out, "w:xz", preset=9) as tar:
            tar.add(path, "store")


def in_tar(file: Path) -> int:
    """Bytes that a file takes in a tar: its header, and itself in whole blocks."""
    return 512 + -(-file.stat().st_size // 512) * 512


def chosen(clips: Iterable[Clip], room: int) -> list[Clip]:
    """Clips whose files take at most ``room`` bytes: the label that has least so far gets its next one.

    In which order a label's clips come depends on their ids alone.
    """
    waiting: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: sha256(clip.id)):
        waiting.setdefault(clip.label, []).append(clip)
    taken, found = dict.fromkeys(sorted(waiting), 0), []
    while waiting:
        label = min(waiting, key=lambda name: taken[name])
        clip = waiting[label].pop()
        assert isinstance(clip.audio, Path)
        size = in_tar(clip.audio)
        if size <= room:
            room, taken[label] = room - size, taken[label] + size
            found.append(clip)
        if not waiting[label]:
            del waiting[label]
    return found


def pack_sounds(manifest: Path, out: Path, room: int) -> list[Clip]:
    """Sounds of the split train and their manifest, at most ``room`` bytes; those that are in it."""
    clips = [clip for clip in read_manifest(manifest) if clip.split == "train" and clip.audio is not None]
    found = chosen(clips, room - in_tar(manifest) - 20 * 512)  # a tar ends in empty blocks
    # GNU's format: the default one spends another kilobyte a file on its time's fractions of a second
    with tempfile.TemporaryDirectory() as folder, tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        there = Path(folder) / "sounds"
        there.mkdir()
        listed = []
        for number, clip in enumerate(found):
            assert isinstance(clip.audio, Path)
            path = there / f"{number:05d}{clip.audio.suffix}"
            shutil.copyfile(clip.audio, path)
            listed.append(replace(clip, audio=path))
        write_manifest(there / "sounds.csv", listed)
        tar.add(there, "sounds")
    return found


def tracked() -> int:
    """Bytes of all files that git tracks in this checkout."""
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "ls-files", "-z"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(path.lstat().st_size for path in (root / n for n in names.split("\0")[:-1]) if path.exists())


def pack(store: Path, manifest: Path, out: Path) -> None:
    """Write both files; ``SystemExit`` if they are too large to travel, and then neither is left."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (LATENTS, SOUNDS):
        (out / name).unlink(missing_ok=True)
    pack_latents(LatentStore.open(store), out / LATENTS)
    latents = (out / LATENTS).stat().st_size
    others = tracked() + WHEELS
    room = min(LARGEST, TRAVELS - others) - latents
    if room < MIB:
        (out / LATENTS).unlink()
        sys.exit(
            f"{store}: its latents take {latents / MIB:.1f} MiB, what git tracks and the wheels "
            f"{others / MIB:.1f}; {LARGEST / MIB:.0f} and, in all, {TRAVELS / MIB:.0f} may travel. "
            "Pack a smaller store"
        )
    found = pack_sounds(manifest, out / SOUNDS, room)
    sounds = (out / SOUNDS).stat().st_size
    print(
        f"{out}: latents {latents / MIB:.1f} MiB, {len(found)} sounds {sounds / MIB:.1f} MiB; "
        f"with the working tree and the wheels {(latents + sounds + others) / MIB:.1f} of {TRAVELS / MIB:.0f}"
    )


def beside(a: Path, b: Path) -> str:
    """A Markdown table of what both files of ``vab_tiny_measure.py`` hold."""
    first, second = (flat(json.loads(path.read_text())) for path in (a, b))
    lines = [f"| | {a.stem} | {b.stem} |", "|---|---|---|"]
    for name in [*first, *(name for name in second if name not in first)]:
        lines.append(f"| {name} | {first.get(name, '')} | {second.get(name, '')} |")
    return "\n".join(lines)


def flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """Nested values by their names in a row."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{before}{name}, ")
        else:
            found[f"{before}{name}"] = f"{value:.3f}" if isinstance(value, float) else str(value)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Pack, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    packing = actions.add_parser("pack")
    packing.add_argument("store", type=Path)
    packing.add_argument("manifest", type=Path)
    packing.add_argument("out", type=Path)
    table = actions.add_parser("beside")
    table.add_argument("a", type=Path)
    table.add_argument("b", type=Path)
    chosen_action = parser.parse_args(arguments)
    if chosen_action.action == "pack":
        pack(chosen_action.store, chosen_action.manifest, chosen_action.out)
    else:
        print(beside(chosen_action.a, chosen_action.b))


if __name__ == "__main__":
    main()
