"""Cost of generating tokens, counted and not measured: forward passes and floating-point operations.

Only matrix products are counted, a multiplication and an addition as two operations, like
``torch.utils.flop_counter``; norms, softmax and sampling are not.
B batch, K codebooks, T audio frames, F video frames, L = F + T, D hidden size, V codebook size.
"""

from __future__ import annotations

from dataclasses import dataclass

from vab.config import FRAME_RATE, ModelConfig, Preset, video_frames
from vab.sampling.parallel import windows
from vab.sampling.stages import padded_length, window_overlap


@dataclass(frozen=True)
class Cost:
    """Cost of the tokens of one clip."""

    passes: int  # forward passes of the network; one does both halves of guidance
    flops: float


def token_cost(preset: Preset, frames: int) -> Cost:
    """Cost of ``vab.sampling.stages.Stage.fill`` for ``frames`` audio frames, none of them known.

    For VAB a pass goes over a whole window, ``decode.num_steps`` times (section 3.3). For FoleyGen it goes
    over one step, with the keys and values of all before it kept (appendix E).
    """
    config = preset.model
    # Guidance doubles the batch: each clip with its features and without.
    rows = 1 if preset.decode.guidance_scale == 1 else 2
    passes = 0
    flops = 0.0
    known = 0  # audio frames done by the windows before
    for start, stop in windows(padded_length(frames, config), config.audio_length, window_overlap(config)):
        num_video = video_frames((stop - start) / FRAME_RATE, config.fps)
        overlap = max(0, known - start)
        if preset.train.objective == "causal":
            steps = stop - start + config.num_codebooks - 1
            passes += steps - overlap
            flops += _stepwise(config, num_video, steps, num_video + 1 + overlap)
        else:
            passes += preset.decode.num_steps
            flops += preset.decode.num_steps * pass_flops(config, num_video, stop - start)
        known = stop
    return Cost(passes, rows * flops)


def pass_flops(config: ModelConfig, num_video: int, num_audio: int) -> float:
    """FLOPs of one forward pass of VAB over F video and T audio positions of one clip, without guidance."""
    length = num_video + num_audio
    return _layers(config, num_video, num_audio, length * length) + num_audio * _heads(config)


def _stepwise(config: ModelConfig, num_video: int, steps: int, first: int) -> float:
    """FLOPs of FoleyGen over ``num_video + steps`` positions, of which the first pass does ``first``."""
    last = num_video + steps
    # With a key-value cache each later position attends once to those before it and itself.
    num_pairs = first * first + sum(range(first + 1, last + 1))
    return _layers(config, num_video, steps, num_pairs) + (last - first + 1) * _heads(config)


def _layers(config: ModelConfig, num_video: int, num_audio: int, num_pairs: int) -> float:
    """FLOPs of embeddings and blocks; ``num_pairs`` positions attend to each other.

    Each position costs 4 D^2 of attention and 8 D^2 of the feed-forward network.
    """
    width = config.hidden_dim
    inputs = config.codebook_dim * (1 if config.codec == "encodec" else config.num_codebooks)
    embedded = 2 * width * (inputs * num_audio + config.vision_dim * num_video)
    return embedded + config.num_layers * (24 * (num_video + num_audio) * width**2 + 4 * num_pairs * width)


def _heads(config: ModelConfig) -> float:
    """FLOPs of the logits of one audio position."""
    return 2 * config.hidden_dim * config.num_predicted_codebooks * config.codebook_size
