"""Run an ablation from end to end: train, synthesize, measure (appendices C and D).

Results share one folder between ablations: the networks of a variant of the preset stand in
``<variant>/<order of training>``, with the epochs of a training that has others than its preset
(``contrastive-29_masked``), sounds beside them. What is there is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vab.config import Compute, DecodeConfig, Preset, check_preset, former_fields
from vab.data.shard import StoreError
from vab.data.store import LatentStore
from vab.evaluate.ablation.tables import ABLATIONS, ARROWS, COLUMNS, Ablation, Objective, Row, changed
from vab.evaluate.embedding import classify_store, clips_with_sound, embed_store
from vab.evaluate.generation import protocol
from vab.evaluate.generation.clips import ClipError
from vab.evaluate.generation.spread import Synthesis, synthesize_on
from vab.evaluate.metrics.classification import classification, targets_of
from vab.evaluate.metrics.retrieval import retrieval
from vab.evaluate.metrics.statistics import EvaluationError, Interval
from vab.inference.parts import place
from vab.models.heads import load_finetuned
from vab.models.hub import CONFIG, FINE, ModelError, find_model, read_config
from vab.presets import PRESETS, Speed, at_speed
from vab.sampling.stages import check_fine
from vab.training.batches import check_fits
from vab.training.trainer import train
from vab.utils import PrecisionChoice
from vab.utils.device import FLOAT32, Chosen, pick_precision, products
from vab.utils.processes import devices_for
from vab.utils.progress import FileProgress
from vab.utils.provenance import code_version


@dataclass(frozen=True)
class AblationSettings:
    """Options of an ablation."""

    stores: tuple[Path, ...]  # of latents; each row takes the first that fits its model
    run: Path  # the folder of all that is made
    model: str | None = None  # that is decoded; None: the bundled one
    preset: str = "vab-tiny"  # that is trained, with its presets for fine-tuning
    split: str = "dev"
    clips: int = 200  # at most, to make sounds for
    seed: int = 0
    speed: Speed | None = None  # of the model that is decoded, before a row's changes; None: its own settings
    max_steps: int | None = None  # of each training, instead of all epochs
    epochs: Mapping[str, float] = field(default_factory=dict)  # of trainings by name, instead of the rows'
    reference: Path | None = None  # real sounds named <id>; None: the store's own, through the codec
    weights: Path | None = None  # the folder of weights for ``vab evaluate generation``
    resamples: int = 200
    codec_path: str | None = None
    device: str = "auto"
    devices: int = 1  # number of GPUs, or of processes on a CPU
    pretraining: tuple[Path, ...] = ()  # of masked prediction and contrast, all that fit; none: ``stores``
    fine: tuple[Path, ...] = ()  # second stages for what is trained; each row takes the first that fits
    cache: Path | None = None  # of the features; None: beside the sounds
    precision: PrecisionChoice = "float32"  # of what is measured, not of training


@dataclass
class Outcome:
    """The result of a row: its metrics, or the reason why it could not be run."""

    row: Row
    metrics: dict[str, Interval] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)  # N of each metric
    made_with: dict[str, Any] = field(default_factory=dict)
    epochs: dict[str, float] = field(default_factory=dict)  # of each training; none if steps were given
    left_out: list[ClipError] = field(default_factory=list)  # sounds that could not be measured
    absent: dict[str, str] = field(default_factory=dict)  # backbones that could not be had, and why
    # reference, generated and settings of the evaluation of its sounds; None: no sound was made
    evaluated: tuple[Path, Path, protocol.EvaluationSettings] | None = None
    reason: str = ""


@dataclass
class Result:
    """The results of an ablation."""

    ablation: Ablation
    base: str  # the model, or the preset
    settings: AblationSettings
    outcomes: list[Outcome]
    precision: Chosen = FLOAT32

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ablation": self.ablation.name,
            "title": self.ablation.title,
            "source": self.ablation.source,
            "base": self.base,
            # paths as text, tuples as lists
            "settings": json.loads(json.dumps(asdict(self.settings), default=str)),
            "code": code_version(),
            "measured_in": self.precision.document(),
            "rows": [
                {
                    "name": each.row.name,
                    "changes": dict(each.row.changes),
                    "training": list(each.row.chain),
                    "epochs": each.epochs,
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
    settings: AblationSettings,
    log: Callable[[str], None] = print,
    progress: FileProgress = lambda *_: None,
) -> Result:
    """Run the ablation of that name; called again, it goes on where it was.

    A row whose model no store fits is left out, with the reason. Raises ``EvaluationError`` for a call that
    makes no sense, and as training and loading do.
    """
    if name not in ABLATIONS:
        raise EvaluationError(f"no ablation is called {name!r}; there are: {', '.join(ABLATIONS)}")
    steps = 1 if settings.max_steps is None else settings.max_steps
    if settings.clips < 2 or steps < 1 or not settings.stores:
        raise EvaluationError("an ablation needs a store, two clips or more and one step or more")
    ablation = ABLATIONS[name]
    trainings = dict.fromkeys(each for row in ablation.rows for each in row.trainings)
    if unknown := [each for each in settings.epochs if each not in trainings]:
        known = f"its trainings are: {', '.join(trainings)}" if trainings else "it trains nothing"
        raise EvaluationError(f"{name} has no training {unknown[0]} to set the epochs of; {known}")
    if settings.epochs and settings.max_steps is not None:
        raise EvaluationError("--epochs and --max-steps exclude each other")
    # 1. Open the stores, so that a wrong call fails before anything is trained.
    run = _Run(settings, log, progress)
    # 2. Train each row, or decode one finished model.
    if ablation.trains:
        base = settings.preset
        outcomes = run.train_rows(ablation)
    else:
        base, outcomes = run.decode_rows(ablation)
    # 3. Measure all rows again without the clips that one of them lacks: they are compared on the same ones.
    lacking = {fault.id for outcome in outcomes for fault in outcome.left_out}
    for outcome in outcomes:
        if lacking and outcome.evaluated is not None:
            reference, sounds, options = outcome.evaluated
            options = replace(options, clips=(options.clips or frozenset()) - lacking)
            outcome.evaluated = (reference, sounds, options)
            run.compare(outcome)
    return Result(ablation, base, settings, outcomes, run.precision)


class _Run:
    """What all rows of an ablation share: the stores, the options, and whom to tell."""

    def __init__(
        self, settings: AblationSettings, log: Callable[[str], None], progress: FileProgress
    ) -> None:
        self.settings, self.log, self.progress = settings, log, progress
        self.devices = devices_for(settings.devices, settings.device)
        self.precision = pick_precision(settings.precision, self.devices[0])
        self.compute = Compute(device=settings.device, devices=settings.devices)
        self.stores = [LatentStore.open(path) for path in settings.stores]
        self.pretraining = [LatentStore.open(path) for path in settings.pretraining]

    def train_rows(self, ablation: Ablation) -> list[Outcome]:
        """Train and measure every row; what any of them needs is looked for before the first is trained."""
        for row in ablation.rows:
            for n in range(len(row.chain)):
                check_preset(self.training(row, n))
            self.fine_for(self.preset(row, "masked"))
        return [self.train_row(row, ablation.measured) for row in ablation.rows]

    def train_row(self, row: Row, measured: Sequence[Objective]) -> Outcome:
        """Train a row's chain of objectives, and evaluate the networks of those that are ``measured``."""
        outcome = Outcome(row)
        variant = self.settings.run / _variant(_preset(self.settings.preset, "masked"), row.changes)
        # each training of the chain has a folder named after all those before it
        init: Path | None = None
        stem = ""
        for n, objective in enumerate(row.chain):
            preset = self.training(row, n)
            try:
                store = _store(self.stores, preset)
                # classes are learned where they are measured, all else where pre-training is
                learned = [store]
                if objective != "classification" and self.pretraining:
                    learned = _stores(self.pretraining, preset)
            except StoreError as error:
                outcome.reason = str(error)
                return outcome
            epochs = preset.train.epochs
            other = "" if epochs == self.preset(row, objective).train.epochs else f"-{epochs:g}"
            stem = f"{stem}_{objective}{other}".removeprefix("_")
            if self.settings.max_steps is None:
                outcome.epochs[row.trainings[n]] = epochs
            # one network, or one for each input of the classifier
            for part, inputs in _parts(preset):
                place = variant / stem / part
                place.parent.mkdir(parents=True, exist_ok=True)
                trained = replace(preset, train=replace(preset.train, inputs=inputs))
                steps = self.settings.max_steps
                train(
                    trained,
                    [each.directory for each in learned],
                    place,
                    init=init,
                    compute=self.compute,
                    max_steps=steps,
                    log=self.log,
                )
                outcome.made_with[stem + part] = str(place)
                # evaluate it, if the table does
                if objective in measured and objective == "masked":
                    wanted = self.sounds(
                        place, trained, [at_speed(trained.decode, self.settings.speed)], store, place
                    )
                    self.measure_sounds([outcome], wanted)
                elif objective in measured:
                    self.measure_network(outcome, place, store)
            # the next objective goes on from these weights
            init = variant / stem
        return outcome

    def decode_rows(self, ablation: Ablation) -> tuple[str, list[Outcome]]:
        """Decode one finished model with the settings of every row; its name, and the outcomes."""
        folder = find_model(self.settings.model)
        own = read_config(folder)
        if own.train.objective == "causal" and ablation.name != "guidance":
            raise EvaluationError(f"{folder}: FoleyGen has no {ablation.name} to vary")
        decoded = own
        place = self.settings.run
        if ablation.name == "fine":
            # it is the second stage whose decoding is varied, on the true coarse tokens
            second = self.fine_for(own) or folder / FINE
            if not (second / CONFIG).is_file():
                raise EvaluationError(f"{folder}: has no second stage; train one into its folder fine")
            decoded = read_config(second)
            place = place / ablation.name
        decoded = replace(decoded, decode=at_speed(decoded.decode, self.settings.speed))
        decodes = [changed(decoded, row.changes).decode for row in ablation.rows]
        outcomes = [
            Outcome(row, made_with={"decode": asdict(decode)})
            for row, decode in zip(ablation.rows, decodes, strict=True)
        ]
        wanted = self.sounds(folder, own, decodes, _store(self.stores, own), place)
        self.measure_sounds(outcomes, replace(wanted, true_coarse=ablation.name == "fine"))
        return own.name, outcomes

    def preset(self, row: Row, objective: Objective) -> Preset:
        """The preset of one objective with a row's changes; those to training are for masked prediction."""
        changes = row.changes.items()
        fitting = {k: v for k, v in changes if k.startswith("model.") or objective == "masked"}
        return changed(_preset(self.settings.preset, objective), fitting)

    def training(self, row: Row, n: int) -> Preset:
        """The preset of the n-th training of a row's chain, with its epochs unless steps are given."""
        preset = self.preset(row, row.chain[n])
        epochs = {**row.epochs, **self.settings.epochs}.get(row.trainings[n])
        if epochs is None or self.settings.max_steps is not None:
            return preset
        return changed(preset, {"train.epochs": epochs})

    def fine_for(self, preset: Preset) -> Path | None:
        """The first second stage that fits; ``EvaluationError`` says why the last one does not."""
        reason = ""
        for folder in self.settings.fine:
            try:
                check_fine(read_config(folder).model, preset.model)
                return folder
            except ModelError as error:
                reason = f"{folder}: {error}"
        if reason:
            raise EvaluationError(reason)
        return None

    def sounds(
        self, model: Path, preset: Preset, decodes: Sequence[DecodeConfig], store: LatentStore, folder: Path
    ) -> Synthesis:
        """What a model is to synthesize with each of these settings of decoding, with the second stage that
        fits, and the true sounds unless real ones are given."""
        settings = self.settings
        # a folder's name tells apart sounds of different decoding; candidates are not ranked here
        names = (
            "_".join(
                f"{key}-{value if isinstance(value, str) else format(value, 'g')}"
                for key, value in former_fields(each).items()
                if key != "candidates"
            )
            for each in decodes
        )
        return Synthesis(
            model=model,
            store=store.directory,
            preset=preset,
            split=settings.split,
            clips=settings.clips,
            seed=settings.seed,
            takes=tuple(zip(decodes, (folder / "sounds" / name for name in names), strict=True)),
            true=settings.run if settings.reference is None else None,
            codec_path=settings.codec_path,
            fine=self.fine_for(preset),
            precision=self.precision,
        )

    def measure_sounds(self, outcomes: Sequence[Outcome], wanted: Synthesis) -> None:
        """Synthesize, a take for each outcome, and enter the metrics against the true sounds."""
        settings = self.settings
        self.log(f"synthesizing {', '.join(each.row.name for each in outcomes)}")
        made = synthesize_on(self.devices, wanted, self.progress)
        reference = settings.reference or made.true
        assert reference is not None
        options = protocol.EvaluationSettings(
            seconds=wanted.preset.model.seconds,
            weights=settings.weights,
            allow_missing=True,
            cache=settings.cache,
            resamples=settings.resamples,
            device=settings.device,
            devices=settings.devices,
            clips=made.names,
        )
        for outcome, (_, sounds) in zip(outcomes, wanted.takes, strict=True):
            self.log(f"measuring {outcome.row.name}")
            outcome.evaluated = (reference, sounds, options)
            outcome.left_out = self.compare(outcome)

    def compare(self, outcome: Outcome) -> list[ClipError]:
        """Evaluate a row's sounds. Returns the clips that could not be measured."""
        assert outcome.evaluated is not None
        result = protocol.evaluate(*outcome.evaluated, self.progress)
        outcome.metrics |= {each.key: each.value for each in result.metrics}
        outcome.clips |= {each.key: each.clips for each in result.metrics}
        outcome.absent = result.absent
        return result.faults

    def measure_network(self, outcome: Outcome, folder: Path, store: LatentStore) -> None:
        """Enter the metrics of a trained network: retrieval, or classification by each of its inputs."""
        preset = read_config(folder)
        device = self.devices[0]
        clips = clips_with_sound(store, preset, self.settings.split)
        finetuned = load_finetuned(folder)
        shares: dict[str, Interval] = {}
        if finetuned.contrastive is not None:
            # R@k both ways, and with labels the share of first results of the query's class
            network = finetuned.contrastive[0]
            place(network, device, self.precision.dtype)
            with products(self.precision.precision):
                vectors = embed_store(network, clips)
            result = retrieval(vectors.audio, vectors.video, vectors.labels)
            for way, direction in result.directions.items():
                shares |= {f"R@{k} {ARROWS[way]} %": share for k, share in direction.recall.items()}
                if direction.precision:
                    shares[f"P@1 {ARROWS[way]} %"] = direction.precision[1]
            outcome.clips |= dict.fromkeys(shares, len(result.kept))
        else:
            assert finetuned.classifier is not None
            # accuracy or mAP by each of the classifier's inputs
            classifier = finetuned.classifier[0]
            place(classifier, device, self.precision.dtype)
            targets, _ = targets_of(clips.labels(), preset.classes)
            for kind in preset.train.inputs:
                with products(self.precision.precision):
                    _, scores = classify_store(classifier, clips, kind, preset.train.loss)
                measured = classification(scores, targets, preset.classes)
                # clips of several labels have no accuracy
                name, share = "mAP", measured.mean_average_precision
                if measured.accuracy is not None:
                    name, share = "accuracy", measured.accuracy[1]
                shares[f"{name} {COLUMNS[kind]} %"] = share
                outcome.clips[f"{name} {COLUMNS[kind]} %"] = len(measured.kept)
        # in percent, as the paper prints them
        for key, share in shares.items():
            outcome.metrics[key] = Interval(100 * share.value, 100 * share.low, 100 * share.high)


def _preset(name: str, objective: Objective) -> Preset:
    """The preset of one objective: vab-tiny, vab-tiny-contrastive, vab-tiny-classes (or -vggsound)."""
    endings = {"masked": ("",), "contrastive": ("-contrastive",), "classification": ("-classes", "-vggsound")}
    names = [name + ending for ending in endings[objective]]
    preset = next((PRESETS[each] for each in names if each in PRESETS), None)
    if preset is None or preset.train.objective != objective:
        raise EvaluationError(f"{name}: there is no preset {' or '.join(names)} for {objective} training")
    return preset


def _parts(preset: Preset) -> list[tuple[str, Any]]:
    """(folder, inputs) of each training of an objective: one classifier for all inputs, or the paper's 3."""
    several = preset.train.objective == "classification" and set(preset.train.inputs) != set(COLUMNS)
    return [(kind, (kind,)) for kind in COLUMNS] if several else [("", preset.train.inputs)]


def _variant(preset: Preset, changes: Mapping[str, Any]) -> str:
    """Name the folder of a variant after its changes to the preset: ``base`` if there are none."""
    # only what makes a difference, so that ablations share what is the same
    parts = [
        f"{name.partition('.')[2]}-{value}"
        for name, value in sorted(changes.items())
        if changed(preset, {name: value}) != preset
    ]
    return "_".join(parts) or "base"


def _store(stores: list[LatentStore], preset: Preset) -> LatentStore:
    """The first store that fits; ``StoreError`` says why the last one does not."""
    return _stores(stores, preset)[0]


def _stores(stores: list[LatentStore], preset: Preset) -> list[LatentStore]:
    """All stores that fit; if none does, ``StoreError`` says why the last one does not."""
    fitting = []
    for store in stores:
        try:
            check_fits(store, preset)
        except StoreError:
            continue
        fitting.append(store)
    if not fitting:
        check_fits(stores[-1], preset)
    return fitting
