# SPDX-License-Identifier: MIT
"""Moves the vertices of an extracted mesh so that its triangles lie in the surface of the field.

Marching cubes puts vertices on lattice edges by linear interpolation; triangles then cut corners and edges of the
surface off. The loss of Mescheder et al. 2019, section 3.3, looks at random points of the triangles instead: their
value should be the threshold, and the triangle's normal should be the field's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import occkernels
from occnets.memory import in_chunks

_EPSILON = 1e-10  # of a normal's length, as in the original


@dataclass(frozen=True)
class RefineOptions:
    """Options of `refine_vertices`; the defaults are the family's.

    Attributes:
        steps: of the optimiser.
        learning_rate: of RMSprop, in units of the vertices (made for the unit cube at a resolution of about 128).
        normal_weight: weight of the disagreement of normals.
        concentration: of the Dirichlet distribution that draws points of triangles; below 1, points near corners and
            edges are likelier.
        check_every: after so many steps the loss is measured; the best vertices seen are kept.
        seed: of the points.
        chunk: triangles treated at once; halved when memory runs out. Results depend on it by rounding only.
    """

    steps: int = 30
    learning_rate: float = 1e-4
    normal_weight: float = 0.01
    concentration: float = 0.5
    check_every: int = 5
    seed: int = 0
    chunk: int = 8192

    def __post_init__(self) -> None:
        for name, low in (("steps", 0), ("check_every", 1), ("chunk", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"RefineOptions: `{name}` must be at least {low}, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.normal_weight >= 0 or not self.concentration > 0:
            raise ValueError(
                "RefineOptions: `learning_rate` and `concentration` must be positive and `normal_weight` not negative, "
                f"got {self.learning_rate}, {self.concentration} and {self.normal_weight}"
            )


@dataclass(frozen=True)
class Refinement:
    """Refined vertices.

    Attributes:
        vertices: (V, 3) float64.
        before: loss of the vertices given, on one fixed set of points of the triangles.
        after: loss of the new ones, on the same set (by barycentric coordinates); never more than ``before``.
        step: the step they come from; 0 if no step was better than the start.
    """

    vertices: NDArray[np.float64]
    before: float
    after: float
    step: int


def refine_vertices(
    vertices: NDArray[np.float64],  # (V, 3)
    faces: NDArray[np.int64],  # (F, 3)
    field: Callable[[Tensor], Tensor],  # (1, M, 3) -> (1, M)
    threshold: float = 0.5,
    options: RefineOptions = RefineOptions(),  # noqa: B008 - frozen
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Refinement:
    """Minimise mean (p - threshold)² + normal_weight * mean ‖n - t‖² over the vertices, by RMSprop.

    p is the occupancy probability at a random point of each face, n the face's unit normal, t the direction in which p
    falls; the derivative of t is taken into account, so the field must be twice differentiable in the query (almost
    everywhere), as the networks here are. Faces stay as they are. The same seed gives the same vertices.

    Args:
        vertices: (V, 3) of a mesh oriented outward, in the frame of ``field``.
        faces: (F, 3) indices into ``vertices``.
        field: logits (1, M) at float32 queries (1, M, 3), positive inside.
        threshold: occupancy probability of the surface.
        options: see `RefineOptions`.
        device: where ``field`` takes its queries.
        progress: called with (steps done, steps).

    Raises:
        ValueError: a shape is wrong, there are no faces, the threshold is no probability, or ``field`` has no gradient.

    Source: Mescheder et al., Occupancy Networks, CVPR 2019, eq. 5.
    """
    for name, array in (("vertices", vertices), ("faces", faces)):
        if array.ndim != 2 or array.shape[1] != 3 or not len(array):
            raise ValueError(f"refine_vertices: `{name}` must have shape (n > 0, 3), got {array.shape}")
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"refine_vertices: `threshold` is a probability between 0 and 1, got {threshold}")
    loss = _Loss(torch.from_numpy(faces).to(device), field, threshold, options)
    moved = torch.from_numpy(np.array(vertices, dtype=np.float64)).to(device)
    best, chosen = moved.clone(), 0
    # Points for measuring are drawn first and kept, so that losses can be compared.
    before = lowest = loss.measure(best)
    optimizer = torch.optim.RMSprop([moved], lr=options.learning_rate)
    for step in range(1, options.steps + 1):
        moved.grad = loss.gradient(moved)
        optimizer.step()
        if step % options.check_every == 0 or step == options.steps:
            found = loss.measure(moved)
            if found < lowest:
                best, lowest, chosen = moved.clone(), found, step
        if progress is not None:
            progress(step, options.steps)
    return Refinement(best.cpu().numpy(), before, lowest, chosen)


class _Loss:
    """The loss of vertices (V, 3) float64 of given faces, chunk by chunk."""

    def __init__(
        self, faces: Tensor, field: Callable[[Tensor], Tensor], threshold: float, options: RefineOptions
    ) -> None:
        self.faces, self.field, self.threshold, self.options = faces, field, threshold, options
        self.chunk, self.dtype = options.chunk, torch.float32
        self.random = np.random.default_rng(options.seed)
        self.fixed = self.draw()

    def draw(self) -> Tensor:
        """(F, 3, 1) barycentric coordinates of one random point in each face."""
        drawn = self.random.dirichlet((self.options.concentration,) * 3, len(self.faces))
        return torch.from_numpy(drawn)[:, :, None].to(self.faces.device)

    def measure(self, vertices: Tensor) -> float:
        """The loss at the fixed points."""
        terms = torch.empty(len(self.faces), dtype=torch.float64, device=vertices.device)

        def work(part: slice) -> None:
            corners = vertices[self.faces[part]]
            terms[part] = self._terms(corners, (corners * self.fixed[part]).sum(dim=1), False).detach()

        self.chunk = in_chunks(len(self.faces), self.chunk, work)
        return float(terms.mean())

    def gradient(self, vertices: Tensor) -> Tensor:
        """(V, 3) derivative of the loss at fresh random points."""
        weights = self.draw()
        slopes = torch.empty(len(self.faces), 3, 3, dtype=torch.float64, device=vertices.device)

        def work(part: slice) -> None:
            with torch.enable_grad():
                corners = vertices[self.faces[part]].requires_grad_()
                loss = self._terms(corners, (corners * weights[part]).sum(dim=1), True).sum() / len(self.faces)
                (slopes[part],) = torch.autograd.grad(loss, corners)

        self.chunk = in_chunks(len(self.faces), self.chunk, work)
        # Added in a fixed order, so that a seed has one result.
        return occkernels.scatter(slopes.view(-1, 3), self.faces.reshape(-1), len(vertices))

    def _terms(self, corners: Tensor, points: Tensor, create_graph: bool) -> Tensor:
        """(F,) loss of faces with ``corners`` (F, 3, 3) at ``points`` (F, 3) of them."""
        query = points.to(self.dtype)
        with torch.enable_grad():
            query = query if create_graph else query.requires_grad_()
            logits = self.field(query[None])[0]
            slope = None
            if logits.requires_grad:
                (slope,) = torch.autograd.grad(logits.sum(), query, create_graph=create_graph, allow_unused=True)
        if slope is None:
            raise ValueError("refine_vertices: `field` has no gradient with respect to its query; it cannot be refined")
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 1])
        # Logits fall where probabilities do, and both gradients have the same direction.
        difference = _unit(normals) + _unit(slope.double())
        value = torch.sigmoid(logits.double()) - self.threshold
        return value**2 + self.options.normal_weight * (difference**2).sum(dim=1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.norm(dim=1, keepdim=True) + _EPSILON)
