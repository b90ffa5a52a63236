"""Retrieval and classification: against scikit-learn, against plain loops, and as users call them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import sparse, stats
from sklearn import metrics

from helpers.paper import LINES
from vab.cli import main
from vab.evaluate.metrics import classification as classification_module
from vab.evaluate.metrics.classification import classification, targets_of
from vab.evaluate.metrics.retrieval import CUTOFFS, Retrieval, retrieval
from vab.evaluate.metrics.statistics import (
    EvaluationError,
    Interval,
    bootstrap,
    choose,
    intervals,
    list_hash,
    read_ids,
)
from vab.evaluate.metrics.tables import classification_beside_paper, markdown, retrieval_beside_paper
from vab.evaluate.paper import CLASSIFICATION, RETRIEVAL, WAYS
from vab.evaluate.predictions import Predictions, read_predictions
from vab.inference.embeddings import Embeddings, write_embeddings

SOURCES = Path(__file__).parents[1] / "src"
LISTS = Path(__file__).parents[2] / "shared" / "data" / "lists"


# --- retrieval ---


def retold(queries: NDArray, candidates: NDArray, labels: list[str]) -> tuple[list[int], list[list[float]]]:
    """Ranks, and for each query with a label its precision at each cutoff: whole numbers and plain loops.

    Ties at the last place: each candidate counts by the chance that a random order would let it in.
    """
    ranks, precision = [], []
    classes = [set(filter(None, label.split(";"))) for label in labels]
    for i, query in enumerate(queries.tolist()):
        similar = [sum(x * y for x, y in zip(query, other, strict=True)) for other in candidates.tolist()]
        ranks.append(len([s for s in similar if s > similar[i]]))
        if not classes[i]:
            continue
        row = []
        for k in (min(k, len(similar)) for k in CUTOFFS):
            total = 0.0
            for j, s in enumerate(similar):
                if classes[i] & classes[j]:
                    above, level = sum(t > s for t in similar), sum(t == s for t in similar)
                    total += min(1.0, max(0.0, (k - above) / level))
            row.append(total / k)
        precision.append(row)
    return ranks, precision


signs = st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4)  # length 2: cosines are halves, many tie
clips = st.lists(
    st.tuples(signs, signs, st.sampled_from(["", "a", "b", "a;b", "c"])), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(clips, st.integers(1, 30))
def test_retrieval_is_what_plain_loops_say_also_with_ties(
    rows: list[tuple[list[int], list[int], str]], block: int
) -> None:
    audio, video = (np.array([row[n] for row in rows]) for n in (0, 1))
    labels = [row[2] for row in rows]
    found = retrieval(audio.astype(np.float32), 3 * video.astype(np.float32), labels, block)
    for way, pair in zip(WAYS, [(video, audio), (audio, video)], strict=True):
        ranks, precision = retold(*pair, labels)
        direction = found.directions[way]
        assert direction.ranks.tolist() == ranks
        assert direction.median_rank.value == np.median(ranks) + 1
        for n, k in enumerate(CUTOFFS):
            assert direction.recall[k].value == pytest.approx(sum(rank < k for rank in ranks) / len(ranks))
            if precision:
                assert direction.precision is not None
                assert direction.precision[k].value == pytest.approx(np.mean(precision, 0)[n])
        assert (direction.precision is None) == (not precision)
    assert found.labelled == len(precision)


def alike(n: int, dim: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Audio and video [n, dim] that go together, more or less."""
    generator = np.random.default_rng(seed)
    audio = generator.normal(size=(n, dim))
    return audio.astype(np.float32), (audio + 3 * generator.normal(size=(n, dim))).astype(np.float32)


def test_recall_and_rank_are_scikit_learns() -> None:
    audio, video = alike(311, 24)
    found = retrieval(audio, video)
    similar = metrics.pairwise.cosine_similarity(video, audio)
    for way, table in zip(WAYS, (similar, similar.T), strict=True):
        direction = found.directions[way]
        for k in CUTOFFS:
            wanted = metrics.top_k_accuracy_score(np.arange(311), table, k=k, labels=np.arange(311))
            assert direction.recall[k].value == pytest.approx(wanted)
            assert 0 < direction.recall[k].low <= wanted <= direction.recall[k].high < 1
        assert direction.ranks.mean() + 1 == pytest.approx(metrics.coverage_error(np.eye(311), table))
        assert direction.ties == 0


def test_neither_blocks_nor_the_order_of_rows_nor_lengths_change_a_rank() -> None:
    audio, video = alike(203, 48)
    audio[100:200] = audio[:100]  # float32 products break such ties, now and then
    labels = [f"c{n % 7}" for n in range(203)]
    first = retrieval(audio, video, labels, block=203)
    order = np.random.default_rng(1).permutation(203)
    for other, rows in [
        (retrieval(audio, video, labels, block=1), slice(None)),
        (retrieval(audio, video, labels, block=7), slice(None)),
        (retrieval(audio * 4, video * np.float32(0.5), labels), slice(None)),
        (retrieval(audio[order], video[order], [labels[n] for n in order], block=50), order),
    ]:
        for way in WAYS:
            assert np.array_equal(other.directions[way].ranks, first.directions[way].ranks[rows])
            assert other.directions[way].ties == first.directions[way].ties
            mine, its = first.directions[way].precision, other.directions[way].precision
            assert mine is not None and its is not None
            assert [its[k].value for k in CUTOFFS] == pytest.approx([mine[k].value for k in CUTOFFS])
    assert first.directions["video to audio"].ties == 200
    assert first.directions["audio to video"].ties == 0


def test_a_model_that_says_the_same_of_everything_is_found_out() -> None:
    same = np.ones((40, 5), np.float32)
    found = retrieval(same, same, ["a"] * 10 + ["b"] * 30)
    for direction in found.directions.values():
        assert not direction.ranks.any() and direction.recall[1].value == 1  # nothing is *more* similar
        assert direction.ties == 40  # and here is why
        assert direction.precision is not None and found.chance_precision is not None
        assert direction.precision[5].value == pytest.approx(found.chance_precision)
    assert found.chance_precision == pytest.approx((10 / 40 * 10 + 30 / 40 * 30) / 40)
    assert found.chance_recall == {1: 1 / 40, 5: 5 / 40, 10: 10 / 40}
    assert found.chance_median_rank == 20.5


def test_clips_without_sound_or_picture_are_left_out_and_are_no_candidates() -> None:
    audio, video = alike(30, 8)
    audio[3], video[7, 2] = np.nan, np.inf
    found = retrieval(audio, video)
    there = [n for n in range(30) if n not in (3, 7)]
    assert found.left_out.tolist() == [3, 7] and found.kept.tolist() == there
    clean = retrieval(audio[there], video[there])
    assert all(np.array_equal(found.directions[way].ranks, clean.directions[way].ranks) for way in WAYS)
    with pytest.raises(EvaluationError, match="no clip has both"):
        retrieval(np.full((4, 3), np.nan), np.ones((4, 3)))
    with pytest.raises(EvaluationError, match="not two tables"):
        retrieval(audio, video[:, :4])
    with pytest.raises(EvaluationError, match="29 labels for 30 clips"):
        retrieval(audio, video, [""] * 29)


def test_memory_is_a_block_and_not_the_square() -> None:
    n, dim, block = 6000, 8, 64
    audio, video = alike(n, dim)
    labels = [f"c{row % 309}" for row in range(n)]
    tracemalloc.start()
    found = retrieval(audio, video, labels, block)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.kept) == n
    bootstraps = 60e6  # does not grow with n
    assert peak < bootstraps + 8 * n * dim * 8 + 30 * block * n < 0.3 * 8 * n * n


# --- classification ---


def scored(seed: int, n: int, classes: int, several: bool, ties: bool) -> tuple[NDArray, NDArray]:
    """Scores [n, classes] and targets that they have to do with."""
    generator = np.random.default_rng(seed)
    targets = np.zeros((n, classes), bool)
    targets[np.arange(n), generator.integers(0, classes, n)] = True
    if several:
        targets |= generator.random((n, classes)) < 0.1
    scores = generator.normal(size=(n, classes)) + targets
    return (np.round(scores * 2) / 2 if ties else scores).astype(np.float32), targets


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_classification_is_scikit_learns(seed: int, several: bool, ties: bool) -> None:
    scores, targets = scored(seed, 90, 7, several, ties)
    targets[:, 2] = False  # a class without a clip
    there = targets.any(1)
    found = classification(scores, targets, "abcdefg", multi_label=several)
    assert found.left_out.tolist() == np.flatnonzero(~there).tolist()
    scores, targets = scores[there], targets[there]
    with_clips = [n for n in range(7) if targets[:, n].any()]
    precisions = metrics.average_precision_score(targets[:, with_clips], scores[:, with_clips], average=None)
    assert found.mean_average_precision.value == pytest.approx(np.mean(precisions))
    areas = [metrics.roc_auc_score(targets[:, n], scores[:, n]) for n in with_clips]
    assert found.d_prime.value == pytest.approx(math.sqrt(2) * stats.norm.ppf(np.mean(areas)))
    assert found.empty == 7 - len(with_clips) and found.classes[2].average_precision is None
    per_class = [each.average_precision for each in found.classes if each.clips]
    assert per_class == pytest.approx(list(precisions))
    assert [each.clips for each in found.classes] == targets.sum(0).tolist()
    if several:
        assert found.accuracy is None
    elif not ties:
        truth = targets.argmax(1)
        assert found.accuracy is not None
        for k in (1, 5):
            wanted = metrics.top_k_accuracy_score(truth, scores, k=k, labels=np.arange(7))
            assert found.accuracy[k].value == pytest.approx(wanted)
        recalls = metrics.recall_score(truth, scores.argmax(1), average=None, labels=with_clips)
        assert [each.accuracy for each in found.classes if each.clips] == pytest.approx(list(recalls))


def test_resampled_precision_and_area_are_scikit_learns_weighted_ones() -> None:
    for seed in range(6):
        scores, _ = scored(seed, 60, 1, True, ties=seed % 2 == 0)
        target = np.random.default_rng(seed).random(60) < (0.05, 0.5)[seed % 2]
        target[seed] = True
        counts = bootstrap(
            lambda rows: np.stack([np.bincount(row, minlength=60) for row in rows]) / 1.0, 60, 20
        )
        found = classification_module._resampled(
            scores[:, 0].astype(np.float64), target, counts.T.astype(np.float32), sparse
        )
        for n, weights in enumerate(counts):
            if not weights[target].any():
                assert np.isnan(found[:, n]).all()
                continue
            wanted = (
                metrics.average_precision_score(target, scores[:, 0], sample_weight=weights),
                metrics.roc_auc_score(target, scores[:, 0], sample_weight=weights),
            )
            assert found[:, n] == pytest.approx(wanted)


def test_the_weights_of_a_bootstrap_are_its_draws() -> None:
    weights = classification_module._weights(50)
    draws = bootstrap(lambda rows: rows.astype(float), 50).astype(int)
    assert weights.shape == (50, 1000)
    assert all(np.array_equal(weights[:, n], np.bincount(draws[n], minlength=50)) for n in (0, 1, 999))


def test_an_interval_holds_its_value_where_classes_are_rare() -> None:
    # plain percentiles do not: a clip drawn twice ranks beside itself
    scores, _ = scored(0, 600, 120, False, False)
    targets = np.zeros((600, 120), bool)
    targets[np.arange(600), np.arange(600) % 120] = True
    found = classification(scores + 2 * targets, targets, [str(n) for n in range(120)]).mean_average_precision
    assert found.low < found.value - 0.01 and found.value + 0.01 < found.high


def test_scores_that_tie_share_their_places() -> None:
    targets = np.eye(10, dtype=bool)[np.arange(40) % 10]
    found = classification(np.zeros((40, 10)), targets, [str(n) for n in range(10)])
    assert found.accuracy is not None
    assert found.accuracy[1].value == pytest.approx(0.1) and found.accuracy[5].value == pytest.approx(0.5)
    assert found.mean_average_precision.value == pytest.approx(0.1)
    assert found.d_prime.value == pytest.approx(0)


def test_perfect_scores_are_no_infinity_in_json() -> None:
    targets = np.eye(3, dtype=bool)[np.arange(12) % 3]
    found = classification(targets * 1.0, targets, ["x", "y", "z"])
    assert math.isinf(found.d_prime.value)
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    assert document["d_prime"]["value"] is None and document["accuracy"]["top-1"]["value"] == 1
    assert "| x | 4 | 100.0 | 100.0 |" in found.markdown()


def test_what_cannot_be_classified_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, targets = scored(0, 20, 4, True, False)
    with pytest.raises(EvaluationError, match="clips with several labels"):
        classification(scores, targets, "abcd", multi_label=False)
    with pytest.raises(EvaluationError, match="3 classes"):
        classification(scores, targets, "abc")
    with pytest.raises(EvaluationError, match="no clip has both"):
        classification(scores * np.nan, targets, "abcd")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(EvaluationError, match=re.escape("pip install 'vab[eval]'")):
        classification(scores, targets, "abcd")


def test_targets_of_labels() -> None:
    targets, unknown = targets_of(["dog;cat", "", "cow", "cat"], ["cat", "dog"])
    assert targets.tolist() == [[True, True], [False, False], [False, False], [True, False]]
    assert unknown == ["cow"]


# --- what they share ---


def test_the_bootstrap_is_seeded_and_as_wide_as_theory_says() -> None:
    values = (np.arange(2000) % 10 < 3).astype(float)
    found = intervals(values[:, None])[0]
    half = 1.96 * math.sqrt(0.3 * 0.7 / 2000)
    assert found.value == pytest.approx(0.3)
    assert found.high - 0.3 == pytest.approx(half, rel=0.15) and 0.3 - found.low == pytest.approx(
        half, rel=0.15
    )
    assert found == intervals(values[:, None])[0]
    draws = [bootstrap(lambda rows: rows.astype(float), 300, 7, seed) for seed in (1, 1, 2)]
    assert draws[0].shape == (7, 300) and draws[0].min() >= 0 and draws[0].max() < 300
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    wanted = stats.bootstrap((values,), np.mean, n_resamples=1000, method="percentile", rng=0)
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.004)


def test_a_list_of_ids_has_one_hash_whatever_its_order(tmp_path: Path) -> None:
    assert list_hash(["b", "a", "c"]) == list_hash(["a", "b", "c"]) == hashlib.sha256(b"a\nb\nc").hexdigest()
    rows, missing = choose(["a", "b", "c"], ["c", "x", "a"])
    assert rows.tolist() == [0, 2] and missing == ["x"]
    with pytest.raises(EvaluationError, match="'a' stands there more than once"):
        choose(["a", "b", "a"], None)
    for text in ("a\n\nb\r\na\n", '["a", "b"]', '{"data": [{"video_id": "a"}, {"video_id": "b", "x": 1}]}'):
        (tmp_path / "ids").write_text(text, encoding="utf-8")
        assert read_ids(tmp_path / "ids") == ["a", "b"]
    for text in ("", "[1, 2]", '["a"', '{"clips": []}', "[]"):
        (tmp_path / "ids").write_text(text, encoding="utf-8")
        with pytest.raises(EvaluationError, match="ids: "):
            read_ids(tmp_path / "ids")


@pytest.mark.skipif(not LISTS.exists(), reason="the shared lists are not here")
def test_the_retrieval_lists_of_cav_mae_are_read() -> None:
    assert len(read_ids(LISTS / "vggsound_retrieval_1545.json")) == 1545
    assert len(read_ids(LISTS / "audioset_eval_1725.json")) == 1725


def test_markdown_has_as_many_cells_in_each_line() -> None:
    lines = markdown(("a", "b|c"), [("1", "2"), ("3", "4")]).splitlines()
    assert lines == ["| a | b\\|c |", "|---|---|", "| 1 | 2 |", "| 3 | 4 |"]


# --- the paper's numbers ---


def test_some_of_the_papers_numbers() -> None:
    recall = {(row.source, row.system, row.way): row.recall for row in RETRIEVAL}
    assert recall["Table 3", "VAB-Encodec", "video to audio"]["vggsound"] == (33.5, 63.3, 74.3)
    assert recall["Table 3", "VAB-DAC", "audio to video"]["audioset"] == (37.0, 61.8, 70.8)
    assert recall["Table 3", "CAV-MAE", "audio to video"]["msrvtt"] == (7.6, 19.8, 30.2)
    scores = {(row.source, row.system): row.scores for row in CLASSIFICATION}
    assert scores["Table 4", "MAViL"]["audioset-2m"] == (53.3, 30.3, 48.7)
    assert scores["Table 4", "Perceiver"]["vggsound"] == (None, None, None)
    assert scores["Table 5", "VAB-Encodec"]["spc1"] == (None, None, 96.1)
    assert scores["Table 6", "CAV-MAE Linear Probe"]["audioset-20k"] == (29.8, None, None)
    assert scores["Table 13", "VAB-DAC-Test (MAE)"]["audioset-20k"] == (31.2, 15.9, 22.4)
    assert len(recall) == len(RETRIEVAL) and len(scores) == len(CLASSIFICATION)


def test_all_numbers_are_those_of_the_paper() -> None:
    """Each row is a line of the paper, name and cells; in Tables 10 and 14 a line holds FAD and both ways."""
    lines = set()
    for text in LINES:
        name, *cells = (cell.strip() for cell in text.split("|"))
        numbers = [None if cell == "-" else float(cell) for cell in cells if re.fullmatch(r"-|[\d.]+", cell)]
        lines.add((re.sub(r" \[\d+\]| \(Ours\)", "", name), *numbers))
    both_ways = {(line[0], *half) for line in lines if len(line) == 8 for half in (line[2:5], line[5:8])}
    checked = 0
    for row in RETRIEVAL:
        line = (row.system.replace(", then", ""), *(x for found in row.recall.values() for x in found))
        if row.source != "CAV-MAE Sync, its page (CVPR 2025)":
            assert line in (lines if row.source == "Table 3" else both_ways), row
            checked += 1
    assert checked == 10 + 4 + 4
    for entry in CLASSIFICATION:
        scores = [x for found in entry.scores.values() for x in found]
        scores = [x for x in scores if x is not None] if entry.source == "Table 5" else scores
        assert (entry.system, *scores) in lines, entry
    assert len(CLASSIFICATION) == 8 + 6 + 3 + 3 + 6 + 2


def test_tables_beside_the_papers() -> None:
    mine = [Interval(0.5, 0.4, 0.6), Interval(0.7, 0.6, 0.8), Interval(0.9, 0.8, 1.0)]
    text = retrieval_beside_paper("vggsound", "mine", 1400, {way: mine for way in WAYS})
    assert "| VAB-Encodec | 33.5 | 63.3 | 74.3 | 34.9 | 62.7 | 73.1 | Table 3 |" in text
    assert "| CAV-MAE Sync | 27.9 | 51.7 | 61.8 | 23.2 | 46.2 | 58.1 |" in text
    assert "| mine | 50.0 [40.0, 60.0] |" in text and "Here N = 1,400. CAV-MAE's list has 1,545 clips" in text
    assert "fine-tuned" in text and "Table 14" not in text
    assert "Sync |" not in retrieval_beside_paper("msrvtt", "mine", 9, {way: mine for way in WAYS})
    text = classification_beside_paper("vggsound", "v", "mine", 10, mine[0])
    assert "| MAViL | 50.9 | Table 4 |" in text and "| VAB-Encodec Linear Probe | 53.4 | Table 6 |" in text
    assert "G-Blend" not in text and "| system | accuracy | source |" in text
    assert "| system | mAP | source |" in classification_beside_paper("audioset-2m", "av", "m", 10, mine[0])


# --- the command line ---


def vab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a call."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int) and "Traceback" not in err
    return left.value.code, out, err


def written(folder: Path, name: str = "e.npz") -> tuple[Path, Embeddings]:
    """Embeddings of 30 clips on disk; the third has no sound."""
    audio, video = alike(30, 16)
    audio[2] = np.nan
    found = Embeddings([f"id{n}" for n in range(30)], audio, video, [f"c{n % 3}" for n in range(30)])
    write_embeddings(folder / name, found)
    return folder / name, found


@pytest.mark.parametrize("name", ["e.npz", "e.parquet"])
def test_retrieval_as_users_call_it(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    file, embeddings = written(tmp_path, name)
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join([f"id{n}" for n in range(20)] + ["nowhere"]), encoding="utf-8")
    call = ("evaluate", "retrieval", "--embeddings", file, "--ids", ids, "--benchmark", "vggsound")
    code, out, err = vab(capsys, *call)
    assert code == 1 and "N = 19, 1 left out, 1 missing" in out
    assert "nowhere" in err and "id2" in err
    assert "| VAB-DAC | 30.8 |" in out and "median rank" in out and "P@10 %" in out and "| e | " in out
    code, out, _ = vab(capsys, *call, "--json", "--block", 4)
    document = json.loads(out)
    kept = [n for n in range(20) if n != 2]
    direct: Retrieval = retrieval(embeddings.audio[kept], embeddings.video[kept])
    assert code == 1 and document["clips"] == 19
    assert document["left_out"] == ["id2"] and document["missing"] == ["nowhere"]
    assert document["ids_sha256"] == list_hash([f"id{n}" for n in kept])
    for way in WAYS:
        recall = direct.directions[way].recall[5]
        assert document[way]["R@5"] == pytest.approx(vars(recall))
    assert document["chance"]["R@1"] == pytest.approx(1 / 19)


def write_predictions(path: Path, found: Predictions) -> None:
    """The npz that ``read_predictions`` describes, as any tool would write it."""
    np.savez(path, id=found.ids, label=found.labels, scores=found.scores, classes=found.classes)


def predictions(folder: Path) -> tuple[Path, Predictions]:
    """Scores of 40 clips for 4 classes on disk: all is well with them."""
    scores, targets = scored(3, 40, 4, False, False)
    classes = ["dog", "cat", "cow", "owl"]
    labels = [classes[n] for n in targets.argmax(1)]
    found = Predictions([f"id{n}" for n in range(40)], scores, labels, classes)
    write_predictions(folder / "p.npz", found)
    return folder / "p.npz", found


def test_classification_as_users_call_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, made = predictions(tmp_path)
    code, out, err = vab(capsys, "evaluate", "classification", "--predictions", file, "--benchmark", "esc50")
    assert code == 0 and not err
    assert "| Aud-MAE | 94.1 | Table 5 |" in out and "ESC-50, from A" in out and "| dog |" in out
    code, out, _ = vab(capsys, "evaluate", "classification", "--predictions", file, "--json")
    document = json.loads(out)
    right = np.mean([made.classes[n] == t for n, t in zip(made.scores.argmax(1), made.labels, strict=True)])
    assert code == 0 and document["accuracy"]["top-1"]["value"] == pytest.approx(right)
    assert document["multi_label"] is False and len(document["per_class"]) == 4
    odd = Predictions(made.ids, made.scores, ["dog;cat", "", "ant", *made.labels[3:]], made.classes)
    write_predictions(file, odd)
    code, out, err = vab(
        capsys,
        "evaluate",
        "classification",
        "--predictions",
        file,
        "--benchmark",
        "audioset-20k",
        "--inputs",
        "v",
    )
    assert code == 1 and "id1, id2" in err and "ant" in err
    assert "| VAB-Encodec | 29.0 | Table 4 |" in out and "N = 38" in out and "accuracy |" not in out


def test_predictions_survive_the_disk(tmp_path: Path) -> None:
    file, made = predictions(tmp_path)
    back = read_predictions(file)
    assert (back.ids, back.labels, back.classes) == (made.ids, made.labels, made.classes)
    assert np.array_equal(back.scores, made.scores) and back.scores.dtype == np.float32


def bad_calls(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Calls that cannot work, and what has to be said about them."""
    embeddings, _ = written(folder)
    good, made = predictions(folder)
    (folder / "junk.npz").write_bytes(b"not a zip file")
    (folder / "cut.npz").write_bytes(good.read_bytes()[:200])
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "bare.npz", id=np.array(["a"]))
    np.savez(folder / "flat.npz", id=["a"], label=["x"], scores=[0.5], classes=["x"])
    np.savez(folder / "short.npz", id=["a"], label=["x"], scores=np.ones((2, 1)), classes=["x"])
    np.savez(folder / "again.npz", id=["a"], label=["x"], scores=np.ones((1, 2)), classes=["x", "x"])
    twice = Predictions(["id0"] * 40, made.scores, made.labels, made.classes)
    write_predictions(folder / "twice.npz", twice)
    several = Predictions(made.ids, made.scores, ["dog;cat"] * 40, made.classes)
    write_predictions(folder / "several.npz", several)
    (folder / "none.txt").write_text("nobody\n", encoding="utf-8")
    first: list[object] = ["retrieval", "--embeddings"]
    second: list[object] = ["classification", "--predictions"]
    calls: dict[str, tuple[list[object], str]] = {
        "no file": ([*first, folder / "no.npz"], "no.npz: No such file"),
        "not npz": ([*first, folder / "junk.npz"], "junk.npz: "),
        "no vectors": ([*first, folder / "bare.npz"], "has no audio, video"),
        "no ids": ([*first, embeddings, "--ids", folder / "no.txt"], "no.txt: No such file"),
        "other ids": ([*first, embeddings, "--ids", folder / "none.txt"], "e.npz: none of the wanted ids"),
        "no block": ([*first, embeddings, "--block", 0], "--block must be 1 or more"),
        "no predictions": ([*second, folder / "no.npz"], "no.npz: No such file"),
        "video of esc50": ([*second, good, "--benchmark", "esc50", "--inputs", "video"], "from audio only"),
        "two labels": ([*second, folder / "several.npz", "--benchmark", "vggsound"], "40 clips with several"),
        "an id twice": ([*second, folder / "twice.npz"], "twice.npz: the id 'id0' stands there"),
    }
    for name, text in {
        "junk": "not an npz",
        "cut": "not an npz",
        "empty": "not an npz",
        "bare": "has no label, scores, classes",
        "flat": "scores is not a table",
        "short": "id, label, classes have lengths",
        "again": "a class stands there twice",
    }.items():
        calls[f"{name} predictions"] = ([*second, folder / f"{name}.npz"], f"{name}.npz: {text}")
    return calls


def test_bad_calls_are_one_clear_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, (call, text) in bad_calls(tmp_path).items():
        code, out, err = vab(capsys, "evaluate", *call)
        assert (code, out) == (2, ""), name
        assert text in err and err.startswith("vab: ") and err.count("\n") == 1, (name, err)


def test_the_installed_command_needs_no_torch(tmp_path: Path) -> None:
    file, _ = written(tmp_path)
    code = "import sys; from vab.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command: list[Any] = [sys.executable, "-c", code, "evaluate", "retrieval", "--embeddings", file]
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert "| video to audio |" in done.stdout and done.stdout.endswith("False\n")
    assert done.stderr == "1 left out, without sound or picture: id2\n"
