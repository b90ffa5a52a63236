"""The networks of fine-tuning: the first L1 layers with a common space or classes (sections 3.4, 3.5)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from vab.config import ModelConfig, Preset
from vab.errors import first_line
from vab.models.hub import CONFIG, FOLDERS, MODEL, ModelError, read_config
from vab.models.vab import Trunk
from vab.utils.files import save_tensors, write_whole

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
        self.head = nn.Linear(config.hidden_dim, classes)
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


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning made of a model, as far as it has it: each network with the preset of its training."""

    contrastive: tuple[Contrastive, Preset] | None = None
    classifier: tuple[Classifier, Preset] | None = None


def load_network(folder: Path, build: Callable[[], N], state: dict[str, Tensor] | None = None) -> N:
    """The network of a model directory, float32. It is not initialised first: that would take longer.

    ``state``: the weights, if they are not just those of the directory. ``ModelError`` if they do not fit.
    """
    path = folder / MODEL
    try:
        with torch.device("meta"):
            network = build()
        state = read_weights(path) if state is None else state
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: does not fit its config.json ({first_line(error)})") from error
    return network


def save_network(folder: Path, state: dict[str, Tensor], preset: Preset) -> None:
    """Write what :func:`load_network` and ``read_config`` read; each file is complete or not there."""
    folder.mkdir(exist_ok=True)
    save_tensors(folder / MODEL, state)
    write_whole(folder / CONFIG, (json.dumps(asdict(preset), indent=1) + "\n").encode())


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ``ModelError`` if it is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error


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
        state = read_weights(place / MODEL)
        if contrastive is not None and not any(name.startswith("trunk.") for name in state):
            trunk = contrastive[0].trunk.state_dict()
            state |= {f"trunk.{name}": value for name, value in trunk.items()}
        network = load_network(place, lambda: Classifier(learned.model, len(learned.classes)), state)
        classifier = network.eval(), learned
    return Finetuned(contrastive, classifier)


def save_finetuned(folder: Path, finetuned: Finetuned) -> None:
    """Write what :func:`load_finetuned` reads; a probe on the contrastive trunk keeps its head alone."""
    trunk: dict[str, Tensor] = {}
    if finetuned.contrastive is not None:
        contrastive, taught = finetuned.contrastive
        save_network(folder / FOLDERS["contrastive"], contrastive.state_dict(), taught)
        trunk = {f"trunk.{name}": tensor for name, tensor in contrastive.trunk.state_dict().items()}
    if finetuned.classifier is not None:
        classifier, learned = finetuned.classifier
        state = classifier.state_dict()
        if trunk and all(torch.equal(state[name].cpu(), tensor.cpu()) for name, tensor in trunk.items()):
            state = {name: tensor for name, tensor in state.items() if name not in trunk}
        save_network(folder / FOLDERS["classification"], state, learned)


def start_from(network: nn.Module, folder: Path) -> None:
    """Take over the weights of a model directory as far as the network has them.

    The trunk must be there whole. What only one of the two has (upper layers, temperature) is left as it
    is, and a classifier's head is always new. ``ModelError`` names what is missing or of another shape.
    """
    saved = read_weights(folder / MODEL)
    saved = {name.removeprefix("trunk."): value for name, value in saved.items()}
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    with torch.device("meta"):
        missing = sorted(Trunk(trunk.config).state_dict().keys() - saved.keys())
    if missing:
        raise ModelError(f"{folder}: is no model to start from, it has no {missing[0]}")
    own = {name: name.removeprefix("trunk.") for name in network.state_dict()}
    taken = {name: saved[n] for name, n in own.items() if n in saved and not n.startswith("head.")}
    try:
        network.load_state_dict(taken, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{folder}: {first_line(error)}") from error
