"""Whether a picture shows something that the classes were learned from (out-of-distribution detection).

The score of a picture is its expected cosine: the cosine between its vector in the classifier's own space and
the mean vector of each class, weighted by the classifier's probability of that class. It is small for what
the classifier is not sure of (Hendrycks and Gimpel, ICLR 2017) and for what lies far from all it has learned
(Lee et al., NeurIPS 2018).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from vab.models.hub import KNOWN
from vab.utils.files import save_tensors

if TYPE_CHECKING:
    from vab.models.heads import Classifier

NUM_NEAREST = 3


@dataclass(frozen=True)
class Known:
    """How well a model knows what a clip shows, by its picture alone."""

    score: float  # expected cosine, -1 to 1
    threshold: float  # what scores less may be unknown
    nearest: tuple[tuple[str, float], ...]  # classes and their cosines, the nearest first

    @property
    def is_known(self) -> bool:
        """False if the clip may show nothing that the model learned."""
        return self.score >= self.threshold

    def document(self) -> dict[str, Any]:
        """The same for JSON: is_known, score, threshold, nearest as pairs [class, cosine]."""
        return {"is_known": self.is_known, **asdict(self)}

    def note(self, model: str) -> str:
        """The sentence for the user about a clip that may be unknown."""
        nearest = self.nearest[0][0].replace("_", " ")
        return (
            f"{model} may not know what this shows (score {self.score:.2f}, below {self.threshold:.2f}; "
            f"nearest: {nearest}): `vab models` lists what it learned"
        )


@dataclass(frozen=True)
class ClassStatistics:
    """What the pictures of each class look like to a classifier, and how near is near enough."""

    means: Tensor  # float32 [N,D], length one; zeros for a class that was learned without pictures
    threshold: float

    def scores(self, vectors: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Expected cosines [B] and the cosines [B,N] of pictures, from :func:`picture_vectors`."""
        cosines = vectors @ self.means.to(vectors.device).T
        # A class without pictures has the cosine 0: probability that goes there counts for nothing.
        return (logits.softmax(-1) * cosines).sum(-1), cosines

    @torch.no_grad()
    def judge(self, network: Classifier, classes: tuple[str, ...], features: Tensor) -> Known:
        """A clip of image features [F,dim]: means over its windows, which may be of any length."""
        # Whole windows at once, and the rest by itself: no padding, which would count as picture.
        num_video = network.trunk.config.video_length
        whole = len(features) // num_video * num_video
        windows = [features[:whole].unflatten(0, (-1, num_video)), features[None, whole:]]
        parts = [self.scores(*picture_vectors(network, part)) for part in windows if part.numel()]
        scores, cosines = (torch.cat(columns) for columns in zip(*parts, strict=True))
        mean = cosines.mean(0)
        order = [n for n in mean.argsort(descending=True).tolist() if self.means[n].any()]
        nearest = tuple((classes[n], round(float(mean[n]), 3)) for n in order[:NUM_NEAREST])
        return Known(round(float(scores.mean()), 3), round(self.threshold, 3), nearest)

    def save(self, folder: Path) -> None:
        """Write them beside a classifier, where ``load_finetuned`` finds them; means in half precision."""
        save_tensors(folder / KNOWN, {"means": self.means.half(), "threshold": torch.tensor(self.threshold)})


def picture_vectors(
    network: Classifier, features: Tensor, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Unit vectors [B,D] in the classifier's space, and logits [B,N], of features [B,F,dim]."""
    pooled = network.trunk.pooled(None, features, feature_padding=padding)
    return functional.normalize(pooled.float(), dim=-1), network.head(pooled).float()
