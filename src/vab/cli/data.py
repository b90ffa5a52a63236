"""vab data: manifests from the official files of datasets, or from a folder of media."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vab.cli.options import WeightsPath
from vab.cli.output import log, print_result
from vab.errors import SettingError
from vab.utils import count_of

if TYPE_CHECKING:
    from vab.data.datasets.common import Report
    from vab.data.datasets.videos import Exclusion
    from vab.data.manifest import Clip
    from vab.utils.findings import Findings

Manifest = Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="MANIFEST")]
Lists = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="LIST")]

DEV_SHARE = 0.005  # of VGGSound some 900 clips, of AudioSet-2M some 9,000


def folder(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Manifest,
    seconds: float = 10.0,
    dev_share: float = 0.1,
    exclude: Lists = (),
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of all media in a folder, searched recursively.

    A file longer than the window becomes several clips. dog.wav and dog.mp4 in one folder form one clip. The
    label is the name of the file's folder; a top folder called train, dev, val or test gives the split.

    What was seen in more than a thousand files is kept in looked_at.sqlite beside MANIFEST: cut off, it goes
    on, and the next manifest there is soon made. It may be deleted.

    Args:
        root: the folder of media.
        out: the CSV file to write, with the columns id,audio,video,start,seconds,label,split.
        seconds: the length of one clip.
        dev_share: the share of videos assigned to the split dev, where no folder gives the split; chosen by a
            hash of the YouTube id that the file is named after, else of its path below FOLDER.
        exclude: keep the videos of this list out of train and dev (the split test stays whole): those of the
            list's own split test if it has one, else all of them. Files named after YouTube ids are compared
            by the id, others by their path below FOLDER. Repeatable.
        drop_still: leave out clips whose image never changes (decodes one frame per second).
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.common import copied
    from vab.data.datasets.folder import folder_clips
    from vab.data.manifest import write_manifest

    if not 0 < seconds < math.inf:
        raise SettingError("--seconds must be positive")
    _check_share(dev_share)
    exclusion = _exclusion(exclude, youtube=False)
    with _findings(out) as findings:
        clips, failed, still, notes = folder_clips(root, seconds, dev_share, drop_still, exclusion, findings)
        copies = copied(clips, findings)
    for line in (*notes, *failed.values()):
        log(line)
    if not clips:
        left = "nothing of it is left" if any(exclusion.excluded.values()) else "has no media in it"
        raise SettingError(f"{root}: {left}")
    write_manifest(out, clips)
    document = {"manifest": str(out), "clips": len(clips), "failed": failed, "copies": copies}
    document |= {"excluded": exclusion.excluded, "kept_tests": exclusion.kept_tests}
    text = f"{out}: {count_of(len(clips), 'clip')}, {count_of(len(failed), 'file')} left out"
    if drop_still:
        document["still_frames"] = still
        text += f", {count_of(len(still), 'still clip')} left out"
    for name, count in exclusion.excluded.items():
        text += f", {count} kept out by {name}"
    _tell_kept_tests(exclusion.kept_tests)
    if copies:
        text += f"; {len(copies)} are copies of another's file"
    print_result(document, text, json)
    return 1 if failed else 0


def synthetic(
    out: Manifest,
    clips: int = 16,
    seconds: float = 5.0,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Make clips of bouncing balls that click at every bounce, with event times, and their manifest.

    Args:
        out: the CSV file to write, always called manifest.csv; the clips and events.json go beside it.
        clips: the number of clips.
        seconds: the length of each clip.
        seed: the random seed; the same seed gives the same clips.
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.synthetic import write_synthetic

    if clips < 1 or not 1 <= seconds <= 3600 or seed < 0:
        raise SettingError("--clips must be 1 or more, --seconds from 1 to 3600, --seed 0 or more")
    if out.suffix == ".csv" and out.name != "manifest.csv":
        raise SettingError(f"{out}: the manifest is called manifest.csv, beside its clips")
    manifest = write_synthetic(out.parent if out.suffix == ".csv" else out, clips, seconds, seed)
    print_result({"manifest": str(manifest), "clips": clips}, f"{manifest}: {count_of(clips, 'clip')}", json)
    return 0


def vggsound(
    listing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    media: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MEDIA")],
    out: Manifest,
    subset: Literal["all", "retrieval"] = "all",
    dev_share: float = DEV_SHARE,
    exclude: Lists = (),
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of VGGSound: the clips of an official list that are present in MEDIA.

    Files are named <id>_<start>.mp4, the start in seconds (padded to six digits or not) or milliseconds, in
    MEDIA or any folder below it.

    What was seen in more than a thousand files is kept in looked_at.sqlite beside MANIFEST: cut off, it goes
    on, and the next manifest there is soon made. It may be deleted.

    Args:
        listing: vggsound.csv, test.csv or train.csv.
        media: the folder of clips.
        out: the CSV file to write, with the columns id,audio,video,start,seconds,label,split.
        subset: all clips, or retrieval: the first 5 of each class in test.csv, 1,545 clips.
        dev_share: the share of the videos of train that become the split dev, which the official lists do not
            have, by a hash of the YouTube id: a video falls the same way in every list. 0: all are train.
        exclude: keep the videos of this list out of train and dev (the split test stays whole): those of the
            list's own split test if it has one, else all of them. An official list, a manifest, or ids one a
            line; compared by YouTube id, so that no other segment of such a video comes in. Repeatable.
        drop_still: leave out clips whose image never changes (decodes one frame per second).
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.vggsound import vggsound_clips

    _check_share(dev_share)
    exclusion = _exclusion(exclude)
    return _write(
        out,
        lambda findings: vggsound_clips(listing, media, subset, drop_still, dev_share, exclusion, findings),
        json,
    )


def audioset(
    lists: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LISTS")],
    media: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MEDIA")],
    out: Manifest,
    parts: tuple[Literal["2m", "20k", "eval"], ...],
    subset: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    dev_share: float = DEV_SHARE,
    exclude: Lists = (),
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of AudioSet: the segments of the official lists that are present in MEDIA.

    A file is one segment, named <id>, <id>_<start> or <id>_<start>_<end> (seconds or milliseconds), with or
    without a leading Y, in MEDIA or any folder below it. Labels are display names, joined by ";".

    What was seen in more than a thousand files is kept in looked_at.sqlite beside MANIFEST: cut off, it goes
    on, and the next manifest there is soon made. It may be deleted.

    Args:
        lists: the folder with class_labels_indices.csv, eval_segments.csv, balanced_train_segments.csv, ...
        media: the folder of segments: videos, sounds, or both.
        out: the CSV file to write, with the columns id,audio,video,start,seconds,label,split.
        parts: 2m (unbalanced and balanced) and 20k (balanced) give the split train, eval the split test.
        subset: only the ids in this JSON file, {"data": [{"video_id": ...}]}.
        dev_share: the share of the videos of train that become the split dev, which the official lists do not
            have, by a hash of the YouTube id: a video falls the same way in every list. 0: all are train.
        exclude: keep the videos of this list out of train and dev (the split test stays whole): those of the
            list's own split test if it has one, else all of them. An official list, a manifest, or ids one a
            line; compared by YouTube id, so that no other segment of such a video comes in. Repeatable.
        drop_still: leave out clips whose image never changes (decodes one frame per second).
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.audioset import audioset_clips

    if not parts:
        raise SettingError("--parts needs one or more of 2m, 20k, eval")
    _check_share(dev_share)
    exclusion = _exclusion(exclude)
    return _write(
        out,
        lambda findings: audioset_clips(
            lists, media, parts, subset, drop_still, dev_share, exclusion, findings
        ),
        json,
    )


def msrvtt(
    listing: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LIST")],
    media: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MEDIA")],
    out: Manifest,
    exclude: Lists = (),
    drop_still: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of MSR-VTT's test split: the clips that are present in MEDIA and have sound.

    Args:
        listing: test_videodatainfo.json.
        media: the folder with video7010.mp4, ...
        out: the CSV file to write, with the columns id,audio,video,start,seconds,label,split.
        exclude: keep the videos of this list out, by names such as video7010: those of its split test if it
            has one, else all of them. Repeatable.
        drop_still: leave out clips whose image never changes (decodes one frame per second).
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.msrvtt import msrvtt_clips

    exclusion = _exclusion(exclude, youtube=False, tests_too=True)
    return _write(out, lambda findings: msrvtt_clips(listing, media, drop_still, exclusion, findings), json)


def esc50(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Manifest,
    fold: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    esc10: bool = False,
    json: bool = False,
) -> int:
    """Write the manifest of ESC-50, with its folds as the splits fold1 to fold5 (for vab evaluate folds).

    Args:
        root: the unpacked dataset, with meta/esc50.csv and audio/.
        out: the CSV file to write, with the columns id,audio,video,start,seconds,label,split.
        fold: the fold (1 to 5) to make the split test; the others become train.
        esc10: only the ten classes of ESC-10.
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.esc50 import esc50_clips

    return _write(out, lambda findings: esc50_clips(root, fold, esc10, findings), json)


def speech_commands(
    root: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    test: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TEST_FOLDER")],
    out: Manifest,
    json: bool = False,
) -> int:
    """Write the manifest of Speech Commands v0.01 with 12 classes: ten words, _unknown_ and _silence_.

    Args:
        root: the unpacked speech_commands_v0.01, for the splits train and dev by the official rule.
        test: the unpacked speech_commands_test_set_v0.01, for the split test.
        out: the CSV file to write, with the columns id,audio,video,start,seconds,label,split.
        json: print one JSON document to standard output.
    """
    from vab.data.datasets.speech_commands import speech_commands_clips

    return _write(out, lambda findings: speech_commands_clips(root, test, findings), json)


def vatt(
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")],
    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="STORE")],
    listing: Annotated[Path, tyro.conf.arg(name="list", metavar="LIST")],
    codec_path: Annotated[WeightsPath, tyro.conf.arg(aliases=["--codebooks"])] = None,
    dev_share: float = DEV_SHARE,
    exclude: Lists = (),
    json: bool = False,
) -> int:
    """Import VATT's published latents of VGGSound into a store. Run again, it resumes.

    Their features come from EVA02-CLIP-L at 336 pixels (the presets use 224): to train on them, set
    --model.vision eva02-clip-l-336.

    Args:
        tokens: the folder of EnCodec tokens, one npy (500, 4) per clip.
        features: the folder of EVA-CLIP features at 5 frames per second, one npy (about 50, 768) per clip.
        out: the folder of the store.
        listing: vggsound.csv, with the label and split of each clip.
        codec_path: file, folder or Hub id of the EnCodec of AudioGen, instead of the default one.
        dev_share: the share of the videos of train that become the split dev, which the official lists do not
            have, by a hash of the YouTube id: a video falls the same way in every list. 0: all are train.
        exclude: keep the videos of this list out of train and dev (the split test stays whole): those of the
            list's own split test if it has one, else all of them. An official list, a manifest, or ids one a
            line; compared by YouTube id, so that no other segment of such a video comes in. Repeatable.
        json: print one JSON document to standard output.
    """
    from vab.codecs.codec import load_codec
    from vab.data.datasets.vatt import vatt_store

    _check_share(dev_share)
    exclusion = _exclusion(exclude)
    vectors = load_codec("encodec", codec_path).codebook_vectors().cpu().numpy()
    report = vatt_store(listing, tokens, features, out, vectors, dev_share, exclusion)
    return _print_report("store", out, report, json)


def _check_share(dev_share: float) -> None:
    if not 0 <= dev_share <= 1:
        raise SettingError("--dev-share must be between 0 and 1")


def _exclusion(exclude: tuple[Path, ...], youtube: bool = True, tests_too: bool = False) -> Exclusion:
    """Read the lists of videos to keep out, before anything takes long."""
    from vab.data.datasets.videos import Exclusion, read_videos

    lists = [read_videos(path, youtube) for path in dict.fromkeys(exclude)]
    for videos in lists:
        if videos.note:
            log(videos.note)
    return Exclusion(lists, tests_too)


def _tell_kept_tests(kept_tests: dict[str, int]) -> None:
    for name, count in kept_tests.items():
        if count:
            clips = count_of(count, "clip")
            log(f"{name}: {clips} of the split test of its videos too; a test set stays whole")


@contextmanager
def _findings(out: Path) -> Iterator[Findings]:
    """What was seen in the media of the manifests of this folder."""
    from vab.utils.findings import NAME, Findings

    with Findings(out.parent / NAME) as findings:
        yield findings
    if findings.fault:
        log(findings.fault)


def _write(out: Path, gather: Callable[[Findings], tuple[list[Clip], Report]], json: bool) -> int:
    """Gather the clips, write the manifest and print the report."""
    from vab.data.manifest import write_manifest

    with _findings(out) as findings:
        clips, report = gather(findings)
    if clips:
        write_manifest(out, clips)
    return _print_report("manifest", out, report, json)


def _print_report(kind: str, out: Path, report: Report, json: bool) -> int:
    """Print the report; returns the exit code. Missing clips are normal, unreadable ones are failures."""
    for reason in report.unreadable.values():
        log(reason)
    if not report.left:
        raise SettingError(f"{out}: not written, there would be {report.text()}")
    _tell_kept_tests(report.kept_tests)
    print_result({kind: str(out), **asdict(report)}, f"{out}: {report.text()}", json)
    return 1 if report.unreadable else 0
