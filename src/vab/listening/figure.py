"""Plot of preferences like the paper's Figure 4: the shares of the five grades for each pair of systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vab.evaluate.metrics.figures import as_png, new_figure
from vab.listening.results import Preference

TITLES = {"quality": "OVR (overall quality)", "relevance": "REL (visual relevance)"}
COLOURS = ("#1f5fbf", "#8fb4ea", "#d9d9d9", "#f5bd8b", "#d96b1e")
MIN_LABELLED_SHARE = 0.05  # narrower bars get no number


def plot(preferences: Sequence[Preference]) -> bytes:
    """A PNG: a panel for each question, a stacked bar for each pair of systems.

    ``EvaluationError`` without matplotlib, which comes with ``vab[eval]``.
    """
    # a panel for each question, as high as there are pairs
    questions = list(dict.fromkeys(each.question for each in preferences))
    pairs = len(preferences) // len(questions)
    figure = new_figure(4.8 * len(questions), 1.7 + 0.5 * pairs)
    axes = figure.subplots(1, len(questions), squeeze=False, sharey=True)[0]
    for axis, question in zip(axes, questions, strict=True):
        _panel(axis, question, [each for each in preferences if each.question == question])
    axes[0].invert_yaxis()  # shared by all axes: the first pair is on top
    first = preferences[0].first
    names = (
        f"strongly {first}",
        f"weakly {first}",
        "no preference",
        "weakly the other",
        "strongly the other",
    )
    handles, _ = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return as_png(figure)


def _panel(axis: Any, question: str, rows: Sequence[Preference]) -> None:
    names = [f"{each.first} vs {each.other}" for each in rows]
    # [pairs] shares so far, from 0 at the left to 1
    left = [0.0] * len(rows)
    for grade, colour in enumerate(COLOURS):
        shares = [each.counts[grade] / sum(each.counts) for each in rows]
        # each grade is stacked on those before it
        bars = axis.barh(names, shares, left=left, color=colour, edgecolor="white", label=f"{grade + 1}")
        labels = [f"{100 * share:.0f}" if share >= MIN_LABELLED_SHARE else "" for share in shares]
        axis.bar_label(
            bars, labels, label_type="center", fontsize=8, color="black" if 0 < grade < 4 else "white"
        )
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axis.set(title=TITLES[question], xlim=(0, 1), xlabel="% of answers")
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    axis.spines[["top", "right"]].set_visible(False)
