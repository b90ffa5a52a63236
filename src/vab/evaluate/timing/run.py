"""Folders of results against the clips' own sounds: each agreement beside that of another clip's result.

A system that only makes busy sounds agrees with any clip. So what counts is the difference between a clip's
own result and another clip's, paired clip by clip, with its interval by resampling clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, SAMPLE_RATE
from vab.errors import VABError, first_line
from vab.evaluate.generation.clips import (
    ALIGNMENT_SLACK_SECONDS,
    ClipError,
    Folder,
    check_clip,
    open_folder,
    read_clip,
)
from vab.evaluate.metrics.statistics import EvaluationError
from vab.evaluate.timing.baselines import METRONOMES, metronome, with_gain
from vab.evaluate.timing.desync import DeSync, Features
from vab.evaluate.timing.folders import Half, chosen, samples_of
from vab.evaluate.timing.measures import MEASURES, Agreement, Heard, compare
from vab.evaluate.timing.report import Row, Timing
from vab.media.container import MediaError
from vab.timing.curve import TimingCurve, TimingError, read_curve
from vab.timing.sound import curve_of
from vab.utils.progress import FileProgress


@dataclass(frozen=True)
class TimingSettings:
    """Options of an evaluation."""

    seconds: float = 5.0  # of each clip, from its beginning
    clips: str | None = None  # a list of their names, or what these begin with; None: all
    half: Half | None = None  # of them; None: both
    curves: Path | None = None  # a folder of timing curves, <clip>.csv
    seed: int = 0  # by which another clip is found for each
    weights: Path | None = None  # the folder of Synchformer's
    device: str = "auto"


@dataclass(frozen=True)
class Sound:
    """One sound as far as it is measured."""

    path: Path
    heard: Heard
    features: Features = None  # of Synchformer


@dataclass
class Clip:
    """A clip: its own sound, the results of each system, and the curve that somebody found for it."""

    sound: Sound
    truth: TimingCurve  # of its own sound
    video: Features  # of Synchformer
    results: list[list[Sound]] = field(default_factory=list)  # of each system
    curve: TimingCurve | None = None


def evaluate(
    results: Sequence[Path], against: Path, settings: TimingSettings, progress: FileProgress = lambda *_: None
) -> Timing:
    """Measure each folder of ``results`` against the sounds of ``against``, which has the same names.

    Rows: each folder; a metronome; the first folder's sounds with a gain from the onsets of the clip's own
    sound; and, with ``settings.curves``, these curves by themselves and as that gain. A clip that cannot be
    measured everywhere is left out everywhere and named. ``EvaluationError`` if fewer than two are left.
    """
    # 1. The clips, the files of each system, and Synchformer if it is there.
    if not 1 <= settings.seconds < math.inf:
        raise EvaluationError(f"clips must be 1 s or longer and have an end, not {settings.seconds:g} s")
    folder = open_folder(against)
    faults = {fault.id: fault for fault in folder.faults}
    ids = chosen([*folder.sounds, *faults], settings.clips, settings.half)
    systems = [samples_of(path, {*folder.sounds, *faults}) for path in results]
    judge, absent = _synchformer(folder, settings)

    # 2. Listen to them all.
    clips: dict[str, Clip] = {}
    left_out = []
    for n, name in enumerate(ids):
        progress(n, len(ids), folder.sounds.get(name, against / name), "listening", n, len(ids))
        try:
            if name in faults:
                raise EvaluationError(faults[name].reason)
            clips[name] = _listen(name, folder, list(zip(results, systems, strict=True)), settings, judge)
        except VABError as error:
            left_out.append(ClipError(name, first_line(error)))
    if len(clips) < 2:
        why = f" ({left_out[0].id}: {left_out[0].reason})" if left_out else ""
        raise EvaluationError(f"{len(clips)} of the clips can be measured; two are the least{why}")

    # 3. Compare them.
    table = _Table(clips, _partners(clips, settings.seed), judge)
    names = _names(results)
    rows = [table.of_system(name, n) for n, name in enumerate(names)]
    rows += [table.of_metronome(period) for period in METRONOMES]
    rows.append(table.with_gain(f"{names[0]} x gain, own onsets", lambda clip: clip.truth))
    if settings.curves is not None:
        rows.append(table.of_curves("curves"))
        rows.append(table.with_gain(f"{names[0]} x gain, curves", lambda clip: clip.curve))
    return Timing(
        against=against,
        seconds=settings.seconds,
        seed=settings.seed,
        clips=settings.clips,
        half=settings.half,
        ids=list(clips),
        rows=rows,
        num_systems=len(results),
        left_out=left_out,
        absent=absent,
    )


def _synchformer(folder: Folder, settings: TimingSettings) -> tuple[DeSync | None, str]:
    """Synchformer, or why it is not there."""
    if not folder.videos:
        return None, f"no videos in {folder.path}"
    try:
        return DeSync.load(settings.weights, settings.device), ""
    except EvaluationError as error:
        return None, str(error)


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of folders; their paths where two have the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _listen(
    name: str,
    folder: Folder,
    systems: Sequence[tuple[Path, Mapping[str, Sequence[Path]]]],
    settings: TimingSettings,
    judge: DeSync | None,
) -> Clip:
    """A clip with all that is measured of it. ``VABError`` names the first thing that cannot be."""
    path = folder.sounds[name]
    waveform = read_clip(path, SAMPLE_RATE, settings.seconds)
    check_clip(path, waveform, SAMPLE_RATE)
    film = None
    if judge is not None and name in folder.videos:
        film = judge.of_video(folder.videos[name], settings.seconds)
    clip = Clip(Sound(path, Heard.of(waveform)), curve_of(waveform), film)
    wanted = clip.sound.heard.seconds
    for place, samples in systems:
        if name not in samples:
            raise MediaError(f"missing from {place}")
        sounds = []
        for file in samples[name]:
            made = read_clip(file, SAMPLE_RATE, settings.seconds)
            heard = Heard.of(made)
            if heard.seconds < wanted - ALIGNMENT_SLACK_SECONDS:
                raise MediaError(
                    f"{file}: too short, {heard.seconds:.2f} s, where the clip has {wanted:.2f} s"
                )
            sounds.append(Sound(file, heard, None if judge is None else judge.of_sound(made)))
        clip.results.append(sounds)
    if settings.curves is not None:
        table = settings.curves / f"{name}.csv"
        if not table.is_file():
            raise TimingError(f"missing from {settings.curves}: {table.name}")
        clip.curve = read_curve(table, round(wanted * FRAME_RATE))
    return clip


def _partners(clips: Mapping[str, Clip], seed: int) -> list[dict[str, str]]:
    """For each sample another clip for every clip: a cycle, so that each serves once.

    Clips of one length in whole seconds stand together, in an order drawn by the seed, and each is followed
    by the next; the second sample's partner is the one after that. So partners seldom differ in length.
    """
    random = np.random.default_rng(seed)
    order = sorted(clips)
    order = [order[n] for n in random.permutation(len(order))]
    order.sort(key=lambda name: round(clips[name].sound.heard.seconds))
    most = max(len(sounds) for clip in clips.values() for sounds in clip.results)
    steps = [1 + sample % (len(order) - 1) for sample in range(most)]
    return [{name: order[(n + step) % len(order)] for n, name in enumerate(order)} for step in steps]


class _Table:
    """The rows of a table over the same clips."""

    def __init__(
        self, clips: Mapping[str, Clip], partners: Sequence[Mapping[str, str]], judge: DeSync | None
    ) -> None:
        self.clips, self.partners, self.judge = clips, partners, judge

    def of_system(self, name: str, n: int) -> Row:
        """The sounds of system n, and those of other clips."""

        def own(clip: str) -> list[Sound]:
            return self.clips[clip].results[n]

        def others(clip: str) -> list[Sound]:
            found = []
            for sample in range(len(own(clip))):
                sounds = own(self.partners[sample][clip])
                found.append(sounds[sample % len(sounds)])
            return found

        return self._row(name, own, others)

    def of_metronome(self, period: float) -> Row:
        """Ticks that know nothing of any clip."""

        def ticks(clip: str) -> list[Sound]:
            reference = self.clips[clip].sound
            heard = Heard.of_curve(metronome(period, reference.heard.seconds))
            return [Sound(reference.path, heard)]

        return self._row(f"metronome, {period:g} s", ticks, None)

    def of_curves(self, name: str) -> Row:
        """The curves by themselves, as if they were heard."""

        def heard(clip: str) -> list[Sound]:
            curve = self.clips[clip].curve
            assert curve is not None
            return [Sound(self.clips[clip].sound.path, Heard.of_curve(curve))]

        return self._row(name, heard, lambda clip: heard(self.partners[0][clip]))

    def with_gain(self, name: str, curve_of_clip: Callable[[Clip], TimingCurve | None]) -> Row:
        """The first system's sounds with a gain from the clip's curve, and with one from another clip's."""

        def made(clip: str, partners: Sequence[Mapping[str, str]] | None) -> list[Sound]:
            sounds = []
            for sample, sound in enumerate(self.clips[clip].results[0]):
                source = clip if partners is None else partners[sample][clip]
                curve = curve_of_clip(self.clips[source])
                assert curve is not None
                seconds = self.clips[clip].sound.heard.seconds
                waveform = with_gain(read_clip(sound.path, SAMPLE_RATE, seconds), curve)
                features = None if self.judge is None else self.judge.of_sound(waveform)
                sounds.append(Sound(sound.path, Heard.of(waveform), features))
            return sounds

        return self._row(name, lambda clip: made(clip, None), lambda clip: made(clip, self.partners))

    def _row(
        self,
        name: str,
        own: Callable[[str], list[Sound]],
        others: Callable[[str], list[Sound]] | None,
    ) -> Row:
        """A row, from what gives the sounds for a clip and the sounds of other clips."""
        sounds = {clip: own(clip) for clip in self.clips}
        values, counts = self._measured(sounds)
        other = None
        if others is not None:
            other, _ = self._measured({clip: others(clip) for clip in self.clips})
        every = [sound for each in sounds.values() for sound in each]
        return Row(
            name=name,
            sounds=len(every),
            shapeless=sum(sound.heard.shapeless for sound in every),
            own=values,
            other=other,
            expected=counts[0],
            found=counts[1],
        )

    def _measured(
        self, sounds: Mapping[str, Sequence[Sound]]
    ) -> tuple[dict[str, NDArray[np.float64]], tuple[float, float]]:
        """Each measure of each clip, [N], a mean over its sounds; the onsets that there are and are made."""
        agreements = {
            clip: [compare(self.clips[clip].sound.heard, sound.heard) for sound in several]
            for clip, several in sounds.items()
        }
        values = {
            key: np.array(
                [np.mean([each.values[key] for each in several]) for several in agreements.values()]
            )
            for key in MEASURES
        }
        if self.judge is not None:
            values["desync"] = self._offsets(self.judge, sounds)
        return values, _counts(list(agreements.values()))

    def _offsets(self, judge: DeSync, sounds: Mapping[str, Sequence[Sound]]) -> NDArray[np.float64]:
        pairs = [
            (self.clips[clip].video, sound.features) for clip, several in sounds.items() for sound in several
        ]
        offsets = iter(judge.offsets([video for video, _ in pairs], [audio for _, audio in pairs]))
        return np.array([np.mean([next(offsets) for _ in several]) for several in sounds.values()])


def _counts(agreements: Sequence[Sequence[Agreement]]) -> tuple[float, float]:
    """How many onsets the clips have, and the sounds, which are a mean over the samples."""
    expected = sum(float(np.mean([each.expected for each in several])) for several in agreements)
    return expected, sum(float(np.mean([each.found for each in several])) for several in agreements)
