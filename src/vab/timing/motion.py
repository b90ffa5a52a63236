"""The motion of a film: how much moves where, which way and how suddenly, at the film's own frame rate.

Frames become small and grey, 96 x 72 whatever their shape, and are compared with the one before. A grid of
6 x 8 patches keeps apart what moves in different places: of a hand that strikes in a still room, or before a
moving crowd, one patch tells what the mean over the frame does not.

Motion precedes its sound (a strike is fastest before it is heard), so values keep their sign and their time;
what of it sounds is for :mod:`vab.timing.predictor` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vab.config import FRAME_RATE
from vab.media.file import MediaFile
from vab.media.streams import orientation

WIDTH, HEIGHT = 96, 72
ROWS, COLUMNS = 6, 8
PATCHES = ROWS * COLUMNS
CHANNELS = ("amount", "change", "across", "down", "light")
SHORTEST_SECONDS = 0.024  # between two frames that are compared: of 60 a second every other one is
LONGEST_HELD_SECONDS = 0.09  # that a frame is repeated for before it counts as a still picture
_HELD = 0.02  # grey levels: frames that differ by less, in the mean, are one
_REFINED = 0.2  # of the motion before and after it: a repeated frame that a codec refined changes by less
_STEP_SECONDS = 0.04  # values are given for so much time, that of one frame at 25 a second
_NOISE = 200.0  # of squared grey levels in a patch: gradients that are no more than noise tell no velocity
_FASTEST = 8.0  # pixels in 40 ms: beyond that a gradient tells the direction at most
_CUT = 12.0  # grey levels by which two shots differ in the mean, at least
_SHORTEST_SHOT_SECONDS = 0.2  # between two cuts; what changes and changes back sooner is a flash
_CHUNK = 10  # frames that are compared at once: with more of them the numbers leave a core's own cache
# Pixel formats whose first plane is the luma, a byte a pixel.
_LUMA_FIRST = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12")
_FEWEST = 7  # of its pixels each way for one of the 96 x 72: boxes of whole pixels are alike then


@dataclass(frozen=True)
class Motion:
    """Motion between the frames of a film: ``values`` float32 [F,P,C] at ``seconds`` float64 [F].

    P patches row by row, C as in ``CHANNELS``, each for 40 ms whatever the frame rate: ``amount``, the mean
    absolute difference in grey levels of 0..255; ``change``, that of the difference itself from one frame to
    the next; ``across`` and ``down``, the velocity in pixels (of 96 x 72) to the right and downwards;
    ``light``, the mean difference. A time lies in the middle between two frames, that of ``change`` half a
    step earlier.
    """

    seconds: NDArray[np.float64]
    values: NDArray[np.float32]

    def resampled(self, num_frames: int) -> NDArray[np.float32]:
        """The values [T,P,C] at the middles of the audio frames, linear in between, zero outside."""
        middles = (np.arange(num_frames) + 0.5) / FRAME_RATE
        if not len(self.seconds):
            return np.zeros((num_frames, PATCHES, len(CHANNELS)), np.float32)
        flat = self.values.reshape(len(self.values), -1)
        # 1. Of all channels but change: the pair of motions around each time, and the place between them.
        result = _between(self.seconds, flat, middles).reshape(num_frames, PATCHES, len(CHANNELS))
        # 2. A second difference belongs to the frame between two differences.
        steps = np.diff(self.seconds, prepend=self.seconds[0])
        change = _between(self.seconds - steps / 2, self.values[:, :, 1], middles)
        result[:, :, 1] = change
        return result

    def cuts(self) -> NDArray[np.float64]:
        """Seconds at which another shot begins: all of the picture changes, far more than around it."""
        if len(self.seconds) < 3:
            return np.zeros(0)
        amounts = self.values[:, :, 0]
        mean = amounts.mean(1)
        around = np.median(sliding_window_view(np.pad(mean, 12, mode="reflect"), 25), axis=1)
        sudden = (mean > _CUT) & (mean > 5 * around) & ((amounts > _CUT / 3).mean(1) > 0.8)
        places = np.flatnonzero(sudden[:-1])
        times = (self.seconds[places] + self.seconds[places + 1]) / 2
        near = np.diff(times) < _SHORTEST_SHOT_SECONDS
        return times[~(np.append(near, False) | np.insert(near, 0, False))] if len(times) else times


def _between(
    seconds: NDArray[np.float64], values: NDArray[np.float32], wanted: NDArray[np.floating]
) -> NDArray[np.float32]:
    """``values`` [F,n] at ``seconds`` [F], linearly at the ``wanted`` times [T]; zero a while outside."""
    after = np.searchsorted(seconds, wanted).clip(0, len(seconds) - 1)
    before = np.maximum(after - 1, 0)
    span = seconds[after] - seconds[before]
    share = np.divide(wanted - seconds[before], span, out=np.zeros_like(wanted), where=span > 0)
    share = share.clip(0, 1)[:, None].astype(np.float32)
    result = values[before] * (1 - share) + values[after] * share
    outside = (wanted < seconds[0] - _STEP_SECONDS) | (wanted > seconds[-1] + _STEP_SECONDS)
    result[outside] = 0
    return result


class MotionReader:
    """Compares the frames of a film as they are decoded: call it with each, in order, then ``motion``.

    Frames that come sooner than 24 ms after the last are passed over. A frame that repeats the one before
    (15 frames a second in a film of 30) is passed over too, so that motion does not flicker between a value
    and zero; after 90 ms of them the picture stands still. A repeat need not be equal: codecs refine it.
    Memory: 1 kB a frame.
    """

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        self._orientation: tuple[bool, int, int] | None = None
        self._latest = -1.0  # seconds of the latest frame that was not passed over for coming too soon
        self._frames: list[NDArray[np.uint8]] = []  # [72,96] each: not compared yet, after the last two
        self._seconds: list[float] = []
        self._newest: NDArray[np.uint8] | None = None  # [72,96]: the latest frame of all
        self._step = 0.0  # grey levels: what changed with the last frame that was no repeat
        self._held: list[tuple[float, NDArray[np.uint8], float]] = []  # repeats: seconds, frame, grey levels
        self._resting = False  # the picture stands still
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float16]]] = []

    def __call__(self, seconds: float, frame: Any) -> None:
        """See a frame of PyAV's that is shown from ``seconds`` on."""
        if seconds - self._latest < SHORTEST_SECONDS:
            return
        self._latest = seconds
        if self._orientation is None:
            self._orientation = orientation(frame)
        swap, down, right = self._orientation
        width, height = (HEIGHT, WIDTH) if swap else (WIDTH, HEIGHT)
        large = frame.height >= _FEWEST * height and frame.width >= _FEWEST * width
        grey: Any
        if large and frame.format.name in _LUMA_FIRST:
            grey = small_luma(frame, height, width)
        else:
            grey = self._scaler.reformat(
                frame, width=width, height=height, format="gray", interpolation="AREA", threads=1
            ).to_ndarray()
        self.see(seconds, (grey.T if swap else grey)[::down, ::right])

    def see(self, seconds: float, grey: NDArray[np.uint8]) -> None:
        """See a frame that is upright, grey and small already: uint8 [72,96]."""
        grey = np.ascontiguousarray(grey)
        newest, self._newest = self._newest, grey
        if newest is None:
            self._append(seconds, grey)
            return
        step = float(np.abs(np.subtract(grey, newest, dtype=np.int16)).mean())
        if step < max(_HELD, _REFINED * self._step):
            # 1. It repeats the last: held so far, or after a while a picture that has stood still since.
            self._held.append((seconds, grey, step))
            self._resting |= seconds - self._seconds[-1] > LONGEST_HELD_SECONDS
            if self._resting:
                self._release()
            return
        # 2. It moved. Frames before it that repeated the last were held, as in a film of fewer a second; of
        # those that were not quite equal, only if it comes soon and moves by far more than they did.
        soon = seconds - self._seconds[-1] <= LONGEST_HELD_SECONDS
        most = max(_HELD, _REFINED * step) if soon else _HELD
        if any(held >= most for _, _, held in self._held):
            self._release()
        self._held, self._resting, self._step = [], False, step
        self._append(seconds, grey)

    def _release(self) -> None:
        """Count the frames that were held after all."""
        self._step = max(step for _, _, step in self._held)
        for seconds, grey, _ in self._held:
            self._append(seconds, grey)
        self._held = []

    def _append(self, seconds: float, grey: NDArray[np.uint8]) -> None:
        self._frames.append(grey)
        self._seconds.append(seconds)
        if len(self._frames) >= _CHUNK:
            self._compare()

    def motion(self) -> Motion:
        """The motion of all frames so far; of one frame or none it is empty."""
        self._compare()
        if not self._parts:
            return Motion(np.zeros(0), np.zeros((0, PATCHES, len(CHANNELS)), np.float32))
        seconds, values = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return Motion(seconds, values.astype(np.float32))

    def _compare(self) -> None:
        """Compare the frames that have not been; the last two stay for those to come."""
        done = 2 if self._parts else 1  # frames at the beginning that are there for comparison alone
        if len(self._frames) <= done:
            return
        seconds = np.array(self._seconds)
        values = differences(np.stack(self._frames), seconds)[done - 1 :]
        middles = (seconds[done - 1 : -1] + seconds[done:]) / 2
        self._parts.append((middles, values.astype(np.float16)))
        self._frames, self._seconds = self._frames[-2:], self._seconds[-2:]


def small_luma(frame: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Grey levels uint8 [height,width] of a larger frame of PyAV's: means of its luma over boxes of pixels.

    As FFmpeg's scaler has them (``AREA``, to ``gray``), but for a box's borders, which are those of pixels.
    """
    # 1. Sums over the rows of each box, then over its columns: float32 [height,width].
    plane = frame.planes[0]
    luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    top, left, share = _boxes(*luma.shape, height, width)
    if frame.height % height == 0:
        rows = np.add.reduce(luma.reshape(height, -1, frame.width), 1, np.uint16)
    else:
        rows = np.stack([np.add.reduce(luma[a:b], 0, np.uint16) for a, b in pairwise(top)])
    sums = np.add.reduceat(rows, left[:-1], 1, np.float32)

    # 2. Their means, rounded; black and white are 16 and 235 unless the frame says otherwise.
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    sums *= share if full else share * np.float32(255 / 219)
    sums += np.float32(0.5 if full else 0.5 - 16 * 255 / 219)
    return sums.clip(0, 255, out=sums).astype(np.uint8)


@lru_cache(maxsize=4)
def _boxes(
    rows: int, columns: int, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Where boxes begin that share out so many pixels, and end, and the share of a pixel in each: [h,w]."""
    top, left = np.arange(height + 1) * rows // height, np.arange(width + 1) * columns // width
    return top, left, (1 / (np.diff(top)[:, None] * np.diff(left))).astype(np.float32)


def read_motion(file: MediaFile, report: Callable[[int, int], None] | None = None) -> Motion:
    """The motion of a whole film; of an image it is empty. ``MediaError`` as ``MediaFile.frames``.

    ``report`` is told how many seconds were read, and of about how many.
    """
    reader = MotionReader()
    for done, _ in enumerate(() if file.is_image else file.frames(1.0, size=HEIGHT, watch=reader)):
        if report is not None:
            report(done, max(done, round(file.nominal_seconds)))
    return reader.motion()


def differences(frames: NDArray[np.uint8], seconds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Motion [F-1,P,C] between grey frames uint8 [F,72,96] at ``seconds`` [F], as :class:`Motion` has it."""
    # 1. Grey levels, a little blurred, and what changed from frame to frame in 40 ms.
    grey = _blurred(frames.astype(np.float32))
    rate = (_STEP_SECONDS / np.diff(seconds)).astype(np.float32)[:, None, None]
    step = grey[1:] - grey[:-1]  # [F-1,H,W]
    speed = step * rate
    change = np.abs(np.diff(speed, axis=0, prepend=speed[:1]))

    # 2. Velocity by the gradients of each pair's mean (Lucas and Kanade): the least squares of a patch.
    mean = (grey[1:] + grey[:-1]) / 2
    right, low = np.zeros_like(mean), np.zeros_like(mean)
    right[:, :, 1:-1] = (mean[:, :, 2:] - mean[:, :, :-2]) / 2
    low[:, 1:-1] = (mean[:, 2:] - mean[:, :-2]) / 2
    xx, yy = patch_sums(right * right) + _NOISE, patch_sums(low * low) + _NOISE
    xy, xt, yt = patch_sums(right * low), patch_sums(right * step), patch_sums(low * step)
    area = xx * yy - xy * xy
    across, down = (xy * yt - yy * xt) / area, (xy * xt - xx * yt) / area

    # 3. [F-1,P,C]
    size = HEIGHT * WIDTH / PATCHES
    flow_rate = rate[:, :, 0]
    return np.stack(
        [
            patch_sums(np.abs(speed)) / size,
            patch_sums(change) / size,
            (across.clip(-_FASTEST, _FASTEST) * flow_rate),
            (down.clip(-_FASTEST, _FASTEST) * flow_rate),
            patch_sums(speed) / size,
        ],
        axis=2,
    )


def _blurred(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames [F,H,W] blurred by 1 2 1 both ways; the border stays."""
    result = frames.copy()
    result[:, :, 1:-1] = (frames[:, :, :-2] + 2 * frames[:, :, 1:-1] + frames[:, :, 2:]) / 4
    rows = result.copy()
    result[:, 1:-1] = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return result


def patch_sums(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Sums [F,P] over the patches of [F,72,96]."""
    across = values.reshape(-1, WIDTH) @ _IN_COLUMN  # [F*H, COLUMNS]
    return across.reshape(-1, ROWS, HEIGHT // ROWS, COLUMNS).sum(2).reshape(-1, PATCHES)


_IN_COLUMN = np.repeat(np.eye(COLUMNS, dtype=np.float32), WIDTH // COLUMNS, axis=0)  # [W, COLUMNS]


def scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values [T,P,C] of one film as a network takes them, whatever its contrast: about -3..3.

    Amounts become logarithms between the film's own quiet and loud (the 20th and 97th percentile, at least
    a factor of 1.8 apart, so that noise stays small); velocities are in parts of the film's fast ones.
    """
    result = np.empty_like(values)
    for channel in (0, 1):
        amounts = np.log1p(4 * values[:, :, channel])
        low, high = np.percentile(amounts, [20, 97])
        result[:, :, channel] = (amounts - low) / max(high - low, 0.6)
    fast = max(float(np.percentile(np.abs(values[:, :, 2:4]), 97)), 0.15)
    result[:, :, 2:4] = np.arcsinh(2 * values[:, :, 2:4] / fast) / 1.4
    light = max(float(np.percentile(np.abs(values[:, :, 4]), 97)), 0.5)
    result[:, :, 4] = np.arcsinh(values[:, :, 4] / light)
    return result.clip(-3, 3)


def frames_of(pixels: Iterator[tuple[float, NDArray[np.uint8]]]) -> Motion:
    """The motion of grey frames uint8 [72,96] with their seconds."""
    reader = MotionReader()
    for seconds, grey in pixels:
        reader.see(seconds, grey)
    return reader.motion()
