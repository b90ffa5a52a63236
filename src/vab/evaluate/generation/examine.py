"""Scores of a few sounds in memory, for a run that hears how it gets on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.config import SAMPLE_RATE
from vab.errors import VABError
from vab.evaluate.backbones.registry import BACKBONES, find, load
from vab.evaluate.generation.scores import KEYS, of_backbone
from vab.evaluate.metrics import signal
from vab.evaluate.metrics.distances import frechet
from vab.evaluate.metrics.statistics import EvaluationError
from vab.media.filters import resampled

Sounds = list[NDArray[np.float32]]  # waveforms [S] at 16 kHz


@dataclass
class Examiner:
    """Fréchet distances and KL between true and generated sounds, by the networks whose weights are here.

    FD-LOGMEL and the mel distance need none. Of a few clips a distance is large and noisy: it is to be
    compared with that of other steps, on the same clips, and with nothing else.
    """

    device: str
    log: Callable[[str], None]
    networks: dict[str, Any] | None = field(default=None, init=False)  # loaded at the first call

    def __call__(self, true: Sounds, generated: Sounds) -> dict[str, float]:
        """Scores by name; clip i of both is the same."""
        if self.networks is None:
            self.networks = self._load()
        # 1. Without a network.
        statistics = [np.stack([signal.statistics(sound) for sound in side]) for side in (true, generated)]
        pairs = zip(true, generated, strict=True)
        values = {
            "FD-LOGMEL": float(frechet(*statistics)),
            "MEL-distance": float(np.mean([signal.mel_distance(a, b) for a, b in pairs])),
        }
        # 2. With those there are. One that refuses these sounds, such as too short ones, is not asked again.
        for name, network in list(self.networks.items()):
            rate = BACKBONES[name].generated.rate
            try:
                reference, made = (
                    [network(_at(rate, sound)) for sound in side] for side in (true, generated)
                )
            except VABError as error:
                self.log(f"samples are not scored by {name}: {error}")
                del self.networks[name]
                continue
            for metric in of_backbone(name, reference, made, resamples=2):
                values[metric.key] = metric.value.value
        return values

    def _load(self) -> dict[str, Any]:
        networks, absent = {}, []
        for name in KEYS:
            spec = BACKBONES[name].generated
            try:
                networks[name] = load(spec, find(spec, None)[0], self.device)
            except EvaluationError:
                absent.append(name)
        if absent:
            self.log(f"samples are scored without {', '.join(absent)}: see vab evaluate generation --help")
        return networks


def _at(rate: int, sound: NDArray[np.float32]) -> NDArray[np.float32]:
    return resampled(sound[None], SAMPLE_RATE, rate, len(sound) * rate // SAMPLE_RATE)[0]
