"""Clips of a folder -> features on its shelves. A clip is decoded once for each rate, for all networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vab.errors import first_line
from vab.evaluate.backbones.registry import Features, FeatureSpec
from vab.evaluate.generation.cache import FeatureCache
from vab.evaluate.generation.clips import SLACK, ClipError, Folder, check_clip, read_clip
from vab.evaluate.metrics import signal
from vab.media.container import MediaError
from vab.utils.progress import Progress

RATE = 16_000
SOUND = FeatureSpec("sound", RATE, ("vab_sound",), version="1")  # what needs no network, by clip
PAIRS = FeatureSpec("pairs", RATE, ("vab_pairs",), version="1")  # and by pair


@dataclass
class ClipSet:
    """A folder and the shelves of its features, by the name of their kind."""

    folder: Folder
    cache: Path
    shelves: dict[str, FeatureCache] = field(default_factory=dict)

    @property
    def ids(self) -> set[str]:
        """The clips of the folder; those of the features in it if it holds no sound."""
        names = set(self.folder.sounds) | {fault.id for fault in self.folder.faults}
        return names or {name for shelf in self.shelves.values() for name in shelf.features}

    def shelf(self, kind: FeatureSpec, weights: str | None) -> FeatureCache:
        """The shelf of a kind whose weights have this hash, read from disk the first time."""
        if kind.name not in self.shelves:
            self.shelves[kind.name] = FeatureCache(self.cache, kind, weights)
            if self.folder.sounds:
                self.shelves[kind.name].keep(self.folder.sounds)
        return self.shelves[kind.name]

    def lacking(self, kind: FeatureSpec, ids: Sequence[str]) -> list[str]:
        """Those of the clips that have no features of a kind, or of another state of their file."""
        shelf = self.shelves[kind.name]
        return [name for name in ids if not shelf.has(name, self.folder.stamp(name, kind.rate == 0))]


def look(side: ClipSet, ids: Sequence[str], seconds: float, progress: Progress) -> list[ClipError]:
    """Read every clip, keep what needs no network, and say which cannot be measured: unreadable, too short,
    silent."""
    shelf = side.shelf(SOUND, SOUND.version)
    todo, faults = side.lacking(SOUND, ids), []
    with _saving([shelf]):
        for n, name in enumerate(todo):
            path = side.folder.sounds[name]
            progress(n, len(todo), path, "looking", n, len(todo))
            stamp = side.folder.stamp(name)
            try:
                waveform = read_clip(path, RATE, seconds)
                check_clip(path, waveform, RATE)
            except MediaError as error:
                faults.append(ClipError(name, first_line(error)))
                continue
            shelf.put(name, stamp or "", (_without_network(waveform),))
    return faults


def _without_network(waveform: NDArray[np.float32]) -> Features:
    return {
        "seconds": torch.tensor(len(waveform) / RATE, dtype=torch.float64),
        "statistics": torch.from_numpy(signal.statistics(waveform)),
        "onsets": torch.from_numpy(signal.onsets(waveform)),
    }


def ends_early(reference: ClipSet, generated: ClipSet, ids: Sequence[str]) -> list[ClipError]:
    """Generated sounds that end before their reference does."""
    faults = []
    shelves = [side.shelves[SOUND.name] for side in (reference, generated)]
    for name in ids:
        long, short = (float(shelf.features[name][0]["seconds"]) for shelf in shelves)
        if short < long - SLACK:
            reason = f"too short, {short:.2f} s, where the reference has {long:.2f} s"
            faults.append(ClipError(name, f"{generated.folder.sounds[name]}: {reason}"))
    return faults


def compare(
    reference: ClipSet, generated: ClipSet, ids: Sequence[str], seconds: float, progress: Progress
) -> list[float]:
    """The mel distance of each pair; kept with the features of the generated sounds."""
    shelf = generated.shelf(PAIRS, PAIRS.version)
    stamps = {name: f"{reference.folder.stamp(name)} {generated.folder.stamp(name)}" for name in ids}
    todo = [name for name in ids if not shelf.has(name, stamps[name])]
    with _saving([shelf]):
        for n, name in enumerate(todo):
            progress(n, len(todo), generated.folder.sounds[name], "comparing", n, len(todo))
            a, b = (read_clip(side.folder.sounds[name], RATE, seconds) for side in (reference, generated))
            shelf.put(name, stamps[name], (torch.tensor(signal.mel_distance(a, b), dtype=torch.float64),))
    return [float(shelf.features[name][0]) for name in ids]


def extract(
    side: ClipSet, ids: Sequence[str], networks: Mapping[FeatureSpec, Any], seconds: float, progress: Progress
) -> dict[tuple[str, str], str]:
    """Fill the shelves of these kinds; what could not be made, as kind and clip, and why."""
    lacking = {kind: set(side.lacking(kind, ids)) for kind in networks}
    todo = [name for name in ids if any(name in names for names in lacking.values())]
    failed: dict[tuple[str, str], str] = {}
    with _saving([side.shelves[kind.name] for kind in networks]):
        for n, name in enumerate(todo):
            progress(n, len(todo), side.folder.sounds[name], "features", n, len(todo))
            kinds = [kind for kind in networks if name in lacking[kind]]
            for rate, whole in sorted({(kind.rate, kind.whole) for kind in kinds}):
                picture = rate == 0
                path = (side.folder.videos if picture else side.folder.sounds).get(name)
                if path is None:
                    continue
                stamp = side.folder.stamp(name, picture) or ""
                heard = None if picture else read_clip(path, rate, None if whole else seconds)
                for kind in (kind for kind in kinds if (kind.rate, kind.whole) == (rate, whole)):
                    network = networks[kind]
                    try:
                        made = network(path, seconds) if heard is None else network(heard)
                        side.shelves[kind.name].put(name, stamp, made)
                    except MediaError as error:
                        failed[kind.name, name] = first_line(error)
    return failed


class _saving:
    """Saves shelves at the end: whole if all went well, else as something to go on from."""

    def __init__(self, shelves: Sequence[FeatureCache]) -> None:
        self.shelves = shelves

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for shelf in self.shelves:
            shelf.save(complete=kind is None)
