"""A library of many files: nothing is embedded twice, lost, halved or doubled, and what is found is right."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vab.library.library
import vab.library.table
from helpers.libraries import DIM, each, embed, files_of, queries
from vab.cli import main
from vab.inference.embeddings import Embedded, unit
from vab.library.library import Hit, Library
from vab.library.table import File, Filters, LibraryError, rows_of
from vab.media.inputs import AUDIO, IMAGES, VIDEOS, expand
from vab.studio.library_view import LibraryView
from vab.utils.locks import LockedError

pytest.importorskip("lancedb")

SOURCES, TESTS = Path(__file__).parents[1] / "src", Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{TESTS}", "OMP_NUM_THREADS": "1"}


class Embedder:
    """``embed`` that counts."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: Path) -> Embedded:
        self.paths.append(str(path))
        return embed(path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files_in(folder: Path, number: int = 30) -> list[Path]:
    return [write(folder / f"class {n % 3}" / f"file{n:03d}.wav", f"content {n}") for n in range(number)]


def run(library: Library, files: list[Path], embedder: Any = embed, model: str = "model A") -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in library.add(files, each(embedder), model):
        counts[result.status] = counts.get(result.status, 0) + 1
    return counts


def rows(library: Library) -> list[tuple]:
    """All of the library's rows, vectors too, sorted."""
    library.table.latest()
    names = ("path", "number", "start", "end", "seconds", "label", "audio", "video")
    found = library.table.select({name: name for name in names})
    return sorted(((*row.values(),) for row in found), key=lambda row: row[:2])


def expected(files: list[Path]) -> list[tuple]:
    """What ``rows`` must be for these files."""
    found = []
    for path in files:
        e = embed(path)
        for n in range(len(e.starts)):
            vectors = (
                None if v is None or np.isnan(v[n]).all() else v[n].tolist() for v in (e.audio, e.video)
            )
            times = (e.starts[n], e.ends[n], e.ends[-1])
            found.append((str(path), n, *times, path.parent.name, *vectors))
    return sorted(found, key=lambda row: row[:2])


def brute(
    files: list[Path], query: np.ndarray, kind: str, k: int, windows: bool = False
) -> list[tuple[str, float, float]]:
    """(path, start, score) of the best windows, by numpy alone."""
    scored = []
    for path in files:
        e = embed(path)
        vectors = getattr(e, kind)
        if vectors is not None:
            scores = vectors.astype(np.float64) @ query / np.linalg.norm(query)
            found = [(str(path), float(e.starts[n]), float(s)) for n, s in enumerate(scores) if s == s]
            scored += found if windows else [max(found, key=lambda hit: hit[2])]
    return sorted(scored, key=lambda hit: -hit[2])[:k]


def same(hits: list[Hit], truth: list[tuple[str, float, float]]) -> None:
    assert [(hit.path, hit.start) for hit in hits] == [hit[:2] for hit in truth]
    assert [hit.score for hit in hits] == pytest.approx([hit[2] for hit in truth], abs=1e-5)


def test_adding_twice_embeds_nothing_and_a_changed_file_once(tmp_path: Path) -> None:
    files, first, second = files_in(tmp_path / "media"), Embedder(), Embedder()
    library = Library.create(tmp_path / "db")
    assert run(library, [*files, *files], first) == {"added": 30}
    assert sorted(first.paths) == sorted(map(str, files))
    assert rows(library) == expected(files)
    again = Library.open(tmp_path / "db")
    assert run(again, files, second) == {"unchanged": 30} and second.paths == []

    files[3].write_text("another content, of another length")
    os.utime(files[4])  # touched: looks changed, and is embedded to the same vectors
    more = write(tmp_path / "media" / "new.wav", "new")
    assert run(again, [*files, more], second) == {"unchanged": 28, "replaced": 2, "added": 1}
    assert sorted(second.paths) == sorted(map(str, [files[3], files[4], more]))
    assert rows(again) == expected([*files, more]) == rows(library)
    assert run(again, [*files, more], second) == {"unchanged": 31} and len(second.paths) == 3


def test_replacing_over_and_over_leaves_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any order of new, changed and removed files, tidying in between, with an index over it."""
    monkeypatch.setattr(vab.library.library, "MAX_COMMIT_FILES", 4)
    monkeypatch.setattr(vab.library.library, "MAX_PIECES", 5)
    chance, files = random.Random(0), files_in(tmp_path, 12)
    library = Library.create(tmp_path / "db", exact_below=20)
    for turn in range(8):
        for path in chance.sample(files, 5):
            path.write_text(f"content {chance.random()}")
        for path in chance.sample(files, 2):
            path.unlink()
        there = [path for path in files if path.exists()]
        run(library, chance.sample(there, len(there)))
        library.prune()
        assert rows(library) == expected(there), turn
        for query, kind in ((query, kind) for query in queries(3) for kind in ("audio", "video")):
            same(library.search(query, kind, exact=True), brute(there, query, kind, 10))
            truth = {hit[:2]: hit[2] for hit in brute(there, query, kind, 999, windows=True)}
            for hit in library.search(query, kind):  # by the index: no row of another time
                assert hit.score == pytest.approx(truth[hit.path, hit.start], abs=1e-5)
        for path in set(files) - set(there):
            path.write_text(f"back in turn {turn}")
    assert library.meta is not None and set(library.meta.indexes) == {"audio", "video"}


def test_bad_files_fail_alone_and_keep_what_they_had(tmp_path: Path) -> None:
    good = files_in(tmp_path / "media", 3)
    broken = write(tmp_path / "media" / "broken.mp4", "broken")
    library = Library.create(tmp_path / "db")
    no_name = os.fsdecode(os.fsencode(tmp_path) + b"/media/\xff.wav")
    Path(no_name).write_text("its name is no text")
    (tmp_path / "folder.wav").mkdir()
    bad = [broken, Path(no_name), tmp_path / "missing.wav", tmp_path / "folder.wav"]
    results = list(library.add([*good[:2], *bad, good[2]], each(), "model A"))
    reasons = [result.error or "" for result in results if result.status == "failed"]
    assert len(reasons) == 4 and all("\n" not in reason for reason in reasons)
    for reason, (path, text) in zip(
        reasons, zip(bad, ("not media", "not UTF-8", "No such file", "not a file"), strict=True), strict=True
    ):
        assert os.fsencode(path).decode(errors="backslashreplace") in reason and text in reason
    assert rows(library) == expected(good)

    before = rows(library)
    good[0].write_text("broken now")
    assert run(library, good) == {"failed": 1, "unchanged": 2}
    assert rows(library) == before  # and it is tried again the next time
    assert run(library, good) == {"failed": 1, "unchanged": 2}


@pytest.mark.parametrize("ahead", [1, 3, 99])
def test_files_taken_ahead_keep_their_own_results(tmp_path: Path, ahead: int) -> None:
    """New, known, changed, broken and missing files mixed: each is told once, whatever is answered when."""
    files = files_in(tmp_path / "media", 20)
    library = Library.create(tmp_path / "db")
    run(library, files[::3])
    files[3].write_text("changed")
    files[4].write_text("broken")
    files[5].unlink()
    results = list(library.add(files, each(ahead=ahead), "model A"))
    found = {Path(result.path): result.status for result in results}
    assert len(results) == 20
    for n, path in enumerate(files):
        special = {3: "replaced", 4: "failed", 5: "failed"}
        assert found[path] == special.get(n, "added" if n % 3 else "unchanged"), n
    good = [path for n, path in enumerate(files) if n not in (4, 5)]
    assert rows(library) == expected(good)


def test_a_change_between_taking_and_embedding_is_seen_the_next_time(tmp_path: Path) -> None:
    files = files_in(tmp_path / "media", 2)

    def slow(path: Path) -> Embedded:
        found = embed(path)
        if path == files[0] and "late" not in path.read_text():
            path.write_text("late, while it is being embedded")
        return found

    library = Library.create(tmp_path / "db")
    for counts in ({"added": 2}, {"unchanged": 1, "replaced": 1}, {"unchanged": 2}):
        assert run(library, files, slow) == counts
    assert rows(library) == expected(files)


@pytest.mark.parametrize(
    ("audio", "video", "says"),
    [
        (None, None, "neither"),
        (np.zeros((2, DIM)), None, "length one"),
        (None, np.full((2, DIM), np.nan), "length one"),
        (np.array([[1.0] + [np.nan] * (DIM - 1), [1.0] + [0.0] * (DIM - 1)]), None, "length one"),
        (np.eye(3, DIM), None, r"\(3, 16\), not \(2, 16\)"),
        (np.eye(2, DIM), np.eye(2, DIM - 1), r"video vectors are \(2, 15\)"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(
    tmp_path: Path, audio: Any, video: Any, says: str
) -> None:
    path = write(tmp_path / "a.wav", "a")
    bad = Embedded(np.array([0.0, 10]), np.array([10.0, 20]), audio, video)
    (result,) = Library.create(tmp_path / "db").add([path], each(lambda _: bad), "model A")
    assert result.status == "failed" and result.error is not None
    assert re.search(says, result.error)


ADDING = """
import sys, time
from pathlib import Path
import vab.library.library
import vab.library.table
from helpers.libraries import each, embed, files_of
vab.library.library.MAX_COMMIT_FILES = 3
def slow(path):
    time.sleep(float(sys.argv[3]))
    return embed(path)
library = vab.library.library.Library.create(sys.argv[1])
for result in library.add(files_of(sys.argv[2]), each(slow, ahead=4), "model A"):
    print(result.status, result.path, flush=True)
"""

SEARCHING = """
import sys
from helpers.libraries import queries
from vab.library.library import Library
library, seen = Library.open(sys.argv[1]), {}
print("ready", flush=True)
import json
while True:
    hits = library.search(queries(1)[0], "audio", k=10_000, windows=True)
    found = {}
    for hit in hits:
        found.setdefault(hit.path, []).append([hit.start, hit.score])
    print(json.dumps(found), flush=True)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    files = files_in(tmp_path / "media", 24)
    whole = {str(path): expected([path]) for path in files}
    told: set[str] = set()
    for kill in range(3):  # the third time some are being replaced
        if kill == 2:
            for path in files[:12]:
                path.write_text(f"changed {path.name}")
        run_ = start(ADDING, tmp_path / "db", tmp_path / "media", 0.01)
        assert run_.stdout is not None
        now = []
        for line in run_.stdout:
            status, path = line.split(maxsplit=1)
            if status != "unchanged":
                now.append(path.strip())
            if len(now) >= 6 + kill:
                break
        time.sleep(0.02 * kill)
        run_.send_signal(signal.SIGKILL)
        run_.wait()
        told |= set(now)
        after = rows(Library.open(tmp_path / "db"))
        for path in {row[0] for row in after}:
            old, new = whole[path], expected([Path(path)])
            assert [row for row in after if row[0] == path] in (old, new)  # never a part, never both
        assert told <= {row[0] for row in after}  # what was told is there
    counted = Embedder()
    library = Library.open(tmp_path / "db")
    run(library, files, counted)
    assert rows(library) == expected(files)
    assert 0 < len(counted.paths) < 24


def test_a_search_while_another_process_adds_sees_whole_files_only(tmp_path: Path) -> None:
    files = [path for path in files_in(tmp_path / "media", 40) if embed(path).audio is not None]
    query = queries(1)[0]

    def of(path: Path) -> list[tuple[float, float]]:
        return [(start, score) for _, start, score in brute([path], query, "audio", 99, windows=True)]

    run(Library.create(tmp_path / "db"), files[:10])
    old = {str(path): of(path) for path in files}
    for path in files[:10]:
        path.write_text(f"changed {path.name}")
        while embed(path).audio is None:
            path.write_text(path.read_text() + "!")
    new = {str(path): of(path) for path in files}
    reader = start(SEARCHING, tmp_path / "db")
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    writer = start(ADDING, tmp_path / "db", tmp_path / "media", 0.03)
    sizes = set()
    try:
        while True:
            done = writer.poll() is not None
            found = json.loads(reader.stdout.readline())
            assert set(map(str, files[:10])) <= set(found)  # those being replaced never vanish
            for path, windows in found.items():
                if path not in old:  # a file without sound has no business here
                    raise AssertionError(path)
                assert any(
                    [start for start, _ in windows] == [start for start, _ in truth]
                    and np.allclose(windows, truth, atol=1e-5)
                    for truth in (old[path], new[path])
                ), path
            sizes.add(len(found))
            if done and len(found) == len(files):
                break
    finally:
        for process in (reader, writer):
            process.kill()
            process.wait()
    assert len(sizes) > 2, "the reader saw no state in between"
    same(Library.open(tmp_path / "db").search(query, "audio"), brute(files, query, "audio", 10))


def test_data_files_are_put_together_while_adding_and_no_reader_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaced versions are deleted at once here, so a reader loses the one it reads all the time."""
    monkeypatch.setattr(vab.library.library, "MAX_COMMIT_FILES", 2)
    monkeypatch.setattr(vab.library.library, "MAX_PIECES_WHILE_ADDING", 6)
    monkeypatch.setattr(vab.library.table, "MIN_VERSION_AGE", timedelta(0))
    files = [path for path in files_in(tmp_path / "media", 60) if embed(path).audio is not None]
    library = Library.create(tmp_path / "db")
    run(library, files[:4])
    stop, seen, errors = threading.Event(), set(), []

    def read() -> None:
        reader = Library.open(tmp_path / "db")
        try:
            while not stop.is_set():
                found = reader.search(queries(1)[0], k=99), reader.search(k=99)
                assert all(set(map(str, files[:4])) <= {hit.path for hit in hits} for hits in found)
                seen.add(reader.counts()["files"])
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    sizes = []
    try:
        for result in library.add(files, each(), "model A"):
            assert result.error is None
            sizes.append((library.table.pieces(), len(list((tmp_path / "db").rglob("*.manifest")))))
    finally:
        stop.set()
        thread.join()
    assert not errors and len(seen) > 2, errors
    # Without it there would be one for each of some twenty commits.
    assert max(pieces for pieces, _ in sizes) <= 7 and max(versions for _, versions in sizes) <= 10
    assert rows(library) == expected(files)


def test_a_version_that_was_swept_away_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vab.library.table, "MIN_VERSION_AGE", timedelta(0))
    files = files_in(tmp_path / "media", 12)
    writer = Library.create(tmp_path / "db")
    run(writer, files[:6])
    reader, tries = Library.open(tmp_path / "db"), []

    def read() -> int:
        tries.append(1)
        if len(tries) == 1:  # just now another process adds, and deletes what this reader has open
            run(writer, files)
            writer.table.optimize()
        return len(reader.table.select({"path": "path", "label": "label"}, "number = 0"))

    assert reader.table.newest(read) == 12 and len(tries) == 2

    def fails() -> int:
        tries.append(1)
        raise LibraryError("whatever is read")

    with pytest.raises(LibraryError, match="whatever"):  # and an error of the newest version is one
        reader.table.newest(fails)
    assert len(tries) == 3


def test_a_second_writer_gets_a_clear_error(tmp_path: Path) -> None:
    files_in(tmp_path / "media", 30)
    first = start(ADDING, tmp_path / "db", tmp_path / "media", 0.1)
    assert first.stdout is not None and first.stdout.readline().startswith("added")
    library = Library.open(tmp_path / "db")
    for attempt in (lambda: run(library, files_of(tmp_path / "media")), library.prune):
        with pytest.raises(LockedError, match="another process writes"):
            attempt()
    assert library.counts()["files"] >= 3  # but it can be looked at
    first.kill()
    first.wait()
    run(library, files_of(tmp_path / "media"))
    assert rows(library) == expected(files_of(tmp_path / "media"))


def test_an_interrupt_keeps_what_was_embedded(tmp_path: Path) -> None:
    files = files_in(tmp_path / "media", 10)

    def stops(path: Path) -> Embedded:
        if path == files[7]:
            raise KeyboardInterrupt
        return embed(path)

    library = Library.create(tmp_path / "db")
    with pytest.raises(KeyboardInterrupt):
        run(library, files, stops)
    assert rows(library) == expected(files[:7])


def test_prune_takes_out_what_is_gone_and_nothing_else(tmp_path: Path) -> None:
    files = files_in(tmp_path / "media", 10)
    odd = write(tmp_path / "media" / "it's; DROP 'all' OR 1=1 --.wav", "odd")
    library = Library.create(tmp_path / "db")
    run(library, [*files, odd])
    files[2].unlink(), odd.unlink()
    gone = sorted([str(files[2]), str(odd)])
    assert library.prune(dry_run=True) == gone
    assert str(odd) in {row[0] for row in rows(library)}
    assert library.prune() == gone and library.prune() == []
    assert rows(library) == expected([path for path in files if path != files[2]])


ODD = ["it's", 'say "hi"', "100%_a*[b]", "ünïcödé 犬", "back\\slash\\n", "new\nline", "' OR '1'='1", "%41 #?"]


def test_search_is_exact_whatever_files_are_called(tmp_path: Path) -> None:
    files = [
        write(tmp_path / folder / f"{ODD[(n + i) % len(ODD)]} {n}.wav", f"{folder} {n}")
        for i, folder in enumerate(ODD)
        for n in range(8)
    ]
    library = Library.create(tmp_path / "odd 'db' %20 #1 é")
    assert run(library, files) == {"added": len(files)}
    for query in queries(4):
        for kind in ("audio", "video"):
            same(library.search(query, kind), brute(files, query, kind, 10))
            same(library.search(query, kind, 25, windows=True), brute(files, query, kind, 25, True))
            same(library.search(query, kind, 1000), brute(files, query, kind, 1000))
        for folder in ODD:
            inside = [path for path in files if path.parent.name == folder]
            truth = brute(inside, query, "audio", 10)
            same(library.search(query, filters=Filters(under=tmp_path / folder)), truth)
            same(library.search(query, filters=Filters(label=folder.upper())), truth)
            assert [hit.path for hit in library.search(filters=Filters(label=folder))] == sorted(
                map(str, inside)
            )
        for wanted, filters in (
            (lambda length: length > 20, Filters(longer_than=20)),
            (lambda length: length < 20, Filters(shorter_than=20.0)),
            (lambda length: 20 < length < 40, Filters(longer_than=20, shorter_than=40)),
        ):
            inside = [path for path in files if wanted(embed(path).ends[-1])]
            assert 0 < len(inside) < len(files)
            same(library.search(query, filters=filters), brute(inside, query, "audio", 10))
    assert (
        library.search(queries(1)[0], filters=Filters(under=tmp_path / "it")) == []
    )  # no folder, a beginning
    assert library.search(filters=Filters(label="it%")) == []
    assert {hit.label for hit in library.search(k=1000)} == set(ODD)
    with pytest.raises(LibraryError, match="UTF-8"):
        library.search(filters=Filters(label="\udcff"))
    for bad in (np.zeros(DIM), np.ones(DIM + 1), np.full(DIM, np.nan)):
        with pytest.raises(LibraryError, match="16 finite numbers"):
            library.search(bad.astype(np.float32))


def test_one_long_file_does_not_hide_the_others(tmp_path: Path) -> None:
    """Its 500 windows are all nearer than those of nine other files."""
    files = files_in(tmp_path / "media", 10)
    near = unit(np.eye(1, DIM, dtype=np.float32) + 0.01 * np.random.default_rng(0).normal(size=(500, DIM)))
    far = unit(np.roll(np.eye(1, DIM, dtype=np.float32), 1) + 0.1)

    def long(path: Path) -> Embedded:
        vectors = near if path == files[0] else far
        starts = np.arange(len(vectors), dtype=float)
        return Embedded(starts, starts + 1, vectors.astype(np.float32), None)

    library = Library.create(tmp_path / "db")
    run(library, files, long)
    query = np.eye(1, DIM, dtype=np.float32)[0]
    hits = library.search(query)
    assert len({hit.path for hit in hits}) == 10 and hits[0].path == str(files[0])
    assert (hits[0].start, hits[0].end) == (float(np.argmax(near[:, 0])), float(np.argmax(near[:, 0])) + 1)
    assert {hit.path for hit in library.search(query, windows=True)} == {str(files[0])}


def test_listing_by_label_says_what_files_have(tmp_path: Path) -> None:
    files = files_in(tmp_path / "media", 30)
    library = Library.create(tmp_path / "db")
    run(library, files)
    found = {hit.path: hit for hit in library.search(filters=Filters(label="CLASS 1"), k=99)}
    inside = [path for path in files if path.parent.name == "class 1"]
    assert list(found) == sorted(map(str, inside))
    for path in inside:
        e, hit = embed(path), found[str(path)]
        stream = (
            "both" if e.audio is not None and e.video is not None else "audio" if e.video is None else "video"
        )
        assert (hit.start, hit.end, hit.stream, hit.score) == (0, e.ends[-1], stream, None)
    sounds = library.search(kind="audio", filters=Filters(label="class 1"), k=99)
    assert {hit.path for hit in sounds} == {str(path) for path in inside if embed(path).audio is not None}
    windows = library.search(filters=Filters(label="class 1"), k=99, windows=True)
    assert len(windows) == sum(len(embed(path).starts) for path in inside)
    counts = library.counts()
    assert counts["labels"] == {"class 0": 10, "class 1": 10, "class 2": 10} and counts["files"] == 30
    assert counts["windows"] == len(rows(library))
    assert counts["audio"] == sum(row[6] is not None for row in rows(library))


def test_what_is_listed_or_counted_is_never_all_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = 20_000
    library = Library.create(tmp_path / "db")
    vectors = unit(np.ones((1, DIM), np.float32))
    one = Embedded(np.zeros(1), np.full(1, 10.0), vectors, vectors)
    some = [File(f"/media/{n % 7}/{n * 7919 % number:05d}.wav", n, n, one) for n in range(number)]
    library._write_meta(vab.library.library.Meta("model A", DIM))
    library.table.create(DIM)
    library.table.put(rows_of(some, DIM))
    names = sorted(file.path for file in some)
    new = write(tmp_path / "new.wav", "new")

    def listed() -> None:
        assert [hit.path for hit in library.search(k=10)] == names[:10]

    def counted() -> None:
        counts = library.counts()
        assert counts["files"] == number and counts["seconds"] == 10.0 * number
        assert counts["labels"] == {str(n): len(range(n, number, 7)) for n in range(7)}

    def added() -> None:
        assert run(library, [new]) == {"added": 1}

    def added_with_many() -> None:
        monkeypatch.setattr(vab.library.table, "MAX_PATHS", 0)  # so that no condition names it
        assert run(library, [new]) == {"unchanged": 1}

    for work in (listed, counted, added, added_with_many):
        tracemalloc.start()
        try:
            work()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4e6, (work.__name__, peak)  # all rows as Python objects would be more than 10 MB


def test_vectors_of_two_models_never_mix(tmp_path: Path) -> None:
    files, counted = files_in(tmp_path / "media", 4), Embedder()
    library = Library.create(tmp_path / "db")
    run(library, files[:2])
    for attempt in (lambda: run(library, files, counted, "model B"), lambda: library.check("model B")):
        with pytest.raises(LibraryError, match="another model"):
            attempt()
    assert counted.paths == [] and rows(library) == expected(files[:2])
    library.check("model A")
    assert Library.open(tmp_path / "db").meta == vab.library.library.Meta("model A", DIM)


CAFE = {form: unicodedata.normalize(form, "Café Noise") for form in ("NFC", "NFD")}


@pytest.mark.parametrize("written", [*CAFE, "0.1.0"])
def test_both_spellings_of_a_letter_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """Folders of a Mac have é as two letters; rows of 0.1.0 have it as the folder has."""
    if written == "0.1.0":
        monkeypatch.setattr(vab.library.table, "folded", str.casefold)
        monkeypatch.setattr(vab.library.table, "composed", str)
    name = CAFE.get(written, CAFE["NFD"])
    path = write(tmp_path / name / "a.wav", "content")
    other = write(tmp_path / "Cafe Noise" / "b.wav", "content")  # another word
    run(Library.create(tmp_path / "db", exact_below=1), [path, other])
    monkeypatch.undo()
    for asked in CAFE.values():
        for text in (asked, asked.upper(), asked.split()[0], asked.casefold().split()[0]):
            code, out, _ = call(capsys, "search", tmp_path / "db", "--label", text, "--json")
            hits = json.loads(out)["hits"]
            assert code == 0 and [(hit["path"], hit["label"]) for hit in hits] == [(str(path), CAFE["NFC"])]
        code, out, _ = call(
            capsys, "search", tmp_path / "db", "--label", "noise", "--under", tmp_path / asked, "--json"
        )
        assert code == 0 and [hit["path"] for hit in json.loads(out)["hits"]] == [str(path)]
    code, out, _ = call(capsys, "library", "show", tmp_path / "db", "--json")
    assert code == 0 and json.loads(out)["labels"] == {"Cafe Noise": 1, CAFE["NFC"]: 1}
    view = LibraryView(Library.open(tmp_path / "db"))
    labels = dict(view.contents()["labels"])
    assert CAFE["NFC"] in labels and CAFE["NFD"] not in labels
    path.unlink()
    assert Library.open(tmp_path / "db").prune() == [str(path)]


def test_a_label_that_mixes_spellings_is_found(tmp_path: Path) -> None:
    """Only new rows: those of 0.1.0 are found if their label is in one spelling."""
    name = CAFE["NFC"] + " " + CAFE["NFD"] + " α\u0345\u0301"  # the last with its marks in no order at all
    path = write(tmp_path / name / "a.wav", "content")
    library = Library.create(tmp_path / "db")
    run(library, [path])
    for asked in (name, *(unicodedata.normalize(form, name).upper() for form in CAFE)):
        (hit,) = library.search(filters=Filters(label=asked))
        assert (hit.path, hit.label) == (str(path), unicodedata.normalize("NFC", name))


LABELS = (
    "dog",
    "Dog barking",
    "big dog",
    "hotdog",
    "dog_bark",
    "dogs",
    "cat-dog",
    "it's",
    "%%",
    "100%",
    "犬 dog",
)


def test_files_are_found_by_words_as_people_type_them(tmp_path: Path) -> None:
    names = (
        "doors/DogBark_01",
        "doors/knock 2",
        "Dog barking/take_7",
        "hotdog/sizzle",
        "horses/hoof",
        "x/dog",
    )
    files = [write(tmp_path / "dog days" / f"{name}.wav", name) for name in names]
    library = Library.create(tmp_path / "db")
    run(library, files)

    def found(text: str, k: int = 99) -> list[str]:
        return [f"{Path(hit.path).parent.name}/{Path(hit.path).stem}" for hit in library.words(text, k=k)]

    # the label before the name; the folder above counts for nothing, a part of a word only from its beginning
    assert found("dogs") == ["Dog barking/take_7", "doors/DogBark_01", "x/dog"]
    assert (
        found("BARK dog") == ["doors/DogBark_01", "Dog barking/take_7"]
        and found("dog", 1) == found("dogs")[:1]
    )
    assert found("horse") == found("Horses hoof") == ["horses/hoof"]
    assert found("door knock") == ["doors/knock 2"] and found("bark 01") == ["doors/DogBark_01"]
    assert found("sizz") == ["hotdog/sizzle"] and found("days") == found("cat") == []
    sounds = {hit.path for hit in library.words("dog", "audio")}
    assert sounds == {hit.path for hit in library.words("dog") if hit.stream != "video"}
    with pytest.raises(LibraryError, match=r"no word in ' -!'"):
        library.words(" -!")


@pytest.mark.parametrize("exact_below", [1, 10_000])
def test_a_label_is_found_by_its_words(tmp_path: Path, exact_below: int) -> None:
    """The same with the indexes and without, for rows that they do not hold yet, and after changes."""
    files = [write(tmp_path / label / f"{n}.wav", f"{label} {n}") for label in LABELS for n in range(3)]
    library = Library.create(tmp_path / "db", exact_below)

    def found(text: str) -> set[str]:
        hits = library.search(filters=Filters(label=text), k=99)
        return {f"{hit.label} {Path(hit.path).stem}" for hit in hits}

    def named(*labels: str, numbers: str) -> set[str]:
        return {f"{label} {n}" for label in labels for n in numbers}

    for numbers in ("0", "01", "012"):
        for path in files[::3] if numbers == "01" else ():
            path.write_text(f"changed {path.parent.name}")
        run(library, [path for path in files if path.stem in numbers])
        dogs = ("dog", "Dog barking", "big dog", "dog_bark", "cat-dog", "犬 dog")
        assert found("DOG") == named(*dogs, numbers=numbers)
        assert found("dog bark") == found("ark") == found("") == found("it%") == found("barking dog") == set()
        assert found("big dog") == named("big dog", numbers=numbers)
        assert found("it's") == found("s") == named("it's", numbers=numbers)
        assert found("%%") == named("%%", numbers=numbers)
        assert found("%") == set() and found("100%") == named("100%", numbers=numbers)
        query = queries(1)[0]
        inside = [p for p in files if p.parent.name in dogs and p.stem in numbers]
        same(
            library.search(query, filters=Filters(label="dog"), exact=True), brute(inside, query, "audio", 10)
        )
        inside = [p for p in files if p.parent.name == "hotdog" and p.stem in numbers]
        under = Filters(under=tmp_path / "hotdog", longer_than=5)
        same(library.search(query, filters=under, exact=True), brute(inside, query, "audio", 10))
    wild = [write(tmp_path / name / "sound.wav", name) for name in ("a%b", "a_b", "axb", "axxb")]
    run(library, wild)
    library.table.optimize()  # into the indexes
    for path in wild:
        assert [hit.path for hit in library.search(filters=Filters(under=path.parent))] == [str(path)]
    filters = (
        Filters(label="dog"),
        Filters(label="é"),
        Filters(under=tmp_path / "é"),
        Filters(shorter_than=9),
    )
    for given in filters:
        plan = library.table._table.search().where(given.sql()).explain_plan()
        assert ("ScalarIndexQuery" in plan) == (exact_below == 1), plan


@pytest.mark.parametrize(
    "url", ["s3://bucket/lib", "gs://bucket/lib", "db://lib", "file:///tmp/lib", "memory://"]
)
def test_an_address_is_no_folder(
    tmp_path: Path,
    pipe: type[Pipe],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "media" / "a.wav", "content")
    for work in (Library.create, Library.open):
        for given in (url, Path(url)):
            with pytest.raises(LibraryError, match=f"{url.split(':')[0]}://.* is a URL; .*on this machine"):
                work(given)
    for words in (
        ("library", "add", url, "media"),
        ("library", "show", url),
        ("search", url, "--label", "a"),
    ):
        code, out, err = call(capsys, *words)
        assert code == 2 and out == "" and "is a URL" in err and len(err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["media"]


def test_folders_that_are_no_library(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(LibraryError, match="no library; make one"):
            Library.open(folder)
    write(tmp_path / "media" / "a.wav", "a")
    with pytest.raises(LibraryError, match="other things"):
        Library.create(tmp_path / "media")
    library = Library.create(tmp_path / "db")
    assert library.search(queries(1)[0]) == [] and library.prune() == [] and library.counts()["files"] == 0
    run(library, [tmp_path / "media" / "a.wav"])
    for damage, says in (("{", "damaged"), ('{"format": 99}', "another version"), ("[]", "damaged")):
        (tmp_path / "db" / "library.json").write_text(damage)
        with pytest.raises(LibraryError, match=says):
            Library.open(tmp_path / "db")


def many(folder: Path, number: int) -> list[Path]:
    return [write(folder / f"{n % 7}" / f"{n:05d}.wav", f"{folder.name} {n}") for n in range(number)]


def test_an_index_above_the_limit_and_its_recall(tmp_path: Path) -> None:
    files = many(tmp_path / "media", 500)
    truth = expected(files)
    vectors = {
        "audio": sum(row[6] is not None for row in truth),
        "video": sum(row[7] is not None for row in truth),
    }
    assert max(vectors.values()) > 1000
    library = Library.create(tmp_path / "db", exact_below=800)
    run(library, files[:100])
    assert library.meta is not None and library.meta.indexes == {}  # exact, below the limit
    run(library, files)
    assert library.meta.indexes.keys() == {"audio", "video"}
    for kind, index in library.meta.indexes.items():
        assert index.vectors == vectors[kind] and 0.98 <= index.recall <= 1
        assert 8 <= index.probes <= index.parts == round(vectors[kind] ** 0.5)
        assert library.table.not_indexed(kind) == 0  # type: ignore[arg-type]
    assert Library.open(tmp_path / "db").meta == library.meta

    found = [(library.search(q, "audio"), brute(files, q, "audio", 10)) for q in queries(20)]
    hits = [len({h.path for h in some} & {path for path, *_ in truth}) for some, truth in found]
    assert np.mean(hits) > 9
    for query in queries(3):  # asked for, or with few candidates, it is exact still
        same(library.search(query, exact=True), brute(files, query, "audio", 10))
        inside = [path for path in files if path.parent.name == "3"]
        same(library.search(query, filters=Filters(label="3")), brute(inside, query, "audio", 10))
        same(library.search(query, k=1000), brute(files, query, "audio", 1000))  # all there are

    before = library.meta.indexes["audio"]
    more = many(tmp_path / "more", 60)
    run(library, more)  # a few more: the index learns them, or they are compared one by one
    assert (library.table.not_indexed("audio") or 0) <= 80 + 8
    e = next(embed(path) for path in more if embed(path).audio is not None)
    assert e.audio is not None
    assert library.search(e.audio[-1])[0].score == pytest.approx(1, abs=1e-5)
    assert library.meta.indexes["audio"].vectors == before.vectors
    run(library, many(tmp_path / "much more", 600))  # twice as many: new parts
    assert library.meta.indexes["audio"].vectors > 2 * before.vectors


# The command line


class Pipe:
    """What the command line needs of a model."""

    loads: list[Any] = []  # noqa: RUF012
    model = "fake " * 8

    def embed_file(self, path: Path) -> Embedded:
        """As ``Embedder.embed_file``."""
        return embed(path)

    def embed_files(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Embedded | str]]:
        """As ``Embedder.embed_files``."""
        return each()(paths)

    def fingerprint(self) -> str:
        """As ``Embedder.fingerprint``."""
        return self.model

    @classmethod
    def from_pretrained(cls, source: Any = None, **settings: Any) -> Pipe:
        """As ``Embedder.from_pretrained``."""
        cls.loads.append(source)
        return cls()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> type[Pipe]:
    import vab.inference.embedder

    monkeypatch.setattr(vab.inference.embedder, "Embedder", Pipe)
    monkeypatch.setattr(Pipe, "loads", [])
    return Pipe


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, out, err


def test_command_line(
    tmp_path: Path,
    pipe: type[Pipe],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = files_in(tmp_path / "media", 12)
    write(tmp_path / "media" / "notes.txt", "not media")
    code, out, err = call(capsys, "index", "add", "media/db", "media", "--json")
    document = json.loads(out)
    assert (code, document["added"], document["failed"], document["files"]) == (0, 12, 0, 12)
    assert document["model"] == Pipe.model and document["dim"] == DIM

    odd = Path(os.fsdecode(b"media/\xff.wav"))
    odd.write_text("x")
    write(tmp_path / "media" / "bad.mp4", "broken")
    code, out, err = call(capsys, "index", "add", "media/db", "media", "media/none.wav")
    assert code == 1 and "12 unchanged, 3 failed" in out and len(err.splitlines()) == 3
    assert "bad.mp4: is not media" in err and "not UTF-8" in err and "none.wav: No such file" in err
    code, out, _ = call(capsys, "index", "add", "media/db", "media", "--json")
    assert code == 1 and json.loads(out)["failed"] == 2 and len(json.loads(out)["failed_files"]) == 2

    query = next(path for path in files if embed(path).audio is not None and embed(path).video is not None)
    for kind in ("video", "audio"):
        vector = embed(query).mean(kind)  # type: ignore[arg-type]
        assert vector is not None
        code, out, _ = call(capsys, "search", "media/db", f"--{kind}", query, "-k", 3, "--json")
        hits = json.loads(out)["hits"]
        assert code == 0 and json.loads(out)["query"]["kind"] == "audio"  # sounds, unless told otherwise
        same([Hit(**hit) for hit in hits], brute(files, vector, "audio", 3))
        narrow = ["--kind", "video", "--under", "media/class 1", "--longer-than", 10, "--windows"]
        code, out, _ = call(capsys, "search", "media/db", f"--{kind}", query, *narrow, "--json")
        inside = [p for p in files if p.parent.name == "class 1" and embed(p).ends[-1] > 10]
        same([Hit(**hit) for hit in json.loads(out)["hits"]], brute(inside, vector, "video", 10, True))
    code, out, _ = call(capsys, "search", "media/db", "--label", "CLASS 2")
    inside = [str(path) for path in files if path.parent.name == "class 2"]
    assert code == 0 and [line[line.index("/") :] for line in out.splitlines()[1:]] == inside
    code, out, _ = call(capsys, "search", "media/db", "--audio", query)
    assert code == 0 and out.splitlines()[0].split() == ["score", "seconds", "stream", "label", "file"]
    assert len(out.splitlines()) == 1 + len(brute(files, queries(1)[0], "audio", 10))
    code, out, _ = call(capsys, "search", "media/db", "--words", "class 2", "--label", "CLASS 2", "--json")
    assert code == 0 and sorted(hit["path"] for hit in json.loads(out)["hits"]) == inside
    code, _, err = call(capsys, "search", "media/db", "--words", "class", "--audio", query)
    assert code == 2 and "--words searches by itself" in err
    assert call(capsys, "search", "media/db", "--label", "nothing") == (0, "media/db: nothing found\n", "")

    code, out, _ = call(capsys, "index", "show", "media/db")
    assert code == 0 and "12 files" in out and "class 2  4" in out and "bundled model" in out
    files[0].unlink()
    code, out, _ = call(capsys, "index", "prune", "media/db", "--dry-run", "--json")
    assert json.loads(out)["gone"] == [str(files[0])] and json.loads(out)["files"] == 12
    code, out, _ = call(capsys, "index", "prune", "media/db")
    assert code == 0 and "1 file taken out" in out and "11 files" in out
    assert set(pipe.loads) == {None}


def test_the_library_knows_its_model(
    tmp_path: Path, pipe: type[Pipe], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(path for path in files_in(tmp_path / "media") if embed(path).audio is not None)
    assert call(capsys, "index", "add", tmp_path / "db", path, "--model", "some/model")[0] == 0
    assert call(capsys, "index", "add", tmp_path / "db", path)[0] == 0
    assert call(capsys, "search", tmp_path / "db", "--audio", path)[0] == 0
    assert pipe.loads == ["some/model"] * 3
    monkeypatch.setattr(Pipe, "model", "another")
    for words in (("index", "add", tmp_path / "db", path), ("search", tmp_path / "db", "--audio", path)):
        code, _, err = call(capsys, *words)
        assert code == 2 and "another model, some/model" in err and len(err.splitlines()) == 1


def test_a_library_of_tf32_is_searched_anywhere_and_added_to_on_its_kind_of_gpu(
    tmp_path: Path, pipe: type[Pipe], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next(path for path in files_in(tmp_path / "media") if embed(path).audio is not None)
    list(Library.create(tmp_path / "db").add([path], each(), Pipe.model, precision="tf32"))
    chosen: list[Any] = []
    monkeypatch.setattr(
        Pipe, "from_pretrained", lambda *_, dtype=None, **__: chosen.append(dtype.precision) or Pipe()
    )
    code, out, err = call(capsys, "search", tmp_path / "db", "--audio", path, "--device", "cpu")
    assert code == 0 and str(path) in out and chosen == ["float32"]
    assert "made in tf32" in err and "the query is in float32" in err and len(err.splitlines()) == 1
    code, _, err = call(capsys, "index", "add", tmp_path / "db", path, "--device", "cpu")
    assert code == 2 and "made in tf32" in err and "use another folder" in err
    assert len(err.splitlines()) == 1 and chosen == ["float32"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("search DB", "--video, --audio, --label"),
        ("search DB --video a --audio b", "not both"),
        ("search DB --label a -k 0", "-k must be 1"),
        ("search DB --label a --longer-than nan", "longer-than"),
        ("search DB --label a --shorter-than -1", "shorter-than"),
        ("search DB --label a --kind smell", "kind"),
        ("search NONE --label a", "no library; make one"),
        ("search DB --audio NONE", "NONE"),
        ("search DB --video BLIND --kind audio", "no picture"),
        ("search DB --label \udcff", "UTF-8"),
        ("index show NONE", "no library"),
        ("index prune MEDIA", "no library"),
        ("index add MEDIA DB", "has no media"),
        ("index add MEDIA BLIND", "other things"),
        ("index add BLIND MEDIA", "BLIND"),
        ("index", "add, prune, show"),
        ("index add DB", "no input"),
    ],
)
def test_bad_calls_get_one_line(
    tmp_path: Path,
    pipe: type[Pipe],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    blind = next(path for path in files_in(tmp_path / "MEDIA") if embed(path).video is None)
    blind.rename(tmp_path / "BLIND")
    run(Library.create(tmp_path / "DB"), [tmp_path / "BLIND"], model=Pipe.model)
    code, out, err = call(capsys, *words.split())
    assert code == 2 and says in err
    if "kind" not in says:
        assert len(err.strip().splitlines()) == 1 and out == ""


def test_without_lancedb_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(LibraryError, match=r"pip install 'vab\[search\]'"):
        Library.create(tmp_path / "db")


def test_folders_hold_the_kinds_that_are_asked_for(tmp_path: Path) -> None:
    for name in ("a.WAV", "b.mp4", "c.png", "d.txt", ".hidden.wav", "e.ogg"):
        write(tmp_path / name, name)
    names = [path.name for path in expand([tmp_path]).paths]
    assert names == ["b.mp4", "c.png"]
    names = [path.name for path in expand([tmp_path], kinds=AUDIO + VIDEOS + IMAGES).paths]
    assert names == ["a.WAV", "b.mp4", "c.png", "e.ogg"]
