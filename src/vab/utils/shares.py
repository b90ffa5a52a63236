"""Which share of some work is this process's: told by hand, by SLURM or torchrun. Shares never meet."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vab.errors import SettingError
from vab.utils.provenance import sha256
from vab.utils.world import World


@dataclass(frozen=True)
class Share:
    """One of ``count`` shares of some work; ``index`` counts from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """The share that ``I/N`` means: 1/N is the first, N/N the last. ``SettingError`` else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise SettingError(f"a share is I/N, from 1/N for the first to N/N for the last, not {text!r}")
        return cls(int(found[1]) - 1, int(found[2]))

    @classmethod
    def chosen(cls, text: str | None) -> Share:
        """The share that the option ``--shard I/N`` means, or without it that of the environment."""
        return cls.from_environment() if text is None else cls.parse(text)

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ, terminal: bool | None = None
    ) -> Share:
        """The share of this task of a SLURM array, of this process of srun or torchrun, or of both; else all.

        ``terminal`` as in ``World``. ``SettingError`` if the environment contradicts itself.
        """
        share = cls()
        # 1. Tasks of an array need not count from 0, nor by one.
        if "SLURM_ARRAY_TASK_ID" in environment:
            task, first, step, count = (
                _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
                for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
            )
            share = share.part((task - first) // max(1, step), count, "SLURM_ARRAY_TASK_ID")

        # 2. Processes of a task.
        try:
            world = World.from_environment(environment, terminal)
        except SettingError as error:
            raise SettingError(f"{error}; or say the share by --shard I/N") from None
        return share.part(world.rank, world.size)

    def part(self, index: int, count: int, what: str = "the part") -> Share:
        """The share of one of ``count`` that share this one; ``SettingError`` if there is no such one."""
        if not 0 <= index < count:
            raise SettingError(f"{what} is number {index} (from 0) of {count}: say the share by --shard I/N")
        # Numbered so that the parts of a share hold what it holds, into however many it is divided.
        return Share(self.index + self.count * index, self.count * count)

    def has(self, name: str) -> bool:
        """True if what is called so belongs to this share: by a hash, so that every machine agrees."""
        return int(sha256(name)[:16], 16) % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


ALL = Share()


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit():
        raise SettingError(f"{name} is {text!r}, not a number; say the share by --shard I/N")
    return int(text)
