"""Build a study: folders of results -> trials, in a folder that can be copied and served anywhere.

Appendix A: raters see two videos of one clip, of two systems, and grade which one is better in five steps, in
overall quality and in visual relevance; each pair is seen by three raters. A second survey asks for a mean
opinion score of every video (Table 2).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vab.errors import naming
from vab.evaluate.generation.clips import Folder, open_folder
from vab.evaluate.metrics.statistics import EvaluationError
from vab.listening.clips import check_video, copy_video, copy_with_beeps
from vab.media.container import MediaError
from vab.utils.files import read_json, temporary_folder
from vab.utils.progress import FileProgress

Survey = Literal["preference", "mos"]
SURVEYS: tuple[Survey, ...] = get_args(Survey)
CHECK_EVERY = 10  # trials of a rater, with one attention check among them
BEEPS = ""  # in a check, instead of a system: sound that nobody can take for the clip's own
STUDY, MEDIA, ANSWERS = "study.json", "media", "answers.sqlite"
FORMAT = 1
MAX_NAMED_FAULTS = 10  # in one line


@dataclass(frozen=True)
class Trial:
    """One question to a rater. Its id and its files' names say nothing of systems and clips."""

    id: str
    survey: Survey
    clip: str
    systems: tuple[str, ...]  # two of a preference, one of a score; ``BEEPS`` in a check
    files: tuple[str, ...]  # names in the folder ``media``, in the order of ``systems``

    @property
    def check(self) -> bool:
        """True for an attention check."""
        return BEEPS in self.systems


@dataclass(frozen=True)
class Study:
    """The trials of a study, and how many raters get them."""

    folder: Path
    seed: int
    raters: int  # for each trial that is no check
    per_person: int | None  # trials of one rater, checks apart; None: as many as there are
    systems: tuple[str, ...]  # the first is the one that the others are compared with
    clips: tuple[str, ...]
    trials: tuple[Trial, ...]

    def of(self, survey: Survey, check: bool = False) -> list[Trial]:
        """The trials of a survey, or its attention checks."""
        return [trial for trial in self.trials if trial.survey == survey and trial.check == check]

    def swapped(self, rater: str, trial: str) -> bool:
        """True if this rater sees the two videos of a trial in reverse order."""
        return int(self.draw("side", rater, trial), 16) % 2 == 1

    def draw(self, *words: str) -> str:
        """A hash that depends on the study's seed: the same for the same words, on every machine."""
        return _hash(str(self.seed), *words)


def build_study(
    folders: Sequence[Path],
    out: Path,
    *,
    clips: int | None = None,
    raters: int = 3,
    per_person: int | None = None,
    surveys: Sequence[Survey] = SURVEYS,
    seed: int = 0,
    progress: FileProgress = lambda *_: None,
) -> Study:
    """Make the study folder ``out`` from results of two or more systems, one folder each, same names in all.

    A system is called like its folder; the first one is compared with every other (the paper: VAB with each
    baseline). ``clips``: so many of the clips, drawn at random (the paper: 150). Videos are copied, packet by
    packet and without tags, under names that say nothing; checks get beeps for a sound. ``out`` appears when
    it is complete. Raises ``EvaluationError`` with every clip that is missing somewhere or cannot be played,
    or if the call makes no sense.
    """
    # 1. Check the call.
    for name, number in (("clips", clips), ("raters", raters), ("per_person", per_person)):
        if number is not None and number < 1:
            raise EvaluationError(f"{name} must be 1 or more, not {number}")
    if not surveys:
        raise EvaluationError(f"no survey is named: {' or '.join(SURVEYS)}")
    if len(folders) < 2:
        raise EvaluationError("a study compares the results of two systems or more, one folder for each")
    systems = tuple(folder.resolve().name for folder in folders)
    twice = {name for name in systems if systems.count(name) > 1}
    if twice:
        raise EvaluationError(f"two folders are called {min(twice)}, and systems are named by their folders")
    if out.exists():
        raise EvaluationError(f"{out}: exists, and may hold answers; give the study another folder with -o")
    # 2. The clips that all systems have.
    opened = [open_folder(folder) for folder in folders]
    names = _same_names(opened)
    if clips is not None:
        if clips > len(names):
            raise EvaluationError(f"{clips} clips are wanted, the folders have {len(names)}")
        names = sorted(sorted(names, key=lambda name: _hash(str(seed), "clip", name))[:clips])
    # 3. All of them must play in a browser.
    faults = []
    for n, (folder, name) in enumerate((folder, name) for folder in opened for name in names):
        progress(n, len(opened) * len(names), folder.videos[name], "look", 0, 1)
        try:
            check_video(folder.videos[name])
        except MediaError as error:
            faults.append(str(error))
    _refuse(faults)
    # 4. The trials, then their files under names that say nothing; the folder appears when it is complete.
    trials = _plan(systems, tuple(names), surveys, seed)
    study = Study(out, seed, raters, per_person, systems, tuple(names), trials)
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming(out), temporary_folder(out) as temporary:
        built = temporary / "study"
        (built / MEDIA).mkdir(parents=True)
        sources = dict(zip(systems, opened, strict=True))
        files = {
            file: (system, trial.clip)
            for trial in study.trials
            for system, file in zip(trial.systems, trial.files, strict=True)
        }
        for n, (file, (system, clip)) in enumerate(files.items()):
            source = sources[system or systems[0]].videos[clip]
            progress(n, len(files), source, "copy", 0, 1)
            copy = copy_with_beeps if system == BEEPS else copy_video
            copy(source, built / MEDIA / file)
        document = {"format": FORMAT, **asdict(study)}
        del document["folder"]
        (built / STUDY).write_text(json.dumps(document, indent=1), encoding="utf-8")
        built.rename(out)
    return study


def open_study(folder: Path) -> Study:
    """Read a study folder. Raises ``EvaluationError`` if it is none, or one that is damaged."""
    path = folder / STUDY
    try:
        document = read_json(path)
    except FileNotFoundError:
        raise EvaluationError(f"{folder}: no study; make one with `vab evaluate listening build`") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read ({error})") from None
    try:
        if document.pop("format") != FORMAT:
            raise EvaluationError(f"{path}: made by another version of vab; build the study again")
        # JSON has lists where the study has tuples
        trials = tuple(
            Trial(**(trial | {key: tuple(trial[key]) for key in ("systems", "files")}))
            for trial in document.pop("trials")
        )
        lists: dict[str, Any] = {"trials": trials} | {
            key: tuple(document.pop(key)) for key in ("systems", "clips")
        }
        study = Study(folder=folder, **document, **lists)
    except (KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path}: not a study ({error})") from None
    gone = {file for trial in trials for file in trial.files if not (folder / MEDIA / file).is_file()}
    if gone:
        raise EvaluationError(f"{folder}: {len(gone)} of its videos are gone, {sorted(gone)[0]} first")
    return study


def _same_names(folders: Sequence[Folder]) -> list[str]:
    """The names of the clips; ``EvaluationError`` unless each has a video in every folder."""
    names = sorted({name for folder in folders for name in folder.sounds.keys() | folder.videos.keys()})
    faults = [fault.reason for folder in folders for fault in folder.faults]
    doubled = {fault.id for folder in folders for fault in folder.faults}
    for folder in folders:
        for name in names:
            if name.encode(errors="ignore").decode() != name:
                faults.append(
                    f"{folder.path / name}: its name is not UTF-8, so no study can hold it; rename it"
                )
            elif name in folder.videos or name in doubled:
                continue
            if name in folder.sounds:
                faults.append(f"{folder.sounds[name]}: has no picture; a study shows video with its sound")
            else:
                faults.append(f"{folder.path / name}.mp4: is missing, other folders have it")
    if not names:
        raise EvaluationError(f"{' and '.join(str(folder.path) for folder in folders)}: no videos in them")
    _refuse(faults)
    return names


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - MAX_NAMED_FAULTS} more" if len(faults) > MAX_NAMED_FAULTS else ""
        raise EvaluationError(f"nothing was built: {'; '.join(faults[:MAX_NAMED_FAULTS])}{more}")


def _plan(
    systems: tuple[str, ...], clips: tuple[str, ...], surveys: Sequence[Survey], seed: int
) -> tuple[Trial, ...]:
    """All trials, and the checks that as many trials can need, each on another clip."""
    trials = []
    for survey in SURVEYS:
        if survey not in surveys:
            continue
        # the systems of a question, and those of a check
        questions: list[tuple[str, ...]]
        check: tuple[str, ...]
        if survey == "preference":
            questions = [(systems[0], other) for other in systems[1:]]
            check = (systems[0], BEEPS)
        else:
            questions = [(system,) for system in systems]
            check = (BEEPS,)
        pairs = [(clip, question) for clip in clips for question in questions]
        # checks on clips drawn at random, so that nobody can tell them by the clip
        checked = sorted(clips, key=lambda clip: _hash(str(seed), "check", clip))
        pairs += [(clip, check) for clip in checked[: len(pairs) // CHECK_EVERY + 1]]
        for clip, shown in pairs:
            files = tuple(f"{_hash(str(seed), 'file', system, clip)}.mp4" for system in shown)
            trials.append(Trial(_hash(str(seed), survey, clip, *shown), survey, clip, shown, files))
    return tuple(trials)


def _hash(*words: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]
