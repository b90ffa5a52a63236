"""Seconds by stage and peak memory of generating for a long video, beside those for a short one.

    python recipes/long_video.py [MINUTES] [--before SRC] [OPTION OF VAB GENERATE ...]

Both are made from examples/cat.mp4, said again and again. Each runs as a command of its own: first by the
package in the folder SRC of another version, if there is one, then with the default settings, then with the
options. The seconds in all are those of the stages without loading; the first row of each video is 1. The
processor seconds are those of the whole command, on all cores together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

CLIP = Path(__file__).parents[1] / "examples" / "cat.mp4"


def looped(out: Path, seconds: float) -> None:
    """The example's packets again and again, until they last ``seconds``."""
    with av.open(str(CLIP)) as source, av.open(str(out), "w") as sink:
        stream = source.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        length = sum(packet.duration or 0 for packet in packets)
        assert stream.time_base is not None
        rounds = round(seconds / float(length * stream.time_base)) or 1
        contents = [(bytes(p), p.pts or 0, p.dts or 0, p.duration, p.is_keyframe) for p in packets]
        for n in range(rounds):
            for content, pts, dts, duration, key in contents:
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.duration = pts + n * length, dts + n * length, duration
                packet.time_base, packet.is_keyframe, packet.stream = stream.time_base, key, copy
                sink.mux(packet)


def generate(clip: Path, out: Path, options: Sequence[str], source: Path | None) -> dict[str, Any]:
    """Run ``vab generate``: its result, the most memory it held in MB, and its processor seconds.

    ``source``: where the package is, if it is not the one that is installed.
    """
    words = [sys.executable, "-m", "vab", "generate", str(clip), "-o", str(out), "--json", *options]
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source)})
    run = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    )
    assert run.stdout is not None
    text = run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"vab generate {' '.join(options)} failed for {clip}: {text}")
    row: dict[str, Any] = json.loads(text)["results"][0]
    return row | {"peak": usage.ru_maxrss / 1024, "processor": usage.ru_utime + usage.ru_stime}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("--before", type=Path, help="the folder src of another version")
    own, options = parser.parse_known_args()
    runs: list[tuple[str, Sequence[str], Path | None]] = [("default settings", (), None)]
    if own.before is not None:
        runs.insert(0, ("before", (), own.before.resolve()))
    if options:
        runs.append((" ".join(options), options, None))
    with tempfile.TemporaryDirectory() as folder:
        for seconds in (4.0, 60 * own.minutes):
            clip = Path(folder) / f"{seconds:g}.mp4"
            looped(clip, seconds)
            first = 0.0
            for name, words, source in runs:
                row = generate(clip, Path(folder) / "out", words, source)
                stages = row["timings"]
                total = sum(stages.values()) - stages["load"]
                first = first or total
                print(
                    f"{row['seconds']:.0f} s of video, {name}: {total:.1f} s, {total / first:.2f} of it; "
                    f"peak {row['peak']:.0f} MB, processor {row['processor']:.0f} s;",
                    "  ".join(f"{stage} {value:.1f}" for stage, value in stages.items()),
                    flush=True,
                )


if __name__ == "__main__":
    main()
