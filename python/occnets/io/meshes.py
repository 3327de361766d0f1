# SPDX-License-Identifier: MIT
"""OBJ, OFF and STL: readers and writers."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError, Geometry, fan_triangles, geometry

_STL_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_obj(data: bytes) -> Geometry:
    """Read ``v`` and ``f`` lines (polygons become fans); ``vn`` lines are normals when there is one per vertex.

    Raises:
        FormatError: no vertices, or something that is not a number.
    """
    vertices: list[list[bytes]] = []
    normals: list[list[bytes]] = []
    counts: list[int] = []
    corners: list[int] = []
    for line in data.replace(b"\\\n", b" ").splitlines():
        words = line.split(b"#", 1)[0].split()
        if not words:
            continue
        if words[0] == b"v":
            vertices.append(words[1:])
        elif words[0] == b"vn":
            normals.append(words[1:4])
        elif words[0] == b"f":
            counts.append(len(words) - 1)
            # Negative indices count back from the newest vertex.
            for word in words[1:]:
                index = int(word.split(b"/", 1)[0])
                corners.append(index - 1 if index > 0 else len(vertices) + index)
    if not vertices:
        raise FormatError("there are no vertices in the OBJ file")
    table = _rows(vertices)
    colors = table[:, 3:6] if table.shape[1] == 6 else None
    kept = _rows(normals) if normals and len(normals) == len(vertices) else None
    faces = fan_triangles(np.array(counts), np.array(corners)) if counts else None
    return geometry(table[:, :3], faces=faces, normals=kept, colors=colors)


def _rows(rows: list[list[bytes]]) -> NDArray[np.float64]:
    width = min(len(row) for row in rows)
    if width < 3:
        raise FormatError("a vertex line has fewer than three numbers")
    try:
        return np.array([row[:width] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"a vertex line holds something that is not a number: {error}") from error


def read_off(data: bytes) -> Geometry:
    """Read ascii OFF, NOFF, COFF and the variant with the counts glued to the word OFF (as ModelNet has).

    Raises:
        FormatError: not an OFF file, binary, or truncated.
    """
    text = data.decode("latin-1")
    lines = [line for line in (raw.split("#", 1)[0].strip() for raw in text.splitlines()) if line]
    match = re.match(r"((?:ST)?C?N?)(?:4|n)?OFF\s*(BINARY)?", lines[0]) if lines else None
    if match is None or match.group(2):
        raise FormatError("not an ascii OFF file: the first line does not begin with 'OFF'")
    lines[0] = lines[0][match.end() :].strip()
    lines = lines if lines[0] else lines[1:]
    try:
        vertex_count, face_count = (int(word) for word in lines[0].split()[:2])
    except (ValueError, IndexError) as error:
        raise FormatError("the OFF file has no line with the numbers of vertices and faces") from error
    body = lines[1 : 1 + vertex_count + face_count]
    if len(body) < vertex_count + face_count:
        raise FormatError(
            f"the OFF file announces {vertex_count} vertices and {face_count} faces but holds {len(body)} lines"
        )
    if vertex_count == 0:
        raise FormatError("there are no vertices in the OFF file")
    table = _rows([line.encode().split() for line in body[:vertex_count]])
    polygons = [line.split() for line in body[vertex_count:]]
    counts = [int(words[0]) for words in polygons]
    corners = [int(word) for words, count in zip(polygons, counts, strict=True) for word in words[1 : 1 + count]]
    kind = match.group(1)
    normals = table[:, 3:6] if "N" in kind and table.shape[1] >= 6 else None
    at = 6 if normals is not None else 3
    colors = table[:, at : at + 3] if "C" in kind and table.shape[1] >= at + 3 else None
    faces = fan_triangles(np.array(counts), np.array(corners)) if counts else None
    return geometry(table[:, :3], faces=faces, normals=normals, colors=colors)


def read_stl(data: bytes) -> Geometry:
    """Read binary or ascii STL; corners with equal coordinates become one vertex.

    Raises:
        FormatError: neither kind, or truncated.
    """
    count = int(np.frombuffer(data, "<u4", 1, 80)[0]) if len(data) >= 84 else -1
    # Some binary files begin with 'solid' too, so the size decides.
    if count >= 0 and len(data) >= 84 + 50 * count and (len(data) == 84 + 50 * count or not data.startswith(b"solid")):
        corners = np.frombuffer(data, _STL_RECORD, count, 84)["corners"].reshape(-1, 3)
    elif data.lstrip().startswith(b"solid"):
        words = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", data)
        corners = _rows([list(word) for word in words]) if words else np.empty((0, 3))
    else:
        raise FormatError(f"not an STL file, or truncated: the header announces {count} faces in {len(data)} bytes")
    if not len(corners) or len(corners) % 3:
        raise FormatError("there are no complete faces in the STL file")
    vertices, index = np.unique(corners, axis=0, return_inverse=True)
    return geometry(vertices, faces=index.reshape(-1, 3))


def _block(template: str, values: NDArray) -> bytes:
    return (template * len(values) % tuple(values.reshape(-1).tolist())).encode("ascii")


def _number(points: NDArray, doubles: bool) -> str:
    """A %-format: nine digits, or under a large offset as many decimals as resolve 1e-8 of the extent."""
    extent = float(np.ptp(points, axis=0).max()) if doubles and len(points) else 0.0
    if extent <= 0:
        return "%.17g" if doubles else "%.9g"
    return f"%.{int(np.clip(8 - np.ceil(np.log10(extent)), 0, 17))}f"


def write_obj(stream: BinaryIO, shape: Geometry, *, doubles: bool) -> None:
    """Write vertices, normals and faces as OBJ text; ``doubles`` writes all digits of float64."""
    number = _number(shape.points, doubles)
    stream.write(b"# written by occnets\n")
    stream.write(_block(f"v {number} {number} {number}\n", shape.points))
    if shape.normals is not None:
        stream.write(_block("vn %.6g %.6g %.6g\n", shape.normals))
    if shape.faces is not None:
        index = shape.faces + 1
        if shape.normals is None:
            stream.write(_block("f %d %d %d\n", index))
        else:
            stream.write(_block("f %d//%d %d//%d %d//%d\n", np.repeat(index, 2, axis=1)))


def write_off(stream: BinaryIO, shape: Geometry, *, doubles: bool) -> None:
    """Write OFF, or NOFF when there are normals; ``doubles`` writes all digits of float64."""
    number = _number(shape.points, doubles)
    faces = shape.faces if shape.faces is not None else np.empty((0, 3), dtype=np.int64)
    stream.write(f"{'OFF' if shape.normals is None else 'NOFF'}\n{len(shape.points)} {len(faces)} 0\n".encode())
    if shape.normals is None:
        stream.write(_block(f"{number} {number} {number}\n", shape.points))
    else:
        stream.write(_block(f"{number} {number} {number} %.6g %.6g %.6g\n", np.hstack([shape.points, shape.normals])))
    stream.write(_block("3 %d %d %d\n", faces))


def write_stl(stream: BinaryIO, shape: Geometry, *, doubles: bool) -> None:
    """Write binary STL, float32 by definition (``doubles`` changes nothing).

    Raises:
        ValueError: there are no faces.
    """
    del doubles
    if shape.faces is None:
        raise ValueError("write_stl: STL holds faces only, and there are none; write PLY for points")
    corners = shape.points[shape.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    records = np.zeros(len(corners), dtype=_STL_RECORD)
    records["normal"] = np.divide(normal, length, out=np.zeros_like(normal), where=length > 0)
    records["corners"] = corners
    stream.write(b"binary STL written by occnets".ljust(80, b"\0") + np.uint32(len(records)).tobytes())
    stream.write(records.tobytes())
