"""Signal metrics that need no network: log-mel statistics, mel distance, onsets.

S samples at 16 kHz, T frames of 10 ms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vab.timing.sound import LAG, peaks
from vab.utils.mel import RATE, log_mel_frames, magnitudes, mel_filters

MEL_FLOOR = 1e-3  # smaller mel magnitudes count as this: about what YAMNet takes for silence
WINDOWS = (64, 128, 256, 512, 1024, 2048)  # samples, of the multi-scale mel distance; hop a quarter
MIN_MAGNITUDE = 1e-5  # of its mel bands
MIN_RISE = 0.35  # nats, mean over the bands: how far an onset must stand above its surroundings
ONSET_TOLERANCE_SECONDS = 0.05  # by which two onsets may differ and still agree


def statistics(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Mean and deviation over time of log-mel frames: [128] of a waveform [S]."""
    frames = log_mel_frames(waveform, MEL_FLOOR)
    return np.concatenate([frames.mean(0), frames.std(0)])


def mel_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Mean |log10 mel a - log10 mel b| of two waveforms over bands, frames and six windows of 4 to 128 ms.

    A window of w samples has w / 16 bands from 0 to 8 kHz. The longer waveform is cut to the shorter; times
    twenty it is dB. Raises ``ValueError`` if that is less than the longest window.
    """
    common = min(len(a), len(b))
    if common < WINDOWS[-1]:
        raise ValueError(f"the mel distance needs {WINDOWS[-1]} samples, not {common}")
    distances = []
    for window in WINDOWS:
        filters = mel_filters(window // 16, window, RATE, 0.0, RATE / 2)
        # [S] -> [T, bands], in log10
        log_mels = [
            np.log10(np.maximum(magnitudes(x[:common], window, window // 4, window) @ filters, MIN_MAGNITUDE))
            for x in (a, b)
        ]
        distances.append(np.abs(log_mels[0] - log_mels[1]).mean())
    return float(np.mean(distances))


def onsets(waveform: NDArray[np.floating]) -> NDArray[np.float32]:
    """Onset times of a waveform [S]: seconds, ascending [n].

    An onset is a local maximum of the spectral flux (the mean over mel bands of what rises within 20 ms) that
    stands 0.35 nats above the mean of the flux around it. A clip that starts amid a sound has none
    there: a cut is no event. Unlike those of :mod:`vab.timing.sound`, which are the same at any gain, these
    are of what is above the floor of the log-mel frames, as the other metrics here hear it.
    """
    frames = log_mel_frames(waveform, MEL_FLOOR)
    # spectral flux [T]: the mean over the bands of what has risen in 20 ms
    flux = np.maximum(frames[LAG:] - frames[:-LAG], 0.0).mean(1)
    places, _ = peaks(flux, MIN_RISE)
    # the middle of the window that has risen
    return ((places + LAG) * 0.01 + 0.0125).astype(np.float32)


def onset_agreement(
    reference: NDArray[np.floating],
    generated: NDArray[np.floating],
    tolerance: float = ONSET_TOLERANCE_SECONDS,
) -> float:
    """F1 of rising onset times [n], [m]: each agrees with at most one within ``tolerance`` seconds of it.

    1 if there is none on either side.
    """
    if not len(reference) and not len(generated):
        return 1.0
    # both lists ascend, so that pairing greedily from the left pairs as many as can be
    hits = i = j = 0
    while i < len(reference) and j < len(generated):
        later = float(generated[j]) - float(reference[i])
        if abs(later) <= tolerance + 1e-6:
            hits += 1
            i += 1
            j += 1
        elif later > 0:
            i += 1
        else:
            j += 1
    return 2 * hits / (len(reference) + len(generated))
