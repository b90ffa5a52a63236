"""Videos are told by their ids, however a clip is named; those of a list stay out, and fall to one side."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vab.cli import main
from vab.data.datasets.audioset import Segment, file_names
from vab.data.datasets.common import segment_names
from vab.data.datasets.videos import falls_into, read_videos, video_of, youtube_id
from vab.data.manifest import Clip, read_manifest, write_manifest
from vab.media.reader import write_wav
from vab.utils.provenance import sha256
from vab.utils.tables import ListError

ids = st.text(string.ascii_letters + string.digits + "-_", min_size=11, max_size=11)
# as mean as ids get: they look like times, like an id with a Y, like the end of one
mean_ids = st.text("Y_-0123", min_size=11, max_size=11)
times = st.integers(0, 5999).map(float) | st.integers(0, 59_999_999).map(lambda n: n / 1000)
endings = st.sampled_from(["", ".mp4", ".wav", ".webm", ".npy", ".JPG", ".3gp"])
folders = st.sampled_from(["", "media/", "a_1/b.c/", "Y/", "/abs/olute/"])


@given(ids | mean_ids, times, times, endings, folders)
@example("Y_abcdefghi", 3.0, 4.0, "", "")  # its last letters and a time look like another id
@example("Ya_3_4_5_6_", 3.0, 4.0, ".mp4", "media/")
def test_every_spelling_of_a_segment_is_of_its_video(
    name: str, start: float, end: float, ending: str, folder: str
) -> None:
    spelled = {name, f"{name}#12", *file_names(Segment(name, start, end, ("/m/1",)))}
    spelled |= {*segment_names(name, start, end), f"Y{name}", f"Y{name}_{start:06.0f}"}
    for spelling in spelled:
        windows = "" if "#" in spelling else ending
        assert youtube_id(f"{folder}{spelling}{windows}") == name
        assert video_of(f"{folder}{spelling}{windows}") == name


@given(ids | mean_ids, ids | mean_ids, times)
def test_two_videos_are_never_one(one: str, other: str, start: float) -> None:
    spelled = [{*file_names(Segment(name, start, start + 10, ("/m/1",)))} for name in (one, other)]
    assert (one == other) or not spelled[0] & spelled[1]


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("video7010.mp4", "video7010"),
        ("cat/0001.mp4#3", "cat/0001"),
        ("dog/0001.wav", "dog/0001"),
        ("a name with spaces.mov", "a name with spaces"),
        ("1-100032-A-0.wav", "1-100032-A-0"),
        ("abcdefghijkl", "abcdefghijkl"),  # 12 without a Y
        ("abcdefghij", "abcdefghij"),
        ("abcdefghijk_30_40_50.mp4", "abcdefghijk_30_40_50"),
        ("abcdefghijk_gt.mp4", "abcdefghijk_gt"),
    ],
)
def test_other_names_are_videos_by_themselves(name: str, video: str) -> None:
    assert youtube_id(name) is None and video_of(name) == video


# Lists

A, B, C, D = "YaYaYaYaYaY", "_0123456789", "b_000030_-_", "-dddddddddd"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def cavmae(*names: str) -> str:
    return json.dumps({"data": [{"video_id": name, "wav": "x"} for name in names]})


@pytest.mark.parametrize(
    ("name", "text", "videos"),
    [
        ("test.csv", f'{A}_000030.mp4,"dog, barking"\n{B}_000000.mp4,rain\n{A}_000300.mp4,x\n', {A, B}),
        ("vggsound.csv", f"{A},30,dog,train\n{B},0,rain,test\n{C},1,rain,test\n", {B, C}),
        ("vggsound.csv", f"{A},30,dog,train\n{B},0,rain,train\n", {A, B}),  # no split test: all
        ("eval_segments.csv", f'# YTID, start\n# x\n{A}, 30.000, 40.000, "/m/1,/m/2"\n', {A}),
        ("sample.json", cavmae(f"{A}_000030", B), {A, B}),
        ("list.json", json.dumps([A, f"Y{C}.wav"]), {A, C}),
        ("ids.txt", f"{A}\nY{B}\n\n{C}_30_40\nsub/Y{D}_30.000_40.000.wav\n", {A, B, C, D}),
        ("list.tsv", f"id\tlabel\n{A}\tdog, barking\n{B}_1\train\n", {A, B}),
        ("list.tsv", f"{A}\tdog, barking\n{B}_1\train\n", {A, B}),
        ("m.csv", f"id,audio,video,start,seconds,label,split\n7,x/{A}_30.wav,,0,,,dev\n", {A}),
        ("m.csv", f"id,video,split\n{A}_000001,a.mp4,train\n{B}_000001,b.mp4,test\n", {B}),
    ],
)
def test_lists_of_videos(tmp_path: Path, name: str, text: str, videos: set[str]) -> None:
    found = read_videos(write(tmp_path / name, text))
    assert found.videos == videos and found.note == ""


def test_a_manifest_of_ours_is_a_list(tmp_path: Path) -> None:
    clips = [
        Clip(f"{name}_000030", tmp_path / "a.wav", None, split=split)
        for name, split in ((A, "test"), (B, "dev"))
    ]
    write_manifest(tmp_path / "m.csv", clips)
    assert read_videos(tmp_path / "m.csv").videos == {A}
    write_manifest(tmp_path / "m.csv", [Clip("cat/0001.mp4#1", tmp_path / "a.wav", None)])
    assert read_videos(tmp_path / "m.csv", youtube=False).videos == {"cat/0001"}


def test_official_lists(data: Path) -> None:
    lists = data / "lists"
    test = read_videos(lists / "vggsound_test.csv")
    assert len(test.videos) == 14_851 and not test.note  # of 15,446 clips
    assert read_videos(lists / "vggsound_retrieval_1545.json").videos < test.videos
    assert len(read_videos(lists / "audioset_eval_1725.json").videos) == 1_725
    with pytest.raises(ListError, match="none of its 528 rows names a YouTube video"):
        read_videos(lists / "audioset_class_labels.csv")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "labels.csv",
            "index,mid,display_name\n0,/m/1,Speech\n",
            "names a YouTube video, its first says 'index'",
        ),
        ("x.json", '{"rows": []}', "not json like"),
        ("x.json", "[1, 2]", "not json like"),
        ("x.json", "[[[", "not json like"),
        ("empty.txt", "", "none of its 0 rows"),
        ("video.txt", "video7010\nvideo7011\n", "none of its 2 rows"),
    ],
)
def test_lists_that_name_no_video(tmp_path: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(ListError, match=says) as error:
        read_videos(write(tmp_path / name, text))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_rows_that_name_no_video_are_told(tmp_path: Path) -> None:
    found = read_videos(write(tmp_path / "ids.txt", f"{A}\nnonsense\n{B}\n?\n"))
    assert found.videos == {A, B} and "2 of its 4 rows" in found.note and "'nonsense'" in found.note


# The verbs


def vab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and standard error of a call of vab data with --json."""
    with pytest.raises(SystemExit) as left:
        main(["data", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, json.loads(out), err


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, 1600).astype(np.float32))


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Lists of AudioSet and VGGSound that share videos, at other times; every clip is there."""
    folder = tmp_path / "lists"
    write(folder / "class_labels_indices.csv", "index,mid,display_name\n0,/m/1,Dog\n")
    write(
        folder / "unbalanced_train_segments.csv", f'{A}, 30.000, 40.000, "/m/1"\n{B}, 0.000, 10.000, "/m/1"\n'
    )
    write(folder / "balanced_train_segments.csv", f'{C}, 7.000, 17.000, "/m/1"\n')
    write(folder / "eval_segments.csv", f'{D}, 7.000, 17.000, "/m/1"\n')
    write(
        folder / "vggsound.csv",
        f"{A},200,dog,test\n{B},5,dog,train\n{C},5,dog,train\n{D},5,dog,train\n{D},25,dog,test\n",
    )
    write(folder / "test.csv", f"{A}_000200.mp4,dog\n{D}_000025.mp4,dog\n")
    for name, starts in ((A, (30, 200)), (B, (0, 5)), (C, (7, 5)), (D, (7, 5, 25))):
        for start in starts:
            sound(tmp_path / "media" / f"{'Y' * (start == 7)}{name}_{start:06d}.wav")
    return folder


def test_test_videos_stay_out_of_another_sets_training_list(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.csv"
    words = ["audioset", lists, tmp_path / "media", "-o", out, "--dev-share", 0, "--parts", "2m", "--exclude"]
    for name in ("test.csv", "vggsound.csv"):  # of which only the split test counts
        code, report, err = vab(capsys, *words, lists / name)
        assert code == 0 and not err and (report["listed"], report["left"], report["gone"]) == (3, 2, 0)
        assert report["excluded"] == {str(lists / name): 1} and report["kept_tests"] == {str(lists / name): 0}
        assert [clip.id for clip in read_manifest(out)] == [B, C]
    # Another list on top; a video of two lists counts for the first.
    ids = write(tmp_path / "ids.txt", f"{A}\n{C}_5_15\n")
    code, report, _ = vab(capsys, *words, lists / "test.csv", "--exclude", ids)
    assert report["excluded"] == {str(lists / "test.csv"): 1, str(ids): 1}
    assert [clip.id for clip in read_manifest(out)] == [B]
    # A test set stays whole, and what it shares with the list is told.
    code, report, err = vab(capsys, *words, lists / "test.csv", "--parts", "2m", "eval")
    assert report["excluded"] == report["kept_tests"] == {str(lists / "test.csv"): 1}
    assert code == 0 and "test.csv: 1 clip of the split test of its videos too" in err
    assert {clip.id for clip in read_manifest(out)} == {B, C, D}
    # The other direction.
    words = ["vggsound", lists / "vggsound.csv", tmp_path / "media", "-o", out, "--dev-share", 0, "--exclude"]
    code, report, err = vab(capsys, *words, lists / "eval_segments.csv")
    assert report["excluded"] == report["kept_tests"] == {str(lists / "eval_segments.csv"): 1}
    left = [f"{A}_000200", f"{B}_000005", f"{C}_000005", f"{D}_000025"]
    assert [clip.id for clip in read_manifest(out)] == left
    code, document, err = vab(capsys, *words, lists / "class_labels_indices.csv")
    assert code == 2 and "names a YouTube video" in document["error"] and "\n" not in document["error"]


def test_folders_and_msrvtt_without_certain_videos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media, out = tmp_path / "media", tmp_path / "m.csv"
    for name in (f"x/{A}_000030", f"x/Y{B}_1_11", f"y/{C}", "cat/0001", "dog/0001", "video1", "video2"):
        sound(media / f"{name}.wav")
    kept_out = write(tmp_path / "out.txt", f"{A}\nsomewhere/{B}_000700.mp4\ncat/0001.mp4\n")
    code, report, err = vab(capsys, "folder", media, "-o", out, "--exclude", kept_out)
    assert code == 0 and report["excluded"] == {str(kept_out): 3} and not err
    left = {f"y/{C}.wav", "dog/0001.wav", "video1.wav", "video2.wav"}
    assert {clip.id for clip in read_manifest(out)} == left
    videos = [
        {"video_id": f"video{n}", "split": split} for n, split in ((1, "test"), (2, "test"), (3, "train"))
    ]
    listing = write(tmp_path / "videos.json", json.dumps({"videos": videos}))
    words = ["msrvtt", listing, media, "-o", out, "--exclude"]
    code, report, _ = vab(capsys, *words, write(tmp_path / "out.txt", "video2.mp4\n"))
    assert code == 0 and [clip.id for clip in read_manifest(out)] == ["video1"]
    code, document, _ = vab(capsys, *words, listing)
    assert code == 2 and f"2 kept out by {listing}" in document["error"]


# What is held out


@given(ids | mean_ids, times, st.floats(0, 1), st.floats(0, 1))
def test_a_video_falls_to_one_side(name: str, start: float, share: float, other: float) -> None:
    sides = {
        falls_into(spelling, share) for spelling in file_names(Segment(name, start, start + 10, ("/m/1",)))
    }
    assert len(sides) == 1
    low, high = sorted((share, other))
    assert falls_into(name, high) or not falls_into(name, low)  # a larger share holds the smaller one
    assert falls_into(name, 1) and not falls_into(name, 0)


def test_the_share_is_the_same_on_every_machine() -> None:
    names = [f"{n:011d}" for n in range(100_000)]
    assert [n for n in range(1200) if falls_into(names[n], 0.005)] == [123, 477, 1024]
    assert sum(falls_into(name, 0.005) for name in names) / len(names) == pytest.approx(0.005, abs=0.001)
    # other names as version 0.1.0 had them
    assert [falls_into(f"x/{n}.wav", 0.3) for n in range(99)] == [
        int(sha256(f"x/{n}.wav")[:8], 16) / 2**32 < 0.3 for n in range(99)
    ]


def test_official_sets_get_a_dev_split(
    lists: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = 0.5
    held_out = {name for name in (A, B, C, D) if falls_into(name, share)}
    assert 0 < len(held_out) < 4
    sets = (("vggsound", lists / "vggsound.csv"), ("audioset", lists, "--parts", "2m", "eval"))
    for verb, listing, *more in sets:
        words = [verb, listing, tmp_path / "media", "-o", tmp_path / "m.csv", *more, "--dev-share"]
        assert vab(capsys, *words, 0)[0] == 0
        official = {clip.id: clip.split for clip in read_manifest(tmp_path / "m.csv")}
        assert set(official.values()) == {"train", "test"}
        assert vab(capsys, *words, share)[0] == 0
        for clip in read_manifest(tmp_path / "m.csv"):
            dev = official[clip.id] == "train" and video_of(clip.id) in held_out
            assert clip.split == ("dev" if dev else official[clip.id])
        assert vab(capsys, *words, 1.5)[0] == 2
