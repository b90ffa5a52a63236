"""Checkpoints of a run: one safetensors file each, written whole, the last two kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from vab.config import current_names
from vab.errors import TrainError
from vab.models.hub import CONFIG, KNOWN, MODEL, read_config
from vab.utils.files import check_tensors, json_object, load_tensors, save_tensors, write_whole

MAX_CHECKPOINTS = 2


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    ema: list[Tensor],
    about: dict[str, Any],
) -> None:
    """Save the state of a run; ``about`` is any JSON. All older checkpoints but one are removed."""
    folder.mkdir(parents=True, exist_ok=True)

    # Names in the file: model.<name>, optimizer.<number>.<parameter>.<moment>, ema.<parameter>
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for n, optimizer in enumerate(optimizers):
        for i, values in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{n}.{i}.{name}": tensor for name, tensor in values.items()})
    tensors.update({f"ema.{i}": tensor for i, tensor in enumerate(ema)})
    save_tensors(folder / f"{step:09d}.safetensors", tensors, {"about": json.dumps(about)})
    for old in checkpoints(folder)[MAX_CHECKPOINTS:]:
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints there are, the newest first."""
    return sorted(folder.glob("[0-9]*.safetensors"), reverse=True)


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
) -> tuple[int, dict[str, Any]] | None:
    """Put the newest good checkpoint of a run in place; returns its step and what was saved as ``about``.

    One that was cut short or damaged is passed over; None if there is no other. ``TrainError`` names what
    differs between ``identity``, which must not change, and that of a checkpoint, which is never overwritten.
    """
    for path in checkpoints(run / "checkpoints"):
        about = read_about(path)
        if about is None:
            log(f"{path} is damaged; trying the one before")
            continue
        saved = dict(about["identity"])
        for part, kind in (("model", "ModelConfig"), ("train", "TrainConfig")):
            if part in saved:
                saved[part] = current_names(kind, saved[part])
        check_identity(run, saved, identity)
        return load_checkpoint(path, model, optimizers, ema), about
    return None


def check_identity(run: Path, saved: dict[str, Any], identity: dict[str, Any]) -> None:
    """``TrainError`` if what a run was begun with is not what it shall go on with."""
    other = sorted(differences(saved, identity))
    if other:
        raise TrainError(f"{run} holds another run: {'; '.join(other)}. Use another folder.")


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
