"""Extract the features of a folder's clips into its caches. Each clip is decoded once per sample rate."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vab.errors import first_line
from vab.evaluate.backbones.registry import Features, FeatureSpec, load
from vab.evaluate.generation.cache import FeatureCache
from vab.evaluate.generation.clips import ALIGNMENT_SLACK_SECONDS, ClipError, Folder, check_clip, read_clip
from vab.evaluate.metrics import signal
from vab.evaluate.metrics.statistics import EvaluationError
from vab.media.container import MediaError
from vab.media.loudness import measure
from vab.utils.processes import Worker, in_order
from vab.utils.progress import FileProgress

RATE = 16_000
FULL_SCALE = 0.999  # a sound that comes so high may have been clipped
SOUND = FeatureSpec("sound", RATE, ("vab_sound",), version="2")  # of a clip, without any network
PAIRS = FeatureSpec("pairs", RATE, ("vab_pairs",), version="1")  # of a pair of clips


@dataclass
class ClipSet:
    """A folder of clips and the caches of their features, by the name of the feature."""

    folder: Folder
    cache_dir: Path
    caches: dict[str, FeatureCache] = field(default_factory=dict)

    @property
    def ids(self) -> set[str]:
        """The clips of the folder; if it holds no sound, those of the features in it."""
        # a name with a fault is a clip too: the one that cannot be measured
        names = set(self.folder.sounds) | {fault.id for fault in self.folder.faults}
        return names or {name for cache in self.caches.values() for name in cache.features}

    def open_cache(self, spec: FeatureSpec, weights: str | None) -> FeatureCache:
        """The cache of a feature made with weights of this hash, read from disk the first time."""
        if spec.name not in self.caches:
            self.caches[spec.name] = FeatureCache(self.cache_dir, spec, weights)
            if self.folder.sounds:
                self.caches[spec.name].keep(self.folder.sounds)
        return self.caches[spec.name]

    def missing(self, spec: FeatureSpec, ids: Sequence[str]) -> list[str]:
        """The clips whose features are not cached, or were made from another state of their file."""
        cache = self.caches[spec.name]
        return [name for name in ids if not cache.has(name, self.folder.stamp(name, spec.from_video))]


def scan_clips(side: ClipSet, ids: Sequence[str], seconds: float, progress: FileProgress) -> list[ClipError]:
    """Read every clip, cache what needs no network, and return those that cannot be measured: unreadable, too
    short, silent."""
    cache = side.open_cache(SOUND, SOUND.version)
    todo = side.missing(SOUND, ids)
    faults = []
    with _saved_at_end([cache]):
        for n, name in enumerate(todo):
            path = side.folder.sounds[name]
            progress(n, len(todo), path, "looking", n, len(todo))
            # taken before the file is read: a change meanwhile is seen by the next run
            stamp = side.folder.stamp(name)
            try:
                waveform = read_clip(path, RATE, seconds)
                check_clip(path, waveform, RATE)
            except MediaError as error:
                faults.append(ClipError(name, first_line(error)))
                continue
            cache.put(name, stamp or "", (_signal_features(waveform),))
    return faults


def _signal_features(waveform: NDArray[np.float32]) -> Features:
    loudness = measure(waveform, RATE).loudness
    return {
        "loudness": torch.tensor(math.nan if loudness is None else loudness, dtype=torch.float64),
        "peak": torch.tensor(np.abs(waveform).max(), dtype=torch.float64),
        "seconds": torch.tensor(len(waveform) / RATE, dtype=torch.float64),
        "statistics": torch.from_numpy(signal.statistics(waveform)),
        "onsets": torch.from_numpy(signal.onsets(waveform)),
    }


def ends_early(reference: ClipSet, generated: ClipSet, ids: Sequence[str]) -> list[ClipError]:
    """Generated sounds that end before their reference does."""
    faults = []
    for name in ids:
        wanted = _scanned_seconds(reference, name)
        actual = _scanned_seconds(generated, name)
        if actual < wanted - ALIGNMENT_SLACK_SECONDS:
            reason = f"too short, {actual:.2f} s, where the reference has {wanted:.2f} s"
            faults.append(ClipError(name, f"{generated.folder.sounds[name]}: {reason}"))
    return faults


def _scanned_seconds(side: ClipSet, name: str) -> float:
    return float(side.caches[SOUND.name].features[name][0]["seconds"])


def levels(side: ClipSet, ids: Sequence[str]) -> dict[str, float | None]:
    """How loud the clips of a folder are, as they were measured: median and spread, and how many may clip."""
    rows = [side.caches[SOUND.name].features[name][0] for name in ids]
    loudness = np.array([float(row["loudness"]) for row in rows])
    known = loudness[np.isfinite(loudness)]  # nearly silent ones have none
    return {
        "median_lufs": round(float(np.median(known)), 2) if len(known) else None,
        "spread_lu": round(float(np.ptp(known)), 2) if len(known) else None,
        "at_full_scale": sum(float(row["peak"]) > FULL_SCALE for row in rows),
    }


def compare(
    reference: ClipSet, generated: ClipSet, ids: Sequence[str], seconds: float, progress: FileProgress
) -> list[float]:
    """The mel distance of each pair of clips, cached beside the features of the generated ones."""
    cache = generated.open_cache(PAIRS, PAIRS.version)
    # a distance is out of date if either file has changed
    stamps = {name: f"{reference.folder.stamp(name)} {generated.folder.stamp(name)}" for name in ids}
    todo = [name for name in ids if not cache.has(name, stamps[name])]
    with _saved_at_end([cache]):
        for n, name in enumerate(todo):
            progress(n, len(todo), generated.folder.sounds[name], "comparing", n, len(todo))
            real = read_clip(reference.folder.sounds[name], RATE, seconds)
            made = read_clip(generated.folder.sounds[name], RATE, seconds)
            cache.put(
                name, stamps[name], (torch.tensor(signal.mel_distance(real, made), dtype=torch.float64),)
            )
    return [float(cache.features[name][0]) for name in ids]


@dataclass(frozen=True)
class Network:
    """What builds a network: each process loads its own."""

    backbone: str
    spec: FeatureSpec
    weights: Path


def extract(
    sides: Sequence[ClipSet],
    ids: Sequence[str],
    networks: Sequence[Sequence[Network]],
    seconds: float,
    devices: Sequence[torch.device],
    progress: FileProgress,
    without: Callable[[str, str], None],
) -> dict[tuple[str, str], str]:
    """Cache the features of each side's networks that are missing. Each device has a process and its own
    copy of the networks, and computes every n-th clip; on a CPU the bytes are those of one process with as
    many threads.

    ``without`` is told which backbone cannot be loaded, and why. Returns the failures: (feature, clip) ->
    reason. ``ProcessError`` if the process of a device dies; what is made by then is kept.
    """
    # 1. A clip is decoded if any network lacks its features.
    todo: list[list[_Clip]] = []  # of each side
    for side, wanted in zip(sides, networks, strict=True):
        missing = {each.spec: set(side.missing(each.spec, ids)) for each in wanted}
        clips = [
            _Clip(side.folder, name, tuple(spec for spec in missing if name in missing[spec])) for name in ids
        ]
        todo.append([clip for clip in clips if clip.specs])

    # 2. The clips of both sides go to the same processes; their features come back in order.
    failed: dict[tuple[str, str], str] = {}
    common = (tuple(dict.fromkeys(chain(*networks))), seconds)
    with closing(in_order(_made, common, list(chain(*todo)), devices)) as results:
        for side, wanted, part in zip(sides, networks, todo, strict=True):
            with _saved_at_end([side.caches[each.spec.name] for each in wanted]):
                for n, clip in enumerate(part):
                    progress(n, len(part), side.folder.sounds[clip.name], "features", n, len(part))
                    made = next(results)
                    for backbone, reason in made.absent.items():
                        without(backbone, reason)
                    for feature, (stamp, content) in made.features.items():
                        side.caches[feature].put(clip.name, stamp, torch.load(io.BytesIO(content)))
                    failed |= {(feature, clip.name): reason for feature, reason in made.failed.items()}
    return failed


@dataclass(frozen=True)
class _Clip:
    folder: Folder
    name: str
    specs: tuple[FeatureSpec, ...]  # of the features that it lacks


@dataclass
class _Made:
    """What a process says of a clip."""

    absent: dict[str, str]  # backbones that could not be loaded -> the reason
    # feature -> state of the file, and the bytes that torch saves: a tensor that is sent to another process
    # would hold a file descriptor in both
    features: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # feature -> the reason


def _made(worker: Worker, common: tuple[Sequence[Network], float], clips: Sequence[_Clip]) -> Iterator[_Made]:
    """The work of one process: load the networks, and yield the features of each clip."""
    networks, seconds = common
    loaded: dict[FeatureSpec, Any] = {}  # one network serves both sides
    absent: dict[str, str] = {}
    for each in networks:
        if each.backbone not in absent:
            try:
                loaded[each.spec] = load(each.spec, each.weights, str(worker.device))
            except EvaluationError as error:
                absent[each.backbone] = str(error)
    for clip in clips:
        made = _Made(absent)
        wanted = [spec for spec in clip.specs if spec in loaded]
        # networks that take the same waveform share one decoding of the clip
        for rate, whole in sorted({(spec.rate, spec.whole) for spec in wanted}):
            specs = [spec for spec in wanted if (spec.rate, spec.whole) == (rate, whole)]
            from_video = specs[0].from_video
            path = (clip.folder.videos if from_video else clip.folder.sounds).get(clip.name)
            # a sound without video has no features of video; the caller names it
            if path is None:
                continue
            # taken before the file is read: a change meanwhile is seen by the next run
            stamp = clip.folder.stamp(clip.name, from_video) or ""
            waveform = None if from_video else read_clip(path, rate, None if whole else seconds)
            for spec in specs:
                network = loaded[spec]
                # a clip that one network refuses may do for the others
                try:
                    features = network(path, seconds) if waveform is None else network(waveform)
                except MediaError as error:
                    made.failed[spec.name] = first_line(error)
                    continue
                content = io.BytesIO()
                torch.save(features, content)
                made.features[spec.name] = stamp, content.getvalue()
        yield made


@contextmanager
def _saved_at_end(caches: Sequence[FeatureCache]) -> Iterator[None]:
    """Save the caches: complete if the block succeeds, else as a part that a later run goes on from."""
    complete = False
    try:
        yield
        complete = True
    finally:
        for cache in caches:
            cache.save(complete)
