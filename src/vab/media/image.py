"""Still images: files -> pixels, and a photo as a short video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vab.errors import first_line
from vab.media.container import MediaError, check_file

_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def open_image(path: Path) -> Image.Image | None:
    """Open the still image at ``path``, unread; None for anything else (a moving GIF is a video)."""
    check_file(path)
    try:
        image = Image.open(path, formats=_IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise MediaError(f"{path}: the image is too large") from error
    except (OSError, SyntaxError, ValueError):
        return None
    moving = image.format in ("GIF", "PNG") and getattr(image, "n_frames", 1) > 1
    if moving:
        image.close()
    return None if moving else image


def read_pixels(path: Path, image: Image.Image, size: int | None) -> np.ndarray:
    """Read an image as uint8 [H,W,3]: upright, transparency over white, 16 bits brought to 8."""
    try:
        with image:
            # A JPEG can be decoded at a fraction of its size; then stand it upright as its Exif data say.
            image.draft("RGB", (size, size) if size else image.size)
            upright = ImageOps.exif_transpose(image)

            # 16 bits, 32 bits and floats of 0..1 or 0..255 become 8 bits.
            if upright.mode.startswith("I") or upright.mode == "F":
                values = np.asarray(upright, dtype=np.float64)
                top = values.max(initial=0)
                values = values / (257 if top > 255 else 1 if top > 1 else 1 / 255)
                upright = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))

            # Transparency goes over white, as in a video's frames.
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright)
            upright = upright.convert("RGB")

            # Scale the short side down, never up.
            if size and min(upright.size) > size:
                scale = size / min(upright.size)
                width = max(1, round(upright.width * scale))
                height = max(1, round(upright.height * scale))
                upright = upright.resize((width, height), Image.Resampling.BICUBIC)
            return np.array(upright)
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{path}: the image cannot be read ({first_line(error)})") from error


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
