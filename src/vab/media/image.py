"""Still pictures: files -> pixels, and a photo as a short video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vab.errors import first_line
from vab.media.container import MediaError, check_file

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def open_image(path: Path) -> Image.Image | None:
    """The still image at ``path``, not read yet; None if it is anything else (a moving GIF is a video)."""
    check_file(path)
    try:
        image = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: the image is too large") from error
    except (OSError, SyntaxError, ValueError):
        return None
    moving = image.format in ("GIF", "PNG") and getattr(image, "n_frames", 1) > 1
    if moving:
        image.close()
    return None if moving else image


def read_pixels(path: Path, image: Image.Image, size: int | None) -> np.ndarray:
    """An image as uint8 [H,W,3]: upright, transparency over white, 16 bits brought to 8."""
    try:
        with image:
            image.draft("RGB", (size, size) if size else image.size)
            picture = ImageOps.exif_transpose(image)
            if picture.mode.startswith("I") or picture.mode == "F":
                values = np.asarray(picture, dtype=np.float64)
                top = values.max(initial=0)
                values = values / (257 if top > 255 else 1 if top > 1 else 1 / 255)
                picture = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("RGB")
            if size and min(picture.size) > size:
                scale = size / min(picture.size)
                width, height = (max(1, round(side * scale)) for side in picture.size)
                picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            return np.array(picture)
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{path}: the image cannot be read ({first_line(error)})") from error


def moving_crop(image: np.ndarray, frames: int, seed: int, size: int = 224) -> np.ndarray:
    """A photo [H,W,3] as a short video uint8 [frames,size,size,3]: a square that slowly pans and zooms.

    Half of the seeds mirror the photo. The same seed gives the same video.
    """
    draw = np.random.default_rng(seed)
    picture = Image.fromarray(image)
    if draw.random() < 0.5:
        picture = ImageOps.mirror(picture)
    short = min(picture.size)
    side = short * draw.uniform(0.6, 1.0, size=2)  # of the square, at the first and the last frame
    corner = draw.uniform(size=(2, 2)) * (np.array(picture.size) - side[:, None])
    crops = []
    for progress in np.linspace(0.0, 1.0, frames):
        edge = side[0] + progress * (side[1] - side[0])
        left, top = corner[0] + progress * (corner[1] - corner[0])
        box = (left, top, min(left + edge, picture.width), min(top + edge, picture.height))
        crop = picture.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        crops.append(np.asarray(crop))
    return np.stack(crops) if crops else np.zeros((0, size, size, 3), dtype=np.uint8)
