"""A command ``vab`` for scripts that call it often: each call begins within a moment, with torch imported."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from vab.cli import main
from vab.utils import processes

# Hands its words, folder, environment and standard streams over, and ends as the other process does.
COMMAND = """#!{python} -IS
import json, os, socket, sys
other = socket.socket(socket.AF_UNIX)
other.connect({address!r})
socket.send_fds(other, [b"."], [0, 1, 2])
other.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
sys.exit(int(other.makefile().readline()))
"""


@contextmanager
def command(path: Path) -> Iterator[None]:
    """Write the command to ``path``. A call that is killed ends what it has started."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        address = f"{folder}/calls"  # such an address is 100 characters at most
        listener.bind(address)
        listener.listen()
        started: list[BaseProcess] = []
        threading.Thread(target=_serve, args=(listener, started), daemon=True).start()
        path.write_text(COMMAND.format(python=sys.executable, address=address), encoding="utf-8")
        path.chmod(0o755)
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for process in started:
                process.kill()


def _serve(listener: socket.socket, started: list[BaseProcess]) -> None:
    with suppress(OSError):
        while True:
            caller, _ = listener.accept()
            threading.Thread(target=_answer, args=(caller, started), daemon=True).start()


def _answer(caller: socket.socket, started: list[BaseProcess]) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(processes.PRELOADED)
    with caller, suppress(ConnectionError):
        _, streams, *_ = socket.recv_fds(caller, 1, 3)
        call = json.loads(caller.makefile().readline())
        process = context.Process(target=_call, args=([DupFd(stream) for stream in streams], *call))
        process.start()
        started.append(process)
        for stream in streams:
            os.close(stream)
        wait([process.sentinel, caller])
        if process.exitcode is None:
            process.kill()
        process.join()
        caller.sendall(f"{process.exitcode}\n".encode())


def _call(streams: list[Any], words: list[str], folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream.detach(), number)
    # Python's own streams remember what they were before
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "rw"[n > 0], closefd=False) for n in range(3))
    sys.argv = ["vab", *words]
    main()
