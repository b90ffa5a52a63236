"""Printing for the command line: results as JSON or text on standard output, log lines on standard error."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any

from vab.errors import SettingError
from vab.utils.world import World


def never_fail() -> None:
    """Let names be printed that the terminal's encoding does not have, as escapes instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fail(message: str, as_json: bool, together: bool = False) -> int:
    """Print the one-line error of a bad call; returns the exit code.

    ``together``: of the processes that torchrun or srun has started on a machine for this one call the first
    speaks, since it is bad in all of them.
    """
    if not together or _world().local_rank == 0:
        lines = [
            printable(line) for line in f"vab: {message}".split("\n")
        ]  # a manifest's mistakes are several
        print("\n".join(lines), file=sys.stderr)
        if as_json:
            print(json.dumps({"error": message}))
    return 2


def print_result(document: Any, text: str, as_json: bool, together: bool = False) -> None:
    """Print a JSON document for machines or ``text`` for people, flushed: a server goes on after it.

    ``together``: one of the processes that torchrun or srun has started for this call speaks, the first.
    """
    if not together or _world().rank == 0:
        print(json.dumps(document, indent=1) if as_json else text, flush=True)


def say(line: str) -> None:
    """Print one line for people to standard output, as soon as it is known."""
    print(printable(line), flush=True)


def log(line: str) -> None:
    """Print one line for people to standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text with escapes in place of what would break its line, and of bytes that are not UTF-8."""
    odd = {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")}
    for letter in odd:
        text = text.replace(letter, _escape(letter))
    return text


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name, as Python holds it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def _world() -> World:
    try:
        return World.from_environment()
    except SettingError:  # the one that is just being told
        return World()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns of text; the last column is not padded."""
    lines = [[printable(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header) - 1)]
    return "\n".join(
        "  ".join(
            [*(f"{cell:{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )
