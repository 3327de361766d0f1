# SPDX-License-Identifier: MIT
"""GLB, binary glTF 2.0: reader (whole scene, node transforms applied in float64) and writer (one node)."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError, Geometry, geometry

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_POINTS, _TRIANGLES, _STRIP, _FAN = 0, 4, 5, 6
_READABLE_EXTENSIONS = {"KHR_mesh_quantization", "KHR_texture_transform"}


def read_glb(data: bytes) -> Geometry:
    """Read every point and triangle of the scene into one geometry, transforms applied, axes as stored.

    Raises:
        FormatError: not a GLB file, truncated, or compressed by an extension (Draco, meshopt).
    """
    document, blob = _chunks(data)
    compressed = [
        name
        for name in document.get("extensionsRequired", [])
        if name.startswith(("KHR_", "EXT_")) and ("draco" in name or "meshopt" in name)
    ]
    if compressed:
        raise FormatError(f"the GLB file is compressed with {', '.join(compressed)}; export it without compression")
    parts = [
        _primitive(document, blob, primitive, matrix)
        for mesh, matrix in _instances(document)
        for primitive in document["meshes"][mesh].get("primitives", [])
        if primitive.get("mode", _TRIANGLES) in (_POINTS, _TRIANGLES, _STRIP, _FAN)
    ]
    parts = [part for part in parts if part is not None and len(part.points)]
    if not parts:
        raise FormatError("there are no points and no triangles in the GLB file")
    return _concatenate(parts)


def _chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    if len(data) < 20 or struct.unpack_from("<I", data)[0] != _MAGIC:
        raise FormatError("not a GLB file: it does not begin with 'glTF'")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise FormatError(f"the GLB file has version {version}; version 2 is read")
    if length > len(data):
        raise FormatError(f"the GLB file announces {length} bytes but has {len(data)}: it is truncated")
    document, blob, position = None, b"", 12
    while position + 8 <= length:
        size, kind = struct.unpack_from("<II", data, position)
        chunk = data[position + 8 : position + 8 + size]
        if kind == _JSON and document is None:
            document = json.loads(chunk)
        elif kind == _BIN and not blob:
            blob = chunk
        position += 8 + size + (-size) % 4
    if not isinstance(document, dict):
        raise FormatError("the GLB file has no JSON chunk")
    return document, blob


def _instances(document: dict[str, Any]) -> list[tuple[int, NDArray]]:
    """Each use of a mesh in the scene with its 4x4 matrix."""
    nodes = document.get("nodes", [])
    scenes = document.get("scenes", [])
    if scenes:
        roots = scenes[document.get("scene", 0)].get("nodes", [])
    else:
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [i for i in range(len(nodes)) if i not in children]
    found = []
    stack = [(root, np.eye(4)) for root in reversed(roots)]
    visited = 0
    while stack:
        index, parent = stack.pop()
        visited += 1
        if visited > 10 * len(nodes) + 10:
            raise FormatError("the GLB file's nodes form a loop")
        matrix = parent @ _node_matrix(nodes[index])
        if "mesh" in nodes[index]:
            found.append((nodes[index]["mesh"], matrix))
        stack += [(child, matrix) for child in reversed(nodes[index].get("children", []))]
    return found if nodes else [(i, np.eye(4)) for i in range(len(document.get("meshes", [])))]


def _node_matrix(node: dict[str, Any]) -> NDArray:
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1.0, 1.0, 1.0)))
    matrix[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return matrix


def _accessor(document: dict[str, Any], blob: bytes, index: int) -> NDArray:
    accessor = document["accessors"][index]
    kind, width = np.dtype("<" + _COMPONENTS[accessor["componentType"]]), _WIDTHS[accessor["type"]]
    count = accessor["count"]
    if "bufferView" not in accessor or "sparse" in accessor:
        raise FormatError("the GLB file uses sparse accessors, which are not read; export it without them")
    view = document["bufferViews"][accessor["bufferView"]]
    if view.get("buffer", 0) != 0 or "uri" in document["buffers"][0]:
        raise FormatError("the GLB file keeps its data in another file; export it as one self-contained GLB")
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride", kind.itemsize * width)
    if count < 0 or start + max(0, count - 1) * stride + kind.itemsize * width * (count > 0) > len(blob):
        raise FormatError("the GLB file's data ends early: it is truncated")
    values = np.ndarray((count, width), kind, blob, start, (stride, kind.itemsize))
    if accessor.get("normalized") and kind.kind in "iu":
        return np.maximum(values / np.iinfo(kind).max, -1.0)
    return values


def _primitive(document: dict[str, Any], blob: bytes, primitive: dict[str, Any], matrix: NDArray) -> Geometry | None:
    attributes = primitive.get("attributes", {})
    if "POSITION" not in attributes:
        return None
    linear = matrix[:3, :3]
    points = _accessor(document, blob, attributes["POSITION"]).astype(np.float64) @ linear.T + matrix[:3, 3]
    normals = colors = None
    if "NORMAL" in attributes:
        normals = _accessor(document, blob, attributes["NORMAL"]) @ np.linalg.pinv(linear)
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    if "COLOR_0" in attributes:
        colors = _accessor(document, blob, attributes["COLOR_0"])[:, :3]
    mode = primitive.get("mode", _TRIANGLES)
    if mode == _POINTS:
        return geometry(points, normals=normals, colors=colors)
    index = np.arange(len(points))
    if "indices" in primitive:
        index = _accessor(document, blob, primitive["indices"])[:, 0].astype(np.int64)
    if mode == _TRIANGLES:
        faces = index[: len(index) // 3 * 3].reshape(-1, 3)
    elif mode == _FAN:
        faces = np.stack([np.full(len(index) - 2, index[0]), index[1:-1], index[2:]], axis=1)
    else:
        faces = np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
        faces[1::2] = faces[1::2, ::-1]
    faces = faces[:, ::-1] if np.linalg.det(linear) < 0 else faces  # a mirroring node turns faces inside out
    return geometry(points, faces=faces, normals=normals, colors=colors)


def _concatenate(parts: list[Geometry]) -> Geometry:
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.points) for part in parts])
    faces = [part.faces + start for part, start in zip(parts, starts, strict=False) if part.faces is not None]
    keep_normals = all(part.normals is not None for part in parts)
    keep_colors = all(part.colors is not None for part in parts)
    return geometry(
        np.concatenate([part.points for part in parts]),
        faces=np.concatenate(faces) if faces else None,
        normals=np.concatenate([part.normals for part in parts]) if keep_normals else None,  # type: ignore[misc]
        colors=np.concatenate([part.colors for part in parts]) if keep_colors else None,  # type: ignore[misc]
    )


def write_glb(stream: BinaryIO, shape: Geometry, *, doubles: bool) -> None:
    """Write one node with one mesh (or points); ``doubles`` moves the offset into the node's translation.

    glTF stores coordinates as float32, so that is where float64 precision survives: JSON numbers are doubles.
    """
    offset = np.round((shape.points.min(axis=0) + shape.points.max(axis=0)) / 2) if doubles else np.zeros(3)
    arrays: list[tuple[str, NDArray, dict[str, Any]]] = []
    positions = (shape.points - offset).astype("<f4")
    bounds = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    arrays.append(("POSITION", positions, {"componentType": 5126, "type": "VEC3", **bounds}))
    if shape.normals is not None:
        length = np.linalg.norm(shape.normals, axis=1, keepdims=True)
        unit = np.where(length > 0, shape.normals / np.maximum(length, 1e-30), np.array([0.0, 0.0, 1.0]))
        arrays.append(("NORMAL", unit.astype("<f4"), {"componentType": 5126, "type": "VEC3"}))
    if shape.colors is not None:
        rgba = np.hstack([shape.colors, np.full((len(shape.colors), 1), 255, dtype=np.uint8)])
        arrays.append(("COLOR_0", rgba, {"componentType": 5121, "type": "VEC4", "normalized": True}))
    primitive: dict[str, Any] = {
        "attributes": {name: i for i, (name, _, _) in enumerate(arrays)},
        "mode": _POINTS if shape.faces is None else _TRIANGLES,
    }
    if shape.faces is not None:
        primitive["indices"] = len(arrays)
        arrays.append(("indices", shape.faces.reshape(-1, 1).astype("<u4"), {"componentType": 5125, "type": "SCALAR"}))
    node: dict[str, Any] = {"mesh": 0}
    if offset.any():
        node["translation"] = offset.tolist()
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "occnets"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [node],
        "meshes": [{"primitives": [primitive]}],
        "accessors": [],
        "bufferViews": [],
    }
    pieces = []
    start = 0
    for name, values, accessor in arrays:
        raw = np.ascontiguousarray(values).tobytes()
        target = 34963 if name == "indices" else 34962
        document["bufferViews"].append({"buffer": 0, "byteOffset": start, "byteLength": len(raw), "target": target})
        document["accessors"].append({"bufferView": len(document["accessors"]), "count": len(values), **accessor})
        pieces.append(raw)
        start += len(raw)
    blob = b"".join(pieces)  # every array's item is a multiple of four bytes, so no padding is needed between them
    document["buffers"] = [{"byteLength": len(blob)}]
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    stream.write(struct.pack("<III", _MAGIC, 2, 12 + 8 + len(text) + 8 + len(blob)))
    stream.write(struct.pack("<II", len(text), _JSON) + text)
    stream.write(struct.pack("<II", len(blob), _BIN) + blob)
