# SPDX-License-Identifier: MIT
"""Makes ``teapot.ply``: a teapot described by formulas, scanned with noise.

    python examples/make_example.py [--points 3000] [--noise 0.005] [--seed 0] [--output examples/teapot.ply]

Writes only points, no normals: what a depth camera would give. Units are millimetres, y is up, and the origin is the
corner of a table, so that the cloud sits somewhere in space as real scans do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import occkernels
from occnets.io import Geometry, PointCloud, sample_surface, write_mesh

WIDTH = 240.0  # millimetres from the handle to the tip of the spout
PLACE = np.array([640.0, 0.0, 415.0])  # where on the table it stands
LOW, HIGH = np.array([-1.9, -0.9, -1.2]), np.array([1.9, 1.4, 1.2])  # room around the body of radius 1

HANDLE = ((-0.80, 0.42), (-1.55, 0.75), (-1.80, -0.30), (-0.78, -0.34))
SPOUT = ((0.70, -0.32), (1.20, -0.30), (1.20, 0.40), (1.62, 0.58))


def bezier(corners: tuple[tuple[float, float], ...], count: int) -> NDArray[np.float64]:
    """``count`` points (x, y, 0) of a cubic Bézier curve."""
    t = np.linspace(0.0, 1.0, count)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return np.column_stack([weights @ np.array(corners), np.zeros(count)])


def tube(p: NDArray, path: NDArray, radii: NDArray) -> NDArray[np.float64]:
    """Distance to a chain of capsules whose radius changes along the path."""
    best = np.full(len(p), np.inf)
    for a, b, ra, rb in zip(path[:-1], path[1:], radii[:-1], radii[1:], strict=True):
        along = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0.0, 1.0)
        best = np.minimum(best, np.linalg.norm(p - a - along[:, None] * (b - a), axis=1) - ra - along * (rb - ra))
    return best


def ellipsoid(p: NDArray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> NDArray[np.float64]:
    """Approximate distance to an ellipsoid, exact on its surface."""
    scaled = (p - np.array(centre)) / np.array(radii)
    length = np.linalg.norm(scaled, axis=1)
    return length * (length - 1.0) / np.maximum(np.linalg.norm(scaled / np.array(radii), axis=1), 1e-9)


def ring(p: NDArray, height: float, radius: float, thickness: float) -> NDArray[np.float64]:
    """Distance to a horizontal torus."""
    return np.hypot(np.hypot(p[:, 0], p[:, 2]) - radius, p[:, 1] - height) - thickness


def blend(a: NDArray, b: NDArray, width: float) -> NDArray[np.float64]:
    """Union with a fillet (polynomial smooth minimum)."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0.0, 1.0)
    return b + (a - b) * h - width * h * (1.0 - h)


def teapot(p: NDArray) -> NDArray[np.float64]:
    """Signed distance of (N, 3) points to the teapot, about exact near the surface, negative inside."""
    body = ellipsoid(p, (0.0, 0.0, 0.0), (1.0, 0.78, 1.0))
    body = -blend(-body, p[:, 1] + 0.62, 0.08)  # a flat bottom
    shape = blend(body, ring(p, -0.63, 0.55, 0.075), 0.08)
    shape = blend(shape, tube(p, bezier(SPOUT, 20), np.linspace(0.30, 0.115, 20)), 0.16)
    shape = blend(shape, tube(p, bezier(HANDLE, 24), np.full(24, 0.115)), 0.10)
    shape = blend(shape, ring(p, 0.60, 0.58, 0.07), 0.05)
    shape = blend(shape, ellipsoid(p, (0.0, 0.58, 0.0), (0.54, 0.30, 0.54)), 0.05)
    return blend(shape, ellipsoid(p, (0.0, 1.00, 0.0), (0.17, 0.15, 0.17)), 0.12)


def teapot_mesh(cells: int = 160) -> Geometry:
    """The exact surface as a mesh, millimetres, standing on y = 0."""
    step = (HIGH[0] - LOW[0]) / cells
    axes = [np.arange(low, high + step / 2, step) for low, high in zip(LOW, HIGH, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    field = -teapot(nodes.reshape(-1, 3)).reshape(nodes.shape[:3])
    mesh = occkernels.marching_cubes(torch.from_numpy(field), 0.0)
    points = LOW + step * mesh.vertices.double().numpy()
    low, high = points.min(axis=0), points.max(axis=0)
    scale = WIDTH / (high[0] - low[0])
    return Geometry((points - [0.0, low[1], 0.0]) * scale + PLACE, faces=mesh.faces.numpy())


def main() -> None:
    """Write the scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=3000)
    parser.add_argument("--noise", type=float, default=0.005, help="standard deviation as a share of the width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "teapot.ply")
    parser.add_argument("--exact", type=Path, help="also write the exact mesh here")
    args = parser.parse_args()
    mesh = teapot_mesh()
    points = sample_surface(mesh, args.points, args.seed).points
    points = points + np.random.default_rng(args.seed + 1).normal(scale=args.noise * WIDTH, size=points.shape)
    write_mesh(args.output, PointCloud(np.round(points, 3)))
    if args.exact:
        write_mesh(args.exact, mesh)


if __name__ == "__main__":
    main()
