"""What a caller can give as media: a path, bytes, a file object, an image, frames, a waveform.

All that is no file becomes an ``InMemory``, which ``MediaFile`` opens like a file.
"""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image

from vab.config import SAMPLE_RATE
from vab.errors import SettingError, first_line
from vab.media.container import MediaError
from vab.media.image import read_pixels, upright_size
from vab.media.sources.film import MILLISECOND, Film, is_moving, moving_pictures
from vab.utils.remote import RemoteFile

MAX_BYTES = 1 << 30  # read of a file object; what is larger must be named by its path
_BLOCK = 1 << 20
FRAMES = "frames are uint8, or floats of 0..1, of the shape [T,H,W,3] or [T,3,H,W]"
IMAGES = "an image is uint8, or floats of 0..1, of the shape [H,W,3] or [3,H,W]"


class ArrayLike(Protocol):
    """A numpy array, a torch tensor, or what else converts itself to a numpy array."""

    @property
    def shape(self) -> Any:
        """Lengths of the axes."""

    def __array__(self) -> Any: ...


class Readable(Protocol):
    """A file opened in binary mode, an HTTP answer, an upload."""

    def read(self, size: int = -1, /) -> Any:
        """The next bytes."""


class Sounding(Protocol):
    """A waveform [S] or [C,S] with its rate, such as ``Audio``."""

    @property
    def waveform(self) -> np.ndarray:
        """Float32 samples in -1..1."""

    @property
    def rate(self) -> int:
        """Samples a second."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """Media that is no file: the bytes of one, a still image, or a film, perhaps with its sound in bytes."""

    name: str  # in messages
    content: bytes | None = None
    image: Image.Image | None = None
    film: Film | None = None


Picture: TypeAlias = Image.Image | ArrayLike
Single: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | Readable
    | Picture
    | Sounding
    | RemoteFile
    | InMemory
)
Source: TypeAlias = (
    Single | Sequence[Picture] | Iterator[Picture]
)  # several pictures with ``fps`` are one film


def as_source(
    source: Source,
    fps: float | Fraction | None = None,
    *,
    sound: ArrayLike | None = None,
    rate: int | None = None,
    name: str | None = None,
) -> Path | RemoteFile | InMemory:
    """What ``MediaFile`` opens for a ``source``; for a file, an open one too, that is its path.

    ``fps``: frames a second of a film given as an array or tensor, or as a list of images; ``sound``: its
    sound, a waveform [S] or [C,S] at ``rate`` (16000). Without ``fps`` a waveform is given with its ``rate``.
    ``name``: what messages call it. ``SettingError`` for what is no media, ``MediaError`` for frames and
    samples that are no numbers and for a file object that cannot be read.
    """
    if fps is None:
        if sound is not None:
            raise SettingError("sound= is that of frames, which need fps=; a waveform alone needs rate=")
        return _single(source, name) if rate is None else _sound(source, rate, name)

    # A film, with its sound or without.
    name = name or "the given frames"
    pictures = _frames(source, name)
    speed = _rate(fps)
    film = Film(name, lambda: ((pixels_of(picture), 1) for picture in pictures), 1 / speed, len(pictures))
    if sound is None and rate is not None:
        raise SettingError("rate= is that of sound=, and there is none")
    content = None if sound is None else wav_bytes(sound, SAMPLE_RATE if rate is None else rate, name)
    return InMemory(name, content, film=film)


def batch(source: Any, fps: float | Fraction | None = None) -> list[Any] | None:
    """The inputs in a list of several; None if ``source`` is one input.

    A list of images or of arrays [H,W,3] with ``fps`` is one film; without, each is an input of its own.
    """
    if not isinstance(source, list | tuple):
        return None
    if fps is None or not source:
        return list(source)
    single = [_is_picture(item) for item in source]
    if all(single):
        return None
    if any(single):
        raise SettingError("a list with fps= holds images, which make one film, or films: not both")
    return list(source)


def wav_bytes(waveform: Any, rate: int, name: str = "the waveform") -> bytes:
    """A WAV file of float32 samples for a waveform [S] or [C,S], bit for bit. ``name`` is for messages."""
    # 1. float32 [C,S], of integers of 16 bits too
    samples = _array(waveform)
    if samples.dtype == np.int16:
        samples = samples / np.float32(1 << 15)
    if samples.ndim not in (1, 2) or samples.dtype.kind != "f" or (samples.ndim == 2 and len(samples) > 8):
        raise SettingError(f"a waveform is float or int16 of the shape [S] or [C,S], not {_kind(samples)}")
    if not isinstance(rate, int | np.integer) or not 1000 <= rate <= 768_000:
        raise SettingError(f"the rate of a sound is a whole number of 1000 to 768000 a second, not {rate}")
    if not samples.size:
        raise MediaError(f"{name}: it has no samples")
    if not np.isfinite(samples).all():
        raise MediaError(f"{name}: it holds values that are not numbers")
    channels = np.atleast_2d(samples).astype("<f4")

    # 2. The standard library writes integers only: its header, with the number that means floats.
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(4)
        file.setframerate(int(rate))
        file.writeframes(channels.T.tobytes())
    content = bytearray(buffer.getvalue())
    content[20] = 3  # WAVE_FORMAT_IEEE_FLOAT
    return bytes(content)


def _sound(source: Any, rate: Any, name: str | None) -> InMemory:
    if not hasattr(source, "__array__") or isinstance(source, Image.Image):
        raise SettingError(f"rate= belongs to a waveform; this is {_kind(source)}, give it without rate=")
    name = name or "the given waveform"
    return InMemory(name, wav_bytes(source, rate, name))


def _single(source: Any, name: str | None) -> Path | RemoteFile | InMemory:
    """A path, bytes, a file object or an image, which need no more than themselves."""
    if isinstance(source, RemoteFile | InMemory):
        return source
    if isinstance(source, str | os.PathLike):
        return Path(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _content(bytes(source), name or "the given bytes")
    if isinstance(source, Image.Image):
        return _image(source, name or "the given image")
    if hasattr(source, "read") or hasattr(getattr(source, "file", None), "read"):
        return _read(source, name)
    if hasattr(source, "waveform") and hasattr(source, "rate"):
        return _sound(source.waveform, source.rate, name)
    if hasattr(source, "__array__"):
        if len(source.shape) == 4:
            raise SettingError(f"frames need fps=, their number a second; these are {_kind(source)}")
        if len(source.shape) == 1:
            raise SettingError("a waveform needs rate=, its samples a second")
        return InMemory(name or "the given image", image=Image.fromarray(pixels_of(source)))
    if isinstance(source, list | tuple | Iterator):
        raise SettingError("a list of images or frames is a film: give it fps=, its frames a second")
    raise SettingError(
        "an input is a path, bytes, a binary file object, an image, or frames with fps=, "
        f"not {type(source).__name__}"
    )


def _image(image: Image.Image, name: str) -> InMemory:
    """A still image, or a moving one, which is a film."""
    if 0 in image.size:
        raise MediaError(f"{name}: it has no pixels")
    try:
        if not is_moving(image):
            return InMemory(name, image=image.copy())
        # Decoded at once: the image is the caller's, who may turn its pages or close it.
        page = image.tell()
        pictures = list(moving_pictures(image))
        image.seek(page)
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{name}: cannot be read ({first_line(error)})") from error
    return InMemory(name, film=Film(name, lambda: iter(pictures), MILLISECOND))


def _read(source: Any, name: str | None) -> Path | InMemory:
    """The path of an open file, or all bytes of a file object, from its beginning if it can go there."""
    # An upload of a web framework holds the file itself and the name that its sender gave.
    file = source.file if hasattr(getattr(source, "file", None), "read") else source
    named = None if file is source else getattr(source, "filename", None)
    named = named or getattr(source, "name", None)
    name = name or (named if isinstance(named, str) and named else "the given file object")
    if isinstance(file, io.TextIOBase):
        raise MediaError(f"{name}: is open as text; open it with 'rb'")
    try:
        if (path := _path_of(file)) is not None:
            return path
        place = file.tell() if _can_seek(file) else None
        if place is not None:
            file.seek(0)
        blocks = []
        size = 0
        while block := file.read(_BLOCK):
            if not isinstance(block, bytes | bytearray | memoryview):
                raise MediaError(f"{name}: its read() gives {_kind(block)}, not bytes")
            blocks.append(bytes(block))
            size += len(block)
            if size > MAX_BYTES:
                raise MediaError(f"{name}: holds more than {MAX_BYTES >> 30} GiB; give its path instead")
        if place is not None:
            file.seek(place)  # as the caller left it
    except (OSError, ValueError, TypeError) as error:
        raise MediaError(f"{name}: cannot be read ({first_line(error)})") from error
    return _content(b"".join(blocks), name)


def _can_seek(file: Any) -> bool:
    return bool(getattr(file, "seekable", lambda: hasattr(file, "seek"))())


def _path_of(file: Any) -> Path | None:
    """The path of an open file on disk, if its name still leads to it."""
    raw = getattr(file, "raw", file)
    if not isinstance(raw, io.FileIO) or not isinstance(raw.name, str) or not os.path.isfile(raw.name):
        return None
    if file.writable():
        file.flush()  # what was written must be there to be read
    return Path(raw.name) if os.path.samestat(os.fstat(raw.fileno()), os.stat(raw.name)) else None


def _content(content: bytes, name: str) -> InMemory:
    if not content:
        raise MediaError(f"{name}: the file is empty")
    return InMemory(name, content)


def _frames(source: Any, name: str) -> list[Any]:
    """The pictures of a film, all of one size; each is checked, none is converted yet."""
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        source = list(source)
    if isinstance(source, list | tuple):
        pictures = list(source)
        if wrong := [item for item in pictures if not _is_picture(item)]:
            raise SettingError(f"a film is a list of images or of arrays [H,W,3], not of {_kind(wrong[0])}")
    elif hasattr(source, "__array__") and not isinstance(source, Image.Image):
        if len(source.shape) == 3 and 3 in (source.shape[0], source.shape[2]):
            raise SettingError("fps= belongs to frames; this is one image, give it without fps=")
        frames = _array(source)
        if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
            raise SettingError(f"{FRAMES}, not {_kind(frames)}")
        _check_values(frames, FRAMES, name)
        pictures = list(frames)
    else:
        raise SettingError(f"fps= belongs to frames; this is {_kind(source)}, give it without fps=")
    if not pictures:
        raise MediaError(f"{name}: there is not one frame")

    # One size: [3,H,W] and [H,W,3] both.
    sizes = [_size(picture) for picture in pictures]
    for number, size in enumerate(sizes):
        if size != sizes[0]:
            raise SettingError(
                f"the frames of a film have one size: frame {number} is {size[0]} x {size[1]} pixels, "
                f"the first {sizes[0][0]} x {sizes[0][1]}"
            )
    return pictures


def _size(picture: Any) -> tuple[int, int]:
    """Width and height."""
    if isinstance(picture, Image.Image):
        return upright_size(picture)
    shape = _picture_shape(picture)
    if 0 in shape:
        raise SettingError(f"{IMAGES}, not empty {_kind(picture)}")
    return (shape[1], shape[0]) if shape[2] == 3 else (shape[2], shape[1])


def pixels_of(picture: Any) -> np.ndarray:
    """The pixels of an image or array as uint8 [H,W,3]; an image is read as one in a file is."""
    if isinstance(picture, Image.Image):
        return read_pixels(Path("the given image"), picture.copy(), None)
    _size(picture)
    pixels = _array(picture)
    _check_values(pixels, IMAGES, "the given image")
    if pixels.shape[2] != 3:  # [3,H,W] -> [H,W,3]
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind == "f":
        pixels = (pixels.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _picture_shape(picture: Any) -> list[int]:
    shape = [int(length) for length in picture.shape]
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise SettingError(f"{IMAGES}, not {_kind(picture)}")
    return shape


def _check_values(pixels: np.ndarray, wanted: str, name: str) -> None:
    """Refuse what is neither uint8 nor floats of 0..1."""
    if not pixels.size:
        raise MediaError(f"{name}: there is nothing in {_kind(pixels)}")
    if pixels.dtype == np.uint8:
        return
    if pixels.dtype.kind != "f":
        raise SettingError(f"{wanted}, not {_kind(pixels)}")
    low, high = float(pixels.min()), float(pixels.max())
    if np.isnan(low) or np.isnan(high):
        raise MediaError(f"{name}: it holds values that are not numbers")
    if round(low * 255) < 0 or round(high * 255) > 255:  # what scaling leaves beside 0..1 is rounding
        raise SettingError(f"{wanted}, not floats of {low:g}..{high:g}")


def _array(values: Any) -> np.ndarray:
    """A numpy array of an array or tensor of any library and device."""
    try:
        if hasattr(values, "detach"):  # a tensor: numpy knows neither other devices nor bfloat16
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() else values
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"{_kind(values)} is no array of numbers ({first_line(error)})") from error


def _is_picture(item: Any) -> bool:
    return isinstance(item, Image.Image) or (hasattr(item, "__array__") and len(item.shape) == 3)


def _rate(fps: Any) -> Fraction:
    """Frames a second as a fraction: 29.97 and 30000/1001 both."""
    try:
        exact = fps if isinstance(fps, Fraction) else Fraction(float(fps)).limit_denominator(1001)
    except (TypeError, ValueError, OverflowError):
        exact = Fraction(0)
    if isinstance(fps, bool) or exact <= 0:
        raise SettingError(f"fps= is a number of frames a second, not {fps!r}")
    return exact


def _kind(value: Any) -> str:
    """What a value is, in short."""
    if hasattr(value, "__array__") and not isinstance(value, Image.Image):
        return f"{str(value.dtype).removeprefix('torch.')} {[int(n) for n in value.shape]}"
    return type(value).__name__
