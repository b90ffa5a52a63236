"""What every package needs: files, locks, hashes, devices, processes, mel filters.

Here the words for a precision, which need no torch; what each does, :mod:`vab.utils.device` says. And how
many there are of something, as people say it.
"""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16", "float16"]  # that a network computes in
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16", "tf32"]  # auto: what is fast here


def count_of(number: int, noun: str) -> str:
    """``1 clip``, ``2,000 clips``: how many of something whose plural takes an s.

    >>> count_of(1, "clip"), count_of(2000, "clip")
    ('1 clip', '2,000 clips')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
