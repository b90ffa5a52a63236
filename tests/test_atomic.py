from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vab.utils.files import atomic, move, write_whole
from vab.utils.locks import LockedError, exclusive

KILLED = """
import os, sys
from pathlib import Path
from vab.utils.files import atomic
with atomic(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"a long half of it")
    os._exit(9)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60).returncode == 9
        assert names(tmp_path) == [".sound.tmp.wav"]
    write_whole(path, b"whole")
    assert names(tmp_path) == ["sound.wav"] and path.read_bytes() == b"whole"


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
