"""Embeddings and class probabilities of the clips of a latent store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from vab.config import Preset
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.inference.embedder import WINDOWS_PER_PASS, Scores, class_probabilities
from vab.inference.embeddings import Embeddings
from vab.inference.parts import place, rows_at_once
from vab.models.heads import Classifier, Contrastive, Inputs, check_codebooks, load_finetuned
from vab.models.hub import ModelError, read_config
from vab.training.batches import Batch, ClipBatches
from vab.utils.device import FLOAT32, Chosen, products
from vab.utils.processes import Worker, in_order


def clips_with_sound(store: LatentStore, preset: Preset, split: str) -> ClipBatches:
    """The clips of a split, as a model of that preset takes them; ``StoreError`` if there is none."""
    clips = ClipBatches(store, preset, split)
    if not len(clips):
        raise StoreError(f"{store.directory} has no clip with sound in the split {split}")
    return clips


@dataclass(frozen=True)
class Measured:
    """A fine-tuned model and the clips it is measured on, for each process to open."""

    model: Path  # a model directory
    store: Path
    split: str
    precision: Chosen = FLOAT32

    def clips(self) -> ClipBatches:
        """As :func:`clips_with_sound`."""
        return clips_with_sound(LatentStore.open(self.store), read_config(self.model), self.split)


def embed_store_on(devices: Sequence[torch.device], measured: Measured) -> Embeddings:
    """:func:`embed_store`, in a process for each device, each with its own copy of the network.

    ``ModelError`` for a model that gives no embeddings.
    """
    clips = measured.clips()
    parts = in_order(_embed_part, measured, _starts(clips), devices)
    return _embeddings(parts, clips)


def embed_store(network: Contrastive, clips: ClipBatches) -> Embeddings:
    """Embed audio and video of every clip of a split, as they are paired there; NaN rows without video.

    Computed on the network's device.
    """
    return _embeddings(_embed(network, clips, _starts(clips)), clips)


def _embed_part(
    worker: Worker, measured: Measured, starts: Sequence[int]
) -> Iterator[tuple[list[str], Scores, Scores]]:
    found = load_finetuned(measured.model).contrastive
    if found is None:
        reason = "gives no embeddings; make them with `vab finetune contrastive`"
        raise ModelError(f"{measured.model}: {reason}")
    place(found[0], worker.device, measured.precision.dtype)
    with products(measured.precision.precision):
        yield from _embed(found[0], measured.clips(), starts)


@torch.no_grad()
def _embed(
    network: Contrastive, clips: ClipBatches, starts: Sequence[int]
) -> Iterator[tuple[list[str], Scores, Scores]]:
    """Ids, vectors of audio and of video [B, D] of each batch."""
    for batch in _batches(clips, network, starts):
        audio_embeddings = network.embed(batch.tokens, None, batch.token_padding)  # [B, D]
        video_embeddings = network.embed(None, batch.features, batch.video_padding)
        video_embeddings[~batch.has_video] = torch.nan
        yield batch.ids, audio_embeddings.cpu().numpy(), video_embeddings.cpu().numpy()


def _embeddings(parts: Iterable[tuple[list[str], Scores, Scores]], clips: ClipBatches) -> Embeddings:
    ids, audio, video = zip(*parts, strict=True)
    return Embeddings(list(chain(*ids)), np.concatenate(audio), np.concatenate(video), clips.labels())


def classify_store_on(
    devices: Sequence[torch.device], measured: Measured, inputs: Inputs
) -> tuple[list[str], Scores]:
    """:func:`classify_store`, in a process for each device, each with its own copy of the network."""
    parts = in_order(_classify_part, (measured, inputs), _starts(measured.clips()), devices)
    return _scores(parts)


def classify_store(
    network: Classifier, clips: ClipBatches, inputs: Inputs, loss: str
) -> tuple[list[str], Scores]:
    """Ids and class probabilities [n, N] of every clip of a split; NaN rows where an input is missing.

    Computed on the network's device.
    """
    return _scores(_classify(network, clips, inputs, loss, _starts(clips)))


def _classify_part(
    worker: Worker, common: tuple[Measured, Inputs], starts: Sequence[int]
) -> Iterator[tuple[list[str], Scores]]:
    measured, inputs = common
    found = load_finetuned(measured.model).classifier
    assert found is not None  # whoever chose the inputs knows
    network, preset = found
    place(network, worker.device, measured.precision.dtype)
    with products(measured.precision.precision):
        yield from _classify(network, measured.clips(), inputs, preset.train.loss, starts)


@torch.no_grad()
def _classify(
    network: Classifier, clips: ClipBatches, inputs: Inputs, loss: str, starts: Sequence[int]
) -> Iterator[tuple[list[str], Scores]]:
    """Ids and class probabilities [B, N] of each batch."""
    for batch in _batches(clips, network, starts):
        tensors = (batch.tokens, batch.features, batch.token_padding, batch.video_padding)
        scores = class_probabilities(network(*tensors, inputs=inputs), loss)  # [B, N]
        if inputs != "audio":
            scores[~batch.has_video] = torch.nan
        yield batch.ids, scores.cpu().numpy()


def _scores(parts: Iterable[tuple[list[str], Scores]]) -> tuple[list[str], Scores]:
    ids, scores = zip(*parts, strict=True)
    return list(chain(*ids)), np.concatenate(scores)


def _starts(clips: ClipBatches) -> Sequence[int]:
    """Where batches begin: they are the same ones, whoever computes them."""
    return range(0, len(clips), WINDOWS_PER_PASS)


def _batches(clips: ClipBatches, network: torch.nn.Module, starts: Sequence[int]) -> Iterator[Batch]:
    vectors = torch.from_numpy(clips.store.codebook_vectors())
    check_codebooks(
        network, vectors, f"{clips.store.directory} holds the tokens of another codec than the model's"
    )
    device = next(network.parameters()).device
    for start in starts:
        batch = clips.dev_batch(clips.rows[start : start + WINDOWS_PER_PASS]).to(device)
        yield from batch.split(-(-len(batch.ids) // rows_at_once(network, WINDOWS_PER_PASS)))
