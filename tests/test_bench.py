"""The benchmark: what it counts is what happens, what it builds is the true size, what it writes is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.tiny import write_model, write_video
from vab.bench import report, speed, timing
from vab.bench.costs import token_cost
from vab.bench.speed import STAGES, BenchSettings, bench, cores_in_use
from vab.bench.systems import fill, load_system, random_codec, random_stage, write_clip
from vab.bench.timing import blank_inputs, fill_in, some_passes
from vab.cli import main
from vab.config import DecodeConfig, Preset
from vab.media.reader import probe
from vab.models.flops import pass_flops
from vab.models.foleygen import FoleyGen
from vab.models.vab import VAB
from vab.presets import PRESETS
from vab.sampling.stages import Stage, padded_length
from vab.timing.curve import NUM_CHANNELS
from vab.timing.motion import MotionReader
from vab.timing.predictor import MotionPredictor, PredictorConfig, save_predictor

CPU = torch.device("cpu")


def small(name: str, guidance: float = 3.0, **changes: object) -> Preset:
    """A preset of the least size: windows of 2 s, a few steps."""
    preset = PRESETS[name]
    model = {"seconds": 2.0, "codebook_size": 16, "hidden_dim": 32, "num_layers": 2, "num_heads": 2}
    model |= {"vision_dim": 24}
    model["num_expert_layers"] = min(1, preset.model.num_expert_layers)
    decode = DecodeConfig(num_steps=preset.decode.num_steps and 3, guidance_scale=guidance)
    return replace(preset, model=replace(preset.model, **(model | changes)), decode=decode)


def stage_of(preset: Preset) -> Stage:
    kind = FoleyGen if preset.train.objective == "causal" else VAB
    return Stage(kind(preset.model).eval(), preset)


@contextmanager
def passes_of(stage: Stage) -> Iterator[list[int]]:
    """One entry for each forward pass, whoever asks for it."""
    seen: list[int] = []
    hook = stage.network.heads.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    hook.remove()


@pytest.mark.parametrize(
    "name",
    [
        "vab-encodec",
        "vab-dac",
        "vab-dac-test-no-experts",
        "vab-dac-coarse2fine",
        "vab-tiny",
        "vab-tiny-fine",
        "foleygen-encodec",
        "foleygen-tiny",
    ],
)
@pytest.mark.parametrize(("frames", "guidance"), [(70, 3.0), (100, 1.0), (260, 3.0)])  # one window, and three
def test_the_count_is_what_pytorch_counts(name: str, guidance: float, frames: int) -> None:
    stage = stage_of(small(name, guidance))
    told = stage.preset.model.timing
    length = padded_length(frames, stage.preset.model)
    tokens, given, features = blank_inputs(stage, 1, length)
    curve = torch.rand(1, length, NUM_CHANNELS) if told else None
    with passes_of(stage) as passes, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fill_in(stage, tokens, given, features, timing=curve)
    cost = token_cost(stage.preset, frames, told=told)
    assert cost.passes == len(passes)
    assert cost.flops == counter.get_total_flops()


def test_a_pass_of_the_papers_model_takes_a_third_of_a_teraflop() -> None:
    model = PRESETS["vab-encodec"].model
    flops = pass_flops(model, model.video_length, model.audio_length)
    # about twice the parameters that a place goes through: 24 layers of 12 D^2
    assert flops == pytest.approx(2 * 510 * 24 * 12 * 1024**2, rel=0.12)
    cost = token_cost(PRESETS["vab-encodec"], 500)
    assert cost.passes == 16 and cost.flops == 32 * flops
    assert token_cost(PRESETS["foleygen-encodec"], 500).passes == 503
    assert (
        token_cost(PRESETS["foleygen-encodec"], 500).flops < 0.1 * cost.flops
    )  # each place once, not 16 times


@pytest.mark.parametrize("name", ["vab-encodec", "vab-dac-coarse2fine"])
def test_some_passes_are_so_many(name: str) -> None:
    stage = stage_of(small(name))
    with passes_of(stage) as passes:
        assert some_passes(stage, 2, 100, 2) > 0
    assert len(passes) == 2


@pytest.mark.parametrize(
    ("changes", "passes", "guided"),
    [
        ({}, 8, 8),
        ({"guidance_from": 0.5}, 8, 4),
        ({"guidance_until": 0.25}, 8, 2),
        ({"guidance_every": 3}, 8, 3),
        ({"guidance_from": 0.25, "guidance_every": 2}, 8, 3),
        ({"guidance_scale": 1.0}, 8, 0),
    ],
)
def test_passes_without_guidance_are_counted_and_cost_half(
    changes: dict[str, float], passes: int, guided: int
) -> None:
    stage = stage_of(small("vab-encodec"))
    decode = replace(stage.preset.decode, num_steps=8, **changes)  # type: ignore[arg-type]
    cost = token_cost(stage.preset, 100, decode)
    assert (cost.passes, cost.guided) == (passes, guided)
    tokens, given, features = blank_inputs(stage, 1, 100)
    with passes_of(stage) as seen, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fill_in(stage, tokens, given, features, decode)
    assert len(seen) == passes and cost.flops == counter.get_total_flops()


def test_an_estimate_counts_a_short_last_window_as_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 s a window of 3 s, and one that shares a second with it."""
    monkeypatch.setattr(speed, "MAX_FULL_SECONDS", 0.0)

    def some_passes(stage: Stage, batch: int, length: int, some: int, decode: DecodeConfig) -> float:
        return length * (1 if decode.guidance_scale == 1 else 2)

    monkeypatch.setattr(speed, "some_passes", some_passes)
    stage = stage_of(small("vab-encodec", seconds=3.0))
    for last, lengths in (("full", [150, 150]), ("short", [150, 100])):
        decode = replace(stage.preset.decode, num_steps=8, guidance_until=0.25, last_window=last)
        cost = token_cost(stage.preset, 200, decode)
        found, timed, _ = speed._time_tokens(stage, 1, 200, decode, cost, 1, CPU)
        assert found == sum(2 * 2 * length + 6 * length for length in lengths)
        assert timed == 2 * len(set(lengths))


def test_some_steps_of_foleygen_are_in_the_middle_of_the_clip() -> None:
    stage = stage_of(small("foleygen-encodec"))
    reads: list[int] = []
    block = stage.network.blocks[0].attention
    block.register_forward_hook(lambda module, args, out: reads.append(args[1].shape[-1]))
    assert some_passes(stage, 1, 100, 10) > 0
    # keys at hand, of 2 pictures and 103 steps: what comes before the middle at once, then one step more each
    assert reads[0] == 2 + 1 + 45 and reads[-1] == reads[0] + len(reads) - 1
    assert sum(reads) / len(reads) == pytest.approx((2 + 103) / 2, abs=2)


def test_random_codecs_are_those_of_the_presets() -> None:
    for name, parameters in (("encodec", 56.8e6), ("dac", 74.2e6)):
        codec = random_codec(name)  # type: ignore[arg-type]
        model = PRESETS[f"vab-{name}"].model
        assert (codec.codebook_size, codec.dim) == (model.codebook_size, model.codebook_dim)
        assert codec.num_codebooks == {"encodec": 4, "dac": 12}[name]
        count = sum(p.numel() for p in codec.model.parameters())  # type: ignore[attr-defined]
        assert count == pytest.approx(parameters, rel=0.02)
        sound = codec.decode(torch.randint(model.codebook_size, (1, codec.num_codebooks, 10)))
        assert sound.shape == (1, 3200) and sound.isfinite().all() and sound.std() > 1e-6


def test_random_networks_give_numbers_of_a_sane_size(tmp_path: Path) -> None:
    codec = load_system(str(write_model(tmp_path)), CPU).codec
    changes = {"codebook_size": 32, "num_codebooks": 2, "codebook_dim": 8}
    for name in ("vab-tiny", "foleygen-tiny"):
        stage = random_stage(small(name, **changes), codec, CPU)
        assert torch.equal(stage.network.audio_embedding.vectors, codec.codebook_vectors())
        tokens, _, features = blank_inputs(stage, 2, 100)
        logits = stage.network(tokens, features)
        assert logits.isfinite().all() and 0.1 < logits.std() < 10
    assert fill(lambda: torch.nn.LayerNorm(3)).weight.tolist() == [1, 1, 1]


def test_presets_that_make_no_sound_are_refused() -> None:
    for name in ("vab-tiny-contrastive", "vab-dac-coarse2fine"):
        with pytest.raises(ValueError, match="makes no sound"):
            load_system(name, CPU)


def test_the_film_is_what_the_report_says(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path, 0.4))
    assert info.seconds == pytest.approx(0.4, abs=0.05) and not info.has_audio


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two models, the second one in two stages, on a film of 3 s."""
    folder = tmp_path_factory.mktemp("bench")
    models = [write_model(folder / "one"), write_model(folder / "two", fine=True)]
    clip = write_video(folder / "clip.mp4", 75, 25)
    threads = torch.get_num_threads()
    settings = BenchSettings(tuple(map(str, models)), clip, repeats=2, largest_batch=2, precision="bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SIDES", (64, 128))
        found = bench(settings)
    assert torch.get_num_threads() == threads
    return found


def test_every_stage_of_every_system_is_timed(document: dict) -> None:
    runs = [("float32", "paper"), ("bfloat16", "paper"), ("bfloat16", "fast")]
    assert [(each["precision"], each["speed"]) for each in document["systems"]] == 2 * runs
    assert set(document["matmul_flops"]) == {"float32", "bfloat16"}
    assert document["precision"] == {"precision": "bfloat16"}
    ones, twos = document["systems"][:3], document["systems"][3:]
    for system in document["systems"]:
        for batch in system["batches"]:
            assert set(batch["seconds"]) == set(STAGES) - (set() if system in twos else {"refining"})
            assert min(batch["seconds"].values()) > 0
            assert batch["total"] == pytest.approx(sum(batch["seconds"].values()))
            assert batch["times_real_time"] == pytest.approx(3.0 / batch["total"], rel=1e-3)
            assert batch["passes_timed"] == system["passes"]  # so small that all are done
            for name, share in batch["share_of_matmul_rate"].items():
                rate = system["flops"][name] / batch["seconds"][name]
                assert share == pytest.approx(rate / document["matmul_flops"][system["precision"]])
        assert system["best_batch"] in (1, 2)
    # What no speed changes is timed once in each precision, and file by file once.
    for name in ("features", "codec"):
        assert len({system["batches"][0]["seconds"][name] for system in ones}) == 2
    assert len({system["batches"][0]["seconds"]["mux"] for system in ones}) == 1
    paper = PRESETS["vab-encodec"].decode.num_steps
    assert ones[0]["passes"] == ones[1]["passes"] == {"sampling": 2 * paper}  # of two windows
    assert ones[2]["passes"] == {"sampling": 2 * 4}  # its own steps, which are fewer than those of fast
    work = [system["flops"]["sampling"] for system in ones]
    assert work[0] == work[1] > work[2]
    assert twos[0]["passes"]["refining"] == twos[2]["passes"]["refining"] == 3 * 2


def test_what_follows_a_films_motion_is_timed_as_it_generates_for_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SIDES", (64,))
    model, clip = write_model(tmp_path / "model", timing=True), write_video(tmp_path / "clip.mp4", 75, 25)
    save_predictor(model, MotionPredictor(PredictorConfig(patches=4, width=8, heads=1, joint_width=8)))
    looked: list[int] = []
    monkeypatch.setattr(
        MotionReader, "motion", lambda self, own=MotionReader.motion: looked.append(1) or own(self)
    )
    settings = BenchSettings((str(model),), clip, repeats=1, largest_batch=1, precision="float32")
    found = bench(settings)
    assert [(each["speed"], each["timing"]) for each in found["systems"]] == [
        ("paper", "none"),
        ("fast", "none"),
        ("fast", "motion"),
    ]
    assert len(looked) == 2  # to warm up, and timed
    _, fast, led = found["systems"]
    assert led["guided_passes"] == fast["guided_passes"]  # what guidance added serves the other steps
    assert led["flops"]["sampling"] > fast["flops"]["sampling"]  # by the adapter of the curve
    text = report.as_markdown(found)
    assert f"| {model} | float32 | fast | motion | trained | 1 |" in text


def test_a_long_run_is_timed_in_part_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "MAX_FULL_SECONDS", 0.0)
    monkeypatch.setattr(speed, "cores_in_use", lambda: 0.0)  # which takes a second
    monkeypatch.setattr(timing, "SIDES", (64,))
    model, clip = write_model(tmp_path / "model"), write_video(tmp_path / "clip.mp4", 25, 25)
    settings = BenchSettings((str(model),), clip, repeats=1, largest_batch=1, precision="float32")
    found = bench(settings)
    paper, fast = found["systems"]  # in one precision, which is compared with itself
    assert {paper["precision"], fast["precision"]} == {"float32"}
    assert paper["batches"][0]["passes_timed"] == {"sampling": 1} and paper["passes"] == {"sampling": 16}
    guided = fast["guided_passes"]["sampling"]
    kinds = bool(guided) + (fast["passes"]["sampling"] > guided)  # a pass of each kind is timed
    assert fast["batches"][0]["passes_timed"] == {"sampling": kinds}
    assert "| 16 |" in report.as_markdown(found)


def test_the_page_says_who_wins_alone_and_with_many() -> None:
    def system(name: str, precision: str, speed: str | None, *totals: float) -> dict:
        return {
            "name": name,
            "precision": precision,
            "speed": speed,
            "timing": None,
            "batches": [{"batch": 2**n, "total": total} for n, total in enumerate(totals)],
        }

    systems = [
        system("vab-encodec", "float32", "paper", 80.0),
        system("vab-encodec", "bfloat16", "paper", 40.0, 39.0),
        system("foleygen-encodec", "float32", None, 120.0, 60.0),
        system("foleygen-encodec", "bfloat16", None, 60.0, 30.0, 13.0),
    ]
    text = report._beside({"systems": systems})
    assert "40 s against 60 s, vab-encodec is 1.5 times as fast (17 times in the paper)" in text
    assert "39 s against 13 s, foleygen-encodec is 3 times as fast" in text
    assert "| vab-encodec | bfloat16 | paper |  | 0.4 | 40 |" in text
    assert report._beside({"systems": [system("other", "float32", "paper", 1.0)]}) == ""


def test_the_report_is_written_whole_and_says_when_others_were_busy(document: dict, tmp_path: Path) -> None:
    calm = document | {"machine": document["machine"] | {"load_before": 0.0, "cores": 2, "device": "cpu"}}
    loud = calm | {"machine": calm["machine"] | {"load_before": 3.0}}
    paths = report.write(tmp_path / "new", calm)
    assert [path.name for path in paths] == [
        f"speed_2-cores_{calm['date'][:7]}.{end}" for end in ("md", "json")
    ]
    assert json.loads(paths[1].read_text()) == calm
    text = paths[0].read_text()
    assert all(stage in text for stage in STAGES) and "busy" not in text
    assert "Features of the processor: " in text and " in bfloat16" in text
    assert "The machine was busy" in report.as_markdown(loud)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no count of idle time here")
def test_a_core_in_use_is_seen_at_once() -> None:
    """While a process counts, and not only when the load average has risen."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as counting:
        try:
            found = cores_in_use(0.5)
        finally:
            counting.kill()
    assert found is not None and 0.4 < found <= (os.cpu_count() or 1)


def test_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "SIDES", (64,))
    monkeypatch.setattr(speed, "cores_in_use", lambda: 0.0)  # which takes a second
    model, clip = write_model(tmp_path / "model"), write_video(tmp_path / "clip.mp4", 25, 25)
    call = ["bench", str(model), "--clip", str(clip), "--repeats", "1", "--largest-batch", "1"]
    call += ["--precision", "float32"]
    with pytest.raises(SystemExit) as done:
        main([*call, "-o", str(tmp_path / "out"), "--json"])
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["systems"][0]["name"] == str(model)
    assert len(list((tmp_path / "out").iterdir())) == 2
    (tmp_path / "torn").mkdir()
    for path in model.glob("*.*"):
        shutil.copy(path, tmp_path / "torn")
    (tmp_path / "torn" / "codec.safetensors").write_bytes(b"no weights")
    options = call[2:]
    for wrong, reason in (
        ([*call, "--repeats", "0"], "1 or more"),
        (["bench", "nothing-here", *options], "no model"),
        (["bench", str(tmp_path / "torn"), *options], "codec.safetensors: cannot be read"),
    ):
        with pytest.raises(SystemExit) as done:
            main(wrong)
        assert done.value.code == 2 and reason in capsys.readouterr().err
