"""How good is generated sound (section 4, Tables 1 and 15 to 18): two folders in, measures out.

FD, KL and IS follow av-benchmark in every step, so that 8 s of sound give its numbers; the paper's clips are
10 s, and its FAD and KLD are FD on VGGish and KL on PaSST.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vab.evaluate.backbones.registry import BACKBONES, FeatureSpec, find, load
from vab.evaluate.generation.cache import cache_folder, tables_in
from vab.evaluate.generation.clips import ClipError, open_folder
from vab.evaluate.generation.features import SOUND, ClipSet, compare, ends_early, extract, look
from vab.evaluate.generation.scores import (
    AV_BENCHMARK,
    PICTURES,
    Measure,
    of_backbone,
    of_pictures,
    of_sound,
    similarities,
)
from vab.evaluate.metrics.distances import RESAMPLES
from vab.evaluate.metrics.statistics import EvaluationError, list_hash
from vab.evaluate.metrics.tables import generation_beside_paper, markdown
from vab.utils.files import write_whole
from vab.utils.progress import Progress


class Incomplete(EvaluationError):
    """Clips that cannot be measured, where all must be."""

    def __init__(self, faults: Sequence[ClipError]) -> None:
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
    clips: frozenset[str] | None = None  # the only ones that count; None: all that are in either folder


@dataclass
class Generation:
    """What was found. ``faults`` were left out; ``absent`` backbones could not be had, for these reasons."""

    reference: Path
    generated: Path
    seconds: float | None  # of each clip; None: not known, for features were all there was
    ids: list[str] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)
    faults: list[ClipError] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str | None] = field(default_factory=dict)  # backbone -> start of the sha256
    external: list[str] = field(default_factory=list)  # backbones with features that somebody else made
    unwritten: str = ""  # why av-benchmark's results could not be written

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
            "features_of_others": self.external,
        }

    def markdown(self) -> str:
        """What was measured on what, a table of the measures, and the paper's rows beside ours."""
        heard = "features as they are" if self.seconds is None else f"the first {self.seconds:g} s"
        heading = f"Generation: {self.generated} against {self.reference}, {heard}"
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
    ids, faults = _pairs(sides, settings.clips)
    for side in sides:
        if side.folder.sounds:
            bad = {fault.id for fault in faults}
            faults += look(side, [name for name in ids if name not in bad], settings.seconds, progress)
    heard = all(side.folder.sounds for side in sides)
    bad = {fault.id for fault in faults}
    for side in sides:
        if not side.folder.sounds:
            found.seconds, found.absent["the sounds"] = None, f"{side.folder.path} holds features alone"
    if heard:
        faults += ends_early(*sides, [name for name in ids if name not in bad])
    _judge(faults, settings, found)
    bad = {fault.id for fault in faults}
    found.ids = [name for name in ids if name not in bad]
    if len(found.ids) < 2:
        raise EvaluationError(f"{len(found.ids)} of the clips can be measured; two are the least")
    failed = _features(sides, weights, settings, found, progress)
    for name in [name for name in weights if name not in found.absent]:
        found.measures += _measure(name, weights[name], sides, failed, settings, found)
    if heard:
        mel = compare(*sides, found.ids, settings.seconds, progress)
        rows = [[side.shelves[SOUND.name].features[name] for name in found.ids] for side in sides]
        found.measures += of_sound(rows[0], rows[1], mel, settings.resamples)
    if results := found.av_benchmark():
        path = sides[1].cache / "output_metrics.json"
        try:
            write_whole(path, json.dumps(results, indent=4).encode())
        except OSError as error:  # what was measured is not lost for that
            found.unwritten = f"{path}: {error.strerror}"
    return found


def _check(settings: Settings) -> None:
    unknown = [name for name in settings.backbones or () if name not in BACKBONES]
    if unknown:
        raise EvaluationError(f"no backbone is called {unknown[0]!r}; there are: {', '.join(BACKBONES)}")
    if not 1 <= settings.seconds < math.inf:
        raise EvaluationError(f"clips must be 1 s or longer and have an end, not {settings.seconds:g} s")
    if settings.resamples < 0:
        raise EvaluationError("the number of resamples cannot be negative")


def _side(path: Path, settings: Settings) -> ClipSet:
    """A folder and where its features are: a folder without sounds may hold them itself."""
    folder = open_folder(path)
    cache = cache_folder(path, settings.seconds, settings.cache)
    if not folder.sounds and not folder.faults:
        kinds = [kind for both in BACKBONES.values() for kind in both]
        places = [place for place in (path, cache) if tables_in(place, kinds)]
        if not places:
            raise EvaluationError(f"{path}: has neither sounds nor videos nor features in it")
        cache = places[0]
    return ClipSet(folder, cache)


def _weights(sides: Sequence[ClipSet], settings: Settings, found: Generation) -> dict[str, Path | None]:
    """The backbones to measure with and the files of their weights; None where features must do."""
    wanted: dict[str, Path | None] = {}
    for name in settings.backbones or BACKBONES:
        both = list(zip(sides, BACKBONES[name], strict=True))
        made = all(tables_in(side.cache, [kind]) for side, kind in both)
        try:
            path, digest = find(BACKBONES[name][0], settings.weights)
            if not made and name in PICTURES and not sides[0].folder.videos:
                raise EvaluationError(f"no videos in {sides[0].folder.path}")
            wanted[name], found.weights[name] = path, digest
        except EvaluationError as error:
            if not made or name == "synchformer":  # which also compares with its weights
                _give_up(name, error, settings, found)
                continue
            wanted[name], found.weights[name] = None, None
        for side, kind in both:
            side.shelf(kind, found.weights[name])
    return wanted


def _give_up(name: str, error: EvaluationError, settings: Settings, found: Generation) -> None:
    """Note why a backbone cannot be had; an error if it was asked for."""
    if settings.backbones:
        raise EvaluationError(f"{name}: {error}") from None
    found.absent[name] = str(error)


def _pairs(sides: Sequence[ClipSet], wanted: frozenset[str] | None) -> tuple[list[str], list[ClipError]]:
    """Clips that both sides have, and those that only one has or that are there twice."""
    there = [side.ids if wanted is None else side.ids & wanted for side in sides]
    faults = [fault for side in sides for fault in side.folder.faults if fault.id in there[0] | there[1]]
    twice = {fault.id for fault in faults}
    for here, other, side in ((there[0], there[1], sides[1]), (there[1], there[0], sides[0])):
        faults += [
            ClipError(name, f"missing from {side.folder.path}") for name in sorted(here - other - twice)
        ]
    return sorted((there[0] & there[1]) - twice), faults


def _judge(faults: list[ClipError], settings: Settings, found: Generation) -> None:
    """Note what is left out, or refuse."""
    found.faults = sorted([*found.faults, *faults], key=lambda fault: (fault.id, fault.reason))
    if faults and not settings.allow_missing:
        raise Incomplete(found.faults)


def _features(
    sides: Sequence[ClipSet],
    weights: dict[str, Path | None],
    settings: Settings,
    found: Generation,
    progress: Progress,
) -> dict[tuple[str, str], str]:
    """Make the features that are not there; what could not be made, as kind and clip, and why."""
    networks: list[dict[FeatureSpec, Any]] = [{}, {}]
    for name, path in weights.items():
        for side, kind, loaded in zip(sides, BACKBONES[name], networks, strict=True):
            if path is None or not side.folder.sounds or not side.lacking(kind, found.ids):
                continue
            same = networks[0].get(kind)  # one network serves both sides
            try:
                loaded[kind] = same if same is not None else load(kind, path, settings.device)
            except EvaluationError as error:
                _give_up(name, error, settings, found)
                break
    failed: dict[tuple[str, str], str] = {}
    for side, loaded in zip(sides, networks, strict=True):
        failed |= extract(side, found.ids, loaded, settings.seconds, progress)
    return failed


def _measure(
    name: str,
    path: Path | None,
    sides: Sequence[ClipSet],
    failed: dict[tuple[str, str], str],
    settings: Settings,
    found: Generation,
) -> list[Measure]:
    """What a backbone says about the clips that have its features; the others are left out, or refused."""
    both = list(zip(sides, BACKBONES[name], strict=True))
    faults = [
        ClipError(
            clip, failed.get((kind.name, clip), f"no {kind.name} among the features of {side.folder.path}")
        )
        for side, kind in both
        for clip in side.lacking(kind, found.ids)
    ]
    if name == "synchformer":
        from vab.evaluate.backbones.synchformer import SEGMENTS

        lacking, need = {fault.id for fault in faults}, f"where {SEGMENTS} are needed"
        for side, kind in both:
            made = side.shelves[kind.name].features
            counts = {clip: len(made[clip][0]) for clip in found.ids if clip not in lacking}
            reason = f"too short for DeSync: {{}} segments among the features of {side.folder.path}, {need}"
            faults += [ClipError(clip, reason.format(n)) for clip, n in counts.items() if n < SEGMENTS]
    _judge(faults, settings, found)
    if any(side.shelves[kind.name].external for side, kind in both):
        found.external.append(name)
    ids = [clip for clip in found.ids if clip not in {fault.id for fault in faults}]
    if len(ids) < 2:
        found.absent[name] = f"{len(ids)} clips have its features; two are the least"
        return []
    rows = [[side.shelves[kind.name].features[clip] for clip in ids] for side, kind in both]
    if name == "imagebind":
        return of_pictures(name, similarities(rows[0], rows[1]))
    if name == "synchformer" and path is not None:
        from vab.evaluate.backbones.synchformer import offsets

        pictures, sounds = ([clip[0] for clip in clips] for clips in rows)
        return of_pictures(name, offsets(path, settings.device, pictures, sounds))
    return of_backbone(name, rows[0], rows[1], settings.resamples)
