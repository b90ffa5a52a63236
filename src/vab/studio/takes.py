"""Takes: sounds made for a clip, and edits of them.

What an edit keeps is bit-equal, as it is heard and as the model goes on from it. New sound gets the gain of
the take: levels do not creep, and a part that is remade is as loud beside the rest as the model made it. A
sound that was there before stays as it came, beside new sound too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.config import FRAME_RATE, SAMPLE_RATE, DecodeConfig, samples_to_frames
from vab.errors import SettingError
from vab.inference.embedder import audio_video_similarity
from vab.inference.finish import Finish, finish_sound
from vab.inference.made_with import made_with
from vab.inference.pipeline import Audio, VABPipeline
from vab.inference.splice import Original, Span, original_in_memory
from vab.media.file import MediaFile
from vab.media.filters import layout, resampled
from vab.models.hub import ModelError
from vab.models.known import Known
from vab.studio.mix import RATE
from vab.studio.uploads import MAX_VIDEO_SECONDS, Clip, write_picture
from vab.timing.curve import TimingCurve, bumps, level_units
from vab.timing.motion import read_motion
from vab.timing.sources import MOTION, NONE, record
from vab.utils.files import scratch_folder
from vab.utils.progress import StageProgress

SAID_OF_EDITS = ("generated", "version", "model", "fingerprint", "precision", "bfloat16_gain")  # in their tag
MAX_LOOKED_AT = 50  # videos whose features are kept, at most 60 s of each
WHOLE: Span = (0.0, math.inf)


@dataclass(frozen=True)
class Take:
    """One sound for a clip, and what is known of it."""

    title: str
    heard: NDArray[np.float32]  # [C,S] at 48 kHz
    waveform: NDArray[np.float32] | None  # [S] at 16 kHz, the same; None if the model cannot go on from it
    raw: NDArray[np.float32] | None  # [S]: as edits go on from it, the model's own sound or what is heard
    own: bool = False  # a sound that was there before, or an edit of one
    gain: float = 0.0  # dB from the model's own sound to what is heard of it
    score: float | None = None  # cosine similarity of audio and video, as in reranking; None: not available
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by stage
    again: tuple[float, float] | None = None  # seconds: what is new since the take before
    made_with: Mapping[str, Any] = field(default_factory=dict)  # model, seed, settings

    @classmethod
    def of(
        cls,
        about: Mapping[str, Any],
        heard: NDArray[np.float32],
        waveform: NDArray[np.float32],
        raw: NDArray[np.float32],
    ) -> Self:
        """The take that ``about`` describes as a document does."""
        return cls(about["title"], heard, waveform, raw, about["own"], about["gain_db"], about["score"])

    @property
    def seconds(self) -> float:
        """Duration of what is heard."""
        return self.heard.shape[1] / RATE

    def about(self, kind: str, parent: str | None = None, num_tries: int = 0) -> dict[str, Any]:
        """What a document says of it."""
        return {
            "kind": kind,
            "title": self.title,
            "seconds": self.seconds,
            "channels": len(self.heard),
            "editable": self.raw is not None,
            "own": self.own,
            "score": self.score,
            "gain_db": self.gain,
            "timings": dict(self.timings),
            "again": None if self.again is None else list(self.again),
            "parent": parent,
            "num_tries": num_tries,
            "made_with": dict(self.made_with),
        }


class TakeMaker:
    """Makes takes with one model. Not thread-safe."""

    def __init__(self, pipeline: VABPipeline) -> None:
        self.pipeline = pipeline
        self._features: dict[Path, Tensor] = {}  # [F,dim] of the videos that were looked at last

    @property
    def follows_curves(self) -> bool:
        """True if the model can be told when something happens."""
        return self.pipeline.config.model.timing

    @property
    def follows_motion(self) -> bool:
        """True if it can follow the motion of a film."""
        return self.follows_curves and self.pipeline.predictor is not None

    def warm_up(self) -> None:
        """Make a take of nothing, so that the first user does not wait for what is loaded on first use."""
        once = self._one_step()
        if not once.num_steps:  # FoleyGen has no steps to leave out
            return
        with scratch_folder("warm") as folder:
            clip = Clip(folder, "video", "", "picture.mp4", 1.0, 2.0, 64, 64, (64, 64), False)
            write_picture(MediaFile(np.zeros((2, 64, 64, 3), np.uint8), fps=2), clip.picture, 1.0)
            next(self.new(clip, 1, 0, once))

    def look(self, clip: Clip) -> Known | None:
        """Look at a clip before a take is asked for; whether the model knows what it shows.

        None if the model cannot tell. The features of a video are kept for its takes, as long as few others
        have come since. A photo's depend on the seed of a take.
        """
        return self.pipeline.embedder.known(self._features_of(clip))

    def _features_of(self, clip: Clip) -> Tensor:
        """Features [F,dim] of a clip; those of a video are kept."""
        if clip.source in self._features:
            return self._features[clip.source]
        features = self.pipeline.look_at(clip.source)
        if clip.kind == "video":
            self._features[clip.source] = features
            while len(self._features) > MAX_LOOKED_AT:
                del self._features[next(iter(self._features))]
        return features

    def _one_step(self) -> DecodeConfig:
        return DecodeConfig(num_steps=min(1, self.pipeline.config.decode.num_steps))

    def new(
        self,
        clip: Clip,
        count: int,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None = None,
        timing: TimingCurve | str = NONE,
    ) -> Iterator[Take]:
        """Yield ``count`` takes for a clip, the same sounds that ``vab generate`` makes for its video.

        What is heard is the same as with its options ``--rate 48000 --bits 24``.
        """
        with MediaFile(clip.source) as source:
            sounds = self.pipeline.generate_many(
                source,
                count,
                seed=seed,
                decode=decode,
                timing=timing,
                features=self._features.get(clip.source),
                progress=progress,
            )
            for number, audio in enumerate(sounds):
                led_by = str(audio.made_with.get("timing", "")).partition("#")[0]  # "motion", "curve"
                parts = [f"Seed {seed}", f"sound {number + 1}" if number else "", led_by]
                title = ", ".join(filter(None, parts))
                seconds = len(audio.raw) / SAMPLE_RATE if source.is_image else source.info.seconds
                heard = finish_sound(audio.raw, seconds, Finish(rate=RATE)).waveform
                yield self._take(audio, heard, title, progress)

    def is_made(
        self,
        clip: Clip,
        decode: DecodeConfig,
        timing: TimingCurve | str,
        seed: int,
        about: Mapping[str, Any],
    ) -> bool:
        """True if a sound, ``about`` in a document, is the one that :meth:`new` makes first."""
        pipeline = self.pipeline
        wanted = made_with(pipeline.name, pipeline.fingerprint, seed, 0, decode, (), Finish())
        wanted |= {"timing": ""} | record(timing, clip.kind == "image")
        found = {"timing": "", **about["made_with"]}
        return all(found.get(name) == value for name, value in wanted.items())

    def remake(
        self,
        clip: Clip,
        take: Take,
        span: Span,
        inside: bool,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None = None,
        timing: TimingCurve | str = NONE,
        shift: float = 0.0,
    ) -> Take:
        """Make the seconds ``span`` of a take anew (``inside``), or all but them.

        Every sample that is not made anew is bit-equal to the take's; the 20 ms of cross-fade at a seam
        belong to what is new. ``shift``: seconds by which the take lies after the start of the clip;
        ``timing`` is the take's own. ``SettingError`` for an empty span, or if nothing is left to keep or to
        make.
        """
        length = take.seconds
        start, stop = max(0.0, span[0]), min(span[1], length)
        if not all(map(math.isfinite, span)) or stop - start <= 1 / SAMPLE_RATE:
            raise SettingError("Mark a part of the take first.")
        # The spans to keep; slivers shorter than a sample are none.
        rest = [(0.0, start), (stop, length)]
        keep = [(a, b) for a, b in (rest if inside else [(start, stop)]) if b - a > 1 / SAMPLE_RATE]
        if not keep:
            raise SettingError("Nothing would stay of this take; make a new one instead.")
        if not inside and (start, stop) == (0.0, length):
            raise SettingError("All of this take is marked; there is nothing else to remake.")
        what = f"{start:.2f} to {stop:.2f} s" if inside else f"all but {start:.2f} to {stop:.2f} s"
        again = (start, stop) if inside else None
        edited = self._edit(clip, take, keep, length, seed, decode, progress, timing, shift)
        return replace(edited, title=f"{what} anew", again=again)

    def extend(
        self,
        clip: Clip,
        take: Take,
        seconds: float,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None = None,
        timing: TimingCurve | str = NONE,
        shift: float = 0.0,
    ) -> Take:
        """Make a take longer at its end; where the video has ended it stands still. The rest is as in remake.

        ``SettingError`` if ``seconds`` is not positive, or the take would be too long.
        """
        before = take.seconds
        length = before + seconds
        if not seconds > 0 or length > MAX_VIDEO_SECONDS:
            raise SettingError(f"A take may last {MAX_VIDEO_SECONDS:.0f} s at most.")
        edited = self._edit(clip, take, [(0.0, before)], length, seed, decode, progress, timing, shift)
        return replace(edited, title=f"{seconds:g} s longer", again=(before, length))

    def place(
        self, clip: Clip, heard: NDArray[np.float32], title: str, progress: StageProgress | None = None
    ) -> Take:
        """Make a take of an existing waveform [C,S] at 48 kHz, whose level stays as it is.

        The model can go on from it, and tell how well it fits, if it is no longer than a clip may be.
        """
        seconds = heard.shape[1] / RATE
        if seconds > MAX_VIDEO_SECONDS:
            return Take(title, heard, None, None, own=True)
        length = max(1, round(seconds * SAMPLE_RATE))
        sound = resampled(heard.mean(0, dtype=np.float32)[None], RATE, SAMPLE_RATE, length)[0]
        with MediaFile(clip.source) as source:
            once = self._one_step()  # every token is known
            audio = self._generate_keeping(
                source,
                sound,
                [WHOLE],
                length / SAMPLE_RATE,
                0,
                once,
                progress,
                NONE,
                self._features.get(clip.source),
            )
        audio = replace(audio, waveform=audio.raw, gain_db=0.0, made_with={})
        return self._take(audio, heard, title, progress, own=True)

    def timing(self, choice: str, curve: Mapping[str, Any] | None, seconds: float) -> TimingCurve | str:
        """What the settings and the curve of an arrangement tell the model for the first ``seconds``.

        ``SettingError`` for a choice that this model cannot follow, or a curve without any points.
        """
        if choice == NONE:
            return NONE
        if not self.follows_curves or (choice == MOTION and not self.follows_motion):
            raise SettingError(
                "This model decides by itself when something happens: it was not trained to follow "
                + ("the motion of a film." if choice == MOTION else "a curve.")
            )
        if choice == MOTION:
            return MOTION
        hits, levels = (curve or {}).get("events", []), (curve or {}).get("level", [])
        if not hits and not levels:
            raise SettingError("There is no curve yet: put events or a level on the timeline first.")
        num_frames = samples_to_frames(round(seconds * SAMPLE_RATE))
        level = onset = None
        if hits:
            times, strengths = zip(*hits, strict=True)
            onset = bumps(times, num_frames, strengths)
        if levels:
            times, values = zip(*levels, strict=True)
            level = level_units(np.interp((np.arange(num_frames) + 0.5) / FRAME_RATE, times, values))
        return TimingCurve(onset, level).with_level()

    def _edit(
        self,
        clip: Clip,
        take: Take,
        keep: Sequence[Span],
        seconds: float,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None,
        timing: TimingCurve | str,
        shift: float,
    ) -> Take:
        """The sound of a take made anew outside of ``keep``, with its gain; within, it stays bit-equal."""
        assert take.raw is not None and take.waveform is not None
        # 1. What the model sees and is told while it makes it.
        features = self._features.get(clip.source)
        frames = 0 if clip.kind == "image" else round(shift * self.pipeline.config.model.fps)
        if frames:
            features = _shifted(self._features_of(clip), frames)
            if timing == MOTION:
                timing = self._motion(clip, shift, seconds, progress)

        # 2. Its own sound, then what is heard of it at both rates.
        with MediaFile(clip.source) as source:
            audio = self._generate_keeping(
                source, take.raw, keep, seconds, seed, decode, progress, timing, features
            )
        before = original_in_memory(take.waveform)
        waveform = finish_sound(audio.raw, seconds, Finish(), before, keep, take.gain).waveform
        heard = finish_sound(
            audio.raw, seconds, Finish(rate=RATE, channels=len(take.heard)), _heard(take), keep, take.gain
        ).waveform
        made_with = {name: audio.made_with[name] for name in SAID_OF_EDITS if name in audio.made_with}
        audio = replace(
            audio,
            waveform=waveform,
            raw=waveform if take.own else audio.raw,
            gain_db=take.gain,
            made_with=made_with if take.own else made_with | {"gain_db": take.gain},
        )
        return self._take(audio, heard, "", progress, take.own)

    def _motion(
        self, clip: Clip, shift: float, seconds: float, progress: StageProgress | None
    ) -> TimingCurve | str:
        """The curve of a film's motion for a take that lies ``shift`` seconds after its start."""
        assert self.pipeline.predictor is not None
        skipped = max(0, round(shift * FRAME_RATE))
        num_frames = samples_to_frames(round(seconds * SAMPLE_RATE))
        with MediaFile(clip.source) as source:
            motion = read_motion(source, None if progress is None else partial(progress, "motion"))
            curve = self.pipeline.predictor.curve(motion, skipped + num_frames)
        if shift > 0:
            return curve.cut(skipped, skipped + num_frames)
        parts = (
            None
            if values is None
            else np.pad(values, (-round(shift * FRAME_RATE), 0), mode="edge")[:num_frames]
            for values in (curve.onset, curve.level)
        )
        return TimingCurve(*parts)

    def _generate_keeping(
        self,
        source: MediaFile,
        sound: NDArray[np.float32],
        keep: Sequence[Span],
        seconds: float,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None,
        timing: TimingCurve | str,
        features: Tensor | None,
    ) -> Audio:
        """Generate ``seconds`` of sound, at its own level, of which ``keep`` are spans of a waveform."""
        return next(
            self.pipeline.generate_many(
                source,
                1,
                seed=seed,
                decode=decode,
                timing=timing,
                keep=keep,
                sound=sound,
                features=features,
                seconds=seconds,
                finish=Finish(loudness=None),
                progress=progress,
            )
        )

    def _take(
        self,
        audio: Audio,
        heard: NDArray[np.float32],
        title: str,
        progress: StageProgress | None,
        own: bool = False,
    ) -> Take:
        """A take of a sound, and of what is heard of it: [S] or [C,S] at 48 kHz."""
        if progress is not None:
            progress("codec", 0, 1)
        return Take(
            title,
            np.atleast_2d(heard),
            audio.waveform,
            audio.raw,
            own,
            audio.gain_db,
            self._score(audio),
            audio.timings,
            None,
            audio.made_with,
        )

    def _score(self, audio: Audio) -> float | None:
        assert audio.tokens is not None and audio.features is not None
        try:
            network = self.pipeline.embedder.contrastive
        except ModelError:
            return None
        return float(audio_video_similarity(network, audio.tokens[None], audio.features)[0])


def _heard(take: Take) -> Original:
    """What is heard of a take as the sound that was there before; silence after its end."""

    def read(seconds: float, rate: int, _: str | None) -> NDArray[np.float32]:
        return resampled(take.heard, RATE, rate, round(seconds * rate))

    return Original(RATE, layout(len(take.heard)), read)


def _shifted(features: Tensor, frames: int) -> Tensor:
    """Features [F,dim] from frame ``frames`` on; before the first one and after the last they stand still."""
    count = max(1, len(features) - frames)
    rows = (torch.arange(count, device=features.device) + frames).clamp(0, len(features) - 1)
    return features[rows]
