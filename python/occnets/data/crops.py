# SPDX-License-Identifier: MIT
"""Pools of crops: cubes cut out of procedural rooms and solids, to train networks that see one window of a scene.

``python -m occnets.data.crops OUT --count 6000`` writes chunk files like those of ``occnets.data.pool``, so that
``occnets train`` reads them. A crop is scaled to the cube [-.5, .5]^3; surfaces run through its faces. Rooms are seen
from scanners that stand in them, so that the far sides of walls and what furniture hides is missing; queries keep
away from the faces of the cube, beyond which nothing is known.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from occnets.data.draw import Draw
from occnets.data.pool import UNIT, quantise, save_rows
from occnets.data.procedural import random_shape
from occnets.data.rooms import PlanConfig, make_floor

Array = NDArray[np.float64]
Truth = Callable[[Array], NDArray[np.bool_]]

INNER = 0.42
"""Half the side of the cube that queries lie in."""
_MIX = ((0.005, 0.15), (0.015, 0.35), (0.04, 0.2))  # spread around the surface and share of the queries


@dataclass(frozen=True)
class CropConfig:
    """Sizes of a pool of crops.

    Attributes:
        surface, queries: points of a crop.
        fewest: crops with fewer different surface points are left out; others are filled up by repetition.
        room_share: share of the crops that come from rooms; the others come from solids.
        room_side: range of the side of a crop of a room, metres (log-uniform).
        solid_side: the same of a solid, whose longest side is 1.
        per_room, per_solid: crops from one floor plan or solid.
        room_points, solid_points: surface points of a room or a solid that crops are cut from.
        chunk: crops in a file.
    """

    surface: int = 6000
    queries: int = 8192
    fewest: int = 1500
    room_share: float = 0.6
    room_side: tuple[float, float] = (1.2, 3.6)
    solid_side: tuple[float, float] = (0.3, 1.0)
    per_room: int = 40
    per_solid: int = 8
    room_points: int = 90_000
    solid_points: int = 24_000
    chunk: int = 250


def crop_row(
    cloud: tuple[Array, Array], truth: Truth, cube: tuple[Array, float], rng: np.random.Generator, sizes: CropConfig
) -> dict[str, Any] | None:
    """Arrays of one crop, keyed as a chunk of ``occnets.data.pool``; None where there are too few points.

    Args:
        cloud: surface points (N, 3) and normals, of which those in the cube are taken.
        truth: occupancy of points.
        cube: centre (3,) and side.
        rng: of the choices.
        sizes: of the crop.
    """
    (points, normals), (center, side) = cloud, cube
    within = np.flatnonzero((np.abs(points - center) < side / 2).all(axis=1))
    if len(within) < sizes.fewest:
        return None
    rng.shuffle(within)
    chosen = np.resize(within, sizes.surface)
    local = (points[chosen] - center) / side
    near = local[(np.abs(local) < INNER).all(axis=1)]
    if len(near) < sizes.fewest // 4:
        return None
    parts = [
        near[rng.integers(len(near), size=round(share * sizes.queries))]
        + spread * rng.standard_normal((round(share * sizes.queries), 3))
        for spread, share in _MIX
    ]
    left = sizes.queries - sum(map(len, parts))
    asked = np.concatenate([*parts, rng.uniform(-INNER, INNER, (left, 3))]).clip(-INNER, INNER)
    queries = quantise(torch.from_numpy(asked[rng.permutation(len(asked))]))
    return {
        "points": quantise(torch.from_numpy(local)),
        "normals": np.round(normals[chosen] * 127).astype(np.int8),
        "queries": queries,
        "occupancy": np.packbits(truth(queries.astype(np.float64) * UNIT * side + center)),
    }


def room_crops(seed: int, sizes: CropConfig) -> list[dict[str, Any]]:
    """Crops of the rooms number ``seed``."""
    draw = Draw(np.random.default_rng([seed, 5]))
    plan = PlanConfig(
        rooms=draw.pick([1, 1, 2, 3]),
        slab=draw.uniform(0.12, 0.3),
        wall=(0.1, 0.3),
        ceiling=draw.chance(0.4),
        furniture=(2, 6),
    )
    scene = make_floor(seed, plan)
    cloud = scene.scan(sizes.room_points * len(scene.rooms), per_room=draw.integer(2, 5), seed=seed)
    return _cut(cloud, scene.occupancy, sizes.room_side, sizes.per_room, draw, sizes)


def solid_crops(seed: int, sizes: CropConfig) -> list[dict[str, Any]]:
    """Crops of the procedural solid number ``seed``."""
    draw = Draw(np.random.default_rng([seed, 6]))
    solid = random_shape(seed)
    points, normals = (value.double().numpy() for value in solid.surface(sizes.solid_points, seed))

    def truth(where: Array) -> NDArray[np.bool_]:
        return solid.occupancy(torch.from_numpy(where.astype(np.float32))).numpy()

    return _cut((points, normals), truth, sizes.solid_side, sizes.per_solid, draw, sizes)


def _cut(
    cloud: tuple[Array, Array], truth: Truth, sides: tuple[float, float], count: int, draw: Draw, sizes: CropConfig
) -> list[dict[str, Any]]:
    found = []
    for _ in range(count):
        side = draw.log(*sides)
        center = cloud[0][draw.integer(0, len(cloud[0]) - 1)] + draw.vector(0.12 * side)
        row = crop_row(cloud, truth, (center, side), draw.generator, sizes)
        if row is not None:
            found.append(row)
    return found


def write_crops(folder: str | Path, count: int, seed: int = 0, sizes: CropConfig | None = None) -> Iterator[int]:
    """Write the missing chunks of a pool of ``count`` crops; yields the number of finished crops as it grows.

    Raises:
        ValueError: ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f"write_crops: count must be positive, got {count}")
    sizes, folder = sizes or CropConfig(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-count // sizes.chunk)):
        path = folder / f"chunk-{number:05d}.npz"
        wanted = min(sizes.chunk, count - number * sizes.chunk)
        if not path.exists():
            save_rows(path, _rows(wanted, seed + 1000 * number, sizes))
        yield number * sizes.chunk + wanted


def _rows(count: int, seed: int, sizes: CropConfig) -> list[dict[str, Any]]:
    """``count`` crops, by turns of rooms and solids, so that the shares come out in every chunk."""
    rooms = round(count * sizes.room_share)
    rows: list[dict[str, Any]] = []
    for family, wanted, make in (("room", rooms, room_crops), ("solid", count - rooms, solid_crops)):
        found = 0
        source = seed
        while found < wanted:
            fresh = make(source, sizes)[: wanted - found]
            rows += [{**row, "seeds": np.int64(source), "families": f"{family} crop"} for row in fresh]
            found += len(fresh)
            source += 1
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; progress goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m occnets.data.crops", description="Write a pool of crops.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = time.monotonic()
    for done in write_crops(options.folder, options.count, options.seed):
        print(f"{done}/{options.count} crops, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
