"""Matplotlib figures that are drawn without a display and become PNG files."""

from __future__ import annotations

import io
from typing import Any

from vab.evaluate.metrics.statistics import EvaluationError


def new_figure(width: float, height: float) -> Any:
    """A figure of that size in inches. ``EvaluationError`` without matplotlib, which is in ``vab[eval]``."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError(f"no plot ({error}): pip install 'vab[eval]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def as_png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()
