"""An outside judge of sound: which thing does this sound like?

YAMNet (AudioSet's tagger) scores every 0.96 s of a sound; a logistic regression on the mean and the
maximum of its log scores names the class. It is fitted on real training sounds and on copies of them
with white noise at 20 dB and through Opus at 6 kbit/s, so that it forgives what a codec does and
still knows a cow from a helicopter. It has never seen a sound of our codec or our model.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RATE = 16_000
PATCH, STEP = 96, 48  # frames of 10 ms
SHORTEST = 0.975 + 0.48  # seconds; shorter sounds are repeated


class Yamnet:
    """AudioSet scores of a sound, from the TFLite file whose input is one log-mel patch [96, 64]."""

    def __init__(self, path: str | Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self.input = self.interpreter.get_input_details()[0]
        self.output = self.interpreter.get_output_details()[0]
        self.filters = _mel_filters()

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Waveform [S] -> log-mel frames [n, 64]: 25 ms windows every 10 ms, 125 to 7500 Hz."""
        frames = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160]
        hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(400) / 400)
        return np.log(np.abs(np.fft.rfft(frames * hann, 512)) @ self.filters + 0.001).astype(np.float32)

    def scores(self, waveform: np.ndarray) -> np.ndarray:
        """Waveform [S] at 16 kHz -> scores [patches, 521] in 0..1."""
        frames = self.log_mel(repeated(waveform, SHORTEST))
        found = []
        for start in range(0, len(frames) - PATCH + 1, STEP):
            patch = frames[start : start + PATCH].reshape(self.input["shape"])
            self.interpreter.set_tensor(self.input["index"], patch)
            self.interpreter.invoke()
            found.append(self.interpreter.get_tensor(self.output["index"]).reshape(-1).copy())
        return np.stack(found)


def _mel_filters() -> np.ndarray:
    """YAMNet's filters [257, 64]: triangles on the HTK mel scale, 125 to 7500 Hz."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    bins = mel(np.linspace(0.0, RATE / 2, 257))[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0.0, np.minimum(rise, fall))
    filters[0] = 0.0
    return filters


def repeated(waveform: np.ndarray, seconds: float) -> np.ndarray:
    """The waveform, said again until it lasts ``seconds``."""
    need = int(np.ceil(seconds * RATE))
    return waveform if len(waveform) >= need else np.resize(waveform, need)


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
