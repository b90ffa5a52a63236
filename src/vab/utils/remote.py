"""Files that fsspec opens: on S3, on the web, in memory, and members of archives, each named by its URL.

A URL may be a chain, as fsspec has it: ``tar://clips/a.mp4::s3://bucket/part.tar`` is a member of an archive.
What has no protocol, or that of local files, stays a ``Path``: only what needs fsspec goes through it.
"""

from __future__ import annotations

import io
import posixpath
import re
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from vab.errors import VABError, first_line

BLOCK = 8 << 20  # bytes of one request, and of a file that is fetched whole at once
_BLOCKS = 4  # kept of each open file
_HEADERS = 1 << 16  # bytes of one request for the headers of an archive
_URL = re.compile(r"[a-z][a-z0-9+.-]+(://|::.*://)", re.IGNORECASE | re.DOTALL)
_reading: dict[str, threading.Lock] = {}  # by archive


class RemoteError(VABError):
    """A URL that cannot be used. The message is one line with the URL and the reason."""


@dataclass(frozen=True)
class RemoteFile:
    """A file with a URL of fsspec's. It is shown as its URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    def open(self, kind: type[VABError] = RemoteError) -> BinaryIO:
        """The open file, which can seek; opening and reading raise ``kind`` with one line.

        Some blocks of it are in memory. Where a server gives no parts of a file, all goes to a temporary one.
        """
        return io.BufferedReader(_Raw(self.url, kind), 1 << 16)

    def opener(self, kind: type[VABError] = RemoteError) -> Callable[[], BinaryIO]:
        """What opens it again and again; a small file is fetched once for all of them."""
        with self.open(kind) as file:
            if file.seek(0, io.SEEK_END) > BLOCK:
                return partial(self.open, kind)
            file.seek(0)
            return partial(NamedBytes, file.read(), file.name)

    def read(self, kind: type[VABError] = RemoteError) -> bytes:
        """All of it; raises ``kind`` with one line."""
        with self.open(kind) as file:
            return file.read()


def is_url(name: str | Path) -> bool:
    """True for the name of a file that is not on a local disk, or that is in an archive."""
    return _URL.match(str(name)) is not None


def locate(name: str | Path, beside: str | Path | RemoteFile = "") -> Path | RemoteFile:
    """The file of that name: a URL, an absolute path, or one relative to the folder of the file ``beside``.

    The archive of a chain may be relative too: ``tar://a.mp4::part.tar``.
    """
    name = str(name)
    if is_url(name):
        member, chained, place = name.partition("::")
        if chained:
            return RemoteFile(f"{member}::{locate(place, beside)}")
        protocol, _, path = name.partition("://")
        return Path(path) if protocol.lower() in ("file", "local") else RemoteFile(name)
    if isinstance(beside, str):
        beside = Path(beside)
    if isinstance(beside, Path):
        return beside.parent / name
    if name.startswith("/"):
        return Path(name)

    # Relative to a URL: to the first link of its chain that has a place.
    links = beside.url.split("::")
    at = next(n for n, link in enumerate(links) if "://" in link)
    protocol, _, path = links[at].partition("://")
    if protocol.lower() in ("http", "https"):
        path, name = re.split("[?#]", path)[0], quote(name)
    place = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
    links[at] = f"{protocol}://{place}"
    return RemoteFile("::".join(links))


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of fsspec's for a URL, and the path there; it is made once for all files on it."""
    import fsspec

    return fsspec.core.url_to_fs(url)


def reason(error: BaseException) -> str:
    """Why a URL cannot be read or written, in one line."""
    # What a server answered is the cause of "no such file".
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    if getattr(cause, "status", None) == 404 or isinstance(cause, FileNotFoundError):
        return "no such file"
    if hasattr(cause, "status") and hasattr(cause, "message"):
        return f"the server answers {cause.status} {cause.message}".strip()
    if isinstance(cause, ImportError):
        ours = any(name in str(cause) for name in ("s3fs", "aiohttp"))
        return first_line(cause) + "; pip install 'vab[remote]'" * ours
    return first_line(cause)


class _Raw(io.RawIOBase):
    """A file of fsspec's, or that part of a tar archive which is one of its members."""

    def __init__(self, url: str, kind: type[VABError], block: int | None = None) -> None:
        self.name = url.partition("::")[0]  # its ending tells some formats
        self._url, self._kind = url, kind
        self._place, self._start = 0, 0
        size: int | None = None
        with self._said():
            if url.startswith("tar://"):
                member, _, url = url.removeprefix("tar://").partition("::")
                self._start, size = _member(url, member)
            self._files, self._path = filesystem(url)
            # Blocks, not a window that reads ahead: the index of a film may be at its end.
            kept = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
            self._file: Any = self._files.open(self._path, "rb", block_size=block or BLOCK, **kept)
            if getattr(self._file, "size", 0) is None:  # a stream
                self._fetch()
            self._size = self._file.seek(0, io.SEEK_END) if size is None else size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = max(0, offset + (0, self._place, self._size)[whence])
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        size = max(0, min(len(buffer), self._size - self._place))
        if not size:
            return 0
        with self._said():
            try:
                data = self._part(size)
            except ValueError:  # a server that gives no parts
                self._fetch()
                data = self._part(size)
            if len(data) != size:
                raise OSError("it ends before its length")
        buffer[:size] = data
        self._place += size
        return size

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

    def _part(self, size: int) -> bytes:
        self._file.seek(self._start + self._place)
        return self._file.read(size)

    def _fetch(self) -> None:
        """Take all of the file, to memory or a temporary file."""
        if "tar://" in self._url:
            raise OSError("its server gives no parts of a file, which members of an archive need")
        self._file.close()
        self._file = tempfile.SpooledTemporaryFile(max_size=BLOCK)  # noqa: SIM115
        self._files.get_file(self._path, self._file)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Errors of fsspec and its libraries, each of which has its own, in one line."""
        try:
            yield
        except Exception as error:
            raise self._kind(f"{self._url}: {reason(error)}") from error


class NamedBytes(io.BytesIO):
    """Bytes that are read like an open file; by the ending of its name some formats are known."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _member(archive: str, name: str) -> tuple[int, int]:
    """Where a member of a tar archive begins, and its size."""
    with _reading.setdefault(archive, threading.Lock()):  # one thread reads the headers, the others wait
        members = _members(archive)
    try:
        return members[posixpath.normpath(name.lstrip("/"))]
    except KeyError:
        raise LookupError("the archive has no such member") from None


@lru_cache(maxsize=64)
def _members(archive: str) -> dict[str, tuple[int, int]]:
    """Where the files in a tar archive begin, and their sizes; its headers are read once."""
    try:
        with _Raw(archive, RemoteError, _HEADERS) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            files = (member for member in tar if member.isreg() and not member.issparse())
            return {posixpath.normpath(each.name): (each.offset_data, each.size) for each in files}
    except tarfile.TarError as error:
        raise OSError(f"its archive is no uncompressed tar file: {first_line(error)}") from None
