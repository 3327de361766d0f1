# SPDX-License-Identifier: MIT
"""Derives the marching-cubes table and writes it for C++ and for Python.

Run it from anywhere: ``python csrc/math/generate_marching_cubes.py``. It rewrites ``marching_cubes_tables.h`` beside
itself and ``occkernels/_marching_cubes_table.py``; a test asserts that both are what this file produces.

The derivation, in four rules:

1. Corner ``4 dx + 2 dy + dz`` of a cell is bit ``4 dx + 2 dy + dz`` of its code; the bit is set inside (value > level).
   Edge ``4 axis + 2 p + q`` runs along ``axis`` from the corner whose other two offsets, in axis order, are ``(p, q)``.
2. On each face of the cube every run of outside corners is cut off by one segment. So two outside corners on a diagonal
   are separated and the inside stays connected. The rule reads the face's four signs alone, hence two neighbouring
   cells always draw the same segments, in opposite directions: the surface closes.
3. Every crossed edge starts one segment and ends one, so the segments form closed loops, one vertex per crossed edge.
4. A loop is triangulated without any diagonal between two edges of one face: such a diagonal could be drawn by the
   neighbouring cell too, and four triangles would meet there. All others lie in this cell alone, so every edge of the
   mesh has exactly two triangles. Among the triangulations left, the one of least summed squared diagonal (vertices at
   the middle of their edges, exact in integers) is taken, the first in lexicographic order on a tie.

Classic marching cubes: Lorensen and Cline, SIGGRAPH 1987. The ambiguity that rule 2 resolves: Dürst, 1988.
"""

from __future__ import annotations

import itertools
import textwrap
from functools import cache
from pathlib import Path

Triangle = tuple[int, int, int]
Loop = tuple[int, ...]

HERE = Path(__file__).resolve().parent
HEADER = HERE / "marching_cubes_tables.h"
MODULE = HERE.parent.parent / "occkernels" / "_marching_cubes_table.py"

CORNERS = list(itertools.product((0, 1), repeat=3))


def corner_index(offset: tuple[int, ...]) -> int:
    """The bit of the corner at ``(dx, dy, dz)``."""
    return 4 * offset[0] + 2 * offset[1] + offset[2]


def edge_corners(edge: int) -> tuple[int, int]:
    """Lower and upper corner of an edge."""
    axis, p, q = edge // 4, edge // 2 % 2, edge % 2
    low = [p, q]
    low.insert(axis, 0)
    high = list(low)
    high[axis] = 1
    return corner_index(tuple(low)), corner_index(tuple(high))


EDGE_OF = {frozenset(edge_corners(edge)): edge for edge in range(12)}


def edge_middle(edge: int) -> tuple[int, ...]:
    """Middle of an edge in doubled coordinates, hence in integers."""
    low, high = edge_corners(edge)
    return tuple(a + b for a, b in zip(CORNERS[low], CORNERS[high], strict=True))


def face_cycles() -> list[Loop]:
    """The four corners of each face, counter-clockwise seen from outside the cube."""
    cycles = []
    for axis, side in itertools.product(range(3), (0, 1)):
        ring = []
        for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
            offset = [0, 0, 0]
            offset[axis], offset[(axis + 1) % 3], offset[(axis + 2) % 3] = side, u, v
            ring.append(corner_index(tuple(offset)))
        cycles.append(tuple(ring) if side else tuple(reversed(ring)))
    return cycles


FACES = face_cycles()


def edges_of_face(cycle: Loop) -> list[int]:
    """The four edges of a face; edge ``i`` joins its corners ``i`` and ``i + 1``."""
    return [EDGE_OF[frozenset((cycle[i], cycle[(i + 1) % 4]))] for i in range(4)]


COPLANAR = {frozenset(pair) for cycle in FACES for pair in itertools.combinations(edges_of_face(cycle), 2)}


def face_segments(code: int, cycle: Loop) -> list[tuple[int, int]]:
    """Directed segments (from edge, to edge) on one face: one around each run of outside corners (rule 2)."""
    inside = [bool(code >> corner & 1) for corner in cycle]
    edges = edges_of_face(cycle)
    segments = []
    for i in range(4):
        if not inside[i] or inside[(i + 1) % 4]:
            continue
        end = next(j for j in range(i + 1, i + 4) if inside[(j + 1) % 4])
        segments.append((edges[end % 4], edges[i]))
    return segments


def loops(code: int) -> list[Loop]:
    """The closed loops of a case (rule 3), each starting at its smallest edge, in the order of these."""
    following = dict(segment for cycle in FACES for segment in face_segments(code, cycle))
    found = []
    while following:
        start = min(following)
        loop = [start]
        while (edge := following.pop(loop[-1])) != start:
            loop.append(edge)
        found.append(tuple(loop))
    return found


@cache
def triangulate(loop: Loop) -> tuple[int, tuple[Triangle, ...]] | None:
    """Best triangulation (cost, triangles) of a loop whose side last-first is given (rule 4), None if there is none."""
    if len(loop) == 2:
        return 0, ()
    best = None
    for k in range(1, len(loop) - 1):
        sides = [side for side in (loop[: k + 1], loop[k:]) if len(side) > 2]
        if any(frozenset((side[0], side[-1])) in COPLANAR for side in sides):
            continue
        parts = [triangulate(loop[: k + 1]), triangulate(loop[k:])]
        if None in parts:
            continue
        cost = sum(part[0] for part in parts) + sum(
            (a - b) ** 2 for side in sides for a, b in zip(edge_middle(side[0]), edge_middle(side[-1]), strict=True)
        )
        candidate = (cost, ((loop[0], loop[k], loop[-1]), *parts[0][1], *parts[1][1]))
        best = candidate if best is None else min(best, candidate)
    return best


def case_triangles(code: int) -> tuple[Triangle, ...]:
    """The triangles of one of the 256 cases, as edges, counter-clockwise seen from outside the surface."""
    result: list[Triangle] = []
    for loop in loops(code):
        best = triangulate(loop)
        if best is None:
            raise AssertionError(f"case {code}: loop {loop} has no triangulation off the cube's faces")
        result += best[1]
    return tuple(result)


def table() -> list[tuple[Triangle, ...]]:
    """All 256 cases."""
    return [case_triangles(code) for code in range(256)]


HEADER_TEXT = """\
// SPDX-License-Identifier: MIT
// Generated by generate_marching_cubes.py, which holds the derivation. Do not edit.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace occ::mc {{
OCC_BEGIN_SHARED

// Most triangles a cell can have.
constexpr int kMaxTriangles = {most};

// clang-format off
// Number of triangles of a case.
OCC_HD inline int triangle_count(unsigned code) {{
  static constexpr std::uint8_t kCounts[256] = {{
{counts}
  }};
  return kCounts[code];
}}

// The edges of a case's triangles, three a triangle.
OCC_HD inline const std::uint8_t* triangle_edges(unsigned code) {{
  static constexpr std::uint8_t kEdges[256][3 * kMaxTriangles] = {{
{edges}
  }};
  return kEdges[code];
}}
// clang-format on

OCC_END_SHARED
}}  // namespace occ::mc
"""

MODULE_TEXT = """\
# SPDX-License-Identifier: MIT
\"\"\"Generated by csrc/math/generate_marching_cubes.py, which holds the derivation. Do not edit.\"\"\"

# One word a case: three hexadecimal edge numbers a triangle, "-" where there is none.
CASES: tuple[str, ...] = tuple(
    \"\"\"
{words}
    \"\"\".split()
)
"""


def header_text(cases: list[tuple[Triangle, ...]]) -> str:
    """The C++ header."""
    counts = [str(len(case)) for case in cases]
    edges = (", ".join(str(edge) for triangle in case for edge in triangle) for case in cases)
    return HEADER_TEXT.format(
        most=max(map(len, cases)),
        counts="\n".join(f"    {', '.join(counts[i : i + 32])}," for i in range(0, 256, 32)),
        edges="\n".join(f"    {{{row or 0}}}," for row in edges),
    )


def module_text(cases: list[tuple[Triangle, ...]]) -> str:
    """The Python module."""
    words = ["".join(f"{edge:x}" for triangle in case for edge in triangle) or "-" for case in cases]
    return MODULE_TEXT.format(words=textwrap.indent(textwrap.fill(" ".join(words), 116), "    "))


def main() -> None:
    """Write both files."""
    cases = table()
    HEADER.write_text(header_text(cases), encoding="utf-8")
    MODULE.write_text(module_text(cases), encoding="utf-8")


if __name__ == "__main__":
    main()
