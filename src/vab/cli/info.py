"""vab models, vab presets, vab doctor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.output import show, table


def models(
    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DIR...]")] = (
        Path("."),
    ),
    json: bool = False,
) -> int:
    """Show the models there are: bundled, in folders, in the Hub's cache, and those nobody has published.

    Args:
        folders: where to look for model directories, up to two levels down.
        json: one JSON document on standard output.
    """
    from vab.models.hub import known_models

    known = known_models(folders)
    rows = [(m.name, m.state, f"{m.bytes / 1e6:.1f} MB" if m.bytes else "", m.note) for m in known]
    document = [asdict(model) | {"path": model.path and str(model.path)} for model in known]
    show({"models": document}, table(("model", "state", "size", "note"), rows), json)
    return 0


def presets(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None,
    json: bool = False,
) -> int:
    """Show the named configurations, or every field of one.

    ``parameters`` are the learned numbers without prediction heads, as the paper counts;
    ``expert_parameters`` those of the first L1 layers.

    Args:
        name: the preset to show in full. Left out: a table of all.
        json: one JSON document on standard output.
    """
    from vab.presets import PRESETS, preset, table_8

    chosen = [preset(name)] if name is not None else list(PRESETS.values())

    from vab.models.vab import parameter_counts

    documents = [asdict(one) | parameter_counts(one.model) for one in chosen]
    if name:
        paper = table_8(name)
        lines = [(field, str(value), paper.get(field, "")) for field, value in _fields(documents[0])]
        text = (
            table(("field", "here", "paper's Table 8"), lines)
            if paper
            else table(("field", ""), [line[:2] for line in lines])
        )
        show(documents[0] | {"table_8": paper}, text, json)
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
    show({"presets": documents}, table(header, rows), json)
    return 0


def doctor(json: bool = False) -> int:
    """Show what is installed, which device and weights are at hand, and what to do about what is missing.

    Args:
        json: one JSON document on standard output.
    """
    from vab.cli.diagnostics import examine

    findings = examine()
    rows = [(f.part, f.state, f.found + (f"; {f.advice}" if f.advice else "")) for f in findings]
    show({"findings": [asdict(finding) for finding in findings]}, table(("part", "state", ""), rows), json)
    return 0


def _fields(document: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """``model.hidden_dim``, 192 for each field, named as the options of ``vab pretrain`` are."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
