"""vab codec reconstruct."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vab.cli.options import Device, Files, WeightsPath
from vab.cli.output import log, print_result, say


def reconstruct(
    inputs: Files,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")],
    codec: Literal["encodec", "dac", "tiny"] = "tiny",
    codebooks: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    codec_path: WeightsPath = None,
    skip_existing: bool = False,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Encode sounds with a codec and decode them again: FOLDER/<input stem>.wav, as long as the input.

    What lies in folders below an input folder keeps them below FOLDER; equal names are told apart.
    This bounds the quality of any model of its tokens. Measure it with vab evaluate generation INPUT FOLDER.

    Args:
        inputs: sounds, videos, folders (searched recursively), quoted glob patterns, or CSV files.
        out: the folder for the results, created if needed.
        codec: the codec; tiny is the small codec bundled with the package.
        codebooks: the number of codebooks to use, from the first. Default: all.
        codec_path: file, folder or Hub id of the codec's weights, instead of the default ones.
        skip_existing: skip inputs whose result exists, made with the same codec and codebooks.
        device: the device to compute on.
        json: print one JSON document to standard output.
    """
    from vab.cli.progress import file_progress
    from vab.codecs.codec import load_codec
    from vab.evaluate.reconstruction import reconstruct_files
    from vab.utils.device import pick_device

    results = []
    loaded = load_codec(codec, codec_path, pick_device(device))
    with file_progress() as watch:
        for result in reconstruct_files(inputs, out, loaded, codebooks, skip_existing, watch, log):
            results.append(result)
            if result.status == "failed":
                log(str(result.error))
            elif not json:
                say(f"{result.input}: {result.status}, {', '.join(result.outputs)}")
            for note in result.notes:
                log(f"{result.input}: {note}")
    kept = codebooks or loaded.num_codebooks
    document = {"codec": codec, "codebooks": kept, "results": [asdict(result) for result in results]}
    if json:
        print_result(document, "", True)
    return 1 if any(result.status == "failed" for result in results) else 0
