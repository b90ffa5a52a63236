"""The callables to which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# Of many files: index of one, number of files, its path, its stage, how much of that is done, of how much.
FileProgress = Callable[[int, int, Path, str, int, int], None]
# Of one file: stage, how much of it is done, of how much.
StageProgress = Callable[[str, int, int], None]
