"""From a film's motion to a timing curve: a small network that has seen rendered films of things that sound.

    motion [T,P,C] -> each patch by itself over time -> what the patches that matter say -> over time -> curve

Its weights are ``motion.safetensors`` in a model directory, its sizes ``motion.json`` beside them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vab.config import FRAME_RATE, from_dict
from vab.errors import first_line
from vab.timing import MOTION_FILES
from vab.timing.curve import LEVEL_UNITS, TimingCurve, TimingError
from vab.timing.motion import CHANNELS, Motion, scaled
from vab.utils.files import DamagedError, load_tensors, read_json, save_tensors, write_json

WEIGHTS, SIZES = MOTION_FILES
MOST_FRAMES = 1500  # that go through the network at once: 30 s
VIEWS = len(CHANNELS) + 4  # numbers of a patch that the network sees
SIDEWAYS = (2, 6)  # those of them whose sign a mirror changes
PEAK_RADIUS = 2  # frames, 40 ms, within which an event is the highest
MEAN_RADIUS = 12  # frames, a quarter of a second to either side: the surroundings that it must stand above
MARGIN = 100  # frames on either side of these that it sees too: 2 s


@dataclass(frozen=True)
class PredictorConfig:
    """Sizes of the network, and how a curve is made of what it says."""

    patches: int = 16  # of the film that are looked at: those in which most changes
    width: int = 32  # channels of a patch
    heads: int = 4  # of attention, each with its own view of which patches matter
    joint_width: int = 48  # channels of the film as a whole
    threshold: float = 0.03  # by which an event's onset exceeds the mean of its surroundings
    accent: float = 1.5  # of the onset in the level: what happens suddenly is loud
    contrast: float = 2.5  # factor of the level's deviations: what is unsure is said too quietly


class MotionPredictor(nn.Module):
    """Onset and level, [B,T] each, from scaled motion [B,T,P,C] at 50 Hz (``motion.scaled``); T is even.

    It works at 25 Hz, since few films have more frames: two audio frames go in, and two come out.
    """

    def __init__(self, config: PredictorConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or PredictorConfig()
        self.patch_in = nn.Conv1d(VIEWS, c.width, 8, stride=2, padding=3)
        self.patch = nn.ModuleList(
            [nn.Conv1d(c.width, c.width, 5, padding=2 * d, dilation=d) for d in (1, 2)]
        )
        self.weigh = nn.Conv1d(c.width, c.heads, 1)
        self.say = nn.Conv1d(c.width, 16 * c.heads, 1)
        self.join = nn.Conv1d(16 * c.heads + 2 * c.width, c.joint_width, 1)
        self.joint = nn.ModuleList(
            [nn.Conv1d(c.joint_width, c.joint_width, 5, padding=2 * d, dilation=d) for d in (1, 2, 4, 8)]
        )
        self.out = nn.Conv1d(c.joint_width, 4, 1)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(Onset logits, level) of scaled motion [B,T,P,C]."""
        return self.read(look(values, self.config.patches))

    def read(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """(Onset logits, level) of what ``look`` saw, [B,T,p,VIEWS]."""
        batch, frames, patches, _ = views.shape
        c = self.config
        # 1. Each patch over time: [B*p, VIEWS, T] -> [B*p, width, T/2]
        x = views.permute(0, 2, 3, 1).reshape(batch * patches, -1, frames)
        x = F.gelu(self.patch_in(x))
        for layer in self.patch:
            x = x + F.gelu(layer(x))

        # 2. The patches together: their mean, the most of each channel, and what each head attends to; that
        # changes slowly, over about a second.
        weight = F.avg_pool1d(self.weigh(x), 25, 1, 12, count_include_pad=False)
        weight = weight.reshape(batch, patches, c.heads, 1, -1).softmax(1)
        said = self.say(x).reshape(batch, patches, c.heads, 16, -1)
        heard = (weight * said).sum(1).flatten(1, 2)  # [B, 16 heads, T/2]
        x = x.reshape(batch, patches, c.width, -1)
        x = torch.cat([heard, x.mean(1), x.amax(1)], 1)

        # 3. The film over time, two and a half seconds of it -> [B,T] twice.
        x = F.gelu(self.join(x))
        for layer in self.joint:
            x = x + F.gelu(layer(x))
        onset, level = self.out(x).reshape(batch, 2, 2, -1).transpose(2, 3).reshape(batch, 2, -1).unbind(1)
        return onset, level

    @torch.no_grad()
    def curve(self, motion: Motion, num_frames: int) -> TimingCurve:
        """The timing curve [T] of a film's motion: events where an onset is likely, and the level."""
        onset, level = self.predict(motion, num_frames)
        times, strengths = pick_events(onset, self.config.threshold)
        loud = level - level.mean() + self.config.accent * (onset - onset.mean())
        units = (level.mean() + self.config.contrast * loud).clip(-LEVEL_UNITS, LEVEL_UNITS)
        return TimingCurve.from_events(times, num_frames, strengths, units)

    @torch.no_grad()
    def predict(self, motion: Motion, num_frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Onset 0..1 and level in a curve's units, [T] each."""
        even = num_frames + num_frames % 2
        values = torch.from_numpy(scaled(motion.resampled(even)))
        parts = []
        for start in range(0, even, MOST_FRAMES):
            stop = min(even, start + MOST_FRAMES)
            first, last = max(0, start - MARGIN), min(even, stop + MARGIN)
            onset, level = self(values[None, first:last])
            parts.append(torch.stack([onset[0].sigmoid(), level[0]])[:, start - first : stop - first])
        onset, level = torch.cat(parts, 1)[:, :num_frames].numpy()
        return onset, level


def look(values: Tensor, patches: int) -> Tensor:
    """What the network sees of scaled motion [B,T,P,C]: views [B,T,p,VIEWS] of ``patches`` of the patches.

    Beside its own values each patch is told what it cannot know: how much moves in all, and the velocity
    without the camera's, which moves most patches.
    """
    # 1. The film.
    frames = values.shape[1]
    around = values[..., :1].mean(2, keepdim=True)
    camera = values[..., 2:4].median(2, keepdim=True).values

    # 2. The patches that change most over time: a steady stream is less than a sudden move.
    unsteady = values[..., :4].std(1).sum(-1)  # [B,P]
    chosen = unsteady.topk(min(patches, values.shape[2]), 1).indices[:, None, :, None]
    values = values.gather(2, chosen.expand(-1, frames, -1, values.shape[3]))
    flow = values[..., 2:4] - camera
    speed = flow.square().sum(-1, keepdim=True).add(1e-6).sqrt()
    return torch.cat([values, around.expand_as(speed), flow, speed], -1)


def save_predictor(folder: Path, predictor: MotionPredictor) -> None:
    """Write the weights and sizes into a model directory, each file whole or not at all."""
    save_tensors(folder / WEIGHTS, predictor.state_dict())
    write_json(folder / SIZES, asdict(predictor.config))


def load_predictor(folder: Path) -> MotionPredictor | None:
    """The predictor of a model directory, None if it has none; ``TimingError`` if it cannot be read."""
    path = folder / WEIGHTS
    if not path.is_file():
        return None
    try:
        predictor = MotionPredictor(from_dict(PredictorConfig, read_json(folder / SIZES)))
        predictor.load_state_dict(load_tensors(path))
    except DamagedError as error:
        raise TimingError(str(error)) from error
    except OSError as error:
        raise TimingError(f"{folder / SIZES}: cannot be read ({first_line(error)})") from error
    except (ValueError, RuntimeError) as error:
        raise TimingError(f"{path}: does not fit {SIZES} ({first_line(error)})") from error
    return predictor.eval().requires_grad_(False)


def pick_events(
    onset: NDArray[np.float32], threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times in seconds and strengths of the events in an onset curve [T], 60 ms apart at least.

    An event is the highest within 40 ms and ``threshold`` above the mean of half a second around it. The
    strongest of a film has strength 1.
    """
    highest = _neighbours(onset, PEAK_RADIUS).max(1)
    around = _neighbours(onset, MEAN_RADIUS).mean(1)
    tops = np.flatnonzero((onset >= highest) & (onset > around + threshold))
    tops = tops[(tops > 0) & (tops < len(onset) - 1)]  # at an end nobody knows whether it goes on to rise
    tops = tops[np.diff(tops, prepend=-10) > PEAK_RADIUS]
    above = (onset - around)[tops].astype(np.float64)
    return (tops + 0.5) / np.float64(FRAME_RATE), above / max(above.max(initial=0.0), 1e-6)


def _neighbours(values: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Neighbours [T, 2 radius + 1] of each of values [T]; the ends are repeated."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, radius, mode="edge"), 2 * radius + 1)
