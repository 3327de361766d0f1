# SPDX-License-Identifier: MIT
"""Batches over the procedural pool: a pure function of seed and step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from occnets._optional import optional
from occnets.config import ConfigError
from occnets.training.config import ScanConfig, TrainConfig
from occnets.training.scan import Shape, draw_count, make_sample, make_voxel_sample

lightning = optional("lightning.pytorch", extra="train", why="to train models")
# Named so that type checkers accept a base class that is imported at run time.
_DataModule: Any = lightning.LightningDataModule

_VALIDATION_STREAM = 1
_TRAINING_STREAM = 0
_INPUTS = ("pointcloud", "partial_pointcloud", "voxels", None)


class ShapeSource(Protocol):
    """What training needs of a pool: a growing sequence of shapes."""

    def __len__(self) -> int:
        """Number of shapes at hand."""

    def __getitem__(self, index: int) -> Shape:
        """One shape."""

    def refresh(self) -> int:
        """Look for more shapes; returns the new number of shapes. Indices of known shapes never change."""


def _stack(samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    inputs, queries, occupied = (torch.from_numpy(np.stack(parts)) for parts in zip(*samples, strict=True))
    return {"inputs": inputs, "queries": queries, "occupied": occupied}


def reads_voxels(config: TrainConfig) -> bool:
    """Whether the model takes voxels instead of points.

    Raises:
        ConfigError: it takes something that the pool of procedural shapes does not have.
    """
    kind = (config.model.get("data") or {}).get("input_type", "pointcloud")
    if kind not in _INPUTS:
        known = ", ".join(str(name) for name in _INPUTS)
        raise ConfigError(f"model.data.input_type: procedural shapes can be trained with as {known}, got {kind!r}")
    return bool(kind == "voxels")


def training_batch(source: ShapeSource, config: TrainConfig, index: int) -> dict[str, Tensor]:
    """Batch number ``index`` of a run.

    Args:
        source: the pool; its first ``config.pool.held_out`` shapes are left out.
        config: sizes, disturbances and the seed.
        index: number of the batch since the start of the run.

    Returns:
        ``inputs`` (B, N, 3), or (B, V, V, V) for models that read voxels, ``queries`` (B, M, 3) and ``occupied``
        (B, M), float32.
    """
    rng = np.random.Generator(np.random.Philox(key=[config.run.seed, _TRAINING_STREAM], counter=[0, 0, index, 0]))
    batch, scan = config.batch, config.scan
    chosen = rng.integers(config.pool.held_out, len(source), batch.size)
    shapes = [source[int(i)] for i in chosen]
    if reads_voxels(config):
        return _stack([make_voxel_sample(rng, shape, scan, batch.queries) for shape in shapes])
    count = draw_count(rng, scan, min(len(shape.points) for shape in shapes))
    return _stack([make_sample(rng, shape, scan, count, batch.queries) for shape in shapes])


def validation_batches(source: ShapeSource, config: TrainConfig, shapes: int) -> Iterator[dict[str, Tensor]]:
    """The held-out shapes with 3,000 points of noise .005, all their queries, no augmentation; always the same."""
    scan = ScanConfig(
        points_fixed=1.0, noise=(0.005, 0.005), noise_heavy_fraction=0.0, outlier_fraction=0.0, uneven_fraction=0.0,
        partial_fraction=0.0, symmetry=False, scale=(1.0, 1.0), shift=0.0,
    )  # fmt: skip
    for index in range(min(shapes, config.pool.held_out, len(source))):
        rng = np.random.Generator(np.random.Philox(key=[0, _VALIDATION_STREAM], counter=[0, 0, index, 0]))
        shape = source[index]
        if reads_voxels(config):
            yield _stack([make_voxel_sample(rng, shape, scan, len(shape.queries))])
            continue
        count = min(scan.points, len(shape.points))
        yield _stack([make_sample(rng, shape, scan, count, len(shape.queries))])


class PoolSource:
    """The chunk files of ``occnets.data.pool`` as a ``ShapeSource``.

    Args:
        folder: the pool's folder.

    Raises:
        ConfigError: the folder holds no finished chunk.
    """

    def __init__(self, folder: str) -> None:
        from occnets.data.pool import ShapePool

        try:
            self._pool = ShapePool(folder)
        except FileNotFoundError as error:
            raise ConfigError(f"pool.path: {error}") from error

    def __len__(self) -> int:
        """Number of shapes in RAM."""
        return len(self._pool)

    def __getitem__(self, index: int) -> Shape:
        """One shape as arrays."""
        sample = self._pool[index]
        voxels = None if sample.voxels is None else sample.voxels.numpy()
        arrays = (sample.points, sample.normals, sample.queries, sample.occupancy)
        return Shape(*(array.numpy() for array in arrays), voxels)

    def refresh(self) -> int:
        """Load chunks that were finished since."""
        return int(self._pool.refresh())


class StepLoader:
    """The endless sequence of steps, ``batch.accumulate`` batches each, from ``start`` on.

    Lightning takes it as a data loader.

    Args:
        source: the pool.
        config: the run.
        start: number of the first step.
    """

    def __init__(self, source: ShapeSource, config: TrainConfig, start: int = 0) -> None:
        self.source = source
        self.config = config
        self.start = start

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the batches of one step after the other; looks for new chunks of the pool now and then."""
        looked = time.monotonic()
        interval = self.config.pool.refresh_seconds
        index = self.start
        while True:
            if interval and time.monotonic() - looked > interval:
                self.source.refresh()
                looked = time.monotonic()
            count = self.config.batch.accumulate
            yield [training_batch(self.source, self.config, index * count + k) for k in range(count)]
            index += 1

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step number, which Lightning keeps, says it all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of ``state_dict``; its presence tells Lightning that the loader can be resumed."""


class PoolDataModule(_DataModule):  # type: ignore[misc]
    """The pool as a Lightning data module.

    Args:
        config: the run.
        source: the pool, or None to open ``config.pool.path``.
    """

    def __init__(self, config: TrainConfig, source: ShapeSource | None = None) -> None:
        super().__init__()
        self.config = config
        self.source = source if source is not None else PoolSource(config.pool.path)

    def train_dataloader(self) -> StepLoader:
        """Batches from the trainer's present step on."""
        return StepLoader(self.source, self.config, self.trainer.global_step)


def enough_shapes(source: ShapeSource, config: TrainConfig) -> bool:
    """Whether the pool has the shapes that the run asks for before its first step.

    Raises:
        ConfigError: the model reads voxels and the pool has none.
    """
    if len(source) and reads_voxels(config) and source[0].voxels is None:
        raise ConfigError(
            "pool.path: the model reads voxels and the pool has none; write one with "
            "`python -m occnets.data.pool FOLDER --voxels 32`"
        )
    return len(source) >= config.pool.held_out + max(config.pool.minimum, 1)
