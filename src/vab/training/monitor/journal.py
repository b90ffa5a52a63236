"""What a run says of itself while it goes on: the interface of a logger, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from vab.errors import naming
from vab.training.checkpoint import cut_metrics


class Logger(Protocol):
    """Who wants to hear of a run: Weights & Biases, MLflow, a list. Called in the first process alone."""

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Numbers by name after ``step`` steps; the split is train, dev or samples."""

    def sound(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        """A sound [S] in -1 to 1, at ``rate`` Hz, generated for the clip ``name``."""

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture [H,W,3] of the clip ``name``: the mel spectrogram of its sound."""


class Lines:
    """metrics.jsonl: a line of JSON for each call. It has no place for sounds and pictures."""

    def __init__(self, path: Path, stream: IO[str]) -> None:
        self.path, self.stream = path, stream

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Append a line, and see that it is there."""
        with naming(self.path):
            self.stream.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            self.stream.flush()

    def sound(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        """Nothing."""

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Nothing."""


class Board:
    """TensorBoard's events."""

    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """A curve for each name, with the split behind it."""
        for name, value in values.items():
            self.writer.add_scalar(f"{name}/{split}", value, step)

    def sound(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        """A sound to listen to."""
        self.writer.add_audio(f"sound/{name}", waveform, step, sample_rate=rate)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture beside it."""
        self.writer.add_image(f"mel/{name}", pixels, step, dataformats="HWC")


@contextmanager
def journal(
    folder: Path, step: int, settings: Mapping[str, Any], loggers: Sequence[Logger] = ()
) -> Iterator[list[Logger]]:
    """Yield the loggers of a run that goes on at ``step``: those of its folder, then the caller's own.

    Lines after ``step`` are removed. TensorBoard gets ``settings`` as text.
    """
    path = folder / "metrics.jsonl"
    cut_metrics(path, step)
    with (
        _silent_threads(),
        path.open("a") as stream,
        SummaryWriter(str(folder), purge_step=step + 1) as board,
    ):
        # Indented by four: a block of code in TensorBoard's Markdown.
        text = json.dumps(settings, indent=1)
        board.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), step)
        yield [Lines(path, stream), Board(board), *loggers]


@contextmanager
def _silent_threads() -> Iterator[None]:
    """Keep tracebacks of TensorBoard's thread on a full disk from the terminal: its error comes here too."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before
