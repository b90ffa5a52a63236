"""Peak memory and seconds of generating for a long video, beside those for a short one.

    python recipes/long_video.py [MINUTES]

Both are made from examples/cat.mp4, said again and again, and each runs as a command of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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


def generate(clip: Path, out: Path) -> tuple[dict, float]:
    """Run ``vab generate``; its JSON, and the most memory it held, in megabytes."""
    run = subprocess.Popen(
        [sys.executable, "-m", "vab", "generate", str(clip), "-o", str(out), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert run.stdout is not None
    text = run.stdout.read()
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"vab generate failed for {clip}")
    return json.loads(text), usage.ru_maxrss / 1024


def main(minutes: float) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("short", 4.0), ("long", 60 * minutes)):
            clip = Path(folder) / f"{name}.mp4"
            looped(clip, seconds)
            result, peak = generate(clip, Path(folder) / "out")
            row = result["results"][0]
            timings = "  ".join(f"{stage} {value:.1f}" for stage, value in row["timings"].items())
            print(f"{row['seconds']:.1f} s of video: peak {peak:.0f} MB; seconds: {timings}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
