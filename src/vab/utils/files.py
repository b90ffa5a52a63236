"""Atomic writes: a file is there whole or not at all, even after a crash or a loss of power."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vab.errors import VABError, first_line, naming
from vab.utils.locks import lock

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"  # key in the metadata of a safetensors file
MAX_JSON_BYTES = 256 << 20
PIECE = 1 << 24  # bytes of it that are hashed in one go


class DamagedError(VABError, ValueError):
    """A file whose contents are not those that were written."""


@contextmanager
def atomic(path: str | Path, over: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``: synced and renamed to it if the block succeeds, else removed.

    The suffix stays the same; the folder is made if it is missing. What a killed process left half written is
    taken over by the next one that writes the same file. ``over=False``: an existing file is kept
    (``FileExistsError``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as temporary:
        try:
            with naming(path):
                yield temporary

                # Contents first, then the name: after a loss of power there is never a name without them.
                with temporary.open("rb+") as written:
                    os.fsync(written.fileno())
                if over:
                    os.replace(temporary, path)
                    sync_folder(path.parent)
                else:
                    move(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the name to write under: always the same, so that leftovers of killed processes do not gather.

    It is locked meanwhile, and whoever writes the same file at the same time gets another.
    """
    # 1. Open the usual name, without cutting it short: another process may be writing it.
    # File systems allow names of 255 bytes; half a letter is left out.
    stem = os.fsdecode(os.fsencode(path.stem)[:80].decode(errors="ignore").encode())
    usual = path.with_name(f".{stem}.tmp{path.suffix}")
    try:
        file = usual.open("ab")
    except OSError as error:
        error.filename = str(path)
        raise

    # 2. It is ours if it can be locked, and if nobody renamed or removed it before we had the lock.
    with file:
        try:
            lock(file)
            free = os.path.samestat(os.fstat(file.fileno()), usual.stat())
        except OSError:
            free = False
        if free:
            file.truncate(0)
            yield usual
            return

    # 3. Else a name that nobody else has.
    yield path.with_name(f".{stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


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
