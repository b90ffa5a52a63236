"""The clock of a stream: packet times repaired as they are read, and the times of a whole video.

Recordings that were joined start their clock again in the middle; faulty encoders write times of zero, or one
time twice. Every pass over a file (frames, waveform, copy) reads its packets through :meth:`Clock.repair`,
so that picture and sound agree.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

import numpy as np
from av.container import InputContainer
from av.format import Flags
from av.video.stream import VideoStream

MAX_GAP_SECONDS = 3600  # a longer leap of a clock is a fault, not a pause
_MAX_BROADCAST_GAP_SECONDS = 10  # of MPEG streams, where a leap is a new recording (FFmpeg's own limit)
_MAX_REORDERING_SECONDS = Fraction(1, 2)  # a time further back than this, and than so many frames, ...
_MAX_REORDERING_FRAMES = 4  # ... is not that of a frame that is decoded late
_MAX_UNDECIDED = 100  # packets with the same impossible time
_MAX_OFFSET_SECONDS = 1  # by which the repairs of two streams of one file may differ
_DEFAULT_TIME_BASE = Fraction(1, 90_000)  # seconds a tick, where the stream names none
_DEFAULT_FRAME_INTERVAL = Fraction(1, 25)  # seconds, where the header names no frame rate
_NEAR = 32  # packets before and after one without a time, among which its place is looked for
_NO_TIME = -(1 << 62)  # ticks of a packet whose time is not known


def time_base(stream: Any) -> Fraction:
    """Seconds of one tick of the stream's clock."""
    return stream.time_base or _DEFAULT_TIME_BASE


def frame_interval(stream: VideoStream) -> Fraction:
    """Seconds between two frames as the header says; 1/25 s if it says nothing."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / Fraction(rate) if rate else _DEFAULT_FRAME_INTERVAL


def may_restart(container: InputContainer) -> bool:
    """True for MPEG streams: their files are often parts put together, whose times begin anew."""
    return bool(container.format.flags & Flags.ts_discont.value)  # type: ignore[operator]


class Clock:
    """Repairs the times of one stream's packets. ``leaps``: seconds that each repair added to later times.

    ``others``: the leaps of the stream that leads, the picture; where it leapt as well, its leap is taken.
    """

    def __init__(
        self, stream: Any, max_gap: float, others: Callable[[], Sequence[Fraction]] = lambda: ()
    ) -> None:
        self.base = time_base(stream)
        step = frame_interval(stream) if stream.type == "video" else Fraction(0)
        self._step = max(1, round(step / self.base))  # ticks, where a packet does not say how long it lasts
        self._back = round(max(_MAX_REORDERING_SECONDS, _MAX_REORDERING_FRAMES * step) / self.base)
        self._gap = round(max_gap / self.base)
        self._others = others
        self._shift = 0  # ticks added to what the file says
        self._latest: int | None = None  # greatest time of a shown packet, as the file says it
        self._end = 0  # and when that packet ends
        # Packets whose time is far from those before, until the next one tells why.
        self._held: list[Any] = []
        self.leaps: list[Fraction] = []
        self.repaired = False  # at least one time has been changed

    def repair(self, packets: Iterable[Any]) -> Iterator[Any]:
        """The packets with their times changed where need be; None in those whose time cannot be known."""
        for packet in chain(packets, [None]):
            yield from self.feed(packet)

    def feed(self, packet: Any | None) -> list[Any]:
        """Take the next packet; give those whose times are settled by it. None: there are no more."""
        # 1. A time that fits, or a packet that is not shown, needs no thought.
        time = None if packet is None else packet.pts if packet.pts is not None else packet.dts
        hidden = packet is not None and packet.is_discard
        fits = packet is not None and (time is None or hidden or self._near(time))
        if not self._held and fits:
            return [self._pass(packet, time)]

        # 2. The packet after those in doubt decides: is this a pause, a new clock, or a fault?
        settled = []
        if self._held and not hidden:
            verdict = self._judge(packet, time)
            if verdict is None:
                self._held.append(packet)
                return []
            self.repaired = self.repaired or verdict != "pause"
            if verdict == "new":
                self._leap([*self._held, packet])
            for one in self._held:
                if verdict == "fault":
                    one.pts = one.dts = None
                settled.append(self._pass(one, one.pts if one.pts is not None else one.dts))
            self._held = []
            fits = packet is not None and (time is None or self._near(time))

        # 3. This packet itself.
        if fits and not self._held:
            settled.append(self._pass(packet, time))
        elif packet is not None:
            self._held.append(packet)
        return settled

    def _near(self, time: int) -> bool:
        """True if a shown packet may have this time after those before."""
        return self._latest is None or -self._back <= time - self._latest <= self._back

    def _judge(self, packet: Any | None, time: int | None) -> str | None:
        """Say "pause", "new" (a clock that starts again) or "fault"; None if that cannot be told yet."""
        assert self._latest is not None
        held = self._held
        first = _order(held[0])
        ahead = self._latest < first <= self._latest + self._gap
        if ahead and (packet is None or time is None or _follows(packet, held[0])):
            return "pause"
        if packet is None or time is None or self._near(time) or len(held) >= _MAX_UNDECIDED:
            return "fault"
        return None if _order(packet) == _order(held[-1]) else "new"

    def _leap(self, packets: list[Any]) -> None:
        """Start a new clock at the earliest of ``packets``, right after the latest one of the old clock."""
        start = min(_order(packet) for packet in packets if not packet.is_discard)
        seconds = (self._end - start) * self.base
        # The picture's leap keeps the two streams of the new part as far apart as they were in it.
        leaps = [leap for leap in self._others() if abs(leap - seconds) < _MAX_OFFSET_SECONDS]
        seconds = min(leaps, key=lambda leap: abs(leap - seconds), default=seconds)
        self.leaps.append(seconds)
        self._shift += round(seconds / self.base)
        self._latest = start

    def _pass(self, packet: Any, time: int | None) -> Any:
        """The packet, its times moved by the repairs so far."""
        if time is not None and not packet.is_discard and (self._latest is None or time >= self._latest):
            self._latest, self._end = time, time + (packet.duration or self._step)
        if self._shift:
            packet.pts = None if packet.pts is None else packet.pts + self._shift
            packet.dts = None if packet.dts is None else packet.dts + self._shift
        return packet


def clock_of(
    container: InputContainer, stream: Any, others: Callable[[], Sequence[Fraction]] = lambda: ()
) -> Clock:
    """The clock of a stream of a file that is read from its beginning."""
    gap = _MAX_BROADCAST_GAP_SECONDS if may_restart(container) else MAX_GAP_SECONDS
    return Clock(stream, gap, others)


def _order(packet: Any) -> int:
    """When a packet that has a time is shown, as far as it says."""
    time: int = packet.pts if packet.pts is not None else packet.dts
    return time


def _follows(packet: Any, before: Any) -> bool:
    """True if a packet is decoded after another by its time."""
    if packet.dts is not None and before.dts is not None:
        return bool(packet.dts > before.dts)
    return _order(packet) > _order(before)


@dataclass(frozen=True)
class PacketTimes:
    """The times of a video stream's N packets in file order, in ticks of ``time_base``."""

    pts: np.ndarray  # int64 [N], when the frame is shown
    dts: np.ndarray  # int64 [N], when the packet is decoded: rising, never after pts
    shown: np.ndarray  # bool [N]; an edit list hides the others
    start: int  # of the first shown frame
    end: int  # of the last shown frame's own time on screen
    time_base: Fraction
    leaps: tuple[Fraction, ...] = ()  # seconds, as in ``Clock``
    repaired: bool = False  # the file says other times

    @property
    def seconds(self) -> float:
        """Time on screen, the last frame's own time included."""
        return float((self.end - self.start) * self.time_base)

    @property
    def needed(self) -> int:
        """Packets up to the last one that is shown; those after it need not be decoded."""
        return int(np.flatnonzero(self.shown)[-1]) + 1

    @property
    def durations(self) -> np.ndarray:
        """Ticks until the next frame is shown, int64 [N]; of the last shown one, its own time on screen."""
        ends = np.append(np.unique(self.pts[self.pts < self.end]), self.end)
        return np.maximum(
            ends[np.searchsorted(ends, self.pts, side="right").clip(max=len(ends) - 1)] - self.pts, 0
        )

    @property
    def frames(self) -> int:
        """Number of shown frames."""
        return int(self.shown.sum())

    @property
    def fps(self) -> float:
        """Mean frame rate; 0 for a stream that lasts 0 s."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


class PacketLog:
    """Record of the times of video packets as they are read; it takes a few dozen bytes a packet."""

    def __init__(self, stream: VideoStream, clock: Clock) -> None:
        self.display_order: list[int] = []  # numbers of packets, as their frames came out of the decoder
        self._clock = clock
        self._timed = True
        self.time_base = time_base(stream)
        self._interval = max(1, round(frame_interval(stream) / self.time_base))  # ticks
        self._pts = array("q")
        self._dts = array("q")
        self._durations = array("q")
        self._shown = array("b")
        self._dts_missing = False
        self._earliest: int | None = None  # pts of shown frames
        self._latest = 0

    def __len__(self) -> int:
        return len(self._pts)

    def add(self, packet: Any, timed: bool) -> None:
        """Note one packet, in file order; number it if it is not ``timed`` (as in ``VideoStart``)."""
        self._timed = timed
        if not timed:  # the decoder hands the number on with the frame
            packet.opaque = (len(self),)  # an object of its own: PyAV drops equal small numbers together
        time = packet.pts if timed and packet.pts is not None else packet.dts
        if time is None and not timed:  # no clock at all: it follows the packet before it
            time = self._pts[-1] + (self._durations[-1] or self._interval) if self._pts else 0

        # Keep what the packet says, and the range of times that are shown.
        self._dts_missing = self._dts_missing or packet.dts is None
        self._pts.append(_NO_TIME if time is None else time)
        self._dts.append(packet.dts if packet.dts is not None else self._pts[-1])
        self._durations.append(packet.duration or 0)
        self._shown.append(not packet.is_discard)
        if not packet.is_discard and time is not None:
            self._latest = time if self._earliest is None else max(self._latest, time)
            self._earliest = time if self._earliest is None else min(self._earliest, time)

    @property
    def seconds(self) -> float:
        """Seconds from the first shown frame to the last one, as far as packets have been noted."""
        return 0.0 if self._earliest is None else float((self._latest - self._earliest) * self.time_base)

    def times(self) -> PacketTimes | None:
        """The noted times, completed where the container has none; None if no frame is shown."""
        pts = np.array(self._pts, dtype=np.int64)
        shown = np.array(self._shown, dtype=bool)
        if not shown.any():
            return None

        # 1. Without times the k-th frame out of the decoder is shown at the k-th time. Frames that are broken
        # do not come out; then the file's own order is all there is.
        if not self._timed:
            rank = np.arange(len(pts))
            if sorted(self.display_order) == rank.tolist():
                rank[self.display_order] = np.arange(len(pts))
            pts = np.sort(pts)[rank]

        # 2. Times that are unknown or taken go where one is missing.
        distances = np.diff(np.unique(pts[shown & (pts != _NO_TIME)]))
        usual = round(float(np.median(distances))) if len(distances) else self._interval
        _fill(pts, shown, max(1, usual))

        # 3. A container without durations: the last frame stays as long as those before it usually do.
        start = int(pts[shown].min())
        last = int(np.where(shown, pts, pts.min()).argmax())
        duration = self._durations[last] or max(1, usual)

        # 4. Muxers want decoding times that rise and are never after the presentation times.
        dts = np.array(self._dts, dtype=np.int64)
        if self._dts_missing or (np.diff(dts) <= 0).any() or (dts > pts).any():
            steps = np.arange(len(pts))
            dts = np.maximum.accumulate(np.sort(pts) - steps) + steps
            dts = dts - max(0, int((dts - pts).max()))
        clock = self._clock
        end = int(pts[last]) + duration
        return PacketTimes(pts, dts, shown, start, end, self.time_base, tuple(clock.leaps), clock.repaired)


def _fill(pts: np.ndarray, shown: np.ndarray, usual: int) -> None:
    """Give packets without a time, or with one that another has, times in the widest holes near them.

    ``pts``, int64 [N] in file order, is changed in place; ``usual``: ticks between two frames.
    """
    # 1. Which packets? Of those with one time, all but the first.
    taken: set[int] = set()
    lost: list[int] = []
    for n, (time, is_shown) in enumerate(zip(pts.tolist(), shown.tolist(), strict=True)):
        if is_shown and (time == _NO_TIME or time in taken):
            lost.append(n)
        elif is_shown:
            taken.add(time)
    if not lost or len(lost) == len(pts):
        pts[lost] = np.arange(len(lost)) * usual
        return

    # 2. The hole for each: the widest one and, of equals, the nearest; those at the end come after all.
    unknown = np.zeros(len(pts), dtype=bool)
    unknown[lost] = True
    holes: dict[tuple[int, int | None], list[int]] = {}
    for n in lost:
        near = slice(max(0, n - _NEAR), n + _NEAR)
        times = np.unique(pts[near][shown[near] & ~unknown[near]]).tolist()
        previous = int(pts[n - 1]) if n else 0

        def room(gap: tuple[int, int], previous: int = previous) -> tuple[float, int]:
            width = (gap[1] - gap[0]) / (len(holes.get(gap, ())) + 1)
            return round(width / usual, 1), -abs(gap[0] - previous)

        hole: tuple[int, int | None] | None = max(pairwise(times), key=room, default=None)
        at_end = not (shown & ~unknown)[n:].any()
        if at_end and (hole is None or hole[1] - hole[0] < 1.5 * usual):  # type: ignore[operator]
            hole = (int(pts[shown & ~unknown].max()), None)
        if hole is not None:
            holes.setdefault(hole, []).append(n)
    # 3. Those in one hole stand at equal distances.
    for (before, after), numbers in holes.items():
        step = usual if after is None else (after - before) / (len(numbers) + 1)
        for count, n in enumerate(numbers, 1):
            pts[n] = round(before + count * step)
