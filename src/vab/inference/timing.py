"""Where a timing curve comes from: a film's own motion, another sound, a file of times, an array."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, HOP_LENGTH, Preset
from vab.errors import SettingError
from vab.media.file import MediaFile
from vab.media.sources.given import ArrayLike
from vab.timing.curve import NUM_CHANNELS, TimingCurve, TimingError, read_curve
from vab.timing.motion import Motion, read_motion
from vab.timing.predictor import MotionPredictor
from vab.timing.sound import curve_of
from vab.utils.provenance import sha256

MOTION, NONE, SOUND = "motion", "none", "sound:"
Timing: TypeAlias = TimingCurve | ArrayLike | str | Path | None
_HELP = "motion, none, sound:FILE, or a CSV file with the columns seconds,onset,level_db"
_LATE_SECONDS = 0.05  # by which a file of times may go beyond the clip


def choose(timing: Timing, preset: Preset, predictor: MotionPredictor | None) -> Timing:
    """The source that is meant: None is the motion where the model follows one, else none.

    ``SettingError`` for a source that this model cannot follow, or that there is none of this name.
    """
    if timing is None:
        return MOTION if preset.model.timing and predictor is not None else NONE
    if isinstance(timing, str) and timing == NONE:
        return NONE
    if not preset.model.timing:
        raise SettingError(
            f"{preset.name} takes no timing: it was trained without; leave timing out, or say none"
        )
    if isinstance(timing, str) and timing == MOTION and predictor is None:
        raise SettingError(
            f"{preset.name} has no motion predictor (motion.safetensors); say none, or give a curve"
        )
    if isinstance(timing, str) and not timing.startswith(SOUND) and Path(timing).suffix.lower() != ".csv":
        raise SettingError(f"timing is {_HELP}, not {timing!r}")
    return timing


def resolve(
    source: Timing,
    file: MediaFile,
    num_frames: int,
    *,
    predictor: MotionPredictor | None = None,
    motion: Callable[[], Motion] | None = None,
) -> TimingCurve | None:
    """The curve [T] for a clip from what ``choose`` gave; None for ``none``, and for the motion of an image.

    ``num_frames``: T that the model makes, the clip's own or more. ``motion`` gives the motion of the file
    where it is being read anyway. Raises ``TimingError`` or ``MediaError``, one line each, for a file of
    times that is none or goes beyond the clip, a sound that cannot be read, an array of another shape.
    """
    if source is None or (isinstance(source, str) and source == NONE):
        return None
    if isinstance(source, str) and source == MOTION:
        assert predictor is not None
        if file.is_image:
            return None
        return predictor.curve(read_motion(file) if motion is None else motion(), num_frames)
    if isinstance(source, str) and source.startswith(SOUND):
        return _of_sound(source.removeprefix(SOUND), num_frames)
    if isinstance(source, str | Path):
        return _of_times(Path(source), file, num_frames)
    curve = source if isinstance(source, TimingCurve) else _of_array(np.asarray(source))
    return fitted(curve, num_frames)


def record(source: Timing, curve: TimingCurve | None) -> dict[str, Any]:
    """What a result says of its timing: the source and a hash of the curve; nothing without one."""
    if curve is None:
        return {}
    name = "curve"
    if isinstance(source, str) and source.startswith(SOUND):
        name = SOUND + Path(source.removeprefix(SOUND)).name  # no path: tags travel
    elif isinstance(source, str | Path):
        name = Path(source).name
    return {"timing": name, "timing_sha256": sha256(curve.channels().tobytes())[:16]}


def fitted(curve: TimingCurve, num_frames: int) -> TimingCurve:
    """The curve with ``num_frames``: cut, or with nothing more that happens, and silence."""
    curve = curve.cut(0, num_frames)
    missing = num_frames - curve.num_frames
    if not missing:
        return curve
    onset = None if curve.onset is None else np.pad(curve.onset, (0, missing))
    level = None if curve.level is None else np.pad(curve.level, (0, missing), constant_values=-math.inf)
    return TimingCurve(onset, None if level is None else np.nan_to_num(level, neginf=-1.5))


def _of_sound(name: str, num_frames: int) -> TimingCurve:
    if not name:
        raise SettingError("timing sound: needs a file, sound:FILE")
    with MediaFile(name) as sound:
        waveform = sound.audio(0.0, num_frames * HOP_LENGTH / (FRAME_RATE * HOP_LENGTH))
        if not np.isfinite(waveform).all():
            raise TimingError(f"{name}: its sound holds values that are not numbers")
    return fitted(curve_of(waveform), num_frames)


def _of_times(path: Path, file: MediaFile, num_frames: int) -> TimingCurve:
    own = read_curve(path)
    end = num_frames / FRAME_RATE if file.is_image else file.seconds
    last = own.num_frames / FRAME_RATE
    if last > end + _LATE_SECONDS:
        raise TimingError(f"{path}: goes on to {last:.2f} s, but {file.path.name} ends at {end:.2f} s")
    return read_curve(path, num_frames)


def _of_array(values: NDArray[Any]) -> TimingCurve:
    """A curve of an array: onset [T], onset and level [T,2], or the channels [T,4] of a curve."""
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise TimingError(
            f"a timing curve is an array [T] of onsets or [T,2] with levels, not {values.shape}"
        )
    if values.ndim == 1:
        return TimingCurve(values)
    if values.shape[1] == 2:
        return TimingCurve(values[:, 0], values[:, 1])
    if values.shape[1] == NUM_CHANNELS:
        return TimingCurve(*(values[:, n] if values[:, 2 + n].any() else None for n in range(2)))
    raise TimingError(
        f"a timing curve is an array [T] of onsets or [T,2] with levels, not {list(values.shape)}"
    )
