"""Atomic writes: a file is there whole or not at all, even after a crash or a loss of power."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vab.errors import VABError, first_line, naming
from vab.utils.locks import lock

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"  # key in the metadata of a safetensors file
DAY = 24 * 3600.0
_TEMPORARY = re.compile(r"\..*\.vab-([0-9a-f]{8})[0-9a-f]{8}\.tmp(\..*)?", re.DOTALL)
_swept: set[Path] = set()  # folders that this process has looked through
MAX_JSON_BYTES = 256 << 20
PIECE = 1 << 24  # bytes of it that are hashed in one go


class DamagedError(VABError, ValueError):
    """A file whose contents are not those that were written."""


@contextmanager
def atomic(path: str | Path, over: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``: synced and renamed to it if the block succeeds, else removed.

    The suffix stays the same; the folder is made if it is missing. What killed processes left half written in
    the folder is removed. ``over=False``: an existing file is kept (``FileExistsError``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path), _temporary(path, path.suffix[:20], _make_file) as temporary:
        yield temporary

        # Contents first, then the name: after a loss of power there is never a name without them.
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if over:
            os.replace(temporary, path)
            sync_folder(path.parent)
        else:
            move(temporary, path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, on the same disk, which is removed in the end."""
    with _temporary(path, "", Path.mkdir) as temporary:
        yield temporary


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield an empty folder where the system has its temporary files, which is removed in the end.

    Nobody but its owner may look into it, for others use that place too.
    """
    with _temporary(Path(tempfile.gettempdir(), name), "", partial(Path.mkdir, mode=0o700)) as temporary:
        yield temporary


@contextmanager
def _temporary(path: Path, suffix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make something under a name beside ``path`` that says whose it is; locked until it is done."""
    sweep(path.parent)
    while True:
        # 1. A name that nobody has, of at most 255 bytes.
        stem = os.fsencode(path.stem)[:80].decode(errors="ignore")  # half a letter is left out
        name = f".{stem}.vab-{_host()}{secrets.token_hex(4)}.tmp{suffix}"
        temporary = path.with_name(name)
        with naming(path):
            make(temporary)
        try:
            with ExitStack() as stack:
                # 2. It is ours unless somebody swept it away before we held it.
                try:
                    alone = stack.enter_context(_held(temporary))
                except FileNotFoundError:
                    continue
                if alone is not False and temporary.exists():
                    yield temporary
                    return
        finally:
            _remove(temporary)


def _make_file(path: Path) -> None:
    path.touch(exist_ok=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, again: bool = False) -> None:
    """Remove what killed processes left half written in a folder, once in the life of this one or ``again``.

    Their locks are free. Where there are none, and on disks shared with other machines, whose locks may not
    be seen here, it has to be a day old.
    """
    if folder in _swept and not again:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None:
                continue
            with suppress(OSError), _held(Path(entry.path)) as alone:
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY
                if alone is not False and (old or (alone and found[1] == _host())):
                    _remove(Path(entry.path))


@contextmanager
def _held(path: Path) -> Iterator[bool | None]:
    """Lock a file or a folder; yields False if somebody else has, None where there are no locks."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        try:
            lock(handle)
        except BlockingIOError:
            yield False
        except OSError:
            yield None
        else:
            yield True
    finally:
        os.close(handle)


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to a file, which holds either the old or the new content at any time, never a part."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON document for people to read too, as :func:`write_whole` does."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ``ValueError`` if it is something else, ``OSError`` if it cannot be read."""
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise ValueError("it is no file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES >> 20} MiB")
    return json_object(path.read_bytes())


def json_object(content: str | bytes) -> dict[str, Any]:
    """The JSON object that a text is; ``ValueError`` says what else it is."""
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it must hold names and values, not a {type(values).__name__}")
    return values


def leads_elsewhere(path: Path) -> bool:
    """True if ``path`` is a link: what is written there, or below it, would be written somewhere else."""
    return path.resolve() != path.parent.resolve() / path.name


def user_cache() -> Path:
    """The folder of what is kept for this user on this machine: ``$VAB_CACHE``, by default ``~/.cache/vab``.

    It may not be there. ``RuntimeError`` where a user has no home.
    """
    return Path(os.environ.get("VAB_CACHE") or Path.home() / ".cache" / "vab")


def move(file: Path, path: Path) -> None:
    """Rename a file on the same disk, never over an existing one: ``FileExistsError``."""
    # A link fails if the name is taken; a rename would replace it.
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        file.rename(path)
        sync_folder(path.parent)
        return
    sync_folder(path.parent)
    file.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a loss of power (where the system can)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with its checksum, atomically; ``OSError`` if that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        # 1. The tensors, with a checksum of zeros.
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        zeros = "0" * 64
        try:
            save_file(tensors, temporary, {**(metadata or {}), CHECKSUM: zeros})
        except SafetensorError as error:
            # It hides the system's error (a full disk, no folder) in its text: make it an OSError again.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

        # 2. The true one in its place.
        with temporary.open("rb+") as file:
            before = f'"{CHECKSUM}":"'.encode()
            size = int.from_bytes(file.read(8), "little")
            file.seek(8 + file.read(size).index(before + zeros.encode()) + len(before))
            file.write(_computed(temporary).encode())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, verified by its checksum (those of version 0.1 have none).

    ``DamagedError`` if it cannot be read or holds other contents than were written, ``OSError`` if there is
    no such file.
    """
    from safetensors.torch import load_file

    check_tensors(path)
    return load_file(path)


def check_tensors(path: Path) -> None:
    """Compare a safetensors file with its checksum, if it has one; raises as ``load_tensors``."""
    written = _written(path)
    if written is not None and written != _computed(path):
        raise DamagedError(
            f"{path} is damaged: its contents do not match its checksum; download or save it again"
        )


def tensors_checksum(path: Path) -> str:
    """The checksum of a safetensors file as it was written, without reading the tensors if that is known."""
    return _written(path) or _computed(path)


def _written(path: Path) -> str | None:
    """The checksum in the header of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as stream:
            return (stream.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from error


def _computed(path: Path) -> str:
    """Hash of the header, with its keys in order and without the checksum, and of the tensors."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # 1. The header: 8 bytes of length, then JSON.
        begin = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:begin])
        about = header.pop("__metadata__", {})
        about.pop(CHECKSUM, None)

        # 2. The tensors, in pieces hashed side by side.
        with memoryview(content) as view, ThreadPoolExecutor() as pool:
            pieces = (view[start : start + PIECE] for start in range(begin, len(view), PIECE))
            hashes = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return hashlib.sha256(
        b"".join([json.dumps([header, about], sort_keys=True).encode(), *hashes])
    ).hexdigest()
