"""An ablation for people: the paper's column beside ours as Markdown, and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vab.evaluate.ablation.run import Outcome, Result
from vab.evaluate.ablation.tables import FAD, KLD
from vab.evaluate.metrics.figures import as_png, new_figure
from vab.evaluate.metrics.statistics import EvaluationError
from vab.evaluate.metrics.tables import markdown
from vab.evaluate.paper import RETRIEVAL_SIZES
from vab.utils import count_of
from vab.utils.files import write_whole

LOWER_IS_BETTER = ("FD-", "KL-", "MEL-", "DeSync")  # how the keys of these metrics begin
SUBSTITUTES = {"FD-": FAD, "KL-": KLD}  # the paper's metric beside ours where its own is not measured
MAX_PANELS = 6
MAX_NAMED_CLIPS = 5  # of those left out


def write(result: Result, folder: Path, log: Callable[[str], None] = print) -> list[Path]:
    """``<name>.md``, ``.json`` and, with matplotlib, ``.png`` in ``folder``; the paths."""
    name = result.ablation.name
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{name}.md": as_markdown(result).encode() + b"\n",
        f"{name}.json": json.dumps(result.document(), indent=1).encode() + b"\n",
    }
    # without matplotlib there is no plot, but still the tables
    try:
        files[f"{name}.png"] = plot(result)
    except EvaluationError as error:
        log(str(error))
    for file, data in files.items():
        write_whole(folder / file, data)
    return [folder / file for file in files]


def _paper_keys(result: Result) -> list[str]:
    """The metrics that the paper prints."""
    return list(dict.fromkeys(key for each in result.outcomes for key in each.row.paper))


def metric_keys(result: Result) -> list[str]:
    """The metrics we measured, with the paper's own first."""
    ours = dict.fromkeys(key for each in result.outcomes for key in each.metrics)
    paper = _paper_keys(result)
    return [key for key in paper if key in ours] + [key for key in ours if key not in paper]


def counterpart(result: Result, key: str) -> str | None:
    """The paper's metric to set beside ours: the same one, else FAD for another FD and KLD for another KL."""
    paper = _paper_keys(result)
    if key in paper:
        return key if comparable(result, key) else None
    return next(
        (name for start, name in SUBSTITUTES.items() if key.startswith(start) and name in paper), None
    )


def comparable(result: Result, key: str) -> bool:
    """True if the paper's number may stand beside ours: R@k falls with the number of candidates."""
    # all rows must be of as many clips as the paper's
    counts = {each.clips[key] for each in result.outcomes if key in each.clips}
    return not key.startswith("R@") or counts <= {RETRIEVAL_SIZES["vggsound"]}


def _cell(outcome: Outcome, key: str, side: str) -> str:
    """A metric of a row, ours or the paper's; "" where it was not measured or printed."""
    if side == "paper":
        return f"{outcome.row.paper[key]:g}" if key in outcome.row.paper else ""
    return outcome.metrics[key].plain() if key in outcome.metrics else ""


def as_markdown(result: Result) -> str:
    """The table, which row is best there and here, and what it was made from."""
    ablation = result.ablation
    settings = result.settings
    # 1. Columns: the paper's metrics with ours beside each, then those that the paper has not.
    paper = [key for key in _paper_keys(result) if comparable(result, key)]
    ours = metric_keys(result)
    columns = [(key, side) for key in paper for side in ("paper", "here") if side == "paper" or key in ours]
    columns += [(key, "here") for key in ours if key not in paper]
    # 2. A row for each outcome.
    rows = [[each.row.name, *(_cell(each, *column) for column in columns)] for each in result.outcomes]
    header = ["", *(f"{_title(key)}, {side}" for key, side in columns)]
    # 3. What the numbers stand on.
    counts = sorted({count for each in result.outcomes for count in each.clips.values()})
    clips = " to ".join(f"{count:,}" for count in dict.fromkeys((*counts[:1], *counts[-1:])))
    stores = ", ".join(str(path) for path in settings.stores)
    real = settings.reference or "the store's own sounds through the codec, so without what the codec loses"
    parts = [
        f"# {ablation.title}",
        f"Paper: {ablation.source}. Here: {result.base}, split {settings.split} of {stores}, N = {clips}. "
        "Brackets: 95 % bootstrap intervals.",
        markdown(header, rows),
    ]
    if trained := [f"{each.row.name}: {_numbers(each.epochs)}" for each in result.outcomes if each.epochs]:
        parts.append(f"Epochs: {'; '.join(trained)}.")
    # 4. Which row is best, and what the reader must know to compare.
    best = [line for key in ours if (line := _best(result, key))]
    parts += ["\n".join(f"* {line}" for line in best)] if best else []
    parts += [f"Not run: {each.row.name}. {each.reason}" for each in result.outcomes if each.reason]
    for each in result.outcomes:
        if each.left_out:
            reasons = "; ".join(f"{fault.id}: {fault.reason}" for fault in each.left_out[:MAX_NAMED_CLIPS])
            more = len(each.left_out) - MAX_NAMED_CLIPS
            rest = f" and {more} more, named in the JSON" if more > 0 else ""
            parts.append(
                f"Left out of {each.row.name}, {count_of(len(each.left_out), 'clip')}: {reasons}{rest}"
            )
    if absent := dict.fromkeys(name for each in result.outcomes for name in each.absent):
        parts.append(f"Not measured with {', '.join(absent)}: the JSON says why.")
    if any(key.startswith("R@") and not comparable(result, key) for key in ours):
        size = RETRIEVAL_SIZES["vggsound"]
        parts.append(f"The paper's R@k are of {size:,} clips, and cannot be held against those of others.")
    if any(key.startswith("FD-") for key in ours):
        parts.append(f"Sounds are held against {real}.")
    return "\n\n".join(parts)


def _numbers(epochs: Mapping[str, float]) -> str:
    """The epochs of each training, by its last objective: contrastive 29, masked 9."""
    return ", ".join(f"{name.rpartition('_')[2]} {number:g}" for name, number in epochs.items())


def _best(result: Result, key: str) -> str:
    """A sentence that names the best row in the paper and here; "" if the paper has no such metric."""
    there = counterpart(result, key)
    if there is None:
        return ""
    # row -> number, in the paper and here; one row alone is no comparison
    here = {each.row.name: each.metrics[key].value for each in result.outcomes if key in each.metrics}
    paper = {each.row.name: each.row.paper[there] for each in result.outcomes if there in each.row.paper}
    if len(here) < 2 or len(paper) < 2:
        return ""
    # both metrics have the same direction
    choose = min if key.startswith(LOWER_IS_BETTER) else max
    return (
        f"{_title(there)} is best with {choose(paper, key=paper.__getitem__)} in the paper, "
        f"{_title(key)} with {choose(here, key=here.__getitem__)} here"
    )


def _title(key: str) -> str:
    return {FAD: "FAD", KLD: "KLD"}.get(key, key)


def plot(result: Result) -> bytes:
    """A PNG: a panel for each of our measures, with intervals, and the paper's on an axis of its own.

    ``EvaluationError`` without matplotlib, which comes with ``vab[eval]``, or with nothing to show.
    """
    # metrics with a counterpart in the paper say most
    ours = metric_keys(result)
    keys = ([key for key in ours if counterpart(result, key)] or ours)[:MAX_PANELS]
    if not keys:
        raise EvaluationError("nothing was measured, so there is nothing to plot")
    figure = new_figure(4.2 * len(keys), 3.6)
    names = [each.row.name for each in result.outcomes]
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        _panel(axis, result, key, names)
    figure.suptitle(result.ablation.title)
    return as_png(figure)


def _panel(axis: Any, result: Result, key: str, names: list[str]) -> None:
    measured = {n: each.metrics[key] for n, each in enumerate(result.outcomes) if key in each.metrics}
    values = [each.value for each in measured.values()]
    # the bars reach from the value down and up to the ends of its interval
    below = [max(0.0, each.value - each.low) for each in measured.values()]
    above = [max(0.0, each.high - each.value) for each in measured.values()]
    axis.errorbar(list(measured), values, yerr=[below, above], marker="o", capsize=3, color="tab:blue")
    axis.set_ylabel(f"{_title(key)}, here", color="tab:blue")
    axis.set_xticks(range(len(names)), names)
    there = counterpart(result, key)
    # the paper's numbers are of another model: an axis of their own
    if there is not None:
        other = axis.twinx()
        places = [n for n, each in enumerate(result.outcomes) if there in each.row.paper]
        numbers = [result.outcomes[n].row.paper[there] for n in places]
        other.plot(places, numbers, marker="s", linestyle="--", color="tab:orange")
        other.set_ylabel(f"{_title(there)}, paper", color="tab:orange")
