"""Many projects in the studio at once: how long each waits, and whether any are mixed up.

    python recipes/studio_load.py --projects 10

Starts `vab studio`, and as many browsers' worth of requests as told: each makes a project of a clip of its
own colour, has a take made, remakes a second of it, and checks picture and sound. Then the sounds of each
project are asked for in all the others. Prints one JSON document; exit code 1 if one failed or a sound of
another's was served.
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
from pathlib import Path
from typing import Any

import av
import numpy as np

from vab.media.reader import read_audio, read_frames
from vab.studio.mix import RATE

SECONDS, FPS = 5, 10
LATEST = 1800.0  # seconds until a tab gives up


class Tab:
    """A tab of a browser: its project, and what happened."""

    def __init__(self, link: str, number: int, of: int, folder: Path) -> None:
        self.link, self.number, self.folder = link, number, folder
        self.level = round(40 + 180 * number / of)  # grey of its clip
        self.project = ""
        self.sounds: list[str] = []
        self.waits: dict[str, float] = {}
        self.fault = ""

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        address = f"{self.link}/projects" + (f"/{self.project}/{path}" if path else "")
        with urllib.request.urlopen(urllib.request.Request(address, body), timeout=LATEST) as reply:
            found: bytes = reply.read()
            return found

    def finished(self, verb: str, **values: Any) -> Any:
        """The state once a verb is done."""
        self.ask(f"do/{verb}", json.dumps(values).encode())
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
        """All of it; what went wrong is in ``fault``."""
        try:
            self._visit()
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"

    def _visit(self) -> None:
        # 1. A project, and a take.
        begin = time.monotonic()
        clip = write_clip(self.folder / f"{self.number}.mp4", self.level).read_bytes()
        self.project = json.loads(self.ask("", clip))["project"]["id"]
        self.waits["upload"] = time.monotonic() - begin
        [layer] = self.finished("make", count=1, seed=self.number)["arrangement"]["layers"]
        self.waits["take"] = time.monotonic() - begin

        # 2. The second of its seconds anew.
        span = {"from": 1, "to": 2}
        [again] = self.finished("remake", layer=layer["id"], **span)["arrangement"]["layers"]
        self.waits["all"] = time.monotonic() - begin
        self.sounds = [f"sounds/{sound}.wav" for sound in (layer["sound"], again["sound"])]
        first, second = (read_audio(self.ask(sound), rate=RATE) for sound in self.sounds)
        assert len(first) == len(second) == SECONDS * RATE, "a sound of another length"
        assert np.array_equal(first[:RATE], second[:RATE]), "what was kept has changed"
        assert np.array_equal(first[2 * RATE :], second[2 * RATE :]), "what was kept has changed"
        assert not np.array_equal(first[RATE : 2 * RATE], second[RATE : 2 * RATE]), "nothing was remade"
        (self.folder / f"{self.number}.got").write_bytes(self.ask("picture.mp4"))
        seen = next(read_frames(self.folder / f"{self.number}.got", 1.0)).mean()
        assert abs(seen - self.level) < 6, f"a picture of level {seen:.0f}, not {self.level}"

    def served(self, sounds: list[str]) -> list[str]:
        """Those of the sounds of others that are served as this project's all the same."""
        found = []
        for name in sounds:
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
    parser.add_argument("--projects", type=int, default=10)
    count = parser.parse_args().projects
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [sys.executable, "-m", "vab", "studio", "--port", "0", "--json"]
        words += ["--projects", str(folder / "projects")]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            link = json.loads("".join(server.stdout.readline() for _ in range(3)))["link"]
            tabs = [Tab(link, n, count, folder) for n in range(count)]
            threads = [threading.Thread(target=tab.visit) for tab in tabs]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            foreign = [
                sound
                for tab in tabs
                for other in tabs
                if other is not tab
                for sound in tab.served(other.sounds)
            ]
        finally:
            server.terminate()
            server.wait(30)
        kept = len(list((folder / "projects").glob("*/project.json")))
        left = len(list((folder / "projects").glob("**/.*.tmp*")))
    waits = {
        what: {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}
        for what in ("upload", "take", "all")
        if (times := [tab.waits[what] for tab in tabs if what in tab.waits])
    }
    failures = [tab.fault for tab in tabs if tab.fault]
    document = {
        "projects": count,
        "kept": kept,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": waits,
        "failures": failures,
        "foreign sounds served": len(foreign),
        "half-written files left": left,
    }
    print(json.dumps(document, indent=1))
    return 1 if failures or foreign or left or kept != count else 0


if __name__ == "__main__":
    sys.exit(main())
