"""Waveforms in memory through the filters of the FFmpeg inside PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")  # FFmpeg's own, by number of channels


def layout(num_channels: int) -> str:
    """FFmpeg's name of the usual layout of so many channels."""
    return LAYOUTS[num_channels - 1] if num_channels <= len(LAYOUTS) else f"{num_channels}c"


def audio_frames(waveform: NDArray[np.float32], rate: int) -> Iterator[av.AudioFrame]:
    """A waveform [C,S] as frames of a second each, with their times; interleaved, so C may be any."""
    for begin in range(0, waveform.shape[1], rate):
        block = waveform[:, begin : begin + rate].T.astype(np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, format="flt", layout=layout(len(waveform)))
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        yield frame


def filter_frames(
    waveform: NDArray[np.float32], rate: int, *filters: tuple[str, str]
) -> Iterator[av.AudioFrame]:
    """What a chain of filters (name, arguments) makes of a waveform [C,S], frame by frame."""
    # 1. One chain from a source to a sink.
    graph: Any = av.filter.Graph()
    source = graph.add_abuffer(
        sample_rate=rate, format="flt", layout=layout(len(waveform)), time_base=Fraction(1, rate)
    )
    chain = [graph.add(name, arguments) for name, arguments in filters]
    sink = graph.add("abuffersink")
    graph.link_nodes(source, *chain, sink).configure()

    # 2. Push the waveform in second by second, then the end, and pull what is ready.
    for frame in (*audio_frames(waveform, rate), None):
        source.push(frame)
        while True:
            try:
                yield sink.pull()
            except (BlockingIOError, EOFError):
                break


def filtered(waveform: NDArray[np.float32], rate: int, *filters: tuple[str, str]) -> NDArray[np.float32]:
    """What a chain of filters makes of a waveform [C,S]: float32 [C,S']."""
    frames = filter_frames(waveform, rate, *filters, ("aformat", "sample_fmts=flt"))
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1).reshape(-1, len(waveform)).T


def resampled(waveform: NDArray[np.float32], rate: int, to_rate: int, length: int) -> NDArray[np.float32]:
    """A waveform [C,S] at ``rate`` as [C,length] at ``to_rate``: cut, or filled with silence at its end."""
    if rate != to_rate:
        waveform = filtered(waveform, rate, ("aresample", str(to_rate)))
    waveform = waveform[:, :length]
    missing = length - waveform.shape[1]
    return np.pad(waveform, ((0, 0), (0, missing))) if missing else waveform
