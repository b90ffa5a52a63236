"""Extraction on a Ray cluster: tasks decode on its CPUs, actors encode on its GPUs, tasks write shards."""

from __future__ import annotations

import logging
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vab.data.extraction.encoding import Decoded
from vab.data.extraction.threads import Encode, Steps
from vab.data.manifest import Clip
from vab.data.shard import Latents
from vab.errors import SettingError, VABError, first_line

CLIPS_OF_A_TASK = 32  # that are decoded again if its process dies
WRITER_CPUS = 0.1  # writing waits for the disk
PATIENCE = 10.0  # seconds that a cluster has to answer


class RayError(VABError, RuntimeError):
    """A Ray cluster that is not there, or on which the work cannot be done. The message is one line."""


def on_ray(clips: Sequence[Clip], steps: Steps, address: str | None = None) -> Iterator[tuple[str, str]]:
    """The ``Engine`` of a cluster: that at ``address``, or one of this machine that ends with the last clip.

    All of its machines must reach the media and the store by the same names. What a process had that dies is
    done again by another. ``RayError`` if there is no such cluster, or nothing there to compute on.
    """
    if not clips:
        return
    with _cluster(address) as ray:
        # 1. What there is. An actor has a GPU, or on a cluster without any a CPU, and others are left.
        found = ray.cluster_resources()
        cpus, gpus = found.get("CPU", 0), int(found.get("GPU", 0))
        if not steps.on_cpu and not gpus:
            raise RayError("the Ray cluster has no GPU; start it with some, or compute with --device cpu")
        if cpus < 1:
            raise RayError("the Ray cluster has no CPU to decode on; start it anew with one or more")
        share = 1.0 if cpus >= 2 else 0.5
        actors = max(1, int(cpus) // 2) if steps.on_cpu else gpus

        # 2. Clips -> decoded -> latents -> shards. Objects travel as pickles: rows are columns of Arrow.
        loaded = ray.put(steps.load)  # once for all actors; it is kept as long as one may start
        items = [{"item": pickle.dumps(clip)} for clip in clips]
        blocks = -(-len(clips) // CLIPS_OF_A_TASK)
        rows = ray.data.from_items(items, override_num_blocks=blocks)
        rows = rows.map(_decode, fn_kwargs={"decode": steps.decode}, num_cpus=share - WRITER_CPUS)
        rows = rows.map_batches(
            _Encode,
            fn_constructor_args=([loaded], steps.on_cpu),
            batch_size=steps.batch_clips,
            concurrency=actors,
            num_cpus=share if steps.on_cpu else 0,
            num_gpus=0 if steps.on_cpu else 1,
        )
        rows = rows.map_batches(
            _write, fn_kwargs={"write": steps.write}, batch_size=steps.shard_clips, num_cpus=WRITER_CPUS
        )
        try:
            for row in rows.iter_rows():
                yield row["id"], row["reason"]
        except ray.exceptions.RayError as error:
            raise _told(error) from error


def _decode(row: dict[str, Any], decode: Callable[[Clip], Decoded | str]) -> dict[str, Any]:
    clip = pickle.loads(row["item"])
    return {"item": pickle.dumps((clip.id, decode(clip)), protocol=5)}


class _Encode:
    """An actor that holds the encoders."""

    def __init__(self, load: list[Any], on_cpu: bool) -> None:
        import ray

        if on_cpu:
            torch.set_num_threads(1)  # as in ``on_threads``: bits depend on it
        self.encode: Encode = ray.get(load[0])()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = [pickle.loads(item) for item in batch["item"]]
        decoded = [(ident, result) for ident, result in results if isinstance(result, Decoded)]
        encoded = self.encode([result for _, result in decoded]) if decoded else []
        done = [(row.id, row) for row in encoded] + [pair for pair in results if isinstance(pair[1], str)]
        return _column(done)


def _column(items: list[Any]) -> dict[str, Any]:
    return {"item": [pickle.dumps(item, protocol=5) for item in items]}


def _write(batch: dict[str, Any], write: Callable[[list[Latents]], object]) -> dict[str, Any]:
    results = [pickle.loads(item) for item in batch["item"]]
    rows = [result for _, result in results if isinstance(result, Latents)]
    if rows:
        write(rows)
    return {
        "id": [ident for ident, _ in results],
        "reason": [result if isinstance(result, str) else "" for _, result in results],
    }


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected; in the end as before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingError(f"--engine ray needs Ray ({first_line(error)}): pip install 'vab[ray]'") from None
    started = not ray.is_initialized()
    local: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        if address and (place := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address)):
            socket.create_connection((place[1], int(place[2])), PATIENCE).close()  # Ray tries for minutes
        if started:
            ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **local)
    except Exception as error:
        where = f"the Ray cluster at {address} does not answer" if address else "Ray does not start"
        raise RayError(f"{where} ({first_line(error)})") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


def _told(error: BaseException) -> VABError:
    """What happened in a process of the cluster, for people."""
    while True:
        if isinstance(error, VABError):
            return error
        cause = getattr(error, "cause", None) or error.__cause__
        if cause is None:
            reason = f"{type(error).__name__}: {first_line(error)}"
            return RayError(f"a process of the Ray cluster failed ({reason})")
        error = cause
