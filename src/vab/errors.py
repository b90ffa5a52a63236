"""Errors that are meant for people, and one-line messages for all others. Imports nothing of the package.

Whatever a person can mend is a ``VABError``: a file, a setting, a model, a run. The command line turns it
into one line (``for_people``) in one place; every other exception is a bug and shows with its traceback.
Each subclass is defined where its subject is (``media``, ``codecs``, ``data`` ...); those here belong to no
single subject.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# of torch, of the loader of shared libraries, of Python's threads
_NO_MEMORY = ("can't allocate memory", "failed to map segment", "annot allocate memory", "start new thread")
MAX_LINE_LENGTH = 200  # characters quoted of another library's message


class VABError(Exception):
    """Something that a person can mend. The message says what was wrong with which input, and is shown."""


class SettingError(VABError, ValueError):
    """An option, an argument or a field of a configuration that makes no sense, alone or beside others."""


class CodecError(VABError):
    """A codec cannot be loaded. The message is one line that says why and what to do."""


class TrainError(VABError, RuntimeError):
    """A training run that cannot start or go on; the message says why and what to do."""


def first_line(error: BaseException) -> str:
    """One line of another library's exception, for the brackets of a message of our own.

    The system's own words if it has them (``strerror``), else the first line with text, of at most
    ``MAX_LINE_LENGTH`` characters; the name of the class if there is none. A line that ends in a colon with
    another below it is a heading, as torch writes above the weights that do not fit, and is skipped.
    """
    if _out_of_memory(error):
        return "not enough memory"
    # Libraries in Rust tell their own places around the system's error.
    number = re.search(r"\(?os error (\d+)\)?", str(error))
    if number is not None:
        return os.strerror(int(number[1]))
    # Lines with text, without the indentation of libraries that print lists.
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    heading = lines[0].endswith(":") and len(lines) > 1
    return lines[heading][:MAX_LINE_LENGTH]


def for_people(error: BaseException) -> str | None:
    """The message to show a person; None if the error is a bug."""
    # Ours is written for people already; the system's has its own words, and the file if it knows one.
    if isinstance(error, VABError):
        return str(error)
    if _out_of_memory(error):
        return "not enough memory; give it less at once, or a machine that has more"
    if isinstance(error, FileExistsError) and error.filename and not error.filename2:  # no link to it
        return f"{error.filename}: is a file, so no folder can be made there; name another one"
    if isinstance(error, OSError):
        return f"{error.filename}: {first_line(error)}" if error.filename else first_line(error)
    return None


def failure(path: object, error: BaseException) -> str:
    """One line that names the one input that failed among many; for a bug it names the exception's class.

    ``path``: what is shown as its path or its URL.
    """
    reason = for_people(error) or f"{type(error).__name__}: {first_line(error)}"
    if "://" in str(path):
        reason = reason.replace(str(Path(str(path))), str(path))  # a path has one slash of them
    if str(path) not in reason:
        reason = f"{path}: {reason}"
    # On one line, but the name as it is: line breaks are part of some.
    return str(path).join(re.sub(r"\s+", " ", part) for part in reason.split(str(path)))


@contextmanager
def naming(path: str | Path, over: bool = True) -> Iterator[None]:
    """Make ``OSError``s of the block name ``path``; those of a full disk or a temporary file do not.

    ``over=False``: one that names a file already keeps it.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (error.filename is not None and not over):
            raise
        try:
            error.filename = str(path)
            error.filename2 = None
        except AttributeError:  # PyAV's errors of the system keep the name to themselves
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _out_of_memory(error: BaseException) -> bool:
    """True if memory ran out: in Python or numpy, in torch on a GPU, or in torch on the CPU."""
    # By the class's name, so that torch need not be imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in _NO_MEMORY)
