"""GPU checks and benchmarks, reported as a page: ``make gpu`` and ``make gpu-train`` (docs/gpu.md).

Needs PyTorch and the packages of the networks; no video library, no network, no command line of ours.
"""
