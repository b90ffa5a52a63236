"""The web server: uvicorn, with limits for what it waits for.

uvicorn waits as long as it takes for the head of a request and for a reader, and takes in as many connections
as come, until the process has no file left to open. Here both have their time, and an address its share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from functools import partial
from typing import Any

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.h11_impl import H11Protocol

from vab.web.access import Access
from vab.web.guard import visitor_name

HEAD_SECONDS = 10.0  # until the head of a request is there, from its connection or the last response on
READ_SECONDS = 60.0  # in which a reader takes ...
READ_BYTES = 48 << 10  # ... so much of a response
MAX_CONNECTIONS = 1000  # fewer if the process may open fewer than four times as many files
MAX_FROM_ONE = 100  # from one address
MAX_AT_ONCE = 128  # connections that are taken in at once; they are four turns of the loop under way
MAX_BACKLOG = 1024  # connections that the system holds until then
NOISE = ("Invalid HTTP request received.", "Unsupported upgrade request.")  # nothing that its owner can mend


def serve(app: Any, listener: socket.socket, access: Access) -> None:
    """Serve ``app`` until Ctrl-C, or until the terminal is closed."""
    # A closed terminal ends the server as politely as SIGTERM does, unless somebody chose otherwise.
    closed = getattr(signal, "SIGHUP", None)
    if closed is not None and signal.getsignal(closed) == signal.SIG_DFL:
        signal.signal(closed, lambda *_: signal.raise_signal(signal.SIGTERM))
    make_server(app, access).run(sockets=[listener])


def make_server(app: Any, access: Access) -> uvicorn.Server:
    """The server of ``app``, which is told by ``run(sockets=[listener])`` where to listen."""
    # 1. Who a visitor is tells a web server in front, on this machine or in $FORWARDED_ALLOW_IPS.
    part = _most_files() // 4  # one for connections, two for those that come and go, one for all else
    config = uvicorn.Config(
        app,
        ws="none",
        proxy_headers=access.link is not None,
        backlog=min(MAX_AT_ONCE, part // 4),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,  # those cut off then would be logged with a traceback each
    )
    front: Any = ()
    if access.link is not None:
        front = ProxyHeadersMiddleware(app, config.forwarded_allow_ips).trusted_hosts

    # 2. Each connection is of our kind.
    connections = _Connections(min(MAX_CONNECTIONS, part), front)
    config.http = partial(_Protocol, connections)  # type: ignore[assignment]
    logging.getLogger("uvicorn.error").addFilter(_is_worth_telling)
    return _Server(config)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # asyncio takes in at once as many as the system holds, which may be more than there are files for
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(MAX_BACKLOG)


def _most_files() -> int:
    """The number of files that this process may have open, raised as far as that is usual."""
    if sys.platform == "win32":
        return 4 * MAX_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
            more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return wanted if soft == resource.RLIM_INFINITY else soft


class _Connections:
    """All connections, and which of them wait for the head of a request.

    A new one is always taken in, for another that waits: the one that has waited longest of the same address
    if that has its share, of the address with the most of them if the server has. Only if all are at work
    the new one is turned away.
    """

    def __init__(self, most: int, front: Any) -> None:
        self.most = most
        self.front = front  # addresses that bring many visitors
        self.of: dict[str, set[_Protocol]] = {}  # by visitor
        self.waiting: dict[str, dict[_Protocol, None]] = {}  # the same, oldest first
        self.count = 0

    def enter(self, one: _Protocol) -> None:
        own = self.of.setdefault(one.visitor, set())
        own.add(one)
        self.count += 1
        if len(own) > MAX_FROM_ONE and not one.is_front:
            self._make_room(one, one.visitor)
        elif self.count > self.most:
            most = max(self.waiting, key=lambda visitor: len(self.waiting[visitor]), default=one.visitor)
            self._make_room(one, most)

    def _make_room(self, one: _Protocol, visitor: str) -> None:
        oldest = next(iter(self.waiting.get(visitor, ())), one)
        self.leave(oldest)
        oldest.transport.abort()

    def wait(self, one: _Protocol) -> None:
        if one in self.of.get(one.visitor, ()):
            self.waiting.setdefault(one.visitor, {})[one] = None

    def work(self, one: _Protocol) -> None:
        waiting = self.waiting.get(one.visitor, {})
        waiting.pop(one, None)
        if not waiting:
            self.waiting.pop(one.visitor, None)

    def leave(self, one: _Protocol) -> None:
        self.work(one)
        own = self.of.get(one.visitor, set())
        if one in own:
            own.remove(one)
            self.count -= 1
            if not own:
                del self.of[one.visitor]


class _Protocol(H11Protocol):
    """One connection. What it waits for, the head of a request or a reader, has its time."""

    def __init__(self, connections: _Connections, **settings: Any) -> None:
        super().__init__(**settings)
        self.all = connections
        self.visitor, self.is_front = "", False
        self._until_head: asyncio.TimerHandle | None = None
        self._until_read: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:
            self.visitor = visitor_name(self.client[0])
            self.is_front = self.client[0] in self.all.front
        self.all.enter(self)
        self._look()

    def handle_events(self) -> None:
        super().handle_events()
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._until_head is not None:
            self._until_head.cancel()
        self._stop_watching()
        self.all.leave(self)
        super().connection_lost(exc)

    def _look(self) -> None:
        """Start the clock when the connection begins to wait for a head, stop it when that is there."""
        is_waiting = self.cycle is None or self.cycle.response_complete
        if not is_waiting and self._until_head is not None:
            self._until_head.cancel()
            self._until_head = None
            self.all.work(self)
        elif is_waiting and self._until_head is None:
            self._until_head = self.loop.call_later(HEAD_SECONDS, self._give_up)
            self.all.wait(self)

    def _give_up(self) -> None:
        """Close, once its reader has taken what is left of the last response."""
        self.transport.close()
        self._watch_reader()

    def _watch_reader(self) -> None:
        self._stop_watching()
        left = self.transport.get_write_buffer_size()
        self._until_read = self.loop.call_later(READ_SECONDS, self._look_at_reader, left)

    def _stop_watching(self) -> None:
        if self._until_read is not None:
            self._until_read.cancel()

    def _look_at_reader(self, left: int) -> None:
        if left - self.transport.get_write_buffer_size() < READ_BYTES:
            self.transport.abort()
        else:
            self._watch_reader()


def _is_worth_telling(record: logging.LogRecord) -> bool:
    cut_off = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut_off and record.getMessage() not in NOISE
