"""Many visitors at the studio at once: how long each waits, and whether anybody gets at another's files.

    python recipes/studio_load.py --visitors 10

Starts `vab studio`, and as many browsers' worth of requests as told: each uploads a clip of its own colour,
has a take made, redoes a second of it, and checks picture and sound. Then each asks for the files of all the
others. Prints one JSON document; exit code 1 if a visitor failed or a file of another's was served.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import av
import numpy as np

from vab.media.reader import read_frames

SECONDS, FPS = 5, 10
LATEST = 1800.0  # seconds until a visitor gives up


class Visitor:
    """A browser: its cookies, its clip, and what happened."""

    def __init__(self, link: str, number: int, of: int, folder: Path) -> None:
        self.link, self.number, self.folder = link, number, folder
        self.level = round(40 + 180 * number / of)  # grey of its clip
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.waits: dict[str, float] = {}
        self.files: list[str] = []
        self.fault = ""

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        with self.opener.open(urllib.request.Request(f"{self.link}/{path}", body), timeout=LATEST) as reply:
            found: bytes = reply.read()
            return found

    def finished(self) -> Any:
        """The state once the job is done."""
        stop = time.monotonic() + LATEST
        while time.monotonic() < stop:
            state = json.loads(self.ask("state"))
            job = state["jobs"]["make"]
            if job["state"] not in ("waiting", "working"):
                assert job["state"] == "done", job
                return state
            time.sleep(0.2)
        raise TimeoutError

    def visit(self) -> None:
        """The whole visit; what went wrong is in ``fault``."""
        try:
            self._visit()
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"

    def _visit(self) -> None:
        begin = time.monotonic()
        clip = write_clip(self.folder / f"{self.number}.mp4", self.level).read_bytes()
        self.ask("clip", clip)
        self.waits["upload"] = time.monotonic() - begin
        self.ask("do/make", json.dumps({"count": 1, "seed": self.number}).encode())
        track = self.finished()["tracks"][0]
        self.waits["take"] = time.monotonic() - begin
        first = self.ask(f"{track['url']}.wav")[44:]
        span = {"track": track["id"], "seed": 0, "from": 1, "to": 2}
        self.ask("do/redo", json.dumps(span).encode())
        state = self.finished()
        self.waits["all"] = time.monotonic() - begin
        track = state["tracks"][0]
        again = self.ask(f"{track['url']}.wav")[44:]
        assert len(state["tracks"]) == 1 and len(first) == len(again) == SECONDS * 32000, (
            "a sound of another length"
        )
        assert first[:32000] == again[:32000] and first[64000:] == again[64000:], "what was kept has changed"
        assert first[32000:64000] != again[32000:64000], "nothing was redone"
        self.files = [
            state["clip"]["url"],
            *(f"{track['url']}.{end}" for end in ("mp4", "wav", "png", "outline")),
        ]
        for name in self.files[:2]:
            (self.folder / f"{self.number}.got").write_bytes(self.ask(name))
            seen = next(read_frames(self.folder / f"{self.number}.got", 1.0)).mean()
            assert abs(seen - self.level) < 6, f"a picture of level {seen:.0f}, not {self.level}"

    def served(self, files: list[str]) -> list[str]:
        """Those of the files of others that this visitor gets all the same."""
        found = []
        for name in files:
            try:
                self.ask(name)
                found.append(name)
            except urllib.error.HTTPError as error:
                assert error.code == 404
        return found


def write_clip(path: Path, level: int) -> Path:
    """A grey video."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(SECONDS * FPS):
            pixels = np.full((240, 320, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def main() -> int:
    """Run and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--visitors", type=int, default=10)
    count = parser.parse_args().visitors
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server").mkdir()
        words = [sys.executable, "-m", "vab", "studio", "--port", "0", "--json"]
        environment = os.environ | {"TMPDIR": str(folder / "server")}
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert server.stdout is not None
            link = json.loads("".join(server.stdout.readline() for _ in range(3)))["link"]
            visitors = [Visitor(link, n, count, folder) for n in range(count)]
            threads = [threading.Thread(target=visitor.visit) for visitor in visitors]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            foreign = [
                file
                for visitor in visitors
                for other in visitors
                if other is not visitor
                for file in visitor.served(other.files)
            ]
        finally:
            server.terminate()
            server.wait(30)
        left = len(list((folder / "server").glob("vab-*")))
    waits = {
        what: {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}
        for what in ("upload", "take", "all")
        if (times := [visitor.waits[what] for visitor in visitors if what in visitor.waits])
    }
    failures = [visitor.fault for visitor in visitors if visitor.fault]
    asked = sum(len(visitor.files) for visitor in visitors) * (count - 1)
    document = {
        "visitors": count,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": waits,
    }
    document |= {"failures": failures, "foreign files asked for": asked, "foreign files served": len(foreign)}
    print(json.dumps(document | {"folders left behind": left}, indent=1))
    return 1 if failures or foreign or left else 0


if __name__ == "__main__":
    sys.exit(main())
