"""Autoregressive decoding, as FoleyGen does it (appendix E): the counterpart of ``parallel``.

Pure functions over ``step_fn``: it takes further steps of the delay pattern, int64 [B,K,n], and returns the
logits [B,K,V] of the one that follows. Randomness is one CPU generator per clip with the same guarantees as
there: equal logits give bit-equal tokens whatever the batch, the order, the padding and the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vab.config import DecodeConfig, levers
from vab.errors import SettingError
from vab.models.foleygen import delay, undelay
from vab.sampling.parallel import (
    DecodeError,
    Generators,
    LogitsFn,
    StepProgress,
    check_arguments,
    draw,
    in_windows,
)


@torch.no_grad()
def generate(
    step_fn: LogitsFn,
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: Generators,
    *,
    progress: StepProgress | None = None,
) -> Tensor:
    """Fill in every token that is not known, in S = T + K - 1 steps at most.

    ``tokens``, ``known`` and ``generators`` as for ``vab.sampling.parallel.generate``. A known token stays,
    and only later ones are conditioned on it. Tokens are sampled from the ``config.top_k`` likeliest of
    softmax(logits / temperature); a temperature of 0 takes the likeliest. ``config.num_steps`` does not
    count. All steps before the first token to generate go to ``step_fn`` at once, behind the start step,
    which is all V; none goes there after the last.

    Returns new tokens [B,K,T]. Raises ``DecodeError`` when logits are not finite, ``ValueError`` when the
    arguments do not fit each other.
    """
    check_arguments(tokens, known, codebook_size, config, generators)
    if levers(config):
        raise SettingError(f"step by step, decoding has no {', '.join(levers(config))}")

    # 1. Into the delay pattern: [B,K,T] -> [B,K,S], tokens and which of them to generate.
    steps = delay(tokens.masked_fill(~known, codebook_size), codebook_size)
    unknown = delay(~known, False)
    num_steps = steps.shape[2]
    active = unknown.any(1).any(0).nonzero()[:, 0].tolist()
    if not active:
        return tokens.clone()

    # 2. All noise in advance, [B,K,S]: it depends on a clip's own mask alone, not on those beside it.
    noise = torch.stack([_noise(clip, g) for clip, g in zip(unknown.cpu(), generators, strict=True)])
    noise = noise.to(tokens.device)

    # 3. The prompt in one call (the start step, all V, then what is known), then step by step.
    new = functional.pad(steps[:, :, : active[0]], (1, 0), value=codebook_size)
    for step in range(active[0], active[-1] + 1):
        logits = step_fn(new)
        if logits.shape[:2] != steps.shape[:2]:
            raise ValueError(f"logits {list(logits.shape)} do not start with {list(steps.shape[:2])}")
        mask = unknown[:, :, step]
        steps[:, :, step][mask] = _pick(logits, mask, noise[:, :, step], config, step)
        new = steps[:, :, step : step + 1].clone()
        if progress is not None:
            progress(step + 1, num_steps)
    if progress is not None:
        progress(num_steps, num_steps)

    # 4. Out of the delay pattern: [B,K,S] -> [B,K,T]
    return undelay(steps)


@torch.no_grad()
def generate_long(
    step_fn_for: Callable[[int, int], LogitsFn],
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: torch.Generator | Generators,
    *,
    window: int,
    overlap: int,
    cuts: Sequence[int] = (),
    progress: StepProgress | None = None,
) -> Tensor:
    """``generate`` for any length: each window continues from the tokens it shares with the last.

    Arguments and result as of ``vab.sampling.parallel.generate_long``; ``step_fn_for(start, stop)`` gives a
    fresh ``step_fn`` for these audio frames.
    """

    def fill(
        start: int, stop: int, tokens: Tensor, known: Tensor, noise: Generators, progress: StepProgress
    ) -> Tensor:
        step_fn = step_fn_for(start, stop)
        return generate(step_fn, tokens, known, codebook_size, config, noise, progress=progress)

    num_codebooks, num_frames = tokens.shape[-2:]
    num_steps = min(window, num_frames) + num_codebooks - 1  # S of one window
    return in_windows(
        fill,
        tokens,
        known,
        generators,
        num_steps,
        window=window,
        overlap=overlap,
        cuts=cuts,
        progress=progress,
    )


def _noise(unknown: Tensor, generator: torch.Generator) -> Tensor:
    """One uniform number for each unknown token of a clip, bool [K,S] -> [K,S], in the order of the steps."""
    # Boolean indexing runs over rows, so steps must be rows: [S,K].
    noise = torch.zeros(unknown.T.shape)
    noise[unknown.T] = torch.rand(int(unknown.sum()), generator=generator)
    return noise.T


def _pick(logits: Tensor, mask: Tensor, uniform: Tensor, config: DecodeConfig, step: int) -> Tensor:
    """Tokens [n] at the n positions of ``mask`` [B,K], from logits [B,K,V] and uniform noise [B,K]."""
    rows = logits[mask].float()
    if not rows.isfinite().all():
        clips = (mask & ~logits.isfinite().all(-1)).any(1).nonzero()[:, 0].tolist()
        raise DecodeError(f"clip {clips[0]} of the batch: logits are NaN or infinite at step {step + 1}")
    return draw(rows, uniform[mask], config)[0]
