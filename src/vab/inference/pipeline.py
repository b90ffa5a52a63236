"""File in, sound out: probe, features, tokens, waveform (section 3.3), for any length.

A clip's sound depends on the clip, the seed and the settings alone: noise is drawn on the CPU from
(seed, number of the sample), and every sample is decoded on its own.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from vab.codecs.codec import Codec, decode_long, encode_long, load_codec
from vab.config import FRAME_RATE, HOP, SAMPLE_RATE, DecodeConfig, ModelConfig, Preset, samples_to_frames
from vab.config import video_frames as video_places
from vab.inference.embedder import Embedder, audio_video_similarity
from vab.inference.embeddings import Kind
from vab.inference.splice import AudioSource, Span, crossfade_into, kept_samples, read_original, slice_audio
from vab.media.container import MediaError
from vab.media.file import MediaFile, MediaInfo
from vab.media.image import moving_crop
from vab.media.reader import as_media_file, write_wav
from vab.models.heads import Finetuned, load_finetuned, save_finetuned
from vab.models.hub import CODEC, CONFIG, FINE, ModelError, find_model, read_config
from vab.models.vab import VAB
from vab.sampling.parallel import decode_settings
from vab.sampling.stages import Stage, check_fine, load_fine, load_stage, padded_length, save_stage
from vab.utils.device import pick_device
from vab.utils.provenance import whole_folder
from vab.vision import VisionEncoder, load_vision

CARD = "README.md"  # of a model directory, written by huggingface_hub
IMAGE_SECONDS = 10.0  # of sound for an image
MAX_VIDEO_SECONDS = 2 * 3600.0
CONTEXT = 50  # audio frames of a video's own sound that are encoded with what is kept, on either side

Progress = Callable[[str, int, int], None]  # stage, done, in all


@dataclass(frozen=True)
class Audio:
    """A mono sound and what it took to make it."""

    waveform: np.ndarray  # float32 [S], about -1..1
    rate: int = SAMPLE_RATE
    timings: dict[str, float] = field(default_factory=dict)  # seconds of each stage
    tokens: Tensor | None = None  # int64 [K,T] that it was decoded from, at least a window of them
    features: Tensor | None = None  # [F,dim] of the picture that it was made for, as long as the tokens

    def save(self, path: str | Path) -> None:
        """Write a 16-bit WAV file, complete or not at all."""
        write_wav(path, self.waveform, self.rate)


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
        _check_parts(config.model, network, codec, vision)
        if fine is not None:
            check_fine(fine.preset.model, config.model)
            _check_codec(fine.preset.model, fine.network, codec)
            fine.network.eval().requires_grad_(False).to(pick_device(device))
        self.config = config
        self.fine = (
            fine  # the second stage (section 3.3), for a codec of more codebooks than ``network`` makes
        )
        self.device = pick_device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.codec = codec.to(self.device)
        self.vision = vision.to(self.device)
        self.finetuned = Finetuned()

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
        folder = find_model(source, **hub)
        read_config(folder)
        chosen: dict[str, Any] = {"codec_path": codec_path, "vision_path": vision_path}
        return super().from_pretrained(folder, device=pick_device(device).type, **chosen)

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
        model = stage.preset.model
        if codec_path is None and (folder / CODEC).is_file():
            codec_path = folder
        codec, vision = load_codec(model.codec, codec_path), load_vision(model.vision, vision_path)
        pipeline = cls(stage.preset, stage.network, codec, vision, device, load_fine(folder))
        pipeline.finetuned = load_finetuned(folder)
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """As in huggingface_hub; what stands in the directory is replaced when all is written, not before.

        ``repo_id`` (the directory's name) and ``options`` (config, model_card_kwargs, token ...) are those
        of ``push_to_hub``; returned is what that returns.
        """
        folder = Path(save_directory)
        with whole_folder(folder, CONFIG) as place:
            if (folder / CARD).is_file():  # a card that is there stays
                shutil.copy(folder / CARD, place)
            local = {name: options[name] for name in ("config", "model_card_kwargs") if name in options}
            super().save_pretrained(place, **local)
        return self.push_to_hub(repo_id or folder.name, **options) if push_to_hub else None

    def _save_pretrained(self, save_directory: Path) -> None:
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
        """The stage that makes sound from a picture."""
        return Stage(self.network, self.config)

    @property
    def embedder(self) -> Embedder:
        """The part that embeds and classifies, with this pipeline's codec and image encoder."""
        own = self.finetuned
        return Embedder(
            self.config.model, self.codec, self.vision, own.contrastive, own.classifier, self.device.type
        )

    def embed(self, path: str | Path) -> dict[str, np.ndarray]:
        """The vectors of a file, float32 [D] of length one: ``audio`` and ``video``, as far as it has them.

        Raises ``MediaError`` for a file that cannot be used, ``ModelError`` if the model gives no embeddings.
        """
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
        progress: Progress | None = None,
    ) -> Audio:
        """The sound of a video, exactly as long as it is; of an image, 10 s.

        ``steps``, ``guidance``, ``temperature`` and ``rerank`` (so many sounds are drawn, the one nearest to
        the picture is kept) replace the model's own. ``keep``: spans (from, to) in
        seconds of the video's own sound that stay as they are; what is new fits to their tokens, and fades
        into them over 20 ms. Raises ``MediaError`` for a file that cannot be used, ``ValueError`` for a
        setting that makes no sense.
        """
        chosen = decode_settings(self.config.decode, steps, guidance, temperature, rerank)
        return next(self.generate_many(path, 1, seed=seed, decode=chosen, keep=keep, progress=progress))

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
        progress: Progress | None = None,
    ) -> Iterator[Audio]:
        """``samples`` sounds for one file, one after another; the first is that of :meth:`generate`.

        The file is read once: the first sound's timings hold that. A ``MediaFile`` stays open for the caller,
        and knows its packet times afterwards. ``sound`` [S]: what ``keep`` speaks of, in place of the file's
        own. ``seconds``: how long the sound shall be, in place of the picture's length; a picture that ends
        sooner stands still.
        """
        tell = progress or (lambda stage, done, total: None)
        timings: dict[str, float] = {}
        config = self.config.model
        chosen = decode or self.config.decode
        count = chosen.num_candidates
        if count > 1:
            _ = self.embedder.contrastive  # or say now that there is none

        with as_media_file(path) as file:
            # 1. Refuse what its header shows to be of no use, before anything is decoded.
            if file.kind == "audio" or file.nominal_seconds > MAX_VIDEO_SECONDS:
                sound_length(file.info)

            # 2. Features [F, dim] of the whole clip, in a pass that also finds out how long it is.
            shown = self._features(file, seed, timings, tell)
            info = file.info
            length = sound_length(info) if seconds is None else max(1, round(seconds * SAMPLE_RATE))
            total = padded_length(samples_to_frames(length), config)  # T, audio frames
            features = _fit(shown, video_places(total / FRAME_RATE, config.fps))

            # 3. Tokens [K, T] of the sound that is kept, and where [K, T] they are given.
            own: AudioSource = partial(read_original, file)
            if sound is not None:
                info = replace(info, has_audio=True)
                own = partial(slice_audio, sound)
            kept = kept_samples(info, keep, length)
            num_codebooks = (self.fine or self.first).preset.model.num_codebooks
            tokens = torch.zeros(num_codebooks, total, dtype=torch.int64, device=self.device)
            known = torch.zeros_like(tokens, dtype=torch.bool)
            with _timed(timings, "codec"):
                for start, stop in kept:
                    first, last = -(-start // HOP), stop // HOP
                    if first < last:
                        tokens[:, first:last] = encode_long(self.codec, own, first, last, CONTEXT)[
                            :num_codebooks
                        ]
                        known[:, first:last] = True

            for number in range(samples):
                # 4. The first stage: one sound, or the nearest to the picture of several.
                with _timed(timings, "sampling"):
                    drawn = [
                        self.first.fill(
                            tokens[: config.num_codebooks],
                            known[: config.num_codebooks],
                            features,
                            chosen,
                            _generator(seed, number, candidate),
                            partial(_tell, tell, "sampling", number * count + candidate, samples * count),
                        )
                        for candidate in range(count)
                    ]
                    result = drawn[0] if count == 1 else self._nearest(torch.stack(drawn), features)

                # 5. The second stage, if there is one, adds the finer codebooks.
                if self.fine is not None:
                    with _timed(timings, "refining"):
                        noise = _generator(seed, number, 0, stage=1)
                        report = partial(_tell, tell, "refining", number, samples)
                        result = self.fine.refine(result, tokens, known, features, noise, report)

                # 6. Tokens -> waveform [length]; what is kept goes back in as it was.
                with _timed(timings, "codec"):
                    waveform = self._waveform(result[:, : samples_to_frames(length)], length)
                    for start, stop in kept:
                        crossfade_into(waveform, own, start, stop)
                yield Audio(waveform, SAMPLE_RATE, dict(timings), result, features)
                timings.clear()

    def _nearest(self, drawn: Tensor, features: Tensor) -> Tensor:
        """The one [K, T] of several sounds [n, K, T] that fits the picture best."""
        return drawn[audio_video_similarity(self.embedder.contrastive, drawn, features).argmax()]

    def _features(self, file: MediaFile, seed: int, timings: dict[str, float], tell: Progress) -> Tensor:
        """Features [F, dim] of a whole file at the model's rate (section 3.1)."""
        fps = self.config.model.fps
        side = self.vision.decode_size
        if file.is_image:
            expected = video_places(IMAGE_SECONDS, fps)
            frames = _moving(file, expected, seed, side)
        else:
            expected = video_places(file.nominal_seconds, fps)
            frames = _not_too_long(file, file.frames(fps, size=side))
        begin = time.perf_counter()
        with torch.no_grad():
            counted = _counted(frames, timings, lambda done: tell("features", done, max(done, expected)))
            features = self.vision.encode(counted)
        timings["features"] = time.perf_counter() - begin - timings["decode_video"]
        return features

    def _waveform(self, tokens: Tensor, length: int) -> np.ndarray:
        """Waveform float32 [length] of tokens [K, T]."""
        waveform = np.zeros(length, dtype=np.float32)
        done = 0
        with torch.no_grad():
            for piece in decode_long(self.codec, tokens):
                part = piece.float().cpu().numpy()[: length - done]
                waveform[done : done + len(part)] = part
                done += len(part)
        return waveform


def sound_length(info: MediaInfo) -> int:
    """Samples S of the sound for a file; ``MediaError`` if it has no picture, or lasts 0 s or too long."""
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


def _fit(features: Tensor, places: int) -> Tensor:
    """Features [places, dim]: cut, or with the last one repeated (section 3.1)."""
    last = features[-1:].expand(max(0, places - len(features)), -1)
    return torch.cat([features[:places], last])


def _moving(file: MediaFile, frames: int, seed: int, side: int) -> Iterator[np.ndarray]:
    """An image as in training: a slowly moving crop."""
    yield from moving_crop(next(file.frames(1.0)), frames, seed, side)


def _not_too_long(file: MediaFile, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same frames; ``MediaError`` as soon as the file turns out to be longer than a video may be."""
    for frame in frames:
        if file.seconds_read > MAX_VIDEO_SECONDS:
            sound_length(file.info)
        yield frame


def _counted(
    frames: Iterator[np.ndarray], timings: dict[str, float], tell: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """The same frames; the time to get them is added up as ``decode_video``."""
    timings["decode_video"] = 0.0
    done = 0
    while True:
        begin = time.perf_counter()
        frame = next(frames, None)
        timings["decode_video"] += time.perf_counter() - begin
        if frame is None:
            return
        done += 1
        tell(done)
        yield frame


def _generator(seed: int, number: int, candidate: int, stage: int = 0) -> torch.Generator:
    """The noise of one candidate of one sample, in the first stage or the second."""
    parts = (seed, number, candidate, stage) if stage else (seed, number, candidate)[: 2 + (candidate > 0)]
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _tell(tell: Progress, stage: str, number: int, samples: int, done: int, total: int) -> None:
    tell(stage, number * total + done, samples * total)


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - begin


def _check_parts(config: ModelConfig, network: VAB, codec: Codec, vision: VisionEncoder) -> None:
    """``ModelError`` if the parts were not made for each other, which would give noise in silence."""
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
    own = codec.codebook_vectors()[: config.num_codebooks].float().cpu()
    learned = network.audio_embedding.vectors.float().cpu()
    if own.shape != learned.shape or (own - learned).norm() > 0.01 * learned.norm():
        raise ModelError(
            "the model was trained on the tokens of another codec than this one; "
            "put its codec.json and codec.safetensors into its folder, or name it with --codec-path"
        )
