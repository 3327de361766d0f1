# SPDX-License-Identifier: MIT
"""Point lists as text: XYZ, TXT, ASC, CSV, PTS and PWN, with or without header, count line and extra columns."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from occnets.io.geometry import FormatError, Geometry, geometry

_ALIASES = {
    "x": "x", "y": "y", "z": "z", "x coordinate": "x", "y coordinate": "y", "z coordinate": "z",
    "px": "x", "py": "y", "pz": "z", "easting": "x", "northing": "y", "height": "z", "elevation": "z", "altitude": "z",
    "nx": "nx", "ny": "ny", "nz": "nz", "normal_x": "nx", "normal_y": "ny", "normal_z": "nz",
    "normalx": "nx", "normaly": "ny", "normalz": "nz",
    "r": "r", "g": "g", "b": "b", "red": "r", "green": "g", "blue": "b",
}  # fmt: skip
_COMMENT = ("#", "//", "%", ";")


def read_text(data: bytes) -> Geometry:
    """Read one point a line.

    Columns are separated by blanks, tabs, commas or semicolons (with decimal commas allowed in the last case). A header
    line names the columns; without one, the first three are x, y, z, and a further triple is taken as normals when
    its rows have unit length, as colours when it holds whole numbers from 0 to 255.

    Raises:
        FormatError: no numbers, or rows of different lengths.
    """
    lines = [line.strip() for line in _decode(data).splitlines()]
    header, rows = _split_header(lines)
    if not rows:
        raise FormatError("there are no points in it: no line holds numbers")
    separator = _separator(rows[0])
    names = _column_names(header, separator) if header else []
    table = _table(rows, separator)
    return _named(table, names) if {"x", "y", "z"} <= set(names) else guess_columns(table)


def read_pts(data: bytes) -> Geometry:
    """Read Leica PTS: a count line before each block, then ``x y z [intensity [r g b]]``.

    Raises:
        FormatError: no numbers, rows of different lengths, or fewer points than announced.
    """
    lines = [line for line in _decode(data).splitlines() if line.strip() and not line.lstrip().startswith(_COMMENT)]
    rows = [line for line in lines if len(line.replace(",", " ").replace(";", " ").split()) > 1]
    announced = sum(int(line) for line in lines if re.fullmatch(r"\s*\d+\s*", line))
    if not rows:
        raise FormatError("there are no points in it: no line holds three numbers")
    if len(rows) < announced:
        raise FormatError(f"the PTS file announces {announced} points but holds {len(rows)}: it is truncated")
    return guess_columns(_table(rows, _separator(rows[0])))


def read_pwn(data: bytes) -> Geometry:
    """Read PWN, points with normals: a count, then all points, then all normals; or six numbers a line.

    Raises:
        FormatError: the numbers do not add up.
    """
    lines = [line for line in _decode(data).splitlines() if line.strip() and not line.lstrip().startswith(_COMMENT)]
    if not lines:
        raise FormatError("the PWN file is empty")
    if len(lines[0].split()) != 1:
        table = _table(lines, None)
        if table.shape[1] != 6:
            raise FormatError(f"a PWN line without a count above it holds 6 numbers, got {table.shape[1]}")
        return geometry(table[:, :3], normals=table[:, 3:])
    values = _numbers(" ".join(lines).split())
    count = int(values[0])
    if len(values) - 1 not in (3 * count, 6 * count):
        raise FormatError(
            f"the PWN file announces {count} points, so {6 * count} numbers should follow, got {len(values) - 1}"
        )
    body = values[1:].reshape(-1, 3)
    return geometry(body[:count], normals=body[count:] if len(body) > count else None)


def guess_columns(table: NDArray) -> Geometry:
    """Name the columns of an (N, C ≥ 3) table by what they hold; see `read_text`.

    Raises:
        FormatError: fewer than three columns.
    """
    if table.ndim != 2 or table.shape[1] < 3:
        raise FormatError(f"expected at least 3 columns (x, y, z), got an array of shape {table.shape}")
    points, rest = table[:, :3], table[:, 3:]
    normals = colors = None
    column = 0
    while column + 3 <= rest.shape[1]:
        triple = rest[:, column : column + 3]
        if normals is None and _looks_like_normals(triple):
            normals, column = triple, column + 3
        elif colors is None and _looks_like_colors(triple):
            colors, column = triple, column + 3
        else:
            column += 1
    return geometry(points, normals=normals, colors=colors)


def _looks_like_normals(triple: NDArray) -> bool:
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(triple.astype(np.float64), axis=1)
    return bool(len(lengths)) and bool((np.abs(lengths - 1) < 0.02).mean() > 0.95)


def _looks_like_colors(triple: NDArray) -> bool:
    return bool(np.isfinite(triple).all() and (triple >= 0).all() and (triple <= 255).all() and (triple % 1 == 0).all())


def _decode(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    if b"\0" in data[:4096]:
        raise FormatError("it is a binary file, not text; is the ending right?")
    return data.decode("utf-8-sig", errors="replace")


def _split_header(lines: list[str]) -> tuple[str, list[str]]:
    """The line naming the columns ('' if there is none) and the lines with numbers."""
    header, rows = "", []
    for line in lines:
        if not line:
            continue
        if line.startswith(_COMMENT):
            header = header or (line if not rows else "")
        elif not rows and not _begins_with_number(line):
            header = line
        elif not rows and re.fullmatch(r"\d+", line):
            continue  # a count line, as PTS has
        else:
            rows.append(line)
    return header, rows


def _begins_with_number(line: str) -> bool:
    try:
        float(re.split(r"[\s,;]", line, maxsplit=1)[0])
    except ValueError:
        return False
    return True


def _separator(row: str) -> str | None:
    """';', ',' or None for blanks. '1,5 2,5 3,5' cannot be told from four columns and reads as an error later."""
    return ";" if ";" in row else "," if "," in row else None


def _column_names(header: str, separator: str | None) -> list[str]:
    header = header.strip().lstrip("#/%; ").lower()
    for char in (separator, ",", ";", "\t", None):
        words = [word.strip().strip("\"'") for word in header.split(char)]
        words = [re.sub(r"\s*[\[(].*[\])]$", "", word).lstrip("/") for word in words]
        names = [_ALIASES.get(word, word) for word in words]
        if {"x", "y", "z"} <= set(names):
            return names
    return []


def _named(table: NDArray, names: list[str]) -> Geometry:
    if len(names) > table.shape[1]:
        raise FormatError(f"the header names {len(names)} columns, but the rows hold {table.shape[1]}")

    def triple(*wanted: str) -> NDArray | None:
        if not set(wanted) <= set(names):
            return None
        return np.stack([table[:, names.index(name)] for name in wanted], axis=1)

    points = triple("x", "y", "z")
    assert points is not None
    return geometry(points, normals=triple("nx", "ny", "nz"), colors=triple("r", "g", "b"))


def _numbers(tokens: list[str]) -> NDArray[np.float64]:
    try:
        return np.array(tokens, dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"something is not a number: {error}") from error


def _table(rows: list[str], separator: str | None) -> NDArray[np.float64]:
    cells = [row.split(separator) for row in rows]
    width = len(cells[0])
    if separator is not None and all(row[-1].strip() == "" for row in cells):
        cells, width = [row[:-1] for row in cells], width - 1  # every line ends with the separator
    wrong = next((i for i, row in enumerate(cells) if len(row) != width), None)
    if wrong is not None:
        got = len(cells[wrong])
        raise FormatError(f"row {wrong + 1} has {got} columns, the rows before it {width}: {rows[wrong][:80]!r}")
    flat = [cell for row in cells for cell in row]
    if separator == ";":
        flat = [cell.replace(",", ".") for cell in flat]
    return _drop_words(flat, width)


def _drop_words(flat: list[str], width: int) -> NDArray[np.float64]:
    """Numbers as a table; a later column of words (a class name, a time) becomes NaN, x, y and z must be numbers."""
    try:
        return np.array(flat, dtype=np.float64).reshape(-1, width)
    except ValueError:
        columns = []
        for i in range(width):
            try:
                columns.append(np.array([cell.strip() or "nan" for cell in flat[i::width]], dtype=np.float64))
            except ValueError as error:
                if i < 3:
                    raise FormatError(f"column {i + 1} holds something that is not a number: {error}") from error
                columns.append(np.full(len(flat) // width, np.nan))
        return np.stack(columns, axis=1)
