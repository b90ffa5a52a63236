"""Decoded clips -> latents, in batches of one size (section 3.1). Needs no video library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vab.codecs.codec import Codec
from vab.codecs.tiny import TinyCodec
from vab.data.manifest import Clip
from vab.data.shard import Latents, StoreMeta
from vab.timing.sound import stored_curve
from vab.utils.device import tf32
from vab.utils.provenance import sha256
from vab.vision import VisionEncoder

Fill = Literal["zero", "repeat"]


@dataclass(frozen=True)
class Decoded:
    """One clip's decoded streams."""

    clip: Clip
    waveform: NDArray[np.float32] | None  # [S]
    frames: list[Tensor]  # each uint8 [3, size, size], as the image encoder sees it; none without video
    frame_indices: list[int]  # [F]: index into ``frames`` for each feature position of the window
    real_tokens: int = 0  # number of the window's T audio frames that are not padding
    real_features: int = 0  # and of its F features


def latents_meta(
    codec: Codec,
    vision: VisionEncoder | StoreMeta,
    seconds: float,
    fps: float,
    fill: Fill = "zero",
    timing: bool = False,
) -> StoreMeta:
    """Settings of a store with latents of these two encoders for windows of ``seconds``; no fingerprints.

    The settings of a store stand for its image encoder. ``timing``: with the curve of each sound.
    """
    num_codebooks, codebook_size, dim = codec.codebook_vectors().shape
    name, vision_dim = (
        (vision.vision, vision.vision_dim) if isinstance(vision, StoreMeta) else (vision.name, vision.dim)
    )
    return StoreMeta(
        codec=codec.name,
        vision=name,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        codebook_dim=dim,
        vision_dim=vision_dim,
        seconds=float(seconds),
        fps=float(fps),
        fill=fill,
        precision=vision.precision,
        timing=timing,
    )


@torch.no_grad()
def encode(
    batch: list[Decoded],
    codec: Codec,
    vision: VisionEncoder | None,
    meta: StoreMeta,
    device: str | torch.device,
    batch_clips: int | None = None,
    batch_frames: int | None = None,
) -> list[Latents]:
    """Encode decoded clips, in their order; without an image encoder only their sound.

    With ``batch_clips`` and ``batch_frames`` every pass of the codec has so many clips and every pass of the
    image encoder so many frames, filled up with copies: kernels are chosen by the size of a batch, so a
    clip's bits then depend neither on how many clips there are nor on the others.
    """
    # Audio: only of the clips that have it, [n, S] -> [n, K, T]
    num_frames = meta.token_shape[1]
    waveforms = [item.waveform for item in batch if item.waveform is not None]
    tokens: Iterator[NDArray[np.uint16]] = iter(())
    if waveforms:
        with tf32(False):
            codes = _tokens(codec, torch.from_numpy(np.stack(waveforms)), device, batch_clips)
        tokens = iter(codes[:, :, :num_frames].cpu().numpy().astype(np.uint16))

    # Video: the frames of all clips as one stream, [sum of their numbers, dim], cut again at ``ends``.
    features = np.zeros((0, meta.vision_dim), np.float16)
    if vision is not None and any(item.frames for item in batch):
        stream = chain.from_iterable(item.frames for item in batch)
        with tf32(False):  # the encoder turns it on if that is its precision
            features = vision.encode_crops(stream, batch_frames).cpu().numpy().astype(np.float16)
    ends = np.cumsum([len(item.frames) for item in batch])
    return [
        Latents(
            item.clip.id,
            item.clip.label,
            item.clip.split,
            next(tokens) if item.waveform is not None else None,
            features[end - len(item.frames) : end][item.frame_indices] if item.frames else None,
            item.real_tokens,
            item.real_features,
            _timing(item, num_frames) if meta.timing else None,
        )
        for item, end in zip(batch, ends, strict=True)
    ]


def _timing(item: Decoded, num_frames: int) -> NDArray[np.float16] | None:
    """The timing curve [T, 2] of a clip's sound as it is stored; None without sound."""
    if item.waveform is None:
        return None
    return stored_curve(item.waveform)[:num_frames].astype(np.float16)


def _tokens(codec: Codec, waveforms: Tensor, device: str | torch.device, batch_clips: int | None) -> Tensor:
    """Tokens [n, K, T] of waveforms [n, S], in passes of ``batch_clips``."""
    size = batch_clips or len(waveforms)
    codes = []
    for part in waveforms.split(size):
        # Filled up with copies of the last one: [size, S]
        full = part[torch.arange(size).clamp(max=len(part) - 1)]
        if torch.device(device).type == "cuda":
            full = full.pin_memory()
        codes.append(codec.encode(full.to(device, non_blocking=True))[: len(part)])
    return torch.cat(codes)


def weights_fingerprint(encoder: Codec | VisionEncoder) -> str:
    """Hash of the weights that latents depend on: all of them, or for the small codec those of its codes."""
    if isinstance(encoder, TinyCodec):
        state = encoder.code_weights()
    else:
        # An encoder is a module, or a plain object that holds some.
        modules = [encoder] if isinstance(encoder, nn.Module) else vars(encoder).values()
        state = {
            f"{n}.{name}": tensor
            for n, module in enumerate(modules)
            if isinstance(module, nn.Module)
            for name, tensor in module.state_dict().items()
        }
    content = (
        tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for tensor in state.values()
    )
    return sha256(encoder.name, *(part for pair in zip(state, content, strict=True) for part in pair))
