"""Makes everything in this folder. Only for version 0.1.0 of the package: see README.md."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
sys.path.insert(0, str(TESTS))

from vab.codec_tiny import TinyCodec, TinyCodecConfig  # noqa: E402
from vab.codec_training import CodecTrainConfig, train_codec  # noqa: E402
from vab.extract import extract  # noqa: E402
from vab.finetune import Classifier, Contrastive  # noqa: E402
from vab.model import VAB  # noqa: E402
from vab.pipeline import VABPipeline  # noqa: E402
from vab.stages import Stage  # noqa: E402
from vab.train import train  # noqa: E402

from helpers.generated import hashes, read_machine  # noqa: E402
from vab.config import PRESETS, DecodeConfig, TrainConfig  # noqa: E402
from vab.listening.answers import QUESTIONS, Answers  # noqa: E402
from vab.listening.study import build_study, open_study  # noqa: E402
from vab.media import mux  # noqa: E402
from vab.vision import load_vision  # noqa: E402

SIZES = replace(
    PRESETS["vab-tiny"].model,
    seconds=2.0,
    fps=1.0,
    codebooks=2,
    vocabulary=32,
    codebook_dim=8,
    vision_dim=1280,
    width=16,
    layers=2,
    expert_layers=1,
    heads=2,
)
TRAIN = TrainConfig(
    optimizer="muon",
    learning_rate=3e-3,
    weight_decay=1e-2,
    betas=(0.9, 0.95),
    warmup_steps=2,
    epochs=3.0,
    batch_size=4,
    clip_gradient=1.0,
    label_smoothing=0.1,
    mask_mean=0.55,
    mask_std=0.25,
    mask_min=0.5,
    mask_max=1.0,
    crop=1.0,
    mixup=0.5,
    roll=0.5,
    drop_features=0.25,
    pair_by_label=True,
    balanced=True,
    objective="masked",
    ema=0.9,
    precision="32-true",
    seed=3,
    save_every=3,
    log_every=1,
)
CODEC = TinyCodecConfig(
    codebooks=2, vocabulary=16, dim=8, decoder_width=16, decoder_layers=1, detail_width=8, detail_layers=1
)
CODEC_TRAIN = CodecTrainConfig(
    steps=6,
    adversarial_from=6,
    code_seconds=12.0,
    code_rounds=4,
    batch_size=3,
    seconds=1.0,
    coarse=1,
    learning_rate=1e-3,
    warmup_steps=2,
    ema=0.9,
    precision="32-true",
    seed=1,
    save_every=3,
    log_every=1,
)


def pictures(width: int, height: int, count: int, hue: int) -> list[np.ndarray]:
    """A bar that wanders over a slope of colours, uint8 [height, width, 3] each: whole numbers alone."""
    y, x = np.mgrid[:height, :width]
    found = []
    for n in range(count):
        frame = np.stack([(x * 2 + n) % 256, (y * 3 + 40 * hue) % 256, (x + y) % 256], axis=-1)
        frame[:, n * 3 % width : n * 3 % width + width // 8] = np.roll((240, 190, 60), hue)
        found.append(frame.astype(np.uint8))
    return found


def tone(seconds: float, rate: int, pitch: int) -> np.ndarray:
    """A sawtooth that comes and goes, int16 [S]: whole numbers alone."""
    n = np.arange(round(seconds * rate), dtype=np.int64)
    saw = n * pitch % rate * 12000 // rate - 6000
    return (saw * (n // (rate // 4) % 2)).astype(np.int16)


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    fps: Fraction,
    codec: str,
    colours: str,
    sound: str = "",
    **options: str,
) -> None:
    """A video by one thread, so that a file is the same whenever it is made; FLAC or AAC if asked for."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video: Any = container.add_stream(codec, rate=fps, options={"threads": "1", **options})
        video.width, video.height, video.pix_fmt = width, height, colours
        audio: Any = container.add_stream(sound, rate=44100, layout="mono") if sound else None
        blocks = []
        if sound:
            wave = tone(float(len(frames) / fps), 44100, 330)
            kind = "s16" if sound == "flac" else "fltp"
            samples = wave if kind == "s16" else wave.astype(np.float32) / 32768
            for start in range(0, len(samples), 1024):
                block = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format=kind, layout="mono"
                )
                block.sample_rate, block.pts, block.time_base = 44100, start, Fraction(1, 44100)
                blocks.append(block)
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        if sound:
            for block in blocks:
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))


def make_clips(out: Path) -> None:
    """Four videos of odd sizes, rates and lengths, and a photo."""
    out.mkdir()
    write_clip(
        out / "wide.mp4",
        pictures(98, 54, 57, 0),
        Fraction(30000, 1001),
        "libx264",
        "yuv420p",
        "aac",
        crf="30",
    )
    write_clip(out / "odd.mkv", pictures(63, 47, 20, 1), Fraction(25, 2), "ffv1", "bgr0")
    write_clip(out / "short.webm", pictures(80, 60, 3, 2), Fraction(7), "libvpx", "yuv420p", crf="30")
    write_clip(
        out / "kept.mkv", pictures(64, 36, 159, 1), Fraction(24), "libx264", "yuv420p", "flac", crf="30"
    )
    Image.fromarray(pictures(127, 85, 30, 2)[-1]).save(out / "photo.png")


def make_model(out: Path) -> None:
    """A model directory of two stages, with embeddings and classes: random, least sizes, real parts."""
    torch.manual_seed(0)
    codec = TinyCodec(replace(CODEC, codebooks=3, vocabulary=32)).eval()
    codec.vectors.normal_()
    vectors = codec.codebook_vectors()
    preset = replace(
        PRESETS["vab-tiny"],
        name="two stages",
        model=SIZES,
        decode=DecodeConfig(steps=4, guidance=3.0, temperature=4.5, top_k=16, candidates=2),
    )
    fine = replace(SIZES, codebooks=3, given_codebooks=2, expert_layers=0)
    second = replace(
        PRESETS["vab-tiny-fine"], model=fine, decode=DecodeConfig(steps=3, guidance=1.0, temperature=4.5)
    )
    network, finer = VAB(SIZES, vectors), VAB(fine, vectors)
    with torch.no_grad():
        for parameter in [*network.parameters(), *finer.parameters()]:
            parameter.mul_(5)  # a model that is sure of something
    pipeline = VABPipeline(
        preset, network, codec, load_vision("efficientnet-lite0"), fine=Stage(finer, second)
    )
    pipeline.finetuned = (
        (Contrastive(SIZES, vectors), replace(PRESETS["vab-tiny-contrastive"], model=SIZES)),
        (
            Classifier(SIZES, 2, vectors),
            replace(PRESETS["vab-tiny-classes"], model=SIZES, classes=("bars", "stripes")),
        ),
    )
    pipeline.save_pretrained(out)


def make_store(clips: Path, model: Path, out: Path) -> None:
    """Latents of pieces of the clips, by the model's own codec and image encoder."""
    rows = []
    for name in ("wide.mp4", "kept.mkv"):
        for n in range(8):
            label = "bars" if n % 2 else "stripes"
            split = "dev" if n in (3, 6) else "train"
            rows.append((f"{name[:4]}{n}", f"clips/{name}", f"clips/{name}", 0.2 * n, 1.5, label, split))
    with (clips.parent / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(
            [("id", "audio", "video", "start", "seconds", "label", "split"), *rows]
        )
    pipeline = VABPipeline.from_pretrained(model, device="cpu")
    made = extract(
        clips.parent / "manifest.csv",
        out,
        pipeline.codec,
        pipeline.vision,
        seconds=2.0,
        fps=2.0,
        shard_clips=10,
    )
    assert not made.failed


def make_run(store: Path, out: Path) -> None:
    """A pre-training run as a kill between its checkpoints of step 6 and 9 leaves it, and how it ends."""
    preset = replace(PRESETS["vab-tiny"], name="small", model=SIZES, train=TRAIN)
    train(preset, store, out, log=lambda line: None)
    shutil.copyfile(out / "model.safetensors", out.parent / "run_whole.safetensors")
    (out.parent / "run_preset.json").write_text(json.dumps(asdict(preset), indent=1) + "\n")
    kept = out / "checkpoints" / "000000006.safetensors"
    assert sorted(out.glob("checkpoints/*")) == [kept, out / "checkpoints" / "000000009.safetensors"], (
        "9 steps?"
    )
    for path in out.iterdir():
        if path.name not in ("checkpoints", "metrics.jsonl"):
            path.unlink()
    (out / "checkpoints" / "000000009.safetensors").unlink()
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 9))


def make_codec_run(out: Path) -> None:
    """A codec in training as a kill between step 3 and 6 leaves it, and how it ends."""
    sounds = {name: [tone(1.5, 16000, pitch)] for name, pitch in (("high", 880), ("low", 110))}
    whole = out.parent / "codec_whole"
    train_codec(sounds, whole, CODEC_TRAIN, CODEC)

    class Stopped(Exception):
        pass

    def stop(line: dict[str, float]) -> None:
        if line["step"] == 4:
            raise Stopped

    with suppress(Stopped):
        train_codec(sounds, out, CODEC_TRAIN, CODEC, stop)
    shutil.copyfile(whole / "codec.safetensors", out.parent / "codec_whole.safetensors")
    shutil.rmtree(whole)
    settings = {"codec": asdict(CODEC), "train": asdict(CODEC_TRAIN)}
    (out.parent / "codec_settings.json").write_text(json.dumps(settings, indent=1) + "\n")


def make_library(root: Path, out: Path) -> None:
    """What ``vab index add`` makes of the clips and of three sounds, and the files themselves."""
    sounds = root / "sounds"
    for name, pitch in (("high", 880), ("low", 110)):
        with av.open(
            str(_parent(sounds / name / f"{name}.wav")), "w", options={"fflags": "+bitexact"}
        ) as container:
            stream: Any = container.add_stream("pcm_s16le", rate=16000, layout="mono")
            block = av.AudioFrame.from_ndarray(tone(1.5, 16000, pitch)[None], format="s16", layout="mono")
            block.sample_rate = 16000
            container.mux(stream.encode(block))
            container.mux(stream.encode(None))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "vab",
            "index",
            "add",
            str(out),
            str(sounds),
            str(root / "clips"),
            "--device",
            "cpu",
        ],
        check=True,
    )


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make_study(root: Path, out: Path) -> None:
    """A study of two systems and two clips, and what one of its raters has said so far."""
    systems = []
    for n, name in enumerate(("ours", "theirs")):
        folder = root / "systems" / name
        folder.mkdir(parents=True)
        systems.append(folder)
        for k, clip in enumerate(("bell", "dog")):
            silent = folder / f"{clip}.silent.mkv"
            write_clip(silent, pictures(64, 36, 10, k), Fraction(10), "libx264", "yuv420p", crf="30")
            mux(
                silent,
                tone(1.0, 16000, 300 + 150 * n + 40 * k).astype(np.float32) / 32768,
                16000,
                folder / f"{clip}.mp4",
            )
            silent.unlink()
    build_study(systems, out, raters=1, seed=1)
    study = open_study(out)
    answers = Answers(study, clock=lambda: 1.7e9)
    rater = answers.invite(2)[0]
    for _ in range(4):
        trial = answers.next(rater).trial
        assert trial is not None
        grade = 4
        if trial.check:
            grade = 5 if trial.survey == "preference" and study.swapped(rater, trial.id) else 1
        answers.answer(rater, trial.id, dict.fromkeys(QUESTIONS[trial.survey], grade))


def make_expected(clips: Path) -> None:
    """``expected.json``: for this kind of machine, hashes of the sounds; for any, tokens and features."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        script = TESTS / "helpers" / "generated.py"
        subprocess.run([sys.executable, str(script), str(clips), str(out)], check=True, env=environment)
        path = HERE / "expected.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | {read_machine(out): hashes(out)}, indent=1) + "\n")
        if not (HERE / "sounds.safetensors").exists():
            half = load_file(out / "sounds.safetensors")
            save_file(
                {n: t.half() if n.endswith(("features", "levels")) else t for n, t in half.items()},
                HERE / "sounds.safetensors",
            )


def main() -> None:
    """Without a word: everything. With ``expected``: only add this machine's kind to expected.json."""
    torch.set_num_threads(1)
    if sys.argv[1:] != ["expected"]:
        root = Path("/tmp/vab-0.1.0")  # libraries hold whole paths: let these say nothing
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        make_clips(root / "clips")
        make_model(root / "model")
        make_store(root / "clips", root / "model", root / "store")
        make_run(root / "store", root / "run")
        make_codec_run(root / "codec_run")
        make_library(root, root / "library")
        make_study(root, root / "study")
        shutil.rmtree(root / "systems")
        for path in root.iterdir():
            shutil.move(path, HERE / path.name)
        root.rmdir()
    make_expected(HERE / "clips")


if __name__ == "__main__":
    main()
