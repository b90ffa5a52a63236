"""The web server of the studio: its pages, their JSON endpoints and media files (ASGI, needs starlette).

Whoever may come in (``vab.web.access``) may see and change every project. What a browser may fetch is the
pages' own files, the files of a project by the names that its document has, and sounds of the library by
number.
"""

from __future__ import annotations

import asyncio
import io
import math
import shlex
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import anyio.to_thread
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vab.config import SAMPLE_RATE
from vab.errors import first_line
from vab.media.container import MediaError
from vab.media.write import encode_audio
from vab.studio.analysis import analyse, peaks
from vab.studio.arrangement import MAX_LAYERS, MAX_MARKS, MAX_NEW_TAKES, text
from vab.studio.export import exported
from vab.studio.project import UNREADABLE, DiskError, NoProject, Project
from vab.studio.queue import UserError
from vab.studio.service import StudioService
from vab.studio.teaching import ENDINGS, MAX_FILES, MAX_FOLDER_BYTES, Teaching
from vab.studio.uploads import MAX_UPLOAD_BYTES, MAX_VIDEO_SECONDS, UploadError, prepare, prepare_sound
from vab.web.access import Access
from vab.web.guard import protect, visitor_of
from vab.web.values import ERRORS, read_values

PAGE = Path(__file__).parent / "page"
MAX_REQUEST_BYTES = 1 << 20  # of a request that is no upload: a curve has thousands of points
MAX_READING = 2  # uploads that are read at the same time; others wait
MAX_START_SECONDS = 1e6  # of a sound of the library
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
}
MEDIA = {"wav": "audio/wav", "png": "image/png"}

T = TypeVar("T")


def make_app(
    service: StudioService, model: str, access: Access | None = None, teaching: Teaching | None = None
) -> ASGIApp:
    """The web application (ASGI), for those with ``access``: by default, on this machine.

    Without ``teaching`` no models of one's own are made. When the application is shut down the service and
    the teaching are closed.
    """
    access = access or Access()
    endpoints = Endpoints(service, model, access, teaching)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        if teaching is not None:
            await run_in_threadpool(teaching.close)
        await run_in_threadpool(service.close)

    project = "/projects/{project}"
    app = Starlette(
        routes=[
            Route("/", endpoints.list_page),
            Route("/page/{name}", endpoints.page),
            Route("/about", endpoints.about),
            Route("/library/{row}.wav", endpoints.library_sound),
            Route("/models", endpoints.models),
            Route("/models/files", endpoints.add_labelled, methods=["POST"]),
            Route("/models/do/{verb}", endpoints.teach, methods=["POST"]),
            Route("/projects", endpoints.entries, methods=["GET"]),
            Route("/projects", endpoints.create, methods=["POST"]),
            Route(project, endpoints.redirect, methods=["GET"]),
            Route(project, endpoints.delete, methods=["DELETE"]),
            Route(f"{project}/", endpoints.workbench_page),
            Route(f"{project}/state", endpoints.state),
            Route(f"{project}/do/{{verb}}", endpoints.act, methods=["POST"]),
            Route(f"{project}/files", endpoints.add_file, methods=["POST"]),
            Route(f"{project}/find", endpoints.find, methods=["POST"]),
            Route(f"{project}/analysis", endpoints.analysis),
            Route(f"{project}/sounds/{{sound}}.{{ending}}", endpoints.sound),
            Route(f"{project}/exports/{{name}}", endpoints.exported),
            Route(f"{project}/{{name}}", endpoints.picture),
        ],
        exception_handlers=ERRORS
        | {UserError: _refused, UploadError: _refused, MediaError: _refused, OSError: _full},
        lifespan=lifespan,
    )
    return protect(app, access, HEADERS)


class Endpoints:
    """One method for each address. Synchronous ones are run in starlette's pool of threads."""

    def __init__(self, service: StudioService, model: str, access: Access, teaching: Teaching | None) -> None:
        self.service = service
        self.model = model
        self.access = access
        self._teaching = teaching
        self.reading = anyio.CapacityLimiter(MAX_READING)

    def project_of(self, request: Request) -> Project:
        """The project that an address names. ``ProjectError``."""
        return self.service.open(request.path_params["project"])

    # ---- pages

    def list_page(self, request: Request) -> Response:
        """The list of the projects."""
        return _file(PAGE, PAGE / "projects.html", "text/html")

    def workbench_page(self, request: Request) -> Response:
        """The workbench on a project."""
        return _file(PAGE, PAGE / "workbench.html", "text/html")

    def page(self, request: Request) -> Response:
        """A file of the pages."""
        name = request.path_params["name"]
        if not any(path.name == name for path in PAGE.iterdir()):
            return _error("There is no such file.", 404)
        return FileResponse(PAGE / name)

    def redirect(self, request: Request) -> Response:
        """The address of a project ends in a slash, as those of its files are relative to it."""
        return RedirectResponse(f"{request.path_params['project']}/")

    # ---- the server

    def about(self, request: Request) -> Response:
        """Model, defaults and limits, the same for everybody."""
        maker, library = self.service.maker, self.service.library
        limits = {
            "bytes": MAX_UPLOAD_BYTES,
            "seconds": MAX_VIDEO_SECONDS,
            "takes": MAX_NEW_TAKES,
            "layers": MAX_LAYERS,
            "marks": MAX_MARKS,
        }
        about = {
            "model": self.model,
            "defaults": self.service.default_settings(),
            "limits": limits,
            **({"sounds": None, "labels": []} if library is None else library.contents()),
            "learned": maker.pipeline.finetuned.pictured,
            "timing": maker.follows_curves,
            "motion": maker.follows_motion,
        }
        return JSONResponse(about)

    def library_sound(self, request: Request) -> Response:
        """A few seconds of a sound of the library, WAV."""
        library = self.service.library
        try:
            start = float(request.query_params.get("start", 0))
            if library is None or not 0 <= start < MAX_START_SECONDS:
                raise ValueError
            data = _wav(library.sound(int(request.path_params["row"]), start))
        except (ValueError, UserError):
            return _error("There is no such sound.", 404)
        except MediaError:
            return _error("This file of the library cannot be read any more.", 410)
        return Response(data, media_type="audio/wav")

    # ---- models of one's own

    @property
    def teaching(self) -> Teaching:
        """What makes models. ``HTTPException`` if nothing does."""
        if self._teaching is None:
            raise HTTPException(404, "No models are made here.")
        return self._teaching

    def models(self, request: Request) -> Response:
        """The models that were made here, what is being made, and what a folder may be."""
        projects = self.service.projects.folder
        models = []
        for path, labels in self.teaching.models().items():
            command = ["vab", "studio", "--projects", str(projects), "--model", str(path)]
            if self.access.is_open:  # where they lie is not for everybody
                command = ["vab", "studio", "--model", f"models/{path.name}"]
            about = {"name": path.name, "labels": labels, "command": shlex.join(command)}
            models.append(about | {"used": self.teaching.is_used(path)})
        limits = {"bytes": MAX_UPLOAD_BYTES, "files": MAX_FILES, "all": MAX_FOLDER_BYTES, "endings": ENDINGS}
        return JSONResponse({"models": models, "making": self.teaching.state(), "limits": limits})

    async def teach(self, request: Request) -> Response:
        """``begin``, ``look``, ``start``, ``cancel`` or ``delete``, with the values in the body."""
        values = await read_values(request)
        teaching, verb = self.teaching, request.path_params["verb"]
        if verb == "begin":
            return JSONResponse({"number": await run_in_threadpool(teaching.begin)})
        if verb == "look":
            await self._read(request, partial(teaching.look, text(values, "number")))
        elif verb == "start":
            await run_in_threadpool(teaching.start, text(values, "name"))
        elif verb == "cancel":
            await run_in_threadpool(teaching.cancel, text(values, "number") if "number" in values else None)
        elif verb == "delete":
            await run_in_threadpool(teaching.delete, text(values, "name"))
        else:
            return _error("There is no such thing to do.", 404)
        return await run_in_threadpool(self.models, request)

    async def add_labelled(self, request: Request) -> Response:
        """Take in a file of a folder: its path there and the number of the folder are in headers."""
        name, number = unquote(request.headers.get("file-name", "")), request.headers.get("folder", "")
        teaching = self.teaching
        async with self._arrived(request) as (raw, _):
            await run_in_threadpool(teaching.add, number, name, raw)
        return JSONResponse({})

    # ---- projects

    def entries(self, request: Request) -> Response:
        """All projects, as the list shows them."""
        entries = [
            entry | {"poster": f"projects/{quote(entry['id'])}/poster.jpg" if entry["poster"] else None}
            for entry in self.service.projects.entries()
        ]
        return JSONResponse(entries)

    async def create(self, request: Request) -> Response:
        """Make a project of a clip: the body is the file, its name is in a header."""
        name = unquote(request.headers.get("file-name", ""))
        async with self._arrived(request) as (raw, unwanted):
            clip = await self._read(request, partial(prepare, raw, raw.parent, name, unwanted=unwanted))
            project = await run_in_threadpool(self.service.create, clip, Path(clip.name).stem)
        return JSONResponse(await run_in_threadpool(self.service.state, project))

    @asynccontextmanager
    async def _arrived(self, request: Request) -> AsyncIterator[tuple[Path, Callable[[], bool]]]:
        """The body, as a file that is there inside the block, and what tells if its sender has gone away."""
        if _number(request.headers.get("content-length") or "0") > MAX_UPLOAD_BYTES:
            raise HTTPException(413, _too_large())
        disconnected = threading.Event()
        watch = None
        folder = self.service.projects.new_folder()
        raw = (await run_in_threadpool(folder.__enter__)) / "arriving"
        try:
            await _receive(request, raw)
            watch = asyncio.create_task(_watch(request, disconnected))
            yield raw, disconnected.is_set
        finally:
            disconnected.set()  # also ends a child whose answer nobody waits for any more
            if watch is not None:
                watch.cancel()
            folder.__exit__(None, None, None)

    async def _read(self, request: Request, read: Callable[[], T]) -> T:
        """Read an upload in a thread: a few at once, and one of each visitor, so that they take turns."""
        async with visitor_of(request.scope).turn:
            return await anyio.to_thread.run_sync(read, limiter=self.reading, abandon_on_cancel=True)

    def state(self, request: Request) -> Response:
        """All that the page of a project shows."""
        return JSONResponse(self.service.state(self.project_of(request)))

    async def act(self, request: Request) -> Response:
        """Carry out a verb of the service with the values in the body, a small JSON object."""
        values = await read_values(request, MAX_REQUEST_BYTES)
        return await run_in_threadpool(self._act, request, values)

    def _act(self, request: Request, values: dict[str, Any]) -> Response:
        project = self.project_of(request)
        verb = self.service.verbs.get(request.path_params["verb"])
        if verb is None:
            return _error("There is no such thing to do.", 404)
        verb(project, values)
        return JSONResponse(self.service.state(project))

    def delete(self, request: Request) -> Response:
        """Delete a project, also one that cannot be opened."""
        self.service.delete(request.path_params["project"])
        return JSONResponse({})

    async def add_file(self, request: Request) -> Response:
        """Make a layer of a sound, or of the sound of a film."""
        await run_in_threadpool(self.project_of, request)  # before its file is waited for
        title = Path(unquote(request.headers.get("file-name", ""))).stem
        async with self._arrived(request) as (raw, unwanted):
            wav = raw.with_name("sound.wav")
            await self._read(request, partial(prepare_sound, raw, wav, unwanted=unwanted))
            project = await run_in_threadpool(self.project_of, request)
            await run_in_threadpool(self.service.add_file, project, wav, title)
        return JSONResponse(await run_in_threadpool(self.service.state, project))

    async def find(self, request: Request) -> Response:
        """The sounds of the library that are nearest to one that is given."""
        await run_in_threadpool(self.project_of, request)
        async with self._arrived(request) as (raw, unwanted):
            wav = raw.with_name("sound.wav")
            await self._read(request, partial(prepare_sound, raw, wav, unwanted=unwanted))
            # what waits in the queue holds no thread, and no place among those that are read
            project = await run_in_threadpool(self.project_of, request)
            job = await run_in_threadpool(self.service.nearest_to, project, wav)
            while not job.ended.is_set():
                await asyncio.sleep(0.1)
                if unwanted():
                    self.service.queue.cancel(job)
        if job.state != "done":
            raise UserError(job.error or "Cancelled.")
        return JSONResponse({"hits": job.result})

    def analysis(self, request: Request) -> Response:
        """Cuts of the clip, onsets of its motion and of the sounds."""
        project = self.project_of(request)
        return JSONResponse(analyse(project.folder, project.document))

    def sound(self, request: Request) -> Response:
        """A file of a sound."""
        project = self.project_of(request)
        name, ending = request.path_params["sound"], request.path_params["ending"]
        if name not in project.document["sounds"] or not _is_in(project.folder, project.path(name)):
            return _error("There is no such sound.", 404)
        if ending == "peaks":
            return Response(peaks(project.path(name)), media_type="application/octet-stream")
        if ending not in MEDIA:
            return _error("There is no such file.", 404)
        return _file(project.folder, project.path(name, ending), MEDIA[ending])

    def exported(self, request: Request) -> Response:
        """A file that was exported."""
        project, name = self.project_of(request), request.path_params["name"]
        for path in exported(project.folder):
            if path.name == name:
                return _file(project.folder, path, filename=name)
        return _error("There is no such file.", 404)

    def picture(self, request: Request) -> Response:
        """The picture of the clip, or its poster, which is shown of a project that cannot be opened too."""
        name = request.path_params["name"]
        if name == "picture.mp4":
            project = self.project_of(request)
            return _file(project.folder, project.clip.picture, "video/mp4")
        if name == "poster.jpg":
            folder = self.service.projects.path(request.path_params["project"])
            return _file(folder, folder / name, "image/jpeg")
        return _error("There is no such file.", 404)


def _file(folder: Path, path: Path, media_type: str | None = None, filename: str | None = None) -> Response:
    """A file in a folder, or below it."""
    if not _is_in(folder, path):
        return _error("This file is missing.", 404)
    return FileResponse(path, media_type=media_type, filename=filename)


def _is_in(folder: Path, path: Path) -> bool:
    """True for a file of a folder; what a link in it names elsewhere is none, whoever put it there."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


async def _refused(request: Request, error: Exception) -> Response:
    """What cannot be done, in a sentence."""
    if isinstance(error, MediaError):  # it says where the file is, which is nobody's business
        return _error(UNREADABLE, 410)
    kinds = {NoProject: 404, DiskError: 507, UploadError: 422}
    return _error(str(error), next((kinds[kind] for kind in kinds if isinstance(error, kind)), 409))


async def _full(request: Request, error: Exception) -> Response:
    """What the disk refuses."""
    return _error(f"This server cannot keep it just now: {first_line(error)}.", 507)


def _number(digits: str) -> float:
    """The number that digits stand for; those that are none, or thousands, count as without end."""
    try:
        return int(digits)
    except ValueError:
        return math.inf


def _error(message: str, status: int) -> Response:
    return JSONResponse({"error": message}, status)


async def _receive(request: Request, path: Path) -> None:
    """Write the body of a request to a file. ``UploadError`` if it is too large or breaks off."""
    size = 0
    try:
        with path.open("wb") as file:
            async for part in request.stream():
                size += len(part)
                if size > MAX_UPLOAD_BYTES:
                    raise UploadError(_too_large())
                file.write(part)
    except ClientDisconnect:
        raise UploadError("Cancelled.") from None


async def _watch(request: Request, disconnected: threading.Event) -> None:
    """Set the event when the visitor has gone away, or does not want to wait any more."""
    await request.receive()  # all of the body is here: what comes next is that the connection is closed
    disconnected.set()


def _too_large() -> str:
    return f"It is too large: {MAX_UPLOAD_BYTES >> 20} MB are the most here."


def _wav(waveform: np.ndarray) -> bytes:
    stream = io.BytesIO()
    encode_audio(stream, waveform, SAMPLE_RATE)
    return stream.getvalue()
