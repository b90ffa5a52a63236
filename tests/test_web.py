"""What stands before the pages: names, token, other sites; and a server that slow visitors cannot hold up."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="no web server: pip install 'vab[studio]'")
pytest.importorskip("uvicorn", reason="no web server: pip install 'vab[studio]'")

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from helpers.forked import Forked
from helpers.studies import write_systems
from helpers.tiny import write_model
from vab.cli import main
from vab.listening.study import build_study
from vab.web import guard, server
from vab.web.access import LOOPBACK, Access, ServerError, grant, listen
from vab.web.guard import protect, visitor_of
from vab.web.values import ERRORS, MAX_DEPTH, MAX_NUMBER, parse_values, read_values

TOKEN = "a-token-of-twenty-four-x"
HALF_HEAD = b"GET /ping HTTP/1.1\r\nHost: localhost\r\nX: "
MANY = 300


# A small application, and a real server of it


def ping(request: Request) -> Response:
    return PlainTextResponse(visitor_of(request.scope).name)


def large(request: Request) -> Response:
    return PlainTextResponse("x" * (32 << 20))


async def take(request: Request) -> Response:
    size, cut = 0, request.app.state.cut
    try:
        async for part in request.stream():
            size += len(part)
            request.app.state.arrived.append(len(part))
    except ClientDisconnect:
        cut.append(size)
        raise
    return PlainTextResponse(str(size))


async def values(request: Request) -> Response:
    return JSONResponse(await read_values(request))


def broken(request: Request) -> Response:
    raise RuntimeError("a fault of ours")


def make_app(access: Access | None = None) -> Any:
    routes = [Route("/ping", ping), Route("/large", large), Route("/broken", broken), Route("/", ping)]
    routes += [Route("/take", take, methods=["POST"]), Route("/values", values, methods=["POST"])]
    routes += [Route("/deep/place", ping)]
    app = Starlette(routes=routes, exception_handlers=ERRORS)
    app.state.cut, app.state.arrived = [], []
    guarded = protect(app, access or Access())
    guarded.cut, guarded.arrived = app.state.cut, app.state.arrived  # type: ignore[attr-defined]
    return guarded


@contextmanager
def running(app: Any, access: Access | None = None) -> Iterator[int]:
    """Serve in a thread of this process; yields the port."""
    listener = listen("127.0.0.1", 0)
    web = server.make_server(app, access or Access())
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        web.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def connect(port: int, say: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
    one.sendall(say)
    return one


def ask(port: int, say: bytes = b"GET /ping HTTP/1.1", body: bytes = b"", source: str = "127.0.0.1") -> bytes:
    """A whole response of a request whose connection is closed after it."""
    length = f"Content-Length: {len(body)}\r\n".encode() if body else b""
    say += b"\r\nHost: localhost\r\nConnection: close\r\n" + length + b"\r\n" + body
    with connect(port, say, source) as one:
        return read_all(one)


def read_all(one: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionError):
        while part := one.recv(1 << 16):
            found += part
    return found


def says(one: socket.socket, words: bytes) -> bool:
    """True if a connection that stays open says so sooner or later."""
    found = b""
    while words not in found:
        part = one.recv(1 << 16)
        found += part
        if not part:
            return False
    return True


def is_closed(one: socket.socket) -> bool:
    """True if the server has closed the connection."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def eventually(happens: Callable[[], bool], seconds: float = 10) -> bool:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        if happens():
            return True
        time.sleep(0.02)
    return False


# Who holds up whom


def test_half_heads_give_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 100.0)
    with running(make_app()) as port:
        half = [connect(port, HALF_HEAD) for _ in range(MANY)]
        # of the same address: the oldest have made room, and a whole request finds some
        assert eventually(lambda: sum(map(is_closed, half)) == MANY - server.MAX_FROM_ONE)
        assert is_closed(half[0]) and not is_closed(half[-1])
        assert ask(port).endswith(b"127.0.0.1")


def test_half_heads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.8)
    with running(make_app()) as port:
        half = [connect(port, HALF_HEAD) for _ in range(10)]
        # a byte now and then does not keep one open
        stop = time.monotonic() + 10
        with suppress(ConnectionError):
            while not is_closed(half[-1]) and time.monotonic() < stop:
                half[-1].sendall(b"x")
                time.sleep(0.1)
        assert eventually(lambda: all(map(is_closed, half)), 5)


def test_the_head_after_a_response_has_its_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 1.5)
    with running(make_app()) as port:
        whole = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with connect(port, whole) as one:
            assert says(one, b"\r\n\r\n127.0.0.1")
            time.sleep(0.3)
            one.sendall(whole)  # in time
            assert says(one, b"\r\n\r\n127.0.0.1")
            one.sendall(HALF_HEAD)
            start = time.monotonic()
            assert one.recv(1) == b"" and time.monotonic() - start < 9


def test_a_request_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)

    def slow(request: Request) -> Response:
        time.sleep(1)
        return PlainTextResponse("late")

    app = protect(Starlette(routes=[Route("/ping", slow)]), Access())
    with running(app) as port:
        assert ask(port).endswith(b"late")


def test_few_open_files_are_enough(tmp_path: Path) -> None:
    # a process of its own that may open 128 files; visitors of many addresses, so that none has its share
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "from starlette.responses import PlainTextResponse\n"
        "from vab.web.access import Access, listen; from vab.web.guard import protect\n"
        "from vab.web.server import serve\n"
        "listener = listen('127.0.0.1', 0); print(listener.getsockname()[1], flush=True)\n"
        "serve(protect(PlainTextResponse('pong'), Access()), listener, Access())\n"
    )
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        half = [connect(port, HALF_HEAD, f"127.0.1.{n % 100 + 1}") for n in range(MANY)]
        for n in range(5):
            assert ask(port, source=f"127.0.2.{n + 1}").endswith(b"pong")
        assert sum(map(is_closed, half)) > 200
    finally:
        process.terminate()
        process.wait(10)
    log.seek(0)
    assert log.read() == ""  # above all not: too many open files


def test_connections_at_work_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_FROM_ONE", 3)
    head = b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab"
    app = make_app()
    with running(app) as port:
        busy = [connect(port, head) for _ in range(3)]
        assert eventually(lambda: sum(app.arrived) == 6)
        late = connect(port)
        assert read_all(late) == b""  # no room, for this address
        assert ask(port, source="127.0.0.2").endswith(b"127.0.0.2")
        for one in busy:
            one.sendall(b"cd")
            assert says(one, b"\r\n\r\n4")
        assert ask(port).endswith(b"127.0.0.1")  # one waits again, and makes room
        assert sum(map(is_closed, busy)) == 1


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()
    head = b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with running(app) as port:
        half = [connect(port, head % 5000 + b"x") for _ in range(10)]
        assert eventually(lambda: len(app.arrived) == 10)
        # they hold nobody up
        assert ask(port, b"POST /take HTTP/1.1", b"y" * 100_000).endswith(b"100000")
        assert app.cut == []
        for one in half:
            one.close()
    monkeypatch.setattr(guard, "PACE_SECONDS", 0.6)
    app = make_app()
    with running(app) as port:
        half = [connect(port, head % 5000 + b"x") for _ in range(10)]
        # a byte now and then is not enough
        for _ in range(3):
            half[0].sendall(b"x")
            time.sleep(0.1)
        for one in half:
            found = read_all(one)
            assert found.startswith(b"HTTP/1.1 408") and b"too slowly" in found
        assert app.cut == [4] + [1] * 9 or sorted(app.cut) == [1] * 9 + [4]


def test_a_slow_but_steady_body_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PACE_SECONDS", 1.5)
    monkeypatch.setattr(guard, "PACE_BYTES", 1000)
    with running(make_app()) as port, connect(port) as one:
        head = "POST /take HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 8000\r\n\r\n"
        one.sendall(head.encode())
        for _ in range(8):
            one.sendall(b"x" * 1000)
            time.sleep(0.25)
        assert read_all(one).endswith(b"8000")


def test_who_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 0.5)
    with running(make_app()) as port, connect(port) as one:
        one.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.5)
        assert len(read_all(one)) < 32 << 20
        assert len(ask(port, b"GET /large HTTP/1.1")) > 32 << 20


def test_what_arrives_at_once_is_limited_for_each_visitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_VISITOR_BYTES", 300_000)
    head = b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: 250000\r\n\r\n"
    app = make_app()
    with running(app) as port:
        first = connect(port, head + b"x" * 200_000)
        assert eventually(lambda: sum(app.arrived) == 200_000)
        refused = ask(port, b"POST /take HTTP/1.1", b"y" * 200_000)
        assert refused.startswith(b"HTTP/1.1 429") and b"at once" in refused
        assert ask(port, b"POST /take HTTP/1.1", b"y" * 200_000, "127.0.0.2").endswith(b"200000")
        first.sendall(b"x" * 50_000)
        assert says(first, b"250000")
        assert ask(port, b"POST /take HTTP/1.1", b"y" * 200_000).endswith(b"200000")  # there is room again
        monkeypatch.setattr(guard, "MAX_BYTES", 100_000)
        assert ask(port, b"POST /take HTTP/1.1", b"y" * 200_000).startswith(b"HTTP/1.1 503")


def test_visitors_are_answered_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_READS", 2)
    gate, inside = threading.Event(), []

    def wait(request: Request) -> Response:
        inside.append(visitor_of(request.scope).name)
        gate.wait(10)
        return PlainTextResponse("done")

    app = protect(Starlette(routes=[Route("/wait", wait), Route("/ping", ping)]), Access())
    with running(app) as port:
        many = [connect(port, b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(6)]
        assert eventually(lambda: len(inside) == 2)
        assert ask(port, source="127.0.0.2").endswith(b"127.0.0.2")
        assert len(inside) == 2
        gate.set()
        assert all(says(one, b"done") for one in many)  # they only had to wait


def test_behind_another_server_visitors_are_those_it_names() -> None:
    behind = Access(link="https://studio.example.org")
    head = b"GET /ping HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9"
    for access, seen in ((Access(), b"127.0.0.1"), (behind, b"203.0.113.9")):
        with running(make_app(access), access) as port:
            assert ask(port, head).endswith(seen)
    # its own connections are not limited, as they are those of all
    with running(make_app(behind), behind) as port:
        half = [connect(port, HALF_HEAD) for _ in range(server.MAX_FROM_ONE + 20)]
        assert ask(port, head).endswith(b"203.0.113.9")  # it has seen them all
        assert not any(map(is_closed, half))


def test_a_household_is_one_visitor() -> None:
    assert guard.visitor_name("2001:db8:1:2:3::4") == guard.visitor_name("2001:db8:1:2:ffff::1")
    assert guard.visitor_name("2001:db8:1:3::4") != guard.visitor_name("2001:db8:1:2::4")
    assert guard.visitor_name("::ffff:192.0.2.7") == guard.visitor_name("192.0.2.7") == "192.0.2.7"


# Who may come in


def test_only_its_own_names_are_answered_to() -> None:
    client = TestClient(make_app())
    for host in ("localhost", "127.0.0.1:7860", "[::1]:99", "LOCALHOST"):
        assert client.get("/ping", headers={"host": host}).status_code == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "",
        "[",
        "evil@localhost",
        "localhost:x",
        "192.0.2.7",
    ):
        answer = client.get("/ping", headers={"host": host})
        assert answer.status_code == 403 and "--allow-host" in answer.json()["error"], host


def test_other_sites_cannot_write() -> None:
    client = TestClient(make_app(), base_url="http://localhost:7860")
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://localhost:7861"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert client.post("/take", headers=headers).status_code == 403, headers
    own = [{}, {"origin": "http://localhost:7860"}, {"sec-fetch-site": "same-origin"}]
    assert [client.post("/take", headers=each).status_code for each in own] == [200] * 3
    front = TestClient(
        make_app(Access(link="https://Studio.example.org/a")), base_url="https://studio.example.org"
    )
    assert front.post("/take", headers={"origin": "https://studio.example.org"}).status_code == 200
    assert front.post("/take", headers={"origin": "https://other.example.org"}).status_code == 403


def test_every_answer_has_the_headers_and_every_refusal_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(make_app(), base_url="http://localhost", raise_server_exceptions=False)
    asked = [("GET", "/ping", 200), ("GET", "/nothing", 404), ("GET", "/take", 405), ("GET", "/broken", 500)]
    for method, path, status in asked:
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        if status != 200:
            assert answer.json()["error"].endswith(".")


def test_the_token_opens_the_page(tmp_path: Path) -> None:
    access = Access(token=TOKEN, port=7860)
    client = TestClient(make_app(access), base_url="http://localhost:7860")
    # 1. Nothing without it, nor with another.
    for path in ("/ping", "/nothing", "/ping?token=", f"/ping?token={TOKEN}x", "/ping?token=%C3%A9"):
        answer = client.get(path)
        assert answer.status_code == 401 and answer.json()["error"].endswith("."), path
    assert client.post(f"/take?token={TOKEN}").status_code == 401
    page = client.get("/", headers={"accept": "text/html,*/*"})
    assert page.status_code == 401 and "<p>Only those come in" in page.text
    assert client.get("/ping", headers={"cookie": "vab-7860=x; vab-7861=" + TOKEN}).status_code == 401

    # 2. The link gives a cookie and leads on without the token.
    answer = client.get(f"/deep/place?token={TOKEN}&start=1%202")
    target = re.search(r'content="0; url=([^"]*)"', answer.text)
    assert target is not None and target[1] == "./place?start=1+2"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Secure" not in cookie
    assert client.get("/ping").status_code == 200 and client.post("/take").status_code == 200
    front = make_app(Access(token=TOKEN, link="https://studio.example.org"))
    secure = TestClient(front, base_url="https://studio.example.org").get(f"/?token={TOKEN}")
    assert "Secure" in secure.headers["set-cookie"]
    # an address cannot lead to another site
    for path in ("//evil.example", "/javascript:alert(1)", "/%22%3E%3Cscript%3E"):
        found = re.search(r'url=([^"]*)"', client.get(f"http://localhost:7860{path}?token={TOKEN}").text)
        assert found is not None and re.fullmatch(r"\./[\w.%()-]*", found[1])

    # 3. A script says it in a header.
    script = TestClient(make_app(access), base_url="http://localhost:7860")
    assert script.get("/ping", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert script.get("/ping", headers={"authorization": f"Basic {TOKEN}"}).status_code == 401


def test_on_this_machine_nothing_is_asked() -> None:
    with listen("127.0.0.1", 0) as listener:
        access = grant(listener, "127.0.0.1")
    assert access.token is None and access.names == LOOPBACK and access.notice("x") is None
    assert access.entrance == f"http://127.0.0.1:{access.port}"


def test_for_others_there_is_a_token_and_a_warning(tmp_path: Path) -> None:
    with listen("0.0.0.0", 0) as listener:
        access = grant(listener, "0.0.0.0", allow_hosts=["Studio.Local"])
        again = grant(listener, "0.0.0.0")
    assert access.token is not None and access.token != again.token and access.entrance.endswith(access.token)
    assert "0.0.0.0" not in access.entrance
    notice = access.notice("whoever has the link sees all")
    assert notice is not None and "whoever has the link sees all" in notice and "plain HTTP" in notice
    assert access.answers_to("studio.local:80", None) and access.answers_to(socket.gethostname(), None)
    assert access.answers_to("192.0.2.7:7860", "192.0.2.7")  # the address that the request came in by
    assert not access.answers_to("192.0.2.8", "192.0.2.7") and not access.answers_to(
        "evil.example", "192.0.2.7"
    )
    with pytest.raises(ServerError, match="--allow-host a/b"), listen("127.0.0.1", 0) as listener:
        grant(listener, "127.0.0.1", allow_hosts=["a/b"])


def test_a_link_asks_for_the_token_and_tells_the_public_address() -> None:
    with listen("127.0.0.1", 0) as listener:
        access = grant(listener, "127.0.0.1", link="https://studio.example.org/vab/")
        raters = grant(listener, "127.0.0.1", link="https://study.example.org", ask_token=False)
    assert access.entrance == f"https://studio.example.org/vab/?token={access.token}"
    assert "plain HTTP" not in (access.notice("x") or "") and raters.token is None and raters.is_open
    with pytest.raises(ServerError, match="--link studio"), listen("127.0.0.1", 0) as listener:
        grant(listener, "127.0.0.1", link="studio")


def test_a_token_in_a_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "token"
    with listen("127.0.0.1", 0) as listener:
        first, second = (grant(listener, "127.0.0.1", token=file) for _ in range(2))
        assert first.token == second.token == file.read_text().strip()
        assert file.stat().st_mode & 0o077 == 0
        for content in (b"short\n", b"", b"\xff" * 30, b"with a blank in it, too", b"x" * 5000):
            file.write_bytes(content)
            with pytest.raises(ServerError, match=r"token: holds no token"):
                grant(listener, "127.0.0.1", token=file)
        with pytest.raises(OSError, match="token"):
            grant(listener, "127.0.0.1", token=file / "token")


def test_a_link_on_another_site_leads_in(browser: Any) -> None:
    """A strict cookie comes along although the visitor comes from elsewhere."""
    access = Access(names=LOOPBACK | {"127.0.0.2"}, token=TOKEN)
    app = make_app(access)
    with running(app, access) as port:
        page = browser.new_page()
        try:
            page.route(
                "http://elsewhere.example/",
                lambda route: route.fulfill(
                    content_type="text/html",
                    body=f'<a href="http://localhost:{port}/?token={TOKEN}">link</a>',
                ),
            )
            page.goto("http://elsewhere.example/")
            page.get_by_text("link").click()
            page.get_by_text("127.0.0.1").wait_for()
            assert page.url == f"http://localhost:{port}/"
            # and once more without the token
            page.route(
                "http://elsewhere.example/2",
                lambda route: route.fulfill(
                    content_type="text/html", body=f'<a href="http://localhost:{port}/deep/place">link</a>'
                ),
            )
            page.goto("http://elsewhere.example/2")
            page.get_by_text("link").click()
            page.get_by_text("go on").click()
            page.get_by_text("127.0.0.1").wait_for()
        finally:
            page.close()


# What is in a request


def wrong(content: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        parse_values(content)
    return str(caught.value)


def test_strange_values_are_refused_with_a_sentence() -> None:
    client = TestClient(make_app(), base_url="http://localhost")
    deep = b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)
    for content, reason in (
        (b"{", "no JSON"),
        (b"[1]", "names and values"),
        (b"3", "names and values"),
        (b"\xff", "UTF-8"),
        (b"[" * 50_000, "too deeply"),
        (b'{"a":' * 5000, "too deeply"),
        (deep, "too deeply"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": [-Infinity]}', "-Infinity is no number"),
        (b'{"a": 1e400}', "1e400 is no number"),
        (b'{"a": 1e17}', "1e17 is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no number"),
        (b'{"a": 9007199254740994}', "is no number"),
        (b'{"a": "\\ud800"}', "half a letter"),
        (b'{"\\ud800": 1}', "half a letter"),
    ):
        assert reason in wrong(content), content[:20]
        answer = client.post("/values", content=content)
        assert answer.status_code == 400 and answer.json()["error"].endswith("."), content[:20]
    assert client.post("/values", content=b" " * 70_000).status_code == 413
    assert client.post("/values").json() == {}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_what_is_passed_on_can_be_counted_with(content: bytes) -> None:
    def check(value: Any) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert math.isfinite(value) and abs(value) <= MAX_NUMBER
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(inner)

    with suppress(ValueError):
        found = parse_values(content)
        assert isinstance(found, dict)
        check(found)
        JSONResponse(found)


# The command line


@contextmanager
def command(folder: Path, *words: str) -> Iterator[tuple[Any, list[str]]]:
    """A verb that serves with ``--json``: its document, and in the end what it has logged."""
    process = Forked(folder, main, [*words, "--port", "0", "--json"])
    told: list[str] = []
    try:
        yield process.document(), told
    finally:
        process.end(signal.SIGTERM)
        told.append(process.communicate()[1])


def status(link: str, host: str, more: str = "") -> int:
    """The status of a response to a request for a link, sent to this machine for the name of a host."""
    address, _, path = link.removeprefix("http://").partition("/")
    with connect(
        int(address.rpartition(":")[2]), f"GET /{path} HTTP/1.0\r\nHost: {host}\r\n{more}\r\n".encode()
    ) as one:
        return int(read_all(one).split()[1])


def test_a_study_says_what_it_opens(tmp_path: Path) -> None:
    study = tmp_path / "study"
    build_study(write_systems(tmp_path, ("a", "b"), ("clip",)), study)
    words = ["evaluate", "listening", "serve", str(study), "--host", "0.0.0.0", "--allow-host", "study.local"]
    with command(tmp_path, *words) as (document, told):
        link = document["links"][0]["link"]
        assert "0.0.0.0" not in link
        hosts = ("study.local", "127.0.0.1", "evil.example")
        assert [status(link, host) for host in hosts] == [200, 200, 403]
    assert "answers as that person" in told[0] and "plain HTTP" in told[0]


def test_a_studio_for_others_asks_for_the_token(tmp_path: Path) -> None:
    model, token = write_model(tmp_path / "model"), tmp_path / "token"
    words = ["studio", "--host", "0.0.0.0", "--model", str(model), "--projects", str(tmp_path / "projects")]
    with command(tmp_path, *words, "--token", str(token), "--device", "cpu") as (document, told):
        link = document["link"]
        page, _, given = link.partition("?token=")
        assert given == token.read_text().strip()
        assert [status(page, "localhost"), status(link, "localhost"), status(link, "evil.example")] == [
            401,
            200,
            403,
        ]
        assert status(page + "projects", "localhost", f"Authorization: Bearer {given}\r\n") == 200
    assert "deletes all projects and models" in told[0] and "plain HTTP" in told[0]
