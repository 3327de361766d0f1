# SPDX-License-Identifier: MIT
"""The points at which sign-agnostic optimisation looks: on the measured surface and off it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from occnets.models.crop import CropSettings, crop_inputs, crop_query, window_volume
from occnets.refine.consensus import Consensus, find_consensus
from occnets.refine.presets import OptimizeOptions

ON_SURFACE, OFF_SURFACE = 0.5, 1.0
"""Targets of |logit|: probability one half, and certainty with either sign."""

_POOL = 1_000_000
_POOL_SURFACE = 0.25  # share of the pool that lies on the cloud
_TRIES = 1000


@dataclass(frozen=True)
class Draw:
    """Points of one step.

    Attributes:
        query: (M, 3) float32.
        target: (M,) 0.5 on the surface, 1 off it.
        count: draws that the points come from, which the loss is the mean of.
        sign: (M,) 1 inside, -1 outside, 0 not known; or None, where no sign is known.
    """

    query: Tensor
    target: Tensor
    count: int = 1
    sign: Tensor | None = None


class ObjectDraws:
    """Draws from one cloud: measured points, and measured points moved by noise.

    Random numbers come from the CPU, so that a seed gives the same points on every device.

    Args:
        points: (N, 3) float32 in the unit cube.
        options: ``batch``, ``surface_points``, ``space_points``, ``sigma``, ``clearance``, ``consensus``.
        seed: of the draws.
        field: logits (1, M) at queries (1, M, 3), needed for ``consensus``.
        half: half the side of the padded cube.
    """

    def __init__(
        self,
        points: Tensor,
        options: OptimizeOptions,
        seed: int,
        field: Callable[[Tensor], Tensor] | None = None,
        half: float = 0.55,
    ) -> None:
        self.points, self.options = points.detach().cpu(), options
        self.device = points.device
        self.generator = torch.Generator().manual_seed(seed)
        self.tree: Any = None
        self.clearance = 0.0
        self.consensus: Consensus | None = None
        if options.clearance or options.consensus:
            from scipy.spatial import cKDTree

            self.tree = cKDTree(self.points.numpy())
            nearest = self.tree.query(self.points.numpy(), min(7, len(self.points)))[0]
            # Six neighbours in a disc of this radius: the side of the square that one point represents.
            spacing = float(torch.from_numpy(nearest[:, -1]).median()) * (torch.pi / 6.0) ** 0.5
            self.clearance = options.clearance * spacing
        if options.consensus:
            assert field is not None
            how = (options.consensus, options.consensus_reach)
            self.consensus = find_consensus(field, points, self.tree, spacing, how, half)

    def __call__(self) -> Draw:
        """The points of the next step."""
        o = self.options
        surface = self._points(o.batch * o.surface_points)
        count = o.batch * o.space_points
        disputed = self._disputed(round(count * o.disputed))
        space = self._points(count - len(disputed))
        space = torch.cat((disputed, space + o.sigma * torch.randn(space.shape, generator=self.generator)))
        if self.clearance:
            distance, _ = self.tree.query(space.numpy(), distance_upper_bound=self.clearance)
            space = space[torch.from_numpy(distance >= self.clearance)]
        target = torch.cat((torch.full((len(surface),), ON_SURFACE), torch.full((len(space),), OFF_SURFACE)))
        sign = None
        if self.consensus is not None:
            sign = torch.cat((torch.zeros(len(surface)), self.consensus.at(space))).to(self.device)
        return Draw(torch.cat((surface, space)).to(self.device), target.to(self.device), o.batch, sign)

    def _points(self, count: int) -> Tensor:
        return self.points[torch.randint(len(self.points), (count,), generator=self.generator)]

    def _disputed(self, count: int) -> Tensor:
        """Places where the chosen sign is not the network's, if there are any."""
        if self.consensus is None or not len(self.consensus.disputed):
            return self.points[:0]
        nodes = self.consensus.disputed
        chosen = nodes[torch.randint(len(nodes), (count,), generator=self.generator)]
        return chosen + self.consensus.spacing * (torch.rand(chosen.shape, generator=self.generator) - 0.5)


@dataclass(frozen=True)
class Window:
    """One window of a crop model.

    Attributes:
        inputs: what ``encode`` takes.
        query: what ``decode`` takes, M points.
        target: (1, M) as in `Draw`.
    """

    inputs: dict[str, Any]
    query: dict[str, Any]
    target: Tensor


class WindowDraws:
    """Random windows of a large cloud for a crop model, as Tang et al.'s large-scene programs draw them.

    A pool of a million points holds three quarters of measured points moved by noise and one quarter of measured
    points. A window's centre is uniform in the cloud's bounding box; windows without points or queries are drawn again.

    Args:
        points: (N, 3) float32, in the unit the model's ``unit_size`` is in.
        crop: the model's window.
        layout: the encoder's layout.
        options: ``window_points``, ``window_queries``, ``sigma``.
        seed: of the draws.
    """

    def __init__(self, points: Tensor, crop: CropSettings, layout: Any, options: OptimizeOptions, seed: int) -> None:
        self.points, self.crop, self.layout, self.options = points.detach().cpu(), crop, layout, options
        self.device = points.device
        self.generator = torch.Generator().manual_seed(seed)
        self.low, self.high = self.points.amin(dim=0), self.points.amax(dim=0)
        near = self._points(round(_POOL * (1.0 - _POOL_SURFACE)))
        spread = options.sigma * float((self.high - self.low).max())
        near = near + spread * torch.randn(near.shape, generator=self.generator)
        on = self._points(_POOL - len(near))
        self.pool = torch.cat((near, on))
        self.targets = torch.cat((torch.full((len(near),), OFF_SURFACE), torch.full((len(on),), ON_SURFACE)))

    def __call__(self) -> Window:
        """The next window.

        Raises:
            ValueError: a thousand windows in a row were empty.
        """
        o = self.options
        for _ in range(_TRIES):
            center = self.low + torch.rand(3, generator=self.generator) * (self.high - self.low)
            asked = window_volume(center, self.crop.query_size)
            inside = ((self.pool >= asked[0]) & (self.pool < asked[1])).all(dim=1).nonzero()[:, 0]
            seen = window_volume(center, self.crop.input_size)
            cloud = self._points(min(o.window_points, len(self.points)))
            outside = ((cloud < seen[0]) | (cloud >= seen[1])).any(dim=1)
            if len(inside) and not outside.all():
                chosen = inside[torch.randint(len(inside), (o.window_queries,), generator=self.generator)]
                inputs = crop_inputs(cloud[None].to(self.device), seen.to(self.device), self.layout)
                inputs["points"] = inputs["points"].masked_fill(inputs["mask"][..., None], 0.0)
                query = crop_query(self.pool[chosen][None].to(self.device), seen.to(self.device), self.layout)
                return Window(inputs, query, self.targets[chosen][None].to(self.device))
        raise ValueError(
            f"optimize_scene: {_TRIES} random windows of side {self.crop.query_size:g} held no points; the cloud's "
            f"unit does not go with the model's unit_size {self.crop.unit_size:g}"
        )

    def _points(self, count: int) -> Tensor:
        return self.points[torch.randint(len(self.points), (count,), generator=self.generator)]
