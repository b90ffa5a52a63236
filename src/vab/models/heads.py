"""The fine-tuned networks, contrastive and classifier, on the first L1 layers (sections 3.4, 3.5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vab.config import ModelConfig, Preset, written
from vab.errors import first_line
from vab.models.hub import CONFIG, FOLDERS, KNOWN, MODEL, ModelError, read_config
from vab.models.known import ClassStatistics
from vab.models.vab import Trunk
from vab.utils.files import DamagedError, load_tensors, save_tensors, write_json

Inputs = Literal["audio", "video", "both"]  # the modalities a classifier goes by

INITIAL_TEMPERATURE = 0.07  # of the contrastive loss
MAX_LOGIT_SCALE = 100.0  # 1 / temperature, as in CLIP


class Contrastive(nn.Module):
    """Audio and video in one space (section 3.4): two passes through the trunk, mean pool, length one."""

    def __init__(self, config: ModelConfig, codebook_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(config, codebook_vectors)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def forward(
        self,
        tokens: Tensor,
        features: Tensor,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B,K,T], features [B,F,dim], paddings bool [B,T], [B,F] -> audio, video [B,D], scale."""
        # Apart from each other: neither vector may depend on the other modality.
        audio = self.embed(tokens, None, token_padding)
        video = self.embed(None, features, feature_padding)
        return audio, video, self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def embed(self, tokens: Tensor | None, features: Tensor | None, padding: Tensor | None = None) -> Tensor:
        """Unit vectors [B,D] of tokens or of features, whichever is not None; ``padding`` is theirs."""
        if features is None:
            pooled = self.trunk.pooled(tokens, None, token_padding=padding)
        else:
            pooled = self.trunk.pooled(tokens, features, feature_padding=padding)
        return functional.normalize(pooled.float(), dim=-1)


class Classifier(nn.Module):
    """Mean pool of the trunk's output and a linear classifier (section 3.5)."""

    def __init__(self, config: ModelConfig, num_classes: int, codebook_vectors: Tensor | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(config, codebook_vectors)
        self.head = nn.Linear(config.hidden_dim, num_classes)
        # As in the trunk: truncated at two standard deviations.
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.04, b=0.04)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        tokens: Tensor | None,
        features: Tensor | None,
        token_padding: Tensor | None = None,
        feature_padding: Tensor | None = None,
        inputs: Inputs = "both",
    ) -> Tensor:
        """Logits [B,N] from audio (tokens), video (features) or both.

        A modality that is None, or that ``inputs`` leaves out, takes no positions.
        """
        # Left out is not the same as zeros: the other modality's positions are not there at all.
        if inputs == "audio":
            features, feature_padding = None, None
        elif inputs == "video":
            tokens, token_padding = None, None
        return self.head(self.trunk.pooled(tokens, features, token_padding, feature_padding))

    def picture_vectors(self, features: Tensor, padding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Unit vectors [B,D] in the space of the trunk, and logits [B,N], of features [B,F,dim] alone."""
        pooled = self.trunk.pooled(None, features, feature_padding=padding)
        return functional.normalize(pooled.float(), dim=-1), self.head(pooled).float()


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Finetuned:
    """The fine-tuned networks of a model, as far as it has them, each with the preset of its training."""

    contrastive: tuple[Contrastive, Preset] | None = None
    classifier: tuple[Classifier, Preset] | None = None
    known: ClassStatistics | None = None  # by which the classifier tells what it does not know

    @property
    def pictured(self) -> list[str]:
        """The classes that were learned from pictures; none for a model that does not say."""
        if self.classifier is None or self.known is None:
            return []
        names = self.classifier[1].classes
        return [name for name, mean in zip(names, self.known.means, strict=True) if mean.any()]


def load_network(folder: Path, build: Callable[[], N], state: dict[str, Tensor] | None = None) -> N:
    """The network of a model directory, float32.

    ``state``: the weights, if they are not just those of the directory. ``ModelError`` if they do not fit.
    """
    path = folder / MODEL
    try:
        # On the meta device, without memory or initial values: the weights take their place at once.
        with torch.device("meta"):
            network = build()
        state = read_weights(path) if state is None else state
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: does not fit its config.json ({first_line(error)})") from error
    return network


def save_network(folder: Path, state: dict[str, Tensor], preset: Preset) -> None:
    """Write a model directory for :func:`load_network` and ``read_config``, each file whole or not at all."""
    folder.mkdir(exist_ok=True)
    save_tensors(folder / MODEL, state)
    write_json(folder / CONFIG, written(preset))


def check_codebooks(network: nn.Module, vectors: Tensor, message: str) -> None:
    """``ModelError`` with ``message`` if a network was trained on other codebook vectors [K,V,C] than these.

    Tokens of another codec would be noise to it, and it would not notice.
    """
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    expected = trunk.audio_embedding.vectors.float().cpu()
    # Weights are saved in half precision, so the vectors may differ by rounding.
    actual = vectors[: len(expected)].float().cpu()
    if actual.shape != expected.shape or (actual - expected).norm() > 0.01 * expected.norm():
        raise ModelError(message)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ``ModelError`` if it is none, damaged, or not of real numbers."""
    try:
        tensors = load_tensors(path)
    except DamagedError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)})") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(f"{path}: is not of this network, {name} holds {kind}")
    return tensors


def finetuned_folders(folder: Path) -> dict[str, Path]:
    """The directory of the network of each objective of fine-tuning that a model directory has."""
    found = {kind: folder / name for kind, name in FOLDERS.items() if (folder / name / MODEL).is_file()}
    found.setdefault(read_config(folder).train.objective, folder)
    return {kind: place for kind, place in found.items() if kind in FOLDERS}


def load_finetuned(folder: Path) -> Finetuned:
    """The contrastive network and the classifier of a model directory, as far as there are.

    Each is in a folder of its own, or the directory is one of them. A classifier without a trunk of its own
    (a linear probe) stands on the trunk of the contrastive network.
    """
    # 1. Which directory holds which network, by objective.
    folders = finetuned_folders(folder)

    # 2. The contrastive network.
    contrastive: tuple[Contrastive, Preset] | None = None
    if (source := folders.get("contrastive")) is not None:
        preset = read_config(source)
        contrastive = load_network(source, partial(Contrastive, preset.model)).eval(), preset

    # 3. The classifier, whose trunk may be that of the contrastive network.
    classifier: tuple[Classifier, Preset] | None = None
    if (source := folders.get("classification")) is not None:
        preset = read_config(source)
        state = read_weights(source / MODEL)
        if contrastive is not None and not any(name.startswith("trunk.") for name in state):
            trunk = contrastive[0].trunk.state_dict()
            state |= {f"trunk.{name}": value for name, value in trunk.items()}
        build = partial(Classifier, preset.model, len(preset.classes))
        classifier = load_network(source, build, state).eval(), preset

        # 4. How it tells what it does not know; models before version 0.2 cannot.
        if (source / KNOWN).is_file():
            return Finetuned(contrastive, classifier, _load_statistics(source / KNOWN, classifier[0]))
    return Finetuned(contrastive, classifier)


def _load_statistics(path: Path, network: Classifier) -> ClassStatistics:
    """The statistics beside a classifier; ``ModelError`` if they are not its own."""
    tensors = read_weights(path)
    means = tensors.get("means", torch.empty(0)).float()
    threshold = tensors.get("threshold", torch.empty(0)).float()
    fits = means.shape == network.head.weight.shape and threshold.numel() == 1
    if not fits or not means.isfinite().all() or not means.any() or not threshold.isfinite():
        raise ModelError(f"{path}: does not fit the classifier beside it; delete it, or fine-tune again")
    return ClassStatistics(means, threshold.item())


def save_finetuned(folder: Path, finetuned: Finetuned) -> None:
    """Write the folders for :func:`load_finetuned`; a probe on the contrastive trunk keeps its head alone."""
    trunk: dict[str, Tensor] = {}
    if finetuned.contrastive is not None:
        contrastive, preset = finetuned.contrastive
        save_network(folder / FOLDERS["contrastive"], contrastive.state_dict(), preset)
        trunk = {f"trunk.{name}": tensor for name, tensor in contrastive.trunk.state_dict().items()}
    if finetuned.classifier is not None:
        classifier, preset = finetuned.classifier
        state = classifier.state_dict()
        # A trunk that is still the contrastive one is not written twice.
        if trunk and all(torch.equal(state[name].cpu(), tensor.cpu()) for name, tensor in trunk.items()):
            state = {name: tensor for name, tensor in state.items() if name not in trunk}
        save_network(folder / FOLDERS["classification"], state, preset)
        if finetuned.known is not None:
            finetuned.known.save(folder / FOLDERS["classification"])


def start_from(network: nn.Module, folder: Path) -> None:
    """Initialise a network from the weights of a model directory, as far as it has them.

    The trunk must be there whole. What only one of the two has (upper layers, temperature) is left as it
    is, and a classifier's head is always new. ``ModelError`` names what is missing or of another shape.
    """
    # Names as in a bare trunk: a fine-tuned network keeps its own under "trunk.".
    saved = read_weights(folder / MODEL)
    saved = {name.removeprefix("trunk."): value for name, value in saved.items()}
    trunk = next(module for module in network.modules() if isinstance(module, Trunk))
    with torch.device("meta"):
        missing = sorted(Trunk(trunk.config).state_dict().keys() - saved.keys())
    if missing:
        raise ModelError(f"{folder}: is no model to start from, it has no {missing[0]}")
    # The tokens of the store must mean the same to both.
    vectors = saved["audio_embedding.vectors"]
    if vectors.shape == trunk.audio_embedding.vectors.shape:
        check_codebooks(network, vectors, f"{folder} was trained on the tokens of another codec")

    # Back under the names of this network.
    names = {name: name.removeprefix("trunk.") for name in network.state_dict()}
    shared = {name: saved[n] for name, n in names.items() if n in saved and not n.startswith("head.")}
    try:
        network.load_state_dict(shared, strict=False)
    except RuntimeError as error:
        raise ModelError(f"{folder}: {first_line(error)}") from error
