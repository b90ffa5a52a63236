"""Evaluation of generated sound (section 4, Tables 1 and 15 to 18): two folders in, metrics out.

FD, KL and IS follow av-benchmark in every step, so that 8 s of sound give its numbers; the paper's clips are
10 s, and its FAD and KLD are FD on VGGish and KL on PaSST.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vab.evaluate.backbones.registry import BACKBONES, FeatureSpec, Rows, find
from vab.evaluate.generation.cache import cache_folder, tables_in
from vab.evaluate.generation.clips import ClipError, open_folder
from vab.evaluate.generation.features import (
    SOUND,
    ClipSet,
    Network,
    compare,
    ends_early,
    extract,
    levels,
    scan_clips,
)
from vab.evaluate.generation.scores import AV_BENCHMARK, Metric, of_backbone, of_pairs, of_signal
from vab.evaluate.metrics.distances import RESAMPLES
from vab.evaluate.metrics.statistics import EvaluationError, list_hash
from vab.evaluate.metrics.tables import generation_beside_paper, markdown
from vab.utils import count_of
from vab.utils.files import write_whole
from vab.utils.processes import devices_for
from vab.utils.progress import FileProgress


class Incomplete(EvaluationError):
    """Clips that cannot be measured, where all must be."""

    def __init__(self, faults: Sequence[ClipError]) -> None:
        super().__init__(
            f"{count_of(len(faults), 'clip')} cannot be measured; --allow-missing leaves them out"
        )
        self.faults = list(faults)


@dataclass(frozen=True)
class EvaluationSettings:
    """Options of an evaluation."""

    seconds: float = 10.0  # of each clip, from its beginning
    backbones: tuple[str, ...] | None = None  # None: those whose weights or features are there
    weights: Path | None = None  # the folder of their weights
    cache: Path | None = None  # of the features; None: beside the sounds
    allow_missing: bool = False
    resamples: int = RESAMPLES  # for metrics of whole sets
    device: str = "auto"
    devices: int = 1  # number of GPUs, or of processes on a CPU
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
    levels: dict[str, dict[str, float | None]]  # of the two sides; none if features were all there was
    unwritten: str = ""  # why av-benchmark's results could not be written
    made_in: Mapping[str, Any] = field(default_factory=dict)  # the precision of sounds that were made for it

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
            **self.made_in,
            "levels": self.levels,
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
        # 1. What was measured on what.
        extent = "features as they are" if self.seconds is None else f"the first {self.seconds:g} s"
        heading = f"Generation: {self.generated} against {self.reference}, {extent}"
        counts = f"N = {len(self.ids):,}, {len(self.faults):,} left out; sha256 of the ids"
        note = f"{counts} {list_hash(self.ids)[:16]}. Brackets: 95 % bootstrap intervals."
        for side, level in self.levels.items():
            if level["median_lufs"] is not None:
                note += (
                    f" The {side} clips: {level['median_lufs']:.1f} LUFS (median), spread "
                    f"{level['spread_lu']:.1f} LU, {level['at_full_scale']} at full scale."
                )
        # 2. The metrics, and those two that the paper has beside its own.
        rows = [[each.key, each.value.plain(), each.better, f"{each.clips:,}"] for each in self.metrics]
        values = {each.key: each.value for each in self.metrics}
        fad, kld = values.get("FD-VGG"), values.get("KL-PASST-softmax")
        paper = generation_beside_paper(self.generated.name, len(self.ids), self.seconds, fad, kld)
        return "\n\n".join([heading, note, markdown(("measure", "value", "better", "N"), rows), paper])

    def av_benchmark(self) -> dict[str, float]:
        """The content of av-benchmark's ``output_metrics.json``: its keys, bare numbers."""
        # inception scores have a deviation over their parts as well
        shared = [each for each in self.metrics if each.key in AV_BENCHMARK]
        deviations = {
            each.key.replace("-mean", "-std"): each.deviation for each in shared if each.deviation is not None
        }
        return {each.key: each.value.value for each in shared} | deviations


@dataclass(frozen=True)
class Weights:
    """The weights of a backbone; None and None where cached features must do."""

    path: Path | None = None
    digest: str | None = None  # start of the sha256


def evaluate(
    reference: Path, generated: Path, settings: EvaluationSettings, progress: FileProgress = lambda *_: None
) -> Generation:
    """Measure the sounds of ``generated`` against those of ``reference`` that have the same names.

    Either may also be a folder of features that av-benchmark or an earlier run made. The features of both are
    kept, and av-benchmark's ``output_metrics.json`` beside those of ``generated``.
    Raises ``Incomplete`` with every clip that cannot be measured unless they may be missing, and
    ``EvaluationError`` if nothing can, or a backbone that was asked for cannot be had.
    """
    # 1. Open both folders, and the caches of the backbones that can be used.
    _check(settings)
    run = _Evaluation(reference, generated, settings, progress)
    run.find_weights()

    # 2. Pair the clips by name and read them all: what is wrong with any is known before a network runs.
    run.pair_clips()
    run.scan_clips()

    # 3. Make the features that are not cached, and measure with each backbone.
    run.make_features()
    metrics: list[Metric] = []
    for name in run.weights:
        if name not in run.absent:
            metrics += run.measure(name)

    # 4. Measure what needs no network.
    if run.have_sounds:
        distances = compare(*run.sides, run.ids, settings.seconds, progress)
        rows = [_rows(side, SOUND, run.ids) for side in run.sides]
        metrics += of_signal(rows[0], rows[1], distances, settings.resamples)

    result = Generation(
        reference=reference,
        generated=generated,
        seconds=settings.seconds if run.have_sounds else None,
        ids=run.ids,
        metrics=metrics,
        faults=run.faults,
        absent=run.absent,
        weights={name: found.digest for name, found in run.weights.items()},
        external=run.external,
        levels=run.levels() if run.have_sounds else {},
    )
    return replace(result, unwritten=_write_av_benchmark(run.sides[1].cache_dir, result.av_benchmark()))


def _check(settings: EvaluationSettings) -> None:
    unknown = [name for name in settings.backbones or () if name not in BACKBONES]
    if unknown:
        raise EvaluationError(f"no backbone is called {unknown[0]!r}; there are: {', '.join(BACKBONES)}")
    if not 1 <= settings.seconds < math.inf:
        raise EvaluationError(f"clips must be 1 s or longer and have an end, not {settings.seconds:g} s")
    if settings.resamples < 0:
        raise EvaluationError("the number of resamples cannot be negative")


class _Evaluation:
    """An evaluation under way: both sides, the clips and backbones that are left, and why others are not."""

    def __init__(
        self, reference: Path, generated: Path, settings: EvaluationSettings, progress: FileProgress
    ) -> None:
        self.settings, self.progress = settings, progress
        self.devices = devices_for(settings.devices, settings.device)
        self.sides = (_open_side(reference, settings), _open_side(generated, settings))
        self.have_sounds = all(side.folder.sounds for side in self.sides)
        self.ids: list[str] = []  # clips that can be measured
        self.faults: list[ClipError] = []  # clips that cannot, in order
        self.weights: dict[str, Weights] = {}  # of the backbones to measure with
        self.absent: dict[str, str] = {}  # what cannot be measured with -> the reason
        self.external: list[str] = []  # backbones with features that somebody else made
        self.failed: dict[tuple[str, str], str] = {}  # (feature, clip) -> why there is none

    def features(self, name: str) -> list[tuple[ClipSet, FeatureSpec]]:
        """What a backbone needs of the reference and of the generated clips."""
        return list(zip(self.sides, BACKBONES[name].specs, strict=True))

    def find_weights(self) -> None:
        """Find the weights of the backbones to measure with, and open the caches of their features."""
        for name in self.settings.backbones or BACKBONES:
            backbone = BACKBONES[name]
            # features in both caches do without weights
            cached = all(tables_in(side.cache_dir, [spec]) for side, spec in self.features(name))
            try:
                found = Weights(*find(backbone.reference, self.settings.weights))
                if not cached and backbone.reference.from_video and not self.sides[0].folder.videos:
                    raise EvaluationError(f"no videos in {self.sides[0].folder.path}")
            except EvaluationError as error:
                if not cached or backbone.compares_with_weights:
                    self._do_without(name, str(error))
                    continue
                found = Weights()
            self.weights[name] = found
            for side, spec in self.features(name):
                side.open_cache(spec, found.digest)

    def _do_without(self, name: str, reason: str) -> None:
        """Note why a backbone cannot be used; an error if it was asked for."""
        if self.settings.backbones:
            raise EvaluationError(f"{name}: {reason}") from None
        self.absent[name] = reason

    def pair_clips(self) -> None:
        """Take the clips that both sides have once; those that one lacks or has twice are faults."""
        wanted = self.settings.clips
        reference, generated = (side.ids if wanted is None else side.ids & wanted for side in self.sides)
        either = reference | generated
        self.faults = [fault for side in self.sides for fault in side.folder.faults if fault.id in either]
        # a name that stands for two files is one fault, not also a missing clip
        twice = {fault.id for fault in self.faults}
        for lacking, side in ((generated, self.sides[1]), (reference, self.sides[0])):
            alone = sorted(either - lacking - twice)
            self.faults += [ClipError(name, f"missing from {side.folder.path}") for name in alone]
        self.ids = sorted((reference & generated) - twice)

    def scan_clips(self) -> None:
        """Read every sound, and drop the clips that cannot be measured."""
        for side in self.sides:
            if side.folder.sounds:
                self._drop(scan_clips(side, self.ids, self.settings.seconds, self.progress))
            else:
                self.absent["the sounds"] = f"{side.folder.path} holds features alone"
        if self.have_sounds:
            self._drop(ends_early(*self.sides, self.ids))
        self._check_faults()
        if len(self.ids) < 2:
            raise EvaluationError(f"{len(self.ids)} of the clips can be measured; two are the least")

    def _drop(self, faults: Sequence[ClipError]) -> None:
        self.faults += faults
        self.ids = _without(self.ids, faults)

    def _check_faults(self) -> None:
        """Put the faults in order; ``Incomplete`` if there are any, and none may be missing."""
        self.faults.sort(key=lambda fault: (fault.id, fault.reason))
        if self.faults and not self.settings.allow_missing:
            raise Incomplete(self.faults)

    def levels(self) -> dict[str, dict[str, float | None]]:
        """How loud both sides are: a system may differ from another by little else."""
        names = ("reference", "generated")
        return {name: levels(side, self.ids) for name, side in zip(names, self.sides, strict=True)}

    def make_features(self) -> None:
        """Make the features that are not cached, and do without backbones that cannot be loaded."""
        # of the reference, of the generated clips
        networks: tuple[list[Network], list[Network]] = ([], [])
        for name, found in self.weights.items():
            for (side, spec), wanted in zip(self.features(name), networks, strict=True):
                if found.path is not None and side.folder.sounds and side.missing(spec, self.ids):
                    wanted.append(Network(name, spec, found.path))
        devices, seconds = self.devices, self.settings.seconds
        self.failed = extract(
            self.sides, self.ids, networks, seconds, devices, self.progress, self._do_without
        )

    def measure(self, name: str) -> list[Metric]:
        """The metrics of a backbone, on the clips that have its features."""
        featureless = self._without_features(name)
        self.faults += featureless
        self._check_faults()
        # features from elsewhere carry no record of their weights: the reader must know
        if any(side.caches[spec.name].external for side, spec in self.features(name)):
            self.external.append(name)
        ids = _without(self.ids, featureless)
        if len(ids) < 2:
            self.absent[name] = f"{count_of(len(ids), 'clip')} with its features; two are the least"
            return []
        settings = self.settings
        reference, generated = (_rows(side, spec, ids) for side, spec in self.features(name))
        judge = BACKBONES[name].compare
        if judge is None:
            return of_backbone(name, reference, generated, settings.resamples)
        return of_pairs(name, judge(self.weights[name].path, settings.device, reference, generated))

    def _without_features(self, name: str) -> list[ClipError]:
        """Clips without the features of a backbone, or with too few segments of them."""
        least = BACKBONES[name].min_segments
        faults = []
        for side, spec in self.features(name):
            for clip in side.missing(spec, self.ids):
                none = f"no {spec.name} among the features of {side.folder.path}"
                faults.append(ClipError(clip, self.failed.get((spec.name, clip), none)))
        # whoever made them may have made them of shorter clips
        complete = _without(self.ids, faults) if least else []
        for side, spec in self.features(name):
            for clip, features in zip(complete, _rows(side, spec, complete), strict=True):
                if len(features[0]) < least:
                    held = f"{len(features[0])} segments among the features of {side.folder.path}"
                    reason = f"too short for DeSync: {held}, where {least} are needed"
                    faults.append(ClipError(clip, reason))
        return faults


def _open_side(path: Path, settings: EvaluationSettings) -> ClipSet:
    """A folder and where its features are: a folder without sounds may hold them itself."""
    folder = open_folder(path, settings.clips)
    cache = cache_folder(path, settings.seconds, settings.cache)
    if not folder.sounds and not folder.faults:
        specs = [spec for backbone in BACKBONES.values() for spec in backbone.specs]
        # av-benchmark's own folder of features, or the cache of an earlier run
        places = [place for place in (path, cache) if tables_in(place, specs)]
        if not places:
            raise EvaluationError(f"{path}: has neither sounds nor videos nor features in it")
        cache = places[0]
    return ClipSet(folder, cache)


def _without(ids: Sequence[str], faults: Sequence[ClipError]) -> list[str]:
    bad = {fault.id for fault in faults}
    return [name for name in ids if name not in bad]


def _rows(side: ClipSet, spec: FeatureSpec, ids: Sequence[str]) -> Rows:
    features = side.caches[spec.name].features
    return [features[name] for name in ids]


def _write_av_benchmark(folder: Path, results: dict[str, float]) -> str:
    """Write av-benchmark's results, if there are any; the reason if that fails, "" otherwise."""
    path = folder / "output_metrics.json"
    try:
        if results:
            write_whole(path, json.dumps(results, indent=4).encode())
    except OSError as error:  # the metrics are not lost for that
        return f"{path}: {error.strerror}"
    return ""
