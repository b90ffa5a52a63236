"""Option types shared by several verbs, and the loader of the embedder they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from vab.utils import PrecisionChoice
from vab.utils.remote import RemoteError, is_url

if TYPE_CHECKING:
    from vab.inference.embedder import Embedder
    from vab.utils.device import Chosen

Files = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...", help_behavior_hint="(required)")
]
Model = Annotated[str | None, tyro.conf.arg(metavar="NAME|DIR|HUB_ID")]
WeightsPath = Annotated[str | None, tyro.conf.arg(metavar="PATH|HUB_ID")]
Link = Annotated[str | None, tyro.conf.arg(metavar="URL")]
AllowHost = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = PrecisionChoice
Devices = Annotated[int, tyro.conf.arg(metavar="N")]
Shard = Annotated[str | None, tyro.conf.arg(metavar="I/N")]

LOCAL_PATHS = ConstructorRegistry()  # how an option that is a path is read; one that may be a URL is a str


@LOCAL_PATHS.primitive_rule
def _local_path(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    if kind.type is not Path:
        return None
    return PrimitiveConstructorSpec(1, "PATH", _path, lambda x: isinstance(x, Path), lambda x: [str(x)])


def _path(words: list[str]) -> Path:
    # Path would make one slash of two, and look for a folder of that name.
    if is_url(words[0]):
        raise RemoteError(f"{words[0]} is a URL; what is named here is a path on this machine")
    return Path(words[0])


def load_embedder(
    model: str | None, device: Device, precision: Chosen, codec_path: str | None, vision_path: str | None
) -> Embedder:
    """Load the embedder, which also classifies."""
    from vab.inference.embedder import Embedder

    paths = {"codec_path": codec_path, "vision_path": vision_path}
    return Embedder.from_pretrained(model, device=device, dtype=precision, **paths)
