"""The studio's page and what it asks for. A visitor is a cookie that cannot be guessed; there is no account.

What a browser may fetch is the page, the files of its own room by names that cannot be guessed, and sounds of
the library by number.
"""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import shutil
import threading
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vab.config import SAMPLE_RATE
from vab.media.container import MediaError
from vab.studio.queue import Job, UserError
from vab.studio.service import GONE, MOST_TRACKS, STAGE_LABELS, StudioService
from vab.studio.sessions import TOO_MANY, Session
from vab.studio.takes import MOST_TAKES, Take
from vab.studio.uploads import MOST_BYTES, MOST_SECONDS, UploadError, prepare
from vab.web import HEADERS as COMMON

PAGE = Path(__file__).parent / "page"
COOKIE = "vab-studio-{}"  # by port: several studios on one machine do not take each other's
LARGEST = 4096  # bytes of a request that is no upload
AT_ONCE = 2  # uploads that are read at the same time; others wait
ARRIVING = 10  # uploads that are on the disk, arriving or waiting to be read; others are not taken in yet
ARRIVES = 600.0  # seconds that an upload may take to arrive
LOCAL = {"127.0.0.1", "localhost", "::1"}
HEADERS = COMMON | {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
MEDIA = {"mp4": "video/mp4", "wav": "audio/wav", "png": "image/png"}


def make_app(desk: StudioService, model: str, local: bool = True, link: str | None = None) -> Any:
    """The web application (ASGI). ``local``: only answer to names of this machine. Needs starlette.

    ``link`` is the address of a web server in front, whose name is answered to as well. When the application
    is shut down the desk is closed.
    """
    import anyio
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    readers, bodies = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(ARRIVING)
    front = {_plain(urlsplit(link).netloc)} if link else set()

    def error(message: str, status: int) -> Response:
        return JSONResponse({"error": message}, status)

    async def guard(request: Request, call: Callable[..., Any]) -> Response:
        """Requests from other sites' pages are refused; every answer gets the headers."""
        host, origin = _plain(request.headers.get("host", "")), request.headers.get("origin")
        known = not local or _name_of(host) in LOCAL or host in front
        own = origin is None or _plain(origin.partition("://")[2]) in {host, *front}
        if not known or (request.method != "GET" and not own):
            answer = error("This request comes from another site.", 403)
        else:
            answer = await call(request)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    def room_of(request: Request) -> Session | None:
        return desk.rooms.find(request.cookies.get(COOKIE.format(request.url.port)))

    def page(request: Request) -> Response:
        return FileResponse(PAGE / (request.url.path.rpartition("/")[2] or "page.html"))

    def about(request: Request) -> Response:
        return JSONResponse(_about(desk, model))

    def state(request: Request) -> Response:
        return JSONResponse(_state(desk, room_of(request)))

    async def upload(request: Request) -> Response:
        if int(request.headers.get("content-length") or 0) > MOST_BYTES:
            return error(_too_large(), 413)
        async with bodies:
            return await receive_upload(request)

    async def receive_upload(request: Request) -> Response:
        """The body is the file; its name is not even sent."""
        if room_of(request) is None and desk.rooms.full:
            return error(TOO_MANY, 503)
        folder = desk.rooms.folder / secrets.token_urlsafe(16)
        folder.mkdir()
        raw, room, left = folder / "upload", None, threading.Event()
        watch = None
        try:
            await _receive(request, raw)
            watch = asyncio.create_task(_watch(request, left))
            read = partial(prepare, raw, folder, unwanted=left.is_set)
            clip = await anyio.to_thread.run_sync(read, limiter=readers, abandon_on_cancel=True)
            room = room_of(request) or desk.rooms.open()
            desk.rooms.clear(room, clip)
        except UploadError as refused:
            return error(str(refused), 422)
        except UserError as refused:
            return error(str(refused), 503)
        finally:
            left.set()
            if watch is not None:
                watch.cancel()
            raw.unlink(missing_ok=True)
            if room is None:
                shutil.rmtree(folder, ignore_errors=True)
        answer = JSONResponse(_state(desk, room))
        name, secure = COOKIE.format(request.url.port), urlsplit(link or "").scheme == "https"
        answer.set_cookie(name, room.id, httponly=True, samesite="strict", secure=secure)
        return answer

    async def ask(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return error("The request is too long.", 413)
        return await run_in_threadpool(act, request, body)

    def act(request: Request, body: bytes) -> Response:
        room, verb = room_of(request), desk.verbs.get(request.path_params["verb"])
        if verb is None:
            return error("There is no such thing to do.", 404)
        if room is None:
            return error(GONE, 409)
        try:
            values = json.loads(body or b"{}")
            if not isinstance(values, dict):
                raise ValueError
        except (ValueError, RecursionError):
            return error("The request arrived broken.", 400)
        try:
            verb(room, values)
        except UserError as refused:
            return error(str(refused), 409)
        return JSONResponse(_state(desk, room))

    def leave(request: Request) -> Response:
        room = room_of(request)
        if room is not None:
            desk.rooms.leave(room)
        return Response(status_code=204)

    def clip(request: Request) -> Response:
        room = room_of(request)
        if room is None or room.clip is None or room.clip.folder.name != request.path_params["clip"]:
            return error("There is no such file.", 404)
        return FileResponse(room.clip.picture, media_type="video/mp4")

    def take(request: Request) -> Response:
        room, ending = room_of(request), request.path_params["ending"]
        found = room.take(request.path_params["take"]) if room else None
        if found is None:
            return error("There is no such file.", 404)
        if ending == "outline":
            return PlainTextResponse(found.outline)
        paths = {"mp4": found.video, "wav": found.sound, "png": found.mel}
        if ending not in paths or not paths[ending].exists():
            return error("There is no such file.", 404)
        return FileResponse(paths[ending], media_type=MEDIA[ending])

    def shelf(request: Request) -> Response:
        if desk.shelf is None:
            return JSONResponse({"points": []})
        points = [
            {"row": row, "x": x, "y": y, "label": desk.shelf.labels[row], "name": desk.shelf.paths[row].name}
            for row, x, y in desk.shelf.points
        ]
        return JSONResponse({"points": points})

    def sound(request: Request) -> Response:
        try:
            start = float(request.query_params.get("start", 0))
            if desk.shelf is None or not 0 <= start < 1e6:
                raise ValueError
            data = _wav(desk.shelf.sound(request.path_params["row"], start))
        except (ValueError, IndexError):
            return error("There is no such sound.", 404)
        except MediaError:
            return error("This file of the library cannot be read any more.", 410)
        return Response(data, media_type="audio/wav")

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(desk.close)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/page.css", page),
            Route("/page.js", page),
            Route("/wave.js", page),
            Route("/about", about),
            Route("/state", state),
            Route("/clip", upload, methods=["POST"]),
            Route("/leave", leave, methods=["POST"]),
            Route("/do/{verb}", ask, methods=["POST"]),
            Route("/clips/{clip}.mp4", clip),
            Route("/takes/{take}.{ending}", take),
            Route("/map", shelf),
            Route("/library/{row:int}.wav", sound),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)],
        lifespan=lifespan,
    )


async def _receive(request: Any, path: Path) -> None:
    """The body of a request as a file. ``UploadError`` if it is too large, takes too long or breaks off."""
    from starlette.requests import ClientDisconnect

    size = 0
    try:
        async with asyncio.timeout(ARRIVES):
            with path.open("wb") as file:
                async for part in request.stream():
                    size += len(part)
                    if size > MOST_BYTES:
                        raise UploadError(_too_large())
                    file.write(part)
    except TimeoutError:
        raise UploadError(f"It takes too long to arrive (more than {ARRIVES:g} s).") from None
    except ClientDisconnect:
        raise UploadError("Cancelled.") from None


async def _watch(request: Any, left: threading.Event) -> None:
    """Tell when the visitor has gone away, or does not want to wait any more."""
    await request.receive()  # all of the body is here: what comes next is that the connection is closed
    left.set()


def _plain(host: str) -> str:
    """A host and its port in small letters, without the ports that go without saying."""
    return host.lower().removesuffix(":443").removesuffix(":80")


def _name_of(host: str) -> str | None:
    """The name in a ``Host`` header, without the port; None if there is none to be had."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _too_large() -> str:
    return f"It is too large: {MOST_BYTES >> 20} MB are the most here."


def _about(desk: StudioService, model: str) -> dict[str, Any]:
    """What is the same for everybody."""
    decode = desk.maker.pipeline.config.decode
    defaults = {
        "steps": decode.num_steps,
        "guidance": decode.guidance_scale,
        "temperature": decode.mask_temperature if decode.num_steps else decode.sampling_temperature,
    }
    limits = {"bytes": MOST_BYTES, "seconds": MOST_SECONDS, "takes": MOST_TAKES, "tracks": MOST_TRACKS}
    sounds = None if desk.shelf is None else len(desk.shelf.paths)
    return {"model": model, "defaults": defaults, "limits": limits, "sounds": sounds}


def _state(desk: StudioService, room: Session | None) -> dict[str, Any]:
    """All of a room that its page shows."""
    if room is None or room.clip is None:
        return {"clip": None, "tracks": [], "jobs": {}, "answers": {}}
    with room.lock:
        clip = room.clip
        tracks = [
            {"id": track.id, "undo": len(track.takes) - 1, **_take(track.takes[-1])} for track in room.tracks
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
            "jobs": {kind: _job(desk, job) for kind, job in room.jobs.items()},
            "answers": dict(room.answers),
        }


def _take(take: Take) -> dict[str, Any]:
    score = None if take.score is None else round(take.score, 3)
    timings = {STAGE_LABELS.get(stage, stage): round(seconds, 2) for stage, seconds in take.timings.items()}
    shown = {"title": take.title, "seconds": take.seconds, "score": score, "timings": timings}
    return {"take": take.id, **shown, "again": take.again, "url": f"takes/{take.id}"}


def _job(desk: StudioService, job: Job) -> dict[str, Any]:
    stage = STAGE_LABELS.get(job.stage, job.stage)
    told = {"state": job.state, "stage": stage, "share": round(job.share, 3), "error": job.error}
    return told | {"ahead": desk.line.ahead(job) if job.active else 0}


def _wav(waveform: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    return stream.getvalue()
