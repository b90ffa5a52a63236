"""vab data: official files of a dataset -> a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vab.cli.output import BadCall, show, tell

Manifest = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="MANIFEST")]


def folder(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Manifest,
    seconds: float = 10.0,
    dev_share: float = 0.1,
    json: bool = False,
) -> int:
    """Write the manifest of all media in a folder and below.

    A file longer than the window becomes several clips. dog.wav and dog.mp4 in one folder are one clip. The
    label is the name of the file's folder; a first folder called train, dev, val or test is the split.

    Args:
        root: the folder with the media.
        out: the csv file to write: id,audio,video,start,seconds,label,split.
        seconds: the window of one clip.
        dev_share: share of the files for the split dev, where no folder says otherwise.
        json: one JSON document on standard output.
    """
    from vab.datasets.folder import folder_clips
    from vab.store import write_manifest

    if not seconds > 0 or not 0 <= dev_share <= 1:
        raise BadCall("--seconds must be positive, and --dev-share between 0 and 1")
    try:
        clips, left_out = folder_clips(root, seconds, dev_share)
    except OSError as error:
        raise BadCall(str(error)) from error
    for reason in left_out.values():
        tell(reason)
    if not clips:
        raise BadCall(f"{root}: has no media in it")
    try:
        write_manifest(out, clips)
    except OSError as error:
        raise BadCall(f"{out}: cannot be written ({error.strerror})") from error
    failed = {str(path): reason for path, reason in left_out.items()}
    document = {"manifest": str(out), "clips": len(clips), "failed": failed}
    show(document, f"{out}: {len(clips)} clips, {len(failed)} files left out", json)
    return 1 if failed else 0


def synthetic(
    out: Manifest,
    clips: int = 16,
    seconds: float = 5.0,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Write clips of bouncing balls that click at every hit, with their times, and the manifest.

    Args:
        out: the csv file to write, always called manifest.csv; the clips and events.json go beside it.
        clips: how many.
        seconds: the length of each.
        seed: the same seed gives the same clips.
        json: one JSON document on standard output.
    """
    from vab.datasets.synthetic import write_synthetic

    if clips < 1 or not seconds >= 1 or seed < 0:
        raise BadCall("--clips must be 1 or more, --seconds 1 or more, --seed 0 or more")
    if out.suffix == ".csv" and out.name != "manifest.csv":
        raise BadCall(f"{out}: the manifest is called manifest.csv, beside its clips")
    try:
        manifest = write_synthetic(out.parent if out.suffix == ".csv" else out, clips, seconds, seed)
    except OSError as error:
        raise BadCall(f"{out}: cannot be written ({error.strerror})") from error
    show({"manifest": str(manifest), "clips": clips}, f"{manifest}: {clips} clips", json)
    return 0
