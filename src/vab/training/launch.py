"""The processes of a run: how they begin, find each other and their devices, speak with one voice and end."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from vab.errors import SettingError, TrainError, first_line, for_people
from vab.utils.device import pick_device
from vab.utils.locks import exclusive
from vab.utils.processes import ProcessError, Worker, devices_for, run_processes
from vab.utils.world import World

FAILED = "vab: a process has failed"  # a key of the store by which the processes of a group found each other


def own_processes(devices: int | None) -> int:
    """The number of processes to start here: ``devices``, or 1 if torchrun or srun has started them already.

    ``SettingError`` if it has started another number of them on this machine.
    """
    world = World.from_environment()
    if world.size == 1:
        return devices or 1
    if devices is not None and devices != world.local_size:
        started = f"{world.launcher or 'the environment'} has started {world.local_size} processes"
        raise SettingError(f"--devices {devices}, but {started} on this machine: leave --devices out")
    return 1


def start_processes(work: Callable[..., Any], count: int, device: str, log: Callable[[str], None]) -> None:
    """Call ``work(log=...)`` in ``count`` processes of this machine that find each other as torchrun's do.

    Its errors are raised here, and ``ProcessError`` if one dies. A signal to stop is passed on to all of
    them; once they have ended, ``KeyboardInterrupt`` (Ctrl-C) or ``SystemExit`` is raised here too. A second
    Ctrl-C ends them at once.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    calls = [(work, port)] * count
    with _passing_signals_on() as heard:
        try:
            codes = run_processes(_member, calls, devices_for(count, device), lambda rank, line: log(line))
        except ProcessError:
            if not heard:
                raise
            codes = [128 + heard[0]]  # it reached a process that had not begun to train
    if any(codes):
        code = 128 + heard[0] if heard else max(codes)
        if code == 128 + signal.SIGINT:
            raise KeyboardInterrupt("stopped")
        raise SystemExit(code)


def _member(worker: Worker, call: tuple[Callable[..., Any], int]) -> int:
    """One of the processes that :func:`start_processes` starts; 0, or 128 + the signal that stopped it."""
    work, port = call
    os.environ.update(
        RANK=f"{worker.rank}",
        WORLD_SIZE=f"{worker.count}",
        LOCAL_RANK=f"{worker.rank}",
        LOCAL_WORLD_SIZE=f"{worker.count}",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=f"{port}",
    )
    os.environ.pop("TORCHELASTIC_RUN_ID", None)
    try:
        work(log=worker.tell)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@contextmanager
def _passing_signals_on() -> Iterator[list[int]]:
    """The signals heard so far; the first asks all processes started here to stop, another one is Ctrl-C."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals do not come here
        yield heard
        return

    def pass_on(number: int, _: Any) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise KeyboardInterrupt
        for process in multiprocessing.active_children():
            process.terminate()

    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.signal(getattr(signal, name), pass_on) for name in names}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_fabric(device: str, precision: str) -> Fabric:
    """Lightning's view of this process and its device; ``VABError`` if that is not there.

    ``precision`` is that of a :class:`vab.config.TrainConfig`.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # how it trains is said by us, once
    world = World.from_environment()
    own = _device_of(world, device)
    strategy: DDPStrategy | str = "auto"
    if world.size > 1:
        # Buffers never change, and are equal in all processes from the start.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False}
        strategy = DDPStrategy(**options)
    try:
        return Fabric(
            accelerator=own.type,
            devices=[own.index or 0] if own.type == "cuda" else 1,
            num_nodes=world.size,
            strategy=strategy,
            precision="32-true" if precision == "tf32" else precision,  # type: ignore[arg-type]
            plugins=[_Environment(world)],
        )
    except Exception as error:  # Lightning has errors of its own for devices that cannot be used
        raise TrainError(f"cannot train on {own} ({first_line(error)})") from error


def _device_of(world: World, device: str) -> torch.device:
    """The device of this process: SLURM may show each its own GPU, torchrun shows all GPUs to all of them."""
    own = pick_device(device)
    if world.size == 1 or own.type != "cuda":
        return own
    count = torch.cuda.device_count()
    if count > 1 and world.local_rank >= count:
        raise TrainError(f"there are {world.local_size} processes on this machine, but {count} GPUs")
    return torch.device("cuda", world.local_rank if count > 1 else 0)


class _Environment(ClusterEnvironment):
    """What Lightning asks of a cluster. Each process is a node with one device: then it asks nothing else."""

    creates_processes_externally = True
    main_address = ""  # :func:`launched` lets the processes meet
    main_port = 0

    def __init__(self, world: World) -> None:
        self.world = world

    @staticmethod
    def detect() -> bool:
        return True

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self.world.rank


@contextmanager
def launched(fabric: Fabric, folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """The processes of a run together, while the first of them holds ``folder``.

    Where one fails all end, and one speaks: the first that failed, with the error that it raises or, if it is
    not the first process, with a line; the others leave by ``SystemExit``. ``TrainError`` where they do not
    find each other, or where one waits for another in vain.
    """
    world = World.from_environment()
    with ExitStack() as stack:
        if world.size > 1:
            _meet(fabric, world)
            stack.enter_context(_one_voice(world, folder, log))
        fabric.launch()
        if world.rank == 0:
            stack.enter_context(exclusive(folder / ".lock", f"trains in {folder}"))
        yield


def _meet(fabric: Fabric, world: World) -> None:
    """Make the group of all processes, if an earlier run of this process has not."""
    if distributed.is_initialized():
        return
    backend, device = ("nccl", fabric.device) if fabric.device.type == "cuda" else ("gloo", None)
    try:
        distributed.init_process_group(
            backend, init_method=world.address, rank=world.rank, world_size=world.size, device_id=device
        )
    except (distributed.DistError, OSError, ValueError) as error:
        raise TrainError(
            f"process {world.rank + 1} of {world.size} does not find the others ({first_line(error)})"
        ) from error


@contextmanager
def _one_voice(world: World, folder: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Let one process of several tell why they end; see :func:`launched`."""
    try:
        yield
    except Exception as error:
        lost = isinstance(error, distributed.DistError) or (
            isinstance(error, RuntimeError)
            and "onnection" in str(error)  # of gloo, "Connection closed by peer"
        )
        if lost:
            text = f"{folder}: another process of this run has ended; start it again to go on"
            raised: Exception = TrainError(text)
        else:
            raised = error
        # Processes that were started here tell their parent, which raises the first error that it hears.
        if not world.launcher:
            raise raised from (error if lost else None)
        if not _is_first_to_fail(world):
            raise SystemExit(1) from error
        if world.rank == 0 or for_people(raised) is None:
            raise raised from (error if lost else None)
        log(f"vab: process {world.rank + 1} of {world.size}: {for_people(raised)}")
        raise SystemExit(1) from error


def _is_first_to_fail(world: World) -> bool:
    """True for one process alone; the store lives with torchrun's agent, or with the first process."""
    try:
        store = distributed.distributed_c10d._get_default_store()
        return bool(store.add(FAILED, 1) == 1)
    except Exception:  # whoever held the store has ended, after it spoke
        return False
