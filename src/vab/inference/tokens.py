"""The tokens of a sample: what is known of them before, their noise, and the waveform they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vab.codecs.codec import Codec, decode_long, encode_long
from vab.config import HOP_LENGTH, DecodeConfig
from vab.inference.splice import AudioSource
from vab.sampling.stages import FeaturesFn, Stage
from vab.timing.curve import TimingCurve
from vab.utils.progress import report_part

CONTEXT_FRAMES = 50  # audio frames encoded with a kept span, on either side


def known_tokens(
    codec: Codec, original: AudioSource, kept: Sequence[tuple[int, int]], tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """``tokens`` int64 [K,T], with those of the samples to keep put in; True in a bool [K,T] for these."""
    known = torch.zeros_like(tokens, dtype=torch.bool)
    for start, stop in kept:
        # Frames inside the span: rounded up at its start, down at its end.
        first = -(-start // HOP_LENGTH)
        last = stop // HOP_LENGTH
        if first < last:
            encoded = encode_long(codec, original, first, last, CONTEXT_FRAMES)
            tokens[:, first:last] = encoded[: len(tokens)]
            known[:, first:last] = True
    return tokens, known


def timing_channels(timing: TimingCurve | None, num_frames: int, device: torch.device) -> Tensor | None:
    """A curve as a stage takes it, [T,4] for ``num_frames``; nothing is known of what lies beyond its end."""
    if timing is None:
        return None
    channels = torch.from_numpy(timing.cut(0, num_frames).channels())
    return functional.pad(channels, (0, 0, 0, num_frames - len(channels))).to(device)


def coarse_candidates(
    stage: Stage,
    tokens: Tensor,
    known: Tensor,
    features: FeaturesFn,
    decode: DecodeConfig,
    generators: Sequence[torch.Generator],
    *,
    timing: Tensor | None,
    cuts: Sequence[int],
    progress: Callable[[int, int], None],
) -> Tensor:
    """Tokens [n,K1,T] of the first stage, one candidate for each generator."""
    num_codebooks = stage.preset.model.num_codebooks
    candidates = []
    for n, generator in enumerate(generators):
        part = partial(report_part, progress, n, len(generators))
        filled = stage.fill(
            tokens[:num_codebooks],
            known[:num_codebooks],
            features,
            decode,
            generator,
            timing=timing,
            cuts=cuts,
            progress=part,
        )
        candidates.append(filled)
    return torch.stack(candidates)


def noise(seed: int, number: int, candidate: int, stage: int = 0) -> torch.Generator:
    """The noise of one candidate of one sample, in the first stage or the second."""
    # The first candidate of the first stage is the sound without reranking: its parts are just these two.
    parts: tuple[int, ...] = (seed, number)
    if stage:
        parts = (seed, number, candidate, stage)
    elif candidate:
        parts = (seed, number, candidate)
    # 63 bits of the hash, for torch seeds are signed.
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def waveform_of(codec: Codec, tokens: Tensor, length: int) -> np.ndarray:
    """Waveform float32 [length] of tokens [K,T]."""
    # In pieces, each brought to the CPU at once: a long clip need not fit into the device's memory.
    waveform = np.zeros(length, dtype=np.float32)
    done = 0
    with torch.no_grad():
        for piece in decode_long(codec, tokens):
            # The last frame may reach past the end of the video: cut it.
            part = piece.float().cpu().numpy()[: length - done]
            waveform[done : done + len(part)] = part
            done += len(part)
    return waveform
