"""Parallel decoding of masked tokens, with guidance, for any length (section 3.3, eq. 2, appendix D).

Everything here is a pure function over ``logits_fn``: tokens [B,K,T], whose masked positions hold [MASK]
(the id ``codebook_size``), and the number of the step give logits [B,Kp,T,V] of the last Kp codebooks, those
that do not condition. Which tokens are ``known`` says what the task is. None: a new sound. The first four
codebooks: coarse to fine. All but a span: inpainting. The beginning: continuation, and the next window of a
long sound.

Randomness is one CPU generator per clip. Every number drawn for a clip depends on that generator and on
which of the clip's own tokens are to be generated, so that equal logits give bit-equal tokens whatever the
batch, the order of the clips, the padding (padded positions count as known) and the device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vab.config import DecodeConfig, check_field
from vab.errors import SettingError, VABError

# tokens, features [B,F,dim], drop [B] and, for a model that is told one, timing [B,T,4] -> logits
ModelFn = Callable[..., Tensor]
StepProgress = Callable[[int, int], None]  # steps done, total
Generators = Sequence[torch.Generator]  # on the CPU, one per clip
# first frame, one after the last, tokens and known [B,K,n], B generators, progress of this window -> tokens
Fill = Callable[[int, int, Tensor, Tensor, Generators, StepProgress], Tensor]
ALL_STEPS = range(1, sys.maxsize)
ROUNDING_TOLERANCE = 1e-6  # of the total: more than float32 sums of the same probabilities are off by


class LogitsFn(Protocol):
    """Tokens [B,K,T] and the number of the step, from 1, to logits [B,Kp,T,V]."""

    def __call__(self, tokens: Tensor, step: int = ..., /) -> Tensor: ...


class DecodeError(VABError, ValueError):
    """The model's logits cannot be sampled from; the message says which clip of the batch."""


def classifier_free_guidance(
    model_fn: ModelFn,
    features: Tensor,
    scale: float,
    guided: range = ALL_STEPS,
    every: int = 1,
    timing: Tensor | None = None,
    timing_scale: float = 0.0,
    settled: int = sys.maxsize,
) -> LogitsFn:
    """Classifier-free guidance, u + scale (c - u): c sees the features [B,F,dim], u does not (section 3.3).

    One forward does both: ``model_fn(tokens, features, drop_features)`` gets 2B rows, first the B that
    keep their features, then the same B with ``drop_features`` [2B] True. At a scale of 1 there is
    nothing to add, and it gets the B conditional rows alone. Logits come back as float32.

    With a timing curve [B,T,4] ``model_fn`` gets that too: c sees it, u has zeros. With a ``timing_scale`` of
    its own it is u + scale (v - u) + timing_scale (c - v), where v sees the features alone: up to 3B rows,
    those whose share of the sum is zero left out.

    Two ways to do less, for a caller that says the number of its step. Steps that are not ``guided`` go
    without guidance. Of each ``every`` guided steps one computes all rows; the others add what guidance
    added there to their own c, for which they need the B conditional rows alone.
    """
    # 1. Rows by what they see, features and curve, with their shares of the sum; the conditional ones first.
    shares: dict[tuple[bool, bool], float] = {(True, True): scale, (False, False): 1 - scale}
    if timing is not None and timing_scale:
        shares = {(True, True): timing_scale, (True, False): scale - timing_scale, (False, False): 1 - scale}
    conditional = (True, True)
    kinds = [kind for kind, share in shares.items() if share or kind == conditional]

    def inputs(kinds: Sequence[tuple[bool, bool]]) -> list[Tensor]:
        """What ``model_fn`` gets beside tokens: [nB,...], all clips of the first kind, then the next."""
        drop = torch.tensor([not pictures for pictures, _ in kinds], device=features.device)
        given = [torch.cat([features] * len(kinds)), drop.repeat_interleave(len(features))]
        if timing is not None:
            given.append(torch.cat([timing if told else torch.zeros_like(timing) for _, told in kinds]))
        return given

    alone, together = inputs([conditional]), inputs(kinds)
    # What guidance adds to c [B,Kp,T,V], and the number of the stretch of steps that it serves. A step that
    # is left out, because it decides nothing for this clip, has the tokens of the next: whichever computes u,
    # it is the same.
    added: tuple[int, Tensor] | None = None
    keeps = every > 1 or settled < guided.stop - 1

    def logits_fn(tokens: Tensor, step: int = 1) -> Tensor:
        nonlocal added
        stretch = (min(step, settled) - guided.start) // every
        # 2. Without guidance, or with what it added before.
        if len(kinds) == 1 or step not in guided:
            return model_fn(tokens, *alone).float()
        if added is not None and added[0] == stretch:
            return model_fn(tokens, *alone).float() + added[1]

        # 3. All rows in one pass.
        rows = model_fn(torch.cat([tokens] * len(kinds)), *together).float().chunk(len(kinds))
        if len(shares) == 2:
            c, u = rows
            if keeps:
                added = stretch, (scale - 1) * (c - u)
            return u + scale * (c - u)
        total = sum(
            (shares[kind] * logits for kind, logits in zip(kinds, rows, strict=True)), torch.zeros(())
        )
        if keeps:
            added = stretch, total - rows[0]
        return total

    return logits_fn


def led_by_curve(config: DecodeConfig) -> DecodeConfig:
    """The settings by which a clip is decoded that is told a timing curve: guided up to its last step.

    The first steps settle what is heard, but not when. What guidance adds at the last of them serves all that
    follow. Where no step is guided none is with a curve either.
    """
    guided = config.guidance_until > config.guidance_from
    return replace(config, guidance_until=1.0) if guided else config


def guided_steps(config: DecodeConfig) -> range:
    """The numbers of the steps, from 1, that go with guidance."""
    # Step n begins when n - 1 have passed. Rounded: 0.55 of 20 steps are 11.000000000000002 as a float.
    begin, end = (
        1 + math.ceil(round(share * config.num_steps, 6))
        for share in (config.guidance_from, config.guidance_until)
    )
    return range(begin, end)


@torch.no_grad()
def generate(
    logits_fn: LogitsFn,
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: Generators,
    *,
    num_conditioning_codebooks: int = 0,
    progress: StepProgress | None = None,
) -> Tensor:
    """Fill in every token that is not known, in ``config.num_steps`` parallel steps (section 3.3).

    ``tokens`` int64 [B,K,T] counts where ``known``, bool [B,K,T], is True; these values never change.
    Mark padded positions as known too. All other values are ignored and start as [MASK]. ``generators`` are
    B CPU generators, one per clip. Guidance belongs to ``logits_fn``: see ``classifier_free_guidance``.

    Step n = 1..N samples each token still masked, with probability p after top-k, and scores it with
    log p + tau_n g, g standard Gumbel noise, tau_n = mask_temperature (1 - n/N) (eq. 2): zero at the last
    step. Of the clip's M tokens to generate, the floor(cos(pi/2 n/N) M) worst are masked again, and the
    others are decided for good. With small M and many steps a step may have nothing to decide; then it
    draws nothing, and costs no forward if that is so for the whole batch.

    With a ``config.order`` other than ``confidence`` it is known beforehand which places a step decides, just
    as many: those that are next in a low-discrepancy sequence over time and codebooks (``halton``), or in an
    order drawn for the clip (``random``). Tokens are sampled there alone, and nothing is scored.

    Returns new tokens [B,K,T] without any [MASK]. Raises ``DecodeError`` when logits are not finite,
    ``ValueError`` when the arguments do not fit each other.
    """
    if config.num_steps < 1:
        raise SettingError(f"decoding needs steps >= 1, not {config}")
    check_arguments(tokens, known, codebook_size, config, generators, num_conditioning_codebooks)
    batch, num_codebooks, num_frames = tokens.shape
    predicted = (batch, num_codebooks - num_conditioning_codebooks, num_frames)
    offset = num_conditioning_codebooks * num_frames  # positions in K*T before the first one with logits

    # 1. Everything unknown is masked. Clips differ in how much that is, so each has its own positions.
    result = tokens.masked_fill(~known, codebook_size)
    masked = [(~clip).flatten().nonzero()[:, 0] for clip in known]  # per clip: positions in K*T, ascending
    totals = [len(positions) for positions in masked]
    if config.order != "confidence":  # per clip: in the order they are decided
        masked = [
            _in_order(positions, offset, predicted[1:], config.order, generator)
            for positions, generator in zip(masked, generators, strict=True)
        ]
    for step in range(1, config.num_steps + 1):
        # 2. Logits for the whole batch, unless the schedule decides nothing in any clip.
        num_left = [num_masked_after(step, config.num_steps, total) for total in totals]
        active = [b for b, positions in enumerate(masked) if len(positions) > num_left[b]]
        if active:
            logits = logits_fn(result.clone(), step)
            if logits.shape[:3] != predicted:
                raise ValueError(f"logits {list(logits.shape)} do not start with {list(predicted)}")
        mask_temperature = config.mask_temperature * (1 - step / config.num_steps)
        for b in active:
            # 3. A candidate for each masked token: [Kp,T,V] -> [Kp*T,V] -> [n,V] -> [n]
            positions = masked[b]
            if config.order != "confidence":
                positions, masked[b] = positions.tensor_split([len(positions) - num_left[b]])
            rows = logits[b].flatten(0, 1)[positions - offset].float()
            if not torch.stack(rows.aminmax()).isfinite().all():
                raise DecodeError(f"clip {b} of the batch: logits are NaN or infinite at step {step}")
            if config.order != "confidence":
                uniform = torch.rand(len(positions), generator=generators[b]).to(rows.device)
                result[b].view(-1)[positions] = draw(rows, uniform, config)[0]
                continue
            uniform, gumbel = _noise(len(positions), generators[b], rows.device)
            sampled, log_p = draw(rows, uniform, config)

            # 4. Keep the most confident, mask the rest again (eq. 2). A stable sort settles ties by position.
            confidence = log_p + mask_temperature * gumbel
            ascending = confidence.argsort(stable=True)
            decided = ascending[num_left[b] :]
            result[b].view(-1)[positions[decided]] = sampled[decided]
            masked[b] = positions[ascending[: num_left[b]].sort().values]
        if progress is not None:
            progress(step, config.num_steps)
    assert not any(len(positions) for positions in masked)  # the schedule ends at zero
    return result


def _in_order(
    positions: Tensor, offset: int, grid: tuple[int, int], order: str, generator: torch.Generator
) -> Tensor:
    """A clip's positions [n] in K*T, of which ``grid`` (Kp,T) begins at ``offset``, as they are decided."""
    if order == "random":
        return positions[torch.randperm(len(positions), generator=generator).to(positions.device)]
    rank = halton_ranks(*grid).to(positions.device)[positions - offset]
    return positions[rank.argsort()]


@lru_cache(maxsize=8)
def halton_ranks(num_codebooks: int, num_frames: int) -> Tensor:
    """When each place of a grid [K,T] is visited by Halton's sequence, the whole numbers below K*T: [K*T].

    Time by base 2 and codebooks by base 3 (Besnier et al., "Halton scheduler for masked generative image
    transformer", ICLR 2025); a place counts when the sequence first comes by. Any first n places are
    spread over time and codebooks as evenly as n places can be, nearly.
    """
    # Every place holds a cell of some 2^a by 3^b grid, and 2^a 3^b points of the sequence in a row fill one.
    points = 2 ** math.ceil(math.log2(2 * num_frames)) * 3 ** math.ceil(math.log(2 * num_codebooks, 3))
    frame, codebook = (
        np.floor(_radical_inverse(points, base) * size).astype(np.int64)
        for base, size in ((2, num_frames), (3, num_codebooks))
    )
    _, first = np.unique(codebook * num_frames + frame, return_index=True)
    return torch.from_numpy(first.argsort().argsort())


def _radical_inverse(count: int, base: int) -> np.ndarray:
    """The digits of 0 to ``count - 1`` behind the point, in reverse: float64 [count] in [0, 1)."""
    rest, value, weight = np.arange(count), np.zeros(count), 1.0
    while rest.any():
        rest, digit = np.divmod(rest, base)
        weight /= base
        value += digit * weight
    return value


def windows(
    total: int,
    window: int,
    overlap: int,
    last: Literal["full", "short"] = "full",
    cuts: Sequence[int] = (),
    shortest: int = 1,
) -> list[tuple[int, int]]:
    """Spans (start, stop) that cover ``total`` frames, each ``window`` long, or one span if that is enough.

    Neighbours share ``overlap`` frames. The last span ends at ``total``: if it is ``full``, it may share more
    with the one before, if ``short``, it may be shorter. All other starts are multiples of
    ``window - overlap``. At each of the ``cuts``, frames at which a film's shot begins, windows begin anew
    and share nothing with those before, as if the shot were a clip of its own; but no shot is made that has
    less than ``shortest`` frames: its cut is passed over.
    """
    if total < 1 or not 0 <= overlap < window:
        raise ValueError(f"no windows of {window} frames that share {overlap} cover {total} frames")
    if begins := shots(total, cuts, shortest)[1:]:
        stops = [*begins, total]
        return [
            (begin + start, begin + stop)
            for begin, end in zip([0, *begins], stops, strict=True)
            for start, stop in windows(end - begin, window, overlap, last)
        ]
    if total <= window:
        return [(0, total)]
    if last == "short":
        return [(start, min(start + window, total)) for start in range(0, total - overlap, window - overlap)]
    # Even strides, then one window that ends exactly at the end.
    starts = [*range(0, total - window, window - overlap), total - window]
    return [(start, start + window) for start in starts]


def shots(total: int, cuts: Sequence[int], shortest: int) -> list[int]:
    """Where the shots of ``total`` frames begin, from 0; a cut that would make one too short is none."""
    begins = [0]
    for cut in sorted(cuts):
        if cut - begins[-1] >= shortest and total - cut >= shortest:
            begins.append(cut)
    return begins


@torch.no_grad()
def generate_long(
    logits_fn_for: Callable[[int, int], LogitsFn],
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: torch.Generator | Generators,
    *,
    window: int,
    overlap: int,
    cuts: Sequence[int] = (),
    num_conditioning_codebooks: int = 0,
    progress: StepProgress | None = None,
) -> Tensor:
    """``generate`` for any length: one window after another, which keeps the tokens it shares with the last.

    Takes one clip (``tokens`` and ``known`` [K,T] and its generator) or several of one length ([B,K,T] and
    a list of B). ``logits_fn_for(start, stop)`` gives the ``logits_fn`` of these audio frames; it is called
    just before the window is generated, and not for a window without a token to generate. Nothing but the
    tokens is held for longer than a window. With T <= ``window`` the result is ``generate``'s, bit for bit.
    ``progress`` counts the steps of all windows. Returns tokens shaped like ``tokens``.
    """

    def fill(
        start: int, stop: int, tokens: Tensor, known: Tensor, noise: Generators, progress: StepProgress
    ) -> Tensor:
        return generate(
            logits_fn_for(start, stop),
            tokens,
            known,
            codebook_size,
            config,
            noise,
            num_conditioning_codebooks=num_conditioning_codebooks,
            progress=progress,
        )

    return in_windows(
        fill,
        tokens,
        known,
        generators,
        config.num_steps,
        window=window,
        overlap=overlap,
        last=config.last_window,
        cuts=cuts,
        progress=progress,
    )


def in_windows(
    fill: Fill,
    tokens: Tensor,
    known: Tensor,
    generators: torch.Generator | Generators,
    num_steps: int,
    *,
    window: int,
    overlap: int,
    last: Literal["full", "short"] = "full",
    cuts: Sequence[int] = (),
    progress: StepProgress | None = None,
) -> Tensor:
    """``fill`` one window after another: each keeps the tokens it shares with the one before.

    ``tokens`` and ``known`` [B,K,T] and B generators, or [K,T] and one. A window without a token to generate
    is skipped. At ``cuts`` windows begin anew, where what is between two of them is longer than an overlap
    twice. ``progress`` counts ``num_steps`` for each window. Returns new tokens shaped like ``tokens``.
    """
    if isinstance(generators, torch.Generator):
        # [K,T] -> [1,K,T]: one clip is a batch of one
        batch = (fill, tokens[None], known[None], [generators], num_steps)
        return in_windows(*batch, window=window, overlap=overlap, last=last, cuts=cuts, progress=progress)[0]
    spans = windows(tokens.shape[2], window, overlap, last, cuts, shortest=max(1, 2 * overlap))
    result = tokens.clone()
    known = known.clone()
    for index, (start, stop) in enumerate(spans):
        report = partial(_report, progress, index * num_steps, len(spans) * num_steps)
        if known[:, :, start:stop].all():
            report(num_steps, num_steps)
            continue
        result[:, :, start:stop] = fill(
            start, stop, result[:, :, start:stop], known[:, :, start:stop], generators, report
        )
        # What this window generated is a fixed prefix for the next.
        known[:, :, start:stop] = True
    return result


def _report(progress: StepProgress | None, before: int, total: int, step: int, num_steps: int) -> None:
    """Progress of one window as that of all windows."""
    if progress is not None:
        progress(before + step, total)


def check_arguments(
    tokens: Tensor,
    known: Tensor,
    codebook_size: int,
    config: DecodeConfig,
    generators: Generators,
    num_conditioning_codebooks: int = 0,
) -> None:
    """Raise ``ValueError`` for arguments of ``generate`` that would spoil its result in silence."""
    if tokens.dim() != 3 or tokens.shape != known.shape or known.dtype != torch.bool:
        shapes = f"{list(tokens.shape)} and {known.dtype} {list(known.shape)}"
        raise ValueError(f"tokens [B,K,T] and a bool mask of the same shape are needed, not {shapes}")
    if len(generators) != len(tokens) or len({id(generator) for generator in generators}) != len(tokens):
        raise ValueError(f"each of the {len(tokens)} clips needs a generator of its own")
    if any(generator.device.type != "cpu" for generator in generators):
        raise ValueError("generators must be on the CPU, so that every device draws the same noise")
    if config.top_k < 0 or config.mask_temperature < 0 or config.sampling_temperature < 0:
        raise SettingError(f"decoding needs top_k >= 0 and temperatures >= 0, not {config}")
    if config.guidance_from > config.guidance_until:
        raise SettingError(
            f"guidance must not end before it begins, at {config.guidance_until:g} and "
            f"{config.guidance_from:g} of the steps; a guidance scale of 1 is none"
        )
    if not known[:, :num_conditioning_codebooks].all():
        raise ValueError(
            f"the first {num_conditioning_codebooks} codebooks are not predicted, so they must be given"
        )
    if (known & ((tokens < 0) | (tokens >= codebook_size))).any():
        raise ValueError(f"a given token is not in 0..{codebook_size - 1}")


def _noise(count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uniform noise in [0, 1) and standard Gumbel noise, [count] each, made on the CPU."""
    uniform, other = torch.rand(2, count, generator=generator)
    # -log(-log(u)); u = 0 would give an infinity
    gumbel = -(-other.clamp_min(torch.finfo(other.dtype).tiny).log()).log()
    return uniform.to(device), gumbel.to(device)


def draw(logits: Tensor, uniform: Tensor, config: DecodeConfig) -> tuple[Tensor, Tensor]:
    """One token per row of ``logits`` [n,V] at the sampling temperature, and its log-probability, [n].

    Of the ``config.top_k`` likeliest of softmax(logits / temperature); at 0 it is the likeliest token.
    """
    if config.sampling_temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(1, token[:, None])[:, 0]
    return sample(logits / config.sampling_temperature, uniform, config.top_k)


def sample(logits: Tensor, uniform: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """One token per row of ``logits`` [n,V] by inverse distribution function, and its log-probability, [n].

    One ``uniform`` number per row is enough this way. ``top_k`` > 0 keeps the k likeliest tokens. Equal
    logits give the same tokens on every device, those of the CPU.
    """
    if logits.device.type == "cuda" and not 0 < top_k < logits.shape[1]:
        return sample_like_the_cpu(logits, uniform)
    if logits.device.type != "cpu":
        # Of equally likely tokens each device's top-k takes others, so the CPU does it.
        token, log_p = sample(logits.cpu(), uniform.cpu(), top_k)
        return token.to(logits.device), log_p.to(logits.device)
    ids = None
    if 0 < top_k < logits.shape[1]:
        logits, ids = logits.topk(top_k, dim=1)
    # Unnormalised distribution function [n,V]; the maximum goes first, so that exp cannot overflow.
    logits = logits - logits.amax(1, keepdim=True)
    cumulative = logits.exp().cumsum(1)
    total = cumulative[:, -1:]
    # A float32 draw is at most 1 - 2^-24, so the product rounds to less than the total: the first sum above
    # it exists, and is higher than the sum before. A token of probability zero is thus never taken.
    chosen = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    log_p = (logits.gather(1, chosen) - total.log())[:, 0]
    return (chosen if ids is None else ids.gather(1, chosen))[:, 0], log_p


def sample_like_the_cpu(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """``sample`` on a device whose float32 sums are not the CPU's, with the CPU's tokens nevertheless.

    Rounding moves the border between two tokens past a draw once in some ten thousand. Sums in float64 show
    which draws fall that close to a border, and only these few rows go through the CPU.
    """
    # 1. Sample from float64 sums.
    shifted = (logits - logits.amax(1, keepdim=True)).double()
    cumulative = shifted.exp().cumsum(1)  # [n,V]
    total = cumulative[:, -1:]
    drawn = uniform[:, None].double() * total
    last = logits.shape[1] - 1  # a draw may round up to the total: it is the last token's
    chosen = torch.searchsorted(cumulative, drawn, right=True).clamp_max(last)
    log_p = (shifted.gather(1, chosen) - total.log())[:, 0].float()
    token = chosen[:, 0]

    # 2. Rows whose draw, moved by the tolerance either way, would give another token.
    margin = ROUNDING_TOLERANCE * total
    below = torch.searchsorted(cumulative, drawn - margin, right=True).clamp(0, last)[:, 0]
    above = torch.searchsorted(cumulative, drawn + margin, right=True).clamp(0, last)[:, 0]
    unsure = (below != above).nonzero()[:, 0]

    # 3. These go through the CPU.
    if len(unsure):
        cpu_token, cpu_log_p = sample(logits[unsure].cpu(), uniform[unsure].cpu(), 0)
        token[unsure] = cpu_token.to(token.device)
        log_p[unsure] = cpu_log_p.to(log_p.device)
    return token, log_p


def decode_settings(
    default: DecodeConfig,
    steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    rerank: int | None = None,
) -> DecodeConfig:
    """``default``, with each argument that is not None in its place; ``SettingError`` for one out of range.

    ``temperature`` is that of the masks for VAB, that of the tokens for FoleyGen, which masks nothing.
    """
    step_by_step = default.num_steps == 0  # FoleyGen
    given = {
        "steps": ("num_steps", steps),
        "guidance": ("guidance_scale", guidance),
        "temperature": ("sampling_temperature" if step_by_step else "mask_temperature", temperature),
        "rerank": ("num_candidates", rerank),
    }
    overrides: dict[str, Any] = {}
    for argument, (name, value) in given.items():
        if value is not None:
            check_field(DecodeConfig, name, value, argument)
            overrides[name] = value
    if step_by_step and steps is not None:
        raise SettingError("steps cannot be chosen: this model makes one audio frame after another")
    if steps == 0:
        raise SettingError("steps must be 1 or more, not 0")
    return replace(default, **overrides)


def num_masked_after(n: int, num_steps: int, total: int) -> int:
    """How many of ``total`` tokens are still masked after step ``n`` of ``num_steps`` (section 3.3)."""
    return math.floor(math.cos(math.pi / 2 * (n / num_steps)) * total)
