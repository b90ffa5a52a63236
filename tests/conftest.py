"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A slow or busy machine is no fault of the code: examples may take any time.
settings.register_profile("vab", deadline=None)
settings.load_profile("vab")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real sounds, photos and clips: ``$VAB_DATA``, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("VAB_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "clips.csv").is_file():
        pytest.skip(f"no real data in {folder} (set VAB_DATA to its folder)")
    return folder
