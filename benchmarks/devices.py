"""What several clips at once, several threads and several processes change in vab-tiny's results on a CPU.

``python benchmarks/devices.py rounding THREADS`` decodes 12 clips of random features alone and in batches;
``python benchmarks/devices.py processes CLIP...`` generates these clips by one process and by two.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from vab.inference.pipeline import VABPipeline

CLIPS = 12


@torch.no_grad()
def rounding(threads: int) -> None:
    """Which clips have the logits and the tokens that they have alone."""
    torch.set_num_threads(threads)
    pipe = VABPipeline.from_pretrained(device="cpu")
    stage, config = pipe.first, pipe.config.model
    random = torch.Generator().manual_seed(1)
    features = torch.randn(CLIPS, config.video_length, config.vision_dim, generator=random) * 0.5
    shape = (config.num_codebooks, config.audio_length)

    def logits(rows: range) -> torch.Tensor:
        masked = torch.full((len(rows), *shape), config.codebook_size)
        part = features[rows.start : rows.stop]
        return stage._logits_fn(part, shape[1], stage.preset.decode, None)(masked)

    def tokens(rows: range) -> torch.Tensor:
        empty = torch.zeros(len(rows), *shape, dtype=torch.int64)
        noise = [torch.Generator().manual_seed(100 + row) for row in rows]
        part = features[rows.start : rows.stop]
        return stage.fill(empty, empty.bool(), part, stage.preset.decode, noise)

    alone: dict[str, torch.Tensor] = {}
    for size in (1, 2, 3, 4, 8, 12):
        batches = [range(n, min(n + size, CLIPS)) for n in range(0, CLIPS, size)]
        begin = time.perf_counter()
        found = {"tokens": torch.cat([tokens(rows) for rows in batches])}
        seconds = time.perf_counter() - begin
        found["logits"] = torch.cat([logits(rows) for rows in batches])
        found["sound"] = torch.cat(
            [
                pipe.codec.decode(alone.get("tokens", found["tokens"])[rows.start : rows.stop])
                for rows in batches
            ]
        )
        alone = alone or found
        for name, values in found.items():
            same = (values == alone[name]).flatten(1).all(1).sum()
            off = (values - alone[name]).abs().max()
            digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:8]
            print(
                f"batches of {size}: {name} of {same} of {CLIPS} clips as alone, off by {off:.1e}, {digest}"
            )
        print(f"batches of {size}: {seconds:.1f} s")


def processes(clips: list[str]) -> None:
    """Seconds, the most memory of each process, and a hash of all files."""
    for count in (1, 2):
        with TemporaryDirectory() as out:
            call = [sys.executable, "-m", "vab", "generate", *clips, "-o", out, "--device", "cpu"]
            begin = time.perf_counter()
            process = subprocess.Popen([*call, "--devices", f"{count}"], stdout=subprocess.DEVNULL)
            most: dict[int, int] = {}
            while process.poll() is None:
                most |= {pid: peak for pid in descendants(process.pid) if (peak := megabytes(pid))}
                time.sleep(0.2)
            seconds = time.perf_counter() - begin
            files = sorted(path for path in Path(out).rglob("*") if path.is_file())
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]
            print(f"--devices {count}: {seconds:.0f} s, {len(files)} files {digest}, MB: {[*most.values()]}")


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        tasks = [
            Path(f"/proc/{pid}/task/{task}/children").read_text() for task in os.listdir(f"/proc/{pid}/task")
        ]
    except OSError:
        return []
    return [pid, *(one for text in tasks for child in text.split() for one in descendants(int(child)))]


def megabytes(pid: int) -> int:
    """The most memory that a process has held; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    if sys.argv[1] == "rounding":
        rounding(int(sys.argv[2]))
    else:
        processes(sys.argv[2:])
