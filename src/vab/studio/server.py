"""The web server of the studio: the page, its JSON endpoints and media files (ASGI, needs starlette).

A visitor is a cookie that cannot be guessed; there is no account. What a browser may fetch is the page, the
files of its own session by names that cannot be guessed, and sounds of the library by number.
"""

from __future__ import annotations

import asyncio
import io
import math
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from vab.config import SAMPLE_RATE
from vab.errors import first_line
from vab.media.container import MediaError
from vab.media.write import encode_audio
from vab.studio.queue import Job, UserError
from vab.studio.service import CLIP_GONE, MAX_TRACKS, STAGE_LABELS, StudioService
from vab.studio.sessions import TOO_MANY, Session
from vab.studio.takes import MAX_NEW_TAKES, Take
from vab.studio.uploads import MAX_UPLOAD_BYTES, MAX_VIDEO_SECONDS, Clip, UploadError, prepare
from vab.utils.files import json_object
from vab.web import HEADERS as COMMON

PAGE = Path(__file__).parent / "page"
COOKIE = "vab-studio-{}"  # by port: several studios on one machine do not take each other's
MAX_REQUEST_BYTES = 4096  # of a request that is no upload
MAX_READING = 2  # uploads that are read at the same time; others wait
MAX_UPLOADS = 10  # uploads on the disk, arriving or waiting to be read; others are not taken in yet
MAX_UPLOAD_SECONDS = 600.0  # until an upload has arrived
MAX_START_SECONDS = 1e6  # of a sound of the library
LOCAL = {"127.0.0.1", "localhost", "::1"}
HEADERS = COMMON | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
MEDIA = {"mp4": "video/mp4", "wav": "audio/wav", "png": "image/png"}


def make_app(service: StudioService, model: str, local: bool = True, link: str | None = None) -> Starlette:
    """The web application (ASGI). ``local``: only answer to names of this machine.

    ``link`` is the address of a web server in front, whose name is answered to as well. When the application
    is shut down the service is closed.
    """
    endpoints = Endpoints(service, model, local, link)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    return Starlette(
        routes=[
            Route("/", endpoints.page),
            Route("/page.css", endpoints.page),
            Route("/page.js", endpoints.page),
            Route("/wave.js", endpoints.page),
            Route("/about", endpoints.about),
            Route("/state", endpoints.state),
            Route("/clip", endpoints.upload, methods=["POST"]),
            Route("/leave", endpoints.leave, methods=["POST"]),
            Route("/do/{verb}", endpoints.act, methods=["POST"]),
            Route("/clips/{clip}.mp4", endpoints.clip),
            Route("/takes/{take}.{ending}", endpoints.take),
            Route("/map", endpoints.map),
            Route("/library/{row}.wav", endpoints.sound),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=endpoints.guard)],
        lifespan=lifespan,
    )


class Endpoints:
    """One method for each address. Synchronous ones are run in starlette's pool of threads."""

    def __init__(self, service: StudioService, model: str, local: bool, link: str | None) -> None:
        self.service = service
        self.model = model
        self.local = local
        self.front = {_plain(urlsplit(link).netloc)} if link else set()
        self.secure = urlsplit(link or "").scheme == "https"
        self.reading = anyio.CapacityLimiter(MAX_READING)
        self.arriving = anyio.CapacityLimiter(MAX_UPLOADS)

    def session_of(self, request: Request) -> Session | None:
        """The session named by the cookie of a request."""
        return self.service.sessions.find(request.cookies.get(COOKIE.format(request.url.port)))

    async def guard(self, request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse requests from the pages of other sites; add the headers to every answer."""
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

    def page(self, request: Request) -> Response:
        """The page and its files."""
        return FileResponse(PAGE / (request.url.path.rpartition("/")[2] or "page.html"))

    def about(self, request: Request) -> Response:
        """Model, defaults and limits, the same for everybody."""
        pipeline = self.service.maker.pipeline
        decode = pipeline.config.decode
        library = self.service.library
        defaults = {
            "steps": decode.num_steps,
            "guidance": decode.guidance_scale,
            "temperature": decode.mask_temperature if decode.num_steps else decode.sampling_temperature,
        }
        limits = {
            "bytes": MAX_UPLOAD_BYTES,
            "seconds": MAX_VIDEO_SECONDS,
            "takes": MAX_NEW_TAKES,
            "tracks": MAX_TRACKS,
        }
        sounds = None if library is None else len(library.paths)
        about = {"model": self.model, "defaults": defaults, "limits": limits, "sounds": sounds}
        return JSONResponse(about | {"learned": pipeline.finetuned.pictured})

    def state(self, request: Request) -> Response:
        """Everything in the session that the page shows."""
        return JSONResponse(_state(self.service, self.session_of(request)))

    async def upload(self, request: Request) -> Response:
        """Take in a clip: the body is the file, without its name. Opens a session if there is none."""
        if _number(request.headers.get("content-length") or "0") > MAX_UPLOAD_BYTES:
            return _error(_too_large(), 413)
        async with self.arriving:
            if self.session_of(request) is None and self.service.sessions.full:
                return _error(TOO_MANY, 503)
            # 1. A folder of its own: the clip's address, which cannot be guessed.
            folder = self.service.sessions.folder / secrets.token_urlsafe(16)
            session = None
            try:
                folder.mkdir()
                clip = await self._read_upload(request, folder)
                # 2. It takes the place of the clip that the visitor had.
                session = self.session_of(request) or self.service.sessions.open()
                self.service.sessions.replace_clip(session, clip)
                self.service.look(session, clip)
            except UploadError as refused:
                return _error(str(refused), 422)
            except UserError as refused:
                return _error(str(refused), 503)
            except OSError as error:
                return _error(f"This server cannot keep it just now: {first_line(error)}.", 507)
            finally:
                if session is None:  # refused, cancelled or broken: nothing of it stays
                    shutil.rmtree(folder, ignore_errors=True)
        # 3. From now on the cookie names this session.
        answer = JSONResponse(_state(self.service, session))
        cookie = COOKIE.format(request.url.port)
        answer.set_cookie(cookie, session.id, httponly=True, samesite="strict", secure=self.secure)
        return answer

    async def _read_upload(self, request: Request, folder: Path) -> Clip:
        """Receive the body into ``folder`` and read it in a child process while the visitor waits."""
        raw = folder / "upload"
        disconnected = threading.Event()
        watch = None
        try:
            await _receive(request, raw)
            watch = asyncio.create_task(_watch(request, disconnected))
            read = partial(prepare, raw, folder, unwanted=disconnected.is_set)
            return await anyio.to_thread.run_sync(read, limiter=self.reading, abandon_on_cancel=True)
        finally:
            disconnected.set()  # also ends a child whose answer nobody waits for any more
            if watch is not None:
                watch.cancel()
            raw.unlink(missing_ok=True)

    async def act(self, request: Request) -> Response:
        """Carry out a verb of the service with the values in the body, a small JSON object."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_REQUEST_BYTES:
                return _error("The request is too long.", 413)
        return await run_in_threadpool(self._act, request, body)

    def _act(self, request: Request, body: bytes) -> Response:
        session = self.session_of(request)
        verb = self.service.verbs.get(request.path_params["verb"])
        if verb is None:
            return _error("There is no such thing to do.", 404)
        if session is None:
            return _error(CLIP_GONE if request.cookies else "Choose a video or a picture first.", 409)
        try:
            values = json_object(body or b"{}")
        except ValueError:
            return _error("The request arrived broken.", 400)
        try:
            verb(session, values)
        except UserError as refused:
            return _error(str(refused), 409)
        return JSONResponse(_state(self.service, session))

    def leave(self, request: Request) -> Response:
        """The page was closed."""
        session = self.session_of(request)
        if session is not None:
            self.service.sessions.leave(session)
        return Response(status_code=204)

    def clip(self, request: Request) -> Response:
        """The video of the session's clip."""
        session = self.session_of(request)
        name = request.path_params["clip"]
        if session is None or session.clip is None or session.clip.folder.name != name:
            return _error("There is no such file.", 404)
        return FileResponse(session.clip.picture, media_type="video/mp4")

    def take(self, request: Request) -> Response:
        """A file of a take: video, sound, mel spectrogram or outline."""
        session = self.session_of(request)
        ending = request.path_params["ending"]
        take = session.take(request.path_params["take"]) if session else None
        if take is None:
            return _error("There is no such file.", 404)
        if ending == "outline":
            return PlainTextResponse(take.outline)
        paths = {"mp4": take.video, "wav": take.sound, "png": take.mel}
        if ending not in paths or not paths[ending].exists():
            return _error("There is no such file.", 404)
        return FileResponse(paths[ending], media_type=MEDIA[ending])

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

    def sound(self, request: Request) -> Response:
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


def _state(service: StudioService, session: Session | None) -> dict[str, Any]:
    """Everything in a session that its page shows."""
    if session is None or session.clip is None:
        return {"clip": None, "tracks": [], "jobs": {}, "answers": {}}
    with session.lock:
        clip = session.clip
        tracks = [
            {"id": track.id, "undo": len(track.takes) - 1, **_take(track.takes[-1])}
            for track in session.tracks
        ]
        return {
            "clip": {
                "id": clip.folder.name,
                "kind": clip.kind,
                "seconds": clip.seconds,
                "width": clip.width,
                "height": clip.height,
                "sound": clip.has_sound,
                "url": f"clips/{clip.folder.name}.mp4",
            },
            "tracks": tracks,
            "jobs": {kind: _job(service, job) for kind, job in session.jobs.items()},
            "answers": dict(session.answers),
        }


def _take(take: Take) -> dict[str, Any]:
    score = None if take.score is None else round(take.score, 3)
    timings = {STAGE_LABELS.get(stage, stage): round(seconds, 2) for stage, seconds in take.timings.items()}
    return {
        "take": take.id,
        "title": take.title,
        "seconds": take.seconds,
        "score": score,
        "timings": timings,
        "again": take.again,
        "url": f"takes/{take.id}",
    }


def _job(service: StudioService, job: Job) -> dict[str, Any]:
    stage = STAGE_LABELS.get(job.stage, job.stage)
    ahead = service.queue.ahead(job) if job.active else 0
    return {
        "state": job.state,
        "stage": stage,
        "share": round(job.share, 3),
        "error": job.error,
        "ahead": ahead,
    }


def _wav(waveform: np.ndarray) -> bytes:
    stream = io.BytesIO()
    encode_audio(stream, waveform, SAMPLE_RATE)
    return stream.getvalue()
