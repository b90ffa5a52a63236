"""Conversion of uploads to files of our own, in a child process that can be killed.

An upload is opened only in the child, under limits of time and memory. Its size and length are checked first,
by header and packets; then the size of each frame before it is converted, as a header may say anything. The
server reads only what the child wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from vab.config import video_frames
from vab.errors import VABError, first_line
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.muxing.formats import CONTAINERS
from vab.media.muxing.mux import write_film
from vab.media.muxing.tracks import EncodedPicture
from vab.media.reader import as_media_file
from vab.utils.files import atomic

MAX_UPLOAD_BYTES = 200 << 20
MAX_VIDEO_SECONDS = 60.0
MAX_FRAME_PIXELS = 4096 * 2304  # of a frame
MAX_PHOTO_PIXELS = 50_000_000
MAX_CHILD_SECONDS = 180.0  # then the child is killed
MAX_CHILD_BYTES = 4 << 30  # of address space
MAX_SIDE_PIXELS = 1280  # longer side of the video that is shown, given sound and downloaded
MAX_FPS = 30.0
PHOTO_SECONDS = 10.0
PHOTO_FPS = 5.0


class UploadError(VABError):
    """An upload that cannot be used; the message is a sentence for the visitor, and names no file."""


@dataclass(frozen=True)
class Clip:
    """A converted upload. Its files lie in ``folder``."""

    folder: Path
    kind: Literal["video", "image"]
    seconds: float
    width: int  # of the video that is shown
    height: int
    has_sound: bool

    @property
    def picture(self) -> Path:
        """The video that is shown: H.264 in MP4 without sound. A photo stands still."""
        return self.folder / "picture.mp4"

    @property
    def source(self) -> Path:
        """The input of the model: the video, or the photo."""
        return self.picture if self.kind == "video" else self.folder / "photo.png"

    def sound(self) -> np.ndarray:
        """The original sound of the upload: float32 [S], as long as the video."""
        return np.load(self.folder / "sound.npy", allow_pickle=False)


def prepare(
    upload: Path,
    folder: Path,
    seconds: float = MAX_CHILD_SECONDS,
    unwanted: Callable[[], bool] = lambda: False,
) -> Clip:
    """Convert an uploaded file to a clip in ``folder``. Waits for the child ``seconds`` at most.

    The child is killed as soon as it is ``unwanted``. Raises ``UploadError``, whatever the upload is.
    """
    command = [sys.executable, "-P", "-m", "vab.studio.uploads", str(upload), str(folder)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + seconds
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    # Poll, to notice in time that nobody waits for the answer any more.
    output = None
    with child:
        while output is None:
            with suppress(subprocess.TimeoutExpired):
                output = child.communicate(timeout=0.1)[0]
            late = time.monotonic() > deadline
            if late or unwanted():
                child.kill()
                reason = f"It takes too long to read (more than {seconds:g} s)." if late else "Cancelled."
                raise UploadError(reason)
    try:
        answer = json.loads(output)
    except ValueError:  # it crashed, or was stopped by a limit
        raise UploadError("It cannot be read: it is damaged, or needs too much memory.") from None
    if "error" in answer:
        raise UploadError(answer["error"])
    return Clip(folder, **answer)


def make_clip(upload: Path, folder: Path) -> Clip:
    """Check, decode and rewrite an upload, in the child. ``UploadError``, ``MediaError`` if it is no use."""
    with MediaFile(upload, _check_frame) as file:
        return _image_clip(file, folder) if file.is_image else _video_clip(file, folder)


def _image_clip(file: MediaFile, folder: Path) -> Clip:
    """Write a photo, scaled down, and a video that shows it."""
    _check_pixels(*file.nominal_size, MAX_PHOTO_PIXELS)
    photo = Image.fromarray(next(file.frames(1.0)))
    photo.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
    photo.save(folder / "photo.png")
    write_picture(folder / "photo.png", folder / "picture.mp4", PHOTO_SECONDS, PHOTO_FPS)
    return Clip(folder, "image", PHOTO_SECONDS, *photo.size, False)


def _video_clip(file: MediaFile, folder: Path) -> Clip:
    """Write a video in our own codec and frame rate, and its original sound."""
    # What the header says first, then what the packets say: a header may say anything.
    if not file.has_video:
        raise UploadError(f"It has no picture{', only sound' if file.has_audio else ''}.")
    _check_frame(*file.nominal_size)
    seconds = file.times.seconds
    if seconds > MAX_VIDEO_SECONDS:
        raise UploadError(f"It lasts {seconds:.0f} s; {MAX_VIDEO_SECONDS:.0f} s are the most here.")
    if seconds <= 0:
        raise UploadError("It lasts 0 s.")

    # Now every frame is decoded, and its own size looked at.
    fps = min(file.times.fps, MAX_FPS)
    seconds, width, height = write_picture(file, folder / "picture.mp4", seconds, fps)
    if file.has_audio:
        sound = file.audio(0.0, seconds)
        np.save(folder / "sound.npy", np.nan_to_num(sound, posinf=0.0, neginf=0.0).clip(-1, 1))
    return Clip(folder, "video", seconds, width, height, file.has_audio)


def write_picture(source: Path | MediaFile, out: Path, seconds: float, fps: float) -> tuple[float, int, int]:
    """Write ``source`` as H.264 in MP4 of ``seconds`` at ``fps``, no side longer than ``MAX_SIDE_PIXELS``.

    A shorter source freezes on its last frame. Returns the seconds written (whole frames), width and height.
    ``MediaError`` if it has no picture.
    """
    rate = Fraction(fps).limit_denominator(1001)
    count = video_frames(seconds, float(rate))
    with as_media_file(source) as file, atomic(out) as temporary:
        pixels = file.frames(float(rate), seconds=seconds)
        timed = ((float(n / rate), frame) for n, frame in enumerate(pixels))
        picture = EncodedPicture(timed, None, 1 / rate, rate, float(count / rate), MAX_SIDE_PIXELS)
        write_film(temporary, CONTAINERS[".mp4"], picture)
        return float(count / rate), *picture.size


def _check_frame(width: int, height: int) -> None:
    _check_pixels(width, height, MAX_FRAME_PIXELS)


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise UploadError(
            f"Its picture is too large: {width} x {height} pixels; {most / 1e6:.0f} million are the most."
        )


def _limit() -> None:
    """Limit the resources of this process, as far as the system can (a Mac has no memory limit).

    The server watches the clock; the limit of CPU time ends a child whose server was killed.
    """
    if sys.platform != "win32":
        import resource

        cpu = round(5 * MAX_CHILD_SECONDS)  # four threads decode, one encodes
        limits = {resource.RLIMIT_AS: MAX_CHILD_BYTES, resource.RLIMIT_CPU: cpu, resource.RLIMIT_CORE: 0}
        for kind, most in limits.items():
            with suppress(ValueError, OSError):
                resource.setrlimit(kind, (most, most))


def _answer(upload: Path, folder: Path) -> dict[str, Any]:
    try:
        _limit()
        answer = asdict(make_clip(upload, folder))
        del answer["folder"]
        return answer
    except UploadError as error:
        return {"error": str(error)}
    except MediaError as error:
        return {"error": f"It cannot be used: {str(error).removeprefix(f'{upload}: ')}."}
    except OSError as error:
        return {"error": f"This server cannot keep it just now: {first_line(error)}."}
    except Exception:  # anything may be inside an upload
        return {"error": "It cannot be read: it is damaged, or no video or picture."}


if __name__ == "__main__":
    print(json.dumps(_answer(Path(sys.argv[1]), Path(sys.argv[2]))))
