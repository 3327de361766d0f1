# SPDX-License-Identifier: MIT
"""From a field to meshes: octree search, evaluation in chunks, sparse marching cubes. No dense lattice anywhere."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from occkernels.extract_options import QUERY_BYTES, Extraction, ExtractOptions
from occkernels.marching_cubes_sparse import marching_cubes_sparse
from occkernels.mesh import MeshBatch
from occkernels.octree import BrickQuery, Octree
from occkernels.sparse import BRICK

_log = logging.getLogger("occkernels.extract")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def extract(
    field: Callable[[Tensor], Tensor],
    options: ExtractOptions = ExtractOptions(),  # noqa: B008 - frozen
    *,
    batch: int = 1,
    device: torch.device | str = "cpu",
    seeds: Tensor | None = None,  # (B, P, 3)
    progress: Callable[[int, int], None] | bool = False,
) -> Extraction:
    """Meshes of the surfaces on which a field passes a threshold, for a batch of shapes.

    The field is evaluated where :class:`occkernels.Octree` asks for it, and :func:`occkernels.marching_cubes_sparse`
    reads the octree's bricks: work and memory follow the surface. A failed allocation is logged and repeated with half
    as many points at once. The result does not depend on how many that is.

    Args:
        field: (B, M, 3) float32 positions to (B, M) values, greater inside. Where it has a method
            ``bricks(shape, corner, mask, spacing, origin) -> (K, 512)`` regular blocks of nodes go to that instead:
            node (i, j, k) of brick r of shape ``shape[r]`` lies at ``origin + spacing * (corner[r] + (i, j, k))``, and
            is wanted if bit ``8 * j + k`` of word ``i`` of ``mask[r]`` is set; other places of the result are NaN. A
            field that gains from bricks only when most of their nodes are wanted says so by ``field.brick_fill``, the
            least share.
            ``field.with_gradient``, positions to values and (B, M, 3) gradients, serves ``normals="field"``.
        options: resolution, threshold, box and so on.
        batch: number of shapes B.
        device: where the field is evaluated and the meshes are made.
        seeds: positions, e.g. measured points, whose cells are searched at every level, so that no part that has one
            can be missed. Those outside the box, and NaN, are ignored.
        progress: called after every chunk with the numbers of nodes evaluated and asked for so far; True prints them
            to the standard error stream.

    Returns:
        Meshes in the field's coordinates, and numbers of evaluated nodes.

    Raises:
        ValueError: the field returned NaN or a wrong shape, ``normals="field"`` without ``field.with_gradient``, or an
            argument is out of range.
        torch.OutOfMemoryError, RuntimeError, MemoryError: not even one point could be evaluated.

    Example:
        >>> ball = lambda p: 0.4 - p.norm(dim=-1)
        >>> vertices, faces = extract(ball, ExtractOptions(levels=3)).mesh(0)[:2]

    Source: Mescheder et al., "Occupancy Networks", CVPR 2019, section 3.3.
    """
    if options.normals == "field" and not hasattr(field, "with_gradient"):
        raise ValueError(
            'occkernels.extract: `normals="field"` needs field.with_gradient(query) -> (values, gradients); '
            'use normals="volume" with this field.'
        )
    tree = Octree(
        options.initial,
        options.levels,
        options.threshold,
        batch=batch,
        device=device,
        dtype=options.dtype,
        closed=options.closed,
        band=options.band,
    )
    if seeds is not None:
        _mark(tree, seeds, options)
    run = _Run(field, tree, options, progress)
    with torch.no_grad():
        while run.round():
            pass
        meshes = marching_cubes_sparse(
            tree.volume(),
            options.threshold,
            normals=options.normals == "volume",
            edge_margin=options.edge_margin,
            pad_value=-math.inf if options.closed else None,
        )
    meshes = meshes._replace(vertices=options.to_world(meshes.vertices))
    if options.normals == "field":
        meshes = meshes._replace(normals=run.normals(meshes))
    run.finish()
    return Extraction(meshes, tree.rounds)


def _mark(tree: Octree, seeds: Tensor, options: ExtractOptions) -> None:
    if seeds.dim() != 3 or seeds.shape[0] != tree.batch or seeds.shape[2] != 3:
        raise ValueError(f"occkernels.extract: `seeds` must be ({tree.batch}, P, 3), got {tuple(seeds.shape)}.")
    shape = torch.arange(tree.batch, device=seeds.device).repeat_interleave(seeds.shape[1])
    tree.mark((seeds.double() / options.box + 0.5).flatten(0, 1) * options.cells, shape)


class _Run:
    """The evaluation of a field: rounds, chunks, retries, progress."""

    def __init__(
        self,
        field: Callable[[Tensor], Tensor],
        tree: Octree,
        options: ExtractOptions,
        progress: Callable[[int, int], None] | bool,
    ) -> None:
        self.field, self.tree, self.options = field, tree, options
        self.bricks: Callable[..., Tensor] | None = getattr(field, "bricks", None)
        self.table = options.coordinates(tree.device)
        self.progress = _print if progress is True else progress or None
        self.done = self.asked = 0
        self.chunk = options.chunk
        if options.memory is not None:
            each = getattr(field, "bytes_per_query", QUERY_BYTES)
            self.chunk = max(1, min(self.chunk, options.memory // each))

    def round(self) -> bool:
        """Evaluate what the octree asks for; False when it asks for nothing."""
        if self.bricks is not None and self.tree.fill >= getattr(self.field, "brick_fill", 0.0):
            waiting = self.tree.bricks()
            self.asked += sum(brick.wanted for brick in waiting)
            if waiting:
                self.tree.update_bricks([self._bricks(self.bricks, brick) for brick in waiting])
            return bool(waiting)
        index, offsets = self.tree.query()
        self.asked += len(index)
        if len(index):
            values = index.new_empty(len(index), dtype=self.options.dtype)
            self._points(index, self._place, offsets, self.field, [values])
            self.tree.update(values)
        return bool(len(index))

    def _place(self, nodes: Tensor) -> Tensor:
        """Positions (..., 3) of nodes (..., 3)."""
        return self.table.index_select(0, nodes.reshape(-1)).view(nodes.shape)

    def _bricks(self, function: Callable[..., Tensor], brick: BrickQuery) -> Tensor:
        """(K, 512) values of one level's bricks."""
        spacing = self.options.box * brick.stride / self.options.cells
        values = brick.shape.new_empty((len(brick.shape), BRICK**3), dtype=self.options.dtype)

        def evaluate(begin: int, end: int) -> None:
            rows = slice(begin, end)
            found = function(brick.shape[rows], brick.corner[rows], brick.mask[rows], spacing, -self.options.box / 2)
            if found.shape != (end - begin, BRICK**3):
                raise ValueError(
                    f"occkernels.extract: field.bricks must return ({end - begin}, {BRICK**3}) values, "
                    f"got {tuple(found.shape)}."
                )
            values[rows] = found
            self._report(brick.wanted * end // len(brick.shape) - brick.wanted * begin // len(brick.shape))

        self._chunks(len(brick.shape), BRICK**3, evaluate)
        self._refuse_nan(brick.wanted - int((~values.isnan()).sum()))
        return values

    def _points(
        self,
        rows: Tensor,
        place: Callable[[Tensor], Tensor],
        offsets: Tensor,
        function: Callable[[Tensor], Any],
        outputs: list[Tensor],
    ) -> None:
        """Evaluate ragged ``rows`` (Q, 3), those of shape b from offsets[b] on, into ``outputs``.

        ``place`` makes positions of rows; ``function`` is asked with (B, M, 3) queries.
        """
        batch, total = len(offsets) - 1, len(outputs[0])
        first, end = offsets[:-1, None], offsets[1:, None]
        widest = int(offsets.diff().max())

        def evaluate(begin: int, stop: int) -> None:
            if batch == 1:
                query = place(rows[begin:stop]).unsqueeze(0)
            else:
                number = first + torch.arange(begin, stop, device=first.device)
                valid = number < end  # shapes with fewer rows repeat some other position
                query = place(rows[number.clamp_max(total - 1)])
            found = function(query)
            found = (found,) if isinstance(found, Tensor) else found
            for output, part in zip(outputs, found, strict=True):
                expected = (*query.shape[:2], *output.shape[1:])
                if part.shape != expected:
                    raise ValueError(
                        f"occkernels.extract: the field must return {expected} for a query of shape "
                        f"{tuple(query.shape)}, got {tuple(part.shape)}."
                    )
                if batch == 1:
                    output[begin:stop] = part[0].detach()
                else:
                    output[number[valid]] = part[valid].detach().to(output.dtype)
            self._report(int(valid.sum()) if batch > 1 else stop - begin)

        self._chunks(widest, batch, evaluate)
        if outputs[0].sum().isnan():  # one quick pass; infinities of both signs can make such a sum too
            self._refuse_nan(int(outputs[0].isnan().sum()))

    def _chunks(self, count: int, points: int, evaluate: Callable[[int, int], None]) -> None:
        """evaluate(begin, end) over [0, count), of ``points`` points each; halves the chunk when memory runs out."""
        begin = 0
        while begin < count:
            size = max(1, self.chunk // points)
            try:
                evaluate(begin, min(begin + size, count))
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                self.chunk = size * points // 2
                _log.warning("out of memory with %d points at once, going on with %d", size * points, self.chunk)
                if self.tree.device.type == "cuda":
                    torch.cuda.empty_cache()
            else:
                begin += size

    def normals(self, meshes: MeshBatch) -> Tensor:
        """Unit normals at the vertices, against the field's gradient."""
        function: Callable[[Tensor], Any] = self.field.with_gradient  # type: ignore[attr-defined]
        vertices = meshes.vertices
        normals, values = torch.empty_like(vertices), torch.empty_like(vertices[:, 0])
        if len(vertices):
            self.asked += len(vertices)
            self._points(vertices, Tensor.float, meshes.vertex_offsets, function, [values, normals])
        return torch.nn.functional.normalize(-normals, dim=1)

    def _report(self, points: int) -> None:
        self.done += points
        if self.progress is not None:
            self.progress(self.done, self.asked)

    def finish(self) -> None:
        """End the line that progress was printed on."""
        if self.progress is _print:
            sys.stderr.write("\n")

    @staticmethod
    def _refuse_nan(count: int) -> None:
        if count > 0:
            raise ValueError(
                f"occkernels.extract: the field returned NaN at {count} points; check its weights and its input."
            )


def _print(done: int, asked: int) -> None:
    sys.stderr.write(f"\rextract: {done:,} of {asked:,} nodes evaluated")
    sys.stderr.flush()


def _out_of_memory(error: BaseException) -> bool:
    """CUDA's own exception is a RuntimeError that says "out of memory"; the CPU allocator's says it in other words."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)
