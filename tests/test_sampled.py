"""Frames that nobody will see need not be decoded: what is seen is the same, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vab.media import file as media_file
from vab.media.file import MediaFile
from vab.media.streams import LOOK_AHEAD, Moments, on_screen, with_sight


@dataclass
class Packet:
    """What ``with_sight`` asks of a packet; its time is in tenths of a second."""

    pts: int | None
    is_discard: bool = False


def shown(times: list[float], moments: Moments, count: int) -> list[float]:
    """The time of the frame on screen at each of the first so many moments."""
    frames = on_screen(
        ((time, time, None) for time in sorted(times)), *moments, lambda frame, _: np.array(frame)
    )
    return [float(next(frames)) for _ in range(count)]


@given(
    st.lists(st.integers(0, 3 * LOOK_AHEAD), min_size=1, max_size=150),
    st.floats(0, 3),
    st.floats(0.3, 12),
    st.integers(0, 5),
)
def test_the_frames_at_the_wanted_moments_are_all_there(
    numbers: list[int], start: float, fps: float, reordering: int
) -> None:
    moments = Moments(start, fps)
    packets = [Packet(number) for number in sorted(numbers)]
    for n in range(0, len(packets) - reordering, 4):  # a frame that is decoded before those it follows
        packets.insert(n, packets.pop(n + reordering))
    found = list(with_sight(packets, moments, lambda packet: packet.pts / 10))
    assert [packet for packet, _ in found] == packets
    every = [packet.pts / 10 for packet in packets]
    seen = [packet.pts / 10 for packet, is_seen in found if is_seen]
    count = int(5 * fps) + 2
    assert shown(seen, moments, count) == shown(every, moments, count)


def test_what_is_left_out_of_a_steady_film() -> None:
    packets = [Packet(number) for number in range(100)]
    found = [seen for _, seen in with_sight(packets, Moments(0.0, 1.0), lambda packet: packet.pts / 10)]
    assert [n for n, seen in enumerate(found) if seen] == [*range(0, 100, 10), 99]
    packets[50].pts = None  # from here on a frame's time may be that of the one before it, and a bit more
    found = [seen for _, seen in with_sight(packets, Moments(0.0, 1.0), lambda packet: packet.pts / 10)]
    assert all(found[50 - LOOK_AHEAD :]) and not all(found[: 50 - LOOK_AHEAD])
    hidden = [Packet(0), Packet(5, is_discard=True), Packet(20)]
    assert [seen for _, seen in with_sight(hidden, Moments(0.0, 1.0), lambda p: p.pts / 10)] == [True] * 3


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Noise that moves, in H.264 with many frames that no other needs, as the encoder likes it."""
    random = np.random.default_rng(0)
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(25), options={"bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        texture = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        for n in range(100):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, n, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return tmp_path / "film.mp4"


@pytest.mark.parametrize(("start", "fps"), [(0.0, 1.0), (0.0, 8.0), (1.3, 2.0)])
def test_a_film_looks_the_same_and_fewer_frames_are_decoded(
    film: Path, start: float, fps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = media_file.decode, [0]

    def counting(context: Any, packet: Any) -> list[Any]:
        frames = decode(context, packet)
        decoded[0] += len(frames)
        return frames

    def looked(file: MediaFile, fps: float, start: float = 0.0) -> tuple[list[np.ndarray], int]:
        decoded[0] = 0
        return list(file.frames(fps, start)), decoded[0]

    monkeypatch.setattr(media_file, "decode", counting)
    with MediaFile(film) as file:
        found, few = looked(file, fps, start)
        assert file.times.frames == 100  # the times of those that were left out are known all the same
        _, many = looked(file, 25.0)
        assert many == 100  # a later pass with the same decoder leaves out none
        list(file.frames(1.0, seconds=1.5))  # nor one after a pass that was not gone through
        assert looked(file, 25.0)[1] == 100
    monkeypatch.setattr(media_file, "LEAVES_OUT", ())
    with MediaFile(film) as file:
        expected, every = looked(file, fps, start)
    assert every == 100 or start > 0
    assert few < (0.7 if fps == 1.0 else 1.01) * every
    assert len(found) == len(expected)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
