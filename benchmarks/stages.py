"""Processor seconds of stages of vab-tiny in bfloat16, 10 s of video: this version and another, by turns.

    python benchmarks/stages.py --before SRC [ROUNDS]

``SRC``: the folder of the other version's package, such as ``src`` of a git worktree. Every round starts a
process of each version, with one thread; in it each stage runs once to warm up and then three times. Printed
are medians of all rounds, and the ratio of this version to the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parents[1] / "src"
REPEATS = 3


def one(clip: Path) -> dict[str, float]:
    """The stages once, by the package that is on the path."""
    import torch

    from vab import VABPipeline
    from vab.media.reader import read_frames

    torch.set_num_threads(1)
    pipe = VABPipeline.from_pretrained(device="cpu", dtype="bfloat16")
    fps, size = pipe.config.model.fps, pipe.vision.decode_size
    frames = list(read_frames(clip, fps, size=size))
    tokens = torch.randint(pipe.codec.codebook_size, (1, 4, 500), generator=torch.Generator().manual_seed(0))
    stages: dict[str, Callable[[], Any]] = {
        "decode video": lambda: list(read_frames(clip, fps, size=size)),
        "features": lambda: pipe.vision.encode(frames),
        "codec": lambda: pipe.codec.decode(tokens),
    }

    def seconds(stage: Callable[[], Any]) -> float:
        begin = time.process_time()
        stage()
        return time.process_time() - begin

    found = {}
    with torch.inference_mode():
        for name, stage in stages.items():
            stage()
            found[name] = statistics.median(seconds(stage) for _ in range(REPEATS))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(options.one)))
        return
    from vab.bench.systems import write_clip

    found: dict[str, list[dict[str, float]]] = {"before": [], "here": []}
    with TemporaryDirectory() as folder:
        clip = write_clip(Path(folder))
        for _ in range(options.rounds):
            for name, source in (("before", options.before), ("here", HERE)):
                command = [sys.executable, __file__, "--before", str(options.before), "--one", str(clip)]
                environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, env=environment, check=True, capture_output=True)
                found[name].append(json.loads(done.stdout))
    for stage in found["here"][0]:
        before, here = (statistics.median(each[stage] for each in found[name]) for name in ("before", "here"))
        print(f"{stage}: {1e3 * before:.0f} -> {1e3 * here:.0f} ms, {here / before:.2f}")


if __name__ == "__main__":
    main()
