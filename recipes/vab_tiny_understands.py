"""What vab-tiny understands, and the ablations C.1 to C.4 at its scale: trains and measures all of it.

    python recipes/vab_tiny_understands.py DATA RUN [--steps 250] [--vab DIR]
                                           e.g. ../shared/data runs/tiny

RUN holds the latents in ``store`` and the pre-trained model in ``vab`` (see vab_tiny.sh). Every run takes the
same number of steps, a fold of ESC-10 half as many: with 250 all of it takes about an hour on one core. A run
that is done is left as it is, one that was cut goes on. Results are in RUN/understands-250/results.json and
results.md: of the split dev or of the folds, with intervals that resample files, not windows of files.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from vab.cli import main as command_line
from vab.data.manifest import Clip, write_manifest
from vab.data.store import LatentStore
from vab.evaluate.embedding import classify_store, embed_store
from vab.evaluate.metrics.statistics import Interval, bootstrap
from vab.evaluate.metrics.tables import COLUMNS, markdown
from vab.evaluate.paper import CLASSIFICATION, RETRIEVAL, WAYS
from vab.models.heads import Inputs, load_finetuned, load_network
from vab.models.hub import read_config
from vab.models.vab import VAB
from vab.training.batches import ClipBatches
from vab.training.masking import apply_mask

MASKED, CONTRAST, CLASSES = (
    "pretrain vab-tiny",
    "finetune contrastive vab-tiny-contrastive",
    "finetune classify vab-tiny-classes",
)
PROBE = "--train.freeze-trunk --train.learning-rate 1e-2"
SHARED = "--model.no-experts"  # one feed-forward network for both modalities
SOUND = "--train.inputs audio"
DIGITS = f"{SOUND} --model.seconds 1 --train.crop-seconds 0"
INPUTS: dict[Inputs, str] = {"audio": "A", "video": "V", "both": "V+A"}
STARTS = ("scratch", "pre-trained", "contrastive")
NOTES = (
    "Columns: what fine-tuning started from; the linear probe stands on the contrastive model. V and V+A: "
    "the clips of classes that have photos. The other folds of ESC-10 were in the pre-training and the "
    "contrast, where sounds meet photos of their label. The digits' interval resamples clips of one speaker."
)


class Measured(NamedTuple):
    """What was measured on each dev clip; NaN where it could not be."""

    values: NDArray[np.float64]  # [N] 1 for right and 0 for wrong; or a mean loss
    weights: NDArray[np.float64]  # [N] how many things that is the mean of
    files: list[str]  # [N] clips that are windows of the same file count together


Measure = Callable[[Path], Measured]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--vab", type=Path, help="the pre-trained model, if it is not RUN/vab")
    chosen = parser.parse_args()
    run, out = chosen.run, chosen.run / f"understands-{chosen.steps}"
    store, vab_tiny = run / "store", chosen.vab or run / "vab"
    esc10, digits, unseen = stores(chosen.data, run)

    def train(name: str, what: str, init: Path | None = None, latents: Path = store) -> Path:
        folder = out / name
        if not (folder / "record.json").is_file():
            length = f"--max-steps {chosen.steps} --train.save-every {-(-chosen.steps // 2)}"
            vab(what, "--store", latents, "--out", folder, length, *start(init))
        return folder

    # from nothing, and from the long pre-training (C.1, C.4)
    contrast, contrast_scratch = train("contrast", CONTRAST, vab_tiny), train("contrast-scratch", CONTRAST)
    inits = dict(zip(STARTS, (None, vab_tiny, contrast), strict=True))
    classes = {name: train(f"classes-{name}", CLASSES, init) for name, init in inits.items()}
    classes["linear probe"] = train("classes-probe", f"{CLASSES} {PROBE}", contrast)
    spoken = {
        name: train(f"digits-{name}", f"{CLASSES} {DIGITS}", init, digits) for name, init in inits.items()
    }
    folds = {}
    for name, init in inits.items():
        length = f"--max-steps {-(-chosen.steps // 2)}"
        what = f"evaluate folds vab-tiny-classes {SOUND} {length}"
        folds[name] = vab(what, "--store", esc10, "--out", out / f"esc10-{name}", *start(init))
    # a pre-training as short as all the rest, to compare experts (C.2) and orders (C.3)
    masked = train("masked", MASKED)
    masked_contrast = train("masked-contrast", CONTRAST, masked)
    contrast_masked = train("contrast-masked", MASKED, contrast_scratch)
    with_experts = train("masked-contrast-classes", CLASSES, masked_contrast)
    shared = train("shared-masked", f"{MASKED} {SHARED}")
    shared = train("shared-masked-contrast", f"{CONTRAST} {SHARED}", shared)
    without = train("shared-masked-contrast-classes", f"{CLASSES} {SHARED}", shared)

    tasks = [
        row_of(f"30 classes, {short}", partial(told_right, store, kind), classes)
        for kind, short in INPUTS.items()
    ]
    tasks.append(
        row_of("spoken digits of an unknown speaker, A", partial(told_right, digits, "audio"), spoken)
    )
    tasks += fold_rows(folds, unseen)
    nearest = [partial(nearest_fits, store, way) for way in range(2)]
    ablations = []
    for title, a, b, theirs in (
        (
            "C.1 classes: from scratch → pre-trained and contrastive",
            classes["scratch"],
            classes["contrastive"],
            ("From Scratch", ""),
        ),
        ("C.2 classes: without → with experts", without, with_experts, ("w.o. experts", "")),
        (
            "C.4 classes: from pre-trained → contrastive",
            classes["pre-trained"],
            classes["contrastive"],
            ("w.o. contrastive ft", "w. contrastive ft"),
        ),
    ):
        for kind, short in INPUTS.items():
            measure = partial(told_right, store, kind)
            ablations.append(compared(f"{title}, {short}", measure, a, b, classes_in_paper(theirs, kind)))
    for way, measure in zip(WAYS, nearest, strict=True):
        title = f"C.1 {way}: from scratch → pre-trained"
        ablations.append(
            compared(title, measure, contrast_scratch, contrast, "from scratch takes more epochs")
        )
        title = f"C.3 {way}: contrast alone → after masked prediction"
        ablations.append(compared(title, measure, contrast_scratch, masked_contrast, retrieval_in_paper(way)))
    title = "C.3 loss of masked tokens: after contrast → alone"
    loss = partial(masked_loss, store)
    ablations.append(compared(title, loss, contrast_masked, masked, "FAD 4.14 → 4.18: no help", unit=1))

    results = {"steps": chosen.steps, "model": str(vab_tiny), "tasks": tasks, "ablations": ablations}
    (out / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    text = tables(tasks, ablations)
    (out / "results.md").write_text(text)
    print(f"\n{text}\nThis is {out / 'results.md'}.")


# --- running ---


def vab(*words: str | Path) -> Any:
    """Do what the command line says, and give what it prints with --json. Texts are split, paths are not."""
    call = [part for word in words for part in ([str(word)] if isinstance(word, Path) else word.split())]
    print("vab", shlex.join(call), flush=True)
    sys.argv = ["vab", *call]  # for the record of the run
    said = io.StringIO()
    with redirect_stdout(said):
        try:
            command_line([*call, "--json"])
        except SystemExit as left:
            if left.code:
                raise
    return json.loads(said.getvalue())


def start(init: Path | None) -> tuple[str | Path, ...]:
    """The option for a model to start from."""
    return () if init is None else ("--init", init)


def stores(data: Path, run: Path) -> tuple[Path, Path, list[str]]:
    """Latents of ESC-10 by folds, of spoken digits by speaker, and which folds no model was trained on."""
    sounds = list(csv.DictReader((data / "sounds.csv").open()))

    def clip(row: dict[str, str], split: str) -> Clip:
        return Clip(row["file"], (data / row["file"]).absolute(), None, label=row["label"], split=split)

    esc10 = [clip(row, f"fold{row['esc_fold']}") for row in sounds if row["esc_fold"]]
    digits = [clip(row, row["split"]) for row in sounds if row["label"].startswith("digit_")]
    codec = ("--codec-path", run / "codec") if (run / "codec").is_dir() else ()
    # a digit lasts 0.4 s, hardly one more than a second: a window of 5 s would be padding
    for name, clips, options in (("esc10", esc10, "--fill repeat"), ("digits", digits, "--seconds 1")):
        write_manifest(run / f"{name}.csv", clips)
        vab("extract", run / f"{name}.csv", "-o", run / name, f"--preset vab-tiny {options}", *codec)
        own, theirs = (LatentStore.open(run / place).codebook_vectors() for place in (name, "store"))
        if not np.array_equal(own, theirs):
            raise SystemExit(f"{run / name} and {run / 'store'} come from different codecs")
    unseen = {f"fold{row['esc_fold']}" for row in sounds if row["esc_fold"] and row["split"] == "dev"}
    return run / "esc10", run / "digits", sorted(unseen)


# --- measuring ---


def told_right(store: Path, kind: Inputs, run: Path) -> Measured:
    """Whether a classifier's likeliest class is the clip's."""
    classifier = load_finetuned(run).classifier
    assert classifier is not None
    network, learned = classifier
    clips = ClipBatches(LatentStore.open(store), learned, "dev")
    ids, scores = classify_store(network, clips, kind, learned.train.loss)
    names = np.array(learned.classes)[np.nan_to_num(scores).argmax(1)]
    right = np.where(np.isnan(scores[:, 0]), np.nan, names == np.array(clips.labels()))
    return Measured(right, np.ones(len(right)), [name.partition("@")[0] for name in ids])


def nearest_fits(store: Path, way: int, run: Path) -> Measured:
    """Whether the sound nearest to a picture has its label (way 0), or the picture nearest to a sound (1)."""
    contrastive = load_finetuned(run).contrastive
    assert contrastive is not None
    network, taught = contrastive
    found = embed_store(network, ClipBatches(LatentStore.open(store), taught, "dev"))
    seen = np.isfinite(found.video[:, 0])
    queries, candidates = (found.video, found.audio)[:: 1 - 2 * way]
    labels = np.array(found.labels)
    right = np.full(len(seen), np.nan)
    right[seen] = labels[seen][(queries[seen] @ candidates[seen].T).argmax(1)] == labels[seen]
    return Measured(right, np.ones(len(right)), [name.partition("@")[0] for name in found.ids])


@torch.no_grad()
def masked_loss(store: Path, run: Path) -> Measured:
    """The cross entropy (nats) of each clip's masked tokens, with the masks of validation."""
    preset = read_config(run)
    network = load_network(run, lambda: VAB(preset.model)).eval()
    clips = ClipBatches(LatentStore.open(store), preset, "dev")
    values, weights, files = [], [], []
    for rows in clips.dev_batches():
        batch = clips.dev_batch(rows)
        logits = network(apply_mask(batch.tokens, batch.mask, preset.model.codebook_size), batch.features)
        each = cross_entropy(logits.movedim(-1, 1), batch.tokens, reduction="none") * batch.mask
        count = batch.mask.sum((1, 2))
        values.append((each.sum((1, 2)) / count).double().numpy())
        weights.append(count.double().numpy())
        files += [name.partition("@")[0] for name in batch.ids]
    return Measured(np.concatenate(values), np.concatenate(weights), files)


def interval(found: Measured) -> tuple[Interval, int]:
    """The mean with its 95 % interval, by 1000 resamples of the files; and the number of clips."""
    there = np.isfinite(found.values)
    _, file = np.unique(np.array(found.files)[there], return_inverse=True)
    weights = found.weights[there]
    sums = np.bincount(file, found.values[there] * weights)
    counts = np.bincount(file, weights)
    means = bootstrap(lambda rows: (sums[rows].sum(1) / counts[rows].sum(1))[:, None], len(sums))
    return Interval.of(float(sums.sum() / counts.sum()), means[:, 0]), int(there.sum())


def row_of(task: str, measure: Measure, runs: dict[str, Path]) -> dict[str, Any]:
    """One task: N, and the accuracy by what a classifier started from."""
    found = {name: interval(measure(run)) for name, run in runs.items()}
    clips = next(iter(found.values()))[1]
    return {"task": task, "N": clips, **{name: each.document() for name, (each, _) in found.items()}}


def fold_rows(folds: dict[str, dict[str, Any]], unseen: Sequence[str]) -> list[dict[str, Any]]:
    """ESC-10: the mean over the folds; and those alone whose sounds the pre-training did not see either."""
    sizes = next(iter(folds.values()))["clips"]
    rows: list[dict[str, Any]] = [
        {"task": f"ESC-10, mean of {len(sizes)} folds, A", "N": sum(sizes.values())}
    ]
    rows[0] |= {name: found["accuracy"]["audio"]["mean"] for name, found in folds.items()}
    for fold in unseen:
        clips = sizes[fold]
        rows.append({"task": f"ESC-10, {fold} alone (new to the pre-training too), A", "N": clips})
        for name, found in folds.items():
            right = np.arange(clips) < round(found["accuracy"]["audio"]["folds"][fold] * clips)
            each = Measured(right.astype(float), np.ones(clips), [str(n) for n in range(clips)])
            rows[-1][name] = interval(each)[0].document()
    return rows


def compared(title: str, measure: Measure, a: Path, b: Path, paper: str, unit: float = 100) -> dict[str, Any]:
    """One ablation: two runs on the same clips, and their difference."""
    first, second = measure(a), measure(b)
    pairs = {"a": first, "b": second, "difference": first._replace(values=second.values - first.values)}
    found = {name: interval(each) for name, each in pairs.items()}
    row: dict[str, Any] = {"what": title, "N": found["a"][1], "unit": "%" if unit == 100 else "nats"}
    return row | {name: each.document() for name, (each, _) in found.items()} | {"paper": paper}


# --- telling ---


def classes_in_paper(systems: Sequence[str], kind: Inputs) -> str:
    """The paper's accuracies on VGGSound of two variants of VAB-DAC-Test."""
    column = COLUMNS.index({"audio": "a", "video": "v", "both": "av"}[kind])
    names = [f"VAB-DAC-Test {system}".strip() for system in systems]
    scores = {row.system: row.scores["vggsound"] for row in CLASSIFICATION if "vggsound" in row.scores}
    return " → ".join(f"{scores[name][column]}" for name in names)


def retrieval_in_paper(way: str) -> str:
    """The paper's R@1 on VGGSound of the two orders."""
    rows = [row for row in RETRIEVAL if row.source == "Table 10" and row.way == way]
    return "R@1 " + " → ".join(str(row.recall["vggsound"][0]) for row in rows)


def tables(tasks: list[dict[str, Any]], ablations: list[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    columns = [*STARTS, "linear probe"]
    rows = [[row["task"], str(row["N"]), *(cell(row.get(name)) for name in columns)] for row in tasks]
    parts = [markdown(["accuracy in %", "N", *columns], rows)]
    rows = []
    for row in ablations:
        unit = 100 if row["unit"] == "%" else 1
        cells = [cell(row[name], unit) for name in ("a", "b", "difference")]
        rows.append([row["what"], row["unit"], str(row["N"]), *cells, row["paper"]])
    parts.append(markdown(["a → b", "in", "N", "a", "b", "b - a", "the paper, a → b"], rows))
    return "\n\n".join([parts[0], NOTES, parts[1]]) + "\n"


def cell(found: dict[str, float] | None, unit: float = 100) -> str:
    """A value with its interval, in percent or as it is."""
    if found is None:
        return ""
    digits = 1 if unit == 100 else 3
    value, low, high = (f"{unit * found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main()
