"""A folder of media -> clips of a manifest."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from vab.data.datasets.common import find_still
from vab.data.datasets.videos import Exclusion, falls_into
from vab.data.manifest import Clip
from vab.errors import failure
from vab.media.container import MediaError
from vab.media.file import MediaInfo
from vab.media.inputs import Tree
from vab.media.reader import probe
from vab.utils.findings import Findings
from vab.utils.tables import ListError

SPLITS = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}
MIN_REST_SECONDS = 1.0  # a shorter rest at the end of a long file is left out


def folder_clips(
    root: str | Path,
    seconds: float = 10.0,
    dev_share: float = 0.1,
    drop_still: bool = False,
    exclusion: Exclusion | None = None,
    findings: Findings | None = None,
) -> tuple[list[Clip], dict[str, str], list[str], list[str]]:
    """Clips of every media file under ``root``, what was left out with the reason, still clips, and notes.

    A file longer than the window of ``seconds`` becomes several clips ``id#0``, ``id#1`` ... that do not
    overlap. Audio and video with the same name in the same folder (``dog.wav``, ``dog.mp4``) are one
    clip. The label is the name of the file's folder, the split that of the first folder if it is called
    train, dev, val or test; else ``dev_share`` of the videos is dev (``videos.falls_into``).
    Hidden files are not looked at; linked folders are, with the notes of ``inputs.Tree``. With ``drop_still``
    clips of videos that never move (``common.is_still``) are left out; photos stay. ``exclusion`` keeps
    videos out, ``findings`` keeps what was seen. ``ListError`` if ``root`` is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise ListError(f"{root}: no such folder")

    findings = findings or Findings()
    exclusion = exclusion or Exclusion()

    # 1. What each file is.
    tree = Tree()
    left_out: dict[str, str] = {}
    paths: list[Path] = []
    for path in sorted(map(Path, tree.files(str(root)))):
        try:
            str(path.relative_to(root)).encode()
            paths.append(path)
        except UnicodeEncodeError:
            left_out[str(path)] = f"{path}: its name is not UTF-8, so no manifest can hold it; rename it"

    # 2. Files of one name, such as dog.wav and dog.mp4, are a group.
    groups: dict[Path, dict[str, MediaInfo]] = {}
    for (path,), found in findings.find("info", _info, ((path,) for path in paths), len(paths), "look"):
        if isinstance(found, MediaError | OSError):
            left_out[str(path)] = failure(path, found)
            continue
        if isinstance(found, Exception):
            raise found
        info = MediaInfo(path, **json.loads(found))
        kind = "audio" if info.kind == "audio" else "video"
        group = groups.setdefault(path.with_suffix(""), {})
        if kind in group:  # a second one of the same name stands alone
            groups[path] = {kind: info}
        else:
            group[kind] = info

    # 3. Each group is cut into windows.
    clips = [
        clip
        for group in groups.values()
        for clip in _clips(root, group.get("audio"), group.get("video"), seconds, dev_share)
        if not exclusion.keeps_out(clip.id, clip.split)
    ]
    still: set[str] = set()
    if drop_still:
        moving = {info.path for group in groups.values() for info in group.values() if info.kind == "video"}
        still, unreadable = find_still([clip for clip in clips if clip.video in moving], findings)
        left_out |= unreadable
        clips = [clip for clip in clips if clip.id not in still and clip.id not in unreadable]
    return clips, left_out | tree.faults, sorted(still), tree.notes


def _info(path: Path) -> str:
    """What ``probe`` says of a file, as JSON."""
    facts = asdict(probe(path))
    del facts["path"]
    return json.dumps(facts)


def _clips(
    root: Path, audio: MediaInfo | None, video: MediaInfo | None, window: float, dev_share: float
) -> list[Clip]:
    """The clips of one audio file, one video or image, or both."""
    # The video gives the clip its name; its own sound counts where there is no sound file.
    main = video or audio
    assert main is not None
    if audio is None and main.has_audio:
        audio = main

    # Label and split by folder; without a folder called train, dev ... the split goes by a hash.
    length = max(info.seconds for info in (audio, video) if info is not None)
    name = main.path.relative_to(root)
    split = SPLITS.get(name.parts[0].lower()) if len(name.parts) > 1 else None
    label = name.parts[-2] if len(name.parts) > (1 if split is None else 2) else ""

    # Whole windows, and a rest that is long enough.
    count = max(1, math.floor(length / window))
    if length - count * window >= MIN_REST_SECONDS:
        count += 1
    return [
        Clip(
            id=name.as_posix() + (f"#{n}" if count > 1 else ""),
            audio=audio.path if audio else None,
            video=video.path if video else None,
            start=n * window,
            seconds=min(window, length - n * window) or None,
            label=label,
            split=split or ("dev" if falls_into(name.as_posix(), dev_share) else "train"),
        )
        for n in range(count)
    ]
