"""Cross-validation (section 4, Table 5: ESC-50): a run for each fold, and the mean of their accuracies.

One epoch is chosen for all folds together, the one with the best mean: choosing for each fold would take the
luckiest of its epochs each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vab.config import DEFAULT_COMPUTE, Compute, Preset
from vab.data.manifest import labels_of
from vab.data.store import LatentStore
from vab.errors import first_line
from vab.evaluate.metrics.statistics import EvaluationError, Interval, bootstrap, list_hash
from vab.evaluate.metrics.tables import markdown
from vab.training.batches import check_fits, folds_of
from vab.training.trainer import train
from vab.utils import count_of
from vab.utils.files import json_object

Kind = Literal["audio", "video", "both"]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of the classifiers by one input, as shares from 0 to 1."""

    epoch: int  # after which the mean over the folds is best; the first is 1
    step: int
    folds: dict[str, float]  # at that epoch
    mean: Interval  # of them, unweighted; the interval resamples the clips of each fold
    last: float  # the mean after the last epoch, where nothing was chosen


@dataclass(frozen=True)
class Folds:
    """The result of cross-validation: each fold is tested on by a classifier trained on the others."""

    clips: dict[str, int]  # of each fold
    classes: int
    epochs: int  # of each run
    accuracy: dict[Kind, Accuracy]  # by input: audio, video, both
    ids_sha256: str

    def document(self) -> dict[str, Any]:
        """For JSON."""
        accuracy = {k: asdict(each) | {"mean": each.mean.document()} for k, each in self.accuracy.items()}
        return {**vars(self), "accuracy": accuracy, "N": sum(self.clips.values())}

    def markdown(self) -> str:
        """A table: one row for each input."""
        header = ["from", *(f"{fold} %" for fold in self.clips), "mean %", "epoch", "last epoch %"]
        # a column for each fold
        rows = []
        for kind, each in self.accuracy.items():
            folds = [f"{100 * share:.1f}" for share in each.folds.values()]
            rows.append([kind, *folds, each.mean.percent(), f"{each.epoch}", f"{100 * each.last:.1f}"])
        rows.append(["N", *map(str, self.clips.values()), f"{sum(self.clips.values())}", "", ""])
        return markdown(header, rows)


def cross_validate(
    preset: Preset,
    store_dir: str | Path,
    run_dir: str | Path,
    *,
    init: str | Path | None = None,
    compute: Compute = DEFAULT_COMPUTE,
    max_steps: int | None = None,
    log: Callable[[str], None] = print,
) -> Folds:
    """Train on all folds of a store but one, for each in turn, in ``run_dir/fold1``, ``run_dir/fold2`` ...

    Called again, it goes on where it was. The fold left out is measured, every clip of it, after each epoch
    (to the nearest step of the largest training set, so that all folds have the same epochs).
    ``init``, ``compute`` and ``max_steps`` (of each run) are as for :func:`vab.training.trainer.train`,
    and so are the errors; ``EvaluationError`` for a store without folds or labels, or with clips that lack a
    picture where the classifier goes by it.
    """
    # 1. The folds and their classes.
    store = LatentStore.open(store_dir)
    check_fits(store, preset)
    rows = _rows(store, preset)
    every_row = np.concatenate(list(rows.values()))
    labels = {label for row in every_row for label in labels_of(store.labels[row])}
    clips = {fold: len(fold_rows) for fold, fold_rows in rows.items()}
    # 2. The same epochs for all runs: those of the largest training set, which lacks the smallest fold.
    steps_per_epoch = (sum(clips.values()) - min(clips.values())) / preset.train.batch_size
    steps = math.ceil(preset.train.epochs * steps_per_epoch) if max_steps is None else max_steps
    epoch = math.ceil(steps_per_epoch)
    preset = replace(
        preset,
        classes=preset.classes or tuple(sorted(labels)),
        train=replace(preset.train, save_every=epoch, validate_every=epoch),
    )
    # 3. A run for each fold, measured on that fold after each epoch.
    measured = {}
    for fold in rows:
        run = Path(run_dir) / fold
        train(preset, store_dir, run, init=init, compute=compute, max_steps=steps, fold=fold, log=log)
        measured[fold] = _dev_lines(run)
    # 4. For each input, the epoch that is best for all folds together.
    accuracy = {kind: _best_epoch(measured, f"accuracy/{kind}", clips, epoch) for kind in preset.train.inputs}
    names = [store.ids[row] for row in every_row]
    return Folds(clips, len(preset.classes), math.ceil(steps / epoch), accuracy, list_hash(names))


def _rows(store: LatentStore, preset: Preset) -> dict[str, NDArray[np.int64]]:
    """The clips of each fold; ``EvaluationError`` if they cannot be cross-validated."""
    splits = np.array(store.splits)
    has_audio = store.has("tokens")
    rows = {fold: np.flatnonzero((splits == fold) & has_audio) for fold in folds_of(store)}
    if len(rows) < 2:
        raise EvaluationError(
            f"{store.directory} has no folds: splits called fold1, fold2 ... (as `vab data esc50` makes them)"
        )
    every = np.concatenate(list(rows.values()))
    if not any(labels_of(store.labels[row]) for row in every):
        raise EvaluationError(f"{store.directory} has no labels to learn")
    without_video = int((~store.has("features")[every]).sum())
    if without_video and set(preset.train.inputs) != {"audio"}:
        raise EvaluationError(
            f"{store.directory}: {count_of(without_video, 'clip')} of its folds without a picture; "
            "give --train.inputs audio"
        )
    return rows


def _dev_lines(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of a run on its fold: step -> metrics."""
    path = run / "metrics.jsonl"
    try:
        lines = [json_object(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {line["step"]: line for line in lines if line["split"] == "dev"}
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: damaged ({first_line(error)}); train this fold anew") from None


def _best_epoch(
    measured: Mapping[str, Mapping[int, Mapping[str, float]]], name: str, clips: Mapping[str, int], epoch: int
) -> Accuracy:
    """The accuracies after the epoch with the best mean; of several, the first."""
    # steps that all runs have measured
    steps = sorted(set.intersection(*(set(lines) for lines in measured.values())))
    means = [float(np.mean([lines[step][name] for lines in measured.values()])) for step in steps]
    best = int(np.argmax(means))
    # the interval: resample the clips of each fold, and average the folds
    folds = {fold: lines[steps[best]][name] for fold, lines in measured.items()}
    resampled = [_resampled(share, clips[fold], seed) for seed, (fold, share) in enumerate(folds.items())]
    mean = Interval.of(means[best], np.mean(resampled, axis=0))
    return Accuracy(math.ceil(steps[best] / epoch), steps[best], folds, mean, means[-1])


def _resampled(share: float, clips: int, seed: int) -> NDArray[np.floating]:
    """Accuracies [R] of resamples of a fold's clips, of which that share is classified correctly."""
    # which ones are correct does not matter: clips are drawn alike
    right = np.arange(clips) < round(share * clips)
    return bootstrap(lambda rows: right[rows].mean(1)[:, None], clips, seed=seed)[:, 0]
