"""The human study: what is built, who is asked what, what the page gives away, what the answers say."""

from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.disk import files_of_at_most
from helpers.studies import screenshots, write_result, write_systems
from helpers.tiny import picture_packets, write_video
from vab.cli import main
from vab.evaluate.metrics.statistics import EvaluationError
from vab.listening.agreement import as_matrix, krippendorff_alpha
from vab.listening.answers import LEASE_SECONDS, QUESTIONS, Answer, Answers, Refused, UnknownRater
from vab.listening.clips import check_video
from vab.listening.export import export, export_answers, table
from vab.listening.figure import COLOURS, plot
from vab.listening.results import results
from vab.listening.study import BEEPS, CHECK_EVERY, MEDIA, Study, Survey, Trial, build_study, open_study
from vab.media.container import MediaError
from vab.media.reader import read_audio

SYSTEMS = ("ours", "theirs", "others")
CLIPS = ("bell_rings", "dog_barks", "rain_falls")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_systems(tmp_path_factory.mktemp("systems"), SYSTEMS, CLIPS)


@pytest.fixture(scope="module")
def built(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return build_study(folders, tmp_path_factory.mktemp("studies") / "study", seed=1)


def plan(
    folder: Path,
    clips: int = 4,
    raters: int = 3,
    per_person: int | None = None,
    systems: tuple[str, ...] = ("a", "b"),
) -> Study:
    """A study without its videos: all that asking and counting need."""
    asked: list[tuple[Survey, tuple[str, ...]]] = [("preference", (systems[0], s)) for s in systems[1:]]
    asked += [("mos", (system,)) for system in systems]
    trials = [Trial(f"{n} {kind} {of}", kind, f"c{n}", of, of) for n in range(clips) for kind, of in asked]
    checks: list[tuple[Survey, tuple[str, ...]]] = [("preference", (systems[0], BEEPS)), ("mos", (BEEPS,))]
    for kind, of in checks:
        needed = sum(trial.survey == kind for trial in trials) // CHECK_EVERY + 1
        trials += [Trial(f"check {n} {kind}", kind, f"c{n}", of, of) for n in range(needed)]
    return Study(folder, 0, raters, per_person, systems, tuple(f"c{n}" for n in range(clips)), tuple(trials))


def grades(trial: Trial, grade: int = 3) -> dict[str, int]:
    return dict.fromkeys(QUESTIONS[trial.survey], grade)


def listened(study: Study, rater: str, trial: Trial, grade: int = 3) -> dict[str, int]:
    """What somebody says who hears the beeps of a check."""
    if trial.check:
        grade = 5 if trial.survey == "preference" and study.swapped(rater, trial.id) else 1
    return grades(trial, grade)


def vab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, out, err


# What is built


def test_a_study_asks_what_the_paper_asks(built: Study, folders: list[Path]) -> None:
    assert open_study(built.folder) == built
    pairs = {(trial.clip, trial.systems) for trial in built.of("preference")}
    assert pairs == {(clip, ("ours", other)) for clip in CLIPS for other in SYSTEMS[1:]}
    assert {(t.clip, t.systems) for t in built.of("mos")} == {(c, (s,)) for c in CLIPS for s in SYSTEMS}
    assert len({trial.id for trial in built.trials}) == len(built.trials)
    sources = {folder.name: folder for folder in folders}
    for trial in built.trials:
        for system, file in zip(trial.systems, trial.files, strict=True):
            copy = built.folder / MEDIA / file
            source = sources[system or "ours"] / f"{trial.clip}.mp4"
            assert list(picture_packets(copy)) == list(picture_packets(source))
            same = np.array_equal(read_audio(copy), read_audio(source))
            assert same == (system != BEEPS)


def test_names_are_nowhere_but_in_the_study_itself(built: Study) -> None:
    words = [*SYSTEMS, *CLIPS]
    for path in (built.folder / MEDIA).iterdir():
        assert not [word for word in words if word in path.name or word.encode() in path.read_bytes()]
    assert not [trial.id for trial in built.trials if any(word in trial.id for word in words)]


def test_tags_are_left_behind(tmp_path: Path) -> None:
    import av

    for system in ("one", "two"):
        plain = write_result(tmp_path / "plain.mp4")
        (tmp_path / system).mkdir()
        with av.open(str(plain)) as source, av.open(str(tmp_path / system / "a.mp4"), "w") as target:
            target.metadata.update({"title": f"made by {system}", "comment": "secret"})
            copies = {s.index: target.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    target.mux(packet)
        assert b"secret" in (tmp_path / system / "a.mp4").read_bytes()
    study = build_study([tmp_path / "one", tmp_path / "two"], tmp_path / "study")
    for path in (study.folder / MEDIA).iterdir():
        assert b"secret" not in path.read_bytes() and b"made by" not in path.read_bytes()


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ({"colours": "yuv444p"}, "h264, High 4:4:4 Predictive, yuv444p"),
        ({"colours": "yuv420p10le"}, "h264, High 10, yuv420p10le"),
        ({"qp": "0"}, "h264, High 4:4:4 Predictive, yuv420p"),
        ({"codec": "libsvtav1", "preset": "12"}, "av1, Main, yuv420p"),
        ({"codec": "libvpx-vp9", "deadline": "realtime"}, None),
        ({"colours": "yuvj420p"}, None),
    ],
)
def test_only_what_all_browsers_play_is_shown(
    tmp_path: Path, encoding: dict[str, str], found: str | None
) -> None:
    path = write_result(tmp_path / "a.mp4", **encoding)  # type: ignore[arg-type]
    if found is None:
        check_video(path)
    else:
        with pytest.raises(MediaError, match=f"a.mp4: its picture is {found}, which not all browsers"):
            check_video(path)


def test_a_seed_draws_the_same_clips_everywhere(folders: list[Path], tmp_path: Path) -> None:
    one = build_study(folders[:2], tmp_path / "one", clips=2, seed=7, surveys=("mos",))
    two = build_study(folders[:2], tmp_path / "two", clips=2, seed=7, surveys=("mos",))
    assert one.trials == two.trials and len(one.clips) == 2 and not one.of("preference")


def _break(folders: list[Path], how: str, root: Path) -> None:
    first = folders[0] / "dog.mp4"
    if how == "missing":
        first.unlink()
    elif how == "text":
        first.write_text("no video at all")
    elif how == "silent film":
        write_video(first, 10, 10, sound=False)
    elif how == "old codec":
        write_video(first, 10, 10)
    elif how == "sound only":
        first.rename(first.with_suffix(".wav"))
    elif how == "twice":
        (folders[0] / "more").mkdir()
        write_result(folders[0] / "more" / "dog.mp4")
    elif how == "empty":
        for folder in folders:
            for path in folder.iterdir():
                path.unlink()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "one/dog.mp4: is missing"),
        ("text", "one/dog.mp4: not a"),
        ("silent film", "one/dog.mp4: has no sound"),
        ("old codec", "one/dog.mp4: its picture is mpeg4"),
        ("sound only", "one/dog.wav: has no picture"),
        ("twice", "more/dog.mp4: has the name of"),
        ("empty", "no videos in them"),
    ],
)
def test_what_cannot_be_shown_is_named_and_nothing_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, said: str
) -> None:
    folders = write_systems(tmp_path, ("one", "two"), ("cat", "dog"))
    _break(folders, how, tmp_path)
    code, _, err = vab(capsys, "evaluate", "listening", "build", *folders, "-o", tmp_path / "study")
    assert code == 2 and said in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one"], "two systems or more"),
        (["one", "one"], "called one"),
        (["one", "nowhere"], "nowhere: no such folder"),
        (["one", "two", "--clips", "9"], "9 clips are wanted, the folders have 1"),
        (["one", "two", "--raters", "0"], "raters must be 1 or more"),
    ],
)
def test_a_call_that_makes_no_sense_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    write_systems(tmp_path, ("one", "two"), ("cat",))
    places = [tmp_path / word if word in ("one", "two", "nowhere") else word for word in words]
    code, _, err = vab(capsys, "evaluate", "listening", "build", *places, "-o", tmp_path / "study")
    assert code == 2 and said in err and not (tmp_path / "study").exists()


def test_a_study_is_never_built_over_another(
    built: Study, folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = vab(capsys, "evaluate", "listening", "build", *folders, "-o", built.folder)
    assert code == 2 and "exists, and may hold answers" in err and open_study(built.folder) == built


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 0}', '{"format": 1, "trials": [{}]}'])
def test_a_damaged_study_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(EvaluationError, match=r"study\.json: "):
        open_study(tmp_path)


# Who is asked what


@settings(max_examples=15)
@given(st.data())
def test_no_order_of_events_makes_one_answer_too_many(data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        study = plan(Path(folder), clips=data.draw(st.integers(1, 2)), raters=data.draw(st.integers(1, 2)))
        now = [0.0]
        answers = Answers(study, lambda: now[0])
        people = answers.invite(study.raters + 1)
        held: dict[str, str] = {}
        kept: dict[tuple[str, str], int] = {}
        for _ in range(data.draw(st.integers(0, 25))):
            rater = data.draw(st.sampled_from(people))
            act = data.draw(st.sampled_from(["ask", "answer", "answer", "leave"]))
            if act == "leave":
                now[0] += data.draw(st.sampled_from([1.0, LEASE_SECONDS + 1]))
            elif act == "ask":
                found = answers.next(rater)
                if found.trial is not None:
                    held[rater] = found.trial.id
            elif rater in held:
                trial = answers.trials[held[rater]]
                grade = data.draw(st.integers(1, 5))
                try:
                    answers.answer(rater, trial.id, listened(study, rater, trial, grade))
                except Refused:
                    assert (rater, trial.id) not in kept
                else:
                    said_first = next(iter(listened(study, rater, trial, grade).values()))
                    kept.setdefault((rater, trial.id), said_first)
        now[0] += LEASE_SECONDS + 1
        for rater in people:  # everybody goes on to the end
            while (found := answers.next(rater)).trial is not None:
                answers.answer(rater, found.trial.id, listened(study, rater, found.trial))
                kept[rater, found.trial.id] = next(iter(listened(study, rater, found.trial).values()))
            assert found.state == "done" and found.done == found.total
        said = {(each.rater, each.trial): next(iter(each.grades.values())) for each in answers.all()}
        assert said == kept
        count = Counter(trial for _, trial in kept if not answers.trials[trial].check)
        assert count == {trial.id: study.raters for trial in study.trials if not trial.check}


def test_raters_at_the_same_moment(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=5, raters=2)
    people = Answers(study).invite(5)
    gate = threading.Barrier(len(people))

    def take_part(rater: str) -> None:
        answers = Answers(study)
        gate.wait()
        while (found := answers.next(rater)).trial is not None:
            answers.answer(rater, found.trial.id, listened(study, rater, found.trial))

    threads = [threading.Thread(target=take_part, args=(rater,)) for rater in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = Answers(study)
    for rater in people:  # what was with others when somebody looked last
        take = answers.next(rater)
        assert take.state == "done", take
    count = Counter(each.trial for each in answers.all() if not answers.trials[each.trial].check)
    assert count == {trial.id: 2 for trial in study.trials if not trial.check}


def test_coverage_is_balanced_and_surveys_come_one_after_another(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=6, raters=3)
    answers = Answers(study)
    people = answers.invite(3)
    seen: dict[str, list[Trial]] = {rater: [] for rater in people}
    for turn in range(9):
        rater = people[turn % 3]
        found = answers.next(rater).trial
        assert found is not None and answers.next(rater).trial == found  # the same until it is answered
        answers.answer(rater, found.id, grades(found))
        seen[rater].append(found)
        count = Counter(each.trial for each in answers.all())
        real = [count[trial.id] for trial in study.of("preference")]
        assert max(real) - min(real) <= 1
    orders = {tuple(trial.id for trial in trials) for trials in seen.values()}
    assert len(orders) == 3, "everybody has the same order"
    assert {trial.survey for trials in seen.values() for trial in trials} == {"preference"}


def test_checks_come_about_every_ten_trials_and_progress_ends_at_its_end(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=30, raters=1)
    answers = Answers(study)
    (rater,) = answers.invite(1)
    totals, kinds = set(), []
    while (found := answers.next(rater)).trial is not None:
        totals.add(found.total)
        kinds.append(found.trial.check)
        assert found.done == len(kinds) - 1
        answers.answer(rater, found.trial.id, grades(found.trial))
    assert totals == {len(kinds)}, "the end moved"
    checks = [n for n, check in enumerate(kinds) if check]
    assert len(checks) == 9  # of 30 and 60 trials
    gaps = np.diff(checks)
    assert gaps.max() <= 2 * CHECK_EVERY and len(set(gaps)) > 2, "one can tell when a check comes"


def test_who_fails_the_checks_takes_nobodys_place(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=6, raters=2)
    answers = Answers(study)
    deaf, *others = answers.invite(3)
    for rater in (deaf, *others):
        while (found := answers.next(rater)).trial is not None:
            said = grades(found.trial) if rater == deaf else listened(study, rater, found.trial)
            answers.answer(rater, found.trial.id, said)
        assert found.state == "done"
    found_out = results(study, answers.all())
    assert found_out.complete == found_out.trials
    assert [rater.trusted for rater in found_out.raters if rater.id == deaf] == [False]


@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_a_short_part_has_a_check_too(tmp_path: Path, most: int) -> None:
    study = plan(tmp_path, clips=20, per_person=most)
    answers = Answers(study)
    for rater in answers.invite(8):
        kinds = []
        while (found := answers.next(rater)).trial is not None:
            kinds.append(found.trial.check)
            answers.answer(rater, found.trial.id, listened(study, rater, found.trial))
        assert sum(kinds) >= 1 and kinds.count(False) == most
        assert found.done == found.total


def test_nobody_is_asked_for_more_than_agreed(tmp_path: Path) -> None:
    answers = Answers(plan(tmp_path, clips=10, per_person=4))
    rater, _ = answers.invite(2)
    asked = 0
    while (found := answers.next(rater)).trial is not None:
        assert found.total >= 4
        asked += not found.trial.check
        answers.answer(rater, found.trial.id, grades(found.trial))
    assert asked == 4 and found.state == "done"


def test_the_last_one_waits_for_whoever_has_it(tmp_path: Path) -> None:
    now = [0.0]
    answers = Answers(plan(tmp_path, clips=1, raters=1), lambda: now[0])
    one, two = answers.invite(2)
    while (held := answers.next(one).trial) is not None and held.check:
        answers.answer(one, held.id, listened(answers.study, one, held))
    assert held is not None
    while (found := answers.next(two)).trial is not None:
        answers.answer(two, found.trial.id, listened(answers.study, two, found.trial))
    assert found.state == "wait"
    now[0] += LEASE_SECONDS + 1
    assert answers.next(two).trial == held
    answers.answer(two, held.id, grades(held, 5))
    with pytest.raises(Refused, match="others have answered"):
        answers.answer(one, held.id, grades(held, 1))
    while (found := answers.next(one)).trial is not None:
        assert found.trial.check
        answers.answer(one, found.trial.id, listened(answers.study, one, found.trial))
    assert found.state == "done"
    assert [each.grades for each in answers.all() if each.trial == held.id] == [grades(held, 5)]


def test_answers_that_nobody_asked_for(tmp_path: Path) -> None:
    answers = Answers(plan(tmp_path))
    (rater,) = answers.invite(1)
    trial = answers.next(rater).trial
    assert trial is not None
    other = next(t for t in answers.study.of("preference") if t.id != trial.id)
    bad: list[Any] = [{}, {"quality": 3}, grades(trial, 6), grades(trial, 0), grades(trial) | {"score": 1}]
    bad += [dict.fromkeys(grades(trial), wrong) for wrong in (True, 2.0, "3", None)]
    for answer in bad:
        with pytest.raises(Refused, match="five answers"):
            answers.answer(rater, trial.id, answer)
    for name in (other.id, "nothing"):
        with pytest.raises(Refused):
            answers.answer(rater, name, grades(other))
    for stranger in ("", "x' OR 1=1 --", rater + " "):
        with pytest.raises(UnknownRater):
            answers.next(stranger)
        with pytest.raises(UnknownRater):
            answers.answer(stranger, trial.id, grades(trial))
    assert answers.all() == []
    answers.answer(rater, trial.id, grades(trial, 2))
    answers.answer(rater, trial.id, grades(trial, 4))  # the page asked again: the first one stays
    assert [each.grades for each in answers.all()] == [grades(trial, 2)]


def test_links_stay_and_more_can_be_added(tmp_path: Path) -> None:
    answers = Answers(plan(tmp_path))
    few = answers.invite(2)
    assert answers.invite(1) == few and answers.invite(5)[:2] == few
    assert len(set(answers.invite(5))) == 5 and all(len(rater) >= 12 for rater in few)


def test_sides_are_drawn_evenly_and_stay(tmp_path: Path) -> None:
    study = plan(tmp_path)
    sides = [study.swapped(f"rater {n % 20}", f"trial {n // 20}") for n in range(1000)]
    assert 420 < sum(sides) < 580  # five deviations
    assert sides == [study.swapped(f"rater {n % 20}", f"trial {n // 20}") for n in range(1000)]


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_text("this is no database, and long enough to be looked at" * 20)
    with pytest.raises(EvaluationError, match=r"answers\.sqlite: cannot be used"):
        Answers(plan(tmp_path))


# What the page gives away


@pytest.fixture
def client(built: Study) -> Iterator[tuple[Any, Answers]]:
    testclient = pytest.importorskip(
        "starlette.testclient", reason="no web server: pip install 'vab[studio]'"
    )
    from vab.listening.server import make_app

    answers = Answers(built)
    with testclient.TestClient(make_app(built, answers), base_url="http://localhost") as client:
        yield client, answers


def test_a_rater_gets_own_videos_and_nothing_else(client: tuple[Any, Answers], built: Study) -> None:
    web, answers = client
    one, two = answers.invite(2)[:2]
    found = web.post(f"/{one}/next").json()
    assert found["state"] == "trial" and found["survey"] == "preference"
    shown = [web.get(f"/{url}") for url in found["videos"]]
    trial = answers.trials[found["trial"]]
    files = [(built.folder / MEDIA / file).read_bytes() for file in trial.files]
    assert [reply.content for reply in shown] == (files[::-1] if built.swapped(one, trial.id) else files)
    assert {reply.headers["content-type"] for reply in shown} == {"video/mp4"}
    part = web.get(f"/{found['videos'][0]}", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == shown[0].content[10:20]
    name = found["trial"]
    others = [t.id for t in built.trials if t.id not in (name, (web.post(f"/{two}/next").json())["trial"])]
    for path in (
        f"/{two}x/{name}/1.mp4",
        f"/{one}/{others[0]}/1.mp4",
        f"/{one}/{name}/0.mp4",
        f"/{one}/{name}/3.mp4",
        f"/media/{trial.files[0]}",
        "/study.json",
        "/answers.sqlite",
        f"/{one}/..%2fstudy.json",
        "/server.py",
        "/",
        f"/{one}x",
    ):
        reply = web.get(path)
        assert reply.status_code == 404, path
        assert not [word for word in SYSTEMS + CLIPS if f'"{word}"' in reply.text]


def test_the_page_is_closed_to_all_that_is_not_its_own(client: tuple[Any, Answers]) -> None:
    web, answers = client
    rater = answers.invite(1)[0]
    replies = [web.get(path) for path in (f"/{rater}", "/page.js", "/page.css")] + [
        web.post(f"/{rater}/next")
    ]
    for reply in replies:
        assert reply.status_code == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert "http://" not in reply.text and "https://" not in reply.text


def test_broken_answers_are_refused(client: tuple[Any, Answers]) -> None:
    web, answers = client
    rater = answers.invite(1)[0]
    trial = web.post(f"/{rater}/next").json()["trial"]
    before = answers.all()
    for body, status in (
        (b"{", 400),
        (b"[1]", 400),
        (b"\xff", 400),
        (b"{}", 409),
        (b'{"quality": NaN}', 400),
        (b'{"quality": ' + b"9" * 3000 + b"}", 400),
        (b"[" * 4000, 400),
        (b" " * 5000, 413),
    ):
        reply = web.post(f"/{rater}/{trial}/answer", content=body)
        assert reply.status_code == status and reply.json()["error"].endswith(".")
    for place in ("9" * 4000, "0", "3", "x"):
        assert web.get(f"/{rater}/{trial}/{place}.mp4").status_code == 404
    with files_of_at_most(100):
        reply = web.post(f"/{rater}/{trial}/answer", json=grades(answers.trials[trial]))
    assert reply.status_code == 503 and reply.json()["error"].startswith(
        "The answer cannot be kept just now ("
    )
    assert web.post(f"/nobody/{trial}/answer", json={"quality": 1, "relevance": 1}).status_code == 404
    assert answers.all() == before


def test_a_port_that_is_taken_is_told(built: Study, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    pytest.importorskip("starlette", reason="no web server: pip install 'vab[studio]'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = vab(capsys, "evaluate", "listening", "serve", built.folder, "--port", port)
    assert code == 2 and f"cannot listen on 127.0.0.1, port {port}" in err


# What the answers say


def test_alpha_is_krippendorffs() -> None:
    # his own example: four observers, twelve units, alpha = 0.815 for ordinal data
    gap = math.nan
    example = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, gap, gap, gap],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, gap, 3],
            [gap, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, gap],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, gap],
        ]
    )
    assert krippendorff_alpha(example) == pytest.approx(0.815, abs=5e-4)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_alpha_of_two_raters_and_two_grades_has_a_closed_form(units: list[tuple[bool, bool]]) -> None:
    grades = np.array(units, dtype=float).T
    ones, n = grades.sum(), grades.size
    alpha = krippendorff_alpha(grades)
    if ones in (0, n):
        assert math.isnan(alpha)
    else:  # 1 - (n - 1) * o01 / (n0 * n1), o01: units where they differ
        differ = (grades[0] != grades[1]).sum()
        assert alpha == pytest.approx(1 - (n - 1) * differ / (ones * (n - ones)))


GRADES = st.lists(st.lists(st.sampled_from([1, 2, 3, 4, 5, None]), min_size=3, max_size=3), min_size=1)


@given(GRADES, st.permutations([0, 1, 2]))
def test_alpha_knows_neither_names_nor_distances(units: list[list[int | None]], order: list[int]) -> None:
    grades = np.array(units, dtype=float).T
    alpha = krippendorff_alpha(grades)
    assert krippendorff_alpha(grades[order]) == pytest.approx(alpha, nan_ok=True)
    assert krippendorff_alpha(np.exp(grades)) == pytest.approx(alpha, nan_ok=True)
    assert math.isnan(alpha) or alpha <= 1 + 1e-12


def test_a_matrix_has_gaps_where_nobody_graded() -> None:
    found = as_matrix([("b", "v", 2.0), ("a", "u", 1.0)])
    np.testing.assert_array_equal(found, [[1.0, math.nan], [math.nan, 2.0]])


def people_who(study: Study, judge: Callable[[str, Trial, str], int]) -> list[Answer]:
    """Three raters' answers to all trials; ``judge`` grades from the first system's side."""
    found = []
    for rater in ("anna", "ben", "cleo"):
        for n, trial in enumerate(study.trials):
            swapped = study.swapped(rater, trial.id)
            given = {}
            for question in QUESTIONS[trial.survey]:
                grade = judge(rater, trial, question)
                given[question] = 6 - grade if swapped and question != "score" else grade
            found.append(Answer(rater, trial.id, swapped, given, float(n), n + 5.0))
    return found


def honest(rater: str, trial: Trial, question: str) -> int:
    """Prefers the first system strongly, knows beeps, scores systems 4 and 2."""
    if trial.survey == "preference":
        return 1
    return {"a": 4, "b": 2, BEEPS: 1}.get(trial.systems[0], 3)


def test_whoever_stood_where_the_first_one_wins(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=8)
    answers = people_who(study, honest)
    assert {each.swapped for each in answers} == {True, False}
    found = results(study, answers)
    assert found.complete == found.trials == 24 and found.answers == 72
    for each in found.preferences:
        assert each.counts == (24, 0, 0, 0, 0) and each.clips == 8
        assert (each.wins.value, each.losses.value, each.lead.low) == (1, 0, 1)
    assert [(each.system, each.mean.value, each.deviation) for each in found.opinions] == [
        ("a", 4, 0),
        ("b", 2, 0),
    ]
    assert math.isnan(found.agreement["quality"]) and found.agreement["score"] == 1


def test_means_and_deviations_are_those_of_all_answers(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=12)
    draws = np.random.default_rng(0)

    def judge(rater: str, trial: Trial, question: str) -> int:
        return honest(rater, trial, question) if trial.check else int(draws.integers(1, 6))

    answers = people_who(study, judge)
    found = results(study, answers)
    rows = [row for row in table(study, answers) if row["survey"] == "mos" and not row["check"]]
    for each in found.opinions:
        scores = [row["score"] for row in rows if row["video_1"] == each.system]
        assert each.mean.value == pytest.approx(np.mean(scores))
        assert each.deviation == pytest.approx(np.std(scores, ddof=1))
        assert each.mean.low < each.mean.value < each.mean.high
    for each in found.preferences:
        total = sum(each.counts)
        assert each.wins.value == pytest.approx(sum(each.counts[:2]) / total)
        assert each.lead.value == pytest.approx(each.wins.value - each.losses.value)
    assert all(abs(alpha) < 0.4 for alpha in found.agreement.values())


def test_who_does_not_listen_is_left_out_and_named(tmp_path: Path) -> None:
    study = plan(tmp_path)
    answers = people_who(study, lambda *of: 5 if of[0] == "ben" else honest(*of))
    found = results(study, answers)
    assert {rater.id: rater.trusted for rater in found.raters} == {"anna": True, "ben": False, "cleo": True}
    assert all(each.counts == (8, 0, 0, 0, 0) for each in found.preferences)
    assert found.complete == 0 and "ben (2 of 2)" in found.markdown()
    with pytest.raises(EvaluationError, match="3 raters failed"):
        results(study, people_who(study, lambda *_: 5))


def test_results_and_every_answer_leave_the_house(
    built: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(**(vars(built) | {"folder": tmp_path / "study"}))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / MEDIA).symlink_to(built.folder / MEDIA)
    (tmp_path / "study" / "study.json").write_bytes((built.folder / "study.json").read_bytes())
    assert vab(capsys, "evaluate", "listening", "results", study.folder)[0] == 2
    answers = Answers(study)
    for rater in answers.invite(3):
        while (found := answers.next(rater)).trial is not None:
            trial = found.trial
            good = 5 if study.swapped(rater, trial.id) and trial.survey == "preference" else 1
            answers.answer(rater, trial.id, grades(trial, good))
    out = tmp_path / "out"
    code, text, err = vab(capsys, "evaluate", "listening", "results", study.folder, "-o", out)
    assert code == 0 and "VAB-Encodec (Table 2) | 2.86 | 1.4" in text and str(out / "answers.csv") in err
    code, text, _ = vab(capsys, "evaluate", "listening", "results", study.folder, "--json")
    document = json.loads(text)
    assert document == json.loads((out / "results.json").read_text())
    assert document["complete"] == document["trials"] == 15
    assert [each["counts"] for each in document["preferences"]] == 4 * [[9, 0, 0, 0, 0]]
    rows = list(csv.DictReader(io.StringIO((out / "answers.csv").read_text())))
    assert len(rows) == len(answers.all()) == len(json.loads((out / "answers.json").read_text()))
    for row in rows:
        if row["survey"] == "preference":
            best = row["video_1"] if row["quality"] == "1" else row["video_2"]
            assert best == "ours" and {row["video_1"], row["video_2"]} - {"(beeps)"} <= set(SYSTEMS)
    with sqlite3.connect(answers.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_bars_are_as_long_as_their_counts(tmp_path: Path) -> None:
    study = plan(tmp_path, clips=10, systems=("A", "B", "C"))
    shares = {
        ("quality", "B"): (1, 1, 1, 2, 2, 2, 3, 3, 4, 5),
        ("quality", "C"): (1, 1, 1, 1, 1, 2, 2, 3, 3, 5),
        ("relevance", "B"): (1, 1, 2, 2, 3, 3, 3, 4, 4, 5),
        ("relevance", "C"): (1, 1, 1, 1, 1, 1, 2, 3, 4, 5),
    }

    def judge(rater: str, trial: Trial, question: str) -> int:
        known = trial.check or question == "score"
        place = int(trial.clip[1:])
        return honest(rater, trial, question) if known else shares[question, trial.systems[1]][place]

    found = results(study, people_who(study, judge)).preferences
    (screenshots(tmp_path) / "figure.png").write_bytes(plot(found))
    colours = [tuple(int(colour[n : n + 2], 16) for n in (1, 3, 5)) for colour in COLOURS]
    for question in ("quality", "relevance"):
        picture = plot([each for each in found if each.question == question])
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        where = np.stack([(pixels == colour).all(2) for colour in colours])  # [5, H, W]
        inside = where.any(0).sum(1) > 0.3 * pixels.shape[1]  # rows of a bar, not of the legend
        edges = np.flatnonzero(np.diff(np.pad(inside, 1).astype(int)))
        assert len(edges) == 4, "not two bars"
        for other, (top, bottom) in zip(study.systems[1:], edges.reshape(2, 2), strict=True):
            areas = where[:, top:bottom].sum((1, 2))
            expected = [shares[question, other].count(grade) / 10 for grade in range(1, 6)]
            np.testing.assert_allclose(areas / areas.sum(), expected, atol=0.02)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    study = plan(tmp_path)
    (tmp_path / "file").write_text("")
    answers = people_who(study, honest)
    with pytest.raises(OSError):
        export(results(study, answers), tmp_path / "file" / "out")
    with pytest.raises(OSError):
        export_answers(study, answers, tmp_path / "file" / "out")
