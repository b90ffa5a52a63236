from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from vab.utils.files import _host, atomic, move, scratch_folder, sweep, write_whole
from vab.utils.locks import LockedError, exclusive

KILLED = """
import os, signal, sys
from pathlib import Path
from vab.utils.files import atomic, temporary_folder
with temporary_folder(Path(sys.argv[1]).with_name("folder")) as folder:
    (folder / "file").touch()
    with atomic(sys.argv[1]) as temporary:
        temporary.write_bytes(b"a long half of it")
        if "wait" in sys.argv:
            print("writing", flush=True)
            sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
"""
AGAIN = (
    "import sys; from pathlib import Path; from vab.utils.files import *; write_whole(Path(sys.argv[1]), b'')"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(code: str, path: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(path), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_process_left_is_swept_by_the_next_that_writes_there(tmp_path: Path) -> None:
    for _ in range(2):
        assert run(KILLED, tmp_path / "sound.wav").wait(60) == -signal.SIGKILL
        assert len(names(tmp_path)) == 2  # not more each time
    assert run(AGAIN, tmp_path / "other.wav").wait(60) == 0
    assert names(tmp_path) == ["other.wav"]


def test_a_scratch_folder_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder("own") as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "sound.wav").touch()
    assert names(tmp_path) == []


def test_what_somebody_may_be_writing_is_left_alone(tmp_path: Path) -> None:
    living = run(KILLED, tmp_path / "sound.wav", "wait")
    assert living.stdout is not None and living.stdout.readline() == "writing\n"
    before = names(tmp_path)
    mine = next(name for name in before if name.startswith(".sound"))
    strangers = [mine.replace(_host(), "0" * 8), ".sound.tmp.wav", ".sound.vab-12.tmp", "sound.tmp"]
    for name in strangers:  # of another machine that shares the disk, and of other programs
        (tmp_path / name).touch()
    assert run(AGAIN, tmp_path / "other.wav").wait(60) == 0
    assert names(tmp_path) == sorted([*before, *strangers, "other.wav"])
    os.utime(tmp_path / strangers[0], (0, 0))  # a day later nobody works on it any more
    os.utime(tmp_path / mine, (0, 0))
    living.communicate("", 60)
    assert run(AGAIN, tmp_path / "other.wav").wait(60) == 0
    assert names(tmp_path) == sorted([*strangers[1:], "other.wav"])


@pytest.mark.parametrize("name", ["\u732b" * 80 + ".wav", "a." + "b" * 240, "\udce9.wav", "a\nb.json"])
def test_any_name_the_system_takes_can_be_written(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"whole")
    assert names(tmp_path) == [name]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic(path) as first, atomic(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second, which is longer")
        assert first.read_bytes() == b"first"
    assert path.read_bytes() == b"first" and names(tmp_path) == ["a.json"]  # who comes last wins, whole


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG and str(path) in str(caught.value)
    assert names(tmp_path) == ["a.json"] and path.read_bytes() == b"old"


@pytest.mark.parametrize("links", [True, False])
def test_move_never_goes_over_what_is_there(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def link(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("a")
    b.write_text("b")
    with pytest.raises(FileExistsError):
        move(a, b)
    assert (a.read_text(), b.read_text()) == ("a", "b")
    move(a, tmp_path / "c")
    assert names(tmp_path) == ["b", "c"] and (tmp_path / "c").read_text() == "a"
    with pytest.raises(FileExistsError), atomic(b, over=False) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["b", "c"] and b.read_text() == "b"


def test_a_lock_is_held_by_one_and_ends_with_its_block(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with pytest.raises(RuntimeError), exclusive(path, "writes here"):
        message = rf"^another process writes here \(process {os.getpid()} on \S+\); wait until it has ended$"
        with pytest.raises(LockedError, match=message), exclusive(path, "writes here"):
            raise AssertionError
        raise RuntimeError
    with exclusive(path, "writes here"):
        pass


def test_what_is_swept_while_it_is_made_is_made_again(tmp_path: Path) -> None:
    """Others look for what killed processes left at any moment, also between a file's name and its lock."""
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            sweep(tmp_path, again=True)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for number in range(400):
            write_whole(tmp_path / f"{number}.txt", b"whole")
    finally:
        ended.set()
        for looker in lookers:
            looker.join()
    assert len(list(tmp_path.glob("[0-9]*.txt"))) == 400 and not list(tmp_path.glob(".*"))
