"""Where one window ends and the next goes on, the sound steps no more than it does elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vab import VABPipeline
from vab.config import FRAME_RATE, HOP_LENGTH, samples_to_frames
from vab.models.hub import find_model, is_model
from vab.sampling.parallel import windows
from vab.sampling.stages import padded_length, window_overlap

CLIP = Path(__file__).parents[1] / "examples" / "cat.mp4"
SECONDS = 17.0


def steps(waveform: np.ndarray, places: np.ndarray) -> np.ndarray:
    """By how many dB the level of 100 ms differs before and after each place (samples), the most of 60 ms."""
    length = round(0.1 * FRAME_RATE * HOP_LENGTH)
    energy = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    found = []
    for shift in range(-30, 31, 10):
        at = places + shift * 16
        before, after = energy[at] - energy[at - length], energy[at + length] - energy[at]
        found.append(np.abs(10 * np.log10((after + 1e-4) / (before + 1e-4))))
    return np.max(found, axis=0)


@pytest.mark.skipif(not is_model(find_model()), reason="the model is not in this installation")
def test_a_seam_is_no_louder_a_step_than_the_sound_s_own() -> None:
    pipe = VABPipeline.from_pretrained(device="cpu")
    config = pipe.config.model
    sound = next(pipe.generate_many(CLIP, 1, seed=0, seconds=SECONDS)).raw
    total = padded_length(samples_to_frames(len(sound)), config)
    spans = windows(total, config.audio_length, window_overlap(config), pipe.config.decode.last_window)
    seams = np.array([stop for _, stop in spans[:-1]]) * HOP_LENGTH
    assert len(seams) >= 3
    elsewhere = np.arange(4000, len(sound) - 4000, 800)
    elsewhere = elsewhere[np.abs(elsewhere[:, None] - seams).min(1) > 4000]

    def share_below(waveform: np.ndarray) -> float:
        """Of the other places, the share whose step is smaller than a seam's; on average a half by chance."""
        own = steps(waveform, elsewhere)
        return float(np.mean([(own < step).mean() for step in steps(waveform, seams)]))

    assert share_below(sound) < 0.9
    # the measure is not blind: windows of another loudness each would be found
    louder = sound.copy()
    for n, seam in enumerate(seams):
        louder[seam:] *= 10 ** ((18 if n % 2 == 0 else -18) / 20)
    assert share_below(louder) > 0.9
