"""Whether a model's sounds happen when the clips' own do: without a curve, led by motion, led by the truth.

    python recipes/vab_tiny_timing.py ../shared/data MODEL runs/timing [--kinds none motion true taps]

For each clip three sounds of its first 5 s are written to ``OUT/KIND/1`` to ``3``; those that are there stay.
Then ``vab evaluate timing`` measures them as in docs/results.md: on half 2 of the clips, on those of them on
which no setting of the motion predictor was chosen, and on the impacts of both halves. ``true`` follows the
clip's own sound, which is the most that a curve can do, ``taps`` the mere times of its onsets. What the
motion lets expect is written to ``OUT/curves``, and measured by itself and as a gain over the first kind,
which the model must beat.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import vab_tiny_motion_measure as predictor_s

from vab.config import audio_frames
from vab.evaluate.timing.folders import half_of
from vab.inference.pipeline import VABPipeline
from vab.media.file import MediaFile
from vab.media.reader import write_wav
from vab.timing.curve import TimingCurve, write_curve
from vab.timing.sound import onset_times
from vab.timing.sources import MOTION, Timing, resolve

SECONDS = 5.0  # of each clip
SEEDS = 3
IMPACTS = "CondFoleyGen"  # how the names of the impacts begin
KINDS = ("none", "motion", "true", "taps")


def clips_of(data: Path) -> list[Path]:
    """The clips with a sound that are measured: half 2, and the impacts of half 1."""
    found = []
    for path in sorted((data / "clips").iterdir()):
        if half_of(path.stem) == 2 or path.stem.startswith(IMPACTS):
            with MediaFile(path) as file:
                if file.has_audio and file.has_video:
                    found.append(path)
    return found


def make(pipeline: VABPipeline, clip: Path, kind: str, scale: float, out: Path) -> None:
    """The sounds of a clip, as the model has them: nothing levels them."""
    names = [out / kind / str(n + 1) / f"{clip.stem}.wav" for n in range(SEEDS)]
    if all(name.exists() for name in names):
        return
    decode = replace(pipeline.config.decode, timing_scale=scale)
    with MediaFile(clip) as file:
        seconds = min(SECONDS, file.seconds)
        timing: Timing = f"sound:{clip}" if kind == "true" else kind
        if kind == "taps":
            times = onset_times(file.audio(0.0, seconds))
            num_frames = audio_frames(seconds)
            timing = TimingCurve.from_events(times, num_frames).with_level()
    sounds = pipeline.generate_many(clip, SEEDS, decode=decode, timing=timing, seconds=seconds)
    for name, sound in zip(names, sounds, strict=True):
        name.parent.mkdir(parents=True, exist_ok=True)
        write_wav(name, sound.raw)


def expect(pipeline: VABPipeline, clip: Path, out: Path) -> None:
    """Write what a clip's motion lets expect, of a film that stands still that nothing happens."""
    with MediaFile(clip) as file:
        num_frames = audio_frames(min(SECONDS, file.seconds))
        curve = resolve(MOTION, file, num_frames, pipeline.predictor)
    out.mkdir(parents=True, exist_ok=True)
    write_curve(out / f"{clip.stem}.csv", curve or TimingCurve(np.zeros(num_frames, np.float32)))


def main() -> None:
    """Make what is missing, then measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--timing-scale", type=float, default=0.0)
    args = parser.parse_args()
    pipeline = VABPipeline.from_pretrained(args.model, device="cpu", dtype="auto")
    clips = clips_of(args.data)
    for number, clip in enumerate(clips, start=1):
        for kind in args.kinds:
            make(pipeline, clip, kind, args.timing_scale, args.out)
        expect(pipeline, clip, args.out / "curves")
        print(f"{number} of {len(clips)}: {clip.stem}", flush=True)
    folders = [str(args.out / kind) for kind in args.kinds]
    command = [sys.executable, "-m", "vab", "evaluate", "timing", *folders]
    command += ["--against", str(args.data / "clips"), "--curves", str(args.out / "curves")]
    unseen = args.out / "unseen.txt"
    unseen.write_text(
        "".join(f"{clip.stem}\n" for clip in clips if predictor_s.half_of(clip.name) == "report")
    )
    for chosen in (["--half", "2"], ["--half", "2", "--clips", str(unseen)], ["--clips", IMPACTS]):
        subprocess.run([*command, *chosen], check=True)


if __name__ == "__main__":
    main()
