"""The parts of each page, in the order in which they run: the most valuable first."""

from __future__ import annotations

from vab.bench.gpu.runner import Part

TOTAL = 295.0  # seconds of a whole run; the limits of its parts may be more together

GPU_PARTS: tuple[Part, ...] = (
    Part("correctness", "vab.bench.gpu.checks:correctness", 100),
    Part("training", "vab.bench.gpu.training:training", 60),
    Part("ways", "vab.bench.gpu.training:ways", 80),
    Part("extraction", "vab.bench.gpu.extraction:extraction", 55),
    Part("vab-encodec", "vab.bench.gpu.speed:vab_encodec", 50),
    Part("foleygen", "vab.bench.gpu.speed:foleygen", 50),
    Part("vab-dac", "vab.bench.gpu.speed:vab_dac", 50),
)
TRAIN_PARTS: tuple[Part, ...] = (
    Part("network", "vab.bench.gpu.tiny:network", 100),
    Part("contrast", "vab.bench.gpu.tiny:contrast", 50),
    Part("classes", "vab.bench.gpu.tiny:classes", 35),
    Part("decoder", "vab.bench.gpu.tiny:decoder", 90),
)
