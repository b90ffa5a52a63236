"""Where a timing curve comes from: a film's own motion, another sound, a file of times, an array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE, Preset, audio_frames
from vab.errors import SettingError, first_line
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
_STILL = 1.5  # grey levels in 40 ms: a film of which no patch ever changes by more stands still


def choose(timing: Timing, preset: Preset, has_predictor: bool) -> Timing:
    """The source that is meant: None is the motion where the model follows one, else none.

    ``SettingError`` for a source that this model cannot follow, or that there is none of this name.
    """
    if timing is None:
        return MOTION if preset.model.timing and has_predictor else NONE
    if is_named(timing, NONE):
        return NONE
    if not preset.model.timing:
        raise SettingError(f"{preset.name} takes no timing curve: it was trained without one; leave it out")
    if is_named(timing, MOTION) and not has_predictor:
        raise SettingError(
            f"{preset.name} has no motion predictor (motion.safetensors); say none, or give a curve"
        )
    if not isinstance(timing, str) or timing == MOTION or timing.startswith(SOUND):
        return timing
    if Path(timing).suffix.lower() != ".csv":
        raise SettingError(f"timing is {_HELP}, not {timing!r}")
    return timing


def resolve(
    source: Timing,
    file: MediaFile,
    num_frames: int,
    predictor: MotionPredictor | None = None,
    motion: Callable[[], Motion] | None = None,
) -> TimingCurve | None:
    """The curve [T] for a clip from what ``choose`` gave; None for ``none``, and where nothing moves.

    An image has no motion, and neither has a film that stands still: that does not say that nothing is heard.

    ``num_frames``: T of the clip; a curve may be shorter or longer. ``motion`` gives the motion of the file
    where that is being read anyway. Raises ``TimingError`` or ``MediaError``, one line each, for a file of
    times that is none or goes beyond the clip, a sound that cannot be read, an array of another shape.
    """
    if source is None or is_named(source, NONE):
        return None
    if is_named(source, MOTION):
        assert predictor is not None
        if file.is_image:
            return None
        seen = read_motion(file) if motion is None else motion()
        if seen.values[:, :, 0].max(initial=0.0) < _STILL:
            return None
        # After the picture's end nothing is known; nor is what moves measured by the stillness after it.
        return predictor.curve(seen, min(num_frames, audio_frames(file.times.seconds)))
    if isinstance(source, str) and source.startswith(SOUND):
        return _of_sound(source.removeprefix(SOUND), num_frames)
    if isinstance(source, str | Path):
        return _of_times(Path(source), file, num_frames)
    return source if isinstance(source, TimingCurve) else _of_array(np.asarray(source))


def check(source: Timing) -> None:
    """Raise what ``resolve`` would for a file that cannot be used with any clip."""
    if not isinstance(source, str | Path) or source in (MOTION, NONE):
        return
    if str(source).startswith(SOUND):
        _of_sound(str(source)[len(SOUND) :], 1)
    else:
        read_curve(source)


def record(source: Timing, is_image: bool = False) -> dict[str, str]:
    """What a result says of its timing, ``choose``'s ``source``: its kind, and a hash of what was given.

    Known before the input is read. Empty for ``none``, and for the motion of an image, which has none.
    ``TimingError`` for a file that cannot be read.
    """
    if is_named(source, NONE) or source is None or (is_named(source, MOTION) and is_image):
        return {}
    if is_named(source, MOTION):
        return {"timing": MOTION}
    if isinstance(source, str | Path):
        kind, name = (
            (SOUND, str(source)[len(SOUND) :]) if str(source).startswith(SOUND) else ("", str(source))
        )
        try:
            content = sha256(Path(name).read_bytes())[:16]
        except OSError as error:
            raise TimingError(f"{name}: cannot be read ({first_line(error)})") from None
        return {"timing": f"{kind}{Path(name).name}#{content}"}  # no path: tags travel
    curve = source if isinstance(source, TimingCurve) else _of_array(np.asarray(source))
    return {"timing": f"curve#{curve.fingerprint}"}


def is_named(source: Timing, word: str) -> bool:
    """True for this word; an array that is compared with a word would be compared number by number."""
    return isinstance(source, str) and source == word


def _of_sound(name: str, num_frames: int) -> TimingCurve:
    if not name:
        raise SettingError("timing sound: needs a file, sound:FILE")
    with MediaFile(name) as sound:
        # After its end nothing is known: the model decides, where zeros would tell it of silence.
        seconds = num_frames / FRAME_RATE
        if sound.has_audio:
            end = sound.sound_end() if sound.has_video else sound.seconds
            seconds = max(1 / FRAME_RATE, min(seconds, end))
        waveform = sound.audio(0.0, seconds)
        if not np.isfinite(waveform).all():
            raise TimingError(f"{name}: its sound holds values that are not numbers")
    return curve_of(waveform)


def _of_times(path: Path, file: MediaFile, num_frames: int) -> TimingCurve:
    end, last = num_frames / FRAME_RATE, read_curve(path).num_frames / FRAME_RATE
    if last > end + _LATE_SECONDS:
        raise TimingError(f"{path}: goes on to {last:.2f} s, but {file.path.name} ends at {end:.2f} s")
    return read_curve(path, num_frames).with_level()


def _of_array(values: NDArray[Any]) -> TimingCurve:
    """A curve of an array: onset [T], onset and level [T,2], or the channels [T,4] of a curve."""
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise TimingError(
            "a timing curve is an array [T] of onsets or [T,2] with levels in real numbers, "
            f"not {values.dtype} {list(values.shape)}"
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
