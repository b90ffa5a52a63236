"""FoleyGen as the paper rebuilt it (appendix E): a decoder over delayed audio tokens, with a video prefix.

The sequence is ``[video; steps]``. A step holds one token of each codebook, codebook k being k frames
late (MusicGen's delay pattern), so that a codebook is predicted from the coarser ones of its own frame and
from all of the frames before. Every place sees those before it, and itself, but none behind.

Layers, embeddings and heads are those of VAB without experts; the [MASK] of a codebook, id V, stands where
the pattern has no token, and for the step before the first. Shapes: B batch, K codebooks, T audio frames,
S = T + K - 1 steps, F video frames, L = F + S, D width, V codebook size, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vab.config import ModelConfig
from vab.errors import SettingError
from vab.models.vab import VAB, alibi_bias


def delay(x: Tensor, fill: int | bool) -> Tensor:
    """x [B,K,T] -> [B,K,S]: row k begins k steps late. ``fill`` stands where there is nothing."""
    num_codebooks = x.shape[1]
    rows = [functional.pad(x[:, k], (k, num_codebooks - 1 - k), value=fill) for k in range(num_codebooks)]
    return torch.stack(rows, dim=1)


def undelay(x: Tensor) -> Tensor:
    """What :func:`delay` made of x, back again: [B,K,S] -> [B,K,T], or [B,K,S,V] -> [B,K,T,V]."""
    num_codebooks = x.shape[1]
    frames = x.shape[2] - num_codebooks + 1
    return torch.stack([x[:, k, k : k + frames] for k in range(num_codebooks)], dim=1)


class FoleyGen(VAB):
    """The decoder. ``ValueError`` for a model with experts or given codebooks: it has neither."""

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None = None) -> None:
        if config.num_expert_layers or config.num_conditioning_codebooks:
            raise SettingError("FoleyGen has no layers of experts and predicts all of its codebooks")
        super().__init__(config, codebook_vectors)

    def forward(
        self,
        tokens: Tensor,
        features: Tensor | None,
        *,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
        drop_features: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,K,T,V], each of its own token from those before it: all steps in one pass.

        Arguments as of ``VAB.forward``, but tokens are the truth, and without [MASK]. Padding of tokens
        comes last, where no other token sees it.
        """
        if features is None:
            features, feature_padding = self._no_features(tokens, token_padding)
        steps = delay(tokens, self.config.codebook_size)
        before = functional.pad(steps[:, :, :-1], (1, 0), value=self.config.codebook_size)
        logits = super().forward(
            before, features, feature_padding=feature_padding, drop_features=drop_features
        )
        return undelay(logits)

    def _bias(self, x: Tensor, video: int, padding: Tensor | None) -> Tensor:
        return _causal(super()._bias(x, video, padding))


class IncrementalDecoder:
    """The same decoder step by step, with a key-value cache: what :meth:`FoleyGen.forward` would say.

    Called with further steps, int64 [B,K,n], it gives the logits [B,K,V] of the one that follows. The first
    call gets the features [B,F,dim] and which clips go without them, bool [B]; later ones may repeat them,
    they count no more. The step before the first is all V. There is room for ``frames`` audio frames;
    ``ValueError`` beyond.
    """

    def __init__(self, network: FoleyGen, frames: int) -> None:
        self.network = network
        self.steps = frames + network.config.num_codebooks - 1
        self.done = 0  # places so far, video included
        self.caches: list[_Cache] = []
        self.bias: Tensor | None = None  # [1,H,L,L]

    @torch.no_grad()
    def __call__(self, steps: Tensor, features: Tensor, drop_features: Tensor | None = None) -> Tensor:
        network, config = self.network, self.network.config
        if self.bias is None:
            x, video = network._embed(steps, features, drop_features=drop_features)
            places = (config.num_heads, video, self.steps, config.positions, config.fps)
            self.bias = _causal(alibi_bias(*places, x.device, x.dtype))
            self.caches = [_Cache(video + self.steps) for _ in network.blocks]
        else:
            x, video = network._embed(steps, None)
        stop = self.done + x.shape[1]
        if stop > self.bias.shape[-1]:
            raise ValueError(f"there is room for {self.steps} steps, and no more")
        bias = self.bias[:, :, self.done : stop, :stop]
        for block, cache in zip(network.blocks, self.caches, strict=True):
            x = block(x, video, bias, cache)
        self.done = stop
        return network.logits(x[:, -1:])[:, :, 0]


class _Cache:
    """Keys and values of one attention, of all places so far; room for ``places``."""

    def __init__(self, places: int) -> None:
        self.places, self.done = places, 0
        self.kept: list[Tensor] = []  # keys and values [B,H,places,D/H]

    def __call__(self, *new: Tensor) -> tuple[Tensor, Tensor]:
        if not self.kept:
            self.kept = [x.new_empty(*x.shape[:2], self.places, x.shape[3]) for x in new]
        stop = self.done + new[0].shape[2]
        for kept, x in zip(self.kept, new, strict=True):
            kept[:, :, self.done : stop] = x
        self.done = stop
        keys, values = (kept[:, :, :stop] for kept in self.kept)
        return keys, values


def _causal(bias: Tensor) -> Tensor:
    """The bias [...,L,L] with minus infinity at places to come.

    A place sees itself even if it is padding, for attention to nothing at all would be no number.
    """
    later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
    bias = bias.masked_fill(later, -torch.inf)
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    return bias
