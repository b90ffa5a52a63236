"""Prints pip constraints that hold every direct dependency of pyproject.toml at its lowest version.

The tools of the extra ``dev`` are left out: nobody needs them to use the package.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<lowest>[\w.]+)(?:,[<!]=?[\w.]+)*")


def lowest(requirement: str) -> str:
    """``av>=17.1`` becomes ``av==17.1``.

    Raises:
        SystemExit: a requirement without a lower bound, or in a form that is not read here.
    """
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise SystemExit(f"{PYPROJECT}: {requirement!r} is not of the form name>=version")
    return f"{match['name']}=={match['lowest']}"


def main() -> None:
    """Print one line per dependency of the package and of the extras that its users install."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    wanted = {line for extra, lines in groups.items() if extra != "dev" for line in lines}
    print(*sorted(map(lowest, wanted)), sep="\n")


if __name__ == "__main__":
    main()
