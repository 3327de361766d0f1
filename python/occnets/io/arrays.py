# SPDX-License-Identifier: MIT
"""NPY and NPZ arrays, read without ever unpickling."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError, Geometry, geometry
from occnets.io.text import guess_columns

_POINT_KEYS = ("points", "xyz", "vertices", "pos", "positions", "coords", "pc", "pointcloud")
_NORMAL_KEYS = ("normals", "normal", "vertex_normals")
_COLOR_KEYS = ("colors", "color", "rgb")
_FACE_KEYS = ("faces", "triangles")


def read_npy(data: bytes) -> Geometry:
    """Read an (N, C ≥ 3) array, columns as in `text.guess_columns`; a leading axis of length 1 is allowed.

    Raises:
        FormatError: pickled content, no numbers, or another shape.
    """
    return guess_columns(_numeric("array", _load(data)))


def read_npz(data: bytes) -> Geometry:
    """Read the array ``points`` (or ``xyz``, ``vertices``, ...), and ``normals``, ``colors``, ``faces`` if present.

    The occupancy-network family's ``pointcloud.npz`` reads as it is.

    Raises:
        FormatError: no array that could be points, or pickled content.
    """
    archive = _load(data)
    if not hasattr(archive, "files"):
        raise FormatError("it is a single array, not an NPZ archive; name it .npy")

    def find(keys: tuple[str, ...]) -> NDArray | None:
        lower = {name.lower(): name for name in archive.files}
        name = next((lower[key] for key in keys if key in lower), None)
        return None if name is None else _numeric(name, _member(archive, name))

    points = find(_POINT_KEYS)
    if points is None:
        if len(archive.files) == 1:
            return guess_columns(_numeric(archive.files[0], _member(archive, archive.files[0])))
        raise FormatError(
            f"no array of points in it: expected one named {', '.join(_POINT_KEYS)}; it has "
            f"{', '.join(archive.files) or 'nothing'}"
        )
    if points.ndim == 2 and points.shape[1] > 3:
        return guess_columns(points)
    return geometry(points, normals=find(_NORMAL_KEYS), colors=find(_COLOR_KEYS), faces=find(_FACE_KEYS))


def _load(data: bytes):  # noqa: ANN202 (an array or an NpzFile)
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise FormatError(_pickle_hint(error)) from error


def _member(archive, name: str) -> NDArray:  # noqa: ANN001
    try:
        return archive[name]
    except (ValueError, OSError, EOFError) as error:
        raise FormatError(_pickle_hint(error)) from error


def _pickle_hint(error: Exception) -> str:
    if "pickle" in str(error).lower():
        return "numpy cannot read it without unpickling, which is refused: save plain numeric arrays with numpy.save"
    return f"numpy cannot read it: {error}"


def _numeric(name: str, values: NDArray) -> NDArray:
    if values.dtype.kind not in "fiu":
        raise FormatError(f"array '{name}' holds {values.dtype}, expected numbers")
    return values[0] if values.ndim == 3 and values.shape[0] == 1 else values
