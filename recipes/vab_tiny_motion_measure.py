"""How a motion predictor's curves agree with the sounds of real clips, and another clip's curves with them.

    python recipes/vab_tiny_motion_measure.py ../shared/data MODEL [settings|report]

MODEL is a folder with ``motion.safetensors`` and ``motion.json``. A clip is in the half ``settings``, on
which the predictor's settings are chosen, if the sha256 of its file's name is even, else in ``report``. The
first 10 s of each; intervals are bootstrapped by clip, 95 %. Impacts are the clips of things that are struck.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from vab.config import FRAME_RATE, audio_frames
from vab.evaluate.timing.measures import MEASURES, Heard, compare
from vab.media.file import MediaFile
from vab.timing.motion import read_motion
from vab.timing.predictor import MotionPredictor, load_predictor

IMPACTS = ("CondFoleyGen", "hammering", "drum", "axe", "tennis", "visually-indicated", "cap_gun")
SECONDS = 10.0
OTHERS = 8  # clips whose curve is held against each sound
RESAMPLES = 2000


def half_of(name: str) -> str:
    """The half of the clips that a file belongs to."""
    return "report" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 else "settings"


def heard_and_predicted(path: Path, predictor: MotionPredictor) -> tuple[Heard, Heard] | None:
    """What a clip's own sound does and what its motion lets expect; None without sound."""
    with MediaFile(path) as file:
        if not file.has_audio:
            return None
        motion = read_motion(file)
        seconds = min(file.seconds, SECONDS)
        sound = file.audio(0.0, int(seconds * FRAME_RATE) / FRAME_RATE)
    if np.abs(sound).max(initial=0.0) < 1e-4:
        return None
    return Heard.of(sound), Heard.of_curve(predictor.curve(motion, audio_frames(seconds)))


def line(name: str, own: np.ndarray, other: np.ndarray) -> str:
    """A row of the table: [N,M] values of each clip's own curve and, in the mean, of others'."""
    random = np.random.default_rng(0)
    cells = []
    for measure in range(own.shape[1]):
        known = ~np.isnan(own[:, measure] + other[:, measure])
        a, b = own[known, measure], other[known, measure]
        means = [(a - b)[random.integers(len(a), size=len(a))].mean() for _ in range(RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5])
        cells.append(f"{a.mean():.3f} / {b.mean():.3f} {(a - b).mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"| {name} | {len(own)} | {' | '.join(cells)} |"


def main(data: Path, model: Path, half: str = "report") -> None:
    """Print the table of one half."""
    predictor = load_predictor(model)
    assert predictor is not None, f"{model} has no motion.safetensors"
    paths = [path for path in sorted((data / "clips").iterdir()) if half_of(path.name) == half]
    found = [(path, pair) for path in paths if (pair := heard_and_predicted(path, predictor))]
    own, other = [], []
    for number, (_, (sound, curve)) in enumerate(found):
        others = [found[(number + n) % len(found)][1][1] for n in range(1, OTHERS + 1)]
        rows = [[compare(sound, one).values[name] for name in MEASURES] for one in [curve, *others]]
        own.append(rows[0])
        known = np.ma.masked_invalid(rows[1:]).mean(axis=0)  # a short clip's curve may see no onset of this
        other.append(known.filled(np.nan))
    struck = np.array([any(word in path.name for word in IMPACTS) for path, _ in found])
    print(f"| {half} | N | {' | '.join(MEASURES)} |\n|{'---|' * (2 + len(MEASURES))}")
    for name, chosen in (("all", struck | True), ("impacts", struck), ("others", ~struck)):
        print(line(name, np.array(own)[chosen], np.array(other)[chosen]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
