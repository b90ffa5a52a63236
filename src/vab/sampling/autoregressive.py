"""Decoding one step after another, as FoleyGen does (appendix E): the counterpart of ``parallel``.

Pure functions over ``step_fn``: it is told further steps of the delay pattern, int64 [B,K,n], and gives the
logits [B,K,V] of the one that follows. Randomness is one CPU generator per clip with the same guarantees as
there: equal logits give bit-equal tokens whatever the batch, the order, the padding and the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vab.config import DecodeConfig
from vab.models.foleygen import delay, undelay
from vab.sampling.parallel import DecodeError, LogitsFn, Progress, check_arguments, draw, in_windows


@torch.no_grad()
def generate(
    step_fn: LogitsFn,
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: Sequence[torch.Generator],
    progress: Progress | None = None,
) -> Tensor:
    """Fill in every token that is not given, in S = T + K - 1 steps at most.

    ``tokens``, ``known`` and ``generators`` as for ``vab.sampling.parallel.generate``. A given token stays,
    and is known to those after it alone. Sampled is from the ``config.top_k`` likeliest of softmax(logits /
    temperature); a temperature of 0 takes the likeliest. ``config.steps`` does not count. All that is given
    before the first token to generate goes to ``step_fn`` at once, behind the step before the first, which
    is all V; nothing does after the last.

    Returns new tokens [B,K,T]. Raises ``DecodeError`` when logits are not finite, ``ValueError`` when the
    arguments do not fit each other.
    """
    check_arguments(tokens, known, codebook_size, config, generators)
    line = delay(tokens.masked_fill(~known, codebook_size), codebook_size)
    wanted = delay(~known, False)
    busy = wanted.any(1).any(0).nonzero()[:, 0].tolist()
    if not busy:
        return tokens.clone()
    noise = torch.stack([_noise(w, g) for w, g in zip(wanted.cpu(), generators, strict=True)])
    noise = noise.to(tokens.device)
    new = functional.pad(line[:, :, : busy[0]], (1, 0), value=codebook_size)
    for step in range(busy[0], busy[-1] + 1):
        logits = step_fn(new)
        if logits.shape[:2] != line.shape[:2]:
            raise ValueError(f"logits {list(logits.shape)} do not start with {list(line.shape[:2])}")
        here = wanted[:, :, step]
        line[:, :, step][here] = _pick(logits, here, noise[:, :, step], config, step)
        new = line[:, :, step : step + 1].clone()
        if progress is not None:
            progress(step + 1, line.shape[2])
    if progress is not None:
        progress(line.shape[2], line.shape[2])
    return undelay(line)


@torch.no_grad()
def generate_long(
    step_fn_for: Callable[[int, int], LogitsFn],
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: torch.Generator | Sequence[torch.Generator],
    window: int,
    overlap: int,
    progress: Progress | None = None,
) -> Tensor:
    """``generate`` for any length: each window continues from the tokens it shares with the last.

    Arguments and result as of ``vab.sampling.parallel.generate_long``; ``step_fn_for(start, stop)`` gives a
    fresh ``step_fn`` for these audio frames.
    """
    if isinstance(generators, torch.Generator):
        one = (codebook_size, config, [generators], window, overlap, progress)
        return generate_long(step_fn_for, tokens[None], known[None], *one)[0]

    def fill(start: int, stop: int, tokens: Tensor, known: Tensor, report: Progress) -> Tensor:
        return generate(step_fn_for(start, stop), tokens, known, codebook_size, config, generators, report)

    steps = min(window, tokens.shape[2]) + tokens.shape[1] - 1
    return in_windows(fill, tokens, known, steps, window, overlap, progress)


def _noise(wanted: Tensor, generator: torch.Generator) -> Tensor:
    """One uniform number for each wanted token of a clip, bool [K,S] -> [K,S], in the order of the steps."""
    noise = torch.zeros(wanted.T.shape)
    noise[wanted.T] = torch.rand(int(wanted.sum()), generator=generator)
    return noise.T


def _pick(logits: Tensor, here: Tensor, uniform: Tensor, config: DecodeConfig, step: int) -> Tensor:
    """Tokens [n] for the n places of ``here`` [B,K], from logits [B,K,V] and uniform noise [B,K]."""
    rows = logits[here].float()
    if not rows.isfinite().all():
        clips = (here & ~logits.isfinite().all(-1)).any(1).nonzero()[:, 0].tolist()
        raise DecodeError(f"clip {clips[0]} of the batch: logits are NaN or infinite at step {step + 1}")
    return draw(rows, uniform[here], config)[0]
