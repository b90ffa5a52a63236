"""CPU seconds of image encoders as video-to-audio systems use them, at full size (benchmarks/peers.md).

python benchmarks/peers.py [threads]

Architectures are timm's, weights random, numbers bfloat16. Two frames of each are timed, medians of three
runs by turns in this one process, and multiplied by the frames that a system sees.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import partial
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vab.bench.systems import fill
from vab.evaluate.metrics.tables import markdown

# system, timm's architecture, pixels, frames, for so many seconds of video
SYSTEMS = (
    ("VAB", "eva02_large_patch14_clip_224", 224, 10, 10.0),
    ("MMAudio", "vit_huge_patch14_clip_quickgelu_378", 378, 64, 8.0),
)
FRAMES = 2
RUNS = 3


@torch.inference_mode()
def main(threads: int) -> None:
    torch.set_num_threads(threads)
    # 1. Operations, by PyTorch's own count, of networks without memory; then the networks.
    networks: list[Any] = []
    flops = []
    for _, architecture, pixels, *_ in SYSTEMS:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            timm.create_model(architecture, pretrained=False)(torch.empty(FRAMES, 3, pixels, pixels))
        flops.append(counter.get_total_flops())
        network = fill(partial(timm.create_model, architecture, pretrained=False))
        networks.append(network.eval().bfloat16())
    images = [torch.randn(FRAMES, 3, pixels, pixels).bfloat16() for *_, pixels, _, _ in SYSTEMS]

    # 2. By turns.
    seconds: list[list[float]] = [[] for _ in SYSTEMS]
    for _ in range(RUNS):
        for network, image, spent in zip(networks, images, seconds, strict=True):
            begin = time.process_time()
            network(image)
            spent.append(time.process_time() - begin)

    # 3. Multiplied by the frames of a clip.
    header = (
        "system",
        "image encoder",
        f"s for {FRAMES} frames",
        "GFLOP/s",
        "frames",
        "CPU s per s of video",
    )
    rows = []
    for (system, architecture, _, frames, length), count, spent in zip(SYSTEMS, flops, seconds, strict=True):
        median = statistics.median(spent)
        rate = f"{count / median / 1e9:.0f}"
        each = median / FRAMES * frames / length
        rows.append(
            [system, architecture, f"{median:.2f}", rate, f"{frames} for {length:g} s", f"{each:.2f}"]
        )
    print(markdown(header, rows))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
