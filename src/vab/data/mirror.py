"""Stores by URL: a local copy that is read like any store, and shards that are uploaded as they are written.

A shard's name is the hash of what it holds, so one that is here already need not be fetched again, and the
same shard of two writers is uploaded twice, which changes nothing. An object store shows an upload when it is
whole. Beside such a store there is no lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from vab.data.shard import PATTERN, Latents, Shard, StoreError, StoreMeta, read_meta, write_shard
from vab.utils.files import atomic, user_cache
from vab.utils.locks import waiting
from vab.utils.progress import step_bar
from vab.utils.provenance import sha256
from vab.utils.remote import filesystem, reason

SETTINGS = ("store.json", "codebooks.safetensors")
FETCHED_AT_ONCE = 8
_BY_CONTENT = re.compile(r"shard-[0-9a-f]{16}\.arrow")


def mirror(url: str) -> Path:
    """The folder with a copy of the store at ``url``, which is what lies there now; empty if there is none.

    It is in ``$VAB_CACHE``, by default ``~/.cache/vab``. Of several processes one fetches, the others wait.
    ``StoreError`` if the store cannot be read, or a file is not what its name says.
    """
    folder = _folder(url)
    folder.mkdir(parents=True, exist_ok=True)
    with waiting(folder / ".mirror"), _said(url):
        # 1. What lies there; the listing of an earlier call would be another one.
        files, root = filesystem(url)
        files.invalidate_cache()
        try:
            entries = [entry.rstrip("/").rpartition("/")[2] for entry in files.ls(root, detail=False)]
        except FileNotFoundError as error:
            if reason(error) != "no such file":
                raise
            entries = []
        names = {name for name in entries if name in SETTINGS or Path(name).match(PATTERN)}

        # 2. The settings, and the shards that are not here. Numbered ones do not tell what they hold.
        for path in [*folder.glob(PATTERN), *(folder / name for name in SETTINGS)]:
            if path.name not in names:
                path.unlink(missing_ok=True)
        wanted = sorted(
            name
            for name in names - set(SETTINGS)
            if not ((folder / name).exists() and _BY_CONTENT.fullmatch(name))
        )
        for name in names.intersection(SETTINGS):
            _fetch(url, folder / name, None)
        if not (folder / SETTINGS[0]).exists():
            return folder
        meta = read_meta(folder)
        with step_bar("fetch", len(wanted), 0) as advance, ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            for _ in pool.map(lambda name: _fetch(url, folder / name, meta), wanted):
                advance("")
    return folder


@contextmanager
def uploading(folder: Path, url: str | None) -> Iterator[Callable[[Path], None]]:
    """Yield what brings a file of ``folder`` to the store at ``url`` that it is a copy of; None: it is none.

    A file that is not here is removed there. ``mirror`` waits meanwhile, so it sees no file that is only
    here. ``StoreError`` if that fails.
    """
    if url is None:
        yield lambda path: None
        return
    if url.startswith(("http://", "https://")):
        raise StoreError(f"{url}: stores are only read by http; write to an object store or a folder")

    def upload(path: Path) -> None:
        with _said(url):
            files, root = filesystem(url)
            place = f"{root.rstrip('/')}/{path.name}"
            if path.exists():
                files.put_file(str(path), place)
            elif files.exists(place):
                files.rm_file(place)

    folder.mkdir(parents=True, exist_ok=True)
    with waiting(folder / ".mirror"):
        yield upload


def write_rows(folder: Path, url: str | None, meta: StoreMeta, rows: Sequence[Latents]) -> Path:
    """Write one shard of clips to a store, or to the copy of one and to its ``url``; returns its path."""
    with uploading(folder, url) as upload:
        path = write_shard(folder, meta, rows)
        upload(path)
    return path


def _folder(url: str) -> Path:
    return user_cache() / "stores" / sha256(url.rstrip("/"))[:16]


def _fetch(url: str, path: Path, meta: StoreMeta | None) -> None:
    """Fetch a file of a store, whole and verified if it is a shard, or not at all."""
    files, root = filesystem(url)
    with atomic(path) as temporary:
        files.get_file(f"{root.rstrip('/')}/{path.name}", str(temporary))
    if meta is None:
        return
    try:
        Shard(path, meta).check()
    except StoreError:
        path.unlink()
        raise StoreError(
            f"{url}/{path.name} is damaged; remove it there, then `vab extract` makes what is missing"
        ) from None


@contextmanager
def _said(url: str) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # each library has exceptions of its own
        raise StoreError(f"{url}: {reason(error)}") from error
