"""Milliseconds of a core for a process's 60 clips of a batch (docs/decisions/data_and_training.md).

python benchmarks/loader.py [FOLDER]    a store of full-size latents is made in the folder, 230 MB, and kept
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.presets import preset
from vab.training.batches import ClipBatches

CLIPS = 12_000
OWN = 60  # clips of each process

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
base = preset("vab-encodec")
meta = StoreMeta.for_model(base.model)
shape = (base.model.num_codebooks, base.model.codebook_size, base.model.codebook_dim)
store = LatentStore.create(folder / "store", meta, np.zeros(shape, np.float32))
rng = np.random.default_rng(0)
while len(store) < CLIPS:
    first = len(store)
    tokens = rng.integers(0, meta.codebook_size, (500, *meta.token_shape), dtype=np.uint16)
    features = rng.normal(size=(500, *meta.feature_shape)).astype(np.float16)
    store.add(
        [Latents(f"c{first + n:07d}", f"{n % 300}", "train", tokens[n], features[n]) for n in range(500)]
    )

torch.set_num_threads(1)
for size in (60, 120, 240, 480, 960):
    clips = ClipBatches(store, replace(base, train=replace(base.train, batch_size=size)), "train")
    for step in range(CLIPS // OWN if size == OWN else 3):  # every row once: what is read is verified then
        clips.train_batch(step, 0, size // OWN)
    times = []
    for step in range(60):
        begin = time.thread_time()
        clips.train_batch(step, 3 % (size // OWN), size // OWN)
        times.append(1000 * (time.thread_time() - begin))
    print(
        f"global batch {size}: {min(times):.1f} ms at best, {np.median(times):.1f} in the median", flush=True
    )
