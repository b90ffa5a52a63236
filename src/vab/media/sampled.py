"""Which packets of a video a decoder may leave out, where only some moments are wanted (section 3.1).

At one frame a second most of a video's frames are never seen. Those that no other frame is predicted from
need not be decoded either: what is left comes out bit for bit as it would.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

LEAVES_OUT = (
    "h264",
)  # whose packets say for certain that no other frame needs theirs; HEVC's mean their layer
LOOK_AHEAD = 32  # packets; the next frame on screen may come that much later


class Moments(NamedTuple):
    """The moments ``start + i / fps`` in seconds, for i from 0 on."""

    start: float
    fps: float

    def first(self, time: float) -> float:
        """The first of them that is not before ``time``."""
        number = max(0, math.ceil((time - self.start) * self.fps))
        # The quotient is rounded: one more or less may be the one.
        while number > 0 and self.start + (number - 1) / self.fps >= time:
            number -= 1
        while self.start + number / self.fps < time:
            number += 1
        return self.start + number / self.fps


def with_sight(
    packets: Iterable[Any], moments: Moments, seconds_of: Callable[[Any], float]
) -> Iterator[tuple[Any, bool]]:
    """Each packet in decoding order, with False if its frame is on screen at none of the moments.

    A frame is on screen from its own time, which ``seconds_of`` gives of its packet, until the next frame's.
    From the first packet without a time on, whose frame is shown some while after the one before, all count
    as seen.
    """
    waiting: deque[tuple[Any, float | None]] = deque()  # with its time, if it has one and is shown
    times: deque[float] = deque(maxlen=2 * LOOK_AHEAD + 1)  # of those that wait, and of as many before
    timed = True

    def seen(time: float | None) -> bool:
        if time is None or not timed or time == min(times):  # the first is on screen before its time, too
            return True
        following = min((other for other in times if other > time), default=math.inf)
        return moments.first(time) < following

    for packet in packets:
        timed = timed and packet.pts is not None
        time = None
        if timed and not packet.is_discard:
            time = seconds_of(packet)
            times.append(time)
        waiting.append((packet, time))
        if len(waiting) > LOOK_AHEAD:
            oldest, time = waiting.popleft()
            yield oldest, seen(time)
    for packet, time in waiting:
        yield packet, seen(time)


@contextmanager
def leaving_out(context: Any, unseen: bool) -> Iterator[None]:
    """A decoder that leaves out the frame of its next packet, if it is ``unseen`` and no other needs it."""
    if unseen:
        context.skip_frame = "NONREF"
    try:
        yield
    finally:
        if unseen:
            context.skip_frame = "DEFAULT"
