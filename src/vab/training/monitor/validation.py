"""What is measured on the split dev while a run goes on, and by which number its best step is chosen.

Generation: the loss, and loss and accuracy by codebook. Contrast: R@1 both ways among all dev clips (section
3.4). Classification: accuracy and mean average precision for each input (section 3.5).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vab.config import Preset
from vab.training.batches import MAX_DEV_CLIPS, Batch, ClipBatches
from vab.training.objectives import OBJECTIVES, all_gather_with_grad


class Validation:
    """A pass over the split dev: masks that never change, at most ``MAX_DEV_CLIPS`` clips (``whole``: all).

    It draws no random numbers of the run and leaves the network as it was.
    """

    def __init__(self, dev: ClipBatches, preset: Preset, fabric: Fabric, whole: bool = False) -> None:
        self.dev, self.preset, self.fabric = dev, preset, fabric
        self.objective = OBJECTIVES[preset.train.objective]
        self.limit = len(dev) if whole else MAX_DEV_CLIPS
        self.several = any(";" in label for label in dev.labels())  # classes of one clip

    @property
    def measure(self) -> str:
        """The number by which the best step is chosen: loss, R@1 or accuracy.

        It is mAP where clips have several classes. All but the loss are means over both ways or all inputs.
        """
        kinds = {"contrastive": "R@1", "classification": "mAP" if self.several else "accuracy"}
        return kinds.get(self.preset.train.objective, "loss")

    def score(self, values: dict[str, float]) -> float:
        """That number, of what a pass gave; higher is better, so a loss is negative."""
        if self.measure == "loss":
            return -values["loss"]
        found = [value for name, value in values.items() if name.startswith(f"{self.measure}/")]
        return sum(found) / len(found) if found else -values["loss"]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Loss and metrics by name, the same in every process."""
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        sums: dict[str, Tensor] = {}  # name -> [sum, count] so far
        outputs: list[tuple[Batch, Any]] = []  # of every pass through the network
        whole = self.preset.train.objective in ("contrastive", "classification")
        training = model.training
        network = _Network(model, self.fabric).eval()
        for rows in self.dev.dev_batches(self.limit):
            batch = self.dev.dev_batch(rows, rank, world_size).to(self.fabric.device)
            outcome = self.objective(network, batch, self.preset)
            outputs += [(batch, output) for output in network.outputs if whole]
            network.outputs.clear()
            loss = torch.stack([outcome.loss.float() * outcome.weight, outcome.weight])
            # Sums, not means: the last batch may be smaller.
            for name, value in {"loss": loss, **outcome.metrics()}.items():
                sums[name] = sums[name] + value if name in sums else value
        model.train(training)
        return means(self.fabric, sums) | self._over_all(outputs)

    def _over_all(self, outputs: list[tuple[Batch, Any]]) -> dict[str, float]:
        """Metrics that need all clips at once."""
        train = self.preset.train
        if train.objective == "contrastive":
            # 1. All pairs of all processes: [N,D], and their classes [N,C].
            has_video = _whole([batch.has_video for batch, _ in outputs])
            audio = _whole([output[0] for _, output in outputs])[has_video]
            video = _whole([output[1] for _, output in outputs])[has_video]
            if not len(audio):
                return {}
            targets = _whole([batch.targets for batch, _ in outputs])[has_video]
            return retrieval_at_1(audio, video, targets @ targets.T > 0 if train.pair_by_label else None)

        # 2. Scores [N,C] by input: those of a clip without video do not count for the video alone.
        values = {}
        for n, kind in enumerate(train.inputs if train.objective == "classification" else ()):
            own = outputs[n :: len(train.inputs)]
            rows = _whole([b.has_video | torch.tensor(kind != "video", device=b.mask.device) for b, _ in own])
            scores = _whole([output.float() for _, output in own])[rows]
            targets = _whole([batch.targets for batch, _ in own])[rows]
            if targets.any():
                values[f"mAP/{kind}"] = mean_average_precision(scores, targets > 0)
        return values


class _Network(nn.Module):
    """The network in the run's precision, and it alone: similarities in bfloat16 would tie."""

    def __init__(self, model: nn.Module, fabric: Fabric) -> None:
        super().__init__()
        self.model, self.fabric = model, fabric
        self.outputs: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.fabric.autocast():
            output = self.model(*args, **kwargs)
        self.outputs.append(output)
        return output


def means(fabric: Fabric, sums: dict[str, Tensor]) -> dict[str, float]:
    """Means over all processes of name -> [sum, count]; a name that counts nothing is left out."""
    # One reduction for all of them: [n, 2]
    total = fabric.all_reduce(torch.stack(list(sums.values())), reduce_op="sum")
    assert isinstance(total, Tensor)
    found = zip(sums, total[:, 1].tolist(), (total[:, 0] / total[:, 1]).tolist(), strict=True)
    return {name: mean for name, count, mean in found if count}


def retrieval_at_1(audio: Tensor, video: Tensor, fits: Tensor | None = None) -> dict[str, float]:
    """R@1 both ways of audio and video [N,D], row by row a pair: the share that nothing else is closer to.

    Where ``fits`` [N,N] is True a pair might as well belong together, and does not count as wrong.
    """
    # In float64, as `vab evaluate retrieval`: in bfloat16 many pairs would be equally close.
    similarity = audio.double() @ video.double().T
    own = similarity.diagonal()
    closer = torch.stack([similarity > own, own < similarity.T])  # each column a query: [2,N,N]
    if fits is not None:
        closer &= ~fits
    to_audio, to_video = (closer.sum(1) == 0).double().mean(1).tolist()
    return {"R@1/video to audio": to_audio, "R@1/audio to video": to_video}


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """Mean over the classes that a clip has of the average precision of scores [N,C], targets bool [N,C].

    As scikit-learn computes it: the sum of precision times the rise of recall over falling thresholds.
    """
    found = []
    for score, target in zip(scores.T, targets.T, strict=True):
        if target.any():
            level, of_clip = torch.unique(-score, return_inverse=True)  # equal scores are one threshold
            hits = torch.zeros(len(level), dtype=torch.float64).index_add_(0, of_clip, target.double())
            counts = torch.bincount(of_clip, minlength=len(level)).double()
            found.append((hits / hits.sum() * hits.cumsum(0) / counts.cumsum(0)).sum())
    return float(torch.stack(found).mean())


def _whole(parts: list[Tensor]) -> Tensor:
    """The rows of all batches and of all processes, on the CPU."""
    return all_gather_with_grad(torch.cat(parts)).cpu()
