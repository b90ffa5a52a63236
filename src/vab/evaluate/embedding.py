"""Embeddings and class probabilities of the clips of a latent store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vab.config import Preset
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.inference.embedder import WINDOWS_PER_PASS, Scores, class_probabilities
from vab.inference.embeddings import Embeddings
from vab.models.heads import Classifier, Contrastive, Inputs, check_codebooks
from vab.training.batches import Batch, ClipBatches


def clips_with_sound(store: LatentStore, preset: Preset, split: str) -> ClipBatches:
    """The clips of a split, as a model of that preset takes them; ``StoreError`` if there is none."""
    clips = ClipBatches(store, preset, split)
    if not len(clips):
        raise StoreError(f"{store.directory} has no clip with sound in the split {split}")
    return clips


@torch.no_grad()
def embed_store(network: Contrastive, clips: ClipBatches) -> Embeddings:
    """Embed audio and video of every clip of a split, as they are paired there; NaN rows without video.

    Computed on the network's device.
    """
    ids: list[str] = []
    audio = []
    video = []
    for batch in _batches(clips, network):
        audio_embeddings = network.embed(batch.tokens, None, batch.token_padding)  # [B, D]
        video_embeddings = network.embed(None, batch.features, batch.video_padding)
        video_embeddings[~batch.has_video] = torch.nan
        ids += batch.ids
        audio.append(audio_embeddings.cpu().numpy())
        video.append(video_embeddings.cpu().numpy())
    return Embeddings(ids, np.concatenate(audio), np.concatenate(video), clips.labels())


@torch.no_grad()
def classify_store(
    network: Classifier, clips: ClipBatches, inputs: Inputs, loss: str
) -> tuple[list[str], Scores]:
    """Ids and class probabilities [n, N] of every clip of a split; NaN rows where an input is missing.

    Computed on the network's device.
    """
    ids: list[str] = []
    results = []
    for batch in _batches(clips, network):
        tensors = (batch.tokens, batch.features, batch.token_padding, batch.video_padding)
        scores = class_probabilities(network(*tensors, inputs=inputs), loss)  # [b, N]
        if inputs != "audio":
            scores[~batch.has_video] = torch.nan
        ids += batch.ids
        results.append(scores.cpu().numpy())
    return ids, np.concatenate(results)


def _batches(clips: ClipBatches, network: torch.nn.Module) -> Iterator[Batch]:
    vectors = torch.from_numpy(clips.store.codebook_vectors())
    check_codebooks(
        network, vectors, f"{clips.store.directory} holds the tokens of another codec than the model's"
    )
    device = next(network.parameters()).device
    for start in range(0, len(clips), WINDOWS_PER_PASS):
        yield clips.dev_batch(clips.rows[start : start + WINDOWS_PER_PASS]).to(device)
