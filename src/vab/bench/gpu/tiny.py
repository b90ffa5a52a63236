"""The bundled model trained anew on a GPU, each part for as long as it may take: ``make gpu-train``.

What it learns from lies in ``build/gpu-inputs``, where ``recipes/vab_tiny_gpu.sh pack`` has put it: the
latents as a store, and sounds for the codec's decoder. Each part goes on from what those before it left in
``build/gpu-train``, or from the model that ships, and at once lays what it made beside the page, in half
precision: ``vab-tiny_longer.tar`` is a model directory, in which what no part has made anew is as it ships
(each ``record.json`` says how it came), ``vab-tiny_longer_codec.tar`` its codec.

Nothing here needs a video library. With ``small`` a part takes a few steps in float32, and where nothing is
packed it learns from noise.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import time
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vab.bench.gpu.parts import TRAIN_PARTS
from vab.codecs.tiny import TinyCodec
from vab.config import SAMPLE_RATE, Compute, Preset
from vab.data.manifest import Clip, read_manifest, write_manifest
from vab.data.store import Latents, LatentStore, StoreMeta
from vab.models.heads import load_finetuned
from vab.models.hub import CONFIG, FOLDERS, find_model
from vab.presets import preset
from vab.sampling.stages import load_stage
from vab.training.batches import ClipBatches
from vab.training.checkpoint import ship
from vab.training.codec.train import CodecTrainConfig, train_codec
from vab.training.trainer import train
from vab.utils.device import pick_device
from vab.utils.files import atomic

INPUTS, RUNS = Path("build/gpu-inputs"), Path("build/gpu-train")
LATENTS, SOUNDS = "latents.tar.xz", "sounds.tar"  # in INPUTS
STORE, MANIFEST = RUNS / "store", RUNS / "sounds" / "sounds.csv"  # what is in them
MODEL_TAR, CODEC_TAR = "vab-tiny_longer.tar", "vab-tiny_longer_codec.tar"
MAX_FILE_BYTES = 16 << 20  # of one file that is brought back
BATCH = 64  # a step of 20 clips would leave a GPU idle
CODEC_BATCH = 128  # the search for codes that last is a loop over frames, as long for one excerpt as for many
NUM_ROWS = 5  # of the table of a log
TRIAL = 60  # steps by which the speed is measured
RESERVE = 20.0  # seconds for the start of the process and for what follows the training
SHARE = 0.9  # of what is left then, the training takes so much: no step is as fast as every other
LIMITS = {part.name: part.limit for part in TRAIN_PARTS}


def network(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """vab-tiny's network, from nothing, for as long as there is time."""
    begin = time.perf_counter()
    shutil.rmtree(RUNS, ignore_errors=True)
    chosen = preset("vab-tiny")
    chosen = replace(chosen, train=replace(chosen.train, batch_size=BATCH))
    return _trained("network", chosen, None, Path(), begin, device, small, folder)


def contrast(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """vab-tiny's space of sound and picture, from its network."""
    begin = time.perf_counter()
    chosen, place = preset("vab-tiny-contrastive"), Path(FOLDERS["contrastive"])
    return _trained("contrast", chosen, Path(), place, begin, device, small, folder)


def classes(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """vab-tiny's classes, a linear probe in its space of sound and picture."""
    begin = time.perf_counter()
    chosen, place = preset("vab-tiny-classes"), Path(FOLDERS["classification"])
    chosen = replace(chosen, train=replace(chosen.train, freeze_trunk=True, learning_rate=1e-2))
    return _trained("classes", chosen, Path(FOLDERS["contrastive"]), place, begin, device, small, folder)


def decoder(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """The decoder of vab-tiny's codec, trained on from the one that ships; its codes stay."""
    begin = time.perf_counter()
    _prepare(small)
    kind, codec_data, init = pick_device(device).type, read_sounds(MANIFEST), find_model()
    config = CodecTrainConfig(
        batch_size=2 if small else CODEC_BATCH,
        adversarial_from=0,
        precision="bf16-mixed" if kind == "cuda" else "32-true",
        save_every=1000,
        log_every=1 if small else 20,
    )
    # 1. A few steps, to see how fast it is.
    for name in ("decoder-trial", "decoder"):
        shutil.rmtree(RUNS / name, ignore_errors=True)
    lines: list[dict[str, float]] = []
    trial = replace(config, steps=2 if small else TRIAL)
    train_codec(codec_data, RUNS / "decoder-trial", trial, None, lines.append, init, kind)
    # 2. As many steps as fit.
    config = replace(config, steps=_steps("decoder", 1 / lines[-1]["seconds"], begin, small))
    lines.clear()
    clock = time.perf_counter()
    made = train_codec(codec_data, RUNS / "decoder", config, None, lines.append, init, kind)
    clock = time.perf_counter() - clock
    # 3. The decoder is new; its codes must be those that ship, or stored tokens would mean other sounds.
    before, after = TinyCodec.from_pretrained(init).code_weights(), made.cpu().code_weights()
    failed = [f"{name} of the codes is as it was" for name in before if not before[name].equal(after[name])]
    seconds = sum(len(sound) for several in codec_data.values() for sound in several) / SAMPLE_RATE
    about = f"from {seconds / 60:.0f} min of sound in {len(codec_data)} labels"
    speed = _speed(config.steps, config.batch_size, clock, kind)
    files = [RUNS / "decoder" / name for name in ("codec.json", "codec.safetensors", "training.json")]
    size, large = _pack(folder / CODEC_TAR, files, RUNS / "decoder")
    return {"rows": _means(lines), "lines": [about, speed, size], "failed": failed + large}


def _trained(
    part: str,
    chosen: Preset,
    init: Path | None,
    place: Path,
    begin: float,
    device: str,
    small: bool,
    folder: Path,
) -> dict[str, Any]:
    """Train a part of the model and lay the model so far beside the page.

    ``init`` and ``place`` are folders of the model directory: where it starts and where it goes.
    """
    _prepare(small)
    kind, model = pick_device(device).type, RUNS / "model"
    config = replace(
        chosen.train,
        batch_size=8 if small else chosen.train.batch_size,
        precision="bf16-mixed" if kind == "cuda" else "32-true",
        save_every=1000,  # each is a file of 70 MB
        log_every=1 if small else 10,
    )
    if kind == "cpu":  # Muon multiplies in bfloat16, which most processors only imitate
        config = replace(config, optimizer="adamw")
    chosen = replace(chosen, train=config)
    start = None if init is None else model / init

    # 1. A few steps, to see how fast it is.
    trial = RUNS / f"{part}-trial"
    for run in (trial, RUNS / part):
        shutil.rmtree(run, ignore_errors=True)
    train(chosen, STORE, trial, init=start, compute=Compute(device=kind), max_steps=2 if small else TRIAL)
    rates = [line["clips_per_second"] for line in _metrics(trial, "train")]
    rate = float(np.median(rates[len(rates) // 2 :])) / config.batch_size  # the first ones warm up

    # 2. As many steps as fit, their schedule whole.
    steps = _steps(part, rate, begin, small)
    epochs = steps * config.batch_size / len(ClipBatches(LatentStore.open(STORE), chosen, "train"))
    where = torch.cuda.get_device_name() if kind == "cuda" else f"a {kind}"
    note = f"{chosen.note}; {steps} steps of {config.batch_size} on {where}"
    chosen = replace(chosen, note=note, train=replace(config, epochs=round(epochs, 2)))
    clock = time.perf_counter()
    train(chosen, STORE, RUNS / part, init=start, compute=Compute(device=kind), max_steps=steps)
    clock = time.perf_counter() - clock

    # 3. Into the model directory, which must load with what the other parts have left there.
    ship(RUNS / part, model / place)
    load_stage(model)
    load_finetuned(model)
    files = [path for path in sorted(model.rglob("*")) if path.is_file()]
    size, large = _pack(folder / MODEL_TAR, files, model)
    lines = [f"{epochs:.1f} epochs", _speed(steps, config.batch_size, clock, kind), size]
    return {"rows": _metrics(RUNS / part, "dev"), "lines": lines, "failed": large}


def _steps(part: str, rate: float, begin: float, small: bool) -> int:
    """Number of steps that fit into the rest of the part's time, at ``rate`` steps per second."""
    # the part's limit counts from the start of its process
    left = LIMITS[part] - RESERVE - (time.perf_counter() - begin)
    return min(2 if small else 1_000_000, max(1, int(SHARE * rate * left)))


def _metrics(run: Path, split: str) -> list[dict[str, Any]]:
    """The lines of a run's log for one split."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "split"} for line in lines if line["split"] == split]


def _means(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """A log of single batches in a few rows: means over as many equal parts, each with its last step."""
    names = list(lines[0])
    table = np.array([[line[name] for name in names] for line in lines])
    parts = np.array_split(table, min(NUM_ROWS, len(lines)))
    return [dict(zip(names, (part[-1, 0], *part[:, 1:].mean(0)), strict=True)) for part in parts]


def _speed(steps: int, batch: int, seconds: float, kind: str) -> str:
    """Duration, speed and memory of a run, for people."""
    text = f"{steps:,} steps of {batch} in {seconds:.1f} s, {steps / seconds:.1f} steps/s"
    if kind == "cuda":
        text += f", at most {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB allocated"
    return text


def _pack(out: Path, files: list[Path], root: Path) -> tuple[str, list[str]]:
    """Files below ``root`` as a tar that stands there whole; its size, and the check that it can travel."""
    with atomic(out) as temporary, tarfile.open(temporary, "w") as tar:
        for path in files:
            tar.add(path, path.relative_to(root).as_posix())
    size = out.stat().st_size
    failed = [f"{out.name} has at most {MAX_FILE_BYTES / 2**20:.0f} MiB"] if size > MAX_FILE_BYTES else []
    return f"`{out.name}`: {size / 2**20:.1f} MiB", failed


# --- what it learns from ---


def _prepare(small: bool) -> None:
    """Lay out the model that ships and what is learned from, once; ``FileNotFoundError`` if it is missing."""
    # 1. The latents and sounds; noise does for a trial on two cores.
    if not STORE.exists():
        RUNS.mkdir(parents=True, exist_ok=True)
        if (INPUTS / LATENTS).exists():
            unpack(INPUTS, RUNS)
        elif small:
            write_noise(STORE, MANIFEST)
        else:
            raise FileNotFoundError(
                f"there is no {INPUTS / LATENTS} to learn from: make it with recipes/vab_tiny_gpu.sh pack"
            )
    # 2. The model that ships, of which each part replaces its own.
    if not (RUNS / "model" / CONFIG).exists():
        parts = shutil.ignore_patterns("README.md", "codec.*")
        shutil.copytree(find_model(), RUNS / "model", ignore=parts)


def unpack(inputs: Path, out: Path) -> None:
    """Lay the packed store and sounds out in ``out``, in the folders ``store`` and ``sounds``."""
    for name in (SOUNDS, LATENTS):
        with tarfile.open(inputs / name) as tar:
            tar.extractall(out, filter="data")


def read_sounds(manifest: Path) -> dict[str, list[NDArray[np.int16]]]:
    """label -> waveforms int16 [S] at 16 kHz, by whatever is here to read them."""
    try:
        import soundfile
    except ImportError:
        try:
            from vab.training.codec import sounds
        except ImportError as error:
            raise ModuleNotFoundError("neither soundfile nor av is here to read sounds with") from error
        return sounds.read_sounds(manifest)
    found: dict[str, list[NDArray[np.int16]]] = {}
    for clip in read_manifest(manifest):
        waveform, rate = soundfile.read(clip.audio, dtype="int16")
        if rate != SAMPLE_RATE or waveform.ndim != 1:
            raise ValueError(f"{clip.audio}: is not mono at {SAMPLE_RATE} Hz")
        found.setdefault(clip.label, []).append(waveform)
    return found


def write_noise(store: Path, manifest: Path) -> None:
    """A store of random latents with two labels, and a few tones: enough to see that everything runs."""
    random, model = np.random.default_rng(0), preset("vab-tiny").model
    vectors = TinyCodec.from_pretrained(find_model()).codebook_vectors()[: model.num_codebooks].numpy()
    meta = StoreMeta.for_model(model)
    # 1. Latents: the last of each four clips is dev, and labels change every four.
    target = LatentStore.create(store, meta, vectors)
    rows = []
    for n in range(16):
        tokens = random.integers(model.codebook_size, size=meta.token_shape, dtype=np.uint16)
        features = random.random(meta.feature_shape, np.float32).astype(np.float16)
        split = "dev" if n % 4 == 3 else "train"
        rows.append(Latents(f"clip{n}", ("high", "low")[n // 4 % 2], split, tokens, features))
    with target.writing():
        target.add(rows)
    # 2. Sounds for the codec: two tones of two seconds.
    manifest.parent.mkdir(parents=True, exist_ok=True)
    codec_data = []
    for label, hertz in (("high", 1760), ("low", 220)):
        path = manifest.with_name(f"{label}.wav")
        tone = np.sin(2 * np.pi * hertz / SAMPLE_RATE * np.arange(2 * SAMPLE_RATE))
        with wave.open(str(path), "wb") as stream:
            stream.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            stream.writeframes((8000 * tone).astype("<i2").tobytes())
        codec_data.append(Clip(label, path, None, label=label))
    write_manifest(manifest, codec_data)
