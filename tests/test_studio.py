"""The studio without its page: uploads, takes, the queue, sessions, and what the server lets through."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from PIL import Image

from helpers.disk import files_of_at_most
from helpers.tiny import write_model, write_video
from vab.cli import main
from vab.inference.embedder import Embedder
from vab.inference.pipeline import Audio, VABPipeline
from vab.inference.splice import FADE
from vab.library.library import Library
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.loudness import measure
from vab.media.reader import probe, read_audio, write_wav
from vab.studio import takes, uploads
from vab.studio.library_view import LibraryView
from vab.studio.queue import INTERNAL_ERROR, Job, JobQueue, UserError
from vab.studio.service import StudioService
from vab.studio.sessions import SessionStore
from vab.studio.takes import Take, TakeMaker
from vab.studio.uploads import Clip, UploadError, make_clip, prepare
from vab.utils.progress import StageProgress
from vab.web import listen

pytest.importorskip("lancedb", reason="no library: pip install 'vab[search]'")
server = pytest.importorskip("vab.studio.server", reason="no web server: pip install 'vab[studio]'")
make_app = server.make_app

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def maker(model: Path) -> TakeMaker:
    return TakeMaker(VABPipeline.from_pretrained(model, device="cpu"))


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    (tmp_path / "clip").mkdir()
    return make_clip(write_video(tmp_path / "a.mkv", 30, 10), tmp_path / "clip")


@pytest.fixture
def take(maker: TakeMaker, clip: Clip) -> Take:
    return next(maker.new(clip, 1, 0, maker.pipeline.config.decode))


def test_an_upload_becomes_a_picture_a_browser_plays(tmp_path: Path) -> None:
    clip = prepare(write_video(tmp_path / "../x; rm.mkv", 20, 10), tmp_path)
    assert (clip.kind, clip.seconds, clip.width, clip.height, clip.has_sound) == ("video", 2.0, 64, 48, True)
    assert len(clip.sound()) == 32000 and np.abs(clip.sound()).max() > 0.1
    with av.open(str(clip.picture)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert not container.streams.audio
    Image.new("RGB", (3000, 1000), "red").save(tmp_path / "a.png")
    photo = prepare(tmp_path / "a.png", tmp_path)
    assert (photo.kind, photo.seconds, photo.width, photo.height) == ("image", 10.0, 1280, 427)
    assert probe(photo.source).kind == "image" and probe(photo.picture).seconds == 10.0


def test_what_cannot_be_used_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_video(tmp_path / "a.mp4", 20, 10)
    (tmp_path / "text").write_text("no video")
    (tmp_path / "half").write_bytes(video.read_bytes()[:900])
    (tmp_path / "empty").write_bytes(b"")
    for name in ("text", "half", "empty"):
        with pytest.raises(UploadError, match=r"^It cannot be used: .*\.$") as caught:
            prepare(tmp_path / name, tmp_path)
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UploadError, match="takes too long"):
        prepare(video, tmp_path, seconds=0.01)
    with pytest.raises(UploadError, match="Cancelled"):
        prepare(video, tmp_path, unwanted=lambda: True)
    monkeypatch.setattr(uploads, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    with pytest.raises(UploadError, match="64 x 48 pixels"):
        make_clip(video, tmp_path)
    monkeypatch.setattr(uploads, "MAX_FRAME_PIXELS", 64 * 48)
    monkeypatch.setattr(uploads, "MAX_VIDEO_SECONDS", 1.9)
    with pytest.raises(UploadError, match="lasts 2 s"):
        make_clip(video, tmp_path)
    monkeypatch.setattr(uploads, "MAX_PHOTO_PIXELS", 99)
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(UploadError, match="10 x 10 pixels"):
        make_clip(tmp_path / "a.png", tmp_path)


def test_a_frame_larger_than_the_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for n, size in enumerate([(64, 48), (320, 240)]):
            picture = io.BytesIO()
            Image.new("RGB", size, "red").save(picture, "JPEG")
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, n, n, Fraction(1, 10)
            container.mux(packet)
    monkeypatch.setattr(uploads, "MAX_FRAME_PIXELS", 64 * 48)
    with pytest.raises(UploadError, match="320 x 240 pixels"):
        make_clip(tmp_path / "a.mkv", tmp_path)


def test_a_limit_that_the_system_does_not_have_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    limits = {}

    def limit(kind: int, values: tuple[int, int]) -> None:
        if kind == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")  # as on a Mac
        limits[kind] = values

    monkeypatch.setattr(resource, "setrlimit", limit)
    answer = uploads._answer(write_video(tmp_path / "a.mp4", 10, 10), tmp_path)
    assert "error" not in answer and answer["seconds"] == 1.0
    assert limits[resource.RLIMIT_CPU] == (900, 900) and limits[resource.RLIMIT_CORE] == (0, 0)


def test_a_take_is_the_sound_that_generate_makes(maker: TakeMaker, clip: Clip, take: Take) -> None:
    assert np.array_equal(take.waveform, maker.pipeline.generate(clip.picture).waveform)
    assert take.score is not None and -1 <= take.score <= 1
    assert {"features", "sampling", "codec"} <= set(take.timings)
    assert probe(take.video).seconds == pytest.approx(3.0) and probe(take.video).has_audio
    assert np.abs(read_audio(take.sound) - take.waveform).max() < 1e-4
    assert take.outline.startswith("M0 ") and Image.open(take.mel).height == 96
    two = list(maker.new(clip, 2, 0, maker.pipeline.config.decode))
    assert np.array_equal(two[0].waveform, take.waveform)
    assert not np.array_equal(two[1].waveform, take.waveform)
    assert len({take.id for take in two}) == 2
    take.remove()
    assert not [path for path in (take.video, take.sound, take.mel) if path.exists()]


def test_a_clip_is_looked_at_once(
    clip: Clip, take: Take, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = TakeMaker(VABPipeline.from_pretrained(model, device="cpu"))
    maker.warm_up()
    known = maker.look(clip)
    assert known is None  # this model cannot tell
    settings = maker.pipeline.config.decode
    monkeypatch.setattr(maker.pipeline, "vision", None)  # to look again would fail
    monkeypatch.setattr(takes, "MAX_LOOKED_AT", 1)
    made = next(maker.new(clip, 1, 0, settings))
    assert np.array_equal(made.waveform, take.waveform) and made.score == take.score
    assert made.timings["decode_video"] == made.timings["features"] == 0
    again = maker.redo(clip, made, (0.0, 1.0), True, 5, settings)
    assert np.array_equal(again.waveform[16000:], made.waveform[16000:])
    longer = maker.extend(clip, made, 1.0, 5, settings)
    assert longer.seconds == 4.0


@pytest.mark.parametrize("span", [(1.0, 2.0), (0.0, 0.517), (2.4999, 9.0)])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_kept_is_bit_equal(
    maker: TakeMaker, clip: Clip, take: Take, span: tuple[float, float], inside: bool
) -> None:
    settings = maker.pipeline.config.decode
    made = maker.redo(clip, take, span, inside, seed=5, decode=settings)
    first, last = (round(min(edge, 3.0) * 16000) for edge in span)
    marked = np.zeros(len(take.waveform), bool)
    marked[first:last] = True
    new = marked if inside else ~marked
    assert np.array_equal(made.raw[~new].view(np.int32), take.raw[~new].view(np.int32))
    deep = new.copy()  # past the cross-fade there is nothing of the old take
    for edge in (first, last):
        deep[max(0, edge - FADE) : edge + FADE] = False
    assert np.mean(made.raw[deep] == take.raw[deep]) < 0.1
    again = maker.redo(clip, take, span, inside, seed=5, decode=settings)
    assert np.array_equal(made.waveform, again.waveform)
    with_another = maker.redo(clip, take, span, inside, seed=6, decode=settings)
    assert not np.array_equal(made.waveform, with_another.waveform)


def test_a_longer_take_begins_with_the_take(maker: TakeMaker, clip: Clip, take: Take) -> None:
    made = maker.extend(clip, take, 1.5, seed=1, decode=maker.pipeline.config.decode)
    assert len(made.waveform) == 72000 and made.again == (3.0, 4.5)
    assert np.array_equal(made.raw[:48000], take.raw)
    assert np.abs(made.waveform[48000 + FADE :]).max() > 0
    assert probe(made.video).seconds == pytest.approx(4.5)
    for seconds in (0, -1, 58, float("nan")):
        with pytest.raises(ValueError, match="60 s at most"):
            maker.extend(clip, take, seconds, seed=1, decode=maker.pipeline.config.decode)


def test_a_sound_that_is_there_can_be_a_take(maker: TakeMaker, clip: Clip) -> None:
    own = clip.sound()
    made = maker.place(clip, own[:40000], "as it came")
    assert np.array_equal(made.waveform[:40000], own[:40000]) and not made.waveform[40000:].any()
    assert len(made.waveform) == 48000 and made.score is not None


def test_what_an_edit_keeps_is_as_loud_as_before(maker: TakeMaker, clip: Clip, take: Take) -> None:
    settings = maker.pipeline.config.decode
    assert measure(take.waveform, 16_000).loudness == pytest.approx(-23, abs=0.2)
    made = take
    for seed in range(3):
        again = maker.redo(clip, made, (1.0, 2.0), True, seed, settings)
        for heard in ("raw", "waveform"):
            before, after = getattr(made, heard), getattr(again, heard)
            assert np.array_equal(after[: 16_000 - 320], before[: 16_000 - 320])
            assert np.array_equal(after[32_000 + 320 :], before[32_000 + 320 :])
            assert not np.array_equal(after, before)
        # what is new has the gain of the take, so that it stands beside the rest as the model made it
        assert again.gain == take.gain
        quiet = np.abs(again.waveform) < 0.3  # the limiter looks 5 ms ahead of a peak
        ratio = np.abs(again.waveform[17_000:31_000]).mean() / np.abs(again.raw[17_000:31_000]).mean()
        assert quiet.mean() > 0.9 and ratio == pytest.approx(10 ** (take.gain / 20), rel=0.05)
        made = again
    with MediaFile(made.video) as file:
        assert file.made_with is not None and file.made_with["generated"] is True
        assert np.std(file.audio(0, 3, model_level=True)) == pytest.approx(np.std(made.raw), rel=0.1)


def test_a_sound_that_was_there_stays_as_loud_as_it_was(maker: TakeMaker, clip: Clip) -> None:
    own = maker.place(clip, clip.sound(), "as it came")
    made = maker.redo(clip, own, (1.0, 2.0), True, 0, maker.pipeline.config.decode)
    longer = maker.extend(clip, made, 1.0, 1, maker.pipeline.config.decode)
    assert np.array_equal(made.waveform[:16_000], clip.sound()[:16_000])
    assert np.array_equal(longer.waveform[:48_000], made.waveform)
    with MediaFile(own.sound) as before, MediaFile(made.sound) as after:
        assert before.made_with is None and after.made_with is not None


def test_spans_that_cannot_be_redone(maker: TakeMaker, clip: Clip, take: Take) -> None:
    settings = replace(maker.pipeline.config.decode, num_steps=1)
    for span, inside in (
        ((1, 1), True),
        ((2, 1), True),
        ((float("nan"), 1), True),
        ((0, 3), True),
        ((0, 3), False),
    ):
        with pytest.raises(ValueError, match=r"\.$"):
            maker.redo(clip, take, span, inside, seed=0, decode=settings)


@pytest.fixture
def library(tmp_path: Path, maker: TakeMaker) -> Path:
    """Two tones and a video with sound."""
    for name, pitch in (("low", 200.0), ("high", 2000.0)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(40000) / 16000)
        write_wav(tmp_path / "sounds" / name / f"{name}.wav", wave.astype(np.float32))
    write_video(tmp_path / "sounds" / "film.mp4", 20, 10)
    embedder = maker.pipeline.embedder
    made = Library.create(tmp_path / "library")
    files = sorted((tmp_path / "sounds").rglob("*.*"))
    assert [a.error for a in made.add(files, embedder.embed_files, embedder.fingerprint())] == [None] * 3
    return tmp_path / "library"


@pytest.fixture
def service(maker: TakeMaker, library: Path) -> Iterator[StudioService]:
    service = StudioService(maker, LibraryView(Library.open(library)))
    yield service
    service.close()
    assert not service.sessions.folder.exists()


@pytest.fixture
def visitor(service: StudioService) -> Iterator[Callable[[], Any]]:
    """New browsers, each with cookies of its own."""
    testclient = pytest.importorskip(
        "starlette.testclient", reason="no web server: pip install 'vab[studio]'"
    )
    app = make_app(service, "test")
    yield lambda: testclient.TestClient(app, base_url="http://127.0.0.1:7860")


def finished(client: Any, kind: str = "make") -> Any:
    """The state once nothing of that kind is under way."""
    stop = time.monotonic() + 60
    while True:
        state = client.get("/state").json()
        if state["jobs"][kind]["state"] not in ("waiting", "working"):
            return state
        assert time.monotonic() < stop
        time.sleep(0.02)


def test_a_visit_over_http(visitor: Callable[[], Any], tmp_path: Path) -> None:
    me, other = visitor(), visitor()
    assert me.get("/state").json() == {"clip": None, "tracks": [], "jobs": {}, "answers": {}}
    about = me.get("/about").json()
    assert about["defaults"]["steps"] == 4 and about["defaults"]["guidance"] == 3.0 and about["sounds"] == 3
    assert me.post("/do/make", json={}).status_code == 409

    bad = me.post("/clip", content=b"nothing")
    assert bad.status_code == 422 and bad.json()["error"].endswith(".") and not bad.cookies
    video = write_video(tmp_path / "a.mp4", 20, 10).read_bytes()
    state = me.post("/clip", content=video).json()
    assert state["clip"]["sound"] and state["clip"]["seconds"] == 2.0
    assert me.post("/clip", content=b"nothing").status_code == 422
    assert me.get("/state").json()["clip"] == state["clip"], "a bad upload took the good one away"

    me.post("/do/make", json={"count": 2, "seed": 3})
    state = finished(me)
    assert len(state["tracks"]) == 2 and state["jobs"]["make"]["state"] == "done"
    track = state["tracks"][0]
    urls = [f"/{track['url']}.{ending}" for ending in ("mp4", "wav", "png", "outline")]
    for url in (f"/{state['clip']['url']}", *urls):
        assert me.get(url).status_code == 200
        assert other.get(url).status_code == 404 and visitor().get(url).status_code == 404
    assert me.get(urls[0], headers={"range": "bytes=0-9"}).status_code == 206
    assert other.post("/do/undo", json={"track": track["id"]}).status_code == 409

    values = {"track": track["id"], "seed": 3}
    me.post("/do/redo", json=values | {"from": 0.5, "to": 1.0})
    redone = finished(me)["tracks"][0]
    assert redone["undo"] == 1 and redone["again"] == [0.5, 1.0]
    assert me.get(urls[1]).status_code == 200, "what an undo gives back is still there"
    assert me.post("/do/undo", json=values).json()["tracks"][0] == track
    assert me.get(f"/{redone['url']}.wav").status_code == 404
    assert me.post("/do/undo", json=values).json()["error"] == "There is nothing to undo."
    me.post("/do/extend", json=values | {"seconds": 1})
    assert finished(me)["tracks"][0]["seconds"] == 3.0
    me.post("/do/redo", json=values | {"from": 0, "to": 9})
    assert "Nothing would stay" in finished(me)["jobs"]["make"]["error"]
    me.post("/do/own")
    assert finished(me)["tracks"][-1]["title"] == "As it came"

    me.post("/do/find", json={"track": track["id"]})
    hits = finished(me, "find")["answers"]["find"]["hits"]
    assert {hit["name"] for hit in hits} == {"low.wav", "high.wav", "film.mp4"}
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert str(tmp_path) not in me.get("/state").text, "a path was told"
    low = next(hit for hit in hits if hit["name"] == "low.wav")
    heard = me.get(f"/library/{low['row']}.wav").content
    assert len(heard) == 44 + 2 * 40000
    me.post("/do/place", json={"row": low["row"], "start": 0})
    placed = finished(me)["tracks"][-1]
    assert (
        placed["title"] == "low.wav"
        and me.get(f"/{placed['url']}.wav").content[44:] == heard[44 : 44 + 64000]
    )

    me.post("/do/understand", json={"track": placed["id"]})
    told = finished(me, "understand")["answers"]["understand"]
    assert set(told["classes"]) == {"video", "audio", "both"} and set(told["places"]) == {"picture", "take"}
    assert {name for name, _ in told["classes"]["both"]} == {"bell", "cat", "dog"}
    assert told["hits"][0]["name"] == "low.wav" and told["hits"][0]["score"] > 0.9
    assert len(me.get("/map").json()["points"]) == 3

    me.post("/do/understand", json={"track": track["id"]})
    me.post("/do/undo", json=values)  # the take it looks at may be gone by now
    job = finished(me, "understand")["jobs"]["understand"]
    assert job["state"] == "done" or job["error"] == "This take is not here any more."

    state = me.post("/do/remove", json={"track": placed["id"]}).json()
    assert placed["id"] not in [track["id"] for track in state["tracks"]]
    assert me.post("/do/clear").json()["clip"] is None and me.get(urls[1]).status_code == 404


def test_what_the_server_lets_through(visitor: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    me = visitor()
    page = me.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"] and "http" not in page.text
    paths = ("/service.py", "/../pyproject.toml", "/takes/..%2F..%2Fa.wav", "/clips/x.mp4")
    paths += tuple(
        f"/library/{end}" for end in ("99.wav", "-1.wav", "..%2Fa.wav", "0.wav?start=-1", "0.wav?start=nan")
    )
    for path in paths:
        assert me.get(path).status_code == 404, path
    for host in ("evil.example", "evil.example:7860", "[", "127.0.0.1.evil.example"):
        assert me.get("/", headers={"host": host}).status_code == 403, host
    assert me.post("/clip", headers={"origin": "http://evil.example"}).status_code == 403
    assert me.post("/do/make", headers={"origin": "null"}).status_code == 403
    assert me.post("/do/make", headers={"origin": "http://127.0.0.1:7860"}).status_code == 409
    monkeypatch.setattr(server, "MAX_UPLOAD_BYTES", 1 << 20)
    assert me.post("/clip", content=b"0" * (1 << 20 | 1)).status_code == 413
    streamed = me.post("/clip", content=(b"0" * 65536 for _ in range(17)))
    assert streamed.status_code == 422 and "1 MB" in streamed.json()["error"]
    assert me.post("/do/make", content=b"0" * 5000).status_code == 413


def test_behind_a_web_server(service: StudioService, tmp_path: Path) -> None:
    testclient = pytest.importorskip(
        "starlette.testclient", reason="no web server: pip install 'vab[studio]'"
    )
    app = make_app(service, "test", link="https://Studio.example.org:443")
    video = write_video(tmp_path / "a.mp4", 20, 10).read_bytes()
    for base in ("https://studio.example.org", "http://127.0.0.1:7860"):  # the name may be handed on or not
        visitor = testclient.TestClient(app, base_url=base)
        answer = visitor.post("/clip", content=video, headers={"origin": "https://studio.example.org"})
        assert answer.status_code == 200 and "secure" in answer.headers["set-cookie"].lower()
        for origin in ("https://evil.example", "null", ""):
            assert visitor.post("/do/make", headers={"origin": origin}).status_code == 403
        for host in ("evil.example", "studio.example.org:8080", "studio.example.org.evil.example"):
            assert visitor.get("/", headers={"host": host}).status_code == 403
        assert visitor.get("/", headers={"host": "studio.example.ORG:443"}).status_code == 200


def test_whoever_goes_away_is_not_read_on(service: StudioService, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")
    begun, ended = threading.Event(), threading.Event()

    def read(upload: Path, folder: Path, unwanted: Callable[[], bool]) -> Clip:
        begun.set()
        while not unwanted():
            time.sleep(0.01)
        ended.set()
        raise UploadError("Cancelled.")

    monkeypatch.setattr(server, "prepare", read)
    place = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(make_app(service, "test"), log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    visitor = http.client.HTTPConnection(*place.getsockname())
    visitor.request("POST", "/clip", b"a film")
    assert begun.wait(10)
    time.sleep(0.2)
    assert not ended.is_set()
    visitor.close()
    assert ended.wait(10)
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def test_uploads_that_are_many_or_slow(service: StudioService, monkeypatch: pytest.MonkeyPatch) -> None:
    testclient = pytest.importorskip(
        "starlette.testclient", reason="no web server: pip install 'vab[studio]'"
    )
    there: list[int] = []

    def read(upload: Path, folder: Path, unwanted: Callable[[], bool]) -> Clip:
        there.append(len(list(service.sessions.folder.glob("*/upload"))))
        time.sleep(0.05)
        raise UploadError("No video.")

    monkeypatch.setattr(server, "MAX_UPLOADS", 2)
    monkeypatch.setattr(server, "MAX_READING", 1)
    monkeypatch.setattr(server, "prepare", read)
    app = make_app(service, "test")
    with testclient.TestClient(app, base_url="http://127.0.0.1:7860") as me:  # one loop for all requests
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: me.post("/clip", content=b"a film").status_code, range(6)))
        assert answers == [422] * 6 and len(there) == 6 and max(there) <= 2
        monkeypatch.setattr(server, "MAX_UPLOAD_SECONDS", 0.0)
        assert "too long to arrive" in me.post("/clip", content=b"a film").json()["error"]
        monkeypatch.setattr("vab.studio.sessions.MAX_SESSIONS", 0)
        monkeypatch.setattr(server, "_receive", None)  # not one byte is taken in
        refused = me.post("/clip", content=b"a film")
        assert refused.status_code == 503 and "Too many people" in refused.json()["error"]


def test_an_upload_that_breaks_off_is_no_error_of_the_server(tmp_path: Path) -> None:
    requests = pytest.importorskip("starlette.requests", reason="no web server: pip install 'vab[studio]'")

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(UploadError, match="Cancelled"):
        asyncio.run(server._receive(requests.Request({"type": "http"}, leave), tmp_path / "upload"))


def test_two_studios_of_one_machine(service: StudioService, tmp_path: Path) -> None:
    testclient = pytest.importorskip(
        "starlette.testclient", reason="no web server: pip install 'vab[studio]'"
    )
    video = write_video(tmp_path / "a.mp4", 20, 10).read_bytes()
    ports = (7860, 7861)
    visitors = [
        testclient.TestClient(make_app(service, "test"), base_url=f"http://127.0.0.1:{p}") for p in ports
    ]
    cookies = [visitor.post("/clip", content=video).cookies for visitor in visitors]
    assert len({name for jar in cookies for name in jar}) == 2, "one would take the other's place"


def test_a_library_without_sounds(maker: TakeMaker, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "silent.mp4", 20, 10, sound=False)
    embedder = maker.pipeline.embedder
    made = Library.create(tmp_path / "library")
    list(made.add([tmp_path / "films" / "silent.mp4"], embedder.embed_files, embedder.fingerprint()))
    service = StudioService(maker, LibraryView(Library.open(tmp_path / "library")))
    (service.sessions.folder / "one").mkdir()
    session = service.sessions.open()
    service.sessions.replace_clip(
        session, make_clip(write_video(tmp_path / "a.mp4", 10, 10), service.sessions.folder / "one")
    )
    assert service.library is not None and service.library.points == []
    for verb in ("find", "understand"):
        service.verbs[verb](session, {})
        while session.jobs[verb].active:
            time.sleep(0.01)
        assert session.jobs[verb].state == "done", session.jobs[verb].error
        assert session.answers[verb]["hits"] == []
    service.close()


def test_what_is_compared_with_a_library_is_in_its_precision(
    model: Path, library: Path, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[StudioService] = []

    def service(*parts: Any) -> StudioService:
        served.append(StudioService(*parts))
        return served[0]

    monkeypatch.setattr("vab.studio.service.StudioService", service)
    monkeypatch.setattr("vab.web.serve", lambda app, socket: socket.close())
    with pytest.raises(SystemExit) as left:
        main(f"studio --model {model} --library {library} --port 0 --device cpu --precision bfloat16".split())
    assert left.value.code == 0
    found = served[0]._embedded(clip, None).mean("video")
    of_float32 = Embedder.from_pretrained(model, device="cpu").embed_file(clip.source).mean("video")
    assert np.array_equal(found, of_float32)
    assert served[0].maker.pipeline.chosen.precision == "bfloat16"
    assert served[0].maker.pipeline.embedder.chosen.precision == "bfloat16"
    served[0].close()


@pytest.mark.parametrize("gone", [True, False])
def test_a_take_that_is_gone_is_another_thing_than_a_failure(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    session, folder = service.sessions.open(), service.sessions.folder / "one"
    folder.mkdir()
    service.sessions.replace_clip(session, make_clip(write_video(tmp_path / "a.mp4", 10, 10), folder))

    def embed(embedder: Embedder, path: Path) -> None:
        if gone:
            path.unlink()
        raise MediaError("out of memory")

    monkeypatch.setattr(Embedder, "embed_file", embed)
    service.find(session, {})
    while session.jobs["find"].active:
        time.sleep(0.01)
    assert session.jobs["find"].error == ("This take is not here any more." if gone else INTERNAL_ERROR)


def test_values_that_make_no_sense(visitor: Callable[[], Any], tmp_path: Path) -> None:
    me = visitor()
    me.post("/clip", content=write_video(tmp_path / "a.mp4", 10, 10, sound=False).read_bytes())
    good = {"count": 1, "seed": 0}
    wrong = ({"count": 0}, {"count": 5}, {"count": 1.5}, {"count": "1"}, {"count": True}, {"seed": -1})
    wrong += (
        {"seed": 2**32},
        {"steps": 0},
        {"steps": 10**400},
        {"guidance": 1e9},
        {"temperature": -1},
        {"guidance": None},
    )
    for values in wrong:
        answer = me.post("/do/make", json=good | values)
        assert answer.status_code == 409 and answer.json()["error"].endswith("."), values
    for number in ("9" * 5000, "-1", "x", "9" * 30):
        assert me.get(f"/library/{number}.wav").status_code == 404
    for body in (b"[1]", b"{", b'{"count": NaN, "seed": 0}', b"[" * 4000, b"\xff"):
        assert me.post("/do/make", content=body).status_code in (400, 409), body
    assert me.post("/do/close", json=good).status_code == 404
    assert me.post("/do/own").json()["error"] == "This clip came without sound."
    assert me.post("/do/place", json={"row": 3, "start": 0}).status_code == 409
    assert set(me.get("/state").json()["jobs"]) == {"look"}


def test_a_disk_without_room_for_an_upload_is_a_sentence(
    visitor: Callable[[], Any], service: StudioService, tmp_path: Path
) -> None:
    me, clip = visitor(), write_video(tmp_path / "a.mp4", 10, 10).read_bytes()
    with files_of_at_most(1000):
        answer = me.post("/clip", content=clip)
    assert answer.json()["error"] == "This server cannot keep it just now: File too large."
    assert answer.status_code == 507
    with files_of_at_most(len(clip)):  # room for the upload, not for what is made of it
        assert "This server cannot keep it just now: " in me.post("/clip", content=clip).json()["error"]
    assert [path for path in service.sessions.folder.iterdir() if path.is_dir()] == []
    assert me.post("/clip", content=clip).status_code == 200


def test_the_queue_goes_in_order_and_one_failure_ends_nothing() -> None:
    line, begun, go, done = JobQueue(), threading.Event(), threading.Event(), []

    def slow(tell: StageProgress) -> None:
        begun.set()
        while True:
            tell("slow", 1, 4)
            go.wait(0.01)
            if go.is_set():
                return

    def fail(_: StageProgress) -> None:
        raise RuntimeError("not for visitors")

    first, broken = Job("make", slow), Job("make", fail)
    unwanted, last = Job("make", lambda _: done.append(1)), Job("make", lambda _: done.append(2))
    for job in (first, broken, unwanted, last):
        line.add(job)
    assert begun.wait(10)
    assert [line.ahead(job) for job in (first, broken, unwanted, last)] == [0, 1, 2, 3]
    line.cancel(unwanted)
    assert unwanted.state == "cancelled" and line.ahead(last) == 2
    go.set()
    line.add(end := Job("make", lambda _: done.append(3)))
    while end.active:
        time.sleep(0.01)
    assert (first.state, broken.state, last.state, done) == ("done", "failed", "done", [2, 3])
    assert first.share == 0.25 and "not for visitors" not in broken.error
    go.clear()
    stuck = Job("make", slow)
    line.add(stuck)
    line.cancel(stuck)
    line.close()
    assert stuck.state == "cancelled"


@pytest.mark.parametrize("verb", ["make", "own", "place"])
@pytest.mark.parametrize("stage", ["features", "written"])
def test_every_way_to_a_take_says_how_far_it_is_and_can_be_cancelled(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, stage: str
) -> None:
    session, folder = service.sessions.open(), service.sessions.folder / "one"
    folder.mkdir()
    service.sessions.replace_clip(session, make_clip(write_video(tmp_path / "a.mp4", 10, 10), folder))
    files = set(folder.iterdir())
    report, score = Job.report, TakeMaker._score
    stages: set[str] = set()

    def cancel_there(job: Job, name: str, done: int, total: int) -> None:
        stages.add(name)
        if name == stage:
            service.cancel(session, {"kind": "make"})
        report(job, name, done, total)

    def cancel_late(maker: TakeMaker, audio: Audio) -> float | None:
        if stage == "written":
            service.cancel(session, {"kind": "make"})
        return score(maker, audio)

    monkeypatch.setattr(Job, "report", cancel_there)
    monkeypatch.setattr(TakeMaker, "_score", cancel_late)
    service.verbs[verb](session, {"count": 1, "seed": 0, "row": 0, "start": 0})
    while session.jobs["make"].active:
        time.sleep(0.01)
    assert session.jobs["make"].state == "cancelled" and "features" in stages
    assert session.tracks == [] and set(folder.iterdir()) == files


def test_sessions_end_with_their_visitors(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = service.sessions
    stays, leaves, returns = everybody = [sessions.open() for _ in range(3)]
    folders = [sessions.folder / str(n) for n in range(3)]
    for session, folder in zip(everybody, folders, strict=True):
        folder.mkdir()
        sessions.replace_clip(session, Clip(folder, "video", 1.0, 64, 48, False))
    assert len({session.id for session in everybody}) == 3 and len(stays.id) > 40
    monkeypatch.setattr("vab.studio.sessions.LEFT_SECONDS", -1.0)
    sessions.leave(leaves)
    sessions.leave(returns)
    assert sessions.find(returns.id) is returns  # it was only loaded anew
    sessions.sweep()
    assert [sessions.find(session.id) for session in everybody] == [stays, None, returns]
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert sessions.find(None) is None and sessions.find("") is None
    monkeypatch.setattr("vab.studio.sessions.MAX_SESSIONS", 3)
    sessions.open()
    with pytest.raises(UserError, match="Too many"):
        sessions.open()


def test_nothing_goes_while_a_take_is_made_of_it(service: StudioService) -> None:
    session = service.sessions.open()
    session.jobs["make"] = Job("make", lambda _: None)
    for verb in ("undo", "remove"):
        with pytest.raises(UserError, match="is being made"):
            service.verbs[verb](session, {"track": "any"})


def test_undo_goes_so_far_and_no_farther(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, folder = service.sessions.open(), service.sessions.folder / "one"
    folder.mkdir()
    service.sessions.replace_clip(session, make_clip(write_video(tmp_path / "a.mp4", 10, 10), folder))
    monkeypatch.setattr("vab.studio.service.MAX_UNDO_STEPS", 2)
    service.own(session, {})
    for step in range(5):
        while session.jobs["make"].active:
            time.sleep(0.01)
        if step < 4:
            service.extend(session, {"track": session.tracks[0].id, "seconds": 0.5, "seed": 0})
    takes = session.tracks[0].takes
    assert [take.seconds for take in takes] == [2.0, 2.5, 3.0]
    assert {path.stem for path in folder.glob("*.wav")} == {take.id for take in takes}
    assert len(list(folder.glob("picture_*.mp4"))) == 1
    service.undo(session, {"track": session.tracks[0].id})
    assert takes[-1].seconds == 2.5 and takes[-1].video.exists()


def test_what_a_killed_server_left_is_deleted(
    service: StudioService, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("vab-studio-dead", "vab-studio-begins", "vab-studio-late", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.mp4").write_text("somebody's")
        if name in ("vab-studio-dead", "other"):
            (tmp_path / name / "lock").touch()
    os.utime(tmp_path / "vab-studio-late", (0, 0))
    running = SessionStore(service.queue)
    SessionStore(service.queue).close()
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert not {"vab-studio-dead", "vab-studio-late"} & left
    assert {"vab-studio-begins", "other", running.folder.name} <= left
    running.close()


def test_a_take_that_comes_too_late_is_dropped(service: StudioService, tmp_path: Path) -> None:
    session = service.sessions.open()
    for name in ("one", "two"):
        (service.sessions.folder / name).mkdir()
    video = write_video(tmp_path / "a.mp4", 10, 10)
    service.sessions.replace_clip(session, make_clip(video, service.sessions.folder / "one"))
    service.make(session, {"count": 4, "seed": 0})
    job = session.jobs["make"]
    service.sessions.replace_clip(session, make_clip(video, service.sessions.folder / "two"))
    while job.active:
        time.sleep(0.01)
    assert job.state == "cancelled" and session.tracks == [] and session.jobs == {}
    assert not (service.sessions.folder / "one").exists()


@pytest.mark.parametrize("end", ["clear", "sweep", "close"])
def test_a_sound_that_is_written_too_late_goes_with_its_clip(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    session, folder = service.sessions.open(), service.sessions.folder / "one"
    folder.mkdir()
    service.sessions.replace_clip(session, make_clip(write_video(tmp_path / "a.mp4", 10, 10), folder))

    save = Audio.save

    def write(audio: Audio, path: Path) -> None:
        if end == "sweep":
            session.expires = 0.0
        {
            "clear": partial(service.sessions.clear, session),
            "sweep": service.sessions.sweep,
            "close": service.sessions.close,
        }[end]()
        assert not folder.exists()
        save(audio, path)  # makes the folder again

    monkeypatch.setattr(Audio, "save", write)
    service.make(session, {"count": 1, "seed": 0})
    job = session.jobs["make"]
    while job.active:
        time.sleep(0.01)
    assert job.state == "cancelled" and not folder.exists()


def test_ctrl_c_ends_an_upload_without_a_traceback(model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vab", "studio", "--port", "0", "--json", "--model", str(model)],
        env=ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    place = urlsplit(json.loads("".join(process.stdout.readline() for _ in range(3)))["link"])
    visitor = http.client.HTTPConnection(place.hostname or "", place.port)
    visitor.putrequest("POST", "/clip")
    visitor.putheader("Content-Length", "1000000")
    visitor.endheaders(b"the rest never comes")
    while not list(tmp_path.glob("vab-*/*/upload")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    visitor.close()
    assert process.returncode == 130 and said.endswith("vab: interrupted\n")
    assert "Traceback" not in said
    assert not list(tmp_path.glob("vab-*"))


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vab", "studio", "--port", "0", "--library", str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"vab: .*holds no library; make one with .*\n", done.stderr)
