"""The callable to which work on many files reports its progress to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# index of the file, number of files, its path, name of the stage, how much of the stage is done, of how much
Progress = Callable[[int, int, Path, str, int, int], None]
