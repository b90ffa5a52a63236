"""vab models, vab presets, vab doctor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vab.cli.output import print_result, printable, table
from vab.config import Compute, Preset, check_config

if TYPE_CHECKING:
    from vab.models.hub import KnownModel

MAX_NAMES = 40  # of classes in a line


def models(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DIR...]")] = (
        Path("."),
    ),
    json: bool = False,
) -> int:
    """List the models: bundled, in folders, in the Hub cache, and those without published weights.

    Below the table stands what each of them learned to tell apart: outside of that its sounds are arbitrary.

    Args:
        folders: folders to search for model directories, up to two levels deep.
        json: print one JSON document to standard output.
    """
    from vab.models.hub import known_models

    known = known_models(folders)
    rows = [(m.name, m.state, f"{m.bytes / 1e6:.1f} MB" if m.bytes else "", m.note) for m in known]
    document = [asdict(model) | {"path": model.path and str(model.path)} for model in known]
    text = "\n".join([table(("model", "state", "size", "note"), rows), *_learned(known)])
    print_result({"models": document}, text, json)
    return 0


def _learned(known: Sequence[KnownModel]) -> Iterator[str]:
    """Lines that say what each model with classes learned, from pictures and else from sound alone."""
    for model in known:
        heard = [name for name in model.classes if name not in model.pictured]
        from_sound = " from sound alone" if model.pictured else ""
        for kind, names in ((" from pictures", model.pictured), (from_sound, heard)):
            if names:
                more = f" and {len(names) - MAX_NAMES} more (--json)" if len(names) > MAX_NAMES else ""
                yield f"{printable(model.name)} learned{kind}: {', '.join(names[:MAX_NAMES])}{more}"


def presets(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None,
    memory: bool = False,
    devices: int = 1,
    accumulate: int = 1,
    checkpoint_activations: bool = False,
    json: bool = False,
) -> int:
    """List the named configurations, show every field of one beside the paper, or reckon its memory.

    The number of parameters excludes prediction heads, as in the paper; expert_parameters counts the first
    L1 layers. No preset needs its weights divided among GPUs (FSDP): they, their gradients and AdamW's
    moments take 9 GB at most.

    Args:
        name: the preset to show in full. Default: a table of all presets.
        memory: show the memory of a training step on each device, and which GPUs it fits on.
        devices: with --memory: the number of GPUs among which the batch is divided.
        accumulate: with --memory: the parts that a step is computed in.
        checkpoint_activations: with --memory: activations are computed again in the backward pass.
        json: print one JSON document to standard output.
    """
    from vab.presets import PRESETS, paper_says, preset, table_8

    chosen = [preset(name)] if name is not None else list(PRESETS.values())

    if memory:
        return _memory(chosen, Compute("cpu", devices, accumulate, checkpoint_activations), json)

    from vab.models.vab import parameter_counts

    documents = [asdict(one) | parameter_counts(one.model) for one in chosen]
    if name:
        paper = paper_says(name)
        lines = [(field, str(value), paper.get(field, "")) for field, value in _fields(documents[0])]
        text = (
            table(("field", "here", "the paper"), lines)
            if paper
            else table(("field", ""), [line[:2] for line in lines])
        )
        print_result(documents[0] | {"table_8": table_8(name), "paper": paper}, text, json)
        return 0
    rows = [
        (
            one.name,
            f"{document['parameters'] / 1e6:.1f} M",
            f"{one.model.num_layers} x {one.model.hidden_dim}",
            one.model.codec,
            one.model.vision,
            one.note,
        )
        for one, document in zip(chosen, documents, strict=True)
    ]
    header = ("preset", "parameters", "layers", "codec", "image encoder", "note")
    print_result({"presets": documents}, table(header, rows), json)
    return 0


def _memory(chosen: Sequence[Preset], compute: Compute, json: bool) -> int:
    """Show the memory of a training step of each preset."""
    check_config(compute)
    from vab.models.memory import training_memory

    found = {one.name: training_memory(one, compute) for one in chosen}
    rows = []
    for one in chosen:
        need = found[one.name]
        parts = [f"{value / 1e9:.1f}" for value in (*asdict(need).values(), need.total)]
        fits = f"{need.cards[0]} GB" if need.cards else "none"
        rows.append((one.name, f"{one.train.batch_size}", *parts, fits))
    header = ("preset", "batch", "weights", "gradients", "AdamW", "EMA", "activations", "GB", "smallest GPU")
    documents = {
        name: asdict(need) | {"total": need.total, "cards": need.cards} for name, need in found.items()
    }
    print_result({"compute": asdict(compute), "memory": documents}, table(header, rows), json)
    return 0


def doctor(json: bool = False) -> int:
    """Check the installation, the device and available weights, and say how to fix what is missing.

    Args:
        json: print one JSON document to standard output.
    """
    from vab.cli.diagnostics import examine

    findings = examine()
    rows = [(f.part, f.state, f.found + (f"; {f.advice}" if f.advice else "")) for f in findings]
    print_result(
        {"findings": [asdict(finding) for finding in findings]}, table(("part", "state", ""), rows), json
    )
    return 0


def _fields(document: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (name, value) of each field, named like the options of vab pretrain: model.hidden_dim, 192."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
