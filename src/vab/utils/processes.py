"""Work in several processes of one machine: each has a rank and a device, and the parent hears from all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from vab.errors import SettingError, VABError, for_people
from vab.utils.device import Device, pick_device
from vab.utils.world import World

A = TypeVar("A")
C = TypeVar("C")
R = TypeVar("R")
PRELOADED = ["torch", "torch._dynamo"]  # nearly all work imports the latter: torchvision and optimizers do
PATIENCE = 5.0  # seconds that a process has to end after it was asked to


class ProcessError(VABError, RuntimeError):
    """One of several processes has died. The message is one line that says which one, and of what."""


@dataclass(frozen=True)
class Worker:
    """What one of several processes knows of itself."""

    rank: int
    count: int
    device: torch.device
    tell: Callable[[Any], None]  # sends anything that can be pickled to the parent, such as progress


def available_cores() -> int:
    """Number of CPU cores this process may use: those of its affinity, and of its SLURM task."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, max(1, int(share))) if share.isdigit() else cores


def devices_for(count: int, device: Device = "auto") -> list[torch.device]:
    """``count`` devices: so many GPUs, or so many times the CPU. ``SettingError`` if there are too few.

    One GPU of several is that of the process's place on its machine, as torchrun or SLURM tell it.
    """
    if count < 1:
        raise SettingError("--devices must be 1 or more")
    one = pick_device(device)
    if count == 1:
        world = World.from_environment()
        if one.type == "cuda" and one.index is None and world.size > 1:
            return [torch.device("cuda", world.local_rank % torch.cuda.device_count())]
        return [one]
    if one.type == "cuda" and one.index is None:
        if count > torch.cuda.device_count():
            raise SettingError(f"--devices {count}: there are {torch.cuda.device_count()} GPUs here")
        return [torch.device("cuda", index) for index in range(count)]
    if one.type == "cpu":
        return [one] * count
    raise SettingError(f"--devices {count}: there is one device {one}")


def run_processes(
    work: Callable[[Worker, A], R],
    arguments: Sequence[A],
    devices: Sequence[torch.device],
    hear: Callable[[int, Any], None] = lambda rank, message: None,
) -> list[R]:
    """Call ``work(worker, argument)`` for each argument in a process of its own; results in their order.

    ``work`` is a function of a module, and what it takes and returns can be pickled. ``hear`` is called in
    this process with the rank and the message of each ``worker.tell``. Processes share the CPU's threads; a
    single argument is worked on in this process.

    The first exception of a process ends the others and is raised here. ``ProcessError`` if one dies. However
    this process ends, by Ctrl-C or by a signal that cannot be caught, the others end too.
    """
    if len(arguments) == 1:
        return [work(Worker(0, 1, devices[0], lambda message: hear(0, message)), arguments[0])]
    with closing(_messages(work, arguments, devices)) as messages:
        while True:
            try:
                rank, message = next(messages)
            except StopIteration as end:
                return end.value
            hear(rank, message)


def in_order(
    work: Callable[[Worker, C, Sequence[A]], Iterable[R]],
    common: C,
    items: Sequence[A],
    devices: Sequence[torch.device],
) -> Generator[R, None, None]:
    """A result for each item, in their order, each as soon as it and all before it are there.

    ``work(worker, common, part)`` yields a result for each item of its part: every n-th item, where n devices
    have a process each. Errors, and how the processes end, are those of ``run_processes``; they end too when
    the generator is closed. For one device or one item the work is done in this process.
    """
    count = min(len(devices), len(items))
    if count <= 1:
        yield from work(Worker(0, 1, devices[0], lambda message: None), common, items)
        return
    parts = [(work, common, items[rank::count]) for rank in range(count)]
    told = [0] * count  # results of each process
    early: dict[int, R] = {}  # results whose turn has not come, by the number of the item
    turn = 0
    with closing(_messages(_tell_each, parts, devices[:count])) as messages:
        for rank, result in messages:
            early[rank + told[rank] * count] = result
            told[rank] += 1
            while turn in early:
                yield early.pop(turn)
                turn += 1


def _tell_each(
    worker: Worker, call: tuple[Callable[[Worker, C, Sequence[A]], Iterable[R]], C, Sequence[A]]
) -> None:
    work, common, part = call
    for result in work(worker, common, part):
        worker.tell(result)


def _messages(
    work: Callable[[Worker, A], R], arguments: Sequence[A], devices: Sequence[torch.device]
) -> Generator[tuple[int, Any], None, list[R]]:
    """``run_processes`` as a generator: yields rank and message, and returns the results."""
    # 1. Not forked from this process: CUDA and the threads of torch do not survive that. On Linux they are
    #    forked from a server that has done nothing but import torch, once for all of them.
    count = len(arguments)
    context: BaseContext = multiprocessing.get_context("spawn")
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
    environment = dict(os.environ)  # the server has that of its own beginning
    threads = max(1, torch.get_num_threads() // count)
    processes: dict[Connection, BaseProcess] = {}
    ranks: dict[Connection, int] = {}
    results: dict[int, R] = {}
    try:
        for rank, (argument, device) in enumerate(zip(arguments, devices, strict=True)):
            ours, theirs = context.Pipe(duplex=False)
            call = (environment, pickle.dumps((work, argument)), rank, count, device, threads, theirs)
            process = context.Process(target=_child, args=call, name=f"process {rank + 1} of {count}")
            process.start()
            theirs.close()  # so that only the child holds it: when it dies, reading ends
            processes[ours], ranks[ours] = process, rank

        # 2. Hear them until each has sent its result.
        while len(results) < count:
            for connection in wait([each for each in processes if ranks[each] not in results]):
                assert isinstance(connection, Connection)
                rank = ranks[connection]
                try:
                    kind, content = connection.recv()
                except EOFError:
                    raise _death(processes[connection], devices[rank]) from None
                if kind == "error":
                    raise content
                if kind == "result":
                    results[rank] = content
                else:
                    yield rank, content
    finally:
        _end(list(processes.values()), at_once=len(results) < count)
    return [results[rank] for rank in range(count)]


def _child(
    environment: dict[str, str],
    call: bytes,
    rank: int,
    count: int,
    device: torch.device,
    threads: int,
    connection: Connection,
) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent ends the others. If it is killed, they see it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    if device.type == "cpu":
        torch.set_num_threads(threads)
    elif device.type == "cuda":
        torch.cuda.set_device(device)

    lock = threading.Lock()  # of the pipe: readers and writers of a child may all have something to tell

    def send(kind: str, content: Any) -> None:
        with lock:
            connection.send((kind, content))

    try:
        work, argument = pickle.loads(call)  # imports modules, which may look at the environment
        send("result", work(Worker(rank, count, device, lambda message: send("message", message)), argument))
    except BrokenPipeError:  # the parent has left
        return
    except Exception as error:
        told = f"in process {rank + 1} of {count}:\n{traceback.format_exc()}"
        if for_people(error) is None:  # a bug: the parent's traceback does not lead to it
            error.add_note(told)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # one that cannot be sent
            error = RuntimeError(told)
        send("error", error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _death(process: BaseProcess, device: torch.device) -> ProcessError:
    """What to say of a process that ended without a result."""
    process.join(PATIENCE)
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        how = f"was killed ({name})"
        if name == "SIGKILL":
            how += ", as the system does when memory runs out"
    else:
        how = f"ended with exit code {code}"
    return ProcessError(f"{process.name} (on {device}) {how}; run the same again to go on")


def _end(processes: Sequence[BaseProcess], at_once: bool) -> None:
    if at_once:
        for process in processes:
            process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
