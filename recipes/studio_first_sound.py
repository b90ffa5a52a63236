"""Seconds from asking a real studio for sounds until each is there: a clip of 10 s and 1280 x 720 pixels.

    python recipes/studio_first_sound.py [--takes N] [OPTION OF VAB STUDIO ...]

The user makes a project of the clip, looks at it for as long as the studio does, and asks; a second project
shows what is left of the first one's loading. A sound is there once its samples have arrived. Beside the
seconds stand those that the server computed meanwhile, which do not hang on what else runs on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from vab.bench.systems import write_clip

POLL = 0.3  # seconds, as the page asks while something is made


def main() -> int:
    """Run and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--takes", type=int, default=2)
    own, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        clip = write_clip(Path(name)).read_bytes()
        begin = time.monotonic()
        words = [sys.executable, "-m", "vab", "studio", "--port", "0", "--json"]
        words += ["--projects", f"{name}/projects", *others]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            link = json.loads("".join(server.stdout.readline() for _ in range(3)))["link"]
            started = round(time.monotonic() - begin, 1)
            visits = [visit(link, server.pid, clip, own.takes) for _ in range(2)]
        finally:
            server.terminate()
            server.wait(30)
    print(json.dumps({"cores": os.cpu_count(), "start": started, "visits": visits}, indent=1))
    return 0


def visit(link: str, server: int, clip: bytes, takes: int) -> dict[str, Any]:
    """Make a project and ask for takes; seconds, and processor seconds of the server, until each is there."""

    def ask(path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(f"{link}/{path}", body), timeout=600) as reply:
            content: bytes = reply.read()
            return content

    def state(kind: str, takes: int = 0) -> Any:
        """The state once a job is over, or has made so many takes."""
        while True:
            found = json.loads(ask(f"{project}/state"))
            job = found["jobs"].get(kind, {"state": "done"})
            made = len(found["arrangement"]["layers"])
            if job["state"] not in ("waiting", "working") or 0 < takes <= made:
                assert job["state"] in ("done", "working"), job
                return found
            time.sleep(POLL)

    # 1. The clip, and the look at it.
    begin = time.monotonic()
    project = f"projects/{json.loads(ask('projects', clip))['project']['id']}"
    uploaded = time.monotonic()
    state("look")
    looked = time.monotonic()

    # 2. The takes, one after another.
    asked, computed = time.monotonic(), processor_seconds(server)
    ask(f"{project}/do/make", json.dumps({"count": takes, "seed": 0}).encode())
    found = []
    for count in range(1, takes + 1):
        shown = state("make", count)
        sound = shown["sounds"][shown["arrangement"]["layers"][count - 1]["sound"]]
        assert len(ask(f"{project}/{sound['url']}.wav")) > 10 * 144_000, "a sound of another length"
        seconds = {"seconds": time.monotonic() - asked, "processor": processor_seconds(server) - computed}
        found.append({name: round(value, 2) for name, value in seconds.items()})
    first = shown["sounds"][shown["arrangement"]["layers"][0]["sound"]]
    return {
        "upload": round(uploaded - begin, 2),
        "look": round(looked - uploaded, 2),
        "takes": found,
        "first": first["timings"],
    }


def processor_seconds(process: int) -> float:
    """Seconds that a process has computed, on all cores together (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
