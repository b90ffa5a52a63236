"""The processes of a run, started by torchrun, srun or the program itself, and which of them this one is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vab.errors import SettingError


@dataclass(frozen=True)
class World:
    """All processes that train together. The default is one alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    launcher: str = ""  # torchrun or srun, if one of them has started the processes
    address: str = "env://"  # where they meet, as torch.distributed has it: tcp://HOST:PORT, or MASTER_ADDR

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, terminal: bool | None = None
    ) -> World:
        """What the variables of torchrun (RANK, WORLD_SIZE ...) or of a step of srun say; else one alone.

        ``terminal``: is there a person at standard input? Their shell is a step of SLURM too, of as many
        tasks as they asked for, but it is one process. ``SettingError`` for variables that contradict others.
        """
        # 1. torchrun's. Kubernetes has one process a machine, and leaves out what counts those of a machine.
        if "RANK" in environment and "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
            rank, size, local_rank, local_size = _numbers(environment, *names)
            launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else ""
            return cls(rank, size, local_rank, local_size, launcher)._checked(names)

        # 2. SLURM's, of a step: a batch script that calls no srun has SLURM_PROCID too, but is one process.
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")
        terminal = os.isatty(0) if terminal is None else terminal
        if not all(name in environment for name in names) or terminal:
            return cls()
        rank, size, local_rank, nodes = _numbers(environment, *names)
        address = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", ""))
        job, step = _numbers({"job": "0", "step": "0"} | _ids(environment), "job", "step")
        port = environment.get("MASTER_PORT") or 20_000 + (64 * job + step) % 10_000
        local_size = -(-size // max(1, nodes))
        return cls(rank, size, local_rank, local_size, "srun", f"tcp://{address}:{port}")._checked(names)

    def _checked(self, names: tuple[str, ...]) -> World:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < max(self.local_size, 1)):
            raise SettingError(
                f"{names[0]} {self.rank} of {names[1]} {self.size} and {names[2]} {self.local_rank} do not "
                "go together: start the processes by torchrun or srun, or unset these variables"
            )
        return self


def check_alone() -> None:
    """``SettingError`` where torchrun or srun has started several processes that would all do the same."""
    world = World.from_environment()
    if world.size > 1:
        started = f"{world.launcher or 'the environment'} has started {world.size} processes"
        raise SettingError(
            f"{started}, and each of them would do all of this: start one, with --devices {world.local_size}"
        )


def _numbers(environment: Mapping[str, str], *names: str) -> list[int]:
    """The whole numbers that variables hold; the rank 0, or the number 1, of one that is not there."""
    texts = [environment.get(name, "0" if name.endswith("RANK") else "1") for name in names]
    for name, text in zip(names, texts, strict=True):
        if not text.isdigit():
            raise SettingError(f"the environment variable {name} is {text!r}, not a number")
    return [int(text) for text in texts]


def _ids(environment: Mapping[str, str]) -> dict[str, str]:
    named = {"job": environment.get("SLURM_JOB_ID", ""), "step": environment.get("SLURM_STEP_ID", "")}
    return {name: text for name, text in named.items() if text.isdigit()}


def _first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts, such as gpu[003-005,7],big1; this machine if there is none."""
    found = re.match(r"([^\[,\s]+)(?:\[(\w+))?", nodes)
    return "127.0.0.1" if found is None else found[1] + (found[2] or "")
