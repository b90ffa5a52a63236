"""Audio-visual retrieval (section 4, Table 3): recall and median rank, video to audio and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vab.data.manifest import labels_of
from vab.evaluate.metrics.statistics import EvaluationError, Interval, bootstrap, intervals
from vab.evaluate.metrics.tables import markdown
from vab.evaluate.paper import WAYS, Way

CUTOFFS = (1, 5, 10)
BLOCK_ROWS = 256  # queries that are compared at once
GRID = 2.0**26  # coordinates are multiples of 1 / GRID, about 1.5e-8


@dataclass(frozen=True)
class Direction:
    """Retrieval one way: queries of one modality against all candidates of the other. Shares are 0 to 1."""

    ranks: NDArray[np.int64]  # [N] candidates strictly more similar than the true one: 0 is best
    recall: dict[int, Interval]  # k -> R@k
    median_rank: Interval  # of ranks + 1: 1 is best
    ties: int  # queries whose true candidate is exactly as similar as another one
    precision: dict[int, Interval] | None  # k -> share of the first k that share a label with the query

    def document(self) -> dict[str, Any]:
        """For JSON; without the ranks."""
        shares = {f"R@{k}": share.document() for k, share in self.recall.items()}
        shares |= {f"P@{k}": share.document() for k, share in (self.precision or {}).items()}
        return shares | {"median_rank": self.median_rank.document(), "ties": self.ties}


@dataclass(frozen=True)
class Retrieval:
    """Retrieval both ways on N clips, and the level of chance."""

    kept: NDArray[np.int64]  # [N] rows that were used
    left_out: NDArray[np.int64]  # rows that lack audio or video
    directions: dict[Way, Direction]
    chance_recall: dict[int, float]  # k -> k / N
    chance_median_rank: float  # (N + 1) / 2
    chance_precision: float | None  # for every k the same
    labelled: int  # clips with a label: the queries of precision

    def document(self) -> dict[str, Any]:
        """For JSON; without the ranks."""
        chance: dict[str, float | None] = {f"R@{k}": share for k, share in self.chance_recall.items()}
        chance |= {"P@k": self.chance_precision, "median_rank": self.chance_median_rank}
        document: dict[str, Any] = {"clips": len(self.kept), "labelled": self.labelled}
        document |= {way: direction.document() for way, direction in self.directions.items()}
        return document | {"chance": chance}

    def markdown(self) -> str:
        """A table: one row for each direction, and one for chance."""
        # columns of precision only where clips have labels
        by_class = self.chance_precision is not None
        header = ["", *(f"R@{k} %" for k in CUTOFFS), "median rank"]
        header += [f"P@{k} %" for k in CUTOFFS] if by_class else []
        rows = []
        for way, direction in self.directions.items():
            rank = direction.median_rank
            row = [way, *(direction.recall[k].percent() for k in CUTOFFS)]
            row += [f"{rank.value:g} [{rank.low:g}, {rank.high:g}]"]
            rows.append(row + [each.percent() for each in (direction.precision or {}).values()])
        chance = ["chance", *(_percent(share) for share in self.chance_recall.values())]
        chance.append(f"{self.chance_median_rank:g}")
        if self.chance_precision is not None:
            chance += [_percent(self.chance_precision)] * len(CUTOFFS)
        return markdown(header, [*rows, chance])


def _percent(share: float) -> str:
    """A share in percent with two digits, and 100 as such."""
    return "100" if share >= 0.995 else f"{100 * share:.2g}"


def retrieval(
    audio: NDArray[np.floating],
    video: NDArray[np.floating],
    labels: Sequence[str] | None = None,
    block: int = BLOCK_ROWS,
) -> Retrieval:
    """Retrieval by cosine similarity among N clips: row i of ``audio`` belongs to row i of ``video``.

    audio, video [N, D] of any length: they are normalised here. Rows with a NaN or infinity in either are
    left out. A rank is ``#(s_ij > s_ii)``: how many candidates are *strictly* more similar than the true one;
    ``Direction.ties`` says how many queries may owe something to that.
    With ``labels`` [N] ("" is none, several joined by ";"), also precision by class: the mean share of the
    first k results that have a label of the query's; the true one is among the candidates, and candidates of
    equal similarity share the places among them. Intervals resample the queries; the candidates stay.

    Exact: coordinates are rounded to multiples of 2**-26, so that all products and partial sums are whole
    multiples of 2**-52 below 2, which float64 holds without rounding. Equal vectors thus tie, and neither
    ``block`` nor the order of rows nor the machine changes a rank; float32 products guarantee none of this.
    Memory beside the vectors: about 30 bytes x ``block`` x N.
    """
    if audio.ndim != 2 or audio.shape != video.shape:
        raise EvaluationError(f"audio {audio.shape} and video {video.shape} are not two tables [N, D]")
    if labels is not None and len(labels) != len(audio):
        raise EvaluationError(f"{len(labels)} labels for {len(audio)} clips")
    if block < 1:
        raise EvaluationError("the block must be 1 or more")
    # 1. Clips that have both embeddings.
    complete = np.isfinite(audio).all(1) & np.isfinite(video).all(1)
    kept = np.flatnonzero(complete)
    if not len(kept):
        raise EvaluationError("no clip has both a sound and a picture")
    texts = [] if labels is None else [labels[int(row)] for row in kept]
    known_labels = _Labels(texts) if any(map(labels_of, texts)) else None
    # 2. Both ways, on exact coordinates.
    vectors: dict[Way, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    video_vectors = _on_grid(video[kept])
    audio_vectors = _on_grid(audio[kept])
    vectors[WAYS[0]] = video_vectors, audio_vectors
    vectors[WAYS[1]] = audio_vectors, video_vectors
    n = len(kept)
    return Retrieval(
        kept=kept,
        left_out=np.flatnonzero(~complete),
        directions={way: _direction(*pair, known_labels, block) for way, pair in vectors.items()},
        chance_recall={k: min(k, n) / n for k in CUTOFFS},
        chance_median_rank=(n + 1) / 2,
        chance_precision=None if known_labels is None else known_labels.chance(block),
        labelled=0 if known_labels is None else len(known_labels.queries),
    )


def _on_grid(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Vectors [N, D] of length one, rounded to the grid; zeros stay zeros."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    # a vector of zeros has no direction: leave it
    wide /= np.where(length > 0, length, 1)
    return np.rint(wide * GRID) / GRID


class _Labels:
    """The relation "shares a label" between clips, computed in blocks: [N, N] at once would be too much."""

    def __init__(self, texts: Sequence[str]) -> None:
        # (clip, label) pairs as two flat arrays: a clip may have several labels
        pairs = [(row, label) for row, text in enumerate(texts) for label in labels_of(text)]
        numbers = {label: n for n, label in enumerate(dict.fromkeys(label for _, label in pairs))}
        self.clips, self.kinds = len(texts), len(numbers)
        self.row = np.array([row for row, _ in pairs], dtype=np.int64)
        self.kind = np.array([numbers[label] for _, label in pairs], dtype=np.int64)
        self.queries = np.unique(self.row)  # clips that have a label

    def shared(self, start: int, stop: int) -> NDArray[np.bool_]:
        """True where a clip of start to stop shares a label with a clip: bool [stop - start, N]."""
        # only the labels L of this block: a dense [N, L] instead of one over all labels
        own = np.unique(self.kind[(self.row >= start) & (self.row < stop)])
        column = np.full(self.kinds, -1)
        column[own] = np.arange(len(own))
        relevant = column[self.kind] >= 0
        hot = np.zeros((self.clips, len(own)), np.float32)
        hot[self.row[relevant], column[self.kind[relevant]]] = 1
        return hot[start:stop] @ hot.T > 0  # [stop - start, L] @ [L, N]: how many labels two clips share

    def chance(self, block: int) -> float:
        """The mean share of all clips that share a label with a query."""
        starts = range(0, self.clips, block)
        total = sum(int(self.shared(start, min(start + block, self.clips)).sum()) for start in starts)
        return total / self.clips / len(self.queries)


def _direction(
    queries: NDArray[np.float64], candidates: NDArray[np.float64], labels: _Labels | None, block: int
) -> Direction:
    n = len(queries)
    ranks, ties = np.zeros(n, np.int64), np.zeros(n, bool)
    precision = np.zeros((n, len(CUTOFFS)))
    for start in range(0, n, block):
        stop = min(start + block, n)
        # [block, D] @ [D, N] -> [block, N]
        similar = queries[start:stop] @ candidates.T
        # the diagonal of the whole [N, N]: each query with its true candidate
        own = similar[np.arange(stop - start), np.arange(start, stop), None]
        ranks[start:stop] = np.count_nonzero(similar > own, axis=1)
        ties[start:stop] = np.count_nonzero(similar == own, axis=1) > 1
        if labels is not None:
            precision[start:stop] = _precision(similar, labels.shared(start, stop))
    # [N, len(CUTOFFS)]: 1 where the true candidate is among the first k
    hits = np.stack([ranks < k for k in CUTOFFS], axis=1).astype(np.float64)
    # a median is no mean of per-query values, so it is resampled by itself
    medians = bootstrap(lambda rows: np.median(ranks[rows] + 1, axis=1)[:, None], n)
    return Direction(
        ranks=ranks,
        recall=dict(zip(CUTOFFS, intervals(hits), strict=True)),
        median_rank=Interval.of(float(np.median(ranks)) + 1, medians[:, 0]),
        ties=int(ties.sum()),
        precision=None
        if labels is None
        else dict(zip(CUTOFFS, intervals(precision[labels.queries]), strict=True)),
    )


def _precision(similar: NDArray[np.float64], shared: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Precision at each k of CUTOFFS: [B, len(CUTOFFS)] from similarities and relevance [B, N].

    Candidates as similar as the last of the first k have equal claims to the places that are left.
    """
    n = similar.shape[1]
    cutoffs = [min(k, n) for k in CUTOFFS]
    # a partial sort is enough: only the k-th largest of each row must stand at its place
    ordered = np.partition(similar, [n - k for k in cutoffs], axis=1)
    precisions = []
    for k in cutoffs:
        last = ordered[:, n - k, None]
        above = similar > last
        level = similar == last
        # those level with the last share the places that are left
        places = k - np.count_nonzero(above, axis=1)
        share = np.count_nonzero(level & shared, axis=1) / np.count_nonzero(level, axis=1)
        precisions.append((np.count_nonzero(above & shared, axis=1) + places * share) / k)
    return np.stack(precisions, axis=1)
