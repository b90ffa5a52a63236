"""Checkpoints of a run: one safetensors file each, written whole.

``checkpoints/`` holds the last two, named by their step; ``checkpoints/kept/`` those that stay for good, and
``checkpoints/best/`` the one that was best on the split dev. A file in several places is there once (a link).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vab.config import ModelConfig, TrainConfig, current_names, written
from vab.errors import TrainError
from vab.models.hub import CONFIG, KNOWN, MODEL, read_config
from vab.training.objectives import build
from vab.utils.files import (
    atomic,
    check_tensors,
    json_object,
    load_tensors,
    save_tensors,
    write_json,
    write_whole,
)

MAX_CHECKPOINTS = 2
KEPT, BEST = "kept", "best"  # folders of a run's checkpoints


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    ema: list[Tensor],
    about: dict[str, Any],
    roles: Collection[str] = (),
) -> None:
    """Save the state of a run; ``about`` is any JSON. All older checkpoints but one are removed.

    ``roles`` are further folders inside ``folder`` that hold it: KEPT, or BEST in place of the best before.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # Names in the file: model.<name>, optimizer.<number>.<parameter>.<moment>, ema.<parameter>
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for n, optimizer in enumerate(optimizers):
        for i, values in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{n}.{i}.{name}": tensor for name, tensor in values.items()})
    tensors.update({f"ema.{i}": tensor for i, tensor in enumerate(ema)})
    path = folder / f"{step:09d}.safetensors"
    save_tensors(path, tensors, {"about": json.dumps(about)})
    for role in roles:
        _also_in(folder / role, path)
    if BEST in roles:
        for other in checkpoints(folder / BEST):
            if other.name != path.name:
                other.unlink()
    for old in checkpoints(folder)[MAX_CHECKPOINTS:]:
        old.unlink()


def _also_in(folder: Path, path: Path) -> None:
    """The same file in another folder: a link, or a copy where the file system has none."""
    folder.mkdir(exist_ok=True)
    with atomic(folder / path.name) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(folder.glob("[0-9]*.safetensors"), reverse=True)


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run: the last ones, then those kept and the best, each the newest first."""
    others = [path for role in (KEPT, BEST) for path in checkpoints(folder / role)]
    return checkpoints(folder) + sorted(others, key=lambda path: path.stem, reverse=True)


def read_about(path: Path) -> dict[str, Any] | None:
    """The JSON that was saved as ``about``; None for a damaged file."""
    try:
        check_tensors(path)
        with safe_open(path, "pt") as stream:
            return json_object(stream.metadata()["about"])
    except (OSError, KeyError, ValueError, TypeError):
        return None


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ema: list[Tensor]
) -> int:
    """Put a checkpoint into model, optimizers and averaged weights (in place); returns its step."""
    state: dict[str, dict[str, Tensor]] = {}
    moments: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    with safe_open(path, "pt") as stream:
        # Sort the tensors by the first part of their names.
        for name in stream.keys():  # noqa: SIM118 (not a dict)
            part, _, rest = name.partition(".")
            if part == "optimizer":
                n, i, key = rest.split(".")
                moments[int(n)].setdefault(int(i), {})[key] = stream.get_tensor(name)
            else:
                state.setdefault(part, {})[rest] = stream.get_tensor(name)
    model.load_state_dict(state["model"])

    # Only moments are saved: learning rates and the like come from the configuration.
    for optimizer, saved in zip(optimizers, moments, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": saved, "param_groups": groups})
    for i, average in enumerate(ema):
        average.copy_(state["ema"][str(i)])
    return int(path.stem)


def resume(
    run: Path,
    identity: dict[str, Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    ema: list[Tensor],
    log: Callable[[str], None],
    lengthen: bool = False,
    if_longer: str = "",
) -> tuple[int, dict[str, Any]] | None:
    """Put the newest good checkpoint of a run in place; returns its step and what was saved as ``about``.

    One that was cut short or damaged is passed over, down to those that were kept; None if there is no other.
    ``TrainError`` names what differs between ``identity``, which must not change, and that of a checkpoint,
    which is never overwritten. With ``lengthen`` the number of steps may have grown; ``if_longer`` is that of
    ``check_identity``.
    """
    for path in all_checkpoints(run / "checkpoints"):
        about = read_about(path)
        if about is None:
            log(f"{path} is damaged; trying the one before")
            continue
        saved = dict(about["identity"])
        for part, kind in (("model", ModelConfig), ("train", TrainConfig)):
            if part in saved:
                current = current_names(kind.__name__, saved[part])
                # A setting that came later had its default then.
                fresh = json.loads(json.dumps(asdict(kind())))
                saved[part] = {name: fresh[name] for name in identity[part]} | current
        if lengthen and saved["steps"] < identity["steps"]:
            saved["steps"] = identity["steps"]
            saved["train"] = saved["train"] | {"epochs": identity["train"]["epochs"]}
        check_identity(run, saved, identity, if_longer)
        return load_checkpoint(path, model, optimizers, ema), about
    return None


def check_identity(run: Path, saved: dict[str, Any], identity: dict[str, Any], if_longer: str = "") -> None:
    """``TrainError`` if what a run was begun with is not what it shall go on with.

    ``if_longer`` is what else its caller can do if nothing but the number of steps has grown.
    """
    other = sorted(differences(saved, identity))
    if other:
        lengths = {difference.partition(" was ")[0] for difference in other} <= {"steps", "train.epochs"}
        longer = lengths and saved["steps"] < identity["steps"]
        way = f"Use another folder{f', or {if_longer}' if longer and if_longer else ''}."
        raise TrainError(f"{run} holds another run: {'; '.join(other)}. {way}")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the values that differ between two identities of a run, in words."""
    for key in old.keys() | new.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key} was {a}, is {b}"


def cut_metrics(path: Path, step: int) -> None:
    """Remove the lines of a run's metrics after the step it resumes from, and one half written.

    ``TrainError`` names a damaged line.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue  # half written by a killed run
        try:
            if json_object(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            raise TrainError(f"{path}: line {number} is damaged; delete it to go on") from None
    write_whole(path, b"".join(kept))


def ship(run: Path, out: Path) -> None:
    """A finished run as a model directory in half precision: configuration, record and weights.

    A linear probe keeps its head alone: it stands on the trunk of the contrastive network beside it.
    """
    out.mkdir(parents=True, exist_ok=True)
    weights = load_tensors(run / MODEL)
    if read_config(run).train.freeze_trunk:
        weights = {name: tensor for name, tensor in weights.items() if name.startswith("head.")}
    # The codebooks are in the codec's file in half precision too: both must be the same numbers.
    save_tensors(out / MODEL, {name: tensor.half() for name, tensor in weights.items()})
    (out / KNOWN).unlink(missing_ok=True)  # of another classifier
    for name in (CONFIG, "record.json", *([KNOWN] if (run / KNOWN).is_file() else [])):
        write_whole(out / name, (run / name).read_bytes())


def export_checkpoint(run: Path, step: int | str, out: Path | None = None) -> tuple[Path, int]:
    """Write the model of one of a run's checkpoints; returns its directory and its step.

    ``step`` is the number of one, ``last`` or ``best``; ``out`` is ``run/exported/<step>`` by default. The
    weights are the averaged ones if there are. The run itself is only read: it may go on meanwhile.
    ``TrainError`` if there is no such checkpoint, none that can be read, or ``out`` is the run's own folder;
    ``ModelError`` without a config.json.
    """
    preset = read_config(run)
    if out is not None and out.resolve() == run.resolve():
        raise TrainError(f"{out} is the folder of the run, which writes its own model there; name another")
    # 1. The newest good file of those meant. One may be removed while it is looked at: then the next.
    for path in _candidates(run, step):
        about = read_about(path)
        if about is not None:
            try:
                saved = _read(path)
            except FileNotFoundError:
                continue
            break
    else:
        raise TrainError(f"{run}: none of the checkpoints asked for can be read")

    # 2. The weights: of the parameters that learn, the averages.
    weights = {name.removeprefix("model."): t for name, t in saved.items() if name.startswith("model.")}
    with torch.device("meta"):
        network = build(preset)
    learned = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    weights |= {name: saved[f"ema.{i}"] for i, name in enumerate(learned) if f"ema.{i}" in saved}

    # 3. The directory, and a record that says from where in the run this is.
    number = int(path.stem)
    identity = about["identity"]
    record: dict[str, Any] = {"objective": preset.train.objective, "seed": preset.train.seed}
    record |= about.get("record", {})  # not in checkpoints of version 0.1
    record |= {
        "steps": number,
        "of_steps": identity["steps"],
        "goes_on": number < identity["steps"],
        "seconds": round(about["seconds"], 1),
        "exported": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    folder = run / "exported" / path.stem if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / MODEL, weights)
    write_json(folder / CONFIG, written(preset))
    write_json(folder / "record.json", record)
    (folder / KNOWN).unlink(missing_ok=True)  # of another classifier
    if not record["goes_on"] and (run / KNOWN).is_file():  # made from the store, at the run's end
        write_whole(folder / KNOWN, (run / KNOWN).read_bytes())
    return folder, number


def _candidates(run: Path, step: int | str) -> list[Path]:
    """The files of the checkpoint meant, the one to try first before the others."""
    folder = run / "checkpoints"
    there = all_checkpoints(folder)
    if not there:
        raise TrainError(f"{run} has no checkpoint yet; train.save_every says when the first is written")
    if step == "last":
        return there
    if step == "best":
        if found := checkpoints(folder / BEST):
            return found
        raise TrainError(f"{run} has no best checkpoint: nothing was validated yet")
    found = [path for path in there if int(path.stem) == step]
    if not found:
        steps = ", ".join(str(number) for number in sorted({int(path.stem) for path in there}))
        raise TrainError(f"{run} has no checkpoint of step {step}; there are: {steps}")
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """Weights and averaged weights of a checkpoint."""
    with safe_open(path, "pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys() if not name.startswith("optimizer.")}  # noqa: SIM118 (not a dict)
