"""The page of one run on a device: what it ran on, and each part with its table. Markdown and JSON."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vab.utils.files import write_whole

Status = Literal["waiting", "running", "done", "failed", "took too long", "not reached"]


@dataclass
class Section:
    """One part of a run, as far as it has come."""

    name: str
    limit: float  # seconds that it may take
    title: str = ""
    status: Status = "waiting"
    seconds: float = 0.0  # that it took
    error: str = ""  # why it failed, in one line
    rows: list[dict[str, Any]] = field(default_factory=list)  # of its table
    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # checks that were not met

    @property
    def good(self) -> bool:
        """It is done, and every check was met."""
        return self.status == "done" and not self.failed


@dataclass
class Page:
    """``<kind>_<card>_<date>`` in ``folder``, as .md and .json."""

    kind: str  # gpu or gpu-train
    folder: Path
    about: dict[str, Any]  # card, date, command, and whatever else the numbers stand for
    sections: list[Section]

    @property
    def paths(self) -> list[Path]:
        """Paths of the page: Markdown, JSON."""
        card = re.sub(r"[^a-z0-9]+", "-", self.about["card"].lower()).strip("-")
        return [
            self.folder / f"{self.kind}_{card}_{self.about['date'][:10]}{end}" for end in (".md", ".json")
        ]

    def write(self) -> None:
        """Write both files anew, each as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"kind": self.kind, "about": self.about, "parts": [asdict(s) for s in self.sections]}
        for path, text in zip(self.paths, (self.markdown(), json.dumps(document, indent=1)), strict=True):
            write_whole(path, f"{text}\n".encode())

    def markdown(self) -> str:
        """The whole page."""
        # 1. What became of each part.
        summary: list[dict[str, Any]] = []
        for s in self.sections:
            state = f"{s.status}: {s.error}" if s.error else s.status
            if s.failed:
                state += f"; {len(s.failed)} checks not met"
            summary.append(
                {"part": s.name, "what became of it": state, "seconds": s.seconds, "limit": s.limit}
            )
        parts = [
            f"# {self.kind} on {self.about['card']}",
            "\n".join(f"- {name}: {_cell(value)}" for name, value in self.about.items()),
            *([_table(summary)] if summary else []),
        ]
        # 2. Each part with what it has, also if it was ended.
        for s in self.sections:
            parts.append(f"## {s.title or s.name}")
            if s.status != "done":
                note = f"This part is not whole: {s.status}" + (f": {s.error}" if s.error else "")
                parts.append(note + f" ({s.seconds:.0f} s of {s.limit:g}).")
            if s.failed:
                parts.append("Checks not met:\n\n" + "\n".join(f"- {name}" for name in s.failed))
            if s.rows:
                parts.append(_table(s.rows))
            if s.lines:
                parts.append("\n".join(f"- {line}" for line in s.lines))
        return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns in the order in which the rows name them; a row without one has an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
