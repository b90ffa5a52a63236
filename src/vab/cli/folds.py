"""vab evaluate folds."""

from __future__ import annotations

from typing import Annotated

import tyro

from vab.cli.evaluate import SHORT_INPUTS
from vab.cli.output import print_result
from vab.cli.train import Classifying, carry_out
from vab.errors import SettingError
from vab.evaluate.paper import AUDIO_ONLY, ClassificationBenchmark
from vab.utils import count_of


def folds(
    chosen: Annotated[Classifying, tyro.conf.arg(name="")],
    benchmark: ClassificationBenchmark | None = None,
) -> int:
    """Cross-validate a classifier: test on each fold of a store after training on the others.

    vab evaluate folds PRESET --store STORE --out DIR [--init DIR]: from a contrastive or a pre-trained model
    with --init, else from scratch; --train.freeze-trunk trains a linear probe. Folds are the splits fold1,
    fold2, ... that vab data esc50 writes, any number of them. Each is measured after every epoch, and one
    epoch is chosen for all folds by the mean accuracy. Run again, it resumes.

    Args:
        benchmark: the column of the paper's Tables 4 and 5 to print beside the results.
    """
    if chosen.lengthen:
        raise SettingError(
            "a cross-validation cannot be made longer: leave --lengthen out, or use another --out"
        )
    if benchmark in AUDIO_ONLY and chosen.train.inputs != ("audio",):
        raise SettingError(f"the paper has {benchmark} from audio only: --train.inputs audio")
    if len(chosen.store) > 1 or chosen.weights is not None:
        raise SettingError("cross-validation takes one --store, and no --weights")

    from vab.evaluate.cross_validation import cross_validate
    from vab.evaluate.metrics.tables import classification_beside_paper

    found = carry_out(cross_validate, chosen)
    clips, runs = sum(found.clips.values()), count_of(len(found.clips), "fold")
    epochs = count_of(found.epochs, "epoch")
    note = "one epoch for all folds, chosen by the mean. Brackets: 95 % bootstrap intervals."
    parts = [
        f"Cross-validation: {chosen.out}\n\nN = {clips:,} in {runs}, {found.classes} classes, {epochs}; "
        f"sha256 of the ids {found.ids_sha256[:16]}; {note}",
        found.markdown(),
    ]
    for kind, each in found.accuracy.items():
        if benchmark is not None:
            parts.append(
                classification_beside_paper(benchmark, SHORT_INPUTS[kind], chosen.out.name, clips, each.mean)
            )
    document = {"run": str(chosen.out), "benchmark": benchmark, **found.document()}
    print_result(document, "\n\n".join(parts), chosen.json, together=True)
    return 0
