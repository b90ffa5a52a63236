"""The web server of the studio: its pages, their JSON endpoints and media files (ASGI, needs starlette).

Whoever reaches it may see and change every project. What a browser may fetch is the pages' own files, the
files of a project by the names that its document has, and sounds of the library by number.
"""

from __future__ import annotations

import asyncio
import io
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import anyio.to_thread
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from vab.config import SAMPLE_RATE
from vab.errors import first_line
from vab.media.container import MediaError
from vab.media.write import encode_audio
from vab.studio.analysis import analyse, peaks
from vab.studio.arrangement import MAX_LAYERS, MAX_MARKS, MAX_NEW_TAKES
from vab.studio.export import exported
from vab.studio.project import DiskError, NoProject, Project
from vab.studio.queue import UserError
from vab.studio.service import StudioService
from vab.studio.uploads import MAX_UPLOAD_BYTES, MAX_VIDEO_SECONDS, UploadError, prepare, prepare_sound
from vab.utils.files import json_object
from vab.web import HEADERS as COMMON

PAGE = Path(__file__).parent / "page"
MAX_REQUEST_BYTES = 1 << 20  # of a request that is no upload: a curve has thousands of points
MAX_READING = 2  # uploads that are read at the same time; others wait
MAX_UPLOADS = 10  # uploads on the disk, arriving or waiting to be read; others are not taken in yet
MAX_UPLOAD_SECONDS = 600.0  # until an upload has arrived
MAX_START_SECONDS = 1e6  # of a sound of the library
LOCAL = {"127.0.0.1", "localhost", "::1"}
HEADERS = COMMON | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), geolocation=()",
}
MEDIA = {"wav": "audio/wav", "png": "image/png"}

T = TypeVar("T")


def make_app(service: StudioService, model: str, local: bool = True, link: str | None = None) -> Starlette:
    """The web application (ASGI). ``local``: only answer to names of this machine.

    ``link`` is the address of a web server in front, whose name is answered to as well. When the application
    is shut down the service is closed.
    """
    endpoints = Endpoints(service, model)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    project = "/projects/{project}"
    return Starlette(
        routes=[
            Route("/", endpoints.list_page),
            Route("/page/{name}", endpoints.page),
            Route("/about", endpoints.about),
            Route("/map", endpoints.map),
            Route("/library/{row}.wav", endpoints.library_sound),
            Route("/projects", endpoints.entries, methods=["GET"]),
            Route("/projects", endpoints.create, methods=["POST"]),
            Route(project, endpoints.redirect),
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
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=Guard(local, link))],
        exception_handlers={UserError: _refused, UploadError: _refused, MediaError: _refused, OSError: _full},
        lifespan=lifespan,
    )


class Guard:
    """Refuses requests from the pages of other sites; adds the headers to every answer."""

    def __init__(self, local: bool, link: str | None) -> None:
        self.local = local
        self.front = {_plain(urlsplit(link).netloc)} if link else set()

    async def __call__(self, request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        """The answer to a request."""
        host = _plain(request.headers.get("host", ""))
        origin = request.headers.get("origin")
        known = not self.local or _name_of(host) in LOCAL or host in self.front
        own = origin is None or _plain(origin.partition("://")[2]) in {host, *self.front}
        if not known or (request.method != "GET" and not own):
            answer = _error("This request comes from another site.", 403)
        else:
            answer = await call(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer


class Endpoints:
    """One method for each address. Synchronous ones are run in starlette's pool of threads."""

    def __init__(self, service: StudioService, model: str) -> None:
        self.service = service
        self.model = model
        self.reading = anyio.CapacityLimiter(MAX_READING)
        self.arriving = anyio.CapacityLimiter(MAX_UPLOADS)

    def project_of(self, request: Request) -> Project:
        """The project that an address names. ``ProjectError``."""
        return self.service.open(request.path_params["project"])

    # ---- pages

    def list_page(self, request: Request) -> Response:
        """The list of the projects."""
        return _file(PAGE / "projects.html", "text/html")

    def workbench_page(self, request: Request) -> Response:
        """The workbench on a project."""
        return _file(PAGE / "workbench.html", "text/html")

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
            "sounds": None if library is None else len(library.paths),
            "labels": [] if library is None else library.labels_with_counts,
            "learned": maker.pipeline.finetuned.pictured,
            "timing": maker.follows_curves,
            "motion": maker.follows_motion,
        }
        return JSONResponse(about)

    def map(self, request: Request) -> Response:
        """The points of the library's map."""
        library = self.service.library
        if library is None:
            return JSONResponse({"points": []})
        points = [
            {"row": row, "x": x, "y": y, "label": library.labels[row], "name": library.paths[row].name}
            for row, x, y in library.points
        ]
        return JSONResponse({"points": points})

    def library_sound(self, request: Request) -> Response:
        """A few seconds of a sound of the library, WAV."""
        library = self.service.library
        try:
            start = float(request.query_params.get("start", 0))
            if library is None or not 0 <= start < MAX_START_SECONDS:
                raise ValueError
            data = _wav(library.sound(int(request.path_params["row"]), start))
        except (ValueError, IndexError):
            return _error("There is no such sound.", 404)
        except MediaError:
            return _error("This file of the library cannot be read any more.", 410)
        return Response(data, media_type="audio/wav")

    # ---- projects

    def entries(self, request: Request) -> Response:
        """All projects, as the list shows them."""
        entries = [
            entry | {"poster": f"projects/{entry['id']}/poster.jpg" if entry["poster"] else None}
            for entry in self.service.projects.entries()
        ]
        return JSONResponse(entries)

    async def create(self, request: Request) -> Response:
        """Make a project of a clip: the body is the file, its name is in a header."""
        name = unquote(request.headers.get("file-name", ""))

        def make(raw: Path, unwanted: Callable[[], bool]) -> Project:
            clip = prepare(raw, raw.parent, name, unwanted=unwanted)
            return self.service.create(clip, Path(clip.name).stem)

        return await self._take_in(request, make)

    async def _take_in(
        self, request: Request, use: Callable[[Path, Callable[[], bool]], Project]
    ) -> Response:
        """Receive a file and use it in a thread, while the user waits; the state of the project then."""
        if _number(request.headers.get("content-length") or "0") > MAX_UPLOAD_BYTES:
            return _error(_too_large(), 413)
        project = await self._received(request, use)
        return JSONResponse(await run_in_threadpool(self.service.state, project))

    async def _received(self, request: Request, use: Callable[[Path, Callable[[], bool]], T]) -> T:
        """Receive the body into a folder that goes in the end, and use it."""
        disconnected = threading.Event()
        watch = None
        async with self.arriving:
            folder = self.service.projects.new_folder()
            raw = (await run_in_threadpool(folder.__enter__)) / "arriving"
            try:
                await _receive(request, raw)
                watch = asyncio.create_task(_watch(request, disconnected))
                read = partial(use, raw, disconnected.is_set)
                return await anyio.to_thread.run_sync(read, limiter=self.reading, abandon_on_cancel=True)
            finally:
                disconnected.set()  # also ends a child whose answer nobody waits for any more
                if watch is not None:
                    watch.cancel()
                folder.__exit__(None, None, None)

    def state(self, request: Request) -> Response:
        """All that the page of a project shows."""
        return JSONResponse(self.service.state(self.project_of(request)))

    async def act(self, request: Request) -> Response:
        """Carry out a verb of the service with the values in the body, a small JSON object."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_REQUEST_BYTES:
                return _error("The request is too long.", 413)
        return await run_in_threadpool(self._act, request, body)

    def _act(self, request: Request, body: bytes) -> Response:
        project = self.project_of(request)
        verb = self.service.verbs.get(request.path_params["verb"])
        if verb is None:
            return _error("There is no such thing to do.", 404)
        try:
            values = json_object(body or b"{}")
        except ValueError:
            return _error("The request arrived broken.", 400)
        verb(project, values)
        return JSONResponse({} if project.is_gone else self.service.state(project))

    async def add_file(self, request: Request) -> Response:
        """Make a layer of a sound, or of the sound of a film."""
        project = await run_in_threadpool(self.project_of, request)
        title = Path(unquote(request.headers.get("file-name", ""))).stem

        def add(raw: Path, unwanted: Callable[[], bool]) -> Project:
            wav = raw.with_name("sound.wav")
            prepare_sound(raw, wav, unwanted=unwanted)
            self.service.add_file(project, wav, title)
            return project

        return await self._take_in(request, add)

    async def find(self, request: Request) -> Response:
        """The sounds of the library that are nearest to one that is given."""
        project = await run_in_threadpool(self.project_of, request)

        def search(raw: Path, unwanted: Callable[[], bool]) -> Any:
            wav = raw.with_name("sound.wav")
            prepare_sound(raw, wav, unwanted=unwanted)
            job = self.service.nearest_to(project, wav)
            while not job.ended.wait(0.1):
                if unwanted():
                    self.service.queue.cancel(job)
            if job.state != "done":
                raise UserError(job.error or "Cancelled.")
            return job.result

        return JSONResponse({"hits": await self._received(request, search)})

    def analysis(self, request: Request) -> Response:
        """Cuts of the clip, onsets of its motion and of the sounds."""
        project = self.project_of(request)
        return JSONResponse(analyse(project.folder, project.document))

    def sound(self, request: Request) -> Response:
        """A file of a sound."""
        project = self.project_of(request)
        name, ending = request.path_params["sound"], request.path_params["ending"]
        if name not in project.document["sounds"] or not project.path(name).is_file():
            return _error("There is no such sound.", 404)
        if ending == "peaks":
            return Response(peaks(project.path(name)), media_type="application/octet-stream")
        if ending not in MEDIA or not project.path(name, ending).is_file():
            return _error("There is no such file.", 404)
        return FileResponse(project.path(name, ending), media_type=MEDIA[ending])

    def exported(self, request: Request) -> Response:
        """A file that was exported."""
        project, name = self.project_of(request), request.path_params["name"]
        for path in exported(project.folder):
            if path.name == name:
                return FileResponse(path, filename=name)
        return _error("There is no such file.", 404)

    def picture(self, request: Request) -> Response:
        """The picture of the clip, or its poster, which is shown of a project that cannot be opened too."""
        name = request.path_params["name"]
        if name == "picture.mp4":
            return _file(self.project_of(request).clip.picture, "video/mp4")
        if name == "poster.jpg":
            return _file(self.service.projects.path(request.path_params["project"]) / name, "image/jpeg")
        return _error("There is no such file.", 404)


def _file(path: Path, media_type: str) -> Response:
    if not path.is_file():
        return _error("This file is missing.", 404)
    return FileResponse(path, media_type=media_type)


async def _refused(request: Request, error: Exception) -> Response:
    """What cannot be done, in a sentence."""
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
    """Write the body of a request to a file. ``UploadError`` if it is too large, too slow or breaks off."""
    size = 0
    try:
        async with asyncio.timeout(MAX_UPLOAD_SECONDS):
            with path.open("wb") as file:
                async for part in request.stream():
                    size += len(part)
                    if size > MAX_UPLOAD_BYTES:
                        raise UploadError(_too_large())
                    file.write(part)
    except TimeoutError:
        raise UploadError(f"It takes too long to arrive (more than {MAX_UPLOAD_SECONDS:g} s).") from None
    except ClientDisconnect:
        raise UploadError("Cancelled.") from None


async def _watch(request: Request, disconnected: threading.Event) -> None:
    """Set the event when the visitor has gone away, or does not want to wait any more."""
    await request.receive()  # all of the body is here: what comes next is that the connection is closed
    disconnected.set()


def _plain(host: str) -> str:
    """A host and its port in lower case, without the default ports."""
    return host.lower().removesuffix(":443").removesuffix(":80")


def _name_of(host: str) -> str | None:
    """The name in a ``Host`` header, without the port; None if there is none to be had."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _too_large() -> str:
    return f"It is too large: {MAX_UPLOAD_BYTES >> 20} MB are the most here."


def _wav(waveform: np.ndarray) -> bytes:
    stream = io.BytesIO()
    encode_audio(stream, waveform, SAMPLE_RATE)
    return stream.getvalue()
