"""Printing for the command line: results as JSON or text on standard output, log lines on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any


def fail(message: str, as_json: bool) -> int:
    """Print the one-line error of a bad call; returns the exit code."""
    if _first_process():
        print(f"vab: {message}", file=sys.stderr)
        if as_json:
            print(json.dumps({"error": message}))
    return 2


def print_result(document: Any, text: str, as_json: bool) -> None:
    """Print a JSON document for machines or ``text`` for people, flushed: a server goes on after it."""
    if _first_process():
        print(json.dumps(document, indent=1) if as_json else text, flush=True)


def log(line: str) -> None:
    """Print one line for people to standard error."""
    print(line, file=sys.stderr, flush=True)


def _first_process() -> bool:
    """False in the further processes of a run on several devices, which say the same."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align rows in columns of text; the last column is not padded."""
    lines = [header, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header) - 1)]
    return "\n".join(
        "  ".join(
            [*(f"{cell:{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )
