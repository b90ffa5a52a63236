"""The studio without its pages: takes, verbs, the queue, and what the server lets through."""

from __future__ import annotations

import asyncio
import http.client
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import pytest

from helpers.cli import vab
from helpers.forked import Forked
from helpers.tiny import write_model, write_video
from vab.cli import main
from vab.errors import SettingError
from vab.inference.embedder import Embedder
from vab.inference.pipeline import Audio, VABPipeline
from vab.inference.splice import FADE
from vab.library.library import Library
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.loudness import measure
from vab.media.reader import write_wav
from vab.studio import takes
from vab.studio.library_view import LibraryView
from vab.studio.project import Project, Projects
from vab.studio.queue import INTERNAL_ERROR, Job, JobQueue, UserError
from vab.studio.service import StudioService
from vab.studio.takes import Take, TakeMaker
from vab.studio.uploads import Clip, UploadError, make_clip
from vab.timing.curve import TimingCurve
from vab.utils.progress import StageProgress
from vab.web.access import Access, listen

pytest.importorskip("lancedb", reason="no library: pip install 'vab[search]'")
server = pytest.importorskip("vab.studio.server", reason="no web server: pip install 'vab[studio]'")
make_app = server.make_app


@pytest.fixture(scope="module")
def maker(model: Path) -> TakeMaker:
    return TakeMaker(VABPipeline.from_pretrained(model, device="cpu"))


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    return new_clip(tmp_path / "clip", write_video(tmp_path / "a.mkv", 30, 10))


def new_clip(folder: Path, film: Path) -> Clip:
    """The clip of a project in ``folder``, made without a process of its own."""
    folder.mkdir(exist_ok=True)
    upload = shutil.copy(film, folder / f"upload{film.suffix}")
    return replace(make_clip(upload, folder), upload=upload.name, name=film.name)


def write_frames(path: Path, frames: list[np.ndarray], fps: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="bgr0")))
        container.mux(stream.encode(None))


@pytest.fixture
def take(maker: TakeMaker, clip: Clip) -> Take:
    return next(maker.new(clip, 1, 0, maker.pipeline.config.decode))


def test_a_take_is_the_sound_that_generate_makes(
    maker: TakeMaker, clip: Clip, take: Take, model: Path, tmp_path: Path
) -> None:
    assert np.array_equal(take.waveform, maker.pipeline.generate(clip.source).waveform)
    same = maker.pipeline.generate(clip.source, rate=48_000)
    assert np.array_equal(take.heard, same.waveform[None]) and take.seconds == 3.0
    assert take.score is not None and -1 <= take.score <= 1
    assert {"features", "sampling", "codec"} <= set(take.timings)
    two = list(maker.new(clip, 2, 0, maker.pipeline.config.decode))
    assert np.array_equal(two[0].waveform, take.waveform)
    assert not np.array_equal(two[1].waveform, take.waveform)


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
    again = maker.remake(clip, made, (0.0, 1.0), True, 5, settings)
    assert np.array_equal(again.waveform[16000:], made.waveform[16000:])
    assert maker.remake(clip, made, (0.0, 1.0), True, 5, settings, shift=1.0).seconds == 3.0
    assert maker.extend(clip, made, 1.0, 5, settings).seconds == 4.0


@pytest.mark.parametrize("span", [(1.0, 2.0), (0.0, 0.517), (2.4999, 9.0)])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_kept_is_bit_equal(
    maker: TakeMaker, clip: Clip, take: Take, span: tuple[float, float], inside: bool
) -> None:
    settings = maker.pipeline.config.decode
    made = maker.remake(clip, take, span, inside, seed=5, decode=settings)
    first, last = (round(min(edge, 3.0) * 16000) for edge in span)
    marked = np.zeros(len(take.raw), bool)
    marked[first:last] = True
    new = marked if inside else ~marked
    assert np.array_equal(made.raw[~new].view(np.int32), take.raw[~new].view(np.int32))
    first48, last48 = (round(min(edge, 3.0) * 48000) for edge in span)
    inner = np.zeros(take.heard.shape[1], bool)
    inner[first48:last48] = True
    heard = ~inner if inside else inner
    assert np.array_equal(made.heard[:, heard], take.heard[:, heard])
    deep = new.copy()  # past the cross-fade there is nothing of the old take
    for edge in (first, last):
        deep[max(0, edge - FADE) : edge + FADE] = False
    assert np.mean(made.raw[deep] == take.raw[deep]) < 0.1
    again = maker.remake(clip, take, span, inside, seed=5, decode=settings)
    assert np.array_equal(made.waveform, again.waveform)
    with_another = maker.remake(clip, take, span, inside, seed=6, decode=settings)
    assert not np.array_equal(made.waveform, with_another.waveform)


def test_a_longer_take_begins_with_the_take(maker: TakeMaker, clip: Clip, take: Take) -> None:
    made = maker.extend(clip, take, 1.5, seed=1, decode=maker.pipeline.config.decode)
    assert len(made.waveform) == 72000 and made.again == (3.0, 4.5) and made.seconds == 4.5
    assert np.array_equal(made.raw[:48000], take.raw)
    assert np.array_equal(made.heard[:, : 3 * 48000], take.heard)
    assert np.abs(made.waveform[48000 + FADE :]).max() > 0
    for seconds in (0, -1, 58, float("nan")):
        with pytest.raises(SettingError, match="60 s at most"):
            maker.extend(clip, take, seconds, seed=1, decode=maker.pipeline.config.decode)


def test_a_part_is_made_for_what_is_seen_where_its_layer_lies(maker: TakeMaker, tmp_path: Path) -> None:
    """Two seconds of blue, then two of red: a take that lies at the third second is made for the red ones."""
    film = tmp_path / "film.mkv"
    colours = [(30, 60, 200)] * 20 + [(200, 60, 30)] * 20
    write_frames(film, [np.full((48, 64, 3), colour, np.uint8) for colour in colours], 10)
    clip = new_clip(tmp_path / "both", film)
    write_frames(tmp_path / "red.mkv", [np.full((48, 64, 3), colours[-1], np.uint8)] * 20, 10)
    red = new_clip(tmp_path / "red", tmp_path / "red.mkv")
    settings = maker.pipeline.config.decode
    take = next(maker.new(red, 1, 0, settings))
    there = maker.remake(clip, take, (0.5, 1.0), True, 5, settings, shift=2.0)
    alone = maker.remake(red, take, (0.5, 1.0), True, 5, settings)
    early = maker.remake(clip, take, (0.5, 1.0), True, 5, settings)
    assert np.array_equal(there.raw, alone.raw)
    assert not np.array_equal(early.raw, alone.raw)


def test_a_sound_that_is_there_can_be_a_take(maker: TakeMaker, clip: Clip) -> None:
    own = (0.1 * np.random.default_rng(0).standard_normal((2, 120_000))).clip(-1, 1).astype(np.float32)
    made = maker.place(clip, own, "as it came")
    assert np.array_equal(made.heard, own) and made.own and made.score is not None
    assert len(made.waveform) == 40_000 and np.array_equal(made.raw, made.waveform)
    longer = maker.place(clip, np.tile(own, (1, 25)), "music")
    assert longer.raw is None and not longer.about("file")["editable"]


def test_what_an_edit_keeps_is_as_loud_as_before(maker: TakeMaker, clip: Clip, take: Take) -> None:
    settings = maker.pipeline.config.decode
    assert measure(take.waveform, 16_000).loudness == pytest.approx(-23, abs=0.2)
    made = take
    for seed in range(3):
        again = maker.remake(clip, made, (1.0, 2.0), True, seed, settings)
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
        new = np.abs(again.heard[0, 51_000:93_000]).mean() / np.abs(again.waveform[17_000:31_000]).mean()
        assert new == pytest.approx(1, rel=0.05)
        made = again
    assert made.made_with["generated"] is True and made.made_with["gain_db"] == take.gain


def test_a_sound_that_was_there_stays_as_loud_and_as_wide_as_it_was(maker: TakeMaker, clip: Clip) -> None:
    sound = (0.1 * np.random.default_rng(0).standard_normal((2, 144_000))).clip(-1, 1).astype(np.float32)
    own = maker.place(clip, sound, "as it came")
    made = maker.remake(clip, own, (1.0, 2.0), True, 0, maker.pipeline.config.decode)
    longer = maker.extend(clip, made, 1.0, 1, maker.pipeline.config.decode)
    assert np.array_equal(made.heard[:, :48_000], sound[:, :48_000])
    assert np.array_equal(made.heard[:, 96_000:], sound[:, 96_000:])
    assert np.array_equal(longer.heard[:, :144_000], made.heard)
    assert not own.made_with and made.made_with and made.own


def test_spans_that_cannot_be_remade(maker: TakeMaker, clip: Clip, take: Take) -> None:
    settings = replace(maker.pipeline.config.decode, num_steps=1)
    for span, inside in (
        ((1, 1), True),
        ((2, 1), True),
        ((float("nan"), 1), True),
        ((0, 3), True),
        ((0, 3), False),
    ):
        with pytest.raises(SettingError, match=r"\.$"):
            maker.remake(clip, take, span, inside, seed=0, decode=settings)


def test_a_curve_says_when(tmp_path: Path, clip: Clip) -> None:
    folder = write_model(tmp_path / "timed", timing=True)
    maker = TakeMaker(VABPipeline.from_pretrained(folder, device="cpu"))
    settings = maker.pipeline.config.decode
    curve = {"events": [[0.5, 1.0], [2.0, 0.6]], "level": [[0.0, -20.0], [2.0, 0.0]]}
    rows = ["seconds,onset,level_db", "0.5,1.0,", "2.0,0.6,", "0.0,,-20", "2.0,,0"]
    (tmp_path / "curve.csv").write_text("\n".join(rows))
    told = next(maker.new(clip, 1, 0, settings, timing=maker.timing("curve", curve, 3.0)))
    same = maker.pipeline.generate(clip.source, timing=str(tmp_path / "curve.csv"))
    assert np.array_equal(told.waveform, same.waveform)
    tapped = maker.timing("curve", {"events": curve["events"], "level": []}, 3.0)
    assert isinstance(tapped, TimingCurve) and tapped.level is not None  # they suggest one
    free = next(maker.new(clip, 1, 0, settings, timing=maker.timing("none", curve, 3.0)))
    assert not np.array_equal(told.waveform, free.waveform)
    assert maker.follows_curves and not maker.follows_motion
    for choice, drawn in (("motion", None), ("curve", None), ("curve", {"events": [], "level": []})):
        with pytest.raises(SettingError, match=r"\.$"):
            maker.timing(choice, drawn, 3.0)


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
def service(maker: TakeMaker, library: Path, tmp_path: Path) -> Iterator[StudioService]:
    service = StudioService(maker, Projects(tmp_path / "projects"), LibraryView(Library.open(library)))
    yield service
    service.close()


@pytest.fixture
def project(service: StudioService, tmp_path: Path) -> Project:
    """A project with a clip of two seconds that has sound."""
    return new_project(service, write_video(tmp_path / "a.mp4", 20, 10))


def new_project(service: StudioService, film: Path) -> Project:
    with service.projects.new_folder() as folder:
        return service.create(new_clip(folder, film), film.stem)


def client_of(service: StudioService, base: str = "http://127.0.0.1:7860", **options: Any) -> Any:
    testclient = pytest.importorskip(
        "starlette.testclient", reason="no web server: pip install 'vab[studio]'"
    )
    return testclient.TestClient(make_app(service, "test", **options), base_url=base)


class Page:
    """A page of a project: what it asks for, and waits for."""

    def __init__(self, client: Any, project: str) -> None:
        self.client = client
        self.address = f"/projects/{project}"

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(f"{self.address}/{path}", **options)

    def ask(self, verb: str, **values: Any) -> Any:
        """The answer to a verb."""
        return self.client.post(f"{self.address}/do/{verb}", json=values)

    def do(self, verb: str, **values: Any) -> Any:
        """The state after a verb that must be accepted, once nothing is under way."""
        answer = self.ask(verb, **values)
        assert answer.status_code == 200, answer.json()
        stop = time.monotonic() + 60
        while True:
            state = self.get("state").json()
            if not any(job["state"] in ("waiting", "working") for job in state["jobs"].values()):
                return state
            assert time.monotonic() < stop
            time.sleep(0.02)


def done(project: Project, kind: str = "make") -> Job:
    """A job, once it has ended."""
    job = project.jobs[kind]
    assert job.ended.wait(60)
    return job


def test_work_on_a_project_over_http(service: StudioService, tmp_path: Path) -> None:
    client = client_of(service)
    about = client.get("/about").json()
    assert about["defaults"]["steps"] == 4 and about["defaults"]["guidance"] == 3.0 and about["sounds"] == 3
    assert about["timing"] is False and about["defaults"]["timing"] == "none"
    bad = client.post("/projects", content=b"nothing")
    assert bad.status_code == 422 and bad.json()["error"].endswith(".")
    assert client.get("/projects").json() == [] and not list((tmp_path / "projects").glob("*"))

    # 1. A film becomes a project.
    video = write_video(tmp_path / "a.mp4", 20, 10).read_bytes()
    state = client.post("/projects", content=video, headers={"file-name": "M%C3%B6we%20eins.mp4"}).json()
    assert state["clip"]["has_sound"] and state["clip"]["seconds"] == 2.0
    assert state["project"]["name"] == "Möwe eins" and state["project"]["id"].startswith("mowe-eins-")
    page = Page(client, state["project"]["id"])
    assert [entry["id"] for entry in client.get("/projects").json()] == [state["project"]["id"]]
    for path in ("picture.mp4", "poster.jpg"):
        assert page.get(path).status_code == 200
    assert page.get("picture.mp4", headers={"range": "bytes=0-9"}).status_code == 206

    # 2. Takes, of which the first one is heard.
    state = page.do("make", count=2, seed=3)
    first, _ = layers = state["arrangement"]["layers"]
    assert [layer["mute"] for layer in layers] == [False, True] and state["jobs"]["make"]["state"] == "done"
    assert state["history"] == ["project made", "2 takes made"]
    assert state["arrangement"]["settings"]["seed"] == 3 and state["can_undo"] == "2 takes made"
    sound = state["sounds"][first["sound"]]
    assert sound["kind"] == "take" and sound["seconds"] == 2.0 and sound["made_with"]["seed"] == 3
    for ending in ("wav", "png", "peaks"):
        assert page.get(f"{sound['url']}.{ending}").status_code == 200
    with MediaFile(service.projects.path(page.address[10:]) / f"{sound['url']}.wav") as file:
        assert file.info.seconds == 2.0 and file.made_with is None
    third = page.do("make", count=1, seed=9)["arrangement"]["layers"]
    assert [layer["mute"] for layer in third] == [True, True, False], "takes are alternatives"

    # 3. A part remade, the layer stays; undo gives the former sound back.
    layer = {"layer": first["id"]}
    remade = page.do("remake", **layer, **{"from": 0.5, "to": 1.0})
    new = remade["sounds"][remade["arrangement"]["layers"][0]["sound"]]
    assert new["again"] == [0.5, 1.0] and new["parent"] == first["sound"]
    assert page.get(f"{sound['url']}.wav").status_code == 200, "what an undo gives back is still there"
    assert page.do("undo")["arrangement"]["layers"][0]["sound"] == first["sound"]
    assert page.do("redo")["arrangement"] == remade["arrangement"]
    longer = page.do("extend", **layer, seconds=1)["arrangement"]["layers"][0]
    assert longer["stop"] == 3.0 and longer["id"] == first["id"]
    failed = page.do("remake", **layer, **{"from": 0, "to": 9})
    assert "Nothing would stay" in failed["jobs"]["make"]["error"]
    again = page.do("remake", **layer, **{"from": 0.5, "to": 1.0})
    tries = again["sounds"][again["arrangement"]["layers"][0]["sound"]]["num_tries"]
    assert tries == 4, "each try has a seed of its own, that which failed too"

    # 4. Its own sound, the library's and the user's are heard beside.
    state = page.do("own")
    own = state["arrangement"]["layers"][-1]
    assert own["name"] == "As it came" and not own["mute"] and state["sounds"][own["sound"]]["own"]
    state = page.do("find", by=first["id"])
    hits = state["answers"]["find"]["hits"]
    assert {hit["name"] for hit in hits} == {"low.wav", "high.wav", "film.mp4"}
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert str(tmp_path) not in page.get("state").text, "a path was told"
    low = next(hit for hit in hits if hit["name"] == "low.wav")
    assert len(client.get(f"/library/{low['row']}.wav").content) == 44 + 2 * 40000
    state = page.do("place", row=low["row"], start=0.5)
    placed = state["arrangement"]["layers"][-1]
    assert placed["name"] == "low.wav" and placed["stop"] == 2.0 and not placed["mute"]
    wav = (tmp_path / "sounds" / "high" / "high.wav").read_bytes()
    posted = client.post(f"{page.address}/files", content=wav, headers={"file-name": "high.wav"})
    assert posted.status_code == 200
    state = page.do("find", by="picture")
    assert state["arrangement"]["layers"][-1]["name"] == "high"
    assert state["sounds"][state["arrangement"]["layers"][-1]["sound"]]["kind"] == "file"
    dropped = client.post(f"{page.address}/find", content=wav).json()
    assert {hit["name"]: hit["score"] for hit in dropped["hits"]}["high.wav"] > 0.9
    named = page.do("find", by="label:low")["answers"]["find"]
    assert [hit["name"] for hit in named["hits"]] == ["low.wav"] and named["by"] == "label:low"

    # 5. What the model makes of it.
    told = page.do("understand", layer=placed["id"])["answers"]["understand"]
    assert set(told["classes"]) == {"video", "audio", "both"}
    assert {name for name, _ in told["classes"]["both"]} == {"bell", "cat", "dog"}
    assert told["hits"][0]["name"] == "low.wav"
    about = client.get("/about").json()
    assert about["sounds"] == sum(count for _, count in about["labels"]) == 3
    words = page.do("find", by="text:HIGHs")["answers"]["find"]
    assert words["more"] is False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vab.studio.service.MAX_FOUND", 0)
        some = page.do("find", by="text:high")["answers"]["find"]
        assert some["more"] is True and some["hits"] == []

    # 6. Exports.
    state = page.do("export", what="mix", name="a#b")
    assert state["jobs"]["export"]["state"] == "done", state["jobs"]["export"]
    [made] = state["exports"]
    reply = page.get(made["url"])
    assert len(reply.content) == made["bytes"] and "attachment" in reply.headers["content-disposition"]
    assert "one of" in page.do("export", what="nothing")["jobs"]["export"]["error"]

    assert client.delete(page.address).json() == {} and page.get("state").status_code == 404
    assert client.get("/projects").json() == [] and not list((tmp_path / "projects").glob("*"))


def test_every_change_can_be_undone(service: StudioService, project: Project) -> None:
    page = Page(client_of(service), project.id)
    page.do("make", count=2, seed=0)
    layers = page.do("own")["arrangement"]["layers"]
    name, sound = layers[0]["id"], layers[0]["sound"]
    seen = [page.get("state").json()]
    for verb, values in (
        ("layer", {"layer": name, "offset": -0.5, "gain_db": -6.0, "name": "Bell  rings"}),
        (
            "layer",
            {"layer": name, "start": 0.25, "offset": -0.25, "stop": 1.5, "fade_in": 0.1, "fade_out": 9.0},
        ),
        ("layer", {"layer": name, "mute": True, "solo": True}),
        ("layer", {"layer": layers[1]["id"], "sound": layers[2]["sound"]}),
        ("add", {"sound": sound, "offset": 1.0, "mute": True}),
        ("remove", {"layer": name}),
        ("set", {"marks": [{"time": 1.5, "label": "late"}, {"id": "m", "time": 0.5, "label": "hit"}]}),
        ("set", {"curve": {"events": [[0.5, 1.0]], "level": [[0.0, -45.0], [1.0, 0.0]]}}),
        ("set", {"settings": {"seed": 7, "timing": "curve"}}),
        ("order", {"layers": None}),
    ):
        if verb == "order":
            values["layers"] = [layer["id"] for layer in reversed(seen[-1]["arrangement"]["layers"])]
        seen.append(page.do(verb, **values))
        assert len(seen[-1]["history"]) == len(seen[-2]["history"]) + 1, (verb, values)
        assert seen[-1]["arrangement"] != seen[-2]["arrangement"]
    moved, trimmed, muted, exchanged, added, removed, marked, drawn, chosen, _ = (
        state["arrangement"] for state in seen[1:]
    )
    assert [state["history"][-1] for state in seen[1:3]] == ["moved: Bell rings", "trimmed: Bell rings"]
    assert moved["layers"][0]["name"] == "Bell rings" and moved["layers"][0]["offset"] == -0.5
    assert trimmed["layers"][0]["fade_out"] == 1.25, "a fade is no longer than its part"
    assert muted["layers"][0]["solo"] and exchanged["layers"][1]["sound"] == layers[2]["sound"]
    assert added["layers"][-1]["sound"] == sound and added["layers"][-1]["offset"] == 1.0
    assert name not in [layer["id"] for layer in removed["layers"]]
    assert [mark["label"] for mark in marked["marks"]] == ["hit", "late"] and marked["marks"][0]["id"] == "m"
    assert drawn["curve"]["level"] == [[0.0, -45.0], [1.0, 0.0]] and chosen["settings"]["seed"] == 7

    # Back to the beginning and forth again, step by step and at once.
    for state in reversed(seen[:-1]):
        assert page.do("undo")["arrangement"] == state["arrangement"]
    for state in seen[1:]:
        assert page.do("redo")["arrangement"] == state["arrangement"]
    assert "nothing to redo" in page.ask("redo").json()["error"]
    assert page.do("go", at=0)["arrangement"]["layers"] == []
    assert "nothing to undo" in page.ask("undo").json()["error"]
    assert page.do("go", at=seen[0]["at"])["arrangement"] == seen[0]["arrangement"]
    # A change drops what was undone, and nothing changes if nothing does.
    last = page.do("layer", layer=name, gain_db=-1.0)
    assert last["can_redo"] is None and len(last["history"]) == len(seen[0]["history"]) + 1
    assert page.do("layer", layer=name, gain_db=-1.0)["history"] == last["history"]
    assert page.do("rename", name=" A  dog ")["project"]["name"] == "A dog"


def test_what_another_tab_changed_is_not_overwritten(service: StudioService, project: Project) -> None:
    first, second = ({"id": name, "time": time, "label": name} for name, time in (("a", 0.1), ("b", 0.5)))
    service.set(project, {"marks": [first], "was": {"marks": []}})
    with pytest.raises(UserError, match="marks changed elsewhere"):
        service.set(project, {"marks": [second], "was": {"marks": []}})
    assert project.arrangement["marks"] == [first]
    service.set(project, {"marks": [first, second], "was": {"marks": [first]}})
    curve = {"events": [[0.2, 1.0]], "level": []}
    service.set(project, {"curve": curve, "was": {"curve": None}})
    with pytest.raises(UserError, match="curve changed elsewhere"):
        service.set(project, {"curve": None, "was": {"curve": None}})
    assert project.arrangement["curve"] == curve and project.arrangement["marks"] == [first, second]


def test_a_new_take_is_heard_and_a_longer_one_is_longer(service: StudioService, project: Project) -> None:
    """Whatever was solo before, and where its layer was trimmed."""
    service.make(project, {"count": 1, "seed": 0})
    assert done(project).state == "done"
    old = project.arrangement["layers"][0]["id"]
    service.layer(project, {"layer": old, "solo": True, "stop": 0.5})
    service.make(project, {"count": 1, "seed": 1})
    assert done(project).state == "done"
    layers = project.arrangement["layers"]
    assert [(layer["mute"], layer["solo"]) for layer in layers] == [(True, False), (False, False)]
    service.extend(project, {"layer": old, "seconds": 1.0})
    assert done(project).state == "done", project.jobs["make"].error
    longer = project.arrangement["layers"][0]
    assert longer["stop"] == project.sound(longer["sound"])["seconds"] > 1.0


def test_layers_are_told_apart_by_their_names(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By seed, number, what led them and what was done; by a number where all of that is the same."""
    maker = TakeMaker(VABPipeline.from_pretrained(write_model(tmp_path / "timed", timing=True), device="cpu"))
    monkeypatch.setattr(service, "maker", maker)
    project = new_project(service, write_video(tmp_path / "a.mp4", 20, 10))

    def names() -> list[str]:
        assert done(project).state == "done", project.jobs["make"].error
        return [layer["name"] for layer in project.arrangement["layers"]]

    service.make(project, {"count": 2, "seed": 3})
    assert names() == ["Seed 3", "Seed 3, sound 2"]
    service.make(project, {"count": 1, "seed": 3, "steps": 2})
    service.set(project, {"curve": {"events": [[0.5, 1.0]], "level": []}})
    assert names()[2:] == ["Seed 3 (2)"]
    service.make(project, {"count": 1, "seed": 3, "timing": "curve"})
    assert names()[3:] == ["Seed 3, curve"]
    # An edit says what is new, in place of what the last one said; a name of the user's stays before it.
    first, second = (layer["id"] for layer in project.arrangement["layers"][:2])
    service.layer(project, {"layer": second, "name": "Door"})
    for layer in (first, second):
        service.remake(project, {"layer": layer, "from": 0.5, "to": 1.0, "timing": "none"})
        names()
        service.remake(project, {"layer": layer, "from": 0.25, "to": 1.0, "rest": True, "timing": "none"})
        names()
    assert names()[:2] == ["Seed 3, all but 0.25 to 1.00 s anew", "Door, all but 0.25 to 1.00 s anew"]
    service.extend(project, {"layer": first, "seconds": 0.5, "timing": "none"})
    assert names()[0] == "Seed 3, 0.5 s longer"
    # However long: a document with a longer name would be refused.
    service.layer(project, {"layer": second, "name": "D" * 200})
    for _ in range(2):
        service.remake(project, {"layer": second, "from": 0.5, "to": 1.0, "timing": "none"})
        assert names()[1] == "D" * (200 - len(", 0.50 to 1.00 s anew")) + ", 0.50 to 1.00 s anew"
    write_wav(tmp_path / "48.wav", np.zeros(4800, np.float32), 48_000)
    for _ in range(2):
        service.add_file(project, tmp_path / "48.wav", "x" * 300)
        names()
    assert names()[-2:] == ["x" * 200, "x" * 195 + " (2)"] and len(set(names())) == 6
    service.projects.close()
    assert [layer["name"] for layer in service.open(project.id).arrangement["layers"]] == names()


def test_making_takes_again_gives_others(service: StudioService, project: Project) -> None:
    def make(**values: Any) -> tuple[str, int]:
        service.make(project, {"count": 1} | values)
        assert done(project).state == "done"
        newest = project.arrangement["layers"][-1]
        return newest["name"], project.arrangement["settings"]["seed"]

    assert make(seed=7) == ("Seed 7", 7)
    assert make(seed=7) == ("Seed 8", 8) and make() == ("Seed 9", 9)
    assert make(seed=7, steps=2) == ("Seed 7 (2)", 7), "other settings give another sound"
    service.remove(project, {"layer": project.arrangement["layers"][-1]["id"]})
    assert make() == ("Seed 7 (2)", 7), "what was removed can be made again"
    assert make(count=2) == ("Seed 8, sound 2", 8)


def test_an_edit_is_as_long_as_its_sound(service: StudioService, tmp_path: Path) -> None:
    """Whose seconds may be no whole number of the model's samples."""
    project = new_project(service, write_video(tmp_path / "a.mp4", 25, 12))
    service.make(project, {"count": 1, "seed": 0})
    assert done(project).state == "done"
    [layer] = project.arrangement["layers"]
    samples = project.take(layer["sound"]).heard.shape[1]
    assert samples == 100_000
    for rest in (True, False):
        service.remake(project, {"layer": layer["id"], "from": 0.5, "to": 1.0, "rest": rest})
        assert done(project).state == "done", project.jobs["make"].error
        [layer] = project.arrangement["layers"]
        assert project.take(layer["sound"]).heard.shape[1] == samples and layer["stop"] == samples / 48_000


def test_values_that_make_no_sense(service: StudioService, tmp_path: Path) -> None:
    project = new_project(service, write_video(tmp_path / "a.mp4", 10, 10, sound=False))
    client = client_of(service)
    page = Page(client, project.id)
    good = {"count": 1, "seed": 0}
    layer = page.do("make", **good)["arrangement"]["layers"][0]["id"]
    before = page.get("state").json()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("make", good | values)
        for values in (
            {"count": 0},
            {"count": 5},
            {"count": 1.5},
            {"count": "1"},
            {"count": True},
            {"seed": -1},
            {"seed": 2**32},
            {"steps": 0},
            {"steps": 10**400},
            {"guidance": 1e9},
            {"temperature": -1},
            {"guidance": None},
            {"timing": "motion"},
            {"timing": "curve"},
            {"timing": "later"},
        )
    ]
    wrong += [
        ("layer", {"layer": layer} | values)
        for values in (
            {"offset": "1"},
            {"offset": 1e9},
            {"start": -1},
            {"start": 1.0},
            {"stop": 0},
            {"gain_db": 99},
            {"mute": 1},
            {"name": 3},
            {"name": "a" * 300},
            {"sound": "nothing"},
            {"sound": ["a"]},
        )
    ]
    wrong += [
        ("layer", {"layer": "nothing"}),
        ("layer", {}),
        ("remove", {"layer": None}),
        ("add", {"sound": None}),
        ("add", {"sound": []}),
        ("order", {"layers": [layer, layer]}),
        ("order", {"layers": {}}),
        ("set", {"marks": [{"time": -1}]}),
        ("set", {"marks": [{"time": 1, "id": "a"}, {"time": 2, "id": "a"}]}),
        ("set", {"marks": {}}),
        ("set", {"curve": {"events": [[1]]}}),
        ("set", {"curve": {"events": [[0, 2]]}}),
        ("set", {"curve": {"level": [[0, 1]]}}),
        ("set", {"curve": []}),
        ("set", {"settings": {"steps": 0}}),
        ("set", {"settings": []}),
        ("remake", {"layer": layer, "from": "a", "to": 1}),
        ("extend", {"layer": layer, "seconds": 1000}),
        ("own", {}),
        ("place", {"row": 3, "start": 0}),
        ("find", {"by": "nothing"}),
        ("understand", {"layer": "nothing"}),
        ("export", {"what": 3}),
        ("export", {"what": "mix", "channels": 3}),
        ("rename", {"name": ""}),
        ("go", {"at": 99}),
    ]
    for verb, values in wrong:
        answer = page.ask(verb, **values)
        assert answer.status_code in (400, 409), (verb, values, answer.text)
        assert answer.json()["error"].endswith("."), (verb, values, answer.text)
    for number in ("9" * 5000, "-1", "x", "9" * 30):
        assert client.get(f"/library/{number}.wav").status_code == 404
    for body in (b"[1]", b"{", b'{"count": NaN, "seed": 0}', b"[" * 4000, b"\xff"):
        assert client.post(f"{page.address}/do/make", content=body).status_code in (400, 409), body
    assert page.ask("close", **good).status_code == 404
    after = page.get("state").json()
    assert after["arrangement"] == before["arrangement"] and after["history"] == before["history"]
    assert set(after["jobs"]) == {"look", "make"} and after["jobs"]["make"]["state"] == "done"


def test_what_the_server_lets_through(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(service)
    assert "script-src 'self'" in client.get("/about").headers["content-security-policy"]
    here = f"/projects/{project.id}"
    paths = ["/service.py", "/../pyproject.toml", "/page/..%2Fserver.py", "/page/nothing.js"]
    paths += [f"{here}/{end}" for end in ("project.json", "upload.mp4", "lock", "sounds/..%2Fproject.json")]
    paths += [f"{here}/exports/..%2Fproject.json", f"{here}/exports/.kinds.json", "/projects/..%2F/state"]
    paths += ["/projects/../state", "/projects/nothing/state", "/projects/.hidden/state"]
    paths += [
        f"/library/{end}" for end in ("99.wav", "-1.wav", "..%2Fa.wav", "0.wav?start=-1", "0.wav?start=nan")
    ]
    for path in paths:
        assert client.get(path).status_code == 404, path
    for host in ("evil.example", "evil.example:7860", "[", "127.0.0.1.evil.example"):
        assert client.get("/about", headers={"host": host}).status_code == 403, host
    for path in ("/projects", f"{here}/do/make", f"{here}/files"):
        for origin in ("http://evil.example", "null"):
            assert client.post(path, headers={"origin": origin}).status_code == 403
    undo = f"{here}/do/undo"
    assert client.post(undo, headers={"origin": "http://127.0.0.1:7860"}).status_code == 409
    monkeypatch.setattr(server, "MAX_UPLOAD_BYTES", 1 << 20)
    assert client.post("/projects", content=b"0" * (1 << 20 | 1)).status_code == 413
    streamed = client.post("/projects", content=(b"0" * 65536 for _ in range(17)))
    assert streamed.status_code == 422 and "1 MB" in streamed.json()["error"]
    monkeypatch.setattr(server, "MAX_REQUEST_BYTES", 4096)
    assert client.post(f"{here}/do/make", content=b"0" * 5000).status_code == 413


def test_behind_a_web_server(service: StudioService, project: Project) -> None:
    undo = f"/projects/{project.id}/do/undo"
    for base in ("https://studio.example.org", "http://127.0.0.1:7860"):  # the name may be handed on or not
        client = client_of(service, base, access=Access(link="https://Studio.example.org:443"))
        assert client.post(undo, headers={"origin": "https://studio.example.org"}).status_code == 409
        for origin in ("https://evil.example", "null", ""):
            assert client.post(undo, headers={"origin": origin}).status_code == 403
        for host in ("evil.example", "studio.example.org:8080", "studio.example.org.evil.example"):
            assert client.get("/about", headers={"host": host}).status_code == 403
        assert client.get("/about", headers={"host": "studio.example.ORG:443"}).status_code == 200


def test_whoever_goes_away_is_not_read_on(service: StudioService, monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")
    begun, ended = threading.Event(), threading.Event()

    def read(upload: Path, folder: Path, name: str, unwanted: Callable[[], bool]) -> Clip:
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
    user = http.client.HTTPConnection(*place.getsockname())
    user.request("POST", "/projects", b"a film")
    assert begun.wait(10)
    time.sleep(0.2)
    assert not ended.is_set()
    user.close()
    assert ended.wait(10)
    running.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def test_a_visitor_has_one_upload_read_at_a_time(
    service: StudioService, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most = [], []

    def read(upload: Path, folder: Path, name: str, unwanted: Callable[[], bool]) -> Clip:
        inside.append(upload)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(upload)
        raise UploadError("No video.")

    monkeypatch.setattr(server, "prepare", read)
    with client_of(service) as client, ThreadPoolExecutor(6) as pool:  # one loop for all requests
        posts = [pool.submit(client.post, "/projects", content=b"a film") for _ in range(6)]
        answers = [post.result().status_code for post in posts]
    assert answers == [422] * 6 and most == [1] * 6


def test_an_upload_that_breaks_off_is_no_error_of_the_server(tmp_path: Path) -> None:
    requests = pytest.importorskip("starlette.requests", reason="no web server: pip install 'vab[studio]'")

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(UploadError, match="Cancelled"):
        asyncio.run(server._receive(requests.Request({"type": "http"}, leave), tmp_path / "upload"))


def test_a_number_means_the_same_sound_after_a_restart_or_none(maker: TakeMaker, library: Path) -> None:
    first, again = (LibraryView(Library.open(library)) for _ in range(2))
    low, high = (first.words(word, 1)[0].row for word in ("low", "high"))
    assert first.path(low).name == "low.wav" and first.path(high).name == "high.wav"
    with pytest.raises(UserError, match="search once more"):
        again.path(low)
    assert again.words("high", 1)[0].row == high and again.path(high).name == "high.wav"


def test_a_library_without_sounds(maker: TakeMaker, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films" / "silent.mp4", 20, 10, sound=False)
    embedder = maker.pipeline.embedder
    made = Library.create(tmp_path / "library")
    list(made.add([tmp_path / "films" / "silent.mp4"], embedder.embed_files, embedder.fingerprint()))
    view = LibraryView(Library.open(tmp_path / "library"))
    service = StudioService(maker, Projects(tmp_path / "projects"), view)
    project = new_project(service, write_video(tmp_path / "a.mp4", 10, 10))
    assert view.contents() == {"sounds": 1, "labels": [("films", 1)]}
    for verb in ("find", "understand"):
        service.verbs[verb](project, {})
        assert done(project, verb).state == "done", project.jobs[verb].error
        assert project.answers[verb]["hits"] == []
    service.close()


def test_what_is_compared_with_a_library_is_in_its_precision(
    model: Path, library: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[StudioService] = []

    def service(*parts: Any) -> StudioService:
        served.append(StudioService(*parts))
        return served[0]

    monkeypatch.setattr("vab.studio.service.StudioService", service)
    monkeypatch.setattr("vab.web.server.serve", lambda app, socket, access: socket.close())
    words = f"--model {model} --library {library} --projects {tmp_path / 'projects'} --port 0 --device cpu"
    with pytest.raises(SystemExit) as left:
        main(f"studio {words} --precision bfloat16".split())
    assert left.value.code == 0
    found = served[0]._embedded(clip.source).mean("video")
    of_float32 = Embedder.from_pretrained(model, device="cpu").embed_file(clip.source).mean("video")
    assert np.array_equal(found, of_float32)
    assert served[0].maker.pipeline.chosen.precision == "bfloat16"
    assert served[0].maker.pipeline.embedder.chosen.precision == "bfloat16"
    served[0].close()


@pytest.mark.parametrize("gone", [True, False])
def test_a_sound_that_is_gone_is_another_thing_than_a_failure(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    service.own(project, {})
    assert done(project).state == "done"

    def embed(embedder: Embedder, path: Path) -> None:
        if gone:
            path.unlink()
        raise MediaError("out of memory")

    monkeypatch.setattr(Embedder, "embed_file", embed)
    service.find(project, {"by": project.arrangement["layers"][0]["id"]})
    assert done(project, "find").error == ("This sound is not here any more." if gone else INTERNAL_ERROR)


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


def test_what_needs_no_model_does_not_wait_for_takes(service: StudioService, project: Project) -> None:
    go, begun = threading.Event(), threading.Event()
    service.queue.add(slow := Job("make", lambda _: begun.set() or go.wait(60)))
    try:
        assert begun.wait(60)
        service.export(project, {"what": "markers"})
        service.find(project, {"by": "text:low"})
        assert [done(project, kind).state for kind in ("export", "find")] == ["done", "done"]
        service.understand(project, {})
        assert service.queue.ahead(project.jobs["understand"]) == 1 and slow.state == "working"
    finally:
        go.set()
    assert done(project, "understand").state == "done"


def test_no_temporary_folder_outlives_a_job_and_the_next_start_clears_what_a_kill_leaves(
    service: StudioService, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    used: list[str] = []

    def cancelled(clip: Path, wav: Path, seconds: float, *, unwanted: Callable[[], bool]) -> None:
        used.append(wav.parent.name)
        service.cancel(project, {"kind": "make"})
        raise UploadError("Cancelled." if unwanted() else "It was not told.")

    def film(project: Project, sound: str, folder: Path) -> Path:
        used.append(folder.name)
        return project.clip.source

    service.own(project, {})
    done(project)
    layer = project.arrangement["layers"][0]["id"]
    monkeypatch.setattr("vab.studio.service.prepare_sound", cancelled)
    monkeypatch.setattr("vab.studio.service._film", film)
    monkeypatch.setattr(
        "vab.studio.takes.write_picture", lambda film, path, fps: used.append(path.parent.name)
    )
    service.own(project, {})
    assert done(project).state == "cancelled"
    service.understand(project, {"layer": layer})
    done(project, "understand")
    with suppress(MediaError):  # there is no picture
        service.maker.warm_up()
    assert len(used) == 3 and not list(place.iterdir())

    for name in used:  # as a process that is killed leaves them
        (place / name).mkdir()
        (place / name / "own.wav").write_bytes(b"")
    monkeypatch.setattr("vab.utils.files._swept", set())
    with suppress(MediaError):
        service.maker.warm_up()
    assert not list(place.iterdir())


@pytest.mark.parametrize("verb", ["make", "own", "place"])
@pytest.mark.parametrize("stage", ["features", "written"])
def test_every_way_to_a_take_says_how_far_it_is_and_can_be_cancelled(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch, verb: str, stage: str
) -> None:
    done(project, "look")
    assert service.library is not None
    row = service.library.words("low", 1)[0].row  # found: it has a number
    service.maker._features.clear()
    report, score = Job.report, TakeMaker._score
    stages: set[str] = set()

    def cancel_there(job: Job, name: str, done: int, total: int) -> None:
        stages.add(name)
        if name == stage:
            service.cancel(project, {"kind": "make"})
        report(job, name, done, total)

    def cancel_late(maker: TakeMaker, audio: Audio) -> float | None:
        if stage == "written":
            service.cancel(project, {"kind": "make"})
        return score(maker, audio)

    monkeypatch.setattr(Job, "report", cancel_there)
    monkeypatch.setattr(TakeMaker, "_score", cancel_late)
    service.verbs[verb](project, {"count": 1, "seed": 0, "row": row, "start": 0})
    assert done(project).state == "cancelled" and "features" in stages
    assert project.arrangement["layers"] == [] and len(project.document["history"]) == 1
    assert not list((project.folder / "sounds").glob("*"))


def test_a_take_that_comes_after_an_undo_joins_the_others(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = Project.change

    def undo_then(self: Project, did: str, *rest: Any) -> Any:
        step = change(self, did, *rest)
        if did == "1 take made":
            service.undo(project, {})
        return step

    monkeypatch.setattr(Project, "change", undo_then)
    service.make(project, {"count": 2, "seed": 0})
    assert done(project).state == "done"
    assert project.arrangement["layers"] == [] and service.state(project)["can_redo"] == "2 takes made"
    service.redo(project, {})
    assert len(project.arrangement["layers"]) == 2


@pytest.mark.parametrize("verb", ["make", "own", "extend"])
def test_what_was_asked_for_before_an_undo_drops_nothing(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for _ in range(2):
        service.own(project, {})
        done(project)
    sounds = set(project.document["sounds"])
    layer = project.arrangement["layers"][0]["id"]
    write = Project.write_sound

    def undo_then(self: Project, take: Take) -> str:
        service.undo(project, {})
        return write(self, take)

    monkeypatch.setattr(Project, "write_sound", undo_then)
    service.verbs[verb](project, {"count": 1, "seed": 0, "layer": layer, "seconds": 1.0})
    assert done(project).state == "done"
    # It is what one sees, made of what was there after the undo; what was undone lies before it.
    steps, at = project.document["history"], project.document["at"]
    assert len(steps) == 4 and at == 3
    assert len(project.arrangement["layers"]) == (1 if verb == "extend" else 2)
    assert len(steps[2]["arrangement"]["layers"]) == 2 and sounds < set(project.document["sounds"])
    # An undo before the request is another matter.
    monkeypatch.undo()
    service.go(project, {"at": 1})
    service.own(project, {})
    done(project)
    assert len(project.document["history"]) == 3 and project.document["at"] == 2


@pytest.mark.parametrize("arriving", ["1 take made", "2 takes made"])
def test_settings_that_are_changed_while_takes_are_made_stay(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch, arriving: str
) -> None:
    change = Project.change

    def change_after_setting(self: Project, did: str, *rest: Any, **more: Any) -> Any:
        if did == arriving:
            service.set(self, {"settings": {"guidance": 7.5}})
        return change(self, did, *rest, **more)

    monkeypatch.setattr(Project, "change", change_after_setting)
    service.make(project, {"count": 2, "seed": 3})
    assert done(project).state == "done"
    settings = project.arrangement["settings"]
    assert settings["guidance"] == 7.5 and len(project.arrangement["layers"]) == 2
    # Those of the request are there if a take was before them.
    assert settings["seed"] == (3 if arriving == "2 takes made" else 0)


def test_an_edit_of_a_layer_that_is_gone_is_a_sentence(
    service: StudioService, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.own(project, {})
    done(project)
    layer = project.arrangement["layers"][0]["id"]
    remake = TakeMaker.remake

    def remove_then(*values: Any) -> Take:
        service.remove(project, {"layer": layer})
        return remake(*values)

    monkeypatch.setattr(TakeMaker, "remake", remove_then)
    service.remake(project, {"layer": layer, "from": 0.5, "to": 1.0})
    assert done(project).error == "This layer is not here any more."
    assert len(list((project.folder / "sounds").glob("*.wav"))) == 1


def test_projects_do_not_wait_for_each_others_pages(service: StudioService, tmp_path: Path) -> None:
    """One queue for all, and jobs of their own for each."""
    film = write_video(tmp_path / "a.mp4", 10, 10)
    one, two = new_project(service, film), new_project(service, film)
    client = client_of(service)
    pages = [Page(client, project.id) for project in (one, two)]
    for page in pages:
        assert page.ask("make", count=1, seed=0).status_code == 200
    states = [page.do("cancel", kind="nothing") for page in pages]
    assert [len(state["arrangement"]["layers"]) for state in states] == [1, 1]
    sound = f"sounds/{states[0]['arrangement']['layers'][0]['sound']}.wav"
    assert pages[0].get(sound).status_code == 200 and pages[1].get(sound).status_code == 404
    assert {entry["num_layers"] for entry in client.get("/projects").json()} == {1}


def test_ctrl_c_ends_an_upload_without_a_traceback(model: Path, tmp_path: Path) -> None:
    words = ["studio", "--projects", str(tmp_path / "projects"), "--model", str(model)]
    process = Forked(tmp_path, main, [*words, "--port", "0", "--json"])
    try:
        place = urlsplit(process.document()["link"])
        user = http.client.HTTPConnection(place.hostname or "", place.port)
        user.putrequest("POST", "/projects")
        user.putheader("Content-Length", "1000000")
        user.endheaders(b"the rest never comes")
        while not list(tmp_path.glob("projects/.*/arriving")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        user.close()
    finally:
        process.kill()
    assert process.returncode == 130 and said.endswith("vab: interrupted\n")
    assert "Traceback" not in said
    assert not list(tmp_path.glob("projects/*"))


def test_the_command_says_what_is_wrong(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--port", 0, "--projects", tmp_path / "projects", "--library", tmp_path, "--model", model)
    code, out, err = vab(capsys, "studio", *words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"vab: .*holds no library; make one with .*\n", err)
