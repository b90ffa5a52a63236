"""Several processes, however they are started, and the ways to compute a step: all train the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from helpers.cli import vab
from helpers.forked import Forked
from helpers.steps import gradients, steps_of_two, training
from helpers.training import PRESET, fill, metrics, preset
from vab.cli import main
from vab.config import Compute
from vab.errors import SettingError, TrainError
from vab.models.memory import training_memory
from vab.models.vab import Block
from vab.training.checkpoint import checkpoints
from vab.training.launch import open_fabric, start_processes
from vab.training.objectives import OBJECTIVES as STEPS
from vab.training.objectives import contrastive_step
from vab.training.step import GradientCache, split_rows
from vab.utils.world import World

ROOT = Path(__file__).parents[1]
# The small network of helpers.training, as options of the command line.
OPTIONS = [
    *("--model.codec", "tiny", "--model.vision", "efficientnet-lite0", "--model.seconds", "0.4"),
    *("--model.fps", "5", "--model.num-codebooks", "2", "--model.codebook-size", "16"),
    *("--model.codebook-dim", "4", "--model.vision-dim", "8", "--model.hidden-dim", "32"),
    *("--model.num-layers", "2", "--model.num-expert-layers", "1", "--model.num-heads", "2"),
    "--model.no-timing",
    *("--train.batch-size", "5", "--train.precision", "32-true", "--train.log-every", "1"),
    *("--train.save-every", "3", "--train.warmup-steps", "3", "--train.learning-rate", "3e-3"),
    *("--train.optimizer", "adamw", "--train.ema", "0.9"),
]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("latents") / "store")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips without a picture among others, and pictures of other clips."""
    return fill(tmp_path_factory.mktemp("mixed") / "store", pictures="other")


def environment(**variables: object) -> dict[str, str]:
    """This process's, without a GPU, a launcher's variables, or threads that get in each other's way."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_"))}
    alone = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return kept | alone | {name: str(value) for name, value in variables.items()}


def slurm(folder: Path, call: list[str]) -> list[Forked]:
    """Two processes with the variables that two tasks of srun have."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    step = {"SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NUM_NODES": 1, "SLURM_JOB_ID": 7, "MASTER_PORT": port}
    tasks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NTASKS": 2, **step} for rank in range(2)]
    return [Forked(folder, main, call, environment=environment(**task)) for task in tasks]


def pretrain(store: Path, out: Path, *options: object) -> list[str]:
    words = ["pretrain", "vab-tiny", "--store", store, "--out", out, *OPTIONS, *options]
    return [str(word) for word in words]


@pytest.mark.slow
def test_one_process_and_two_by_every_launcher_train_the_same(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """... and only the first of them speaks: a document, two lines of log, nothing of Lightning's."""
    steps = ("--max-steps", 5, "--json")
    said = {}
    for name, options in {"one": (), "devices": ("--devices", 2)}.items():
        code, *said[name] = vab(capfd, *pretrain(latents, tmp_path / name, *steps, *options))
        assert code == 0, said[name]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    call = pretrain(latents, tmp_path / "torchrun", *steps, "--accumulate", 2)
    done = subprocess.run(
        [*torchrun, "-m", "vab", *call], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    said["torchrun"] = [done.stdout, done.stderr]
    tasks = slurm(tmp_path, pretrain(latents, tmp_path / "slurm", *steps))
    texts = [task.communicate(timeout=200) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0] and texts[1] == ("", ""), texts
    said["slurm"] = list(texts[0])

    one = load_file(tmp_path / "one" / "model.safetensors")
    for name, (out, err) in said.items():
        run = tmp_path / name
        lines = err.splitlines()
        assert lines[0] == f"training vab-tiny in {run}: 16 clips, 5 steps" and len(lines) == 2, err
        assert out == said["one"][0].replace(str(tmp_path / "one"), str(run))
        for split in ("train", "dev"):
            for a, b in zip(metrics(tmp_path / "one", split), metrics(run, split), strict=True):
                assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4), name
        weights = load_file(run / "model.safetensors")
        for key in one:
            assert (one[key] - weights[key]).abs().max() < 1e-4, (name, key)


@pytest.mark.slow
def test_the_death_of_one_process_ends_all(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two tasks hold their folder together; when one is killed, the other says so in a line and ends."""
    run = tmp_path / "run"
    call = pretrain(latents, run, "--max-steps", 100_000)
    tasks = slurm(tmp_path, call)
    try:
        end = time.monotonic() + 100
        while not checkpoints(run / "checkpoints") and time.monotonic() < end:
            time.sleep(0.1)
        code, _, err = vab(capsys, *call)
        assert code == 2 and "another process trains in" in err
        tasks[1].send_signal(signal.SIGKILL)
        out, err = tasks[0].communicate(timeout=100)
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    assert (tasks[0].returncode, out) == (2, "")
    assert err.splitlines()[1:] == [
        f"vab: {run}: another process of this run has ended; start it again to go on"
    ]


def test_lightning_is_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    open_fabric("cpu", "bf16-mixed")
    assert caplog.messages == []


def test_what_the_launchers_say() -> None:
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert World.from_environment({}, False) == World()
    assert World.from_environment(torchrun | {"TORCHELASTIC_RUN_ID": "x"}, True) == World(
        5, 8, 1, 4, "torchrun"
    )
    assert World.from_environment({"RANK": "5", "WORLD_SIZE": "8"}, False) == World(5, 8, 0, 1)
    srun = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "1201"}
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_ID": "0"}
    nodes = {"SLURM_STEP_NODELIST": "gpu[003-004,9],big1"}
    world = World.from_environment(srun | step | nodes, False)
    assert world == World(3, 4, 1, 2, "srun", "tcp://gpu003:26864")
    there = {"MASTER_ADDR": "a.b", "MASTER_PORT": "77"}
    assert World.from_environment(srun | step | nodes | there, False).address == "tcp://a.b:77"
    # a batch script without srun, and a person's shell, are one process each
    assert World.from_environment(srun, False) == World() == World.from_environment(srun | step, True)
    for wrong in ({"RANK": "8"}, {"RANK": "x"}, {"LOCAL_RANK": "4"}):
        with pytest.raises(SettingError, match="RANK"):
            World.from_environment(torchrun | wrong, False)


def test_devices_that_contradict_the_launcher_are_refused(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("pretrain", "vab-tiny", "--store", latents, "--run", tmp_path / "run", "--devices", 3)
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for rank in "01":
        for name, value in (variables | {"RANK": rank, "LOCAL_RANK": rank}).items():
            monkeypatch.setenv(name, value)
        code, out, err = vab(capsys, *call)
        message = (
            "vab: --devices 3, but torchrun has started 2 processes on this machine: leave --devices out\n"
        )
        assert (code, out, err) == (2, "", message if rank == "0" else "")


@pytest.mark.parametrize(
    "verb",
    ["embed IN -o OUT.npz", "classify IN", "evaluate ablation steps --store IN --run OUT"]
    + [f"evaluate {kind} --store IN" for kind in ("retrieval", "classification")],
)
def test_what_is_not_shared_out_to_a_launchers_processes_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for rank in "01":
        for name, value in (variables | {"RANK": rank, "LOCAL_RANK": rank}).items():
            monkeypatch.setenv(name, value)
        code, out, err = vab(capsys, *verb.split())
        message = (
            "vab: torchrun has started 2 processes, and each of them would do all of this: start one, with"
        )
        assert (code, out, err) == (2, "", f"{message} --devices 2\n" if rank == "0" else "")


# --- how a step is computed


OBJECTIVES = {
    "masked": preset("masked", roll_prob=0.3, max_grad_norm=1e9),
    "causal": replace(
        preset("causal", max_grad_norm=1e9),
        model=replace(PRESET.model, num_expert_layers=0),
    ),
    "contrastive": preset("contrastive", pair_by_label=True, batch_size=9, max_grad_norm=1e9),
    "classification": replace(
        preset("classification", inputs=("audio", "video", "both"), pair_by_label=True, max_grad_norm=1e9),
        classes=("0", "1", "2", "3"),
    ),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_in_parts_has_the_gradient_of_the_whole(mixed: Path, tmp_path: Path, objective: str) -> None:
    """Clips without video, other numbers of masked tokens in each part, parts of 5 and 4 clips."""
    chosen = OBJECTIVES[objective]
    chosen = replace(chosen, train=replace(chosen.train, batch_size=9))
    whole = gradients(training(chosen, mixed, tmp_path, Compute()))
    assert len(whole) > 20 and whole["gradient_norm"] > 1e-3
    direct = training(chosen, mixed, tmp_path, Compute())
    STEPS[objective](direct.network, direct.clips.train_batch(2), chosen).loss.backward()
    for name, parameter in direct.model.named_parameters():
        torch.testing.assert_close(whole[name], parameter.grad, rtol=1e-3, atol=1e-6)
    for parts in (2, 4, 99):
        split = gradients(training(chosen, mixed, tmp_path, Compute(accumulate=parts)))
        assert split.keys() == whole.keys()
        for name in whole:
            scale = whole[name].abs().max().clamp(min=1e-4)
            assert float((split[name] - whole[name]).abs().max() / scale) < 1e-4, (parts, name)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_and_stop_together(mixed: Path, tmp_path: Path) -> None:
    """Shares of 5 and 4 clips; gradients travel once a step, in however many parts it is computed."""
    whole, cases = {}, {}
    for objective, chosen in OBJECTIVES.items():
        chosen = replace(chosen, train=replace(chosen.train, batch_size=9))
        whole[objective] = gradients(training(chosen, mixed, tmp_path, Compute()))
        for parts in (1, 2) if objective == "contrastive" else (2,):
            cases[f"{objective}-{parts}"] = chosen, Compute(accumulate=parts)
    start_processes(partial(steps_of_two, cases, mixed, tmp_path), 2, "cpu", print)
    for case in cases:
        one = whole[case.partition("-")[0]]
        for rank in (0, 1):
            found = load_file(tmp_path / f"{case}-{rank}.safetensors")
            assert found.pop("exchanged") == found.pop("weights"), case
            assert found.keys() == one.keys()
            for name in one:
                scale = one[name].abs().max().clamp(min=1e-4)
                assert float((found[name] - one[name]).abs().max() / scale) < 1e-4, (case, rank, name)

    # one was asked to stop after the 12th step: both have, at the next step at which they look
    said = [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)]
    assert said == ["143 20", "143 20"]
    assert [path.stem for path in checkpoints(tmp_path / "checkpoints")] == ["000000020"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_activations_computed_again_give_the_same_bits(mixed: Path, tmp_path: Path, objective: str) -> None:
    chosen = OBJECTIVES[objective]
    chosen = replace(chosen, model=replace(chosen.model, dropout=0.2))
    for parts in (1, 2):
        ways = (Compute(accumulate=parts, checkpoint_activations=both) for both in (False, True))
        kept, again = (gradients(training(chosen, mixed, tmp_path, way)) for way in ways)
        assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_dropout_is_the_same_in_both_passes_of_a_contrastive_part(mixed: Path, tmp_path: Path) -> None:
    """The gradient by way of the embeddings is that of the same parts in one graph."""
    chosen = OBJECTIVES["contrastive"]
    chosen = replace(chosen, model=replace(chosen.model, dropout=0.2))
    run = training(chosen, mixed, tmp_path, Compute())
    batch = run.clips.train_batch(2)

    def graph(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = []
        for n, part in enumerate(split_rows(inputs, 3)):
            torch.manual_seed(7 + n)
            outputs.append(run.network(*part))
        audio, video, scales = zip(*outputs, strict=True)
        return torch.cat(audio), torch.cat(video), scales[0]

    cache = GradientCache(run.fabric, run.network, 3, seed=7)
    found = []
    for network in (graph, cache):
        contrastive_step(network, batch, chosen).loss.backward()  # type: ignore[arg-type]
        if network is cache:
            cache.backward()
        found.append({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        run.model.zero_grad()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_compiled_layers_train_the_same_and_are_few(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights keep their names, so that a run may go on without; further steps compile nothing anew."""
    # what torch.compile takes the layers apart into, without a quarter of an hour of C++
    monkeypatch.setattr(Block, "compile", partialmethod(Block.compile, backend="aot_eager"))
    chosen = preset("masked", max_grad_norm=1e9)
    plain, compiled = (
        training(chosen, latents, tmp_path, Compute(accumulate=2, compile=compiled))
        for compiled in (False, True)
    )
    assert plain.model.state_dict().keys() == compiled.model.state_dict().keys()
    counters.clear()
    seen = []
    for step in range(4):
        values = [run.update(run.clips.train_batch(step), measure=False)["loss"] for run in (plain, compiled)]
        assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-4)
        compiled.validation(compiled.model)
        seen.append(counters["stats"]["unique_graphs"])
    assert 2 <= seen[0] <= 8 and seen[1] == seen[-1] <= 8


def test_no_compiler_is_a_line(latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    message = r"^--compile: torch\.compile does not work here \(.+\)$"
    torch._dynamo.reset()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(TrainError, match=message):
        training(PRESET, latents, tmp_path, Compute(compile=True))


# --- how much memory a step takes


@pytest.mark.parametrize("objective", ["masked", "contrastive", "classification"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_memory_is_what_a_step_keeps(latents: Path, tmp_path: Path, objective: str, precision: Any) -> None:
    """The bytes of the tensors that autograd saves, logits aside, are reckoned to 5 %."""
    chosen = OBJECTIVES[objective]
    wide = replace(chosen.model, hidden_dim=256, num_layers=4, num_expert_layers=3, num_heads=4)
    chosen = replace(chosen, model=wide, train=replace(chosen.train, precision=precision, batch_size=8))
    chosen = replace(chosen, train=replace(chosen.train, inputs=("both",)))
    run = training(chosen, latents, tmp_path, Compute())
    batch = run.clips.train_batch(0)
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    need = training_memory(chosen, Compute())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = STEPS[objective](run.network, batch, chosen)
    logits = training_memory(replace(chosen, model=replace(wide, codebook_size=1)), Compute()).activations
    copies = need.weights - 4 * sum(p.numel() for p in run.model.parameters())
    assert sum(kept.values()) == pytest.approx(logits + copies, rel=0.05)
    assert outcome.loss.isfinite()
