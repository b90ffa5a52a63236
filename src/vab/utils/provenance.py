"""What a result was made with: hashes and the exact version of the code."""

from __future__ import annotations

import hashlib
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


def sha256(*parts: bytes | str) -> str:
    """Hash of all parts, each one length-prefixed so that the borders count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def code_version() -> dict[str, Any]:
    """``version`` of the package, git ``commit`` (None outside a checkout), hash of the ``sources``."""
    try:
        version = metadata.version("vab")
    except metadata.PackageNotFoundError:
        version = "not installed"
    files = sorted(PACKAGE.rglob("*.py"))
    sources = sha256(
        *(part for file in files for part in (str(file.relative_to(PACKAGE)), file.read_bytes()))
    )
    return {"version": version, "commit": _commit(), "sources": sources}


def _commit() -> str | None:
    """Commit of the checkout that tracks this package; None for an installed package."""
    git = ["git", "-C", str(PACKAGE)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", "config.py"], check=True, capture_output=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip()
