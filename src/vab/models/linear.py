"""Linear layers that a CPU computes from packed weights, where the numbers are bfloat16 and nothing learns.

PyTorch lays out a bfloat16 weight for the processor's matrix unit at every call. oneDNN keeps it laid out,
adds the bias and applies GELU while it writes the result. PyTorch has no public way to that: what
``torch.utils.mkldnn`` makes is slower than not packing at all (docs/decisions/speed.md). So these are
operators of its own, tried once, and where they are missing or wrong the layer is an ``nn.Linear``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class Kept:
    """Something made from tensors that do not learn, kept until it is asked for with others.

    A change in place is seen by the tensor's version, which a fused optimizer and ``.data`` leave as it was.
    """

    def __init__(self) -> None:
        self._made_from: list[tuple[Tensor, int]] = []
        self._value: Any = None

    def __call__(self, make: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``make(*tensors)``, or what it gave the last time."""
        # The tensors are held, so that no other can be at the same place in memory.
        now = [(tensor.detach(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if len(now) != len(self._made_from) or not all(
            tensor.data_ptr() == before.data_ptr() and tensor.dtype == before.dtype and version == old
            for (tensor, version), (before, old) in zip(now, self._made_from, strict=True)
        ):
            self._value, self._made_from = make(*tensors), now
        return self._value

    def forget(self) -> None:
        """Let go of what is kept, and of the tensors it was made from."""
        self._value, self._made_from = None, []

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()  # a copy of a module makes its own


class Linear(nn.Linear):
    """``nn.Linear``, with its weight packed beside itself for inference in bfloat16 on a CPU."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self._packed = Kept()

    def forward(self, x: Tensor) -> Tensor:
        """[...,in] -> [...,out]."""
        return self._pointwise(x, "none") if self._packs(x) else super().forward(x)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the layer's output: [...,in] -> [...,out]."""
        return self._pointwise(x, "gelu") if self._packs(x) else functional.gelu(super().forward(x))

    def _packs(self, x: Tensor) -> bool:
        if self.weight.dtype != torch.bfloat16 or not self.weight.is_cpu:
            self._packed.forget()  # of weights that were in bfloat16 here before
            return False
        return (
            x.dtype == torch.bfloat16
            and x.is_cpu
            and not torch.is_grad_enabled()
            and not self.weight.requires_grad
            and can_pack()
        )

    def _pointwise(self, x: Tensor, after: Literal["none", "gelu"]) -> Tensor:
        return _pointwise(x, self._packed(_pack, self.weight), self.bias, after)


@lru_cache(maxsize=1)
def can_pack() -> bool:
    """True if PyTorch's operators for packed weights are there and give what ``nn.Linear`` gives."""
    x, weight, bias = (torch.linspace(-1, 1, n).bfloat16() for n in (64, 32 * 32, 32))
    x, weight = x.view(2, 32), weight.view(32, 32)
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        found = _pointwise(x, _pack(weight), bias, "gelu")
    except (
        AttributeError,
        RuntimeError,
        TypeError,
    ):  # not there, not of this processor, or with other arguments
        return False
    expected = functional.gelu(functional.linear(x.float(), weight.float(), bias.float()))
    return torch.allclose(found.float(), expected, rtol=0.02, atol=0.02)


def _pack(weight: Tensor) -> Tensor:
    """A weight [out,in] as oneDNN lays it out: opaque, to be used with :func:`_pointwise` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach())


def _pointwise(x: Tensor, packed: Tensor, bias: Tensor, after: str) -> Tensor:
    # x, weight, bias, what follows, its numbers, its algorithm: of two for GELU "none" is the exact one
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, after, [], "none")
