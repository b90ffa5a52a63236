"""Functions that tests run in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vab.errors import SettingError
from vab.utils.processes import Worker


class OddError(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def double(worker: Worker, number: int) -> tuple[int, int, int, str, int]:
    worker.tell(f"half of {number}")
    return 2 * number, worker.rank, worker.count, str(worker.device), torch.get_num_threads()


def each_takes_its_time(worker: Worker, wait: float, items: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Results of the first process come late, those of the others at once."""
    for item in items:
        time.sleep(wait * (worker.rank == 0))
        yield item, worker.rank


def own_process(worker: Worker, nothing: None) -> int:
    return os.getpid()


def variable(worker: Worker, name: str) -> str | None:
    return os.environ.get(name)


def fail(worker: Worker, how: tuple[str, Path]) -> None:
    way, folder = how
    if way == "waits":
        (folder / "pid.tmp").write_text(str(os.getpid()))
        (folder / "pid.tmp").rename(folder / "pid")
        time.sleep(600)
    while not (folder / "pid").exists():
        time.sleep(0.02)
    if way == "ours":
        raise SettingError("no such thing as fish")
    if way == "odd":
        raise OddError("a", "b")
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print(1 / 0)


def wait_long(worker: Worker, folder: Path) -> None:
    path = folder / f"pid-{worker.rank}"
    path.with_name("new").with_suffix(f".{worker.rank}").write_text(str(os.getpid()))
    path.with_name("new").with_suffix(f".{worker.rank}").rename(path)
    time.sleep(600)
