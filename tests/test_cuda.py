"""A GPU beside the CPU: ``vab.bench.gpu.checks`` at full size; ``VAB_TEST_DEVICE=cpu``: at a small one.

Nothing here needs a video library: on a bare machine, ``pytest --noconftest -m cuda tests/test_cuda.py``.
"""

from __future__ import annotations

import os

import pytest
import torch

from vab.bench.gpu.checks import CHECKS, run_check

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def device() -> torch.device:
    """CUDA, or what ``$VAB_TEST_DEVICE`` names."""
    name = os.environ.get("VAB_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA here (VAB_TEST_DEVICE=cpu compares the CPU with itself)")
    return torch.device(name)


@pytest.mark.parametrize("name", CHECKS)
def test_as_on_the_cpu(name: str, device: torch.device) -> None:
    rows = run_check(name, device, small=device.type == "cpu")
    assert rows and any(row["met"] is not None for row in rows)
    assert [row for row in rows if row["met"] is False] == []
