# SPDX-License-Identifier: MIT
"""The way the original systems go from a cloud to a mesh, in torch operations and serial code, for comparison.

Written from the description of Convolutional Occupancy Networks (Peng et al., ECCV 2020) and its generator: every plane
is normalised, indexed, scattered, pooled and sampled by itself with ``torch_scatter`` (else ``scatter_reduce``) and
``F.grid_sample``; the U-Nets run in torch's default memory layout; the decoder is a chain of linear layers over 100,000
queries at a time; the octree is a serial one with a map; the grid it fills is padded and handed to a serial marching
cubes. That is PyMCubes here: the same algorithm and result as the original's extension, about half its time, so ratios
come out smaller than against the original.

It takes the weights of a ``ConvolutionalOccupancyNetwork`` of this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 100_000
"""Queries of one call of the decoder."""

OUTSIDE = -1e6
"""Value of the layer around the grid."""

AXES = {"xz": (0, 2), "xy": (0, 1), "yz": (1, 2)}

try:
    from torch_scatter import scatter_max, scatter_mean

    SCATTER = "torch_scatter"
except ImportError:
    SCATTER = "scatter_reduce"

    def scatter_max(source: Tensor, index: Tensor, dim_size: int) -> tuple[Tensor, None]:  # type: ignore[misc]
        """Largest value of every cell, (B, C, dim_size); no arguments of the maxima."""
        best = source.new_zeros(*source.shape[:2], dim_size)
        return best.scatter_reduce_(2, index.expand_as(source), source, "amax", include_self=False), None

    def scatter_mean(source: Tensor, index: Tensor, out: Tensor) -> Tensor:  # type: ignore[misc]
        """Mean of every cell, into ``out`` (B, C, cells) of zeros."""
        count = torch.zeros_like(out[:, :1]).scatter_add_(2, index, torch.ones_like(source[:, :1]))
        return out.scatter_add_(2, index.expand_as(source), source).div_(count.clamp_(min=1))


Octree = Callable[[int, int, float], Any]
"""Makes an octree from initial cells, levels and threshold, with ``query``, ``update`` and ``to_dense``."""


def normalised(points: Tensor, padding: float, name: str) -> Tensor:
    """Coordinates (B, N, 2) in a plane, or (B, N, 3) in the grid, in [0, 1)."""
    epsilon = 1e-3 if name == "grid" else 1e-5
    inside = (points if name == "grid" else points[:, :, AXES[name]]) / (1 + padding + epsilon) + 0.5
    if inside.max() >= 1:
        inside[inside >= 1] = 1 - epsilon
    if inside.min() < 0:
        inside[inside < 0] = 0.0
    return inside


def cell_index(position: Tensor, resolution: int) -> Tensor:
    """(B, 1, N) number of every point's cell."""
    cell = (position * resolution).long()
    index = cell[:, :, 0] + resolution * cell[:, :, 1]
    if position.shape[2] == 3:
        index = index + resolution**2 * cell[:, :, 2]
    return index[:, None]


class OriginalConvONet:
    """Encoder and decoder of a network, run as the original runs them.

    Args:
        model: with a ``LocalPoolPointnet`` encoder, ``LocalDecoder`` and ``registration`` "corners".
    """

    def __init__(self, model: nn.Module) -> None:
        self.encoder, self.decoder = model.encoder, model.decoder
        options = self.encoder.options
        self.padding = options.padding
        names = options.plane_type if isinstance(options.plane_type, (list, tuple)) else [options.plane_type]
        self.names = [name for name in ("grid", "xz", "xy", "yz") if name in names]
        self.sides = {n: options.grid_resolution if n == "grid" else options.plane_resolution for n in self.names}

    def encode(self, points: Tensor) -> dict[str, Tensor]:
        """Feature maps of clouds (B, N, 3)."""
        cells = {n: cell_index(normalised(points, self.padding, n), self.sides[n]) for n in self.names}
        net = self.encoder.fc_pos(points)
        net = self.encoder.blocks[0](net)
        for block in self.encoder.blocks[1:]:
            net = block(torch.cat([net, self._pooled(net, cells)], dim=2))
        features = self.encoder.fc_c(net)
        return {name: self._map(points, features, name) for name in self.names}

    def _pooled(self, net: Tensor, cells: Mapping[str, Tensor]) -> Tensor:
        total: Tensor | float = 0.0
        for name, index in cells.items():
            size = self.sides[name] ** (3 if name == "grid" else 2)
            best = scatter_max(net.permute(0, 2, 1), index, dim_size=size)[0]
            total = total + best.gather(dim=2, index=index.expand(-1, net.shape[2], -1))
        return total.permute(0, 2, 1)

    def _map(self, points: Tensor, features: Tensor, name: str) -> Tensor:
        side, axes = self.sides[name], 3 if name == "grid" else 2
        index = cell_index(normalised(points, self.padding, name), side)
        empty = features.new_zeros(len(points), features.shape[2], side**axes)
        cells = scatter_mean(features.permute(0, 2, 1), index, out=empty)
        cells = cells.reshape(len(points), features.shape[2], *[side] * axes)
        if name == "grid":
            return cells if self.encoder.unet3d is None else run_unet3d(self.encoder.unet3d, cells)
        return cells if self.encoder.unet is None else run_unet(self.encoder.unet, cells)

    def decode(self, query: Tensor, maps: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, M) at queries (B, M, 3)."""
        total: Tensor | float = 0.0
        for name in self.names:
            where = 2.0 * normalised(query, self.padding, name) - 1.0
            where = where[:, :, None, None] if name == "grid" else where[:, :, None]
            sampled = functional.grid_sample(
                maps[name], where, padding_mode="border", align_corners=True, mode="bilinear"
            )
            total = total + sampled.flatten(2)
        features = total.transpose(1, 2)
        net = self.decoder.fc_p(query)
        for linear, block in zip(self.decoder.fc_c, self.decoder.blocks, strict=True):
            net = block(net + linear(features))
        return self.decoder.fc_out(functional.relu(net)).squeeze(-1)


def run_unet(net: nn.Module, x: Tensor) -> Tensor:
    """The 2-D U-Net in torch's default layout."""
    skips = []
    for down in net.down_convs:
        x = functional.relu(down.conv2(functional.relu(down.conv1(x))))
        skips.append(x)
        x = functional.max_pool2d(x, 2) if down.pooling else x
    for up, skip in zip(net.up_convs, reversed(skips[:-1]), strict=True):
        x = torch.cat((up.upconv(x), skip), 1)
        x = functional.relu(up.conv2(functional.relu(up.conv1(x))))
    return net.conv_final(x)


def run_unet3d(net: nn.Module, x: Tensor) -> Tensor:
    """The 3-D U-Net in torch's default layout, by torch's own layers."""

    def double(level: nn.Module, x: Tensor) -> Tensor:
        for single in level.basic_module:
            for name, layer in single.named_children():
                if name == "conv":
                    x = functional.conv3d(x, layer.weight, layer.bias, padding=1)
                elif name == "groupnorm":
                    x = functional.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
                else:
                    x = functional.relu(x)
        return x

    skips = []
    for level, encoder in enumerate(net.encoders):
        x = double(encoder, functional.max_pool3d(x, 2) if level else x)
        skips.append(x)
    for decoder, skip in zip(net.decoders, reversed(skips[:-1]), strict=True):
        up = functional.interpolate(x, size=skip.shape[2:], mode="nearest")
        x = double(decoder, torch.cat((skip, up), dim=1))
    return functional.conv3d(x, net.final_conv.weight, net.final_conv.bias)


def evaluate(model: OriginalConvONet, maps: Mapping[str, Tensor], points: Tensor) -> Tensor:
    """Logits (M,) at points (M, 3), chunk by chunk."""
    parts = []
    for part in torch.split(points, CHUNK):
        with torch.no_grad():
            parts.append(model.decode(part[None], maps)[0].detach().cpu())
    return torch.cat(parts, dim=0)


def extract(
    model: OriginalConvONet,
    maps: Mapping[str, Tensor],
    octree: Octree,
    initial: int,
    levels: int,
    threshold: float = 0.2,
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Mesh of the surface of probability ``threshold``: vertices in the padded unit cube, and faces.

    Args:
        octree: the serial octree to search with.
        initial, levels: coarse cells along a side, and how often they are halved.
    """
    import mcubes

    level, box = math.log(threshold) - math.log(1.0 - threshold), 1.0 + model.padding
    tree = octree(initial, levels, level)
    points = tree.query()
    while points.shape[0]:
        places = torch.FloatTensor(box * (points / tree.resolution - 0.5))
        tree.update(points, evaluate(model, maps, places).numpy().astype(np.float64))
        points = tree.query()
    padded = np.pad(tree.to_dense(), 1, "constant", constant_values=OUTSIDE)
    vertices, faces = mcubes.marching_cubes(padded, level)
    return box * ((vertices - 1) / tree.resolution - 0.5), faces
