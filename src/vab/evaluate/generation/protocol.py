"""Evaluation of generated sound (section 4, Tables 1 and 15 to 18): two folders in, metrics out.

FD, KL and IS follow av-benchmark in every step, so that 8 s of sound give its numbers; the paper's clips are
10 s, and its FAD and KLD are FD on VGGish and KL on PaSST.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vab.evaluate.backbones.registry import BACKBONES, FeatureSpec, Rows, find, load
from vab.evaluate.generation.cache import cache_folder, tables_in
from vab.evaluate.generation.clips import ClipError, open_folder
from vab.evaluate.generation.features import SOUND, ClipSet, compare, ends_early, extract, scan_clips
from vab.evaluate.generation.scores import AV_BENCHMARK, Metric, of_backbone, of_pairs, of_signal
from vab.evaluate.metrics.distances import RESAMPLES
from vab.evaluate.metrics.statistics import EvaluationError, list_hash
from vab.evaluate.metrics.tables import generation_beside_paper, markdown
from vab.utils.files import write_whole
from vab.utils.progress import FileProgress


class Incomplete(EvaluationError):
    """Clips that cannot be measured, where all must be."""

    def __init__(self, faults: Sequence[ClipError]) -> None:
        clips = "1 clip" if len(faults) == 1 else f"{len(faults)} clips"
        super().__init__(f"{clips} cannot be measured; --allow-missing leaves them out")
        self.faults = list(faults)


@dataclass(frozen=True)
class Settings:
    """Options of an evaluation."""

    seconds: float = 10.0  # of each clip, from its beginning
    backbones: tuple[str, ...] | None = None  # None: those whose weights or features are there
    weights: Path | None = None  # the folder of their weights
    cache: Path | None = None  # of the features; None: beside the sounds
    allow_missing: bool = False
    resamples: int = RESAMPLES  # for metrics of whole sets
    device: str = "auto"
    clips: frozenset[str] | None = None  # the only ones that count; None: all that are in either folder


@dataclass(frozen=True)
class Generation:
    """The result of an evaluation."""

    reference: Path
    generated: Path
    seconds: float | None  # of each clip; None: not known, for features were all there was
    ids: list[str]  # of the clips that were measured
    metrics: list[Metric]
    faults: list[ClipError]  # clips that were left out
    absent: dict[str, str]  # backbones that could not be used -> the reason
    weights: dict[str, str | None]  # backbone -> start of the sha256
    external: list[str]  # backbones with features that somebody else made
    unwritten: str = ""  # why av-benchmark's results could not be written

    def get(self, key: str) -> Metric | None:
        """The metric of that key; None if it was not measured."""
        return next((metric for metric in self.metrics if metric.key == key), None)

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
                for each in self.metrics
            },
            "av_benchmark": self.av_benchmark(),
            "left_out": [vars(fault) for fault in self.faults],
            "not_measured": self.absent,
            "weights": self.weights,
            "features_of_others": self.external,
        }

    def markdown(self) -> str:
        """A heading, a table of the metrics, and the paper's rows beside ours."""
        extent = "features as they are" if self.seconds is None else f"the first {self.seconds:g} s"
        heading = f"Generation: {self.generated} against {self.reference}, {extent}"
        counts = f"N = {len(self.ids):,}, {len(self.faults):,} left out; sha256 of the ids"
        note = f"{counts} {list_hash(self.ids)[:16]}. Brackets: 95 % bootstrap intervals."
        rows = [[each.key, each.value.plain(), each.better, f"{each.clips:,}"] for each in self.metrics]
        fad = self.get("FD-VGG")
        kld = self.get("KL-PASST-softmax")
        paper = generation_beside_paper(
            self.generated.name,
            len(self.ids),
            self.seconds,
            fad=None if fad is None else fad.value,
            kld=None if kld is None else kld.value,
        )
        return "\n\n".join([heading, note, markdown(("measure", "value", "better", "N"), rows), paper])

    def av_benchmark(self) -> dict[str, float]:
        """The content of av-benchmark's ``output_metrics.json``: its keys, bare numbers."""
        return _av_benchmark(self.metrics)


def _av_benchmark(metrics: Sequence[Metric]) -> dict[str, float]:
    values = {each.key: each.value.value for each in metrics if each.key in AV_BENCHMARK}
    deviations = {
        each.key.replace("-mean", "-std"): each.deviation
        for each in metrics
        if each.key in AV_BENCHMARK and each.deviation is not None
    }
    return values | deviations


@dataclass(frozen=True)
class Weights:
    """The weights of a backbone; None and None where cached features must do."""

    path: Path | None = None
    digest: str | None = None  # start of the sha256


def evaluate(
    reference: Path, generated: Path, settings: Settings, progress: FileProgress = lambda *_: None
) -> Generation:
    """Measure the sounds of ``generated`` against those of ``reference`` that have the same names.

    Either may also be a folder of features that av-benchmark or an earlier run made. The features of both are
    kept, and av-benchmark's ``output_metrics.json`` beside those of ``generated``.
    Raises ``Incomplete`` with every clip that cannot be measured unless they may be missing, and
    ``EvaluationError`` if nothing can, or a backbone that was asked for cannot be had.
    """
    # 1. Open both folders, and the caches of the backbones that can be used.
    _check(settings)
    sides = (_open_side(reference, settings), _open_side(generated, settings))
    weights, absent = _find_weights(sides, settings)
    for name, found in weights.items():
        for side, spec in zip(sides, BACKBONES[name].specs, strict=True):
            side.open_cache(spec, found.digest)

    # 2. Pair the clips by name and read them all: what is wrong with any is known before a network runs.
    ids, faults = _pair_clips(sides, settings.clips)
    for side in sides:
        if side.folder.sounds:
            unreadable = scan_clips(side, ids, settings.seconds, progress)
            faults += unreadable
            ids = _without(ids, unreadable)
        else:
            absent["the sounds"] = f"{side.folder.path} holds features alone"
    have_sounds = all(side.folder.sounds for side in sides)
    if have_sounds:
        short = ends_early(*sides, ids)
        faults += short
        ids = _without(ids, short)
    faults = _left_out(faults, settings)
    if len(ids) < 2:
        raise EvaluationError(f"{len(ids)} of the clips can be measured; two are the least")

    # 3. Make the features that are not cached.
    networks, unloadable = _load_networks(sides, weights, ids, settings)
    absent |= unloadable
    failed: dict[tuple[str, str], str] = {}
    for side, loaded in zip(sides, networks, strict=True):
        failed |= extract(side, ids, loaded, settings.seconds, progress)

    # 4. Measure with each backbone, on the clips that have its features.
    metrics: list[Metric] = []
    external = []
    for name in [name for name in weights if name not in absent]:
        featureless = _without_features(name, sides, ids, failed)
        faults = _left_out([*faults, *featureless], settings)
        # features from elsewhere carry no record of their weights: the reader must know
        specs = BACKBONES[name].specs
        if any(side.caches[spec.name].external for side, spec in zip(sides, specs, strict=True)):
            external.append(name)
        usable = _without(ids, featureless)
        if len(usable) < 2:
            absent[name] = f"{len(usable)} clips have its features; two are the least"
            continue
        metrics += _backbone_metrics(name, weights[name], sides, usable, settings)

    # 5. Measure what needs no network.
    if have_sounds:
        distances = compare(*sides, ids, settings.seconds, progress)
        rows = [_rows(side, SOUND, ids) for side in sides]
        metrics += of_signal(rows[0], rows[1], distances, settings.resamples)

    return Generation(
        reference=reference,
        generated=generated,
        seconds=settings.seconds if have_sounds else None,
        ids=ids,
        metrics=metrics,
        faults=faults,
        absent=absent,
        weights={name: found.digest for name, found in weights.items()},
        external=external,
        unwritten=_write_av_benchmark(sides[1].cache_dir / "output_metrics.json", metrics),
    )


def _check(settings: Settings) -> None:
    unknown = [name for name in settings.backbones or () if name not in BACKBONES]
    if unknown:
        raise EvaluationError(f"no backbone is called {unknown[0]!r}; there are: {', '.join(BACKBONES)}")
    if not 1 <= settings.seconds < math.inf:
        raise EvaluationError(f"clips must be 1 s or longer and have an end, not {settings.seconds:g} s")
    if settings.resamples < 0:
        raise EvaluationError("the number of resamples cannot be negative")


def _open_side(path: Path, settings: Settings) -> ClipSet:
    """A folder and where its features are: a folder without sounds may hold them itself."""
    folder = open_folder(path)
    cache = cache_folder(path, settings.seconds, settings.cache)
    if not folder.sounds and not folder.faults:
        specs = [spec for backbone in BACKBONES.values() for spec in backbone.specs]
        # av-benchmark's own folder of features, or the cache of an earlier run
        places = [place for place in (path, cache) if tables_in(place, specs)]
        if not places:
            raise EvaluationError(f"{path}: has neither sounds nor videos nor features in it")
        cache = places[0]
    return ClipSet(folder, cache)


def _find_weights(sides: Sequence[ClipSet], settings: Settings) -> tuple[dict[str, Weights], dict[str, str]]:
    """The weights of the backbones to measure with; and of those that cannot be used, the reason."""
    weights: dict[str, Weights] = {}
    absent: dict[str, str] = {}
    for name in settings.backbones or BACKBONES:
        backbone = BACKBONES[name]
        # features in both caches do without weights
        cached = all(
            tables_in(side.cache_dir, [spec]) for side, spec in zip(sides, backbone.specs, strict=True)
        )
        try:
            path, digest = find(backbone.reference, settings.weights)
            if not cached and backbone.reference.from_video and not sides[0].folder.videos:
                raise EvaluationError(f"no videos in {sides[0].folder.path}")
            weights[name] = Weights(path, digest)
        except EvaluationError as error:
            if cached and not backbone.compares_with_weights:
                weights[name] = Weights()
            else:
                absent[name] = _reason(name, error, settings)
    return weights, absent


def _reason(name: str, error: EvaluationError, settings: Settings) -> str:
    """Why a backbone cannot be used; an error if it was asked for."""
    if settings.backbones:
        raise EvaluationError(f"{name}: {error}") from None
    return str(error)


def _pair_clips(sides: Sequence[ClipSet], wanted: frozenset[str] | None) -> tuple[list[str], list[ClipError]]:
    """Clips that both sides have once, and those that only one has or that are there twice."""
    reference = sides[0].ids if wanted is None else sides[0].ids & wanted
    generated = sides[1].ids if wanted is None else sides[1].ids & wanted
    faults = [fault for side in sides for fault in side.folder.faults if fault.id in reference | generated]
    # a name that stands for two files is one fault, not also a missing clip
    twice = {fault.id for fault in faults}
    for there, lacking, side in ((reference, generated, sides[1]), (generated, reference, sides[0])):
        alone = sorted(there - lacking - twice)
        faults += [ClipError(name, f"missing from {side.folder.path}") for name in alone]
    return sorted((reference & generated) - twice), faults


def _without(ids: Sequence[str], faults: Sequence[ClipError]) -> list[str]:
    bad = {fault.id for fault in faults}
    return [name for name in ids if name not in bad]


def _left_out(faults: Sequence[ClipError], settings: Settings) -> list[ClipError]:
    """The clips to leave out, in order; ``Incomplete`` if none may be missing."""
    ordered = sorted(faults, key=lambda fault: (fault.id, fault.reason))
    if ordered and not settings.allow_missing:
        raise Incomplete(ordered)
    return ordered


def _load_networks(
    sides: Sequence[ClipSet], weights: dict[str, Weights], ids: Sequence[str], settings: Settings
) -> tuple[list[dict[FeatureSpec, Any]], dict[str, str]]:
    """The networks whose features are not all cached, for each side; and why others cannot be loaded."""
    # for the reference, for the generated clips
    networks: list[dict[FeatureSpec, Any]] = [{}, {}]
    absent: dict[str, str] = {}
    for name, found in weights.items():
        for side, spec, loaded in zip(sides, BACKBONES[name].specs, networks, strict=True):
            if found.path is None or not side.folder.sounds or not side.missing(spec, ids):
                continue
            try:
                # one network serves both sides
                same = networks[0].get(spec)
                loaded[spec] = same if same is not None else load(spec, found.path, settings.device)
            except EvaluationError as error:
                absent[name] = _reason(name, error, settings)
                break
    return networks, absent


def _without_features(
    name: str, sides: Sequence[ClipSet], ids: Sequence[str], failed: dict[tuple[str, str], str]
) -> list[ClipError]:
    """Clips without the features of a backbone, or with too few segments of them."""
    backbone = BACKBONES[name]
    pairs = list(zip(sides, backbone.specs, strict=True))
    faults = []
    for side, spec in pairs:
        for clip in side.missing(spec, ids):
            reason = failed.get((spec.name, clip), f"no {spec.name} among the features of {side.folder.path}")
            faults.append(ClipError(clip, reason))
    if backbone.min_segments:
        # whoever made them may have made them of shorter clips
        complete = _without(ids, faults)
        need = f"where {backbone.min_segments} are needed"
        for side, spec in pairs:
            for clip, features in zip(complete, _rows(side, spec, complete), strict=True):
                if len(features[0]) < backbone.min_segments:
                    held = f"{len(features[0])} segments among the features of {side.folder.path}"
                    faults.append(ClipError(clip, f"too short for DeSync: {held}, {need}"))
    return faults


def _backbone_metrics(
    name: str, weights: Weights, sides: Sequence[ClipSet], ids: Sequence[str], settings: Settings
) -> list[Metric]:
    """The metrics of a backbone on clips that all have its features."""
    backbone = BACKBONES[name]
    reference = _rows(sides[0], backbone.reference, ids)
    generated = _rows(sides[1], backbone.generated, ids)
    if backbone.compare is None:
        return of_backbone(name, reference, generated, settings.resamples)
    return of_pairs(name, backbone.compare(weights.path, settings.device, reference, generated))


def _rows(side: ClipSet, spec: FeatureSpec, ids: Sequence[str]) -> Rows:
    features = side.caches[spec.name].features
    return [features[name] for name in ids]


def _write_av_benchmark(path: Path, metrics: Sequence[Metric]) -> str:
    """Write av-benchmark's results, if there are any; the reason if that fails, "" otherwise."""
    if results := _av_benchmark(metrics):
        try:
            write_whole(path, json.dumps(results, indent=4).encode())
        except OSError as error:  # the metrics are not lost for that
            return f"{path}: {error.strerror}"
    return ""
