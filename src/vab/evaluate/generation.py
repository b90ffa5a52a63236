"""How good is generated sound (section 4, Tables 1 and 15 to 18): two folders in, measures out.

FD, KL and IS follow av-benchmark in every step, so that 8 s of sound give its numbers; the paper's clips are
10 s, and its FAD and KLD are FD on VGGish and KL on PaSST.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vab.record import write_whole

from .backbones import KINDS, Backbone, Kind, find, load
from .cache import cache_folder, tables_in
from .clips import Fault, open_folder
from .distances import RESAMPLES
from .extraction import SOUND, Progress, Side, compare, ends_early, extract, look
from .measures import AV_BENCHMARK, Measure, of_backbone, of_sound
from .report import EvaluationError, generation_beside_paper, list_hash, markdown


class Incomplete(EvaluationError):
    """Clips that cannot be measured, where all must be."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        clips = "1 clip" if len(faults) == 1 else f"{len(faults)} clips"
        super().__init__(f"{clips} cannot be measured; --allow-missing leaves them out")
        self.faults = list(faults)


@dataclass(frozen=True)
class Settings:
    """What to measure, and with what."""

    seconds: float = 10.0  # of each clip, from its beginning
    backbones: tuple[str, ...] | None = None  # None: those whose weights or features are there
    weights: Path | None = None  # the folder of their weights
    cache: Path | None = None  # of the features; None: beside the sounds
    allow_missing: bool = False
    resamples: int = RESAMPLES  # for measures of whole sets
    device: str = "auto"


@dataclass
class Generation:
    """What was found. ``faults`` were left out; ``absent`` backbones could not be had, for these reasons."""

    reference: Path
    generated: Path
    seconds: float
    ids: list[str] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str | None] = field(default_factory=dict)  # backbone -> start of the sha256
    foreign: list[str] = field(default_factory=list)  # backbones with features that somebody else made

    def get(self, key: str) -> Measure | None:
        """The measure of that key, if it was measured."""
        return next((measure for measure in self.measures if measure.key == key), None)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "reference": str(self.reference),
            "generated": str(self.generated),
            "seconds": self.seconds,
            "clips": len(self.ids),
            "ids_sha256": list_hash(self.ids),
            "measures": {
                each.key: each.value.document() | {"clips": each.clips, "better": each.better}
                for each in self.measures
            },
            "av_benchmark": self.av_benchmark(),
            "left_out": [vars(fault) for fault in self.faults],
            "not_measured": self.absent,
            "weights": self.weights,
            "features_of_others": self.foreign,
        }

    def markdown(self) -> str:
        """What was measured on what, a table of the measures, and the paper's rows beside ours."""
        heading = f"Generation: {self.generated} against {self.reference}, the first {self.seconds:g} s"
        counts = f"N = {len(self.ids):,}, {len(self.faults):,} left out; sha256 of the ids"
        note = f"{counts} {list_hash(self.ids)[:16]}. Brackets: 95 % bootstrap intervals."
        rows = [[each.key, each.value.plain(), each.better, f"{each.clips:,}"] for each in self.measures]
        fad, kld = (self.get(key) for key in ("FD-VGG", "KL-PASST-softmax"))
        ours = (None if each is None else each.value for each in (fad, kld))
        paper = generation_beside_paper(self.generated.name, len(self.ids), self.seconds, *ours)
        return "\n\n".join([heading, note, markdown(("measure", "value", "better", "N"), rows), paper])

    def av_benchmark(self) -> dict[str, float]:
        """What av-benchmark's ``output_metrics.json`` would hold: its keys, bare numbers."""
        found = {each.key: each.value.value for each in self.measures if each.key in AV_BENCHMARK}
        deviations = {
            each.key.replace("-mean", "-std"): each.deviation
            for each in self.measures
            if each.key in AV_BENCHMARK and each.deviation is not None
        }
        return found | deviations


def evaluate(
    reference: Path, generated: Path, settings: Settings, progress: Progress = lambda *_: None
) -> Generation:
    """Measure the sounds of ``generated`` against those of ``reference`` that have the same names.

    Either may also be a folder of features that av-benchmark or an earlier run made. The features of both are
    kept, and av-benchmark's ``output_metrics.json`` beside those of ``generated``.
    Raises ``Incomplete`` with every clip that cannot be measured unless they may be missing, and
    ``EvaluationError`` if nothing can, or a backbone that was asked for cannot be had.
    """
    _check(settings)
    found = Generation(reference, generated, settings.seconds)
    sides = (_side(reference, settings), _side(generated, settings))
    weights = _weights(sides, settings, found)
    ids, faults = _pairs(sides)
    for side in sides:
        if side.folder.sounds:
            bad = {fault.id for fault in faults}
            faults += look(side, [name for name in ids if name not in bad], settings.seconds, progress)
    heard = all(side.folder.sounds for side in sides)
    bad = {fault.id for fault in faults}
    if heard:
        faults += ends_early(*sides, [name for name in ids if name not in bad])
    _judge(faults, settings, found)
    bad = {fault.id for fault in faults}
    found.ids = [name for name in ids if name not in bad]
    if len(found.ids) < 2:
        raise EvaluationError(f"{len(found.ids)} of the clips can be measured; two are the least")
    _features(sides, weights, settings, found, progress)
    if heard:
        mel = compare(*sides, found.ids, settings.seconds, progress)
        rows = [[side.shelves[SOUND.name].features[name] for name in found.ids] for side in sides]
        found.measures += of_sound(rows[0], rows[1], mel, settings.resamples)
    if results := found.av_benchmark():
        write_whole(sides[1].cache / "output_metrics.json", json.dumps(results, indent=4).encode())
    return found


def _check(settings: Settings) -> None:
    unknown = [name for name in settings.backbones or () if name not in KINDS]
    if unknown:
        raise EvaluationError(f"no backbone is called {unknown[0]!r}; there are: {', '.join(KINDS)}")
    if not settings.seconds >= 1:
        raise EvaluationError(f"clips must be 1 s or longer, not {settings.seconds:g} s")
    if settings.resamples < 0:
        raise EvaluationError("the number of resamples cannot be negative")


def _side(path: Path, settings: Settings) -> Side:
    """A folder and where its features are: a folder without sounds may hold them itself."""
    folder = open_folder(path)
    cache = cache_folder(path, settings.seconds, settings.cache)
    if not folder.sounds and not folder.faults:
        places = [place for place in (path, cache) if tables_in(place, KINDS.values())]
        if not places:
            raise EvaluationError(f"{path}: has neither sounds nor videos nor features in it")
        cache = places[0]
    return Side(folder, cache)


def _weights(sides: Sequence[Side], settings: Settings, found: Generation) -> dict[Kind, Path | None]:
    """The backbones to measure with and the files of their weights; None where features must do."""
    wanted: dict[Kind, Path | None] = {}
    for name in settings.backbones or KINDS:
        kind = KINDS[name]
        try:
            path, digest = find(kind, settings.weights)
            wanted[kind], found.weights[name] = path, digest
        except EvaluationError as error:
            if not all(tables_in(side.cache, [kind]) for side in sides):
                if settings.backbones:
                    raise EvaluationError(f"{name}: {error}") from None
                found.absent[name] = str(error)
                continue
            wanted[kind], found.weights[name] = None, None
        for side in sides:
            side.shelf(kind, found.weights[name])
    return wanted


def _pairs(sides: Sequence[Side]) -> tuple[list[str], list[Fault]]:
    """Clips that both sides have, and those that only one has or that are there twice."""
    faults = [fault for side in sides for fault in side.folder.faults]
    twice = {fault.id for fault in faults}
    there = [side.ids for side in sides]
    for here, other, side in ((there[0], there[1], sides[1]), (there[1], there[0], sides[0])):
        faults += [Fault(name, f"missing from {side.folder.path}") for name in sorted(here - other - twice)]
    return sorted((there[0] & there[1]) - twice), faults


def _judge(faults: list[Fault], settings: Settings, found: Generation) -> None:
    """Note what is left out, or refuse."""
    found.faults = sorted([*found.faults, *faults], key=lambda fault: (fault.id, fault.reason))
    if faults and not settings.allow_missing:
        raise Incomplete(found.faults)


def _features(
    sides: Sequence[Side],
    weights: dict[Kind, Path | None],
    settings: Settings,
    found: Generation,
    progress: Progress,
) -> None:
    """Make the features that are not there, and measure each backbone on the clips that have them."""
    networks: dict[Kind, Backbone] = {}
    for kind, path in weights.items():
        possible = [side for side in sides if side.folder.sounds and side.lacking(kind, found.ids)]
        if not possible or path is None:
            continue
        try:
            networks[kind] = load(kind, path, settings.device)
        except EvaluationError as error:
            if settings.backbones:
                raise
            found.absent[kind.name] = str(error)
    for side in sides:
        if side.folder.sounds:
            extract(side, found.ids, networks, settings.seconds, progress)
    for kind in weights:
        if kind.name in found.absent:
            continue
        lacking = {side.folder.path: side.lacking(kind, found.ids) for side in sides}
        faults = [
            Fault(name, f"{kind.name}: not among the features of {path}")
            for path, names in lacking.items()
            for name in names
        ]
        _judge(faults, settings, found)
        missing = {name for names in lacking.values() for name in names}
        ids = [name for name in found.ids if name not in missing]
        rows = [[side.shelves[kind.name].features[name] for name in ids] for side in sides]
        if len(ids) >= 2:
            found.measures += of_backbone(kind.name, rows[0], rows[1], settings.resamples)
        if any(side.shelves[kind.name].foreign for side in sides):
            found.foreign.append(kind.name)
