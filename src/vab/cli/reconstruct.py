"""vab codec reconstruct."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vab.cli.output import show, tell


def reconstruct(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")],
    codec: Literal["encodec", "dac", "tiny"] = "tiny",
    codebooks: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    codec_path: Annotated[str | None, tyro.conf.arg(metavar="PATH|HUB_ID")] = None,
    skip_existing: bool = False,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    json: bool = False,
) -> int:
    """Send sounds through a codec and back: FOLDER/<input stem>.wav, as long as the input.

    What the codec loses, no model of its tokens can bring back. Measure it with
    vab evaluate generation INPUT FOLDER.

    Args:
        inputs: sounds, videos, folders (all in them and below), quoted patterns, or CSV lists.
        out: the folder for the results; made if it is missing.
        codec: which one; tiny is the small codec inside the package.
        codebooks: how many of its codebooks, from the first. Left out: all.
        codec_path: file, folder or Hub id of the codec's weights, if not the usual ones.
        skip_existing: leave out inputs whose result exists.
        device: where to compute.
        json: one JSON document on standard output.
    """
    from vab.cli.progress import file_progress
    from vab.codecs.codec import load_codec
    from vab.evaluate.reconstruction import reconstruct_files
    from vab.utils.device import pick_device

    results = []
    loaded = load_codec(codec, codec_path, pick_device(device))
    with file_progress() as watch:
        for result in reconstruct_files(inputs, out, loaded, codebooks, skip_existing, watch):
            results.append(result)
            if result.status == "failed":
                tell(str(result.error))
            elif not json:
                print(f"{result.input}: {result.status}, {', '.join(result.outputs)}", flush=True)
    kept = codebooks or loaded.num_codebooks
    document = {"codec": codec, "codebooks": kept, "results": [asdict(result) for result in results]}
    if json:
        show(document, "", True)
    return 1 if any(result.status == "failed" for result in results) else 0
