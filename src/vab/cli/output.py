"""What verbs print: a JSON document or text for people, and errors in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def fail(message: str, as_json: bool) -> int:
    """Say why nothing was done; returns the exit code."""
    print(f"vab: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message}))
    return 2


def show(document: Any, text: str, as_json: bool) -> None:
    """Print the document for machines, or the text for people, at once: a server goes on after it."""
    print(json.dumps(document, indent=1) if as_json else text, flush=True)


def tell(line: str) -> None:
    """One line for people, on standard error."""
    print(line, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text; the last one is as wide as it likes."""
    lines = [header, *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(header) - 1)]
    return "\n".join(
        "  ".join(
            [*(f"{cell:{width}}" for cell, width in zip(line, widths, strict=False)), line[-1]]
        ).rstrip()
        for line in lines
    )
