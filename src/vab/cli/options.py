"""Options that several verbs share, and loading what they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from vab.inference.embedder import Embedder

Files = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
Model = Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR|HUB_ID")]
Place = Annotated[str | None, tyro.conf.arg(metavar="PATH|HUB_ID")]
Link = Annotated[str | None, tyro.conf.arg(metavar="URL")]
Device = Literal["auto", "cpu", "cuda", "mps"]


def load_embedder(
    model: str | None, device: Device, codec_path: str | None, vision_path: str | None
) -> Embedder:
    """What embeds and classifies."""
    from vab.inference.embedder import Embedder

    return Embedder.from_pretrained(model, device=device, codec_path=codec_path, vision_path=vision_path)
