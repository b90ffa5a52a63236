"""The browser of the tests of the pages: it cannot take the machine from others, and it can be ended."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.films import as_urgent_as_others, write_film

PLAY = """async () => {
  const context = new AudioContext(), tone = context.createOscillator();
  tone.connect(context.destination);
  tone.start();
  await context.resume();
  for (let wait = 0; wait < 200 && context.currentTime < 0.3; wait++)
    await new Promise((done) => setTimeout(done, 50));
  return context.currentTime;
}"""


def members(group: int) -> list[Path]:
    """The processes of a process group, as folders of /proc."""
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [folder for folder in folders if (found := fields(folder)) and int(found[2]) == group]


def fields(folder: Path) -> list[str]:
    """What /proc tells of a process or thread, from its state on (field 3 of proc(5)); empty if it ended."""
    try:
        return (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("setpriv"), reason="needs Linux and setpriv")
def test_no_thread_of_it_is_real_time_even_while_it_plays(browser: Any, chromium_command: Path) -> None:
    page = browser.new_page()
    assert page.evaluate(PLAY) > 0.2, "the page did not play"
    group = int(Path(f"{chromium_command}.pid").read_text(encoding="utf-8"))
    threads = [thread for process in members(group) for thread in (process / "task").iterdir()]
    told = [found for thread in threads if (found := fields(thread))]
    assert len(told) > 20, "the walk saw hardly a thread: is it blind?"
    # fields 19 (nice) and 41 (policy): no real-time thread, and none more urgent than a test
    assert {int(found[38]) for found in told} <= {os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE}
    assert min(int(found[16]) for found in told) >= os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("browser", [2.0], indirect=True)
def test_a_page_that_hangs_ends_with_the_browser(browser: Any, chromium_command: Path) -> None:
    api = pytest.importorskip("playwright.sync_api")
    group = int(Path(f"{chromium_command}.pid").read_text(encoding="utf-8"))
    page = browser.new_page()
    assert members(group)
    with pytest.raises(api.Error, match="closed"):
        page.evaluate("while (true);")
    stop = time.monotonic() + 10
    while any(fields(folder)[:1] not in ([], ["Z"]) for folder in members(group)):
        assert time.monotonic() < stop, "some of its processes are left"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_film_of_av1_leaves_no_real_time_process(tmp_path: Path) -> None:
    write_film(tmp_path / "film.mp4", [0.0, 0.04], codec="libsvtav1")
    as_urgent_as_others()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
