# SPDX-License-Identifier: MIT
"""What surface extraction takes and returns: the checks of a volume, and batches of meshes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from occkernels.sparse import SparseVolume

SCAN_TILE = 2048
"""Counts that one block of csrc/common/cuda_scan.h adds up."""
VOLUME_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Mesh(NamedTuple):
    """One triangle mesh.

    Attributes:
        vertices: (V, 3) float32 or float64 positions.
        faces: (F, 3) int64 rows of ``vertices``, counter-clockwise seen from outside.
        normals: (V, 3) unit normals pointing outside, or None.
        attributes: (V, A) values carried by the vertices, or None.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor | None
    attributes: Tensor | None = None


class MeshBatch(NamedTuple):
    """Meshes stored one after the other; mesh ``i`` owns rows ``offsets[i]`` to ``offsets[i + 1]``.

    Attributes:
        vertices: (V, 3) float32 or float64 positions of all meshes.
        faces: (F, 3) int64. Indices are local: 0 is the first vertex of the face's own mesh.
        vertex_offsets: (B + 1,) int64.
        face_offsets: (B + 1,) int64.
        normals: (V, 3) unit normals pointing outside, or None.
        attributes: (V, A) values carried by the vertices, or None.
    """

    vertices: Tensor
    faces: Tensor
    vertex_offsets: Tensor
    face_offsets: Tensor
    normals: Tensor | None
    attributes: Tensor | None = None

    def mesh(self, index: int) -> Mesh:
        """Mesh ``index`` of the batch, as views of the stored tensors.

        Raises:
            IndexError: there is no such mesh.
        """
        count = self.vertex_offsets.numel() - 1
        if not 0 <= index < count:
            raise IndexError(f"MeshBatch.mesh: `index` must be in 0..{count - 1} (batch of {count}), got {index}.")
        rows = slice(int(self.vertex_offsets[index]), int(self.vertex_offsets[index + 1]))
        faces = slice(int(self.face_offsets[index]), int(self.face_offsets[index + 1]))
        normals = None if self.normals is None else self.normals[rows]
        attributes = None if self.attributes is None else self.attributes[rows]
        return Mesh(self.vertices[rows], self.faces[faces], normals, attributes)


def coordinate_dtype(values: Tensor) -> torch.dtype:
    """Type of the vertices of a volume: float64 for float64 values, float32 for all others."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def visible_margin(edge_margin: float, nodes: int, dtype: torch.dtype) -> float:
    """``edge_margin``, widened so that the largest coordinates plus the margin do not round back to the node.

    Below 2048 nodes a side and with the default margin this is ``edge_margin`` itself.
    """
    digits = 52 if dtype == torch.float64 else 23
    spacing = 2.0 ** (max(nodes, 1).bit_length() - 1 - digits)  # of numbers as large as `nodes`
    return edge_margin if edge_margin == 0 else max(edge_margin, min(0.75 * spacing, 0.5))


def check_extraction(volume: Tensor, level: float, edge_margin: float, pad_value: float | None) -> None:
    """Raise ``TypeError`` or ``ValueError`` if ``marching_cubes`` cannot take these arguments."""
    name = "occkernels.marching_cubes"
    if not isinstance(volume, Tensor):
        raise TypeError(f"{name}: `volume` must be a torch.Tensor, got {type(volume).__name__}.")
    _check_dtype(name, "volume", volume)
    if volume.dim() not in (3, 4):
        raise ValueError(f"{name}: `volume` must be (X, Y, Z) or (B, X, Y, Z), got {tuple(volume.shape)}.")
    _check_numbers(name, level, edge_margin, pad_value)


def check_sparse_extraction(volume: SparseVolume, level: float, edge_margin: float, pad_value: float | None) -> None:
    """Raise ``TypeError`` or ``ValueError`` if ``marching_cubes_sparse`` cannot take these arguments."""
    name = "occkernels.marching_cubes_sparse"
    if not isinstance(volume, SparseVolume):
        raise TypeError(
            f"{name}: `volume` must be an occkernels.SparseVolume, got {type(volume).__name__}. "
            "Use marching_cubes for dense tensors, or SparseVolume.from_dense."
        )
    _check_dtype(name, "volume.values", volume.values)
    if volume.values.device != volume.keys.device:
        raise ValueError(
            f"{name}: `volume.keys` is on {volume.keys.device} but `volume.values` on {volume.values.device}. "
            "Move both to one device."
        )
    _check_numbers(name, level, edge_margin, pad_value)
    count, most = len(volume.keys), volume.batch * volume.side**3
    if most >= 2**63 or count >= 2**31:
        raise ValueError(f"{name}: `volume` must have keys below 2^63 and fewer than 2^31 bricks, got {volume.nodes=}.")


def refuse_keys(keys: Tensor, most: int) -> None:
    """Raise ``ValueError`` unless ``keys`` ascend strictly within [0, ``most``)."""
    wrong = (keys < 0) | (keys >= most)
    wrong[1:] |= keys.diff() <= 0
    where = wrong.nonzero().flatten()
    if len(where):
        raise ValueError(
            f"occkernels.marching_cubes_sparse: `volume.keys` must ascend strictly within [0, {most}), got "
            f"{int(keys[where[0]])} at {int(where[0])}. Sort the bricks by key and keep each once."
        )


def check_attributes(function: str, attributes: Tensor | None, values: Tensor) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``attributes`` is None or adds one axis to ``values``."""
    if attributes is None:
        return
    name = f"occkernels.{function}"
    if not isinstance(attributes, Tensor) or attributes.dtype != values.dtype:
        got = attributes.dtype if isinstance(attributes, Tensor) else type(attributes).__name__
        raise TypeError(
            f"{name}: `attributes` must be a {values.dtype} tensor as the volume is, got {got}. Convert it."
        )
    if attributes.dim() == 0 or attributes.shape[:-1] != values.shape:
        expected = ", ".join([*map(str, values.shape), "A"])
        raise ValueError(f"{name}: `attributes` must be ({expected}), got {tuple(attributes.shape)}.")
    if attributes.device != values.device:
        raise ValueError(
            f"{name}: `attributes` is on {attributes.device} but the volume on {values.device}. Move it there."
        )


def _check_dtype(name: str, argument: str, values: Tensor) -> None:
    if values.dtype not in VOLUME_DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in VOLUME_DTYPES)
        raise TypeError(
            f"{name}: `{argument}` must be one of {expected}, got {values.dtype}. Convert it with .float()."
        )


def _check_numbers(name: str, level: float, edge_margin: float, pad_value: float | None) -> None:
    if not math.isfinite(level):
        raise ValueError(f"{name}: `level` must be finite, got {level}.")
    if not 0.0 <= edge_margin <= 0.5:
        raise ValueError(f"{name}: `edge_margin` must be in [0, 0.5], got {edge_margin}.")
    if pad_value is not None and math.isnan(pad_value):
        raise ValueError(f"{name}: `pad_value` must be a number (infinite is allowed) or None, got NaN.")


def refuse_nan(volume: Tensor) -> None:
    """Raise ``ValueError`` saying how many NaN ``volume`` holds and where the first is, if it holds any."""
    where = volume.isnan().nonzero()
    if where.shape[0]:
        raise ValueError(
            f"occkernels.marching_cubes: `volume` must hold no NaN, got {where.shape[0]}, the first at index "
            f"{tuple(where[0].tolist())}. Replace them with torch.nan_to_num."
        )
