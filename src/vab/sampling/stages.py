"""The stages of generation: which network fills in which codebooks, window by window (section 3.3).

The first stage makes the coarse codebooks; for a codec of four these are all. A model directory may hold a
second network in its folder ``fine``, which adds the finer codebooks, given the coarse ones (eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from vab.config import FRAME_RATE, DecodeConfig, ModelConfig, Preset, video_frames
from vab.models.foleygen import FoleyGen, IncrementalDecoder
from vab.models.heads import load_network, save_network
from vab.models.hub import CONFIG, FINE, FOLDERS, ModelError, read_config
from vab.models.vab import VAB
from vab.sampling import autoregressive
from vab.sampling.parallel import LogitsFn, Progress, classifier_free_guidance, generate_long

OVERLAP = 1.0  # seconds that neighbouring windows share


@dataclass(frozen=True)
class Stage:
    """A network that makes audio tokens, and the preset it was taught with."""

    network: VAB
    preset: Preset

    def fill(
        self,
        tokens: Tensor,
        known: Tensor,
        features: Tensor,
        decode: DecodeConfig,
        generators: torch.Generator | Sequence[torch.Generator],
        progress: Progress | None = None,
    ) -> Tensor:
        """``tokens`` int64 [K,T] of any length, with new ones where ``known`` bool [K,T] is False.

        ``features`` [F,dim] are those of the T audio frames. Windows are as long as in training. Or B clips
        of one length: [B,K,T], [B,K,T], [B,F,dim] and a generator for each.
        """
        config = self.preset.model
        batch = features if features.dim() == 3 else features[None]

        def logits_fn_for(start: int, stop: int) -> LogitsFn:
            return self._logits_fn(batch, start, stop, decode.guidance_scale)

        what = (logits_fn_for, tokens, known, config.codebook_size, decode, generators)
        lengths = (config.audio_length, window_overlap(config))
        if isinstance(self.network, FoleyGen):
            return autoregressive.generate_long(*what, *lengths, progress)
        return generate_long(*what, *lengths, config.num_conditioning_codebooks, progress)

    def refine(
        self,
        coarse: Tensor,
        tokens: Tensor,
        known: Tensor,
        features: Tensor,
        generators: torch.Generator | Sequence[torch.Generator],
        progress: Progress | None = None,
    ) -> Tensor:
        """The finer codebooks for ``coarse`` [K1,T], with the stage's own settings: tokens [K,T] (eq. 3).

        ``tokens`` and ``known`` [K,T] hold what is known of them; their first K1 rows do not count. Or B
        clips, as in :meth:`fill`.
        """
        tokens, known = tokens.clone(), known.clone()
        tokens[..., : coarse.shape[-2], :] = coarse
        known[..., : coarse.shape[-2], :] = True
        return self.fill(tokens, known, features, self.preset.decode, generators, progress)

    def _logits_fn(self, features: Tensor, start: int, stop: int, guidance: float) -> LogitsFn:
        """Guided logits of the audio frames ``start`` to ``stop``, or of the next step of them."""
        network, fps = self.network, self.preset.model.fps
        first = math.floor(start / FRAME_RATE * fps + 1e-6)
        seen = features[:, first : first + video_frames((stop - start) / FRAME_RATE, fps)]
        if isinstance(network, FoleyGen):
            return classifier_free_guidance(IncrementalDecoder(network, stop - start), seen, guidance)

        def model(tokens: Tensor, features: Tensor, drop: Tensor) -> Tensor:
            return network(tokens, features, drop_features=drop)

        return classifier_free_guidance(model, seen, guidance)


def load_stage(folder: Path) -> Stage:
    """The network of a model directory that makes tokens; ``ModelError`` if it has none that can be read."""
    preset = read_config(folder)
    if preset.train.objective in FOLDERS:
        raise ModelError(f"{folder}: makes no sound, it was fine-tuned; name the model it started from")
    kind = FoleyGen if preset.train.objective == "causal" else VAB
    return Stage(load_network(folder, lambda: kind(preset.model)), preset)


def load_fine(folder: Path) -> Stage | None:
    """The second stage of a model directory, if it has one; ``ModelError`` if it cannot be read."""
    return load_stage(folder / FINE) if (folder / FINE / CONFIG).is_file() else None


def save_stage(folder: Path, stage: Stage) -> None:
    """Write what :func:`load_stage` reads."""
    save_network(folder, stage.network.state_dict(), stage.preset)


def check_fine(fine: ModelConfig, first: ModelConfig) -> None:
    """``ModelError`` that says what keeps a second stage from working on a first one's tokens."""
    same = ("codec", "codebook_size", "codebook_dim", "vision", "vision_dim", "fps")
    wrong = [
        f"{name} is {getattr(fine, name)}, not {getattr(first, name)}"
        for name in same
        if getattr(fine, name) != getattr(first, name)
    ]
    if fine.num_conditioning_codebooks != first.num_codebooks:
        wrong.append(
            f"it refines {fine.num_conditioning_codebooks} codebooks, "
            f"the first stage makes {first.num_codebooks}"
        )
    if wrong:
        raise ModelError(f"the second stage does not fit the first: {'; '.join(wrong)}")


def feature_step(config: ModelConfig) -> int:
    """Audio frames after which an image feature and an audio frame start together again."""
    return (Fraction(FRAME_RATE) / Fraction(config.fps).limit_denominator(1000)).numerator


def window_overlap(config: ModelConfig) -> int:
    """Audio frames that windows share: about a second, so that each window starts with an image feature."""
    window, step = config.audio_length, feature_step(config)
    free = window - round(OVERLAP * FRAME_RATE)
    return window - min(window, max(step, free // step * step))


def padded_length(frames: int, config: ModelConfig) -> int:
    """Audio frames to generate for ``frames``: at least a window, as in training; then whole steps."""
    window, step = config.audio_length, feature_step(config)
    return window + max(0, -(-(frames - window) // step) * step)
