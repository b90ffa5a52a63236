"""Still images: files -> pixels, and a photo as a short video."""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from pillow_heif import register_heif_opener

from vab.errors import first_line
from vab.media.container import MediaError, Opener, check_file
from vab.media.sources.film import MOVING_FORMATS, is_moving

MAX_PIXELS = 65_000_000  # of an image; phones take photos of 64 million
_MAX_PIXELS_OF = {"AVIF": 51_000_000, "HEIF": 51_000_000, "WEBP": 33_000_000}  # they take more memory
_MAX_SCALED_PIXELS = 205_000_000  # of a JPEG that is decoded at a fraction of its size; phones: 200 million
_MAX_PLAIN_PIXELS = 10_000_000  # of a PPM whose numbers are text, which Pillow reads in Python
MAX_SIDE = 1_000_000  # of an image: Pillow keeps a pointer to each row
MAX_READ_PIXELS = 25_000_000  # a larger image is scaled down while it is read

_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO", "PCX", "PSD")
_NOT_READ = {  # by the first bytes of a file
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"<svg": "SVG",
    b"%PDF": "PDF",
}
_TRUEVISION = (".tga", ".icb", ".vda", ".vst")  # TGA is known by its name alone
# What Pillow raises for an image that is damaged, or too large.
_FAULTS = (
    Image.DecompressionBombError,
    IndexError,
    MemoryError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
_BAND_PIXELS = 1 << 22  # converted at a time

register_heif_opener()
Image.init()  # fills Image.OPEN
warnings.filterwarnings("ignore", module="PIL")  # of damage; what cannot be read is said in one line
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # image generators write their whole workflow


def open_image(path: Path, opener: Opener | None = None) -> Image.Image | None:
    """Open the image at ``path``, unread; None for anything that is no image, or that FFmpeg plays: a GIF.

    ``opener``: opens what is no local file; then ``path`` is just its name. ``MediaError`` for an
    image that is damaged, too large, or in a format that is not read.
    """
    # 1. The format by the first bytes.
    if opener is None:
        check_file(path)
    with path.open("rb") if opener is None else opener() as file:
        prefix = file.read(32)
    for signature, name in _NOT_READ.items():
        if prefix.startswith(signature):
            raise MediaError(f"{path}: {name} images are not read; save it as PNG or JPEG")
    formats = [name for name in _READ if (accepts := Image.OPEN[name][1]) and accepts(prefix) is True]
    if not formats and path.suffix.lower() in _TRUEVISION:
        formats = ["TGA"]
    if prefix[20:24] == b"mjp2":  # a film of JPEG 2000 images begins like one image
        return None

    # 2. Its header. Image.open refuses photos that can be read at a fraction of their size, or warns of them.
    image = None
    fault = ""
    for name in formats:  # AVIF and HEIF begin alike
        try:
            factory: Any = Image.OPEN[name][0]
            image = factory(str(path) if opener is None else opener(), str(path))
            break
        except _FAULTS as error:
            fault = fault or first_line(error)
    if image is None and formats:
        kind = f"the {formats[0]} image is damaged, or of a kind that is not read"
        raise MediaError(f"{path}: {kind} ({fault})")

    # 3. Films, and what is too large.
    if image is None:
        return None
    if is_moving(image) and image.format not in MOVING_FORMATS:
        image.close()
        return None
    most = _MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if isinstance(image, JpegImageFile) and "progressive" not in image.info:  # that is held whole in any case
        most = _MAX_SCALED_PIXELS
    if image.tile and image.tile[0][0] == "ppm_plain":
        most = _MAX_PLAIN_PIXELS
    if image.width * image.height > most:
        image.close()
        limit = f"more than {most // 1_000_000} million pixels, the most that are read of {image.format}"
        raise MediaError(f"{path}: its {image.width}x{image.height} are {limit}")
    if max(image.size) > MAX_SIDE:
        image.close()
        raise MediaError(f"{path}: its {image.width}x{image.height} are longer than {MAX_SIDE:,} pixels")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an open image as displayed, by its header."""
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    # Pillow turns a TIFF itself. PNG's own getexif would decode the pixels to find what comes after them.
    turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
    return (image.height, image.width) if turned else image.size


def read_pixels(path: Path, image: Image.Image, size: int | None) -> np.ndarray:
    """Read an image as uint8 [H,W,3]: upright, transparency over white, 16 bits brought to 8.

    ``size``: the short side is scaled down to it. More than ``MAX_READ_PIXELS`` are scaled down in any case.
    """
    try:
        with image:
            # 1. Decode. JPEG and JPEG 2000 can be decoded at a fraction of their size.
            enough = size or math.ceil(min(image.size) / _divisor(image.size))
            if size or enough < min(image.size):
                image.draft("RGB", (enough, enough))
            if isinstance(image, Jpeg2KImageFile) and (divisor := _divisor(image.size)) > 1:
                image.reduce = (divisor - 1).bit_length()  # halvings
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation)

            # 2. To 8-bit RGB, a band at a time: an image that is still too large loses rows and columns here.
            divisor = _divisor(image.size)
            width, height = image.size
            pixels = Image.new("RGB", (-(-width // divisor), -(-height // divisor)))
            extrema: Any = image.getextrema() if image.mode.startswith("I") or image.mode == "F" else (0, 255)
            rows = divisor * max(1, _BAND_PIXELS // (width * divisor))
            for begin in range(0, height, rows):
                band = _to_rgb(image.crop((0, begin, width, min(begin + rows, height))), extrema[1])
                pixels.paste(band.reduce(divisor), (0, begin // divisor))

        # 3. Upright, as its Exif data say, and the short side scaled down, never up.
        if orientation:
            pixels.getexif()[ExifTags.Base.Orientation] = orientation
            ImageOps.exif_transpose(pixels, in_place=True)
        if size and min(pixels.size) > size:
            scale = size / min(pixels.size)
            width = max(1, round(pixels.width * scale))
            height = max(1, round(pixels.height * scale))
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
        return np.array(pixels)
    except _FAULTS as error:
        raise MediaError(f"{path}: the image cannot be read ({first_line(error)})") from error


def _divisor(size: tuple[int, int]) -> int:
    """The least whole number by which both sides are divided to leave ``MAX_READ_PIXELS`` at most."""
    divisor = 1
    while math.ceil(size[0] / divisor) * math.ceil(size[1] / divisor) > MAX_READ_PIXELS:
        divisor += 1
    return divisor


def _to_rgb(image: Image.Image, top: float) -> Image.Image:
    """8-bit RGB of any mode. ``top``: the largest value of an image of 16 bits, 32 bits or floats."""
    # Values of 0..1, 0..255 or 0..65535 become 8 bits.
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64) / (257 if top > 255 else 1 if top > 1 else 1 / 255)
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    # Transparency goes over white, as in a video's frames.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def moving_crop(image: np.ndarray, num_frames: int, seed: int, size: int = 224) -> np.ndarray:
    """Turn a photo [H,W,3] into a video uint8 [num_frames,size,size,3]: a square that pans and zooms slowly.

    Half of the seeds mirror the photo. The same seed gives the same video.
    """
    rng = np.random.default_rng(seed)
    photo = Image.fromarray(image)
    if rng.random() < 0.5:
        photo = ImageOps.mirror(photo)

    # A square at the first frame and one at the last, each with its own side [2] and top left corner [2, 2];
    # those between lie on straight lines from the one to the other.
    sides = min(photo.size) * rng.uniform(0.6, 1.0, size=2)
    corners = rng.uniform(size=(2, 2)) * (np.array(photo.size) - sides[:, None])
    crops = []
    for progress in np.linspace(0.0, 1.0, num_frames):
        side = sides[0] + progress * (sides[1] - sides[0])
        left, top = corners[0] + progress * (corners[1] - corners[0])
        box = (left, top, min(left + side, photo.width), min(top + side, photo.height))
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        crops.append(np.asarray(crop))
    return np.stack(crops) if crops else np.zeros((0, size, size, 3), dtype=np.uint8)
