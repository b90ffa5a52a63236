"""No request, however strange, makes the studio fail: what it cannot do it refuses with a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from helpers.tiny import write_model, write_video
from vab.inference.pipeline import VABPipeline
from vab.library.library import Library
from vab.studio.library_view import LibraryView
from vab.studio.project import Projects
from vab.studio.queue import INTERNAL_ERROR
from vab.studio.service import StudioService
from vab.studio.takes import TakeMaker
from vab.studio.uploads import prepare

testclient = pytest.importorskip("starlette.testclient", reason="no web server: pip install 'vab[studio]'")
pytest.importorskip("lancedb", reason="no library: pip install 'vab[search]'")
from vab.studio.server import make_app  # noqa: E402

NAMES = ["layer", "layers", "sound", "name", "at", "by", "row", "start", "stop", "offset", "fade_in"]
NAMES += ["fade_out", "gain_db", "mute", "solo", "from", "to", "rest", "seconds", "count", "seed", "steps"]
NAMES += ["guidance", "temperature", "timing", "marks", "curve", "settings", "what", "format", "channels"]
NAMES += ["loudness", "kind", "past_end", "time", "label", "id", "events", "level"]
LAYER, SOUND = "a-layer-that-is-there", "a-sound-that-is-there"
WORDS = [LAYER, SOUND, "", "picture", "nothing", "mix", "film", "stems", "markers", "wav", "flac", "curve"]
WORDS += ["motion", "make", "text:a", "label:", "text:" + "a " * 500, "\0", "../..", "a/b", "CON", "ä" * 300]
NUMBERS = [0, 1, -1, 2, 0.5, 1e-300, 1e15, -1e15, 1e17, 10**400, 2**53, 2**63]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, StudioService]]:
    """A client, the address of a project with a layer, and the service behind them."""
    folder = tmp_path_factory.mktemp("studio")
    maker = TakeMaker(VABPipeline.from_pretrained(write_model(folder / "model", timing=True), device="cpu"))
    embedder = maker.pipeline.embedder
    (folder / "sounds").mkdir()
    film = write_video(folder / "sounds" / "film.mp4", 10, 10)
    made = Library.create(folder / "library")
    list(made.add([film], embedder.embed_files, embedder.fingerprint()))
    view = LibraryView(Library.open(folder / "library"))
    service = StudioService(maker, Projects(folder / "projects"), view)
    with service.projects.new_folder() as place:
        project = service.create(prepare(film, place, "film.mp4"), "film")
    client = testclient.TestClient(
        make_app(service, "test"), base_url="http://localhost", raise_server_exceptions=False
    )
    address = f"/projects/{project.id}"
    assert client.post(f"{address}/do/make", json={"count": 1, "seed": 0}).status_code == 200
    assert project.jobs["make"].ended.wait(60) and project.arrangement["layers"]
    yield client, address, service
    service.close()


# What a request may hold: what makes sense, what nearly does, and what does not at all.
PLAIN = st.sampled_from([*WORDS, *NUMBERS, None, True, False, float("nan")])
PLAIN |= st.text(max_size=5) | st.floats() | st.integers()
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)
VERBS = ["add", "cancel", "export", "extend", "find", "go", "layer", "make", "order", "own", "place", "redo"]
VERBS += ["remake", "remove", "rename", "set", "understand", "undo"]


def check(answer: Any, asked: Any) -> None:
    assert answer.status_code < 500, (asked, answer.text[:300])
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error[0].isupper() and error.endswith("."), (asked, error)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(VERBS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_any_values_of_any_verb(
    studio: tuple[Any, str, StudioService], verb: str, values: dict[str, Any]
) -> None:
    client, address, service = studio
    project = service.open(address.rpartition("/")[2])
    assert set(VERBS) == set(service.verbs)
    body = json.dumps(values).replace(SOUND, next(iter(project.document["sounds"])))
    if project.arrangement["layers"]:
        body = body.replace(LAYER, project.arrangement["layers"][0]["id"])
    answer = client.post(f"{address}/do/{verb}", content=body.encode())
    check(answer, (verb, body))
    # what was accepted can be done, or is refused with a sentence later, and the project can be shown
    for kind, job in list(project.jobs.items()):
        service.queue.cancel(job)
        assert job.ended.wait(60)
        assert job.error != INTERNAL_ERROR, (kind, verb, body)
    check(client.get(f"{address}/state"), "state")


ODD = st.text(max_size=20)
ODD |= st.sampled_from(["\0", "..", ".", "%", "a" * 300, "9" * 5000, "-1", "nan", "1e400"])
PLACES = ["/{}", "/page/{}", "/library/{}.wav", "/library/0.wav?start={}", "/projects/{}", "/projects/{}/"]
PLACES += ["/projects/{}/state", "/projects/{}/poster.jpg", "/about?{}={}", "HERE/{}"]
PLACES += ["HERE/sounds/{}.wav", "HERE/sounds/{}.peaks", "HERE/sounds/SOUND.{}", "HERE/exports/{}"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), ODD, st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]))
@example("/projects/{}/state", "\0", "GET")
@example("/projects/{}/state", "a" * 300, "GET")
@example("/library/{}.wav", "9" * 5000, "GET")
def test_any_address(studio: tuple[Any, str, StudioService], place: str, odd: str, method: str) -> None:
    client, here, service = studio
    sound = next(iter(service.open(here.rpartition("/")[2]).document["sounds"]))
    odd = quote(odd, safe="", errors="replace")
    address = place.replace("HERE", here).replace("SOUND", sound).replace("{}", odd)
    answer = client.request(method, address, follow_redirects=False)
    assert answer.status_code < 500, (method, address)


@pytest.mark.parametrize("name", ["%00", "%ED%A0%80", "..%2F..%2Fa.mp4"])
def test_a_film_with_a_strange_name(
    studio: tuple[Any, str, StudioService], name: str, tmp_path: Path
) -> None:
    client, _, _ = studio
    film = write_video(tmp_path / "a.mp4", 5, 10).read_bytes()
    answer = client.post("/projects", content=film, headers={"file-name": name})
    check(answer, name)
    assert answer.status_code == 200
    check(client.get("/projects"), name)
