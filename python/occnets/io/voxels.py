# SPDX-License-Identifier: MIT
"""Voxel grids: binvox files and arrays, and where their voxels lie."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError

VOXEL_ENDINGS = (".binvox",)
_KEYS = ("voxels", "voxel", "occupancy", "occupancies", "grid")
_MOST = 2**30  # voxels


@dataclass(frozen=True)
class VoxelGrid:
    """Occupancies of a cube.

    Attributes:
        occupancy: (n, n, n) float32 in [0, 1], axes (x, y, z).
        translate: (3,) float64, the cube's lower corner.
        scale: its side. The defaults are the unit cube around the origin.
    """

    occupancy: NDArray[np.float32]
    translate: NDArray[np.float64] = field(default_factory=lambda: np.full(3, -0.5))
    scale: float = 1.0

    @classmethod
    def from_array(cls, array: NDArray, translate: NDArray | None = None, scale: float = 1.0) -> VoxelGrid:
        """A grid of an array of truth values or numbers in [0, 1].

        Raises:
            ValueError: no cube, values outside [0, 1], or a scale that is not positive.
        """
        array = np.asarray(array)
        if array.ndim != 3 or len(set(array.shape)) != 1 or not array.size:
            raise ValueError(f"a voxel grid has as many voxels along every axis, got {array.shape}; pad it to a cube")
        if array.dtype.kind not in "bfiu" or not (array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"voxels are true or false, or numbers from 0 to 1, got {array.dtype}"
                + (f" from {array.min()} to {array.max()}" if array.dtype.kind in "fiu" else "")
            )
        corner = np.full(3, -0.5) if translate is None else np.asarray(translate, dtype=np.float64)
        if corner.shape != (3,) or not np.isfinite(corner).all() or not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"a grid's translate is three numbers and its scale is positive, got {corner} and {scale}")
        return cls(array.astype(np.float32), corner, float(scale))

    def border_voxels(self) -> NDArray[np.float64]:
        """(K, 3) centres, in [-0.5, 0.5], of occupied voxels with an empty neighbour or none."""
        filled = self.occupancy >= 0.5
        padded = np.pad(filled, 1)
        inner = np.ones_like(filled)
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return (np.argwhere(filled & ~inner) + 0.5) / filled.shape[0] - 0.5


def is_voxel_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds voxels: .binvox, a three-dimensional .npy, or an .npz with an array named like voxels."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending in VOXEL_ENDINGS:
        return True
    if ending not in (".npy", ".npz") or not path.is_file():
        return False
    try:
        content = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        return False  # the reader of clouds says what is wrong with it
    if ending == ".npy":
        return content.ndim == 3 and content.shape[0] > 1
    with content:
        return any(name.lower() in _KEYS for name in content.files)


def read_voxels(path: str | os.PathLike[str]) -> VoxelGrid:
    """Read a grid of voxels.

    Args:
        path: ``.binvox``; ``.npy`` with an (n, n, n) array; ``.npz`` with the array ``voxels`` (or ``occupancy``, ...)
            and perhaps ``translate`` and ``scale``. Arrays have the axes (x, y, z).

    Raises:
        OSError: the file is missing or cannot be opened.
        FormatError: another ending, damaged content, no cube, or other values than 0 to 1.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    ending = path.suffix.lower()
    try:
        if ending == ".binvox":
            return read_binvox(path.read_bytes())
        if ending in (".npy", ".npz"):
            return _read_array(path)
    except (ValueError, EOFError) as error:  # FormatError is one too
        raise FormatError(f"{path}: {error}") from error
    raise FormatError(f"{path} has the ending '{path.suffix}'; voxels are read from .binvox, .npy and .npz")


def _read_array(path: Path) -> VoxelGrid:
    content = np.load(path, allow_pickle=False)
    if not hasattr(content, "files"):
        return VoxelGrid.from_array(content)
    with content:
        names = {name.lower(): name for name in content.files}
        found = next((names[key] for key in _KEYS if key in names), None)
        if found is None:
            raise FormatError(f"no array of voxels in it: expected {', '.join(_KEYS)}, it has {', '.join(names)}")
        translate = content[names["translate"]] if "translate" in names else None
        scale = float(content[names["scale"]]) if "scale" in names else 1.0
        return VoxelGrid.from_array(content[found], translate, scale)


def read_binvox(data: bytes) -> VoxelGrid:
    """Read the content of a binvox file (Min, "binvox", version 1): a header, then pairs of value and run length.

    In the file y runs fastest, then z, then x.

    Raises:
        FormatError: no binvox file, no cube, or runs that do not fill the grid exactly.
    """
    lines, start = _header(data)
    try:
        size = [int(word) for word in lines["dim"].split()]
        translate = np.array([float(word) for word in lines.get("translate", "0 0 0").split()])
        scale = float(lines.get("scale", "1"))
    except (KeyError, ValueError) as error:
        raise FormatError(f"the binvox header is damaged ({error})") from error
    if len(size) != 3 or min(size) < 1 or size[0] * size[1] * size[2] > _MOST:
        raise FormatError(f"the binvox header gives an absurd size {size}")
    runs = np.frombuffer(data, dtype=np.uint8, offset=start)
    if len(runs) % 2:
        raise FormatError("the binvox data breaks off inside a run")
    values, lengths = runs[::2], runs[1::2].astype(np.int64)
    total = size[0] * size[1] * size[2]
    if int(lengths.sum()) != total:
        raise FormatError(f"the binvox data holds {int(lengths.sum()):,} voxels, its header says {total:,}")
    if len(values) and values.max() > 1:
        raise FormatError(f"binvox voxels are 0 or 1, got {values.max()}")
    filled = np.repeat(values, lengths).reshape(size).transpose(0, 2, 1)
    return VoxelGrid.from_array(filled, translate, scale)


def _header(data: bytes) -> tuple[dict[str, str], int]:
    """Header lines by their first word, and where the data begins."""
    if not data.startswith(b"#binvox"):
        raise FormatError("it does not begin with '#binvox'")
    lines: dict[str, str] = {}
    place = 0
    for _ in range(32):
        end = data.find(b"\n", place)
        if end < 0:
            break
        word, _, rest = data[place:end].decode("ascii", "replace").strip().partition(" ")
        place = end + 1
        if word == "data":
            return lines, place
        lines[word] = rest
    raise FormatError("the binvox header has no line 'data'")
