"""Seconds of a core that extraction decodes for ten seconds of film (docs/training.md).

python benchmarks/decoding.py ../shared/data/clips
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vab.config import FRAME_RATE
from vab.data.extraction.decoding import decode
from vab.data.manifest import Clip
from vab.data.store import StoreMeta
from vab.presets import preset
from vab.vision import RECIPES

paths = sorted(path for path in Path(sys.argv[1]).iterdir() if path.suffix in (".mp4", ".mpg"))
model = preset("vab-encodec").model
for fps in (1.0, 5.0):
    meta = StoreMeta(
        codec=model.codec,
        vision=model.vision,
        num_codebooks=model.num_codebooks,
        codebook_size=model.codebook_size,
        codebook_dim=model.codebook_dim,
        vision_dim=model.vision_dim,
        seconds=model.seconds,
        fps=fps,
    )
    spent = seconds = 0.0
    for path in paths:
        times = []
        for _ in range(2):
            begin = time.process_time()
            decoded = decode(Clip(path.stem, path, path), meta, RECIPES[model.vision])
            times.append(time.process_time() - begin)
        spent, seconds = spent + min(times), seconds + decoded.real_tokens / FRAME_RATE
    cost = f"{10 * spent / seconds:.2f} s of a core for 10 s"
    print(f"{len(paths)} films, {seconds:.0f} s, at {fps:g} frames/s: {cost}")
