"""What the timeline snaps to: shot cuts, fast motion, onsets of sounds; and the outlines of sounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, SAMPLE_RATE, samples_to_frames
from vab.media.file import MediaFile
from vab.media.filters import resampled
from vab.studio.mix import RATE, read_sound, sound_path
from vab.timing.motion import Motion, read_motion
from vab.timing.sound import onset_times
from vab.utils.files import leads_elsewhere, write_json, write_whole

BINS = 200  # of a sound's outline, a second
STILL = 0.6  # grey levels in 40 ms: a still picture changes by less, as its codec renews it
NEAR, FAR = 8, 25  # audio frames on either side, 160 ms and half a second
FASTER = 0.35  # nats of motion above the usual
EVEN = 0.5  # frames by which one may come earlier or later than by the mean rate
CUT_SECONDS = 0.06  # around a cut, in which all of the picture changes
PICTURE = "picture.json"  # what is known of the picture
_DECIMALS = 3  # of a time in seconds


def analyse(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of what happens in a project: ``cuts``, ``motion`` and ``frames`` [s], ``onsets`` {SID: [s]}.

    ``cuts``: another shot begins; ``motion``: the picture moves fastest, as a hand that strikes and a ball
    that bounces do; ``frames``: when each is shown, None if one follows another evenly; ``onsets``: of each
    sound, from its start. All of it is computed once, and kept in the folder. ``MediaError`` for a file that
    cannot be read.
    """
    picture = _kept(folder / PICTURE)
    if picture is None or "frames" not in picture:
        picture = _look(folder, document)
    onsets = {sound: _onsets(folder, sound) for sound in document["sounds"]}
    return {name: picture[name] for name in ("cuts", "motion", "frames")} | {"onsets": onsets}


def _look(folder: Path, document: Mapping[str, Any]) -> dict[str, list[float] | None]:
    """Cuts, fast moments and uneven frames of the picture of a project; a photo has none."""
    with MediaFile(folder / "picture.mp4") as file:
        motion = read_motion(file)
        length = samples_to_frames(round(file.seconds * SAMPLE_RATE))
    cuts = motion.cuts()
    fast = fast_moments(motion, length)
    # A cut is no motion.
    fast = fast[(np.abs(fast[:, None] - cuts) > CUT_SECONDS).all(1)]
    frames = uneven_frames(folder / str(document["clip"]["upload"]))
    found = {"cuts": _rounded(cuts), "motion": _rounded(fast), "frames": frames}
    write_json(folder / PICTURE, found)
    return found


def uneven_frames(path: Path) -> list[float] | None:
    """Seconds at which the frames of a film are shown, from 0 on; None if its mean rate tells that as well.

    None for an image, too.
    """
    with MediaFile(path) as file:
        if file.is_image:
            return None
        times = file.times
        ticks = np.unique(times.pts[times.shown]) - times.start
    seconds = ticks * float(times.time_base)
    even = np.linspace(0, times.seconds, len(seconds), endpoint=False)
    if np.abs(seconds - even).max() < EVEN * times.seconds / len(seconds):
        return None
    return _rounded(seconds)


def fast_moments(motion: Motion, num_frames: int) -> NDArray[np.float64]:
    """Seconds at which the picture moves fastest, in a film of so many audio frames, ascending [n].

    The amount of motion is then the highest within 160 ms, and well above the mean of the second around it.
    """
    amount = np.log(STILL + motion.resampled(num_frames)[:, :, 0].mean(1))  # [T]
    highest = _around(amount, NEAR).max(1)
    usual = _around(amount, FAR).mean(1)
    first = np.diff(amount, prepend=-np.inf) > 0  # a plateau has one
    places = np.flatnonzero(first & (amount >= highest) & (amount > usual + FASTER))
    return (places + 0.5) / np.float64(FRAME_RATE)


def _around(values: NDArray[np.floating], radius: int) -> NDArray[np.floating]:
    """Neighbours [T, 2 radius + 1] of each of values [T]; the ends are repeated."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, radius, mode="edge"), 2 * radius + 1)


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
    if not leads_elsewhere(kept):  # a link in a stranger's project would show any file
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
