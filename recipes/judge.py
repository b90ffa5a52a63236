"""An outside judge of sound: which thing does this sound like?

YAMNet (AudioSet's tagger) scores every 0.96 s of a sound; a logistic regression on the mean and the
maximum of its log scores names the class. It is fitted on real training sounds and on copies of them
with white noise at 20 dB and through Opus at 6 kbit/s, so that it forgives what a codec does and
still knows a cow from a helicopter. It has never seen a sound of our codec or our model.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vab.config import SAMPLE_RATE as RATE
from vab.evaluate.backbones.yamnet import Yamnet


def with_noise(waveform: np.ndarray, decibels: float, random: np.random.Generator) -> np.ndarray:
    """White noise added at that signal-to-noise ratio."""
    level = np.sqrt(np.mean(waveform**2)) * 10.0 ** (-decibels / 20.0)
    return (waveform + level * random.standard_normal(len(waveform))).astype(np.float32)


def through_opus(waveform: np.ndarray, bits: int = 6000) -> np.ndarray:
    """The waveform after Opus at so many bits a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=RATE)
        stream.bit_rate = bits
        frame = av.AudioFrame.from_ndarray(
            (np.clip(waveform, -1, 1) * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.rate = RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    buffer.seek(0)
    resampler = av.AudioResampler("fltp", "mono", RATE)
    with av.open(buffer, "r") as back:
        pieces = [p.to_ndarray()[0] for f in back.decode(audio=0) for p in resampler.resample(f)]
        pieces += [p.to_ndarray()[0] for p in resampler.resample(None)]
    return np.concatenate(pieces)[: len(waveform)]


class Judge:
    """``fit`` on real sounds, then ``share``: how many sounds are taken for their own class."""

    def __init__(self, yamnet: Yamnet) -> None:
        self.yamnet = yamnet
        self.model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=2000))

    def features(self, waveform: np.ndarray) -> np.ndarray:
        """Waveform [S] -> mean and maximum over time of the log scores [1042]."""
        scores = np.log(self.yamnet.scores(waveform) + 1e-4)
        return np.concatenate((scores.mean(0), scores.max(0)))

    def fit(self, waveforms: Sequence[np.ndarray], labels: Sequence[str], seed: int = 0) -> None:
        """Fit on the waveforms and on their copies with noise and through Opus."""
        random = np.random.default_rng(seed)
        rows = [self.features(w) for w in waveforms]
        rows += [self.features(with_noise(w, 20.0, random)) for w in waveforms]
        rows += [self.features(through_opus(w)) for w in waveforms]
        self.model.fit(np.stack(rows), list(labels) * 3)

    def name(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """The class of each waveform."""
        return self.model.predict(np.stack([self.features(w) for w in waveforms]))

    def share(self, waveforms: Sequence[np.ndarray], labels: Sequence[str]) -> float:
        """The share of waveforms that are taken for what they should be."""
        return float(np.mean(self.name(waveforms) == np.asarray(labels)))
