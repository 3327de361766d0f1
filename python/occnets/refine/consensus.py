# SPDX-License-Identifier: MIT
"""Which side of the surface a place is on, where a network's field and the measured points disagree.

Sign-agnostic optimisation keeps the signs it begins with. A wall across a hole or a blob in empty space, with no
measured point near it, thus only becomes sharper. Here signs are chosen once, before the optimisation, for a lattice
over the cube: those that agree with the network's logits where they can, but whose boundary is short except near
points, where it costs next to nothing (weighted total variation, whose relaxation is convex: Chan, Esedoglu and
Nikolova, SIAM J. Appl. Math. 2006; solved by Chambolle and Pock's algorithm, J. Math. Imaging Vis. 2011). A gap between
points lets nothing leak through: a boundary across it is short. Thin bridges between measured parts are put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

_NODES = 49  # along a side of the lattice; weights below are made for it
_ITERATIONS = 100
_CERTAIN = 3.0  # logits count up to this
_CHEAPEST = 0.02  # price of boundary at a measured point, relative to that far from all points


@dataclass(frozen=True)
class Consensus:
    """Signs over the cube.

    Attributes:
        signs: (n, n, n) float32 of -1 (outside) and 1 (inside), axes x, y, z.
        disputed: (K, 3) nodes further than a spacing from all points at which the network's sign is another.
        half: nodes lie at -half to half along each axis.
    """

    signs: Tensor
    disputed: Tensor
    half: float

    @property
    def spacing(self) -> float:
        """Distance of nodes."""
        return 2.0 * self.half / (len(self.signs) - 1)

    def at(self, query: Tensor) -> Tensor:
        """(M,) sign of the nearest node at queries (M, 3)."""
        last = len(self.signs) - 1
        x, y, z = ((query + self.half) / self.spacing).round().long().clamp(0, last).unbind(1)
        return self.signs[x, y, z]


def find_consensus(
    field: Callable[[Tensor], Tensor],
    points: Tensor,
    tree: Any,
    spacing: float,
    options: tuple[float, float],
    half: float,
) -> Consensus:
    """Choose the signs.

    Args:
        field: logits (1, M) at queries (1, M, 3).
        points: (N, 3) measured points, whose device is where ``field`` takes its queries.
        tree: ``scipy.spatial.cKDTree`` of them.
        spacing: side of the square that one point represents.
        options: weight of the network's opinion against the length of the boundary, and the distance from the points,
            in spacings, from which on boundary costs its full price.
        half: half the side of the cube.
    """
    weight, reach = options
    axis = torch.linspace(-half, half, _NODES)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    with torch.no_grad():
        logits = field(nodes[None].to(points.device))[0].float().cpu().view((_NODES,) * 3)
        distance = torch.from_numpy(tree.query(nodes.numpy())[0].astype(np.float32)).view_as(logits)
        price = (distance / (reach * spacing)).clamp(max=1.0).square().clamp(min=_CHEAPEST)
        inside = _segment(weight * logits.clamp(-_CERTAIN, _CERTAIN), price)
        inside = with_bridges(inside, logits > 0, distance < 2.0 * half / (_NODES - 1))
    signs = torch.where(inside, 1.0, -1.0)
    # Next to points the sign is a matter of rounding.
    disputed = nodes[((inside != (logits > 0)) & (distance > spacing)).flatten()]
    return Consensus(signs, disputed, half)


def with_bridges(inside: Tensor, before: Tensor, measured: Tensor) -> Tensor:
    """Put back the shortest bridge wherever a body of the network would fall apart into bodies with measured points.

    A short boundary cuts what is thin: the stalk between two parts of which only the ends were measured.

    Args:
        inside: (n, n, n) bool, the chosen signs.
        before: (n, n, n) bool, the network's.
        measured: (n, n, n) bool, nodes next to measured points.

    Returns:
        (n, n, n) bool: ``inside`` and bridges of nodes that ``before`` holds.
    """
    around = np.ones((3, 3, 3), dtype=bool)
    bodies, _ = ndimage.label(inside.numpy())
    sizes = np.bincount(bodies.ravel())
    kept = np.unique(bodies[measured.numpy() & inside.numpy()])
    gone, _ = ndimage.label((before & ~inside).numpy(), around)
    found = inside.numpy().copy()
    for number, box in enumerate(ndimage.find_objects(gone), 1):
        window = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        cluster, near = gone[window] == number, bodies[window]
        touched = np.intersect1d(np.unique(near[ndimage.binary_dilation(cluster, around)]), kept)
        if len(touched) < 2:
            continue
        order = touched[np.argsort(sizes[touched])[::-1]]
        joined = near == order[0]
        for body in order[1:]:
            length = _steps_within(cluster, joined) + _steps_within(cluster, near == body)
            path = length <= length.min() + 1
            joined |= path | (near == body)
            found[window] |= path
    return torch.from_numpy(found)


def _steps_within(region: NDArray[np.bool_], start: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Number of steps from ``start`` to the nodes of a region inside it, infinite elsewhere."""
    steps = np.full(region.shape, np.inf)
    front, done = start, start & ~region
    for step in range(1, region.size):
        front = ndimage.binary_dilation(front, np.ones((3, 3, 3), dtype=bool)) & region & ~done
        if not front.any():
            break
        steps[front] = step
        done = done | front
    return steps


def _segment(opinion: Tensor, price: Tensor) -> Tensor:
    """The set that minimises (price of its boundary) - (sum of ``opinion`` in it), both (n, n, n), as a mask."""
    step = 1.0 / 12.0**0.5  # the norm of the gradient's operator in three dimensions
    share = (opinion > 0).float()
    ahead = share.clone()
    dual = torch.zeros(3, *share.shape)
    slope = torch.zeros_like(dual)
    for _ in range(_ITERATIONS):
        for axis in range(3):
            torch.sub(_most(ahead, axis, True), _most(ahead, axis, False), out=_most(slope[axis], axis, False))
        dual.add_(slope, alpha=step)
        dual.div_((dual.norm(dim=0) / price).clamp_(min=1.0))
        flow = dual.sum(dim=0)
        for axis in range(3):
            _most(flow, axis, True).sub_(_most(dual[axis], axis, False))
        fresh = torch.add(share, flow.add_(opinion), alpha=step).clamp_(0.0, 1.0)
        ahead = torch.sub(2.0 * fresh, share)
        share = fresh
    return share > 0.5


def _most(values: Tensor, axis: int, later: bool) -> Tensor:
    """All but the first (``later``) or the last slice along an axis."""
    return values.narrow(axis, int(later), values.shape[axis] - 1)
