# SPDX-License-Identifier: MIT
"""``occnets render``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from occnets.io import Geometry, PointCloud
    from occnets.render import View

# Scanners and surveyors count height along z, the shape collections and glTF along y.
_Z_UP = {".las", ".laz", ".pcd", ".xyz", ".asc", ".txt", ".csv", ".pts", ".pwn"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "render",
        help="picture of meshes and clouds, side by side",
        description="Draw meshes and point clouds side by side with one camera, without a display.",
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="+", metavar="FILE", help="meshes or clouds, in one frame")
    add("-o", "--output", type=Path, required=True, help="picture to write (.png)")
    add("--size", type=int, default=640, help="side of a panel in pixels [%(default)s]")
    add("--azimuth", type=float, default=35.0, help="degrees to the right of the front [%(default)s]")
    add("--elevation", type=float, default=22.0, help="degrees above the horizon [%(default)s]")
    add("--up", choices=("x", "y", "z"), help="axis that points up [by the first input's format]")
    parser.set_defaults(run=run)


def make_view(up: str | None, path: Path, **angles: float) -> View:
    from occnets.render import View

    return View(up=up or ("z" if path.suffix.lower() in _Z_UP else "y"), **angles)


def run(args: argparse.Namespace) -> int:
    """``occnets render``."""
    from occnets.io import atomic_write, check_writable, read_geometry
    from occnets.render import render_png

    check_writable(args.output, (".png",))
    shapes: list[Geometry | PointCloud] = [read_geometry(path) for path in args.inputs]
    view = make_view(args.up, args.inputs[0], azimuth=args.azimuth, elevation=args.elevation)
    picture = render_png(shapes, size=args.size, view=view)  # type: ignore[arg-type]
    with atomic_write(args.output) as stream:
        stream.write(picture)
    return 0
