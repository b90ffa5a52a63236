"""What is uploaded is looked at in a child process that can be killed: a clip, a sound, a labelled folder.

An upload is opened only in the child, under limits of time and memory. Its size and length are checked first,
by header and packets; then the size of each frame before it is converted, as a header may say anything. What
a child has read to its end is kept as it came, and is what the model looks at and what is exported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vab.config import video_frames
from vab.data.datasets.folder import folder_clips
from vab.errors import VABError, first_line
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.image import open_image
from vab.media.muxing.formats import CONTAINERS
from vab.media.muxing.mux import write_film
from vab.media.muxing.tracks import EncodedPicture
from vab.media.reader import as_media_file
from vab.studio.mix import CHANNELS, RATE, samples, write_sound
from vab.utils.files import atomic

MAX_UPLOAD_BYTES = 200 << 20
MAX_VIDEO_SECONDS = 60.0
MAX_SOUND_SECONDS = 180.0  # of a file that becomes a layer
MAX_FRAME_PIXELS = 4096 * 2304  # of a frame
MAX_PHOTO_PIXELS = 50_000_000
MAX_CHILD_SECONDS = 180.0  # then the child is killed
MAX_CHILD_BYTES = 4 << 30  # of address space
MAX_NAME_LENGTH = 200  # characters
MAX_SIDE_PIXELS = 1280  # longer side of the picture that is shown
POSTER_PIXELS = 640  # of the poster
MAX_FPS = 30.0  # of the picture that is shown
SHORTEST_SECONDS = (
    0.72 / MAX_FPS
)  # between two of its frames: those of a recording come a little early or late
GOP = 24  # its frames from one that stands alone to the next, so that any is on screen at once
PHOTO_SECONDS = 10.0
PHOTO_FPS = 5.0

UPLOAD = "upload"  # the name of what is kept, before its ending
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_FIRST_CHOICE = {  # the ending of a format whose own name is none
    "mov,mp4,m4a,3gp,3g2,mj2": ".mp4",
    "matroska,webm": ".mkv",
    "mpegts": ".ts",
    "mpeg": ".mpg",
    "asf": ".wmv",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "TIFF": ".tif",
    "HEIF": ".heic",
    "JPEG2000": ".jp2",
}


class UploadError(VABError):
    """An upload that cannot be used; the message is a sentence for the user, and names no file."""


@dataclass(frozen=True)
class Clip:
    """The film or photo that a project gives sound to. Its files lie in ``folder``."""

    folder: Path
    kind: Literal["video", "image"]
    name: str  # of the file that was uploaded
    upload: str  # the name of the file as it came, in the folder
    seconds: float
    fps: float  # mean frame rate
    width: int  # of the upload, upright, with square pixels
    height: int
    shown: tuple[int, int]  # width, height of the picture that is shown
    has_sound: bool
    timecode: str | None = None  # of the first frame, if the film has one: "01:00:00:00"

    @classmethod
    def of(cls, folder: Path, values: Mapping[str, Any]) -> Self:
        """The clip that a document describes as :attr:`values`."""
        return cls(folder, **{**values, "shown": tuple(values["shown"])})

    @property
    def values(self) -> dict[str, Any]:
        """All but the folder, for a document."""
        values = asdict(self)
        del values["folder"]
        return values | {"shown": list(self.shown)}

    @property
    def source(self) -> Path:
        """The file as it came: the input of the model, and the picture of the film that is exported."""
        return self.folder / self.upload

    @property
    def picture(self) -> Path:
        """A smaller copy to look at: H.264 in MP4 without sound. A photo stands still."""
        return self.folder / "picture.mp4"

    @property
    def poster(self) -> Path:
        """One small frame, JPEG."""
        return self.folder / "poster.jpg"


def prepare(
    upload: Path,
    folder: Path,
    name: str = "",
    seconds: float = MAX_CHILD_SECONDS,
    unwanted: Callable[[], bool] = lambda: False,
) -> Clip:
    """Make an uploaded file the clip of a project: it moves into ``folder``, and a picture is made of it.

    ``name``: of the file where it came from; it is shown, and chooses the ending if that is right. Waits for
    the child ``seconds`` at most; it is killed as soon as it is ``unwanted``. Raises ``UploadError``,
    whatever the upload is; what is in the folder then is of no use.
    """
    # 1. The ending of a name tells FFmpeg and Pillow what to look for first.
    name = shown_name(name)
    kept = folder / f"{UPLOAD}{_suffix_of(name)}"
    os.replace(upload, kept)
    answer = _ask("clip", seconds, unwanted, kept, folder)

    # 2. The ending that is right, if that is another.
    os.replace(kept, folder / answer["upload"])
    return Clip.of(folder, {**answer, "name": name})


def prepare_sound(
    upload: Path,
    out: Path,
    length: float | None = None,
    seconds: float = MAX_CHILD_SECONDS,
    unwanted: Callable[[], bool] = lambda: False,
) -> tuple[float, int]:
    """Write the sound of an uploaded file, or of a clip, as a sound of a project; its seconds and channels.

    It stays in stereo and at its level, at 48 kHz. ``length``: it is cut, or filled with silence, to so many
    seconds. Else a longer one than ``MAX_SOUND_SECONDS`` is refused. Raises ``UploadError``, as ``prepare``.
    """
    answer = _ask("sound", seconds, unwanted, upload, out, "" if length is None else repr(length))
    return answer["seconds"], answer["channels"]


def look_at_folder(folder: Path, seconds: float = MAX_CHILD_SECONDS) -> dict[str, Any]:
    """What a folder has whose subfolders are labels; files of it that cannot be used are deleted.

    ``labels``: name -> ``[number of sounds, number of pictures]``, where a film with sound is both;
    ``left_out``: a sentence for each file that was deleted. Raises ``UploadError``, as ``prepare``.
    """
    return _ask("folder", seconds, lambda: False, folder, "")


def shown_name(name: str) -> str:
    """The name of an uploaded file as it is shown: without folders, and of letters that can be written."""
    name = name.encode("utf-8", "replace").decode().replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in name if letter.isprintable())[-MAX_NAME_LENGTH:].strip()


def _suffix_of(name: str) -> str:
    """The ending of a name in small letters; "" if it is none to keep."""
    suffix = Path(name).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def _ask(verb: str, seconds: float, unwanted: Callable[[], bool], *arguments: Path | str) -> dict[str, Any]:
    """The answer of a child; ``UploadError`` if there is none."""
    command = [sys.executable, "-P", "-m", "vab.studio.uploads", verb, *map(str, arguments)]
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
            if output is None and (late or unwanted()):
                child.kill()
                reason = f"It takes too long to read (more than {seconds:g} s)." if late else "Cancelled."
                raise UploadError(reason)
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:  # it crashed, or was stopped by a limit
        raise UploadError("It cannot be read: it is damaged, or needs too much memory.") from None
    if "error" in answer:
        raise UploadError(answer["error"])
    return answer


# ---- in the child: a clip


def make_clip(upload: Path, folder: Path) -> Clip:
    """Look at a file, and write its picture and poster into ``folder``; ``UploadError``, ``MediaError``.

    The file stays where it is; the clip's ``upload`` is the name that it should have in the folder.
    """
    with MediaFile(upload, _check_frame) as file:
        return _image_clip(file, folder) if file.is_image else _video_clip(file, folder)


def _image_clip(file: MediaFile, folder: Path) -> Clip:
    """Write a photo, scaled down, and a video that shows it."""
    width, height = file.nominal_size
    _check_pixels(width, height, MAX_PHOTO_PIXELS)
    photo = Image.fromarray(next(file.frames(1.0)))
    photo.thumbnail((MAX_SIDE_PIXELS, MAX_SIDE_PIXELS))
    photo.save(folder / "photo.png")
    shown = write_picture(folder / "photo.png", folder / "picture.mp4", PHOTO_SECONDS)
    _write_poster(photo, folder)
    upload = f"{UPLOAD}{_right_suffix(file)}"
    return Clip(folder, "image", "", upload, PHOTO_SECONDS, PHOTO_FPS, width, height, shown, False)


def _video_clip(file: MediaFile, folder: Path) -> Clip:
    """Write the picture of a video, and its poster."""
    # 1. What the header says first, then what the packets say: a header may say anything.
    if not file.has_video:
        raise UploadError(f"It has no picture{', only sound' if file.has_audio else ''}.")
    _check_frame(*file.nominal_size)
    seconds = file.times.seconds
    if seconds > MAX_VIDEO_SECONDS:
        raise UploadError(f"It lasts {seconds:.0f} s; {MAX_VIDEO_SECONDS:.0f} s are the most here.")
    if seconds <= 0:
        raise UploadError("It lasts 0 s.")

    # 2. Now every frame is decoded, and its own size looked at.
    poster: list[NDArray[np.uint8]] = []

    def watch(moment: float, pixels: NDArray[np.uint8]) -> None:
        if not poster or moment <= seconds / 3:
            poster[:] = [pixels]

    shown = write_picture(file, folder / "picture.mp4", watch=watch)
    _write_poster(Image.fromarray(poster[0]), folder)

    # 3. A track of sound that cannot be decoded is none.
    has_sound = file.has_audio
    if has_sound:
        try:
            has_sound = next(file.audio_blocks(), None) is not None
        except MediaError:
            has_sound = False
    size = file.info.width, file.info.height
    upload = f"{UPLOAD}{_right_suffix(file)}"
    return Clip(
        folder, "video", "", upload, seconds, file.times.fps, *size, shown, has_sound, _timecode_of(file)
    )


def write_picture(
    source: Path | MediaFile,
    out: Path,
    seconds: float | None = None,
    fps: float = PHOTO_FPS,
    watch: Callable[[float, NDArray[np.uint8]], None] = lambda time, pixels: None,
) -> tuple[int, int]:
    """Write ``source`` as H.264 in MP4, no side longer than ``MAX_SIDE_PIXELS``; its width and height.

    Every frame of a video stands at its own time; of more than about ``MAX_FPS`` a second some are left out.
    ``seconds``: it lasts at least so long, and its last frame stands still. A photo lasts ``seconds``, at
    ``fps``. ``watch`` is called with the time and pixels [H,W,3] of each frame. ``MediaError`` if there is
    no picture.
    """
    with as_media_file(source) as file, atomic(out) as temporary:
        # 1. The frames of a photo, or of a video as it is, smaller as they are decoded.
        timed: Iterator[tuple[float, Any]]
        if file.is_image:
            length = seconds or PHOTO_SECONDS
            rate = Fraction(fps).limit_denominator(1001)
            count = video_frames(length, fps)
            pixels = next(file.frames(1.0))
            timed = ((float(n / rate), pixels) for n in range(count))
            base = 1 / rate
        else:
            times = file.times
            length = max(seconds or 0.0, times.seconds)
            rate = Fraction(min(times.fps, MAX_FPS)).limit_denominator(1001)
            base = times.time_base
            width, height = file.nominal_size
            short = -(-MAX_SIDE_PIXELS * min(width, height) // max(width, height, 1))
            timed = file.pictures(max(short, 2), SHORTEST_SECONDS)

        first = next(timed, None)
        if first is None:
            raise MediaError(f"{file.path}: not one frame of its video stream can be decoded")

        # 2. Encoded one by one.
        def watched() -> Iterator[tuple[float, Any]]:
            for moment, pixels in chain([first], timed):
                watch(moment, pixels)
                yield moment, pixels

        picture = EncodedPicture(watched(), None, base, rate, length, MAX_SIDE_PIXELS, GOP)
        write_film(temporary, CONTAINERS[".mp4"], picture)
        return picture.size


def _write_poster(picture: Image.Image, folder: Path) -> None:
    picture = picture.copy()
    picture.thumbnail((POSTER_PIXELS, POSTER_PIXELS))
    with atomic(folder / "poster.jpg") as temporary:
        picture.save(temporary, quality=85)


def _right_suffix(file: MediaFile) -> str:
    """The ending of the format that was found: that of the name itself, if it is one of them."""
    if file.is_image or file.handle.film is not None:
        image = open_image(file.path)
        assert image is not None
        with image:
            kind = image.format or ""
        endings = {suffix for suffix, name in Image.registered_extensions().items() if name == kind}
        endings |= {".jpg", ".jpeg"} if kind == "MPO" else set()
    else:
        with file.handle.lend() as opened:
            kind = opened.container.format.name
            endings = {f".{ending}" for ending in opened.container.format.extensions}
            if opened.container.metadata.get("major_brand", "").strip() == "qt":
                endings &= {".mov"}
    own = _suffix_of(file.path.name)
    if own in endings:
        return own
    usual = _FIRST_CHOICE.get(kind, f".{kind.lower()}")
    return usual if usual in endings or not endings else min(endings)


def _timecode_of(file: MediaFile) -> str | None:
    """The time code of the first frame, which a film may have for editors."""
    if not file.handle.has_container or file.handle.film is not None:
        return None
    with file.handle.lend() as opened:
        for told in (opened.video.metadata, opened.container.metadata):
            if re.fullmatch(r"\d\d:\d\d:\d\d[:;.]\d\d\d?", told.get("timecode", "")):
                return str(told["timecode"])
    return None


def _check_frame(width: int, height: int) -> None:
    _check_pixels(width, height, MAX_FRAME_PIXELS)


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise UploadError(
            f"Its picture is too large: {width} x {height} pixels; {most / 1e6:.0f} million are the most."
        )


# ---- in the child: a sound


def make_sound(upload: Path, out: Path, length: float | None = None) -> tuple[float, int]:
    """Write the sound of a file, as :func:`prepare_sound` does; ``UploadError``, ``MediaError``."""
    with MediaFile(upload, _check_frame) as file:
        if file.is_image or not file.has_audio:
            raise UploadError("It has no sound.")
        # Time 0 is the first frame of a film, so that its sound stays with its picture.
        most = samples(MAX_SOUND_SECONDS if length is None else length)
        mono = av.AudioLayout(file.audio_format[1]).nb_channels == 1
        blocks = []
        missing = most
        for block in file.channel_blocks(0.0, RATE, "mono" if mono else "stereo"):
            if length is None and block.shape[1] > missing:
                raise UploadError(f"It lasts more than {MAX_SOUND_SECONDS:.0f} s, the most here.")
            blocks.append(block[:, :missing])
            missing -= blocks[-1].shape[1]
            if not missing and length is not None:
                break
    channels = 1 if mono else CHANNELS
    if length is not None:
        blocks.append(np.zeros((channels, missing), np.float32))
    waveform = np.concatenate(blocks or [np.zeros((channels, 0), np.float32)], axis=1)
    if not waveform.shape[1]:
        raise UploadError("Its sound is empty.")
    write_sound(out, np.nan_to_num(waveform, posinf=1.0, neginf=-1.0).clip(-1, 1))
    return waveform.shape[1] / RATE, channels


# ---- in the child: a folder


def look_over(folder: Path) -> dict[str, Any]:
    """Look at each file of a folder, as :func:`look_at_folder` does."""
    clips, left_out, _, _ = folder_clips(folder, dev_share=0.0)
    for picture in {clip.video for clip in clips if clip.video is not None}:
        try:
            with MediaFile(picture) as file:
                _check_pixels(*file.nominal_size, MAX_PHOTO_PIXELS if file.is_image else MAX_FRAME_PIXELS)
        except (UploadError, MediaError) as error:
            left_out[str(picture)] = f"{picture}: {error}"
    labels: dict[str, tuple[set[str], set[str]]] = {}
    for clip in clips:
        found = labels.setdefault("_".join(Path(clip.id).parts[0].split()), (set(), set()))
        for paths, path in zip(found, (clip.audio, clip.video), strict=True):
            if path is not None and str(path) not in left_out:
                paths.add(str(path))
    for path in filter(Path.is_file, map(Path, left_out)):
        path.unlink()
    return {
        "labels": {label: [len(sounds), len(pictures)] for label, (sounds, pictures) in labels.items()},
        "left_out": [line.replace(f"{folder}{os.sep}", "") for line in left_out.values()],
    }


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


def _answer(verb: str, upload: Path, out: Path, length: str = "") -> dict[str, Any]:
    try:
        _limit()
        if verb == "clip":
            return make_clip(upload, out).values
        if verb == "folder":
            return look_over(upload)
        seconds, channels = make_sound(upload, out, float(length) if length else None)
        return {"seconds": seconds, "channels": channels}
    except UploadError as error:
        return {"error": str(error)}
    except MediaError as error:
        return {"error": f"It cannot be used: {str(error).removeprefix(f'{upload}: ')}."}
    except OSError as error:
        return {"error": f"This server cannot keep it just now: {first_line(error)}."}
    except Exception:  # anything may be inside an upload
        kind = {"clip": "video or picture", "sound": "sound"}.get(verb, "folder of sounds and pictures")
        return {"error": f"It cannot be read: it is damaged, or no {kind}."}


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])))
