"""Models of one's own in the studio: a folder is sent, looked at and learned; cut off, cancelled, refused."""

from __future__ import annotations

import json
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from helpers.disk import files_of_at_most
from helpers.tiny import write_model, write_video
from vab.inference.pipeline import VABPipeline
from vab.studio import teaching as teachings
from vab.studio.project import Projects
from vab.studio.queue import UserError
from vab.studio.service import StudioService
from vab.studio.takes import TakeMaker
from vab.studio.teaching import Teaching
from vab.web.access import Access, listen

testclient = pytest.importorskip("starlette.testclient", reason="no web server: pip install 'vab[studio]'")
from vab.studio.server import make_app  # noqa: E402
from vab.web.server import make_server  # noqa: E402

RATE = 16000


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioService]:
    maker = TakeMaker(VABPipeline.from_pretrained(model, device="cpu"))
    service = StudioService(maker, Projects(tmp_path_factory.mktemp("projects")))
    yield service
    service.close()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sounds and a picture of a door, four films of a dog."""
    root = tmp_path_factory.mktemp("labelled")
    (root / "front door").mkdir()
    (root / "dog" / "garden").mkdir(parents=True)
    for n in range(4):
        wave = 0.3 * np.sin(np.arange(RATE) * (0.2 + 0.01 * n))
        wavfile.write(root / "front door" / f"{n}.wav", RATE, wave.astype(np.float32))
        write_video(root / "dog" / "garden" / f"{n}.mp4", 12, 12)
    Image.new("RGB", (96, 96), (20, 60, 220)).save(root / "front door" / "picture.png")
    return root


class Page:
    """The page of projects of a studio."""

    def __init__(self, service: StudioService, teaching: Teaching, access: Access) -> None:
        self.teaching = teaching
        self.client = testclient.TestClient(
            make_app(service, "test", access, teaching), base_url="http://localhost"
        )

    def ask(self, verb: str, **values: str) -> Any:
        return self.client.post(f"/models/do/{verb}", json=values)

    def put(self, number: str, name: str, content: bytes) -> Any:
        headers = {"File-Name": quote(name), "Folder": number}
        return self.client.post("/models/files", content=content, headers=headers)

    def send(self, folder: Path) -> str:
        """Send all of a folder; its number."""
        number = str(self.ask("begin").json()["number"])
        for path in sorted(folder.rglob("*.*")):
            answer = self.put(number, path.relative_to(folder).as_posix(), path.read_bytes())
            assert answer.status_code == 200, answer.text
        return number

    def begin(self, folder: Path, name: str) -> None:
        self.ask("look", number=self.send(folder))
        answer = self.ask("start", name=name)
        assert answer.status_code == 200, answer.text

    @property
    def shown(self) -> dict[str, Any]:
        return dict(self.client.get("/models").json())

    def until(self, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        limit = time.monotonic() + 100
        while True:
            making = self.shown["making"] or {"state": "none"}
            if holds(making):
                return dict(making)
            assert time.monotonic() < limit and making["state"] not in ("failed", "done"), making
            time.sleep(0.05)


Open = Callable[..., Page]


@pytest.fixture
def open_page(service: StudioService, model: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens a studio whose models lie in ``models``; it is ended with the test."""
    opened = []

    def open_one(steps: int = 3, access: Access | None = None) -> Page:
        teaching = Teaching(tmp_path / "models", model, steps=steps, device="cpu")
        opened.append(Page(service, teaching, access or Access()))
        return opened[-1]

    yield open_one
    for page in opened:
        page.teaching.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_folder_becomes_a_model_of_ones_own(open_page: Open, labelled: Path, tmp_path: Path) -> None:
    page = open_page()
    assert page.shown["making"] is None and page.shown["models"] == []
    assert not (tmp_path / "models").exists()

    # What it has is shown before anything is learned, with what is missing and what cannot be used.
    folder = Path(shutil.copytree(labelled, tmp_path / "mine"))
    (folder / "bell").mkdir()
    shutil.copy(folder / "front door" / "0.wav", folder / "bell" / "one.wav")
    (folder / "dog" / "broken.jpg").write_bytes(b"no picture")
    number = page.send(folder)
    assert page.shown["making"] == {"state": "arriving", "files": 11}
    found = page.ask("look", number=number).json()["making"]
    assert found["state"] == "found" and found["labels"] == [
        {"name": "bell", "sounds": 1, "pictures": 0, "lacks": ["3 more sounds", "a picture"]},
        {"name": "dog", "sounds": 4, "pictures": 4, "lacks": []},
        {"name": "front_door", "sounds": 4, "pictures": 1, "lacks": []},
    ]
    assert [line.split(":")[0] for line in found["left_out"]] == ["dog/broken.jpg"]

    # It is learned in steps that are told, and then it is a model like any other.
    seen = []
    page.ask("start", name="My  doors")

    def done(making: dict[str, Any]) -> bool:
        if making["state"] == "learning" and (making["step"], making["doing"]) not in seen:
            seen.append((making["step"], making["doing"]))
        return bool(making["state"] == "done")

    made = page.until(done)
    assert made["name"] == "My doors" and made["labels"] == ["dog", "front_door"]
    assert len(made["left_out"]) == 1 and "bell: has 1 sound " in made["left_out"][0]
    assert {"starting"} < {doing for _, doing in seen}
    told = json.dumps([made, seen])
    assert str(tmp_path) not in told
    path = tmp_path / "models" / "My doors"
    (shown,) = page.shown["models"]
    assert shown["name"] == "My doors" and shown["labels"] == ["dog", "front_door"]
    assert shlex.split(shown["command"])[-2:] == ["--model", str(path)]
    assert names(tmp_path / "models") == ["My doors"]
    classes = VABPipeline.from_pretrained(path, device="cpu").embedder.classifier[1].classes
    assert classes == ("bell", "cat", "dog", "front_door")

    # Its name is taken now, whatever the case of its letters.
    page.ask("look", number=page.send(labelled))
    answer = page.ask("start", name="my doors")
    assert answer.status_code == 409 and "There is a model my doors already" in answer.json()["error"]
    assert "A name has" in page.ask("start", name="../mine").json()["error"]
    assert page.ask("cancel").json()["making"] is None and names(tmp_path / "models") == ["My doors"]


def test_cut_off_it_goes_on(open_page: Open, labelled: Path, tmp_path: Path) -> None:
    page = open_page(steps=100)
    page.begin(labelled, "mine")
    work = tmp_path / "models" / ".teaching" / "model.learning" / "vab" / "checkpoints"
    page.until(lambda making: making["doing"].startswith("training, 100") and making["left"] is not None)
    page.until(lambda making: list(work.glob("0*")))

    # Another studio on the same folder does not interfere.
    other = open_page(steps=100)
    assert other.shown["making"] is None
    refused = other.ask("begin").json()["error"]
    assert "nother process" in refused and refused.endswith("."), refused
    assert other.ask("cancel").status_code == 200 and work.exists()

    # Its process ends when the studio does, however that ends: what it is asked by is closed.
    child = page.teaching._child
    assert child is not None and child.stdin is not None
    page.teaching._id = "closed"
    child.stdin.close()
    assert child.wait(20) == 1
    page.teaching.close()
    assert names(tmp_path / "models") == [".teaching"]

    # The next one goes on by itself. A full disk stops it too, until there is room.
    with files_of_at_most(20_000):
        page = open_page(steps=100)
        failed = page.until(lambda making: making["state"] == "failed")
    assert failed["error"] == "This could not be done: File too large." and failed["name"] == "mine"
    page.ask("start", name="")
    making = page.until(lambda making: making.get("doing", "").startswith("training"))
    assert "going on at" in making["doing"]
    assert page.until(lambda making: making["state"] == "done")["name"] == "mine"
    assert names(tmp_path / "models") == ["mine"]


def test_cancelled_nothing_is_left(open_page: Open, labelled: Path, tmp_path: Path) -> None:
    page = open_page(steps=100_000)
    page.begin(labelled, "mine")
    assert "already" in page.ask("begin").json()["error"]
    assert page.teaching._child is not None
    page.teaching._child.kill()
    assert "was killed" in page.until(lambda making: making["state"] == "failed")["error"]
    page.ask("start", name="")
    page.until(lambda making: making["doing"].startswith("training"))
    child = page.teaching._child
    assert page.ask("cancel").json()["making"] is None
    assert child is not None and child.poll() is not None
    assert names(tmp_path / "models") == []

    # So it is with a folder that was sent only, and files that come late.
    before = page.ask("begin").json()["number"]
    number = page.send(labelled)
    assert page.ask("cancel", number=before).json()["making"]["state"] == "arriving"
    page.ask("cancel")
    late = page.put(number, "dog/late.mp4", b"film")
    assert late.status_code == 409 and "given up" in late.json()["error"]
    assert names(tmp_path / "models") == []
    page.send(labelled)
    page.teaching.close()
    assert open_page().shown["making"] is None and names(tmp_path / "models") == []


def test_what_cannot_be_is_refused(
    open_page: Open, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page()
    number = page.ask("begin").json()["number"]
    strange = ["a.wav", "/etc/a.wav", "../a.wav", "a/../b.wav", "door/.hidden.wav", "door//a.wav", "d/\0.wav"]
    strange += ["door/a.exe", "door/" + "x" * 201 + ".wav", "a/" * 8 + "a.wav", "door\\a/b.wav"]
    for name in strange:
        answer = page.put(number, name, b"sound")
        assert answer.status_code == 422 and answer.json()["error"].endswith("."), name
    assert not list((tmp_path / "models").rglob("*.wav")) and names(tmp_path) == ["models"]
    assert page.ask("nothing").status_code == 404
    assert page.ask("start", name="mine").status_code == 409

    # Another kind of model; too many files; nothing in them; nothing that is enough.
    other = Teaching(tmp_path / "models", write_model(tmp_path / "other", "foleygen-tiny"))
    with pytest.raises(UserError, match="only VAB"):
        other.begin()
    monkeypatch.setattr(teachings, "MAX_FILES", 1)
    assert page.put(number, "door/a.wav", b"sound").status_code == 200
    assert "too large" in page.put(number, "door/b.wav", b"sound").json()["error"]
    answer = page.ask("look", number=number)
    assert answer.status_code == 409 and "nothing in this folder" in answer.json()["error"]
    assert "door/a.wav" in answer.json()["error"] and str(tmp_path) not in answer.text
    assert page.shown["making"] is None
    number = page.ask("begin").json()["number"]
    page.put(number, "door/a.wav", (labelled / "front door" / "0.wav").read_bytes())
    page.ask("look", number=number)
    assert "nothing to learn" in page.ask("start", name="mine").json()["error"]


def test_where_others_can_come_in_no_path_is_told(open_page: Open, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "models" / "mine")
    open_to_all = Access(names=frozenset({"localhost", "box"}), token="t" * 20, everywhere=True)
    page = open_page(access=open_to_all)
    assert page.client.get("/models").status_code == 401 and page.ask("begin").status_code == 401
    page.client.headers["Authorization"] = f"Bearer {open_to_all.token}"
    (shown,) = page.shown["models"]
    assert shown == {"name": "mine", "labels": [], "command": "vab studio --model models/mine", "used": False}


def test_a_model_of_ones_own_is_deleted_unless_it_is_used(
    open_page: Open, service: StudioService, model: Path, tmp_path: Path
) -> None:
    page, models = open_page(), tmp_path / "models"
    for name in ("mine", "theirs", "base", "ours"):
        shutil.copytree(model, models / name)
    (models / "linked").symlink_to(model)
    (models / ".half.deleted").mkdir()  # by a process that was killed
    theirs = Teaching(models, models / "theirs")  # another studio
    ours = Page(service, Teaching(models, models / "ours"), Access())
    (models / ".teaching").mkdir()
    (models / ".teaching" / "job.json").write_text(json.dumps({"model": str(models / "base")}))
    used = {each["name"]: each["used"] for each in page.shown["models"]}
    # The link leads to the model of this studio.
    assert used == {"base": True, "linked": True, "mine": False, "ours": True, "theirs": True}
    for name in ("base", "linked", "ours", "theirs"):
        answer = page.ask("delete", name=name)
        assert answer.status_code == 409 and "in use" in answer.json()["error"]
    assert "in use" in ours.ask("delete", name="ours").json()["error"]
    for name in ("vab-tiny", "..", ".", "", ".teaching", "../projects", str(model), "Mine"):
        assert "no such model" in page.ask("delete", name=name).json()["error"]
    assert page.ask("delete").status_code == 409

    # What is used by nobody goes; of a link, the link alone.
    theirs.close()
    assert [each["name"] for each in page.ask("delete", name="theirs").json()["models"]] == [
        *("base", "linked", "mine", "ours")
    ]
    page.ask("delete", name="mine")
    assert page.ask("delete", name="mine").status_code == 409
    page.teaching.close()
    ours.ask("delete", name="linked")
    ours.teaching.close()
    assert names(models) == [".teaching", "base", "ours"] and (model / "config.json").is_file()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve in a thread of this process; gives the address."""
    listener = listen("127.0.0.1", 0)
    web = make_server(app, Access())
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        web.should_exit = True
        thread.join(20)


@pytest.mark.slow
def test_a_walk_from_a_folder_to_a_model(
    browser: Any, service: StudioService, model: Path, labelled: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(labelled, tmp_path / "mine"))
    (folder / "bell").mkdir()
    shutil.copy(folder / "front door" / "0.wav", folder / "bell" / "one.wav")
    (folder / "notes.txt").write_text("what is where")
    flat = Path(shutil.copytree(labelled / "front door", tmp_path / "flat"))
    own = StudioService(service.maker, Projects(tmp_path / "projects"))
    teaching = Teaching(tmp_path / "projects" / "models", model, steps=40, device="cpu")
    faults: list[str] = []
    with served(make_app(own, "test", None, teaching)) as link:
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        page.set_default_timeout(100_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{link}#teach")
        section = page.locator("#teach")

        # A folder without subfolders is refused before anything is sent.
        page.locator("#folder").set_input_files(flat)
        page.get_by_text("This folder has no subfolders").wait_for()
        assert teaching.state() is None

        # What was found is shown; nothing is learned until somebody says so.
        page.locator("#folder").set_input_files(folder)
        section.get_by_role("row", name="dog 4 4 Yes").wait_for()
        section.get_by_role("row", name="bell 1 0 No, it needs 3 more sounds and a picture").wait_for()
        healthy(page)
        page.reload()
        section.get_by_role("row", name="front door 4 1 Yes").wait_for()
        section.get_by_label("Name of the model").fill("doors")
        section.get_by_role("button", name="Learn").click()
        section.get_by_text("Learning doors: step").wait_for()
        healthy(page)
        section.get_by_text("doors has learned dog, front door. Left out: bell").wait_for()

        # It is offered with the command that opens it, which can be copied.
        command = section.locator("code").text_content()
        assert command is not None and command.endswith(f"--model {teaching.folder / 'doors'}")
        section.get_by_role("button", name="Copy the command for doors").click()
        section.get_by_text("Copied").or_(section.get_by_text("Selected")).wait_for()
        healthy(page)

        # Another one is given up.
        page.locator("#folder").set_input_files(folder)
        section.get_by_role("row", name="dog 4 4 Yes").wait_for()
        section.get_by_role("button", name="Cancel").click()
        section.get_by_text("Choose a folder").wait_for()
        assert names(teaching.folder) == ["doors"]

        # A model is deleted once that was confirmed; the one that the studio uses cannot be.
        shutil.copytree(model, teaching.folder / "ours")
        ours = Teaching(teaching.folder, teaching.folder / "ours", device="cpu")
        page.reload()
        section.get_by_text("in use").wait_for()
        delete = section.get_by_role("button", name="Delete")
        assert delete.evaluate_all("all => all.map(one => one.ariaLabel)") == ["Delete doors"]
        dialog = page.get_by_role("dialog", name="Delete doors?")
        delete.click()
        healthy(page)
        dialog.get_by_role("button", name="Keep it").click()
        dialog.wait_for(state="hidden")
        assert names(teaching.folder) == ["doors", "ours"]
        delete.click()
        dialog.get_by_role("button", name="Delete it").click()
        delete.wait_for(state="detached")
        assert names(teaching.folder) == ["ours"]
        assert page.evaluate("document.activeElement.ariaLabel") == "Copy the command for ours"
        ours.close()
    assert faults == []


def healthy(page: Any) -> None:
    """No fault that axe calls serious, nothing beyond the side of the page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    grave = [
        fault for fault in axe.run(page).response["violations"] if fault["impact"] in ("serious", "critical")
    ]
    assert grave == []
    assert not page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
