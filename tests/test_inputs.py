"""What names on the command line stand for, and what the results are called."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vab.media.inputs import Inputs, NoInputs, expand
from vab.media.naming import Sources, result_stems


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def names(found: Inputs) -> list[str]:
    return [path.as_posix() for path in found.paths]


def stems(*inputs: str, samples: int = 1, flat: bool = False) -> dict[str, str]:
    found = expand(inputs)
    return dict(zip(names(found), result_stems(found.files, samples, flat), strict=True))


# ---- folders, patterns


def test_what_names_stand_for(here: Path) -> None:
    touch("b.mp4", "a.png", "deep/c.MKV", "deep/notes.txt", ".hidden.mp4", ".cache/d.mp4", "out/e.mp4")

    def found(*inputs: str | Path) -> list[str]:
        return names(expand(inputs, Path("out")))

    assert found(".") == ["a.png", "b.mp4", "deep/c.MKV"]
    assert found("*.mp4", "b.mp4", here / "b.mp4") == ["b.mp4"]
    assert found("**/*.MKV") == found("deep/**") == ["deep/c.MKV"]
    assert found("*/*.[Mm]*") == ["deep/c.MKV"] and found("out/*.mp4") == ["out/e.mp4"]
    assert found("gone.mp4") == ["gone.mp4"]  # opening it will say so
    assert found("n" * 300 + ".mp4") == ["n" * 300 + ".mp4"]
    touch("x[1].mp4", "clips [2]/f.mp4")
    assert found("x[1].mp4", "clips [2]/*.mp4") == ["x[1].mp4", "clips [2]/f.mp4"]
    Path("empty").mkdir()
    for nothing in (["empty"], ["*.avi"], []):
        with pytest.raises(NoInputs):
            expand(nothing)
    both = expand(["empty", "b.mp4", "https://example.org/a.mp4"])
    assert names(both) == ["b.mp4"]
    assert both.faults["empty"] == "empty: has no video or image in it"
    assert both.faults["https://example.org/a.mp4"].startswith(
        "https://example.org/a.mp4: is an address; only"
    )


def test_linked_folders_are_followed_once_and_loops_are_told(here: Path) -> None:
    touch("disk/cats/cat.mp4", "set/dogs/dog.mp4")
    for link, target in {
        "set/cats": "../disk/cats",
        "set/kittens": "../disk/cats",
        "set/again": "dogs",
        "set/self": ".",
        "set/dogs/up": "../..",
        "set/lost": "/nowhere",
        "set/puppy.mp4": "dogs/dog.mp4",
    }.items():
        Path(link).symlink_to(target)
    for pattern in ("set", "set/**/*.mp4"):
        found = expand([pattern])
        assert sorted(names(found)) == ["set/cats/cat.mp4", "set/dogs/dog.mp4", "set/puppy.mp4"]
        told = "\n".join(sorted(found.notes))
        assert "set/again: is the folder set/dogs by another name" in told
        assert "set/kittens: is the folder set/cats by another name" in told
        assert "set/self: is a link to a folder around it" in told
        assert "set/dogs/up: is a link to a folder around it" in told
        assert len(found.notes) == 4
    assert expand(["set"]).faults == {"set/lost": "set/lost: is a link to /nowhere, which is not there"}
    found = expand(["set", "set", "disk/cats"])
    assert (
        len(found.files) == 3
        and "disk/cats: is the folder set/cats by another name; it is done once" in found.notes
    )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can read, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.name == "nt", reason="has no such permissions")
def test_folders_without_permission_are_told(open_folder: Path) -> None:
    touch(f"{open_folder}/a/dog.mp4", f"{open_folder}/b/cat.mp4")
    (open_folder / "b").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # nobody: the superuser may read anything
        found = expand([open_folder])
        with_name = expand([open_folder / "a", open_folder / "b" / "cat.mp4"])
    finally:
        os.seteuid(user)
        (open_folder / "b").chmod(0o755)
    assert found.paths == [open_folder / "a" / "dog.mp4"]
    (line,) = found.faults.values()
    assert line == f"{open_folder}/b: cannot be searched (Permission denied)"
    assert len(with_name.files) == 2  # opening it will say so


# ---- lists


def test_lists_of_every_kind_are_read(here: Path) -> None:
    touch("a.mp4", "b.mp4", "café.mp4")
    kinds: dict[str, bytes] = {
        "plain": b"video,label\na.mp4,x\n\n,\nb.mp4,y\n",
        "mark": "video,label\na.mp4,x\nb.mp4,y\n".encode("utf-8-sig"),
        "crlf": b"video,label\r\na.mp4,x\r\nb.mp4,y\r\n",
        "quotes": b'"label","video"\n"x; y","a.mp4"\n"two\nlines","b.mp4"\n',
        "spaces": b'label, video\nx, a.mp4\ny, "b.mp4" \n',
        "semicolons": b"video;label, place\na.mp4;x\nb.mp4;y\n",
        "tabs": b"video\tlabel\na.mp4\tx\nb.mp4\ty\n",
        "bars": b"id | Video\n1 | a.mp4\n2 | b.mp4\n",
        "capitals": b"VIDEO,Label\na.mp4,x\nb.mp4,x\n",
        "excel": "sep=;\r\nVideo;Label\r\na.mp4;x\r\nb.mp4;y\r\n".encode("utf-16"),
        "wide": "video,label\na.mp4,x\nb.mp4,y\n".encode("utf-16-le"),
        "latin": "video,label\na.mp4,café\nb.mp4,x\n".encode("latin-1"),
        "one": b"file\na.mp4\nb.mp4\n",
        "path": b"number,path\n1,a.mp4\n2,./b.mp4\n",
    }
    for name, content in kinds.items():
        Path(f"{name}.csv").write_bytes(content)
        found = expand([f"{name}.csv"])
        assert (names(found), found.faults) == (["a.mp4", "b.mp4"], {}), name
        odd = name in ("semicolons", "tabs", "bars", "excel", "one", "path")
        assert bool(found.notes) == odd, name
    assert "columns video, label, separated by tabs" in str(expand(["tabs.csv"]).notes)
    Path("tabs.tsv").write_bytes(kinds["tabs"])
    assert names(expand(["tabs.tsv"])) == ["a.mp4", "b.mp4"] and not expand(["tabs.tsv"]).notes
    # one é or e with an accent, in the encoding of the disk or that of old times
    decomposed = "video\ncafe\u0301.mp4\n"
    for content in (decomposed.encode(), "video\ncafé.mp4\n".encode("cp1252")):
        Path("accent.csv").write_bytes(content)
        assert names(expand(["accent.csv"])) == ["café.mp4"]
    with open(b"caf\xe9.avi", "wb"), open("raw.csv", "wb") as file:
        file.write(b"video\ncaf\xe9.avi\n")
    assert expand(["raw.csv"]).paths == [Path(os.fsdecode(b"caf\xe9.avi"))]


def test_lists_that_cannot_be_used_say_what_they_have(here: Path) -> None:
    cases = {
        b"a;b\n1;2\n": "has no column called video (or image, file, path, filename); "
        "it has columns a, b, separated by semicolons",
        b"a.mp4\nb.mp4\n": "it has one column, 'a.mp4'",
        b"video,label\n": "is a list without a row; it has columns video, label, separated by commas",
        b"": "has no column called video",
        b"video,label\n'a.mp4,x\n\"b.mp4,y\nc.mp4,z\n": "line 4: unexpected end of data",
        b"\x00\x01\x02\x03video": "not a text file",
    }
    for content, words in cases.items():
        Path("list.csv").write_bytes(content)
        try:
            line = expand(["list.csv"]).faults["list.csv"]
        except NoInputs as error:
            line = str(error)
        assert line.startswith("list.csv: ") and words in line and "\n" not in line
    Path("list.csv").write_text(
        "id,video,start\n1,a.mp4,\n2,sub/b.mp4,0.0\n3,,\n4,a.mp4,10\n5,http://x.y/z,\n"
    )
    found = expand(["list.csv"])
    assert names(found) == ["a.mp4", "sub/b.mp4"]
    assert list(found.faults) == ["list.csv:4", "list.csv:5", "list.csv:6"]
    Path("sounds.csv").write_text("id,audio,video\n1,a.wav,\n2,b.wav,b.mp4\n")
    assert names(expand(["sounds.csv"], kinds=(".wav",))) == ["a.wav", "b.mp4"]


# ---- names of results


def test_results_keep_their_tree(here: Path) -> None:
    touch("fold/a/dog.mp4", "fold/b/dog.mp4", "fold/top.v1.png")
    tree = {"fold/top.v1.png": "top.v1", "fold/a/dog.mp4": "a/dog", "fold/b/dog.mp4": "b/dog"}
    assert stems("fold") == tree
    assert stems("fold", flat=True) == {**tree, "fold/a/dog.mp4": "a_dog", "fold/b/dog.mp4": "b_dog"}
    assert stems("fold/*/*.mp4") == stems("fold/**/*.mp4") == {key: tree[key] for key in tree if "dog" in key}
    assert stems("fold/a", "fold/b") == stems("fold/a/dog.mp4", "fold/b/dog.mp4") == stems("fold/*/*.mp4")
    assert stems("fold/a/dog.mp4", "fold/top.v1.png") == {
        "fold/a/dog.mp4": "dog",
        "fold/top.v1.png": "top.v1",
    }
    touch("lists/in/x.mp4", "else/x.mp4")
    Path("lists/all.csv").write_text("video\nin/x.mp4\n../else/x.mp4\n")
    assert list(stems("lists/all.csv").values()) == ["in/x", "x"]


def test_equal_names_are_told_apart(here: Path) -> None:
    touch(
        "cat.jpg",
        "cat.png",
        "cat_jpg.mp4",
        "dog.mp4",
        "dog_2.mp4",
        "Fox.mp4",
        "fox.mp4",
        "x/t/a.mp4",
        "y/t/a.mp4",
    )
    assert stems("cat.jpg") == {"cat.jpg": "cat"}
    three = {"cat.jpg": "cat_jpg", "cat.png": "cat_png", "cat_jpg.mp4": "cat_jpg_mp4"}
    assert stems("cat.jpg", "cat.png", "cat_jpg.mp4") == stems("cat*") == three
    assert stems("dog.mp4", "dog_2.mp4") == {"dog.mp4": "dog", "dog_2.mp4": "dog_2"}
    assert stems("dog.mp4", "dog_2.mp4", samples=2) == {"dog.mp4": "dog_mp4", "dog_2.mp4": "dog_2_mp4"}
    if len({path.name for path in here.glob("*ox.mp4")}) == 2:  # else the disk does not know capitals
        assert stems("*ox.mp4") == {"Fox.mp4": "Fox_mp4", "fox.mp4": "fox_mp4 (2)"}
    assert (
        stems("x/t/a.mp4", "y/t/a.mp4") == stems("x/t", "y/t") == {"x/t/a.mp4": "x/t/a", "y/t/a.mp4": "y/t/a"}
    )
    every = stems(".")
    assert len({stem.lower() for stem in every.values()}) == len(every) == 9 and stems(".") == every


def test_a_name_as_long_as_a_disk_allows_leaves_room_for_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, full, one, other = ("a" * 251 + ".mp4", "音" * 84 + ".ts", "b" * 252 + ".ts", "b" * 251 + "c.ts")
    for name in (whole, full, one, other):
        Path(name).touch()
    assert stems(whole) == {whole: "a" * 251}
    assert stems(whole, samples=12) == {whole: "a" * 248}  # and _12.wav
    assert stems(full) == {full: "音" * 83}
    assert stems(one, other) == {one: "b" * 248 + "_ts", other: "b" * 247 + " (2)"}


def test_no_result_takes_the_place_of_an_input(here: Path) -> None:
    touch("clips/dog.mp4", "out/cat.wav")
    Path("linked").symlink_to("clips")
    sources = Sources(expand(["clips"]).files)
    for folder in ("clips", "linked", "out/../clips"):
        line = sources.obstacle([Path(folder, "dog.wav"), Path(folder, "dog.mp4")], Path(folder))
        assert line is not None and "would overwrite the input clips/dog.mp4" in line
    assert sources.obstacle([Path("out/cat.wav"), Path("out/new/dog.mp4")], Path("out")) is None
    line = sources.obstacle([Path("out/new") / f"{'音' * 85}.wav"], Path("out"))
    assert line is not None and "File name too long" in line
