"""vab evaluate timing: known shifts have known scores, busy sounds gain nothing, bad input is a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from helpers.cli import vab
from helpers.networks import made_up, noise
from helpers.tiny import write_video
from vab.evaluate.backbones import synchformer
from vab.evaluate.backbones.registry import BACKBONES
from vab.evaluate.metrics.signal import onset_agreement
from vab.evaluate.metrics.statistics import EvaluationError, intervals
from vab.evaluate.timing.baselines import metronome, with_gain
from vab.evaluate.timing.folders import chosen, half_of, samples_of
from vab.evaluate.timing.measures import CORRELATIONS, MEASURES, Heard, compare, correlation
from vab.evaluate.timing.run import TimingSettings, evaluate
from vab.media.reader import write_wav
from vab.timing.curve import TimingCurve, events, write_curve

RATE = 16_000
HITS = {  # clip: seconds of its hits
    "tap": [0.31, 0.83, 1.42, 2.27],
    "tip": [0.52, 1.13, 1.71, 2.05],
    "top": [0.44, 0.97, 1.58, 2.41],
    "tup": [0.25, 1.26, 1.88, 2.55],
}
F1_50, F1_100 = "onset_f1_50ms", "onset_f1_100ms"


def hits(times: list[float], seconds: float = 3.0, seed: int = 0) -> np.ndarray:
    """Blows that die away within 60 ms, 40 dB above a faint noise."""
    random = np.random.default_rng(seed)
    sound = 0.005 * random.standard_normal(round(seconds * RATE))
    fade = np.exp(-np.arange(3200) / 320)
    for time in times:
        at = round(time * RATE)
        blow = 0.5 * random.standard_normal(3200) * fade
        sound[at : at + 3200] += blow[: len(sound) - at]
    return sound.astype(np.float32)


def folder(path: Path, late: float = 0.0, seed: int = 0, suffix: str = "") -> Path:
    """A sound for each clip whose hits come so many seconds late."""
    path.mkdir(exist_ok=True)
    for name, times in HITS.items():
        write_wav(path / f"{name}{suffix}.wav", hits([time + late for time in times], seed=seed))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("clips"))


def means(row: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(np.mean(values)) for key, values in row.items()}


def test_matching_is_the_largest_there_is() -> None:
    """Against scipy's bipartite matching, on crowded random onsets."""
    random = np.random.default_rng(0)
    for _ in range(100):
        a, b = (np.sort(random.uniform(0, 2, random.integers(1, 30))) for _ in range(2))
        for tolerance in (0.05, 0.1):
            near = csr_array(np.abs(a[:, None] - b) <= tolerance)
            most = int((maximum_bipartite_matching(near, perm_type="column") >= 0).sum())
            assert onset_agreement(a, b, tolerance) == pytest.approx(2 * most / (len(a) + len(b)))


def struck(kind: str, random: np.random.Generator, decibels: float) -> tuple[np.ndarray, np.ndarray]:
    """5 s with ten hits of one kind at least 120 ms apart, and their times; white noise below the loudest."""
    times = [0.0]
    while len(times) < 11:  # a uniform draw of ten among what keeps the distance
        times = [0.15, *np.sort(random.uniform(0.27, 4.8, 10))]
        if np.diff(times).min() < 0.12:
            times = [0.0]
    sound, t = np.zeros(5 * RATE), np.arange(6400) / RATE
    for time in times[1:]:
        low, high = {"bar": (200, 5000), "thump": (80, 200)}.get(kind, (0, 1))
        tones = random.uniform(low, high, 6 if kind == "bar" else 1)[:, None]
        sine = (np.sin(2 * np.pi * tones * t) * np.exp(-t / random.uniform(0.03, 0.12, tones.shape))).sum(0)
        burst = random.standard_normal(6400)
        hit = {"click": burst * np.exp(-t / 0.004), "fading noise": burst * np.exp(-t / 0.05)}.get(kind, sine)
        at = round(time * RATE)
        sound[at : at + 6400] += (random.uniform(0.3, 1) * hit)[: len(sound) - at]
    sound /= np.abs(sound).max()
    return sound + 10 ** (-decibels / 20) * random.standard_normal(len(sound)), np.array(times[1:])


@pytest.mark.parametrize("kind", ["click", "fading noise", "bar", "thump"])
def test_hits_are_heard_when_they_fall(kind: str) -> None:
    scores = []
    for seed in range(10):
        sound, times = struck(kind, np.random.default_rng(seed), 40.0)
        scores.append(onset_agreement(times, Heard.of(sound.astype(np.float32)).onsets, 0.05))
    assert np.mean(scores) > (0.9 if kind == "thump" else 0.98)


def test_the_same_sound_agrees_and_a_late_one_as_far_as_it_is_late() -> None:
    reference = Heard.of(hits(HITS["tap"]))
    same = compare(reference, reference)
    assert same.values == pytest.approx(dict.fromkeys(MEASURES, 1.0)) and same.expected == same.found == 4
    scores = {
        late: compare(reference, Heard.of(hits([t + late for t in HITS["tap"]], seed=1))).values
        for late in (0.0, 0.03, 0.08, 0.15)
    }
    assert [scores[late][F1_50] for late in scores] == [1, 1, 0, 0]
    assert [scores[late][F1_100] for late in scores] == [1, 1, 1, 0]
    for key in CORRELATIONS:  # another take of the same blows, then less and less
        falling = [scores[late][key] for late in scores]
        assert falling[0] > 0.9 and falling[:3] == sorted(falling[:3], reverse=True) and falling[-1] < 0.1
    louder = Heard.of(0.1 * hits(HITS["tap"]))
    assert compare(reference, louder).values == pytest.approx(dict.fromkeys(MEASURES, 1.0), abs=0.01)


def test_correlation_by_hand() -> None:
    """A bump of one frame is one of three after smoothing, so that a neighbour's shares two thirds of it."""
    here, next_to_it, far = (np.eye(30)[n] for n in (10, 11, 20))
    wide, beside = (np.convolve(x, np.ones(3) / 3, "same") for x in (here, next_to_it))
    assert correlation(here, next_to_it) == pytest.approx(np.corrcoef(wide, beside)[0, 1])
    assert correlation(here, next_to_it) == pytest.approx((2 - 0.3) / (3 - 0.3))
    assert correlation(here, far) == pytest.approx(-0.3 / 2.7)
    assert correlation(here, np.full(30, 7.0)) == 0.0 and np.isnan(correlation(np.zeros(30), here))


def test_silence_finds_nothing_and_a_silent_reference_has_no_score() -> None:
    reference, silent = Heard.of(hits(HITS["tap"])), Heard.of(np.zeros(3 * RATE, np.float32))
    assert silent.shapeless and not reference.shapeless
    assert compare(reference, silent).values == dict.fromkeys(MEASURES, 0.0)
    assert np.isnan(list(compare(silent, reference).values.values())).all()


def test_a_metronome_hits_by_chance_alone() -> None:
    """0.2 s apart and 50 ms wide: within reach of half of all onsets, but most ticks are for nothing."""
    ticks = Heard.of_curve(metronome(0.2, 3.0))
    assert ticks.onsets == pytest.approx(np.arange(0.1, 3.0, 0.2), abs=1e-3) and ticks.level is None
    result = compare(Heard.of(hits(HITS["tap"])), ticks)
    near = sum(np.abs(ticks.onsets - time).min() <= 0.05 for time in HITS["tap"])
    assert result.values[F1_50] == pytest.approx(2 * near / (4 + 15))
    assert result.found == 15 and np.isnan(result.values["level_correlation"])


def test_a_gain_makes_events_of_noise() -> None:
    steady = noise(3.0, RATE)
    curve = TimingCurve.from_events(HITS["tap"], 150)
    reference = Heard.of(hits(HITS["tap"]))
    before, after = (compare(reference, Heard.of(x)).values for x in (steady, with_gain(steady, curve)))
    assert before[F1_50] < 0.5 and after[F1_50] == 1.0
    assert after["level_correlation"] > 0.4 > 0.1 > abs(before["level_correlation"])
    flat = with_gain(np.ones(3 * RATE, np.float32), TimingCurve.from_events([1.0], 150))
    assert flat[[RATE // 2, RATE, RATE + 2400]] == pytest.approx([0.1, 1.0, 0.1 + 0.9 * np.exp(-1)], abs=0.01)


def test_own_results_beat_those_of_other_clips(clips: Path, tmp_path: Path) -> None:
    good, late = folder(tmp_path / "good", seed=1), folder(tmp_path / "late", 0.08, seed=2)
    found = evaluate([good, late], clips, TimingSettings())
    rows = {row.name: row for row in found.rows}
    assert found.num_systems == 2 and found.ids == sorted(HITS) and not found.left_out
    assert means(rows["good"].own)[F1_50] == 1.0 and means(rows["late"].own)[F1_50] == 0.0
    assert (rows["good"].found, rows["good"].expected) == (16, 16)
    assert rows["good"].other is not None and means(rows["good"].other)[F1_50] < 0.3
    assert rows["metronome, 0.2 s"].other is None
    # the difference is paired: the mean and the interval of the differences clip by clip
    document = found.document()
    own, other = (np.array(values[F1_50]) for values in (rows["good"].own, rows["good"].other))
    paired = intervals((own - other)[:, None])[0]
    assert document["rows"][0]["difference"][F1_50] == {**paired.document(), "clips": 4}
    (difference,) = document["differences"]
    assert (difference["of"], difference["less"]) == ("good", "late")
    assert difference["measures"][F1_50]["value"] == 1.0 and difference["measures"][F1_100]["value"] == 0.0
    assert json.dumps(document) == json.dumps(
        evaluate([good, late], clips, TimingSettings()).document(), allow_nan=False
    )


def test_other_clips_are_a_cycle_drawn_by_the_seed(clips: Path, tmp_path: Path) -> None:
    """Every sample is compared with every other clip's in turn; each clip serves once."""
    results = tmp_path / "results"
    for seed, suffix in enumerate(("", "_2", "_3")):
        folder(results, seed=seed, suffix=suffix)
    row = evaluate([results], clips, TimingSettings()).rows[0]
    heard = {name: Heard.of(hits(times)) for name, times in HITS.items()}
    every = {
        name: np.mean([compare(heard[name], heard[other]).values[F1_100] for other in HITS if other != name])
        for name in sorted(HITS)
    }
    assert row.sounds == 12 and row.other is not None
    assert row.other[F1_100] == pytest.approx(list(every.values()), abs=1e-6)  # 3 samples, 3 other clips


def test_samples_are_told_by_their_names(tmp_path: Path) -> None:
    for name in ("a.wav", "a_2.wav", "a_10.mp4", "a_2_2.wav", "b.mp4", "b.wav", "x.wav", "1/b.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = samples_of(tmp_path, {"a", "a_2", "b", "none"})
    names = {clip: [path.relative_to(tmp_path).as_posix() for path in paths] for clip, paths in found.items()}
    assert names == {"a": ["a.wav", "a_10.mp4"], "a_2": ["a_2.wav", "a_2_2.wav"], "b": ["1/b.wav", "b.wav"]}


def test_clips_are_chosen_by_list_by_name_and_by_half(tmp_path: Path) -> None:
    names = [f"clip{n}" for n in range(40)]
    first, second = (chosen(names, None, half) for half in (1, 2))
    assert sorted(first + second) == sorted(names) and 10 < len(first) < 30
    assert chosen(names[:7], None, 1) == [name for name in sorted(names[:7]) if half_of(name) == 1]
    (tmp_path / "list.txt").write_text("clip3\nclip30\nelsewhere\n")
    assert chosen(names, str(tmp_path / "list.txt"), None) == ["clip3", "clip30"]
    assert chosen(names, "clip3", None) == ["clip3", *(f"clip3{n}" for n in range(10))]
    with pytest.raises(EvaluationError, match="dog: no clip's name begins so, and no such file"):
        chosen(names, "dog", None)


def test_a_clip_that_is_not_chosen_is_no_sample_of_one_that_is(tmp_path: Path) -> None:
    """door_2 is a clip of its own, not the second sound of door."""
    own, results = tmp_path / "own", tmp_path / "results"
    for n, (path, late) in enumerate(((own, 0.0), (results, 0.02))):
        path.mkdir()
        for k, name in enumerate(("door", "door_2", "gate")):
            write_wav(path / f"{name}.wav", hits([0.5 + late + 0.1 * k, 1.7 - 0.2 * k], seed=10 * n + k))
    (tmp_path / "list.txt").write_text("door\ngate\n")
    timing = evaluate([results], own, TimingSettings(seconds=3.0, clips=str(tmp_path / "list.txt")))
    assert timing.ids == ["door", "gate"] and timing.rows[0].sounds == 2


def test_as_a_user_calls_it(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A silent and a missing sound among four: one is measured as silent, one left out and named."""
    results = folder(tmp_path / "out", seed=1)
    write_wav(results / "tip.wav", np.zeros(3 * RATE, np.float32))
    (results / "top.wav").unlink()
    curves = tmp_path / "curves"
    curves.mkdir()
    for name, times in HITS.items():
        write_curve(curves / f"{name}.csv", TimingCurve.from_events(times, 150))
    call = ("evaluate", "timing", results, "--against", clips, "--curves", curves)
    code, text, err = vab(capsys, *call)
    assert code == 1 and f"top: left out, missing from {results}" in err and "no DeSync: no videos in" in err
    assert "N = 3, 1 left out" in text and "out: 1 of 3 sounds are silent or even" in text
    assert "| out - another clip's |" in text and "nan" not in text.lower()
    code, text, _ = vab(capsys, *call, "--json")
    document = json.loads(text)
    rows = {row["name"]: row for row in document["rows"]}
    assert rows["out"]["measures"][F1_50]["value"] == pytest.approx(2 / 3)
    assert rows["curves"]["measures"][F1_50]["value"] == 1.0
    assert rows["curves"]["measures"]["level_correlation"] == {
        **dict.fromkeys(("value", "low", "high")),
        "clips": 0,
    }
    assert rows["out x gain, curves"]["onsets"]["reference"] == 12
    assert [fault["id"] for fault in document["left_out"]] == ["top"]


def test_what_is_wrong_is_said_in_a_line(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    short.mkdir()
    for name in HITS:
        write_wav(short / f"{name}.wav", hits([0.5], 1.0))
    (tmp_path / "empty").mkdir()
    others = tmp_path / "others"
    others.mkdir()
    write_wav(others / "dog.wav", hits([0.5]))
    for arguments, words in (
        ((tmp_path / "none",), f"{tmp_path / 'none'}: no such folder"),
        ((tmp_path / "empty",), "has no sounds or videos in it"),
        ((others,), "none of its sounds has the name of a clip"),
        ((short,), "0 of the clips can be measured; two are the least (tap: "),
        ((clips, "--seconds", 0.5), "clips must be 1 s or longer"),
        ((clips, "--clips", "tap"), "1 of the clips can be measured"),
        ((clips, "--curves", tmp_path / "empty"), f"missing from {tmp_path / 'empty'}: tap.csv"),
    ):
        code, text, err = vab(capsys, "evaluate", "timing", *arguments, "--against", clips)
        assert code == 2 and not text and err.count("\n") == 1 and words in err, err


class Offsets(synchformer.Comparison):
    """av_bench's Synchformer, with extractors that hand on one number of the video and of the sound."""

    def extract_vfeats(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4, 5))[:, :, None, None].expand(-1, 1, 8, 768)

    def extract_afeats(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4))[:, :, None, None].expand(1, -1, 6, 768)


def test_desync_where_synchformer_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("av_bench", "av_bench.synchformer", "av_bench.synchformer.synchformer")
    for module in map(ModuleType, names):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules[names[-1]].Synchformer = Offsets  # type: ignore[attr-defined]
    synchformer._network.cache_clear()
    network = Offsets()
    torch.save(made_up(network), tmp_path / BACKBONES["synchformer"].reference.file)
    (tmp_path / "real").mkdir()
    for n, (name, seconds) in enumerate((("a", 5.0), ("b", 5.0), ("c", 3.0))):
        write_video(tmp_path / "real" / f"{name}.mp4", round(25 * seconds), 25, colour=(60 + 60 * n, 60, 30))
        write_wav(tmp_path / "made" / f"{name}.wav", hits([1.0, 2.0], seconds + 0.2, n))
    found = evaluate([tmp_path / "made"], tmp_path / "real", TimingSettings(weights=tmp_path, device="cpu"))
    row = found.rows[0]
    assert not found.absent and row.other is not None
    assert np.isnan(row.own["desync"]).tolist() == [False, False, True]  # c is below 4.8 s
    assert all(0 <= value <= 2 for value in row.own["desync"][:2])
    assert "DeSync, s: of 2 clips, the others have none." in found.markdown()
    assert events(metronome(0.5, 5.0).onset)[0].size == 10  # type: ignore[arg-type]
