"""Two folders of sounds against each other: strict, resumable, and in av-benchmark's files."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.networks import noise, write_weights
from helpers.paper import LINES
from vab.cli import main
from vab.data.manifest import Clip, write_manifest
from vab.evaluate.backbones.registry import BACKBONES
from vab.evaluate.generation import features
from vab.evaluate.generation.cache import FeatureCache
from vab.evaluate.generation.protocol import EvaluationSettings, Incomplete, evaluate
from vab.evaluate.metrics.distances import divergences, frechet
from vab.evaluate.metrics.statistics import EvaluationError, Interval
from vab.evaluate.metrics.tables import generation_beside_paper
from vab.evaluate.paper import GENERATION
from vab.media.reader import write_wav
from vab.utils.remote import RemoteFile

NAMES = ["bell", "cat", "dog"]
LIGHT = ["FD-LOGMEL", "MEL-distance", "ONSET-F1"]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights but those a test writes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no cache"))
    monkeypatch.delenv("VAB_WEIGHTS", raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), "vggish", "panns")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something light in place of every network, where the test is about what surrounds it."""

    def embedding(waveform: np.ndarray) -> tuple[torch.Tensor]:
        return (torch.from_numpy(waveform[:12_800].reshape(100, 128)),)

    monkeypatch.setattr(features, "load", lambda kind, path, device: embedding)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Real and generated: three sounds of 1.2 s."""
    for side in (0, 1):
        for n, name in enumerate(NAMES):
            write_wav(tmp_path / ("real", "made")[side] / f"{name}.wav", noise(1.2, 16_000, 10 * side + n))
    return tmp_path / "real", tmp_path / "made"


def settings(**fields: Any) -> EvaluationSettings:
    return EvaluationSettings(**{"device": "cpu", "resamples": 20, **fields})


def test_what_needs_no_network_is_always_there(folders: tuple[Path, Path]) -> None:
    found = evaluate(*folders, settings())
    assert [each.key for each in found.metrics] == LIGHT
    assert found.ids == NAMES and {each.clips for each in found.metrics} == {3}
    assert set(found.absent) == set(BACKBONES)
    assert all(each.value.low <= each.value.value <= each.value.high for each in found.metrics)
    same = evaluate(folders[0], folders[0], settings())
    assert [each.value.value for each in same.metrics] == pytest.approx([0, 0, 1], abs=1e-9)


def test_networks_measure_what_their_features_say(folders: tuple[Path, Path], weights: Path) -> None:
    found = evaluate(*folders, settings(weights=weights, seconds=8.0))
    keys = ["FD-VGG", "FD-PANN", "KL-PANNS-softmax", "ISC-PANNS-mean"]
    assert [each.key for each in found.metrics] == [*keys, *LIGHT]
    assert set(found.absent) == {"passt", "yamnet", "imagebind", "synchformer"}
    # as av-benchmark reads its cache
    caches = [torch.load(side / "cache" / "vggish_features.pth", weights_only=True) for side in folders]
    assert [sorted(cache) for cache in caches] == [NAMES, NAMES]
    assert {tuple(value.shape) for cache in caches for value in cache.values()} == {(1, 128)}
    wanted = frechet(*(torch.cat([cache[name] for name in NAMES]).numpy() for cache in caches))
    assert found.metrics[0].value.value == pytest.approx(wanted)
    real, made = (torch.load(side / "cache" / "pann_features.pth", weights_only=True) for side in folders)
    assert {name: value.shape for name, value in made["cat"].items()} == {"2048": (2048,), "logits": (527,)}
    logits = [torch.stack([cache[name]["logits"] for name in NAMES]).numpy() for cache in (real, made)]
    assert found.metrics[2].value.value == pytest.approx(divergences(*logits).mean())
    results = json.loads((folders[1] / "cache" / "output_metrics.json").read_text())
    assert sorted(results) == sorted([*keys, "ISC-PANNS-std"])
    assert results["FD-VGG"] == found.metrics[0].value.value
    assert not list(folders[0].rglob("*.part")) + list(folders[0].rglob("*.tmp*"))


@pytest.mark.usefixtures("quick")
def test_features_are_made_once_and_again_where_a_file_has_changed(
    folders: tuple[Path, Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    reader = features.read_clip

    def counted(path: Path, rate: int, seconds: float) -> np.ndarray:
        read.append(path.stem)
        return reader(path, rate, seconds)

    monkeypatch.setattr(features, "read_clip", counted)
    chosen = settings(weights=weights, backbones=("vggish",))
    first = evaluate(*folders, chosen)
    assert len(read) == 3 * (2 + 2 + 2)  # look, compare, features
    read.clear()
    assert evaluate(*folders, chosen).metrics == first.metrics
    assert read == []
    write_wav(folders[1] / "cat.wav", noise(1.3, 16_000, 99))
    changed = evaluate(*folders, chosen)
    assert sorted(read) == ["cat"] * 4  # looked at, compared (both), its features
    assert changed.metrics != first.metrics
    read.clear()
    evaluate(*folders, settings(weights=weights, backbones=("vggish",), seconds=1.0))  # another cache
    assert len(read) == 18
    # other weights make other features
    other = weights.parent / "other"
    shutil.copytree(weights, other, dirs_exist_ok=True)
    state = torch.load(other / BACKBONES["vggish"].reference.file, weights_only=True)
    torch.save(
        {**state, "embeddings.4.bias": state["embeddings.4.bias"] + 1},
        other / BACKBONES["vggish"].reference.file,
    )
    read.clear()
    evaluate(*folders, settings(weights=other, backbones=("vggish",)))
    assert len(read) == 6
    # and without weights what is there is taken
    assert evaluate(*folders, settings()).get("FD-VGG") is not None


@pytest.mark.usefixtures("quick")
def test_a_run_that_is_stopped_goes_on_where_it_was(folders: tuple[Path, Path], weights: Path) -> None:
    chosen = {"weights": weights, "backbones": ("vggish",)}
    whole = evaluate(*folders, settings(**chosen, cache=folders[0].parent / "whole"))
    features = []

    def stop(number: int, of: int, path: Path, stage: str, done: int, total: int) -> None:
        if stage == "features":
            features.append(path)
            if len(features) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*folders, settings(**chosen), stop)
    cache = folders[0] / "cache_10s"
    assert (cache / "vggish.part").is_file() and not (cache / "vggish_features.pth").exists()
    done: list[Path] = []

    def note(number: int, of: int, path: Path, stage: str, *_: int) -> None:
        done.extend([path] if stage == "features" else [])

    again = evaluate(*folders, settings(**chosen), note)
    assert [path.name for path in done] == ["dog.wav", "bell.wav", "cat.wav", "dog.wav"]
    assert again.metrics == whole.metrics
    assert not (cache / "vggish.part").exists()


def test_only_our_own_features_go_with_their_clips(tmp_path: Path) -> None:
    kind, table = BACKBONES["vggish"].reference, tmp_path / "vggish_features.pth"
    torch.save({name: torch.zeros(8, 128) for name in ("cat", "gone")}, table)
    for clips in (["cat", "dog"], ["cat"]):
        shelf = FeatureCache(tmp_path, kind, "weights")
        shelf.keep(clips)
        shelf.put(clips[-1], "stamp", (torch.ones(8, 128),))
        shelf.save(complete=True)
        assert set(torch.load(table, weights_only=True)) == {"gone", *clips}


def test_features_of_av_benchmark_are_taken_as_they_are(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    for side in ("real", "made"):
        (tmp_path / side).mkdir()
        tables: dict[str, dict[str, Any]] = {
            "vggish_features": {},
            "passt_features_embed": {},
            "passt_logits": {},
        }
        for name in "abcdefghijkl":
            tables["vggish_features"][name] = torch.randn(8, 128, generator=random)
            tables["passt_features_embed"][name] = torch.randn(768, generator=random)
            tables["passt_logits"][name] = torch.randn(527, generator=random)
        for table, content in tables.items():
            torch.save(content, tmp_path / side / f"{table}.pth")
    found = evaluate(tmp_path / "real", tmp_path / "made", settings())
    assert [each.key for each in found.metrics] == [
        "FD-VGG",
        "FD-PASST",
        "KL-PASST-softmax",
        "ISC-PASST-mean",
    ]
    assert found.external == ["vggish", "passt"] and len(found.ids) == 12
    assert set(found.absent) == {"panns", "yamnet", "imagebind", "synchformer", "the sounds"}
    assert ", features as they are\n" in found.markdown() and found.document()["seconds"] is None
    # a clip that only one side has, or one table lacks, is a fault
    content = torch.load(tmp_path / "made" / "passt_logits.pth", weights_only=True)
    del content["c"]
    torch.save(content, tmp_path / "made" / "passt_logits.pth")
    with pytest.raises(Incomplete):
        evaluate(tmp_path / "real", tmp_path / "made", settings())
    found = evaluate(tmp_path / "real", tmp_path / "made", settings(allow_missing=True))
    assert {each.key: each.clips for each in found.metrics}["FD-VGG"] == 12
    assert {each.key: each.clips for each in found.metrics}["KL-PASST-softmax"] == 11
    assert found.faults[0].id == "c"
    (tmp_path / "made" / "passt_logits.pth").write_bytes(b"torn")
    with pytest.raises(EvaluationError, match=r"passt_logits.pth: not a cache of features .*; delete it"):
        evaluate(tmp_path / "real", tmp_path / "made", settings())


def spoil(folders: tuple[Path, Path], how: str) -> None:
    """One of four fine clips becomes a bad one."""
    for folder, seed in zip(folders, (7, 8), strict=True):
        write_wav(folder / "owl.wav", noise(1.2, 16_000, seed))
    real, made = (folder / "owl.wav" for folder in folders)
    if how == "missing":
        made.unlink()
    elif how == "left over":
        real.unlink()
    elif how == "unreadable":
        made.write_text("RIFF, or so they say")
    elif how == "torn":
        made.write_bytes(made.read_bytes()[:20])
    elif how == "gone":
        made.unlink()
        made.symlink_to("nowhere.wav")
    elif how == "silent":
        write_wav(made, np.full(19_200, 0.25))  # a constant is no sound
    elif how == "too short":
        write_wav(real, noise(0.9, 16_000))
    elif how == "ends early":
        write_wav(real, noise(1.6, 16_000))
    elif how == "twice":
        write_wav(made.with_name("sub") / "owl.wav", noise(1.2, 16_000))
    elif how == "copied":
        made.write_bytes(made.with_name("cat.wav").read_bytes())
    elif how == "two films":
        for place in (real.parent, real.with_name("sub")):
            place.mkdir(exist_ok=True)
            (place / "owl.mp4").write_bytes(place.name.encode())


FAULTS = {
    "missing": r"missing from .*made",
    "left over": r"missing from .*real",
    "unreadable": r"made/owl.wav: ",
    "torn": r"made/owl.wav: ",
    "gone": r"made/owl.wav: no such file",
    "silent": r"made/owl.wav: silent",
    "too short": r"real/owl.wav: too short, 0.90 s; 0.975 s are needed",
    "ends early": r"made/owl.wav: too short, 1.20 s, where the reference has 1.60 s",
    "twice": r"made/sub/owl.wav: has the name of .*made/owl.wav",
    "copied": r"made/owl.wav: is a copy of .*made/cat.wav",
    "two films": r"real/sub/owl.mp4: has the name of .*real/owl.mp4",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_bad_clip_is_named_and_fails_the_run(folders: tuple[Path, Path], how: str) -> None:
    good = evaluate(*folders, settings())
    spoil(folders, how)
    for _ in range(2):  # a second run must not forget
        with pytest.raises(Incomplete, match="1 clip cannot be measured") as told:
            evaluate(*folders, settings())
        (fault,) = told.value.faults
        assert fault.id == "owl"
        assert re.search(FAULTS[how], fault.reason), fault.reason
    found = evaluate(*folders, settings(allow_missing=True))
    assert [fault.id for fault in found.faults] == ["owl"]
    assert found.ids == NAMES and found.metrics == good.metrics


def test_a_videos_own_sound_counts_where_no_sound_file_has_its_name(folders: tuple[Path, Path]) -> None:
    from helpers.tiny import write_video

    write_video(folders[0] / "film.mp4", 50, 25)
    write_wav(folders[1] / "film.wav", noise(2.0, 16_000))
    write_video(folders[1] / "cat.mp4", 50, 25)  # vab generate leaves cat.wav and cat.mp4
    found = evaluate(*folders, settings())
    assert found.ids == ["bell", "cat", "dog", "film"]


def test_the_clips_of_a_manifest_count_by_their_ids(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """As VGGSound's, whose files have the names that a downloader gave them."""
    real, made = folders
    clips = [
        Clip(name, (real / f"{name}.wav").rename(real / f"{name}_30000.wav"), None)
        for name in ("bell", "cat", "dog")
    ]
    write_manifest(tmp_path / "lists" / "set.csv", clips)
    chosen = settings(clips=frozenset(("bell", "cat", "dog")))
    found = evaluate(tmp_path / "lists" / "set.csv", made, chosen)
    assert found.ids == ["bell", "cat", "dog"] and not found.faults

    # a model's sounds have names that every disk takes
    write_manifest(tmp_path / "lists" / "odd.csv", [replace(clips[0], id="a/bell#0"), *clips[1:]])
    other = Path(shutil.copytree(made, tmp_path / "other"))
    (other / "bell.wav").rename(other / "a_bell_0.wav")
    odd = settings(clips=frozenset(("a_bell_0", "cat", "dog")))
    assert evaluate(tmp_path / "lists" / "odd.csv", other, odd).ids == ["a_bell_0", "cat", "dog"]

    # what is no whole file on this machine, or stands for two clips, is named; what is not asked for is not
    bell = clips[0].audio
    assert isinstance(bell, Path)
    more = [
        Clip("late", clips[0].audio, None, start=1.0),
        Clip("far", RemoteFile("s3://bucket/far.wav"), None),
        Clip("other", clips[0].audio, None),
        Clip("same", Path(shutil.copy(bell, real / "copy.wav")), None),
    ]
    write_manifest(tmp_path / "lists" / "set.csv", clips + more)
    assert evaluate(tmp_path / "lists" / "set.csv", made, chosen).ids == found.ids
    told = evaluate(tmp_path / "lists" / "set.csv", made, settings(allow_missing=True))
    reasons = {fault.id: fault.reason for fault in told.faults}
    assert reasons.keys() == {"late", "far", "other", "same"} and told.ids == found.ids
    for name, reason in {"late": "begins at 1 s", "far": "no sound", "other": "too", "same": "copy"}.items():
        assert reason in reasons[name]


def test_nothing_to_measure_is_one_clear_line(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "empty").mkdir()
    for reference, generated, chosen, reason in (
        (tmp_path / "none", folders[1], {}, "none: no such folder"),
        (folders[0] / "cat.wav", folders[1], {}, "cat.wav: not a folder"),
        (folders[0], tmp_path / "empty", {}, "empty: has neither sounds nor videos nor features in it"),
        (*folders, {"backbones": ("resnet",)}, "no backbone is called 'resnet'; there are: vggish, panns"),
        (*folders, {"backbones": ("passt",)}, "passt: no passt-s-f128-p16-s10-ap.476-swa.pt: get it from"),
        (*folders, {"seconds": 0.5}, "clips must be 1 s or longer and have an end, not 0.5 s"),
        (*folders, {"seconds": math.nan}, "clips must be 1 s or longer"),
        (*folders, {"seconds": math.inf}, "clips must be 1 s or longer and have an end"),
        (*folders, {"resamples": -1}, "resamples cannot be negative"),
    ):
        with pytest.raises(EvaluationError, match=reason) as told:
            evaluate(reference, generated, settings(**chosen))
        assert "\n" not in str(told.value)
    for name in ("cat", "dog"):
        (folders[1] / f"{name}.wav").unlink()
    with pytest.raises(EvaluationError, match="1 of the clips can be measured; two are the least"):
        evaluate(*folders, settings(allow_missing=True))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "generation", *words])
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, printed.out, printed.err


def test_as_users_call_it(
    capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path], weights: Path
) -> None:
    words = [*map(str, folders), "--weights", str(weights), "--backbones", "vggish", "--device", "cpu"]
    code, out, err = run(capsys, *words, "--resamples", "10")
    assert (code, err) == (0, "")
    assert "N = 3, 0 left out" in out and "| FD-VGG | " in out
    assert "| VAB-Encodec | 2.69 | 2.58 | 0.4 | Table 1 |" in out
    row = next(line for line in out.splitlines() if line.startswith("| made |"))
    assert "not measured" in row and row.endswith("| here, N = 3, 10 s |")

    (folders[1] / "dog.wav").unlink()
    code, out, err = run(capsys, *words, "--json")
    assert code == 1 and err.startswith("dog: missing from ")
    assert json.loads(out)["left_out"] == [{"id": "dog", "reason": f"missing from {folders[1]}"}]
    code, out, err = run(capsys, *words, "--json", "--allow-missing", "--resamples", "0")
    document = json.loads(out)
    assert code == 1 and document["clips"] == 2 and document["measures"]["FD-VGG"]["clips"] == 2
    assert document["measures"]["FD-VGG"]["low"] is None
    assert list(document["av_benchmark"]) == ["FD-VGG"] and len(document["weights"]["vggish"]) == 16
    code, out, err = run(capsys, str(folders[0]), "nowhere")
    assert (code, out) == (2, "") and err == "vab: nowhere: no such folder\n"


def test_a_manifest_is_evaluated_by_its_split(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    """The clips of train that a system has no sounds for are not missing."""
    splits = {"bell": "test", "cat": "test", "dog": "test", "fox": "train"}
    clips = [Clip(name, folders[0] / f"{name}.wav", None, split=split) for name, split in splits.items()]
    write_manifest(tmp_path / "set.csv", clips)
    words = [str(tmp_path / "set.csv"), str(folders[1]), "--resamples", "0", "--device", "cpu", "--json"]
    code, out, _ = run(capsys, *words)
    assert (code, json.loads(out)["clips"]) == (0, 3)
    assert (tmp_path / "set").is_dir() and not (tmp_path / "cache_10s").exists()  # features of a manifest
    (folders[1] / "cat.wav").unlink()
    code, _, err = run(capsys, *words)
    assert code == 1 and err.startswith("cat: missing from ")


def test_a_folder_that_cannot_be_written_says_what_to_do(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders[0] / "cache_10s").write_text("a file is in the way")
    with pytest.raises(EvaluationError, match="give another folder with --cache"):
        evaluate(*folders, settings())
    elsewhere = folders[0].parent / "elsewhere"
    assert len(evaluate(*folders, settings(cache=elsewhere)).metrics) == 3
    assert sorted(path.name[:5] for path in elsewhere.iterdir()) == ["made-", "real-"]


def test_the_papers_numbers_are_those_of_the_paper() -> None:
    text = "\n".join(LINES)
    for row in GENERATION:
        if row.source == "Table 1":
            name = row.system + (" (Ours)" if row.system.startswith("VAB") else "")
            assert f"{name} | {row.fad:.2f} | {row.kld:.2f} | {row.seconds:.1f} |" in text
    fads = " | ".join(f"{row.fad:.2f}" for row in GENERATION if row.source == "Table 15")
    assert f"FAD Score | {fads} |" in text


def test_our_row_stands_below_the_papers() -> None:
    lines = generation_beside_paper("ours", 1200, 10.0, Interval(2.5, 2.4, 2.6), None).splitlines()
    assert lines[-3] == "| ours | 2.5 [2.4, 2.6] | not measured |  | here, N = 1,200, 10 s |"
    assert {line.count("|") for line in lines if line.startswith("|")} == {6}
