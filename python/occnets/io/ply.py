# SPDX-License-Identifier: MIT
"""PLY, the Stanford polygon format: ascii and binary of both endians, any scalar types, any extra elements."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError, Geometry, fan_triangles, geometry

_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
    "float64": "f8", "int64": "i8", "uint64": "u8",
}  # fmt: skip
_ENDIAN = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_COLOR_NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_NORMAL_NAMES = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))

Column = NDArray | tuple[NDArray, NDArray]  # a scalar property, or (counts, values) of a list property


@dataclass
class _Element:
    name: str
    count: int
    names: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    list_types: list[str | None] = field(default_factory=list)  # type of the count; None for scalars

    @property
    def has_lists(self) -> bool:
        return any(kind is not None for kind in self.list_types)


def read_ply(data: bytes) -> Geometry:
    """Read points, faces (polygons become fans), normals and colours.

    Raises:
        FormatError: not a PLY file, truncated, or without x, y, z.
    """
    form, elements, start = _read_header(data)
    columns: dict[str, dict[str, Column]] = {}
    if form == "ascii":
        # Numbers are taken as one stream, so that files with wrapped lines read too.
        values = _ascii_numbers(data[start:])
        position = 0
        for element in elements:
            columns[element.name], position = _ascii_element(element, values, position)
    else:
        for element in elements:
            columns[element.name], start = _binary_element(element, data, start, _ENDIAN[form])
    return _assemble(columns)


def _read_header(data: bytes) -> tuple[str, list[_Element], int]:
    if not data.startswith(b"ply"):
        raise FormatError("not a PLY file: it does not begin with 'ply'")
    end = data.find(b"end_header")
    stop = data.find(b"\n", end)
    if end < 0 or stop < 0:
        raise FormatError("the PLY header has no 'end_header' line")
    form, elements = "", []
    for line in data[:end].decode("latin-1").splitlines()[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) > 1:
            form = words[1]
        elif words[0] == "element" and len(words) == 3 and words[2].isdigit():
            elements.append(_Element(words[1], int(words[2])))
        elif words[0] == "property" and elements:
            _add_property(elements[-1], words)
        else:
            raise FormatError(f"unexpected line in the PLY header: {line!r}")
    if form not in _ENDIAN:
        raise FormatError(f"unknown PLY format {form!r}; expected one of {', '.join(_ENDIAN)}")
    return form, elements, stop + 1


def _add_property(element: _Element, words: list[str]) -> None:
    is_list = words[1] == "list"
    kinds, wanted = (words[2:4], 5) if is_list else (words[1:2], 3)
    if len(words) != wanted or any(kind not in _TYPES for kind in kinds):
        raise FormatError(f"unknown property in the PLY header: {' '.join(words)!r}")
    element.names.append(words[-1])
    element.types.append(_TYPES[kinds[-1]])
    element.list_types.append(_TYPES[kinds[0]] if is_list else None)


def _ascii_numbers(body: bytes) -> NDArray[np.float64]:
    try:
        return np.array(body.split(), dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"the PLY body holds something that is not a number: {error}") from error


def _need(element: _Element, available: int, wanted: int) -> None:
    if available < wanted:
        raise FormatError(f"the file ends inside element '{element.name}' ({element.count} announced): it is truncated")


def _length(element: _Element, stored: float) -> int:
    if not 0 <= stored < 2**31 or stored != int(stored):
        raise FormatError(f"a list in element '{element.name}' has the length {stored}: the file is damaged")
    return int(stored)


def _ascii_element(element: _Element, values: NDArray, position: int) -> tuple[dict[str, Column], int]:
    if not element.has_lists:
        width = len(element.names)
        _need(element, len(values) - position, element.count * width)
        table = values[position : position + element.count * width].reshape(element.count, width)
        return {name: table[:, i] for i, name in enumerate(element.names)}, position + element.count * width
    if len(element.names) == 1 and element.count and position < len(values):
        size = _length(element, values[position])
        block = values[position : position + element.count * (size + 1)]
        if len(block) == element.count * (size + 1):
            table = block.reshape(element.count, size + 1)
            if (table[:, 0] == size).all():
                column = (np.full(element.count, size, dtype=np.int64), table[:, 1:].reshape(-1))
                return {element.names[0]: column}, position + len(block)
    counts: list[list[int]] = [[] for _ in element.names]
    spans: list[list[NDArray]] = [[] for _ in element.names]
    for _ in range(element.count):
        for i, kind in enumerate(element.list_types):
            length = 1
            if kind is not None:
                _need(element, len(values) - position, 1)
                length = _length(element, values[position])
                counts[i].append(length)
                position += 1
            _need(element, len(values) - position, length)
            spans[i].append(values[position : position + length])
            position += length
    return _join(element, counts, spans), position


def _join(element: _Element, counts: list[list[int]], spans: list[list[NDArray]]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for i, name in enumerate(element.names):
        joined = np.concatenate(spans[i]) if spans[i] else np.empty(0)
        columns[name] = joined if element.list_types[i] is None else (np.array(counts[i], dtype=np.int64), joined)
    return columns


def _binary_element(element: _Element, data: bytes, start: int, endian: str) -> tuple[dict[str, Column], int]:
    if not element.count:
        return {name: np.empty(0) for name in element.names}, start
    lengths = _first_lengths(element, data, start, endian)
    fields: list[tuple] = []
    for i, kind in enumerate(element.list_types):
        if kind is None:
            fields.append((f"v{i}", endian + element.types[i]))
        else:
            fields += [(f"n{i}", endian + kind), (f"v{i}", endian + element.types[i], (lengths[i],))]
    layout = np.dtype(fields)
    # Nearly every mesh has faces of one size only: then the rows are equal and one frombuffer reads them all.
    if len(data) - start >= layout.itemsize * element.count:
        rows = np.frombuffer(data, layout, element.count, start)
        if all((rows[f"n{i}"] == lengths[i]).all() for i, kind in enumerate(element.list_types) if kind is not None):
            columns: dict[str, Column] = {}
            for i, (name, kind) in enumerate(zip(element.names, element.list_types, strict=True)):
                values = rows[f"v{i}"]
                columns[name] = values if kind is None else (rows[f"n{i}"].astype(np.int64), values.reshape(-1))
            return columns, start + layout.itemsize * element.count
    if not element.has_lists:
        _need(element, len(data) - start, layout.itemsize * element.count)
    return _binary_rows(element, data, start, endian)


def _first_lengths(element: _Element, data: bytes, start: int, endian: str) -> list[int]:
    lengths = []
    for value_type, kind in zip(element.types, element.list_types, strict=True):
        length = 1
        if kind is not None:
            _need(element, len(data) - start, int(kind[1]))
            length = _length(element, np.frombuffer(data, endian + kind, 1, start)[0])
            start += int(kind[1])
        lengths.append(length)
        start += length * int(value_type[1])
        _need(element, len(data) - start, 0)
    return lengths


def _binary_rows(element: _Element, data: bytes, start: int, endian: str) -> tuple[dict[str, Column], int]:
    counts: list[list[int]] = [[] for _ in element.names]
    spans: list[list[NDArray]] = [[] for _ in element.names]
    for _ in range(element.count):
        for i, kind in enumerate(element.list_types):
            length = 1
            if kind is not None:
                _need(element, len(data) - start, int(kind[1]))
                length = _length(element, np.frombuffer(data, endian + kind, 1, start)[0])
                counts[i].append(length)
                start += int(kind[1])
            size = int(element.types[i][1]) * length
            _need(element, len(data) - start, size)
            spans[i].append(np.frombuffer(data, endian + element.types[i], length, start))
            start += size
    return _join(element, counts, spans), start


def _triple(columns: dict[str, Column], choices: tuple[tuple[str, str, str], ...]) -> NDArray | None:
    for names in choices:
        if all(isinstance(columns.get(name), np.ndarray) for name in names):
            return np.stack([columns[name] for name in names], axis=1)  # type: ignore[arg-type]
    return None


def _assemble(columns: dict[str, dict[str, Column]]) -> Geometry:
    vertex = columns.get("vertex", columns.get("point", {}))
    points = _triple(vertex, (("x", "y", "z"),))
    if points is None:
        raise FormatError("the PLY file has no element 'vertex' with the properties x, y, z")
    faces = None
    for name in ("vertex_indices", "vertex_index"):
        column = columns.get("face", {}).get(name)
        if isinstance(column, tuple):
            faces = fan_triangles(*column)
    return geometry(points, faces=faces, normals=_triple(vertex, _NORMAL_NAMES), colors=_triple(vertex, _COLOR_NAMES))


def write_ply(stream: BinaryIO, shape: Geometry, *, doubles: bool) -> None:
    """Write binary little-endian PLY; ``doubles`` stores coordinates as float64."""
    real = "double" if doubles else "float"
    fields = [(name, "<f8" if doubles else "<f4") for name in ("x", "y", "z")]
    header = [f"property {real} {name}" for name in ("x", "y", "z")]
    if shape.normals is not None:
        fields += [(name, "<f4") for name in ("nx", "ny", "nz")]
        header += [f"property float {name}" for name in ("nx", "ny", "nz")]
    if shape.colors is not None:
        fields += [(name, "u1") for name in ("red", "green", "blue")]
        header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    rows = np.zeros(len(shape.points), dtype=fields)
    for source, names in ((shape.points, "xyz"), (shape.normals, ("nx", "ny", "nz")), (shape.colors, _COLOR_NAMES[0])):
        if source is not None:
            for i, name in enumerate(names):
                rows[name] = source[:, i]
    lines = ["ply", "format binary_little_endian 1.0", "comment written by occnets"]
    lines += [f"element vertex {len(rows)}", *header]
    if shape.faces is not None:
        lines += [f"element face {len(shape.faces)}", "property list uchar int vertex_indices"]
    stream.write(("\n".join([*lines, "end_header"]) + "\n").encode("ascii"))
    stream.write(rows.tobytes())
    if shape.faces is not None:
        faces = np.empty(len(shape.faces), dtype=[("n", "u1"), ("v", "<i4", (3,))])
        faces["n"], faces["v"] = 3, shape.faces
        stream.write(faces.tobytes())
