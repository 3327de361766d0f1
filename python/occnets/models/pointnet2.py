# SPDX-License-Identifier: MIT
"""PointNet++ encoder (Qi et al., NeurIPS 2017), the family's PointConv baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occnets.models.options import make_options


@dataclasses.dataclass(frozen=True)
class PointNetPlusPlusOptions:
    """Options of :class:`PointNetPlusPlus`.

    Attributes:
        c_dim: channels of the point features.
        dim: accepted because family files carry it; the network is three-dimensional.
        padding: accepted, unused.
        random_start: start farthest-point sampling at random points, as the family does, so that even the evaluation
            output varies from call to call; by default sampling starts at the first point of each cloud and is
            deterministic.
    """

    c_dim: int = 128
    dim: int = 3
    padding: float = 0.1
    random_start: bool = False


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (B, N, M) between the points of (B, N, 3) and (B, M, 3), from coordinate differences."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def farthest_points(points: Tensor, count: int, start: Tensor) -> Tensor:
    """Greedy farthest-point sampling.

    Args:
        points: (B, N, 3).
        count: number of points to take; beyond N points repeat.
        start: (B,) index of the first point.

    Returns:
        (B, count) int64 indices; ties go to the lower index.
    """
    batch = torch.arange(len(points), device=points.device)
    distance = points.new_full(points.shape[:2], float("inf"))
    chosen = torch.empty((len(points), count), dtype=torch.int64, device=points.device)
    current = start.long()
    for step in range(count):
        chosen[:, step] = current
        centre = points[batch, current].unsqueeze(1)
        distance = torch.minimum(distance, (points - centre).square().sum(dim=-1))
        current = distance.argmax(dim=1)
    return chosen


def ball_neighbours(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """The first ``count`` points (by index) within ``radius`` of each centre, padded with the first of them.

    Returns:
        (B, S, min(count, N)) int64 indices into the N points.
    """
    total = points.shape[1]
    index = torch.arange(total, device=points.device).expand(len(points), centres.shape[1], total)
    index = index.masked_fill(squared_distance(centres, points) > radius**2, total)
    nearest = index.topk(min(count, total), dim=-1, largest=False, sorted=True).values
    return torch.where(nearest == total, nearest[..., :1], nearest)


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, N, C) at (B, ...) indices, giving (B, ..., C)."""
    batch = torch.arange(len(values), device=values.device).view(-1, *(1,) * (index.dim() - 1))
    return values[batch, index]


class SetAbstraction(nn.Module):
    """Sample centres, group their neighbourhoods, run an MLP and take the maximum.

    Args:
        count: number of centres; ``None`` groups all points around the origin.
        radius: of a neighbourhood.
        samples: points per neighbourhood.
        in_channels: relative coordinates plus features.
        mlp: widths.
    """

    def __init__(self, count: int | None, radius: float, samples: int, in_channels: int, mlp: Sequence[int]) -> None:
        super().__init__()
        self.count, self.radius, self.samples = count, radius, samples
        widths = [in_channels, *mlp]
        self.mlp_convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm2d(width) for width in mlp)

    def forward(self, points: Tensor, features: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Map points (B, N, 3) and features (B, N, C) to S centres (B, S, 3) and features (B, S, mlp[-1])."""
        if self.count is None:
            centres = torch.zeros_like(points[:, :1])
            grouped = torch.cat((points, features), dim=-1).unsqueeze(1)  # (B, 1, N, 3 + C)
        else:
            centres = gather_points(points, farthest_points(points, self.count, start))
            index = ball_neighbours(points, centres, self.radius, self.samples)
            relative = gather_points(points, index) - centres.unsqueeze(2)
            grouped = torch.cat((relative, gather_points(features, index)), dim=-1)  # (B, S, K, 3 + C)
        net = grouped.permute(0, 3, 2, 1)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            net = functional.relu(norm(conv(net)))
        return centres, net.amax(dim=2).transpose(1, 2)


class FeaturePropagation(nn.Module):
    """Interpolate features from few points to many (three nearest, inverse squared distance) and run an MLP."""

    def __init__(self, in_channels: int, mlp: Sequence[int]) -> None:
        super().__init__()
        widths = [in_channels, *mlp]
        self.mlp_convs = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in mlp)

    def forward(self, fine: Tensor, coarse: Tensor, skip: Tensor | None, features: Tensor) -> Tensor:
        """Carry features (B, S, C) of coarse points to fine points (B, N, 3), with optional skip features (B, N, D).

        Returns:
            (B, N, mlp[-1]).
        """
        if coarse.shape[1] == 1:
            carried = features.expand(-1, fine.shape[1], -1)
        else:
            near = squared_distance(fine, coarse).topk(min(3, coarse.shape[1]), dim=-1, largest=False)
            weight = 1.0 / (near.values + 1e-8)
            weight = weight / weight.sum(dim=-1, keepdim=True)
            carried = (gather_points(features, near.indices) * weight.unsqueeze(-1)).sum(dim=2)
        net = carried if skip is None else torch.cat((skip, carried), dim=-1)
        net = net.transpose(1, 2)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            net = functional.relu(norm(conv(net)))
        return net.transpose(1, 2)


class PointNetPlusPlus(nn.Module):
    """Three set abstractions and three feature propagations; features of every input point (``pointnet_plus_plus``).

    Args:
        options: see :class:`PointNetPlusPlusOptions`; or give its fields as keywords.
    """

    def __init__(self, options: PointNetPlusPlusOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(PointNetPlusPlusOptions, fields, "PointNetPlusPlus") if options is None else options
        if o.dim != 3:
            raise ValueError(f"PointNetPlusPlus: dim must be 3, got {o.dim}")
        self.options = o
        self.sa1 = SetAbstraction(512, 0.2, 32, 6, (64, 64, 128))
        self.sa2 = SetAbstraction(128, 0.4, 64, 131, (128, 128, 256))
        self.sa3 = SetAbstraction(None, 0.0, 0, 259, (256, 512, 1024))
        self.fp3 = FeaturePropagation(1280, (256, 256))
        self.fp2 = FeaturePropagation(384, (256, 128))
        self.fp1 = FeaturePropagation(128, (128, 128, o.c_dim))

    def forward(self, points: Tensor, starts: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """Features of every point.

        Args:
            points: (B, N, 3).
            starts: first point of the farthest-point samplings of stages 1 and 2, (B,) each; ``None`` follows the
                option ``random_start``.

        Returns:
            ``points`` as given and their ``features`` (B, N, c_dim), non-negative.
        """
        first, second = self._starts(points) if starts is None else starts
        points1, features1 = self.sa1(points, points, first)
        points2, features2 = self.sa2(points1, features1, second)
        points3, features3 = self.sa3(points2, features2, second)
        features2 = self.fp3(points2, points3, features2, features3)
        features1 = self.fp2(points1, points2, features1, features2)
        return {"points": points, "features": self.fp1(points, points1, None, features1)}

    def _starts(self, points: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(points)
        if not self.options.random_start:
            zero = torch.zeros(batch, dtype=torch.int64, device=points.device)
            return zero, zero
        first = torch.randint(points.shape[1], (batch,), device=points.device)
        return first, torch.randint(self.sa1.count, (batch,), device=points.device)
