"""A small network, a store that can be learned from, and runs on it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from vab.config import ModelConfig, Preset, TrainConfig
from vab.data.store import Latents, LatentStore, StoreMeta
from vab.training.trainer import train

MODEL = ModelConfig(
    codec="tiny",
    vision="efficientnet-lite0",
    seconds=0.4,
    fps=5.0,
    num_codebooks=2,
    codebook_size=16,
    codebook_dim=4,
    vision_dim=8,
    hidden_dim=32,
    num_layers=2,
    num_expert_layers=1,
    num_heads=2,
)


TRAIN = TrainConfig(
    learning_rate=3e-3,
    warmup_steps=3,
    epochs=8.0,
    batch_size=6,
    ema=0.9,
    precision="32-true",
    save_every=5,
    log_every=1,
)


PRESET = Preset("test", "a small network for tests", MODEL, TRAIN)


META = StoreMeta("tiny", "efficientnet-lite0", 2, 16, 4, 8, seconds=0.4, fps=10.0)


def fill(folder: Path, meta: StoreMeta = META, clips: int = 20, pictures: str = "own") -> Path:
    """A store where the label says which tokens and which picture a clip has."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(meta.num_codebooks, meta.codebook_size, meta.codebook_dim)).astype(np.float32)
    store = LatentStore.create(folder, meta, vectors)
    rows = []
    for n in range(clips):
        label = n % 4
        tokens = rng.integers(0, 3, meta.token_shape, dtype=np.uint16) + np.uint16(4 * label)
        features = rng.normal(size=meta.feature_shape).astype(np.float16) + np.float16(2 * label)
        split = "dev" if n % 5 == 4 else "train"
        if pictures == "own":
            rows.append(Latents(f"c{n}", str(label), split, tokens, features))
        else:
            rows.append(Latents(f"s{n}", str(label), split, tokens, None))
            if label != 3:
                rows.append(Latents(f"p{n}", str(label), split, None, features))
    store.add(rows[: clips // 3])
    store.add(rows[clips // 3 :])
    return folder


def metrics(run: Path, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def with_train(**changes: object) -> Preset:
    return replace(PRESET, train=replace(TRAIN, **changes))


def train_alone(preset: Preset, store: Path, run: Path) -> None:
    """Train with one thread, as a process of its own does for a test."""
    torch.set_num_threads(1)
    train(preset, store, run)


def train_and_hang(store: Path, run: Path) -> None:
    """Train until the third step, print that number, then do nothing."""

    class Hanging:
        def scalars(self, step: int, split: str, values: object) -> None:
            if step == 3:
                print(step, flush=True)
                time.sleep(60)

        def sound(self, *_: object) -> None: ...

        image = sound

    train(PRESET, store, run, loggers=[Hanging()], max_steps=10**6)


QUIET = {"mixup_prob": 0.0, "roll_prob": 0.0, "cond_drop_prob": 0.0}


def preset(objective: str, **changes: object) -> Preset:
    settings = {"objective": objective, "ema": 0.0, "learning_rate": 1e-2, **QUIET, **changes}
    return replace(PRESET, train=replace(PRESET.train, **settings))
