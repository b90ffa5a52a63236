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
LOUDNESS = -23.0  # LUFS, at which every sound is that can be heard


def vab(*arguments: str, folder: Path) -> None:
    """Run the installed command in ``folder``; its output is ours."""
    command = Path(sysconfig.get_path("scripts")) / "vab"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([command, *arguments], cwd=folder, env=environment, check=True, timeout=LIMIT)


def main(clip: Path) -> None:
    """Generate, and stop with a sentence if the sound is not what it must be."""
    import vab as package
    from vab.media.loudness import measure

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

        # The waveform is mono at 16 kHz, as long as the picture, as loud as it should be and never clipped.
        with av.open(str(folder / "out" / f"{clip.stem}.wav")) as file:
            frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
            rate = file.streams.audio[0].rate
        waveform = np.concatenate(frames, axis=1)[0].astype(np.float64)  # [S]
        if np.issubdtype(frames[0].dtype, np.integer):
            waveform /= 2.0 ** (8 * frames[0].itemsize - 1)
        level = measure(waveform.astype(np.float32), rate)
        length = len(waveform) / rate
        loud = level.loudness is not None and abs(level.loudness - LOUDNESS) < 1
        if rate != 16_000 or abs(length - seconds) > 0.05 or not loud or (level.true_peak or 0) > -1:
            sys.exit(f"{clip.stem}.wav: {rate} Hz, {length:.2f} s for {seconds:.2f} s, {level}")
    print(
        f"vab {metadata.version('vab')} in {place.parent}: {length:.2f} s of sound, {level.loudness:.1f} LUFS"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
