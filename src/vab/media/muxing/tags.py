"""What a generated file was made with: one line of JSON in its comment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

COMMENT = "comment"  # the tag, as FFmpeg calls it in every container
_MARK = "vab "
_MAX_GAIN = 100.0  # dB: more is no gain of ours


def pack(made_with: Mapping[str, Any]) -> str:
    """One line for the comment of a file."""
    return _MARK + json.dumps(made_with, allow_nan=False)


def unpack(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """What the tags of a container say that it was made with; None if it is none of ours."""
    # Matroska writes the names of tags in capitals; what people wrote stands before our line.
    comment = next((value for name, value in metadata.items() if name.lower() == COMMENT), "")
    for line in reversed(comment.splitlines()):
        if line.startswith(_MARK):
            try:
                found = json.loads(line.removeprefix(_MARK))
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return None


def gain(made_with: Mapping[str, Any] | None) -> float:
    """Decibels between the sound in a file of ours and the model's own level; 0 if part of it is not ours."""
    if made_with is None or made_with.get("keep") or made_with.get("mix") is not None:
        return 0.0
    value = made_with.get("gain_db", 0.0)
    return float(value) if isinstance(value, int | float) and abs(value) < _MAX_GAIN else 0.0
