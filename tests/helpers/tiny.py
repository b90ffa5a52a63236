"""A random model of the least size, with the real parts, and small videos to run it on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from vab.codecs.tiny import TinyCodec, TinyCodecConfig
from vab.config import DecodeConfig
from vab.inference.pipeline import VABPipeline
from vab.models.foleygen import FoleyGen
from vab.models.heads import Classifier, Contrastive, Finetuned
from vab.models.vab import VAB
from vab.presets import PRESETS
from vab.sampling.stages import Stage
from vab.vision import load_vision


def write_model(folder: Path, like: str = "vab-tiny", fine: bool = False, timing: bool = False) -> Path:
    """A model directory: window 2 s, 2 codebooks of 32, 2 layers of 32, and EfficientNet-Lite0 as it is.

    ``like`` is a preset, vab-tiny or foleygen-tiny. With ``fine`` the codec has 5 codebooks, and a second
    stage fills in the last 3. With ``timing`` both are told a curve, and heed it.
    """
    torch.manual_seed(0)
    sizes = TinyCodecConfig(
        num_codebooks=5 if fine else 2,
        codebook_size=32,
        dim=8,
        decoder_width=16,
        decoder_layers=1,
        detail_width=16,
        detail_layers=1,
    )
    codec = TinyCodec(sizes).eval()
    codec.vectors.normal_()
    model = replace(
        PRESETS["vab-tiny"].model,
        seconds=2.0,
        num_codebooks=2,
        codebook_size=32,
        codebook_dim=8,
        hidden_dim=32,
        num_layers=2,
        num_expert_layers=1,
        num_heads=2,
        timing=timing,
    )
    vectors, classes = codec.codebook_vectors(), ("bell", "cat", "dog")
    preset = replace(
        PRESETS["vab-tiny"], name="test", model=model, decode=DecodeConfig(num_steps=4, guidance_scale=3.0)
    )
    network = VAB(model, vectors)
    if like == "foleygen-tiny":
        preset = replace(PRESETS[like], name="test", model=replace(model, num_expert_layers=0))
        network = FoleyGen(preset.model, vectors)
    stages = [Stage(network, preset)]
    if fine:
        finer = replace(model, num_codebooks=5, num_conditioning_codebooks=2, num_expert_layers=0)
        second = replace(
            PRESETS["vab-tiny-fine"], model=finer, decode=DecodeConfig(num_steps=3, guidance_scale=1.0)
        )
        stages.append(Stage(VAB(finer, vectors), second))
    with torch.no_grad():
        for stage in stages:
            for parameter in stage.network.parameters():
                parameter.mul_(5)  # a model that is sure of something
            if stage.network.timing is not None:
                stage.network.timing.out.weight.normal_()
    vision = load_vision("efficientnet-lite0")
    pipeline = VABPipeline(preset, network, codec, vision, fine=stages[1] if fine else None)
    pipeline.finetuned = Finetuned(
        (Contrastive(model, vectors), replace(PRESETS["vab-tiny-contrastive"], model=model)),
        (
            Classifier(model, 3, vectors),
            replace(PRESETS["vab-tiny-classes"], model=model, classes=classes),
        ),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_video(
    path: Path,
    frames: int,
    fps: int | Fraction,
    sound: bool = True,
    colour: tuple[int, int, int] = (200, 60, 30),
) -> Path:
    """``frames`` frames of a moving stripe, as long as they say, and a rising tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=Fraction(fps))
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for n in range(frames):
            picture = np.full((48, 64, 3), colour, np.uint8)
            picture[:, n * 3 % 60 : n * 3 % 60 + 4] = 255
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        if audio is not None:
            time = np.arange(round(frames / Fraction(fps) * 16000)) / 16000
            wave = (0.3 * np.sin(2 * np.pi * (300 + 50 * time) * time)).astype(np.float32)
            block = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            block.sample_rate = 16000
            container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return path


def write_bars(path: Path) -> Path:
    """A test picture of coloured bars: nothing that vab-tiny has seen."""
    colours = np.array([[255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255], [255, 0, 0], [0, 0, 255]])
    Image.fromarray(colours.repeat(60, 0)[None].repeat(240, 0).astype(np.uint8)).save(path)
    return path


def picture_packets(path: Path) -> Iterator[bytes]:
    """The encoded picture, packet by packet."""
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield bytes(packet)
