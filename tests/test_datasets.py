"""Official lists and folders of the datasets, in miniature, become the manifests they should."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from helpers.tiny import write_video
from vab.cli import main
from vab.data.datasets.audioset import read_labels, read_segments, read_subset
from vab.data.datasets.common import Row, gather, is_still, segment_names
from vab.data.datasets.esc50 import esc50_clips
from vab.data.datasets.speech_commands import speech_commands_clips, which_set
from vab.data.datasets.vatt import vatt_store
from vab.data.datasets.vggsound import read_list, retrieval_subset
from vab.data.manifest import COLUMNS, read_manifest
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.media.reader import write_wav
from vab.presets import PRESETS
from vab.training.batches import check_fits
from vab.utils.tables import ListError, read_csv


def vab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    """Exit code, the JSON document, and standard error of a call with --json."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, json.loads(out), err


def manifest(path: Path) -> list[tuple[str, ...]]:
    """The rows of a manifest as they stand in the file."""
    header, *rows = csv.reader(path.read_text().splitlines())
    assert tuple(header) == COLUMNS
    return [tuple(row) for row in rows]


def video(path: Path, seed: int = 0, sound: bool = True) -> Path:
    """A second of a moving stripe, other bytes for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, 10, 10, sound, (seed * 37 % 256, seed * 91 % 256, 60))


def sound(path: Path, seed: int = 0, seconds: float = 0.2) -> Path:
    """Noise, other bytes for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 16000)).astype(np.float32))
    return path


def still(path: Path, change: int = 0, flashing: bool = False) -> Path:
    """Three seconds of one picture, ``change`` levels brighter in its second half, or in each second's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(5).integers(0, 200, (6, 8, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("aac", rate=16000, layout="mono")
        for n in range(30):
            frame = picture + np.uint8(change * (n % 10 >= 5 if flashing else n >= 15))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
        block = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(voice.encode(block))
        container.mux(voice.encode(None))
    return path


# VGGSound

VGGSOUND = """\
aaaaaaaaaaa,30,"ice cream truck, ice cream van",train
-bbbbbbbbbb,4,playing flute,test
ccccccccccc,120,playing flute,train
aaaaaaaaaaa,30,playing flute,test
ddddddddddd,7,dog barking,test
eeeeeeeeeee,0,dog barking,test
fffffffffff,1,dog barking,train
ggggggggggg,2,dog barking,train
hhhhhhhhhhh,3,dog barking,train
"""


@pytest.fixture
def vggsound(tmp_path: Path) -> Path:
    """Nine rows: three layouts, one listed twice, one gone, one mute, one broken, one copied, one wav."""
    (tmp_path / "vggsound.csv").write_text(VGGSOUND)
    media = tmp_path / "media"
    video(media / "train" / "aaaaaaaaaaa_000030.mp4", 1)
    video(media / "test" / "-bbbbbbbbbb_4.mp4", 2)
    video(media / "ccccccccccc_120000_130000.mp4", 3)
    video(media / "eeeeeeeeeee_000000.mp4", 5, sound=False)
    (media / "fffffffffff_000001.mp4").write_bytes(b"no video at all")
    shutil.copy(media / "ccccccccccc_120000_130000.mp4", media / "ggggggggggg_000002.MP4")
    sound(media / "hhhhhhhhhhh_000003.wav")
    video(media / "strange_000001.mp4", 6)
    return tmp_path


def test_vggsound(vggsound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = vggsound / "m.csv"
    words = ["data", "vggsound", vggsound / "vggsound.csv", vggsound / "media", "-o", out]
    code, report, err = vab(capsys, *words)
    assert code == 1 and "fffffffffff_000001.mp4" in err and err.count("\n") == 1
    reasons = report.pop("unreadable")
    assert list(reasons) == ["fffffffffff_000001"] and "not a readable media file" in reasons.popitem()[1]
    assert report == {
        "manifest": str(out),
        "listed": 9,
        "left": 5,
        "gone": 1,
        "duplicates": 1,
        "excluded": {},
        "kept_tests": {},
        "silent": 1,
        "still_frames": None,
        "copies": {"ggggggggggg_000002": "ccccccccccc_000120"},
    }
    a, b, c, g = (
        f"media/{name}"
        for name in (
            "train/aaaaaaaaaaa_000030.mp4",
            "test/-bbbbbbbbbb_4.mp4",
            "ccccccccccc_120000_130000.mp4",
            "ggggggggggg_000002.MP4",
        )
    )
    assert manifest(out) == [
        ("aaaaaaaaaaa_000030", a, a, "0", "10", "ice cream truck, ice cream van", "train"),
        ("-bbbbbbbbbb_000004", b, b, "0", "10", "playing flute", "test"),
        ("ccccccccccc_000120", c, c, "0", "10", "playing flute", "train"),
        ("ggggggggggg_000002", g, g, "0", "10", "dog barking", "train"),
        ("hhhhhhhhhhh_000003", "media/hhhhhhhhhhh_000003.wav", "", "0", "10", "dog barking", "train"),
    ]
    assert [clip.seconds for clip in read_manifest(out)] == [10.0] * 5
    (vggsound / "media" / "fffffffffff_000001.mp4").unlink()  # now it is gone, which is normal
    code, report, err = vab(capsys, *words)
    assert code == 0 and not err and (report["left"], report["gone"]) == (5, 2)


def test_vggsound_retrieval_is_the_published_subset(data: Path) -> None:
    published = json.loads((data / "lists" / "vggsound_retrieval_1545.json").read_text())["data"]
    rows = read_list(data / "lists" / "vggsound_test.csv")
    assert len(rows) == 15_446 and {row.split for row in rows} == {"test"}
    subset = retrieval_subset(rows)
    assert len(subset) == 1_545 and len({row.label for row in subset}) == 309
    assert [row.id for row in subset] == [entry["video_id"] for entry in published]


def test_retrieval_subset_takes_the_first_five_of_each_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [Row(str(n), (), "ab"[n % 3 == 0], "test") for n in range(20)]
    assert [row.id for row in retrieval_subset(rows)] == ["0", "1", "2", "3", "4", "5", "6", "7", "9", "12"]
    names = [f"video{n:06d}_{n:06d}.mp4" for n in range(7)]
    (tmp_path / "my_test.csv").write_text("".join(f"{name},rain\n" for name in names))
    for n in (0, 4, 6):
        video(tmp_path / "media" / names[n], n)
    words = [tmp_path / "media", "-o", tmp_path / "m.csv", "--subset", "retrieval"]
    code, report, _ = vab(capsys, "data", "vggsound", tmp_path / "my_test.csv", *words)
    assert code == 0 and (report["listed"], report["left"], report["gone"]) == (5, 2, 3)
    assert [row[0] for row in manifest(tmp_path / "m.csv")] == ["video000000_000000", "video000004_000004"]
    (tmp_path / "train.csv").write_text(f"{names[0]},rain\n")
    (tmp_path / "vggsound.csv").write_text("video000000,0,rain,test\n")
    for other in ("train.csv", "vggsound.csv"):  # another order would be another subset
        code, document, _ = vab(capsys, "data", "vggsound", tmp_path / other, *words)
        assert code == 2 and "order of the official test.csv" in document["error"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("vggsound.csv", "a,1,dog,train\nb,x,dog,train\n", "line 2"),
        ("vggsound.csv", "a,1,dog,train\n\nb,1,dog,dev\n", "line 3"),
        ("vggsound.csv", "a,1,,train\n", "line 1"),
        ("vggsound.csv", 'a,1,"dog,train\n', "line 1"),
        ("vggsound.csv", "", "no clips"),
        ("test.csv", "a_000001.mp4,dog\na_1.mp4,dog\n", "line 2"),
        ("list.csv", "a_000001.mp4,dog\n", "train.csv or test.csv"),
    ],
)
def test_vggsound_lists_with_mistakes(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ListError, match=says) as error:
        read_list(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_no_label_holds_the_separator(data: Path) -> None:
    sets = [read_labels(data / "lists" / f"{name}_class_labels.csv") for name in ("audioset", "vggsound")]
    assert [len(labels) for labels in sets] == [527, 309]
    assert [name for labels in sets for name in labels.values() if ";" in name] == []
    assert [row.label for row in read_list(data / "lists" / "vggsound_test.csv") if ";" in row.label] == []


def test_segment_names() -> None:
    assert set(segment_names("-x", 30, 40)) == {
        *("-x_000030", "-x_30", "-x_30000", "-x_30.000"),
        *("-x_000030_000040", "-x_30_40", "-x_30000_40000", "-x_30.000_40.000"),
    }


# AudioSet

HEADER = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
"""


@pytest.fixture
def audioset(tmp_path: Path) -> Path:
    """Three lists with three, two and two segments, and their media in several layouts."""
    lists, media = tmp_path / "lists", tmp_path / "media"
    lists.mkdir()
    (lists / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech"\n'
        '1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd1,Wind\n'
    )
    (lists / "eval_segments.csv").write_text(
        HEADER
        + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd1"\n'
        + 'b1111111111, 0.000, 10.000, "/m/05zppz"\n'
        + 'c2222222222, 21.000, 28.500, "/t/dd1,/m/05zppz"\n'
    )
    (lists / "balanced_train_segments.csv").write_text(
        HEADER + 'd3333333333, 30.000, 40.000, "/t/dd1"\ne4444444444, 5.000, 15.000, "/t/dd1"\n'
    )
    (lists / "unbalanced_train_segments.csv").write_text(
        HEADER + 'f5555555555, 10.000, 20.000, "/m/09x0r"\ng6666666666, 0.000, 10.000, "/t/dd1"\n'
    )
    video(media / "eval" / "--PJHxphWEs.mp4", 1)
    sound(media / "eval" / "Yb1111111111.wav", 1)
    video(media / "eval" / "c2222222222_21.000.mp4", 2, sound=False)
    sound(media / "sounds" / "c2222222222_21.000.flac.wav", 9)  # another name: belongs to nothing
    sound(media / "sounds" / "c2222222222_21.000.wav", 2)
    video(media / "Yd3333333333_30.000_40.000.mkv", 3)
    video(media / "f5555555555_10000.mp4", 4)
    video(media / "g6666666666_000000.mp4", 5)
    return tmp_path


def test_audioset(audioset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "audioset", audioset / "lists", audioset / "media", "-o", audioset / "m.csv", "--parts"]
    code, report, _ = vab(capsys, *words, "eval", "2m")
    assert code == 0 and (report["listed"], report["left"], report["gone"]) == (7, 6, 1)
    p, c, d, f, g = (
        f"media/{name}"
        for name in (
            "eval/--PJHxphWEs.mp4",
            "eval/c2222222222_21.000.mp4",
            "Yd3333333333_30.000_40.000.mkv",
            "f5555555555_10000.mp4",
            "g6666666666_000000.mp4",
        )
    )
    male, wind = "Male speech, man speaking", "Wind"
    test = [
        ("--PJHxphWEs", p, p, "0", "10", "Speech;Wind", "test"),
        ("b1111111111", "media/eval/Yb1111111111.wav", "", "0", "10", male, "test"),
        ("c2222222222", "media/sounds/c2222222222_21.000.wav", c, "0", "7.5", f"Wind;{male}", "test"),
    ]
    unbalanced = [
        ("f5555555555", f, f, "0", "10", "Speech", "train"),
        ("g6666666666", g, g, "0", "10", wind, "train"),
    ]
    balanced = [("d3333333333", d, d, "0", "10", wind, "train")]
    assert manifest(audioset / "m.csv") == [*test, *unbalanced, *balanced]
    vab(capsys, *words, "20k")
    assert manifest(audioset / "m.csv") == balanced
    code, report, _ = vab(capsys, *words, "20k", "2m")  # 20k is a part of 2m
    assert (report["listed"], report["duplicates"]) == (4, 0)


def test_audioset_subset(audioset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "audioset", audioset / "lists", audioset / "media", "-o", audioset / "m.csv"]
    subset = audioset / "subset.json"
    entries = [
        {"video_id": name, "wav": "/x.flac", "labels": "/t/dd1"} for name in ("c2222222222", "b1111111111")
    ]
    subset.write_text(json.dumps({"data": entries}))
    code, report, _ = vab(capsys, *words, "--parts", "eval", "--subset", subset)
    assert code == 0 and report["listed"] == 2
    assert [row[0] for row in manifest(audioset / "m.csv")] == ["b1111111111", "c2222222222"]
    code, document, _ = vab(capsys, *words, "--parts", "20k", "--subset", subset)
    assert code == 2 and "2 of its 2 ids" in document["error"] and "b1111111111" in document["error"]
    subset.write_text('["c2222222222"]')
    code, document, _ = vab(capsys, *words, "--parts", "eval", "--subset", subset)
    assert code == 2 and str(subset) in document["error"]


def test_audioset_retrieval_list(data: Path) -> None:
    ids = read_subset(data / "lists" / "audioset_eval_1725.json")
    assert len(ids) == 1_725 and "--4gqARaEJE" in ids


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a, 1.0, 11.0", "line 4: 3 fields"),
        ('a, 1.0, eleven, "/t/dd1"', "line 4: '1.0' to 'eleven'"),
        ('a, 11.0, 1.0, "/t/dd1"', "line 4"),
        ('a, 1.0, nan, "/t/dd1"', "line 4"),
        ('a, 1.0, 11.0, ""', "line 4"),
        ('a, 1.0, 11.0, "/t/dd1,/m/none"', "line 4: label /m/none"),
    ],
)
def test_audioset_lists_with_mistakes(
    audioset: Path, capsys: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    (audioset / "lists" / "eval_segments.csv").write_text(HEADER + line + "\n")
    words = [audioset / "lists", audioset / "media", "-o", audioset / "m.csv", "--parts", "eval"]
    code, document, _ = vab(capsys, "data", "audioset", *words)
    assert code == 2 and says in document["error"] and "eval_segments.csv" in document["error"]
    assert not (audioset / "m.csv").exists()


def test_segments_are_read_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text(HEADER + 'a, 1.000, 11.000, "/m/1,/m/2"\n')
    [(line, segment)] = read_segments(path)
    assert (line, segment.ytid, segment.start, segment.end) == (4, "a", 1.0, 11.0)
    assert segment.mids == ("/m/1", "/m/2")


# MSR-VTT


def test_msrvtt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {0: "train", 1: "validate", 7010: "test", 7011: "test", 7012: "test", 7013: "test"}
    videos = [{"video_id": f"video{n}", "split": split, "category": 9} for n, split in splits.items()]
    listing = tmp_path / "test_videodatainfo.json"
    listing.write_text(json.dumps({"info": {}, "videos": videos, "sentences": []}))
    for n in (0, 7010, 7013):
        video(tmp_path / "TestVideo" / f"video{n}.mp4", n)
    video(tmp_path / "TestVideo" / "video7011.mp4", 3, sound=False)
    words = ["data", "msrvtt", listing, tmp_path, "-o", tmp_path / "m.csv"]
    code, report, _ = vab(capsys, *words)
    assert code == 0
    assert {name: report[name] for name in ("listed", "left", "gone", "silent")} == {
        "listed": 4,
        "left": 2,
        "gone": 1,
        "silent": 1,
    }
    paths = [f"TestVideo/video{n}.mp4" for n in (7010, 7013)]
    assert manifest(tmp_path / "m.csv") == [
        (f"video{n}", path, path, "0", "", "", "test") for n, path in zip((7010, 7013), paths, strict=True)
    ]
    listing.write_text(json.dumps({"videos": videos[:2]}))
    assert "none of its 2 videos" in vab(capsys, *words)[1]["error"]
    listing.write_text('{"videos": 3')
    assert str(listing) in vab(capsys, *words)[1]["error"]


# ESC-50


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    """One clip of each of the five folds, the third of them gone; two are of ESC-10."""
    header = "filename,fold,target,category,esc10,src_file,take\n"
    names = ["1-100032-A-0", "2-100038-A-14", "3-100210-A-36", "4-100038-A-0", "5-100263-A-36"]
    classes = ["dog", "chirping_birds", "vacuum_cleaner", "dog", "vacuum_cleaner"]
    (tmp_path / "meta").mkdir()
    rows = [
        f"{name}.wav,{name[0]},{name.split('-')[-1]},{label},{label == 'dog'},{name.split('-')[1]},A\n"
        for name, label in zip(names, classes, strict=True)
    ]
    (tmp_path / "meta" / "esc50.csv").write_text(header + "".join(rows))
    for n in (0, 1, 3, 4):
        sound(tmp_path / "audio" / f"{names[n]}.wav", n)
    return tmp_path


def test_esc50(esc50: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report, _ = vab(capsys, "data", "esc50", esc50, "-o", esc50 / "m.csv", "--fold", 4)
    assert code == 0 and (report["listed"], report["left"], report["gone"]) == (5, 4, 1)
    assert report["copies"] == {}
    assert manifest(esc50 / "m.csv") == [
        ("1-100032-A-0", "audio/1-100032-A-0.wav", "", "0", "5", "dog", "train"),
        ("2-100038-A-14", "audio/2-100038-A-14.wav", "", "0", "5", "chirping_birds", "train"),
        ("4-100038-A-0", "audio/4-100038-A-0.wav", "", "0", "5", "dog", "test"),
        ("5-100263-A-36", "audio/5-100263-A-36.wav", "", "0", "5", "vacuum_cleaner", "train"),
    ]
    clips, report = esc50_clips(esc50, 1, esc10=True)
    assert [(clip.id, clip.split) for clip in clips] == [("1-100032-A-0", "test"), ("4-100038-A-0", "train")]
    assert report.listed == 2
    assert vab(capsys, "data", "esc50", esc50, "-o", esc50 / "folds.csv")[0] == 0
    assert [row[-1] for row in manifest(esc50 / "folds.csv")] == ["fold1", "fold2", "fold4", "fold5"]
    for fold in (0, 6):
        code, document, _ = vab(capsys, "data", "esc50", esc50, "-o", esc50 / "n.csv", "--fold", fold)
        assert code == 2 and f"not {fold}" in document["error"] and not (esc50 / "n.csv").exists()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("esc10,", "", "line 1: no column esc10"),
        (",4,0,dog", ",9,0,dog", "line 5: column fold: '9'"),
        (",4,0,dog,True", ",4,0,dog,yes", "line 5: column esc10: 'yes'"),
        (",4,0,dog", ",4,dog", "line 5: 6 fields, the header has 7"),
    ],
)
def test_esc50_lists_with_mistakes(esc50: Path, old: str, new: str, says: str) -> None:
    path = esc50 / "meta" / "esc50.csv"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ListError, match=f"esc50.csv: {says}"):
        esc50_clips(esc50, 1)


# Speech Commands


def test_the_official_split_of_speech_commands() -> None:
    # Worked out by hand from `printf 026290a7 | sha1sum` = 39ae...400df874: its low 27 bits are 0x00df874,
    # 0.7 % of 2^27; a69b9b3e: ...e863f723, 0x063f723, 4.9 %; 00176480: ...1d957759, 0x5957759, 69.8 %.
    # The first two stand in the archive's validation_list.txt.
    assert which_set("bed/026290a7_nohash_0.wav") == "dev"
    assert which_set("right/a69b9b3e_nohash_0.wav") == which_set("a69b9b3e_nohash_7.wav") == "dev"
    assert which_set("bed/00176480_nohash_0.wav") == "train"
    assert which_set("bed/0c40e715_nohash_0.wav") == "test"  # of the archive's testing_list.txt
    splits = [which_set(f"{n:08x}_nohash_0.wav") for n in range(4000)]
    shares = {split: splits.count(split) / 4000 for split in ("train", "dev", "test")}
    assert shares == pytest.approx({"train": 0.8, "dev": 0.1, "test": 0.1}, abs=0.02)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Both archives with all folders and few clips."""
    root, test = tmp_path / "v0.01", tmp_path / "test"
    words = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
    for folder in [*words, "bed", "_background_noise_"]:
        (root / folder).mkdir(parents=True)
    for folder in [*words, "_unknown_", "_silence_"]:
        (test / folder).mkdir(parents=True)
    for n, name in enumerate(
        ("yes/026290a7", "yes/00176480", "yes/0c40e715", "bed/00176480", "bed/a69b9b3e")
    ):
        sound(root / f"{name}_nohash_0.wav", n)
    sound(root / "_background_noise_" / "pink_noise.wav", 10, 12.5)
    (root / "_background_noise_" / "README.md").write_text("noise")
    (root / "LICENSE").write_text("CC BY 4.0")
    for n, name in enumerate(("yes/026290a7_nohash_0", "_unknown_/bed_1", "_silence_/0")):
        sound(test / f"{name}.wav", 20 + n)
    return tmp_path


def test_speech_commands(speech: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "speech-commands", speech / "v0.01", speech / "test", "-o", speech / "m.csv"]
    code, report, _ = vab(capsys, *words)
    assert code == 0 and (report["listed"], report["left"], report["copies"]) == (19, 19, {})
    noise = "v0.01/_background_noise_/pink_noise.wav"
    assert manifest(speech / "m.csv") == [
        (f"bed/{name}", f"v0.01/bed/{name}.wav", "", "0", "1", "_unknown_", split)
        for name, split in (("00176480_nohash_0", "train"), ("a69b9b3e_nohash_0", "dev"))
    ] + [
        (f"yes/{name}", f"v0.01/yes/{name}.wav", "", "0", "1", "yes", split)
        for name, split in (("00176480_nohash_0", "train"), ("026290a7_nohash_0", "dev"))
    ] + [
        (f"_silence_/pink_noise#{n}", noise, "", str(n), "1", "_silence_", "dev" if n == 9 else "train")
        for n in range(12)
    ] + [
        (f"test/{folder}/{name}", f"test/{folder}/{name}.wav", "", "0", "1", folder, "test")
        for folder, name in (("_silence_", "0"), ("_unknown_", "bed_1"), ("yes", "026290a7_nohash_0"))
    ]


def test_speech_commands_knows_the_wrong_archive(speech: Path) -> None:
    root, test = speech / "v0.01", speech / "test"
    with pytest.raises(ListError, match="no folder _background_noise_"):
        speech_commands_clips(test, test)
    with pytest.raises(ListError, match="is none of the 12 classes"):
        speech_commands_clips(root, root)
    (root / "visual").mkdir()
    with pytest.raises(ListError, match=r"this is v0\.02"):
        speech_commands_clips(root, test)


# Still frames, files


def test_drop_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.csv").write_text("".join(f"{name}_000001.mp4,x\n" for name in "abc"))
    still(tmp_path / "media" / "a_000001.mkv")
    still(tmp_path / "media" / "b_000001.mkv", change=12)
    sound(tmp_path / "media" / "c_000001.wav")
    words = ["data", "vggsound", tmp_path / "test.csv", tmp_path / "media", "-o", tmp_path / "m.csv"]
    code, report, _ = vab(capsys, *words)
    assert code == 0 and (report["left"], report["still_frames"]) == (3, None)
    code, report, _ = vab(capsys, *words, "--drop-still")
    assert code == 0 and (report["left"], report["still_frames"]) == (2, 1)
    assert [row[0] for row in manifest(tmp_path / "m.csv")] == ["b_000001", "c_000001"]


def test_what_comes_back_every_second_is_not_still(tmp_path: Path) -> None:
    assert is_still(still(tmp_path / "a.mkv"), 3.0)
    assert not is_still(still(tmp_path / "b.mkv", change=12, flashing=True), 3.0)


def test_of_real_clips_only_the_photo_of_a_record_is_still(data: Path) -> None:
    record = data / "clips" / "Stable-Video2Audio__output__s6U8DtBK3Us_30000_muxed.mp4"  # of VGGSound
    clips = sorted((data / "clips").glob("*.mp4"))
    assert [clip for clip in {*clips[::4], record} if is_still(clip, 10.0)] == [record]


def test_of_two_files_with_a_name_the_first_is_taken_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for place in (".trash", "b", "a"):
        sound(tmp_path / place / "x.wav")
    clips, report = gather([Row("x", ("none", "x"), "", "test")], tmp_path)
    assert [clip.audio for clip in clips] == [tmp_path / "a" / "x.wav"] and report.gone == 0


def test_files_are_what_their_streams_say(tmp_path: Path) -> None:
    shutil.copy(sound(tmp_path / "a.wav"), tmp_path / "only_sound.mp4")
    video(tmp_path / "both.mp4", sound=False)
    sound(tmp_path / "both.wav", 2)
    sound(tmp_path / "half.wav", 3)
    (tmp_path / "half.mp4").write_bytes(b"cut off")
    (tmp_path / "empty.mp4").touch()
    names = ("only_sound", "both", "half", "empty")
    clips, report = gather([Row(name, (name,), "", "test") for name in names], tmp_path)
    assert [(clip.audio, clip.video) for clip in clips] == [
        (tmp_path / "only_sound.mp4", None),
        (tmp_path / "both.wav", tmp_path / "both.mp4"),
    ]
    assert list(report.unreadable) == ["half", "empty"] and "half.mp4" in report.unreadable["half"]


def test_lists_may_begin_with_a_mark_and_end_lines_as_windows_does(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf# c\r\na,"b, c"\r\n\r\nd, "e"\r\n')
    assert list(read_csv(tmp_path / "a.csv")) == [(2, ["a", "b, c"]), (4, ["d", "e"])]
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ListError, match=r"b\.csv: not a text file"):
        list(read_csv(tmp_path / "b.csv"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("vggsound DIR/no.csv DIR -o DIR/m.csv", "no.csv: No such file"),
        ("vggsound DIR/test.csv DIR/no -o DIR/m.csv", "no: no such folder"),
        ("vggsound DIR/test.csv DIR -o DIR/m.csv", "0 clips of 1 listed (1 gone)"),
        ("audioset DIR DIR -o DIR/m.csv --parts eval", "class_labels_indices.csv"),
        ("msrvtt DIR/test.csv DIR -o DIR/m.csv", "test.csv: not json"),
        ("esc50 DIR -o DIR/m.csv --fold 1", "esc50.csv: No such file"),
        ("speech-commands DIR/no DIR -o DIR/m.csv", "no: no such folder"),
    ],
)
def test_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, says: str) -> None:
    (tmp_path / "test.csv").write_text("a_000001.mp4,dog\n")
    code, document, err = vab(capsys, "data", *words.replace("DIR", str(tmp_path)).split())
    assert code == 2 and says in document["error"] and err.count("\n") == 1
    assert not (tmp_path / "m.csv").exists()


# VATT

VECTORS = np.random.default_rng(0).normal(size=(4, 2048, 128)).astype(np.float32)


@pytest.fixture
def vatt(tmp_path: Path) -> Path:
    """Seven rows: two good, a long one, a short one, one without features, one gone, one listed twice."""
    rng = np.random.default_rng(1)
    names = ["aaaaaaaaaaa_000030", "bbbbbbbbbbb_000004", "ccccccccccc_000001", "ddddddddddd_000002"]
    names += ["eeeeeeeeeee_000003", "fffffffffff_000005"]
    rows = [f"{name[:11]},{int(name[12:])},dog,{'test' if name[0] == 'b' else 'train'}\n" for name in names]
    (tmp_path / "vggsound.csv").write_text("".join([*rows, rows[0]]))
    for folder in ("tokens", "features"):
        (tmp_path / folder).mkdir()
    for name in names[:5]:
        np.save(tmp_path / "tokens" / f"{name}.npy", rng.integers(0, 2048, (500, 4)))
    for name, frames in zip(names[:4], (50, 50, 53, 37), strict=True):
        values = rng.normal(size=(frames, 768)).astype(np.float32)
        np.save(tmp_path / "features" / f"{name}.npy", values)
    return tmp_path


def test_vatt(vatt: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Codec:
        def codebook_vectors(self) -> torch.Tensor:
            return torch.from_numpy(VECTORS)

    asked: list[tuple[str, str | None]] = []

    def load_codec(name: str, source: str | None) -> Codec:
        asked.append((name, source))
        return Codec()

    monkeypatch.setattr("vab.codecs.codec.load_codec", load_codec)
    words = [vatt / "tokens", vatt / "features", "-o", vatt / "store", "--list", vatt / "vggsound.csv"]
    words += ["--codebooks", vatt / "codec.bin"]
    code, report, _ = vab(capsys, "data", "vatt", *words)
    assert code == 0 and asked == [("encodec", str(vatt / "codec.bin"))]
    counts = [report[name] for name in ("listed", "left", "gone", "duplicates")]
    assert counts == [7, 4, 2, 1] and report["unreadable"] == {}
    store = LatentStore.open(vatt / "store")
    assert store.ids == [
        "aaaaaaaaaaa_000030",
        "bbbbbbbbbbb_000004",
        "ccccccccccc_000001",
        "ddddddddddd_000002",
    ]
    assert store.splits == ["train", "test", "train", "train"] and set(store.labels) == {"dog"}
    assert (store.meta.codec, store.meta.fps, store.meta.seconds) == ("encodec", 5.0, 10.0)
    with pytest.raises(StoreError, match=r"vision is 'eva02-clip-l-336', the model's is 'eva02-clip-l'$"):
        check_fits(store, PRESETS["vab-encodec"])  # 224 pixels: at run time it would see other features
    seen = replace(PRESETS["vab-encodec"].model, vision="eva02-clip-l-336")
    check_fits(store, replace(PRESETS["vab-encodec"], model=seen))
    assert store.meta.token_shape == (4, 500) and store.meta.feature_shape == (50, 768)
    np.testing.assert_array_equal(store.codebook_vectors(), VECTORS)
    for row, name in enumerate(store.ids):
        tokens = np.load(vatt / "tokens" / f"{name}.npy")
        features = np.load(vatt / "features" / f"{name}.npy").astype(np.float16)
        found = store[row]
        assert found.tokens is not None and found.features is not None
        np.testing.assert_array_equal(found.tokens, tokens.T)
        own = min(len(features), 50)
        assert found.real_features == own and found.real_tokens == 500
        np.testing.assert_array_equal(found.features[:own], features[:own])
        assert (found.features[own:] == features[own - 1]).all()
    assert vab(capsys, "data", "vatt", *words)[1]["left"] == 4  # again: all are known
    assert len(LatentStore.open(vatt / "store")) == 4


def test_vatt_files_that_are_something_else(vatt: Path) -> None:
    names = ["aaaaaaaaaaa_000030", "bbbbbbbbbbb_000004", "ccccccccccc_000001"]
    np.save(vatt / "tokens" / f"{names[0]}.npy", np.zeros((4, 500), np.int64))
    np.save(vatt / "tokens" / f"{names[1]}.npy", np.full((500, 4), 2048))
    (vatt / "features" / f"{names[2]}.npy").write_bytes(b"not numpy")
    arguments = (vatt / "vggsound.csv", vatt / "tokens", vatt / "features", vatt / "store")
    report = vatt_store(*arguments, VECTORS)
    assert list(report.unreadable) == names and report.left == 1
    for name, says in zip(names, ("(4, 500), not integers (500, 4)", "0 to 2047", "npy"), strict=True):
        assert says in report.unreadable[name] and name in report.unreadable[name]
    np.save(vatt / "tokens" / f"{names[0]}.npy", np.zeros((500, 4), np.int16))
    assert vatt_store(*arguments, VECTORS).left == 2  # mended and read by the next call
    with pytest.raises(ListError, match="4 of 2048"):
        vatt_store(*arguments, VECTORS[:2])
    with pytest.raises(ListError, match="hold none of the 7"):
        vatt_store(arguments[0], vatt / "store", vatt / "features", vatt / "other", VECTORS)
