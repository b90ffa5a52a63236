"""What a run trains: the network of its objective, and what it minimises (eq. 1, 4, section 3.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from vab.config import Preset
from vab.models.foleygen import FoleyGen
from vab.models.heads import Classifier, Contrastive
from vab.models.vab import VAB
from vab.training.batches import Batch
from vab.training.losses import classification, contrastive, masked_prediction
from vab.training.masking import apply_mask


@dataclass(frozen=True)
class LossOutput:
    """What an objective makes of a process's share of a batch."""

    loss: Tensor  # mean over ``weight`` things; gradients flow from here
    weight: Tensor  # how many things (tokens, clips): shares of several processes count by it
    measures: Callable[[], dict[str, Tensor]]  # name -> [sum, count]; called when there is something to log


Objective = Callable[[nn.Module, Batch, Preset], LossOutput]


def build(preset: Preset, codebook_vectors: Tensor) -> nn.Module:
    """The network of the preset's objective, with fresh weights."""
    if preset.train.objective == "masked":
        return VAB(preset.model, codebook_vectors)
    if preset.train.objective == "causal":
        return FoleyGen(preset.model, codebook_vectors)
    if preset.train.objective == "contrastive":
        return Contrastive(preset.model, codebook_vectors)
    network = Classifier(preset.model, len(preset.classes), codebook_vectors)
    unused = {"audio": "video", "video": "audio"}
    for name, parameter in network.trunk.named_parameters():
        idle = len(preset.train.inputs) == 1 and unused.get(preset.train.inputs[0], "-") in name
        parameter.requires_grad_(not (idle or preset.train.freeze_trunk))
    return network


def masked_prediction_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Masked audio token prediction (eq. 1): the pre-training objective. Measures accuracy per codebook."""
    model = preset.model
    tokens = apply_mask(batch.tokens, batch.mask, model.codebook_size)
    logits = network(tokens, batch.features, drop_features=batch.drop_features)
    targets, mask = (
        batch.tokens[:, model.num_conditioning_codebooks :],
        batch.mask[:, model.num_conditioning_codebooks :],
    )
    return _prediction(logits, targets, mask, preset)


def next_token_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Each token from those before it: FoleyGen's objective (appendix E). Measures accuracy per codebook."""
    logits = network(batch.tokens, batch.features, drop_features=batch.drop_features)
    return _prediction(logits, batch.tokens, torch.ones_like(batch.mask), preset)


def contrastive_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Contrast of the batch's clips over all processes (eq. 4). Measures R@1 both ways within the batch.

    Clips without a picture take no part. With ``pair_by_label`` any picture of a label fits any sound of it,
    so clips that share a class are not held against each other.
    """
    seen, padding = _seen(batch)
    audio, video, scale = network(batch.tokens, batch.features, batch.token_padding, padding)
    there = _all_gather_with_grad(seen)
    audio, video, targets = (_all_gather_with_grad(x)[there] for x in (audio, video, batch.targets))
    positive_mask = targets @ targets.T > 0 if preset.train.pair_by_label else None
    if len(audio):
        # each process holds the gradient of its own clips: wanted is the sum, DDP takes the mean
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        loss = _scale_gradient(
            contrastive(audio, video, _scale_gradient(scale, 1 / world), positive_mask), world
        )
    else:
        loss = (audio.sum() + video.sum() + scale) * 0.0

    def measures() -> dict[str, Tensor]:
        similar = (audio @ video.T).detach()
        own, count = similar.diagonal(), similar.new_tensor(float(len(similar)))
        if positive_mask is not None:
            similar = similar.masked_fill(positive_mask, -torch.inf)
        right = {
            "R@1/video to audio": (similar > own).sum(0) == 0,
            "R@1/audio to video": (similar > own[:, None]).sum(1) == 0,
        }
        return {name: torch.stack([found.sum().float(), count]) for name, found in right.items()}

    return LossOutput(loss, there.sum().float(), measures)


def classification_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Classes of clips from each of the preset's inputs (section 3.5). Measures accuracy for each.

    A clip without a picture does not count where the picture alone would have to do.
    """
    config = preset.train
    seen, padding = _seen(batch)
    loss, weight = batch.features.new_zeros(()), batch.features.new_zeros(())
    found = {}
    for kind in config.inputs:
        if kind == "audio":
            logits = network(batch.tokens, None, batch.token_padding, None)
        elif kind == "video":
            logits = network(None, batch.features, None, padding)
        else:
            logits = network(batch.tokens, batch.features, batch.token_padding, batch.feature_padding)
        rows = seen if kind == "video" else torch.ones_like(seen)
        targets, count = batch.targets[rows], rows.sum().float()
        each = classification(logits[rows], targets, config.loss, config.label_smoothing)
        loss = loss + (each * count if count else logits.sum() * 0.0)
        weight = weight + count
        best = targets.gather(1, logits[rows].detach().argmax(1, keepdim=True))
        found[f"accuracy/{kind}"] = torch.stack([(best > 0.5).sum().float(), count])
    return LossOutput(loss / weight.clamp(min=1), weight, lambda: found)


OBJECTIVES: dict[str, Objective] = {
    "masked": masked_prediction_step,
    "causal": next_token_step,
    "contrastive": contrastive_step,
    "classification": classification_step,
}


def _prediction(logits: Tensor, targets: Tensor, mask: Tensor, preset: Preset) -> LossOutput:
    """Cross entropy of logits [B,Kp,T,V] where ``mask`` [B,Kp,T] is True; accuracy per codebook."""
    loss = masked_prediction(logits, targets, mask, preset.train.label_smoothing)

    def measures() -> dict[str, Tensor]:
        right = ((logits.detach().argmax(-1) == targets) & mask).sum((0, 2))
        counts = torch.stack([right, mask.sum((0, 2))], dim=1).float()
        return {
            f"accuracy/{preset.model.num_conditioning_codebooks + k}": count for k, count in enumerate(counts)
        }

    return LossOutput(loss, mask.sum().float(), measures)


def _seen(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which clips have a picture [B], and padding [B,F] that leaves those without one their zeros.

    Attention to nothing at all would be no number.
    """
    seen = ~batch.feature_padding.all(1)
    return seen, batch.feature_padding & seen[:, None]


def _all_gather_with_grad(x: Tensor) -> Tensor:
    """x [B,...] of all processes, one after another; gradients flow into this process's own."""
    if not torch.distributed.is_initialized():
        return x
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world)]
    torch.distributed.all_gather(counts, torch.tensor([len(x)], device=x.device))
    longest = max(int(count) for count in counts)
    padded = torch.cat([x.detach(), x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    parts = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]
    parts[rank] = x
    return torch.cat(parts)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient times ``factor``."""
    return x if factor == 1 else x.detach() + (x - x.detach()) * factor
