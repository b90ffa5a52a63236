"""Attacks on a studio that others share: how long does somebody else wait while they go on?

    python recipes/studio_attacks.py

Starts `vab studio`, and, one after another: connections with half a head, uploads that stop after a byte,
readers that do not read, many requests at once, many uploads at once. Meanwhile somebody else asks for a
state and uploads a film, over and over: from an address of their own, and from that of the attacker. Prints
one JSON document: median and longest seconds, before and during each attack; exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

ATTACKER, OTHER = "127.0.0.2", "127.0.0.3"  # of this machine, as all of 127.0.0.0/8
LATEST = 60.0  # seconds until somebody gives up


def connect(port: int, source: str) -> socket.socket:
    """A connection from an address of this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=LATEST, source_address=(source, 0))


def ask(port: int, source: str, request: str, body: bytes = b"") -> bytes:
    """The body of a response; ``OSError`` unless it is a good one."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{length}\r\n"
    with connect(port, source) as connection:
        connection.sendall(head.encode() + body)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    if not answer.startswith(b"HTTP/1.1 200"):
        raise OSError(answer[:300].decode(errors="replace") or "nothing came back")
    return answer.partition(b"\r\n\r\n")[2]


class Server:
    """A studio of its own."""

    def __init__(self, folder: Path, files: int) -> None:
        words = [sys.executable, "-m", "vab", "studio", "--port", "0", "--json", "--projects", str(folder)]
        words = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files), *words]
        self.log = (folder.parent / "log").open("w+")
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert self.process.stdout is not None
        link = json.loads("".join(self.process.stdout.readline() for _ in range(3)))["link"]
        self.port = int(link.rpartition(":")[2])

    @property
    def open_files(self) -> int:
        """The number of files that it has open, sockets among them."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Visitor:
    """Somebody who asks for a state ten times a second, and for a new project every second."""

    def __init__(self, server: Server, source: str, film: bytes) -> None:
        self.port, self.source = server.port, source
        self.project = json.loads(ask(server.port, source, "POST /projects", film))["project"]["id"]
        self.film = film
        self.seconds: dict[str, list[float]] = {"state": [], "upload": []}
        self.faults: list[str] = []

    def visit(self, until: threading.Event) -> None:
        """Ask, and note how long it took."""
        requests: dict[str, tuple[str, bytes, float]] = {
            "state": (f"GET /projects/{self.project}/state", b"", 0.1),
            "upload": ("POST /projects", self.film, 1.0),
        }

        def again(kind: str) -> None:
            request, body, pause = requests[kind]
            while True:
                start = time.monotonic()
                try:
                    ask(self.port, self.source, request, body)
                except OSError as error:
                    self.faults.append(f"{kind}: {error}")
                self.seconds[kind].append(time.monotonic() - start)
                if until.wait(pause):
                    return

        threads = [threading.Thread(target=again, args=(kind,)) for kind in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def hold(port: int, count: int, say: bytes, read: bool) -> None:
    """Keep so many connections open that have said this much; those that are seen to end are made anew."""
    connections: list[socket.socket] = []
    while True:
        while len(connections) < count:
            with suppress(OSError):
                one = connect(port, ATTACKER)
                one.setblocking(False)
                connections.append(one)
                one.send(say)
        still = []
        for one in connections:
            try:
                gone = read and one.recv(1) is not None  # closed, or an answer
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            one.close() if gone else still.append(one)
        connections = still
        time.sleep(0.5)


def repeat(port: int, count: int, request: str, body: bytes) -> None:
    """Ask for the same in so many threads, over and over."""

    def go() -> None:
        while True:
            with suppress(OSError):
                ask(port, ATTACKER, request, body)

    for _ in range(count):
        threading.Thread(target=go).start()


@contextmanager
def attack(what: Callable[..., None], *how: Any) -> Iterator[None]:
    """Attack from a process of its own, so that those who measure are not held up by it."""
    process = multiprocessing.get_context("fork").Process(target=what, args=how, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def nothing() -> Iterator[None]:
    """No attack."""
    yield


def measure(server: Server, attacked: Any, film: bytes, seconds: float) -> dict[str, Any]:
    """What two visitors saw in so many seconds of an attack."""
    addresses = {"other address": OTHER, "same address": ATTACKER}
    visitors = {name: Visitor(server, address, film) for name, address in addresses.items()}
    end = threading.Event()
    threads = [threading.Thread(target=visitor.visit, args=(end,)) for visitor in visitors.values()]
    with attacked:
        time.sleep(1)
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        open_files = server.open_files
        end.set()
        for thread in threads:
            thread.join()
    found: dict[str, Any] = {"open files": open_files}
    for name, visitor in visitors.items():
        found[name] = {
            kind: {"median": round(statistics.median(times), 3), "most": round(max(times), 3)}
            for kind, times in visitor.seconds.items()
        }
        if visitor.faults:
            found[name]["faults"] = visitor.faults[:3]
    return found


def write_film(path: Path) -> bytes:
    """A second of a grey film."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(10):
            pixels = np.full((120, 160, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def write_photo(path: Path) -> bytes:
    """A small photo."""
    Image.new("RGB", (320, 240), (90, 120, 60)).save(path)
    return path.read_bytes()


def main() -> int:
    """Run and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each attack")
    parser.add_argument("--files", type=int, default=1024, help="that the server may open (ulimit -n)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film, photo = write_film(folder / "film.mp4"), write_photo(folder / "photo.jpg")
        server = Server(folder / "projects", given.files)
        try:
            project = json.loads(ask(server.port, OTHER, "POST /projects", film))["project"]["id"]
            time.sleep(5)  # it makes a take for itself, to be warm
            states = f"GET /projects/{project}/state HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 500
            head = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
            upload = b"POST /projects HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\nx"
            state = f"GET /projects/{project}/state"
            port = server.port
            attacks = {
                "nothing": nothing(),
                "300 half heads": attack(hold, port, 300, head, True),
                "2000 half heads": attack(hold, port, 2000, head, True),
                "10 uploads of 5000 bytes that stop after one": attack(hold, port, 10, upload % 5000, True),
                "10 uploads of 100 MB that stop after one byte": attack(hold, port, 10, upload % 10**8, True),
                "50 readers that ask for 500 states and read none": attack(hold, port, 50, states, False),
                "20 threads that ask for a state": attack(repeat, port, 20, state, b""),
                "50 threads that upload a photo": attack(repeat, port, 50, "POST /projects", photo),
            }
            seconds = {what: measure(server, each, film, given.seconds) for what, each in attacks.items()}
            time.sleep(15)
            left = server.open_files
        finally:
            server.process.terminate()
            server.process.wait(30)
            server.log.seek(0)
            log = [line for line in server.log.read().splitlines() if "serving until" not in line]
    document = {"cores": os.cpu_count(), "ulimit -n": given.files, "seconds": seconds}
    print(json.dumps(document | {"open files 15 s after": left, "log": log[:5]}, indent=1))
    failed = any("faults" in each["other address"] for each in seconds.values())
    return 1 if failed or log else 0


if __name__ == "__main__":
    sys.exit(main())
