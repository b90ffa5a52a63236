"""A progress bar on standard error, for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vab.cli.interrupt import check


@contextmanager
def file_progress() -> Iterator[Callable[[int, int, Path, str, int, int], None]]:
    """A function (file n, of, path, stage, done, in all) that moves a bar; silent where nobody looks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("reading the list", total=None)

        def move(number: int, of: int, path: Path, stage: str, done: int, total: int) -> None:
            check()
            text = f"{number + 1}/{of} {escape(path.name)}: {stage}"
            bar.update(task, description=text, completed=done, total=total)

        yield move
