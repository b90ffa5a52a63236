"""What a run says of itself while it goes on: metrics.jsonl and TensorBoard's events."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from vab.errors import naming
from vab.training.checkpoint import cut_metrics

Write = Callable[[int, str, dict[str, float]], None]  # step, split, name -> value


@contextmanager
def journal(folder: Path, step: int) -> Iterator[Write]:
    """Yield a function that appends one line of metrics; lines after ``step``, resumed from, are removed."""
    path = folder / "metrics.jsonl"
    cut_metrics(path, step)
    with (
        _silent_threads(),
        path.open("a") as stream,
        SummaryWriter(str(folder), purge_step=step + 1) as board,
    ):

        def write(step: int, split: str, values: dict[str, float]) -> None:
            with naming(path):
                stream.write(json.dumps({"step": step, "split": split, **values}) + "\n")
                stream.flush()
            for name, value in values.items():
                board.add_scalar(f"{name}/{split}", value, step)

        yield write


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Keep tracebacks of TensorBoard's thread on a full disk from the terminal: its error comes here too."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before
