"""Floating-point operations of the networks, counted from their sizes.

Only matrix products are counted, a multiplication and an addition as two operations, like
``torch.utils.flop_counter``; norms, softmax and sampling are not.
B batch, K codebooks, T audio frames, F video frames, L = F + T, D hidden size, V codebook size.
"""

from __future__ import annotations

from vab.config import ModelConfig, Preset
from vab.models.vab import TIMING_CHANNELS, TIMING_KERNEL, TIMING_WIDTH


def pass_flops(config: ModelConfig, num_video: int, num_audio: int) -> float:
    """FLOPs of one forward pass of VAB over F video and T audio positions of one clip, without guidance."""
    length = num_video + num_audio
    each = head_flops(config)
    if config.timing:  # the adapter of the curve
        each += 2 * TIMING_WIDTH * (TIMING_KERNEL * TIMING_CHANNELS + config.hidden_dim)
    return layer_flops(config, num_video, num_audio, length * length) + num_audio * each


def layer_flops(
    config: ModelConfig, num_video: int, num_audio: int, num_pairs: int, num_layers: int | None = None
) -> float:
    """FLOPs of embeddings and of the first ``num_layers`` blocks (None: all).

    ``num_pairs`` positions attend to each other. Each position costs 4 D^2 of attention and 8 D^2 of the
    feed-forward network.
    """
    width = config.hidden_dim
    layers = config.num_layers if num_layers is None else num_layers
    inputs = config.codebook_dim * (1 if config.sums_codes else config.num_codebooks)
    embedded = 2 * width * (inputs * num_audio + config.vision_dim * num_video)
    return embedded + layers * (24 * (num_video + num_audio) * width**2 + 4 * num_pairs * width)


def head_flops(config: ModelConfig) -> float:
    """FLOPs of the logits of one audio position."""
    return 2 * config.hidden_dim * config.num_predicted_codebooks * config.codebook_size


def training_flops(preset: Preset, num_video: int, num_audio: int) -> float:
    """FLOPs of one training step for one clip of F video and T audio positions, whatever the objective.

    A backward pass costs two forward ones; a frozen trunk has none. What activation checkpointing computes
    again is not counted: it is no work of the model.
    """
    config, train = preset.model, preset.train
    # 1. Generation: the whole network once. FoleyGen's codebooks are staggered: K - 1 further positions.
    if train.objective == "masked":
        return 3 * pass_flops(config, num_video, num_audio)
    if train.objective == "causal":
        return 3 * pass_flops(config, num_video, num_audio + config.num_codebooks - 1)

    # A student, and both halves of its teacher's guidance.
    if train.objective == "distillation":
        return (3 + 2) * pass_flops(config, num_video, num_audio)

    # 2. Fine-tuning: the first layers, once for each way in.
    ways = {"audio": (0, num_audio), "video": (num_video, 0), "both": (num_video, num_audio)}
    inputs = ("audio", "video") if train.objective == "contrastive" else train.inputs
    trunk = sum(
        layer_flops(config, f, t, (f + t) ** 2, config.num_expert_layers)
        for f, t in (ways[name] for name in inputs)
    )
    heads = 0 if train.objective == "contrastive" else 2 * config.hidden_dim * len(preset.classes)
    return (1 if train.freeze_trunk else 3) * trunk + 3 * len(inputs) * heads
