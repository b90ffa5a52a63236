"""Media and stores by URL: what fsspec opens gives what the same local file gives, or fails in one line."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from helpers.extraction import run, small_codec
from helpers.films import write_film
from helpers.stores import META, VECTORS, latents
from vab.cli import main
from vab.data.manifest import ManifestError, read_manifest, write_manifest
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.errors import failure
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.utils import remote
from vab.utils.remote import RemoteError, RemoteFile, locate
from vab.vision import load_vision


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


# ---- stores


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(where: str | Path, count: int = 6) -> LatentStore:
    store = LatentStore.create(where, META, VECTORS)
    for n in range(0, count, 2):
        store.add([latents(f"{i}", i) for i in range(n, n + 2)])
    return store


def test_a_store_by_url_is_that_store(memory: Any, tmp_path: Path) -> None:
    local, there = fill(tmp_path / "store"), fill("memory://bucket/store")
    names = {path.rpartition("/")[2] for path in memory.ls("/bucket/store", detail=False)}
    assert names == {*local.shards, "store.json", "codebooks.safetensors"}
    assert (
        there.fingerprint() == local.fingerprint() == LatentStore.open("memory://bucket/store").fingerprint()
    )
    # gone on with from another machine, which has no copy of it
    shutil.rmtree(os.environ["VAB_CACHE"])
    again = LatentStore.create("memory://bucket/store/", META, VECTORS)
    assert again.ids == local.ids
    with pytest.raises(StoreError, match="has these clips already"):
        again.add([latents("0")])
    with pytest.raises(StoreError, match="was made otherwise"):
        LatentStore.create("memory://bucket/store", replace(META, fps=3.0), VECTORS)


def test_shards_are_fetched_once_and_dropped_with_those_at_the_url(memory: Any, tmp_path: Path) -> None:
    store = fill(tmp_path / "store")
    with serving(tmp_path) as (address, asked):
        url = f"{address}/store"
        threads = [threading.Thread(target=LatentStore.open, args=[url]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert LatentStore.open(url).fingerprint() == store.fingerprint()
        assert [asked.count(f"/store/{name}") for name in store.shards] == [1, 1, 1]
        (store.directory / store.shards[0]).unlink()
        assert LatentStore.open(url).ids == LatentStore.open(store.directory).ids
        with pytest.raises(StoreError, match="stores are only read by http"):
            LatentStore.create(url, META, VECTORS)


def test_processes_that_open_one_url_at_once(tmp_path: Path, cache: Path) -> None:
    store = fill(tmp_path / "store")
    code = "import sys; from vab.data.store import LatentStore as S; print(S.open(sys.argv[1]).fingerprint())"
    with serving(tmp_path) as (address, asked):
        command = [sys.executable, "-c", code, f"{address}/store"]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        told = {process.communicate()[0].strip() for process in started}
        assert told == {store.fingerprint()}
        assert [asked.count(f"/store/{name}") for name in store.shards] == [1, 1, 1]


def test_what_is_damaged_at_the_url_is_not_taken(memory: Any) -> None:
    store = fill("memory://bucket/store")
    path = f"/bucket/store/{store.shards[1]}"
    content = memory.cat_file(path)
    shutil.rmtree(os.environ["VAB_CACHE"])
    row = int(np.flatnonzero(store.order[:, 0] == 1)[0])
    at = content.index(store.gather("features", [row]).tobytes())
    for wrong in (content[:-300], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]):
        memory.pipe_file(path, wrong)
        line = f"^memory://bucket/store/{store.shards[1]} is damaged; remove it there"
        with pytest.raises(StoreError, match=line):
            LatentStore.open("memory://bucket/store")
    memory.pipe_file(path, content)
    assert LatentStore.open("memory://bucket/store").fingerprint() == store.fingerprint()


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("memory://bucket/none", "holds no store"),
        ("http://127.0.0.1:9/store", r"^http://127.0.0.1:9/store: .*"),
        ("nothing://store", "^nothing://store: Protocol not known: nothing$"),
    ],
)
def test_a_store_that_is_not_there_is_one_line(url: str, line: str, memory: Any) -> None:
    with pytest.raises(StoreError, match=line) as caught:
        LatentStore.open(url)
    assert url in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        "generate a.mp4 -o s3://bucket/out",
        "data folder s3://bucket/films -o m.csv",
        "data folder films -o s3://bucket/m.csv",
        "store repair memory://bucket/store",
        "finetune classify vab-tiny-classes --store s --run s3://bucket/run",
    ],
)
def test_where_only_paths_work_an_address_is_refused_in_a_line(
    call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(call.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "://bucket" in said, said


# ---- extraction


def test_extraction_from_and_to_urls(
    film: Path, memory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        tar.add(film, "clips/a.mp4")
    shutil.copy(film, tmp_path / "b.mp4")
    rows = ["a,{0}clips/a.mp4{1},{0}clips/a.mp4{1},,,,train", "b,,b.mp4,,,,train", "c,none.mp4,,,,,train"]
    manifest = "\n".join(["id,audio,video,start,seconds,label,split", *rows]) + "\n"
    (tmp_path / "m.csv").write_text(manifest.format("tar://", "::part.tar"))
    for path in ("part.tar", "b.mp4", "m.csv"):
        memory.put_file(str(tmp_path / path), f"/set/{path}")

    codec, vision = small_codec(), load_vision("efficientnet-lite0")
    local = run(tmp_path / "m.csv", tmp_path / "store", codec, vision)
    there = run("memory://set/m.csv", "memory://set/store", codec, vision)
    assert (there.done, list(there.failed)) == (local.done, list(local.failed)) == (2, ["c"])
    fingerprint = LatentStore.open(tmp_path / "store").fingerprint()
    assert LatentStore.open("memory://set/store").fingerprint() == fingerprint
    assert memory.cat_file("/set/store/failures.csv").decode().splitlines() == [
        "id,reason",
        "c,memory://set/none.mp4: no such file",
    ]
    # gone on with elsewhere, once the file is there
    shutil.rmtree(os.environ["VAB_CACHE"])
    memory.put_file(str(film), "/set/none.mp4")
    again = run("memory://set/m.csv", "memory://set/store", codec, vision)
    assert (again.done, again.present, again.failed) == (1, 2, {})
    assert not memory.exists("/set/store/failures.csv")

    capsys.readouterr()
    for verb in ("info", "check"):
        with pytest.raises(SystemExit) as end:
            main(["store", verb, "memory://set/store"])
        assert end.value.code == 0 and "memory://set/store: " in capsys.readouterr().out
