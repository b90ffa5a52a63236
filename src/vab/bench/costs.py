"""What making tokens costs, counted and not measured: forward passes and floating-point operations.

Counted are matrix products, a multiplication and an addition being two operations, as
``torch.utils.flop_counter`` counts. Norms, softmax and the drawing of tokens are not in it.
B batch, K codebooks, T audio frames, F video frames, L = F + T, D width, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

from vab.config import FRAME_RATE, ModelConfig, Preset, video_frames
from vab.sampling.parallel import windows
from vab.sampling.stages import padded_length, window_overlap


@dataclass(frozen=True)
class Cost:
    """Of the tokens of one clip."""

    passes: int  # forward passes of the network; one does both halves of guidance
    flops: float


def token_cost(preset: Preset, frames: int) -> Cost:
    """What ``vab.sampling.stages.Stage.fill`` costs for ``frames`` audio frames of which none is known.

    For VAB a pass goes over a whole window, ``decode.num_steps`` times (section 3.3). For FoleyGen it goes
    over one step, with the keys and values of all before it kept (appendix E).
    """
    config = preset.model
    rows = 1 if preset.decode.guidance_scale == 1 else 2
    passes, flops, known = 0, 0.0, 0
    for start, stop in windows(padded_length(frames, config), config.audio_length, window_overlap(config)):
        video = video_frames((stop - start) / FRAME_RATE, config.fps)
        given = max(0, known - start)
        if preset.train.objective == "causal":
            steps = stop - start + config.num_codebooks - 1
            passes += steps - given
            flops += _stepwise(config, video, steps, video + 1 + given)
        else:
            passes += preset.decode.num_steps
            flops += preset.decode.num_steps * pass_flops(config, video, stop - start)
        known = stop
    return Cost(passes, rows * flops)


def pass_flops(config: ModelConfig, video: int, audio: int) -> float:
    """One forward pass of VAB over F ``video`` and T ``audio`` places of one clip, without guidance."""
    places = video + audio
    seen = places * places  # pairs of places that attend to each other
    return _layers(config, video, audio, seen) + audio * _heads(config)


def _stepwise(config: ModelConfig, video: int, steps: int, first: int) -> float:
    """All passes of FoleyGen over ``video + steps`` places, of which the first pass does ``first``."""
    last = video + steps
    seen = first * first + sum(range(first + 1, last + 1))
    return _layers(config, video, steps, seen) + (last - first + 1) * _heads(config)


def _layers(config: ModelConfig, video: int, audio: int, seen: int) -> float:
    """Embeddings and blocks: 4 D^2 of attention and 8 D^2 of the feed-forward network for each place."""
    width = config.hidden_dim
    inputs = config.codebook_dim * (1 if config.codec == "encodec" else config.num_codebooks)
    embedded = 2 * width * (inputs * audio + config.vision_dim * video)
    return embedded + config.num_layers * (24 * (video + audio) * width**2 + 4 * seen * width)


def _heads(config: ModelConfig) -> float:
    """The logits of one audio place."""
    return 2 * config.hidden_dim * config.num_predicted_codebooks * config.codebook_size
