"""The errors that are meant for people, and what to say of any other one. Nothing here imports the package.

Whatever a person can mend is a ``VABError``: a file, a setting, a model, a run. The command line turns it
into one line (``for_people``) in one place; every other exception is a bug and shows with its traceback.
Each child stands where its subject lives (``media``, ``codec``, ``store`` ...); here are those of no one
subject.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 200  # characters of a line that another library wrote


class VABError(Exception):
    """Something that a person can mend. The message says what was wrong with which input, and is shown."""


class SettingError(VABError, ValueError):
    """An option, an argument or a field of a configuration that makes no sense, alone or beside others."""


class TrainError(VABError, RuntimeError):
    """A training run that cannot start or go on; the message says why and what to do."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, in one line: for the brackets of a message of our own.

    The system's own words if it has them (``strerror``), else the first line with text, of at most
    ``LONGEST`` characters; the name of the class if there is none. A line that ends in a colon with another
    below it is a heading, as torch writes above the weights that do not fit, and is skipped.
    """
    if _out_of_memory(error):
        return "not enough memory"
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    heading = lines[0].endswith(":") and len(lines) > 1
    return lines[heading][:LONGEST]


def for_people(error: BaseException) -> str | None:
    """The message to show a person; None for a bug."""
    if isinstance(error, VABError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {first_line(error)}" if error.filename else first_line(error)
    if _out_of_memory(error):
        return "not enough memory; give it less at once, or a machine that has more"
    return None


def failure(path: str | Path, error: BaseException) -> str:
    """One line about an input that failed among many, which names it. A bug shows its class."""
    reason = for_people(error) or f"{type(error).__name__}: {first_line(error)}"
    line = " ".join(reason.split())
    return line if str(path) in line else f"{path}: {line}"


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of the system in here name ``path``: a full disk names no file, and a temporary name no use."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of Python and numpy, of torch on a GPU, or of torch on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
