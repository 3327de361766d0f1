# SPDX-License-Identifier: MIT
"""Pools of pre-generated shapes: worker processes write chunk files, training reads them from RAM.

``python -m occnets.data.pool OUT --count 12000 --seed 0 --workers 2`` writes ``OUT/chunk-00000.npz`` and so on; chunk i
holds the shapes of seeds ``seed + i * chunk`` onwards, so an interrupted run resumes by skipping existing files.

Arrays of a chunk of n shapes: ``points`` (n, S, 3) and ``queries`` (n, Q, 3) int16 in units of ``UNIT``, ``normals``
(n, S, 3) int8 in units of 1/127, ``occupancy`` (n, ceil(Q / 8)) uint8 (numpy.packbits, exact at the rounded queries),
``seeds`` (n,) int64 and ``families`` (n,) fixed-width strings; with ``--voxels V`` also ``voxels`` (n, V^3 / 8) uint8.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from occnets.data.procedural import ShapeConfig, ShapeSample, query_points, random_shape

UNIT = 1.0 / 32767 * 0.75
_ARRAYS = ("points", "normals", "queries", "occupancy", "seeds", "families")
_OPTIONAL = ("voxels",)


@dataclass(frozen=True)
class PoolConfig:
    """Sizes of a pool: surface points, queries, voxels along a side (0 for none) per shape; shapes per chunk file."""

    surface: int = 6000
    queries: int = 8192
    chunk: int = 500
    voxels: int = 0


def quantise(points: Tensor) -> NDArray[np.int16]:
    """Coordinates in units of ``UNIT``."""
    return np.asarray(torch.round(points / UNIT).clamp(-32767, 32767).to(torch.int16).numpy())


def generate(seed: int, sizes: PoolConfig, config: ShapeConfig | None = None) -> dict[str, Any]:
    """Compact arrays of ``random_shape(seed)``, keyed like a chunk without the leading axis."""
    solid = random_shape(seed, config)
    points, normals = solid.surface(sizes.surface, seed)
    queries = quantise(query_points(points, sizes.queries, seed))
    occupied = solid.occupancy(torch.from_numpy(queries.astype(np.float32)) * UNIT)
    arrays = {
        "points": quantise(points),
        "normals": torch.round(normals * 127).to(torch.int8).numpy(),
        "queries": queries,
        "occupancy": np.packbits(occupied.numpy()),
        "seeds": np.int64(seed),
        "families": solid.family,
    }
    if sizes.voxels:
        arrays["voxels"] = np.packbits(solid.occupancy(voxel_centers(sizes.voxels)).numpy())
    return arrays


def voxel_centers(side: int) -> Tensor:
    """Centres (side^3, 3) of the cells of the unit cube, the last coordinate fastest."""
    axis = (torch.arange(side) + 0.5) / side - 0.5
    return torch.cartesian_prod(axis, axis, axis)


def write_chunk(path: Path, seeds: range, sizes: PoolConfig, config: ShapeConfig | None = None) -> int:
    """Generate the shapes of ``seeds`` and write them to ``path`` in one step (temporary name, then rename)."""
    return save_rows(path, [generate(seed, sizes, config) for seed in seeds])


def save_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the shapes ``rows``, as :func:`generate` returns them, to the chunk file ``path``; returns their number."""
    arrays: dict[str, Any] = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, **arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(rows)


def write_pool(
    folder: str | Path,
    count: int,
    seed: int = 0,
    *,
    workers: int = 1,
    sizes: PoolConfig | None = None,
    config: ShapeConfig | None = None,
) -> Iterator[int]:
    """Write the missing chunks of a pool; yields the number of finished shapes as it grows.

    Args:
        folder: created when missing. Existing chunk files are kept and counted.
        count: number of shapes; the last chunk may be shorter.
        seed: seed of the first shape.
        workers: processes; 1 works in this one.
        sizes: of every shape.
        config: mixture of the shapes.

    Raises:
        ValueError: ``count`` or ``workers`` is not positive.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"write_pool: count and workers must be positive, got {count} and {workers}")
    sizes = sizes or PoolConfig()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, sizes.chunk)
    jobs = {folder / f"chunk-{i:05d}.npz": (s, min(s + sizes.chunk, count)) for i, s in enumerate(starts)}
    done = sum(stop - start for path, (start, stop) in jobs.items() if path.exists())
    yield done
    missing = {path: range(seed + start, seed + stop) for path, (start, stop) in jobs.items() if not path.exists()}
    if workers == 1:
        for path, seeds in missing.items():
            done += write_chunk(path, seeds, sizes, config)
            yield done
        return
    # spawn: a forked child would inherit the parent's thread pools in an undefined state.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as executor:
        waiting = {executor.submit(write_chunk, path, seeds, sizes, config) for path, seeds in missing.items()}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                done += sum(future.result() for future in finished)
                yield done
        except BaseException:
            # Without this, leaving the executor would first work through every chunk still waiting.
            executor.shutdown(wait=False, cancel_futures=True)
            raise


class ShapePool:
    """The finished chunks of a pool folder in RAM, in their compact types.

    Args:
        folder: written by :func:`write_pool`; chunks may still be arriving, see :meth:`refresh`.
        limit: load at most this many shapes.

    Raises:
        FileNotFoundError: the folder holds no finished chunk.
    """

    def __init__(self, folder: str | Path, limit: int | None = None) -> None:
        self.folder, self.limit = Path(folder), limit
        self._chunks: dict[str, dict[str, NDArray[Any]]] = {}
        self._starts = np.zeros(1, dtype=np.int64)
        if self.refresh() == 0:
            raise FileNotFoundError(
                f"ShapePool: no chunk-*.npz in {folder}; write them with python -m occnets.data.pool"
            )

    def refresh(self) -> int:
        """Load chunks that appeared since; returns the number of shapes now held."""
        for path in sorted(self.folder.glob("chunk-*.npz")):
            if path.name not in self._chunks and (self.limit is None or len(self) < self.limit):
                with np.load(path, allow_pickle=False) as archive:
                    names = [*_ARRAYS, *(name for name in _OPTIONAL if name in archive)]
                    self._chunks[path.name] = {name: archive[name] for name in names}
                sizes = [len(chunk["seeds"]) for chunk in self._chunks.values()]
                self._starts = np.concatenate([[0], np.cumsum(sizes)])
        return len(self)

    def __len__(self) -> int:
        total = int(self._starts[-1])
        return total if self.limit is None else min(total, self.limit)

    def _row(self, index: int) -> tuple[dict[str, NDArray[Any]], int]:
        if not 0 <= index < len(self):
            raise IndexError(f"ShapePool: index must be in [0, {len(self)}), got {index}")
        at = int(np.searchsorted(self._starts, index, side="right")) - 1
        return list(self._chunks.values())[at], index - int(self._starts[at])

    def family(self, index: int) -> str:
        """Recipe name of shape ``index``."""
        chunk, row = self._row(index)
        return str(chunk["families"][row])

    def seed(self, index: int) -> int:
        """Seed of shape ``index``: ``random_shape(seed)`` is its solid."""
        chunk, row = self._row(index)
        return int(chunk["seeds"][row])

    def __getitem__(self, index: int) -> ShapeSample:
        """All arrays of shape ``index`` in float32."""
        chunk, row = self._row(index)
        queries = torch.from_numpy(chunk["queries"][row].astype(np.float32)) * UNIT
        voxels = None
        if "voxels" in chunk:
            bits = np.unpackbits(chunk["voxels"][row]).astype(bool)
            voxels = torch.from_numpy(bits).view(3 * (round(len(bits) ** (1 / 3)),))
        return ShapeSample(
            torch.from_numpy(chunk["points"][row].astype(np.float32)) * UNIT,
            torch.from_numpy(chunk["normals"][row].astype(np.float32)) / 127,
            queries,
            torch.from_numpy(np.unpackbits(chunk["occupancy"][row], count=queries.shape[0]).astype(bool)),
            voxels,
        )

    def draw(self, batch: int, surface: int, queries: int, generator: np.random.Generator) -> ShapeSample:
        """A random batch: ``surface`` points and ``queries`` queries of each of ``batch`` shapes, without repetition.

        Returns:
            A sample whose arrays carry a leading batch axis.
        """
        columns: list[list[NDArray[Any]]] = [[], [], [], []]
        for index in generator.integers(len(self), size=batch):
            chunk, row = self._row(int(index))
            total, asked = chunk["points"].shape[1], chunk["queries"].shape[1]
            if surface > total or queries > asked:
                raise ValueError(
                    f"ShapePool.draw: shapes hold {total} surface points and {asked} queries, "
                    f"got {surface} and {queries}; ask for fewer or write a larger pool"
                )
            # Points of a shape are in random order: a window with a random start is a random subset.
            keep = (np.arange(surface) + generator.integers(total)) % total
            ask = (np.arange(queries) + generator.integers(asked)) % asked
            columns[0].append(chunk["points"][row][keep])
            columns[1].append(chunk["normals"][row][keep])
            columns[2].append(chunk["queries"][row][ask])
            columns[3].append(np.unpackbits(chunk["occupancy"][row], count=asked)[ask])
        points, normals, query, occupancy = (torch.from_numpy(np.stack(column)) for column in columns)
        return ShapeSample(points.float() * UNIT, normals.float() / 127, query.float() * UNIT, occupancy.bool())


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; progress goes to stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m occnets.data.pool", description="Write a pool of procedural shapes."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--surface", type=int, default=PoolConfig.surface)
    parser.add_argument("--queries", type=int, default=PoolConfig.queries)
    parser.add_argument("--voxels", type=int, default=0, help="voxels along a side, a multiple of 2; 0 for none")
    parser.add_argument("--chunk", type=int, default=PoolConfig.chunk, help="shapes per file")
    options = parser.parse_args(arguments)
    # Shapes are small: one process a core is faster than threads within a shape.
    torch.set_num_threads(1)
    sizes = PoolConfig(options.surface, options.queries, options.chunk, options.voxels)
    start, first = time.monotonic(), None
    for done in write_pool(options.folder, options.count, options.seed, workers=options.workers, sizes=sizes):
        first = done if first is None else first
        rate = (done - first) / max(time.monotonic() - start, 1e-9)
        left = f", {(options.count - done) / rate / 60:.1f} min left" if rate > 0 else ""
        print(f"{done}/{options.count} shapes, {rate:.1f}/s{left}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
