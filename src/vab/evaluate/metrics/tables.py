"""Markdown tables of our results beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vab.evaluate.metrics.statistics import Interval
from vab.evaluate.paper import (
    CLASSIFICATION,
    CLASSIFICATION_TITLES,
    FINE_TUNED,
    GENERATION,
    MULTI_LABEL,
    RETRIEVAL,
    RETRIEVAL_SIZES,
    RETRIEVAL_TITLES,
    WAYS,
    ClassificationBenchmark,
    Inputs,
    RetrievalBenchmark,
    RetrievalRow,
    Way,
)

COLUMNS: tuple[Inputs, Inputs, Inputs] = ("av", "v", "a")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    # a bar in a name would start a new cell
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def retrieval_beside_paper(
    benchmark: RetrievalBenchmark, system: str, clips: int, recall: Mapping[Way, Sequence[Interval]]
) -> str:
    """Columns of Table 3 for one benchmark as Markdown: the paper's rows, and ours (R@1, 5, 10 both ways)."""
    # the paper's systems in its order, each with both ways in one row
    rows = []
    for name in dict.fromkeys(row.system for row in _retrieval_rows(benchmark)):
        by_way = {row.way: row for row in _retrieval_rows(benchmark) if row.system == name}
        numbers = [f"{number:.1f}" for way in WAYS for number in by_way[way].recall[benchmark]]
        rows.append([name, *numbers, by_way[WAYS[0]].source])
    rows.append([system, *(each.percent() for way in WAYS for each in recall[way]), f"here, N = {clips:,}"])
    header = ["system", *(f"{way} R@{k}" for way in ("V → A", "A → V") for k in (1, 5, 10)), "source"]
    size = RETRIEVAL_SIZES.get(benchmark)
    title = RETRIEVAL_TITLES[benchmark]
    note = f"CAV-MAE's list has {size:,} clips. {FINE_TUNED}" if size else "VAB is zero-shot here."
    return f"{title}, R@k in %\n\n{markdown(header, rows)}\n\nHere N = {clips:,}. {note}"


def classification_beside_paper(
    benchmark: ClassificationBenchmark, inputs: Inputs, system: str, clips: int, measured: Interval
) -> str:
    """One column of Table 4 or 5 as Markdown, with Table 6 where it has it: the paper's rows, and ours."""
    # the comparisons with others, not the ablations
    rows = []
    for row in CLASSIFICATION:
        score = row.scores.get(benchmark, (None, None, None))[COLUMNS.index(inputs)]
        if row.source in ("Table 4", "Table 5", "Table 6") and score is not None:
            rows.append([row.system, f"{score:.1f}", row.source])
    rows.append([system, measured.percent(), f"here, N = {clips:,}"])
    measure = "mAP" if benchmark in MULTI_LABEL else "accuracy"
    column = {"av": "V+A", "v": "V", "a": "A"}[inputs]
    title = f"{CLASSIFICATION_TITLES[benchmark]}, from {column}"
    return f"{title}, in %\n\n{markdown(('system', measure, 'source'), rows)}"


def generation_beside_paper(
    system: str, clips: int, seconds: float | None, fad: Interval | None, kld: Interval | None
) -> str:
    """Tables 1 and 15 as Markdown: the paper's rows, and ours (None: not measured)."""
    rows = []
    for row in GENERATION:
        numbers = (row.fad, row.kld, row.seconds)
        rows.append([row.system, *("" if n is None else f"{n:g}" for n in numbers), row.source])
    # our seconds are measured by `vab bench`, not here
    ours = ["not measured" if each is None else each.plain() for each in (fad, kld)]
    long = "" if seconds is None else f", {seconds:g} s"
    rows.append([system, *ours, "", f"here, N = {clips:,}{long}"])
    note = "The paper has 15,546 clips of 10 s of VGGSound's test set; FAD depends on how many and which."
    return f"{markdown(('system', 'FAD', 'KLD', 'seconds a clip', 'source'), rows)}\n\n{note}"


def _retrieval_rows(benchmark: RetrievalBenchmark) -> list[RetrievalRow]:
    """Rows to set beside ours: Table 3 and the system after the paper, not the ablations."""
    return [r for r in RETRIEVAL if benchmark in r.recall and r.source not in ("Table 10", "Table 14")]
