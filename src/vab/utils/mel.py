"""Mel filters and log-mel frames, in numpy at any sample rate.

Two families of triangular filters share the HTK scale. Those of AudioSet's networks (VGGish, YAMNet, PaSST)
have sides that are straight lines over mel; those of torchaudio, which the bundled codec and Synchformer use,
are straight over hertz.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # Hz, of log_mel_frames
WINDOW = 400  # samples: 25 ms
STEP = 160  # samples: 10 ms
FFT = 512  # samples
BANDS = 64
MIN_HERTZ = 125.0
MAX_HERTZ = 7500.0


def mel_filters(
    bands: int, fft: int, rate: int, low: float, high: float, straight_in: Literal["mel", "hertz"] = "mel"
) -> NDArray[np.float64]:
    """Filters [fft // 2 + 1, bands] between ``low`` and ``high`` Hz: triangles with a peak of one.

    Their corners are evenly spaced on the HTK mel scale, their sides straight lines over mel or over hertz.
    """
    bins = np.linspace(0.0, rate / 2, fft // 2 + 1)
    if straight_in == "mel":
        # Both in natural logarithms, as AudioSet's own code writes the scale.
        ends = 1127.0 * np.log1p(np.array([low, high]) / 700.0)
        edges = np.linspace(ends[0], ends[1], bands + 2)
        bins = 1127.0 * np.log1p(bins / 700.0)
    else:
        # The same scale in decimal logarithms, as torchaudio writes it; the corners go back to hertz.
        ends = 2595.0 * np.log10(1.0 + np.array([low, high]) / 700.0)
        edges = 700.0 * (10.0 ** (np.linspace(ends[0], ends[1], bands + 2) / 2595.0) - 1.0)

    # [bins, 1] against [bands]: the lower of the rising and the falling side, where it is above zero
    bins = bins[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


def magnitudes(waveform: NDArray[np.floating], window: int, step: int, fft: int) -> NDArray[np.float64]:
    """Magnitudes [n, fft // 2 + 1] of a waveform [S]: periodic Hann windows, whole ones only, no padding.

    n = 1 + (S - window) // step; none at all if the waveform is shorter than a window.
    """
    if len(waveform) < window:
        return np.zeros((0, fft // 2 + 1))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, window)[::step]  # [n, window], a view
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)
    return np.abs(np.fft.rfft(frames * hann, fft))


def log_mel_frames(waveform: NDArray[np.floating], offset: float) -> NDArray[np.float32]:
    """Frames [n, 64] of ln(mel + offset) of a waveform [S] at 16 kHz: VGGish has 0.01, YAMNet 0.001."""
    filters = mel_filters(BANDS, FFT, RATE, MIN_HERTZ, MAX_HERTZ)
    return np.log(magnitudes(waveform, WINDOW, STEP, FFT) @ filters + offset).astype(np.float32)


def patches(frames: NDArray[np.float32], length: int, step: int) -> NDArray[np.float32]:
    """Whole patches [n, length, bands] of frames [T, bands], one every ``step`` frames."""
    if len(frames) < length:
        return np.zeros((0, length, frames.shape[1]), np.float32)
    view = np.lib.stride_tricks.sliding_window_view(frames, length, axis=0)[::step]
    # [n, bands, length] -> [n, length, bands]; a copy, as torch warns of views that are read-only
    return np.array(view.transpose(0, 2, 1), order="C")
