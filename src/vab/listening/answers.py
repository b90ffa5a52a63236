"""The answers of a study in SQLite: one per rater and trial, on the disk before it is confirmed.

A rater who asks for a trial gets a lease on it, so that two raters at once never make four answers of three.
A lease that was not used for an hour expires, and somebody else may get the trial.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from vab.errors import VABError
from vab.evaluate.metrics.statistics import EvaluationError
from vab.listening.study import ANSWERS, BEEPS, CHECK_EVERY, SURVEYS, Study, Survey, Trial

LEASE_SECONDS = 3600.0
LOCK_TIMEOUT_SECONDS = 30.0  # for another process that writes
TABLES = """
CREATE TABLE IF NOT EXISTS raters (id TEXT PRIMARY KEY, place INTEGER UNIQUE);
CREATE TABLE IF NOT EXISTS leases (
    trial TEXT, rater TEXT, first REAL, since REAL, PRIMARY KEY (trial, rater)
);
CREATE TABLE IF NOT EXISTS answers (
    rater TEXT REFERENCES raters, trial TEXT, swapped INTEGER,
    quality INTEGER, relevance INTEGER, score INTEGER, asked REAL, answered REAL,
    PRIMARY KEY (rater, trial)
);
"""

QUESTIONS: dict[Survey, tuple[str, ...]] = {"preference": ("quality", "relevance"), "mos": ("score",)}


class UnknownRater(VABError):
    """A link that belongs to no rater."""


class Refused(VABError):
    """An answer that is refused; the message tells the rater why."""


@dataclass(frozen=True)
class Next:
    """The next trial of a rater. ``done`` of ``total`` are answered, attention checks among them."""

    state: Literal["trial", "wait", "done"]  # wait: all that is left is with others at the moment
    done: int
    total: int
    trial: Trial | None = None


@dataclass(frozen=True)
class Answer:
    """One answer, grades as shown: 1 is strongly video 1, 5 strongly video 2; or a score from 1 to 5."""

    rater: str
    trial: str
    swapped: bool  # the first system of the trial was video 2
    grades: dict[str, int]  # of quality and relevance, or of score
    asked: float  # seconds since 1970
    answered: float


def grade(answer: Answer, question: str) -> int:
    """A grade from the first system's side."""
    as_shown = answer.grades[question]
    return 6 - as_shown if answer.swapped and question != "score" else as_shown


def passed(answer: Answer, check: Trial) -> bool:
    """True if the rater noticed that beeps are not the sound of this clip."""
    if check.systems == (BEEPS,):
        return answer.grades["score"] <= 2
    return all(grade(answer, question) < 3 for question in QUESTIONS["preference"])


def trusted(checks: Sequence[bool]) -> bool:
    """True if a rater's answers count: they failed less than half of their attention checks."""
    return not checks or 2 * checks.count(False) < len(checks)


class Answers:
    """The database of a study. Each call is a transaction; any number of processes may share it."""

    def __init__(self, study: Study, clock: Callable[[], float] = time.time) -> None:
        self.study = study
        self.clock = clock
        self.trials = {trial.id: trial for trial in study.trials}
        self.path = study.folder / ANSWERS
        try:
            with self._open() as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript(TABLES)
        except sqlite3.Error as error:
            raise EvaluationError(f"{self.path}: cannot be used ({error})") from None

    def invite(self, people: int) -> list[str]:
        """Ensure ids for at least ``people`` raters; all ids, in the order they were made."""
        with self._write() as database:
            (known,) = database.execute("SELECT COUNT(*) FROM raters").fetchone()
            for place in range(known, people):
                database.execute("INSERT INTO raters VALUES (?, ?)", (secrets.token_urlsafe(9), place))
            return [row[0] for row in database.execute("SELECT id FROM raters ORDER BY place")]

    def next(self, rater: str) -> Next:
        """The trial this rater answers next, with a lease on it; the same again until it is answered.

        Raises ``UnknownRater``.
        """
        with self._write() as database:
            answered, taken = self._progress_of(database, rater)
            # the trial they already hold, else a new one
            chosen = self._held(database, rater, taken) or self._choose(rater, answered, taken)
            if chosen is not None:
                # renew the lease, but keep the time of the first asking
                now = self.clock()
                database.execute(
                    "INSERT INTO leases VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (trial, rater) DO UPDATE SET since = excluded.since",
                    (chosen.id, rater, now, now),
                )
            total = self._total(rater, answered, taken)
            if chosen is not None:
                return Next("trial", len(answered), total, chosen)
            state: Literal["wait", "done"] = "wait" if self._others(database, rater, answered) else "done"
            return Next(state, len(answered), total)

    def trial_of(self, rater: str, trial: str) -> Trial | None:
        """A trial that was put to this rater, now or before; None otherwise."""
        with self._open() as database:
            query = "SELECT 1 FROM {} WHERE rater = ? AND trial = ?"
            asked = any(
                database.execute(query.format(table), (rater, trial)).fetchone()
                for table in ("leases", "answers")
            )
        return self.trials.get(trial) if asked else None

    def answer(self, rater: str, trial: str, grades: dict[str, int]) -> None:
        """Store an answer; it is on the disk when this returns. A second one to a trial changes nothing.

        Raises ``UnknownRater``, or ``Refused`` if it was not asked, is not complete, or came so late that
        others have answered instead.
        """
        # 1. The answer must be complete and belong to this study.
        if trial not in self.trials:
            raise Refused("This question is not part of the study.")
        asked = QUESTIONS[self.trials[trial].survey]
        if set(grades) != set(asked) or any(type(g) is not int or not 1 <= g <= 5 for g in grades.values()):
            raise Refused("Every question needs one of its five answers.")
        with self._write() as database:
            answered, taken = self._progress_of(database, rater)
            if trial in answered:
                return
            # 2. It must have been asked: there is a lease, even if it has expired.
            lease = database.execute(
                "SELECT first FROM leases WHERE rater = ? AND trial = ?", (rater, trial)
            ).fetchone()
            if lease is None:
                raise Refused("This question was not put to you.")
            # 3. Late: the lease expired, and others have made the trial's answers complete.
            late = not self.trials[trial].check and taken.get(trial, 0) >= self.study.raters
            if not late:
                row = [grades.get(name) for name in ("quality", "relevance", "score")]
                swapped = self.study.swapped(rater, trial)
                database.execute(
                    "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (rater, trial, swapped, *row, lease[0], self.clock()),
                )
            database.execute("DELETE FROM leases WHERE rater = ? AND trial = ?", (rater, trial))
        if late:
            raise Refused("While you were away others have answered this one. It is not counted.")

    def all(self) -> list[Answer]:
        """Every answer that was kept, in the order they came."""
        with self._open() as database:
            return self._all(database)

    def _all(self, database: sqlite3.Connection) -> list[Answer]:
        rows = database.execute(
            "SELECT rater, trial, swapped, quality, relevance, score, asked, answered FROM answers "
            "ORDER BY answered, rater, trial"
        ).fetchall()
        answers = []
        for rater, trial, swapped, quality, relevance, score, asked, answered in rows:
            grades = {"quality": quality, "relevance": relevance, "score": score}
            grades = {name: value for name, value in grades.items() if value is not None}
            answers.append(Answer(rater, trial, bool(swapped), grades, asked, answered))
        return answers

    def progress(self) -> list[tuple[str, int]]:
        """Each rater's id and how many trials they have answered, in the order of their links."""
        with self._open() as database:
            return database.execute(
                "SELECT id, COUNT(trial) FROM raters LEFT JOIN answers ON rater = id "
                "GROUP BY id ORDER BY place"
            ).fetchall()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = FULL")  # a commit survives a loss of power
            yield database
        finally:
            database.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes in; rolled back if the block fails."""
        with self._open() as database:
            # the write lock at once: a transaction that upgrades later can fail instead of waiting
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _progress_of(self, database: sqlite3.Connection, rater: str) -> tuple[set[str], dict[str, int]]:
        """The trials this rater has answered, and the number of others who have each trial or a lease on it.

        Those who failed their attention checks do not count: somebody else is asked in their place.
        """
        if not database.execute("SELECT 1 FROM raters WHERE id = ?", (rater,)).fetchone():
            raise UnknownRater(rater)
        answered = {t for (t,) in database.execute("SELECT trial FROM answers WHERE rater = ?", (rater,))}
        taken = database.execute(
            "SELECT trial, rater FROM answers UNION SELECT trial, rater FROM leases WHERE since > ?",
            (self.clock() - LEASE_SECONDS,),
        ).fetchall()
        excluded = self._rejected(database) | {rater}
        return answered, Counter(trial for trial, other in taken if other not in excluded)

    def _rejected(self, database: sqlite3.Connection) -> set[str]:
        """Raters whose answers do not count, as things stand."""
        checks: dict[str, list[bool]] = {}
        for answer in self._all(database):
            trial = self.trials[answer.trial]
            if trial.check:
                checks.setdefault(answer.rater, []).append(passed(answer, trial))
        return {rater for rater, results in checks.items() if not trusted(results)}

    def _held(self, database: sqlite3.Connection, rater: str, taken: dict[str, int]) -> Trial | None:
        """The trial this rater has a lease on, unless others have completed it meanwhile."""
        query = "SELECT trial FROM leases WHERE rater = ? ORDER BY since DESC"
        for (name,) in database.execute(query, (rater,)).fetchall():
            trial = self.trials[name]
            if trial.check or taken.get(name, 0) < self.study.raters:
                return trial
            database.execute("DELETE FROM leases WHERE rater = ? AND trial = ?", (rater, name))
        return None

    def _choose(self, rater: str, answered: set[str], taken: dict[str, int]) -> Trial | None:
        """A new trial: a check if one is due, else one with the fewest raters, at random among equals."""
        # one survey after the other
        for survey in SURVEYS:
            checks = [trial for trial in self.study.of(survey, check=True) if trial.id not in answered]
            if checks and self._checks_due(rater, survey, answered, 0) > 0:
                return min(checks, key=lambda trial: self.study.draw("order", rater, trial.id))
            free = self._free(rater, survey, answered, taken)
            if free:
                return min(free, key=lambda t: (taken.get(t.id, 0), self.study.draw("order", rater, t.id)))
        return None

    def _free(self, rater: str, survey: Survey, answered: set[str], taken: dict[str, int]) -> list[Trial]:
        """Trials of a survey that this rater may still answer."""
        limit = self.study.per_person
        done = sum(not self.trials[name].check for name in answered)
        if limit is not None and done >= limit:
            return []
        full = self.study.raters
        return [t for t in self.study.of(survey) if t.id not in answered and taken.get(t.id, 0) < full]

    def _checks_due(self, rater: str, survey: Survey, answered: set[str], more: int) -> int:
        """Number of checks still due once ``more`` further trials of the survey are answered."""
        mine = [self.trials[name] for name in answered if self.trials[name].survey == survey]
        checked = sum(trial.check for trial in mine)
        done = len(mine) - checked + more
        due = 0
        most = min(len(self.study.of(survey)), self.study.per_person or CHECK_EVERY)
        # one check somewhere in each ten trials, but not among the first two of them
        for n in range(len(self.study.of(survey, check=True))):
            drawn = int(self.study.draw("check", rater, survey, str(n)), 16)
            position = n * CHECK_EVERY + 2 + drawn % (CHECK_EVERY - 2)
            # the first one before a short survey is over
            due += done >= (position if n else min(position, most - 1))
        return max(0, due - checked)

    def _total(self, rater: str, answered: set[str], taken: dict[str, int]) -> int:
        """Number of trials that this rater will have answered, as things stand."""
        # what is left of the rater's own limit goes to one survey after the other
        limit = self.study.per_person
        left = None if limit is None else limit - sum(not self.trials[name].check for name in answered)
        total = len(answered)
        for survey in SURVEYS:
            more = len(self._free(rater, survey, answered, taken))
            if left is not None:
                more = max(0, min(more, left))
                left -= more
            total += more + self._checks_due(rater, survey, answered, more)
        return total

    def _others(self, database: sqlite3.Connection, rater: str, answered: set[str]) -> bool:
        """True if a trial that this rater could answer is held back by somebody else's lease alone."""
        answers = database.execute("SELECT trial, rater FROM answers").fetchall()
        excluded = self._rejected(database)
        counts = Counter(trial for trial, other in answers if other not in excluded)
        return any(self._free(rater, survey, answered, counts) for survey in SURVEYS)
