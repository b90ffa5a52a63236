"""Who was asked what, and what they said: SQLite, one answer per rater and trial, kept, then confirmed.

Who asks for a trial gets a lease on it, so that two raters at once never make four of three answers. A lease
that was not used for an hour counts no more, and somebody else may get the trial.
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

LEASE = 3600.0  # seconds
PATIENCE = 30.0  # seconds to wait for another process that writes
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
    """Nobody was given this link."""


class Refused(VABError):
    """An answer that is not kept; the message says why, for the rater."""


@dataclass(frozen=True)
class Next:
    """What a rater sees next. ``done`` of ``total`` trials are answered, attention checks among them."""

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
    shown = answer.grades[question]
    return 6 - shown if answer.swapped and question != "score" else shown


def passed(answer: Answer, check: Trial) -> bool:
    """Whether somebody heard that beeps are not the sound of this clip."""
    if check.systems == (BEEPS,):
        return answer.grades["score"] <= 2
    return all(grade(answer, question) < 3 for question in QUESTIONS["preference"])


def trusted(checks: Sequence[bool]) -> bool:
    """Whether a rater's answers count: of the attention checks they failed less than a half."""
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
        """Ids for at least so many raters, in the order they were made; those there are stay."""
        with self._write() as database:
            (known,) = database.execute("SELECT COUNT(*) FROM raters").fetchone()
            for place in range(known, people):
                database.execute("INSERT INTO raters VALUES (?, ?)", (secrets.token_urlsafe(9), place))
            return [row[0] for row in database.execute("SELECT id FROM raters ORDER BY place")]

    def next(self, rater: str) -> Next:
        """What this rater answers next, with a lease on it; the same again until it is answered.

        Raises ``UnknownRater``.
        """
        with self._write() as database:
            answered, taken = self._known(database, rater)
            chosen = self._held(database, rater, taken) or self._choose(rater, answered, taken)
            if chosen is not None:
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

    def seen(self, rater: str, trial: str) -> Trial | None:
        """A trial that this rater was given, now or before; None otherwise."""
        with self._open() as database:
            query = "SELECT 1 FROM {} WHERE rater = ? AND trial = ?"
            found = any(
                database.execute(query.format(table), (rater, trial)).fetchone()
                for table in ("leases", "answers")
            )
        return self.trials.get(trial) if found else None

    def answer(self, rater: str, trial: str, grades: dict[str, int]) -> None:
        """Keep an answer; when this returns it is on the disk. A second one of the same changes nothing.

        Raises ``UnknownRater``, or ``Refused`` if it was not asked, is not complete, or came so late that
        others have answered instead.
        """
        if trial not in self.trials:
            raise Refused("This question is not part of the study.")
        asked = QUESTIONS[self.trials[trial].survey]
        if set(grades) != set(asked) or any(type(g) is not int or not 1 <= g <= 5 for g in grades.values()):
            raise Refused("Every question needs one of its five answers.")
        with self._write() as database:
            answered, taken = self._known(database, rater)
            if trial in answered:
                return
            lease = database.execute(
                "SELECT first FROM leases WHERE rater = ? AND trial = ?", (rater, trial)
            ).fetchone()
            if lease is None:
                raise Refused("This question was not put to you.")
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
        found = []
        for rater, trial, swapped, quality, relevance, score, asked, answered in rows:
            grades = {"quality": quality, "relevance": relevance, "score": score}
            given = {name: value for name, value in grades.items() if value is not None}
            found.append(Answer(rater, trial, bool(swapped), given, asked, answered))
        return found

    def progress(self) -> list[tuple[str, int]]:
        """Each rater's id and how many trials they have answered, in the order of their links."""
        with self._open() as database:
            return database.execute(
                "SELECT id, COUNT(trial) FROM raters LEFT JOIN answers ON rater = id "
                "GROUP BY id ORDER BY place"
            ).fetchall()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = FULL")  # a commit survives a loss of power
            yield database
        finally:
            database.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes in; rolled back if the block fails."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _known(self, database: sqlite3.Connection, rater: str) -> tuple[set[str], dict[str, int]]:
        """What this rater has answered, and for each trial how many others have or are about to.

        Those who failed their attention checks do not count: somebody else is asked in their place.
        """
        if not database.execute("SELECT 1 FROM raters WHERE id = ?", (rater,)).fetchone():
            raise UnknownRater(rater)
        answered = {t for (t,) in database.execute("SELECT trial FROM answers WHERE rater = ?", (rater,))}
        taken = database.execute(
            "SELECT trial, rater FROM answers UNION SELECT trial, rater FROM leases WHERE since > ?",
            (self.clock() - LEASE,),
        ).fetchall()
        out = self._rejected(database) | {rater}
        return answered, Counter(trial for trial, other in taken if other not in out)

    def _rejected(self, database: sqlite3.Connection) -> set[str]:
        """Raters whose answers do not count, as things stand."""
        checks: dict[str, list[bool]] = {}
        for answer in self._all(database):
            trial = self.trials[answer.trial]
            if trial.check:
                checks.setdefault(answer.rater, []).append(passed(answer, trial))
        return {rater for rater, found in checks.items() if not trusted(found)}

    def _held(self, database: sqlite3.Connection, rater: str, taken: dict[str, int]) -> Trial | None:
        """The trial this rater has a lease on, if it is still to be had."""
        query = "SELECT trial FROM leases WHERE rater = ? ORDER BY since DESC"
        for (name,) in database.execute(query, (rater,)).fetchall():
            trial = self.trials[name]
            if trial.check or taken.get(name, 0) < self.study.raters:
                return trial
            database.execute("DELETE FROM leases WHERE rater = ? AND trial = ?", (rater, name))
        return None

    def _choose(self, rater: str, answered: set[str], taken: dict[str, int]) -> Trial | None:
        """A new trial: a check if one is due, else one of those with the fewest raters, in random order."""
        for survey in SURVEYS:
            checks = [trial for trial in self.study.of(survey, check=True) if trial.id not in answered]
            if checks and self._checks_due(rater, survey, answered, 0) > 0:
                return min(checks, key=lambda trial: self.study.draw("order", rater, trial.id))
            free = self._free(rater, survey, answered, taken)
            if free:
                return min(free, key=lambda t: (taken.get(t.id, 0), self.study.draw("order", rater, t.id)))
        return None

    def _free(self, rater: str, survey: Survey, answered: set[str], taken: dict[str, int]) -> list[Trial]:
        """Trials of a survey that this rater may be given now."""
        limit, done = self.study.per_person, sum(not self.trials[name].check for name in answered)
        if limit is not None and done >= limit:
            return []
        full = self.study.raters
        return [t for t in self.study.of(survey) if t.id not in answered and taken.get(t.id, 0) < full]

    def _checks_due(self, rater: str, survey: Survey, answered: set[str], more: int) -> int:
        """Checks to answer yet once ``more`` further trials of the survey are answered."""
        mine = [self.trials[name] for name in answered if self.trials[name].survey == survey]
        seen = sum(trial.check for trial in mine)
        done = len(mine) - seen + more
        due = 0
        most = min(len(self.study.of(survey)), self.study.per_person or CHECK_EVERY)
        for n in range(len(self.study.of(survey, check=True))):  # one somewhere in each ten, but not at once
            drawn = int(self.study.draw("check", rater, survey, str(n)), 16)
            place = n * CHECK_EVERY + 2 + drawn % (CHECK_EVERY - 2)
            due += done >= (place if n else min(place, most - 1))  # the first one before a short part is over
        return max(0, due - seen)

    def _total(self, rater: str, answered: set[str], taken: dict[str, int]) -> int:
        """Trials that this rater will have answered, as far as one can say now."""
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
        """Whether a trial that this rater could answer is only waiting for somebody else's answer."""
        given, out = database.execute("SELECT trial, rater FROM answers").fetchall(), self._rejected(database)
        counts = Counter(trial for trial, other in given if other not in out)
        return any(self._free(rater, survey, answered, counts) for survey in SURVEYS)
