"""vab codec: the small codec. Its options are the fields of its configuration, so torch is loaded here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.output import show, tell
from vab.codecs.tiny import TinyCodecConfig
from vab.training.codec import CodecTrainConfig, train_codec
from vab.training.codec_data import read_sounds


def train(
    manifest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")],
    run: Path,
    training: Annotated[CodecTrainConfig, tyro.conf.arg(name="")] = CodecTrainConfig(),  # noqa: B008 (frozen)
    codec: TinyCodecConfig = TinyCodecConfig(),  # noqa: B008 (frozen)
    init: Path | None = None,
    json: bool = False,
) -> int:
    """Train the small codec on the sounds of a manifest's split train; called again, it goes on.

    Args:
        manifest: csv file: id,audio,video,start,seconds,label,split.
        run: folder for the run's state and the codec (codec.json, codec.safetensors).
        training: how to train.
        codec: its sizes.
        init: folder of a codec to start from; its codes stay, its decoder is trained on.
        json: one JSON document on standard output.
    """
    left_out: list[str] = []
    sounds = read_sounds(manifest, tell=left_out.append)
    for reason in left_out:
        tell(reason)
    last: dict[str, float] = {}

    def report(line: dict[str, float]) -> None:
        last.update(line)
        tell("  ".join(f"{name} {value:.4g}" for name, value in line.items()))

    train_codec(sounds, run, training, codec, report, init)
    show({"run": str(run), "last": last, "failed": left_out}, f"{run}: done", json)
    return 1 if left_out else 0
