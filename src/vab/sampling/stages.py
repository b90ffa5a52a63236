"""The stages of generation: which network fills in which codebooks, window by window (section 3.3).

The first stage makes the coarse codebooks; for a codec of four these are all. A model directory may hold a
second network in its folder ``fine``, which adds the finer codebooks, conditioned on the coarse ones (eq. 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vab.config import FRAME_RATE, DecodeConfig, ModelConfig, Preset, video_frames
from vab.errors import SettingError
from vab.models.foleygen import FoleyGen, IncrementalDecoder, build_network
from vab.models.heads import load_network, save_network
from vab.models.hub import FINE, FOLDERS, MODEL, ModelError, read_config
from vab.models.vab import VAB
from vab.sampling import autoregressive, parallel
from vab.sampling.parallel import (
    Generators,
    LogitsFn,
    StepProgress,
    classifier_free_guidance,
    guided_steps,
    led_by_curve,
)

OVERLAP_SECONDS = 1.0  # that neighbouring windows share

# Features of a clip: from the one of this number up to another -> [f,dim]. Asked for window by window.
FeaturesFn = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Stage:
    """A network that generates audio tokens, and the preset it was trained with."""

    network: VAB
    preset: Preset

    def fill(
        self,
        tokens: Tensor,
        known: Tensor,
        features: Tensor | FeaturesFn,
        decode: DecodeConfig,
        generators: torch.Generator | Generators,
        *,
        timing: Tensor | None = None,
        cuts: Sequence[int] = (),
        progress: StepProgress | None = None,
    ) -> Tensor:
        """``tokens`` int64 [K,T] of any length, with new ones where ``known`` bool [K,T] is False.

        ``features`` [F,dim] cover the T audio frames; a function gives those of a window when its turn has
        come. ``timing`` [T,4]: the timing curve (``TimingCurve.channels``). Windows are as long as in
        training, and begin anew at ``cuts``, audio frames at which a shot of the film begins; they see the
        pictures of their own shot alone. Or B clips of one length: [B,K,T], [B,K,T], [B,F,dim], [B,T,4] and a
        generator for each.
        """
        config = self.preset.model
        if timing is not None and timing.dim() == 2:
            timing = timing[None]

        def logits_fn_for(start: int, stop: int) -> LogitsFn:
            curve = None if timing is None else timing[:, start:stop]
            return self._logits_fn(self._window(features, start, stop, cuts), stop - start, decode, curve)

        # FoleyGen predicts all of its codebooks, so it takes no conditioning ones.
        generate_tokens: Callable[..., Tensor] = autoregressive.generate_long
        if not isinstance(self.network, FoleyGen):
            conditioning = config.num_conditioning_codebooks
            generate_tokens = partial(parallel.generate_long, num_conditioning_codebooks=conditioning)
        return generate_tokens(
            logits_fn_for,
            tokens,
            known,
            config.codebook_size,
            decode,
            generators,
            window=config.audio_length,
            overlap=window_overlap(config),
            cuts=cuts,
            progress=progress,
        )

    def refine(
        self,
        coarse: Tensor,
        tokens: Tensor,
        known: Tensor,
        features: Tensor | FeaturesFn,
        generators: torch.Generator | Generators,
        *,
        timing: Tensor | None = None,
        cuts: Sequence[int] = (),
        progress: StepProgress | None = None,
    ) -> Tensor:
        """The finer codebooks for ``coarse`` [K1,T], with the stage's own settings: tokens [K,T] (eq. 3).

        ``tokens`` stay where ``known``, both [K,T]; their first K1 rows are replaced by ``coarse``. Or B
        clips, as in :meth:`fill`. A stage that is told no curve does without: what is coarse says the timing.
        """
        if not self.preset.model.timing:
            timing = None
        tokens = tokens.clone()
        known = known.clone()
        # The coarse codebooks are known in full; of the finer ones, what the caller knows.
        tokens[..., : coarse.shape[-2], :] = coarse
        known[..., : coarse.shape[-2], :] = True
        return self.fill(
            tokens,
            known,
            features,
            self.preset.decode,
            generators,
            timing=timing,
            cuts=cuts,
            progress=progress,
        )

    def _window(
        self, features: Tensor | FeaturesFn, start: int, stop: int, cuts: Sequence[int] = ()
    ) -> Tensor:
        """The features [B,f,dim] of the audio frames ``start`` to ``stop``; none of a shot before theirs."""
        fps = self.preset.model.fps
        count = video_frames((stop - start) / FRAME_RATE, fps)
        # 1. From the picture on screen at the start on; at a cut that is still of the shot before. 1e-6 keeps
        # whole numbers whole.
        shot = max((cut for cut in cuts if cut <= start), default=0)
        first = math.floor(start / FRAME_RATE * fps + 1e-6)
        first = max(first, math.ceil(shot / FRAME_RATE * fps - 1e-6))
        last = min(first + count, max(first + 1, math.ceil(stop / FRAME_RATE * fps - 1e-6)))
        if isinstance(features, Tensor):
            window = (features if features.dim() == 3 else features[None])[:, first:last]
        else:
            window = features(first, last)[None]

        # 2. As many as the length asks for: the last one stays.
        missing = max(0, first + count - last)
        return torch.cat([window, window[:, -1:].expand(-1, missing, -1)], dim=1)

    def _logits_fn(
        self, window: Tensor, num_frames: int, decode: DecodeConfig, timing: Tensor | None
    ) -> LogitsFn:
        """Guided logits of so many audio frames with these features [B,f,dim]; of FoleyGen's next step.

        ``timing`` [B,t,4] is the curve of these frames. ``SettingError`` for a model that is told none.
        """
        network = self.network
        if timing is not None and not self.preset.model.timing:
            raise SettingError(f"{self.preset.name} takes no timing curve: it was trained without")
        if isinstance(network, FoleyGen):
            step_fn = IncrementalDecoder(network, num_frames)
            return classifier_free_guidance(step_fn, window, decode.guidance_scale)

        def model_fn(tokens: Tensor, features: Tensor, drop: Tensor, curve: Tensor | None = None) -> Tensor:
            return network(tokens, features, drop_features=drop, timing=curve)

        return classifier_free_guidance(
            model_fn,
            window,
            decode.guidance_scale,
            guided_steps(decode if timing is None else led_by_curve(decode)),
            decode.guidance_every,
            timing,
            decode.timing_scale,
            settled=guided_steps(decode).stop - 1,
        )


def load_stage(folder: Path) -> Stage:
    """The generating network of a model directory; ``ModelError`` if it has none that can be read."""
    preset = read_config(folder)
    if preset.train.objective in FOLDERS:
        raise ModelError(f"{folder}: makes no sound, it was fine-tuned; name the model it started from")
    return Stage(load_network(folder, partial(build_network, preset)), preset)


def load_fine(folder: Path) -> Stage | None:
    """The second stage of a model directory, if it has one; ``ModelError`` if it cannot be read."""
    return load_stage(folder / FINE) if (folder / FINE / MODEL).is_file() else None


def save_stage(folder: Path, stage: Stage) -> None:
    """Write a model directory for :func:`load_stage`."""
    save_network(folder, stage.network.state_dict(), stage.preset)


def check_fine(fine: ModelConfig, first: ModelConfig) -> None:
    """``ModelError`` if a second stage cannot work on the tokens of a first one; it names every mismatch."""
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
    # 50 / fps as a fraction in lowest terms: its numerator
    return (Fraction(FRAME_RATE) / Fraction(config.fps).limit_denominator(1000)).numerator


def window_overlap(config: ModelConfig) -> int:
    """Audio frames that windows share: about a second, so that each window starts with an image feature."""
    window = config.audio_length
    step = feature_step(config)
    # The stride is a whole number of steps, at least one, that leaves about a second to share.
    free = window - round(OVERLAP_SECONDS * FRAME_RATE)
    return window - min(window, max(step, free // step * step))


def padded_length(num_frames: int, config: ModelConfig) -> int:
    """Audio frames to generate for ``num_frames``: at least a window, as in training; then whole steps."""
    window = config.audio_length
    step = feature_step(config)
    return window + max(0, -(-(num_frames - window) // step) * step)
