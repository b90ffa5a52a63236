"""The checks as a part of the page: every number measured, not only whether it is good enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vab.bench.gpu.checks import CHECKS, Row, run_check
from vab.bench.gpu.runner import report
from vab.utils.device import pick_device


def correctness(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Correctness: the device beside the CPU's float32, TF32 off."""
    where = pick_device(device)
    rows: list[Row] = []
    failed: list[str] = []
    for name in CHECKS:
        try:
            found = run_check(name, where, small)
        except Exception as error:  # one check that cannot be done must not keep the others from it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            found = [{"check": name, "met": False, "note": reason[:300]}]
        rows += found
        failed += [f"{r['check']} ({r.get('numbers', 'not done')})" for r in found if r["met"] is False]
        report(rows, [], failed)
    lines = [
        "Where the tokens of a clip depend on those beside it, a product of matrices chose another order of "
        "adding for another number of rows; the note names the first layer. One clip a pass restores them: "
        "alone, a clip has the same tokens each time.",
    ]
    return {"rows": rows, "lines": lines, "failed": failed}
