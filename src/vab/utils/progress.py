"""Progress of long work: the callables it is reported to, and a bar of steps on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Of many files: index of one, number of files, its path, its stage, how much of that is done, of how much.
FileProgress = Callable[[int, int, Path, str, int, int], None]
# Of one file: stage, how much of it is done, of how much.
StageProgress = Callable[[str, int, int], None]


@contextmanager
def step_bar(title: str, total: int, done: int, show: bool = True) -> Iterator[Callable[[str], None]]:
    """A bar on standard error if that is a terminal, else nothing.

    The function it gives moves it on by a step, and takes what stands behind the title.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not (show and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda text: progress.update(task, advance=1, description=f"{title} {text}")
