"""Files with the same bytes are found without reading all; a look that is cut off goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.tiny import write_video
from vab.cli import main
from vab.data.datasets import common
from vab.media import copies as module
from vab.media.copies import BLOCK, copies
from vab.utils import findings as findings_module
from vab.utils.findings import NAME, Findings

# Contents that differ in any one of several places, those that are no part of the three blocks among them.
WHOLE = 5 * BLOCK
PLACES = (0, BLOCK, WHOLE // 2, WHOLE - BLOCK - 1, WHOLE - 1)
large = st.tuples(*[st.integers(0, 1)] * len(PLACES)).map(
    lambda marks: b"".join(
        bytes([mark]) + bytes(end - place - 1)
        for mark, place, end in zip(marks, PLACES, (*PLACES[1:], WHOLE), strict=True)
    )
)
contents = st.lists(large | st.text("ab", max_size=3).map(str.encode), max_size=9)


def plain(files: list[Path]) -> dict[Path, Path]:
    """The definition: each file with the bytes of an earlier one, and the first of these."""
    first: dict[bytes, Path] = {}
    found = {path: first.setdefault(path.read_bytes(), path) for path in files}
    return {path: original for path, original in found.items() if path != original}


@settings(max_examples=40, deadline=None)
@given(contents)
@example([b"", b"", b"a", b""])
def test_copies_are_files_with_the_same_bytes(contents: list[bytes]) -> None:
    with TemporaryDirectory() as name:
        files = [Path(name) / f"{n}.bin" for n in range(len(contents))]
        for path, content in zip(files, contents, strict=True):
            path.write_bytes(content)
        wanted = plain(files)
        gone, folder = Path(name) / "gone.bin", Path(name) / "folder"
        folder.mkdir()
        assert copies([gone, *files, folder, *files]) == wanted
        assert list(copies(files)) == list(wanted)  # in their order
        for _ in range(2):  # with a memory, empty and full
            with Findings(Path(name) / NAME) as findings:
                assert copies(files, findings) == wanted
                findings._write()


def test_of_files_that_differ_in_a_block_only_blocks_are_read(tmp_path: Path) -> None:
    # To read 20 x 64 GiB would take minutes; they are nearly all hole.
    for n, place in enumerate((*range(10), *(2**35 + n for n in range(10)))):
        with (tmp_path / f"{n:02d}").open("wb") as file:
            file.truncate(2**36)
            file.seek(place)
            file.write(b"x")
    assert copies(sorted(tmp_path.iterdir())) == {}


class Looks:
    """Counts what is looked at, and gives up at one of them as at Ctrl-C."""

    def __init__(self, stop: int = 0) -> None:
        self.of: Counter[str] = Counter()
        self.stop = stop

    def __call__(self, path: Path, *about: object) -> str:
        self.of[path.name] += 1
        if self.of.total() == self.stop:
            raise KeyboardInterrupt
        return f"{path.name} {about}"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{n:02d}" for n in range(20)]
    for path in paths:
        path.write_text(path.name)
    return paths


def looked(memory: Path, files: list[Path], looks: Looks, *about: object) -> list[str]:
    with Findings(memory) as findings:
        found = findings.find("kind", looks, ((path, *about) for path in files), len(files), "look")
        return [value for _, value in found]


def test_a_look_that_is_cut_off_goes_on(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings_module, "CHUNK", 4)
    memory = tmp_path / "memory" / NAME
    first, second = Looks(stop=14), Looks()
    with pytest.raises(KeyboardInterrupt):
        looked(memory, files, first)
    answers = looked(memory, files, second)
    assert answers == [f"{path.name} ()" for path in files]
    done = {path.name for path in files[:12]}  # the chunks before the one that was cut off
    assert done <= first.of.keys() and not done & second.of.keys()
    assert set(second.of.values()) == {1}
    # Now all is known; but not what else may be asked.
    third = Looks()
    assert looked(memory, files, third) == answers and not third.of
    assert looked(memory, files, third, 1.5)[0] == "00 (1.5,)" and third.of.total() == 20


def test_a_file_that_was_written_over_is_looked_at_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings_module, "CHUNK", 4)
    memory = tmp_path / "memory" / NAME
    looked(memory, files, Looks())
    before = files[3].stat()
    files[3].write_text("xy")  # as long as before, and as old, as programs that copy make it
    os.utime(files[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    files[5].write_text("longer")
    again = Looks()
    looked(memory, files, again)
    assert again.of == {"03": 1, "05": 1}


def test_what_fails_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings_module, "CHUNK", 1)
    (tmp_path / "a").touch()

    def fail(path: Path) -> str:
        raise ValueError(path.name)

    for look in (fail, fail, Looks()):
        with Findings(tmp_path / NAME) as findings:
            calls = [(tmp_path / name,) for name in ("a", "gone")]
            [(_, a), (_, gone)] = findings.find("kind", look, calls, 2, "look")
            assert (str(a), str(gone)) == (("a", "gone") if look is fail else ("a ()", "gone ()"))


def test_small_sets_leave_nothing_behind(files: list[Path], tmp_path: Path) -> None:
    looked(tmp_path / NAME, files, Looks())
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("broken", ["damaged", "a folder"])
def test_a_memory_that_cannot_be_used_is_told(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(findings_module, "CHUNK", 4)
    memory = tmp_path / "memory"
    memory.write_bytes(b"not a database at all" * 99) if broken == "damaged" else memory.mkdir()
    with Findings(memory) as findings:
        found = findings.find("kind", Looks(), [(path,) for path in files], len(files), "look")
        assert [value for _, value in found] == [f"{path.name} ()" for path in files]
    assert findings.fault is not None and str(memory) in findings.fault and "\n" not in findings.fault


@pytest.mark.parametrize("still", [[], ["--drop-still"]])
def test_vab_data_goes_on_after_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, still: list[str]
) -> None:
    monkeypatch.setattr(findings_module, "CHUNK", 3)
    names = [f"{letter * 11}_000001.mp4" for letter in "abcdefghi"]
    media = tmp_path / "media"
    media.mkdir()
    write_video(media / names[0], 10, 10, True, (9, 90, 60))
    for name in names[1:]:
        shutil.copy(media / names[0], media / name)
    (tmp_path / "test.csv").write_text("".join(f"{name},dog\n" for name in names))
    words = [
        "data",
        "vggsound",
        f"{tmp_path}/test.csv",
        str(media),
        "-o",
        f"{tmp_path}/m.csv",
        *still,
        "--json",
    ]

    def run() -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            main(words)
        assert isinstance(left.value.code, int)
        return left.value.code, capsys.readouterr().out

    # Each kind of look is cut off at the seventh file, one after the other.
    seen: Counter[tuple[str, str]] = Counter()
    stops: set[str] = set()

    def interrupted(look: Callable[..., object], kind: str) -> Callable[..., object]:
        def stopping(path: Path, *about: object) -> object:
            if path.name == names[6] and kind not in stops:
                stops.add(kind)
                raise KeyboardInterrupt
            seen[kind, path.name] += 1
            return look(path, *about)

        return stopping

    kinds = [(common, "_streams"), *([(common, "is_still")] if still else [])]
    for place, kind in [*kinds, (module, "_blocks"), (module, "_sha256")]:
        monkeypatch.setattr(place, kind, interrupted(getattr(place, kind), kind))
    runs = 2 + len(kinds)
    assert [run()[0] for _ in range(runs)] == [130] * runs
    assert not (tmp_path / "m.csv").exists()
    code, out = run()
    report = json.loads(out)
    assert code == 0 and report["left"] + (report["still_frames"] or 0) == 9
    assert set(report["copies"].values()) <= {names[0][:-4]} and len(report["copies"]) == max(
        0, report["left"] - 1
    )
    # Files of the chunks before were looked at once in all these runs.
    early = [seen[kind] for kind in product(stops, names[:6])]
    assert set(early) == {1}
    before = seen.total()
    assert run() == (0, out) and seen.total() == before
