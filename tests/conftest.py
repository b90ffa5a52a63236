"""What all tests share."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from helpers.films import as_urgent_as_others

ROOT = Path(__file__).resolve().parents[1]
BROWSER_SECONDS = 200  # for one test; less than pytest's own limit, which cannot end a wait for the browser

# A slow or busy machine is no fault of the code: examples may take any time.
settings.register_profile("vab", deadline=None)
settings.load_profile("vab")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for a user, such as how fast bfloat16 is here, is not read, and not written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ready_processes() -> Iterator[None]:
    """Processes that are forked have more imported than a run's own: the tests start a hundred of them."""
    with pytest.MonkeyPatch.context() as patch:
        if processes := sys.modules.get("vab.utils.processes"):
            more = ["timm", "tyro", "torch.fx.experimental.symbolic_shapes", "vab.inference.pipeline"]
            patch.setattr(processes, "PRELOADED", [*processes.PRELOADED, *more])
        yield


@pytest.fixture(autouse=True)
def no_test_is_real_time() -> Iterator[None]:
    """A test that encoded AV1 leaves a real-time process, beside which nothing else gets on."""
    yield
    as_urgent_as_others()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real sounds, photos and clips: ``$VAB_DATA``, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("VAB_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "clips.csv").is_file():
        pytest.skip(f"no real data in {folder} (set VAB_DATA to its folder)")
    return folder


@pytest.fixture(scope="session")
def codec() -> Any:
    """A real codec, tiny and with random weights; no test changes it."""
    from helpers.extraction import small_codec

    return small_codec()


@pytest.fixture(scope="session")
def vision() -> Any:
    """The image encoder that ships with vab-tiny; no test changes it."""
    from vab.vision import load_vision

    return load_vision("efficientnet-lite0")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for PyTorch: sums in another order have other last bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model of the least size, of this module's own."""
    from helpers.tiny import write_model

    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def chromium_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A command that starts Chromium so that it hangs nothing but itself; its process id is in a file beside.

    Chromium gives the threads that play sound real-time priority where it may. One of them running wild would
    hold a processor for good, so the browser is nice, cannot raise its priority, and ends with its parent.
    """
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    command = tmp_path_factory.mktemp("chromium") / "chromium"
    words = ["nice", "-n", "5"]
    if setpriv := shutil.which("setpriv"):
        words += [setpriv, "--pdeathsig=KILL"]
        if os.geteuid() == 0:
            words += ["--bounding-set=-sys_nice", "--inh-caps=-sys_nice"]
    script = f'#!/bin/sh\necho $$ > "{command}.pid"\nexec {shlex.join([*words, path])} "$@"\n'
    command.write_text(script, encoding="utf-8")
    command.chmod(0o755)
    return command


def kill_chromium(command: Path) -> None:
    """Kill the browser that ``command`` started last, with all its processes."""
    with suppress(FileNotFoundError, ProcessLookupError):
        os.killpg(int(Path(f"{command}.pid").read_text(encoding="utf-8")), signal.SIGKILL)


@contextmanager
def killed_after(seconds: float, command: Path) -> Iterator[None]:
    """Kill the browser if the body takes longer: what the body asked of it then fails."""
    watchdog = threading.Timer(seconds, kill_chromium, [command])
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


@pytest.fixture(scope="module")
def chromium(chromium_command: Path) -> Iterator[Any]:
    """A real browser with a pretended camera, which plays sound, unheard, without a click by a visitor."""
    api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    options += ["--mute-audio", "--disable-audio-output"]
    options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(
                executable_path=chromium_command, args=options, timeout=60_000
            )
        except api.Error as error:
            kill_chromium(chromium_command)
            pytest.skip(f"Chromium cannot be started here: {str(error).splitlines()[0]}")
        try:
            yield started
        finally:
            with suppress(api.Error), killed_after(20, chromium_command):
                started.close()
            kill_chromium(chromium_command)


@pytest.fixture
def browser(chromium: Any, chromium_command: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Its pages are closed after each test, or they would play on beside the next one.

    A test may have it for BROWSER_SECONDS, or for the seconds it asks for by an indirect parameter.
    """
    with killed_after(getattr(request, "param", BROWSER_SECONDS), chromium_command):
        yield chromium
        for context in chromium.contexts:
            context.close()
