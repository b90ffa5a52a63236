"""What all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser with a pretended camera, which plays sound without being asked by a visitor."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=path, args=options, timeout=60_000)
        except api.Error as error:
            pytest.skip(f"{path} cannot be started here: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """Its pages are closed after each test, or they would play on beside the next one."""
    yield chromium
    for context in chromium.contexts:
        context.close()
