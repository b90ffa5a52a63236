"""Files with the same bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from vab.utils.findings import Findings

BLOCK = 4096  # bytes at the beginning, in the middle and at the end by which most files differ


def copies(paths: Iterable[Path], findings: Findings | None = None) -> dict[Path, Path]:
    """Map each file with the same bytes as one before it to the first of these; unreadable ones are none.

    Files of one size are compared by three blocks, and only those with equal blocks by the hash of all their
    bytes. ``findings`` keeps the hashes.
    """
    findings = findings or Findings()
    order = list(dict.fromkeys(paths))
    groups = [order]
    groups = _split(groups, findings, None, _size, "sizes")
    groups = _split(groups, findings, f"blocks of {BLOCK}", _blocks, "compare")
    groups = _split(groups, findings, "sha256", _sha256, "hash")
    originals = {copy: group[0] for group in groups for copy in group[1:]}
    return {path: originals[path] for path in order if path in originals}


def _split(
    groups: list[list[Path]],
    findings: Findings,
    kind: str | None,
    look: Callable[[Path], int | str],
    title: str,
) -> list[list[Path]]:
    """Those of each group in which the same is found, in order, if they are two or more."""
    members = ((n, path) for n, group in enumerate(groups) for path in group)
    group_of = {path: n for n, path in members}
    alike: dict[tuple[int, int | str], list[Path]] = {}
    for (path,), found in findings.find(kind, look, ((path,) for path in group_of), len(group_of), title):
        if isinstance(found, OSError):
            continue
        if isinstance(found, Exception):
            raise found
        alike.setdefault((group_of[path], found), []).append(path)
    return [group for group in alike.values() if len(group) > 1]


def _size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # to open a named pipe is to wait for ever
        raise OSError("not a file")
    return status.st_size


def _blocks(path: Path) -> str:
    """Hash of three blocks: of a short file they overlap."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=BLOCK) as stream:
        size = os.fstat(stream.fileno()).st_size
        if hasattr(os, "posix_fadvise"):  # or the system reads ahead what nobody wants
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for start in (0, size // 2, size - BLOCK):
            stream.seek(max(0, start))
            digest.update(stream.read(BLOCK))
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
