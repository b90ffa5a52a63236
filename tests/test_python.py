"""The Python interface as people expect it: examples, devices, formats, keywords, how it shows itself."""

from __future__ import annotations

import base64
import copy
import doctest
import inspect
import io
import pydoc
import re
import shutil
import tomllib
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download

import vab
from helpers.tiny import write_model, write_video
from vab import Audio, SettingError, VABPipeline
from vab.models.hub import HUB_KEYWORDS
from vab.utils.device import pick_device

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pipe(model: Path) -> VABPipeline:
    return VABPipeline.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 20, 10)


# --- examples


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the examples have at hand: a clip in the folder they run in, and the bundled model."""
    shutil.copy(ROOT / "examples" / "cat.mp4", tmp_path / "cat.mp4")
    monkeypatch.chdir(tmp_path)
    bundled = VABPipeline.from_pretrained(device="cpu")
    yield {
        "np": np,
        "torch": torch,
        "Path": Path,
        "pipe": bundled,
        **{name: getattr(vab, name) for name in vab.__all__},
    }


def run_examples(text: str, name: str, names: dict[str, Any]) -> int:
    """Run the examples in a text; how many there were."""
    test = doctest.DocTestParser().get_doctest(text, dict(names), name, None, 0)
    said = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.write)
    assert runner.failures == 0, said.getvalue()
    return len(test.examples)


def test_the_examples_of_the_public_methods_run(examples: dict[str, Any]) -> None:
    public = ["from_pretrained", "to", "generate", "embed", "classify"]
    for name in public:
        assert run_examples(inspect.getdoc(getattr(VABPipeline, name)) or "", name, examples), name
    assert run_examples(inspect.getdoc(Audio) or "", "Audio", examples)


def test_the_examples_of_the_page_run(examples: dict[str, Any]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert run_examples("\n".join(blocks), "docs/python.md", examples) > 15


# --- devices and number formats


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "auto", None, torch.device("cpu")])
def test_devices_of_every_form(device: Any) -> None:
    assert isinstance(pick_device(device), torch.device)


@pytest.mark.parametrize("device", ["gpu", "cpu:7", "cuda:99", 99, torch.device("cuda", 99), "meta", "", 1.5])
def test_devices_that_are_not_there(device: Any) -> None:
    with pytest.raises(SettingError, match=r"^there is no device .* here; there is: .*cpu"):
        pick_device(device)


def test_moving_to_a_device_and_a_format(model: Path, clip: Path) -> None:
    pipe = VABPipeline.from_pretrained(model, device=torch.device("cpu"), torch_dtype=torch.bfloat16)
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.bfloat16)
    half = pipe(clip)
    assert np.array_equal(half.waveform, pipe(clip).waveform), "the same seed, the same sound"
    assert pipe.embed(clip)["video"].dtype == np.float32
    # in a chain, as one, by keyword and by name
    assert pipe.to("cpu").to(torch.float16).dtype == torch.float16
    assert np.isfinite(pipe(clip).waveform).all() and sum(pipe.classify(clip).values()) > 0
    assert pipe.to(torch.device("cpu"), torch.float32) is pipe and pipe.dtype == torch.float32
    assert pipe.to(dtype="bfloat16").dtype == pipe.to().dtype == torch.bfloat16
    with pytest.raises(SettingError, match=r"float32, bfloat16, float16, tf32, not torch\.int8"):
        pipe.to(torch.int8)
    with pytest.raises(SettingError, match="there is no device tpu here"):
        pipe.to("tpu")
    with pytest.raises(SettingError, match=r"float32, bfloat16, float16, tf32, not torch\.float64"):
        VABPipeline.from_pretrained(model, dtype=torch.float64)
    with pytest.raises(SettingError, match="one thing"):
        VABPipeline.from_pretrained(model, dtype="float16", torch_dtype="float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_both_stages_and_the_baseline_compute_in_it(tmp_path: Path, clip: Path, dtype: str) -> None:
    two = VABPipeline.from_pretrained(write_model(tmp_path / "a", fine=True), device="cpu", dtype=dtype)
    assert two.fine is not None and next(two.fine.network.parameters()).dtype == two.dtype
    assert np.isfinite(two(clip).waveform).all()
    baseline = write_model(tmp_path / "b", like="foleygen-tiny")
    assert np.isfinite(VABPipeline.from_pretrained(baseline, device="cpu", dtype=dtype)(clip).waveform).all()


def test_float32_is_what_it_always_was(model: Path, pipe: VABPipeline, clip: Path) -> None:
    again = VABPipeline.from_pretrained(model, device="cpu", dtype="float32")
    assert np.array_equal(again(clip).waveform, pipe(clip).waveform)


# --- keywords


def test_unknown_keywords_are_refused_with_the_right_one(pipe: VABPipeline, model: Path, clip: Path) -> None:
    calls: list[tuple[Any, dict[str, Any], str]] = [
        (pipe, {"num_inference_steps": 5}, "it is steps="),
        (pipe.generate, {"guidance_scale": 2.0}, "it is guidance="),
        (pipe.generate, {"generator": torch.Generator()}, "it is seed="),
        (pipe.generate, {"sede": 1}, "did you mean seed="),
        (pipe.embed, {"frames_per_second": 5}, "there are fps, rate, sound"),
        (pipe.classify, {"bye": "audio"}, "did you mean by="),
    ]
    for call, keywords, words in calls:
        with pytest.raises(SettingError, match=words):
            call(clip, **keywords)
    for keywords, words in (
        ({"device_map": "auto"}, "one device for the whole model, device="),
        ({"devise": "cpu"}, "did you mean device="),
        ({"codecpath": "x"}, "did you mean codec_path="),
        ({"trust_remote_code": True}, "there is no trust_remote_code= here"),
    ):
        with pytest.raises(SettingError, match=words):
            VABPipeline.from_pretrained(model, **keywords)


def test_keywords_of_the_hub_are_known(model: Path) -> None:
    assert set(HUB_KEYWORDS) <= set(inspect.signature(snapshot_download).parameters)
    VABPipeline.from_pretrained(
        model,
        device="cpu",
        revision="main",
        token=None,
        cache_dir="x",
        local_files_only=True,
        force_download=False,
    )


@pytest.mark.parametrize("keep", [(0.5, 1), [0.5, 1], [(0.5, 1)], [[0.5, 1.0]], np.array([[0.5, 1.0]])])
def test_one_span_or_several(pipe: VABPipeline, clip: Path, keep: Any) -> None:
    expected = pipe.generate(clip, steps=1, keep=[(0.5, 1.0)]).waveform
    assert np.array_equal(pipe.generate(clip, steps=1, keep=keep).waveform, expected)


@pytest.mark.parametrize("keep", [5, (1,), (1, 2, 3), [(1, 2, 3)], "1:2", [("a", "b")], [None]])
def test_spans_that_make_no_sense(pipe: VABPipeline, clip: Path, keep: Any) -> None:
    with pytest.raises(SettingError, match=r"keep= is spans \(from, to\) in seconds"):
        pipe.generate(clip, keep=keep)


def test_a_sound_of_any_length(pipe: VABPipeline, clip: Path) -> None:
    assert len(pipe(clip, seconds=0.5, steps=1).waveform) == 8000
    assert len(pipe(clip, seconds=3, steps=1).waveform) == 48_000
    for seconds in (0, -1, float("nan"), float("inf"), 8000):
        with pytest.raises(SettingError, match="seconds must be"):
            pipe(clip, seconds=seconds)


def test_progress_is_a_bar_or_a_callable(
    pipe: VABPipeline, clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    pipe(clip, steps=3, progress=lambda *stage: told.append(stage))
    assert told[-1] == ("sampling", 3, 3) and told[0][0] == "features"
    pipe(clip, steps=1)
    pipe(clip, steps=1, progress=False)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich a terminal
    pipe(clip, steps=1, progress=True)
    output, shown = capsys.readouterr()
    assert output == "" and "sampling" in shown


@pytest.mark.cuda
def test_a_gpu_by_its_number(model: Path, clip: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    pipe = VABPipeline.from_pretrained(model, device="cuda:0", dtype="bfloat16")
    made = pipe(clip, steps=2)
    assert made.tokens is not None and made.tokens.device == pipe.device == torch.device("cuda", 0)
    assert np.array_equal(pipe(clip, steps=2).waveform, made.waveform)
    assert pipe.to("cpu", "float32")(clip, steps=1).tokens.device.type == "cpu"


# --- what it shows of itself


def test_it_shows_itself_in_a_line(pipe: VABPipeline, clip: Path) -> None:
    assert re.fullmatch(r"VABPipeline\(test, 0\.\d M parameters, cpu, float32\)", repr(pipe))
    assert repr(pipe(clip, steps=1)) == "Audio(2.00 s, 16000 Hz, mono)"


def test_a_notebook_plays_it(pipe: VABPipeline, clip: Path) -> None:
    audio = pipe(clip, steps=1)
    page = audio._repr_html_()
    (data,) = re.findall(r'<audio controls src="data:audio/wav;base64,([\w+/=]+)"></audio>', page)
    with wave.open(io.BytesIO(base64.b64decode(data))) as file:
        assert (file.getnframes(), file.getframerate(), file.getsampwidth()) == (32_000, 16_000, 2)
        samples = np.frombuffer(file.readframes(32_000), "<i2")
    assert np.abs(samples / 32767 - audio.waveform.clip(-1, 1)).max() < 1e-4


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert vab.__version__ == project["version"]
    assert "__version__" in dir(vab)


def test_help_speaks_of_vab_and_not_of_its_base() -> None:
    text = pydoc.render_doc(VABPipeline, renderer=pydoc.plaintext)
    assert text.index("inherited from") > 0.7 * len(text)
    assert "steps: 'int | None' = None" in text, "the settings of generate are in its signature"


@pytest.mark.parametrize(
    "wrong",
    [
        {"loudness": "off"},
        {"loudness": False},
        {"rate": "48000"},
        {"rate": 48_000.0},
        {"mix": "a"},
        {"progress": "x"},
    ],
)
def test_settings_of_another_type_are_one_line(pipe: VABPipeline, clip: Path, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(SettingError, match=f"^{name}.*not {wrong[name]!r}"):
        pipe(clip, steps=1, **wrong)


@pytest.mark.parametrize("name", ["float64", "half", torch.int8])
def test_a_format_that_is_not_used_is_told_as_a_format(pipe: VABPipeline, name: Any) -> None:
    with pytest.raises(SettingError, match="a precision is auto, float32, bfloat16, float16, tf32"):
        pipe.to(name)


def test_sounds_can_be_compared_and_kept_in_a_set(pipe: VABPipeline, clip: Path) -> None:
    audio = pipe(clip, steps=1)
    other = copy.deepcopy(audio)
    assert audio == audio and audio != other and len({audio, other}) == 2


def test_a_log_has_no_bar(pipe: VABPipeline, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(clip, steps=1, progress=True)
    assert capsys.readouterr() == ("", "")
