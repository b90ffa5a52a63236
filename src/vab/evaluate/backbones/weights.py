"""Find the published weights of evaluation networks, and load them without running code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from vab.errors import first_line
from vab.evaluate.metrics.statistics import EvaluationError

Network = TypeVar("Network", bound=nn.Module)
# plain arrays, which torch alone would refuse: PANNs' file keeps the state of a sampler in them
SAFE_GLOBALS = [
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u4", "u8", "bool")},
]


def folders(chosen: Path | None) -> list[Path]:
    """Folders to search for weights: ``chosen``, ``$VAB_WEIGHTS``, and where other tools keep theirs."""
    # the nearest to the call first
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    torch_home = Path(os.environ.get("TORCH_HOME", cache / "torch"))
    named = [chosen] if chosen else []
    named += [Path(os.environ["VAB_WEIGHTS"])] if os.environ.get("VAB_WEIGHTS") else []
    return [*named, cache / "vab", torch_home / "hub" / "checkpoints", cache / "audioldm_eval" / "ckpt"]


def find_weights(file: str, source: str, chosen: Path | None) -> Path:
    """The file of that name. ``EvaluationError`` says where it comes from and where it may lie."""
    places = folders(chosen)
    for folder in places:
        if (folder / file).is_file():
            return folder / file
    if chosen is not None:
        raise EvaluationError(f"no {file} in {chosen} (it comes from {source})")
    raise EvaluationError(f"no {file}: get it from {source} and put it into {places[0]}, or pass --weights")


def load_weights(network: Network, path: Path, but: tuple[str, ...] = ()) -> Network:
    """The network with the weights of a file, for inference: every one must be there, and no other.

    Those whose names begin with one of ``but`` are not looked at. A training checkpoint keeps the weights
    under ``model``. ``EvaluationError`` in one line.
    """
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            state = torch.load(path, map_location="cpu", weights_only=True)
        # a training checkpoint
        state = state.get("model", state)
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith(but)})
    except Exception as error:  # a file of another kind can fail anywhere in the reader
        raise EvaluationError(
            f"{path}: no weights of {type(network).__name__} ({first_line(error)})"
        ) from None
    return network.eval()
