"""vab learn."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.interrupt import check
from vab.cli.options import Device, Model, WeightsPath
from vab.cli.output import log, print_result
from vab.errors import SettingError
from vab.utils.progress import count_bar
from vab.utils.world import check_alone


def learn(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="MODEL")],
    model: Model = None,
    steps: int = 150,
    codec_path: WeightsPath = None,
    vision_path: WeightsPath = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Teach a model the labelled sounds and pictures of a folder, in minutes on a laptop.

    Each subfolder is a label, such as door/ with door/*.wav and door/*.jpg; a film with sound is both. A
    label needs four sounds and a picture, or it is named and left out. MODEL becomes a model directory like
    any other, for vab generate, classify and studio --model MODEL. Its README.md says what it was made from.
    So that it does not forget, half of what it trains on are its own sounds for pictures of what it knew, of
    which vab-tiny, and each model made from it here, keeps features in rehearsal.safetensors.

    Interrupted, the same command goes on. Until the model is done its work lies beside it, in MODEL.learning.

    Args:
        folder: the folder whose subfolders are labels.
        out: the model directory to write; it must not exist yet.
        model: the model to start from: a name (see vab models), a model directory or a Hub id. Default: the
            bundled vab-tiny.
        steps: the number of training steps.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        vision_path: file, folder or Hub id of the image encoder's weights, instead of the default ones.
        device: the device to compute on.
        json: print one JSON document to standard output.
    """
    check_alone()
    if steps < 1:
        raise SettingError("--steps must be 1 or more")
    if not folder.is_dir():
        raise SettingError(f"{folder}: is no folder")

    from vab.training.teaching.learn import learn as teach

    with count_bar("prepare") as advance:

        def report(done: int, total: int, failed: int) -> None:
            check()
            advance(done, total, f"({failed} failed)")

        learned = teach(
            folder,
            out,
            model,
            steps=steps,
            device=device,
            codec_path=codec_path,
            vision_path=vision_path,
            log=log,
            advance=report,
        )
    for line in learned.left_out.values():
        log(line)
    text = (
        f"{out}: learned {', '.join(learned.labels)} in {learned.seconds / 60:.1f} min\n"
        f"use it: vab studio --model {out}, or vab generate INPUT -o OUT --model {out}"
    )
    print_result({"model": str(out), **asdict(learned)}, text, json)
    return 1 if learned.left_out else 0
