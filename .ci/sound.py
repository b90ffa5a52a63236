"""Makes a sound for a clip with the vab that is installed for this Python, and checks what came out.

usage: python -I .ci/sound.py CLIP

The command runs as a user's would: in another folder, without PYTHONPATH. Nothing of the repository but the
clip is read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

import av
import numpy as np

LIMIT = 600  # seconds for one command
QUIETEST = 1e-3  # RMS below which a sound counts as silence; full scale is 1


def vab(*arguments: str, folder: Path) -> None:
    """Run the installed command in ``folder``; its output is ours."""
    command = Path(sysconfig.get_path("scripts")) / "vab"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([command, *arguments], cwd=folder, env=environment, check=True, timeout=LIMIT)


def main(clip: Path) -> None:
    """Generate, and stop with a sentence if the sound is not what it must be."""
    import vab as package

    place = Path(package.__file__).resolve()
    if not place.is_relative_to(Path(sysconfig.get_path("purelib")).resolve()):
        sys.exit(f"{place} is not the installed package")
    if not place.with_name("py.typed").is_file():
        sys.exit(f"{place.parent} has no py.typed: its types would not be seen")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vab("generate", str(clip.resolve()), "-o", "out", folder=folder)

        # The picture is as long as before and has got a sound.
        with av.open(str(clip)) as before, av.open(str(folder / "out" / f"{clip.stem}.mp4")) as after:
            video = before.streams.video[0]
            seconds = float((video.duration or 0) * (video.time_base or 0))
            if not after.streams.audio:
                sys.exit(f"{clip.stem}.mp4 has no sound")

        # The waveform is mono at 16 kHz, as long as the picture and not silent.
        with av.open(str(folder / "out" / f"{clip.stem}.wav")) as file:
            frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
            rate = file.streams.audio[0].rate
        waveform = np.concatenate(frames, axis=1)[0].astype(np.float64)  # [S]
        if np.issubdtype(frames[0].dtype, np.integer):
            waveform /= 2.0 ** (8 * frames[0].itemsize - 1)
        rms = float(np.sqrt(np.mean(waveform**2)))
        length = len(waveform) / rate
        if rate != 16_000 or abs(length - seconds) > 0.05 or not rms > QUIETEST:
            sys.exit(f"{clip.stem}.wav: {rate} Hz, {length:.2f} s for {seconds:.2f} s, RMS {rms:.4f}")
    print(f"vab {metadata.version('vab')} in {place.parent}: {length:.2f} s of sound, RMS {rms:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
