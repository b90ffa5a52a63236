"""Where the time of a step goes, and what each way to make it quicker gives (docs/decisions/speed.md).

python benchmarks/step.py vab-encodec [threads]    a guided step of one clip: 2 rows of 510 places
python benchmarks/step.py vab-tiny                 2 rows of 255 places
python benchmarks/step.py foleygen-encodec         a cached step in the middle of the clip: 2 rows of 1 place

Weights are random. All seconds are CPU time, medians of runs taken by turns in this one process, so that
others on the machine weigh on all of them alike.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vab.bench.systems import fill
from vab.models import linear, vab
from vab.models.flops import pass_flops
from vab.models.foleygen import FoleyGen, IncrementalDecoder, build_network
from vab.presets import preset

TURNS = 5
SIDES = (512, 1024, 2048)


def by_turns(works: dict[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, float]:
    """Median CPU seconds of each, after one run of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            begin = time.process_time()
            work()
            if turn:
                seconds[name].append(time.process_time() - begin)
    return {name: statistics.median(each) for name, each in seconds.items()}


def product(dtype: torch.dtype) -> float:
    """FLOP per CPU second of the fastest of some products of square matrices."""
    matrices = {side: torch.rand(side, side).to(dtype) for side in SIDES}
    found = by_turns({str(side): partial(torch.matmul, m, m) for side, m in matrices.items()}, 7)
    return max(2 * side**3 / found[str(side)] for side in SIDES)


def step_of(network: vab.VAB) -> Callable[[], Tensor]:
    """A guided step of one clip."""
    config = network.config
    features = torch.randn(2, config.video_length, config.vision_dim)
    drop = torch.tensor([False, True])
    if isinstance(network, FoleyGen):
        decoder = IncrementalDecoder(network, config.audio_length)
        half = torch.zeros(2, config.num_codebooks, config.audio_length // 2, dtype=torch.int64)
        decoder(half, features, drop)
        return lambda: decoder(half[:, :, :1], features)
    masked = torch.full((2, config.num_codebooks, config.audio_length), config.codebook_size)
    return lambda: network(masked, features, drop_features=drop)


def with_levers(step: Callable[[], Tensor], packed: bool, tiles: bool) -> Callable[[], Tensor]:
    """The step with these levers alone."""

    def work() -> Tensor:
        with ExitStack() as stack:
            if not packed:
                stack.enter_context(patch.object(linear, "can_pack", lambda: False))
            if not tiles:
                stack.enter_context(patch.object(vab, "lengthened", lambda x, bias: (x, bias)))
            return step()

    return work


@torch.inference_mode()
def main(name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = fill(lambda: build_network(preset(name))).eval()
    narrow = copy.deepcopy(network)
    for parameter in narrow.parameters():
        parameter.data = parameter.data.bfloat16()
    step, narrow_step = step_of(network), step_of(narrow)

    # 1. The levers, by turns.
    works = {"float32": step}
    for packed, tiles in ((False, False), (False, True), (True, False), (True, True)):
        levers = [word for word, on in (("packed weights", packed), ("whole tiles", tiles)) if on]
        works[", ".join(["bfloat16", *levers])] = with_levers(narrow_step, packed, tiles)
    seconds = by_turns(works)
    rates = {"float32": product(torch.float32), "bfloat16": product(torch.bfloat16)}
    print(f"{name}, {threads} threads; packed weights are {'' if linear.can_pack() else 'not '}there")
    config = network.config
    flops = 2 * pass_flops(config, config.video_length, config.audio_length)
    for work, spent in seconds.items():
        rate = rates[work.partition(",")[0]]
        share = f", {flops / spent / 1e9:.1f} GFLOP/s, {100 * flops / spent / rate:.0f} % of {rate / 1e9:.0f}"
        # FoleyGen's step waits for its weights to be read, not for products.
        print(f"  {work}: {1e3 * spent:.1f} ms{'' if isinstance(network, FoleyGen) else share}")

    # 2. Where it goes: operations by their own time, which here is the clock's.
    for word, once in (("float32", step), ("bfloat16", narrow_step)):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            once()
        events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        parts = [
            f"{event.key.removeprefix('aten::')} {100 * event.self_cpu_time_total / total:.0f} %"
            for event in events[:7]
        ]
        print(f"  {word}: {', '.join(parts)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1)
