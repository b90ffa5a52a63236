"""Option types shared by several verbs, and the loader of the embedder they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from vab.inference.embedder import Embedder

Files = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...", help_behavior_hint="(required)")
]
Model = Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR|HUB_ID")]
WeightsPath = Annotated[str | None, tyro.conf.arg(metavar="PATH|HUB_ID")]
Link = Annotated[str | None, tyro.conf.arg(metavar="URL")]
Device = Literal["auto", "cpu", "cuda", "mps"]


def load_embedder(
    model: str | None, device: Device, codec_path: str | None, vision_path: str | None
) -> Embedder:
    """Load the embedder, which also classifies."""
    from vab.inference.embedder import Embedder

    return Embedder.from_pretrained(model, device=device, codec_path=codec_path, vision_path=vision_path)
