"""A student that generates in few steps and without guidance what its teacher, a frozen VAB, makes in many.

The tokens that one step decides are drawn independently of each other: each fits what was there before the
step, but not the others that are drawn with it. With few steps these are many. And a guided step costs two
forward passes. So at each of its N steps the student learns the distribution that the teacher has with
guidance once it is shown some of what this step decides, on average over what that may be. A step thus
agrees with the state after it, as in masked consistency (MCD, arXiv 2602.00792). The teacher's one step that
corrects it is that of fixed-point distillation (FPD, arXiv 2605.21484), but what it corrects are clips of
the store, not the student's own drafts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from vab.config import Preset
from vab.errors import SettingError, TrainError
from vab.models.foleygen import FoleyGen
from vab.models.vab import VAB
from vab.sampling.parallel import Generators, classifier_free_guidance, num_masked_after
from vab.sampling.stages import Stage, load_stage


class Student(VAB):
    """A VAB, and beside it the teacher that it learns from, which is no part of its weights."""

    taught_by: tuple[Stage] | None = None  # a tuple, so that torch does not take the teacher for a part
    autocast: Callable[[], AbstractContextManager] = nullcontext  # precision of passes without a gradient

    def learn_from(
        self, folder: Path, preset: Preset, autocast: Callable[[], AbstractContextManager] = nullcontext
    ) -> Stage:
        """Take the model in ``folder`` for the teacher of a student with these settings, and return it.

        ``TrainError`` if it cannot teach one, ``SettingError`` if the student is to have guidance.
        """
        if preset.decode.guidance_scale != 1:
            raise SettingError("a student does without guidance: decode.guidance_scale must be 1")
        if preset.decode.timing_scale not in (0, 1):
            raise SettingError(
                "a student does without guidance, by a curve too: decode.timing_scale must be 0"
            )
        teacher = load_stage(folder)
        if isinstance(teacher.network, FoleyGen):
            raise TrainError(f"{folder}: FoleyGen makes frame after frame; only a VAB can teach a student")
        given, wanted = asdict(teacher.preset.model), asdict(preset.model)
        other = [f"model.{name} is {given[name]}, not {wanted[name]}" for name in given]
        if other := [line for line, name in zip(other, given, strict=True) if given[name] != wanted[name]]:
            raise TrainError(f"{folder}: is of other settings than {preset.name}'s: {', '.join(other)}")
        teacher.network.eval().requires_grad_(False).to(self.heads.weight.device)
        self.taught_by, self.autocast = (teacher,), autocast
        return teacher

    @torch.no_grad()
    def teacher_logits(
        self, tokens: Tensor, features: Tensor, drop_features: Tensor, timing: Tensor | None = None
    ) -> Tensor:
        """The teacher's guided logits [B,Kp,T,V] for tokens [B,K,T], float32, at its sampling temperature.

        ``timing`` [B,T,4]: the curve that both are told, if they are.
        """
        assert self.taught_by is not None, "a student without a teacher"
        (teacher,) = self.taught_by
        decode = teacher.preset.decode
        # A clip that is to go without the picture has none in either half of guidance: zeros count as absent.
        features = features.masked_fill(drop_features[:, None, None], 0.0)

        def model_fn(tokens: Tensor, features: Tensor, drop: Tensor, curve: Tensor | None = None) -> Tensor:
            return teacher.network(tokens, features, drop_features=drop, timing=curve)

        with self.autocast():
            logits = classifier_free_guidance(
                model_fn, features, decode.guidance_scale, timing=timing, timing_scale=decode.timing_scale
            )(tokens)
        return logits / (decode.sampling_temperature or 1.0)


def states(
    tokens: Tensor, known: Tensor, mask_id: int, num_steps: int, generators: Generators
) -> tuple[Tensor, Tensor]:
    """Tokens before one of the ``num_steps`` steps of decoding, and what the teacher is shown: [B,K,T] each.

    Those of ``tokens`` [B,K,T] that are not ``known`` are decided in an order that is drawn for each clip, as
    many in each step as the schedule says (section 3.3). The step is drawn too: ``before`` holds what is
    there when it begins. ``shown`` has, of those that it decides, a share as well, drawn between none and
    all of them, but hides one at least. [MASK], the id ``mask_id``, stands for all others. ``generators``
    are B CPU generators.
    """
    hidden = torch.zeros(2, *tokens.shape, dtype=torch.bool)
    for b, generator in enumerate(generators):
        # 1. How many are hidden before the step and after it, and from the teacher.
        positions = (~known[b]).flatten().nonzero()[:, 0].cpu()
        step = int(torch.randint(num_steps, (), generator=generator))
        share = float(torch.rand((), generator=generator))
        most, least = (num_masked_after(step + k, num_steps, len(positions)) for k in (0, 1))
        counts = most, max(1, round(least + share * (most - least)))

        # 2. The order: the first so many.
        order = positions[torch.randperm(len(positions), generator=generator)]
        for clip, count in zip(hidden[:, b], counts, strict=True):
            clip.view(-1)[order[:count]] = True
    not_yet, not_shown = hidden.to(tokens.device)
    return tokens.masked_fill(not_yet, mask_id), tokens.masked_fill(not_shown, mask_id)
