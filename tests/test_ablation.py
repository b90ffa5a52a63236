"""Ablations: what differs between rows, what they share, how they go on, and what they end in."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.tiny import write_model
from vab.cli import main
from vab.config import DecodeConfig, TrainConfig, former_fields
from vab.data.shard import Latents, StoreMeta
from vab.data.store import LatentStore
from vab.errors import TrainError, VABError
from vab.evaluate.ablation import report
from vab.evaluate.ablation.run import AblationSettings, Outcome, Result, ablate
from vab.evaluate.ablation.tables import ABLATIONS, FAD, Ablation, Row, changed
from vab.evaluate.generation.from_model import evaluate_model
from vab.evaluate.generation.protocol import EvaluationSettings
from vab.evaluate.generation.synthesis import MADE, Synthesizer, reconstruct_true
from vab.evaluate.metrics.statistics import EvaluationError, Interval
from vab.media.reader import read_audio, write_wav
from vab.models.hub import FINE, ModelError, read_config
from vab.presets import PRESETS, Speed, at_speed
from vab.training.batches import Batch

META = StoreMeta("tiny", "efficientnet-lite0", 2, 32, 8, 1280, seconds=2.0, fps=1.0)


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vectors = Synthesizer.load(model, device="cpu").codec.codebook_vectors().numpy()
    return fill(tmp_path_factory.mktemp("latents") / "store", vectors)


def fill(folder: Path, vectors: np.ndarray, labels: tuple[str, str] = ("cat", "dog")) -> Path:
    """Twenty clips of two labels, half of them dev, each with sound and picture."""
    random = np.random.default_rng(0)
    meta = replace(META, num_codebooks=len(vectors))
    rows = []
    for n in range(20):
        tokens = random.integers(0, 32, meta.token_shape, dtype=np.uint16)
        features = random.normal(size=META.feature_shape).astype(np.float16)
        rows.append(Latents(f"c/{n}", labels[n % 2], ("train", "dev")[n // 2 % 2], tokens, features))
    LatentStore.create(folder, meta, vectors).add(rows)
    return folder


@pytest.fixture
def small(model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A preset of the least size, with those for its fine-tuning."""
    config = read_config(model).model
    for ending in ("", "-contrastive", "-classes"):
        base = PRESETS[f"vab-tiny{ending}"]
        train: TrainConfig = replace(
            base.train, batch_size=4, crop_seconds=0.0, precision="32-true", warmup_steps=1
        )
        made = replace(
            base, name=f"small{ending}", model=config, train=train, decode=PRESETS["vab-tiny"].decode
        )
        monkeypatch.setitem(PRESETS, f"small{ending}", made)
    return "small"


def settings(store: Path, run: Path, model: Path, **changes: object) -> AblationSettings:
    """Few clips, no network to measure with."""
    given = AblationSettings(
        (store,), run, str(model), clips=4, weights=run.parent, resamples=0, device="cpu"
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def silent(line: str) -> None:
    """A log that nobody reads."""


def test_every_row_is_a_few_fields_of_a_preset() -> None:
    for ablation in ABLATIONS.values():
        found = [changed(PRESETS["vab-dac-test"], row.changes) for row in ablation.rows]
        assert len({row.name for row in ablation.rows}) == len(ablation.rows) > 1
        assert all(len(row.changes) <= 2 for row in ablation.rows)
        different = {(repr(preset), row.chain) for preset, row in zip(found, ablation.rows, strict=True)}
        assert len(different) == len(found)  # no two rows are the same experiment
        assert ablation.trains == bool(ablation.measured)
        assert all(set(ablation.measured) <= set(row.chain) for row in ablation.rows)
    with pytest.raises(ValueError, match=r"no field decode\.speed"):
        changed(PRESETS["vab-tiny"], {"decode.speed": 3})


def test_a_sweep_over_decoding_goes_on_where_it_was(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(store, tmp_path / "run", model)
    result = ablate("steps", chosen, silent)
    assert [each.row.name for each in result.outcomes] == ["8", "16", "36", "48"]
    own = read_config(model).decode
    for each in result.outcomes:
        assert each.made_with["decode"] == vars(
            replace(own, num_steps=int(each.row.name), mask_temperature=10.5)
        )
        assert {"FD-LOGMEL", "MEL-distance", "ONSET-F1"} <= set(each.metrics) == set(each.clips)
        assert set(each.clips.values()) == {4}
    sounds = sorted((tmp_path / "run" / "sounds").rglob("*.wav"))
    assert len(sounds) == 4 * 4 and all(len(read_audio(path)) == 2 * 16000 for path in sounds)
    assert len({path.read_bytes() for path in sounds}) == 16  # steps and clips make a difference

    before = sounds[0].read_bytes()
    sounds[0].unlink()
    asked: list[list[str]] = []
    make = Synthesizer.tokens
    monkeypatch.setattr(
        Synthesizer, "tokens", lambda self, batch, *rest: asked.append(batch.ids) or make(self, batch, *rest)
    )
    again = ablate("steps", chosen, silent)
    assert len(asked) == 1 and sounds[0].read_bytes() == before
    assert again.document() == result.document()
    with pytest.raises(EvaluationError, match="other seed; use another --run"):
        ablate("steps", replace(chosen, seed=1), silent)
    assert len(list((tmp_path / "run" / "true").iterdir())) == 1
    made = sounds[0].parent / MADE  # nor are the sounds of another model taken for this one's
    made.write_text(json.dumps(json.loads(made.read_text()) | {"weights": "others"}))
    with pytest.raises(EvaluationError, match="other weights"):
        ablate("steps", chosen, silent)


def test_a_model_is_decoded_at_a_speed(store: Path, model: Path, tmp_path: Path) -> None:
    """In a sweep all but what a row changes, in an evaluation all; the sounds lie apart from the others."""
    fast = at_speed(read_config(model).decode, "fast")
    chosen = replace(settings(store, tmp_path / "run", model), clips=2, speed="fast")
    for outcome in ablate("guidance", chosen, silent).outcomes:
        scale = outcome.made_with["decode"]["guidance_scale"]
        assert outcome.made_with["decode"] == vars(replace(fast, guidance_scale=scale))
    options = EvaluationSettings(backbones=(), resamples=0, device="cpu")
    alike: dict[str, Any] = {"split": "dev", "clips": 2, "seed": 0, "reference": None, "codec_path": None}
    speeds: dict[Speed | None, DecodeConfig] = {None: read_config(model).decode, "fast": fast}
    for speed, decode in speeds.items():
        found = evaluate_model(str(model), store, tmp_path / "run", options, speed=speed, **alike)
        name = "-".join(filter(None, (model.name, speed)))
        assert found is not None and str(found.generated) == name
        made = json.loads((tmp_path / "run" / "sounds" / name / MADE).read_text())
        assert made["decode"] == former_fields(decode)


def test_the_second_stage_refines_the_true_coarse_tokens(
    store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table 15: the first codebooks are the store's own, the others made in so many steps, or left out."""
    both = write_model(tmp_path / "both", fine=True)
    latents = fill(tmp_path / "store", Synthesizer.load(both, device="cpu").codec.codebook_vectors().numpy())
    made: list[np.ndarray] = []
    make = Synthesizer.tokens

    def tokens(self: Synthesizer, batch: Batch, decode: DecodeConfig, seed: int) -> Tensor:
        found = make(self, batch, decode, seed)
        assert found[:, :2].equal(batch.tokens)
        made.append(found.numpy())
        return found

    monkeypatch.setattr(Synthesizer, "tokens", tokens)
    found = ablate("fine", settings(latents, tmp_path / "run", both), silent)
    assert [each.made_with["decode"]["num_steps"] for each in found.outcomes] == [0, 24, 36]
    assert all("FD-LOGMEL" in each.metrics for each in found.outcomes)
    assert [tokens.shape[1] for tokens in made] == [2, 5, 5] and (made[1] != made[2]).any()
    with pytest.raises(EvaluationError, match="has no second stage"):
        ablate("fine", settings(store, tmp_path / "other", model), silent)


def test_another_codec_or_second_stage_is_another_maker(store: Path, model: Path, tmp_path: Path) -> None:
    both = write_model(tmp_path / "both", fine=True)
    other = Path(shutil.copytree(both, tmp_path / "other"))
    codec = load_file(other / "codec.safetensors")
    decoder = next(name for name in sorted(codec) if name not in ("vectors", "mean", "basis"))
    save_file(codec | {decoder: codec[decoder] + 1}, other / "codec.safetensors")
    a, b = (Synthesizer.load(folder, device="cpu") for folder in (both, other))
    assert a.weights != b.weights and a.codec_weights != b.codec_weights
    assert Synthesizer.load(both, device="cpu").weights == a.weights
    latents = LatentStore.open(fill(tmp_path / "store", a.codec.codebook_vectors().numpy()))
    rows = np.arange(2)
    assert reconstruct_true(latents, rows, a, tmp_path / "run") != reconstruct_true(
        latents, rows, b, tmp_path / "run"
    )
    shutil.copytree(both / FINE, tmp_path / FINE)
    config = json.loads((tmp_path / FINE / "config.json").read_text())
    config["decode"]["num_steps"] += 1
    (tmp_path / FINE / "config.json").write_text(json.dumps(config))
    longer = Synthesizer.load(both, device="cpu", fine=tmp_path / FINE)
    assert longer.weights != a.weights and longer.codec_weights == a.codec_weights
    with pytest.raises(ModelError, match="the second stage does not fit the first"):
        Synthesizer.load(both, device="cpu", fine=both)


def test_what_is_trained_makes_sound_with_a_second_stage(
    small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = write_model(tmp_path / "both", fine=True)
    latents = fill(tmp_path / "store", Synthesizer.load(both, device="cpu").codec.codebook_vectors().numpy())
    monkeypatch.setitem(
        ABLATIONS, "masking", replace(ABLATIONS["masking"], rows=ABLATIONS["masking"].rows[:1])
    )
    made: list[int] = []
    make = Synthesizer.tokens

    def tokens(self: Synthesizer, *rest: Any) -> Tensor:
        found = make(self, *rest)
        made.append(found.shape[1])
        return found

    monkeypatch.setattr(Synthesizer, "tokens", tokens)
    chosen = settings(latents, tmp_path / "run", both, preset=small, max_steps=1, codec_path=str(both))
    found = ablate("masking", replace(chosen, fine=(both, both / FINE)), silent)
    assert made == [5] and "FD-LOGMEL" in found.outcomes[0].metrics
    with pytest.raises(EvaluationError, match=r"both: the second stage does not fit the first: it refines 0"):
        ablate("masking", replace(chosen, run=tmp_path / "new", fine=(both,)), silent)
    assert not (tmp_path / "new").exists(), "something was trained"


def test_rows_are_compared_on_the_same_clips(
    store: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(store, tmp_path / "run", model)
    whole = ablate("steps", chosen, silent)
    spoiled = sorted((tmp_path / "run" / "sounds").rglob("*.wav"))[0]
    write_wav(spoiled, np.zeros(32_000, np.float32))
    words = ["evaluate", "ablation", "steps", "--store", store, "--run", tmp_path / "run", "--model", model]
    words += ["--clips", 4, "--weights", tmp_path, "--resamples", 0, "--device", "cpu", "--json"]
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert left.value.code == 1 and "not measured with vggish: no vggish" in said.err
    rows = json.loads(said.out)["rows"]
    assert [len(row["left_out"]) for row in rows].count(1) == 1
    assert {row["here"]["FD-LOGMEL"]["clips"] for row in rows} == {3}
    assert {each.clips["FD-LOGMEL"] for each in whole.outcomes} == {4}


def test_training_is_shared_between_ablations(store: Path, model: Path, small: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    chosen = settings(store, run, model, preset=small, max_steps=2, codec_path=str(model))
    lines: list[str] = []
    experts = ablate("experts", chosen, lines.append)
    for each in experts.outcomes:
        assert set(each.metrics) == {f"accuracy {column} %" for column in ("V+A", "V", "A")}
        assert all(0 <= value.value <= 100 for value in each.metrics.values())
        assert set(each.clips.values()) == {10}
    chain = "masked_contrastive_classification"
    assert read_config(run / "base" / chain).model.experts
    assert not read_config(run / "experts-False" / chain).model.experts
    assert sum(line.startswith("training") for line in lines) == 6

    lines.clear()
    scratch = ablate("scratch", chosen, lines.append)
    assert (
        sum(line.startswith("training") for line in lines) == 1
    )  # the classifier from scratch; the rest is there
    measured = {each.row.name: each.metrics for each in scratch.outcomes}
    assert measured["pre-trained"] == experts.outcomes[1].metrics
    assert (run / "base" / "classification" / "model.safetensors").is_file()

    lines.clear()
    order = ablate("order", chosen, lines.append)
    assert sum(line.startswith("training") for line in lines) == 2  # contrast first, then masked
    for each in order.outcomes:
        assert {"FD-LOGMEL", "R@1 V → A %", "R@10 A → V %", "P@1 V → A %"} <= set(each.metrics)
    record = json.loads((run / "base" / "contrastive_masked" / "record.json").read_text())
    assert record["objective"] == "masked" and record["steps"] == 2
    assert {path.name for path in (run / "base").glob("contrastive*")} == {
        "contrastive",
        "contrastive_masked",
    }
    with pytest.raises(TrainError, match=r"another run: .*steps was 2, is 3\. Use another folder\.$"):
        ablate("order", replace(chosen, max_steps=3), silent)


def test_a_row_has_the_papers_epochs_or_those_that_are_given(
    store: Path, model: Path, small: str, tmp_path: Path
) -> None:
    """Table 10: contrastive learning that comes first has 29 epochs, not the 15 of its preset."""
    rows = ABLATIONS["order"].rows
    assert [row.epochs for row in rows] == [{"contrastive": 29.0}, {}]
    own = [PRESETS[name].train.epochs for name in ("vab-dac-test", "vab-dac-test-contrastive")]
    assert own == [9.0, 15.0]  # what the rows leave to the presets
    run = tmp_path / "run"
    chosen = settings(store, run, model, preset=small, codec_path=str(model))
    brief = {"masked": 0.4, "contrastive_masked": 0.8, "masked_contrastive": 1.0}
    found = ablate("order", replace(chosen, epochs=brief), silent)
    assert [each.epochs for each in found.outcomes] == [
        {"contrastive": 29.0, "contrastive_masked": 0.8},
        {"masked": 0.4, "masked_contrastive": 1.0},
    ]
    # 10 clips in batches of 4; other epochs than the preset's are another network, in a folder of its own
    places = {path.parent.name: path for path in (run / "base").glob("*/record.json")}
    assert {name: json.loads(path.read_text())["steps"] for name, path in places.items()} == {
        "contrastive-29": 73,
        "contrastive-29_masked-0.8": 2,
        "masked-0.4": 1,
        "masked-0.4_contrastive-1": 3,
    }
    assert [row["epochs"] for row in found.document()["rows"]] == [each.epochs for each in found.outcomes]
    assert "contrastive, then masked: contrastive 29, masked 0.8; " in report.as_markdown(found)


def test_epochs_are_of_trainings_that_there_are(store: Path, model: Path, small: str, tmp_path: Path) -> None:
    chosen = settings(store, tmp_path / "run", model, preset=small)
    trainings = "contrastive, contrastive_masked, masked, masked_contrastive"
    for name, epochs, said in (
        (
            "order",
            {"masked_contrast": 1.0},
            f"no training masked_contrast .* its trainings are: {trainings}$",
        ),
        ("steps", {"masked": 1.0}, "it trains nothing"),
        ("order", {"contrastive": -1.0}, r"train\.epochs"),
    ):
        with pytest.raises(VABError, match=said):
            ablate(name, replace(chosen, epochs=epochs), silent)
    with pytest.raises(EvaluationError, match="exclude each other"):
        ablate("order", replace(chosen, epochs={"masked": 1.0}, max_steps=2), silent)
    assert not (tmp_path / "run").exists()


def test_pre_training_may_be_on_other_latents(store: Path, model: Path, small: str, tmp_path: Path) -> None:
    """Masked prediction and contrast learn from them; classes are learned and measured on the store."""
    other = fill(tmp_path / "other", LatentStore.open(store).codebook_vectors(), ("owl", "cow"))
    run = tmp_path / "run"
    chosen = settings(store, run, model, preset=small, max_steps=1, codec_path=str(model))
    found = ablate("contrastive", replace(chosen, pretraining=(other,)), silent)
    assert all(each.metrics for each in found.outcomes)
    chain = ("masked", "masked_contrastive", "masked_contrastive_classification")
    records = [json.loads((run / "base" / part / "record.json").read_text()) for part in chain]
    wanted = [LatentStore.open(path).fingerprint() for path in (other, other, store)]
    assert [record["store"]["fingerprint"] for record in records] == wanted
    assert read_config(run / "base" / chain[-1]).classes == ("cat", "dog")
    assert found.document()["settings"]["pretraining"] == [str(other)]


def test_only_masked_prediction_learns_with_another_law(
    store: Path, model: Path, small: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        ABLATIONS, "masking", replace(ABLATIONS["masking"], rows=ABLATIONS["masking"].rows[:1])
    )
    chosen = settings(store, tmp_path / "run", model, preset=small, max_steps=1, codec_path=str(model))
    found = ablate("masking", chosen, silent).outcomes[0]
    assert {"accuracy V+A %", "FD-LOGMEL"} <= set(found.metrics)
    folder = tmp_path / "run" / "mask_mean-0.35"
    assert read_config(folder / "masked").train.mask_mean == 0.35
    assert (
        read_config(folder / "masked_classification").train.mask_mean
        == PRESETS["small-classes"].train.mask_mean
    )


def test_a_row_without_a_store_is_left_out_with_the_reason(
    store: Path, model: Path, small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    call = ["evaluate", "ablation", "vision", "--store", str(store), "--run", str(run), "--preset", small]
    call += ["--max-steps", "1", "--clips", "4", "--weights", str(tmp_path), "--resamples", "0"]
    with pytest.raises(SystemExit) as done:
        main([*call, "--codec-path", str(model), "--device", "cpu"])
    assert done.value.code == 1
    said = capsys.readouterr()
    assert "Not run: MAE ViT-L." in said.out and "mae-vit-l" in said.out and "| the preset's |" in said.out
    assert {path.name for path in run.glob("vision.*")} == {"vision.md", "vision.json", "vision.png"}
    document = json.loads((run / "vision.json").read_text())
    assert document["rows"][0]["not_run"] and document["rows"][1]["here"]["FD-LOGMEL"]["clips"] == 4


def test_calls_that_make_no_sense(store: Path, model: Path, tmp_path: Path) -> None:
    chosen = settings(store, tmp_path, model)
    with pytest.raises(EvaluationError, match="no ablation is called 'speed'; there are: scratch"):
        ablate("speed", chosen)
    with pytest.raises(EvaluationError, match="two clips"):
        ablate("steps", replace(chosen, clips=1))
    with pytest.raises(EvaluationError, match="there is no preset vab-tiny-fine-c"):
        ablate("scratch", replace(chosen, preset="vab-tiny-fine", max_steps=1), silent)
    other = fill(tmp_path / "other", LatentStore.open(store).codebook_vectors() + 1)
    with pytest.raises(EvaluationError, match="another codec"):
        ablate("steps", replace(chosen, stores=(other,)), silent)


@pytest.fixture
def result(tmp_path: Path) -> Result:
    rows = (Row("low", {}, {FAD: 3.0}), Row("high", {}, {FAD: 2.0}), Row("none", {}, {FAD: 4.0}))
    found = [
        Outcome(rows[0], {"FD-LOGMEL": Interval(5.0, 4.0, 6.0), "ONSET-F1": Interval(0.2, 0.1, 0.3)}),
        Outcome(rows[1], {"FD-LOGMEL": Interval(7.0, 6.0, 8.0), "ONSET-F1": Interval(0.1, 0.0, 0.2)}),
        Outcome(rows[2], reason="no store fits."),
    ]
    for each in found:
        each.clips = {key: 9 for key in each.metrics}
    return Result(
        Ablation("test", "A test", "Table 0", rows), "m", AblationSettings((tmp_path,), tmp_path), found
    )


def test_the_table_has_the_papers_column_beside_ours(result: Result) -> None:
    text = report.as_markdown(result)
    assert "|  | FAD, paper | FD-LOGMEL, here | ONSET-F1, here |" in text
    assert "| low | 3 | 5 [4, 6] | 0.2 [0.1, 0.3] |" in text
    assert "* FAD is best with high in the paper, FD-LOGMEL with low here" in text
    assert text.count("is best") == 1  # onsets are not in the paper
    assert "Not run: none. no store fits." in text and "N = 9" in text


@pytest.mark.parametrize("clips", [9, 1545])
def test_recall_stands_beside_the_papers_only_if_it_is_of_as_many_clips(result: Result, clips: int) -> None:
    key = "R@1 V → A %"
    rows = [replace(each.row, paper={key: 28.2}) for each in result.outcomes]
    found = [
        replace(each, row=row, metrics={key: Interval(10.0, 9.0, 11.0)}, clips={key: clips}, reason="")
        for each, row in zip(result.outcomes, rows, strict=True)
    ]
    text = report.as_markdown(replace(result, outcomes=found))
    alike = clips == 1545
    assert (f"{key}, paper" in text) == ("28.2" in text) == ("is best" in text) == alike
    assert ("The paper's R@k are of 1,545 clips" in text) != alike


def test_the_plot_shows_what_was_measured(result: Result) -> None:
    assert report.plot(result).startswith(b"\x89PNG")
    nothing = replace(result, outcomes=[Outcome(each.row) for each in result.outcomes])
    with pytest.raises(EvaluationError, match="nothing to plot"):
        report.plot(nothing)
