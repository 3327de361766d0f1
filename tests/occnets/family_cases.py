# SPDX-License-Identifier: MIT
"""Networks of every family with random weights that have a surface, and inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from occnets.models.latent import latent_of_seed


def inputs_of(reads: str, pixels: int = 64) -> Tensor:
    """A batch of one: 500 points on a sphere, voxels, or a picture of whole 255ths."""
    generator = torch.Generator().manual_seed(2)
    if reads == "voxels":
        return (torch.rand(1, 32, 32, 32, generator=generator) < 0.3).float()
    if reads == "img":
        return (255 * torch.rand(1, 3, pixels, pixels, generator=generator)).round() / 255
    points = torch.randn(1, 500, 3, generator=generator)
    return 0.45 * points / points.norm(dim=-1, keepdim=True)


def with_surface(
    model: torch.nn.Module, inputs: Any, *, latent: int | None = None, threshold: float = 0.2
) -> torch.nn.Module:
    """Random weights with which a fifth of the cube is inside, for these inputs.

    Args:
        model: changed in place; evaluation mode.
        inputs: for ``encode``.
        latent: of an unconditional model: seed of the code, instead of inputs.
        threshold: probability from which on a place is inside.
    """
    generator = torch.Generator().manual_seed(1)
    query = torch.rand(1, 1500, 3, generator=generator) * 1.1 - 0.55
    _settle_norms(model, inputs)
    for name, parameter in model.decoder.named_parameters():
        if parameter.dim() > 1 and ".linear." not in name:  # sines keep the small weights they begin with
            torch.nn.init.normal_(parameter, std=1.0 / parameter.shape[1] ** 0.5, generator=generator)
    model.eval()
    with torch.no_grad():
        if latent is not None:
            model.decoder.fc_z.weight.mul_(0.02)  # other codes have a surface too
        code = None if latent is None else latent_of_seed(latent, model.z_dim)[None]
        logits = model.decoder(query, model.encode(inputs) if code is None else model.from_latent(code))
        model.decoder.fc_out.bias += np.log(threshold / (1 - threshold)) - logits.quantile(0.8)
    return model


def _settle_norms(model: torch.nn.Module, inputs: Any) -> None:
    """Give the batch norms of a ResNet statistics of pictures, without which values grow from layer to layer."""
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    pictured = isinstance(inputs, dict) or (isinstance(inputs, Tensor) and inputs.shape[1] == 3 and inputs.dim() == 4)
    if not norms or not pictured:
        return
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    poses = torch.eye(4).repeat(4, 1, 1)
    for layer in norms:
        layer.momentum = 1.0
    model.train()
    with torch.no_grad():
        model.encode({"image": pictures, "pose": poses} if isinstance(inputs, dict) else pictures)
    for layer in norms:
        layer.momentum = 0.1
