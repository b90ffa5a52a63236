"""Projects on the disk: nothing that was shown is lost; what cannot be used says so and stays as it is."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.disk import files_of_at_most
from helpers.tiny import write_video
from vab.studio import project as projects_module
from vab.studio.arrangement import new_layer, with_layers
from vab.studio.project import NoProject, Project, ProjectError, Projects
from vab.studio.queue import Job, JobQueue, UserError
from vab.studio.service import StudioService
from vab.studio.takes import Take, TakeMaker
from vab.studio.uploads import Clip, make_clip
from vab.utils import files as files_module
from vab.utils.files import write_whole
from vab.utils.progress import StageProgress

ROOT = Path(__file__).parents[1]
SETTINGS = {"count": 2, "seed": 0, "steps": 4, "guidance": 3.0, "temperature": 1.0, "timing": "none"}


@pytest.fixture(scope="module")
def maker(model: Path) -> TakeMaker:
    from vab.inference.pipeline import VABPipeline

    return TakeMaker(VABPipeline.from_pretrained(model, device="cpu"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a clip."""
    folder = tmp_path_factory.mktemp("clip")
    upload = write_video(folder / "upload.mp4", 10, 10)
    make_clip(upload, folder)
    return folder


@pytest.fixture
def projects(tmp_path: Path) -> Iterator[Projects]:
    projects = Projects(tmp_path / "projects")
    yield projects
    projects.close()


@pytest.fixture
def new(made: Path, projects: Projects) -> Callable[..., Project]:
    """Makes projects."""

    def new(name: str = "dog", into: Projects = projects) -> Project:
        with into.new_folder() as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
            clip = Clip(folder, "video", "dog.mp4", "upload.mp4", 1.0, 10.0, 64, 48, (64, 48), True)
            return into.create(clip, name, SETTINGS)

    return new


def sound(seed: int = 0, editable: bool = True) -> Take:
    wave = (0.1 * np.random.default_rng(seed).standard_normal(16_000)).clip(-1, 1).astype(np.float32)
    heard = np.repeat(wave, 3)[None]
    return Take(f"Seed {seed}", heard, wave if editable else None, wave if editable else None)


def put(project: Project, take: Take) -> str:
    """Add a sound with its layer, in one step; its id."""
    name, about = project.write_sound(take), take.about("take")
    layer = new_layer(name, about)
    project.change("made", lambda now: with_layers(now, [*now["layers"], layer]), {name: about})
    return name


def test_a_project_is_there_again(new: Callable[..., Project], projects: Projects, tmp_path: Path) -> None:
    project = new("Mein Hund: große Runde / 2")
    assert project.id.startswith("mein-hund-grosse-runde-2-") and len(project.id) == 31
    names = [put(project, sound(seed)) for seed in range(3)]
    project.change("emptied", lambda now: with_layers(now, []))
    project.go(2)
    project.rename("Dog")
    document = project.document
    projects.close()

    # Opened again, also where its folder was copied to under another name.
    elsewhere = Projects(tmp_path / "another machine")
    shutil.copytree(project.folder, elsewhere.folder / "copy of dog")
    for again in (projects.open(project.id), elsewhere.open("copy of dog")):
        assert again.document == document and again.document["at"] == 2
        for seed, name in enumerate(names):
            wave = sound(seed)
            take = again.take(name)
            assert np.array_equal(take.waveform, wave.waveform) and np.array_equal(take.raw, wave.raw)
            assert np.abs(take.heard - wave.heard).max() < 2**-23
            assert again.path(name, "png").is_file()
        assert again.problems() == []
        again.go(4)
        assert again.arrangement["layers"] == [] and again.document["id"] == again.folder.name
    elsewhere.close()


def test_sounds_go_with_the_last_step_that_has_them(
    new: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = new()
    files = project.folder / "sounds"
    first, second = put(project, sound(0)), put(project, sound(1))
    (files / f"{second}.peaks").touch()
    (files / "mine.wav").touch()  # of the user
    project.go(1)
    third = put(project, sound(2))  # what was undone is gone now
    assert set(project.document["sounds"]) == {first, third}
    assert {path.name.split(".")[0] for path in files.iterdir()} == {first, third, "mine"}

    monkeypatch.setattr(projects_module, "MAX_STEPS", 3)
    project.change("emptied", lambda now: with_layers(now, []))
    assert len(project.document["history"]) == 3 and project.document["at"] == 2
    assert set(project.document["sounds"]) == {first, third}, "an undo would give them back"
    for _ in range(2):
        project.change("nothing", dict)
    # A history that was longer: the steps at its beginning go, and the current one stays so.
    project.go(1)
    monkeypatch.setattr(projects_module, "MAX_STEPS", 2)
    project.change("amended", dict, None, project.document["history"][-1])
    assert [step["did"] for step in project.document["history"]] == ["nothing", "amended"]
    assert project.document["at"] == 0
    assert not project.document["sounds"] and [path.name for path in files.iterdir()] == ["mine.wav"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 4096, "it is empty"),
        (b'{"format": "vab project 1", "id"', "it ends in the middle"),
        (b'{"format": "vab project 1", "name": "a dog', "it ends in the middle"),
        (b'{"format": "vab project 1",\n\n}', r"changed by another program, or its disk failed \(line 3\)"),
        (b"\xff\xfe\xfd", "something else than a project"),
        (b"[]", "is damaged"),
        (b"[" * 100_000, "nested too deeply"),
        (
            {"format": "vab project 2"},
            r"newer version of vab \(format 2, and this one reads up to 1\): update vab",
        ),
        ({"format": None}, '"format"'),
        ({"format": "vab project one"}, '"format"'),
        ({"name": 3}, "is damaged"),
        ({"sounds": None}, "is damaged"),
        ({"sounds": {"../../etc/passwd": {}}}, "no name of a sound"),
        ({"sounds": {}}, "which is not in the list"),
        ({"history": []}, "no step"),
        ({"history": [{"did": "made"}] * 2}, "'arrangement' is missing"),
        ({"at": 9}, "no step"),
        ({"at": "1"}, "is damaged"),
        ({"clip": {}}, "is damaged"),
        ({"clip": "upload"}, "../upload.mp4"),
        ({"layer": "mute"}, "'mute' is missing"),
        ({"layer": "start"}, "'start' is missing"),
    ],
)
def test_what_cannot_be_opened_says_why_and_stays(
    new: Callable[..., Project], projects: Projects, content: Any, reason: str
) -> None:
    project = new()
    put(project, sound())
    projects.close()
    document = json.loads((project.folder / "project.json").read_bytes())
    if isinstance(content, dict):
        if "layer" in content:
            del document["history"][1]["arrangement"]["layers"][0][content["layer"]]
        elif content == {"clip": "upload"}:
            document["clip"]["upload"], reason = "../upload.mp4", "its clip is none"
        else:
            document |= content
        content = json.dumps(document).encode()
    (project.folder / "project.json").write_bytes(content)
    before = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}

    with pytest.raises(ProjectError, match=reason) as caught:
        projects.open(project.id)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    for word in ("Expecting", "delimiter", "char ", "codec", "object", "subscriptable", "argument"):
        assert word not in str(caught.value), "words of a parser"
    [entry] = projects.entries()
    assert entry["id"] == project.id and entry["problem"] == str(caught.value) and entry["poster"]
    after = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    assert after == before
    # A copy of the file that was put back opens it, without a restart.
    (project.folder / "project.json").write_text(json.dumps(project.document))
    assert projects.open(project.id).document == project.document
    assert projects.entries()[0]["problem"] is None


# What is put into a document that was whole, by where: each breaks a page or a job.
INSIDE: dict[str, list[Any]] = {
    "at": [0.5, True, None],
    "name": ["\ud800", 1],
    "clip.seconds": [1e9, 0, float("nan"), "1"],
    "clip.fps": [0, -1, True],
    "clip.upload": ["", ".", "..", "../upload.mp4", "upload\0.mp4", "project.json"],
    "clip.width": [0, 64.5],
    "clip.shown": [[64], [64, "48"]],
    "clip.has_sound": ["no"],
    "clip.timecode": [1],
    "sounds.ID.seconds": [1e9, 0, float("inf")],
    "sounds.ID.score": ["good", True, float("nan"), [1]],
    "sounds.ID.timings": [{"sampling": "long"}, [1], None],
    "sounds.ID.again": [["0", "1"], 1],
    "sounds.ID.made_with": [None, "vab"],
    "sounds.ID.channels": ["2"],
    "sounds.ID.editable": [1],
    "sounds.ID.num_tries": [0.5],
    "sounds.ID.parent": [1],
    "history.1.arrangement.settings": [{}, {"seed": 0}, []],
    "history.1.arrangement.marks": [[{"time": 1.0}], [{"id": 1, "time": 1.0, "label": ""}]],
    "history.1.arrangement.curve": [{"events": []}],
    "history.1.arrangement.layers": [{}],
    "history.1.arrangement.layers.0.stop": [100.0],
    "history.1.arrangement.layers.0.fade_in": [1e12],
}


def test_one_bad_document_spoils_nothing_else(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker
) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="pip install 'vab[studio]'")
    from vab.studio.server import make_app

    whole, bad = new("whole"), new("bad")
    name = put(bad, sound())
    written = (bad.folder / "project.json").read_text()
    projects.close()
    service = StudioService(maker, projects)
    client = testclient.TestClient(make_app(service, "test"), base_url="http://127.0.0.1:7860")
    for where, values in INSIDE.items():
        *keys, last = (int(key) if key.isdigit() else key for key in where.replace("ID", name).split("."))
        for value in values:
            document = inner = json.loads(written)
            for key in keys:
                inner = inner[key]
            inner[last] = value
            (bad.folder / "project.json").write_text(json.dumps(document))
            entries = {entry["id"]: entry["problem"] for entry in client.get("/projects").json()}
            assert entries.keys() == {whole.id, bad.id} and entries[whole.id] is None, (where, value)
            assert entries[bad.id] and "is damaged" in entries[bad.id], (where, value)
            assert client.get(f"/projects/{bad.id}/state").status_code == 409
    (bad.folder / "project.json").write_text(written)
    assert client.get(f"/projects/{bad.id}/state").status_code == 200
    service.close()


def test_a_sound_that_is_missing_is_told(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker
) -> None:
    project = new()
    kept, lost = put(project, sound(0)), put(project, sound(1))
    path = project.path(lost)
    path.rename(path.with_suffix(".away"))
    projects.close()
    service = StudioService(maker, projects)
    project = service.open(project.id)
    [problem] = service.state(project)["problems"]
    assert problem == f"The sound “Seed 1” cannot be read: put sounds/{lost}.wav back, or remove its layer."
    layers = project.arrangement["layers"]
    service.remake(project, {"layer": layers[1]["id"], "from": 0.1, "to": 0.5})
    assert project.jobs["make"].ended.wait(60) and "cannot be read" in project.jobs["make"].error
    service.remake(project, {"layer": layers[0]["id"], "from": 0.1, "to": 0.5})
    assert project.jobs["make"].ended.wait(60) and project.jobs["make"].state == "done"
    service.layer(project, {"layer": layers[1]["id"], "mute": False})
    service.export(project, {"what": "mix"})
    assert project.jobs["export"].ended.wait(60) and project.jobs["export"].error == problem
    path.with_suffix(".away").rename(path)
    assert service.state(project)["problems"] == [] and np.abs(project.take(lost).heard).max() > 0
    assert kept in project.document["sounds"]
    service.close()


def test_another_studio_has_it_open(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker, tmp_path: Path
) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="pip install 'vab[studio]'")
    from vab.studio.server import make_app

    project = new()
    service = StudioService(maker, Projects(projects.folder))
    client = testclient.TestClient(make_app(service, "test"), base_url="http://127.0.0.1:7860")
    assert client.get("/projects").json()[0]["name"] == "dog"
    refused = client.get(f"/projects/{project.id}/state")
    assert refused.status_code == 409
    assert refused.json()["error"] == (
        f"Another process has this project open (process {os.getpid()} on {os.uname().nodename}); "
        "wait until it has ended."
    )
    assert client.post(f"/projects/{project.id}/do/undo").status_code == 409
    put(project, sound())  # the first one goes on
    projects.close()
    assert client.get(f"/projects/{project.id}/state").json()["history"] == ["project made", "made"]
    service.close()


def test_a_full_disk_leaves_everything_as_it_was(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker
) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="pip install 'vab[studio]'")
    from vab.studio.server import make_app

    project = new()
    put(project, sound())
    service = StudioService(maker, projects)
    client = testclient.TestClient(make_app(service, "test"), base_url="http://127.0.0.1:7860")
    here = f"/projects/{project.id}"
    client.get(f"{here}/state")
    assert project.jobs["look"].ended.wait(60)
    before = client.get(f"{here}/state").json()
    files = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    layer = before["arrangement"]["layers"][0]["id"]
    everything = "Everything is as it was before."

    # 1. Not even the document.
    with files_of_at_most(1000):
        for verb, values in (
            ("layer", {"layer": layer, "gain_db": -3}),
            ("undo", {}),
            ("rename", {"name": "a"}),
        ):
            refused = client.post(f"{here}/do/{verb}", json=values)
            assert refused.status_code == 507, refused.text
            assert refused.json()["error"] == f"This cannot be kept on the disk: File too large. {everything}"
    # 2. The document, but no sound.
    with files_of_at_most(20_000):
        assert client.post(f"{here}/do/make", json={"count": 1, "steps": 1}).status_code == 200
        assert project.jobs["make"].ended.wait(60)
    assert project.jobs["make"].state == "failed" and everything in project.jobs["make"].error
    # 3. A sound, but not the document that names it.
    with pytest.MonkeyPatch.context() as patch:

        def full(path: Path, data: bytes) -> None:
            with files_of_at_most(100):
                write_whole(path, data)

        patch.setattr(projects_module, "write_whole", full)
        assert client.post(f"{here}/do/make", json={"count": 1, "steps": 1}).status_code == 200
        assert project.jobs["make"].ended.wait(60)
    assert project.jobs["make"].state == "failed" and everything in project.jobs["make"].error
    # 4. No upload.
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    photo = io.BytesIO()
    Image.fromarray(noise).save(photo, "JPEG", quality=5)
    with files_of_at_most(1000):
        refused = client.post("/projects", content=photo.getvalue())
    assert refused.status_code == 507
    assert refused.json()["error"] == "This server cannot keep it just now: File too large."
    with files_of_at_most(len(photo.getvalue())):  # room for the upload, not for what is made of it
        refused = client.post("/projects", content=photo.getvalue())
        assert "cannot keep it just now" in refused.json()["error"]
    assert [path.name for path in projects.folder.iterdir()] == [project.id]

    after = client.get(f"{here}/state").json()
    assert all(after[key] == before[key] for key in ("project", "sounds", "arrangement", "history", "at"))
    assert {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()} == files
    assert client.post(f"{here}/do/layer", json={"layer": layer, "gain_db": -3}).json()["at"] == 2
    service.close()


def test_a_sound_that_the_document_names_stays(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = StudioService(maker, projects)
    project = new()

    def make() -> set[str]:
        """The files of the sounds that there are; all those that the document on the disk names."""
        service.make(project, {"count": 1, "steps": 1})
        assert project.jobs["make"].ended.wait(60) and project.jobs["make"].state == "done"
        document = json.loads((project.folder / "project.json").read_bytes())
        assert document == project.document and document["sounds"]
        there = {path.stem for path in (project.folder / "sounds").glob("*.wav")}
        assert there == document["sounds"].keys()
        return there

    # 1. What is not needed any more cannot be deleted.
    undone = put(project, sound())
    service.undo(project, {})
    (project.folder / "sounds" / f"{undone}.peaks").mkdir()
    assert undone not in make()
    # 2. The document has its name, but the disk refuses to sync its folder.
    sync_folder = files_module.sync_folder

    def refuse(folder: Path) -> None:
        if folder == project.folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync_folder(folder)

    monkeypatch.setattr(files_module, "sync_folder", refuse)
    assert len(make()) == 2
    service.close()


LINKS = ["poster.jpg", "picture.mp4", "sounds", "sounds/ID.wav", "sounds/ID.peaks", "exports/a.wav"]


@pytest.mark.parametrize("link", LINKS)
def test_nothing_outside_a_project_is_served(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker, tmp_path: Path, link: str
) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="pip install 'vab[studio]'")
    from vab.studio.server import make_app

    project = new()
    name = put(project, sound())
    (project.folder / "exports").mkdir()
    shutil.copy(project.path(name), project.folder / "exports" / "a.wav")
    # A folder of projects may lie on another disk, behind a link of its own.
    (tmp_path / "here").symlink_to(projects.folder)
    projects.close()
    service = StudioService(maker, Projects(tmp_path / "here"))
    client = testclient.TestClient(make_app(service, "test"), base_url="http://127.0.0.1:7860")
    path = link.replace("ID", name)
    addresses = [f"/projects/{project.id}/{path}"]
    if link.startswith("sounds"):
        addresses = [f"/projects/{project.id}/sounds/{name}.{ending}" for ending in ("wav", "peaks")]
    assert [client.get(address).status_code for address in addresses] == [200] * len(addresses)
    (project.folder / path).rename(tmp_path / "secret")
    (project.folder / path).symlink_to(tmp_path / "secret")
    if link == "sounds/ID.peaks":  # which is computed once more
        (tmp_path / "secret").write_bytes(b"secret")
        assert b"secret" not in client.get(addresses[1]).content
    else:
        assert [client.get(address).status_code for address in addresses] == [404] * len(addresses)
    service.close()


def test_what_nobody_looks_at_is_closed(
    new: Callable[..., Project], projects: Projects, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, busy, *others = (new(str(number)) for number in range(5))
    names = [project.id for project in (first, busy, *others)]
    monkeypatch.setattr(projects_module, "MAX_OPEN", 2)

    def still_open() -> list[bool]:
        """Asked of the locks, as another process would."""
        free = []
        for name in names:
            with suppress(ProjectError):
                Project(projects.folder / name).close()
                free.append(name)
        return [name not in free for name in names]

    projects.open(first.id)
    assert all(still_open()), "somebody may look at each"
    monkeypatch.setattr(projects_module, "IDLE_SECONDS", 0.0)
    busy.jobs["make"] = Job("make", lambda _: None)
    assert projects.open(first.id) is first
    assert still_open() == [True, True, False, False, True]
    # Who still has one that was closed cannot write over what others do.
    again = projects.open(others[0].id)
    again.rename("again")
    with pytest.raises(ProjectError, match="closed meanwhile"):
        others[0].rename("late")
    assert (
        again is not others[0] and json.loads((again.folder / "project.json").read_bytes())["name"] == "again"
    )


def test_a_job_that_has_ended_holds_nothing() -> None:
    queue = JobQueue()
    begun, go_on = threading.Event(), threading.Event()

    def job_with(take: Take) -> Job:
        def work(_: StageProgress) -> None:
            begun.set()
            go_on.wait(60)
            if take.title == "Seed 0":
                raise UserError("It fails.")

        return Job("make", work)

    sounds = [sound(seed) for seed in range(3)]
    held = [weakref.ref(each) for each in sounds]
    jobs = [job_with(each) for each in sounds]
    for job in jobs:
        queue.add(job)
    assert begun.wait(60)
    queue.cancel(jobs[2])
    go_on.set()
    assert all(job.ended.wait(60) for job in jobs)
    assert [job.state for job in jobs] == ["failed", "done", "cancelled"]
    sounds.clear()
    gc.collect()  # a traceback goes in a circle
    assert [each() for each in held] == [None, None, None]
    queue.close()


def test_a_folder_that_goes_while_it_is_open(new: Callable[..., Project], projects: Projects) -> None:
    project = new()
    put(project, sound())
    project.folder.rename(projects.folder / "another name")
    for change in (lambda: put(project, sound()), lambda: project.go(0), lambda: projects.open(project.id)):
        with pytest.raises(NoProject, match="moved or renamed"):
            change()
    assert [path.name for path in projects.folder.iterdir()] == ["another name"]
    assert projects.open("another name").document["at"] == 1
    projects.open("another name")
    projects.delete("another name")
    assert list(projects.folder.iterdir()) == [] and projects.entries() == []
    (projects.folder / ".dog.deleted").mkdir()  # by a process that was killed meanwhile
    assert not list(Projects(projects.folder).folder.iterdir())


@pytest.mark.parametrize("way", ["cut off", "newer", "lock is a link", "folder is a link"])
def test_what_cannot_be_opened_can_be_deleted(
    new: Callable[..., Project], projects: Projects, maker: TakeMaker, tmp_path: Path, way: str
) -> None:
    testclient = pytest.importorskip("starlette.testclient", reason="pip install 'vab[studio]'")
    from vab.studio.server import make_app

    whole, bad = new("whole"), new("bad")
    put(bad, sound())
    projects.close()
    document = bad.folder / "project.json"
    text = document.read_text()
    document.write_text(text.replace("vab project 1", "vab project 2") if way == "newer" else text[:300])
    # What its links lead to is not its own.
    outside = tmp_path / "outside"
    shutil.copytree(whole.folder, outside)
    (bad.folder / "exports").symlink_to(outside)
    if way == "lock is a link":
        (bad.folder / "lock").unlink(missing_ok=True)
        (bad.folder / "lock").symlink_to(outside / "project.json")
    if way == "folder is a link":
        bad.folder.rename(tmp_path / "its folder")
        bad.folder.symlink_to(tmp_path / "its folder")
    elsewhere = [whole.folder, outside, *tmp_path.glob("its folder")]

    def contents() -> dict[Path, bytes]:
        found = (path for folder in elsewhere for path in folder.rglob("*"))
        return {path: path.read_bytes() for path in found if path.is_file() and path.name != "lock"}

    before = contents()
    service = StudioService(maker, projects)
    client = testclient.TestClient(make_app(service, "test"), base_url="http://127.0.0.1:7860")
    here = f"/projects/{bad.id}"
    # Not while another process has it open: it may have been whole when that opened it.
    if way == "cut off":
        document.write_text(text)
        other = Project(bad.folder)
        document.write_text(text[:300])
        assert "has this project open" in client.delete(here).json()["error"]
        other.close()
    assert client.get(f"{here}/state").status_code == 409
    assert client.post(f"{here}/do/rename", json={"name": "a"}).status_code == 409
    assert client.delete(here, headers={"origin": "http://evil.example"}).status_code == 403
    assert os.path.lexists(bad.folder) and contents() == before
    assert client.delete(here).status_code == 200
    assert [path.name for path in projects.folder.iterdir()] == [whole.id] and contents() == before
    assert client.delete(here).status_code == 404
    assert [entry["id"] for entry in client.get("/projects").json()] == [whole.id]
    service.close()


@pytest.mark.parametrize("link", ["lock", "sounds"])
def test_nothing_outside_a_project_is_written_or_deleted(
    new: Callable[..., Project], projects: Projects, tmp_path: Path, link: str
) -> None:
    project = new()
    name = put(project, sound())
    projects.close()
    # Sounds that no step needs are deleted with the next change.
    document = json.loads((project.folder / "project.json").read_bytes())
    document["sounds"]["report"] = document["sounds"][name]
    (project.folder / "project.json").write_text(json.dumps(document))
    outside = tmp_path / "outside"
    if link == "sounds":
        shutil.copytree(project.folder / link, outside)
        (outside / "report.txt").write_text("of somebody")
        shutil.rmtree(project.folder / link)
    else:
        outside.write_text("of somebody")
        (project.folder / link).unlink()
    (project.folder / link).symlink_to(outside)
    with pytest.raises(ProjectError, match=f"{link} in its folder is a link to another place"):
        projects.open(project.id)
    assert (outside / "report.txt" if link == "sounds" else outside).read_text() == "of somebody"
    (project.folder / link).unlink()
    if link == "sounds":
        shutil.copytree(outside, project.folder / link)
    projects.open(project.id).rename("whole")


def test_the_list_has_what_was_changed_last_first(new: Callable[..., Project], projects: Projects) -> None:
    one, two = new("one"), new("Two")
    time.sleep(0.002)
    put(one, sound())
    (projects.folder / "no project").mkdir()
    (projects.folder / ".hidden").mkdir()
    (projects.folder / ".hidden" / "project.json").write_text("{}")
    entries = projects.entries()
    assert [(entry["name"], entry["num_layers"]) for entry in entries] == [("one", 1), ("Two", 0)]
    assert entries[0]["kind"] == "video" and entries[0]["seconds"] == 1.0 and entries[1]["id"] == two.id
    for name in ("", "..", "no project", ".hidden", f"{one.id}/sounds", "/etc"):
        with pytest.raises(NoProject):
            projects.open(name)


def test_a_killed_upload_leaves_no_project(new: Callable[..., Project], tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        with Projects(tmp_path / "projects").new_folder() as folder:
            (folder / "project.json").write_text("{}")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    projects = Projects(tmp_path / "projects")
    assert len(list(projects.folder.iterdir())) == 1 and projects.entries() == []
    project = new("dog", projects)
    assert [path.name for path in projects.folder.iterdir()] == [project.id], "it goes with the next one"
    projects.close()


@pytest.mark.slow
def test_kills_lose_nothing_that_was_shown(model: Path) -> None:
    """Three of the hundred kills of the recipe."""
    pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")
    command = [sys.executable, str(ROOT / "recipes" / "studio_kills.py"), "3", "--model", str(model)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] == 3 and figures["lost or damaged"] == figures["tracebacks"] == 0
    assert figures["sounds shown"] > 0
