"""The steps from clips to shards, and how the threads of one process take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from vab.data.extraction.encoding import Decoded
from vab.data.manifest import Clip
from vab.data.shard import Latents
from vab.utils.ahead import run_ahead

Encode = Callable[[list[Decoded]], list[Latents]]


@dataclass(frozen=True)
class Steps:
    """What is done with clips, as functions that can be sent to other processes."""

    decode: Callable[[Clip], Decoded | str]  # or the reason why that cannot be done
    load: Callable[[], Encode]  # the encoders on their device, and what encodes a batch
    write: Callable[[list[Latents]], object]  # one shard
    on_cpu: bool  # the encoders
    batch_clips: int
    shard_clips: int


# Takes the steps; yields each clip's id with why it failed, or with "" once it is encoded. All is written
# when it ends.
Engine = Callable[[Sequence[Clip], Steps], Iterator[tuple[str, str]]]


def on_threads(clips: Sequence[Clip], steps: Steps, readers: int) -> Iterator[tuple[str, str]]:
    """The ``Engine`` of one process: ``readers`` threads decode ahead, others encode, this one writes."""
    failed: list[tuple[str, str]] = []

    def decoded() -> Iterator[Decoded]:
        for clip, result in run_ahead(steps.decode, clips, readers, steps.batch_clips):
            if isinstance(result, Decoded):
                yield result
            else:
                failed.append((clip.id, result))

    encoders = readers if steps.on_cpu else 1
    rows: list[Latents] = []
    with one_thread_a_pass(steps.on_cpu):
        batches = _batches(decoded(), steps.batch_clips)
        for _, encoded in run_ahead(steps.load(), batches, encoders, encoders):
            rows += encoded
            while len(rows) >= steps.shard_clips:
                steps.write(rows[: steps.shard_clips])
                del rows[: steps.shard_clips]
            yield from ((row.id, "") for row in encoded)
            yield from failed
            failed.clear()
        if rows:
            steps.write(rows)
    yield from failed


def _batches(items: Iterable[Decoded], size: int) -> Iterator[list[Decoded]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


@contextmanager
def one_thread_a_pass(on_cpu: bool) -> Iterator[None]:
    """Let each pass of a network on the CPU run in one thread, several of them side by side.

    The kernels of a CPU round by the number of their threads: a clip's bits would depend on the cores that a
    process has.
    """
    before = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
