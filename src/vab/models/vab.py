"""The network: masked audio tokens and image features in, logits of every audio token out (section 3.2).

The sequence is ``[video; audio]``. Self-attention is shared by both; in the first L1 layers each
modality has its own feed-forward network (an "expert"), above it is shared. Distances enter the
attention by symmetric ALiBi, so any length works. The network knows nothing of masking laws or sampling.

Shapes: B batch, K codebooks, T audio frames, F video frames, L = F + T, D width, V codebook size,
C codebook vector size, H heads. A token id of V is [MASK].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vab.config import FRAME_RATE, ModelConfig, video_frames
from vab.errors import SettingError
from vab.models.linear import Kept, Linear

INIT_STD = 0.02  # of every weight matrix and learned vector
TIMING_CHANNELS = 4  # of a timing curve: onset, level, and of each whether it is known
TIMING_KERNEL = 9  # audio frames that the adapter of a timing curve sees at once
TIMING_WIDTH = 64  # of its hidden layer

KVCache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys, values -> all so far, these included


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope per head: 2^(-8h/H) for H a power of two.

    Else the slopes of the next lower power of two, then every second one of the next higher.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * h / lower) for h in range(1, lower + 1)]
    between = [2.0 ** (-4 * h / lower) for h in range(1, 2 * lower + 1, 2)]
    return slopes + between[: num_heads - lower]


@lru_cache(maxsize=4)
def alibi_bias(
    config: ModelConfig, num_video: int, num_audio: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The attention bias of ALiBi, minus slope times distance: [1,H,L,L]. The last few are cached.

    ``config.positions`` says what a distance is. ``sequence`` counts positions in ``[video; audio]`` (the
    paper). ``time`` measures on one clock in audio frames: video frame i sits in the middle of its share of
    time, at ``(i + 0.5) / fps`` seconds.
    """
    # The result outlives this call, and training may use it next: it must not be an inference tensor.
    with torch.inference_mode(False), torch.no_grad():
        if config.positions == "sequence":
            position = torch.arange(num_video + num_audio, device=device, dtype=torch.float32)
        else:
            # An audio frame covers [t, t + 1) too, so its own middle, 0.5, is taken off the video's.
            frames = torch.arange(num_video, device=device, dtype=torch.float32)
            video_position = (frames + 0.5) * FRAME_RATE / config.fps - 0.5
            audio_position = torch.arange(num_audio, device=device, dtype=torch.float32)
            position = torch.cat([video_position, audio_position])
        return _distance_bias(position[None], config.num_heads).to(dtype)


def _distance_bias(position: Tensor, num_heads: int) -> Tensor:
    """Positions [B,L] -> bias [B,H,L,L]."""
    slopes = torch.tensor(alibi_slopes(num_heads), device=position.device)
    # [B,L,1] - [B,1,L] -> [B,L,L], then times one slope per head
    distance = (position[:, :, None] - position[:, None, :]).abs()
    return distance[:, None] * -slopes[:, None, None]


def aligned(bias: Tensor) -> Tensor:
    """The same bias [...,L,L], its rows at multiples of 8 numbers in memory.

    The memory-efficient kernel on a GPU needs that. Else torch makes such a copy in each layer, and keeps it
    for the backward pass.
    """
    length = bias.shape[-1]
    return bias if length % 8 == 0 else functional.pad(bias, (0, -length % 8))[..., :length]


def lengthened(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x [B,L,D] and its bias [1 or B,H,L,L] with places at the end that no other place sees: L % 32 == 0.

    Attention in bfloat16 works on tiles of 32 on a CPU with AMX, and without it likes even lengths too.
    """
    length = x.shape[1]
    extra = -length % 32
    if not extra:
        return x, bias
    longer = functional.pad(bias, (0, extra, 0, extra))
    longer[..., length:] = -torch.inf
    return functional.pad(x, (0, 0, 0, extra)), longer


class Attention(nn.Module):
    """Multi-head self-attention with its norm before it; shared by both modalities."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(hidden_dim)
        self.qkv = Linear(hidden_dim, 3 * hidden_dim)
        self.out = Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor, bias: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """x [B,L,D], bias [1 or B,H,L,L] -> [B,L,D].

        ``kv_cache`` takes keys and values [B,H,L,D/H] and gives those of all positions to attend to, in the
        dtype to attend in; then the bias, of that dtype too, is that of the L positions to all of these.
        """
        # [B,L,3D] -> [B,L,3,H,D/H] -> three of [B,H,L,D/H]
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if kv_cache is not None:
            key, value = kv_cache(key, value)
            query = query.to(key.dtype)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        # [B,H,L,D/H] -> [B,L,H,D/H] -> [B,L,D]
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.out(mixed if kv_cache is None else mixed.to(x.dtype))


class FeedForward(nn.Module):
    """Norm, four times wider, GELU, back."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.up = Linear(hidden_dim, 4 * hidden_dim)
        self.out = Linear(4 * hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,D] -> [B,N,D]."""
        return self.out(self.up.gelu(self.norm(x)))


class Experts(nn.Module):
    """One feed-forward network per modality: the first F positions are video (VLMo's pattern)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.video = FeedForward(hidden_dim)
        self.audio = FeedForward(hidden_dim)

    def forward(self, x: Tensor, num_video: int) -> Tensor:
        """x [B,L,D], of which the first ``num_video`` positions are video -> [B,L,D]."""
        # With one modality alone the other expert is not run at all.
        if num_video == 0:
            return self.audio(x)
        if num_video == x.shape[1]:
            return self.video(x)
        return torch.cat([self.video(x[:, :num_video]), self.audio(x[:, num_video:])], dim=1)


class Block(nn.Module):
    """A pre-norm layer: shared attention, then experts or one shared feed-forward network."""

    def __init__(self, config: ModelConfig, experts: bool) -> None:
        super().__init__()
        self.attention = Attention(config.hidden_dim, config.num_heads)
        self.feed_forward = Experts(config.hidden_dim) if experts else FeedForward(config.hidden_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, num_video: int, bias: Tensor, kv_cache: KVCache | None = None) -> Tensor:
        """x [B,L,D] -> [B,L,D]; the first ``num_video`` positions are video.

        ``bias`` and ``kv_cache`` are those of :class:`Attention`.
        """
        x = x + self.dropout(self.attention(x, bias, kv_cache))
        net = self.feed_forward
        return x + self.dropout(net(x, num_video) if isinstance(net, Experts) else net(x))


class AudioEmbedding(nn.Module):
    """Tokens [B,K,T] -> [B,T,D], from the codec's own codebook vectors and one learned [MASK] per codebook.

    EnCodec's residual codebooks share one space: the vectors are summed, then projected. Those of DAC are
    8-d and each has its own space: each is projected on its own and then summed, which is one
    projection of all of them concatenated. So are those of the small codec: in a sum, a fine code could
    hardly be distinguished from another. ``config.code_projection`` says otherwise.
    """

    vectors: Tensor  # [K,V,C], frozen

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None) -> None:
        super().__init__()
        shape = (config.num_codebooks, config.codebook_size, config.codebook_dim)
        vectors = torch.randn(shape) if codebook_vectors is None else codebook_vectors[: config.num_codebooks]
        if vectors.shape != shape:
            raise SettingError(
                f"codebook vectors are {tuple(vectors.shape)}, the model needs [K,V,C] = {shape}"
            )
        self.concatenate = not config.sums_codes
        self.register_buffer("vectors", vectors.detach().clone().float())
        self.mask = nn.Parameter(torch.zeros(config.num_codebooks, config.codebook_dim))
        inputs = config.codebook_dim * (config.num_codebooks if self.concatenate else 1)
        self.projection = Linear(inputs, config.hidden_dim)
        self._tables = Kept()

    def forward(self, tokens: Tensor) -> Tensor:
        # Made once where [MASK] does not learn: FoleyGen comes here for every single step. Where it learns,
        # not even in a validation: its values there may be those of averaged weights, put in its place.
        make = _tables if self.mask.requires_grad else partial(self._tables, _tables)
        tables = make(self.vectors, self.mask)
        # One look-up per codebook: an id out of range is an error, not a row of the next codebook.
        vectors = [functional.embedding(tokens[:, k], table) for k, table in enumerate(tables)]
        # K of [B,T,C] -> [B,T,K*C] or their sum [B,T,C] -> [B,T,D]
        if self.concatenate:
            return self.projection(torch.cat(vectors, dim=-1))
        return self.projection(torch.stack(vectors).sum(0))


def _tables(vectors: Tensor, mask: Tensor) -> Tensor:
    """Vectors to look tokens up in; [MASK] is row V of each: [K,V,C] and [K,C] -> [K,V+1,C]."""
    return torch.cat([vectors.to(mask.dtype), mask[:, None]], dim=1)


class Trunk(nn.Module):
    """The embeddings and the first L1 layers: the part of VAB that understands (sections 3.4, 3.5).

    ``codebook_vectors`` [K,V,C] are the codec's (more than K codebooks: the first K are taken). Without
    them the frozen table is random, to be filled by ``load_state_dict``. ``ValueError`` if the shape is
    wrong or ``num_heads`` does not divide ``hidden_dim``.
    """

    feature_mean: Tensor  # [vision_dim] over the training features, frozen
    feature_std: Tensor

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None = None) -> None:
        super().__init__()
        if config.hidden_dim % config.num_heads:
            raise SettingError(
                f"hidden_dim {config.hidden_dim} is not a multiple of {config.num_heads} heads"
            )
        self.config = config
        self.checkpoint_activations = False  # computed again in the backward pass, instead of kept
        self.audio_embedding = AudioEmbedding(config, codebook_vectors)
        self.register_buffer("feature_mean", torch.zeros(config.vision_dim))
        self.register_buffer("feature_std", torch.ones(config.vision_dim))
        self.video_projection = Linear(config.vision_dim, config.hidden_dim)
        self.modality = nn.Parameter(torch.zeros(2, config.hidden_dim))  # video, audio
        self.blocks = nn.ModuleList(Block(config, config.experts) for _ in range(config.num_expert_layers))
        initialise(self)

    def encode(
        self,
        tokens: Tensor | None,
        features: Tensor | None,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
    ) -> Tensor:
        """Audio, video or both through the first L1 layers (sections 3.4, 3.5): [B,L',D].

        Unlike in ``VAB.forward``, ``None`` means that the modality is absent: it takes no positions.
        ``ValueError`` if both are absent, or if the model has no such layers (L1 = 0).
        """
        if not self.config.num_expert_layers:
            raise SettingError("this model has no layers that give embeddings")
        # The layers above these belong to generation.
        x, num_video = self._embed(tokens, features, feature_padding)
        bias = self._bias(x, num_video, _join_padding(x, num_video, token_padding, feature_padding))
        return self._layers(self.blocks[: self.config.num_expert_layers], x, num_video, bias)

    def pooled(
        self,
        tokens: Tensor | None,
        features: Tensor | None,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
    ) -> Tensor:
        """The mean [B,D] of :meth:`encode` over the positions that are no padding."""
        x = self.encode(tokens, features, token_padding, feature_padding)
        num_video = 0 if features is None else features.shape[1]
        padding = _join_padding(x, num_video, token_padding, feature_padding)
        if padding is None:
            return x.mean(1)
        # At least one, so that a clip of padding alone does not divide by zero.
        valid = ~padding[:, :, None]
        return (x * valid).sum(1) / valid.sum(1).clamp(min=1)

    def _embed(
        self,
        tokens: Tensor | None,
        features: Tensor | None,
        feature_padding: Tensor | None = None,
        drop_features: Tensor | None = None,
        timing: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """The sequence ``[video; audio]`` [B,L,D] and F, the number of its positions that are video.

        ``timing`` [B,T,D], what an adapter makes of a timing curve, is added to the audio.
        """
        config = self.config
        parts = []
        num_video = 0
        if features is not None:
            if features.ndim != 3 or features.shape[-1] != config.vision_dim:
                raise ValueError(
                    f"features are {tuple(features.shape)}, the model needs [B,F,{config.vision_dim}]"
                )
            absent = (features == 0).all(-1)
            if feature_padding is not None:
                absent = absent | feature_padding
            if drop_features is not None:
                absent = absent | drop_features[:, None]
            num_video = features.shape[1]
            # Standardise, then blank what is absent: zero is the mean of the training features.
            features = (features.to(self.feature_mean.dtype) - self.feature_mean) / self.feature_std
            features = features.masked_fill(absent[:, :, None], 0.0).to(self.video_projection.weight.dtype)
            parts.append(self.video_projection(features) + self.modality[0])
        if tokens is not None:
            if tokens.ndim != 3 or tokens.shape[1] != config.num_codebooks:
                raise ValueError(
                    f"tokens are {tuple(tokens.shape)}, the model needs [B,{config.num_codebooks},T]"
                )
            audio = self.audio_embedding(tokens) + self.modality[1]
            parts.append(audio if timing is None else audio + timing)
        if not parts:
            raise ValueError("neither tokens nor features are given")
        return torch.cat(parts, dim=1) if len(parts) == 2 else parts[0], num_video

    def _layers(self, blocks: Iterable[nn.Module], x: Tensor, num_video: int, bias: Tensor) -> Tensor:
        """x [B,L,D] through these layers."""
        length = x.shape[1]
        if not bias.is_cpu:
            bias = aligned(bias)
        elif x.dtype == torch.bfloat16 and not torch.is_grad_enabled():
            x, bias = lengthened(x, bias)
        for block in blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, num_video, bias, use_reentrant=False)
            else:
                x = block(x, num_video, bias)
        return x[:, :length]

    def _bias(self, x: Tensor, num_video: int, padding: Tensor | None) -> Tensor:
        """ALiBi and, at padded keys, minus infinity: [1 or B,H,L,L] in the dtype attention runs in."""
        config = self.config
        device_type = x.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else x.dtype
        bias = alibi_bias(config, num_video, x.shape[1] - num_video, x.device, dtype)
        if padding is None:
            return bias
        if config.positions == "sequence":
            # Padding between video and audio must not count, or it would move the audio away.
            position = (~padding).cumsum(1).float() - 1
            bias = _distance_bias(position, config.num_heads).to(dtype)
        # [B,L] -> [B,1,1,L]: no query attends to a padded key
        return bias.masked_fill(padding[:, None, None, :], -torch.inf)


class TimingAdapter(nn.Module):
    """A timing curve [B,T,4] (``vab.timing``) -> [B,T,D], to be added to the embedded audio.

    Two convolutions, the first over 180 ms. Frames whose onset and level are both unknown get exactly
    nothing, and so do all frames of an adapter that has learned nothing yet.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(TIMING_CHANNELS, TIMING_WIDTH, TIMING_KERNEL, padding=TIMING_KERNEL // 2)
        self.out = nn.Conv1d(TIMING_WIDTH, config.hidden_dim, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, timing: Tensor) -> Tensor:
        """[B,T,4] -> [B,T,D]."""
        known = (timing[:, :, TIMING_CHANNELS // 2 :] != 0).any(-1, keepdim=True)  # [B,T,1]
        # [B,T,4] -> [B,4,T] -> [B,D,T] -> [B,T,D]
        hidden = functional.gelu(self.conv(timing.to(self.conv.weight.dtype).transpose(1, 2)))
        return self.out(hidden).transpose(1, 2) * known


class VAB(Trunk):
    """Vision to Audio and Beyond (section 3.2): the trunk, the layers above, a head per codebook.

    With ``config.timing`` also an adapter for a timing curve, which the paper does not have.
    """

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None = None) -> None:
        super().__init__(config, codebook_vectors)
        above = config.num_layers - config.num_expert_layers
        self.blocks.extend(Block(config, experts=False) for _ in range(above))
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.heads = Linear(config.hidden_dim, config.num_predicted_codebooks * config.codebook_size)
        initialise(self)
        self.timing = TimingAdapter(config) if config.timing else None

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
        """Logits [B,Kp,T,V] of the Kp predicted codebooks, at masked and unmasked positions alike.

        tokens [B,K,T] (V = [MASK]); features [B,F,vision_dim]; paddings bool [B,T] and [B,F], True at padded
        positions; drop_features bool [B], True for clips that are to be unconditional. Unconditional is
        zeros in place of the standardised features, and a feature vector of zeros alone counts as absent;
        ``features=None`` is so for all clips, with the F that T asks for. timing [B,T,4]: the timing curve as
        ``TimingCurve.channels`` has it; zeros, or None, where nothing is known.
        ``ValueError`` if a shape does not fit the model, ``SettingError`` for a curve that it does not take.
        """
        added = self._timing(tokens, timing)
        if features is None:
            features, feature_padding = self._no_features(tokens, token_padding)
        # 1. Embed both modalities: [B,K,T] and [B,F,vision_dim] -> [B,L,D]
        x, num_video = self._embed(tokens, features, feature_padding, drop_features, added)

        # 2. All layers; one bias serves every one of them.
        bias = self._bias(x, num_video, _join_padding(x, num_video, token_padding, feature_padding))
        x = self._layers(self.blocks, x, num_video, bias)

        # 3. Logits at the audio positions alone: video is never predicted.
        return self.logits(x[:, num_video:])

    def _timing(self, tokens: Tensor, timing: Tensor | None) -> Tensor | None:
        """What the adapter makes of a curve [B,T,4]: [B,T,D]; nothing without one."""
        if self.timing is None:
            if timing is not None:
                raise SettingError("this model takes no timing curve: it was trained without (model.timing)")
            return None
        if timing is None:
            # So that the adapter has a gradient in every process and every step, which DDP waits for.
            return self.timing(tokens.new_zeros(1, 1, TIMING_CHANNELS)) if self.training else None
        wanted = (tokens.shape[0], tokens.shape[2], TIMING_CHANNELS)
        if timing.shape != wanted:
            raise ValueError(f"the timing curve is {tuple(timing.shape)}, the tokens need {wanted}")
        return self.timing(timing)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B,Kp,T,V] of the top layer's output [B,T,D] at the audio positions."""
        logits = self.heads(self.norm(x))
        # [B,T,Kp*V] -> [B,T,Kp,V] -> [B,Kp,T,V]
        return logits.unflatten(-1, (self.config.num_predicted_codebooks, -1)).transpose(1, 2)

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of learned parameters; ``parameters`` leaves out the prediction heads, as the paper does.

        ``expert_parameters`` are those of the trunk, which embeds a clip: embeddings and first L1 layers.
        """
        heads = _size(self.heads.parameters())
        total = _size(self.parameters())
        # The adapter of a timing curve is no part of the trunk: only generation is told one.
        above = [*self.norm.parameters(), *(self.timing.parameters() if self.timing is not None else ())]
        embeddings = total - heads - _size(self.blocks.parameters()) - _size(iter(above))
        first = self.blocks[: self.config.num_expert_layers]
        return {
            "parameters": total - heads,
            "expert_parameters": embeddings + _size(first.parameters()),
            "head_parameters": heads,
            "total_parameters": total,
        }

    def _no_features(self, tokens: Tensor, token_padding: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Zeros [B,F,vision_dim] for the F of T, and padding that leaves each clip its own F."""
        batch, _, num_audio = tokens.shape
        config = self.config
        num_video = video_frames(num_audio / FRAME_RATE, config.fps)
        zeros = torch.zeros(batch, num_video, config.vision_dim, device=tokens.device)
        if token_padding is None:
            return zeros, None
        # A clip with fewer valid tokens has fewer video frames: [B], then padding [B,F].
        valid = [video_frames(n / FRAME_RATE, config.fps) for n in (~token_padding).sum(1).tolist()]
        num_valid = torch.tensor(valid, device=tokens.device)
        return zeros, torch.arange(num_video, device=tokens.device) >= num_valid[:, None]


def initialise(network: nn.Module) -> None:
    """Truncated normal; branches into the residual stream start smaller the deeper the network (GPT-2)."""
    num_layers = sum(isinstance(module, Block) for module in network.modules())
    residual = INIT_STD / math.sqrt(2 * max(1, num_layers))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" not in name:
            std = residual if name.endswith("out.weight") else INIT_STD
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


def _join_padding(
    x: Tensor, num_video: int, token_padding: Tensor | None, feature_padding: Tensor | None
) -> Tensor | None:
    """Padding [B,L] of ``[video; audio]``, or None where neither has any."""
    if token_padding is None and feature_padding is None:
        return None
    padding = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    if feature_padding is not None:
        padding[:, :num_video] = feature_padding
    if token_padding is not None:
        padding[:, num_video:] = token_padding
    return padding


def _size(parameters: Iterator[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """:meth:`VAB.parameter_counts` of a model that is never built: it costs neither memory nor time."""
    with torch.device("meta"):
        return VAB(config).parameter_counts()
