"""Extraction of real films by 1, 2 and 4 processes that share one store (docs/decisions/extraction.md).

python benchmarks/extraction.py ../shared/data/clips [NUMBER OF FILMS]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vab.data.manifest import Clip, write_manifest
from vab.data.store import LatentStore

films = sorted(path for path in Path(sys.argv[1]).resolve().iterdir() if path.suffix in (".mp4", ".mpg"))
films = films[: int(sys.argv[2]) if len(sys.argv) > 2 else 24]
folder = Path(tempfile.mkdtemp())
write_manifest(folder / "films.csv", [Clip(path.stem, path, path) for path in films])
verb = [sys.executable, "-m", "vab", "extract", str(folder / "films.csv"), "--device", "cpu", "-o"]
ways: dict[str, list[list[str]]] = {
    "one process": [[]],
    "--devices 2": [["--devices", "2"]],
    "two with --shard": [["--shard", f"{n}/2"] for n in (1, 2)],
    "four with --shard": [["--shard", f"{n}/4"] for n in (1, 2, 3, 4)],
}
for way, calls in ways.items():
    store = folder / way
    begin = time.perf_counter()
    started = [
        subprocess.Popen([*verb, str(store), "--allow-failed", "100%", *call], stdout=subprocess.DEVNULL)
        for call in calls
    ]
    codes = [process.wait() for process in started]
    seconds = time.perf_counter() - begin
    made = LatentStore.open(store)
    print(
        f"{way}: {seconds:.1f} s, {len(made)} clips, {made.fingerprint()[:12]}, exit codes {codes}",
        flush=True,
    )
