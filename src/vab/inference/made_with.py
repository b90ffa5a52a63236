"""What a sound is made with: all that it depends on beside its picture, as its file's tag holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vab.config import SAMPLE_RATE, DecodeConfig, levers
from vab.inference.finish import Finish
from vab.inference.splice import Span
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.utils.provenance import version

# Said in the tag, and no reason to make a sound anew: the model counts by its fingerprint, not by its name.
_TOLD_ONLY = ("generated", "version", "model", "gain_db", "bfloat16_gain")
_WORDS = {
    "fingerprint": "model",
    "source_bytes": "input",
    "keep": "kept part",
    "keep_original": "second track",
    "top_k": "top-k",
    "guidance_from": "start of guidance",
    "guidance_until": "end of guidance",
    "guidance_every": "reuse of guidance",
    "last_window": "length of the last window",
    "timing": "timing",
    "timing_scale": "guidance by the timing curve",
    **{name: f"number of {name}" for name in ("steps", "candidates", "channels", "bits", "codebooks")},
}


def made_with(
    model: str,
    fingerprint: str,
    seed: int,
    number: int,
    decode: DecodeConfig,
    keep: Sequence[Span],
    finish: Finish,
) -> dict[str, Any]:
    """The settings in effect for sample ``number`` (from 0) of a file, for JSON.

    ``model``: how it was named; ``fingerprint``: of its weights, ``vab.models.hub.folder_fingerprint``.
    """
    step_by_step = decode.num_steps == 0  # FoleyGen
    beside = bool(keep) or finish.mix is not None
    return {
        "generated": True,
        "version": version(),
        "model": model,
        "fingerprint": fingerprint,
        "seed": seed,
        "sample": number + 1,
        "steps": decode.num_steps or None,
        "guidance": decode.guidance_scale,
        "temperature": decode.sampling_temperature if step_by_step else decode.mask_temperature,
        "top_k": decode.top_k,
        "candidates": decode.num_candidates,
        **levers(decode),
        **({"timing_scale": decode.timing_scale} if decode.timing_scale else {}),
        "keep": [[start, stop if math.isfinite(stop) else None] for start, stop in keep],
        "mix": finish.mix,
        "loudness": finish.loudness,
        "rate": finish.rate or ("original" if beside else SAMPLE_RATE),
        "channels": finish.channels or ("original" if beside else 1),
    }


def tag_of(path: Path) -> dict[str, Any] | None:
    """What a result was made with; None if it does not say, or cannot be read."""
    try:
        with MediaFile(path) as file:
            return file.made_with
    except MediaError:
        return None


def _precisely(made: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its precision: version 0.1 said it only where it was not float32, as ``dtype``."""
    values = dict(made)
    return {"precision": values.pop("dtype", "float32")} | values


def difference(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str | None:
    """Why a file whose tag is ``found`` cannot stand for one made with ``wanted``; None if it can."""
    if found is None:
        return "made anew: nothing in the file says what it was made with"
    found, wanted = _precisely(found), _precisely(wanted)
    if wanted["precision"] == "auto":  # whatever is fast: no sound is made anew on a machine of another kind
        wanted["precision"] = found["precision"]
    names = [*wanted, *(name for name in found if name not in wanted)]
    other = [
        _WORDS.get(name, name)
        for name in names
        if name not in _TOLD_ONLY and found.get(name) != wanted.get(name)
    ]
    if not other:
        return None
    listed = " and ".join(filter(None, (", ".join(other[:-1]), other[-1])))
    return f"made anew: it was made with another {listed}"
