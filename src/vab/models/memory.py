"""Memory of a training step, reckoned from the sizes of the network.

Counted is what is kept for the backward pass, not what lives for a moment. Legend as in ``vab.config``.
"""

from __future__ import annotations

from dataclasses import dataclass

from vab.config import Compute, Preset
from vab.models.hub import FOLDERS
from vab.models.vab import parameter_counts

CARDS = (24, 40, 80)  # GB of common GPUs
USABLE = 0.9  # of a card: CUDA itself, and what lies between tensors


@dataclass(frozen=True)
class Memory:
    """Bytes on each device."""

    weights: float  # float32, and their bfloat16 copies of a step
    gradients: float
    optimizer: float  # AdamW's two moments
    ema: float  # averaged weights
    activations: float  # of the clips computed at once

    @property
    def total(self) -> float:
        """All of these: an upper bound, as gradients grow while activations go."""
        return self.weights + self.gradients + self.optimizer + self.ema + self.activations

    @property
    def cards(self) -> list[int]:
        """The cards that it fits on, in GB."""
        return [card for card in CARDS if self.total <= USABLE * card * 1e9]


def training_memory(preset: Preset, compute: Compute) -> Memory:
    """The memory of a step of ``preset``, computed so; ``train.batch_size`` is divided among the devices."""
    model, train = preset.model, preset.train
    devices = compute.devices or 1
    half = train.precision == "bf16-mixed"
    counts = parameter_counts(model)

    # 1. The network. Fine-tuning has the first layers only; a frozen trunk has no gradient.
    generates = train.objective not in FOLDERS
    head = model.hidden_dim * len(preset.classes)
    size = counts["total_parameters"] if generates else counts["expert_parameters"] + head
    learned = head if train.freeze_trunk else size

    # 2. Positions of each clip that are alive together, and the layers that they pass through.
    audio, video = model.audio_length, model.video_length
    if train.objective == "causal":
        audio += model.num_codebooks - 1
    ways = {"audio": audio, "video": video, "both": audio + video}
    inputs = {"contrastive": ("audio", "video"), "classification": train.inputs}
    positions = sum(ways[name] for name in inputs.get(train.objective, ("both",)))
    passes = len(train.inputs) if train.objective == "classification" else 1  # each with copies of its own
    layers = model.num_layers if generates else model.num_expert_layers
    clips = -(-train.batch_size // (devices * compute.accumulate))

    # 3. What the layers keep, in bytes a position.
    stream = 4 * model.hidden_dim  # the residual stream is float32
    one_layer = layer_bytes(model.hidden_dim, model.num_heads, half)
    kept = layers * stream + one_layer if compute.checkpoint_activations else layers * one_layer
    if train.freeze_trunk:
        kept = 0
    activations = float(clips * positions * kept)

    # 4. Logits [B,Kp,T,V] in float32; of the masked ones the log-softmax and two gradients too.
    if generates:
        share = 1.0 if train.objective == "causal" else (train.mask_min + train.mask_max) / 2
        activations += clips * model.num_predicted_codebooks * audio * model.codebook_size * (4 + 12 * share)
    teacher = size if train.objective == "distillation" else 0
    return Memory(
        weights=4 * (size + teacher) + (2 * size * passes if half else 0),
        gradients=(8 if devices > 1 else 4) * learned,  # DDP sends copies of them
        optimizer=8 * learned,
        ema=4 * learned if train.ema else 0,
        activations=activations,
    )


def layer_bytes(hidden_dim: int, num_heads: int, half: bool) -> int:
    """Bytes that a layer keeps of each position: 36 D and a number for each head in bfloat16, else 64 D.

    The inputs of both norms (float32), of qkv and up (D each), q, k, v and the attention's output (4 D), and
    GELU's input and output (8 D).
    """
    return (2 * 4 + (2 if half else 4) * (2 + 4 + 8)) * hidden_dim + 4 * num_heads
