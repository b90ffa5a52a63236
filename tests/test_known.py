"""Pictures unlike all that a model learned: the score, its statistics, and where it is told."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny import write_bars, write_model
from helpers.training import META, fill, preset
from vab.cli import main
from vab.data.mixture import Mixture
from vab.data.shard import Latents
from vab.data.store import LatentStore
from vab.inference.embedder import judge_picture
from vab.inference.pipeline import VABPipeline
from vab.models.heads import Finetuned, load_finetuned
from vab.models.hub import KNOWN, ModelError, find_model, known_models, model_files
from vab.models.known import ClassStatistics, Known
from vab.studio.project import Projects
from vab.studio.service import StudioService
from vab.studio.takes import TakeMaker
from vab.studio.uploads import make_clip
from vab.training.checkpoint import ship
from vab.training.known import FALSE_ALARMS, class_statistics
from vab.training.trainer import train

DOUBT = "may not know what this shows"
CAT = Path(__file__).parents[1] / "examples" / "cat.mp4"


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds of four labels, and pictures of all but the last."""
    return fill(tmp_path_factory.mktemp("latents") / "store", clips=80, pictures="other")


@pytest.fixture(scope="module")
def run(latents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = preset("classification", inputs=("video",), pair_by_label=True)
    return train(chosen, latents, tmp_path_factory.mktemp("run") / "classes", max_steps=40)


@pytest.fixture(scope="module")
def bundled() -> VABPipeline:
    return VABPipeline.from_pretrained(device="cpu")


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    return write_bars(tmp_path / "bars.png")


def judge(finetuned: Finetuned, features: torch.Tensor) -> Known:
    known = judge_picture(finetuned, features)
    assert known is not None
    return known


def look(pipeline: VABPipeline, path: Path) -> Known | None:
    """The verdict on the picture of a file."""
    _, result = next(pipeline.embedder.classify_files([path], "video"))
    assert not isinstance(result, str), result
    return result.known


def vab(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    """Standard output and error of a command that succeeds."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    out = capsys.readouterr()
    assert not left.value.code, out.err
    return out.out, out.err


def test_the_score_is_the_expected_cosine() -> None:
    """By hand: half of the probability is on a class straight ahead, half on one at a right angle."""
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]])
    logits = torch.tensor([[0.0, 0.0, -99.0], [99.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    scores, cosines = ClassStatistics(means, 0.5).scores(vectors, logits)
    assert scores.tolist() == pytest.approx([0.5, -1.0, 1.4 / 3])
    assert cosines[2].tolist() == pytest.approx([0.6, 0.8, 0.0])


def test_what_scores_less_than_the_threshold_is_told() -> None:
    known, unknown = (Known(score, 0.5, (("big_cat", 0.4),)) for score in (0.5, 0.49))
    assert known.is_known and not unknown.is_known
    note = unknown.note("it")
    assert note.startswith("it may not know what this shows") and "nearest: big cat" in note


def test_fine_tuning_leaves_the_statistics(run: Path, latents: Path, tmp_path: Path) -> None:
    finetuned, store = load_finetuned(run), LatentStore.open(latents)
    assert finetuned.classifier is not None and finetuned.known is not None
    statistics = finetuned.known
    assert finetuned.pictured == ["0", "1", "2"], "of label 3 there are sounds alone"

    # means have length one, and the dev pictures score as the threshold promises
    assert statistics.means[:3].norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    rows = [n for n in range(len(store)) if store.splits[n] == "dev" and store.has("features")[n]]
    features = torch.from_numpy(store.gather("features", np.array(rows))[:, 1::2].astype(np.float32))
    judged = [judge(finetuned, one) for one in features]
    told = [not one.is_known for one in judged]
    assert 0 < sum(told) <= max(1, FALSE_ALARMS * len(rows))
    right = [one.nearest[0][0] == store.labels[row] for one, row in zip(judged, rows, strict=True)]
    assert np.mean(right) > 0.8
    assert "3" not in {name for one in judged for name, _ in one.nearest}

    # what was never seen lies elsewhere
    random = torch.Generator().manual_seed(0)
    foreign = [torch.randn(2, 8, generator=random) + offset for offset in torch.linspace(-40, -4, 20)]
    assert np.mean([not judge(finetuned, one).is_known for one in foreign]) > 0.8

    # they travel with the model, and those of another classifier do not stay
    ship(run, tmp_path / "model")
    shipped = load_finetuned(run).known
    assert shipped is not None and torch.equal(shipped.means, statistics.means)
    (run / KNOWN).rename(tmp_path / KNOWN)
    ship(run, tmp_path / "model")
    (tmp_path / KNOWN).rename(run / KNOWN)
    assert not (tmp_path / "model" / KNOWN).exists()


def test_an_exported_classifier_has_them_once_its_run_has_ended(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    _, err = vab(capsys, "export", run, "-o", out)
    assert err == "" and (out / KNOWN).read_bytes() == (run / KNOWN).read_bytes()
    going = shutil.copytree(run, tmp_path / "going")
    (going / KNOWN).unlink()  # not made yet
    _, err = vab(capsys, "export", going, "-o", out)
    assert "without known.safetensors" in err and not (out / KNOWN).exists()


def test_a_clip_is_judged_by_all_of_its_windows(run: Path) -> None:
    finetuned = load_finetuned(run)
    one, other = torch.full((2, 8), 0.0), torch.full((2, 8), 4.0)
    scores = [judge(finetuned, part).score for part in (one, other)]
    assert scores[0] != pytest.approx(scores[1], abs=5e-3)
    for clip, weights in (([one, other], (1, 1)), ([one, other, other], (1, 2)), ([one, other[:1]], (1, 1))):
        expected = np.average(scores, weights=weights)
        assert judge(finetuned, torch.cat(clip)).score == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("without", ["dev", "train", "pictures", "video"])
def test_without_pictures_in_both_splits_nothing_is_said(tmp_path: Path, without: str) -> None:
    random = np.random.default_rng(0)
    store = LatentStore.create(tmp_path / "store", META, random.normal(size=(2, 16, 4)).astype(np.float32))
    features = random.normal(size=(24, *META.feature_shape)).astype(np.float16)
    tokens = random.integers(0, 16, (24, *META.token_shape), dtype=np.uint16)
    splits = ["dev" if n % 2 else "train" for n in range(24)]
    seen = [without != "pictures" and split != without for split in splits]
    store.add(
        [Latents(f"c{n}", "a", splits[n], tokens[n], features[n] if seen[n] else None) for n in range(24)]
    )
    inputs = ("audio",) if without in ("video", "train", "pictures") else ("audio", "video")
    run = train(preset("classification", inputs=inputs), tmp_path / "store", tmp_path / "run", max_steps=2)
    assert not (run / KNOWN).exists() and load_finetuned(run).known is None
    network = load_finetuned(run).classifier
    assert network is not None
    found = class_statistics(network[0], Mixture.open(tmp_path / "store"), network[1])
    assert (found is None) == (without != "video")


def test_statistics_of_another_classifier_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for damage in (torch.ones(3, 32), torch.full((4, 32), torch.nan), torch.zeros(4, 32)):
        ClassStatistics(damage, 0.5).save(tmp_path / "run")
        with pytest.raises(ModelError, match=r"known\.safetensors: does not fit the classifier beside it"):
            load_finetuned(tmp_path / "run")
    (tmp_path / "run" / KNOWN).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"known\.safetensors: cannot be read"):
        load_finetuned(tmp_path / "run")


def test_a_model_without_statistics_says_nothing(
    tmp_path: Path, bars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every model of version 0.1.0."""
    model = write_model(tmp_path / "model")
    assert look(VABPipeline.from_pretrained(model, device="cpu"), bars) is None
    out, err = vab(capsys, "generate", bars, "-o", tmp_path / "out", "--model", model, "--json")
    (result,) = json.loads(out)["results"]
    assert result["known"] is None and DOUBT not in out + err


def test_statistics_survive_saving(bundled: VABPipeline, bars: Path, tmp_path: Path) -> None:
    bundled.save_pretrained(tmp_path / "model")
    saved = VABPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert look(saved, bars) == look(bundled, bars)
    assert model_files(tmp_path / "model") == model_files(find_model())  # and so does all else that makes it


def test_the_command_line_and_the_report_tell(
    bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("-o", tmp_path / "out", "--steps", 1, "--seed", 3)
    out, err = vab(capsys, "generate", CAT, bars, *quick, "--samples", 2, "--report")
    (line,) = [line for line in err.splitlines() if DOUBT in line]
    assert line.startswith(f"{bars}: vab-tiny may not know")
    note = line.removeprefix(f"{bars}: ")
    assert len(note) < 140
    assert f"{bars}: done" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(DOUBT) == 1
    assert page.index("cat.mp4") < page.index("bars.png") < page.index(DOUBT)

    out, err = vab(capsys, "generate", CAT, bars, *quick, "--json")
    cat, foreign = json.loads(out)["results"]
    assert cat["known"]["is_known"] and cat["known"]["nearest"][0][0] == "cat"
    assert not any(DOUBT in note for note in cat["notes"])
    assert not foreign["known"]["is_known"] and note in foreign["notes"]
    assert foreign["known"]["score"] < foreign["known"]["threshold"] <= cat["known"]["score"]
    assert len(foreign["known"]["nearest"]) == 3


def test_classes_are_said_with_doubt(bars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = vab(capsys, "classify", CAT, bars)
    cat, foreign = out.splitlines()[1:]
    assert "may be none of these" in foreign and "may be none of these" not in cat
    sound = next((CAT.parent / "sounds").rglob("*.ogg"))
    out, _ = vab(capsys, "classify", CAT, bars, sound, "--json")
    judged = [one["known"] for one in json.loads(out)["files"]]
    assert judged[0]["is_known"] and not judged[1]["is_known"] and judged[2] is None, "a sound shows nothing"


def test_the_studio_looks_at_a_clip_that_is_taken_in(
    bundled: VABPipeline, bars: Path, tmp_path: Path
) -> None:
    service = StudioService(TakeMaker(bundled), Projects(tmp_path / "projects"))
    try:
        for picture, is_known in ((bars, False), (CAT, True)):
            with service.projects.new_folder() as folder:
                upload = shutil.copy(picture, folder / f"upload{picture.suffix}")
                clip = replace(make_clip(upload, folder), upload=upload.name, name=picture.name)
                project = service.create(clip, picture.stem)
            assert project.jobs["look"].ended.wait(60)
            assert project.answers["known"]["is_known"] is is_known
    finally:
        service.close()


def test_models_list_what_they_learned(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny,) = [model for model in known_models() if model.name == "vab-tiny"]
    assert {"cat", "sea"} <= set(tiny.pictured) and "rain" in set(tiny.classes) - set(tiny.pictured)
    out, _ = vab(capsys, "models", run)
    assert "vab-tiny learned from pictures: accordion, big_cat, bird" in out
    assert "vab-tiny learned from sound alone: baby_cry" in out
    assert f"{run} learned from pictures: 0, 1, 2\n{run} learned from sound alone: 3" in out


def test_real_clips_of_other_things(bundled: VABPipeline, data: Path) -> None:
    """Of clips of things outside its classes at least half are told, of its own dev photos one in ten."""
    names = (
        "axe_gt",
        "drums_gt",
        "ice_gt",
        "tennis_gt",
        "football_gt",
        "cap_gun",
        "sharpen_knife",
        "trombone",
    )
    foreign = [next((data / "clips").glob(f"*{name}*")) for name in names]
    told = [not known.is_known for known in (look(bundled, clip) for clip in foreign) if known is not None]
    assert len(told) == len(names) and np.mean(told) >= 0.5
    with (data / "photos.csv").open() as file:
        photos = [row for row in csv.DictReader(file) if row["split"] == "dev"][::9]
    judged = [
        look(bundled, data / row["file"]) for row in photos if row["label"] in bundled.finetuned.pictured
    ]
    assert len(judged) > 30
    assert np.mean([known is not None and not known.is_known for known in judged]) <= 0.1
