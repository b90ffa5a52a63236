"""Whether a picture shows something that the classes were learned from (out-of-distribution detection).

The score of a picture is its expected cosine: the cosine between its vector in the classifier's own space and
the mean vector of each class, weighted by the classifier's probability of that class. It is small for what
the classifier is not sure of (Hendrycks and Gimpel, ICLR 2017) and for what lies far from all it has learned
(Lee et al., NeurIPS 2018).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vab.models.hub import KNOWN
from vab.utils.files import save_tensors

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
            f"nearest: {nearest}); vab models lists what it learned"
        )


@dataclass(frozen=True)
class ClassStatistics:
    """What the pictures of each class look like to a classifier, and how near is near enough."""

    means: Tensor  # float32 [N,D], length one; zeros for a class that was learned without pictures
    threshold: float

    def scores(self, vectors: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Expected cosines [B], and cosines [B,N], of pictures from their vectors [B,D] and logits [B,N]."""
        cosines = vectors @ self.means.to(vectors.device).T
        # A class without pictures has the cosine 0: probability that goes there counts for nothing.
        return (logits.softmax(-1) * cosines).sum(-1), cosines

    def judge(self, classes: tuple[str, ...], vectors: Tensor, logits: Tensor) -> Known:
        """A clip by vectors [n,D] and logits [n,N] of its n windows: by their means."""
        scores, cosines = self.scores(vectors, logits)
        mean = cosines.mean(0)
        order = [n for n in mean.argsort(descending=True).tolist() if self.means[n].any()]
        nearest = tuple((classes[n], round(float(mean[n]), 3)) for n in order[:NUM_NEAREST])
        return Known(round(float(scores.mean()), 3), round(self.threshold, 3), nearest)

    def save(self, folder: Path) -> None:
        """Write them beside a classifier, where ``load_finetuned`` finds them; means in half precision."""
        save_tensors(folder / KNOWN, {"means": self.means.half(), "threshold": torch.tensor(self.threshold)})
