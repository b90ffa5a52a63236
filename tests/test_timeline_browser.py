"""The timeline of the workbench in a real Chromium: what is heard, dragged, tapped and exported."""

from __future__ import annotations

import io
import json
import signal
import time
import wave
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.films import write_film as write_timed
from helpers.forked import Forked
from vab.cli import main
from vab.studio.mix import RATE

FPS, CUT, SECONDS = 25, 2.0, 4.0  # of the film: two shots

pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")

UNNAMED = """[...document.querySelectorAll("input, select, button, a, video, meter, summary, output")]
  .filter((element) => element.checkVisibility() && !(
    element.labels?.length || element.textContent.trim() || element.closest("[aria-hidden]") ||
    ["aria-label", "aria-labelledby", "alt"].some((name) => element.getAttribute(name))
  )).map((element) => element.outerHTML)"""
SIDEWAYS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
TORN = """[...document.querySelectorAll("#timeline :is(.field, .pair)")].filter((field) => {
  const parts = [field, field.querySelector("input, select")];
  const [whole, input] = parts.map((each) => each.getBoundingClientRect());
  return field.checkVisibility() && (whole.height > 1.6 * input.height || input.right > innerWidth + 1);
}).map((field) => field.textContent)"""
POSITION = """async () => (await import(new URL("../../page/audio.js", location))).player.position"""
TO_X = """async (time) => (await import(new URL("../../page/timeline.js", location))).toX(time)"""
TO_TIME = """async (x) => (await import(new URL("../../page/timeline.js", location))).toTime(x)"""
CUTS = """async () => (await import(new URL("../../page/analysis.js", location))).analysis.cuts"""
# Which of two tones is louder in what is heard just now: the frequency of the strongest bin, 0 if nothing is.
PITCH = """async () => {
  const { player, RATE } = await import(new URL("../../page/audio.js", location));
  const bins = new Float32Array(player.meter.frequencyBinCount);
  player.meter.getFloatFrequencyData(bins);
  const strongest = bins.indexOf(Math.max(...bins));
  return bins[strongest] < -60 ? 0 : (strongest * RATE) / player.meter.fftSize;
}"""
# The largest difference of an exported mix from the page's own, and from what its audio engine plays.
DIFFERENCES = """async (url) => {
  const { mix, parseWav, player, render } = await import(new URL("../../page/audio.js", location));
  const { state } = await import(new URL("../../page/api.js", location));
  const exported = parseWav(await (await fetch(url)).arrayBuffer());
  const { layers } = state.arrangement;
  await Promise.all(layers.map((layer) => player.load(layer.sound, `${state.sounds[layer.sound].url}.wav`)));
  const own = mix(layers, player.sounds, state.clip.seconds);
  const heard = await render(layers, player.sounds, state.clip.seconds);
  const lengths = [exported, own, heard].map((sides) => sides.map((side) => side.length));
  const most = (side, level) => side.reduce((top, value, n) => Math.max(top, Math.abs(level(value, n))), 0);
  const apart = (sides) => Math.max(...sides.map((side, c) => most(side, (x, n) => x - exported[c][n])));
  const loudest = Math.max(...exported.map((side) => most(side, (value) => value)));
  return { lengths, own: apart(own), heard: apart(heard), loudest };
}"""
# Tap from now on, as a hand would, whenever a click is heard: at each rise of the level.
TAP = """async () => {
  const { player } = await import(new URL("../../page/audio.js", location));
  const levels = new Float32Array(256);
  let quiet = true;
  const look = () => {
    player.meter?.getFloatTimeDomainData(levels); // there is none before it plays
    const loud = levels.some((level) => Math.abs(level) > 0.1);
    if (loud && quiet) document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "t", bubbles: true }));
    quiet = !loud;
  };
  setInterval(look, 2);
}"""


class Studio:
    """A running `vab studio`, and requests to it."""

    def __init__(self, link: str) -> None:
        self.link = link

    def ask(self, path: str, body: bytes | None = None, name: str = "") -> Any:
        headers = {"File-Name": quote(name)} if name else {}
        with urlopen(Request(self.link + path, body, headers), timeout=60) as reply:
            return json.load(reply)

    def do(self, project: str, verb: str, **values: Any) -> Any:
        return self.ask(f"/projects/{project}/do/{verb}", json.dumps(values).encode())

    def state(self, project: str) -> Any:
        return self.ask(f"/projects/{project}/state")

    def layers(self, project: str) -> list[dict[str, Any]]:
        return list(self.state(project)["arrangement"]["layers"])

    def add(self, project: str, name: str, waveform: NDArray[np.float64]) -> dict[str, Any]:
        """Add a layer of a sound [C,S] at 48 kHz."""
        count = len(self.layers(project))
        self.ask(f"/projects/{project}/files", wav(waveform), f"{name}.wav")
        until(lambda: len(self.layers(project)) > count)
        return self.layers(project)[-1]


def wav(waveform: NDArray[np.float64]) -> bytes:
    """A WAV file of 16 bits."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(len(waveform))
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(waveform.T * 32767).astype("<i2").tobytes())
    return stream.getvalue()


def tone(hertz: float, seconds: float, level: float = 0.3) -> NDArray[np.float64]:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)[None]


def write_film(path: Path) -> Path:
    """Two still shots of one colour each."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for n in range(round(SECONDS * FPS)):
            # stripes, across in one shot and down in the other
            lines = (np.arange(96)[:, None] if n < CUT * FPS else np.arange(160)[None]) // 8 % 2
            picture = np.broadcast_to(lines[..., None] * 200 + 20, (96, 160, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    return path


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    stop = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < stop, f"waited for {seconds} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def studio(chromium: Any, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`vab studio` in a process of its own, with a random model of the least size."""
    projects = tmp_path_factory.mktemp("projects")
    words = ["studio", "--model", str(model), "--projects", str(projects), "--port", "0", "--json"]
    process = Forked(tmp_path_factory.mktemp("studio"), main, words)
    try:
        yield Studio(process.document()["link"])
    finally:
        process.end(signal.SIGTERM)


@pytest.fixture
def project(studio: Studio, tmp_path: Path) -> str:
    """A new project on the film of two shots."""
    film = write_film(tmp_path / "two shots.mp4")
    return str(studio.ask("/projects", film.read_bytes(), film.name)["project"]["id"])


@pytest.fixture
def faults() -> Iterator[list[str]]:
    """Errors of the page, lines of the console, requests elsewhere."""
    found: list[str] = []
    yield found
    assert found == []


def open_page(browser: Any, studio: Studio, project: str, faults: list[str], **settings: Any) -> Any:
    page = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | settings).new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text))
    page.on(
        "request", lambda request: None if request.url.startswith(studio.link) else faults.append(request.url)
    )
    page.goto(f"{studio.link}/projects/{project}/")
    page.locator("#layers .layer").first.wait_for()
    return page


def wait_for_cut(page: Any) -> float:
    """When the second shot begins, once the page knows it."""
    until(lambda: bool(page.evaluate(CUTS)))
    [cut] = page.evaluate(CUTS)
    assert cut == pytest.approx(CUT, abs=0.05)
    return float(cut)


def test_the_mix_that_is_heard_is_the_one_that_is_exported(
    studio: Studio, project: str, browser: Any, faults: list[str]
) -> None:
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, (2, 2 * RATE))
    first = studio.add(project, "noise", noise)
    second = studio.add(project, "tone", tone(333, 3.0))
    muted = studio.add(project, "muted", tone(500, 3.0))
    # begins before the film, ends after it; cut, faded and with odd numbers of samples
    studio.do(project, "layer", layer=first["id"], offset=-0.31237, start=0.123456, fade_in=0.5, gain_db=-4.7)
    studio.do(
        project, "layer", layer=second["id"], offset=1.700003, stop=2.9, fade_in=0.2, fade_out=1.1, gain_db=3
    )
    studio.do(project, "layer", layer=muted["id"], mute=True)
    studio.do(project, "export", what="mix", format="wav")
    until(lambda: bool(studio.state(project)["exports"]))
    page = open_page(browser, studio, project, faults)
    found = page.evaluate(DIFFERENCES, studio.state(project)["exports"][0]["url"])
    length = round(1.700003 * RATE) + round(2.9 * RATE)  # to the end of the tone
    assert found["lengths"] == [[length, length]] * 3
    assert 0.3 < found["loudest"] < 1
    assert found["own"] <= 2.0**-23 and found["heard"] <= 2.0**-23


def test_a_walk(studio: Studio, project: str, browser: Any, faults: list[str]) -> None:
    for hertz in (300, 1500):
        studio.add(project, f"{hertz} Hz", tone(hertz, 3.6))
    page = open_page(browser, studio, project, faults)
    heads = page.locator("#layers .layer")

    # it plays, and the picture goes with it
    page.keyboard.press(" ")
    until(lambda: page.evaluate(POSITION) > 0.5)
    apart = "Math.abs(document.getElementById('picture').currentTime - {})"
    until(lambda: page.evaluate(apart.format(page.evaluate(POSITION))) < 0.15)
    page.locator("#loop").click()

    def sounds(lowest: float, highest: float) -> bool:
        return bool(lowest < page.evaluate(PITCH) < highest)

    def moved(before: float) -> bool:
        return bool(page.evaluate(POSITION) != before)

    # one layer alone and the mix again, at the same place, without a gap
    for key, lowest, highest in (("1", 250, 350), ("2", 1450, 1550)):
        before = page.evaluate(POSITION)
        page.keyboard.press(key)
        until(partial(sounds, lowest, highest))
        assert heads.nth(int(key) - 1).locator(".alone").get_attribute("aria-pressed") == "true"
        until(partial(moved, before))
        assert page.locator("#play").inner_text() == "Pause"
    page.keyboard.press("2")
    assert page.locator("#hearing").inner_text() == ""

    # mute is heard at once and is a step of the history
    heads.nth(0).get_by_role("button", name="Mute 300 Hz").click()
    until(partial(sounds, 1450, 1550))
    until(lambda: studio.layers(project)[0]["mute"])
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Play"

    # dragged by its title near the cut, a layer begins at the cut; Alt lets it be
    def drag_to(seconds: float) -> None:
        box = heads.nth(1).locator("canvas").bounding_box()
        start, end = (page.evaluate(TO_X, time) for time in (studio.layers(project)[1]["offset"], seconds))
        page.mouse.move(box["x"] + start + 60, box["y"] + 12)
        page.mouse.down()
        page.mouse.move(box["x"] + end + 60, box["y"] + 12, steps=8)
        page.mouse.up()

    cut = wait_for_cut(page)
    page.keyboard.press("Home")
    drag_to(CUT + 0.012)
    until(lambda: studio.layers(project)[1]["offset"] == cut)
    page.keyboard.press("Control+z")
    until(lambda: studio.layers(project)[1]["offset"] == 0)
    page.keyboard.press("Control+Shift+Z")
    until(lambda: studio.layers(project)[1]["offset"] == cut)
    # the page knows it a little later than the disk
    until(lambda: float(page.locator("#layer-offset").input_value()) == pytest.approx(cut, abs=6e-4))
    page.keyboard.down("Alt")
    drag_to(cut - 0.03)  # more pixels than a click may wander, fewer than a cut draws
    page.keyboard.up("Alt")
    until(lambda: 0.001 < abs(studio.layers(project)[1]["offset"] - cut) < 0.05)

    # down to single samples, about the pointer
    lane = heads.nth(1).locator("canvas").bounding_box()
    page.mouse.move(lane["x"] + lane["width"] / 2, lane["y"] + 50)
    there = page.evaluate(TO_TIME, lane["width"] / 2)
    for _ in range(40):
        page.mouse.wheel(0, -300)
    until(lambda: page.locator("#scale").inner_text() == "24.0 pixels a sample")
    assert page.evaluate(TO_TIME, lane["width"] / 2) == pytest.approx(there, abs=1e-4)
    page.keyboard.press("f")
    until(lambda: "samples a pixel" in page.locator("#scale").inner_text())

    # by the keyboard: moved by a frame, trimmed; several keys are one step
    before = studio.state(project)["at"]
    offset = studio.layers(project)[1]["offset"]
    heads.nth(1).locator(".name").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    until(lambda: studio.layers(project)[1]["offset"] == pytest.approx(offset - 3 / FPS, abs=1e-4))
    assert studio.state(project)["at"] == before + 1
    page.keyboard.press("Shift+ArrowLeft")
    until(lambda: studio.layers(project)[1]["stop"] == pytest.approx(3.6 - 1 / FPS, abs=1e-4))

    # a mark, by key; a selection by its fields
    page.locator("#timeline .label").first.click()
    page.keyboard.press("m")
    until(lambda: len(studio.state(project)["arrangement"]["marks"]) == 1)
    page.locator("#from").fill("1")
    page.locator("#to").fill("1.5")
    page.locator("#to").press("Enter")
    assert page.locator("#loop").get_attribute("aria-pressed") == "true"
    page.locator("#play").click()
    stop = time.monotonic() + 1.5  # three rounds
    while time.monotonic() < stop:
        assert 1 - 1e-3 <= page.evaluate(POSITION) <= 1.5 + 1e-3
    assert page.locator("#play").inner_text() == "Pause"
    page.locator("#play-span").click()  # once, and no longer round
    until(lambda: page.locator("#play").inner_text() == "Play")
    assert page.evaluate(POSITION) == pytest.approx(1.5, abs=1e-3)


def test_taps_are_where_they_are_heard(studio: Studio, project: str, browser: Any, faults: list[str]) -> None:
    clicks = np.zeros((1, round(3.8 * RATE)))
    times = np.arange(0.5, 3.6, 0.5)
    for at in times:
        # long enough to be heard by a page that is held up for a moment
        clicks[0, round(at * RATE) : round(at * RATE) + 9600] = tone(1000, 0.2, 0.6)
    studio.add(project, "clicks", clicks)
    page = open_page(browser, studio, project, faults)
    page.evaluate(TAP)
    page.keyboard.press(" ")
    until(lambda: page.locator("#play").inner_text() == "Pause")
    until(lambda: page.locator("#play").inner_text() == "Play")  # at the end
    until(lambda: studio.state(project)["arrangement"]["curve"] is not None)
    events = np.array(studio.state(project)["arrangement"]["curve"]["events"])
    assert len(events) == len(times)
    assert np.median(np.abs(events[:, 0] - times)) < 0.04, events
    # the taps of a row are one step
    page.keyboard.press("Control+z")
    until(lambda: studio.state(project)["arrangement"]["curve"] is None)


def test_edges_corners_and_the_curve(studio: Studio, project: str, browser: Any, faults: list[str]) -> None:
    studio.add(project, "tone", tone(300, 3.6))
    page = open_page(browser, studio, project, faults)
    cut = wait_for_cut(page)
    lane, curve = page.locator("#layers canvas"), page.locator("#curve")

    def drag(canvas: Any, start: float, end: float, y: float, up: float = 0) -> None:
        """From a second to a second, at a height, and up."""
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        a, b = (box["x"] + page.evaluate(TO_X, time) for time in (start, end))
        page.mouse.move(a, box["y"] + y)
        page.mouse.down()
        page.mouse.move(b, box["y"] + y - up, steps=6)
        page.mouse.up()

    def layer() -> dict[str, Any]:
        return studio.layers(project)[0]

    # its edges are trimmed, and what stays is heard where it was; the end snaps to the cut
    drag(lane, 0.004, 0.7, 50)
    until(lambda: layer()["start"] == pytest.approx(0.7, abs=0.02))
    assert layer()["offset"] == layer()["start"]
    drag(lane, 3.595, 2.01, 50)
    until(lambda: layer()["stop"] == pytest.approx(cut, abs=1e-4))
    # its corners are fades
    drag(lane, 0.7 + 5 / page.evaluate(TO_X, 1), 1.0, 26)
    until(lambda: layer()["fade_in"] == pytest.approx(0.3, abs=0.02))
    # its body selects a part, which the model makes anew
    drag(lane, 1.1, 1.6, 50)
    assert float(page.locator("#from").input_value()) == pytest.approx(1.1, abs=0.02)
    was = layer()["sound"]
    page.get_by_role("button", name="Remake part").click()
    until(lambda: layer()["sound"] != was)
    assert studio.state(project)["sounds"][layer()["sound"]]["again"] == pytest.approx([1.1, 1.6], abs=0.02)
    page.locator("#timeline .label").first.click()
    page.keyboard.press("Escape")
    assert page.locator("#from").input_value() == ""

    # an event of the curve is clicked, then dragged to the cut and down; deleted by key
    drag(curve, 1.3, 1.3, 10)
    events = lambda: (studio.state(project)["arrangement"]["curve"] or {"events": []})["events"]  # noqa: E731
    until(lambda: len(events()) == 1)
    assert events()[0] == pytest.approx([1.3, 1.0], abs=0.05)
    drag(curve, 1.3, cut + 0.01, 10, up=-30)
    until(lambda: events()[0][0] == pytest.approx(cut, abs=1e-3))
    assert events()[0][1] == pytest.approx(0.6, abs=0.1)
    curve.focus()
    page.keyboard.press("Delete")
    until(lambda: events() == [])

    # a level is drawn: it follows the pointer in place of what was there
    page.get_by_label("Level", exact=True).click()
    drag(curve, 0.5, 3.0, 20, up=-40)
    until(lambda: bool(studio.state(project)["arrangement"]["curve"]))
    times, level = np.array(studio.state(project)["arrangement"]["curve"]["level"]).T
    assert times[0] == pytest.approx(0.5, abs=0.05) and (np.diff(times) > 0).all()
    assert (np.diff(level) < 0).all() and -45 <= level[-1] < level[0] <= 0


def test_what_is_refused_is_not_shown_any_more(studio: Studio, project: str, browser: Any) -> None:
    layer = studio.add(project, "tone", tone(300, 3.0))["id"]
    studio.do(project, "set", marks=[{"id": "a", "time": 1.0, "label": "Door"}])
    studio.do(project, "set", curve={"events": [[0.5, 1.0]], "level": []})
    page = open_page(browser, studio, project, faults := [])
    for summary in page.locator("#lists summary").all():
        summary.click()
    before = studio.state(project)
    notice = page.locator("#notice-text")
    for name, typed, holds, why in (
        ("[name=steps]", "500", "4", "Steps must be from 1 to 100."),
        ("[name=count]", "", "2", "Takes must be a number."),
        ("[name=seed]", "1.5", "0", "Seed must be a whole number."),
        ("#layer-offset", "4000", "0.000", "Offset must be from -3600 to 3600."),
        ("#layer-start", "7", "0.000", "Trim from must be from 0 to 2.980."),
        ("#layer-fade_in", "-1", "0.000", "Fade in must be from 0 to 3.000."),
        ("#layer-gain_db", "99", "0.0", "Volume must be from -60 to 24."),
        ("#mark-list [type=number]", "-1", "1.000", "Time must be 0 or more."),
        ("#mark-list [type=number]", "1e7", "1.000", "Time must be from 0 to 1000000."),  # said by the server
        ("#curve-list [max]", "7", "1", "Strength must be from 0.05 to 1."),
    ):
        field = page.locator(name).first
        field.fill(typed)
        field.press("Enter")  # which also asks for takes: not with the value that is not meant
        until(lambda: notice.inner_text() == why)  # noqa: B023
        assert field.input_value() == holds, "it stays until something else happens"
        page.locator("#notice-close").click()
    time.sleep(0.5)
    after = studio.state(project)
    assert after["arrangement"] == before["arrangement"], "something was changed or made"

    # a trim in numbers, as one by hand, leaves the rest where it is heard
    page.locator("#layer-start").fill("1")
    page.locator("#layer-start").press("Enter")
    until(lambda: studio.layers(project)[0]["start"] == 1)
    assert studio.layers(project)[0]["offset"] == 1

    # what can be kept is, and shown as it is kept; the keys are the timeline's again
    page.locator("#layer-fade_in").fill("0.5")
    page.locator("#layer-fade_in").press("Enter")
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Pause"
    page.keyboard.press(" ")
    until(lambda: studio.layers(project)[0]["fade_in"] == 0.5)
    assert page.locator("#layer-fade_in").input_value() == "0.500"
    page.keyboard.press("Control+z")
    until(lambda: page.locator("#layer-fade_in").input_value() == "0.000")
    page.locator("#layer-fade_in").fill("0.7")
    page.locator("#layer-fade_in").press("Escape")
    assert page.locator("#layer-fade_in").input_value() == "0.000"
    page.get_by_label("Steps", exact=True).fill("7")
    studio.do(project, "layer", layer=layer, mute=True)  # the state that arrives now does not fill it
    page.get_by_role("button", name="Undo").focus()
    until(lambda: studio.state(project)["arrangement"]["settings"]["steps"] == 7)
    assert len(faults) == 1 and "409" in faults[0]  # the one that the server refused


def test_what_is_done_while_the_studio_is_away_is_told(studio: Studio, project: str, browser: Any) -> None:
    studio.add(project, "tone", tone(300, 3.0))
    page = open_page(browser, studio, project, [])
    saved, notice = page.locator("#saved"), page.locator("#notice-text")
    page.context.set_offline(True)
    page.get_by_label("Guidance").fill("7")
    page.get_by_label("Guidance").press("Tab")
    page.get_by_label("Temperature").press_sequentially("1")  # typing goes on in another field
    until(lambda: saved.inner_text() == "Not connected")
    assert page.get_by_label("Guidance").input_value() == "3"
    page.locator("#layer-offset").fill("1")
    page.locator("#layer-offset").press("Enter")
    until(lambda: page.locator("#layer-offset").input_value() == "0.000")
    page.context.set_offline(False)
    until(lambda: saved.inner_text().startswith("Saved"))
    assert "was not kept" in notice.inner_text()
    assert (
        page.get_by_label("Guidance").input_value() == "3"
        and page.locator("#layer-offset").input_value() == "0.000"
    )
    assert studio.state(project)["arrangement"]["settings"]["guidance"] == 3


# A canvas that is read again and again; the page's own is not made for that.
COPIED = """const copied = (canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    return context;
  };"""
PIXELS = """(id) => document.querySelector(id).toDataURL()"""
# How many columns of a lane have a colour of the style sheet at a height.
COLUMNS = f"""([id, name, share]) => {{
  {COPIED}"""
COLUMNS += """
  const canvas = document.querySelector(id);
  const row = Math.min(canvas.height - 4, Math.round(canvas.height * share));
  document.getElementById("probe").style.color = `var(${name})`;
  const [r, g, b] = getComputedStyle(document.getElementById("probe")).color.match(/[\\d.]+/g).map(Number);
  const { data } = copied(canvas).getImageData(0, row, canvas.width, 3);
  let count = 0;
  for (let x = 0; x < canvas.width; x++) {
    const near = [0, 1, 2].some((y) => {
      const n = 4 * (y * canvas.width + x);
      const off = Math.abs(data[n] - r) + Math.abs(data[n + 1] - g) + Math.abs(data[n + 2] - b);
      return off < 150 && data[n + 3] > 60;
    });
    if (near) count++;
  }
  return count;
}"""
# Pixels from the highest to the lowest of a layer's waveform, in the middle of its lane.
TALL = f"""() => {{
  {COPIED}"""
TALL += """
  const canvas = document.querySelector("#layers canvas");
  document.getElementById("probe").style.color = "var(--wave)";
  const [r, g, b] = getComputedStyle(document.getElementById("probe")).color.match(/\\d+/g).map(Number);
  const { data } = copied(canvas).getImageData(Math.round(canvas.width / 3), 0, 40, canvas.height);
  const rows = new Set();
  for (let n = 0; n < data.length; n += 4) {
    const off = Math.abs(data[n] - r) + Math.abs(data[n + 1] - g) + Math.abs(data[n + 2] - b);
    if (off < 12) rows.add(Math.floor(n / 160));
  }
  return rows.size;
}"""


def test_frames_that_come_unevenly_are_stepped_to(
    studio: Studio, browser: Any, faults: list[str], tmp_path: Path
) -> None:
    times = [n / 30 for n in range(30)] + [3.0, 4.0]
    write_timed(tmp_path / "burst.mp4", times=times)
    film = (tmp_path / "burst.mp4").read_bytes()
    project = studio.ask("/projects", film, "burst.mp4")["project"]["id"]
    studio.add(project, "tone", tone(300, 3.6))
    page = open_page(browser, studio, project, faults)
    until(lambda: bool(page.evaluate(CUTS.replace("cuts", "frames"))))
    page.locator("#timeline .label").first.click()
    for key, frame in (*[("ArrowRight", n) for n in range(1, 32)], ("ArrowLeft", 30), ("ArrowLeft", 29)):
        page.keyboard.press(key)
        assert page.locator("#frame").inner_text() == f"f {frame}"
        assert page.evaluate(POSITION) == pytest.approx(times[frame], abs=2e-3)
    shown = "Math.abs(document.getElementById('picture').currentTime - {})"
    until(lambda: page.evaluate(shown.format(times[29])) < 0.02)

    # Delete on a layer's name: the focus goes on to the next one's, in the end to what makes another
    second = studio.add(project, "second", tone(300, 1.0))
    page.locator("#layers .name", has_text="second").wait_for()
    page.locator("#layers .name").first.focus()
    page.keyboard.press("Delete")
    until(lambda: [layer["id"] for layer in studio.layers(project)] == [second["id"]])
    until(lambda: page.evaluate("document.activeElement.textContent") == "second")
    page.keyboard.press("Delete")
    until(lambda: page.evaluate("document.activeElement.id") == "make")


def test_quiet_sounds_are_seen(studio: Studio, project: str, browser: Any, faults: list[str]) -> None:
    studio.add(project, "quiet", tone(300, 3.6, 0.004))  # -48 dB: half a step of the outline that is fetched
    page = open_page(browser, studio, project, faults)
    until(lambda: page.evaluate(TALL) >= 1)
    assert page.evaluate(TALL) <= 3
    rows = [page.evaluate(TALL)]
    for _ in range(2):
        page.keyboard.press("w")
    assert page.locator("#tall").input_value() == "4"
    page.locator("#tall").select_option("32")
    until(lambda: page.evaluate(TALL) > rows[0] + 3)
    page.locator("#tall").select_option("fill the lanes")
    lane = page.evaluate("document.querySelector('#layers canvas').height")
    until(lambda: page.evaluate(TALL) > 0.5 * lane)
    # only its drawing is: the layer is as loud as before
    assert studio.layers(project)[0]["gain_db"] == 0
    page.locator("#timeline .label").first.click()
    for _ in range(9):
        page.keyboard.press("Shift+W")
    assert page.locator("#tall").input_value() == "1"
    until(lambda: page.evaluate(TALL) <= 3)


def test_many_cuts_and_marks_leave_the_ruler_readable(
    studio: Studio, project: str, browser: Any, faults: list[str]
) -> None:
    studio.add(project, "tone", tone(300, 3.6))
    page = open_page(browser, studio, project, faults)
    found: dict[str, Any] = {"cuts": [], "motion": [], "frames": None, "onsets": {}}
    answer: dict[str, Any] = {}  # the route of a request that waits
    page.route("**/analysis", lambda route: answer.update(route=route))

    # while they are looked for the page says so
    page.reload()
    page.get_by_text("Reading what moves in the picture").wait_for()
    answer["route"].fulfill(json=found)
    page.locator("#job-analysis").wait_for(state="detached")
    page.unroute("**/analysis")
    page.route("**/analysis", lambda route: route.fulfill(json=found))

    def shown(cuts: int, marks: int) -> None:
        found["cuts"] = np.linspace(0.01, 3.99, cuts).tolist()
        times = np.linspace(0.1, 3.9, marks).tolist()
        studio.do(project, "set", marks=[{"time": at, "label": f"Mark {n}"} for n, at in enumerate(times)])
        page.reload()
        until(lambda: len(page.evaluate(CUTS)) == cuts)
        page.wait_for_timeout(200)

    shown(0, 0)
    bare = page.evaluate(PIXELS, "#ruler")
    shown(1000, 0)
    assert page.evaluate(PIXELS, "#ruler") == bare, "cuts cross the numbers"
    columns = page.evaluate(COLUMNS, ["#layers canvas", "--cut", 0.99])
    assert 50 < columns < page.evaluate("document.querySelector('#layers canvas').width") / 5
    # names while they have room, else only where they are
    wide = page.evaluate("document.querySelector('#ruler').width")
    shown(0, 3)
    assert 3 * 25 < page.evaluate(COLUMNS, ["#ruler", "--flag", 0.05]) < wide / 3
    shown(0, 100)
    assert page.evaluate(COLUMNS, ["#ruler", "--flag", 0.05]) < 60, "they cross the numbers"
    assert 90 < page.evaluate(COLUMNS, ["#ruler", "--flag", 0.43]) < wide * 0.6


@pytest.mark.parametrize("width, dark", [(390, True), (1440, False), (2560, True)])
def test_sizes(studio: Studio, project: str, browser: Any, faults: list[str], width: int, dark: bool) -> None:
    studio.add(project, "A name that is rather long for the head of a layer", tone(300, 3.0))
    studio.do(project, "set", marks=[{"id": "a", "time": 1.0, "label": "Door"}])
    page = open_page(
        browser,
        studio,
        project,
        faults,
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
    )
    for summary in page.locator("#lists summary").all():
        summary.click()
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(TORN) == []
    assert not page.evaluate(SIDEWAYS)
    heads = page.evaluate("document.querySelector('.layer .head').getBoundingClientRect().right")
    canvas = page.locator("#layers canvas").bounding_box()
    assert canvas["x"] + canvas["width"] > width - 20, "the lanes end before the window does"
    assert canvas["x"] == pytest.approx(0 if width < 960 else heads, abs=1)
