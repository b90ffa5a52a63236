"""Log-mel frames as AudioSet's networks see them: numpy, at any rate.

VGGish, YAMNet and PaSST share one family of filters: triangles that are straight on the HTK mel scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 16_000  # Hz, of log_mel_frames
WINDOW, STEP, FFT = 400, 160, 512  # samples: 25 ms windows every 10 ms
BANDS, LOWEST, HIGHEST = 64, 125.0, 7500.0  # mel bands from and to Hz


def mel_filters(bands: int, fft: int, rate: int, low: float, high: float) -> NDArray[np.float64]:
    """Filters [fft // 2 + 1, bands]: triangles with a peak of one, straight on the HTK mel scale."""

    def mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return 1127.0 * np.log1p(np.asarray(hertz, dtype=np.float64) / 700.0)

    edges = np.linspace(mel(low), mel(high), bands + 2)
    bins = mel(np.linspace(0.0, rate / 2, fft // 2 + 1))[:, None]
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall))


def magnitudes(waveform: NDArray[np.floating], window: int, step: int, fft: int) -> NDArray[np.float64]:
    """Magnitudes [n, fft // 2 + 1] of a waveform [S]: periodic Hann windows, whole ones only, no padding.

    n = 1 + (S - window) // step; none at all if the waveform is shorter than a window.
    """
    if len(waveform) < window:
        return np.zeros((0, fft // 2 + 1))
    frames = np.lib.stride_tricks.sliding_window_view(waveform, window)[::step]
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)
    return np.abs(np.fft.rfft(frames * hann, fft))


def log_mel_frames(waveform: NDArray[np.floating], offset: float) -> NDArray[np.float32]:
    """Frames [n, 64] of ln(mel + offset) of a waveform [S] at 16 kHz: VGGish has 0.01, YAMNet 0.001."""
    filters = mel_filters(BANDS, FFT, RATE, LOWEST, HIGHEST)
    return np.log(magnitudes(waveform, WINDOW, STEP, FFT) @ filters + offset).astype(np.float32)


def patches(frames: NDArray[np.float32], length: int, step: int) -> NDArray[np.float32]:
    """Whole patches [n, length, bands] of frames [T, bands], one every ``step`` frames."""
    if len(frames) < length:
        return np.zeros((0, length, frames.shape[1]), np.float32)
    view = np.lib.stride_tricks.sliding_window_view(frames, length, axis=0)[::step]
    return np.array(view.transpose(0, 2, 1), order="C")  # a copy: torch takes no view of a read-only one
