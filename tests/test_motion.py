"""Motion: which way and when something moves, at any frame rate; rendered films; sources of a curve."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.cli import vab
from helpers.tiny import write_model
from vab.errors import SettingError
from vab.inference.features import FeatureReader
from vab.inference.pipeline import VABPipeline
from vab.inference.tokens import timing_channels
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.reader import write_wav
from vab.models import hub
from vab.presets import preset
from vab.sampling.stages import Stage
from vab.timing import MOTION_FILES
from vab.timing.curve import TimingCurve, TimingError
from vab.timing.motion import CHANNELS, COLUMNS, PATCHES, Motion, frames_of, read_motion, scaled, small_luma
from vab.timing.predictor import MotionPredictor, PredictorConfig, load_predictor, pick_events, save_predictor
from vab.timing.sources import choose, record, resolve
from vab.training.motion.acts import RATE as PATH_RATE
from vab.training.motion.acts import Heard, bounce, strike
from vab.training.motion.films import LEAD_SECONDS, film, struck
from vab.training.motion.render import Sprite, expose
from vab.training.motion.train import MotionTrainConfig, correlation, train_predictor
from vab.utils.progress import STAGE_LABELS

AMOUNT, CHANGE, ACROSS, DOWN, LIGHT = range(len(CHANNELS))
Place = Callable[[float], tuple[float, float]]


def square(x: float, y: float, side: int = 16) -> np.ndarray:
    """A soft bright square on a dark ground, uint8 [72,96], its middle at (x, y)."""
    columns = (side / 2 + 0.5 - np.abs(np.arange(96) - x)).clip(0, 1)
    rows = (side / 2 + 0.5 - np.abs(np.arange(72) - y)).clip(0, 1)
    return (40 + 160 * rows[:, None] * columns).round().astype(np.uint8)


def moving(place: Place, seconds: np.ndarray) -> Motion:
    """The motion of a film of the square."""
    return frames_of((time, square(*place(time))) for time in seconds.tolist())


def falling(time: float) -> tuple[float, float]:
    """Still until 0.5 s, then down by 30 pixels a second until 1.0 s, then up again as fast."""
    return 40.0, 20.0 + 30 * min(max(time - 0.5, 0), 0.5) - 30 * min(max(time - 1.0, 0), 0.5)


def swinging(time: float) -> tuple[float, float]:
    """Down by 30 pixels a second until 1.0 s, then up again as fast."""
    return 40.0, 20.0 + 30 * (1 - abs(time - 1))


def strongest(values: np.ndarray, channel: int) -> np.ndarray:
    """Of each frame [T] the value of the patch with the largest one of either sign."""
    flat = values[:, :, channel]
    return np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)[:, 0]


@pytest.mark.parametrize("rate", [12.5, 25.0, 30.0, 60.0])
def test_a_square_moves_down_then_up_at_its_time_whatever_the_frame_rate(rate: float) -> None:
    values = moving(falling, np.arange(round(2 * rate)) / rate).resampled(100)
    assert values.shape == (100, PATCHES, 5) and values.dtype == np.float32
    down = strongest(values, DOWN)
    # 30 pixels a second are 1.2 in 40 ms; a gradient sees somewhat less or more of them
    assert 0.6 < np.median(down[30:45]) < 1.8 and -1.8 < np.median(down[55:70]) < -0.6
    still = round(50 / min(rate, 30)) + 1  # audio frames around a change
    assert np.abs(values[: 25 - still]).max() == 0 and np.abs(values[75 + still :]).max() == 0
    # it turns at 1.0 s: to a frame of the film
    turn = np.flatnonzero((down[35:65] > 0)[:-1] & (down[35:65] <= 0)[1:]) + 35
    assert abs((turn[0] + 1) / 50 - 1.0) <= 1 / min(rate, 30) + 0.01
    # nothing moves sideways, and nothing where the square is not
    assert np.abs(strongest(values, ACROSS)).max() < 0.6
    assert values[:, COLUMNS - 1 :: COLUMNS].max() == 0


def test_sideways_has_its_sign_and_light_is_no_motion() -> None:
    seconds = np.arange(50) / 25
    right = moving(lambda time: (20 + 25 * time, 36.0), seconds).resampled(100)
    assert np.median(strongest(right, ACROSS)[10:90]) > 0.5
    assert np.abs(np.median(strongest(right, DOWN)[10:90])) < 0.2
    # a room that grows brighter
    flash = frames_of(
        (time, np.full((72, 96), 50 + 2 * n, np.uint8)) for n, time in enumerate(seconds.tolist())
    )
    values = flash.resampled(100)[10:90]
    assert values[:, :, LIGHT].min() == pytest.approx(2, abs=0.01)
    assert np.abs(values[:, :, DOWN]).max() < 1e-3 and values[:, :, CHANGE].max() < 0.01


def test_held_frames_do_not_flicker_and_a_still_picture_is_still() -> None:
    seconds = np.arange(60) / 30
    place: Place = lambda time: (20 + 20 * time, 36.0)  # noqa: E731
    smooth = moving(place, seconds).resampled(100)
    # 15 frames a second in a film of 30: each frame is there twice
    held = frames_of((time, square(*place(n // 2 * 2 / 30))) for n, time in enumerate(seconds.tolist()))
    assert len(held.seconds) == 29
    across = strongest(held.resampled(100), ACROSS)[10:85]
    assert across.min() > 0.5 * across.max()
    assert across.mean() == pytest.approx(strongest(smooth, ACROSS)[10:85].mean(), rel=0.25)
    # after a second of rest what moves has moved within its own frame, not within that second
    rested = moving(lambda time: (20.0 + 6 * (time >= 1.0), 36.0), seconds)
    amount = rested.values[:, :, AMOUNT].max(1)
    assert rested.seconds[amount > 0] == pytest.approx([1.0 - 0.5 / 30], abs=0.02)


def test_a_rest_ends_and_begins_with_a_frame() -> None:
    # down for half a second, a rest of half a second, and so on: the codec repeats what does not move
    place: Place = lambda time: (40.0, 20 + 15 * (time // 1 * 0.5 + min(time % 1, 0.5)))  # noqa: E731
    amount = moving(place, np.arange(75) / 25).resampled(150)[:, :, AMOUNT].max(1)
    for begin in (0, 50, 100):
        assert amount[begin + 3 : begin + 22].min() > 1 and amount[begin + 28 : begin + 47].max() == 0


def test_what_slows_down_is_no_repeat() -> None:
    # one step of a tenth of the speed before it, but no less than a third of that after it
    places = np.cumsum([20.0, 8, 8, 8, 0.8, 2.4, 2.4, 2.4])
    film = ((n / 25, square(x, 36.0)) for n, x in enumerate(places.tolist()))
    assert frames_of(film).seconds == pytest.approx(np.arange(7) / 25 + 0.02)
    # one that hardly moves is a repeat at 30 frames a second; at 15 it lasts too long for that
    places = np.cumsum([20.0, 8, 8, 0.4, 8, 8])
    for rate, count in ((30, 4), (15, 5)):
        motion = frames_of((n / rate, square(x, 36.0)) for n, x in enumerate(places.tolist()))
        assert len(motion.seconds) == count


def test_another_shot_is_a_cut() -> None:
    random = np.random.default_rng(0)
    rooms = [np.kron(random.integers(0, 255, (9, 12)), np.ones((8, 8))).astype(np.uint8) for _ in range(2)]
    views = [np.roll(rooms[n >= 30], n, 1) for n in range(60)]  # a camera that pans
    seen = [(n / 25, view // 2 + square(20 + n, 30) // 2) for n, view in enumerate(views)]
    assert frames_of(iter(seen)).cuts() == pytest.approx([30 / 25], abs=0.01)
    assert (
        len(moving(falling, np.arange(50) / 25).cuts()) == 0 and len(moving(falling, np.zeros(1)).cuts()) == 0
    )
    # a single bright frame is a flash, and the shot goes on; a shot of a second has both its cuts
    for length, cuts in ((1, []), (25, [20 / 25, 45 / 25])):
        views = [rooms[20 <= n < 20 + length] // 2 for n in range(60)]
        found = frames_of((n / 25, view) for n, view in enumerate(views)).cuts()
        assert found == pytest.approx(cuts, abs=0.03)


def test_uneven_frames_keep_the_moment() -> None:
    random = np.random.default_rng(0)
    seconds = np.cumsum(random.uniform(0.025, 0.08, 45))
    down = strongest(moving(falling, seconds[seconds < 2]).resampled(100), DOWN)
    fast, slow = down[32:44], down[56:68]
    assert fast.min() > 0.4 and slow.max() < -0.4  # no holes where a frame came late
    assert fast.max() < 2.5


def test_scaled_motion_is_that_of_another_contrast() -> None:
    random = np.random.default_rng(0)
    values = moving(falling, np.arange(50) / 25).resampled(100) + random.uniform(0, 0.02, (100, PATCHES, 5))
    values = values.astype(np.float32)
    first = scaled(values)
    assert np.abs(first).max() <= 3 and np.isfinite(first).all()
    second = scaled(values * np.float32([0.5, 0.5, 1, 1, 0.5]))
    moved = values[:, :, AMOUNT] > 1
    assert np.abs(first - second)[moved].mean() < 0.25
    # noise alone stays small
    assert (
        np.abs(scaled(random.uniform(0, 0.02, (100, PATCHES, 5)).astype(np.float32))[:, :, 2:]).mean() < 0.3
    )


def write_square_film(
    path: Path,
    place: Place,
    seconds: np.ndarray,
    rotation: int = 0,
    scale: int = 2,
    crf: int = 12,
    draw: Callable[[float, float], np.ndarray] = square,
) -> Path:
    """The square as a film so much larger, frames at any times; ``rotation``: it lies on its side."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25, options={"crf": str(crf), "x264-params": "log=-1"})
        across, down = 96 * scale, 72 * scale
        stream.width, stream.height = (down, across) if rotation % 180 else (across, down)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 12_800)
        if rotation:
            stream.set_display_rotation(rotation)
        for time in seconds.tolist():
            grey = draw(*place(time)).repeat(scale, 0).repeat(scale, 1)
            pixels = np.ascontiguousarray(np.rot90(grey, -rotation // 90))[:, :, None].repeat(3, 2)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = round(time * 12_800), Fraction(1, 12_800)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def textured(x: float, y: float) -> np.ndarray:
    """A rough square on a rough ground, uint8 [72,96]: a codec has something to refine."""
    random = np.random.default_rng(0)
    ground, rough = (random.normal(0, size, (72, 96)) for size in (20, 40))
    inside = (square(x, y, 40) - 40.0) / 160
    shifted = np.roll(rough, (round(y), round(x)), (0, 1))
    return (90 + ground * (1 - inside) + (60 + shifted) * inside).clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize(("content", "stored"), [(15, 30), (24, 60), (15, 120)])
def test_frames_that_repeat_and_were_refined_are_held_and_rests_are_not(
    tmp_path: Path, content: int, stored: int
) -> None:
    def place(time: float) -> tuple[float, float]:  # it moves for half a second, then rests for as long
        shown = math.floor(time * content + 1e-6) / content
        return 30 + 40 * (shown // 1 * 0.5 + min(shown % 1, 0.5)), 36.0

    seconds = np.arange(2 * stored) / stored
    path = write_square_film(tmp_path / "a.mp4", place, seconds, crf=28, draw=textured)
    with MediaFile(path) as file:
        motion = read_motion(file)
    amount = motion.resampled(100)[:, :, AMOUNT].max(1)
    for begin in (0, 50):
        moves, rests = amount[begin + 5 : begin + 22], amount[begin + 31 : begin + 47]
        assert moves.min() > 0.4 * moves.max() and rests.max() < 0.1 * moves.max()
    # while it moves there are motions for the frames that were made, not for those that were stored
    moving = motion.seconds[(motion.seconds > 0.05) & (motion.seconds < 0.5)]
    assert len(moving) == pytest.approx(0.45 * content, abs=2)


@pytest.mark.parametrize("scale", [2, 8])  # by the scaler, by the luma itself
@pytest.mark.parametrize("rotation", [0, 90, 180])
def test_a_film_is_read_upright_and_at_its_own_times(tmp_path: Path, rotation: int, scale: int) -> None:
    seconds = np.sort(np.arange(40) / 20 + np.random.default_rng(1).uniform(-0.01, 0.01, 40)).clip(0)
    seconds[0] = 0.0
    path = write_square_film(tmp_path / "a.mp4", swinging, seconds, rotation, scale)
    with MediaFile(path) as file:
        motion = read_motion(file)
    assert motion.seconds == pytest.approx((seconds[1:] + seconds[:-1]) / 2, abs=0.002)
    down = strongest(motion.resampled(100), DOWN)
    assert np.median(down[20:44]) > 0.6 and np.median(down[56:80]) < -0.6


@pytest.mark.parametrize(
    ("pixel_format", "levels", "width", "height"),
    [
        ("yuv420p", "MPEG", 1280, 720),
        ("yuv420p", "JPEG", 640, 360),
        ("yuvj420p", None, 640, 480),
        ("yuv444p", None, 721, 1023),
        ("nv12", None, 854, 480),
    ],
)
def test_large_frames_become_grey_as_the_scaler_has_them(
    pixel_format: str, levels: str | None, width: int, height: int
) -> None:
    # black, white and what lies between, smooth
    rough = Image.fromarray(np.random.default_rng(0).choice([0, 90, 170, 255], (12, 16, 3)).astype(np.uint8))
    pixels = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC))
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = frame.reformat(format=pixel_format, dst_color_range=levels)
    scaled_down = frame.reformat(width=96, height=72, format="gray", interpolation="AREA").to_ndarray()
    grey = small_luma(frame, 72, 96)
    assert grey.shape == (72, 96) and grey.dtype == np.uint8
    off = np.abs(grey.astype(int) - scaled_down)
    assert off.mean() < 1.0 and off.max() < 12  # a box of 5 pixels begins at most half of one elsewhere
    assert np.ptp(scaled_down) > 240 and abs((grey - scaled_down.astype(float)).mean()) < 0.2


def test_motion_comes_from_the_pass_that_reads_the_frames(tmp_path: Path) -> None:
    path = write_square_film(tmp_path / "a.mp4", swinging, np.arange(50) / 25)

    class Eye:  # an image encoder that shows what it was shown
        decode_size, default_batch_size = 256, 4
        from vab.vision import RECIPES

        recipe = RECIPES["efficientnet-lite0"]

        @staticmethod
        def encode_crops(crops: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([crop.float().mean((0, 1, 2), keepdim=False).reshape(1) for crop in crops])

    rows = {}
    for wanted in (False, True):
        file = MediaFile(path)
        _ = file.times  # known before, so that reading would stop at the last frame that is wanted
        with file, FeatureReader(file, Eye(), 1.0, 0, {}, timing="motion" if wanted else None) as reader:  # type: ignore[arg-type]
            if wanted:
                motion = reader.motion()
            rows[wanted] = reader.all()
    assert torch.equal(rows[True], rows[False])
    with MediaFile(path) as file:
        own = read_motion(file)
    assert np.array_equal(motion.values, own.values) and motion.seconds[-1] == pytest.approx(1.94, abs=0.001)


def hits(*times: float) -> Heard:
    """Events in 3 s, and a level that falls after each."""
    clock = (np.arange(150) + 0.5) / 50
    level = np.full(150, -40.0)
    for time in times:
        level = np.maximum(level, np.where(clock >= time, -60 * (clock - time), -40.0))
    return Heard(np.array(times), np.ones(len(times)), level)


@pytest.mark.parametrize("act", [strike, bounce])
def test_what_is_rendered_strikes_at_the_curves_times(act: Callable[..., object]) -> None:
    heard = hits(0.8, 1.5, 2.3)
    texture = torch.ones(2, 12, 12)
    texture[0] *= 255
    seconds = np.arange(75) / 25
    for seed in range(99):  # one that strikes downwards, as far as can be seen
        path = act(np.random.default_rng(seed), heard)
        wide, high = np.ptp(path.x), np.ptp(path.y)  # type: ignore[attr-defined]
        if high > 12 and wide < high / 2 and path.y.max() < 1:  # type: ignore[attr-defined]
            break
    # the path itself: lowest at each event
    for time in heard.times:
        near = path.y[round((time - 0.1) * PATH_RATE) : round((time + 0.1) * PATH_RATE)]  # type: ignore[attr-defined]
        assert abs(np.argmax(near) / PATH_RATE - 0.1) <= 0.01
    # what a camera sees of it: down until each event, up after it
    ground = np.random.default_rng(5)
    photos = [np.full((200, 200), 30, np.uint8)]
    camera = type(path).still(heard)  # type: ignore[attr-defined]
    levels = expose(ground, photos, [Sprite(texture, (0.0, 20.0), path)], camera, seconds)  # type: ignore[arg-type]
    frames = levels.numpy().clip(0, 255).astype(np.uint8)
    down = frames_of(zip(seconds.tolist(), frames, strict=True)).resampled(150)[:, :, DOWN].sum(1)
    for time in heard.times:
        at = round(time * 50)
        assert (
            down[at - 6 : at - 1].sum() > 0 and down[at + 2 : at + 12].sum() < down[at - 6 : at - 1].sum() / 4
        )


def test_a_rendered_film_is_that_of_its_seed() -> None:
    random = np.random.default_rng(0)
    photos = [random.integers(0, 255, (180, 200), np.uint8)]
    sounds = [(0.1 * random.standard_normal(40_000)).astype(np.float32)]
    first, again, other = film(3, sounds, photos), film(3, sounds, photos), film(4, sounds, photos)
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert first[0].shape == (250, PATCHES, 5) and first[1].shape == (2, 250)
    assert not np.array_equal(first[1], other[1])


def test_a_hit_is_heard_at_its_events_and_rings_as_long_as_it_does() -> None:
    events = hits(0.5, 1.5)
    for ring, wide in ((0.05, False), (0.5, True)):
        clock = np.arange(16_000) / 16_000 - LEAD_SECONDS
        hit = np.where(clock >= 0, np.sin(2000 * clock) * np.exp(-clock / ring), 0).astype(np.float32)
        heard = struck(np.random.default_rng(0), events, hit)
        level = heard.level
        assert np.array_equal(heard.times, events.times) and len(level) == 150
        assert level[25:28].max() > -6 and level[75:78].max() > -6 and level[:24].max() < -15
        assert (level[40] > -15) == wide


def test_a_predictor_learns_from_rendered_films_and_resumes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    photos = [random.integers(0, 255, (180, 200), np.uint8) for _ in range(3)]
    sounds = [
        (random.standard_normal(32_000) * np.exp(-np.arange(32_000) / 3000) * 0.3).astype(np.float32)
        for _ in range(3)
    ]
    sizes = PredictorConfig(patches=4, width=12, heads=2, joint_width=16)
    config = MotionTrainConfig(films=24, steps=40, batch_size=8, warmup_steps=5, save_every=20)
    lines: list[dict[str, float]] = []
    predictor = train_predictor(sounds, photos, tmp_path / "run", config, sizes, lines.append)
    # on films that it has not seen the onsets it predicts are nearer to theirs than to others'
    unseen = [film(number, sounds, photos) for number in range(10_000, 10_010)]
    motions = torch.stack([torch.from_numpy(scaled(motion.astype(np.float32))) for motion, _ in unseen])
    levels = torch.stack([torch.from_numpy(curve[1].astype(np.float32)) for _, curve in unseen])
    with torch.no_grad():
        _, level = predictor(motions)
    own = correlation(level, levels).mean()
    others = torch.stack([correlation(level, levels.roll(n, 0)).mean() for n in range(1, 8)]).mean()
    assert own > others + 0.1
    # the files of a model directory
    loaded = load_predictor(tmp_path / "run")
    assert loaded is not None and loaded.config == sizes
    assert all(torch.equal(a, b) for a, b in zip(predictor.parameters(), loaded.parameters(), strict=True))
    # run again it has nothing to do; one that was cut goes on to the same weights
    (tmp_path / "run" / "checkpoints" / "000000040.safetensors").unlink()
    resumed = train_predictor(sounds, photos, tmp_path / "run", config, sizes)
    assert all(torch.equal(a, b) for a, b in zip(predictor.parameters(), resumed.parameters(), strict=True))


def test_events_are_peaks_above_their_surroundings() -> None:
    onset = np.full(100, 0.2, np.float32)
    onset[[20, 50, 51, 80]] = [1.2, 0.7, 0.7, 0.21]
    times, strengths = pick_events(onset, 0.02)
    assert times == pytest.approx([0.41, 1.01]) and strengths == pytest.approx([1.0, 0.48], abs=0.01)
    # a rise that lasts is no event, nor is nothing
    assert len(pick_events(np.linspace(0, 1, 100, dtype=np.float32), 0.02)[0]) == 0
    assert len(pick_events(np.zeros(10, np.float32), 0.02)[0]) == 0


def test_a_long_film_is_predicted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    predictor = MotionPredictor(PredictorConfig(patches=PATCHES)).eval()
    random = np.random.default_rng(0)
    seconds = np.arange(400) / 25
    motion = Motion(seconds, random.normal(0, 1, (400, PATCHES, 5)).astype(np.float32) ** 2)
    whole = predictor.predict(motion, 799)
    monkeypatch.setattr("vab.timing.predictor.MOST_FRAMES", 300)
    parts = predictor.predict(motion, 799)
    assert [part.shape for part in parts] == [(799,), (799,)]
    for first, second in zip(whole, parts, strict=True):
        assert first == pytest.approx(second, abs=1e-4)


# ---- sources of a curve


FOLLOWS = replace(preset("vab-tiny"), name="follows", model=replace(preset("vab-tiny").model, timing=True))
DEAF = preset("vab-encodec")


def test_the_source_that_is_meant() -> None:
    assert choose(None, DEAF, True) == "none"
    assert choose(None, FOLLOWS, False) == "none" and choose(None, FOLLOWS, True) == "motion"
    assert choose("motion", FOLLOWS, True) == "motion" and choose("a.csv", FOLLOWS, False) == "a.csv"
    assert choose("none", FOLLOWS, True) == "none" and choose("none", DEAF, False) == "none"
    for timing in ("motion", "sound:a.wav", "a.csv", Path("a.csv"), TimingCurve(np.zeros(4)), np.zeros(4)):
        with pytest.raises(SettingError, match="vab-encodec takes no timing curve"):
            choose(timing, DEAF, True)
    with pytest.raises(SettingError, match="no motion predictor"):
        choose("motion", FOLLOWS, False)
    with pytest.raises(SettingError, match=r"timing is motion, none, sound:FILE.* not 'notion'"):
        choose("notion", FOLLOWS, True)


def test_sources_resolve(tmp_path: Path) -> None:
    film_path = write_square_film(tmp_path / "a.mp4", falling, np.arange(50) / 25)
    file = MediaFile(film_path)
    assert resolve("none", file, 150) is None
    # a sound: its onsets, and nothing known after its end
    clicks = np.random.default_rng(0).normal(0, 1e-3, 32_000).astype(np.float32)
    clicks[16_000:16_200] = 0.5
    write_wav(tmp_path / "b.wav", clicks)
    sound = f"sound:{tmp_path / 'b.wav'}"
    curve = resolve(sound, file, 150)
    assert curve is not None and curve.onset is not None and curve.level is not None
    assert curve.num_frames == 100 and abs(int(curve.onset.argmax()) - 50) <= 1
    told = timing_channels(curve, 150, torch.device("cpu"))
    assert told is not None and (told[:100, 2:] == 1).all() and not told[100:].any()
    # a file of times, an array, a curve
    times = tmp_path / "c.csv"
    times.write_text("seconds,onset,level_db\n0.51,1,\n1.8,0.5,-6\n")
    curve = resolve(times, file, 100)
    assert curve is not None and curve.onset is not None and curve.num_frames == 100
    assert curve.onset[25] == pytest.approx(1.0)
    times.write_text("seconds,onset\n0.51,1\n")
    alone = resolve(times, file, 100)
    assert alone is not None and alone.level is not None and alone.level[25] == alone.level.max()
    array = np.zeros((60, 2), np.float32)
    array[30, 0] = 1
    for source in (array, array[:, 0], torch.from_numpy(array), TimingCurve(array[:, 0])):
        curve = resolve(source, file, 150)
        assert curve is not None and curve.onset is not None and curve.onset[30] == 1
    # motion, and that of an image, which has none
    torch.manual_seed(0)
    predictor = MotionPredictor().eval()
    curve = resolve("motion", file, 100, predictor)
    assert curve is not None and curve.level is not None and len(np.unique(curve.level)) > 20
    given = resolve("motion", file, 100, predictor, lambda: read_motion(file))
    assert given is not None and given.fingerprint == curve.fingerprint
    # after the film's end nothing is known, and what happens before it does not depend on how long that is
    longer = resolve("motion", file, 400, predictor)
    assert longer is not None and longer.fingerprint == curve.fingerprint
    # a film that stands still says nothing, as an image does: not that nothing is heard
    still = MediaFile(write_square_film(tmp_path / "still.mp4", lambda time: (40, 40), np.arange(50) / 25))
    assert len(read_motion(still).seconds) > 40 and resolve("motion", still, 100, predictor) is None
    picture = tmp_path / "d.png"
    Image.fromarray(square(40, 40)).save(picture)
    assert resolve("motion", MediaFile(picture), 100, predictor) is None
    # what results say: a name without its folder, and what was in the file then
    assert record("none") == record("motion", is_image=True) == {} and record("motion") == {
        "timing": "motion"
    }
    first = record(sound)["timing"]
    assert first.startswith("sound:b.wav#") and record(str(times)) == record(times)
    write_wav(tmp_path / "b.wav", -clicks)
    assert record(sound)["timing"] != first
    assert record(array) == record(TimingCurve(array[:, 0], array[:, 1])) != record(array[:, 0])


def test_a_bad_source_is_one_line(tmp_path: Path) -> None:
    file = MediaFile(write_square_film(tmp_path / "a.mp4", falling, np.arange(50) / 25))
    (tmp_path / "head.csv").write_text("time,hit\n0.5,1\n")
    (tmp_path / "late.csv").write_text("seconds,onset\n0.5,1\n2.4,1\n")
    (tmp_path / "nan.csv").write_text("seconds,onset\n0.5,nan\n")
    cases: list[tuple[object, str]] = [
        (str(tmp_path / "head.csv"), r"head.csv: needs the columns"),
        (str(tmp_path / "late.csv"), r"late.csv: goes on to 2.40 s, but a.mp4 ends at 2.00 s"),
        (str(tmp_path / "nan.csv"), r"nan.csv: line 2, column onset"),
        (str(tmp_path / "none.csv"), r"none.csv"),
        (f"sound:{tmp_path / 'a.mp4'}", r"a.mp4: has no audio stream"),
        (f"sound:{tmp_path / 'gone.wav'}", r"gone.wav: no such file"),
        ("sound:", r"needs a file"),
        (np.zeros((4, 3)), r"array"),
        (np.array([0.0, np.nan]), r"not numbers"),
        (np.array(["a"]), r"array"),
        (np.zeros((60, 2), complex), r"in real numbers, not complex128 \[60, 2\]"),
    ]
    for source, message in cases:
        with pytest.raises((TimingError, MediaError, SettingError), match=message) as caught:
            resolve(source, file, 100)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_predictor_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert load_predictor(tmp_path) is None
    save_predictor(tmp_path, MotionPredictor(PredictorConfig(patches=4, width=8, heads=1, joint_width=8)))
    assert load_predictor(tmp_path) is not None
    (tmp_path / "motion.json").write_text('{"patches": 4, "width": 16, "heads": 1, "joint_width": 8}')
    with pytest.raises(TimingError, match=r"motion.safetensors: does not fit motion.json"):
        load_predictor(tmp_path)
    (tmp_path / "motion.json").unlink()
    with pytest.raises(TimingError, match=r"motion.json"):
        load_predictor(tmp_path)
    (tmp_path / "motion.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "motion.json").write_text("{}")
    with pytest.raises(TimingError):
        load_predictor(tmp_path)


# ---- a model that follows


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that is told a timing curve, with a predictor of the motion."""
    folder = write_model(tmp_path_factory.mktemp("follower") / "model", timing=True)
    torch.manual_seed(0)
    save_predictor(folder, MotionPredictor(PredictorConfig(patches=4, width=8, heads=1, joint_width=8)))
    return folder


def test_a_model_with_a_predictor_follows_the_motion_by_itself(follower: Path, tmp_path: Path) -> None:
    pipe = VABPipeline.from_pretrained(follower, device="cpu")
    path = write_square_film(tmp_path / "a.mp4", swinging, np.arange(50) / 25)
    by_itself, motion, none = (pipe.generate(path, timing=timing) for timing in (None, "motion", "none"))
    assert by_itself.made_with["timing"] == "motion" and "timing" not in none.made_with
    assert np.array_equal(by_itself.waveform, motion.waveform)
    assert not np.array_equal(by_itself.waveform, none.waveform)
    # where the film was looked at before, it is read once more for its motion
    looked = next(pipe.generate_many(path, 1, features=pipe.look_at(path)))
    assert np.array_equal(looked.waveform, by_itself.waveform)
    # saved, it is still there
    pipe.save_pretrained(tmp_path / "copy")
    assert load_predictor(tmp_path / "copy") is not None
    assert VABPipeline.from_pretrained(tmp_path / "copy", device="cpu").predictor is not None
    # its files are among those that are downloaded, and another predictor makes another model
    assert set(MOTION_FILES) <= set(hub._FILES)
    before = hub.folder_fingerprint(tmp_path / "copy")
    (tmp_path / "copy" / "motion.json").write_text("{}")
    assert hub.folder_fingerprint(tmp_path / "copy") != before


def test_whatever_leads_a_film_its_windows_begin_at_its_cuts(
    follower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = VABPipeline.from_pretrained(follower, device="cpu")
    random = np.random.default_rng(0)
    rooms = [
        np.kron(random.integers(0, 255, (9, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(2)
    ]
    film = np.stack([np.roll(rooms[n >= 57], n, 1) for n in range(125)])
    told: list[list[int]] = []

    def fill(self: Stage, tokens: torch.Tensor, *others: object, **named: Any) -> torch.Tensor:
        told.append(list(named["cuts"]))
        return tokens

    monkeypatch.setattr(Stage, "fill", fill)
    for timing in ("motion", TimingCurve(np.zeros(250)), "none"):
        pipe.generate(film, fps=25, timing=timing)
    assert told == [[114], [114], []]  # frame 57 of 25 a second
    # features that somebody else looked at may be of a part of the film, and so may the curve
    next(
        pipe.generate_many(film, 1, fps=25, timing=TimingCurve(np.zeros(250)), features=torch.zeros(5, 1280))
    )
    assert told[-1] == []


@pytest.mark.parametrize("was_looked_at", [False, True])
def test_a_film_that_is_read_for_its_motion_says_how_far_it_is(
    follower: Path, tmp_path: Path, was_looked_at: bool
) -> None:
    pipe = VABPipeline.from_pretrained(follower, device="cpu")
    path = write_square_film(tmp_path / "a.mp4", swinging, np.arange(300) / 25)  # 12 s, windows of 2 s
    features = pipe.look_at(path) if was_looked_at else None
    said: list[tuple[str, int, int]] = []
    next(pipe.generate_many(path, 1, features=features, progress=lambda *how: said.append(how)))
    stages = list(dict.fromkeys(stage for stage, _, _ in said))
    assert stages[-2:] == ["motion", "sampling"]
    done, totals = zip(*(how[1:] for how in said if how[0] == "motion"), strict=True)
    assert len(set(done)) > 3 or not was_looked_at
    assert list(done) == sorted(done) and done[-1] >= 11 and set(totals) == {12}
    assert STAGE_LABELS["motion"] == "reading what moves in the picture"


def test_timing_on_the_command_line(
    follower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_square_film(tmp_path / "a.mp4", swinging, np.arange(50) / 25)
    Image.fromarray(square(40, 40)).save(tmp_path / "b.png")
    both = [tmp_path / "a.mp4", tmp_path / "b.png", "-o", tmp_path / "out", "--model", follower]
    both += ["--device", "cpu"]
    assert vab(capsys, "generate", *both)[0] == 0
    # the same again is skipped, of the image too, which has no motion; another timing is made anew
    code, out, _ = vab(capsys, "generate", *both, "--skip-existing", "--json")
    assert (code, json.loads(out)["skipped"]) == (0, 2)
    code, out, err = vab(capsys, "generate", *both, "--skip-existing", "--json", "--timing", "none")
    assert (code, json.loads(out)["skipped"], json.loads(out)["done"]) == (0, 1, 1)
    assert "made anew: it was made with another timing" in err
    # calls that make no sense end before any work, in one line
    (tmp_path / "c.csv").write_text("when\n1\n")
    for timing, message in (
        ("notion", "timing is motion, none, sound:FILE"),
        (tmp_path / "c.csv", "c.csv: needs the columns"),
        (f"sound:{tmp_path / 'a.mp4'}", "a.mp4: has no audio stream"),
        (f"sound:{tmp_path / 'gone.wav'}", "gone.wav: no such file"),
    ):
        code, _, err = vab(capsys, "generate", *both, "--timing", timing)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    # a model that is told none says so; what goes beyond one clip fails for that clip
    deaf = write_model(tmp_path / "deaf")
    code, _, err = vab(capsys, "generate", *both[:-3], deaf, "--timing", "motion")
    assert code == 2 and "takes no timing curve" in err
    (tmp_path / "d.csv").write_text("seconds,onset\n5.0,1\n")
    code, _, err = vab(capsys, "generate", *both, "--timing", tmp_path / "d.csv")
    assert code == 1 and "d.csv: goes on to 5.00 s, but a.mp4 ends at 2.00 s" in err
