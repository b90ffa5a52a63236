"""The networks of fine-tuning: the first L1 layers with a common space or classes (sections 3.4, 3.5)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vab.config import ModelConfig, Preset
from vab.models.hub import CONFIG, FOLDERS, MODEL, ModelError, read_config
from vab.models.vab import Trunk

TEMPERATURE = 0.07  # of the contrast when training begins
HOTTEST = 100.0  # largest factor of the similarities


class Contrastive(nn.Module):
    """Sound and picture in one space (section 3.4): two passes through the trunk, mean pool, length one."""

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(config, codebook_vectors)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(TEMPERATURE)))

    def forward(
        self,
        tokens: Tensor,
        features: Tensor,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B,K,T], features [B,F,dim], paddings bool [B,T], [B,F] -> audio, video [B,D], scale."""
        audio = self.embed(tokens, None, token_padding)
        video = self.embed(None, features, feature_padding)
        return audio, video, self.log_scale.exp().clamp(max=HOTTEST)

    def embed(self, tokens: Tensor | None, features: Tensor | None, padding: Tensor | None = None) -> Tensor:
        """The vectors [B,D], of length one, of tokens or of features; ``padding`` is theirs."""
        paddings = (padding, None) if features is None else (None, padding)
        return functional.normalize(self.trunk.pooled(tokens, features, *paddings).float(), dim=-1)


class Classifier(nn.Module):
    """Mean pool of the trunk's output and a linear classifier (section 3.5)."""

    def __init__(self, config: ModelConfig, classes: int, codebook_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(config, codebook_vectors)
        self.head = nn.Linear(config.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        tokens: Tensor | None,
        features: Tensor | None,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,N] from sound (tokens), picture (features) or both; what is None takes no places."""
        return self.head(self.trunk.pooled(tokens, features, token_padding, feature_padding))


N = TypeVar("N", bound=nn.Module)
# the two networks and what each was taught with, as far as a model has them
Finetuned = tuple[tuple[Contrastive, Preset] | None, tuple[Classifier, Preset] | None]


def load_network(folder: Path, build: Callable[[], N], state: dict[str, Tensor] | None = None) -> N:
    """The network of a model directory, float32. It is not initialised first: that would take longer.

    ``state``: the weights, if they are not just those of the directory. ``ModelError`` if they do not fit.
    """
    path = folder / MODEL
    try:
        with torch.device("meta"):
            network = build()
        state = load_file(path) if state is None else state
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({_first_line(error)})") from error
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: does not fit its config.json ({_first_line(error)})") from error
    return network


def load_finetuned(folder: Path) -> Finetuned:
    """The contrastive network and the classifier of a model directory, as far as there are.

    Each is in a folder of its own, or the directory is one of them. A classifier without a trunk of its own
    (a linear probe) stands on the trunk of the contrastive network.
    """
    contrastive: tuple[Contrastive, Preset] | None = None
    classifier: tuple[Classifier, Preset] | None = None
    places = {kind: folder / name for kind, name in FOLDERS.items() if (folder / name / CONFIG).is_file()}
    own = read_config(folder)
    places.setdefault(own.train.objective, folder)
    if "contrastive" in places:
        place = places["contrastive"]
        taught = read_config(place)
        contrastive = load_network(place, lambda: Contrastive(taught.model)).eval(), taught
    if "classification" in places:
        place = places["classification"]
        learned = read_config(place)
        try:
            state = load_file(place / MODEL)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{place / MODEL}: cannot be read ({_first_line(error)})") from error
        if contrastive is not None and not any(name.startswith("trunk.") for name in state):
            trunk = contrastive[0].trunk.state_dict()
            state |= {f"trunk.{name}": value for name, value in trunk.items()}
        network = load_network(place, lambda: Classifier(learned.model, len(learned.classes)), state)
        classifier = network.eval(), learned
    return contrastive, classifier


def save_finetuned(folder: Path, finetuned: Finetuned) -> None:
    """Write what :func:`load_finetuned` reads; a probe on the contrastive trunk keeps its head alone."""
    for name, found in zip(FOLDERS.values(), finetuned, strict=True):
        if found is None:
            continue
        network, taught = found
        state = {n: tensor.cpu().contiguous() for n, tensor in network.state_dict().items()}
        if finetuned[0] is not None and isinstance(network, Classifier):
            trunk = {f"trunk.{n}": tensor for n, tensor in finetuned[0][0].trunk.state_dict().items()}
            if all(torch.equal(state[n], tensor.cpu()) for n, tensor in trunk.items()):
                state = {n: tensor for n, tensor in state.items() if n not in trunk}
        (folder / name).mkdir(exist_ok=True)
        save_file(state, folder / name / MODEL)
        (folder / name / CONFIG).write_text(json.dumps(asdict(taught), indent=1) + "\n")


def start_from(network: nn.Module, folder: Path) -> None:
    """Take over the weights of a model directory as far as the network has them.

    The trunk must be there whole. What only one of the two has (upper layers, temperature) is left as it
    is, and a classifier's head is always new. ``ValueError`` names what is missing or of another shape.
    """
    saved = load_file(folder / MODEL)
    saved = {name.removeprefix("trunk."): value for name, value in saved.items()}
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    with torch.device("meta"):
        missing = sorted(Trunk(trunk.config).state_dict().keys() - saved.keys())
    if missing:
        raise ValueError(f"{folder}: is no model to start from, it has no {missing[0]}")
    own = {name: name.removeprefix("trunk.") for name in network.state_dict()}
    taken = {name: saved[n] for name, n in own.items() if n in saved and not n.startswith("head.")}
    try:
        network.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[-1].strip()}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
