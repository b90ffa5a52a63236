"""The list of clips that could not be extracted, ``failures.csv``, written by several processes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Container, Mapping
from pathlib import Path

from vab.data.mirror import uploading
from vab.data.store import LatentStore
from vab.utils.files import write_whole
from vab.utils.shares import Share

_PART = re.compile(r"failures-(\d+)-of-(\d+)\.csv")


def write_failures(store: LatentStore, share: Share, failed: Mapping[str, str]) -> None:
    """Write what failed of a share, id -> reason, as far as it is known: a file of its own for each share."""
    path = _path(store.directory, share)
    with uploading(store.directory, store.url) as upload:
        _write(path, failed)
        upload(path)


def settle_failures(directory: Path, share: Share, failed: Mapping[str, str], known: Container[str]) -> None:
    """Join the lists of all shares to one, by the last writer of a store, whose own share is ``share``.

    What ``known`` holds has not failed. Of the writer's share only what it says is listed, of another share
    what its own list says, else what was listed before.
    """
    listed = _read(_path(directory, Share()))
    parts = [path for path in sorted(directory.glob("failures-*.csv")) if _PART.fullmatch(path.name)]
    for path in parts:
        other = Share.parse("/".join(_PART.fullmatch(path.name).groups()))  # type: ignore[union-attr]
        listed = {ident: reason for ident, reason in listed.items() if not other.has(ident)} | _read(path)
    listed = {ident: reason for ident, reason in listed.items() if not share.has(ident)} | dict(failed)
    _write(
        _path(directory, Share()), {ident: reason for ident, reason in listed.items() if ident not in known}
    )
    for path in parts:
        path.unlink(missing_ok=True)


def _path(directory: Path, share: Share) -> Path:
    part = "" if share.count == 1 else f"-{share.index + 1}-of-{share.count}"
    return directory / f"failures{part}.csv"


def _read(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["id"]: row["reason"] for row in csv.DictReader(stream)}


def _write(path: Path, failed: Mapping[str, str]) -> None:
    # no file where nothing failed: what an earlier run could not read may be mended
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "reason"))
    writer.writerows(failed.items())
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))
