"""Progress of long work: the callables it is reported to, and a bar of steps on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vab.errors import SettingError

if TYPE_CHECKING:
    from rich.progress import Progress

# Of many files: index of one, number of files, its path, its stage, how much of that is done, of how much.
FileProgress = Callable[[int, int, Path, str, int, int], None]
# Of one file: stage, how much of it is done, of how much.
StageProgress = Callable[[str, int, int], None]
STAGE_LABELS = {  # what a stage of generating is called for people; others are called by their names
    "decode_video": "reading the picture",
    "features": "looking at the picture",
    "motion": "reading what moves in the picture",
    "sampling": "making sound",
    "refining": "adding detail",
    "codec": "writing the sound",
}


@contextmanager
def step_bar(title: str, total: int, done: int, show: bool = True) -> Iterator[Callable[[str], None]]:
    """A bar on standard error if that is a terminal, else nothing.

    The function it gives moves it on by a step, and takes what stands behind the title.
    """
    with _bars(show) as progress:
        task = progress.add_task(title, total=total, completed=done)
        yield lambda text: progress.update(task, advance=1, description=f"{title} {text}")


@contextmanager
def count_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error if that is a terminal, else nothing.

    The function it gives takes how many are done, of how many, and what stands behind the title.
    """
    with _bars(transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total, text: progress.update(
            task, completed=done, total=total, description=f"{title} {text}"
        )


def _bars(show: bool = True, transient: bool = False) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not (show and sys.stderr.isatty())
    return Progress(*columns, console=Console(stderr=True), disable=quiet, transient=transient)


@contextmanager
def stage_progress(progress: StageProgress | bool | None) -> Iterator[StageProgress | None]:
    """What a caller asked for: a callable as it is, a bar on the terminal or in the notebook for True."""
    if not isinstance(progress, bool):
        if progress is not None and not callable(progress):
            raise SettingError(f"progress= is True, False or a callable, not {progress!r}")
        yield progress
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    seen = progress and (console.is_terminal or console.is_jupyter)  # no line break in a log
    with Progress(console=console, transient=True, disable=not seen) as bar:
        task = bar.add_task("reading")
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)


def report_part(
    progress: Callable[[int, int], None], index: int, num_parts: int, done: int, total: int
) -> None:
    """Report progress of one of several equal parts as progress of the whole."""
    progress(index * total + done, num_parts * total)


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to ``timings[stage]``, without that of other stages in the midst of it."""
    begin = time.perf_counter()
    others = sum(timings.values())
    yield
    others = sum(timings.values()) - others
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - begin - others
