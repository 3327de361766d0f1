# SPDX-License-Identifier: MIT
"""PCD, the Point Cloud Library's format: ascii, binary and binary_compressed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError, Geometry, drop_invalid, geometry

_KINDS = {"I": "i", "U": "u", "F": "f"}


def read_pcd(data: bytes) -> Geometry:
    """Read x, y, z, normals and packed or separate colours; points with NaN are the format's "no return" and dropped.

    Raises:
        FormatError: not a PCD file, truncated, or an unknown DATA kind.
    """
    header, body = _read_header(data)
    fields = header.get("FIELDS", [])
    counts = [int(word) for word in header.get("COUNT", ["1"] * len(fields))]
    sizes, kinds = header.get("SIZE", []), header.get("TYPE", [])
    if not fields or not len(fields) == len(sizes) == len(kinds) == len(counts):
        raise FormatError("the PCD header's FIELDS, SIZE, TYPE and COUNT lines are missing or do not match")
    number = int(header["POINTS"][0]) if "POINTS" in header else int(header["WIDTH"][0]) * int(header["HEIGHT"][0])
    try:
        types = [np.dtype(f"<{_KINDS[kind]}{size}") for kind, size in zip(kinds, sizes, strict=True)]
    except (KeyError, TypeError) as error:
        raise FormatError(f"the PCD header names an unknown type: TYPE {kinds}, SIZE {sizes}") from error
    form = header.get("DATA", ["?"])[0].lower()
    if form == "ascii":
        columns = _ascii(body, fields, types, counts, number)
    elif form == "binary":
        columns = _binary(body, fields, types, counts, number)
    elif form == "binary_compressed":
        columns = _compressed(body, fields, types, counts, number)
    else:
        raise FormatError(f"unknown PCD data kind {form!r}; expected ascii, binary or binary_compressed")
    return _assemble(columns)


def _read_header(data: bytes) -> tuple[dict[str, list[str]], bytes]:
    header: dict[str, list[str]] = {}
    position = 0
    while position < len(data):
        end = data.find(b"\n", position)
        end = len(data) if end < 0 else end
        words = data[position:end].decode("latin-1").split()
        position = end + 1
        if not words or words[0].startswith("#"):
            continue
        header[words[0].upper()] = words[1:]
        if words[0].upper() == "DATA":
            return header, data[position:]
        if len(header) > 32:
            break
    raise FormatError("not a PCD file: there is no DATA line")


def _ascii(body: bytes, fields: list[str], types: list[np.dtype], counts: list[int], number: int) -> dict[str, NDArray]:
    try:
        values = np.array(body.split(), dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"the PCD body holds something that is not a number: {error}") from error
    width = sum(counts)
    if len(values) < number * width:
        raise FormatError(f"the PCD file announces {number} points but holds {len(values) // width}: it is truncated")
    table = values[: number * width].reshape(number, width)
    starts = np.cumsum(counts) - counts
    columns = {name: table[:, start] for name, start in zip(fields, starts, strict=True)}
    for name, kind in zip(fields, types, strict=True):
        if name in ("rgb", "rgba") and kind.kind in "ui":
            columns[name] = columns[name].astype(np.int64).astype(np.uint32)
    return columns


def _binary(
    body: bytes, fields: list[str], types: list[np.dtype], counts: list[int], number: int
) -> dict[str, NDArray]:
    names = [f"f{i}" for i in range(len(fields))]
    layout = np.dtype([(n, t, (c,)) for n, t, c in zip(names, types, counts, strict=True)])
    if len(body) < number * layout.itemsize:
        raise FormatError(
            f"the PCD file announces {number} points but holds {len(body) // layout.itemsize}: it is truncated"
        )
    rows = np.frombuffer(body, layout, number)
    return {field: rows[name][:, 0] for field, name, c in zip(fields, names, counts, strict=True) if c > 0}


def _compressed(
    body: bytes, fields: list[str], types: list[np.dtype], counts: list[int], number: int
) -> dict[str, NDArray]:
    if len(body) < 8:
        raise FormatError("the compressed PCD body is truncated")
    packed, unpacked = (int(size) for size in np.frombuffer(body, "<u4", 2))
    if unpacked != number * sum(t.itemsize * c for t, c in zip(types, counts, strict=True)) or len(body) - 8 < packed:
        raise FormatError("the compressed PCD body does not have the announced size: it is truncated")
    plain = lzf_decompress(body[8 : 8 + packed], unpacked)
    columns, start = {}, 0
    # The compressed body is field after field, not point after point.
    for name, kind, count in zip(fields, types, counts, strict=True):
        if count > 0:
            columns[name] = np.frombuffer(plain, kind, number * count, start).reshape(number, count)[:, 0]
        start += number * count * kind.itemsize
    return columns


def lzf_decompress(packed: bytes, size: int) -> bytes:
    """Undo LZF: a control byte below 32 starts a literal run, others copy from what was already written.

    Raises:
        FormatError: the stream is damaged.
    """
    out = bytearray()
    position, end = 0, len(packed)
    while position < end:
        control = packed[position]
        position += 1
        if control < 32:
            out += packed[position : position + control + 1]
            position += control + 1
            continue
        length = control >> 5
        if position + (length == 7) >= end:
            raise FormatError("the compressed PCD body is damaged")
        if length == 7:
            length += packed[position]
            position += 1
        start = len(out) - ((control & 0x1F) << 8) - packed[position] - 1
        position += 1
        length += 2
        if start < 0:
            raise FormatError("the compressed PCD body is damaged")
        chunk = out[start : start + length]
        while len(chunk) < length:  # the copy may overlap what it writes
            chunk += chunk[: length - len(chunk)]
        out += chunk
    if len(out) != size:
        raise FormatError(f"the compressed PCD body unpacks to {len(out)} bytes, expected {size}")
    return bytes(out)


def _assemble(columns: dict[str, NDArray]) -> Geometry:
    def triple(*names: str) -> NDArray | None:
        return np.stack([columns[name] for name in names], axis=1) if set(names) <= set(columns) else None

    points = triple("x", "y", "z")
    if points is None:
        raise FormatError(f"the PCD file has no fields x, y, z; it has {', '.join(columns)}")
    colors = triple("r", "g", "b")
    for name in ("rgb", "rgba"):
        if name in columns:
            # PCL packs 0x00RRGGBB into four bytes and often calls them a float.
            word = columns[name]
            word = word.astype("<f4").view("<u4") if word.dtype.kind == "f" else word.astype("<u4")
            colors = np.stack([(word >> 16) & 255, (word >> 8) & 255, word & 255], axis=1).astype(np.uint8)
    cloud = geometry(points, normals=triple("normal_x", "normal_y", "normal_z"), colors=colors)
    return drop_invalid(cloud, "the PCD format's mark for no return")
