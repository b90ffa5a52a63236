"""Results of a study: preferences (Figure 4), opinion scores (Table 2), intervals, agreement of raters.

Grades are counted from the first system's side: 1 is a strong preference for it, 5 for the other. Intervals
are 95 %, by resampling clips: three grades of one clip are not independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.evaluate.metrics.statistics import EvaluationError, Interval, bootstrap, list_hash
from vab.evaluate.metrics.tables import markdown
from vab.evaluate.paper import OPINIONS
from vab.listening.agreement import as_matrix, krippendorff_alpha
from vab.listening.answers import QUESTIONS, Answer, grade, passed, trusted
from vab.listening.study import Study, Trial
from vab.utils import count_of

GRADES = ("strongly first", "weakly first", "no preference", "weakly other", "strongly other")


@dataclass(frozen=True)
class Preference:
    """One question about the first system and another one."""

    first: str
    other: str
    question: str
    counts: tuple[int, ...]  # of the five grades, as in ``GRADES``
    clips: int
    wins: Interval  # share of answers that prefer the first, strongly or weakly
    losses: Interval
    lead: Interval  # wins - losses


@dataclass(frozen=True)
class Opinion:
    """The scores of one system, 1 (bad) to 5 (excellent)."""

    system: str
    answers: int
    clips: int
    mean: Interval
    deviation: float  # of all answers, as in Table 2; NaN of a single one


@dataclass(frozen=True)
class Rater:
    """The record of one rater."""

    id: str
    answers: int  # without checks
    checks: int
    failed: int
    trusted: bool  # whether their answers count


@dataclass(frozen=True)
class Results:
    """The results of a study so far."""

    study: Study
    raters: tuple[Rater, ...]
    answers: int  # that count
    complete: int  # trials that have all their raters
    preferences: tuple[Preference, ...]
    opinions: tuple[Opinion, ...]
    agreement: dict[str, float]  # of each question: Krippendorff's alpha, ordinal

    @property
    def trials(self) -> int:
        """Number of trials to be answered, without checks."""
        return sum(not trial.check for trial in self.study.trials)

    def markdown(self) -> str:
        """Tables of the results, with the paper's Table 2."""
        # 1. What the numbers stand on, and who was left out.
        rejected = [rater for rater in self.raters if not rater.trusted]
        lines = [
            f"Listening study: {', '.join(self.study.systems)}; {count_of(len(self.study.clips), 'clip')}, "
            f"{count_of(len(self.raters), 'rater')}, {count_of(self.answers, 'answer')}. "
            f"{self.complete:,} of {self.trials:,} trials have all their "
            f"{count_of(self.study.raters, 'rater')}.",
            f"sha256 of the clips' names {list_hash(self.study.clips)[:16]}. Brackets: 95 % bootstrap "
            "intervals over clips. Agreement: Krippendorff's alpha for ordered grades "
            f"({', '.join(f'{name} {_number(alpha)}' for name, alpha in self.agreement.items())}).",
        ]
        if rejected:
            names = ", ".join(f"{rater.id} ({rater.failed} of {rater.checks})" for rater in rejected)
            lines.append(f"Left out, for failing half of their attention checks or more: {names}.")
        unchecked = [rater.id for rater in self.raters if not rater.checks]
        if unchecked:
            lines.append(f"Had no attention check yet, and count: {', '.join(unchecked)}.")
        # 2. Figure 4 as a table.
        if self.preferences:
            header = ("question", "first", "other", *GRADES, "first, %", "other, %", "first - other, %", "N")
            rows = [
                (
                    each.question,
                    each.first,
                    each.other,
                    *map(str, each.counts),
                    each.wins.percent(),
                    each.losses.percent(),
                    each.lead.percent(),
                    f"{sum(each.counts)} of {count_of(each.clips, 'clip')}",
                )
                for each in self.preferences
            ]
            lines.append(markdown(header, rows))
        # 3. Table 2, with the paper's rows below ours.
        if self.opinions:
            ours = [
                (
                    each.system,
                    each.mean.plain(),
                    _number(each.deviation),
                    f"{each.answers} of {count_of(each.clips, 'clip')}",
                )
                for each in self.opinions
            ]
            paper = [
                (f"{row.system} ({row.source})", f"{row.mean}", f"{row.deviation}", "") for row in OPINIONS
            ]
            lines.append(markdown(("system", "MOS mean", "MOS std", "N"), [*ours, *paper]))
        return "\n\n".join(lines)

    def document(self) -> dict[str, Any]:
        """For JSON."""

        def plain(each: Preference | Opinion) -> dict[str, Any]:
            return {
                key: value.document() if isinstance(value, Interval) else _finite(value)
                for key, value in vars(each).items()
            }

        return {
            "systems": self.study.systems,
            "clips": len(self.study.clips),
            "clips_sha256": list_hash(self.study.clips),
            "raters_per_trial": self.study.raters,
            "answers": self.answers,
            "trials": self.trials,
            "complete": self.complete,
            "raters": [vars(rater) for rater in self.raters],
            "grades": GRADES,
            "preferences": [plain(each) for each in self.preferences],
            "opinions": [plain(each) for each in self.opinions],
            "krippendorff_alpha": {name: _finite(alpha) for name, alpha in self.agreement.items()},
        }


def results(study: Study, answers: Sequence[Answer]) -> Results:
    """Count the answers of trusted raters. ``EvaluationError`` if there are none."""
    # 1. Whose answers count.
    trials = {trial.id: trial for trial in study.trials}
    raters = [_rater(name, answers, trials) for name in sorted({answer.rater for answer in answers})]
    trusted_ids = {rater.id for rater in raters if rater.trusted}
    kept = [each for each in answers if each.rater in trusted_ids and not trials[each.trial].check]
    if not kept:
        if not raters:
            raise EvaluationError(f"{study.folder}: no answers yet")
        names = ", ".join(one.id for one in raters)
        failed = f"{count_of(len(raters), 'rater')} failed the attention checks ({names})"
        raise EvaluationError(f"{study.folder}: no answers that count; {failed}")
    # 2. Each question apart: agreement over all its answers, then each system by itself.
    preferences = []
    opinions = []
    agreement = {}
    for survey, questions in QUESTIONS.items():
        mine = [each for each in kept if trials[each.trial].survey == survey]
        for question in questions if mine else ():
            grades = [(each, trials[each.trial], grade(each, question)) for each in mine]
            agreement[question] = krippendorff_alpha(
                as_matrix([(each.rater, each.trial, value) for each, _, value in grades])
            )
            for system in study.systems:
                # a preference is about its second system, compared with the first of the study
                by_clip = [(trial.clip, value) for _, trial, value in grades if trial.systems[-1] == system]
                if not by_clip:
                    continue
                if survey == "preference":
                    preferences.append(_preference(study.systems[0], system, question, by_clip))
                else:
                    opinions.append(_opinion(system, by_clip))
    # 3. How far the study is.
    answers_of_trial = Counter(each.trial for each in kept)
    complete = sum(count >= study.raters for count in answers_of_trial.values())
    return Results(study, tuple(raters), len(kept), complete, tuple(preferences), tuple(opinions), agreement)


def _rater(name: str, answers: Sequence[Answer], trials: dict[str, Trial]) -> Rater:
    mine = [each for each in answers if each.rater == name]
    checks = [passed(each, trials[each.trial]) for each in mine if trials[each.trial].check]
    return Rater(name, len(mine) - len(checks), len(checks), checks.count(False), trusted(checks))


def _preference(first: str, other: str, question: str, grades: Sequence[tuple[str, int]]) -> Preference:
    wins = _over_clips(grades, lambda value: value < 3)
    losses = _over_clips(grades, lambda value: value > 3)
    lead = _over_clips(grades, lambda value: np.sign(3 - value))
    counts = Counter(value for _, value in grades)
    clips = len({clip for clip, _ in grades})
    return Preference(
        first, other, question, tuple(counts[n] for n in range(1, 6)), clips, wins, losses, lead
    )


def _opinion(system: str, scores: Sequence[tuple[str, int]]) -> Opinion:
    values = np.array([score for _, score in scores], dtype=np.float64)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    clips = len({clip for clip, _ in scores})
    return Opinion(system, len(values), clips, _over_clips(scores, lambda score: score), deviation)


def _over_clips(grades: Sequence[tuple[str, int]], transform: Callable[[Any], Any]) -> Interval:
    """The mean of ``transform`` over all grades, with an interval from resampled clips."""
    clips = sorted({clip for clip, _ in grades})
    row = {clip: n for n, clip in enumerate(clips)}
    # sum and number of the grades of each clip, for clips may differ in that number
    sums = np.zeros(len(clips))
    counts = np.zeros(len(clips))
    for clip, value in grades:
        sums[row[clip]] += transform(value)
        counts[row[clip]] += 1

    def mean(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray(sums[rows].sum(1) / counts[rows].sum(1))[:, None]

    return Interval.of(sums.sum() / counts.sum(), bootstrap(mean, len(clips))[:, 0])


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def _finite(value: Any) -> Any:
    """None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
