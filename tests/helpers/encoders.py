"""Small image encoders with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import Tensor

from vab.vision import RECIPES, Recipe

VIT_TINY = replace(RECIPES["mae-vit-l"], architecture="deit_tiny_patch16_224.fb_in1k", dim=192)


def random_network(recipe: Recipe) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(recipe.architecture)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def save(state: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
