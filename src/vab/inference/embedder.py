"""Embeddings and class scores, from a store of latents or straight from media (sections 3.4, 3.5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vab.codecs.codec import Codec, load_codec
from vab.config import FRAME_RATE, ModelConfig, Preset
from vab.data.extract import Decoded, encode, latents_meta, read_ahead, weights_fingerprint
from vab.data.manifest import Clip
from vab.data.shard import Latents, StoreMeta
from vab.errors import failure
from vab.inference.embeddings import Embedded
from vab.media.container import MediaError
from vab.media.reader import probe
from vab.models.heads import Classifier, Contrastive, load_finetuned
from vab.models.hub import CODEC, ModelError, find_model, read_config
from vab.utils.device import pick_device
from vab.utils.provenance import sha256
from vab.vision import VisionEncoder, load_vision

Inputs = Literal["audio", "video", "both"]
Scores = NDArray[np.float32]

SHORTEST = 1.0  # seconds; a shorter rest at the end of a long file is left out
AT_ONCE = 16  # windows in one pass, and decoded ahead


class Embedder:
    """A codec, an image encoder, and what fine-tuning made: files in, vectors or classes out.

    ``contrastive`` and ``classifier`` come with the presets they were taught with; a model may lack either.
    """

    def __init__(
        self,
        config: ModelConfig,
        codec: Codec,
        vision: VisionEncoder,
        contrastive: tuple[Contrastive, Preset] | None,
        classifier: tuple[Classifier, Preset] | None,
        device: str = "cpu",
    ) -> None:
        self.config = config
        self.device = pick_device(device)
        self.codec = codec.to(self.device)
        self.vision = vision.to(self.device)
        self._contrastive, self._classifier = contrastive, classifier
        for found in (contrastive, classifier):
            if found is not None:
                found[0].eval().requires_grad_(False).to(self.device)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        device: str = "auto",
        codec_path: str | Path | None = None,
        vision_path: str | Path | None = None,
        **hub: Any,
    ) -> Self:
        """The bundled model (None or ``vab-tiny``), that of a directory, or that of a Hub id.

        The directory is one that ``vab finetune`` made, or a model with such ones in its folders
        ``contrastive`` and ``classes``. Raises ``ModelError``, ``CodecError`` or ``VisionError``.
        """
        folder = find_model(source, **hub)
        model = read_config(folder).model
        found = load_finetuned(folder)
        if codec_path is None and (folder / CODEC).is_file():
            codec_path = folder
        codec, vision = load_codec(model.codec, codec_path), load_vision(model.vision, vision_path)
        return cls(model, codec, vision, found.contrastive, found.classifier, device=pick_device(device).type)

    @property
    def contrastive(self) -> Contrastive:
        """The network that embeds; ``ModelError`` if this model has none."""
        if self._contrastive is None:
            raise ModelError("this model gives no embeddings; make them with `vab finetune contrastive`")
        return self._contrastive[0]

    @property
    def classifier(self) -> tuple[Classifier, Preset]:
        """The network that classifies, and what it was taught; ``ModelError`` if this model has none."""
        if self._classifier is None:
            raise ModelError("this model knows no classes; teach it some with `vab finetune classify`")
        return self._classifier

    def fingerprint(self) -> str:
        """Hash of everything that embeddings depend on."""
        weights = (tensor.cpu().numpy().tobytes() for tensor in self.contrastive.state_dict().values())
        return sha256(weights_fingerprint(self.codec), weights_fingerprint(self.vision), *weights)

    def embed_file(self, path: str | Path) -> Embedded:
        """A vector for each window of each stream; ``MediaError`` if the file cannot be read."""
        result = next(self.embed_files([path]))[1]
        if isinstance(result, str):
            raise MediaError(result)
        return result

    def embed_files(self, paths: Iterable[str | Path]) -> Iterator[tuple[Path, Embedded | str]]:
        """Each file with its vectors, or the reason why there are none."""
        network = self.contrastive
        for path, clips, rows in self._files(paths):
            if isinstance(rows, str):
                yield path, rows
                continue
            try:
                audio, video = embed_latents(network, rows, self.device)
            except Exception as error:  # as below: one bad file must not end the others
                yield path, failure(path, error)
                continue
            found = [None if np.isnan(vectors).all() else vectors for vectors in (audio, video)]
            starts = np.array([clip.start for clip in clips])
            yield path, Embedded(starts, starts + [clip.seconds or 0.0 for clip in clips], *found)

    def classify_files(
        self, paths: Iterable[str | Path], inputs: Inputs | None = None
    ) -> Iterator[tuple[Path, tuple[Inputs, Scores] | str]]:
        """Each file with what was gone by and the probability [N] of each class, or the reason why not.

        Probabilities are means over the windows. ``inputs``: what to go by; None is all that the file has
        and the classifier was taught.
        """
        network, learned = self.classifier
        order: tuple[Inputs, ...] = ("both", "audio", "video") if inputs is None else (inputs,)
        for path, _, rows in self._files(paths):
            if isinstance(rows, str):
                yield path, rows
                continue
            there = {"audio": any(map(has_sound, rows)), "video": any(map(has_picture, rows))}
            missing = [name for name, found in there.items() if not found]
            there["both"] = not missing
            taught = [kind for kind in order if inputs or kind in learned.train.inputs]
            chosen = next((kind for kind in taught if there[kind]), None)
            if chosen is None:
                yield path, f"{path}: has no {' and no '.join(missing)}, which the classes are told from"
                continue
            scores = classify_latents(network, rows, chosen, learned.train.loss, self.device)
            yield path, (chosen, np.nanmean(scores, axis=0))

    def _files(self, paths: Iterable[str | Path]) -> Iterator[tuple[Path, list[Clip], list[Latents] | str]]:
        """Each file with its windows and their latents, or the reason. Decoding runs ahead of encoding."""
        seconds, fps = self.config.seconds, self.config.fps
        meta = latents_meta(self.codec, self.vision, seconds, fps)
        clips = (clip for path in paths for clip in windows(Path(path), seconds))
        decoded = read_ahead(clips, meta, self.vision.decode_size, AT_ONCE)
        size = 1 if self.device.type == "cpu" else AT_ONCE  # a CPU gains nothing from many at once

        def encoded() -> Iterator[tuple[Clip, Latents | str]]:
            while part := [pair for _, pair in zip(range(size), decoded, strict=False)]:
                good = [result for _, result in part if not isinstance(result, str)]
                made = iter(self._encode(good, meta))
                yield from ((clip, r if isinstance(r, str) else next(made)) for clip, r in part)

        file: list[tuple[Clip, Latents | str]] = []
        for pair in encoded():
            if pair[0].start == 0 and file:
                yield _together(file)
                file = []
            file.append(pair)
        if file:
            yield _together(file)

    def _encode(self, batch: list[Decoded], meta: StoreMeta) -> list[Latents | str]:
        """Latents of decoded clips. If they fail together, each is tried alone, or fails with a reason."""
        try:
            return list(encode(batch, self.codec, self.vision, meta, self.device))
        except Exception as error:
            if len(batch) > 1:
                return [result for item in batch for result in self._encode([item], meta)]
            clip = batch[0].clip
            return [failure(clip.audio or clip.video or clip.id, error)]


def _together(pairs: list[tuple[Clip, Latents | str]]) -> tuple[Path, list[Clip], list[Latents] | str]:
    """The windows of one file; the first reason why not, if one fails."""
    clips, results = [clip for clip, _ in pairs], [result for _, result in pairs]
    path = clips[0].audio or clips[0].video
    assert path is not None
    wrong = next((result for result in results if isinstance(result, str)), None)
    return path, clips, wrong or [result for result in results if isinstance(result, Latents)]


def windows(path: Path, seconds: float) -> list[Clip]:
    """The windows of a file, one after another, as clips ``name#0``, ``name#1`` ...

    A rest shorter than a second is left out. A file that cannot be read is one clip, which then fails.
    """
    try:
        info = probe(path)
    except Exception:
        return [Clip(f"{path.name}#0", path, None)]
    if info.kind == "image":
        return [Clip(f"{path.name}#0", None, path, 0.0, seconds)]
    sound = path if info.has_audio or info.kind == "audio" else None
    picture = None if info.kind == "audio" else path
    starts = np.arange(0.0, max(info.seconds - min(SHORTEST, seconds), 1e-9), seconds)
    return [
        Clip(f"{path.name}#{n}", sound, picture, start, min(seconds, info.seconds - start) or None)
        for n, start in enumerate(starts.tolist())
    ]


def has_sound(row: Latents) -> bool:
    """Whether a clip has sound of its own."""
    return row.tokens is not None and row.real_tokens != 0


def has_picture(row: Latents) -> bool:
    """Whether a clip has a picture of its own."""
    return row.features is not None and row.real_features != 0


@torch.no_grad()
def embed_latents(
    network: Contrastive, rows: Sequence[Latents], device: torch.device
) -> tuple[Scores, Scores]:
    """Unit vectors of sounds and pictures, float32 [n, D] each; NaN rows where a stream is absent."""
    width = network.trunk.config.hidden_dim
    audio, video = (np.full((len(rows), width), np.nan, np.float32) for _ in range(2))
    for out, there, column in ((audio, has_sound, 0), (video, has_picture, 1)):
        chosen = [n for n, row in enumerate(rows) if there(row)]
        for start in range(0, len(chosen), AT_ONCE):
            part = chosen[start : start + AT_ONCE]
            tensors = _tensors(network.trunk.config, [rows[n] for n in part], device)
            tokens, features = (tensors[0], None) if column == 0 else (None, tensors[1])
            out[part] = network.embed(tokens, features, tensors[2 + column]).cpu().numpy()
    return audio, video


@torch.no_grad()
def audio_video_similarity(network: Contrastive, tokens: Tensor, features: Tensor) -> Tensor:
    """How near each sound is to the picture: cosines [n], the mean over the windows.

    tokens [n,K,T] and features [F,dim] of one clip, which both start at its first moment.
    """
    config = network.trunk.config
    found = []
    for start in range(0, tokens.shape[2], config.audio_length):
        first = round(start / FRAME_RATE * config.fps)
        seen = features[None, first : first + config.video_length]
        if not len(seen[0]):
            break
        heard = network.embed(tokens[:, : config.num_codebooks, start : start + config.audio_length], None)
        found.append(heard @ network.embed(None, seen)[0])
    return torch.stack(found).mean(0)


@torch.no_grad()
def classify_latents(
    network: Classifier, rows: Sequence[Latents], inputs: Inputs, loss: str, device: torch.device
) -> Scores:
    """Probabilities [n, N] of the classes; NaN rows where what ``inputs`` asks for is absent."""
    out = np.full((len(rows), network.head.out_features), np.nan, np.float32)
    wanted = {"audio": (has_sound,), "video": (has_picture,), "both": (has_sound, has_picture)}[inputs]
    chosen = [n for n, row in enumerate(rows) if all(there(row) for there in wanted)]
    for start in range(0, len(chosen), AT_ONCE):
        part = chosen[start : start + AT_ONCE]
        tensors = _tensors(network.trunk.config, [rows[n] for n in part], device)
        out[part] = _probabilities(network, inputs, loss, *tensors).cpu().numpy()
    return out


def _probabilities(
    network: Classifier,
    inputs: Inputs,
    loss: str,
    tokens: Tensor,
    features: Tensor,
    token_padding: Tensor,
    feature_padding: Tensor,
) -> Tensor:
    if inputs == "audio":
        logits = network(tokens, None, token_padding, None)
    elif inputs == "video":
        logits = network(None, features, None, feature_padding)
    else:
        logits = network(tokens, features, token_padding, feature_padding)
    return logits.float().softmax(-1) if loss == "ce" else logits.float().sigmoid()


def _tensors(
    config: ModelConfig, rows: Sequence[Latents], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """tokens [n,K,T], features [n,F,dim] and their paddings; a stream that is absent is zeros."""
    frames, places = config.audio_length, config.video_length
    tokens = np.zeros((len(rows), config.num_codebooks, frames), np.int64)
    features = np.zeros((len(rows), places, config.vision_dim), np.float32)
    paddings = [np.zeros((len(rows), n), bool) for n in (frames, places)]
    for n, row in enumerate(rows):
        if row.tokens is not None:
            tokens[n] = row.tokens[: config.num_codebooks]
            paddings[0][n, frames if row.real_tokens is None else row.real_tokens :] = True
        if row.features is not None:
            features[n] = row.features
            paddings[1][n, places if row.real_features is None else row.real_features :] = True
    values = (tokens, features, *paddings)
    first, second, third, fourth = (torch.from_numpy(value).to(device) for value in values)
    return first, second, third, fourth
