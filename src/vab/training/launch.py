"""The processes of a run: on which devices it computes, and how they begin and end together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities import rank_zero_only

from vab.errors import TrainError, first_line
from vab.utils.locks import exclusive


def open_fabric(device: str, devices: int, precision: str) -> Fabric:
    """Lightning's view of the devices, not yet launched; ``TrainError`` if they are not there."""
    strategy = "auto" if devices == 1 else DDPStrategy(broadcast_buffers=False)
    try:
        return Fabric(accelerator=device, devices=devices, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    except Exception as error:  # Lightning has errors of its own for devices that are not there
        raise TrainError(f"cannot train on {devices} devices ({first_line(error)})") from error


@contextmanager
def launched(fabric: Fabric, devices: int, folder: Path) -> Iterator[None]:
    """Start the other processes of a run. The first holds ``folder``, before it starts the others."""
    is_first = devices == 1 or getattr(rank_zero_only, "rank", 0) == 0
    with ExitStack() as stack:
        if is_first:
            stack.enter_context(exclusive(folder / ".lock", f"trains in {folder}"))
        fabric.launch()
        if devices > 1:
            stack.enter_context(_together(folder))
        yield


@contextmanager
def _together(folder: Path) -> Iterator[None]:
    """``TrainError`` where a process waits for another one of its run in vain."""
    try:
        yield
    except RuntimeError as error:
        if "onnection" not in str(error):  # "Connection closed by peer" and the like, of gloo and NCCL
            raise
        raise TrainError(
            f"{folder}: another process of this run has ended; start it again to go on"
        ) from error
