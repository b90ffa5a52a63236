"""Run an ablation from end to end: train, synthesize, measure (appendices C and D).

Results share one folder between ablations: the networks of a variant of the preset stand in
``<variant>/<order of training>``, sounds beside them. What is there is not done again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vab.config import DecodeConfig, Preset, former_fields
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.evaluate.ablation.tables import ABLATIONS, ARROWS, COLUMNS, Ablation, Objective, Row, changed
from vab.evaluate.embedding import classify_store, embed_store
from vab.evaluate.generation import protocol
from vab.evaluate.generation.clips import ClipError
from vab.evaluate.generation.synthesis import (
    Synthesizer,
    chosen_rows,
    file_name,
    reconstruct_true,
    synthesize,
)
from vab.evaluate.metrics.classification import classification, targets_of
from vab.evaluate.metrics.retrieval import retrieval
from vab.evaluate.metrics.statistics import EvaluationError, Interval
from vab.models.heads import load_finetuned
from vab.models.hub import ModelError, find_model, read_config
from vab.presets import PRESETS
from vab.sampling.stages import check_fine
from vab.training.batches import ClipBatches, check_fits
from vab.training.trainer import train
from vab.utils.device import pick_device
from vab.utils.progress import FileProgress
from vab.utils.provenance import code_version


@dataclass(frozen=True)
class Settings:
    """Options of an ablation."""

    stores: tuple[Path, ...]  # of latents; each row takes the first that fits its model
    run: Path  # the folder of all that is made
    model: str | None = None  # that is decoded; None: the bundled one
    preset: str = "vab-tiny"  # that is trained, with its presets for fine-tuning
    split: str = "dev"
    clips: int = 200  # at most, to make sounds for
    seed: int = 0
    max_steps: int | None = None  # of each training, instead of the preset's epochs
    reference: Path | None = None  # real sounds named <id>; None: the store's own, through the codec
    weights: Path | None = None  # the folder of weights for ``vab evaluate generation``
    resamples: int = 200
    codec_path: str | None = None
    device: str = "auto"
    pretraining: tuple[Path, ...] = ()  # stores for masked prediction and contrast; none: ``stores``
    fine: tuple[Path, ...] = ()  # second stages for what is trained; each row takes the first that fits
    cache: Path | None = None  # of the features; None: beside the sounds


@dataclass
class Outcome:
    """The result of a row: its metrics, or the reason why it could not be run."""

    row: Row
    metrics: dict[str, Interval] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)  # N of each metric
    made_with: dict[str, Any] = field(default_factory=dict)
    left_out: list[ClipError] = field(default_factory=list)  # sounds that could not be measured
    absent: dict[str, str] = field(default_factory=dict)  # backbones that could not be had, and why
    # reference, generated and settings of the evaluation of its sounds; None: no sound was made
    evaluated: tuple[Path, Path, protocol.Settings] | None = None
    reason: str = ""


@dataclass
class Result:
    """The results of an ablation."""

    ablation: Ablation
    base: str  # the model, or the preset
    settings: Settings
    outcomes: list[Outcome]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(self.settings).items()}
        for name in ("stores", "pretraining", "fine"):
            settings[name] = [str(path) for path in settings[name]]
        return {
            "ablation": self.ablation.name,
            "title": self.ablation.title,
            "source": self.ablation.source,
            "base": self.base,
            "settings": settings,
            "code": code_version(),
            "rows": [
                {
                    "name": each.row.name,
                    "changes": dict(each.row.changes),
                    "training": list(each.row.chain),
                    "paper": dict(each.row.paper),
                    "here": {
                        key: value.document() | {"clips": each.clips[key]}
                        for key, value in each.metrics.items()
                    },
                    "made_with": each.made_with,
                    "left_out": [vars(fault) for fault in each.left_out],
                    "not_measured": each.absent,
                    "not_run": each.reason or None,
                }
                for each in self.outcomes
            ],
        }


def ablate(
    name: str,
    settings: Settings,
    log: Callable[[str], None] = print,
    progress: FileProgress = lambda *_: None,
) -> Result:
    """Run the ablation of that name; called again, it goes on where it was.

    A row whose model no store fits is left out, with the reason. Raises ``EvaluationError`` for a call that
    makes no sense, and as training and loading do.
    """
    if name not in ABLATIONS:
        raise EvaluationError(f"no ablation is called {name!r}; there are: {', '.join(ABLATIONS)}")
    if settings.clips < 2 or (settings.max_steps or 1) < 1 or not settings.stores:
        raise EvaluationError("an ablation needs a store, two clips or more and one step or more")
    # 1. Open everything that is asked for, so that a wrong call fails before anything is trained.
    ablation = ABLATIONS[name]
    stores = [LatentStore.open(path) for path in settings.stores]
    pretraining_stores = [LatentStore.open(path) for path in settings.pretraining] or stores
    for objective in {each for row in ablation.rows for each in row.chain}:
        _preset(settings.preset, objective)  # raises if there is none
    # 2. Rows that are trained.
    if ablation.trains:
        for row in ablation.rows:
            _fine(changed(_preset(settings.preset, "masked"), _fitting(row.changes, "masked")), settings)
        outcomes = [
            _train_row(
                row,
                ablation.measured,
                stores=stores,
                pretraining_stores=pretraining_stores,
                settings=settings,
                log=log,
                progress=progress,
            )
            for row in ablation.rows
        ]
        _measure_same_clips(outcomes, progress)
        return Result(ablation, settings.preset, settings, outcomes)
    # 3. Rows that decode one finished model.
    folder = find_model(settings.model)
    own = read_config(folder)
    if own.train.objective == "causal" and name != "guidance":
        raise EvaluationError(f"{folder}: FoleyGen has no {name} to vary")
    maker = Synthesizer.load(folder, settings.codec_path, settings.device, _fine(own, settings))
    decoded = own
    place = settings.run
    if name == "fine":
        # it is the second stage whose decoding is varied, on the true coarse tokens
        if maker.fine is None:
            raise EvaluationError(f"{folder}: has no second stage; train one into its folder fine")
        decoded = maker.fine.preset
        place = place / name
        maker = replace(maker, true_coarse=True)
    outcomes = []
    for row in ablation.rows:
        log(f"{name} {row.name}")
        decode = changed(decoded, row.changes).decode
        outcome = Outcome(row, made_with={"decode": asdict(decode)})
        _evaluate_sounds(
            outcome,
            maker,
            preset=own,
            decode=decode,
            stores=stores,
            folder=place,
            settings=settings,
            progress=progress,
        )
        outcomes.append(outcome)
    _measure_same_clips(outcomes, progress)
    return Result(ablation, own.name, settings, outcomes)


def _train_row(
    row: Row,
    measured: Sequence[Objective],
    *,
    stores: list[LatentStore],
    pretraining_stores: list[LatentStore],
    settings: Settings,
    log: Callable[[str], None],
    progress: FileProgress,
) -> Outcome:
    """Train a row's chain of objectives, and evaluate the networks of those that are ``measured``.

    ``stores`` are evaluated on and trained on for classification, ``pretraining_stores`` for the rest.
    """
    outcome = Outcome(row)
    base = _preset(settings.preset, "masked")
    variant = settings.run / _variant(base, row.changes)
    # each training of the chain has a folder named after all those before it
    init: Path | None = None
    for n, objective in enumerate(row.chain):
        preset = changed(_preset(settings.preset, objective), _fitting(row.changes, objective))
        try:
            store = _store(stores, preset)
            training_store = store if objective == "classification" else _store(pretraining_stores, preset)
        except StoreError as error:
            outcome.reason = str(error)
            return outcome
        folder = variant / "_".join(row.chain[: n + 1])
        # one network, or one for each input of the classifier
        for part, inputs in _parts(preset):
            place = folder if part == "" else folder / part
            place.parent.mkdir(parents=True, exist_ok=True)
            trained = replace(preset, train=replace(preset.train, inputs=inputs))
            train(trained, training_store.directory, place, init=init, max_steps=settings.max_steps, log=log)
            outcome.made_with["_".join(row.chain[: n + 1]) + part] = str(place)
            # evaluate it, if the table does
            if objective not in measured:
                continue
            if objective == "masked":
                maker = Synthesizer.load(
                    place, settings.codec_path, settings.device, _fine(trained, settings)
                )
                _evaluate_sounds(
                    outcome,
                    maker,
                    preset=trained,
                    decode=trained.decode,
                    stores=[store],
                    folder=place,
                    settings=settings,
                    progress=progress,
                )
                continue
            for key, (value, clips) in _evaluate_network(place, objective, store, settings).items():
                outcome.metrics[key] = value
                outcome.clips[key] = clips
        # the next objective goes on from these weights
        init = folder
    return outcome


def _preset(name: str, objective: Objective) -> Preset:
    """The preset of one objective: vab-tiny, vab-tiny-contrastive, vab-tiny-classes (or -vggsound)."""
    endings = {"masked": ("",), "contrastive": ("-contrastive",), "classification": ("-classes", "-vggsound")}
    names = [name + ending for ending in endings[objective]]
    preset = next((PRESETS[each] for each in names if each in PRESETS), None)
    if preset is None or preset.train.objective != objective:
        raise EvaluationError(f"{name}: there is no preset {' or '.join(names)} for {objective} training")
    return preset


def _fine(preset: Preset, settings: Settings) -> Path | None:
    """The first second stage that fits; ``EvaluationError`` says why the last one does not."""
    reason = ""
    for folder in settings.fine:
        try:
            check_fine(read_config(folder).model, preset.model)
            return folder
        except ModelError as error:
            reason = f"{folder}: {error}"
    if reason:
        raise EvaluationError(reason)
    return None


def _parts(preset: Preset) -> list[tuple[str, Any]]:
    """(folder, inputs) of each training of an objective: one classifier for all inputs, or the paper's 3."""
    if preset.train.objective != "classification":
        return [("", preset.train.inputs)]
    if set(preset.train.inputs) == set(COLUMNS):
        return [("", preset.train.inputs)]
    return [(kind, (kind,)) for kind in COLUMNS]


def _fitting(changes: Mapping[str, Any], objective: Objective) -> dict[str, Any]:
    """Select the changes that concern an objective: changes to training are meant for masked prediction."""
    return {
        name: value for name, value in changes.items() if name.startswith("model.") or objective == "masked"
    }


def _variant(preset: Preset, changes: Mapping[str, Any]) -> str:
    """Name the folder of a variant after its changes to the preset: ``base`` if there are none."""
    parts = [
        f"{name.partition('.')[2]}-{value}"
        for name, value in sorted(changes.items())
        if changed(preset, {name: value}) != preset
    ]
    return "_".join(parts) or "base"


def _store(stores: list[LatentStore], preset: Preset) -> LatentStore:
    """The first store that fits; ``StoreError`` says why the last one does not."""
    # the error of the last store is the one to see: it is raised outside of the loop
    for store in stores[:-1]:
        try:
            check_fits(store, preset)
        except StoreError:
            continue
        return store
    check_fits(stores[-1], preset)
    return stores[-1]


def _evaluate_network(
    folder: Path, objective: Objective, store: LatentStore, settings: Settings
) -> dict[str, tuple[Interval, int]]:
    """Retrieval or classification by a trained network: metric -> value and N."""
    preset = read_config(folder)
    clips = ClipBatches(store, preset, settings.split)
    if not len(clips):
        raise EvaluationError(f"{store.directory} has no clip with sound in the split {settings.split}")
    finetuned = load_finetuned(folder)
    # R@k both ways, and with labels the share of first results of the query's class
    metrics: dict[str, tuple[Interval, int]] = {}
    if objective == "contrastive":
        assert finetuned.contrastive is not None
        vectors = embed_store(finetuned.contrastive[0].to(pick_device(settings.device)), clips)
        result = retrieval(vectors.audio, vectors.video, vectors.labels)
        for way, direction in result.directions.items():
            shares = {f"R@{k}": share for k, share in direction.recall.items()}
            if direction.precision:
                shares["P@1"] = direction.precision[1]
            for name, share in shares.items():
                metrics[f"{name} {ARROWS[way]} %"] = (_percent(share), len(result.kept))
        return metrics
    assert finetuned.classifier is not None
    network = finetuned.classifier[0].to(pick_device(settings.device))
    # one classifier may take several inputs: a metric for each
    targets, _ = targets_of(clips.labels(), preset.classes)
    for kind in preset.train.inputs:
        _, scores = classify_store(network, clips, kind, preset.train.loss)
        measured = classification(scores, targets, preset.classes)
        # clips of several labels have no accuracy
        if measured.accuracy is None:
            name, share = "mAP", measured.mean_average_precision
        else:
            name, share = "accuracy", measured.accuracy[1]
        metrics[f"{name} {COLUMNS[kind]} %"] = (_percent(share), len(measured.kept))
    return metrics


def _evaluate_sounds(
    outcome: Outcome,
    maker: Synthesizer,
    *,
    preset: Preset,
    decode: DecodeConfig,
    stores: list[LatentStore],
    folder: Path,
    settings: Settings,
    progress: FileProgress,
) -> None:
    """Synthesize with these settings of decoding, and enter the metrics against the true sounds."""
    store = _store(stores, preset)
    clips = ClipBatches(store, preset, settings.split)
    rows = chosen_rows(clips, settings.clips)
    reference = settings.reference
    if reference is None:
        reference = reconstruct_true(store, rows, maker, settings.run, progress)
    # the folder tells apart sounds of different decoding; candidates are not ranked here
    values = (f"{name}-{value:g}" for name, value in former_fields(decode).items() if name != "candidates")
    sounds = folder / "sounds" / "_".join(values)
    synthesize(maker, clips, rows, decode, settings.seed, sounds, progress)
    options = protocol.Settings(
        seconds=preset.model.seconds,
        weights=settings.weights,
        allow_missing=True,
        cache=settings.cache,
        resamples=settings.resamples,
        device=settings.device,
        clips=frozenset(file_name(store.ids[row]) for row in rows),
    )
    outcome.evaluated = (reference, sounds, options)
    outcome.left_out = _compare(outcome, progress)


def _compare(outcome: Outcome, progress: FileProgress) -> list[ClipError]:
    """Evaluate a row's sounds. Returns the clips that could not be measured."""
    assert outcome.evaluated is not None
    result = protocol.evaluate(*outcome.evaluated, progress)
    outcome.metrics |= {each.key: each.value for each in result.metrics}
    outcome.clips |= {each.key: each.clips for each in result.metrics}
    outcome.absent = result.absent
    return result.faults


def _measure_same_clips(outcomes: Sequence[Outcome], progress: FileProgress) -> None:
    """Measure all rows again without the clips that one of them lacks: rows are compared on the same ones."""
    lacking = {fault.id for outcome in outcomes for fault in outcome.left_out}
    for outcome in outcomes:
        if lacking and outcome.evaluated is not None:
            reference, sounds, options = outcome.evaluated
            options = replace(options, clips=(options.clips or frozenset()) - lacking)
            outcome.evaluated = (reference, sounds, options)
            _compare(outcome, progress)


def _percent(share: Interval) -> Interval:
    return Interval(100 * share.value, 100 * share.low, 100 * share.high)
