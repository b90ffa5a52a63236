"""Speech Commands v0.01 with 12 classes (SPC-1; SUPERB's keyword spotting)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from vab.data.datasets.common import Report, examine
from vab.data.manifest import Clip
from vab.media.container import MediaError
from vab.media.reader import probe
from vab.utils.findings import Findings
from vab.utils.tables import ListError

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE, NOISE = "_unknown_", "_silence_", "_background_noise_"
CLASSES = (*WORDS, UNKNOWN, SILENCE)
SECOND_VERSION = ("backward", "follow", "forward", "learn", "visual")  # words of v0.02 only
SECONDS = 1.0
DEV_EVERY = 10  # of the seconds of noise, every tenth is dev

_MAX_WAVS_PER_CLASS = 2**27 - 1  # of the official rule


def which_set(name: str) -> Literal["train", "dev", "test"]:
    """The official split of a recording: by the SHA-1 of its speaker, 10 % dev and 10 % test.

    ``which_set`` of TensorFlow's speech_commands example (also in the archive's README): of the file name
    everything from ``_nohash_`` on is cut off, so that one speaker is in one split.
    """
    speaker = Path(name).name.split("_nohash_")[0]
    digest = int(hashlib.sha1(speaker.encode()).hexdigest(), 16)
    percentage = digest % (_MAX_WAVS_PER_CLASS + 1) * (100.0 / _MAX_WAVS_PER_CLASS)
    return "dev" if percentage < 10 else "test" if percentage < 20 else "train"


def speech_commands_clips(
    root: str | Path, test: str | Path, findings: Findings | None = None
) -> tuple[list[Clip], Report]:
    """Clips of the unpacked archives ``speech_commands_v0.01`` and ``speech_commands_test_set_v0.01``.

    Train and dev come from ``root`` by ``which_set``; what that rule calls test is not used (and not
    counted), for the test clips are those of ``test``, whose folders are the 12 classes. Words outside the
    ten are ``_unknown_``. ``_silence_`` is every whole second of the files in ``_background_noise_``, each
    tenth one dev. (SUPERB draws random seconds of the same files for both.)
    """
    clips = [*_spoken(Path(root)), *_silence(Path(root)), *_tests(Path(test))]
    return examine(clips, findings=findings)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ListError(f"{root}: no such folder")
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _spoken(root: Path) -> Iterator[Clip]:
    # The archive must be v0.01, whole.
    words = [folder for folder in _folders(root) if folder.name != NOISE]
    missing = [word for word in (*WORDS, NOISE) if not (root / word).is_dir()]
    if missing:
        raise ListError(f"{root}: not speech_commands_v0.01, it has no folder {', '.join(missing)}")
    if any((root / word).is_dir() for word in SECOND_VERSION):
        raise ListError(f"{root}: this is v0.02; SPC-1 is speech_commands_v0.01")
    # Whatever is none of the ten words is one class.
    for folder in words:
        label = folder.name if folder.name in WORDS else UNKNOWN
        for path in sorted(folder.glob("*.wav")):
            split = which_set(path.name)
            if split != "test":
                yield Clip(f"{folder.name}/{path.stem}", path, None, 0.0, SECONDS, label, split)


def _silence(root: Path) -> Iterator[Clip]:
    for path in sorted((root / NOISE).glob("*.wav")):
        try:
            seconds = int(probe(path).seconds)
        except MediaError as error:
            raise ListError(str(error)) from None
        # whole seconds, side by side
        for n in range(seconds):
            split = "dev" if n % DEV_EVERY == DEV_EVERY - 1 else "train"
            yield Clip(f"{SILENCE}/{path.stem}#{n}", path, None, float(n), SECONDS, SILENCE, split)


def _tests(root: Path) -> Iterator[Clip]:
    folders = _folders(root)
    unknown = [folder.name for folder in folders if folder.name not in CLASSES]
    missing = [name for name in CLASSES if not (root / name).is_dir()]
    if unknown or missing:
        wrong = f"{unknown[0]} is none of the 12 classes" if unknown else f"has no {', '.join(missing)}"
        raise ListError(f"{root}: not speech_commands_test_set_v0.01: {wrong}")
    for folder in folders:
        for path in sorted(folder.glob("*.wav")):
            yield Clip(f"test/{folder.name}/{path.stem}", path, None, 0.0, SECONDS, folder.name, "test")
