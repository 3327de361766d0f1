# SPDX-License-Identifier: MIT
"""Reconstruction of turned shapes: canonical planes against planes that the network chooses.

The rotation experiments of DPConvONet (Lionar et al., WACV 2021): for every range of degrees each shape is turned once,
by R = Rx Ry Rz with three angles uniform in [0, degrees], encoded as it then lies, and compared in that position. The
original's ranges are 0, 15, 30, 45 and 60. Shapes are procedural solids (``--seed`` onwards, not those of the training
pools), or meshes (``--meshes FOLDER``, closed, any format that ``occnets`` reads).

    python benchmarks/rotations.py canonical=out/convonet-3plane dynamic=out/dpconvonet --shapes 20

With ``--degrees 0`` it measures any model on shapes that no training saw, with and without ``--optimize``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from occnets.data.procedural import random_shape
from occnets.reconstruct import EmptyReconstructionError, Reconstructor

Array = NDArray[np.float64]

DEGREES = (0.0, 15.0, 30.0, 45.0, 60.0)
SAMPLES = 20_000
HALF_BOX = 0.55


@dataclass(frozen=True)
class Target:
    """A shape to reconstruct, longest side 1, centred at the origin.

    Attributes:
        points: (S, 3) surface samples.
        inside: maps points (N, 3) to occupancy (N,) bool.
    """

    points: Array
    inside: Callable[[Array], NDArray[np.bool_]]


def rotation(angles: Sequence[float]) -> Array:
    """R = Rx (Ry Rz) of three angles in radians, right-handed; row vectors are turned by ``p @ R``."""
    matrices = []
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        matrix = np.eye(3)
        matrix[i, i] = matrix[j, j] = c
        matrix[i, j], matrix[j, i] = -s, s
        matrices.append(matrix)
    return np.asarray(matrices[0] @ (matrices[1] @ matrices[2]))


def procedural(seed: int) -> Target:
    """The procedural solid of a seed."""
    solid = random_shape(seed)
    points, _ = solid.surface(SAMPLES, seed)

    def inside(query: Array) -> NDArray[np.bool_]:
        return np.asarray(solid.occupancy(torch.from_numpy(query.astype(np.float32))).numpy())

    return Target(points.double().numpy(), inside)


def from_mesh(path: Path) -> Target:
    """A closed mesh, centred and scaled. Needs trimesh with a ray engine."""
    import trimesh

    mesh = trimesh.load_mesh(path)
    low, high = mesh.bounds
    mesh.apply_translation(-(low + high) / 2)
    mesh.apply_scale(1.0 / (high - low).max())
    points, _ = trimesh.sample.sample_surface(mesh, SAMPLES, seed=0)
    return Target(np.asarray(points), lambda query: np.asarray(mesh.contains(query)))


def measure(
    model: Reconstructor,
    target: Target,
    turn: Array,
    points: int,
    noise: float,
    rng: np.random.Generator,
    **options: Any,
) -> dict[str, float]:
    """Overlap and Chamfer distance of one turned shape.

    Args:
        model: reconstructs.
        target: the shape as it was.
        turn: (3, 3), applied to row vectors.
        points: size of the cloud.
        noise: standard deviation of its Gaussian noise.
        rng: draws points and noise.
        **options: of `occnets.reconstruct.ReconstructionConfig`.

    Returns:
        ``iou`` over uniform points of the padded cube that the turned shape's box is scaled to; ``chamfer``, ten times
        the mean of accuracy and completeness in units of the longest side of the unturned shape. A network that finds
        no surface has an overlap of 0 and no Chamfer distance (NaN).
    """
    surface = target.points @ turn
    cloud = surface[rng.choice(len(surface), points, replace=False)] + rng.normal(0.0, noise, (points, 3))
    try:
        made = model.reconstruct(cloud, **options).mesh
    except EmptyReconstructionError:
        return {"iou": 0.0, "chamfer": float("nan")}
    low, high = surface.min(axis=0), surface.max(axis=0)
    query = (low + high) / 2 + rng.uniform(-HALF_BOX, HALF_BOX, (SAMPLES, 3)) * (high - low).max()
    truth, found = target.inside(query @ turn.T), np.asarray(made.contains(query))
    from trimesh.sample import sample_surface

    samples = np.asarray(sample_surface(made, SAMPLES, seed=1)[0])
    accuracy, completeness = cKDTree(surface).query(samples)[0], cKDTree(samples).query(surface)[0]
    return {
        "iou": float((truth & found).sum() / max(1, (truth | found).sum())),
        "chamfer": float(5.0 * (accuracy.mean() + completeness.mean())),
    }


def compare(
    models: Mapping[str, Reconstructor],
    targets: Iterable[Target],
    degrees: Sequence[float] = DEGREES,
    *,
    points: int = 3000,
    noise: float = 0.005,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Mean measures of every model for every range of degrees; all see the same turns and clouds.

    Args:
        models: by name.
        targets: the shapes.
        degrees: upper ends of the angles' ranges.
        points, noise: of the clouds.
        seed: of turns and clouds.
        **options: see `measure`.

    Returns:
        A row for each model and range: ``model``, ``degrees``, ``iou``, ``chamfer`` (over the shapes with a surface)
        and ``empty``, the number of shapes without.
    """
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for number, target in enumerate(targets):
        shares = np.random.default_rng([seed, number]).random(3)
        for most in degrees:
            turn = rotation(np.radians(most) * shares)
            for name, model in models.items():
                rng = np.random.default_rng([seed, number, 1])
                values = measure(model, target, turn, points, noise, rng, **options)
                found.setdefault((name, most), []).append(values)
    rows = []
    for (name, most), values in found.items():
        chamfer = np.array([value["chamfer"] for value in values])
        rows.append(
            {
                "model": name,
                "degrees": most,
                "iou": float(np.mean([value["iou"] for value in values])),
                "chamfer": float(np.nanmean(chamfer)) if np.isfinite(chamfer).any() else float("nan"),
                "empty": int(np.isnan(chamfer).sum()),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each model, a column for each range."""
    degrees = sorted({row["degrees"] for row in rows})
    lines = ["| IoU / Chamfer | " + " | ".join(f"0–{d:g}°" if d else "0°" for d in degrees) + " |"]
    lines.append("|---" * (len(degrees) + 1) + "|")
    for name in dict.fromkeys(row["model"] for row in rows):
        by = {row["degrees"]: row for row in rows if row["model"] == name}
        cells = [f"{by[d]['iou']:.3f} / {by[d]['chamfer']:.4f}" for d in degrees]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; ``--json`` also writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="+", metavar="NAME=MODEL", help="bundled model, model folder or weights file")
    add("--degrees", type=float, nargs="+", default=list(DEGREES))
    add("--shapes", type=int, default=20, help="number of procedural solids")
    add("--seed", type=int, default=10_000_000, help="seed of the first solid")
    add("--meshes", type=Path, help="measure the meshes of this folder instead")
    add("--points", type=int, default=3000)
    add("--noise", type=float, default=0.005)
    add("--resolution", type=int, default=64)
    add("--fit", action="store_true", help="move the surface onto the points afterwards")
    add("--ensemble", type=int, default=1, help="orientations averaged by the reconstruction")
    add("--optimize", action="store_true", help="adapt the network to each cloud first")
    add("--json", type=Path)
    args = parser.parse_args(argv)
    pairs = [word.partition("=") for word in args.models]
    models = {name: Reconstructor.from_pretrained(model or name) for name, _, model in pairs}
    if args.meshes:
        targets = [from_mesh(path) for path in sorted(args.meshes.iterdir())]
    else:
        targets = [procedural(args.seed + number) for number in range(args.shapes)]
    options = {"resolution": args.resolution, "fit": args.fit, "ensemble": args.ensemble}
    if args.optimize:
        options["optimize"] = "default"
    rows = compare(models, targets, args.degrees, points=args.points, noise=args.noise, **options)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
