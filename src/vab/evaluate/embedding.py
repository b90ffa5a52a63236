"""Embeddings and class probabilities of the clips of a latent store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vab.inference.embedder import AT_ONCE, Inputs, Scores, _probabilities
from vab.inference.embeddings import Embeddings
from vab.models.heads import Classifier, Contrastive
from vab.training.batches import Batch, ClipBatches


@torch.no_grad()
def embed_store(network: Contrastive, clips: ClipBatches) -> Embeddings:
    """Sound and picture of every clip of a split, as they are paired there; NaN rows without a picture.

    Computed where the network is.
    """
    ids, audio, video = [], [], []
    for batch in _batches(clips, network):
        seen = ~batch.feature_padding.all(1)
        padding = batch.feature_padding & seen[:, None]
        heard = network.embed(batch.tokens, None, batch.token_padding)
        shown = network.embed(None, batch.features, padding)
        shown[~seen] = torch.nan
        ids += batch.ids
        audio.append(heard.cpu().numpy())
        video.append(shown.cpu().numpy())
    return Embeddings(ids, np.concatenate(audio), np.concatenate(video), clips.labels())


@torch.no_grad()
def classify_store(
    network: Classifier, clips: ClipBatches, inputs: Inputs, loss: str
) -> tuple[list[str], Scores]:
    """Ids and class probabilities [n, N] of every clip of a split; NaN rows without a picture to go by.

    Computed where the network is.
    """
    ids, found = [], []
    for batch in _batches(clips, network):
        seen = ~batch.feature_padding.all(1)
        padding = batch.feature_padding & seen[:, None]
        tensors = (batch.tokens, batch.features, batch.token_padding, padding)
        scores = _probabilities(network, inputs, loss, *tensors)
        if inputs != "audio":
            scores[~seen] = torch.nan
        ids += batch.ids
        found.append(scores.cpu().numpy())
    return ids, np.concatenate(found)


def _batches(clips: ClipBatches, network: torch.nn.Module) -> Iterator[Batch]:
    device = next(network.parameters()).device
    for start in range(0, len(clips), AT_ONCE):
        yield clips.dev_batch(clips.rows[start : start + AT_ONCE]).to(device)
