"""What only a GPU can show, as a page: ``make gpu`` and ``make gpu-train`` (docs/gpu.md).

Needs PyTorch and what the networks are made of; no video library, no network, no command line of ours.
"""
