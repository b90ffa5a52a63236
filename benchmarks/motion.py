"""What it costs to see the motion of a film, beside reading one frame a second: CPU seconds by turns.

    OMP_NUM_THREADS=1 python benchmarks/motion.py VIDEO [VIDEO ...]

Both read by the same pass and one decoder thread; the second looks at every frame too and predicts a curve.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import torch

from vab.config import audio_frames
from vab.media.file import MediaFile
from vab.timing.motion import MotionReader
from vab.timing.predictor import MotionPredictor

ROUNDS = 7
SHORT_SIDE = 256  # of the frames for the image encoder


def read(path: Path, predictor: MotionPredictor | None) -> tuple[float, float]:
    """CPU seconds of reading a film at one frame a second, with its timing curve or without; its length."""
    begin = time.process_time()
    with MediaFile(path) as file:
        watch = None if predictor is None else MotionReader()
        for _ in file.frames(1.0, size=SHORT_SIDE, watch=watch):
            pass
        if predictor is not None and watch is not None:
            predictor.curve(watch.motion(), audio_frames(file.seconds))
        return time.process_time() - begin, file.seconds


def main(paths: list[Path]) -> None:
    """Print a line for each film: medians of so many rounds, in CPU seconds for a second of film."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    predictor = MotionPredictor().eval()
    for path in paths:
        seconds = read(path, None)[1]
        read(path, predictor)
        turns = [(read(path, None)[0], read(path, predictor)[0]) for _ in range(ROUNDS)]
        plain, whole = (statistics.median(part) / seconds for part in zip(*turns, strict=True))
        more = sorted((second - first) / seconds for first, second in turns)
        with MediaFile(path) as file:
            kind = f"{file.codec} {'x'.join(map(str, file.nominal_size))} {file.times.fps:.3g} frames/s"
        print(
            f"{path.name[:40]}: {kind}, {seconds:.1f} s: one frame a second {plain:.4f}, "
            f"with motion {whole:.4f}, more {statistics.median(more):.4f} [{more[0]:.4f}, {more[-1]:.4f}] "
            "CPU s a second of film",
            flush=True,
        )


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
