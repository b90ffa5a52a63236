"""The pipeline from a video file to its sound: features, tokens, waveform (section 3.3), for any length.

A clip's sound depends on the clip, the seed and the settings alone: noise is drawn on the CPU from
(seed, number of the sample), and every sample is decoded on its own.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from vab.codecs.codec import Codec, load_codec, save_codec
from vab.config import (
    FRAME_RATE,
    LOUDNESS,
    SAMPLE_RATE,
    DecodeConfig,
    Preset,
    check_config,
    check_value,
    samples_to_frames,
)
from vab.config import video_frames as num_video_frames
from vab.data.extraction.encoding import weights_fingerprint
from vab.errors import SettingError
from vab.inference.audio import Audio
from vab.inference.calls import for_each, refuse_unknown
from vab.inference.embedder import Embedder, audio_video_similarity
from vab.inference.embeddings import Kind
from vab.inference.features import IMAGE_SECONDS, MAX_VIDEO_SECONDS, FeatureReader, sound_length
from vab.inference.finish import Finish, finish_sound
from vab.inference.made_with import made_with
from vab.inference.parts import check_codec, check_parts, place, place_vision
from vab.inference.splice import (
    AudioSource,
    Original,
    Span,
    as_spans,
    crossfade_into,
    kept_samples,
    original_in_memory,
    original_of,
    read_original,
    slice_audio,
)
from vab.inference.tokens import coarse_candidates, known_tokens, noise, timing_channels, waveform_of
from vab.media.container import MediaError
from vab.media.file import MediaFile
from vab.media.reader import as_media_file
from vab.media.sources.given import ArrayLike, Source
from vab.models.heads import Finetuned, Inputs, load_finetuned, save_finetuned
from vab.models.hub import (
    BUNDLED,
    CONFIG,
    FINE,
    HUB_KEYWORDS,
    REHEARSAL,
    codec_source,
    find_model,
    folder_fingerprint,
    read_config,
)
from vab.models.vab import VAB
from vab.presets import Speed, at_speed
from vab.sampling.parallel import decode_settings
from vab.sampling.stages import Stage, check_fine, load_fine, load_stage, padded_length, save_stage
from vab.timing.predictor import MotionPredictor, load_predictor, save_predictor
from vab.timing.sources import Timing, choose, record, resolve
from vab.utils.device import (
    FLOAT32,
    Device,
    DType,
    names_dtype,
    pick_device,
    pick_precision,
    products,
)
from vab.utils.progress import StageProgress, report_part, stage_progress, timed
from vab.utils.provenance import sha256, whole_folder
from vab.vision import VisionEncoder, load_vision

CARD = "README.md"  # of a model directory, written by huggingface_hub
DEFAULT_FINISH = Finish()


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
        device: Device = "cpu",
        fine: Stage | None = None,
        dtype: DType = None,
    ) -> None:
        # 1. Check that the parts were made for each other.
        check_parts(config.model, network, codec, vision)
        if fine is not None:
            check_fine(fine.preset.model, config.model)
            check_codec(fine.network, codec)

        # 2. All of them on the device, for inference alone.
        self.config = config
        self.fine = fine  # the second stage (section 3.3), for a codec of more codebooks than the first makes
        self.network = network
        self.codec = codec
        self.vision = vision
        self.finetuned = Finetuned()
        self.predictor: MotionPredictor | None = None  # of a timing curve, from a film's motion
        self.rehearsal: bytes | None = None  # that file of its directory, for those that are made from it
        self.name = config.name  # as it was asked for, where it was
        self._folder_fingerprint: str | None = None
        self.chosen = FLOAT32
        self.to(device=device, dtype=dtype)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path | None = None,
        *,
        device: Device = "auto",
        dtype: DType = None,
        torch_dtype: DType = None,
        codec_path: str | Path | None = None,
        vision_path: str | Path | None = None,
        **hub: Any,
    ) -> Self:
        """The bundled model (None or ``vab-tiny``), that of a directory, or that of a Hub id.

        ``device``: auto, cpu, cuda, cuda:1, mps, or a ``torch.device``. ``dtype``, or ``torch_dtype``: the
        precision of the networks and the image encoder, float32, bfloat16, float16, on an NVIDIA GPU tf32, or
        auto: bfloat16 where that is measured to be fast, else float32. In float32 stay the codec, and an
        image encoder that would suffer. ``codec_path`` and ``vision_path``: a file, folder or Hub id to take
        these weights from. ``hub``: revision, token, cache_dir ... of ``snapshot_download``. Raises
        ``ModelError``, ``CodecError``, ``VisionError`` or ``SettingError``, each one line that says what to
        do.

        >>> pipe = VABPipeline.from_pretrained(device="cpu")
        >>> pipe
        VABPipeline(vab-tiny, 4.7 M parameters, cpu, float32)
        """
        # 1. Settings first: a slip of the pen must not wait for a download.
        here = ("source", "device", "dtype", "torch_dtype", "codec_path", "vision_path")
        refuse_unknown(hub, {*here, *HUB_KEYWORDS}, {"device_map": "one device for the whole model, device="})
        formats = [pick_precision(choice, device) for choice in (dtype, torch_dtype) if choice is not None]
        if len(set(formats)) > 1:
            raise SettingError(f"dtype= and torch_dtype= are one thing, not {dtype} and {torch_dtype}")
        chosen: dict[str, Any] = {
            "device": pick_device(device),
            "dtype": formats[0] if formats else FLOAT32,
            "codec_path": codec_path,
            "vision_path": vision_path,
        }

        # 2. ModelHubMixin would take the name for a Hub id, so it is resolved to a folder first.
        folder = find_model(source, **hub)
        read_config(folder)
        pipeline = super().from_pretrained(folder, **chosen)
        local = source is not None and Path(source).expanduser().is_dir()
        pipeline.name = folder.resolve().name if local else str(source or BUNDLED)  # no path: tags travel
        pipeline._folder_fingerprint = folder_fingerprint(folder, codec_path, vision_path)
        return pipeline

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        device: Device,
        dtype: DType,
        codec_path: str | Path | None,
        vision_path: str | Path | None,
        **_: Any,
    ) -> Self:
        folder = Path(model_id)
        stage = load_stage(folder)
        codec = load_codec(stage.preset.model.codec, codec_source(folder, codec_path))
        vision = load_vision(stage.preset.model.vision, vision_path)
        pipeline = cls(stage.preset, stage.network, codec, vision, device, load_fine(folder), dtype)
        pipeline.finetuned = load_finetuned(folder)
        pipeline.predictor = load_predictor(folder)
        if (folder / REHEARSAL).is_file():
            pipeline.rehearsal = (folder / REHEARSAL).read_bytes()
        return pipeline

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all weights that a sound depends on; of a model directory, that of its files."""
        if self._folder_fingerprint is not None:
            return self._folder_fingerprint
        stages = [stage.network for stage in (self.first, self.fine) if stage is not None]
        networks = [network for network in (*stages, self.predictor) if network is not None]
        tensors = (tensor for network in networks for tensor in network.state_dict().values())
        weights = (tensor.float().cpu().numpy().tobytes() for tensor in tensors)
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

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hub; ``options`` (private, token, branch ...) are huggingface_hub's."""
        return super().push_to_hub(repo_id, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        # The folders of a model directory, as load_stage, load_codec and load_finetuned read them.
        save_stage(save_directory, self.first)
        if self.fine is not None:
            save_stage(save_directory / FINE, self.fine)
        save_codec(save_directory, self.codec)
        save_finetuned(save_directory, self.finetuned)
        if self.predictor is not None:
            save_predictor(save_directory, self.predictor)
        if self.rehearsal is not None:
            (save_directory / REHEARSAL).write_bytes(self.rehearsal)

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
        parts = (self.codec, self.vision, self.finetuned)
        return Embedder(self.config.model, *parts, self.device, self.chosen)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights of the model's own networks."""
        return self.chosen.dtype

    def to(self, *where: Device | torch.dtype, device: Device = None, dtype: DType = None) -> Self:
        """Move to a device, or change the number format, or both; returns itself.

        The formats are those of :meth:`from_pretrained`. The same seed gives the same sound within one
        format; what a narrow one has rounded stays so in a wider one. ``SettingError`` for a device or a
        format that is not there.

        >>> pipe.to("cpu").to(torch.bfloat16).dtype
        torch.bfloat16
        >>> pipe.to("cpu", torch.float32)
        VABPipeline(vab-tiny, 4.7 M parameters, cpu, float32)
        """
        # 1. As in torch, one may be given without its keyword, or both.
        for value in where:
            if isinstance(value, torch.dtype) or names_dtype(value):
                dtype = value
            else:
                device = value
        place_on = self.device if device is None else pick_device(device)
        wanted = pick_precision(self.chosen if dtype is None else dtype, place_on)
        self.device: torch.device = place_on
        if self.chosen.is_narrow and wanted.dtype != self.dtype:
            self._folder_fingerprint = None  # these are not the directory's weights any more
            self.__dict__.pop("fingerprint", None)
        self.chosen = wanted

        # 2. All parts; the embedder is made anew for its networks.
        self.codec = self.codec.to(self.device)
        self.vision = place_vision(self.vision, wanted, self.device)
        for stage in filter(None, (self.first, self.fine)):
            place(stage.network, self.device, wanted.dtype)
        if "embedder" in self.__dict__:
            self.embedder = self.embedder.moved(self.device, wanted)
        return self

    def __repr__(self) -> str:
        networks = [stage.network for stage in (self.first, self.fine) if stage is not None]
        count = sum(parameter.numel() for network in networks for parameter in network.parameters())
        shown = f"{count / 1e6:.1f} M parameters, {self.device}, {self.chosen.precision}"
        return f"VABPipeline({self.config.name}, {shown})"

    @for_each
    def embed(
        self,
        source: Source | MediaFile,
        *,
        fps: float | Fraction | None = None,
        sound: ArrayLike | None = None,
        rate: int | None = None,
    ) -> dict[Kind, np.ndarray]:
        """Unit vectors of a file, float32 [D]: ``audio`` and ``video``, as far as it has them.

        ``source`` and ``fps`` are those of :meth:`generate`. A waveform has a vector too: an array or tensor
        [S] or [C,S] with ``rate``, its samples a second, or an ``Audio``; with ``fps`` it is the ``sound`` of
        the frames. A list of inputs gives a list. Raises ``MediaError`` for a file that cannot be used,
        ``ModelError`` if the model gives no embeddings.

        >>> video = pipe.embed("cat.mp4")["video"]
        >>> video.shape
        (192,)
        >>> noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
        >>> audio = pipe.embed(noise, rate=48_000)["audio"]
        >>> bool(audio @ video < 0.9)  # how well they fit each other, -1..1
        True
        """
        # One vector a window, then their mean.
        embedded = self.embedder.embed_file(MediaFile(source, fps=fps, sound=sound, rate=rate).source)
        kinds: tuple[Kind, ...] = ("audio", "video")
        means = {kind: embedded.mean(kind) for kind in kinds}
        return {kind: mean for kind, mean in means.items() if mean is not None}

    @for_each
    def classify(
        self,
        source: Source | MediaFile,
        *,
        by: Inputs | None = None,
        fps: float | Fraction | None = None,
        sound: ArrayLike | None = None,
        rate: int | None = None,
    ) -> dict[str, float]:
        """Probability of each class that the model knows, the likeliest first.

        ``by``: judge by ``audio``, ``video`` or ``both``; None is all that the input has and the model has
        learned. The rest is as in :meth:`embed`. Raises ``MediaError`` for a file that cannot be used,
        ``ModelError`` if the model knows no classes.

        >>> classes = pipe.classify("cat.mp4", by="video")
        >>> next(iter(classes))
        'cat'
        """
        if by not in (None, *get_args(Inputs)):
            raise SettingError(f"by= is {', '.join(get_args(Inputs))} or None, not {by!r}")
        names = self.embedder.classifier[1].classes
        opened = MediaFile(source, fps=fps, sound=sound, rate=rate).source
        _, result = next(self.embedder.classify_files([opened], by))
        if isinstance(result, str):
            raise MediaError(result)
        return {names[n]: float(result.scores[n]) for n in np.argsort(-result.scores, kind="stable")}

    @for_each
    def generate(
        self,
        source: Source | MediaFile,
        *,
        fps: float | Fraction | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        rerank: int | None = None,
        speed: Speed | None = None,
        timing: Timing = None,
        keep: Sequence[float] | Sequence[Span] = (),
        seconds: float | None = None,
        loudness: float | None = LOUDNESS,
        rate: int | None = None,
        channels: int | None = None,
        mix: float | None = None,
        progress: StageProgress | bool | None = None,
    ) -> Audio:
        """The sound of a video, exactly as long as it is; of an image, 10 s. ``pipe(x)`` is the same.

        ``source``: a path, bytes, a binary file object, an image, or frames with ``fps``, their number a
        second: an array or tensor [T,H,W,3] or [T,3,H,W], uint8 or floats of 0..1, or a list of images. Any
        other list holds inputs and gives a list of sounds, each as if it were alone.

        ``steps``, ``guidance``, ``temperature`` and ``rerank`` (of so many candidates the one nearest to the
        video is kept) replace the model's own, or those of ``speed``: ``paper``, or ``fast``, which computes
        less. ``timing``: what says when something happens and how loud it is, to a model that is told: a
        ``TimingCurve`` or array, ``motion``, ``sound:FILE``, a CSV file, or ``none``
        (:mod:`vab.timing.sources`); by itself it follows the motion where it can. ``keep``: spans (from,
        to) in seconds of the video's own audio that stay sample for sample; the new audio is conditioned on
        their tokens, and fades into them over 20 ms. ``seconds``: how long the sound shall be, in place of
        the video's length; a video that ends sooner stands still. ``loudness``: LUFS of the new audio; None
        leaves it at the model's own level, with a true peak of -1 dBTP at most all the same. ``mix``: dB of
        the new audio against the video's own, which lies under it. ``rate``, ``channels``: 16 kHz mono, with
        ``keep`` and ``mix`` those of the video's own audio; what the model makes ends at 8 kHz. ``progress``:
        True shows a bar, a callable is told stage, part done and whole.

        Raises ``MediaError`` for a file that cannot be used, ``SettingError`` for a senseless setting,
        ``DecodeError`` for weights that give no numbers, ``ModelError`` for ``rerank`` without embeddings.

        >>> pipe.generate("cat.mp4", seed=7, steps=2)
        Audio(8.00 s, 16000 Hz, mono)
        >>> frames = np.zeros((12, 48, 64, 3), np.uint8)
        >>> pipe(frames, fps=8, steps=2)
        Audio(1.50 s, 16000 Hz, mono)
        >>> pipe(["cat.mp4", Path("cat.mp4").read_bytes()], steps=2)
        [Audio(8.00 s, 16000 Hz, mono), Audio(8.00 s, 16000 Hz, mono)]
        """
        chosen = decode_settings(at_speed(self.config.decode, speed), steps, guidance, temperature, rerank)
        with stage_progress(progress) as report:
            sounds = self.generate_many(
                source,
                1,
                fps=fps,
                seed=seed,
                decode=chosen,
                timing=timing,
                keep=keep,
                seconds=seconds,
                finish=Finish(loudness, rate, channels, mix),
                progress=report,
            )
            return next(sounds)

    __call__ = generate

    def generate_many(
        self,
        source: Source | MediaFile,
        samples: int,
        *,
        fps: float | Fraction | None = None,
        seed: int = 0,
        decode: DecodeConfig | None = None,
        timing: Timing = None,
        cuts: Sequence[int] = (),
        keep: Sequence[float] | Sequence[Span] = (),
        sound: np.ndarray | None = None,
        features: Tensor | None = None,
        seconds: float | None = None,
        finish: Finish = DEFAULT_FINISH,
        progress: StageProgress | None = None,
    ) -> Iterator[Audio]:
        """``samples`` sounds for one file, one after another; the first is that of :meth:`generate`.

        The file is read once, and the first sound's timings hold that. A ``MediaFile`` stays open for the
        caller, and knows its packet times afterwards. ``timing`` is that of :meth:`generate`; ``cuts``: audio
        frames at which a shot begins, where windows begin anew; with a curve those that the film is seen to
        have. ``sound`` [S]: the audio that ``keep`` and ``finish.mix`` refer to, in place of the file's own.
        ``features``: those of :meth:`look_at`, where the file was looked at before. ``seconds`` as there.
        """
        report = progress or (lambda stage, done, total: None)
        timings: dict[str, float] = {}
        config = self.config.model
        decode = decode or self.config.decode
        check_value("seed", seed, int, 0, math.inf)
        check_value("samples", samples, int, 0, math.inf)
        check_value("seconds", seconds, float | None)
        check_config(decode, "decode.")
        if decode.num_candidates > 1:
            self.embedder.check_contrastive()  # before the work begins
        timing = choose(timing, self.config, self.predictor is not None)
        spans = as_spans(keep)
        if seconds is not None and not 0 < seconds <= MAX_VIDEO_SECONDS:
            raise SettingError(f"seconds must be above 0 and at most {MAX_VIDEO_SECONDS:g}, not {seconds}")

        with (
            as_media_file(source, fps) as file,
            FeatureReader(file, self.vision, config.fps, seed, timings, features, timing) as picture,
        ):
            # 1. Refuse what the header shows to be unusable, before anything is decoded.
            if file.kind == "audio" or file.nominal_seconds > MAX_VIDEO_SECONDS:
                sound_length(file.info)

            # 2. How long the sound is, and what the first window needs of the picture.
            info = picture.begin(config.video_length, partial(report, "features"))
            length = sound_length(info) if seconds is None else max(1, round(seconds * SAMPLE_RATE))
            if seconds is None:
                seconds = IMAGE_SECONDS if info.kind == "image" else info.seconds
            num_frames = padded_length(samples_to_frames(length), config)  # T
            num_video = num_video_frames(num_frames / FRAME_RATE, config.fps)
            told_by = record(timing, file.is_image)  # of the file as it is now
            motion = partial(picture.motion, partial(report, "motion"))
            told = resolve(timing, file, samples_to_frames(length), self.predictor, motion)
            curve = timing_channels(told, num_frames, self.device)
            cuts = cuts or picture.cuts()

            # 3. Tokens [K,T] of the audio that is kept, and where they are known [K,T].
            heard: AudioSource = partial(read_original, file)
            original: Original | None = None
            if sound is not None:
                info = replace(info, has_audio=True)
                heard = partial(slice_audio, sound)
                original = original_in_memory(sound)
            elif info.has_audio:
                original = original_of(file)
            kept = kept_samples(info, spans, length)
            with timed(timings, "codec"):
                num_codebooks = (self.fine or self.first).preset.model.num_codebooks
                silence = torch.zeros(num_codebooks, num_frames, dtype=torch.int64, device=self.device)
                tokens, known = known_tokens(self.codec, heard, kept, silence)

            for number in range(samples):
                # 4. The first stage: one sound, or of several candidates the nearest to the video.
                with timed(timings, "sampling"), products(self.chosen.precision):
                    generators = [noise(seed, number, n) for n in range(decode.num_candidates)]
                    part = partial(report_part, partial(report, "sampling"), number, samples)
                    candidates = coarse_candidates(
                        self.first,
                        tokens,
                        known,
                        picture.rows,
                        decode,
                        generators,
                        timing=curve,
                        cuts=cuts,
                        progress=part,
                    )
                    result = candidates[0]
                    if len(candidates) > 1:
                        network, seen = self.embedder.contrastive, picture.rows(0, num_video)
                        result = candidates[audio_video_similarity(network, candidates, seen).argmax()]

                # 5. The second stage, if there is one, adds the finer codebooks.
                if self.fine is not None:
                    with timed(timings, "refining"), products(self.chosen.precision):
                        generator = noise(seed, number, 0, stage=1)
                        part = partial(report_part, partial(report, "refining"), number, samples)
                        result = self.fine.refine(
                            result,
                            tokens,
                            known,
                            picture.rows,
                            generator,
                            timing=curve,
                            cuts=cuts,
                            progress=part,
                        )

                # 6. Tokens -> waveform [S], as the model has it; the kept audio goes back in as it was heard.
                with timed(timings, "codec"):
                    waveform = waveform_of(self.codec, result[:, : samples_to_frames(length)], length)
                    raw = waveform.copy() if kept else waveform
                    for start, stop in kept:
                        crossfade_into(raw, heard, start, stop)

                # 7. The same, to be used: at its loudness, beside the kept audio at its own rate.
                with timed(timings, "finish"):
                    finished = finish_sound(waveform, seconds, finish, original, spans)

                # 8. Each sound carries its own timings; the first those of steps 2 and 3 too.
                if number == 0:
                    judged = self.embedder.known(picture.all())
                    doubts = [] if judged is None or judged.is_known else [judged.note(self.name)]
                yield Audio(
                    finished.waveform,
                    finished.rate,
                    raw,
                    finished.level,
                    finished.gain,
                    dict(timings),
                    result,
                    picture.rows(0, num_video),
                    made_with(self.name, self.fingerprint, seed, number, decode, spans, finish)
                    | self.chosen.document()
                    | told_by
                    | {"gain_db": finished.gain},
                    (*doubts, *finished.notes),
                    judged,
                )
                timings.clear()

    def look_at(self, source: Source | MediaFile, *, seed: int = 0) -> Tensor:
        """The image features [F,dim] of a file, for :meth:`generate_many`; of an image those of one seed."""
        with (
            as_media_file(source) as file,
            FeatureReader(file, self.vision, self.config.model.fps, seed, {}) as picture,
        ):
            return picture.all()
