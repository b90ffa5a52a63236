"""What the timeline is snapped to: shot cuts, sudden motion, onsets of sounds; and outlines of sounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.config import SAMPLE_RATE, samples_to_frames
from vab.media.file import MediaFile
from vab.media.filters import resampled
from vab.models.hub import find_model
from vab.studio.mix import RATE, read_sound, sound_path
from vab.timing.motion import read_motion
from vab.timing.predictor import MotionPredictor, load_predictor, pick_events
from vab.timing.sound import onset_times
from vab.utils.files import write_json, write_whole

BINS = 200  # of a sound's outline, a second
PICTURE = "picture.json"  # what is known of the picture
_DECIMALS = 3  # of a time in seconds


def analyse(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of what happens in a project: ``{"cuts": [s], "motion": [s], "onsets": {SID: [s]}}``.

    ``cuts``: another shot begins; ``motion``: something moves as if it sounded; ``onsets``: of each sound,
    from its start. All of it is kept in the folder, and computed once. ``MediaError`` for a file that cannot
    be read.
    """
    picture = _kept(folder / PICTURE) or _look(folder)
    onsets = {sound: _onsets(folder, sound) for sound in document["sounds"]}
    return {"cuts": picture["cuts"], "motion": picture["motion"], "onsets": onsets}


def _look(folder: Path) -> dict[str, list[float]]:
    """Cuts and motion of the picture of a project; a photo has neither."""
    with MediaFile(folder / "picture.mp4") as file:
        motion = read_motion(file)
        seconds = file.seconds
    predictor = _predictor()
    sudden = np.zeros(0)
    if predictor is not None and len(motion.seconds):
        onset, _ = predictor.predict(motion, samples_to_frames(round(seconds * SAMPLE_RATE)))
        sudden, _ = pick_events(onset, predictor.config.threshold)
    found = {"cuts": _rounded(motion.cuts()), "motion": _rounded(sudden)}
    write_json(folder / PICTURE, found)
    return found


@cache
def _predictor() -> MotionPredictor | None:
    """The bundled model's: it says when a motion is one that sounds."""
    return load_predictor(find_model(None))


def _onsets(folder: Path, sound: str) -> list[float]:
    """Onset times of a sound in seconds from its start."""
    path = sound_path(folder, sound)
    kept = _kept(path.with_suffix(".json"))
    if kept is not None:
        return list(kept["onsets"])
    # Onsets are found at the rate that the model hears: [C,S] at 48 kHz -> [S] at 16 kHz
    waveform = read_sound(path).mean(0, keepdims=True)
    length = round(waveform.shape[1] * SAMPLE_RATE / RATE)
    times = _rounded(onset_times(resampled(waveform, RATE, SAMPLE_RATE, length)[0]))
    write_json(path.with_suffix(".json"), {"onsets": times})
    return times


def _kept(path: Path) -> dict[str, Any] | None:
    """What was computed before; None if there is nothing that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else None
    return None


def _rounded(times: NDArray[np.float64]) -> list[float]:
    return [round(time, _DECIMALS) for time in times.tolist()]


def peaks(path: Path) -> bytes:
    """The outline of a sound, to draw it: bins a second as uint32, then (min, max) * 127 of each as int8.

    All numbers are little-endian; a bin holds the lowest and the highest sample of all channels. It is kept
    beside the sound. ``MediaError`` if that cannot be read.
    """
    kept = path.with_suffix(".peaks")
    with suppress(OSError):
        return kept.read_bytes()
    # [C,S] -> [C,bins,samples of a bin]; the last bin may be less than full, and repeats its last sample.
    waveform = read_sound(path)
    size = RATE // BINS
    padded = np.pad(waveform, ((0, 0), (0, -waveform.shape[1] % size)), mode="edge")
    bins = padded.reshape(len(padded), -1, size)
    outline = np.stack([bins.min((0, 2)), bins.max((0, 2))], axis=1)
    data = np.uint32(BINS).astype("<u4").tobytes() + np.rint(outline.clip(-1, 1) * 127).astype("i1").tobytes()
    write_whole(kept, data)
    return data
