# SPDX-License-Identifier: MIT
"""Reading and writing by ending: one table of formats, one place for the errors, nothing half-written."""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from occnets.io.arrays import read_npy, read_npz
from occnets.io.geometry import FormatError, Geometry, PointCloud, geometry, sample_surface
from occnets.io.glb import read_glb, write_glb
from occnets.io.las import read_las
from occnets.io.meshes import read_obj, read_off, read_stl, write_obj, write_off, write_stl
from occnets.io.pcd import read_pcd
from occnets.io.ply import read_ply, write_ply
from occnets.io.text import read_pts, read_pwn, read_text

READERS: dict[str, Callable[[bytes], Geometry]] = {
    ".ply": read_ply, ".obj": read_obj, ".off": read_off, ".stl": read_stl, ".glb": read_glb,
    ".xyz": read_text, ".txt": read_text, ".asc": read_text, ".csv": read_text, ".pts": read_pts, ".pwn": read_pwn,
    ".pcd": read_pcd, ".npy": read_npy, ".npz": read_npz, ".las": read_las, ".laz": read_las,
}  # fmt: skip


class _Writer(Protocol):
    def __call__(self, stream: BinaryIO, shape: Geometry, *, doubles: bool) -> None: ...


WRITERS: dict[str, _Writer] = {
    ".ply": write_ply, ".obj": write_obj, ".off": write_off, ".stl": write_stl, ".glb": write_glb
}  # fmt: skip

# float32 resolves 6e-8 of a coordinate. Beyond this share of the extent the rounding would show in the mesh.
_FLOAT32_LOSS = 1e-6


def _format_of(path: Path, table: dict[str, Any], verb: str) -> Any:
    ending = path.suffix.lower()
    if ending not in table:
        what = f"the ending '{path.suffix}'" if ending else "no ending"
        raise FormatError(f"{path} has {what}; occnets {verb} {', '.join(sorted(table))}")
    return table[ending]


def read_geometry(path: str | os.PathLike[str]) -> Geometry:
    """Read points and, where there are any, faces, normals and colours.

    Args:
        path: a file in one of the formats of `READERS`, chosen by its ending.

    Raises:
        OSError: the file is missing or cannot be opened.
        FormatError: unknown ending, damaged content, or no points; the message begins with the path.
        ImportError: a LAZ file, and laspy is not installed.
    """
    path = Path(path)
    reader = _format_of(path, READERS, "reads")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        raise FormatError(f"{path} is a folder, expected a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise FormatError(f"{path} is empty (0 bytes)")
    try:
        shape = reader(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError, MemoryError) as error:
        # What remains after the readers' own checks is damaged content that made an index or a count absurd.
        raise FormatError(
            f"{path} is not a valid {path.suffix[1:].upper()} file ({type(error).__name__}: {error})"
        ) from error
    if not len(shape.points):
        raise FormatError(f"{path} holds no points")
    return shape


def read_points(path: str | os.PathLike[str], *, sample: int | None = None, seed: int = 0) -> PointCloud:
    """Read a point cloud; a mesh gives its vertices, or ``sample`` points drawn uniformly from its surface.

    Args:
        path: a file in one of the formats of `READERS`.
        sample: number of points to draw from the faces of a mesh; None takes the vertices.
        seed: of the drawing.

    Returns:
        Points in float64, in the file's own units and frame.

    Raises:
        OSError, FormatError, ImportError: as `read_geometry`.
        ValueError: ``sample`` is given, but the file has no faces.
    """
    shape = read_geometry(path)
    if sample is not None:
        if shape.faces is None:
            raise ValueError(f"{path} holds points only, so there is no surface to sample; leave `sample` out")
        return sample_surface(shape, sample, seed)
    return PointCloud(shape.points, shape.normals, shape.colors, shape.notes)


def read_mesh(path: str | os.PathLike[str]) -> Geometry:
    """Read a triangle mesh.

    Raises:
        OSError, FormatError, ImportError: as `read_geometry`; FormatError also when there are no faces.
    """
    shape = read_geometry(path)
    if shape.faces is None:
        raise FormatError(f"{path} holds points but no faces, expected a mesh")
    return shape


def needs_doubles(points: np.ndarray) -> bool:
    """Whether float32 would round the points by more than a millionth of their extent (UTM coordinates do)."""
    if not len(points):
        return False
    extent = float(np.ptp(points, axis=0).max())
    return float(np.spacing(np.float32(np.abs(points).max()))) > _FLOAT32_LOSS * extent


def precision_warning(path: str | os.PathLike[str], points: np.ndarray) -> str | None:
    """What the chosen format does to coordinates with a large offset, in words; None when nothing is lost."""
    ending = Path(path).suffix.lower()
    if ending not in (".glb", ".stl") or not needs_doubles(points):
        return None
    step = float(np.spacing(np.float32(np.abs(points).max())))
    if ending == ".stl":
        return (
            f"STL stores 32-bit coordinates, which at this offset are {step:g} apart: the mesh will be coarse. "
            "Write .ply or .obj to keep the precision"
        )
    return (
        "GLB stores 32-bit coordinates: the offset is kept as the node's translation, which programs that ignore "
        "transforms will miss. Write .ply or .obj to have it in the coordinates"
    )


def as_geometry(mesh: Any, *, normals: bool = False) -> Geometry:
    """A `Geometry` from anything with ``vertices`` and ``faces``, such as a `trimesh.Trimesh`.

    Args:
        mesh: a Geometry, a PointCloud, or an object with ``vertices`` (V, 3) and ``faces`` (F, 3).
        normals: take its ``vertex_normals`` too.
    """
    if isinstance(mesh, Geometry):
        return mesh
    if isinstance(mesh, PointCloud):
        return geometry(mesh.points, normals=mesh.normals, colors=mesh.colors)
    return geometry(
        np.asarray(mesh.vertices),
        faces=np.asarray(mesh.faces),
        normals=np.asarray(mesh.vertex_normals) if normals else None,
    )


def write_mesh(path: str | os.PathLike[str], mesh: Any, *, normals: bool = False) -> None:
    """Write a mesh (or a point cloud) as PLY, OBJ, OFF, STL or GLB, by the ending.

    Coordinates with a large offset are written as doubles in PLY, with enough digits in OBJ and OFF, as the node's
    translation in GLB; STL cannot keep them. The last two warn.

    Args:
        path: the file to write. It appears complete or not at all.
        mesh: see `as_geometry`.
        normals: also write a `trimesh.Trimesh`'s vertex normals.

    Raises:
        FormatError: unknown ending.
        OSError: the folder is missing or not writable.
        ValueError: nothing to write, or the format cannot hold it.
    """
    path = Path(path)
    writer = _format_of(path, WRITERS, "writes")
    shape = as_geometry(mesh, normals=normals)
    if not len(shape.points):
        raise ValueError(f"write_mesh: there is nothing to write to {path}: the mesh has no vertices")
    doubles = needs_doubles(shape.points)
    if message := precision_warning(path, shape.points):
        warnings.warn(message, stacklevel=2)
    with atomic_write(path) as stream:
        writer(stream, shape, doubles=doubles)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` for writing and rename it when the block ends without an error.

    Raises:
        OSError: the folder is missing or not writable; the message names it.
    """
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp gives 0600; the result should look like any other file
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def check_writable(path: str | os.PathLike[str], endings: tuple[str, ...] | None = None) -> Path:
    """Make sure, before long work, that ``path`` can be written: known ending, existing and writable folder.

    Args:
        path: the file that will be written.
        endings: allowed endings; None means those of `WRITERS`.

    Raises:
        FormatError: unknown ending.
        OSError: the folder is missing or not writable, or ``path`` is a folder.
    """
    path = Path(path)
    _format_of(path, WRITERS if endings is None else dict.fromkeys(endings), "writes")
    if path.is_dir():
        raise IsADirectoryError(f"{path} cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {path.parent} does not exist")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{path} cannot be written: permission denied")
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", suffix=".part", dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
