# SPDX-License-Identifier: MIT
"""Evaluates an occupancy field on a regular lattice, spending the network only where the surface may be."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Decode = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]

_COARSE_FACTOR = 4
_SMALLEST_COARSE = 16  # a coarser first lattice would miss whole parts
_SMALLEST_CHUNK = 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lattice:
    """The values of a field on a lattice.

    Attributes:
        values: (R+1, R+1, R+1) float32 logits, axes x, y, z; node i lies at ``box * (i / R - 0.5)``.
        evaluated: number of nodes the network was asked for; the others carry the nearest coarse value.
        box: side of the cube.
    """

    values: Tensor
    evaluated: int
    box: float


def evaluate_lattice(
    decode: Decode,
    resolution: int,
    box: float,
    level: float,
    *,
    near: Tensor | None = None,
    chunk: int = 100_000,
    progress: Progress | None = None,
) -> Lattice:
    """Evaluate ``decode`` on (resolution + 1)³ nodes of the centred cube of side ``box``.

    Where ``resolution`` allows (a multiple of 4 or 2, and large enough), a coarse lattice comes first. Then only
    nodes are evaluated in cells of it that see a change of sign or touch one that does, that hold a point of ``near``
    (so that parts thinner than a coarse cell are found), or into which the surface turns out to grow. All other
    nodes take the nearest coarse value, which lies on the same side of ``level``.

    Args:
        decode: maps queries (M, 3) float32 to logits (M,); called with at most ``chunk`` queries.
        resolution: cells along a side.
        box: side of the cube, normalised units.
        level: the surface is where logits cross this value.
        near: (N, 3) points near the surface; its device is where queries are made (default CPU).
        chunk: queries a call; halved and retried when the device runs out of memory.
        progress: called with (nodes done, nodes known to be needed).

    Raises:
        ValueError: ``resolution`` below 2, or ``chunk`` below 1.
    """
    if resolution < 2 or chunk < 1:
        raise ValueError(
            f"evaluate_lattice: `resolution` must be at least 2 and `chunk` at least 1, got {resolution} and {chunk}"
        )
    device = torch.device("cpu") if near is None else near.device
    steps = torch.arange(resolution + 1, dtype=torch.float64, device=device)
    axis = (box * (steps / resolution - 0.5)).float()
    run = _Evaluator(decode, axis, chunk, progress)
    step = _coarse_step(resolution)
    if step == 1:
        everywhere = torch.ones((resolution + 1,) * 3, dtype=torch.bool, device=device)
        values = torch.empty(everywhere.shape, device=device)
        run.fill(values, everywhere)
        return Lattice(values, run.done, box)
    return Lattice(_coarse_to_fine(run, step, level, near, box), run.done, box)


def _coarse_step(resolution: int) -> int:
    for step in (_COARSE_FACTOR, 2):
        if resolution % step == 0 and resolution // step >= _SMALLEST_COARSE:
            return step
    return 1


class _Evaluator:
    """Asks the network for masked nodes, chunk by chunk, and counts."""

    def __init__(self, decode: Decode, axis: Tensor, chunk: int, progress: Progress | None) -> None:
        self.decode, self.axis, self.chunk, self.progress = decode, axis, chunk, progress
        self.done = 0

    def fill(self, values: Tensor, mask: Tensor) -> None:
        """Write the field's values into ``values`` where ``mask``; both are node lattices, perhaps coarse ones."""
        stride = (len(self.axis) - 1) // (mask.shape[0] - 1)
        nodes = mask.flatten().nonzero().flatten()
        flat, size = values.view(-1), mask.shape[0]
        total = self.done + len(nodes)
        start = 0
        while start < len(nodes):
            part = nodes[start : start + self.chunk]
            index = torch.stack([part // (size * size), part // size % size, part % size], dim=1)
            try:
                flat[part] = self.decode(self.axis[index * stride]).to(flat.dtype)
            except torch.OutOfMemoryError:
                if self.chunk <= _SMALLEST_CHUNK:
                    raise
                self.chunk = max(_SMALLEST_CHUNK, self.chunk // 2)
                _log.info("out of device memory: continuing with %d queries at a time", self.chunk)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
                continue
            start += len(part)
            self.done += len(part)
            if self.progress is not None:
                self.progress(self.done, total)


def _coarse_to_fine(run: _Evaluator, step: int, level: float, near: Tensor | None, box: float) -> Tensor:
    device, resolution = run.axis.device, len(run.axis) - 1
    cells = resolution // step
    coarse = torch.empty((cells + 1,) * 3, device=device)
    run.fill(coarse, torch.ones_like(coarse, dtype=torch.bool))
    nearest = torch.arange(resolution + 1, device=device).add(step // 2).div(step, rounding_mode="floor")
    values = coarse[nearest][:, nearest][:, :, nearest].contiguous()
    known = torch.zeros(values.shape, dtype=torch.bool, device=device)
    active = _dilate(_mixed_cells(coarse > level, 1))
    if near is not None and len(near):
        index = ((near.float() / box + 0.5) * cells).floor().long().clamp(0, cells - 1)
        active[index[:, 0], index[:, 1], index[:, 2]] = True
    finished = torch.zeros_like(active)
    while bool(active.any()):
        fresh = _nodes_of(active, step) & ~known
        run.fill(values, fresh)
        known |= fresh
        finished |= active
        # The nodes of an unfinished cell's faces may have been evaluated by a neighbour and have turned out to differ.
        active = _mixed_cells(values > level, step) & ~finished
    return values


def _mixed_cells(inside: Tensor, step: int) -> Tensor:
    """Cells of ``step`` nodes a side, faces included, whose nodes are not all on one side."""
    share = inside[None, None].float()
    high = F.max_pool3d(share, step + 1, stride=step)
    low = -F.max_pool3d(-share, step + 1, stride=step)
    return (high != low)[0, 0]


def _dilate(cells: Tensor) -> Tensor:
    """Also the 26 neighbours."""
    return F.max_pool3d(cells[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


def _nodes_of(cells: Tensor, step: int) -> Tensor:
    """Node mask of the closed cells: a node on a face belongs to the cells of both sides."""
    nodes = cells
    for axis in range(3):
        fine = nodes.repeat_interleave(step, dim=axis)
        edge = torch.zeros_like(fine.narrow(axis, 0, 1))
        nodes = torch.cat([fine, edge], dim=axis) | torch.cat([edge, fine], dim=axis)
    return nodes
