"""ImageBind's score and DeSync: inputs and comparison against the projects they come from, and whole runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.networks import made_up, noise
from helpers.tiny import write_video
from vab.evaluate.backbones import frames, imagebind, synchformer
from vab.evaluate.backbones.registry import BACKBONES
from vab.evaluate.generation.protocol import EvaluationSettings, Incomplete, evaluate
from vab.evaluate.metrics.statistics import EvaluationError
from vab.media.container import MediaError
from vab.media.reader import write_wav

# Numbers without another origin come from torchaudio 2.11 (fbank, MelSpectrogram) and from av-benchmark's own
# transformer, with the same input and weights.


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights but those a test writes, and none of the packages."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no cache"))
    monkeypatch.delenv("VAB_WEIGHTS", raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "imagebind", None)
    monkeypatch.setitem(sys.modules, "av_bench", None)
    imagebind._network.cache_clear()


def test_kaldis_log_mel_is_torchaudios() -> None:
    found = imagebind.kaldi_log_mel(noise(2.0, 16_000))
    assert found.shape == (198, 128)
    assert found[0, :3] == pytest.approx([-6.5835, -11.0420, -7.5986], abs=2e-3)
    assert found[100, 100] == pytest.approx(-1.7265, abs=2e-3)


def test_synchformers_log_mel_is_torchaudios() -> None:
    found = synchformer.audio_input(noise(8.0, 16_000))
    assert found.shape == (1, 24, 1, 128, 66)
    assert float(found[0, 3, 0, 5, 7]) == pytest.approx(0.1294, abs=2e-4)
    assert float(found[0, 3, 0, 100, 60]) == pytest.approx(0.8093, abs=2e-4)
    assert synchformer.audio_input(noise(4.8, 16_000)).shape[1] == synchformer.SEGMENTS
    with pytest.raises(MediaError, match=r"too short for DeSync: 4.70 s, where 4.8 s are needed"):
        synchformer.audio_input(noise(4.7, 16_000))


def test_synchformers_comparison_is_av_benchmarks() -> None:
    network = synchformer.Comparison()
    network.load_state_dict(made_up(network))
    random = np.random.default_rng(5)
    picture, sound = (random.standard_normal((2, 14, n, 768)).astype(np.float32) for n in (8, 6))
    with torch.inference_mode():
        found = network.eval()(torch.from_numpy(picture), torch.from_numpy(sound))
    assert found[0, :4].numpy() == pytest.approx([0.0903, 1.6369, -0.5143, 0.4064], abs=1e-3)
    assert found.argmax(1).tolist() == [20, 7]


def test_pictures_are_cut_as_the_projects_cut_them(tmp_path: Path) -> None:
    video = write_video(tmp_path / "film.mp4", 125, 25)  # 64 x 48, 5 s
    clips = imagebind.video_input(video, 8.0)
    assert clips.shape == (1, 6, 3, 2, 224, 224)  # 3 pictures: 2 pairs, 3 crops of each
    assert not torch.equal(clips[0, 0], clips[0, 2])  # left and right
    assert imagebind.video_input(video, 1.0).shape == (1, 3, 3, 2, 224, 224)  # one picture, twice
    segments = synchformer.video_input(video, 8.0)
    assert segments.shape == (14, 1, 16, 3, 224, 224)  # of the 5 s that there are
    assert torch.equal(segments[1, 0, :8], segments[0, 0, 8:])
    assert -1 <= float(segments.min()) < float(segments.max()) <= 1
    sounds = imagebind.audio_input(noise(8.0, 16_000))
    assert sounds.shape == (1, 3, 1, 128, 204)
    middle = imagebind.kaldi_log_mel(noise(8.0, 16_000)[48_000:80_000])
    assert sounds[0, 1, 0, :, :198].numpy() == pytest.approx((middle.T + 4.268) / 9.138, abs=1e-5)


@pytest.mark.parametrize(("fps", "rate"), [(0.5, 25), (0.5, 30), (25.0, 25), (25.0, 30), (25.0, 12)])
def test_pictures_are_those_of_ffmpegs_filter(tmp_path: Path, fps: float, rate: int) -> None:
    path, seconds = tmp_path / "film.mp4", 6
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=rate, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
        for n in range(seconds * rate):
            bars = np.array([255 * (n >> bit & 1) for bit in range(8)], np.uint8)  # its number
            picture = np.broadcast_to(bars.repeat(8)[None, :, None], (64, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))

    def number(picture: np.ndarray) -> int:
        return sum(int(picture[32, 8 * bit + 4, 0] > 127) << bit for bit in range(8))

    wanted = []
    with av.open(str(path)) as film:
        graph = av.filter.Graph()
        ends = (
            graph.add_buffer(template=film.streams.video[0]),
            graph.add("fps", str(fps)),
            graph.add("buffersink"),
        )
        graph.link_nodes(*ends).configure()
        for frame in (*film.decode(video=0), None):
            graph.push(frame)
            while True:
                try:
                    wanted.append(number(graph.pull().to_ndarray(format="rgb24")))
                except (av.BlockingIOError, av.EOFError):
                    break
    found = [number(frame.permute(1, 2, 0).numpy()) for frame in frames.resized(path, fps, seconds, 64)]
    assert found == wanted[: len(found)] and len(found) == round(seconds * fps)


class Small(nn.Module):
    """Something of ImageBind's shape: as loud as the sound, as red as the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, x in inputs.items():
            level = x.mean() if name == "audio" else x[:, :, 0].mean()
            found[name] = self.scale * torch.stack([level, torch.ones(())])[None]
        return found


def a_package_called_imagebind(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    names = ("imagebind", "imagebind.models", "imagebind.models.imagebind_model")
    package, models, model = map(ModuleType, names)
    model.imagebind_huge = lambda pretrained: Small()  # type: ignore[attr-defined]
    models.imagebind_model = model  # type: ignore[attr-defined]
    for module in (package, models, model):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    weights.mkdir()
    torch.save(Small().state_dict(), weights / BACKBONES["imagebind"].reference.file)


def films(tmp_path: Path) -> tuple[Path, Path]:
    """Three videos with their sound, of different red, and sounds made for them, of different loudness."""
    for n, name in enumerate("abc"):
        (tmp_path / "real").mkdir(exist_ok=True)
        write_video(tmp_path / "real" / f"{name}.mp4", 50, 25, colour=(60 + 60 * n, 60, 30))
        write_wav(tmp_path / "made" / f"{name}.wav", noise(2.2, 16_000, n) * 0.3**n)
    return tmp_path / "real", tmp_path / "made"


def test_imagebind_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, weights = films(tmp_path), tmp_path / "weights"
    chosen = EvaluationSettings(weights=weights, backbones=("imagebind",), device="cpu", resamples=10)
    with pytest.raises(EvaluationError, match=r"no imagebind_huge\.pth in .*weights"):
        evaluate(*folders, chosen)
    a_package_called_imagebind(monkeypatch, weights)
    found = evaluate(*folders, chosen)
    frames, sounds = (
        torch.load(folder / "cache_10s" / f"imagebind_{stream}.pth", weights_only=True)
        for folder, stream in zip(folders, ("video", "audio"), strict=True)
    )
    wanted = np.mean([float(torch.cosine_similarity(frames[x], sounds[x], 0)) for x in "abc"])
    score = found.get("IB-Score")
    assert score is not None and score.clips == 3 and score.value.value == pytest.approx(wanted, abs=1e-6)
    assert found.av_benchmark() == {"IB-Score": score.value.value}
    # av-benchmark hears the whole file, however many seconds are measured
    shorter = evaluate(*folders, replace(chosen, seconds=1.0)).get("IB-Score")
    assert shorter is not None
    (table,) = folders[1].glob("cache_1s/imagebind_audio.pth")
    assert all(torch.equal(value, sounds[name]) for name, value in torch.load(table).items())
    # what is there needs no package any more
    for module in ("imagebind", "imagebind.models"):
        monkeypatch.setitem(sys.modules, module, None)
    imagebind._network.cache_clear()
    assert evaluate(*folders, EvaluationSettings(backbones=("imagebind",))).get("IB-Score") == score
    write_wav(folders[1] / "b.wav", noise(2.2, 16_000, 9))
    with pytest.raises(EvaluationError, match="imagebind: the package imagebind is needed and cannot be"):
        evaluate(*folders, chosen)


def test_no_videos_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_package_called_imagebind(monkeypatch, tmp_path / "weights")
    for folder in ("real", "made"):
        for seed, name in enumerate("ab"):
            write_wav(tmp_path / folder / f"{name}.wav", noise(1.0, 16_000, seed))
    chosen = EvaluationSettings(weights=tmp_path / "weights", device="cpu")
    found = evaluate(tmp_path / "real", tmp_path / "made", chosen)
    assert found.absent["imagebind"] == f"no videos in {tmp_path / 'real'}"
    # a video that is missing is a fault where there are others
    write_video(tmp_path / "real" / "a.mp4", 50, 25)
    with pytest.raises(Incomplete) as told:
        evaluate(tmp_path / "real", tmp_path / "made", chosen)
    assert [fault.id for fault in told.value.faults] == ["b"]


def test_desync_of_features_that_av_benchmark_made(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    frames = {name: torch.randn(24, 8, 768, generator=random) for name in "abcd"}
    sounds = {name: torch.randn(24, 6, 768, generator=random) for name in "abcd"}
    for folder, stream, table in (("real", "video", frames), ("made", "audio", sounds)):
        (tmp_path / folder).mkdir()
        torch.save(table, tmp_path / folder / f"synchformer_{stream}.pth")
    chosen = EvaluationSettings(backbones=("synchformer",), weights=tmp_path, device="cpu")
    with pytest.raises(EvaluationError, match=r"synchformer: no synchformer_state_dict.pth in"):
        evaluate(tmp_path / "real", tmp_path / "made", chosen)
    network = synchformer.Comparison()
    state = made_up(network) | {"vfeat_extractor.patch_embed.proj.weight": torch.zeros(3)}
    torch.save(state, tmp_path / BACKBONES["synchformer"].reference.file)
    found = evaluate(tmp_path / "real", tmp_path / "made", chosen).get("DeSync")
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("vfeat")})
    grid, wanted = np.linspace(-2, 2, 21), []
    with torch.inference_mode():
        for name in "abcd":
            for part in (slice(14), slice(-14, None)):
                logits = network.eval()(frames[name][None, part], sounds[name][None, part])
                wanted.append(abs(grid[int(logits.argmax())]))
    assert found is not None and found.clips == 4 and found.better == "lower"
    assert found.value.value == pytest.approx(np.mean(wanted))
    torch.save(frames | {"c": frames["c"][:13]}, tmp_path / "real" / "synchformer_video.pth")
    with pytest.raises(Incomplete) as told:
        evaluate(tmp_path / "real", tmp_path / "made", chosen)
    assert [(each.id, each.reason[:35]) for each in told.value.faults] == [
        ("c", "too short for DeSync: 13 segments a")
    ]


class Extractors(synchformer.Comparison):
    """av_bench's Synchformer with extractors that say only how many segments they were given."""

    def extract_vfeats(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4, 5))[:, :, None, None].expand(-1, 1, 8, 768)

    def extract_afeats(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4))[:, :, None, None].expand(1, -1, 6, 768)


def test_desync_where_av_benchmark_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("av_bench", "av_bench.synchformer", "av_bench.synchformer.synchformer")
    for module in map(ModuleType, names):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules[names[-1]].Synchformer = Extractors  # type: ignore[attr-defined]
    synchformer._network.cache_clear()
    network = Extractors()
    torch.save(made_up(network), tmp_path / BACKBONES["synchformer"].reference.file)
    for seed, (name, seconds) in enumerate((("a", 5), ("b", 5.2), ("c", 3))):
        (tmp_path / "real").mkdir(exist_ok=True)
        write_video(tmp_path / "real" / f"{name}.mp4", round(25 * seconds), 25)
        write_wav(tmp_path / "made" / f"{name}.wav", noise(seconds + 0.2, 16_000, seed))
    chosen = EvaluationSettings(
        5.0, ("synchformer",), tmp_path, allow_missing=True, resamples=0, device="cpu"
    )
    found = evaluate(tmp_path / "real", tmp_path / "made", chosen)
    assert [(fault.id, fault.reason[:21]) for fault in found.faults] == [("c", "too short for DeSync:")] * 2
    assert {each.key: each.clips for each in found.metrics} == {
        "DeSync": 2,
        "FD-LOGMEL": 3,
        "MEL-distance": 3,
        "ONSET-F1": 3,
    }
    made = torch.load(tmp_path / "made" / "cache_5s" / "synchformer_audio.pth", weights_only=True)
    assert {name: value.shape for name, value in made.items()} == dict.fromkeys("ab", (14, 6, 768))
