"""Runs that go on for weeks: watched, stopped, lengthened, begun again, and a model from their middle."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.cli import vab
from helpers.forked import Forked
from helpers.training import (
    MODEL,
    PRESET,
    QUIET,
    TRAIN,
    fill,
    metrics,
    preset,
    same_weights,
    train_and_hang,
    with_train,
)
from vab.cli import main
from vab.codecs.tiny import TinyCodec, TinyCodecConfig
from vab.config import DecodeConfig, Preset
from vab.data.store import LatentStore
from vab.errors import TrainError
from vab.evaluate.generation.examine import Examiner
from vab.evaluate.generation.synthesis import Synthesizer
from vab.evaluate.metrics.classification import classification
from vab.evaluate.metrics.retrieval import retrieval
from vab.models.flops import training_flops
from vab.models.hub import ASSETS, read_config
from vab.presets import PRESETS
from vab.training.batches import ClipBatches
from vab.training.checkpoint import checkpoints, export_checkpoint, read_about
from vab.training.losses import contrastive
from vab.training.monitor.throughput import Throughput
from vab.training.monitor.validation import Validation, mean_average_precision, retrieval_at_1
from vab.training.objectives import OBJECTIVES, LossOutput, build, masked_prediction_step
from vab.training.trainer import train

NEVER = 10**9


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("latents") / "store")


@pytest.fixture(scope="module")
def codec(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The codec of the tokens: one with the codebooks of the store."""
    folder = tmp_path_factory.mktemp("codec")
    torch.manual_seed(0)
    sizes = TinyCodecConfig(
        num_codebooks=2,
        codebook_size=16,
        dim=4,
        decoder_width=8,
        decoder_layers=1,
        detail_width=8,
        detail_layers=1,
    )
    made = TinyCodec(sizes)
    made.vectors.copy_(torch.from_numpy(LatentStore.open(latents).codebook_vectors()))
    made.save_pretrained(folder)
    return folder


class Notes:
    """A logger that a user may write."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, dict[str, float]]] = []
        self.sounds: dict[tuple[int, str], NDArray[np.float32]] = {}
        self.pictures: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self.lines.append((step, split, dict(values)))

    def sound(self, step: int, name: str, waveform: NDArray[np.float32], rate: int) -> None:
        assert rate == 16_000
        self.sounds[step, name] = waveform

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self.pictures[step, name] = pixels


class At(Notes):
    """One that sends this process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        super().__init__()
        self.step, self.number = step, number

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if step == self.step and split == "train":
            os.kill(os.getpid(), self.number)


def all_curves(run: Path) -> list[tuple[Any, ...]]:
    """Every line of the metrics without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"step_seconds", "data_seconds", "clips_per_second", "model_tflops", "validation_seconds"}
    return [tuple((k, v) for k, v in line.items() if k not in timed) for line in lines]


def test_who_watches_does_not_change_what_is_learned(latents: Path, codec: Path, tmp_path: Path) -> None:
    with_dropout = replace(PRESET, model=replace(MODEL, dropout=0.2), decode=DecodeConfig(num_steps=2))
    blind = replace(with_dropout, train=replace(TRAIN, save_every=NEVER, log_every=7))
    watched = replace(TRAIN, validate_every=1, sample_every=3, keep_every=4, save_every=2, sample_clips=2)
    a = train(blind, latents, tmp_path / "a", max_steps=9)
    notes = Notes()
    b = train(
        replace(with_dropout, train=watched),
        latents,
        tmp_path / "b",
        max_steps=9,
        loggers=[notes],
        codec_path=codec,
        examine=Examiner("cpu", print),
    )
    assert same_weights(a, b)
    # each on its own cadence, and the last step too
    steps = {split: [n for n, s, _ in notes.lines if s == split] for split in ("train", "dev", "samples")}
    assert steps == {"train": [*range(1, 10)], "dev": [*range(1, 10)], "samples": [3, 6, 9]}
    assert [line["step"] for line in metrics(a, "dev")] == [9]
    assert {"FD-LOGMEL", "MEL-distance"} <= notes.lines[-1][2].keys()


def test_samples_are_what_the_model_of_that_step_generates(
    latents: Path, codec: Path, tmp_path: Path
) -> None:
    settings = {"sample_every": 4, "keep_every": 4, "sample_clips": 3, "save_every": 4}
    sampled = replace(with_train(**settings), decode=DecodeConfig(num_steps=3))
    notes = Notes()
    run = train(sampled, latents, tmp_path / "run", max_steps=8, loggers=[notes], codec_path=codec)
    dev = ClipBatches(LatentStore.open(latents), sampled, "dev")
    names = {name for step, name in notes.sounds if step == 4}
    made = {name for name in names if not name.endswith("/true")}
    assert len(made) == 3 and names == made | {f"{name}/true" for name in made}
    assert {name for step, name in notes.sounds if step == 8} == made
    # made from the checkpoint of step 4, by the code that evaluates models
    folder, _ = export_checkpoint(run, 4)
    maker = Synthesizer.load(folder, codec, "cpu")
    rows = np.array([row for row in dev.rows if dev.mixture.ids[row] in made])
    batch = dev.dev_batch(rows)
    sounds = maker.codec.decode(maker.tokens(batch, sampled.decode, 0)).numpy()
    for name, sound in zip(batch.ids, sounds, strict=True):
        assert np.array_equal(sound, notes.sounds[4, name])
    assert any(not np.array_equal(notes.sounds[4, name], notes.sounds[8, name]) for name in made)
    picture = notes.pictures[8, batch.ids[0]]
    assert picture.dtype == np.uint8 and picture.shape == (192, 38, 3) and picture.std() > 0
    # and all of it is in TensorBoard, with the settings as text
    events = EventAccumulator(str(run), size_guidance={"audio": 0, "images": 0, "tensors": 0}).Reload()
    assert [each.step for each in events.Audio(f"sound/{batch.ids[0]}")] == [4, 8]
    assert [each.step for each in events.Images(f"mel/{batch.ids[0]}")] == [4, 8]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"sample_every": 4' in text and "loss/dev" in events.Tags()["scalars"]


def test_the_logger_of_the_docs_is_one(
    latents: Path, codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")  # no dependency of ours
    pytest.importorskip("soundfile")
    monkeypatch.setenv("WANDB_MODE", "offline")
    text = (Path(__file__).resolve().parents[1] / "docs" / "runs.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)  # our own words
    wandb.init(project="vab", dir=str(tmp_path))
    settings = with_train(sample_every=2, sample_clips=1)
    train(settings, latents, tmp_path / "run", max_steps=4, loggers=[names["WandB"]()], codec_path=codec)
    assert {"train/loss", "train/loss/0"} <= set(wandb.run.summary.keys())
    wandb.finish()
    assert len([*tmp_path.glob("wandb/**/*.wav")]) == 3 and [*tmp_path.glob("wandb/**/*.png")]


def test_a_second_stage_is_heard_after_the_true_coarse_codes(
    latents: Path, codec: Path, tmp_path: Path
) -> None:
    model = replace(MODEL, num_conditioning_codebooks=1, num_expert_layers=0)
    settings = replace(TRAIN, sample_every=2, **QUIET)
    fine = Preset("fine", "", model, settings, DecodeConfig(num_steps=2, guidance_scale=1.0))
    notes = Notes()
    train(fine, latents, tmp_path / "run", max_steps=2, loggers=[notes], codec_path=codec)
    assert len(notes.sounds) == 8  # four clips, and their true sounds


@pytest.mark.parametrize("why", ["codec", "objective", "pictures"])
def test_what_cannot_be_sampled_is_said_once(latents: Path, tmp_path: Path, why: str) -> None:
    said: list[str] = []
    store, sampled = latents, with_train(sample_every=1)
    if why == "objective":
        sampled = preset("contrastive", sample_every=1)
    if why == "pictures":
        store = fill(tmp_path / "store", pictures="other")
    train(sampled, store, tmp_path / "run", max_steps=3, log=said.append)  # the bundled codec is another
    expected = {"codec": "another codec", "objective": "makes no sound", "pictures": "sound and picture"}[why]
    assert [expected in line for line in said if "no samples" in line] == [True]


def test_losses_by_codebook_make_up_the_loss(latents: Path, tmp_path: Path) -> None:
    run = train(PRESET, latents, tmp_path / "run", max_steps=5)
    masks = ClipBatches(LatentStore.open(latents), PRESET, "dev")
    batches = [masks.dev_batch(rows) for rows in masks.dev_batches()]
    counts = sum((batch.mask.sum((0, 2)).float() for batch in batches), torch.zeros(2))
    for line in metrics(run, "dev"):
        parts = torch.tensor([line["loss/0"], line["loss/1"]])
        assert line["loss"] == pytest.approx(float((parts * counts).sum() / counts.sum()), rel=1e-5)
        assert line["loss/0"] != line["loss/1"]


def test_recall_is_exact_where_bfloat16_would_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(64, generator=generator) * 3
    audio, video = (torch.randn(200, 64, generator=generator) * 0.9 + shared for _ in range(2))
    audio += 0.35 * video
    audio, video = (torch.nn.functional.normalize(x, dim=-1) for x in (audio, video))
    found = retrieval_at_1(audio, video)
    exact = retrieval(audio.numpy(), video.numpy())
    for way, direction in exact.directions.items():
        name = next(n for n in found if n.removeprefix("R@1/") == way.replace("→", " to "))
        assert found[name] == direction.recall[1].value
    coarse = audio.bfloat16() @ video.bfloat16().T
    hits = ((coarse > coarse.diagonal()).sum(0) == 0).float().mean()
    assert float(hits) > found["R@1/video to audio"]  # ties would count as right
    fits = torch.ones(200, 200, dtype=torch.bool)
    assert set(retrieval_at_1(audio, video, fits).values()) == {1.0}


def test_contrast_is_validated_among_all_dev_clips(latents: Path, tmp_path: Path) -> None:
    chosen = preset("contrastive", batch_size=2, precision="bf16-mixed")
    run = train(chosen, latents, tmp_path / "run", max_steps=5)
    from vab.models.heads import load_finetuned

    network = load_finetuned(run).contrastive
    assert network is not None
    dev = ClipBatches(LatentStore.open(latents), chosen, "dev")
    batch = dev.dev_batch(dev.rows)  # in training's batches there would be two at a time
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        audio, video, _ = network[0](batch.tokens, batch.features, batch.token_padding, batch.video_padding)
    expected = retrieval_at_1(audio, video)
    last = metrics(run, "dev")[-1]
    assert {name: last[name] for name in expected} == expected
    # the loss, a mean over batches, is that of the networks' outputs in float32 too
    losses = []
    for rows in dev.dev_batches():
        part = dev.dev_batch(rows)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs = network[0](part.tokens, part.features, part.token_padding, part.video_padding)
        losses.append(float(contrastive(*outputs)))
    assert len(losses) == 2 and last["loss"] == pytest.approx(np.mean(losses), rel=1e-6)


def test_what_is_better(latents: Path) -> None:
    """The number that a step is chosen by is higher where the model is better, whatever its loss is."""
    store, fabric = LatentStore.open(latents), Fabric(accelerator="cpu", devices=1)
    for objective, worse, better in (
        ("masked", {"loss": 2.0, "accuracy/0": 0.3}, {"loss": 1.0, "accuracy/0": 0.2}),
        ("causal", {"loss": 2.0}, {"loss": 1.0}),
        ("contrastive", {"loss": 1.0, "R@1/a": 0.4, "R@1/b": 0.1}, {"loss": 2.0, "R@1/a": 0.3, "R@1/b": 0.3}),
        ("classification", {"loss": 1.0, "accuracy/audio": 0.1}, {"loss": 2.0, "accuracy/audio": 0.2}),
        ("contrastive", {"loss": 2.0}, {"loss": 1.0}),  # no pair in the split dev
    ):
        chosen = replace(preset(objective), classes=("0", "1", "2", "3"))
        validation = Validation(ClipBatches(store, chosen, "dev"), chosen, fabric)
        assert validation.score(worse) < validation.score(better), objective


def test_mean_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (60, 5)).astype(np.float32)  # with ties
    targets = rng.random((60, 5)) < [0.3, 0.1, 0.5, 0.02, 0.0]
    targets[0] = [True, True, False, True, False]
    kept = targets.any(1)
    expected = classification(scores[kept], targets[kept], list("abcde")).mean_average_precision.value
    found = mean_average_precision(torch.from_numpy(scores[kept]), torch.from_numpy(targets[kept]))
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_classifier_is_chosen_by_accuracy_or_by_map(latents: Path, tmp_path: Path) -> None:
    chosen = preset("classification", inputs=("audio", "video"), validate_every=2)
    run = train(chosen, latents, tmp_path / "run", max_steps=4)
    last = metrics(run, "dev")[-1]
    assert {"accuracy/audio", "accuracy/video", "mAP/audio", "mAP/video"} <= last.keys()
    assert json.loads((run / "record.json").read_text())["best"]["measure"] == "accuracy"


def test_the_best_the_kept_and_the_last(latents: Path, tmp_path: Path) -> None:
    run = train(
        with_train(keep_every=4, validate_every=3, save_every=5), latents, tmp_path / "run", max_steps=13
    )
    folder = run / "checkpoints"
    assert [int(path.stem) for path in checkpoints(folder / "kept")] == [12, 8, 4]
    dev = {line["step"]: line["loss"] for line in metrics(run, "dev")}
    assert list(dev) == [3, 6, 9, 12, 13]
    best = min(dev, key=dev.__getitem__)
    assert [int(path.stem) for path in checkpoints(folder / "best")] == [best]
    record = json.loads((run / "record.json").read_text())
    assert record["best"]["step"] == best and record["best"]["score"] == pytest.approx(-dev[best])
    assert len(checkpoints(folder)) == 2
    # one kept is another name of the same file, not a copy
    if best == 12:
        assert (folder / "kept" / "000000012.safetensors").samefile(folder / "best" / "000000012.safetensors")

    # the damaged are passed over, down to those that were kept
    whole = load_file(run / "model.safetensors")
    for path in [*checkpoints(folder), *checkpoints(folder / "best")]:
        path.write_bytes(b"damaged")
    said: list[str] = []
    train(with_train(validate_every=3, save_every=5), latents, run, max_steps=13, log=said.append)
    assert any("at step 8 of 13" in line or "at step 12 of 13" in line for line in said)
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_model_is_exported_while_the_run_goes_on(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    class Exporting(Notes):
        def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None:
            if (step, split) == (8, "train"):
                code, out, err = vab(capsys, "export", run, "--step", 4, "-o", tmp_path / "four", "--json")
                assert code == 0 and json.loads(out)["step"] == 4, err
                assert vab(capsys, "export", run)[1].startswith(f"{run}/exported/000000006: the model of")

    settings = with_train(keep_every=4, save_every=6)
    train(settings, latents, run, max_steps=12, loggers=[Exporting()], log=lambda line: None)
    record = json.loads((tmp_path / "four" / "record.json").read_text())
    assert (record["steps"], record["of_steps"], record["goes_on"]) == (4, 12, True)
    assert record["clips"] == {"train": 16, "dev": 4} and record["code"]["sources"]
    assert read_config(tmp_path / "four") == read_config(run)
    # it is the averaged model that a run of these steps would have had; the schedule is the long one's
    state = load_file(run / "checkpoints" / "kept" / "000000004.safetensors")
    four = load_file(tmp_path / "four" / "model.safetensors")
    assert four.keys() == load_file(run / "model.safetensors").keys()
    assert not torch.equal(state["model.heads.weight"], four["heads.weight"])
    assert any(
        torch.equal(four["heads.weight"], value) for name, value in state.items() if name[:4] == "ema."
    )
    # the last of a run that is done is its model
    export_checkpoint(run, "last", tmp_path / "last")
    assert same_weights(run, tmp_path / "last")
    assert not json.loads((tmp_path / "last" / "record.json").read_text())["goes_on"]
    assert train(PRESET, latents, tmp_path / "next", init=tmp_path / "four", max_steps=1)

    for words, says in (
        (("--step", 5), "has no checkpoint of step 5; there are: 4, 8, 12"),
        (("--step", "first"), "--step is a number, best or last, not 'first'"),
        (("-o", run), "is the folder of the run, which writes its own model there"),
    ):
        code, _, err = vab(capsys, "export", run, *words)
        assert code == 2 and says in err and err.count("\n") == 1
    code, _, err = vab(capsys, "export", tmp_path / "none")
    assert code == 2 and "config.json" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, None)]
)
def test_a_signal_saves_and_the_same_call_goes_on(
    latents: Path, tmp_path: Path, number: signal.Signals, code: int | None
) -> None:
    # at this rate it soon gets worse: the best step is one before the stops
    settings = with_train(save_every=4, validate_every=2, keep_every=6, learning_rate=0.5)
    whole = train(settings, latents, tmp_path / "whole", max_steps=9)
    handlers = signal.getsignal(number)
    said: list[str] = []
    run = tmp_path / "run"
    for step in (3, 6):  # at 6 there is also something to validate and to keep
        with pytest.raises((SystemExit, KeyboardInterrupt)) as left:
            train(settings, latents, run, max_steps=9, loggers=[At(step, number)], log=said.append)
        assert getattr(left.value, "code", None) == code
        # the signal came while step ``step`` was logged: the next one is the last
        assert said[-1] == f"stopped at step {step + 1}, saved; start the same command to go on"
        assert checkpoints(run / "checkpoints")[0].stem == f"{step + 1:09d}"
    assert signal.getsignal(number) is handlers
    about = read_about(checkpoints(run / "checkpoints")[0])
    assert about is not None and about["best"]["step"] == 2  # known again after the first stop
    train(settings, latents, run, max_steps=9)
    assert same_weights(whole, run) and all_curves(whole) == all_curves(run)
    kept = [[p.stem for p in checkpoints(each / "checkpoints" / "kept")] for each in (whole, run)]
    assert kept[0] == kept[1] == ["000000006"]


def test_a_second_signal_ends_at_once(latents: Path, tmp_path: Path) -> None:
    process = Forked(tmp_path, train_and_hang, latents, tmp_path / "run")
    try:
        process.printed("3\n")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as launchers pass it on: not a second one
        time.sleep(1.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()


def test_the_command_line_stops_and_goes_on(latents: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    chosen = with_train(max_steps=10_000, log_every=1, save_every=NEVER, validate_every=NEVER)
    settings.write_text(json.dumps(asdict(chosen)))
    run = tmp_path / "run"
    words = ["pretrain", "--config", str(settings), "--store", str(latents), "--run", str(run)]
    process = Forked(tmp_path, main, words)
    try:
        end = time.monotonic() + 100
        while not (run / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert err.splitlines()[-1].startswith("stopped at step ") and "Traceback" not in err
    step = int(checkpoints(run / "checkpoints")[0].stem)
    assert 0 < step < 10_000 and len(metrics(run, "train")) == step


def test_a_run_is_lengthened_when_asked(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(PRESET, latents, tmp_path / "run", max_steps=5)
    with pytest.raises(TrainError, match=r"steps was 5, is 8\. Use another folder\.$"):
        train(PRESET, latents, run, max_steps=8)
    # what can be done about it is up to the caller: the verbs have an option
    words = ["pretrain", "--config", run / "config.json", "--store", latents, "--out", run, "--max-steps", 8]
    code, _, err = vab(capsys, *words, "--device", "cpu")
    assert code == 2 and "Use another folder, or --lengthen to go on with it." in err.replace("\n", " ")
    said: list[str] = []
    train(PRESET, latents, run, max_steps=8, lengthen=True, log=said.append)
    assert any(
        "to end at step 5: from here on the learning rate is that of a run of 8 steps" in s for s in said
    )
    rates = [line["learning_rate"] for line in metrics(run, "train")]
    long = train(PRESET, latents, tmp_path / "long", max_steps=8)
    expected = [line["learning_rate"] for line in metrics(long, "train")]
    assert len(rates) == 8 and rates[5:] == expected[5:] and rates[4] != expected[4]
    record = json.loads((run / "record.json").read_text())
    assert record["lengths"] == [[0, 5], [5, 8]] and record["steps"] == 8
    # the same call, with the option or without, is the same run
    before = (run / "model.safetensors").read_bytes()
    for again in (True, False):
        train(PRESET, latents, run, max_steps=8, lengthen=again)
        assert (run / "model.safetensors").read_bytes() == before
    # longer by epochs; nothing else may change, and nothing be cut off
    train(with_train(epochs=6.0), latents, run, lengthen=True, max_steps=None)
    assert json.loads((run / "record.json").read_text())["lengths"][-1] == [8, 16]
    with pytest.raises(TrainError, match=r"steps was 16, is 5\. Use another folder\.$"):
        train(with_train(epochs=6.0), latents, run, max_steps=5, lengthen=True)
    with pytest.raises(TrainError, match=r"learning_rate was"):
        train(with_train(learning_rate=0.1), latents, run, max_steps=20, lengthen=True)


def test_a_lengthened_run_is_the_same_after_a_stop(latents: Path, tmp_path: Path) -> None:
    runs = [train(PRESET, latents, tmp_path / name, max_steps=4) for name in "ab"]
    train(PRESET, latents, runs[0], max_steps=9, lengthen=True)
    with pytest.raises(SystemExit):
        stop = At(5, signal.SIGTERM)
        train(PRESET, latents, runs[1], max_steps=9, lengthen=True, loggers=[stop])
    train(PRESET, latents, runs[1], max_steps=9)
    assert same_weights(*runs) and all_curves(runs[0]) == all_curves(runs[1])


def test_what_will_be_missed_is_said_before_the_first_step(latents: Path, tmp_path: Path) -> None:
    said: list[str] = []
    store = fill(tmp_path / "store", clips=4)  # none of the split dev
    train(with_train(warmup_steps=60), store, tmp_path / "a", max_steps=3, log=said.append)
    assert said[1] == (
        "warm-up 60 steps, the run 3: the learning rate ends at 5 % of 0.003; set --train.warmup-steps"
    )
    assert said[2].startswith("no clip in the split dev: nothing will be validated")
    said.clear()
    train(PRESET, latents, tmp_path / "b", max_steps=3, log=said.append)
    assert not any("warm-up" in line or "validated" in line for line in said)


def test_a_run_is_given_again_by_its_configuration(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(with_train(label_smoothing=0.05), latents, tmp_path / "first", max_steps=3)
    again = ("pretrain", "--config", first / "config.json", "--store", latents)
    code, _, err = vab(capsys, *again, "--run", tmp_path / "again")
    assert code == 0 and same_weights(first, tmp_path / "again"), err
    assert read_config(tmp_path / "again") == read_config(first)
    # options override; a folder stands for its file; the name of the preset may be there
    shorter = ("--max-steps", 2, "--train.label-smoothing", 0.2)
    words = (f"--config={first}", "--store", latents, "--run", tmp_path / "other", *shorter)
    assert vab(capsys, "pretrain", *words)[0] == 0
    config = read_config(tmp_path / "other").train
    assert (config.label_smoothing, config.max_steps, config.batch_size) == (0.2, 2, 6)

    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "odd.json").write_text('{"name": "a", "note": "", "train": {"rate": 1}}')
    wrong = {
        tmp_path / "none.json": "none.json: No such file",
        tmp_path / "broken.json": "is no configuration of a VAB model",
        tmp_path / "odd.json": "train.rate is no setting that is known here",
    }
    for path, says in wrong.items():
        code, _, err = vab(capsys, "pretrain", "--config", path, "--store", latents, "--run", tmp_path / "x")
        assert code == 2 and says in err and err.count("\n") == 1, err
    code, _, err = vab(capsys, "pretrain", "vab-tiny", "--config", first / "config.json")
    assert code == 2 and "is of test: leave vab-tiny out" in err
    code, _, err = vab(capsys, "finetune", "contrastive", *again[1:])
    assert code == 2 and f"vab pretrain --config {first / 'config.json'}" in err
    code, _, err = vab(capsys, "pretrain", "--config")
    assert code == 2 and "--config takes one file" in err


@pytest.mark.parametrize("source", ["vab-tiny", ASSETS / "vab-tiny" / "config.json"])
def test_the_bundled_models_settings_are_taken(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: Path | str
) -> None:
    words = ("--store", latents, "--run", tmp_path / "run")
    code, _, err = vab(capsys, "pretrain", "vab-tiny", "--config", source, *words)
    assert code == 2 and "does not fit vab-tiny" in err  # the store is of another codec


def test_a_loss_that_is_not_finite_never_gets_into_a_checkpoint(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def then_nan(network: torch.nn.Module, batch: object, preset: Preset) -> LossOutput:
        nonlocal steps
        steps += network.training
        outcome = masked_prediction_step(network, batch, preset)  # type: ignore[arg-type]
        return replace(outcome, loss=outcome.loss * (float("nan") if steps == 7 else 1.0))

    monkeypatch.setitem(OBJECTIVES, "masked", then_nan)
    quiet = with_train(log_every=NEVER, save_every=9, validate_every=NEVER)
    with pytest.raises(TrainError, match="step 7: the loss is nan") as caught:
        train(quiet, latents, tmp_path / "run", max_steps=30)
    assert steps == 9  # found where the checkpoint was due
    clips = ClipBatches(LatentStore.open(latents), PRESET, "train")
    assert all(name in str(caught.value) for name in clips.ids_of_step(6))
    assert checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("objective", ["masked", "causal", "contrastive", "classification", "probe"])
def test_the_flops_of_a_step_are_those_that_pytorch_counts(latents: Path, objective: str) -> None:
    settings: dict[str, Any] = {"inputs": ("audio", "both")} if objective == "classification" else {}
    settings |= {"freeze_trunk": True, "inputs": ("audio",)} if objective == "probe" else {}
    name = "classification" if objective == "probe" else objective
    chosen = preset(name, **settings)
    chosen = replace(chosen, classes=("0", "1", "2", "3"))
    if name == "causal":
        chosen = replace(chosen, model=replace(MODEL, num_expert_layers=0))
    store = LatentStore.open(latents)
    network = build(chosen, torch.from_numpy(store.codebook_vectors()))
    batch = ClipBatches(store, chosen, "train").train_batch(0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        OBJECTIVES[name](network, batch, chosen).loss.backward()
    count = len(batch.ids) * training_flops(chosen, batch.features.shape[1], batch.tokens.shape[2])
    # What enters the network needs no gradient, so a step does a little less than three forward passes; the
    # contrastive loss multiplies all clips with each other.
    assert 0.85 * count < counter.get_total_flops() < 1.03 * count


def test_throughput_counts_anew_after_each_line() -> None:
    speed = Throughput(6, torch.device("cpu"), 2)
    for _ in range(2):
        for _ in range(3):
            speed.begin()
            time.sleep(0.02)
            speed.got_batch()
            time.sleep(0.03)
            speed.end(1e6)
        values = speed.values()
        assert 0.05 <= values["step_seconds"] < 0.5 and 0.02 <= values["data_seconds"] < 0.3
        assert values["data_seconds"] < values["step_seconds"]
        assert values["clips_per_second"] == pytest.approx(6 / values["step_seconds"])
        assert values["model_tflops"] == pytest.approx(6e-6 / values["step_seconds"])
        assert "mfu" not in values  # nobody publishes the peak of every CPU
    speed.peak = 12e6
    speed.begin()
    speed.end(1e6)
    values = speed.values()
    assert values["mfu"] == pytest.approx(values["model_tflops"] * 1e12 / 12e6)


def test_the_peak_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names that the driver gives."""
    peaks = {
        "NVIDIA H200": 989.4,
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756.5,
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA L4": 121.0,
        "NVIDIA A10": 125.0,
        "NVIDIA A10G": None,
        "NVIDIA L40": None,
    }
    for name, peak in peaks.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        for world_size in (1, 8):
            found = Throughput(6, torch.device("cuda"), world_size).peak
            assert found == (None if peak is None else pytest.approx(1e12 * peak * world_size)), name


def test_the_paper_presets_cost_what_their_size_says() -> None:
    encodec = PRESETS["vab-encodec"]
    flops = training_flops(encodec, encodec.model.video_length, encodec.model.audio_length)
    assert 6 * 301e6 * 500 < flops < 6 * 420e6 * 560
