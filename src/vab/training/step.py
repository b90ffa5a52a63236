"""The gradient of one step: of a process's clips at once, or of some at a time (gradient accumulation).

Losses are means over items (masked tokens, clips) that are counted over the whole batch. So the gradients of
*sums* are added up here, whichever clips a process or a part has, and divided by the number of all items.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn

from vab.config import Compute, Preset
from vab.errors import TrainError, first_line
from vab.models.vab import Block, Trunk
from vab.training.batches import Batch
from vab.training.objectives import OBJECTIVES, LossOutput


def prepare(model: nn.Module, compute: Compute, device: torch.device) -> None:
    """Set a network up to be computed so; names and values of its weights stay as they are.

    ``TrainError`` if torch.compile does not work here.
    """
    for module in model.modules():
        if isinstance(module, Trunk):
            module.checkpoint_activations = compute.checkpoint_activations
    if not compute.compile:
        return
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # no compiler, no Triton, an old GPU: each has errors of its own
        raise TrainError(f"--compile: torch.compile does not work here ({first_line(error)})") from error
    # Each layer by itself: they are alike, so that two or three are made instead of one for each.
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def backward(
    fabric: Fabric,
    network: _FabricModule,
    batch: Batch,
    preset: Preset,
    *,
    parts: int,
    seed: int,
    measure: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Put the gradient of the mean loss over all processes' clips into the parameters of ``network``.

    ``batch`` [B,...] are the clips of this process, which are computed in ``parts``. Returns the mean loss
    over all processes and, with ``measure``, the metrics of this process: name -> [sum, count].
    """
    objective = OBJECTIVES[preset.train.objective]
    sums = torch.zeros(2, device=fabric.device)  # loss times items, items
    metrics: dict[str, Tensor] = {}

    def add(outcome: LossOutput) -> Tensor:
        """Count what a part has; returns the loss to send back. DDP takes the mean of all processes."""
        nonlocal sums
        sums = sums + torch.stack([outcome.loss.detach().float() * outcome.weight, outcome.weight])
        for name, value in outcome.metrics().items() if measure else ():
            metrics[name] = metrics[name] + value if name in metrics else value
        return outcome.loss * (outcome.weight * fabric.world_size)

    # 1. The gradient of the sum of losses. What is dropped out is drawn by a stream of its own for each part.
    if preset.train.objective == "contrastive" and parts > 1:
        # Each clip's loss depends on all others.
        cached = GradientCache(fabric, network, parts, seed)
        add(objective(cached, batch, preset)).backward()  # type: ignore[arg-type]
        cached.backward()
    else:
        split = batch.split(parts)
        for n, part in enumerate(split):
            torch.manual_seed(seed + n)
            with _exchange(fabric, network, n + 1 == len(split)):
                fabric.backward(add(objective(network, part, preset)))

    # 2. The mean over all items of all processes; without any (no video in a contrastive batch) it is 0.
    total = fabric.all_reduce(sums, reduce_op="sum")
    assert isinstance(total, Tensor)
    count = total[1].clamp(min=1)
    torch._foreach_div_([p.grad for p in network.parameters() if p.grad is not None], count)
    return total[0] / count, metrics


class GradientCache:
    """A contrastive network that embeds a batch in parts, and keeps the activations of one of them at most.

    Called as the network itself, it gives the embeddings of all clips without a graph behind them. Once the
    loss has sent its gradient to them, :meth:`backward` embeds each part again and sends its share on (Gao et
    al., 2021). The gradient is that of the batch at once, for one more forward pass.
    """

    def __init__(self, fabric: Fabric, network: _FabricModule, parts: int, seed: int) -> None:
        self.fabric, self.network, self.num_parts, self.seed = fabric, network, parts, seed

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors [B,...] -> audio, video [B,D], scale: leaves, whose gradients are kept."""
        self.inputs = split_rows(inputs, self.num_parts)
        with torch.no_grad():
            audio, video, scales = zip(*map(self._embed, range(len(self.inputs))), strict=True)
        self.outputs = [torch.cat(audio), torch.cat(video), scales[0].clone()]
        for output in self.outputs:
            output.requires_grad_()
        audio_leaf, video_leaf, scale = self.outputs
        return audio_leaf, video_leaf, scale

    def backward(self) -> None:
        """Send the gradients of the embeddings on to the parameters."""
        audio_grad, video_grad, scale_grad = (output.grad for output in self.outputs)
        assert scale_grad is not None
        last = len(self.inputs) - 1
        for n, (by_audio, by_video) in enumerate(split_rows((audio_grad, video_grad), self.num_parts)):
            assert by_audio is not None and by_video is not None
            with _exchange(self.fabric, self.network, n == last):
                audio, video, scale = self._embed(n)
                # The scale is one for all parts: its gradient is sent back once.
                total = (audio * by_audio).sum() + (video * by_video).sum() + scale * scale_grad * (n == last)
                self.fabric.backward(total)

    def _embed(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(self.seed + n)  # both times the same is dropped out
        audio, video, scale = self.network(*self.inputs[n])
        return audio, video, scale


def split_rows(tensors: tuple[Tensor | None, ...], parts: int) -> list[tuple[Tensor | None, ...]]:
    """Tensors [B,...] -> ``parts`` tuples of neighbouring rows, none empty unless B is 0. None stays None."""
    rows = next(len(tensor) for tensor in tensors if tensor is not None)
    parts = min(parts, max(1, rows))
    each = [[None] * parts if tensor is None else tensor.tensor_split(parts) for tensor in tensors]
    return list(zip(*each, strict=True))


@contextmanager
def _exchange(fabric: Fabric, network: _FabricModule, last: bool) -> Iterator[None]:
    """Let processes exchange their gradients in the last backward pass of a step, and only there."""
    with fabric.no_backward_sync(network, enabled=not last):
        yield
