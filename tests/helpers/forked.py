"""Calls in processes of their own, to be killed: they begin within a moment, with torch already imported."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vab.utils import processes


class Forked:
    """``function(*arguments)`` in a process, as ``subprocess.Popen`` has it; its output is kept in files."""

    def __init__(
        self,
        folder: Path,
        function: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(processes.PRELOADED)
        number = sum(1 for _ in folder.glob("*.stdout"))
        self.files = [folder / f"{number}.{name}" for name in ("stdout", "stderr")]
        for file in self.files:
            file.touch()
        call = pickle.dumps((function, arguments))
        self.process = context.Process(target=_child, args=(self.files, dict(environment), call))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self, by: signal.Signals) -> None:
        """End it by a signal; it is killed if it has not ended after half a minute."""
        self.send_signal(by)
        try:
            self.wait(30)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; ``subprocess.TimeoutExpired`` if there is none yet."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0.0)
        return self.process.exitcode

    def printed(self, words: str, seconds: float = 100) -> str:
        """What it has written to standard output, as soon as ``words`` are among it."""
        stop = time.monotonic() + seconds
        while True:
            has_ended = self.poll() is not None
            if words in (text := self.files[0].read_text()):
                return text
            assert not has_ended, self.communicate()
            assert time.monotonic() < stop, f"it did not print {words!r} in {seconds} s"
            time.sleep(0.01)

    def document(self) -> Any:
        """The JSON document that a verb prints with ``--json``, as soon as it is whole."""
        return json.loads(self.printed("\n}\n"))

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to standard output and standard error, once it has ended."""
        self.wait(timeout)
        out, err = (file.read_text() for file in self.files)
        return out, err


def _child(files: list[Path], environment: dict[str, str], call: bytes) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files, 1):
        with file.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    function, arguments = pickle.loads(call)
    function(*arguments)
