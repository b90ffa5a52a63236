"""Cost of generating tokens, counted and not measured: forward passes and floating-point operations.

What is counted, and the letters, are those of ``vab.models.flops``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vab.config import FRAME_RATE, DecodeConfig, ModelConfig, Preset, video_frames
from vab.models.flops import head_flops, layer_flops, pass_flops
from vab.sampling.parallel import guided_steps, windows
from vab.sampling.stages import padded_length, window_overlap


@dataclass(frozen=True)
class Cost:
    """Cost of the tokens of one clip."""

    passes: int  # forward passes of the network
    guided: int  # of these, the ones that do both halves of guidance
    flops: float


def token_cost(preset: Preset, frames: int, decode: DecodeConfig | None = None, told: bool = False) -> Cost:
    """Cost of ``vab.sampling.stages.Stage.fill`` for ``frames`` audio frames, none known.

    For VAB a pass goes over a whole window, ``decode.num_steps`` times (section 3.3). For FoleyGen it goes
    over one step, with the keys and values of all before it kept (appendix E). ``decode``: other settings
    than the preset's own. ``told``: a timing curve, which a pass puts through its adapter.
    """
    config = replace(preset.model, timing=told and preset.model.timing)
    decode = decode or preset.decode
    passes = guided = 0
    flops = 0.0
    known = 0  # audio frames done by the windows before
    lengths = padded_length(frames, config), config.audio_length, window_overlap(config)
    for start, stop in windows(*lengths, decode.last_window):
        num_video = video_frames((stop - start) / FRAME_RATE, config.fps)
        overlap = max(0, known - start)
        if preset.train.objective == "causal":
            steps = stop - start + config.num_codebooks - 1
            # Guidance doubles the batch: each clip with its features and without.
            both = 0 if decode.guidance_scale == 1 else steps - overlap
            passes += steps - overlap
            flops += (2 if both else 1) * _stepwise(config, num_video, steps, num_video + 1 + overlap)
        else:
            both = 0
            if decode.guidance_scale != 1:
                both = len(guided_steps(decode)[:: decode.guidance_every])
            passes += decode.num_steps
            flops += (decode.num_steps + both) * pass_flops(config, num_video, stop - start)
        guided += both
        known = stop
    return Cost(passes, guided, flops)


def _stepwise(config: ModelConfig, num_video: int, steps: int, first: int) -> float:
    """FLOPs of FoleyGen over ``num_video + steps`` positions, of which the first pass does ``first``."""
    last = num_video + steps
    # With a key-value cache each later position attends once to those before it and itself.
    num_pairs = first * first + sum(range(first + 1, last + 1))
    return layer_flops(config, num_video, steps, num_pairs) + (last - first + 1) * head_flops(config)
