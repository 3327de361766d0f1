# SPDX-License-Identifier: MIT
"""Endless random solids: ``random_shape(seed)`` and ready training samples.

The recipe follows the observation of LRM-Zero (arXiv 2406.09371) that local shape priors can be learned from random
compositions of primitives with cuts and thin structures; occupancy is the exact sign of the function, no mesh needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from occnets.data import mechanical, organic
from occnets.data.draw import Draw, bumps, moved, tensor, union
from occnets.data.solid import DegenerateShape, Solid, make_solid
from occnets.data.trees import Node, Place, Warp

FAMILIES: dict[str, Callable[[Draw], Node]] = {
    "creature": organic.creature,
    "blob": organic.blob,
    "branches": organic.branches,
    "wires": organic.wires,
    "vessel": organic.vessel,
    "machined": mechanical.machined,
    "coupling": mechanical.coupling,
    "pipework": mechanical.pipework,
    "furniture": mechanical.furniture,
    "free_form": mechanical.free_form,
}
_WEIGHTS = {
    "creature": 0.24,
    "blob": 0.13,
    "branches": 0.05,
    "wires": 0.05,
    "vessel": 0.07,
    "machined": 0.17,
    "coupling": 0.07,
    "pipework": 0.04,
    "furniture": 0.05,
    "free_form": 0.13,
}


@dataclass(frozen=True)
class ShapeConfig:
    """Mixture of the random shapes.

    Attributes:
        weights: relative frequency of each family in :data:`FAMILIES`.
        warp: probability of a twist, taper or bend of the whole.
        relief: probability of a surface relief on the whole.
        stretch: probability of an anisotropic scale of up to ``max_stretch`` between axes.
        several: probability of two or three separate or touching parts.
        aligned: probability of keeping the axes of the recipe (with a random permutation) instead of a rotation in
            SO(3).
        min_fill: smallest accepted volume as a fraction of the unit cube.
    """

    weights: dict[str, float] = field(default_factory=lambda: dict(_WEIGHTS))
    warp: float = 0.15
    relief: float = 0.08
    stretch: float = 0.25
    max_stretch: float = 1.6
    several: float = 0.07
    aligned: float = 0.25
    min_fill: float = 0.003

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(FAMILIES))
        if unknown or sum(self.weights.values()) <= 0:
            raise ValueError(
                f"ShapeConfig: weights must be positive for some of {sorted(FAMILIES)}, got {self.weights}"
            )


@dataclass(frozen=True, eq=False)
class ShapeSample:
    """Training arrays of one shape.

    Attributes:
        points: (S, 3) float32 surface points, uniform by area, in [-.5, .5]^3.
        normals: (S, 3) float32 outward unit normals.
        queries: (Q, 3) float32 query points.
        occupancy: (Q,) bool, exact.
        voxels: (V, V, V) bool, occupancy at the centres of the cells of the unit cube; None where there are none.
    """

    points: Tensor
    normals: Tensor
    queries: Tensor
    occupancy: Tensor
    voxels: Tensor | None = None


def _tree(draw: Draw, config: ShapeConfig) -> tuple[Node, str]:
    """One tree of a random family with the random decorations of ``config``."""
    names = sorted(config.weights)
    weights = np.array([config.weights[name] for name in names])
    name = names[int(draw.generator.choice(len(names), p=weights / weights.sum()))]
    node = FAMILIES[name](draw)
    if draw.chance(config.warp):
        kind = draw.pick(["twist", "taper", "bend"])
        limit = {"twist": 2.5, "taper": 0.6, "bend": 1.0}[kind]
        node = Warp(moved(node, rotation=draw.rotation()), kind, draw.uniform(-limit, limit))
    if draw.chance(config.relief):
        node = bumps(draw, node, draw.log(0.002, 0.008), draw.log(15, 60))
    if draw.chance(config.stretch):
        bound = np.log(config.max_stretch) / 2
        node = moved(node, rotation=draw.rotation(), scale=np.exp(draw.generator.uniform(-bound, bound, 3)))
    return node, name


def random_shape(seed: int, config: ShapeConfig | None = None) -> Solid:
    """The solid number ``seed``: longest bounding-box side 1, centred at the origin.

    Args:
        seed: non-negative integer; equal seeds and configs give equal solids.
        config: mixture, default :class:`ShapeConfig`.
    """
    config = config or ShapeConfig()
    for attempt in range(64):
        draw = Draw(np.random.default_rng([seed, attempt]))
        node, name = _tree(draw, config)
        if draw.chance(config.several):
            parts = [moved(node, scale=0.6)]
            for _ in range(draw.integer(1, 2)):
                other, _ = _tree(draw, config)
                parts.append(
                    moved(other, draw.direction() * draw.uniform(0.3, 0.75), draw.rotation(), draw.log(0.3, 0.7))
                )
            node, name = union(parts), "several"
        rotation = draw.rotation()
        if draw.chance(config.aligned):
            rotation = np.eye(3)[draw.generator.permutation(3)] * draw.generator.choice([-1.0, 1.0], 3)
        # A slightly smaller frame keeps long limbs inside the evaluation cube.
        root = Place(node, tensor(rotation), tensor(np.zeros(3)), tensor(np.full(3, 0.9)))
        try:
            return make_solid(root, name, min_fill=config.min_fill)
        except DegenerateShape:
            continue
    raise DegenerateShape(f"random_shape: 64 attempts for seed {seed} gave no usable solid; widen the config")


QUERY_MIX = ((0.0, 0.25), (0.015, 0.375), (0.04, 0.25), (0.005, 0.125))


def query_points(surface: Tensor, count: int, seed: int) -> Tensor:
    """Query points (count, 3): a quarter uniform in [-.55, .55]^3, the rest normal around the surface points.

    The spreads .015, .04 and .005 get 3/8, 1/4 and 1/8 of the points; the order is random. Points beyond the padded
    cube are moved onto its faces.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    left = count
    for spread, share in QUERY_MIX[1:]:
        number = round(count * share)
        index = torch.randint(surface.shape[0], (number,), generator=generator)
        parts.append(surface[index].cpu() + spread * torch.randn(number, 3, generator=generator))
        left -= number
    parts.append(1.1 * torch.rand(left, 3, generator=generator) - 0.55)
    return torch.cat(parts)[torch.randperm(count, generator=generator)].clamp(-0.55, 0.55).to(surface)


def make_sample(
    seed: int,
    *,
    surface: int = 6000,
    queries: int = 8192,
    config: ShapeConfig | None = None,
    device: torch.device | str = "cpu",
) -> ShapeSample:
    """Surface points, normals, queries and exact occupancy of ``random_shape(seed)``."""
    solid = random_shape(seed, config).to(device)
    points, normals = solid.surface(surface, seed)
    query = query_points(points, queries, seed)
    return ShapeSample(points, normals, query, solid.occupancy(query))
