"""Comparisons of a device with the CPU: each check is a function ``(device, small) -> rows``.

A row says what was compared, how far apart it was and how far it may be. Without a limit it is a
measurement, no check. All of it is done with TF32 off; the CPU computes in float32. Distances are relative
L2: ``|device - cpu| / |cpu|``.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vab.bench.gpu.runner import report
from vab.bench.gpu.runs import (
    WEIGHTS,
    apart,
    gradient,
    run_of,
    synthetic_mixture,
    synthetic_store,
)
from vab.bench.gpu.sizes import codec_of, inputs, network_of, preset_of, vision_of
from vab.bench.timing import blank_inputs, fill_in
from vab.config import Compute, DecodeConfig, Preset
from vab.models.foleygen import FoleyGen, IncrementalDecoder, delay
from vab.presets import PRESETS
from vab.sampling import autoregressive
from vab.sampling.parallel import generate
from vab.sampling.stages import Stage
from vab.training.batches import ClipBatches
from vab.training.loader import made_ahead
from vab.training.objectives import OBJECTIVES, build
from vab.training.optimizer import optimizers
from vab.training.trainer import train
from vab.utils.device import pick_device, tf32

EXACT, ROUGH = 1e-4, 0.03  # relative L2 of float32 and of bfloat16
TYPES = {"float32": (torch.float32, EXACT), "bfloat16": (torch.bfloat16, ROUGH)}
STEPS = 4  # of the runs of training
CPU = torch.device("cpu")

Row = dict[str, Any]
Objective = Literal["masked", "contrastive", "classification", "causal"]


def row(check: str, numbers: str, measured: float, limit: float | None, note: str = "") -> Row:
    """One comparison; ``met`` is None where there is no limit."""
    met = None if limit is None else bool(measured <= limit)
    return {"check": check, "numbers": numbers, "measured": measured, "at most": limit, "met": met} | (
        {"note": note} if note else {}
    )


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 distance; infinite if something is not a number."""
    return apart([found.detach().cpu()], [wanted.detach().cpu()])


def differing(found: Tensor, wanted: Tensor) -> float:
    """Share of the tokens that are not the same."""
    return float((found.cpu() != wanted.cpu()).float().mean())


def equal_logits(device: torch.device, small: bool) -> list[Row]:
    """Equal logits give the CPU's tokens, in parallel decoding and step by step."""
    config = preset_of("vab-encodec", small).model
    batch = 2
    rows = []
    shape = (batch, config.num_codebooks, config.audio_length)
    logits = 3 * torch.randn(*shape, config.codebook_size, generator=torch.Generator().manual_seed(0))
    for name, decode in (
        ("parallel", DecodeConfig(num_steps=16, mask_temperature=25.5)),
        ("parallel, of the 256 likeliest", DecodeConfig(num_steps=16, mask_temperature=25.5, top_k=256)),
        ("step by step", DecodeConfig(num_steps=0, top_k=256)),
    ):
        found = []
        # the same logits, the same noise: only the device differs
        for where in (CPU, device):
            noise = [torch.Generator().manual_seed(n) for n in range(batch)]
            tokens = torch.zeros(shape, dtype=torch.int64, device=where)
            known = torch.zeros_like(tokens, dtype=torch.bool)
            what = (tokens, known, config.codebook_size, decode, noise)
            here = logits.to(where)
            if decode.num_steps:
                found.append(generate(partial(_same, here), *what))
            else:
                found.append(autoregressive.generate(partial(_same, here[:, :, 0]), *what))
        share = differing(*found)
        rows.append(row(f"tokens of equal logits, {name}", "float32", share, 0.0, "share that differs"))
    return rows


def _same(logits: Tensor, tokens: Tensor, step: int = 1) -> Tensor:
    return logits


def networks(device: torch.device, small: bool) -> list[Row]:
    """The networks' logits; FoleyGen's also with its cache."""
    rows = []
    for name in ("vab-encodec", "vab-dac", "vab-dac-coarse2fine", "foleygen-encodec"):
        preset = preset_of(name, small)
        network = network_of(preset)
        tokens, features = inputs(preset.model, 1, CPU)
        # FoleyGen is asked twice: over the whole window at once, and step by step with its cache
        jobs: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {name: lambda n, t, f: n(t, f)}
        if isinstance(network, FoleyGen):
            jobs[f"{name} with its cache"] = _cached
        # on the CPU first: the network itself moves to the device afterwards
        wanted = {job: work(network, tokens, features) for job, work in jobs.items()}
        for numbers, (dtype, limit) in TYPES.items():
            there = network.to(device, dtype)
            for job, work in jobs.items():
                found = work(there, tokens.to(device), features.to(device))
                rows.append(row(job, numbers, relative(found, wanted[job]), limit))
    return rows


def _cached(network: nn.Module, tokens: Tensor, features: Tensor) -> Tensor:
    """Logits [8,B,K,V] of eight steps, one at a time, after a quarter of the window at once."""
    assert isinstance(network, FoleyGen)
    # the prompt is a quarter of the window
    first = tokens.shape[2] // 4
    steps = delay(tokens.clamp(max=network.config.codebook_size - 1), network.config.codebook_size)
    # one call for the prompt, then seven for a step each: every one gives [B,K,V]
    continuation = IncrementalDecoder(network, tokens.shape[2])
    found = [continuation(steps[:, :, :first], features)]
    found += [continuation(steps[:, :, n : n + 1], features) for n in range(first, first + 7)]
    return torch.stack(found)


@torch.no_grad()
def image_encoder(device: torch.device, small: bool) -> list[Row]:
    """EVA02-CLIP-L on pictures of noise."""
    vision: Any = vision_of(small)
    pictures = torch.randn(2, 3, vision.size, vision.size, generator=torch.Generator().manual_seed(0))
    wanted, rows = vision.model(pictures), []
    for numbers, (dtype, limit) in TYPES.items():
        model = vision.model.to(device, dtype)
        rows.append(row("image encoder", numbers, relative(model(pictures.to(device, dtype)), wanted), limit))
    return rows


@torch.no_grad()
def codecs(device: torch.device, small: bool) -> list[Row]:
    """EnCodec and DAC: what goes to the codebooks, which tokens come of it, and the sound of tokens."""
    rows = []
    draw = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(1, 16_000 if small else 32_000, generator=draw)
    for name in ("encodec", "dac"):
        codec: Any = codec_of(name, small)
        tokens = torch.randint(codec.codebook_size, (1, codec.num_codebooks, 100), generator=draw)
        # what goes to the codebooks, before it is rounded to tokens
        places = codec.model.encoder(waveform[:, None])
        sound, own = codec.decode(tokens), codec.encode(waveform)
        for numbers, (dtype, limit) in TYPES.items():
            codec.model.to(device, dtype)
            wave = waveform.to(device, dtype)
            distance = relative(codec.model.encoder(wave[:, None]), places)
            rows.append(row(f"{name}, encoder", numbers, distance, limit))
            distance = relative(codec.decode(tokens.to(device)), sound)
            rows.append(row(f"{name}, decoder", numbers, distance, limit))
            # a place halfway between two codes may fall to either: measured, but without a limit
            share = differing(codec.encode(wave), own)
            rows.append(row(f"{name}, tokens of a sound", numbers, share, None, "share that differs"))
    return rows


def _taught(objective: Objective) -> Preset:
    """A preset of that objective which any processor trains in seconds."""
    model = replace(
        PRESETS["vab-tiny"].model,
        seconds=1.0,
        hidden_dim=64,
        num_layers=2,
        num_expert_layers=1,
        timing=False,
        num_heads=2,
        codebook_size=64,
    )
    # FoleyGen has no experts, and no timing curve
    if objective == "causal":
        model = replace(model, num_expert_layers=0, timing=False)
    config = replace(
        PRESETS["vab-tiny"].train,
        objective=objective,
        optimizer="adamw",
        learning_rate=1e-3,
        warmup_steps=0,
        batch_size=8,
        crop_seconds=0.0,
        ema=0.9,
        precision="32-true",
        save_every=STEPS // 2,
        log_every=1,
        inputs=("audio", "both"),
    )
    classes = tuple(f"label{n}" for n in range(7)) if objective == "classification" else ()
    return Preset("check", "", model, config, classes=classes)


def training_steps(device: torch.device, small: bool) -> list[Row]:
    """Loss, gradient and first update of every objective, the contrastive one among them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder), _taught("masked").model, 16)
        for objective in get_args(Objective):
            preset = _taught(objective)
            batch = ClipBatches(store, preset, "train").train_batch(0)
            # one network for all devices: each step works on a copy of it
            torch.manual_seed(0)
            network = build(preset, torch.from_numpy(store.codebook_vectors()))
            wanted = _step(copy.deepcopy(network), batch, preset, CPU, "float32")
            for numbers, (_, limit) in TYPES.items():
                found = _step(copy.deepcopy(network), batch, preset, device, numbers)
                # AdamW's first update is the sign of a gradient, also of one that is nothing but rounding
                limits = {"weights after it": 10 * EXACT}
                if numbers == "bfloat16":
                    del found["weights after it"]
                for name, value in found.items():
                    distance = relative(value, wanted[name])
                    rows.append(row(f"{objective} step, {name}", numbers, distance, limits.get(name, limit)))
    return rows


def _step(
    network: nn.Module, batch: Any, preset: Preset, device: torch.device, numbers: str
) -> dict[str, Tensor]:
    """One step of training: its loss, the gradient of all weights, and the weights it leaves."""
    network.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=numbers == "bfloat16"):
        loss = OBJECTIVES[preset.train.objective](network, batch.to(device), preset).loss
    # all gradients in one line, and what the optimizers make of them
    loss.backward()
    learned = [p for p in network.parameters() if p.grad is not None]
    gradient = torch.cat([p.grad.flatten() for p in learned if p.grad is not None])
    for optimizer in optimizers(network, preset.train):
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in learned])
    return {"loss": loss.detach()[None], "gradient": gradient, "weights after it": weights}


def runs(device: torch.device, small: bool) -> list[Row]:
    """A run of training on two stores beside the CPU's, and one that is resumed from its checkpoint."""
    preset = _taught("masked")
    quiet: dict[str, Any] = {"max_steps": STEPS, "log": lambda line: None}

    def run(name: str, where: torch.device) -> Tensor:
        train(preset, stores, place / name, weights=WEIGHTS, compute=Compute(device=str(where)), **quiet)
        return _learned(place / name)

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        stores = [store.directory for store in synthetic_mixture(place, preset.model, 16).stores]
        here, there = run("here", device), run("there", CPU)
        weights = relative(here, there)
        losses = relative(_losses(place / "here"), _losses(place / "there"))
        # the second half once more, from the checkpoint in the middle
        run("again", device)
        (place / "again" / "checkpoints" / f"{STEPS:09d}.safetensors").unlink()
        (place / "again" / "model.safetensors").unlink()
        changed = relative(run("again", device), here)
    return [
        row(f"losses of {STEPS} steps of a run on two stores", "float32", losses, EXACT),
        row(f"weights after {STEPS} steps of a run on two stores", "float32", weights, 100 * EXACT),
        row("a resumed run beside one that was not stopped", "float32", changed, EXACT, "0 is bit for bit"),
    ]


def _learned(run: Path) -> Tensor:
    """All weights that were learned, in one line; the codec's vectors are not."""
    state = load_file(run / "model.safetensors")
    frozen = ("vectors", "feature_mean", "feature_std")
    return torch.cat([tensor.flatten() for name, tensor in state.items() if not name.endswith(frozen)])


def _losses(run: Path) -> Tensor:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines])


def in_parts(device: torch.device, small: bool) -> list[Row]:
    """The gradient of a step in parts or with activations computed again, beside that of the step at once."""
    rows = []
    ways = {
        "in 3 parts": Compute(str(device), accumulate=3),
        "activations computed again": Compute(str(device), checkpoint_activations=True),
        "both": Compute(str(device), accumulate=3, checkpoint_activations=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = synthetic_store(place / "store", _taught("masked").model, 16)
        for objective in get_args(Objective):
            preset = _taught(objective)
            wanted: list[Tensor] = []
            for name, compute in ({"at once": Compute(str(device))} | ways).items():
                run = run_of(preset, store, place, compute)
                loss, found = gradient(run, run.clips.train_batch(0).to(device))
                found.append(loss)
                if wanted:
                    note = f"{objective} step {name}, gradient"
                    rows.append(row(note, "float32", apart(found, wanted), EXACT))
                wanted = wanted or found
    return rows


def fused_attention(device: torch.device, small: bool) -> list[Row]:
    """Fused attention takes ALiBi's bias, also with padding, and gives what plain attention gives."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.profiler import ProfilerActivity, profile

    # 1. Two layers of vab-encodec: L = 510, no multiple of what the kernel asks of the bias's rows.
    preset = preset_of("vab-encodec", small)
    preset = replace(preset, model=replace(preset.model, num_layers=2, num_expert_layers=1))
    network = network_of(preset).to(device).requires_grad_(True)
    tokens, features = inputs(preset.model, 2, device)
    padding = torch.zeros(2, preset.model.audio_length, dtype=torch.bool, device=device)
    padding[1, preset.model.audio_length // 2 :] = True

    def work(padded: Tensor | None) -> list[Tensor]:
        """Logits, and the gradient of a loss of them."""
        network.zero_grad()
        logits = network(tokens, features, token_padding=padded)
        logits.float().square().mean().backward()
        return [logits.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]

    # 2. With the fused kernel alone allowed: where it does not take the bias, that is an error.
    fused = SDPBackend.EFFICIENT_ATTENTION if device.type == "cuda" else SDPBackend.FLASH_ATTENTION
    rows = []
    for about, padded in (("full clips", None), ("padded clips", padding)):
        for numbers, (dtype, limit) in TYPES.items():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                with sdpa_kernel(SDPBackend.MATH):
                    plain = work(padded)
                with sdpa_kernel(fused):
                    distance = apart(work(padded), plain)
                rows.append(row(f"fused attention, {about}", numbers, distance, limit))
                # 3. What is taken where nothing is asked for.
                with profile(activities=[ProfilerActivity.CPU]) as recorded:
                    work(padded)
            prefix = "aten::_scaled_dot_product_"
            taken = sorted(e.key.removeprefix(prefix) for e in recorded.key_averages() if prefix in e.key)
            share = float(any("math" in name for name in taken) or not taken)
            rows.append(row(f"plain attention taken, {about}", numbers, share, 0.0, ", ".join(taken)))
    return rows


def made_batches(device: torch.device, small: bool) -> list[Row]:
    """Batches made ahead by threads arrive as they are made in place; on a GPU from pinned memory."""
    pin, preset = device.type == "cuda", _taught("masked")
    changed, unpinned = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        clips = ClipBatches(synthetic_mixture(Path(folder), preset.model, 16), preset, "train")
        with made_ahead(clips.train_batch, range(STEPS), workers=2, pin=pin) as batches:
            for step, batch in enumerate(batches):
                made, there = vars(clips.train_batch(step)), vars(batch.to(device))
                tensors = [name for name, value in made.items() if isinstance(value, Tensor)]
                changed += sum(differing(there[name], made[name]) for name in tensors)
                unpinned += sum(not getattr(batch, name).is_pinned() for name in tensors)
    rows = [row("batches made ahead", "", changed, 0.0, "share that differs")]
    return rows + ([row("their tensors outside pinned memory", "", unpinned, 0.0)] if pin else [])


def in_batches(device: torch.device, small: bool) -> list[Row]:
    """The tokens of a clip alone, once more alone, and among four."""
    rows = []
    for name in ("vab-encodec", "foleygen-encodec"):
        preset = preset_of(name, small)
        if preset.train.objective == "causal":  # two seconds are enough to see it
            preset = replace(preset, model=replace(preset.model, seconds=min(2.0, preset.model.seconds)))
        network = network_of(preset)
        for numbers, (dtype, _) in TYPES.items():
            stage = Stage(network.to(device, dtype), preset)
            # four clips in one pass, then the first of them by itself, twice
            tokens, known, features = blank_inputs(stage, 4, preset.model.audio_length)
            together = fill_in(stage, tokens, known, features)
            alone, again = (fill_in(stage, tokens[:1], known[:1], features[:1]) for _ in range(2))
            note = "share that differs"
            rows.append(row(f"{name}, a clip alone twice", numbers, differing(again, alone), 0.0, note))
            where = first_difference(network, *inputs(preset.model, 4, device))
            note = f"share that differs; {where}"
            share = differing(together[:1], alone)
            rows.append(row(f"{name}, alone and among four", numbers, share, None, note))
    return rows


@torch.no_grad()
def first_difference(network: nn.Module, tokens: Tensor, features: Tensor) -> str:
    """The first layer whose output for the first clip depends on the clips beside it."""
    # 1. Note what every layer without layers inside gives for the first clip.
    seen: list[tuple[str, Tensor]] = []
    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.append((name, out[0].clone())))
        for name, module in leaves
    ]
    # 2. Once among the others, once alone.
    network(tokens, features)
    many = list(seen)
    seen.clear()
    network(tokens[:1], features[:1])
    for hook in hooks:
        hook.remove()
    # 3. The first that differs is where another order of adding began.
    for (name, among), (_, alone) in zip(many, seen, strict=True):
        if not torch.equal(among, alone):
            return f"first in {name}, by {relative(among, alone):.1e}"
    return "every layer is the same"


CHECKS: dict[str, Callable[[torch.device, bool], list[Row]]] = {
    check.__name__: check
    for check in (
        equal_logits,
        networks,
        codecs,
        image_encoder,
        training_steps,
        in_batches,
        runs,
        in_parts,
        fused_attention,
        made_batches,
    )
}


def run_check(name: str, device: torch.device, small: bool) -> list[Row]:
    """The rows of a check, done with TF32 off."""
    with tf32(False):
        return CHECKS[name](device, small)


def correctness(device: str, small: bool, folder: Path) -> dict[str, Any]:
    """Correctness: the device beside the CPU's float32, TF32 off."""
    where = pick_device(device)
    rows: list[Row] = []
    failed: list[str] = []
    for name in CHECKS:
        try:
            found = run_check(name, where, small)
        except Exception as error:  # one check that cannot be done must not keep the others from it
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            found = [{"check": name, "met": False, "note": reason[:300]}]
        # every number is on the page, not only whether it is good enough
        rows += found
        failed += [f"{r['check']} ({r.get('numbers', 'not done')})" for r in found if r["met"] is False]
        report(rows, [], failed)
    lines = [
        "Where the tokens of a clip depend on those beside it, a product of matrices chose another order of "
        "adding for another number of rows; the note names the first layer. One clip a pass restores them: "
        "alone, a clip has the same tokens each time.",
    ]
    return {"rows": rows, "lines": lines, "failed": failed}
