# SPDX-License-Identifier: MIT
"""LAS 1.0–1.4, the airborne laser-scanning format; LAZ, its compressed form, through laspy."""

from __future__ import annotations

import io
import struct

import numpy as np

from occnets._optional import optional
from occnets.io.geometry import FormatError, Geometry, geometry

# Offset of red, green, blue (three uint16) in each point format that has them; ASPRS LAS 1.4 R15, tables 7-17.
_RGB_OFFSET = {2: 20, 3: 28, 5: 28, 7: 30, 8: 30, 10: 30}
_MINIMUM_LENGTH = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)


def read_las(data: bytes) -> Geometry:
    """Read coordinates (integers times scale plus offset, in float64) and colours of point formats 0 to 10.

    Raises:
        FormatError: not a LAS file, an unknown point format, or truncated.
        ImportError: the file is compressed and laspy is not installed.
    """
    if data[:4] != b"LASF" or len(data) < 227:
        raise FormatError("not a LAS file: it does not begin with 'LASF' and a full header")
    major, minor = data[24], data[25]
    start, _, form, length, count = struct.unpack_from("<IIBHI", data, 96)
    if form & 0xC0:
        return _read_compressed(data)
    if (major, minor) >= (1, 4) and len(data) >= 255 and (wide := struct.unpack_from("<Q", data, 247)[0]):
        count = wide
    if form >= len(_MINIMUM_LENGTH) or length < _MINIMUM_LENGTH[form]:
        raise FormatError(f"unknown LAS point format {form} with records of {length} bytes; formats 0 to 10 are read")
    if len(data) < start + count * length:
        held = max(0, len(data) - start) // length
        raise FormatError(f"the LAS file announces {count} points but holds {held}: it is truncated")
    scale, offset = np.array(struct.unpack_from("<6d", data, 131)).reshape(2, 3)
    records = np.frombuffer(data, np.uint8, count * length, start).reshape(count, length)
    points = np.ascontiguousarray(records[:, :12]).view("<i4") * scale + offset
    colors = None
    if form in _RGB_OFFSET:
        first = _RGB_OFFSET[form]
        colors = np.ascontiguousarray(records[:, first : first + 6]).view("<u2")
        colors = colors if colors.any() else None  # the fields exist but were never filled in
    return geometry(points, colors=colors)


def _read_compressed(data: bytes) -> Geometry:
    laspy = optional("laspy", extra="las", why="to read compressed LAS (LAZ)")
    try:
        cloud = laspy.read(io.BytesIO(data))
    except laspy.errors.LaspyException as error:
        raise FormatError(f"laspy cannot read the compressed points: {error}") from error
    names = set(cloud.point_format.dimension_names)
    colors = None
    if {"red", "green", "blue"} <= names:
        colors = np.stack([np.asarray(cloud[name]) for name in ("red", "green", "blue")], axis=1)
        colors = colors if colors.any() else None
    return geometry(np.asarray(cloud.xyz), colors=colors)
