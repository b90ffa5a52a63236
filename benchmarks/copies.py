"""What `vab data` reads to find copies, and how long it takes to open a file.

python benchmarks/copies.py CLIPS

CLIPS is a folder of real clips. For each a stranger of the same size is made (its thirds in another order),
for every fifth a copy. What 177 thousand and 1.57 million files need is reckoned from the law of their sizes.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vab.media.copies import BLOCK, copies
from vab.media.file import MediaFile


def bytes_read() -> int:
    """Bytes that this process has read from files (Linux)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main(clips: Path) -> None:
    """Print the bytes read, the milliseconds and the reckoning."""
    originals = sorted(clips.glob("*.mp4"))
    with TemporaryDirectory() as name:
        # 1. Real clips, strangers of the same sizes, and copies.
        for n, path in enumerate(originals):
            content = path.read_bytes()
            third = len(content) // 3
            shutil.copy(path, name)
            stranger = content[:third] + content[2 * third :] + content[third : 2 * third]
            (Path(name) / f"stranger_{n}.mp4").write_bytes(stranger)
            if n % 5 == 0:
                shutil.copy(path, Path(name) / f"z_copy_{n}.mp4")
        files = sorted(Path(name).iterdir())
        before = bytes_read()
        found = copies(files)
        read = bytes_read() - before
    total = sum(path.stat().st_size for path in originals)
    everything = 2 * total + sum(path.stat().st_size for path in originals[::5])
    print(f"{len(files)} files of {everything / 1e6:.1f} MB, {len(found)} copies: {read / 1e6:.1f} MB read")

    # 2. To open a file.
    begin = time.process_time()
    for path in originals:
        with MediaFile(path) as file:
            _ = file.kind, file.has_audio
    print(f"opening: {(time.process_time() - begin) / len(originals) * 1e3:.1f} ms of CPU a file")

    # 3. Sizes follow a log-normal law; in bytes, so many share theirs with another.
    logs = np.log([path.stat().st_size for path in originals])
    print(f"sizes: median {np.exp(logs.mean()) / 1e6:.2f} MB, deviation of the logarithm {logs.std():.2f}")
    for count in (177_000, 1_570_000):
        law = np.random.default_rng(0).normal(logs.mean(), logs.std(), count)
        sizes = np.exp(law).round().astype(np.int64)
        _, kind, several = np.unique(sizes, return_inverse=True, return_counts=True)
        shared = sizes[several[kind] > 1]
        blocks = np.minimum(shared, 3 * BLOCK).sum()
        print(
            f"{count} files: {len(shared) / count:.0%} share their size, {shared.sum() / 1e9:.1f} GB whole, "
            f"{blocks / 1e9:.1f} GB in blocks"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
