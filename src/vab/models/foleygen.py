"""FoleyGen as the paper rebuilt it (appendix E): a decoder over delayed audio tokens, with a video prefix.

The sequence is ``[video; steps]``. A step holds one token of each codebook, codebook k being k frames
late (MusicGen's delay pattern), so that a codebook is predicted from the coarser ones of its own frame and
from all of the frames before. Attention is causal: a position sees itself and those before it.

Layers, embeddings and heads are those of VAB without experts; the [MASK] of a codebook, id V, stands where
the pattern has no token, and for the step before the first. Shapes: B batch, K codebooks, T audio frames,
S = T + K - 1 steps, F video frames, L = F + S, D width, V codebook size, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vab.config import ModelConfig, Preset
from vab.errors import SettingError
from vab.models.vab import VAB, alibi_bias


def delay(x: Tensor, fill: int | bool) -> Tensor:
    """x [B,K,T] -> [B,K,S]: row k begins k steps late. ``fill`` pads the corners left free."""
    num_codebooks = x.shape[1]
    rows = [functional.pad(x[:, k], (k, num_codebooks - 1 - k), value=fill) for k in range(num_codebooks)]
    return torch.stack(rows, dim=1)


def undelay(x: Tensor) -> Tensor:
    """The inverse of :func:`delay`: [B,K,S] -> [B,K,T], or logits [B,K,S,V] -> [B,K,T,V]."""
    num_codebooks = x.shape[1]
    num_frames = x.shape[2] - num_codebooks + 1
    return torch.stack([x[:, k, k : k + num_frames] for k in range(num_codebooks)], dim=1)


class FoleyGen(VAB):
    """The causal decoder. ``SettingError`` for a config with experts, conditioning codebooks or timing."""

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None = None) -> None:
        if config.num_expert_layers or config.num_conditioning_codebooks:
            raise SettingError("FoleyGen has no layers of experts and predicts all of its codebooks")
        if config.timing:
            raise SettingError("FoleyGen takes no timing curve: model.timing is for VAB")
        super().__init__(config, codebook_vectors)

    def forward(
        self,
        tokens: Tensor,
        features: Tensor | None,
        *,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
        drop_features: Tensor | None = None,
        timing: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,K,T,V], each of its own token from those before it: teacher forcing, in one pass.

        Arguments as of ``VAB.forward``, but tokens are the targets, and without [MASK]. Padding of tokens
        comes last, where no other token sees it. A timing curve is refused.
        """
        self._timing(tokens, timing)
        if features is None:
            features, feature_padding = self._no_features(tokens, token_padding)
        # [B,K,T] -> [B,K,S], shifted by one step: step s is predicted from the steps before it
        steps = delay(tokens, self.config.codebook_size)
        previous = functional.pad(steps[:, :, :-1], (1, 0), value=self.config.codebook_size)
        logits = super().forward(
            previous, features, feature_padding=feature_padding, drop_features=drop_features
        )
        # [B,K,S,V] -> [B,K,T,V]
        return undelay(logits)

    def _bias(self, x: Tensor, num_video: int, padding: Tensor | None) -> Tensor:
        return _causal(super()._bias(x, num_video, padding))


def build_network(preset: Preset, codebook_vectors: Tensor | None = None) -> VAB:
    """The network of a preset that makes tokens: FoleyGen for the causal objective, else VAB."""
    network = FoleyGen if preset.train.objective == "causal" else VAB
    return network(preset.model, codebook_vectors)


class IncrementalDecoder:
    """The same decoder step by step, with a key-value cache: the logits of :meth:`FoleyGen.forward`.

    Called with further steps, int64 [B,K,n], it gives the logits [B,K,V] of the one that follows. The first
    call gets the features [B,F,dim] and which clips go without them, bool [B]; later ones may repeat them,
    they are ignored. The step before the first is all V. There is room for ``num_frames`` audio frames;
    ``ValueError`` beyond.
    """

    def __init__(self, network: FoleyGen, num_frames: int) -> None:
        self.network = network
        self.num_steps = num_frames + network.config.num_codebooks - 1
        self.done = 0  # positions so far, video included
        self.caches: list[_Cache] = []
        self.bias: Tensor | None = None  # [1,H,L,L]

    @torch.no_grad()
    def __call__(self, steps: Tensor, features: Tensor, drop_features: Tensor | None = None) -> Tensor:
        network, config = self.network, self.network.config
        # 1. Embed: the first call brings the video prefix, later ones new steps alone.
        if self.bias is None:
            x, num_video = network._embed(steps, features, drop_features=drop_features)
            # A CPU attends from one position three times faster in float32 than in bfloat16.
            dtype = torch.float32 if x.is_cpu else x.dtype
            self.bias = _causal(alibi_bias(config, num_video, self.num_steps, x.device, dtype))
            self.caches = [_Cache(num_video + self.num_steps, dtype) for _ in network.blocks]
        else:
            x, num_video = network._embed(steps, None)

        # 2. The bias of the new positions to all so far: rows and columns cut from the whole, [1,H,n,stop].
        stop = self.done + x.shape[1]
        if stop > self.bias.shape[-1]:
            raise ValueError(f"there is room for {self.num_steps} steps, and no more")
        bias = self.bias[:, :, self.done : stop, :stop]

        # 3. Through the layers; only the last position predicts something new: [B,1,D] -> [B,K,V].
        for block, cache in zip(network.blocks, self.caches, strict=True):
            x = block(x, num_video, bias, cache)
        self.done = stop
        return network.logits(x[:, -1:])[:, :, 0]


class _Cache:
    """Keys and values of one attention layer at all positions so far; room for ``num_positions``."""

    def __init__(self, num_positions: int, dtype: torch.dtype) -> None:
        self.num_positions = num_positions
        self.dtype = dtype
        self.done = 0  # positions so far
        self.buffers: tuple[Tensor, Tensor] | None = None  # keys and values [B,H,num_positions,D/H]

    def __call__(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        # Memory for all positions at once: growing by concatenation would copy the cache at every step.
        if self.buffers is None:
            batch, num_heads, _, size = keys.shape
            shape = (batch, num_heads, self.num_positions, size)
            self.buffers = keys.new_empty(shape, dtype=self.dtype), values.new_empty(shape, dtype=self.dtype)
        all_keys, all_values = self.buffers
        start, stop = self.done, self.done + keys.shape[2]
        all_keys[:, :, start:stop] = keys
        all_values[:, :, start:stop] = values
        self.done = stop
        return all_keys[:, :, :stop], all_values[:, :, :stop]


def _causal(bias: Tensor) -> Tensor:
    """The bias [...,L,L] with minus infinity at later positions.

    A position sees itself even if it is padding, for softmax over nothing at all is NaN.
    """
    later = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).triu(1)
    bias = bias.masked_fill(later, -torch.inf)
    bias.diagonal(dim1=-2, dim2=-1).zero_()
    return bias
