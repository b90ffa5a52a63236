"""The study's page in a real Chromium: two raters at once, and a server that is killed half way.

``VAB_SCREENSHOTS=docs`` writes the pictures of docs/listening.md anew; else they go to a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.studies import ROOT, screenshots, write_systems
from vab.listening.answers import Answers
from vab.listening.study import Study, build_study, open_study

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}
SYSTEMS = ("secret_system_one", "secret_system_two")
CLIPS = ("dog_barks", "rain_falls", "bell_rings", "cat_meows")

pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")


class Server:
    """`vab evaluate listening serve` in a process of its own, on one port all the time."""

    def __init__(self, study: Path, people: int) -> None:
        self.study, self.people, self.port = study, people, 0
        self.links = self.start()

    def start(self) -> list[str]:
        words = ["evaluate", "listening", "serve", str(self.study), "--people", str(self.people)]
        command = [sys.executable, "-m", "vab", *words, "--port", str(self.port), "--json"]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stderr.readline()  # said once everything is ready
        assert "Ctrl-C" in line, line
        document, self.process.stdout = _document(self.process.stdout), None
        links = [each["link"] for each in document["links"]]
        self.port = int(links[0].split(":")[2].split("/")[0])
        return links

    def kill(self) -> None:
        self.process.kill()  # SIGKILL: no farewell
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def _document(stream: Any) -> Any:
    text = ""
    while not text.rstrip().endswith("\n}"):
        text += stream.readline()
    stream.close()
    return json.loads(text)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two systems, four clips, one rater for each trial."""
    folders = write_systems(tmp_path, SYSTEMS, CLIPS)
    build_study(folders, tmp_path / "study", raters=1, seed=3)
    return tmp_path / "study"


def play(page: Any) -> None:
    """Play every video to its end, by the keyboard."""
    for n in range(page.locator("video").count()):
        page.keyboard.press(str(n + 1))
        page.locator(".heard").nth(n).filter(has_text="played").and_(page.locator(".yes")).wait_for()


def choose(page: Any, grade: int) -> None:
    for question in range(page.locator("fieldset").count()):
        page.locator("fieldset").nth(question).locator(f"input[value='{grade}']").check()


def until(holds: Callable[[], bool]) -> None:
    """Wait for what the page's strict content policy lets no script of ours wait for."""
    stop = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < stop, "waited for 60 s"
        time.sleep(0.05)


STARTED = "document.querySelectorAll('video')[0].played.length > 0"
ALONE = """() => {
  const [first, second] = document.querySelectorAll("video");
  second.addEventListener("playing", () => { window.alone = first.paused; });
}"""


def done(page: Any) -> int:
    return int(page.locator("#count").inner_text().split()[0])


def said(study: Study, rater: str, trial: str, grade: int) -> int:
    """The grade, or for an attention check that of somebody who hears it."""
    check = next(each for each in study.trials if each.id == trial)
    if not check.check:
        return grade
    return 5 if check.survey == "preference" and study.swapped(rater, trial) else 1


def listen(page: Any, grade: int, study: Study) -> int:
    """Play, and choose the grade, or what a check deserves; which it was."""
    play(page)
    rater, trial = page.locator("video").first.get_attribute("src").split("/")[-3:-1]
    grade = said(study, rater, trial, grade)
    choose(page, grade)
    return grade


def rate(page: Any, grade: int, study: Study) -> None:
    """One whole trial."""
    before = done(page)
    listen(page, grade, study)
    page.keyboard.press("Tab")
    page.locator("#send").click()
    until(lambda: done(page) > before)


@pytest.mark.slow
def test_two_raters_at_once_and_a_server_killed_half_way(study: Path, browser: Any, tmp_path: Path) -> None:
    pictures, taken = screenshots(tmp_path), ("preference", "phone", "unreachable", "score", "done")
    server, opened = Server(study, people=2), open_study(study)
    seen: list[str] = []  # addresses and bodies that reached the raters
    faults: list[str] = []
    try:
        pages = []
        for n, link in enumerate(server.links):
            context = browser.new_context(
                viewport={"width": 1100, "height": 760} if n == 0 else {"width": 390, "height": 844},
                color_scheme="light" if n == 0 else "dark",
            )
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", lambda request: seen.append(request.url))
            page.on("response", lambda reply: seen.append(str(reply.all_headers())))
            page.goto(link)
            page.locator("#trial").wait_for()
            pages.append(page)
        one, two = pages
        assert one.locator("fieldset:disabled").count() == 2, "must have played both before answering"
        one.evaluate(ALONE)
        one.keyboard.press("1")
        until(lambda: one.evaluate(STARTED))
        one.keyboard.press("2")  # only one plays at a time
        until(lambda: one.evaluate("window.alone"))
        box = one.locator("#questions").bounding_box()
        play(one)
        assert one.locator("#questions").bounding_box() == box, "the page jumped while playing"
        choose(one, 2)
        one.screenshot(path=pictures / "preference.png")
        two.screenshot(path=pictures / "phone.png")
        for _ in range(2):  # in turns, so both hold a trial all the time
            rate(one, 2, opened)
            rate(two, 4, opened)
        grade = listen(one, 1, opened)
        kept = len(Answers(open_study(study)).all())
        assert kept == 4

        server.kill()
        one.locator("#send").click()
        one.get_by_text("not saved yet").wait_for()
        one.screenshot(path=pictures / "unreachable.png")
        assert one.locator("fieldset").first.locator("input:checked").get_attribute("value") == str(grade)
        assert done(one) == 2
        assert server.start() == server.links
        until(lambda: done(one) == 3)
        assert one.locator("#notice").inner_text() == ""
        two.reload()  # the other one starts anew, with what was asked before
        two.locator("#trial").wait_for()
        assert done(two) == 2

        while any(page.locator("#trial").is_visible() for page in pages):
            for page, usual in ((one, 3), (two, 4)):
                if page.locator("#trial").is_visible():
                    if "How good" in page.locator("#task").inner_text() and page is one:
                        page.screenshot(path=pictures / "score.png")
                    rate(page, usual, opened)
        for page in pages:
            if page.locator("#again").is_visible():
                page.locator("#again").click()
            page.get_by_text("Thank you!").wait_for()
        one.screenshot(path=pictures / "done.png")
        seen += [page.content() for page in pages]
        one.goto(server.links[0] + "x")
        one.get_by_text("This link is not known").wait_for()
        one.goto(server.links[0].rpartition("/")[0])
        one.get_by_text("You need your own link").wait_for()
    finally:
        server.kill()

    answers = Answers(opened).all()
    trials = {trial.id: trial for trial in opened.trials}
    count = Counter(answer.trial for answer in answers if not trials[answer.trial].check)
    assert count == {trial.id: 1 for trial in opened.trials if not trial.check}, "lost, or one too many"
    assert faults == []
    told = " ".join(seen)
    assert "/1.mp4" in told, "the walk saw no video"
    assert not [name for name in (*SYSTEMS, *CLIPS, "secret") if name in told]
    sizes = {name: (pictures / f"{name}.png").stat().st_size for name in taken}
    assert max(sizes.values()) < 150_000, sizes


@pytest.mark.slow
def test_answers_survive_a_server_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    folders = write_systems(tmp_path, SYSTEMS, CLIPS)
    study = build_study(folders, tmp_path / "study", raters=2, seed=5)
    server = Server(study.folder, people=4)
    confirmed: dict[tuple[str, str], int] = {}
    stop = time.monotonic() + 120

    def ask(link: str, path: str, body: Any = None) -> Any:
        """As the page does: again until there is an answer."""
        while time.monotonic() < stop:
            request = urllib.request.Request(f"{link}/{path}", json.dumps(body or {}).encode(), method="POST")
            try:
                with urllib.request.urlopen(request, timeout=5) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                return {"state": "refused", "why": error.read().decode()}
            except (OSError, ValueError):
                time.sleep(0.05)
        return {"state": "late"}

    def take_part(link: str, grade: int) -> None:
        found = ask(link, "next")
        while found["state"] == "trial":
            names = ("quality", "relevance") if found["survey"] == "preference" else ("score",)
            trial = found["trial"]
            time.sleep(0.2)  # listens
            rater = link.rpartition("/")[2]
            given = said(study, rater, trial, grade)
            found = ask(link, f"{trial}/answer", dict.fromkeys(names, given))
            assert found["state"] in ("trial", "wait", "done"), found
            confirmed[rater, trial] = given
            while found["state"] == "wait":
                time.sleep(0.1)
                found = ask(link, "next")

    people = [
        threading.Thread(target=take_part, args=(link, n + 1), daemon=True)
        for n, link in enumerate(server.links)
    ]
    try:
        for person in people:
            person.start()
        kills = 0
        while any(person.is_alive() for person in people) and time.monotonic() < stop:
            time.sleep(0.3)
            if kills < 3:
                server.kill()
                kills += 1
                server.start()
        for person in people:
            person.join(10)
    finally:
        server.kill()
    answers = Answers(study).all()
    trials = {trial.id: trial for trial in study.trials}
    assert kills == 3
    kept = {(each.rater, each.trial): set(each.grades.values()) for each in answers}
    assert len(kept) == len(answers), "an answer is there twice"
    assert kept == {key: {grade} for key, grade in confirmed.items()}
    count = Counter(each.trial for each in answers if not trials[each.trial].check)
    assert count == {trial.id: 2 for trial in study.trials if not trial.check}


def test_serving_tells_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vab", "evaluate", "listening", "serve", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"vab: .*: no study; make one with .*\n", done.stderr)
