"""vab data: official files of a dataset -> a manifest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vab.cli.output import show, tell
from vab.errors import SettingError

if TYPE_CHECKING:
    from vab.data.datasets.common import Report
    from vab.data.manifest import Clip

Manifest = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="MANIFEST")]


def folder(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Manifest,
    seconds: float = 10.0,
    dev_share: float = 0.1,
    drop_still: bool = False,
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
        drop_still: leave out clips of videos whose picture never moves (decodes a frame a second).
        json: one JSON document on standard output.
    """
    from vab.data.datasets.common import copied
    from vab.data.datasets.folder import folder_clips
    from vab.data.manifest import write_manifest

    if not seconds > 0 or not 0 <= dev_share <= 1:
        raise SettingError("--seconds must be positive, and --dev-share between 0 and 1")
    clips, left_out, still = folder_clips(root, seconds, dev_share, drop_still)
    copies = copied(clips)
    for reason in left_out.values():
        tell(reason)
    if not clips:
        raise SettingError(f"{root}: has no media in it")
    write_manifest(out, clips)
    failed = {str(path): reason for path, reason in left_out.items()}
    document = {"manifest": str(out), "clips": len(clips), "failed": failed, "copies": copies}
    text = f"{out}: {len(clips)} clips, {len(failed)} files left out"
    if drop_still:
        document["still_frames"] = still
        text += f", {len(still)} still clips left out"
    if copies:
        text += f"; {len(copies)} are copies of another's file"
    show(document, text, json)
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
    from vab.data.datasets.synthetic import write_synthetic

    if clips < 1 or not seconds >= 1 or seed < 0:
        raise SettingError("--clips must be 1 or more, --seconds 1 or more, --seed 0 or more")
    if out.suffix == ".csv" and out.name != "manifest.csv":
        raise SettingError(f"{out}: the manifest is called manifest.csv, beside its clips")
    manifest = write_synthetic(out.parent if out.suffix == ".csv" else out, clips, seconds, seed)
    show({"manifest": str(manifest), "clips": clips}, f"{manifest}: {clips} clips", json)
    return 0


def vggsound(
    listing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    media: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MEDIA")],
    out: Manifest,
    subset: Literal["all", "retrieval"] = "all",
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of VGGSound: the clips of an official list that are there.

    Files are called <id>_<start>.mp4, the start in seconds (padded to six places or not) or milliseconds, in
    MEDIA or any folder below.

    Args:
        listing: vggsound.csv, or test.csv or train.csv.
        media: the folder with the clips.
        out: the csv file to write: id,audio,video,start,seconds,label,split.
        subset: retrieval is the first 5 of each class in test.csv, 1,545 clips.
        drop_still: leave out clips whose picture never moves (decodes a frame a second).
        json: one JSON document on standard output.
    """
    from vab.data.datasets.vggsound import vggsound_clips

    return _write(out, lambda: vggsound_clips(listing, media, subset, drop_still), json)


def audioset(
    lists: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LISTS")],
    media: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MEDIA")],
    out: Manifest,
    parts: tuple[Literal["2m", "20k", "eval"], ...],
    subset: Path | None = None,
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of AudioSet: the segments of the official lists that are there.

    A file is one segment, called <id>, <id>_<start> or <id>_<start>_<end> (seconds or milliseconds), also
    with a Y before it, in MEDIA or any folder below. Labels are display names, joined by ";".

    Args:
        lists: the folder with class_labels_indices.csv, eval_segments.csv, balanced_train_segments.csv, ...
        media: the folder with the segments: videos, sounds, or both.
        out: the csv file to write: id,audio,video,start,seconds,label,split.
        parts: 2m is unbalanced and balanced, 20k balanced (both split train), eval the split test.
        subset: json file {"data": [{"video_id": ...}]}; only these ids.
        drop_still: leave out clips whose picture never moves (decodes a frame a second).
        json: one JSON document on standard output.
    """
    from vab.data.datasets.audioset import audioset_clips

    if not parts:
        raise SettingError("--parts needs one or more of 2m, 20k, eval")
    return _write(out, lambda: audioset_clips(lists, media, parts, subset, drop_still), json)


def msrvtt(
    listing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    media: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MEDIA")],
    out: Manifest,
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of MSR-VTT's test split, of the clips that are there and have a sound.

    Args:
        listing: test_videodatainfo.json.
        media: the folder with video7010.mp4 ...
        out: the csv file to write: id,audio,video,start,seconds,label,split.
        drop_still: leave out clips whose picture never moves (decodes a frame a second).
        json: one JSON document on standard output.
    """
    from vab.data.datasets.msrvtt import msrvtt_clips

    return _write(out, lambda: msrvtt_clips(listing, media, drop_still), json)


def esc50(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Manifest,
    fold: int | None = None,
    esc10: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of ESC-50, its folds as the splits fold1 to fold5 (for vab evaluate folds).

    Args:
        root: the unpacked set: meta/esc50.csv and audio/.
        out: the csv file to write: id,audio,video,start,seconds,label,split.
        fold: 1 to 5: this one is the split test, the others are train.
        esc10: only the ten classes of ESC-10.
        json: one JSON document on standard output.
    """
    from vab.data.datasets.esc50 import esc50_clips

    return _write(out, lambda: esc50_clips(root, fold, esc10), json)


def speech_commands(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    test: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEST_FOLDER")],
    out: Manifest,
    json: bool = False,
) -> int:
    """Write the manifest of Speech Commands v0.01 with 12 classes: ten words, _unknown_ and _silence_.

    Args:
        root: the unpacked speech_commands_v0.01: the splits train and dev, by the official rule.
        test: the unpacked speech_commands_test_set_v0.01.
        out: the csv file to write: id,audio,video,start,seconds,label,split.
        json: one JSON document on standard output.
    """
    from vab.data.datasets.speech_commands import speech_commands_clips

    return _write(out, lambda: speech_commands_clips(root, test), json)


def vatt(
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")],
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STORE")],
    listing: Annotated[Path, tyro.conf.arg(name="list", metavar="LIST")],
    codebooks: str | None = None,
    json: bool = False,
) -> int:
    """Bring VATT's published latents of VGGSound into a store. Called again, it goes on where it was.

    Their features come from EVA02-CLIP-L for 336 pixels (the presets': 224): train a model on them with
    --model.vision eva02-clip-l-336.

    Args:
        tokens: the folder with EnCodec tokens, one npy (500, 4) a clip.
        features: the folder with EVA-CLIP features at 5 frames a second, one npy (about 50, 768) a clip.
        out: the store's folder.
        listing: vggsound.csv, which has each clip's label and split.
        codebooks: file, folder or Hub id of the EnCodec of AudioGen, if not the usual one.
        json: one JSON document on standard output.
    """
    from vab.codecs.codec import load_codec
    from vab.data.datasets.vatt import vatt_store

    vectors = load_codec("encodec", codebooks).codebook_vectors().cpu().numpy()
    report = vatt_store(listing, tokens, features, out, vectors)
    return _tell("store", out, report, json)


def _write(out: Path, gather: Callable[[], tuple[list[Clip], Report]], json: bool) -> int:
    """Gather the clips, write the manifest and say what is left."""
    from vab.data.manifest import write_manifest

    clips, report = gather()
    if clips:
        write_manifest(out, clips)
    return _tell("manifest", out, report, json)


def _tell(kind: str, out: Path, report: Report, json: bool) -> int:
    """Print the report; the exit code. Clips that are gone are normal, unreadable ones are not."""
    for reason in report.unreadable.values():
        tell(reason)
    if not report.left:
        raise SettingError(f"{out}: not written, there would be {report.text()}")
    show({kind: str(out), **asdict(report)}, f"{out}: {report.text()}", json)
    return 1 if report.unreadable else 0
