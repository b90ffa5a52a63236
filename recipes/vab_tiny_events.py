"""Whether sounds set in when a hand says so: led by events alone, and with the level that they suggest.

    python recipes/vab_tiny_events.py ../shared/data [--model MODEL] [--half 2] [--clips 24]

For each clip five events are drawn at random in its first 5 s, at least 0.4 s apart, and a sound is made
without a curve, with the events, and with events and level (``TimingCurve.with_level``). Printed are
means over clips with 95 % by bootstrap: of events with an onset within 0.1 s, F1 at 100 and 50 ms, and the
number of onsets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vab.config import FRAME_RATE
from vab.evaluate.metrics.signal import onset_agreement
from vab.evaluate.timing.folders import half_of
from vab.inference.pipeline import VABPipeline
from vab.timing.curve import TimingCurve
from vab.timing.sound import onset_times

SECONDS = 5.0
EVENTS = 5
APART = 0.4  # seconds between two events, at least
NEAR = 0.1  # seconds from an event to the onset that answers it, at most


def drawn(chance: np.random.Generator) -> NDArray[np.float64]:
    """Times of events [n] in seconds, ascending."""
    times: list[float] = []
    while len(times) < EVENTS:
        time = chance.uniform(0.3, SECONDS - 0.4)
        if all(abs(time - other) > APART for other in times):
            times.append(time)
    return np.sort(times)


def measured(events: NDArray[np.float64], onsets: NDArray[np.float64]) -> list[float]:
    """Share of the events that are heard, F1 at 100 and at 50 ms, number of onsets."""
    away = np.abs(events[:, None] - onsets).min(1, initial=np.inf)
    f1 = [onset_agreement(events, onsets, tolerance) for tolerance in (0.1, 0.05)]
    return [float((away <= NEAR).mean()), *f1, len(onsets)]


def main() -> None:
    """Make, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="vab-tiny")
    parser.add_argument("--half", type=int, choices=(1, 2), default=2)
    parser.add_argument("--clips", type=int, default=24)
    given = parser.parse_args()

    clips = [path for path in sorted((given.data / "clips").iterdir()) if half_of(path.stem) == given.half]
    order = np.random.default_rng(0).permutation(len(clips))[: given.clips]
    pipeline = VABPipeline.from_pretrained(given.model, device="cpu")
    found: dict[str, list[list[float]]] = {}
    for seed, clip in enumerate(clips[n] for n in order):
        events = drawn(np.random.default_rng(seed))
        curve = TimingCurve.from_events(events, round(SECONDS * FRAME_RATE))
        for name, timing in (("none", "none"), ("events", curve), ("with level", curve.with_level())):
            sound = pipeline.generate(clip, seed=seed, timing=timing, seconds=SECONDS)
            found.setdefault(name, []).append(measured(events, onset_times(sound.raw)))

    print("| told | N | events heard | F1 at 100 ms | at 50 ms | onsets |\n|---|---|---|---|---|---|")
    for name, rows in found.items():
        values = np.array(rows)  # [N,4]
        picked = np.random.default_rng(1).integers(0, len(values), (2000, len(values)))
        means = values[picked].mean(1)
        cells = [
            f"{mean:.2f} [{low:.2f}, {high:.2f}]"
            for mean, low, high in zip(values.mean(0), *np.percentile(means, [2.5, 97.5], 0), strict=True)
        ]
        print(f"| {name} | {len(values)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
