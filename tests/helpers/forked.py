"""Calls in processes of their own, to be killed: they begin within a moment, with torch already imported."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vab.utils.processes import PRELOADED


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
        context.set_forkserver_preload(PRELOADED)
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

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; ``subprocess.TimeoutExpired`` if there is none yet."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0.0)
        return self.process.exitcode

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
