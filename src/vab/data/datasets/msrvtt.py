"""MSR-VTT: the clips of its test split that have audio, for zero-shot retrieval."""

from __future__ import annotations

from pathlib import Path

from vab.data.datasets.common import Report, Row, gather
from vab.data.datasets.videos import Exclusion
from vab.data.manifest import Clip
from vab.utils.files import json_object
from vab.utils.findings import Findings
from vab.utils.tables import ListError, read_text


def read_list(path: str | Path) -> list[Row]:
    """Rows of the split test of ``test_videodatainfo.json`` or of a file with all splits (2,990 clips).

    ``ListError`` if it is not that, or has no clip of the split test.
    """
    text = read_text(path, ListError)
    try:
        videos = json_object(text)["videos"]
        tests = [str(video["video_id"]) for video in videos if video["split"] == "test"]
    except (ValueError, KeyError, TypeError):
        raise ListError(
            f'{path}: not json like {{"videos": [{{"video_id": "video0", "split": "test"}}]}}'
        ) from None
    if not tests:
        raise ListError(f"{path}: none of its {len(videos)} videos is of the split test")
    # a clip is called like its file, and has no label
    return [Row(name, (name,), "", "test") for name in tests]


def msrvtt_clips(
    listing: str | Path,
    media: str | Path,
    drop_still: bool = False,
    exclusion: Exclusion | None = None,
    findings: Findings | None = None,
) -> tuple[list[Clip], Report]:
    """Clips ``video7010.mp4`` ... of the test split that are there and have audio, and a report on the rest.

    There are no labels; a clip is as long as its file (10 to 32 s).
    """
    return gather(read_list(listing), media, drop_still, exclusion, findings)
