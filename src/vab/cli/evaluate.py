"""vab evaluate retrieval, vab evaluate classification."""

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
