"""Media and stores by URL: what fsspec opens gives what the same local file gives, or fails in one line."""

from __future__ import annotations

import http.server
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from helpers.films import write_film
from vab.data.manifest import ManifestError, read_manifest, write_manifest
from vab.errors import failure
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.utils import remote
from vab.utils.remote import RemoteError, RemoteFile, locate


class Quiet(http.server.SimpleHTTPRequestHandler):
    """The server of ``python -m http.server``, which gives whole files only."""

    requests: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def send_head(self) -> Any:
        self.requests.append(self.path)
        return super().send_head()


class Ranges(Quiet):
    """Gives parts of files too, as object stores do."""

    def send_head(self) -> Any:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            return super().send_head()
        self.requests.append(self.path)
        first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
        last = min(last, path.stat().st_size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last + 1 - first))
        return None


@contextmanager
def serving(folder: Path, kind: type[Quiet] = Quiet) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of that folder, and the list of what it is asked for."""
    handler = type("Handler", (kind,), {"requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "a b#1.mp4"
    return write_film(path, [n / 25 for n in range(50)], sounds=[("aac", 2.0)])


@pytest.fixture
def memory() -> Any:
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    return files


def streams(source: Any) -> tuple[np.ndarray, np.ndarray, float]:
    with MediaFile(source) as file:
        return np.stack(list(file.frames(5.0))), file.audio(), file.info.seconds


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(streams(one), streams(other), strict=True))


# ---- names


@pytest.mark.parametrize(
    ("name", "beside", "found"),
    [
        ("a.mp4", "/data/m.csv", Path("/data/a.mp4")),
        ("/x/a.mp4", "/data/m.csv", Path("/x/a.mp4")),
        ("file:///x/a.mp4", "/data/m.csv", Path("/x/a.mp4")),
        ("a::b.mp4", "/data/m.csv", Path("/data/a::b.mp4")),
        ("s3://b/a.mp4", "/data/m.csv", RemoteFile("s3://b/a.mp4")),
        ("tar://x/a.mp4::p.tar", "/data/m.csv", RemoteFile("tar://x/a.mp4::/data/p.tar")),
        ("tar://a.mp4::/p.tar", "s3://b/m.csv", RemoteFile("tar://a.mp4::/p.tar")),
        ("tar://a.mp4::p.tar", "s3://b/l/m.csv", RemoteFile("tar://a.mp4::s3://b/l/p.tar")),
        ("../c/a b?.mp4", "s3://b/l/m.csv", RemoteFile("s3://b/c/a b?.mp4")),
        ("a b?.mp4", "https://h/l/m.csv?key=/1", RemoteFile("https://h/l/a%20b%3F.mp4")),
        ("a.mp4", "tar://l/m.csv::s3://b/p.tar", RemoteFile("tar://l/a.mp4::s3://b/p.tar")),
        ("a.mp4", "simplecache::s3://b/m.csv", RemoteFile("simplecache::s3://b/a.mp4")),
        ("/x/a.mp4", "s3://b/m.csv", Path("/x/a.mp4")),
        ("m.csv", "", Path("m.csv")),
    ],
)
def test_where_a_name_leads(name: str, beside: str, found: Path | RemoteFile) -> None:
    assert locate(name, locate(beside)) == found


def test_a_manifest_by_url_is_read_and_written(memory: Any, tmp_path: Path) -> None:
    rows = "1,a.mp4,tar://b.mp4::part.tar,0,2,dog,train\n2,,s3://bucket//c.mp4,,,,dev\n"
    memory.pipe("/lists/m.csv", b"id,audio,video,start,seconds,label,split\n" + rows.encode())
    clips = read_manifest("memory://lists/m.csv")
    assert [str(clip.audio) for clip in clips] == ["memory://lists/a.mp4", "None"]
    assert [str(clip.video) for clip in clips] == [
        "tar://b.mp4::memory://lists/part.tar",
        "s3://bucket//c.mp4",
    ]
    write_manifest(tmp_path / "m.csv", clips)
    assert read_manifest(tmp_path / "m.csv") == clips


# ---- media


def test_a_film_by_url_is_that_film(film: Path, memory: Any) -> None:
    memory.pipe("/films/a.mp4", film.read_bytes())
    assert same(RemoteFile("memory://films/a.mp4"), film)
    with serving(film.parent) as (address, asked):
        assert same(locate(film.name, RemoteFile(f"{address}/m.csv")), film)
        assert len(asked) <= 8, "a small file is fetched once for all passes"


@pytest.mark.parametrize("kind", [Quiet, Ranges])
def test_a_large_film_is_read_in_parts_where_the_server_gives_them(
    film: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Quiet]
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1 << 12)  # the film is larger than some blocks
    assert film.stat().st_size > 5 * remote.BLOCK
    with serving(film.parent, kind) as (address, _):
        assert same(locate(film.name, RemoteFile(f"{address}/m.csv")), film)


def test_members_of_archives(film: Path, memory: Any, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for name in ("x.txt", "clips/a.mp4", "clips/b.mp4"):
            tar.add(film, name)
        tar.add(film.parent, "./folder")
    memory.pipe("/p/part.tar", (tmp_path / "part.tar").read_bytes())
    for archive in (str(tmp_path / "part.tar"), "memory://p/part.tar"):
        for member in ("clips/b.mp4", "/clips/a.mp4", f"folder/{film.name}"):
            assert same(RemoteFile(f"tar://{member}::{archive}"), film)
    with serving(tmp_path, Ranges) as (address, _):
        assert same(RemoteFile(f"tar://clips/b.mp4::{address}/part.tar"), film)


def test_the_headers_of_an_archive_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for n in range(300):
            tar.add(tmp_path / "a.txt", f"{n}.txt")
    with serving(tmp_path, Ranges) as (address, asked):
        url = f"{address}/part.tar"
        threads = [threading.Thread(target=RemoteFile(f"tar://{n}.txt::{url}").read) for n in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert RemoteFile(f"tar://299.txt::{url}").read() == b"abc"
        # one reading of 450 kB of headers, and for each member its length and a part
        assert len(asked) <= 12 + 2 * 21, len(asked)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("memory://none.mp4", "memory://none.mp4: no such file"),
        ("memory://text.mp4", "memory://text.mp4: not a readable media file"),
        ("nothing://a.mp4", "nothing://a.mp4: Protocol not known: nothing"),
        ("http://127.0.0.1:9/a.mp4", "http://127.0.0.1:9/a.mp4: Connect call failed"),
        ("{server}/none.mp4", "{server}/none.mp4: no such file"),
        ("tar://a.mp4::memory://none.tar", "tar://a.mp4::memory://none.tar: memory://none.tar: no such file"),
        ("tar://a.mp4::memory://text.mp4", "tar://a.mp4::memory://text.mp4: its archive is no uncompressed"),
        ("tar://none::{server}/part.tar", "tar://none::{server}/part.tar: the archive has no such member"),
    ],
)
def test_what_cannot_be_read_is_one_line(url: str, line: str, memory: Any, tmp_path: Path) -> None:
    memory.pipe("/text.mp4", b"no film" * 1000)
    with tarfile.open(tmp_path / "part.tar", "w"):
        pass
    with serving(tmp_path) as (address, _):
        url, line = url.format(server=address), line.format(server=address)
        with pytest.raises(MediaError) as caught, MediaFile(RemoteFile(url)) as file:
            file.audio()
        said = failure(RemoteFile(url), caught.value)
    assert said.startswith(line) and "\n" not in said and said.count(url) == 1, said


def test_a_server_that_fails_midway_is_one_line(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1 << 12)
    with serving(film.parent, Ranges) as (address, _):
        source = locate(film.name, RemoteFile(f"{address}/m.csv"))
        with MediaFile(source) as file:
            assert file.has_video
            frames = file.frames(5.0)
            next(frames)
            film_bytes = film.read_bytes()
            try:
                film.write_bytes(film_bytes[: 1 << 12])  # cut off while it is read
                with pytest.raises(MediaError, match="a%20b%231"):
                    list(frames)
                    file.audio()
            finally:
                film.write_bytes(film_bytes)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gcsfs", "s3fs", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, module, None)
    known = sys.modules["fsspec.registry"]._registry  # type: ignore[attr-defined]
    for protocol in ("http", "https", "s3", "gcs"):
        monkeypatch.delitem(known, protocol, raising=False)
    with pytest.raises(RemoteError, match=r"gcs://b/a: .* gcsfs to access Google Storage$"):
        RemoteFile("gcs://b/a").open()
    for url in ("s3://b/a", "https://h/a"):
        with pytest.raises(RemoteError, match=rf"{url}: .*; pip install 'vab\[remote\]'$"):
            RemoteFile(url).open()


def test_a_manifest_that_is_not_there_is_one_line(memory: Any) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest("memory://none.csv")
    assert str(caught.value) == "memory://none.csv: no such file"
