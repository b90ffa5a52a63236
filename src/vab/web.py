"""Local web server of the studio and the listening study: socket, address, headers, start and stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import Any
from urllib.parse import urlsplit

from vab.errors import VABError, first_line

HEADERS = {  # of every response: no sniffing, no caching, no referrer
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class ServerError(VABError):
    """A page that cannot be served; the message is one line that says why and what to do."""


def check_server() -> None:
    """Raise ``ServerError`` if the web server's packages are missing (``vab[studio]``)."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServerError(f"no web server ({error}): pip install 'vab[studio]'") from None


def check_link(link: str | None) -> None:
    """Raise ``ServerError`` for an address that no browser could open."""
    if link is not None and (urlsplit(link).scheme not in ("http", "https") or not urlsplit(link).netloc):
        raise ServerError(f"--link {link}: not an address such as https://example.org")


def address(host: str, listener: socket.socket, link: str | None = None) -> str:
    """The page's address for a browser: ``link`` if there is one, else that of the socket."""
    name = f"[{host}]" if ":" in host else host
    return link.rstrip("/") if link else f"http://{name}:{listener.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """Open a socket to serve on; port 0 is any free one. ``ServerError`` if the port cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        where = f"{host}, port {port} ({first_line(error)})"
        raise ServerError(f"cannot listen on {where}; choose others with --host and --port") from None


def serve(app: Any, listener: socket.socket) -> None:
    """Serve ``app`` until Ctrl-C, or until the terminal is closed."""
    import uvicorn

    # 1. A closed terminal ends the server as politely as SIGTERM does, unless somebody chose otherwise.
    closed = getattr(signal, "SIGHUP", None)
    if closed is not None and signal.getsignal(closed) == signal.SIG_DFL:
        signal.signal(closed, lambda *_: signal.raise_signal(signal.SIGTERM))

    # 2. Requests get two seconds to end; of those cut off then uvicorn would log a traceback each.
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    logging.getLogger("uvicorn.error").addFilter(lambda record: not _is_cancelled(record))
    uvicorn.Server(config).run(sockets=[listener])


def _is_cancelled(record: logging.LogRecord) -> bool:
    return record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
