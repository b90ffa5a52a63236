"""Provenance of results: hashes, the exact version of the code; folders written as a whole."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vab.errors import naming
from vab.utils.files import sync_folder, temporary_folder

PACKAGE = Path(__file__).parents[1]


def sha256(*parts: bytes | str) -> str:
    """Hash all parts, each prefixed with its length, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogateescape") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def version() -> str:
    """Version of the package."""
    try:
        return metadata.version("vab")
    except metadata.PackageNotFoundError:
        return "not installed"


def code_version() -> dict[str, Any]:
    """``version`` of the package, git ``commit`` (None outside a checkout), hash of the ``sources``."""
    files = sorted(PACKAGE.rglob("*.py"))
    sources = sha256(
        *(part for file in files for part in (str(file.relative_to(PACKAGE)), file.read_bytes()))
    )
    return {"version": version(), "commit": _commit(), "sources": sources}


def _commit() -> str | None:
    """Commit of the checkout that tracks this package; None for an installed package."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "config.py"], check=True, capture_output=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip()


@contextmanager
def whole_folder(folder: Path, last: str) -> Iterator[Path]:
    """Yield a temporary folder whose files move to ``folder`` when the block succeeds, ``last`` at the end.

    If it fails ``folder`` stays as it was. ``last`` is the file by which the folder is recognised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder), temporary_folder(folder / "model") as staging:
        yield staging

        # Each file is renamed, not copied; False sorts before True, so ``last`` is last.
        files = [path for path in staging.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == last):
            target = folder / path.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        sync_folder(folder)
