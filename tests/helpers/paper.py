"""The tables of the paper, digit by digit as they are printed."""

from __future__ import annotations

import json
from pathlib import Path

TABLES: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "paper_tables.json").read_text(encoding="utf-8")
)  # number of the table -> its lines, cells between "|"
LINES = [line for lines in TABLES.values() for line in lines]
