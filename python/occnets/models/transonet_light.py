# SPDX-License-Identifier: MIT
"""The convolutional sibling for small devices: three orthogonal planes that turn together, and a flat U-Net."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from occkernels import FeatureLayout, bin_points, scatter_planes
from occnets.models.blocks import ResnetBlockFC
from occnets.models.dynamic import PlanePredictor, basis_and_scale, coordinate_planes, frame_from_axes
from occnets.models.encoders import check_scatter_type, pooled_features
from occnets.models.maps import build_unet
from occnets.models.options import make_options

_UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class OrthogonalPoolOptions:
    """Options of :class:`OrthogonalPoolPointnet`; meanings as in :class:`occnets.models.encoders.LocalPoolOptions`.

    Attributes:
        predictor_dim: channels inside the network that chooses the frame.
    """

    c_dim: int = 32
    dim: int = 3
    padding: float = 0.1
    hidden_dim: int = 32
    predictor_dim: int = 32
    scatter_type: str = "max"
    unet: bool = True
    unet_kwargs: Mapping[str, Any] | None = None
    plane_resolution: int = 64
    n_blocks: int = 5
    registration: str = "corners"


class OrthogonalPoolPointnet(nn.Module):
    """PointNet with pooling inside the cells of three orthogonal planes, chosen per cloud (``orthogonal_pool``).

    One rotation is predicted for the cloud and the planes xz, xy and yz of the turned frame are used. Unlike planes
    predicted one by one they cannot fall together, so no loss has to keep them apart, and every direction is seen by
    two of them. A new network starts with the canonical planes.

    Args:
        options: see :class:`OrthogonalPoolOptions`; or give its fields as keywords.
    """

    def __init__(self, options: OrthogonalPoolOptions | None = None, **fields: Any) -> None:
        super().__init__()
        o = make_options(OrthogonalPoolOptions, fields, "OrthogonalPoolPointnet") if options is None else options
        check_scatter_type(o.scatter_type)
        self.options = o
        self.layout = FeatureLayout(
            dynamic_planes=3, plane_resolution=o.plane_resolution, padding=o.padding, registration=o.registration
        )
        self.predictor = PlanePredictor(o.dim, o.predictor_dim)
        self.axes = nn.Linear(o.predictor_dim, 6)
        self.fc_pos = nn.Linear(o.dim, 2 * o.hidden_dim)
        self.blocks = nn.ModuleList(ResnetBlockFC(2 * o.hidden_dim, o.hidden_dim) for _ in range(o.n_blocks))
        self.fc_c = nn.Linear(o.hidden_dim, o.c_dim)
        self.unet = build_unet(o.unet, o.c_dim, o.unet_kwargs)
        nn.init.normal_(self.axes.weight, std=1e-3)
        with torch.no_grad():
            self.axes.bias.copy_(torch.tensor(_UPRIGHT))

    def forward(self, points: Tensor, lengths: Tensor | None = None) -> dict[str, Tensor]:
        """Map points (B, N, 3) to ``planes`` (B, 3, C, R, R) and ``c_mat`` (B, 3, 4, 3).

        Args:
            points: (B, N, 3).
            lengths: (B,) number of points that count in each cloud.
        """
        c_mat = coordinate_planes(self.frame(points, lengths))
        bases, scale = basis_and_scale(c_mat)
        bins = bin_points(points, self.layout, bases=bases, basis_scale=scale, lengths=lengths)
        features = pooled_features(self.fc_pos(points), self.blocks, self.fc_c, bins, self.options.scatter_type)
        planes = scatter_planes(features, bins, reduce="mean")
        if self.unet is not None:
            planes = self.unet(planes.flatten(0, 1)).unflatten(0, planes.shape[:2])
        return {"planes": planes, "c_mat": c_mat}

    def frame(self, points: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The chosen frames (B, 3, 3), rows are axes."""
        # Never in half precision: a slightly other frame puts points into other cells.
        with torch.autocast(points.device.type, enabled=False):
            return frame_from_axes(self.axes(torch.relu(self.predictor(points, lengths))))
