"""The numbers of vab-tiny's model card, on the dev split: codec, tokens, and generated sound.

    python recipes/vab_tiny_measure.py --data ../shared/data --store runs/tiny/store [--model DIR]
        [--speed paper] [--guidance 1 3 5] [--temperature 4.5 10.5] [--json FILE]

Several values of guidance or temperature make a sweep over generated sound. The outside judge is fitted
on real training sounds (see judge.py) and kept beside the store.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from judge import RATE, Judge, Yamnet, through_opus, with_noise
from numpy.typing import NDArray

from vab.codecs.tiny import TinyCodec
from vab.config import FRAME_RATE, HOP_LENGTH, DecodeConfig, video_frames
from vab.data.manifest import read_manifest
from vab.data.store import LatentStore
from vab.evaluate.metrics.distances import frechet
from vab.inference.pipeline import VABPipeline
from vab.media.reader import read_audio
from vab.presets import at_speed
from vab.sampling.stages import Stage
from vab.training.batches import ClipBatches
from vab.training.objectives import OBJECTIVES

Sound = NDArray[np.float32]
SECONDS = 5.0  # of a sound that the judge hears
GENERATED = 160  # generated sounds of one row, spread over the classes


def sounds_of(manifest: Path, split: str, data: Path) -> tuple[list[Sound], list[str]]:
    """Every sound of the split that is not a single spoken digit, and its label.

    Only those in the folder ``data``: the judge does not change with further sounds to learn from.
    """
    clips = [
        (clip.audio, clip.label)
        for clip in read_manifest(manifest)
        if clip.split == split
        and not clip.label.startswith("digit_")
        and isinstance(clip.audio, Path)
        and clip.audio.resolve().is_relative_to(data.resolve())
    ]
    return [read_audio(path)[: round(SECONDS * RATE)] for path, _ in clips], [label for _, label in clips]


def fitted_judge(data: Path, kept: Path, sounds: list[Sound], labels: list[str]) -> Judge:
    """The judge, fitted once and kept in ``kept``."""
    judge = Judge(Yamnet(data / "weights" / "yamnet" / "yamnet_spectra_in.tflite"))
    if kept.exists():
        judge.model = pickle.loads(kept.read_bytes())
    else:
        judge.fit(sounds, labels)
        kept.write_bytes(pickle.dumps(judge.model))
    return judge


def interval(right: NDArray[np.bool_]) -> str:
    """A share with its 95 % bootstrap interval and N."""
    random = np.random.default_rng(0)
    means = random.choice(right.astype(float), (2000, len(right))).mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{right.mean():.3f} [{low:.3f}, {high:.3f}] N={len(right)}"


def log_mel(codec: TinyCodec, sound: Sound) -> NDArray:
    """log10-mel frames [2 T, bands] of whole codec frames."""
    whole = torch.from_numpy(sound[: len(sound) // HOP_LENGTH * HOP_LENGTH])[None]
    return (codec.log_mel(whole)[0] / np.log(10)).numpy()


@torch.no_grad()
def reconstructed(codec: TinyCodec, sound: Sound, num_codebooks: int, fine: Stage | None = None) -> Sound:
    """The sound through the first so many codebooks of the codec; ``fine`` guesses the others, blind."""
    tokens = codec.encode(torch.from_numpy(sound)[None])[:, :num_codebooks]
    if fine is not None:
        model = fine.preset.model
        empty = torch.zeros(model.num_codebooks, tokens.shape[2], dtype=torch.long)
        unseen = torch.zeros(video_frames(tokens.shape[2] / FRAME_RATE, model.fps), model.vision_dim)
        none = torch.zeros_like(empty, dtype=torch.bool)
        tokens = fine.refine(tokens[0], empty, none, unseen, torch.Generator().manual_seed(0))[None]
    return codec.decode(tokens)[0, : len(sound)].numpy()


def measure_codec(
    codec: TinyCodec,
    judge: Judge,
    sounds: list[Sound],
    labels: list[str],
    num_codebooks: int,
    fine: Stage | None = None,
) -> dict:
    """Distances and the judge's share of sounds through the first so many codebooks of the codec."""
    back = [reconstructed(codec, sound, num_codebooks, fine) for sound in sounds]
    pairs = [(log_mel(codec, x), log_mel(codec, y)) for x, y in zip(sounds, back, strict=True)]
    statistics = [[np.concatenate((m.mean(0), m.std(0))) for m in side] for side in zip(*pairs, strict=True)]
    right = judge.name(back) == np.asarray(labels)
    by_class = {label: float(right[np.asarray(labels) == label].mean()) for label in sorted(set(labels))}
    return {
        "log10-mel distance": float(np.mean([np.abs(x - y).mean() for x, y in pairs])),
        "Fréchet distance of log-mel statistics": frechet(*map(np.stack, statistics)),
        "judge's share": interval(right),
        "by class": by_class,
    }


@torch.no_grad()
def measure_tokens(stage: Stage, store: LatentStore) -> dict:
    """Accuracy of dev tokens per codebook: of the masked ones, with the masks of pre-training, or of all."""
    clips = ClipBatches(store, stage.preset, "dev")
    objective = OBJECTIVES[stage.preset.train.objective]
    found = []
    for rows in clips.dev_batches():
        metrics = objective(stage.network, clips.dev_batch(rows), stage.preset).metrics()
        found.append(torch.stack(list(metrics.values())))  # [codebooks, 2]: how many are right, of how many
    total = torch.stack(found).sum(0)
    first = stage.preset.model.num_conditioning_codebooks
    return {f"codebook {first + k}": float(right / count) for k, (right, count) in enumerate(total)}


def pictures(store: LatentStore) -> tuple[torch.Tensor, list[str]]:
    """Features [N, F, dim] of dev photos of classes with training sounds and photos, every class alike."""

    def trained(name: str) -> set[str]:
        return {store.labels[row] for row in np.flatnonzero(store.has(name)) if store.splits[row] == "train"}

    paired = trained("tokens") & trained("features")
    rows: dict[str, list[int]] = {}
    for row in np.flatnonzero(store.has("features")):
        if store.splits[row] == "dev" and store.labels[row] in paired:
            rows.setdefault(store.labels[row], []).append(int(row))
    each = -(-GENERATED // len(rows))
    chosen = [row for found in rows.values() for row in np.resize(found, each)]
    features = torch.from_numpy(store.gather("features", np.asarray(chosen))).float()
    return features, [store.labels[row] for row in chosen]


@torch.no_grad()
def generated(
    pipeline: VABPipeline, features: torch.Tensor, decode: DecodeConfig, seen: bool
) -> Iterator[Sound]:
    """A sound of one window for each picture; without the picture if not ``seen``."""
    model, fine = pipeline.config.model, pipeline.fine
    num_codebooks = (fine or pipeline.first).preset.model.num_codebooks
    if not seen:
        features, decode = torch.zeros_like(features), replace(decode, guidance_scale=1.0)
    for start in range(0, len(features), 16):
        part = features[start : start + 16]
        empty = torch.zeros(len(part), num_codebooks, model.audio_length, dtype=torch.long)
        none = torch.zeros_like(empty, dtype=torch.bool)
        coarse = (empty[:, : model.num_codebooks], none[:, : model.num_codebooks])
        tokens = pipeline.first.fill(*coarse, part, decode, generators(start, len(part)))
        if fine is not None:
            tokens = fine.refine(tokens, empty, none, part, generators(1_000_003 + start, len(part)))
        for one in tokens:
            yield pipeline.codec.decode(one[None])[0].numpy()


def generators(seed: int, count: int) -> list[torch.Generator]:
    """The noise of several sounds."""
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def main() -> None:
    """Measure and print; ``--json`` keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--speed", choices=("paper", "fast"))
    parser.add_argument("--guidance", type=float, nargs="*")
    parser.add_argument("--temperature", type=float, nargs="*")
    parser.add_argument("--steps", type=int, nargs="*")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    manifest = args.store.parent / "codec.csv"
    train_sounds, train_labels = sounds_of(manifest, "train", args.data)
    sounds, labels = sounds_of(manifest, "dev", args.data)
    judge = fitted_judge(args.data, args.store.parent / "judge.pickle", train_sounds, train_labels)
    pipeline, store = VABPipeline.from_pretrained(args.model, device="cpu"), LatentStore.open(args.store)
    codec = pipeline.codec
    own = at_speed(pipeline.config.decode, args.speed)
    assert isinstance(codec, TinyCodec)
    features, wanted = pictures(store)
    random = np.random.default_rng(0)
    results: dict = {}

    def note(name: str, value: object) -> None:
        results[name] = value
        print(f"{name}: {value}", flush=True)

    def share(heard: list[Sound], names: list[str]) -> str:
        return interval(judge.name(heard) == np.asarray(names))

    sweep = list(
        product(
            args.guidance or [own.guidance_scale],
            args.temperature or [own.mask_temperature],
            args.steps or [own.num_steps],
        )
    )
    if len(sweep) == 1:
        note("real sound", share(sounds, labels))
        note("real sound, white noise at 20 dB", share([with_noise(s, 20.0, random) for s in sounds], labels))
        note("real sound, Opus at 6 kbit/s", share([through_opus(s) for s in sounds], labels))
        levels = {codec.num_codebooks, pipeline.config.model.num_codebooks}
        if pipeline.fine is not None:
            levels.add(pipeline.fine.preset.model.num_codebooks)
        for num_codebooks in sorted(levels, reverse=True):
            note(
                f"codec, {num_codebooks} codebooks",
                measure_codec(codec, judge, sounds, labels, num_codebooks),
            )
        note("accuracy of tokens", measure_tokens(pipeline.first, store))
        if pipeline.fine is not None:
            given = pipeline.config.model.num_codebooks
            title = f"codec, {given} codebooks, the others from the second stage"
            note(title, measure_codec(codec, judge, sounds, labels, given, pipeline.fine))
            note("accuracy of fine tokens", measure_tokens(pipeline.fine, store))
        paired = [s for s, label in zip(train_sounds, train_labels, strict=True) if label in set(wanted)]
        others = [paired[i] for i in random.integers(len(paired), size=len(wanted))]
        note("a random training sound", share(others, wanted))
        alone = list(generated(pipeline, features, own, seen=False))
        note("generated without the picture", share(alone, wanted))
    for guidance, temperature, steps in sweep:
        decode = replace(own, guidance_scale=guidance, mask_temperature=temperature, num_steps=steps)
        clock = time.perf_counter()
        heard = list(generated(pipeline, features, decode, seen=True))
        clock = (time.perf_counter() - clock) / len(heard)
        title = (
            f"generated for the picture, guidance {guidance:g}, temperature {temperature:g}, {steps} steps"
        )
        names = judge.name(heard)
        note(title, f"{interval(names == np.asarray(wanted))}, {clock:.2f} s each")
        if len(sweep) == 1:
            right = names == np.asarray(wanted)
            note("by class", {w: float(right[np.asarray(wanted) == w].mean()) for w in sorted(set(wanted))})
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
