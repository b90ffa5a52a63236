"""The studio in a real Chromium: make, keep and redo, find, understand, on a desk and on a phone.

``VAB_SCREENSHOTS=docs`` writes the pictures of docs/studio.md anew; else they go to a temporary folder.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.tiny import write_bars
from vab.media.reader import read_frames

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}
CAT = ROOT / "examples" / "cat.mp4"

pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")
pytest.importorskip("lancedb", reason="no library: pip install 'vab[search]'")

NAMED = "input, select, button, a, video, img, svg, meter, progress"
UNNAMED = f"""[...document.querySelectorAll("{NAMED}")].filter((element) => element.checkVisibility() && !(
  element.labels?.length || element.textContent.trim() || element.closest("[aria-hidden]") ||
  ["aria-label", "aria-labelledby", "alt"].some((name) => element.getAttribute(name))
)).map((element) => element.outerHTML)"""
REPEATED = """[...document.querySelectorAll("[id]")].map((element) => element.id)
  .filter((id, n, all) => all.indexOf(id) !== n)"""
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
PLACES = """[...document.querySelectorAll(".take")].map((take) => [take.offsetTop, take.offsetHeight])"""


@pytest.fixture(scope="module")
def link(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vab studio` in a process of its own, with the sounds of examples/ as its library."""
    library = tmp_path_factory.mktemp("library") / "library"
    words = [sys.executable, "-m", "vab"]
    sounds = str(ROOT / "examples" / "sounds")
    subprocess.run([*words, "index", "add", str(library), sounds], env=ENVIRONMENT, check=True)
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [*words, "studio", "--library", str(library), "--port", "0", "--json"],
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield json.loads("".join(process.stdout.readline() for _ in range(3)))["link"]
    finally:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as under nohup
        process.send_signal(signal.SIGTERM if ignored else signal.SIGHUP)  # the terminal is closed
        process.wait(30)
        process.stdout.close()
    assert not list(temporary.glob("vab-*")), "files were left behind"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wanted = os.environ.get("VAB_SCREENSHOTS")
    folder = (ROOT / wanted if wanted else tmp_path_factory.mktemp("screenshots")) / "studio"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def until(holds: Callable[[], bool]) -> None:
    """Wait for what the page's strict content policy lets no script of ours wait for."""
    stop = time.monotonic() + 180
    while not holds():
        assert time.monotonic() < stop, "waited for 180 s"
        time.sleep(0.05)


def open_page(browser: Any, link: str, faults: list[str], **settings: Any) -> Any:
    """A visitor of its own."""
    page = browser.new_context(**settings).new_page()
    page.set_default_timeout(180_000)
    page.on("dialog", lambda dialog: dialog.accept())  # another clip takes the place of the takes
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Content Security" in line.text else None)
    page.on("request", lambda request: None if request.url.startswith(link) else faults.append(request.url))
    page.goto(link)
    page.locator("#find-by option").first.wait_for(state="attached")  # the state is there
    return page


def upload(page: Any, path: Path) -> None:
    page.locator("#file").set_input_files(path)
    page.locator("#clip").wait_for()
    until(lambda: page.locator("#reading").is_hidden())


def make(page: Any, count: int) -> None:
    page.get_by_label("Takes", exact=False).first.fill(str(count))
    page.get_by_role("button", name="Make takes").click()
    until(lambda: page.locator(".take").count() == count)
    until(lambda: page.locator("#make").is_enabled())


def sound(page: Any, take: int) -> bytes:
    """The samples of a take, as its download has them."""
    body = page.request.get(page.url + page.locator(".wav").nth(take).get_attribute("href")).body()
    with wave.open(io.BytesIO(body)) as file:
        return file.readframes(file.getnframes())


def shoot(part: Any, path: Path) -> None:
    """A screenshot of a page or a part of it, in so few colours that the repository can hold it."""
    image = Image.open(io.BytesIO(part.screenshot())).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def healthy(page: Any) -> None:
    """Names for everything, no id twice, nothing beyond the side of the page."""
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(REPEATED) == []
    assert not page.evaluate(SIDEWAYS)


@pytest.mark.slow
def test_a_visit(link: str, browser: Any, pictures: Path, tmp_path: Path) -> None:
    faults: list[str] = []
    page = open_page(browser, link, faults, viewport={"width": 1180, "height": 900}, color_scheme="light")
    assert page.locator("#make").is_disabled(), "there is nothing to make sound for"
    healthy(page)
    shoot(page, pictures / "empty.png")

    # a bad upload gets a sentence, the next one works
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video at all" * 100)
    page.locator("#file").set_input_files(bad)
    page.get_by_text("It cannot be used").wait_for()
    shoot(page, pictures / "error.png")
    upload(page, CAT)
    assert page.locator("#notice").is_hidden()
    page.evaluate("""document.querySelector("h1").dispatchEvent(
      new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()}))
      && console.error("Content Security: the browser would open the file")""")

    make(page, 2)
    page.locator(".take path[d^=M0]").nth(1).wait_for()
    until(
        lambda: page.evaluate("[...document.querySelectorAll('.mel')].every(image => image.naturalWidth > 0)")
    )
    assert page.locator(".fit").nth(0).inner_text().startswith("fit ")
    healthy(page)

    # it plays, by the keyboard too, one at a time, and nothing jumps
    first, second = (page.locator(".take").nth(n) for n in range(2))
    places = page.evaluate(PLACES)
    first.locator(".play").click()
    at = "document.querySelectorAll('.take video')[{}].currentTime"
    until(lambda: page.evaluate(at.format(0)) > 0.5)
    assert float(first.locator(".wave").get_attribute("aria-valuenow")) > 0.3
    page.keyboard.press("2")
    until(lambda: page.evaluate(at.format(1)) > 0.3)
    assert page.evaluate("[...document.querySelectorAll('.take video')].map(v => v.paused)") == [True, False]
    assert page.evaluate(PLACES) == places, "the page jumped while playing"
    page.keyboard.press("2")

    # mark a part by the mouse and redo it: all else stays bit for bit
    before = sound(page, 0)
    wave = first.locator(".wave").bounding_box()
    y = wave["y"] + wave["height"] / 3
    page.mouse.move(wave["x"] + wave["width"] / 4, y)
    page.mouse.down()
    page.mouse.move(wave["x"] + wave["width"] / 2, y, steps=5)
    page.mouse.up()
    marked = [float(first.locator(name).input_value()) for name in (".from", ".to")]
    assert marked == pytest.approx([2.0, 4.0], abs=0.05)
    shoot(page.locator("#takes-part"), pictures / "takes.png")
    first.locator(".play").click()  # it plays when the new one comes
    first.locator(".redo").click()
    first.get_by_text("anew").wait_for()
    assert first.locator(".play").inner_text() == "Play"
    assert page.evaluate("document.querySelector('.take video').paused")
    after = sound(page, 0)
    a, b = (2 * round(edge * 16000) for edge in marked)
    assert len(after) == len(before) and after != before
    assert after[: a - 640] == before[: a - 640] and after[b + 640 :] == before[b + 640 :]
    first.locator(".undo").click()
    until(lambda: first.locator(".undo").is_disabled())
    assert sound(page, 0) == before

    # mark by the keyboard, redo the rest; make it longer
    first.locator(".wave").focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("Shift+ArrowRight")
    assert [first.locator(name).input_value() for name in (".from", ".to")] == ["0.00", "0.50"]
    first.locator(".rest").click()
    first.get_by_text("all but").wait_for()
    after = sound(page, 0)
    assert after[:15900] == before[:15900] and after[17000:] != before[17000:]
    second.locator(".more").fill("1.5")
    before = sound(page, 1)
    second.locator(".extend").click()
    second.get_by_text("longer").wait_for()
    assert sound(page, 1)[: len(before)] == before and len(sound(page, 1)) == len(before) + 48000

    # search by the picture, hear a hit, put it under the picture
    page.locator("#find").click()
    page.locator("#hits li").first.wait_for()
    page.locator("#hits .hear").first.click()
    until(lambda: page.evaluate("document.getElementById('player').currentTime") > 0.2)
    assert page.locator("#hits .hear").first.inner_text() == "Stop"
    assert page.locator("#hits-by").inner_text() == "Nearest to the picture"
    shoot(page.locator("#find-part"), pictures / "find.png")
    name = page.locator("#hits .what").first.inner_text().split("\n")[0]
    page.locator("#hits .put").first.click()
    until(lambda: page.locator(".take").count() == 3)
    assert name in page.locator(".take h3").nth(2).inner_text()

    # understand the take, and the map
    page.locator("#understand-by").select_option("take 3")
    page.locator("#understand").click()
    page.locator("#classes meter").nth(14).wait_for()
    page.locator("#map .place").first.wait_for()
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    until(lambda: page.evaluate("!document.getElementById('player').paused"))
    page.locator("#map").click(position={"x": 300, "y": 200})
    assert "(" in page.locator("#point").inner_text()
    healthy(page)
    shoot(page.locator("#understand-part"), pictures / "understand.png")

    # another visitor sees none of it; who comes back does
    other = open_page(browser, link, faults)
    for locator in (page.locator("#clip"), page.locator(".take video").first):
        address = page.url + locator.get_attribute("src")
        assert page.request.get(address).status == 200
        assert other.request.get(address).status == 404
    page.reload()
    until(lambda: page.locator(".take").count() == 3)
    page.get_by_role("button", name="Delete everything now").click()
    until(lambda: page.locator(".take").count() == 0)
    assert faults == []
    small(pictures, {f"{name}.png" for name in ("empty", "error", "takes", "find", "understand")})


@pytest.mark.slow
def test_on_a_phone_in_the_dark(link: str, browser: Any, pictures: Path, tmp_path: Path) -> None:
    faults: list[str] = []
    phone = {"width": 390, "height": 844}
    page = open_page(
        browser, link, faults, viewport=phone, color_scheme="dark", has_touch=True, is_mobile=True
    )
    healthy(page)
    Image.fromarray(next(read_frames(CAT, 1.0))).save(tmp_path / "a.png")
    upload(page, tmp_path / "a.png")
    page.get_by_role("button", name="Make takes").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled").wait_for()
    until(lambda: page.locator("#make").is_enabled())
    while page.locator(".take").count():  # it may have been quicker than the cancel
        page.locator(".remove").first.click()
        time.sleep(0.3)
    make(page, 1)
    page.locator("#find").click()
    page.locator("#hits li").first.wait_for()
    page.locator("#understand").click()
    page.locator("#classes meter").first.wait_for()
    healthy(page)
    page.locator(".take").scroll_into_view_if_needed()
    page.locator(".play").click()  # or there may be nothing to see yet
    until(lambda: page.evaluate("document.querySelector('.take video').currentTime") > 0.5)
    page.locator(".play").click()
    shoot(page, pictures / "phone.png")

    # Chromium's pretended camera: closed again, a video, a picture
    shown = "document.getElementById('preview').currentTime"
    for buttons in (["Close the camera"], ["Record", "Stop and use it"], ["Take a picture"]):
        was = page.locator("#clip").get_attribute("src")
        page.get_by_role("button", name="Use the camera").click()
        for name in buttons:
            since = page.evaluate(shown)
            until(lambda since=since: page.evaluate(shown) > since + 0.5)
            assert page.locator("#clip").is_hidden()
            healthy(page)
            page.get_by_role("button", name=name).click()
        page.locator("#clip").wait_for()
        if name != "Close the camera":
            until(lambda was=was: page.locator("#clip").get_attribute("src") != was)
            until(lambda: page.locator(".take").count() == 0)
    # reading can be cancelled, and the clip stays
    was = page.locator("#clip").get_attribute("src")
    page.route("**/clip", lambda route: time.sleep(1) or route.continue_())
    page.locator("#file").set_input_files(CAT)
    page.locator("#stop-reading").click()
    until(lambda: page.locator("#reading").is_hidden())
    assert page.locator("#notice").is_hidden() and page.locator("#clip").get_attribute("src") == was
    assert faults == []
    small(pictures, {"phone.png"})


@pytest.mark.slow
def test_what_the_page_tells(link: str, browser: Any, tmp_path: Path) -> None:
    faults: list[str] = []
    page = open_page(browser, link, faults)
    look = "document.dispatchEvent(new Event('visibilitychange'))"  # ask for the state now
    upload(page, CAT)
    assert page.locator("#about-fit").is_hidden()
    make(page, 2)
    assert "says nothing about quality" in page.locator("#about-fit").inner_text()
    assert page.locator("#known").is_hidden(), "it knows cats"
    assert page.locator("#work").inner_text() == "Done."
    until(lambda: page.locator("#work").inner_text() == "")

    # what the results are of, and the numbers, when a take goes
    page.locator("#understand-by").select_option("take 1")
    page.locator("#understand").click()
    page.get_by_text("About take 1").wait_for()
    assert page.locator("#map text.place").all_text_contents() == ["the picture", "take 1"]
    page.locator(".remove").first.click()
    until(lambda: page.locator(".take").count() == 1)
    assert page.locator("#classes-by").inner_text() == "About an earlier take"
    assert page.locator("#map text.place").all_text_contents() == ["the picture", "an earlier take"]
    assert page.locator(".take").get_attribute("aria-label") == "Take 1"
    assert page.locator(".wav").get_attribute("download") == "take_1.wav"
    assert page.locator(".mp4").get_attribute("aria-label") == "Download take 1 as MP4"
    page.reload()
    until(lambda: page.locator(".take").count() == 1)
    assert page.locator("#work").inner_text() == "", "that was long ago"

    # an old answer that arrives late changes nothing
    late: list[tuple[Any, Any]] = []
    page.route("**/state", lambda route: late.append((route, route.fetch())), times=1)
    page.evaluate(look)
    until(lambda: page.evaluate("1") and len(late) == 1)
    page.locator(".remove").click()
    until(lambda: page.locator(".take").count() == 0)
    late[0][0].fulfill(response=late[0][1])
    page.wait_for_timeout(200)
    assert page.locator(".take").count() == 0

    # one camera, however often it is asked for
    page.evaluate("""() => {
      const devices = navigator.mediaDevices, real = devices.getUserMedia.bind(devices);
      window.streams = 0;
      devices.getUserMedia = (wanted) => { window.streams++; return real(wanted); };
      document.getElementById("camera").click();
      document.getElementById("camera").click();
    }""")
    page.get_by_role("button", name="Close the camera").click()
    assert page.evaluate("window.streams") == 1 and page.locator("#camera").is_enabled()

    # a clip unlike all that was learned
    write_bars(tmp_path / "bars.png")
    upload(page, tmp_path / "bars.png")
    page.get_by_text("vab-tiny may not know what this shows").wait_for()
    assert "It learned accordion, big cat, bird" in page.locator("#known").inner_text()
    page.locator("#understand").click()
    page.get_by_text("It may be none of these").wait_for()
    healthy(page)

    # a clip that is gone is missed, one that was deleted is not
    page.context.clear_cookies()
    page.evaluate(look)
    page.get_by_text("Your clip is not here any more").wait_for()
    assert page.locator("#clip").is_hidden()
    upload(page, CAT)
    page.get_by_role("button", name="Delete everything now").click()
    page.locator("#clip").wait_for(state="hidden")
    assert page.locator("#known").is_hidden()
    assert "vab-tiny learned accordion, big cat" in page.locator("#limits").inner_text()
    page.evaluate(look)
    page.wait_for_timeout(600)
    assert page.locator("#notice").is_hidden()
    assert faults == []


def small(pictures: Path, names: set[str]) -> None:
    """The pictures were taken, and the repository can hold them."""
    sizes = {name: (pictures / name).stat().st_size for name in names}
    assert min(sizes.values()) > 5_000 and max(sizes.values()) < 150_000, sizes
