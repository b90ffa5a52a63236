"""vab codec train. Its options are the fields of the codec's configuration, so this module imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.output import log, print_result
from vab.codecs.tiny import TinyCodecConfig
from vab.training.codec.sounds import read_sounds
from vab.training.codec.train import CodecTrainConfig, train_codec


def train(
    manifest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MANIFEST")],
    out: Annotated[Path, tyro.conf.arg(aliases=["--run"], metavar="DIR")],
    training: Annotated[CodecTrainConfig, tyro.conf.arg(name="")] = CodecTrainConfig(),  # noqa: B008 (frozen)
    codec: TinyCodecConfig = TinyCodecConfig(),  # noqa: B008 (frozen)
    init: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    json: bool = False,
) -> int:
    """Train the small codec on the train split of a manifest. Run again, it resumes.

    Args:
        manifest: CSV file with the columns id,audio,video,start,seconds,label,split.
        out: folder for the state of the run and the codec (codec.json, codec.safetensors).
        training: the training settings.
        codec: the sizes of the codec.
        init: folder of a codec to start from: its codebooks stay fixed, its decoder is trained further. Its
            sizes count where none are given; with a level-dim that it has not, all codebooks are fitted anew.
        json: print one JSON document to standard output.
    """
    left_out: list[str] = []
    sounds = read_sounds(manifest, log=left_out.append)
    for reason in left_out:
        log(reason)
    last: dict[str, float] = {}

    def report(line: dict[str, float]) -> None:
        last.update(line)
        log("  ".join(f"{name} {value:.4g}" for name, value in line.items()))

    sizes = None if init is not None and codec == TinyCodecConfig() else codec
    train_codec(sounds, out, training, sizes, report, init, log=log)
    print_result({"run": str(out), "last": last, "failed": left_out}, f"{out}: done", json)
    return 1 if left_out else 0
