"""The objectives of training: for each its network and one step of its loss (eq. 1, 4, section 3.5).

That of a student that needs few steps is in ``vab.sampling.student``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn

from vab.config import Preset
from vab.models.foleygen import build_network
from vab.models.heads import Classifier, Contrastive
from vab.sampling.student import Student, states
from vab.training.batches import Batch
from vab.training.losses import classification, contrastive, distillation, masked_prediction
from vab.training.masking import apply_mask


@dataclass(frozen=True)
class LossOutput:
    """Loss of one process's share of a batch."""

    loss: Tensor  # mean over ``weight`` items; gradients flow from here. 0 if there are none
    weight: Tensor  # number of items (tokens, clips), by which the processes' losses are averaged
    metrics: Callable[[], dict[str, Tensor]]  # name -> [sum, count]; called only when they are logged


Objective = Callable[[nn.Module, Batch, Preset], LossOutput]


def build(preset: Preset, codebook_vectors: Tensor | None = None) -> nn.Module:
    """The network of the preset's objective, with fresh weights."""
    if preset.train.objective in ("masked", "causal"):
        return build_network(preset, codebook_vectors)
    if preset.train.objective == "contrastive":
        return Contrastive(preset.model, codebook_vectors)
    if preset.train.objective == "distillation":
        return Student(preset.model, codebook_vectors)
    network = Classifier(preset.model, len(preset.classes), codebook_vectors)

    # A classifier of one modality leaves the other one's experts without a gradient, which DDP refuses.
    unused = {"audio": "video", "video": "audio"}
    for name, parameter in network.trunk.named_parameters():
        idle = len(preset.train.inputs) == 1 and unused.get(preset.train.inputs[0], "-") in name
        parameter.requires_grad_(not (idle or preset.train.freeze_trunk))
    return network


def masked_prediction_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Masked audio token prediction (eq. 1): the pre-training objective. Metrics per codebook."""
    model = preset.model
    tokens = apply_mask(batch.tokens, batch.mask, model.codebook_size)
    logits = network(tokens, batch.features, drop_features=batch.drop_features, timing=batch.timing)

    # The conditioning codebooks have no head: [B, K, T] -> [B, Kp, T]
    targets = batch.tokens[:, model.num_conditioning_codebooks :]
    mask = batch.mask[:, model.num_conditioning_codebooks :]
    return _prediction(logits, targets, mask, preset)


def next_token_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Next-token prediction: FoleyGen's objective (appendix E). Metrics per codebook."""
    logits = network(batch.tokens, batch.features, drop_features=batch.drop_features)
    return _prediction(logits, batch.tokens, torch.ones_like(batch.mask), preset)


def contrastive_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Contrastive loss over the clips of all processes (eq. 4). Metrics: R@1 both ways within the batch.

    Clips without video take no part; a batch of such clips alone has loss 0 and weight 0. With
    ``pair_by_label`` any video of a label fits any audio of it, so clips that share a class are no negatives.
    """
    audio, video, scale = network(batch.tokens, batch.features, batch.token_padding, batch.video_padding)

    # The pairs of all processes that have both modalities: [B, D] -> [n, D]
    has_video = all_gather_with_grad(batch.has_video)
    audio = all_gather_with_grad(audio)[has_video]
    video = all_gather_with_grad(video)[has_video]
    targets = all_gather_with_grad(batch.targets)[has_video]
    positive_mask = targets @ targets.T > 0 if preset.train.pair_by_label else None
    if len(audio):
        # Each process holds the gradient of its own clips. The sum is wanted, but DDP takes the mean; the
        # scale's gradient is whole in every process.
        world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        scale = _scale_gradient(scale, 1 / world_size)
        smoothing = preset.train.contrast_smoothing
        loss = _scale_gradient(contrastive(audio, video, scale, positive_mask, smoothing), world_size)
    else:
        # Every parameter still gets a gradient, which DDP waits for.
        loss = (audio.sum() + video.sum() + scale) * 0.0

    def metrics() -> dict[str, Tensor]:
        similarity = (audio @ video.T).detach()  # [n, n]
        own = similarity.diagonal()
        count = similarity.new_tensor(float(len(similarity)))
        if positive_mask is not None:
            similarity = similarity.masked_fill(positive_mask, -torch.inf)
        hits = {
            "R@1/video to audio": (similarity > own).sum(0) == 0,
            "R@1/audio to video": (similarity > own[:, None]).sum(1) == 0,
        }
        return {name: torch.stack([hit.sum().float(), count]) for name, hit in hits.items()}

    return LossOutput(loss, has_video.sum().float(), metrics)


def classification_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """Classification of clips from each of the preset's inputs (section 3.5). Metrics: accuracy for each.

    Clips without video do not count where the video alone would have to do.
    """
    config = preset.train
    loss = batch.features.new_zeros(())
    weight = batch.features.new_zeros(())
    metrics = {}
    for kind in config.inputs:
        feature_padding = batch.video_padding if kind == "video" else batch.feature_padding
        logits = network(batch.tokens, batch.features, batch.token_padding, feature_padding, kind)
        rows = batch.has_video if kind == "video" else torch.ones_like(batch.has_video)
        targets = batch.targets[rows]
        count = rows.sum().float()
        each = classification(logits[rows], targets, config.loss, config.label_smoothing)
        loss = loss + (each * count if count else logits.sum() * 0.0)
        weight = weight + count

        # After mixup a class is right if more than half of the clip's frames have it.
        best = targets.gather(1, logits[rows].detach().argmax(1, keepdim=True))
        metrics[f"accuracy/{kind}"] = torch.stack([(best > 0.5).sum().float(), count])
    return LossOutput(loss / weight.clamp(min=1), weight, lambda: metrics)


def distillation_step(network: nn.Module, batch: Batch, preset: Preset) -> LossOutput:
    """A student's steps corrected by its teacher (``vab.sampling.student``). Every clip counts alike.

    q, the student's distribution before one of its steps, is to be p, the teacher's guided distribution for
    the same tokens once it is shown some of what that step decides. Metric: their overlap, the sum over all
    tokens of min(p, q).
    """
    student = next(module for module in network.modules() if isinstance(module, Student))
    # 1. The clips at one of the steps, and the teacher's distribution with more of them.
    noise = [torch.Generator().manual_seed(seed) for seed in batch.seeds.tolist()]
    model = preset.model
    before, shown = states(batch.tokens, ~batch.mask, model.codebook_size, preset.decode.num_steps, noise)
    target = student.teacher_logits(shown, batch.features, batch.drop_features, batch.timing)

    # 2. The student's, with less: [B,Kp,T,V]. What the teacher is shown has no target.
    logits = network(before, batch.features, drop_features=batch.drop_features, timing=batch.timing)
    mask = (shown == model.codebook_size)[:, model.num_conditioning_codebooks :]
    each = distillation(logits, target, mask)  # [B]
    weight = mask.flatten(1).any(1).sum().float()

    @torch.no_grad()
    def metrics() -> dict[str, Tensor]:
        overlap = torch.minimum(logits[mask].float().softmax(-1), target[mask].softmax(-1)).sum()
        return {"overlap": torch.stack([overlap, mask.sum().float()])}

    return LossOutput(each.sum() / weight.clamp(min=1), weight, metrics)


OBJECTIVES: dict[str, Objective] = {
    "masked": masked_prediction_step,
    "causal": next_token_step,
    "contrastive": contrastive_step,
    "classification": classification_step,
    "distillation": distillation_step,
}


def _prediction(logits: Tensor, targets: Tensor, mask: Tensor, preset: Preset) -> LossOutput:
    """Cross entropy of logits [B,Kp,T,V] where ``mask`` [B,Kp,T] is True; loss and accuracy per codebook."""
    smoothing = preset.train.label_smoothing
    loss = masked_prediction(logits, targets, mask, smoothing)

    @torch.no_grad()
    def metrics() -> dict[str, Tensor]:
        values = {}
        for k in range(logits.shape[1]):
            name = preset.model.num_conditioning_codebooks + k
            own, chosen = logits[:, k], mask[:, k]  # [B,T,V], [B,T]
            count = chosen.sum().float()
            correct = ((own.argmax(-1) == targets[:, k]) & chosen).sum().float()
            mean = masked_prediction(own[:, None], targets[:, k, None], chosen[:, None], smoothing)
            values[f"accuracy/{name}"] = torch.stack([correct, count])
            values[f"loss/{name}"] = torch.stack([mean * count, count])
        return values

    return LossOutput(loss, mask.sum().float(), metrics)


def all_gather_with_grad(x: Tensor) -> Tensor:
    """x [B,...] of all processes, one after another; gradients flow into this process's own."""
    if not torch.distributed.is_initialized():
        return x
    world_size = torch.distributed.get_world_size()

    # Shares differ by one clip at most, but all_gather takes equal shapes: pad to the longest, then cut.
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size)]
    torch.distributed.all_gather(counts, torch.tensor([len(x)], device=x.device))
    longest = max(int(count) for count in counts)
    padded = torch.cat([x.detach(), x.new_zeros(longest - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    torch.distributed.all_gather(parts, padded)
    parts = [part[: int(count)] for part, count in zip(parts, counts, strict=True)]

    # What is gathered has no gradient; this process's own part keeps its own.
    parts[torch.distributed.get_rank()] = x
    return torch.cat(parts)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Identity in the forward pass; multiplies the gradient by ``factor``."""
    return x if factor == 1 else x.detach() + (x - x.detach()) * factor
