from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from helpers.forked import Forked
from helpers.tiny import write_video
from vab.cli import VERBS, current_option, main
from vab.cli.progress import file_progress
from vab.media.reader import probe, write_wav
from vab.presets import PRESETS

SOURCES = Path(__file__).parents[1] / "src"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCES), "HF_HUB_OFFLINE": "1"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def vab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a call."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, out, err


def test_help_and_import_load_no_torch() -> None:
    code = """
import sys, time
begin = time.process_time()
import vab, vab.cli
try:
    vab.cli.main(["--help"])
except SystemExit as left:
    assert left.code == 0
took = time.process_time() - begin
heavy = {"torch", "numpy", "av", "tyro", "huggingface_hub"} & set(sys.modules)
print(f"\\n{took} {sorted(heavy)}")
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    took, heavy = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert heavy == "[]" and float(took) < 1
    assert all(name in done.stdout for name in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_knows_json(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    presets = {
        "pretrain": ["vab-tiny"],
        "finetune contrastive": ["vab-tiny-contrastive"],
        "finetune distill": ["vab-tiny-student"],
        "finetune classify": ["vab-tiny-classes"],
        "evaluate folds": ["vab-tiny-classes"],
    }
    words = [*verb.split(), *presets.get(verb, [])]
    code, out, _ = vab(capsys, *words, "--help")
    assert code == 0 and "--json" in out
    plain = " ".join(out.replace("│", " ").split())
    assert not [empty for empty in ("default: None", "{None}", "default: )") if empty in plain]


def test_older_spellings_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert vab(capsys, "index", "add", "--help") == vab(capsys, "library", "add", "--help")
    assert "library prune" in vab(capsys, "index", "--help")[1]
    assert "index" not in vab(capsys, "--help")[1]
    for option in ("--rerank", "--candidates"):
        code, _, err = vab(capsys, "generate", "a.mp4", "-o", "out", option, "none")
        assert code == 2 and "--candidates/--rerank" in err and "Unrecognized" not in err


def test_options_are_known_without_torch() -> None:
    """All but those of the codec, whose options are its own configuration."""
    verbs = [verb.split() for verb in VERBS if verb != "codec train"]
    code = f"""
import sys
from vab.cli import main
for words in {verbs!r}:
    try:
        main([*words, "--help"])
    except SystemExit as left:
        assert left.code == 0
print("torch" in sys.modules)
"""
    assert python("-c", code).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nonsense", "no verb"),
        ("generat a.mp4 -o out", "generate"),
        ("codec", "train"),
        ("generate", "--out"),
        ("generate -o OUT", "no input"),
        ("generate a.mp4", "--out"),
        ("generate a.mp4 -o OUT --steps many", "steps"),
        ("generate a.mp4 -o OUT --steps 0", "steps"),
        ("generate a.mp4 -o OUT --samples 0", "samples"),
        ("generate a.mp4 -o OUT --seed -1", "seed"),
        ("generate a.mp4 -o OUT --temperature nan", "temperature"),
        ("generate a.mp4 -o OUT --keep 2", "2.0:5.5"),
        ("generate a.mp4 -o OUT --keep 3:2", "keep"),
        ("generate a.mp4 -o OUT --device tpu", "device"),
        ("generate a.mp4 -o OUT --model vab-encodec", "nobody has published"),
        ("generate a.mp4 -o OUT --model none/such", "none/such"),
        ("generate OUT/*.mp4 -o OUT", "no file matches"),
        ("presets nope", "vab-tiny"),
        ("pretrain nope --store a --run b", "nope"),
        ("pretrain vab-tiny --store OUT/no --run OUT/run", "store"),
        ("extract OUT/no.csv -o OUT/store", "no.csv"),
        ("extract OUT/no.csv -o OUT/store --preset nope", "nope"),
        ("codec train OUT/no.csv --run OUT/run", "no.csv"),
        ("data folder OUT/no -o OUT/a.csv", "no such folder"),
        ("data synthetic -o OUT/a.csv --clips 0", "clips"),
    ],
)
def test_bad_calls_exit_with_two(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    says: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = vab(capsys, *words.replace("OUT", str(tmp_path)).split())
    assert code == 2 and says in err and not out


def test_a_bad_call_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = vab(capsys, "presets", "nope", "--json")
    assert code == 2 and "nope" in json.loads(out)["error"] and err.count("\n") == 1


def test_presets(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = vab(capsys, "presets", "vab-encodec", "--json")
    document = json.loads(out)
    assert (
        code == 0 and document["model"]["hidden_dim"] == 1024 and document["train"]["warmup_steps"] == 100_000
    )
    assert document["decode"]["mask_temperature"] == 25.5
    assert document["parameters"] == pytest.approx(403e6, rel=0.01)
    assert document["expert_parameters"] == pytest.approx(253e6, rel=0.01)
    _, text, _ = vab(capsys, "presets", "vab-tiny")
    assert f"model.hidden_dim {PRESETS['vab-tiny'].model.hidden_dim}" in " ".join(text.split())
    _, table, _ = vab(capsys, "presets")
    assert all(name in table for name in PRESETS)


def test_models_and_doctor(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, _ = vab(capsys, "models", model, "--json")
    states = {entry["name"]: entry["state"] for entry in json.loads(out)["models"]}
    assert code == 0 and states[str(model)] == "local" and states["vab-encodec"] == "missing"
    code, out, _ = vab(capsys, "doctor", "--json")
    parts = {finding["part"]: finding for finding in json.loads(out)["findings"]}
    assert code == 0 and parts["aac encoder"]["state"] == "ok" and parts["torch"]["state"] == "ok"
    assert all(finding["advice"] for finding in parts.values() if finding["state"] != "ok")
    assert parts["codec encodec"]["state"] in ("ok", "missing")


def _bad_files(folder: Path) -> dict[str, str]:
    """Files that cannot be used: name -> what must be said."""
    folder.mkdir()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "nothing.mp4").touch()
    whole = write_video(folder / "whole.mp4", 60, 10).read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])  # the index stands at the end
    (folder / "whole.mp4").unlink()
    write_wav(folder / "sound.wav", np.zeros(1600, np.float32))
    shutil.copy(folder / "sound.wav", folder / "renamed.mp4")
    with av.open(str(folder / "no_frames.mkv"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        sound: Any = container.add_stream("aac", rate=16000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        block.sample_rate = 16000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    write_video(folder / "three_hours.mp4", 19, Fraction(1, 600), sound=False)
    return {
        "text.mp4": "not a",
        "nothing.mp4": "empty",
        "truncated.mp4": "",
        "sound.wav": "no video stream",
        "renamed.mp4": "no video stream",
        "no_frames.mkv": "",
        "three_hours.mp4": "longest",
        "missing.mp4": "no such file",
    }


def test_bad_inputs_get_one_line_each_and_the_others_go_on(model: Path, tmp_path: Path) -> None:
    bad = _bad_files(tmp_path / "bad")
    (tmp_path / "empty").mkdir()
    for name in ("films/one.mp4", "films/deep/two.mp4", "three.mkv", "four.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write_video(tmp_path / name, 4, 10)
    (tmp_path / "list.csv").write_text("video\nfour.mp4\n")
    out = tmp_path / "out"
    names = ["empty", "films", *(f"bad/{name}" for name in bad), "thr*.mkv", "list.csv"]
    done = python(
        *["-m", "vab", "generate", *(str(tmp_path / name) for name in names), "-o", str(out)],
        *["--model", str(model), "--steps", "1", "--json"],
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    results = {Path(row["input"]).name: row for row in document["results"]}
    assert (document["done"], document["failed"]) == (4, len(bad) + 1)
    assert document["settings"]["steps"] == 1
    errors = done.stderr.splitlines()
    assert len(errors) == len(bad) + 1, done.stderr
    for name, says in {**bad, "empty": "no video or image"}.items():
        (line,) = (line for line in errors if str(tmp_path) in line and f"/{name}:" in line)
        assert says in line and results[name]["error"] == line
    stems = ("one", "deep/two", "three", "four")
    made = {path.relative_to(out).as_posix() for path in out.rglob("*.*")}
    assert made == {f"{stem}.{kind}" for stem in stems for kind in ("wav", "mp4")}
    timings = [results[name]["timings"] for name in ("one.mp4", "two.mp4")]
    assert timings[0]["load"] > 0 and timings[1]["load"] == 0
    assert all({"decode_video", "features", "sampling", "codec", "mux"} <= set(row) for row in timings)


def _start(model: Path, folder: Path) -> tuple[Forked, Path]:
    """``vab generate`` on many files, up to where the first mp4 is being written."""
    videos = [write_video(folder / f"clip_{n}.mp4", 8, 10) for n in range(30)]
    out = folder / "out"
    words = ["generate", *map(str, videos), "-o", str(out), "--model", str(model)]
    process = Forked(folder, main, words)
    while process.poll() is None and not any(out.glob("*.mp4")):  # hidden ones too
        time.sleep(0.002)
    return process, out


def _all_whole(out: Path) -> int:
    """How many results there are; each must be complete."""
    found = [path for path in out.iterdir() if not path.name.startswith(".")]
    for path in found:
        if path.suffix == ".wav":
            with wave.open(str(path)) as file:
                assert file.getnframes() == 12800 and len(file.readframes(20000)) == 25600
        else:
            assert probe(path).seconds == pytest.approx(0.8) and probe(path).has_audio
    return len(found)


@pytest.mark.slow
def test_a_killed_run_leaves_no_part_of_a_file(model: Path, tmp_path: Path) -> None:
    process, out = _start(model, tmp_path)
    process.kill()
    process.communicate()
    assert 1 <= _all_whole(out) < 60


@pytest.mark.slow
def test_ctrl_c_says_one_line(model: Path, tmp_path: Path) -> None:
    process, out = _start(model, tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err == "vab: interrupted\n"
    assert not list(out.glob(".*")) and 1 <= _all_whole(out) < 60


def test_a_ctrl_c_that_a_library_drops_is_not_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def drops(json: bool = False) -> int:
        nonlocal calls
        with file_progress() as move:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            calls += 1
            move(0, 1, Path("a.mp4"), "sampling", 0, 1)
            calls += 1
        return 0

    monkeypatch.setattr("vab.cli.info.doctor", drops)
    before = signal.getsignal(signal.SIGINT)
    code, out, err = vab(capsys, "doctor")
    assert (code, out, err, calls) == (130, "", "vab: interrupted\n", 1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
def test_from_raw_data_to_a_model_that_makes_sound(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    """data -> extract -> pretrain -> generate, by the commands alone."""
    code, out, _ = vab(
        capsys, "data", "synthetic", "-o", tmp_path / "set", "--clips", 8, "--seconds", 2, "--json"
    )
    manifest = Path(json.loads(out)["manifest"])
    assert code == 0 and json.loads(out)["clips"] == 8
    code, out, _ = vab(capsys, "data", "folder", manifest.parent, "-o", tmp_path / "folder.csv", "--json")
    assert code == 1  # the set's own csv and json files are no media, and it says so
    assert json.loads(out)["clips"] == 8 and len(json.loads(out)["failed"]) == 2
    store, run = tmp_path / "store", tmp_path / "run"
    extract = ("extract", manifest, "-o", store, "--codec-path", model, "--seconds", 2, "--json")
    code, out, _ = vab(capsys, *extract)
    assert code == 0 and json.loads(out)["done"] == 8
    assert json.loads(vab(capsys, *extract)[1])["present"] == 8
    sizes = {"seconds": 2.0, "codebooks": 2, "vocabulary": 32, "codebook-dim": 8, "width": 32, "layers": 2}
    sizes |= {"heads": 2, "expert-layers": 1}
    options = [word for name, value in sizes.items() for word in (f"--model.{name}", value)]
    pretrain = ("pretrain", "vab-tiny", "--store", store, "--run", run, *options, "--train.batch-size", 4)
    code, out, err = vab(capsys, *pretrain, "--max-steps", 3, "--json")
    assert code == 0, err
    assert json.loads(out)["settings"]["model"]["hidden_dim"] == 32
    shutil.copy(model / "codec.json", run)
    shutil.copy(model / "codec.safetensors", run)
    clip = next(manifest.parent.glob("*.mp4"))
    code, out, err = vab(capsys, "generate", clip, "-o", tmp_path / "out", "--model", run, "--steps", 2)
    assert code == 0, err
    assert "done" in out and (tmp_path / "out" / f"{clip.stem}.mp4").is_file()


@pytest.mark.slow
def test_the_codec_is_trained_on_a_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, out, _ = vab(
        capsys, "data", "synthetic", "-o", tmp_path / "set", "--clips", 4, "--seconds", 1, "--json"
    )
    sizes = {
        "vocabulary": 8,
        "dim": 4,
        "decoder-width": 8,
        "detail-width": 8,
        "codebooks": 2,
    }
    options = [word for name, value in sizes.items() for word in (f"--codec.{name}", value)]
    options += ["--steps", 2, "--batch-size", 2, "--code-seconds", 4, "--code-rounds", 1]
    run = tmp_path / "run"
    code, out, err = vab(
        capsys, "codec", "train", json.loads(out)["manifest"], "--run", run, *options, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["run"] == str(run) and (run / "codec.safetensors").is_file()


def test_finetune_then_evaluate(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Media -> store -> a space and classes on it -> numbers, as a user types it."""
    for name in ("bell", "dog"):
        for split in ("train", "test"):
            (tmp_path / "media" / split / name).mkdir(parents=True)
            for n in range(2):
                write_video(tmp_path / "media" / split / name / f"{n}.mp4", 20 + n, 10)
    manifest, store = tmp_path / "manifest.csv", tmp_path / "store"
    assert vab(capsys, "data", "folder", tmp_path / "media", "-o", manifest, "--seconds", 2)[0] == 0
    extract = ("extract", manifest, "-o", store, "--seconds", 2, "--codec-path", model, "--device", "cpu")
    assert vab(capsys, *extract)[0] == 0
    sizes = {"seconds": 2.0, "codebooks": 2, "vocabulary": 32, "codebook-dim": 8, "width": 32, "layers": 2}
    sizes |= {"expert-layers": 1, "heads": 2}
    options = [part for name, value in sizes.items() for part in (f"--model.{name}", value)]
    options += ["--store", store, "--train.batch-size", 4, "--max-steps", 3]
    runs = tmp_path / "space", tmp_path / "classes"
    first = ("finetune", "contrastive", "vab-tiny-contrastive", "--run", runs[0], "--init", model, *options)
    assert vab(capsys, *first)[0] == 0
    probe = ("--init", runs[0], "--train.freeze-trunk", "--train.inputs", "audio", "both")
    second = ("finetune", "classify", "vab-tiny-classes", "--run", runs[1], *probe, *options)
    assert vab(capsys, *second)[0] == 0
    code, text, _ = vab(capsys, "evaluate", "retrieval", "--store", store, "--model", runs[0], "--json")
    found = json.loads(text)
    assert code == 0 and found["clips"] == 4 and 0 <= found["video to audio"]["P@1"]["value"] <= 1
    for inputs in ("a", "av"):
        words = ("--store", store, "--model", runs[1], "--inputs", inputs, "--json")
        code, text, _ = vab(capsys, "evaluate", "classification", *words)
        assert code == 0 and json.loads(text)["clips"] == 4
    code, _, error = vab(capsys, "evaluate", "retrieval", "--store", store, "--model", runs[1])
    assert code == 2 and "no embeddings" in error
    code, _, error = vab(capsys, *first[:-1], 4)
    assert code == 2 and "another run" in error


@pytest.mark.parametrize(
    ("words", "now"),
    [
        ("vab-tiny --model.width 96", "--model.hidden-dim"),
        ("vab-tiny --train.roll=0.2", "--train.roll-prob=0.2"),
        ("vab-tiny --train.no-balanced", "--train.no-class-balanced"),
        ("vab-tiny --decode.temperature 3", "--decode.mask-temperature"),
        ("foleygen-tiny --decode.temperature 3", "--decode.sampling-temperature"),
        ("m.csv --codec.vocabulary 8", "--codec.codebook-size"),
        ("vab-tiny --train.learning-rate 1", "--train.learning-rate"),
    ],
)
def test_options_of_version_0_1_still_work(words: str, now: str) -> None:
    given = words.split()
    assert current_option(given[1], given) == now


def test_further_processes_of_a_run_say_nothing_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        for name, value in {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }.items():
            monkeypatch.setenv(name, value)
        code, _, err = vab(capsys, "pretrain", "vab-tiny", "--store", "none", "--run", "none", "--devices", 0)
        assert code == 2 and len(err.splitlines()) == lines
        # what is no training is a call of its own in each process, and none fails in silence
        code, _, err = vab(capsys, "store", "info", "none")
        assert code == 2 and len(err.splitlines()) == 1
        assert "vab-tiny" in vab(capsys, "models", "--json")[1]


def test_a_window_of_no_length_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for option in ("--seconds", "--fps"):
        code, _, err = vab(capsys, "extract", "m.csv", "-o", tmp_path / "store", option, 0)
        assert code == 2 and err == "vab: --seconds and --fps must be positive\n"
