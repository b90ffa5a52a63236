"""Small grey films of things that move as they sound: photos and sprites, a camera, a codec's traces.

Exact times come from ``acts``; here they are seen through frames of any rate, held ones, motion blur, noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vab.timing.motion import HEIGHT, WIDTH
from vab.training.motion.acts import RATE, SILENT, Heard, Path, drift, pick, seen

# Frames a second of films; of 50 and 60 every other frame is looked at, so they are as 25 and 30.
_RATES = (12.5, 15, 15, 21, 23.976, 24, 25, 25, 25, 29.97, 30, 30, 30, 40)
_WHOLE = (slice(0, HEIGHT), slice(0, WIDTH))
Picture = NDArray[np.uint8]  # grey [h,w], a photo of at least 160 pixels a side


@dataclass(frozen=True)
class Rendered:
    """A film: grey ``frames`` uint8 [F,72,96], shown from ``seconds`` [F] on."""

    frames: NDArray[np.uint8]
    seconds: NDArray[np.float64]


@dataclass(frozen=True)
class Sprite:
    """A texture, a place (x, y) from the middle in pixels, and a path.

    The texture [2,h,w] is grey levels times opacity, and opacity; that of the ground [1,h,w] has none.
    """

    texture: Tensor
    place: tuple[float, float]
    path: Path


def render(random: np.random.Generator, heard: Heard, photos: Sequence[Picture]) -> Rendered:
    """A film of what is heard: one or two things that sound, others that do not, before a photo."""
    # 1. The frames' times.
    seconds = frame_times(random, heard.seconds)

    # 2. What happens in it.
    event = seen(random, heard)
    sprites = [_sprite(random, photos, drift(random, heard)) for _ in range(random.poisson(0.5))]
    sprites += [
        _sprite(random, photos, SILENT[random.integers(len(SILENT))](random, heard))
        for _ in range(random.poisson(0.4))
    ]
    for _ in range(1 if random.random() < 0.6 else 2):
        path = pick(random)(random, event)
        sprite = _sprite(random, photos, path)
        sprites.append(sprite)
        if random.random() < 0.4:  # a body that moves along a little: a shoulder, a head
            sprites.insert(0, _sprite(random, photos, _share(path, random), near=sprite.place))
    if random.random() < 0.05:  # out of the picture altogether
        sprites = [_sprite(random, photos, drift(random, heard)) for _ in range(2)]

    # 3. The camera, which cuts to another view at times.
    camera = _camera(random, heard)
    return Rendered(develop(random, expose(random, photos, sprites, camera, seconds), seconds), seconds)


def frame_times(random: np.random.Generator, length: float) -> NDArray[np.float64]:
    """Times of frames over ``length`` seconds: even, or now and then uneven."""
    rate = random.choice(_RATES)
    seconds = np.arange(int(length * rate)) / rate
    if random.random() < 0.1:
        seconds = np.sort(seconds + random.uniform(-0.35, 0.35, len(seconds)) / rate)
    return seconds - seconds[0]


def expose(
    random: np.random.Generator,
    photos: Sequence[Picture],
    sprites: Sequence[Sprite],
    camera: Path,
    seconds: NDArray[np.float64],
) -> Tensor:
    """Grey levels [F,72,96] of sprites before a photo; some cameras blur what moves."""
    ground = _background(random, photos)
    interval = float(np.median(np.diff(seconds)))
    shutters = [0.0, random.uniform(0.2, 0.5) * interval] if random.random() < 0.25 else [0.0]
    exposed = [_draw(random, ground, sprites, camera, seconds + shutter) for shutter in shutters]
    return torch.stack(exposed).mean(0)


def _draw(
    random: np.random.Generator,
    ground: Tensor,
    sprites: Sequence[Sprite],
    camera: Path,
    seconds: NDArray[np.float64],
) -> Tensor:
    """One moment of each frame: grey levels [F,72,96]."""
    # 1. The ground; a camera on its stand shows the same of it all the time.
    at = np.minimum(np.round(seconds * RATE).astype(int), len(camera.x) - 1)
    moving = np.ptp(camera.x) + np.ptp(camera.y) + np.ptp(camera.wide) + np.ptp(camera.turn) > 0
    shown = Sprite(ground, (0.0, 0.0), camera)
    levels = _placed(shown, camera, at if moving else at[:1], _WHOLE)[:, 0]
    levels = levels.expand(len(at), -1, -1).clone()

    # 2. Each sprite, in the part of the frame that it is ever in.
    for sprite in sprites:
        path = _through(camera, sprite.path) if moving else sprite.path
        rows, columns = box = _box(sprite, path, at)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        opaque = torch.from_numpy(path.opacity[at].astype(np.float32))[:, None, None]
        grey, opacity = _placed(sprite, path, at, box).unbind(1)
        if sprite.path.wild:
            grain = random.normal(0, 40, (len(at), HEIGHT // 6, WIDTH // 6)).astype(np.float32)
            rough = F.interpolate(torch.from_numpy(grain)[None], (HEIGHT, WIDTH))[0]
            grey = grey + opacity * rough[:, rows, columns]
        part = levels[:, rows, columns]
        part.mul_(1 - opacity * opaque).add_(grey * opaque)
    return levels


def _box(sprite: Sprite, path: Path, at: NDArray[np.int64]) -> tuple[slice, slice]:
    """The rows and columns of the frame that a sprite is ever in; empty if it is always beside it."""
    reach = 0.5 * np.hypot(
        sprite.texture.shape[1] * np.abs(path.high[at]), sprite.texture.shape[2] * np.abs(path.wide[at])
    )
    places = ((path.y[at] + sprite.place[1], HEIGHT), (path.x[at] + sprite.place[0], WIDTH))
    first, second = (
        slice(
            int(np.clip((place - reach).min() + length / 2, 0, length)),
            int(np.clip((place + reach).max() + length / 2 + 1, 0, length)),
        )
        for place, length in places
    )
    return first, second


def _placed(sprite: Sprite, path: Path, at: NDArray[np.int64], box: tuple[slice, slice]) -> Tensor:
    """A sprite along a path, within some rows and columns of the frame: [F,C,h,w]."""
    texture = sprite.texture
    x, y, turn, wide, high = (
        torch.from_numpy(values[at].astype(np.float32))[:, None, None]
        for values in (path.x + sprite.place[0], path.y + sprite.place[1], path.turn, path.wide, path.high)
    )
    # From pixels of the frame, from its middle, to places in the texture (-1..1).
    half_h, half_w = texture.shape[1] / 2, texture.shape[2] / 2
    down = (torch.arange(HEIGHT) + 0.5 - HEIGHT / 2)[box[0], None]
    right = (torch.arange(WIDTH) + 0.5 - WIDTH / 2)[box[1]]
    cos, sin = torch.cos(turn), torch.sin(turn)
    grid = torch.empty(len(at), down.shape[0], right.shape[0], 2)
    torch.add(cos * right - (cos * x + sin * y), sin * down, out=grid[..., 0]).div_(half_w * wide)
    torch.add(-sin * right + (sin * x - cos * y), cos * down, out=grid[..., 1]).div_(half_h * high)
    padding = "border" if texture.shape[0] == 1 else "zeros"
    pictures = texture.expand(len(at), -1, -1, -1)
    return F.grid_sample(pictures, grid, padding_mode=padding, align_corners=False)


def _through(camera: Path, path: Path) -> Path:
    """A path as the camera sees it."""
    return Path(
        path.x + camera.x,
        path.y + camera.y,
        path.turn + camera.turn,
        path.wide * camera.wide,
        path.high * camera.wide,
        path.opacity,
    )


def _share(path: Path, random: np.random.Generator) -> Path:
    """A part of a path: what is fixed to it, a little sooner or later."""
    part, late = random.uniform(0.1, 0.5), random.integers(-8, 9)
    x, y, turn = (np.roll(values, late) * part for values in (path.x, path.y, path.turn))
    ones = np.ones(len(x))
    return Path(x, y, turn, ones, ones, ones)


def _camera(random: np.random.Generator, heard: Heard) -> Path:
    """A camera on a stand, in a hand, or that pans and zooms; at times it cuts to another view."""
    camera = Path.still(heard)
    kind = random.random()
    if kind < 0.45:
        return camera
    if kind < 0.8:
        shaky = drift(random, heard)
        share = random.uniform(0.02, 0.35)
        camera.x, camera.y, camera.turn = shaky.x * share, shaky.y * share, shaky.turn * share * 0.3
        tremor = random.uniform(0, 0.25)
        for values in (camera.x, camera.y):
            rough = np.convolve(random.normal(0, 1, len(values)), np.ones(20) / 20, "same")
            values += rough * tremor * 4
    else:
        camera.x = (heard.clock - heard.seconds / 2) * random.uniform(-8, 8)
        camera.wide = camera.high = 1 + (heard.clock / heard.seconds) * random.uniform(-0.1, 0.4)
    if random.random() < 0.25:
        cut = random.integers(len(camera.x))
        camera.x[cut:] += random.uniform(-25, 25)
        camera.y[cut:] += random.uniform(-10, 10)
    return camera


def _background(random: np.random.Generator, photos: Sequence[Picture]) -> Tensor:
    """A photo, larger than the frame: [1,h,w]."""
    photo = _part(random, photos, random.uniform(0.5, 1.0))
    height, width = HEIGHT + 24, WIDTH + 32
    ground = _resized(photo, height, width)
    if random.random() < 0.3:  # out of focus, a wall
        ground = _resized(_resized(ground[0].numpy(), 12, 16)[0].numpy(), height, width)
    contrast = random.uniform(0.2, 1.0)
    return (ground - 128) * contrast + random.uniform(60, 190)


def _sprite(
    random: np.random.Generator,
    photos: Sequence[Picture],
    path: Path,
    near: tuple[float, float] | None = None,
) -> Sprite:
    """A part of a photo, or a plain thing, in the shape of an ellipse, a box or a bar."""
    # 1. Its size in the frame, a few pixels up to most of it.
    size = float(np.exp(random.uniform(np.log(7), np.log(50))))
    shape = random.integers(3)
    long = random.uniform(2, 5) if shape == 2 else random.uniform(0.6, 1.7)
    height = max(4, min(HEIGHT, round(size * long**0.5)))
    width = max(4, min(WIDTH, round(size / long**0.5)))
    if random.random() < 0.3:
        height, width = width, height

    # 2. Its texture.
    plain = random.random() < 0.3
    grey = torch.full((1, height, width), random.uniform(10, 245))
    if not plain:
        grey = _resized(_part(random, photos, random.uniform(0.15, 0.6)), height, width)
        grey = (grey - 128) * random.uniform(0.4, 1.3) + random.uniform(50, 200)
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None]
    far = torch.maximum(rows.abs(), columns.abs()) if shape else (rows**2 + columns**2).sqrt()
    opacity = ((1 - far) * min(height, width) / 3).clamp(0, 1) * random.uniform(0.6, 1.0)
    texture = torch.cat([grey * opacity, opacity[None]])

    # 3. Its place: anywhere, or near another.
    x, y = near or (random.uniform(-38, 38), random.uniform(-26, 26))
    if near is not None:
        x, y = x + random.normal(0, 8), y + random.normal(0, 8)
    return Sprite(texture, (float(x), float(y)), path)


def _part(random: np.random.Generator, photos: Sequence[Picture], share: float) -> Picture:
    """A part of one of the photos, ``share`` of its sides, perhaps mirrored."""
    photo = photos[int(random.integers(len(photos)))]
    height, width = (max(8, int(length * share)) for length in photo.shape)
    top = random.integers(photo.shape[0] - height + 1)
    left = random.integers(photo.shape[1] - width + 1)
    part = photo[top : top + height, left : left + width]
    return part[:, ::-1] if random.random() < 0.5 else part


def _resized(pixels: NDArray[np.generic], height: int, width: int) -> Tensor:
    """Grey levels [1,height,width] of pixels [h,w]."""
    levels = torch.from_numpy(np.ascontiguousarray(pixels).astype(np.float32))[None, None]
    return F.interpolate(levels, (height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def develop(random: np.random.Generator, levels: Tensor, seconds: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey levels [F,72,96] -> frames as a camera and a codec leave them: uint8 [F,72,96]."""
    frames = levels.numpy().copy()
    # 1. Light that flickers, noise of the sensor.
    if random.random() < 0.15:
        rough = np.convolve(random.normal(0, 1, len(frames) + 4), np.ones(5) / 5, "valid")
        frames *= (1 + rough * random.uniform(0, 0.04))[:, None, None]
    if (noise := random.choice([0.0, 0.3, 0.8, 1.6]) * random.random()) > 0:
        frames += random.standard_normal(frames.shape, np.float32) * noise

    # 2. A codec: blocks that change little are kept, and what it leaves out differs in each group of frames.
    if random.random() < 0.6:
        _compressed(random, frames)

    # 3. Frames that repeat the one before; black bars.
    if random.random() < 0.15:
        repeated = random.choice([2, 2, 3])
        phase = random.integers(repeated)
        for number in range(1, len(frames)):
            if (number + phase) % repeated:
                frames[number] = frames[number - 1]
    elif random.random() < 0.1:
        for number in np.flatnonzero(random.random(len(frames)) < 0.08).tolist():
            frames[number] = frames[max(0, number - 1)]
    if random.random() < 0.1:
        bar = random.integers(4, 14)
        if random.random() < 0.5:
            frames[:, :bar] = frames[:, -bar:] = 16
        else:
            frames[:, :, :bar] = frames[:, :, -bar:] = 16
    return frames.clip(0, 255).round().astype(np.uint8)


def _compressed(random: np.random.Generator, frames: NDArray[np.float32]) -> None:
    """Frames [F,72,96] with a codec's traces, in place."""
    size = int(random.choice([2, 4]))
    keep = random.uniform(0.2, 1.5)
    group = int(random.choice([12, 30, 60, 250]))
    residue = random.uniform(0, 0.8)
    blocks = (HEIGHT // size, size, WIDTH // size, size)
    shown = frames[0].copy()
    for number in range(len(frames)):
        if number % group == 0:
            shown = frames[number] + residue * random.standard_normal(shown.shape, np.float32)
        else:
            step = frames[number] - shown
            amount = np.abs(step.reshape(blocks)).mean((1, 3))
            shown = shown + np.repeat(np.repeat(amount > keep, size, 0), size, 1) * step
        frames[number] = shown
