"""A model of one's own from a folder of labelled sounds and pictures, in minutes on a laptop.

A model goes on learning from the folder; what it was trained on is not at hand. So that it does not forget
that, it rehearses: half of each batch are sounds that it made itself before, for pictures that its directory
holds (``vab.training.teaching.rehearsal``). Without these its new weights are averaged with those that it had
(weight-space ensembles, Wortsman et al., CVPR 2022). Its classifier gets a row for each label
(``vab.training.teaching.classes``); its embedding and a second stage stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vab.codecs.codec import load_codec
from vab.config import Compute, Preset, written
from vab.data.datasets.folder import folder_clips
from vab.data.extraction.job import Job, extract_on
from vab.data.manifest import Clip, write_manifest
from vab.data.mixture import Mixture
from vab.data.store import LatentStore
from vab.errors import SettingError
from vab.models.heads import load_finetuned, read_weights
from vab.models.hub import (
    CONFIG,
    FOLDERS,
    MODEL,
    REHEARSAL,
    codec_source,
    find_model,
    model_files,
    read_config,
)
from vab.sampling.stages import load_stage
from vab.training.checkpoint import checkpoints
from vab.training.teaching.classes import add_classes
from vab.training.teaching.rehearsal import Rehearsal, few_pictures, load_rehearsal, rehearse
from vab.training.trainer import train
from vab.utils import count_of
from vab.utils.device import Device, pick_device, pick_precision
from vab.utils.files import load_tensors, read_json, save_tensors, sync_folder, write_json, write_whole
from vab.utils.processes import devices_for
from vab.utils.provenance import code_version, sha256

MIN_SOUNDS = 4  # of a label: with fewer the model would learn these recordings, not what they have in common
STEPS = 150
RATE, CAREFUL_RATE = 1.5, 1 / 3  # of the model's own learning rate: with rehearsal, and without
# A picture is all that most sounds are made from: many clips without a curve, most of each hidden.
TIMING_DROP, MASK_MIN = 0.5, 0.8
REHEARSAL_SHARE = 0.5  # of a batch
OLD_SHARE = 0.5  # of the former weights in the average with the new ones, for a model that cannot rehearse
WARMUP_SHARE = 0.1  # of the steps
SAVE_EVERY = 25  # steps: what an interrupt by a loss of power costs
EMA = 0.99
CARD, RECORD = "README.md", "record.json"
MAX_TITLE = 200

Log = Callable[[str], None]


@dataclass(frozen=True)
class Label:
    """What the folder has of one label."""

    sounds: int  # files with sound
    pictures: int  # images and films


@dataclass(frozen=True)
class Learned:
    """What was learned, and what could not be used."""

    labels: dict[str, Label]
    left_out: dict[str, str]  # file or label -> the line that names it and says why
    steps: int
    seconds: float  # of this call


def learn(
    folder: Path,
    out: Path,
    source: str | Path | None = None,
    *,
    steps: int = STEPS,
    device: Device = "auto",
    codec_path: str | None = None,
    vision_path: str | None = None,
    log: Log = print,
    advance: Callable[[int, int, int], None] = lambda done, total, failed: None,
) -> Learned:
    """Teach the model ``source`` the labels of ``folder``; ``out`` becomes a model directory.

    Each subfolder of ``folder`` is a label, with sounds and pictures at any depth; a film with sound is both.
    What cannot be used is left out and named in the result. ``advance`` is told of encoding and of rehearsal:
    clips that are done, of all, and of those that failed. ``codec_path`` and ``vision_path`` are weights of
    the codec and the image encoder, instead of the default ones. The work lies in ``working_folder(out)``
    until ``out`` is there whole: cut off, the same call goes on.
    Raises ``SettingError`` if there is nothing to learn, ``out`` exists or the work is another's,
    ``ModelError`` for a model that cannot be taught.
    """
    begin = time.monotonic()
    base = find_model(source)
    preset = _teachable(base)
    if out.exists():
        raise SettingError(f"{out} exists already; name another folder for the model")

    # 1. What the folder has, by label.
    classes = _known_classes(base)
    clips, left_out = _clips(folder, preset.model.seconds, classes)
    labels, clips, without = _usable(folder, clips)
    left_out |= without
    former = load_rehearsal(base, preset.model.vision_dim)
    if former is not None:
        former = former.without(labels)
    log(f"1 of 5: {folder} has {_listing(labels)}")

    # 2. Latents of its media, by the model's own codec and image encoder.
    work = working_folder(out)
    _begin(work, {"files": _state(clips), "model": _checksum(base), "steps": steps})
    precision = _precision(work, device)
    with _saying_how_to_go_on(work, log):
        log(f"2 of 5: encoding {count_of(len(clips), 'clip')}; what is done is kept in {work}")
        write_manifest(work / "clips.csv", clips)
        codec = codec_source(base, codec_path)
        job = Job(
            manifest=work / "clips.csv",
            out=work / "store",
            codec=preset.model.codec,
            vision=preset.model.vision,
            seconds=preset.model.seconds,
            fps=preset.model.fps,
            fill="repeat",
            timing=preset.model.timing,
            codec_path=None if codec is None else str(codec),
            vision_path=vision_path,
        )
        left_out |= extract_on(job, devices_for(1, device), advance).failed

        # 3. What it knows, to be heard again meanwhile.
        new = Mixture.open(work / "store")
        stores, weights = [work / "store"], [1.0]
        if not former:
            log("3 of 5: the model has no pictures of what it knows to rehearse: it may forget some of that")
        else:
            log(f"3 of 5: its own sounds for {count_of(len(former), 'picture')} of what it knows")
            again = LatentStore.create(work / "rehearsal", new.stores[0].meta, new.codebook_vectors())
            where = pick_device(device)
            stage, sounding = load_stage(base), load_codec(preset.model.codec, codec, where)
            stage.network.eval().to(where)
            rehearse(former, stage, sounding, again, precision, lambda done, total: advance(done, total, 0))
            # Labels are drawn alike, so a store is drawn by its number of labels.
            stores.append(again.directory)
            weights.append(len(labels) / len({*former.labels}) * REHEARSAL_SHARE / (1 - REHEARSAL_SHARE))

        # 4. The network that generates.
        saved = checkpoints(work / "vab" / "checkpoints")
        goes_on = f", going on at {int(saved[0].stem)}" if saved else ""
        log(f"4 of 5: training, {count_of(steps, 'step')}{goes_on}")
        config = replace(
            preset.train,
            learning_rate=preset.train.learning_rate * (RATE if former else CAREFUL_RATE),
            warmup_steps=round(steps * WARMUP_SHARE),
            max_steps=steps,
            save_every=SAVE_EVERY,
            # Sounds and pictures belong together by their label, of which some have more than others.
            pair_by_label=True,
            class_balanced=True,
            ema=EMA,
            timing_drop_prob=TIMING_DROP,
            mask_min=min(MASK_MIN, preset.train.mask_max),
            precision=precision,
            seed=0,
        )
        train(
            replace(preset, train=config),
            stores,
            work / "vab",
            weights=weights,
            init=base,
            compute=Compute(device=str(device)),
            log=lambda line: None,
        )

        # 5. The classes, and the model as a whole.
        log("5 of 5: the classes")
        model = work / "model"
        shutil.rmtree(model, ignore_errors=True)
        taught = replace(preset, note=f"{_title(base, preset)}, taught {', '.join(labels)}")
        _write(model, base, taught, work, 0.0 if former else OLD_SHARE)
        if former:
            (former + few_pictures(new, preset.model.fps)).save(model)
        _describe(model, base, taught, labels, steps, former)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(model, out)
        sync_folder(out.parent)
        shutil.rmtree(work, ignore_errors=True)
    return Learned(labels, left_out, steps, round(time.monotonic() - begin, 1))


def working_folder(out: Path) -> Path:
    """Where the work lies until the model ``out`` is done: beside it."""
    return out.with_name(f"{out.name}.learning")


@contextmanager
def _saying_how_to_go_on(work: Path, log: Log) -> Iterator[None]:
    """Whoever interrupts the block is told where its work is."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        message = f"stopped; the same command goes on with what is in {work}"
        log(message)
        if isinstance(stop, SystemExit):
            raise
        raise KeyboardInterrupt(message) from stop


def _teachable(base: Path) -> Preset:
    """The preset of a model; ``SettingError`` if it was not trained by masked prediction."""
    preset = read_config(base)
    if preset.train.objective != "masked":
        raise SettingError(f"{base}: was trained for {preset.train.objective}; only VAB itself can be taught")
    return preset


def _known_classes(base: Path) -> tuple[str, ...]:
    config = base / FOLDERS["classification"] / CONFIG
    return read_config(config.parent).classes if config.is_file() else ()


def _clips(folder: Path, window: float, classes: tuple[str, ...]) -> tuple[list[Clip], dict[str, str]]:
    """The clips of a folder, by label, and what was left out with the reason.

    A label that the model knows is that class whatever the case of its letters.
    """
    found, left_out, _, _ = folder_clips(folder, window, dev_share=0.0)
    known = {name.casefold(): name for name in classes}
    clips = []
    for clip in found:
        path = clip.video or clip.audio
        assert isinstance(path, Path)
        first, *rest = path.relative_to(folder).parts
        label = "_".join(first.split())
        if not rest:
            left_out[str(path)] = f"{path}: lies in no subfolder, whose name would be its label"
        elif ";" in label:
            left_out[str(path)] = f"{path}: no label may have a ; in it; rename {folder / first}"
        else:
            clips.append(replace(clip, label=known.get(label.casefold(), label), split="train"))
    return clips, left_out


def _usable(folder: Path, clips: list[Clip]) -> tuple[dict[str, Label], list[Clip], dict[str, str]]:
    """Labels that can be learned, their clips, and why others cannot."""
    labels, left_out = {}, {}
    for name in sorted({clip.label for clip in clips}):
        own = [clip for clip in clips if clip.label == name]
        sounds = len({clip.audio for clip in own} - {None})
        pictures = len({clip.video for clip in own} - {None})
        lacks = [f"{count_of(sounds, 'sound')} of at least {MIN_SOUNDS}"] * (sounds < MIN_SOUNDS)
        lacks += ["no picture"] * (not pictures)
        if lacks:
            left_out[name] = f"{folder / name}: has {' and '.join(lacks)}, so the label is left out"
        else:
            labels[name] = Label(sounds, pictures)
    if not labels:
        reasons = "; ".join(left_out.values()) or f"{folder}: has no sounds and pictures in subfolders"
        raise SettingError(
            f"nothing to learn: {reasons}. Each label is a subfolder with {MIN_SOUNDS} sounds and a picture, "
            "or films with sound"
        )
    return labels, [clip for clip in clips if clip.label in labels], left_out


def _listing(labels: dict[str, Label]) -> str:
    return ", ".join(
        f"{name} ({count_of(each.sounds, 'sound')}, {count_of(each.pictures, 'picture')})"
        for name, each in labels.items()
    )


def _state(clips: list[Clip]) -> str:
    """Hash of the files of a folder by name, size and time of change."""
    paths = sorted({path for clip in clips for path in (clip.audio, clip.video) if isinstance(path, Path)})
    facts = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return sha256(json.dumps([facts, sorted({(clip.id, clip.label) for clip in clips})]))


def _checksum(base: Path) -> str:
    return sha256((base / MODEL).read_bytes())


def _begin(work: Path, job: dict[str, Any]) -> None:
    """Make the working folder, or go on in it; ``SettingError`` if it holds the work of another call."""
    note = work / "learning.json"
    if not note.is_file():
        work.mkdir(parents=True, exist_ok=True)
        write_json(note, job)
        return
    try:
        before = read_json(note)
    except ValueError:
        before = {}
    names = {"files": "the folder", "model": "--model", "steps": "--steps"}
    changed = [name for key, name in names.items() if before.get(key) != job[key]]
    if changed:
        raise SettingError(
            f"{work} holds what is done of a call with another state of {' and '.join(changed)}: delete it "
            "to begin anew"
        )


def _precision(work: Path, device: Device) -> Literal["32-true", "bf16-mixed"]:
    """What is quicker on this device, by a measurement; of a run that goes on what it was begun with."""
    config = work / "vab" / CONFIG
    if config.is_file():
        return "bf16-mixed" if read_config(config.parent).train.precision == "bf16-mixed" else "32-true"
    chosen = pick_precision("auto", pick_device(device)).precision
    return "bf16-mixed" if chosen == "bfloat16" else "32-true"


def _write(model: Path, base: Path, taught: Preset, work: Path, old_share: float) -> None:
    """The model directory: the base's files, with the new network and the further classes."""
    for name in model_files(base):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(model / name, (base / name).read_bytes())

    # The network, as far as its weights are numbers that learn; in the precision that the base has.
    old, new = read_weights(base / MODEL), load_tensors(work / "vab" / MODEL)
    mean = {name: torch.lerp(new[name].float(), tensor.float(), old_share) for name, tensor in old.items()}
    save_tensors(model / MODEL, {name: mean[name].to(tensor.dtype) for name, tensor in old.items()})
    write_json(model / CONFIG, written(taught))

    # The classes: a head of more rows. A linear probe has no more than that, others keep their trunk.
    finetuned = load_finetuned(base)
    if finetuned.classifier is None:
        return
    network, preset = finetuned.classifier
    latents = Mixture.open(work / "store")
    head = add_classes(network, preset, finetuned.known, latents)
    place = model / FOLDERS["classification"]
    weights = read_weights(base / FOLDERS["classification"] / MODEL)
    kind = weights["head.weight"].dtype
    rows = {"head.weight": head.weight.to(kind), "head.bias": head.bias.to(kind)}
    save_tensors(place / MODEL, weights | rows)
    write_json(place / CONFIG, written(replace(preset, classes=head.classes)))
    if head.known is not None:
        head.known.save(place)


def _describe(
    model: Path, base: Path, preset: Preset, labels: dict[str, Label], steps: int, former: Rehearsal | None
) -> None:
    """The card and the record: from what the model was made, without a path of the user's disk."""
    licence = _licence(base)
    made = {name: {"sounds": each.sounds, "pictures": each.pictures} for name, each in labels.items()}
    record = {
        "code": code_version(),
        "made_by": "vab learn",
        "base": {"name": _title(base, preset), "weights": _checksum(base), "licence": licence},
        "labels": made,
        "steps": steps,
        "rehearsed": 0 if not former else len(former),
        "old_share": OLD_SHARE if not former else 0.0,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(model / RECORD, record)
    rows = "\n".join(f"| {name} | {each.sounds} | {each.pictures} |" for name, each in labels.items())
    base_name = _title(base, preset)
    if not former:
        how = f"then the mean of the old and the new weights, since {base_name} has no {REHEARSAL}"
    else:
        how = (
            f"half of each batch were sounds that {base_name} made for {count_of(len(former), 'picture')}\n"
            f"  of what it knew. `{REHEARSAL}` holds image features of these,\n"
            "  and of a few pictures of each label"
        )
    card = f"""---
library_name: vab
tags: [video-to-audio]
---
# {preset.note}

Made by `vab learn` from the model {base_name} and a folder of labelled sounds and pictures.

| label | sounds | pictures |
|---|---|---|
{rows}

* **Training**: {count_of(steps, "step")} of the network that generates, from the weights of
  {base_name}; {how}.
  The classifier has a row for each label, fitted to its sounds and pictures.
  Codec, image encoder and embedding are those of {base_name}.
* **Licence**: of {base_name} its card says: {licence}
  What the sounds and pictures of the folder allow, only its owner knows.
* **Limits**: those of {base_name}. What it knew before may come out worse. Nobody has measured this model.
"""
    write_whole(model / CARD, card.encode())


def _title(base: Path, preset: Preset) -> str:
    """The title of a model's card, which says what it was taught before; else its name."""
    heads = [line.removeprefix("# ") for line in _card(base).splitlines() if line.startswith("# ")]
    return heads[0][:MAX_TITLE] if heads else preset.name


def _licence(base: Path) -> str:
    """What the card of a model says of its licence, or else of its data."""
    card = _card(base)
    head = [line for line in card.splitlines()[:20] if line.startswith("license:")]
    if head:
        return f"{head[0].removeprefix('license:').strip()}."
    for point in ("* **Licence**: ", "* **Data**: "):
        _, found, rest = card.partition(point)
        if found:
            return " ".join(rest.split("\n*")[0].split("\n\n")[0].split())
    return "nothing."


def _card(base: Path) -> str:
    try:
        return (base / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
