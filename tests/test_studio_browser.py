"""The studio in a real Chromium: projects, make, find, understand, export; when it is killed; on a phone.

``VAB_SCREENSHOTS=docs`` writes the pictures of docs/studio.md anew; else they go to a temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from helpers.forked import Forked
from helpers.tiny import write_bars
from vab.cli import main
from vab.media.reader import read_frames

ROOT = Path(__file__).parents[1]
CAT = ROOT / "examples" / "cat.mp4"
DOG = ROOT / "examples" / "sounds" / "dog" / "dog.ogg"

pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")
pytest.importorskip("lancedb", reason="no library: pip install 'vab[search]'")

REPEATED = """[...document.querySelectorAll("[id]")].map((element) => element.id)
  .filter((id, n, all) => all.indexOf(id) !== n)"""
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
# A word whose field has gone to another line, or out of its box.
TORN = """[...document.querySelectorAll("label, .pair")].filter((each) => {
  const field = each.querySelector("input:not([type=file], [type=radio], [type=checkbox]), select");
  if (!field || !each.checkVisibility()) return false;
  const [box, own] = [each.getBoundingClientRect(), field.getBoundingClientRect()];
  return own.right > box.right + 1 || box.right > innerWidth + 1 || box.height > 2.6 * own.height;
}).map((each) => each.textContent.trim())"""
# What ends beyond the right of the panels, which do not scroll sideways.
CUT_OFF = """[...document.querySelectorAll("#panels :is(button, input, select, a)")].filter((each) =>
  each.checkVisibility() && !each.closest("#tabs") &&
  each.getBoundingClientRect().right > document.getElementById("panels").getBoundingClientRect().right + 1
).map((each) => each.outerHTML)"""
# How many sounds that were found can be seen.
IN_SIGHT = """[...document.querySelectorAll("#hits li")].filter((each) => {
  const foot = document.getElementById("foot").getBoundingClientRect();
  return each.getBoundingClientRect().bottom <= foot.top;
}).length"""
DRAGGED = """() => {
  const data = new DataTransfer();
  document.querySelector("#files a").dispatchEvent(new DragEvent("dragstart", { dataTransfer: data }));
  return data.getData("DownloadURL");
}"""
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "color_scheme": "dark",
    "has_touch": True,
    "is_mobile": True,
}
LISTENING = "document.getElementById('listening')"


class Studio:
    """`vab studio` in a process of its own; it can be killed."""

    def __init__(self, projects: Path, *options: str) -> None:
        self.projects = projects
        self.words = ["studio", *options, "--json", "--projects", str(projects), "--port"]
        self.link = self.start("0")

    def start(self, port: str) -> str:
        self.process = Forked(self.projects.parent, main, [*self.words, port])
        return str(self.process.document()["link"])

    def end(self, by: signal.Signals) -> None:
        self.process.end(by)


@pytest.fixture(scope="module")
def studio(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """One with vab-tiny, and the sounds of examples/ as its library."""
    library = tmp_path_factory.mktemp("library") / "library"
    sounds = str(ROOT / "examples" / "sounds")
    adding = Forked(library.parent, main, ["library", "add", str(library), sounds])
    assert adding.wait(180) == 0, adding.communicate()
    running = Studio(tmp_path_factory.mktemp("studio") / "projects", "--library", str(library))
    try:
        yield running
    finally:
        running.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("VAB_SCREENSHOTS")
    folder = (ROOT / wanted if wanted else tmp_path_factory.mktemp("screenshots")) / "studio"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def faults(browser: Any) -> Iterator[list[str]]:
    """What a page should not have done, in the end nothing."""
    found: list[str] = []
    yield found
    for context in browser.contexts:
        context.close()
    assert found == []


def until(holds: Callable[[], Any], seconds: float = 180) -> None:
    """Wait for what the page's strict content policy lets no script of ours wait for."""
    stop = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < stop, f"waited for {seconds} s"
        time.sleep(0.05)


def open_page(browser: Any, link: str, faults: list[str], **settings: Any) -> Any:
    """A page of a browser of its own; what goes wrong in it is noted."""
    settings = {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light", **settings}
    page = browser.new_context(**settings).new_page()
    page.set_default_timeout(180_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    expected = (
        "status of 4",
        "ERR_CONNECTION",
        "ERR_EMPTY",
        "ERR_INCOMPLETE",
    )  # of requests that are refused
    page.on(
        "console",
        lambda line: (
            faults.append(line.text)
            if line.type in ("error", "warning") and not any(word in line.text for word in expected)
            else None
        ),
    )
    page.on("request", lambda request: _outside(request.url, link) and faults.append(request.url))
    page.goto(link)
    return page


def _outside(url: str, link: str) -> bool:
    return not url.startswith((link, "data:", "blob:"))


def new_project(page: Any, clip: Path) -> str:
    """Choose a clip on the list of projects; the address of its project."""
    page.locator("#file").set_input_files(clip)
    page.wait_for_url("**/projects/*/")
    page.locator("#saved", has_text="Saved").wait_for()
    return str(page.url)


def layers(page: Any) -> Any:
    return page.locator("#layers > li")


STEPS = "12" if os.environ.get("VAB_SCREENSHOTS") else "2"  # what is shown is worth looking at


def make(page: Any, count: int) -> None:
    before = layers(page).count()
    page.get_by_label("Takes", exact=True).fill(str(count))
    page.get_by_label("Steps", exact=True).fill(STEPS)
    page.get_by_role("button", name="Make takes").click()
    until(lambda: layers(page).count() == before + count)
    until(lambda: page.locator("#make").is_enabled())


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def document_of(studio: Studio, link: str) -> dict[str, Any]:
    return dict(
        json.loads((studio.projects / link.rstrip("/").rsplit("/", 1)[1] / "project.json").read_text())
    )


def heard(studio: Studio, link: str, layer: int) -> tuple[str, bytes]:
    """The sound of a layer: its name and file."""
    document = document_of(studio, link)
    sound = document["history"][document["at"]]["arrangement"]["layers"][layer]["sound"]
    folder = studio.projects / link.rstrip("/").rsplit("/", 1)[1]
    return sound, (folder / "sounds" / f"{sound}.wav").read_bytes()


def shoot(part: Any, path: Path) -> None:
    """A screenshot of a page or a part of it, in so few colours that the repository can hold it."""
    time.sleep(1)  # the waveforms are drawn
    path.write_bytes(part.screenshot())
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    assert 5_000 < path.stat().st_size < 250_000, path


def healthy(page: Any) -> None:
    """No fault that axe calls serious, no id twice, nothing torn or beyond the side of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    grave = [
        (fault["id"], [node["html"] for node in fault["nodes"]])
        for fault in axe.run(page).response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert grave == []
    assert page.evaluate(REPEATED) == []
    assert page.evaluate(TORN) == []
    assert page.evaluate(CUT_OFF) == []
    assert not page.evaluate(SIDEWAYS)


@pytest.mark.slow
def test_from_a_clip_to_a_film(
    studio: Studio, browser: Any, faults: list[str], pictures: Path, tmp_path: Path
) -> None:
    page = open_page(browser, studio.link, faults)
    page.locator("#model", has_text="vab-tiny").wait_for()

    # a bad upload gets a sentence, the next one works
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all" * 100)
    page.locator("#file").set_input_files(bad)
    page.get_by_text("It cannot be used").wait_for()
    healthy(page)
    link = new_project(page, CAT)
    page.get_by_text("No layers yet").wait_for()
    healthy(page)

    # settings and takes are there again after a reload
    page.get_by_label("Seed", exact=True).fill("3")
    make(page, 2)
    # the focus is where it was, before a screen reader tells of anything else
    page.locator("#make").focus()
    page.get_by_label("Takes", exact=True).fill("1")
    page.locator("#make").press("Enter")
    until(lambda: layers(page).count() == 3)
    until(lambda: page.evaluate("document.activeElement.id") == "make")
    assert document_of(studio, link)["history"][-1]["arrangement"]["settings"]["seed"] == 4, "it made others"
    page.locator("#undo").click()
    until(lambda: layers(page).count() == 2)
    page.get_by_label("Takes", exact=True).fill("2")
    page.get_by_label("Takes", exact=True).blur()
    assert document_of(studio, link)["sounds"], "a take that is shown is on the disk"
    page.get_by_label("Guidance", exact=True).fill("2.5")
    page.get_by_label("Guidance", exact=True).blur()
    until(lambda: document_of(studio, link)["history"][-1]["arrangement"]["settings"]["guidance"] == 2.5)
    page.reload()
    until(lambda: layers(page).count() == 2)
    values = [
        page.get_by_label(name, exact=True).input_value() for name in ("Seed", "Takes", "Steps", "Guidance")
    ]
    assert values == ["3", "2", STEPS, "2.5"]

    # an event in the curve, which was empty, leads the takes from now on; one step back nothing is of it
    timing = page.locator("[name=timing]")
    assert timing.input_value() == "motion"
    page.locator("#curve").click(position={"x": 300, "y": 30})
    until(lambda: timing.input_value() == "curve")
    page.keyboard.press("Control+z")
    until(lambda: timing.input_value() == "motion")
    assert page.locator("#num-events").inner_text() == ""

    # remake a part, undo, redo
    page.locator("#layers .name").first.click()
    page.locator("#from").fill("2")
    page.locator("#to").fill("3.5")
    page.locator("#to").press("Enter")
    before = heard(studio, link, 0)
    page.get_by_role("button", name="Remake part").click()
    until(lambda: heard(studio, link, 0)[0] != before[0])
    after = heard(studio, link, 0)
    assert after[1] != before[1] and after[1][: 2 * 48000 * 3] == before[1][: 2 * 48000 * 3]
    until(lambda: page.locator("#undo").is_enabled() and page.locator("#make").is_enabled())
    shoot(page, pictures / "takes.png")
    page.locator("#undo").click()
    until(lambda: heard(studio, link, 0) == before)
    page.locator("#redo").click()
    until(lambda: heard(studio, link, 0) == after)

    # find by the picture, hear a hit, add it
    tab(page, "Find")
    page.locator("#find-near").click()
    page.locator("#hits .hear").first.click()
    until(lambda: page.evaluate(f"{LISTENING}.currentTime") > 0.1)
    assert page.locator("#hits .hear").first.inner_text() == "Stop"
    assert page.evaluate(IN_SIGHT) >= 4, "the timeline leaves no room for what was found"
    healthy(page)
    shoot(page, pictures / "find.png")
    name = page.locator("#hits .what span").first.inner_text()
    page.locator("#hits .put").first.click()
    until(lambda: layers(page).count() == 3)
    assert name in layers(page).nth(2).inner_text()

    # export and download
    tab(page, "Export")
    page.get_by_role("button", name="Export", exact=True).click()
    link_to = page.get_by_role("link", name="Download cat_vab.mp4")
    with page.expect_download() as download:
        link_to.click()
    assert download.value.suggested_filename == "cat_vab.mp4"
    with av.open(str(download.value.path())) as film:
        assert [stream.type for stream in film.streams] == ["video", "audio"]
    assert page.evaluate(DRAGGED) == f"video/mp4:cat_vab.mp4:{link}exports/cat_vab.mp4"
    healthy(page)
    shoot(page, pictures / "export.png")

    # the same project elsewhere
    phone = open_page(browser, studio.link, faults, **PHONE)
    phone.goto(link)
    until(lambda: layers(phone).count() == 3)
    phone.wait_for_timeout(1000)  # the waveforms are drawn
    shoot(phone, pictures / "phone.png")


@pytest.mark.slow
def test_understand_find_and_add_files(
    studio: Studio, browser: Any, faults: list[str], pictures: Path, tmp_path: Path
) -> None:
    page = open_page(browser, studio.link, faults)
    write_bars(tmp_path / "bars.png")
    link = new_project(page, tmp_path / "bars.png")

    # a clip unlike all that was learned
    page.get_by_text("vab-tiny may not know what this shows").wait_for()
    assert "It learned accordion, big cat, bird" in page.locator("#known").inner_text()
    assert page.locator("#known a").evaluate("link => link.href") == f"{studio.link}/#teach"

    # a sound of the user: as a layer, and to find what is like it
    page.locator("#add-files").set_input_files(DOG)
    until(lambda: layers(page).count() == 1)
    tab(page, "Find")
    page.locator("#find-file").set_input_files(DOG)
    page.get_by_text("Nearest to dog.ogg").wait_for()
    assert page.locator("#hits .what span").first.inner_text() == "dog.ogg"

    page.get_by_label("Words").fill("telephone")
    page.get_by_label("Words").press("Enter")
    page.get_by_text("For \u201ctelephone\u201d").wait_for()
    until(lambda: page.locator("#hits .what span").first.inner_text() == "telephone.ogg")

    # words that are entered while a sound is listened to are looked for after it
    page.locator("#find-file").set_input_files(DOG)
    page.get_by_label("Words").fill("rooster")
    page.get_by_label("Words").press("Enter")
    page.get_by_text("For \u201crooster\u201d").wait_for()
    until(lambda: page.locator("#hits .what span").first.inner_text() == "rooster.ogg")

    page.get_by_label("Label").select_option("rooster")
    page.get_by_text("With the label rooster").wait_for()
    until(lambda: page.locator("#hits .what span").all_inner_texts() == ["rooster.ogg"])

    tab(page, "Understand")
    page.locator("#understand-by").select_option(label="1. dog")
    page.get_by_role("button", name="Look and listen").click()
    page.get_by_text("About dog").wait_for()
    assert page.locator("#classes meter").count() == 15
    page.get_by_text("It may be none of these").wait_for()
    assert "does not measure quality" in page.locator("#fit-part").inner_text()
    healthy(page)
    shoot(page.locator("#panels"), pictures / "understand.png")

    # history by the keyboard: back to the empty project
    page.get_by_role("tab", name="Understand").focus()
    page.keyboard.press("End")
    page.locator("#steps button").last.focus()
    page.keyboard.press("Enter")
    until(lambda: layers(page).count() == 0)
    until(lambda: page.locator("#steps [aria-current]").inner_text() == "project made")
    assert document_of(studio, link)["at"] == 0
    healthy(page)


@pytest.mark.slow
def test_the_list_and_two_tabs(
    studio: Studio, browser: Any, faults: list[str], pictures: Path, tmp_path: Path
) -> None:
    one = open_page(browser, studio.link, faults)
    Image.fromarray(next(read_frames(CAT, 1.0))).save(tmp_path / "a photo.png")
    photo = new_project(one, tmp_path / "a photo.png")
    two = one.context.new_page()
    two.goto(studio.link)
    cat = new_project(two, CAT)

    # what is done in one tab leaves the other alone
    make(two, 1)
    one.reload()
    one.get_by_text("No layers yet").wait_for()
    assert not document_of(studio, photo)["sounds"]

    # a damaged project says why; there may be many
    first = Path(studio.projects / cat.rstrip("/").rsplit("/", 1)[1])
    for n in range(12):
        copy = shutil.copytree(first, first.with_name(f"copy-{n:06}"), ignore=shutil.ignore_patterns(".*"))
        document = json.loads((copy / "project.json").read_text())
        document |= {"id": copy.name, "name": f"A film with a rather long name, number {min(n, 9)}"}
        (copy / "project.json").write_text(json.dumps(document))
    (copy / "project.json").write_text("{")
    one.goto(studio.link)
    one.locator(".card .bad").wait_for()
    assert first.with_name("copy-000011").name in one.locator(".card", has=one.locator(".bad")).inner_text()
    # two of one name are told apart
    assert one.get_by_text("Its folder: copy-000009").count() == one.get_by_text("copy-000010").count() == 1
    assert one.get_by_text("copy-000008").count() == 0
    shoot(one, pictures / "projects.png")
    one.locator("#filter").fill("number 7")
    until(lambda: one.locator(".card").count() == 1)
    one.get_by_role("button", name="Rename A film").click()
    one.locator("#new-name").fill("Second film")
    one.keyboard.press("Enter")
    one.locator("#filter").fill("second")
    one.get_by_role("button", name="Delete Second film").click()
    assert "cannot be undone" in one.locator("#delete-text").inner_text()
    healthy(one)
    one.get_by_role("button", name="Keep it").click()
    assert (first.with_name("copy-000007") / "project.json").exists()
    one.get_by_role("button", name="Delete Second film").click()
    one.get_by_role("button", name="Delete it").click()
    one.get_by_text("No project has such a name").wait_for()
    assert not first.with_name("copy-000007").exists()
    one.locator("#filter").fill("")
    healthy(one)
    one.goto(f"{studio.link}/projects/copy-000011/")
    one.get_by_text("This project cannot be shown").wait_for()
    healthy(one)

    # what is damaged can be deleted, after a question
    one.get_by_role("link", name="All projects").click()
    one.get_by_role("button", name="Delete copy-000011").click()
    assert "may be mended" in one.locator("#delete-text").inner_text()
    one.keyboard.press("Escape")
    assert copy.exists()
    one.get_by_role("button", name="Delete copy-000011").click()
    one.get_by_role("button", name="Delete it").click()
    until(lambda: one.locator(".card .bad").count() == 0)
    assert not copy.exists() and first.with_name("copy-000010").exists()


@pytest.mark.slow
def test_on_a_phone_in_the_dark(studio: Studio, browser: Any, faults: list[str]) -> None:
    page = open_page(browser, studio.link, faults, **PHONE)
    page.locator("#model", has_text="vab-tiny").wait_for()
    healthy(page)

    # reading a clip can be cancelled
    page.route("**/projects", lambda route: time.sleep(1) or route.continue_())
    page.locator("#file").set_input_files(CAT)
    page.locator("#stop-reading").click()
    until(lambda: page.locator("#choose").is_visible())
    assert page.locator("#notice").is_hidden()
    page.unroute("**/projects")

    # Chromium's pretended camera: closed again, a picture, a video
    shown = "document.getElementById('preview').currentTime"
    for buttons in (["Close the camera"], ["Take a picture"], ["Record", "Stop and use it"]):
        if page.url != f"{studio.link}/":
            page.goto(studio.link)
        page.get_by_role("button", name="Use the camera").click()
        for name in buttons:
            since = page.evaluate(shown)
            until(lambda since=since: page.evaluate(shown) > since + 0.3)
            page.get_by_role("button", name=name).click()
        if name != "Close the camera":
            page.wait_for_url("**/projects/*/")
            page.locator("#saved", has_text="Saved").wait_for()
            assert page.locator("#project-name").input_value().startswith("Camera")

    # a job can be cancelled, and what it has made by then stays; all panels have room
    page.get_by_label("Takes", exact=True).fill("4")
    page.get_by_label("Steps", exact=True).fill("100")
    page.get_by_role("button", name="Make takes").click()
    page.get_by_role("button", name="Cancel: making sound").click()
    page.get_by_text("Cancelled.").wait_for()
    make(page, 1)
    page.locator("#layers .name").last.click()
    page.locator("#layer-name").fill("A layer with a name that is longer than all the room there is for it")
    page.locator("#layer-name").press("Enter")
    until(lambda: "longer than all" in page.locator("#near").inner_text())
    for name in ("Find", "Understand", "Export", "History", "Make"):
        tab(page, name)
        healthy(page)


@pytest.mark.slow
def test_the_studio_is_killed_and_started_again(
    model: Path, browser: Any, faults: list[str], tmp_path: Path
) -> None:
    studio = Studio(tmp_path / "projects", "--model", str(model))
    try:
        page = open_page(browser, studio.link, faults)
        link = new_project(page, CAT)
        make(page, 1)
        before = heard(studio, link, 0)
        tab(page, "Find")
        page.get_by_text("No library is open").wait_for()
        tab(page, "Make")
        page.get_by_label("Takes", exact=True).fill("4")
        page.get_by_label("Steps", exact=True).fill("100")
        page.get_by_role("button", name="Make takes").click()
        page.get_by_role("button", name="Cancel: making sound").wait_for()
        studio.end(signal.SIGKILL)
        page.get_by_text("The studio cannot be reached").wait_for()
        assert page.locator("#saved").inner_text() == "Not connected"
        healthy(page)
        studio.start(studio.link.rsplit(":", 1)[1])
        page.get_by_text("The studio was started again while it was working").wait_for()
        page.locator("#saved", has_text="Saved").wait_for()
        assert heard(studio, link, 0) == before
        until(lambda: layers(page).count() == len(document_of(studio, link)["sounds"]))
        assert page.locator("#make").is_enabled() and page.locator("#job-make").count() == 0
    finally:
        studio.end(signal.SIGTERM)
