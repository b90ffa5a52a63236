"""Embeddings and class probabilities of media files and of latents (sections 3.4, 3.5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vab.codecs.codec import Codec, load_codec
from vab.config import FRAME_RATE, ModelConfig, Preset
from vab.data.extraction.decoding import read_ahead
from vab.data.extraction.encoding import Decoded, encode, latents_meta, weights_fingerprint
from vab.data.manifest import Clip
from vab.data.shard import Latents, StoreMeta
from vab.errors import failure
from vab.inference.embeddings import Embedded
from vab.inference.parts import check_codec, place, place_vision, rows_at_once
from vab.media.container import MediaError
from vab.media.reader import probe
from vab.media.sources.given import InMemory
from vab.models.heads import Classifier, Contrastive, Finetuned, Inputs, load_finetuned
from vab.models.hub import ModelError, codec_source, find_model, read_config
from vab.models.known import Known
from vab.utils.device import Chosen, Device, DType, pick_device, pick_precision, products
from vab.utils.provenance import sha256
from vab.utils.remote import RemoteFile
from vab.vision import VisionEncoder, load_vision

Scores = NDArray[np.float32]

MIN_WINDOW_SECONDS = 1.0  # a shorter rest at the end of a long file is left out
WINDOWS_PER_PASS = 16  # also decoded ahead


class Classified(NamedTuple):
    """What a classifier makes of a file."""

    inputs: Inputs  # the modality that was used
    scores: Scores  # probabilities [N] of the classes, means over the windows
    known: Known | None  # whether the model knows what the picture shows; None if it cannot tell


class Embedder:
    """A codec, an image encoder and the fine-tuned networks: files in, vectors or classes out.

    A model may lack the contrastive network or the classifier.
    """

    def __init__(
        self,
        config: ModelConfig,
        codec: Codec,
        vision: VisionEncoder,
        finetuned: Finetuned,
        device: Device = "cpu",
        dtype: DType = None,
    ) -> None:
        self.config = config
        self.device = pick_device(device)
        self.chosen = pick_precision(dtype, self.device)
        self.codec = codec.to(self.device)
        self.vision = place_vision(vision, self.chosen, self.device)
        self.finetuned = finetuned
        self._fingerprint: str | None = None
        if finetuned.classifier is not None:
            place(finetuned.classifier[0], self.device, self.chosen.dtype)

    def moved(self, device: torch.device, chosen: Chosen) -> Embedder:
        """The same on another device or in another precision, with the fingerprint that it had."""
        other = Embedder(self.config, self.codec, self.vision, self.finetuned, device, chosen)
        other._fingerprint = self._fingerprint
        return other

    def beside(self, chosen: Chosen) -> Embedder:
        """Another one in this precision, with copies of what a precision changes: this one stays as it is.

        To be made before this one embeds, while its weights are those that were loaded.
        """
        parts = (self.codec, copy.copy(self.vision), copy.deepcopy(self.finetuned))
        other = Embedder(self.config, *parts, self.device, chosen)
        other._fingerprint = self._fingerprint
        return other

    def known(self, features: Tensor) -> Known | None:
        """Whether the model knows what a clip of image features [F,dim] shows, on this device.

        None for a model that cannot tell: one without a classifier of pictures and its statistics.
        """
        with products(self.chosen.precision):
            return judge_picture(self.finetuned, features)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: Device = "auto",
        dtype: DType = None,
        codec_path: str | Path | None = None,
        vision_path: str | Path | None = None,
        **hub: Any,
    ) -> Self:
        """The bundled model (None or ``vab-tiny``), that of a directory, or that of a Hub id.

        ``dtype`` is the precision, as for ``VABPipeline.from_pretrained``.
        The directory is one that ``vab finetune`` made, or a model with such ones in its folders
        ``contrastive`` and ``classes``. Raises ``ModelError``, ``CodecError`` or ``VisionError``.
        """
        folder = find_model(source, **hub)
        model = read_config(folder).model
        finetuned = load_finetuned(folder)
        codec = load_codec(model.codec, codec_source(folder, codec_path))
        for pair in (finetuned.contrastive, finetuned.classifier):
            if pair is not None:
                check_codec(pair[0], codec)
        vision = load_vision(model.vision, vision_path)
        return cls(model, codec, vision, finetuned, pick_device(device), dtype)

    def check_contrastive(self) -> None:
        """``ModelError`` if this model gives no embeddings."""
        if self.finetuned.contrastive is None:
            raise ModelError("this model gives no embeddings; make them with `vab finetune contrastive`")

    @cached_property
    def contrastive(self) -> Contrastive:
        """The network that embeds, ready for it; ``ModelError`` if this model has none."""
        self.check_contrastive()
        assert self.finetuned.contrastive is not None
        if self.chosen.is_narrow:
            self.fingerprint()  # of the weights as they were loaded
        network = self.finetuned.contrastive[0]
        place(network, self.device, self.chosen.dtype)
        return network

    @property
    def classifier(self) -> tuple[Classifier, Preset]:
        """The network that classifies, and the preset of its training; ``ModelError`` if there is none."""
        if self.finetuned.classifier is None:
            raise ModelError("this model knows no classes; teach it some with `vab finetune classify`")
        return self.finetuned.classifier

    def fingerprint(self) -> str:
        """Hash of all weights that embeddings depend on: codec, image encoder, contrastive network.

        It is the same in each precision. ``ModelError`` if this model gives no embeddings.
        """
        if self._fingerprint is None:
            self.check_contrastive()
            assert self.finetuned.contrastive is not None
            state = self.finetuned.contrastive[0].state_dict().values()
            weights = (tensor.float().cpu().numpy().tobytes() for tensor in state)
            self._fingerprint = sha256(
                weights_fingerprint(self.codec), weights_fingerprint(self.vision), *weights
            )
        return self._fingerprint

    def embed_file(self, source: str | Path | RemoteFile | InMemory) -> Embedded:
        """A vector for each window of each stream; ``MediaError`` if the file cannot be read."""
        result = next(self.embed_files([source]))[1]
        if isinstance(result, str):
            raise MediaError(result)
        return result

    def embed_files(
        self, sources: Iterable[str | Path | RemoteFile | InMemory]
    ) -> Iterator[tuple[Path, Embedded | str]]:
        """Each file with its vectors, or the reason why there are none."""
        network = self.contrastive  # fails here, before any file is read, if there is none
        for path, clips, rows in self._files(sources):
            if isinstance(rows, str):
                yield path, rows
                continue
            try:
                with products(self.chosen.precision):
                    audio, video = embed_latents(network, rows, self.device)
            except Exception as error:  # as below: one bad file must not end the others
                yield path, failure(path, error)
                continue
            # A stream without any window is absent, not a table of NaN.
            streams = [None if np.isnan(vectors).all() else vectors for vectors in (audio, video)]
            starts = np.array([clip.start for clip in clips])
            yield path, Embedded(starts, starts + [clip.seconds or 0.0 for clip in clips], *streams)

    def classify_files(
        self, sources: Iterable[str | Path | RemoteFile | InMemory], inputs: Inputs | None = None
    ) -> Iterator[tuple[Path, Classified | str]]:
        """Yield each file with what the classifier makes of it, or with an error message.

        ``inputs``: the modality to use; None is all that the file has and the classifier was trained on.
        """
        network, preset = self.classifier
        # In order of preference.
        order: tuple[Inputs, ...] = ("both", "audio", "video") if inputs is None else (inputs,)
        for path, _, rows in self._files(sources):
            if isinstance(rows, str):
                yield path, rows
                continue
            # The first kind that this file has and that the classifier can use.
            present = {"audio": any(map(has_audio, rows)), "video": any(map(has_video, rows))}
            missing = [name for name, is_present in present.items() if not is_present]
            present["both"] = not missing
            usable = [kind for kind in order if inputs or kind in preset.train.inputs]
            chosen = next((kind for kind in usable if present[kind]), None)
            if chosen is None:
                yield path, f"{path}: has no {' and no '.join(missing)}, which the classes are told from"
                continue
            with products(self.chosen.precision):
                scores = classify_latents(network, rows, chosen, preset.train.loss, self.device)
            # A sound alone is not judged: the statistics are of pictures.
            known = None
            if chosen != "audio":
                seen = [row.features[: row.real_features] for row in rows if row.features is not None]
                known = self.known(torch.from_numpy(np.concatenate(seen)).to(self.device, torch.float32))
            yield path, Classified(chosen, np.nanmean(scores, axis=0), known)

    def _files(
        self, sources: Iterable[str | Path | RemoteFile | InMemory]
    ) -> Iterator[tuple[Path, list[Clip], list[Latents] | str]]:
        """Each file with its windows and their latents, or an error. Decoding runs ahead of encoding."""
        # 1. Cut files into windows and decode them in worker threads.
        seconds = self.config.seconds
        meta = latents_meta(self.codec, self.vision, seconds, self.config.fps)
        clips = (clip for source in sources for clip in windows(source, seconds))
        decoded = read_ahead(clips, meta, self.vision.recipe, WINDOWS_PER_PASS)

        # 2. Encode, and gather the windows of each file: a window that starts at 0 begins the next.
        file: list[tuple[Clip, Latents | str]] = []
        for pair in self._encode_batches(decoded, meta):
            if pair[0].start == 0 and file:
                yield _merge_windows(file)
                file = []
            file.append(pair)
        if file:
            yield _merge_windows(file)

    def _encode_batches(
        self, decoded: Iterator[tuple[Clip, Decoded | str]], meta: StoreMeta
    ) -> Iterator[tuple[Clip, Latents | str]]:
        """Latents of decoded clips, in their order; errors are passed on."""
        batch_size = 1 if self.device.type == "cpu" else WINDOWS_PER_PASS  # a CPU gains nothing from many
        while batch := list(islice(decoded, batch_size)):
            valid = [result for _, result in batch if not isinstance(result, str)]
            encoded = iter(self._encode(valid, meta))
            for clip, result in batch:
                yield clip, result if isinstance(result, str) else next(encoded)

    def _encode(self, batch: list[Decoded], meta: StoreMeta) -> list[Latents | str]:
        """Latents of decoded clips. If they fail together, each is tried alone, or fails with a reason."""
        try:
            return list(encode(batch, self.codec, self.vision, meta, self.device))
        except Exception as error:
            # One bad clip, or a batch too large for the memory: find out which, one by one.
            if len(batch) > 1:
                return [result for item in batch for result in self._encode([item], meta)]
            clip = batch[0].clip
            return [failure(clip.audio or clip.video or clip.id, error)]


def _merge_windows(pairs: list[tuple[Clip, Latents | str]]) -> tuple[Path, list[Clip], list[Latents] | str]:
    """One file from its windows: path, clips and their latents, or the first error."""
    clips = [clip for clip, _ in pairs]
    path = Path(str(clips[0].audio or clips[0].video))
    rows = []
    for _, result in pairs:
        if isinstance(result, str):
            return path, clips, result
        rows.append(result)
    return path, clips, rows


def windows(source: str | Path | RemoteFile | InMemory, seconds: float) -> list[Clip]:
    """The windows of a file, one after another, as clips ``#0``, ``#1`` ...

    A rest shorter than a second is left out. A file that cannot be read is one clip, which then fails.
    """
    memory = source if isinstance(source, InMemory) else None
    named = source.name if isinstance(source, InMemory) else source
    path: Path | RemoteFile = named if isinstance(named, RemoteFile) else Path(named)
    # No name in the id: it seeds the crop of an image, which is the same image under any name.
    clip = partial(Clip, memory=memory)
    try:
        info = probe(source)
    except Exception:
        return [clip("#0", path, None)]
    if info.kind == "image":
        return [clip("#0", None, path, 0.0, seconds)]
    audio = path if info.has_audio or info.kind == "audio" else None
    video = None if info.kind == "audio" else path
    # At least one window, however short the file is.
    starts = np.arange(0.0, max(info.seconds - min(MIN_WINDOW_SECONDS, seconds), 1e-9), seconds)
    return [
        clip(f"#{n}", audio, video, start, min(seconds, info.seconds - start) or None)
        for n, start in enumerate(starts.tolist())
    ]


def has_audio(row: Latents) -> bool:
    """True if a clip has audio of its own."""
    return row.tokens is not None and row.real_tokens != 0


def has_video(row: Latents) -> bool:
    """True if a clip has video of its own."""
    return row.features is not None and row.real_features != 0


@torch.no_grad()
def embed_latents(
    network: Contrastive, rows: Sequence[Latents], device: torch.device
) -> tuple[Scores, Scores]:
    """Unit vectors of audio and of video, float32 [n,D] each; NaN rows where a stream is absent."""
    config = network.trunk.config
    audio = np.full((len(rows), config.hidden_dim), np.nan, np.float32)
    video = audio.copy()
    for part in _passes(network, rows, has_audio):
        tokens, _, padding, _ = _tensors(config, [rows[n] for n in part], device)
        audio[part] = network.embed(tokens, None, padding).cpu().numpy()
    for part in _passes(network, rows, has_video):
        _, features, _, padding = _tensors(config, [rows[n] for n in part], device)
        video[part] = network.embed(None, features, padding).cpu().numpy()
    return audio, video


def _passes(
    network: nn.Module, rows: Sequence[Latents], *present: Callable[[Latents], bool]
) -> Iterator[list[int]]:
    """The numbers of the rows that have all of ``present``, as many at a time as go through the network."""
    # Absent streams never reach the network: the result would be a vector of nothing.
    numbers = [n for n, row in enumerate(rows) if all(is_present(row) for is_present in present)]
    size = rows_at_once(network, WINDOWS_PER_PASS)
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


@torch.no_grad()
def judge_picture(finetuned: Finetuned, features: Tensor) -> Known | None:
    """Whether a model knows what a clip of image features [F,dim] shows; None if it cannot tell."""
    if finetuned.known is None or finetuned.classifier is None:
        return None
    network, preset = finetuned.classifier
    # Whole windows at once, and the rest by itself: no padding, which would count as picture.
    num_video = preset.model.video_length
    whole = len(features) // num_video * num_video
    windows = [features[:whole].unflatten(0, (-1, num_video)), features[None, whole:]]
    parts = [network.picture_vectors(part) for part in windows if part.numel()]
    vectors, logits = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return finetuned.known.judge(preset.classes, vectors, logits)


@torch.no_grad()
def audio_video_similarity(network: Contrastive, tokens: Tensor, features: Tensor) -> Tensor:
    """Cosine similarity [n] of each of n sounds with the video, the mean over the windows.

    tokens [n,K,T] and features [F,dim] of one clip, which both start at its first moment.
    """
    config = network.trunk.config
    similarities = []
    for start in range(0, tokens.shape[2], config.audio_length):
        # Windows of both streams over the same time: [n,K,T] and [1,F,dim].
        first = round(start / FRAME_RATE * config.fps)
        video_window = features[None, first : first + config.video_length]
        audio_window = tokens[:, : config.num_codebooks, start : start + config.audio_length]
        # Tokens are padded to whole windows, features may end before the last.
        if not video_window.shape[1]:
            break
        # [n,D] @ [D] -> [n]
        parts = audio_window.split(rows_at_once(network, len(tokens)))
        vectors = torch.cat([network.embed(part, None) for part in parts])
        similarities.append(vectors @ network.embed(None, video_window)[0])
    return torch.stack(similarities).mean(0)


@torch.no_grad()
def classify_latents(
    network: Classifier, rows: Sequence[Latents], inputs: Inputs, loss: str, device: torch.device
) -> Scores:
    """Probabilities [n,N] of the classes; NaN rows where what ``inputs`` asks for is absent."""
    scores = np.full((len(rows), network.head.out_features), np.nan, np.float32)
    needed = {"audio": (has_audio,), "video": (has_video,), "both": (has_audio, has_video)}[inputs]
    for part in _passes(network, rows, *needed):
        logits = network(*_tensors(network.trunk.config, [rows[n] for n in part], device), inputs=inputs)
        scores[part] = class_probabilities(logits, loss).cpu().numpy()
    return scores


def class_probabilities(logits: Tensor, loss: str) -> Tensor:
    """Probabilities of logits [n,N]: softmax for one label a clip (``loss`` "ce"), else sigmoid."""
    return logits.float().softmax(-1) if loss == "ce" else logits.float().sigmoid()


def _tensors(
    config: ModelConfig, rows: Sequence[Latents], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens [n,K,T], features [n,F,dim] and their paddings [n,T], [n,F]; an absent stream is zeros."""
    num_audio = config.audio_length
    num_video = config.video_length
    tokens = torch.zeros(len(rows), config.num_codebooks, num_audio, dtype=torch.int64)
    features = torch.zeros(len(rows), num_video, config.vision_dim)
    token_padding = torch.zeros(len(rows), num_audio, dtype=torch.bool)
    feature_padding = torch.zeros(len(rows), num_video, dtype=torch.bool)
    # Stored as uint16 and float16; the network wants int64 and float32.
    for n, row in enumerate(rows):
        if row.tokens is not None:
            tokens[n] = torch.from_numpy(row.tokens[: config.num_codebooks].astype(np.int64))
            token_padding[n, num_audio if row.real_tokens is None else row.real_tokens :] = True
        if row.features is not None:
            features[n] = torch.from_numpy(row.features.astype(np.float32))
            feature_padding[n, num_video if row.real_features is None else row.real_features :] = True
    return tokens.to(device), features.to(device), token_padding.to(device), feature_padding.to(device)
