"""The pipeline from a video file to its sound: features, tokens, waveform (section 3.3), for any length.

A clip's sound depends on the clip, the seed and the settings alone: noise is drawn on the CPU from
(seed, number of the sample), and every sample is decoded on its own.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from vab.codecs.codec import Codec, decode_long, encode_long, load_codec
from vab.config import (
    FRAME_RATE,
    HOP,
    LOUDNESS,
    SAMPLE_RATE,
    DecodeConfig,
    ModelConfig,
    Preset,
    check_config,
    check_value,
    samples_to_frames,
)
from vab.config import video_frames as num_video_frames
from vab.data.extract import weights_fingerprint
from vab.inference.embedder import Embedder, audio_video_similarity
from vab.inference.embeddings import Kind
from vab.inference.finish import Finish, finish_sound
from vab.inference.made_with import made_with
from vab.inference.splice import (
    AudioSource,
    Original,
    Span,
    crossfade_into,
    kept_samples,
    original_in_memory,
    original_of,
    read_original,
    slice_audio,
)
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo
from vab.media.image import moving_crop
from vab.media.loudness import Level
from vab.media.reader import as_media_file
from vab.media.tags import COMMENT, pack
from vab.media.write import write_audio
from vab.models.heads import Finetuned, load_finetuned, save_finetuned
from vab.models.hub import (
    BUNDLED,
    CONFIG,
    FINE,
    ModelError,
    codec_source,
    find_model,
    folder_fingerprint,
    read_config,
)
from vab.models.known import Known
from vab.models.vab import VAB
from vab.sampling.parallel import decode_settings
from vab.sampling.stages import Stage, check_fine, load_fine, load_stage, padded_length, save_stage
from vab.utils.device import pick_device
from vab.utils.progress import StageProgress
from vab.utils.provenance import sha256, whole_folder
from vab.vision import VisionEncoder, load_vision

CARD = "README.md"  # of a model directory, written by huggingface_hub
IMAGE_SECONDS = 10.0  # of sound for an image
MAX_VIDEO_SECONDS = 2 * 3600.0
CONTEXT_FRAMES = 50  # audio frames encoded with a kept span, on either side

DEFAULT_FINISH = Finish()


@dataclass(frozen=True)
class Audio:
    """A finished sound, with the model's own, the tokens and features behind it and the time it took."""

    waveform: np.ndarray  # float32 [S], or [C,S] of several channels: no new sound in it passes -1 dBTP
    rate: int
    raw: np.ndarray  # float32 [S] at 16 kHz: the model's own, at its own level, with what was kept
    level: Level  # of the model's own sound
    gain_db: float  # what the new sound got to come to its loudness, before the limiter
    timings: dict[str, float] = field(default_factory=dict)  # seconds of each stage
    tokens: Tensor | None = None  # int64 [K,T] that it was decoded from, at least a window
    features: Tensor | None = None  # [F,dim] of the video, as long as the tokens
    made_with: dict[str, Any] = field(default_factory=dict)  # model, seed, settings in effect, gain
    notes: tuple[str, ...] = ()  # sentences for the user
    known: Known | None = None  # whether the model knows what the video shows; None if it cannot tell

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a file with this sound; none if nothing in it is made by a model."""
        return {COMMENT: pack(self.made_with)} if self.made_with else {}

    def save(self, path: str | Path, bits: int = 16) -> None:
        """Write a sound file, complete or not at all; its ending chooses WAV, FLAC, Ogg, Opus, MP3 or M4A.

        WAV and FLAC have 16 or 24 bits. ``MediaError`` for another ending.
        """
        write_audio(path, self.waveform, self.rate, bits, self.tags)


class VABPipeline(ModelHubMixin, library_name="vab", tags=["video-to-audio", "vision-to-audio"]):
    """A VAB (or a FoleyGen) with its codec and image encoder, and a second stage if it has one.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are huggingface_hub's; weights are
    safetensors, and nothing in a model directory is ever executed.
    """

    def __init__(
        self,
        config: Preset,
        network: VAB,
        codec: Codec,
        vision: VisionEncoder,
        device: str = "cpu",
        fine: Stage | None = None,
    ) -> None:
        # 1. Check that the parts were made for each other.
        _check_parts(config.model, network, codec, vision)
        if fine is not None:
            check_fine(fine.preset.model, config.model)
            _check_codec(fine.preset.model, fine.network, codec)
            fine.network.eval().requires_grad_(False).to(pick_device(device))

        # 2. All of them on the device, for inference alone.
        self.config = config
        # The second stage (section 3.3), for a codec of more codebooks than ``network`` makes.
        self.fine = fine
        self.device = pick_device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.codec = codec.to(self.device)
        self.vision = vision.to(self.device)
        self.finetuned = Finetuned()
        self.name = config.name  # as it was asked for, where it was
        self._folder_fingerprint: str | None = None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path | None = None,
        *,
        device: str = "auto",
        codec_path: str | Path | None = None,
        vision_path: str | Path | None = None,
        **hub: Any,
    ) -> Self:
        """The bundled model (None or ``vab-tiny``), that of a directory, or that of a Hub id.

        ``device``: auto, cpu, cuda or mps. ``codec_path`` and ``vision_path``: a file, folder or Hub id to
        take these weights from. ``hub``: revision, token, cache_dir ... of ``snapshot_download``.
        Raises ``ModelError``, ``CodecError`` or ``VisionError``, each one line that says what to do.
        """
        # ModelHubMixin would take the name for a Hub id, so it is resolved to a folder first.
        folder = find_model(source, **hub)
        read_config(folder)
        chosen: dict[str, Any] = {"codec_path": codec_path, "vision_path": vision_path}
        pipeline = super().from_pretrained(folder, device=pick_device(device).type, **chosen)
        local = source is not None and Path(source).expanduser().is_dir()
        pipeline.name = folder.resolve().name if local else str(source or BUNDLED)  # no path: tags travel
        pipeline._folder_fingerprint = folder_fingerprint(folder, codec_path, vision_path)
        return pipeline

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        device: str,
        codec_path: str | Path | None,
        vision_path: str | Path | None,
        **_: Any,
    ) -> Self:
        folder = Path(model_id)
        stage = load_stage(folder)
        codec = load_codec(stage.preset.model.codec, codec_source(folder, codec_path))
        vision = load_vision(stage.preset.model.vision, vision_path)
        pipeline = cls(stage.preset, stage.network, codec, vision, device, load_fine(folder))
        pipeline.finetuned = load_finetuned(folder)
        return pipeline

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all weights that a sound depends on; of a model directory, that of its files."""
        if self._folder_fingerprint is not None:
            return self._folder_fingerprint
        stages = [stage for stage in (self.first, self.fine) if stage is not None]
        tensors = (tensor for stage in stages for tensor in stage.network.state_dict().values())
        weights = (tensor.cpu().numpy().tobytes() for tensor in tensors)
        return sha256(weights_fingerprint(self.codec), weights_fingerprint(self.vision), *weights)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """As in huggingface_hub; the directory is replaced as a whole, once everything is written.

        ``repo_id`` (default: the directory's name) and ``options`` (config, model_card_kwargs, token ...)
        are those of ``push_to_hub``, and so is the result.
        """
        folder = Path(save_directory)
        with whole_folder(folder, CONFIG) as temporary:
            if (folder / CARD).is_file():  # a card that is there stays
                shutil.copy(folder / CARD, temporary)
            local = {name: options[name] for name in ("config", "model_card_kwargs") if name in options}
            super().save_pretrained(temporary, **local)
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    def _save_pretrained(self, save_directory: Path) -> None:
        # The folders of a model directory, as load_stage, load_codec and load_finetuned read them.
        save_stage(save_directory, self.first)
        if self.fine is not None:
            save_stage(save_directory / FINE, self.fine)
        if self.config.model.codec == "tiny":  # the others have a home of their own
            from vab.codecs.tiny import TinyCodec

            assert isinstance(self.codec, TinyCodec)
            self.codec.save_pretrained(save_directory)
        save_finetuned(save_directory, self.finetuned)

    @property
    def first(self) -> Stage:
        """The stage that generates the coarse tokens from video, with this pipeline's network."""
        return Stage(self.network, self.config)

    @property
    def finetuned(self) -> Finetuned:
        """The networks that embed and classify, as far as the model has them."""
        return self._finetuned

    @finetuned.setter
    def finetuned(self, finetuned: Finetuned) -> None:
        """Replace these networks; the embedder is made anew."""
        self._finetuned = finetuned
        self.__dict__.pop("embedder", None)

    @cached_property
    def embedder(self) -> Embedder:
        """The embedder and classifier of this model, with this pipeline's codec and image encoder."""
        return Embedder(self.config.model, self.codec, self.vision, self.finetuned, self.device.type)

    def embed(self, path: str | Path) -> dict[str, np.ndarray]:
        """Unit vectors of a file, float32 [D]: ``audio`` and ``video``, as far as it has them.

        Raises ``MediaError`` for a file that cannot be used, ``ModelError`` if the model gives no embeddings.
        """
        # One vector a window, then their mean.
        embedded = self.embedder.embed_file(path)
        kinds: tuple[Kind, ...] = ("audio", "video")
        means = {kind: embedded.mean(kind) for kind in kinds}
        return {kind: mean for kind, mean in means.items() if mean is not None}

    def generate(
        self,
        path: str | Path | MediaFile,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        rerank: int | None = None,
        keep: Sequence[Span] = (),
        loudness: float | None = LOUDNESS,
        rate: int | None = None,
        channels: int | None = None,
        mix: float | None = None,
        progress: StageProgress | None = None,
    ) -> Audio:
        """The sound of a video, exactly as long as it is; of an image, 10 s.

        ``steps``, ``guidance``, ``temperature`` and ``rerank`` (so many candidates are drawn, the one nearest
        to the video is kept) replace the model's own. ``keep``: spans (from, to) in seconds of the video's
        own audio that stay sample for sample; the new audio is conditioned on their tokens, and fades into
        them over 20 ms. ``loudness``: LUFS that the new audio is brought to; None leaves it at the model's
        own level, with a true peak of -1 dBTP at most all the same. ``mix``: dB of the new audio against the
        video's own, which lies under it. ``rate``, ``channels``: 16 kHz mono, with ``keep`` and ``mix`` those
        of the video's own audio; what the model makes ends at 8 kHz.
        Raises ``MediaError`` for a file that cannot be used, ``SettingError`` for a
        setting that makes no sense, ``DecodeError`` for weights that give no numbers, ``ModelError`` for
        ``rerank`` with a model that has no embeddings.
        """
        chosen = decode_settings(self.config.decode, steps, guidance, temperature, rerank)
        finish = Finish(loudness, rate, channels, mix)
        return next(
            self.generate_many(path, 1, seed=seed, decode=chosen, keep=keep, finish=finish, progress=progress)
        )

    def generate_many(
        self,
        path: str | Path | MediaFile,
        samples: int,
        *,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        keep: Sequence[Span] = (),
        sound: np.ndarray | None = None,
        seconds: float | None = None,
        finish: Finish = DEFAULT_FINISH,
        progress: StageProgress | None = None,
    ) -> Iterator[Audio]:
        """``samples`` sounds for one file, one after another; the first is that of :meth:`generate`.

        The file is read once, and the first sound's timings hold that. A ``MediaFile`` stays open for the
        caller, and knows its packet times afterwards. ``sound`` [S]: the audio that ``keep`` and
        ``finish.mix`` refer to, in place of the file's own. ``seconds``: how long the sound shall be, in
        place of the video's length; a video that ends sooner stands still.
        """
        report = progress or (lambda stage, done, total: None)
        timings: dict[str, float] = {}
        config = self.config.model
        decode = decode or self.config.decode
        check_value("seed", seed, int, 0, math.inf)
        check_value("samples", samples, int, 0, math.inf)
        check_value("seconds", seconds, float | None)
        check_value("keep", keep, tuple[Span, ...])
        check_config(decode, "decode.")
        if decode.num_candidates > 1:
            self.embedder.check_contrastive()  # before the work begins

        with as_media_file(path) as file:
            # 1. Refuse what the header shows to be unusable, before anything is decoded.
            if file.kind == "audio" or file.nominal_seconds > MAX_VIDEO_SECONDS:
                sound_length(file.info)

            # 2. Features [F,dim] of the whole clip, in a pass that also finds out how long it is.
            features = self._features(file, seed, timings, report)
            judged = self.embedder.known(features)
            doubts = [] if judged is None or judged.is_known else [judged.note(self.name)]
            info = file.info
            length = sound_length(info) if seconds is None else max(1, round(seconds * SAMPLE_RATE))
            if seconds is None:
                seconds = IMAGE_SECONDS if info.kind == "image" else info.seconds
            num_frames = padded_length(samples_to_frames(length), config)  # T
            features = _fit(features, num_video_frames(num_frames / FRAME_RATE, config.fps))

            # 3. Tokens [K,T] of the audio that is kept, and where they are known [K,T].
            heard: AudioSource = partial(read_original, file)
            original: Original | None = None
            if sound is not None:
                info = replace(info, has_audio=True)
                heard = partial(slice_audio, sound)
                original = original_in_memory(sound)
            elif info.has_audio:
                original = original_of(file)
            kept = kept_samples(info, keep, length)
            with _timed(timings, "codec"):
                tokens, known = self._known_tokens(heard, kept, num_frames)

            for number in range(samples):
                # 4. The first stage: one sound, or of several candidates the nearest to the video.
                with _timed(timings, "sampling"):
                    generators = [_generator(seed, number, n) for n in range(decode.num_candidates)]
                    part = partial(_report_part, partial(report, "sampling"), number, samples)
                    result = self._coarse(tokens, known, features, decode, generators, progress=part)

                # 5. The second stage, if there is one, adds the finer codebooks.
                if self.fine is not None:
                    with _timed(timings, "refining"):
                        generator = _generator(seed, number, 0, stage=1)
                        part = partial(_report_part, partial(report, "refining"), number, samples)
                        result = self.fine.refine(result, tokens, known, features, generator, progress=part)

                # 6. Tokens -> waveform [S], as the model has it; the kept audio goes back in as it was heard.
                with _timed(timings, "codec"):
                    waveform = self._waveform(result[:, : samples_to_frames(length)], length)
                    raw = waveform.copy() if kept else waveform
                    for start, stop in kept:
                        crossfade_into(raw, heard, start, stop)

                # 7. The same, to be used: at its loudness, beside the kept audio at its own rate.
                with _timed(timings, "finish"):
                    finished = finish_sound(waveform, seconds, finish, original, keep)

                # 8. Each sound carries its own timings; the first those of steps 2 and 3 too.
                yield Audio(
                    finished.waveform,
                    finished.rate,
                    raw,
                    finished.level,
                    finished.gain,
                    dict(timings),
                    result,
                    features,
                    made_with(self.name, self.fingerprint, seed, number, decode, keep, finish)
                    | {"gain_db": finished.gain},
                    (*doubts, *finished.notes),
                    judged,
                )
                timings.clear()

    def _known_tokens(
        self, original: AudioSource, kept: Sequence[tuple[int, int]], num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens [K,T] of the samples to keep, and bool [K,T], True where a frame is kept whole."""
        num_codebooks = (self.fine or self.first).preset.model.num_codebooks
        tokens = torch.zeros(num_codebooks, num_frames, dtype=torch.int64, device=self.device)
        known = torch.zeros_like(tokens, dtype=torch.bool)
        for start, stop in kept:
            # Frames inside the span: rounded up at its start, down at its end.
            first = -(-start // HOP)
            last = stop // HOP
            if first < last:
                encoded = encode_long(self.codec, original, first, last, CONTEXT_FRAMES)
                tokens[:, first:last] = encoded[:num_codebooks]
                known[:, first:last] = True
        return tokens, known

    def _coarse(
        self,
        tokens: Tensor,
        known: Tensor,
        features: Tensor,
        decode: DecodeConfig,
        generators: Sequence[torch.Generator],
        *,
        progress: Callable[[int, int], None],
    ) -> Tensor:
        """Tokens [K1,T] of the first stage: a candidate for each generator, and the best of them."""
        num_codebooks = self.config.model.num_codebooks
        candidates = []
        for n, generator in enumerate(generators):
            part = partial(_report_part, progress, n, len(generators))
            candidates.append(
                self.first.fill(
                    tokens[:num_codebooks],
                    known[:num_codebooks],
                    features,
                    decode,
                    generator,
                    progress=part,
                )
            )
        return candidates[0] if len(candidates) == 1 else self._nearest(torch.stack(candidates), features)

    def _nearest(self, candidates: Tensor, features: Tensor) -> Tensor:
        """The one [K,T] of several candidates [n,K,T] that fits the video best."""
        return candidates[audio_video_similarity(self.embedder.contrastive, candidates, features).argmax()]

    def _features(
        self, file: MediaFile, seed: int, timings: dict[str, float], report: StageProgress
    ) -> Tensor:
        """Features [F,dim] of a whole file at the model's rate (section 3.1)."""
        fps = self.config.model.fps
        size = self.vision.decode_size
        if file.is_image:
            expected = num_video_frames(IMAGE_SECONDS, fps)
            frames = _moving(file, expected, seed, size)
        else:
            expected = num_video_frames(file.nominal_seconds, fps)
            frames = _not_too_long(file, file.frames(fps, size=size))
        # One pass: frames are decoded while they are encoded: what remains of the time is the encoder's.
        begin = time.perf_counter()
        with torch.no_grad():
            counted = _counted(frames, timings, lambda done: report("features", done, max(done, expected)))
            features = self.vision.encode(counted)
        timings["features"] = time.perf_counter() - begin - timings["decode_video"]
        return features

    def _waveform(self, tokens: Tensor, length: int) -> np.ndarray:
        """Waveform float32 [length] of tokens [K,T]."""
        # In pieces, each brought to the CPU at once: a long clip need not fit into the device's memory.
        waveform = np.zeros(length, dtype=np.float32)
        done = 0
        with torch.no_grad():
            for piece in decode_long(self.codec, tokens):
                # The last frame may reach past the end of the video: cut it.
                part = piece.float().cpu().numpy()[: length - done]
                waveform[done : done + len(part)] = part
                done += len(part)
        return waveform


def sound_length(info: MediaInfo) -> int:
    """Number of samples S for a file; ``MediaError`` if it has no video, or lasts 0 s or too long."""
    if info.kind == "image":
        return round(IMAGE_SECONDS * SAMPLE_RATE)
    if info.kind == "audio":
        raise MediaError(f"{info.path}: has no video stream, only sound")
    if info.seconds > MAX_VIDEO_SECONDS:
        hours, limit = info.seconds / 3600, MAX_VIDEO_SECONDS / 3600
        raise MediaError(f"{info.path}: lasts {hours:.2f} hours; the longest that can be done is {limit:g}")
    length = round(info.seconds * SAMPLE_RATE)
    if length < 1:
        raise MediaError(f"{info.path}: the video lasts 0 s")
    return length


def _fit(features: Tensor, num_video: int) -> Tensor:
    """Features [num_video,dim]: cut, or with the last one repeated (section 3.1)."""
    last = features[-1:].expand(max(0, num_video - len(features)), -1)
    return torch.cat([features[:num_video], last])


def _moving(file: MediaFile, num_frames: int, seed: int, size: int) -> Iterator[np.ndarray]:
    """Frames of an image, as in training: a slowly moving crop."""
    yield from moving_crop(next(file.frames(1.0)), num_frames, seed, size)


def _not_too_long(file: MediaFile, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass frames through; ``MediaError`` as soon as the file turns out to exceed MAX_VIDEO_SECONDS."""
    for frame in frames:
        if file.seconds_read > MAX_VIDEO_SECONDS:
            sound_length(file.info)
        yield frame


def _counted(
    frames: Iterator[np.ndarray], timings: dict[str, float], report: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Pass frames through, and add up the time it takes to decode them as ``decode_video``."""
    # A for loop could not tell the decoder's time from the consumer's.
    timings["decode_video"] = 0.0
    done = 0
    while True:
        begin = time.perf_counter()
        frame = next(frames, None)
        timings["decode_video"] += time.perf_counter() - begin
        if frame is None:
            return
        done += 1
        report(done)
        yield frame


def _generator(seed: int, number: int, candidate: int, stage: int = 0) -> torch.Generator:
    """The noise of one candidate of one sample, in the first stage or the second."""
    # The first candidate of the first stage is the sound without reranking: its parts are just these two.
    parts: tuple[int, ...] = (seed, number)
    if stage:
        parts = (seed, number, candidate, stage)
    elif candidate:
        parts = (seed, number, candidate)
    # 63 bits of the hash, for torch seeds are signed.
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _report_part(
    progress: Callable[[int, int], None], index: int, num_parts: int, done: int, total: int
) -> None:
    """Report progress of one of several equal parts as progress of the whole."""
    progress(index * total + done, num_parts * total)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to ``timings[stage]``."""
    begin = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - begin


def _check_parts(config: ModelConfig, network: VAB, codec: Codec, vision: VisionEncoder) -> None:
    """``ModelError`` if the parts do not belong together, which would silently generate noise."""
    if config.num_conditioning_codebooks:
        raise ModelError(
            f"this model refines {config.num_conditioning_codebooks} codebooks of another model, in "
            f"whose folder {FINE!r} it belongs; it makes no sound from a picture alone"
        )
    if vision.dim != config.vision_dim:
        raise ModelError(
            f"{vision.name} gives {vision.dim} numbers a frame, the model needs {config.vision_dim}"
        )
    _check_codec(config, network, codec)


def _check_codec(config: ModelConfig, network: VAB, codec: Codec) -> None:
    """``ModelError`` if the network was trained on another codec's codebook vectors."""
    # Weights are saved in half precision, so the vectors may differ by rounding.
    actual = codec.codebook_vectors()[: config.num_codebooks].float().cpu()
    expected = network.audio_embedding.vectors.float().cpu()
    if actual.shape != expected.shape or (actual - expected).norm() > 0.01 * expected.norm():
        raise ModelError(
            "the model was trained on the tokens of another codec than this one; "
            "put its codec.json and codec.safetensors into its folder, or name it with --codec-path"
        )
