"""Runs the parts of a page one after another, each in a process of its own that can be ended when over time.

A part is a function ``(device, small, folder) -> result``: the device's name, whether the size is the small
one that two cores can do, and the page's folder, where whatever it leaves lies beside the page. The result
is a dict with ``rows`` (of a table), ``lines`` and ``failed`` (names of checks not met), each optional. The
part's title is the first line of its docstring.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from vab.bench.gpu.page import Page, Section
from vab.utils.files import write_whole

LOOK = 0.5  # seconds between two looks at what a part has so far
CHILD = "import sys; from vab.bench.gpu.runner import work; work(*sys.argv[1:])"


class Part(NamedTuple):
    """A function to run, with a time limit."""

    name: str
    function: str  # module:function
    limit: float  # seconds


def run(
    kind: str,
    about: Mapping[str, Any],
    parts: Iterable[Part],
    folder: Path,
    device: str,
    small: bool,
    total: float,
    show: Callable[[str], None] = print,
) -> Page:
    """Run all ``parts``, at most ``total`` seconds; the page, which is written whenever there is news.

    A part that fails or is over its limit is ended with all processes that it started; the next ones run.
    """
    begin = time.perf_counter()
    parts = list(parts)
    page = Page(kind, folder, dict(about), [Section(part.name, part.limit) for part in parts])
    page.write()
    for part, section in zip(parts, page.sections, strict=True):
        left = total - (time.perf_counter() - begin)
        if left < 1:
            section.status, section.error = "not reached", f"the {total:g} s of the whole run were over"
        else:
            section.limit = round(min(part.limit, left), 1)
            run_part(part.function, section, folder, device, small, page.write)
        page.write()
        missed = f"; not met: {', '.join(section.failed)}" if section.failed else ""
        show(f"{part.name}: {section.status}, {section.seconds:.1f} s {section.error}{missed}".rstrip())
    return page


def run_part(
    function: str,
    section: Section,
    folder: Path,
    device: str,
    small: bool,
    news: Callable[[], None] = lambda: None,
) -> None:
    """Run ``module:function`` into ``section``; ``news`` is called when the section has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        result, log = Path(scratch) / "result.json", Path(scratch) / "log"
        command = [sys.executable, "-c", CHILD, function, device, str(int(small)), str(folder), str(result)]
        # 1. Start it, and say so on the page.
        begin = time.perf_counter()
        section.status = "running"
        news()
        with log.open("wb") as stream:
            # a session of its own, so that the processes it starts can be ended with it
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        # 2. Wait; whatever ends the wait ends the part.
        try:
            code = _wait(child, section, result, begin, news)
        finally:
            _end(child)
        # 3. What became of it.
        section.seconds = time.perf_counter() - begin
        document = _merge(section, result)
        written = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        # done is what has reported itself whole
        if code is None:
            section.status, section.error = "took too long", f"ended after {section.limit:g} s"
        elif code == 0 and document.get("whole"):
            section.status = "done"
        else:
            section.status = "failed"
            last = written[-1].strip() if written else "it wrote nothing"
            section.error = document.get("error") or f"it ended with {code}; its last line: {last}"
        if section.status != "done":  # what it wrote may say why
            sys.stderr.write("\n".join(written[-30:]) + "\n")


def _wait(
    child: subprocess.Popen[bytes], section: Section, result: Path, begin: float, news: Callable[[], None]
) -> int | None:
    """The exit code, or None when the limit is over; what the part reports meanwhile goes to the page."""
    seen = 0
    while True:
        left = section.limit - (time.perf_counter() - begin)
        try:
            return child.wait(max(0.0, min(LOOK, left)))
        except subprocess.TimeoutExpired:
            if left <= 0:
                return None
        # news are another time of the file
        stamp = result.stat().st_mtime_ns if result.exists() else 0
        if stamp != seen:
            seen = stamp
            section.seconds = time.perf_counter() - begin
            _merge(section, result)
            news()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the part and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(timeout=30)


def _merge(section: Section, result: Path) -> dict[str, Any]:
    """Take over what the part has reported so far."""
    document = json.loads(result.read_bytes()) if result.exists() else {}
    section.title = document.get("title", section.title)
    section.rows, section.lines = document.get("rows", []), document.get("lines", [])
    section.failed = document.get("failed", [])
    return document


# In the part's own process.

_result: Path | None = None  # where its news go
_document: dict[str, Any] = {}


def report(rows: list[dict[str, Any]], lines: Iterable[str] = (), failed: Iterable[str] = ()) -> None:
    """Report all results of a part so far: they stay on the page if the part is stopped later."""
    _document.update(rows=rows, lines=list(lines), failed=list(failed))
    if _result is not None:
        write_whole(_result, json.dumps(_document).encode())


def work(function: str, device: str, small: str, folder: str, result: str) -> None:
    """Do one part; the process exits 1 if it fails."""
    global _result
    _result = Path(result)
    try:
        # the title first, so that the page has it while the part runs
        module, _, name = function.partition(":")
        part = getattr(import_module(module), name)
        _document["title"] = (part.__doc__ or name).strip().splitlines()[0].rstrip(".")
        report([])
        done = part(device, bool(int(small)), Path(folder))
    except BaseException as error:
        text = " ".join(str(error).split())
        _document["error"] = f"{type(error).__name__}: {text}"[:500]
        write_whole(_result, json.dumps(_document).encode())
        raise
    _document["whole"] = True
    report(done.get("rows", []), done.get("lines", []), done.get("failed", []))
