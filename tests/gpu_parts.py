"""Parts of a page that work, fail and hang: test_gpu_page.py runs them in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vab.bench.gpu.runner import report


def works(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """A part that works.

    More about it.
    """
    (folder / "left.txt").write_text(f"{device} {small}")
    return {"rows": [{"speed": 1234.5, "met": True}, {"note": "x|y"}], "lines": ["a line"]}


def fails(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """A part that fails."""
    report([{"before": 1}])
    raise ValueError("no such\nthing")


def hangs(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """A part that hangs, and so does what it started."""
    child = subprocess.Popen(["sleep", "60"])
    report([{"child": child.pid}], ["it came this far"])
    time.sleep(60)
    return {}


def dies(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """A part whose process dies."""
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(3)


def unsure(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """A part of which a check is not met."""
    return {"failed": ["equal (float32)"]}
