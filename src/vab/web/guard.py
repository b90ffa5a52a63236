"""What stands before a web application (ASGI): host names, other sites, the token, limits for each visitor.

A visitor is an address in the network. Whatever one of them does, slowly or a thousand times, takes what
belongs to that visitor alone: see :class:`Visitor` and, for connections, :mod:`vab.web.server`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote, urlencode
from weakref import WeakValueDictionary

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vab.web.access import Access, plain

HEADERS = {  # of every response: no sniffing, no caching, no referrer, not for pages of other sites
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
SAFE = ("GET", "HEAD")  # methods that change nothing
COOKIE_SECONDS = 30 * 24 * 3600
MAX_READS = 32  # requests of one visitor that are answered at once; others of theirs wait
PACE_BYTES = 512 << 10  # of a request's body, that must arrive ...
PACE_SECONDS = 20.0  # ... in each of these spans, unless it ends
MAX_VISITOR_BYTES = 1 << 30  # of all bodies of one visitor that arrive, or are not answered yet
MAX_BYTES = 8 << 30  # the same of all visitors


@dataclass(eq=False)
class Visitor:
    """What one visitor has of the server, while at least one of their requests is being answered."""

    name: str  # the address; of IPv6 the first 64 bits, as one household has them
    reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_READS))
    turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    num_bytes: int = 0  # of their bodies that arrive, or are not answered yet


def visitor_of(scope: Scope) -> Visitor:
    """The visitor whom a request is from.

    Holding ``turn`` while something scarce is used, such as a place among the uploads that are read, lets the
    visitors take turns: however many requests one of them sends, another waits for one of them only.
    """
    visitor: Visitor = scope["vab.visitor"]
    return visitor


def protect(app: ASGIApp, access: Access, headers: Mapping[str, str] | None = None) -> ASGIApp:
    """The application behind the guard; ``headers`` are added to all of its responses, beside ``HEADERS``."""
    return _Guard(app, access, HEADERS | dict(headers or {}))


class _Guard:
    def __init__(self, app: ASGIApp, access: Access, headers: Mapping[str, str]) -> None:
        self.app = app
        self.access = access
        self.headers = headers
        self.visitors: WeakValueDictionary[str, Visitor] = WeakValueDictionary()
        self.num_bytes = 0  # of all visitors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server's start and stop; it speaks no web sockets
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        # 1. Not to us, from another site, or from somebody without the token.
        refused = self._refusal(Request(scope))
        if refused is not None:
            await refused(scope, receive, send_with_headers)
            return

        # 2. Visitors come and go: one without requests is forgotten.
        name = visitor_name(scope["client"][0] if scope.get("client") else "")
        visitor = self.visitors.setdefault(name, Visitor(name))
        scope["vab.visitor"] = visitor
        if scope["method"] in SAFE:
            async with visitor.reads:
                await self.app(scope, receive, send_with_headers)
        else:
            await self._write(visitor, scope, receive, send_with_headers)

    async def _write(self, visitor: Visitor, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with a body, unless the body is too slow, or one of too many."""
        body = _Body(self, visitor, receive)
        started = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal started
            if started or body.refusal is None:
                started = True
                await send(message)

        try:
            await self.app(scope, body.receive, send_unless_refused)
        except Exception:
            if body.refusal is None:  # else it is the application's way to say that the body broke off
                raise
        finally:
            visitor.num_bytes -= body.num_bytes
            self.num_bytes -= body.num_bytes
        if body.refusal is not None and not started:
            status, sentence = body.refusal
            # What has not arrived must not be taken for the next request.
            await JSONResponse({"error": sentence}, status, {"Connection": "close"})(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        """What is answered to those who may not come in; None to others."""
        host = request.headers.get("host", "")
        server = request.scope.get("server")
        if not self.access.answers_to(host, server[0] if server else None):
            return _refused(
                request,
                f"Nothing is served here under the name {host[:100]!r}. Whoever runs this server can "
                "allow it with --allow-host.",
                403,
            )
        if request.method not in SAFE and not self._is_own_page(request, host):
            return _refused(request, "This request comes from a page of another site.", 403)
        return None if self.access.token is None else self._without_token(request, self.access.token)

    def _is_own_page(self, request: Request, host: str) -> bool:
        """False if the page of another site sends a request, as far as its browser tells."""
        origin = request.headers.get("origin")
        if origin is not None:
            return plain(origin.partition("://")[2]) in {plain(host), self.access.front}
        return request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")

    def _without_token(self, request: Request, token: str) -> Response | None:
        """Let those pass who have the token: in a cookie or from a script. In the link it is exchanged."""
        # 1. The link. The page that sets the cookie goes on to the address without the token by itself: if
        # the browser were redirected, it would take the next request for one of the site that the link was
        # on, and keep a strict cookie back.
        cookie = f"vab-{self.access.port}"  # servers on one machine do not take each other's
        given = request.query_params.get("token")
        if request.method in SAFE and given is not None and _is_equal(given, token):
            others = [item for item in request.query_params.multi_items() if item[0] != "token"]
            target = "./" + quote(request.url.path.rpartition("/")[2])
            target += f"?{urlencode(others)}" if others else ""
            answer = _page("Come in", f'<p><a href="{escape(target)}">Go on</a></p>', 200, target)
            secure = self.access.is_encrypted
            answer.set_cookie(cookie, token, COOKIE_SECONDS, httponly=True, samesite="strict", secure=secure)
            return answer

        # 2. The cookie, and what scripts send.
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        offered = [request.cookies.get(cookie, ""), bearer.strip() if scheme.lower() == "bearer" else ""]
        if any([_is_equal(one, token) for one in offered]):
            return None
        if given is not None:
            return _refused(request, "This link is not valid any more: ask for the present one.", 401)
        return _refused(request, "Only those come in who have opened the link with the token.", 401)


class _Body:
    """The body of a request as it arrives. ``refusal``: status and sentence, once it is not waited for."""

    def __init__(self, guard: _Guard, visitor: Visitor, receive: Receive) -> None:
        self.guard, self.visitor, self._receive = guard, visitor, receive
        self.refusal: tuple[int, str] | None = None
        self.num_bytes = 0
        self._is_complete = False
        self._span: tuple[float, int] | None = None  # when it ends; bytes at its beginning

    async def receive(self) -> Message:
        """The next part. Of a body that is refused it tells the application that its sender has gone."""
        if self._is_complete:
            return await self._receive()
        if self.refusal is not None:
            return {"type": "http.disconnect"}

        # 1. Each span brings enough: a new one begins when it has.
        now = asyncio.get_running_loop().time()
        if self._span is None or self.num_bytes - self._span[1] >= PACE_BYTES:
            self._span = (now + PACE_SECONDS, self.num_bytes)
        try:
            async with asyncio.timeout_at(self._span[0]):
                message = await self._receive()
        except TimeoutError:
            self.refusal = (408, "It arrives too slowly.")
            return {"type": "http.disconnect"}

        # 2. There is room for it.
        size = len(message.get("body", b""))
        self.num_bytes += size
        self.visitor.num_bytes += size
        self.guard.num_bytes += size
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self.visitor.num_bytes > MAX_VISITOR_BYTES:
            self.refusal = (
                429,
                "Too much arrives from your address at once; wait for the rest.",
            )
        elif self.guard.num_bytes > MAX_BYTES:
            self.refusal = (503, "Too much arrives here at once; try again in a few minutes.")
        return message if self.refusal is None else {"type": "http.disconnect"}


def visitor_name(address: str) -> str:
    """What stands for a visitor at an address: IPv6 gives a household 2^64 of them, which count as one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def _is_equal(given: str, token: str) -> bool:
    """Compare in a time that tells nothing about the token."""
    return secrets.compare_digest(given.encode(errors="replace"), token.encode())


def _refused(request: Request, sentence: str, status: int) -> Response:
    """A sentence, as a page where one is asked for."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": sentence}, status, headers)
    body = f"<p>{escape(sentence)}</p>"
    if status == 401:
        # A browser keeps the cookie back if a page of another site leads here; from this one it comes along.
        body += '<p>If you have opened it in this browser before: <a href="">go on</a>.</p>'
    answer = _page("Not for everybody", body, status)
    answer.headers.update(headers)
    return answer


def _page(title: str, body: str, status: int, target: str | None = None) -> HTMLResponse:
    """A page of a few words; with ``target`` it goes on there by itself."""
    lines: Iterable[str] = (
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="refresh" content="0; url={escape(target)}">' if target else "",
        f"<title>{title}</title>",
        body,
    )
    return HTMLResponse("\n".join(line for line in lines if line) + "\n", status)
