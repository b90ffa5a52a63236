"""What each setting of decoding gains and loses on vab-tiny: the table of levers in docs/results.md.

    python recipes/vab_tiny_levers.py --data ../shared/data --store runs/tiny/store --out runs/levers \
        paper guidance_from=0.5 num_steps=8,order=halton dtype=bfloat16 [--json FILE]

A setting is ``paper``, or fields of DecodeConfig that differ from the paper's; ``dtype`` is the
networks' number format, and ``model=DIR`` another model, such as a student; ``timing=true`` leads the sounds
by the timing curves of real dev sounds of the photo's class, ``timing=motion`` by those that the motion of
real clips gives, a random clip of ``data/clips`` for each sound. Every setting makes a sound of one window
for the same dev photos with the same seeds; with ``--after SETTING``, a sixth second of the sounds of that
setting. Tokens and YAMNet's scores are kept in ``--out``, so that a run goes on where it was cut, and a new
setting costs its own sounds alone. ``--make`` stops there; ``--time N`` times the settings in turn instead, N
rounds of one sound each.

Measured are the judge's share (see judge.py), and Fréchet distance and KL divergence on YAMNet from real dev
sounds of the photo's class through the codec. Differences from the first setting are paired, and their 95 %
intervals resample the photos. Choose on half of the photos (``--part first``), confirm on the others
(``--part second``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from judge import RATE, Judge
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from vab_tiny_measure import fitted_judge, sounds_of

from vab.config import FRAME_RATE, DecodeConfig
from vab.data.manifest import read_manifest
from vab.data.store import LatentStore
from vab.evaluate.backbones.yamnet import MIN_SCORE, Yamnet
from vab.evaluate.metrics.distances import RESAMPLES, divergences, frechet
from vab.evaluate.metrics.statistics import Interval, bootstrap
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile
from vab.presets import at_speed
from vab.timing.curve import NUM_CHANNELS
from vab.timing.motion import read_motion
from vab.timing.predictor import MotionPredictor
from vab.timing.unsure import timing_of
from vab.training.batches import make_generator

PHOTOS = 20  # of a class, at most
SEEDS = 2  # sounds for a photo
CHUNK = 8  # sounds of one file of results
SECOND = round(FRAME_RATE)  # audio frames

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """The N sounds that every setting makes: the first half of the photos with each seed, then the second."""

    photos: list[str]  # ids in the store
    seeds: list[int]
    labels: list[str]
    true: list[str]  # id of a real dev sound of the class
    second: NDArray[np.bool_]  # True for the second half of the photos

    @classmethod
    def of(cls, manifest: Path) -> Plan:
        """At most 20 dev photos of each class with training sounds and photos, in turn for either half."""
        ids: dict[tuple[str, bool], dict[str, list[str]]] = {}
        for clip in read_manifest(manifest):
            kind = ids.setdefault((clip.split, clip.video is not None), {})
            kind.setdefault(clip.label, []).append(clip.id)
        paired = ids["train", True].keys() & ids["train", False].keys()
        planned = []
        for label in sorted(paired & ids["dev", True].keys()):
            true = ids["dev", False][label]
            for n, photo in enumerate(ids["dev", True][label][:PHOTOS]):
                for seed in range(SEEDS):
                    planned.append((n % 2, seed, photo, label, true[(SEEDS * n + seed) % len(true)]))
        halves, seeds, photos, labels, trues = zip(*sorted(planned), strict=True)
        return cls(list(photos), list(seeds), list(labels), list(trues), np.array(halves) == 1)


class Setting(NamedTuple):
    """A way to decode."""

    name: str
    pipeline: VABPipeline
    decode: DecodeConfig
    dtype: torch.dtype
    timing: str  # what leads the sounds: none, true (a real sound of the class) or motion (that of a clip)

    @classmethod
    def named(cls, text: str, model: Path | None) -> Setting:
        """``paper``, or ``num_steps=8,order=halton,dtype=bfloat16``; ``model=DIR`` in place of ``model``."""
        words = {} if text == "paper" else dict(part.split("=") for part in text.split(","))
        other = words.pop("model", None)
        pipeline = VABPipeline.from_pretrained(other or model, device="cpu")
        # One that is named here, a student, goes by its own settings; the model by the paper's.
        own = pipeline.config.decode if other else at_speed(pipeline.config.decode, "paper")
        dtype = getattr(torch, words.pop("dtype", "float32"))
        timing = words.pop("timing", "none")
        values = {name: type(getattr(own, name))(word) for name, word in words.items()}
        return cls(text, pipeline, replace(own, **values), dtype, timing)


def curves_by_motion(predictor: MotionPredictor, clips: Path, num_frames: int) -> Tensor:
    """Curves [n,T,4] of the first T audio frames of each film in a folder: those that its motion gives."""
    curves = torch.zeros(0, num_frames, NUM_CHANNELS)
    for path in sorted(clips.iterdir()):
        with MediaFile(path) as file:
            curve = predictor.curve(read_motion(file), round(file.seconds * FRAME_RATE))
        channels = torch.from_numpy(curve.channels())[None, :num_frames]  # after its end nothing is known
        curves = torch.cat([curves, functional.pad(channels, (0, 0, 0, num_frames - channels.shape[1]))])
    return curves


@torch.no_grad()
def make(
    yamnet: Yamnet,
    data: Path,
    store: LatentStore,
    plan: Plan,
    setting: Setting,
    out: Path,
    count: int,
    after: Path | None = None,
) -> None:
    """The first ``count`` sounds of a setting as far as they are not there: what YAMNet hears in them.

    ``after`` holds sounds of one window: each is made a second longer, and its last two seconds are heard.
    """
    pipeline = setting.pipeline
    model = pipeline.config.model
    folder = out / setting.name
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.to(setting.dtype)
    rows = {name: row for row, name in enumerate(store.ids)}
    if setting.timing == "motion":
        assert pipeline.predictor is not None
        curves = curves_by_motion(pipeline.predictor, data / "clips", model.audio_length)
        clip = np.random.default_rng(0).integers(len(curves), size=len(plan.photos))
    for start in range(0, min(count, len(plan.photos)), CHUNK):
        path = folder / f"{start:04d}.npz"
        if path.exists():
            continue
        part = range(start, min(start + CHUNK, len(plan.photos)))
        chosen = np.array([rows[plan.photos[n]] for n in part])
        features = torch.from_numpy(store.gather("features", chosen)).float()
        noise = [make_generator(plan.seeds[n], "sound", plan.photos[n]) for n in part]
        tokens = torch.zeros(len(part), model.num_codebooks, model.audio_length, dtype=torch.int64)
        known = torch.zeros_like(tokens, dtype=torch.bool)
        timing = None
        if setting.timing == "motion":
            timing = curves[clip[part]]
        elif setting.timing == "true":
            stored = store.gather("timing", np.array([rows[plan.true[n]] for n in part]))
            whole = torch.ones(stored.shape[:2])
            timing = torch.from_numpy(timing_of(stored, whole, stored[:, :, 1].max(1)))
        if after is not None:
            with np.load(after / path.name) as file:
                tokens = torch.from_numpy(file["tokens"].astype(np.int64))
            tokens = functional.pad(tokens, (0, SECOND))
            known = functional.pad(~known, (0, SECOND))
            features = torch.cat([features, features[:, -1:]], dim=1)
        tokens = pipeline.first.fill(tokens, known, features, setting.decode, noise, timing=timing)
        waveforms = [pipeline.codec.decode(one[None])[0].numpy() for one in tokens]
        if after is not None:
            waveforms = [waveform[-2 * RATE :] for waveform in waveforms]
        scores = np.stack([yamnet.scores(waveform) for waveform in waveforms])
        temporary = folder / "unfinished"
        with temporary.open("wb") as file:
            np.savez(file, tokens=tokens.numpy().astype(np.int16), scores=scores)
        os.replace(temporary, path)
        print(f"{time.strftime('%H:%M:%S')} {setting.name}: {part.stop} of {len(plan.photos)}", flush=True)


def true_scores(
    pipeline: VABPipeline, yamnet: Yamnet, store: LatentStore, plan: Plan, path: Path, seconds: float
) -> NDArray:
    """YAMNet's scores [N, patches, 521] of the plan's real sounds through the codec, kept in ``path``."""
    ids = sorted(set(plan.true))
    if not path.exists():
        rows = {name: row for row, name in enumerate(store.ids)}
        stored = store.gather("tokens", np.array([rows[name] for name in ids]))
        tokens = torch.from_numpy(stored[..., : round(seconds * FRAME_RATE)].astype(np.int64))
        with torch.no_grad():
            waveforms = [pipeline.codec.decode(one[None])[0].numpy() for one in tokens]
        np.savez(path, scores=np.stack([yamnet.scores(waveform) for waveform in waveforms]))
    place = {name: n for n, name in enumerate(ids)}
    return np.load(path)["scores"][[place[name] for name in plan.true]]


def named(judge: Judge, scores: NDArray) -> NDArray:
    """What the judge takes sounds for, [N], by YAMNet's scores of them [N, patches, 521]."""
    logs = np.log(scores + 1e-4)
    return judge.model.predict(np.concatenate((logs.mean(1), logs.max(1)), axis=1))


class Heard(NamedTuple):
    """What an evaluation needs of N sounds."""

    right: NDArray[np.bool_]  # the judge takes it for what the photo shows, [N]
    embeddings: NDArray  # mean over time of the log scores [N, 521]
    logits: NDArray  # of the mean score [N, 521]

    @classmethod
    def of(cls, judge: Judge, scores: NDArray, labels: Sequence[str]) -> Heard:
        """From scores [N, patches, 521], as ``Judge`` and ``YamnetBackbone`` have them."""
        names = named(judge, scores)
        clipped = scores.clip(MIN_SCORE, 1 - MIN_SCORE)
        mean = clipped.mean(1)
        return cls(
            names == np.array(labels[: len(scores)]), np.log(clipped).mean(1), np.log(mean) - np.log1p(-mean)
        )


def resampled(real: Heard, heard: Heard, photos: list[Rows]) -> dict[str, NDArray]:
    """Each measure, then those of resamples of the photos, [1 + R]; ``photos`` are the rows of each.

    Judge's share, KL divergence and Fréchet distance from the real sounds; the same draws for each setting.
    """
    # 1. Means over sounds: sums and counts of each photo are all that a resample needs.
    counts = np.array([len(rows) for rows in photos])

    def mean(values: NDArray) -> NDArray:
        sums = np.array([values[rows].sum() for rows in photos])
        means = bootstrap(lambda draws: (sums[draws].sum(1) / counts[draws].sum(1))[:, None], len(photos))
        return np.append(sums.sum() / counts.sum(), means[:, 0])

    found = {"share": mean(heard.right), "KL": mean(divergences(real.logits, heard.logits))}

    # 2. The distance of two sets. A resample holds sounds twice, which lifts it: see ``frechet_interval``.
    def fd(draw: Sequence[int]) -> float:
        rows = np.concatenate([photos[n] for n in draw])
        return frechet(real.embeddings[rows], heard.embeddings[rows])

    draws = bootstrap(lambda draws: np.array([[fd(draw)] for draw in draws]), len(photos), RESAMPLES)[:, 0]
    value = fd(range(len(photos)))
    return found | {"FD": np.append(value, draws - draws.mean() + value)}


def table(
    judge: Judge, true: NDArray, plan: Plan, names: list[str], out: Path, part: str
) -> list[dict[str, Any]]:
    """A row for each setting: N, its measures, and their differences from those of the first setting."""
    found: dict[str, Heard] = {}
    for name in names:
        scores = [np.load(file)["scores"] for file in sorted((out / name).glob("[0-9]*.npz"))]
        found[name] = Heard.of(judge, np.concatenate(scores), plan.labels)
    wanted = {"all": plan.second | True, "first": ~plan.second, "second": plan.second}[part]
    real = Heard.of(judge, true, plan.labels)
    rows = []
    bases: dict[int, dict[str, NDArray]] = {}  # number of sounds -> the first setting's measures on these
    for name, heard in found.items():
        count = min(len(heard.right), len(found[names[0]].right))
        photos: dict[str, list[int]] = {}
        for n in np.flatnonzero(wanted[:count]):
            photos.setdefault(plan.photos[n], []).append(int(n))
        groups = [np.array(each) for each in photos.values()]
        first, own = (Heard(*(values[:count] for values in each)) for each in (found[names[0]], heard))
        so_far = Heard(*(values[:count] for values in real))
        if count not in bases:
            bases[count] = resampled(so_far, first, groups)
        row: dict[str, Any] = {"setting": name, "N": sum(map(len, groups)), "photos": len(groups)}
        for title, values in resampled(so_far, own, groups).items():
            apart = values - bases[count][title]
            row[title] = Interval.of(values[0], values[1:]).document()
            row[f"{title} difference"] = Interval.of(apart[0], apart[1:]).document()
        rows.append(row)
        cells = [
            f"{title} {each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"
            for title, each in row.items()
            if isinstance(each, dict)
        ]
        print(f"{name}: N={row['N']} of {row['photos']} photos; {'; '.join(cells)}", flush=True)
    return rows


def timed(store: LatentStore, settings: list[Setting], rounds: int) -> list[dict[str, Any]]:
    """Median processor seconds of one window's tokens, the settings in turn; and of the first's."""
    row = np.flatnonzero(store.has("features"))[:1]
    features = torch.from_numpy(store.gather("features", row)).float()[0]
    model = settings[0].pipeline.config.model
    empty = torch.zeros(model.num_codebooks, model.audio_length, dtype=torch.int64)
    seconds: dict[str, list[float]] = {setting.name: [] for setting in settings}
    for seed in range(rounds + 1):  # the first round warms up
        for setting in settings:
            pipeline = setting.pipeline.to(setting.dtype)
            clock = time.process_time()
            noise = torch.Generator().manual_seed(seed)
            pipeline.first.fill(empty, empty.bool(), features, setting.decode, noise)
            seconds[setting.name].append(time.process_time() - clock)
    first = seconds[settings[0].name][1:]
    rows = []
    for name, each in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(each[1:], first, strict=True))
        rows.append({"setting": name, "seconds": statistics.median(each[1:]), "ratio": ratio})
        print(f"{name}: {rows[-1]['seconds']:.3f} s, {ratio:.2f} of {settings[0].name}", flush=True)
    return rows


def main() -> None:
    """Make, measure and print; ``--json`` keeps it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sounds", type=int, default=10_000, metavar="N", help="make only the first N")
    parser.add_argument("--make", action="store_true", help="make the sounds, and measure nothing")
    parser.add_argument("--after", metavar="SETTING", help="make sounds of that setting a second longer")
    parser.add_argument("--part", choices=("all", "first", "second"), default="all")
    parser.add_argument("--time", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = LatentStore.open(args.store, whole=False)
    settings = [Setting.named(text, args.model) for text in args.settings]
    pipeline = settings[0].pipeline
    if args.time:
        rows = timed(store, settings, args.time)
    else:
        plan = Plan.of(args.store.parent / "latents.csv")
        yamnet = Yamnet(args.data / "weights" / "yamnet" / "yamnet_spectra_in.tflite")
        after = None if args.after is None else args.out / args.after
        out = args.out if after is None else args.out / f"after {after.name}"
        for setting in settings:
            make(yamnet, args.data, store, plan, setting, out, args.sounds, after)
        if args.make:
            return
        manifest = args.store.parent / "codec.csv"
        kept = args.store.parent / "judge.pickle"
        judge = fitted_judge(
            args.data, kept, *(([], []) if kept.exists() else sounds_of(manifest, "train", args.data))
        )
        seconds = pipeline.config.model.seconds if after is None else 2.0
        true = true_scores(pipeline, yamnet, store, plan, out / "true.npz", seconds)
        rows = table(judge, true, plan, args.settings, out, args.part)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
