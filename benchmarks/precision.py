"""What bfloat16 gains on this machine, part by part, and how far from float32 its results are.

python benchmarks/precision.py speed [PART ...]
python benchmarks/precision.py close CLIP...

Times are CPU seconds of float32 and bfloat16 by turns in one process, medians; compare them as ratios.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vab.bench.systems import random_codec, random_stage, random_vision
from vab.bench.timing import blank_inputs
from vab.config import FRAME_RATE, video_frames
from vab.inference.parts import place
from vab.inference.pipeline import VABPipeline
from vab.models.foleygen import FoleyGen, IncrementalDecoder
from vab.models.vab import VAB
from vab.presets import at_speed, preset
from vab.sampling.parallel import num_masked_after, sample
from vab.sampling.stages import Stage
from vab.vision import TimmEncoder, normalise

CPU = torch.device("cpu")
FORMATS = (torch.float32, torch.bfloat16)


def half(network: VAB) -> VAB:
    """A copy in bfloat16, as a pipeline computes: parameters cast, statistics and codebooks as they are."""
    other = copy.deepcopy(network)
    place(other, CPU, torch.bfloat16)
    return other


def network(stage: Stage) -> list[Callable[[], Any]]:
    """One forward over both halves of guidance, in the middle of decoding; of FoleyGen a step."""
    length = stage.preset.model.audio_length
    tokens, _, features = blank_inputs(stage, 2, length)
    tokens[:, :, ::2] = stage.preset.model.codebook_size
    drop = torch.tensor([False, True])
    calls: list[Callable[[], Any]] = []
    for each in (stage.network, half(stage.network)):
        if isinstance(each, FoleyGen):
            decoder = IncrementalDecoder(each, length)
            decoder(tokens[:, :, : length // 2], features, drop)
            calls.append(partial(decoder, tokens[:, :, :1], features))
        else:
            calls.append(partial(each, tokens, features, drop_features=drop))
    return calls


def encoder(vision: Any, count: int) -> list[Callable[[], Any]]:
    """One pass of an image encoder over ``count`` frames."""
    assert isinstance(vision, TimmEncoder)
    pixels = torch.rand(count, 3, vision.size, vision.size)
    return [partial(copy.deepcopy(vision.model).to(kind), pixels.to(kind)) for kind in FORMATS]


def decoder(codec: Any) -> list[Callable[[], Any]]:
    """A second of sound from the quantised frames of a codec; of the small one all but Griffin-Lim."""
    if codec.name == "tiny":
        frames = torch.randn(1, 500, codec.dim)
        return [partial(_tiny, copy.deepcopy(codec).to(kind), frames.to(kind)) for kind in FORMATS]
    model = codec.model
    width = model.config.hidden_size
    x = torch.randn(1, width, 50)
    return [partial(copy.deepcopy(model.decoder).to(kind), x.to(kind)) for kind in FORMATS]


def _tiny(codec: Any, frames: Tensor) -> Tensor:
    """The convolutional networks of the small codec, of 10 s."""
    x = codec.decoder(codec.from_code(frames.transpose(1, 2))).transpose(1, 2)
    x = codec.to_detail(x).reshape(1, 2 * frames.shape[1], -1)
    return codec.to_spectrum(codec.norm(codec.detail(x.transpose(1, 2)).transpose(1, 2)))


def _stage(name: str) -> Stage:
    chosen = preset(name)
    return random_stage(chosen, random_codec(chosen.model.codec), CPU)


PARTS: dict[str, Callable[[], list[Callable[[], Any]]]] = {
    "network of vab-tiny": lambda: network(VABPipeline.from_pretrained(device="cpu").first),
    "efficientnet-lite0": lambda: encoder(random_vision("efficientnet-lite0"), 4),
    "decoder of the small codec": lambda: decoder(random_codec("tiny")),
    "network of foleygen-tiny": lambda: network(_stage("foleygen-tiny")),
    "network of vab-encodec": lambda: network(_stage("vab-encodec")),
    "network of foleygen-encodec": lambda: network(_stage("foleygen-encodec")),
    "eva02-clip-l": lambda: encoder(random_vision("eva02-clip-l"), 4),
    "decoder of encodec": lambda: decoder(random_codec("encodec")),
    "decoder of dac": lambda: decoder(random_codec("dac")),
}


@torch.no_grad()
def speed(names: list[str]) -> None:
    """Print for each part the CPU seconds of both formats and their ratio."""
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in names or PARTS:
        calls = PARTS[name]()
        seconds: list[list[float]] = [[], []]
        for call in calls:
            call()
        for _ in range(5):
            for call, times in zip(calls, seconds, strict=True):
                begin = time.process_time()
                call()
                times.append(time.process_time() - begin)
        a, b = map(statistics.median, seconds)
        ratios = sorted(x / y for x, y in zip(*seconds, strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name}: float32 {a:.4f} s, bfloat16 {b:.4f} s, {a / b:.2f} times ({spread})", flush=True)


@torch.no_grad()
def close(paths: list[Path]) -> None:
    """Print how near the bundled model in bfloat16 is to itself in float32, on these films."""
    pipe = VABPipeline.from_pretrained(device="cpu")
    config, vision = pipe.config.model, pipe.vision
    decode = at_speed(pipe.config.decode, "paper")
    other = half(pipe.network)
    assert isinstance(vision, TimmEncoder)
    narrow = copy.deepcopy(vision.model).bfloat16()
    length = config.audio_length
    num_video = video_frames(length / FRAME_RATE, config.fps)
    cosines: list[float] = []
    found: dict[str, list[tuple[float, float, float]]] = {"network": [], "image encoder": [], "both": []}
    clips: dict[str, list[float]] = {"network": [], "both": []}
    for path in paths:
        # 1. The image encoder: the same frames, four at a time.
        crops = list(_crops(path, pipe))
        parts: list[list[Tensor]] = [[], []]
        for n in range(0, len(crops), 4):
            pixels = normalise(torch.stack(crops[n : n + 4]), vision.recipe)
            parts[0].append(vision.model(pixels))
            parts[1].append(narrow(pixels.bfloat16()).float())
        wide, rough = (torch.cat(each) for each in parts)
        cosines += functional.cosine_similarity(wide, rough).tolist()
        # A film that is too short for the window stands still at its end.
        shown = torch.arange(num_video).clamp(max=len(wide) - 1)
        wide, rough = wide[shown], rough[shown]
        # 2. The network: tokens of its own, of which as many are masked as at each step of decoding.
        generator = torch.Generator().manual_seed(0)
        empty = torch.zeros(config.num_codebooks, length, dtype=torch.int64)
        tokens = pipe.first.fill(empty, empty.bool(), wide, decode, generator)
        ways = {"network": (other, wide), "image encoder": (pipe.network, rough), "both": (other, rough)}
        for step in range(decode.num_steps):
            count = num_masked_after(step, decode.num_steps, tokens.numel())
            places = torch.randperm(tokens.numel(), generator=generator)[:count]
            masked = tokens.flatten().index_fill(0, places, config.codebook_size).view_as(tokens)
            drawn = torch.rand(count, generator=generator)
            exact = _guided(pipe.network, masked, wide, decode.guidance_scale)[places]
            for name, (each, features) in ways.items():
                logits = _guided(each, masked, features, decode.guidance_scale)[places]
                log_p, log_q = exact.log_softmax(-1), logits.log_softmax(-1)
                kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
                likeliest = float((exact.argmax(-1) == logits.argmax(-1)).float().mean())
                ids = [sample(rows, drawn, decode.top_k)[0] for rows in (exact, logits)]
                found[name].append((kl, likeliest, float((ids[0] == ids[1]).float().mean())))
        # 3. All of decoding from the same noise: one token that differs changes those after it.
        for name in clips:
            again = torch.Generator().manual_seed(0)
            made = Stage(other, pipe.config).fill(empty, empty.bool(), ways[name][1], decode, again)
            clips[name].append(float((made == tokens).float().mean()))
    low = sorted(cosines)[len(cosines) // 100]
    median = statistics.median(cosines)
    print(f"{vision.name}, {len(cosines)} frames: cosine {median:.5f} in the median, {low:.5f} at 1 %")
    print(f"{len(paths)} films x {decode.num_steps} steps, guided logits against float32's at masked places:")
    for name, rows in found.items():
        kl, likeliest, same = (statistics.mean(column) for column in zip(*rows, strict=True))
        print(
            f"{name} in bfloat16: KL {kl:.2e} nats a token (largest step {max(rows)[0]:.2e}), "
            f"likeliest token equal {likeliest:.2%}, token of the same noise equal {same:.2%}"
        )
    for name, shares in clips.items():
        print(f"{name} in bfloat16: tokens after all steps equal {statistics.mean(shares):.2%}")


def _guided(network: VAB, tokens: Tensor, features: Tensor, scale: float) -> Tensor:
    """Guided logits [K*T,V] of tokens [K,T]."""
    drop = torch.tensor([False, True])
    c, u = network(tokens.expand(2, -1, -1), features.expand(2, -1, -1), drop_features=drop).float()
    return (u + scale * (c - u)).flatten(0, 1)


def _crops(path: Path, pipe: VABPipeline) -> Any:
    from vab.media.file import MediaFile
    from vab.vision import crop

    with MediaFile(path) as file:
        for frame in file.frames(pipe.config.model.fps, size=pipe.vision.decode_size):
            yield crop(frame, pipe.vision.recipe)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "speed":
        speed(rest)
    else:
        close([Path(name) for name in rest])
