"""vab evaluate retrieval, vab evaluate classification, vab evaluate timing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vab.cli.options import Device, Devices, Model, Precision
from vab.cli.output import log, print_result
from vab.errors import SettingError
from vab.evaluate.paper import (
    AUDIO_ONLY,
    CLASSIFICATION_TITLES,
    MULTI_LABEL,
    ClassificationBenchmark,
    Inputs,
    RetrievalBenchmark,
)
from vab.utils.world import check_alone

if TYPE_CHECKING:
    from vab.evaluate.predictions import Predictions
    from vab.inference.embeddings import Embeddings

Store = Annotated[Path | None, tyro.conf.arg(metavar="STORE")]
InputsOption = Annotated[
    Literal["audio", "video", "both", "a", "v", "av"] | None, tyro.conf.arg(metavar="audio|video|both")
]
# as in the paper's tables
SHORT_INPUTS: dict[Literal["audio", "video", "both"], Inputs] = {"audio": "a", "video": "v", "both": "av"}
Ids = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
MAX_IDS_NAMED = 10  # in one log line
NOT_COMPUTED: Mapping[str, Any] = MappingProxyType({})  # here: what is measured came in a file


def retrieval(
    embeddings: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    store: Store = None,
    model: Model = None,
    split: str = "test",
    benchmark: RetrievalBenchmark | None = None,
    ids: Ids = None,
    block: int = 256,
    precision: Precision = "float32",
    device: Device = "auto",
    devices: Devices = 1,
    json: bool = False,
) -> int:
    """Measure retrieval of audio by video and of video by audio: R@1, R@5, R@10, median rank.

    With labels, also precision by class: the share of the first k results that share a label with the query.
    Intervals are 95 % bootstrap intervals, from 1000 resamples of the clips.

    Evaluates a model on the clips of a store (--store, --model), or embeddings from any source
    (--embeddings).

    Args:
        embeddings: .npz or .parquet file with id, audio [N, D], video [N, D] and, optionally, label.
        store: store made by vab extract; clips of the split that have both audio and video are used.
        model: a directory made by vab finetune contrastive, a model that holds one, or a Hub id. Default:
            the bundled vab-tiny.
        split: the split of the store to evaluate.
        benchmark: the column of the paper's Table 3 to print beside the results.
        ids: evaluate only these ids: a file with one per line, a JSON list, or a list from CAV-MAE.
        block: the number of queries compared at once; it does not change the result.
        precision: what the model computes in; auto is bfloat16 where that is measured to be fast, tf32 needs
            an NVIDIA GPU.
        device: the device the model runs on.
        devices: number of GPUs to share the clips out to, or of processes on a CPU.
        json: print one JSON document to standard output.
    """
    from vab.inference.embeddings import read_embeddings

    if block < 1:
        raise SettingError("--block must be 1 or more")
    if embeddings is not None and store is None:
        found = read_embeddings(embeddings)
        return _retrieval(found, embeddings, benchmark, ids, block, json)
    if store is None or embeddings is not None:
        raise SettingError("what to measure: --embeddings FILE, or --store STORE with --model DIR")
    check_alone()
    from vab.evaluate.embedding import Measured, embed_store_on
    from vab.models.hub import find_model
    from vab.utils.device import pick_precision
    from vab.utils.processes import devices_for

    folder = find_model(model)
    places = devices_for(devices, device)
    chosen = pick_precision(precision, places[0])
    found = embed_store_on(places, Measured(folder, store, split, chosen))
    return _retrieval(found, Path(folder.name), benchmark, ids, block, json, chosen.document())


def classification(
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    store: Store = None,
    model: Model = None,
    split: str = "test",
    benchmark: ClassificationBenchmark | None = None,
    inputs: InputsOption = None,
    ids: Ids = None,
    precision: Precision = "float32",
    device: Device = "auto",
    devices: Devices = 1,
    json: bool = False,
) -> int:
    """Measure a classifier: accuracy (for single-label clips), mean average precision, d', each class.

    Evaluates a model on the clips of a store (--store, --model), or scores from any source (--predictions).
    Intervals are 95 % bootstrap intervals, from 1000 resamples of the clips.

    Args:
        store: store made by vab extract.
        model: a directory made by vab finetune classify, a model that holds one, or a Hub id. Default: the
            bundled vab-tiny.
        split: the split of the store to evaluate.
        predictions: .npz file with id [N], label [N] (several joined by ";"), scores [N, C] and classes [C].
        benchmark: the column of the paper's Tables 4 to 6 to print beside the results.
        inputs: the modalities that are classified (a, v or av for short), which also select the column of the
            paper. Default: those the classifier was trained on; for --predictions both (audio for esc50 and
            spc1).
        ids: evaluate only these ids: a file with one per line, a JSON list, or a list from CAV-MAE.
        precision: what the model computes in; auto is bfloat16 where that is measured to be fast, tf32 needs
            an NVIDIA GPU.
        device: the device the model runs on.
        devices: number of GPUs to share the clips out to, or of processes on a CPU.
        json: print one JSON document to standard output.
    """
    from vab.evaluate.predictions import read_predictions

    short = SHORT_INPUTS[inputs] if inputs == "audio" or inputs == "video" or inputs == "both" else inputs
    if benchmark in AUDIO_ONLY and short not in (None, "a"):
        raise SettingError(
            f"--inputs {inputs}: the paper has {CLASSIFICATION_TITLES[benchmark]} from audio only"
        )
    if predictions is not None and store is None:
        found = read_predictions(predictions)
        return _classification(found, predictions, benchmark, short, ids, json)
    if store is None or predictions is not None:
        raise SettingError("what to measure: --predictions FILE, or --store STORE with --model DIR")
    check_alone()
    from vab.evaluate.embedding import Measured, classify_store_on
    from vab.evaluate.predictions import Predictions
    from vab.models.heads import finetuned_folders
    from vab.models.hub import ModelError, find_model, read_config
    from vab.utils.device import pick_precision
    from vab.utils.processes import devices_for

    folder = find_model(model)
    learned_in = finetuned_folders(folder).get("classification")
    if learned_in is None:
        raise ModelError(f"{folder}: knows no classes; teach it some with `vab finetune classify`")
    learned = read_config(learned_in)
    chosen = next((kind for kind in SHORT_INPUTS if SHORT_INPUTS[kind] == short), learned.train.inputs[-1])
    places = devices_for(devices, device)
    computed = pick_precision(precision, places[0])
    measured = Measured(folder, store, split, computed)
    names, scores = classify_store_on(places, measured, chosen)
    found = Predictions(names, scores, measured.clips().labels(), list(learned.classes))
    wanted = (benchmark, SHORT_INPUTS[chosen], ids, json)
    return _classification(found, Path(folder.name), *wanted, computed.document())


def timing(
    results: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RESULTS...", help_behavior_hint="(required)"),
    ],
    against: Annotated[Path, tyro.conf.arg(metavar="CLIPS")],
    clips: Annotated[str | None, tyro.conf.arg(metavar="FILE|PREFIX")] = None,
    half: Literal[1, 2] | None = None,
    seconds: float = 5.0,
    curves: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    seed: int = 0,
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Measure whether sounds happen when the clips' own sounds do, and more so than those of other clips.

    Each folder of RESULTS has the sounds of one system as vab generate names them: CLIP.wav or CLIP.mp4, then
    CLIP_2, CLIP_3 and so on; or a folder of these for each seed. The first is also compared with each of the
    others. What a codec leaves of the clips' own sounds: vab codec reconstruct CLIPS -o FOLDER --codebooks 4.

    Measured at 50 Hz without any shift: F1 of onsets within 50 and within 100 ms, each matched at most once;
    correlation of onset strength and of level, smoothed over 60 ms; the number of onsets. With Synchformer,
    DeSync. Every one also for the sound of another clip, and the paired difference. Baselines: a metronome,
    and the first folder's sounds with a gain from the clip's own onsets. Intervals are 95 % bootstrap
    intervals, from 1000 resamples of the clips.

    Args:
        results: one folder of sounds for each system.
        against: the folder of the clips with their own sound, or a manifest.
        clips: only these clips: a file with one name per line, or what their names begin with.
        half: only one half of the clips, by a hash of the name: one to choose settings on, one to report.
        seconds: the length measured of each clip, from its start.
        curves: timing curves, CLIP.csv: two more rows, the curves by themselves, and as a gain.
        seed: the random seed by which each clip is given another one.
        weights: the folder of Synchformer's weights. Default: $VAB_WEIGHTS and the caches of other tools.
        device: the device Synchformer runs on.
        json: print one JSON document to standard output.
    """
    from vab.cli.progress import file_progress
    from vab.evaluate.timing.run import TimingSettings, evaluate

    settings = TimingSettings(
        seconds=seconds, clips=clips, half=half, curves=curves, seed=seed, weights=weights, device=device
    )
    with file_progress() as progress:
        found = evaluate(results, against, settings, progress)
    for fault in found.left_out[:MAX_IDS_NAMED]:
        log(f"{fault.id}: left out, {fault.reason}")
    if len(found.left_out) > MAX_IDS_NAMED:
        log(f"and {len(found.left_out) - MAX_IDS_NAMED:,} more: --json has them all")
    if found.absent:
        log(f"no DeSync: {found.absent}")
    print_result(found.document(), found.markdown(), json)
    return 1 if found.left_out else 0


def _retrieval(
    found: Embeddings,
    source: Path,
    benchmark: RetrievalBenchmark | None,
    ids: Path | None,
    block: int,
    json: bool,
    computed: Mapping[str, Any] = NOT_COMPUTED,
) -> int:
    """Evaluate embeddings, wherever they come from, and print; ``source`` names them.

    ``computed``: the precision they were computed in, where it is known.
    """
    from vab.evaluate.metrics.retrieval import retrieval as measure
    from vab.evaluate.metrics.statistics import EvaluationError, choose
    from vab.evaluate.metrics.tables import retrieval_beside_paper

    wanted = _wanted(ids)
    try:
        rows, missing = choose(found.ids, wanted)
        names = [found.ids[row] for row in rows]
        labels = [found.labels[row] for row in rows]
        result = measure(found.audio[rows], found.video[rows], labels, block)
    except EvaluationError as error:
        raise SettingError(f"{source}: {error}") from error
    left_out = [names[row] for row in result.left_out]
    _log_ids("left out, without sound or picture", left_out)
    parts = [result.markdown()]
    tied = {way: direction.ties for way, direction in result.directions.items() if direction.ties}
    if tied:
        counts = ", ".join(f"{count} {way}" for way, count in tied.items())
        parts.append(f"Ties count for the true candidate; queries that have one: {counts}.")
    if benchmark:
        recall = {way: list(direction.recall.values()) for way, direction in result.directions.items()}
        parts.append(retrieval_beside_paper(benchmark, source.stem, len(result.kept), recall))
    document = {"benchmark": benchmark, **computed, **result.document()}
    kept = [names[row] for row in result.kept]
    return _report("Retrieval", source, (kept, left_out, missing), parts, document, json)


def _classification(
    found: Predictions,
    source: Path,
    benchmark: ClassificationBenchmark | None,
    inputs: Inputs | None,
    ids: Path | None,
    json: bool,
    computed: Mapping[str, Any] = NOT_COMPUTED,
) -> int:
    """Evaluate predictions, wherever they come from, and print; ``source`` names them.

    ``computed``: the precision they were computed in, where it is known.
    """
    from vab.evaluate.metrics.classification import classification as measure
    from vab.evaluate.metrics.classification import targets_of
    from vab.evaluate.metrics.statistics import EvaluationError, choose
    from vab.evaluate.metrics.tables import classification_beside_paper

    wanted = _wanted(ids)
    try:
        rows, missing = choose(found.ids, wanted)
        found = found.rows(rows)
        targets, unknown = targets_of(found.labels, found.classes)
        multi_label = None if benchmark is None else benchmark in MULTI_LABEL
        result = measure(found.scores, targets, found.classes, multi_label)
    except EvaluationError as error:
        raise SettingError(f"{source}: {error}") from error
    left_out = [found.ids[row] for row in result.left_out]
    _log_ids("left out, without scores or a label among the classes", left_out)
    _log_ids("labels that are no class of the scores", unknown)
    parts = [result.markdown()]
    if benchmark:
        inputs = inputs or ("a" if benchmark in AUDIO_ONLY else "av")
        ours = result.accuracy[1] if result.accuracy else result.mean_average_precision
        parts.append(classification_beside_paper(benchmark, inputs, source.stem, len(result.kept), ours))
    document = {"benchmark": benchmark, "inputs": inputs, **computed, **result.document()}
    kept = [found.ids[row] for row in result.kept]
    clips = (kept, left_out, missing)
    return _report("Classification", source, clips, parts, document, json, unknown_labels=unknown)


def _wanted(ids: Path | None) -> list[str] | None:
    """Read a list of ids; None without a list."""
    from vab.evaluate.metrics.statistics import read_ids

    return None if ids is None else read_ids(ids)


def _report(
    task: str,
    source: Path,
    clips: tuple[list[str], list[str], list[str]],
    parts: list[str],
    document: dict[str, Any],
    json: bool,
    **last: list[str],
) -> int:
    """Print a result under a heading: its source, the numbers of clips and the hash of their ids.

    ``clips`` are the ids measured, left out and missing; ``last`` ends the JSON document. The exit code.
    """
    from vab.evaluate.metrics.statistics import list_hash

    kept, left_out, missing = clips
    _log_ids(f"missing from {source}", missing)
    digest = list_hash(kept)
    counts = f"N = {len(kept):,}, {len(left_out):,} left out, {len(missing):,} missing"
    note = f"sha256 of the ids {digest[:16]}. Brackets: 95 % bootstrap intervals."
    text = "\n\n".join([f"{task}: {source}", f"{counts}; {note}", *parts])
    document = {"source": str(source), **document, "ids_sha256": digest, "left_out": left_out}
    print_result({**document, "missing": missing, **last}, text, json)
    return 1 if left_out or missing else 0


def _log_ids(reason: str, ids: Sequence[str]) -> None:
    """Log the first of some ids, if there are any."""
    if ids:
        more = f" and {len(ids) - MAX_IDS_NAMED:,} more" if len(ids) > MAX_IDS_NAMED else ""
        log(f"{len(ids):,} {reason}: {', '.join(ids[:MAX_IDS_NAMED])}{more}")
