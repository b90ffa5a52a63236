"""What every page that is served here needs: a place to listen, its address, the headers, the server."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import Any
from urllib.parse import urlsplit

from vab.errors import VABError, first_line

HEADERS = {  # of every answer: nothing is guessed, kept or passed on
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class ServerError(VABError):
    """A page that cannot be served; the message is one line that says why and what to do."""


def check_server() -> None:
    """``ServerError`` if the packages of a web server are missing (``vab[studio]``)."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServerError(f"no web server ({error}): pip install 'vab[studio]'") from None


def check_link(link: str | None) -> None:
    """``ServerError`` for an address that no browser could open."""
    if link is not None and (urlsplit(link).scheme not in ("http", "https") or not urlsplit(link).netloc):
        raise ServerError(f"--link {link}: not an address such as https://example.org")


def address(host: str, place: socket.socket, link: str | None = None) -> str:
    """What people type into a browser: ``link`` if that was given, else where the socket is."""
    name = f"[{host}]" if ":" in host else host
    return link.rstrip("/") if link else f"http://{name}:{place.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 is any that is free. ``ServerError`` if the place cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        place = f"{host}, port {port} ({first_line(error)})"
        raise ServerError(f"cannot listen on {place}; choose others with --host and --port") from None


def _cut_off(line: logging.LogRecord) -> bool:
    return line.exc_info is not None and isinstance(line.exc_info[1], asyncio.CancelledError)


def serve(app: Any, place: socket.socket) -> None:
    """Serve until Ctrl-C, or until the terminal is closed."""
    import uvicorn

    closed = getattr(signal, "SIGHUP", None)
    if closed is not None and signal.getsignal(closed) == signal.SIG_DFL:
        signal.signal(closed, lambda *_: signal.raise_signal(signal.SIGTERM))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    # it would show a traceback for every request that the end cuts off
    logging.getLogger("uvicorn.error").addFilter(lambda line: not _cut_off(line))
    uvicorn.Server(config).run(sockets=[place])
