"""Takes: sounds made for a clip, and edits of them.

What an edit keeps is bit-equal, as it is heard and as the model goes on from it. New sound gets the gain of
the take: levels do not creep, and a part that is redone is as loud beside the rest as the model made it. A
sound that was there before stays as it came, beside new sound too.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vab.config import SAMPLE_RATE, DecodeConfig
from vab.errors import SettingError
from vab.inference.embedder import audio_video_similarity
from vab.inference.finish import Finish, finish_sound
from vab.inference.html_report import mel_image, waveform_path
from vab.inference.pipeline import Audio, VABPipeline
from vab.inference.splice import Span, original_in_memory
from vab.media.file import MediaFile
from vab.media.reader import as_media_file
from vab.models.hub import ModelError
from vab.models.known import Known
from vab.studio.uploads import MAX_VIDEO_SECONDS, PHOTO_FPS, Clip, write_picture
from vab.utils.progress import StageProgress

MAX_NEW_TAKES = 4  # of one request
SAID_OF_EDITS = ("generated", "version", "model", "fingerprint", "precision", "bfloat16_gain")  # in their tag
MAX_LOOKED_AT = 50  # videos whose features are kept, at most 60 s of each
WHOLE: Span = (0.0, math.inf)


@dataclass(frozen=True)
class Take:
    """One sound for a clip, with the files and figures that the page shows. Its files lie in ``folder``."""

    id: str  # cannot be guessed
    folder: Path
    title: str
    waveform: NDArray[np.float32]  # [S], as it is heard
    raw: NDArray[np.float32]  # [S], as edits go on from it: the model's own sound, or the same as is heard
    own: bool  # a sound that was there before, or an edit of one
    gain: float  # dB from the model's own sound to what is heard of it
    score: float | None  # cosine similarity of audio and video, as in reranking; None if not available
    timings: dict[str, float]  # seconds by stage
    again: tuple[float, float] | None = None  # seconds: what is new since the take before

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.waveform) / SAMPLE_RATE

    @property
    def video(self) -> Path:
        """The video with this sound, H.264 and AAC in MP4."""
        return self.folder / f"{self.id}.mp4"

    @property
    def sound(self) -> Path:
        """16-bit WAV."""
        return self.folder / f"{self.id}.wav"

    @property
    def mel(self) -> Path:
        """Image of the mel spectrogram, PNG."""
        return self.folder / f"{self.id}.png"

    @cached_property
    def outline(self) -> str:
        """The waveform as the path of an SVG of ``vab.inference.html_report.COLUMNS`` by -1..1."""
        return waveform_path(self.waveform)

    def remove(self) -> None:
        """Delete its files."""
        for path in (self.video, self.sound, self.mel):
            path.unlink(missing_ok=True)


class TakeMaker:
    """Makes takes with one model. Not thread-safe."""

    def __init__(self, pipeline: VABPipeline) -> None:
        self.pipeline = pipeline
        self._features: dict[Path, Tensor] = {}  # [F,dim] of the videos that were looked at last

    def warm_up(self) -> None:
        """Make a take of nothing, so that the first visitor does not wait for what is loaded on first use."""
        once = self._one_step()
        if not once.num_steps:  # FoleyGen has no steps to leave out
            return
        with TemporaryDirectory(prefix="vab-warm-") as name:
            clip = Clip(Path(name), "video", 1.0, 64, 64, False)
            write_picture(MediaFile(np.zeros((2, 64, 64, 3), np.uint8), fps=2), clip.picture, 1.0, 2.0)
            next(self.new(clip, 1, 0, once))

    def look(self, clip: Clip) -> Known | None:
        """Look at a clip before a take is asked for; whether the model knows what it shows.

        None if the model cannot tell. The features of a video are kept for its takes, as long as few others
        have come since. A photo's depend on the seed of a take.
        """
        features = self.pipeline.look_at(clip.source)
        if clip.kind == "video":
            self._features[clip.source] = features
            while len(self._features) > MAX_LOOKED_AT:
                del self._features[next(iter(self._features))]
        return self.pipeline.embedder.known(features)

    def _one_step(self) -> DecodeConfig:
        return DecodeConfig(num_steps=min(1, self.pipeline.config.decode.num_steps))

    def new(
        self, clip: Clip, count: int, seed: int, decode: DecodeConfig, progress: StageProgress | None = None
    ) -> Iterator[Take]:
        """Yield ``count`` takes for a clip, the same sounds that ``vab generate`` makes for its video."""
        with MediaFile(clip.source) as source:
            sounds = self.pipeline.generate_many(
                source,
                count,
                seed=seed,
                decode=decode,
                features=self._features.get(clip.source),
                progress=progress,
            )
            for number, audio in enumerate(sounds):
                title = f"Seed {seed}" + (f", sound {number + 1}" if number else "")
                yield self._take(clip, source, audio, title, progress)

    def redo(
        self,
        clip: Clip,
        take: Take,
        span: Span,
        inside: bool,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None = None,
    ) -> Take:
        """Make the seconds ``span`` of a take anew (``inside``), or all but them.

        Every sample that is not made anew is bit-equal to the take's; the 20 ms of cross-fade at a seam
        belong to what is new. ``SettingError`` for an empty span, or if nothing is left to keep or to make.
        """
        start, stop = max(0.0, span[0]), min(span[1], take.seconds)
        if not all(map(math.isfinite, span)) or stop - start <= 1 / SAMPLE_RATE:
            raise SettingError("Mark a part of the take first.")
        # The spans to keep; slivers shorter than a sample are none.
        rest = [(0.0, start), (stop, take.seconds)]
        keep = [(a, b) for a, b in (rest if inside else [(start, stop)]) if b - a > 1 / SAMPLE_RATE]
        if not keep:
            raise SettingError("Nothing would stay of this take; make a new one instead.")
        if not inside and (start, stop) == (0.0, take.seconds):
            raise SettingError("All of this take is marked; there is nothing else to redo.")
        what = f"{start:.2f} to {stop:.2f} s" if inside else f"all but {start:.2f} to {stop:.2f} s"
        with MediaFile(clip.source) as source:
            audio = self._edit(source, take, keep, take.seconds, seed, decode, progress)
            again = (start, stop) if inside else None
            return self._take(clip, source, audio, f"{what} anew", progress, again, take.own)

    def extend(
        self,
        clip: Clip,
        take: Take,
        seconds: float,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None = None,
    ) -> Take:
        """Make a take longer at its end; the video freezes on its last frame.

        ``SettingError`` if ``seconds`` is not positive, or the take would be too long.
        """
        length = take.seconds + seconds
        if not seconds > 0 or length > MAX_VIDEO_SECONDS:
            raise SettingError(f"A take may last {MAX_VIDEO_SECONDS:.0f} s at most.")
        with MediaFile(clip.source) as source:
            audio = self._edit(source, take, [(0.0, take.seconds)], length, seed, decode, progress)
            again = (take.seconds, length)
            return self._take(clip, source, audio, f"{seconds:g} s longer", progress, again, take.own)

    def place(
        self, clip: Clip, sound: NDArray[np.float32], title: str, progress: StageProgress | None = None
    ) -> Take:
        """Make a take of an existing waveform [S], cut or padded with silence to the length of the clip.

        Its level stays as it is.
        """
        with MediaFile(clip.source) as source:
            once = self._one_step()  # every token is known
            audio = self._generate_keeping(source, sound, [WHOLE], clip.seconds, 0, once, progress)
            audio = replace(audio, waveform=audio.raw, gain_db=0.0, made_with={})
            return self._take(clip, source, audio, title, progress, own=True)

    def _edit(
        self,
        source: MediaFile,
        take: Take,
        keep: Sequence[Span],
        seconds: float,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None,
    ) -> Audio:
        """The sound of a take made anew outside of ``keep``, with its gain; within, it stays bit-equal."""
        audio = self._generate_keeping(source, take.raw, keep, seconds, seed, decode, progress)
        heard = original_in_memory(take.waveform)
        waveform = finish_sound(audio.raw, seconds, Finish(), heard, keep, take.gain).waveform
        made_with = {name: audio.made_with[name] for name in SAID_OF_EDITS if name in audio.made_with}
        return replace(
            audio,
            waveform=waveform,
            raw=waveform if take.own else audio.raw,
            gain_db=take.gain,
            made_with=made_with if take.own else made_with | {"gain_db": take.gain},
        )

    def _generate_keeping(
        self,
        source: MediaFile,
        sound: NDArray[np.float32],
        keep: Sequence[Span],
        seconds: float,
        seed: int,
        decode: DecodeConfig,
        progress: StageProgress | None,
    ) -> Audio:
        """Generate ``seconds`` of sound, at its own level, of which ``keep`` are spans of a waveform."""
        return next(
            self.pipeline.generate_many(
                source,
                1,
                seed=seed,
                decode=decode,
                keep=keep,
                sound=sound,
                features=self._features.get(source.path),
                seconds=seconds,
                finish=Finish(loudness=None),
                progress=progress,
            )
        )

    def _take(
        self,
        clip: Clip,
        source: MediaFile,
        audio: Audio,
        title: str,
        progress: StageProgress | None,
        again: Span | None = None,
        own: bool = False,
    ) -> Take:
        """Write the files of a take; ``source`` is the open source of the clip."""
        if progress is not None:
            progress("codec", 0, 1)
        take = Take(
            secrets.token_urlsafe(16),
            clip.folder,
            title,
            audio.waveform,
            audio.raw,
            own,
            audio.gain_db,
            self._score(audio),
            audio.timings,
            again,
        )
        # The sound alone, the video with it, and its spectrogram.
        audio.save(take.sound)
        with as_media_file(_video_of(clip, source, take.seconds)) as picture:
            picture.mux(take.waveform, SAMPLE_RATE, take.video, tags=audio.tags)
        Image.fromarray(mel_image(take.waveform)).save(take.mel)
        return take

    def _score(self, audio: Audio) -> float | None:
        assert audio.tokens is not None and audio.features is not None
        try:
            network = self.pipeline.embedder.contrastive
        except ModelError:
            return None
        return float(audio_video_similarity(network, audio.tokens[None], audio.features)[0])


def _video_of(clip: Clip, source: MediaFile, seconds: float) -> Path | MediaFile:
    """The video of the clip, frozen at its end if it is shorter than ``seconds``."""
    if seconds <= clip.seconds + 0.5 / SAMPLE_RATE:
        return source if clip.source == clip.picture else clip.picture
    path = clip.folder / f"picture_{round(seconds * SAMPLE_RATE)}.mp4"
    if not path.exists():
        for other in clip.folder.glob("picture_*.mp4"):  # its takes have it inside their own files
            other.unlink()
        fps = PHOTO_FPS if clip.kind == "image" else source.times.fps
        write_picture(source, path, seconds, fps)
    return path
