# SPDX-License-Identifier: MIT
"""Camera poses as network inputs: the plain matrix, and a continuous representation of rotations."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

_INPUTS = {"matrix": 16, "6d": 9}


def rotation_to_6d(rotation: Tensor) -> Tensor:
    """The first two columns of rotation matrices, one after the other (Zhou et al., CVPR 2019, section 4.2).

    Unlike Euler angles and quaternions this is continuous and one to one, so close poses have close codes.

    Args:
        rotation: (..., 3, 3).

    Returns:
        (..., 6).
    """
    return rotation[..., :2].transpose(-1, -2).flatten(-2)


def rotation_from_6d(code: Tensor) -> Tensor:
    """Rotation matrices from any six numbers by Gram-Schmidt (Zhou et al., CVPR 2019, equation 15).

    Args:
        code: (..., 6) two vectors that are not parallel.

    Returns:
        (..., 3, 3) with determinant 1; the inverse of :func:`rotation_to_6d` on rotations.
    """
    first, second = code[..., :3], code[..., 3:]
    x = functional.normalize(first, dim=-1)
    y = functional.normalize(second - (x * second).sum(dim=-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y, dim=-1)), dim=-1)


@dataclasses.dataclass(frozen=True)
class PoseOptions:
    """Options of :class:`PoseLayer`.

    Attributes:
        pose_dim: channels of the result.
        rotation: ``"matrix"``: the 16 numbers of the 4x4 matrix; ``"6d"``: six of the rotation and the translation.
    """

    pose_dim: int = 32
    rotation: str = "matrix"


class PoseLayer(nn.Linear):
    """A linear layer of a camera's pose.

    Args:
        options: see :class:`PoseOptions`.

    Raises:
        ValueError: unknown ``rotation``.
    """

    def __init__(self, options: PoseOptions) -> None:
        if options.rotation not in _INPUTS:
            raise ValueError(f"PoseLayer: `rotation` must be one of {', '.join(_INPUTS)}, got {options.rotation!r}")
        super().__init__(_INPUTS[options.rotation], options.pose_dim)
        self.options = options

    def forward(self, pose: Tensor) -> Tensor:
        """Map poses (B, 4, 4), or (B, 3, 4) without the last row, to (B, pose_dim).

        Raises:
            ValueError: another shape.
        """
        if pose.dim() != 3 or pose.shape[1] not in (3, 4) or pose.shape[2] != 4:
            raise ValueError(f"PoseLayer: `pose` must be (B, 4, 4) or (B, 3, 4), got {tuple(pose.shape)}")
        if self.options.rotation == "6d":
            return super().forward(torch.cat((rotation_to_6d(pose[:, :3, :3]), pose[:, :3, 3]), dim=1))
        if pose.shape[1] == 3:
            last = pose.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(pose), 1, 4)
            pose = torch.cat((pose, last), dim=1)
        return super().forward(pose.flatten(1))
