"""What every package needs: files, locks, hashes, devices, processes, mel filters.

Here the words for a precision, which need no torch; what each does, :mod:`vab.utils.device` says.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16", "float16"]  # that a network computes in
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16", "tf32"]  # auto: what is fast here
