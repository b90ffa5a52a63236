"""Masks of training: the law of the masking ratio, and the masked tokens (section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vab.config import TrainConfig


def sample_mask_ratio(n: int, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Masking ratios [n]: a normal law cut off at both ends (section 3.2), drawn per clip or per batch.

    Drawn by the inverse of its distribution function, so each draw uses one random number. Normal(0.55,
    0.25) cut to [0.5, 1] has a mean of 0.694 and a standard deviation of 0.129. The paper does not say
    for what a ratio is drawn (``config.mask_ratio_per``); per clip makes the loss less noisy.
    """

    def cdf(value: float) -> float:
        return 0.5 * (1 + math.erf((value - config.mask_mean) / (config.mask_std * math.sqrt(2))))

    low, high = cdf(config.mask_min), cdf(config.mask_max)

    # Uniform between the two ends' probabilities -> standard normal -> ratio.
    draws = 1 if config.mask_ratio_per == "batch" else n
    uniform = torch.rand(draws, dtype=torch.float64, generator=generator, device=generator.device).expand(n)
    quantile = torch.erfinv(2 * (low + (high - low) * uniform) - 1)
    ratio = config.mask_mean + config.mask_std * math.sqrt(2) * quantile
    return ratio.clamp(config.mask_min, config.mask_max).float()


def sample_token_mask(
    ratio: Tensor,
    num_codebooks: int,
    frames: int,
    generator: torch.Generator,
    num_conditioning_codebooks: int = 0,
    first: int = 0,
) -> Tensor:
    """True where a token is masked, bool [B,K,T]: each with probability ``ratio`` [B], independently.

    The first ``num_conditioning_codebooks`` are never masked (eq. 3); one token of each clip always is. The
    ``first`` clips are drawn, for the generator's sake, and left out: [B - first,K,T].
    """
    shape = (len(ratio), num_codebooks - num_conditioning_codebooks, frames)
    uniform = torch.rand(shape, generator=generator, device=generator.device)[first:]

    draws = uniform.flatten(1)
    ratio = ratio[first:].to(uniform.device)
    mask = draws < ratio[:, None]

    # A clip without masks has no loss: there the token with the lowest draw is masked.
    none = (draws.amin(1) >= ratio).nonzero()[:, 0]
    mask[none, draws[none].argmin(1)] = True
    mask = mask.view(uniform.shape)

    # Put the conditioning codebooks in front: [B, K - n, T] -> [B, K, T]
    return torch.nn.functional.pad(mask, (0, 0, num_conditioning_codebooks, 0), value=False)


def apply_mask(tokens: Tensor, mask: Tensor, codebook_size: int) -> Tensor:
    """tokens [B,K,T] with [MASK], whose id is ``codebook_size``, where ``mask`` [B,K,T] is True."""
    return tokens.masked_fill(mask, codebook_size)
