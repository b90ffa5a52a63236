"""Files that stand under their name whole or not at all, also after a crash or a loss of power."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vab.errors import naming
from vab.utils.locks import lock

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic(path: str | Path, over: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``: synced and renamed to it if the block succeeds, else removed.

    The suffix stays the same; the folder is made if it is missing. What a killed process left half written is
    taken over by the next one that writes the same file. ``over=False``: what stands under the name is kept
    (``FileExistsError``).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as temporary:
        try:
            with naming(path):
                yield temporary
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
    """The name to write under: always the same, so that leftovers of killed processes do not gather.

    It is locked meanwhile, and whoever writes the same file at the same time gets another.
    """
    stem = path.stem[:80]
    usual = path.with_name(f".{stem}.tmp{path.suffix}")
    try:
        file = usual.open("ab")
    except OSError as error:
        error.filename = str(path)
        raise
    with file:
        try:
            lock(file)
            # whoever held it before us may have renamed or removed it
            free = os.path.samestat(os.fstat(file.fileno()), usual.stat())
        except OSError:
            free = False
        if free:
            file.truncate(0)
            yield usual
            return
    yield path.with_name(f".{stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that under its name stands either the old or the new content, never a part."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def move(file: Path, path: Path) -> None:
    """Bring a file under another name on the same disk, never over what is there: ``FileExistsError``."""
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
    """Write a safetensors file that stands under its name whole or not at all; ``OSError`` if it cannot."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata
            )
        except SafetensorError as error:  # it hides what the system said in its text: a full disk, no folder
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
