"""Progress bar on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vab.cli.interrupt import check
from vab.cli.output import printable
from vab.utils.progress import STAGE_LABELS, FileProgress


@contextmanager
def file_progress() -> Iterator[FileProgress]:
    """Yield a callback (index, number of files, path, stage, done, total); no bar without a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("reading the list", total=None)

        def move(number: int, num_files: int, path: Path, stage: str, done: int, total: int) -> None:
            check()
            label = STAGE_LABELS.get(stage, stage)
            text = f"{number + 1}/{num_files} {escape(printable(path.name))}: {label}"
            bar.update(task, description=text, completed=done, total=total)

        yield move
