# SPDX-License-Identifier: MIT
"""From a scan in any units to the cloud a network was trained on, and back: clean-up, frame, density and noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

MINIMUM_POINTS = 32
"""Fewer points than this describe no surface."""

_FLAT = 1e-4  # smallest over largest singular value below which a cloud is a plane or a line
_LIMIT = 300_000  # no network here gains from more; neighbour searches on tens of millions would take minutes
OUTLIER_MODES = ("auto", "off", "strong")


class DegenerateCloudError(ValueError):
    """The points cannot be a surface: too few, not finite, or all on one point, line or plane."""


@dataclass(frozen=True)
class Frame:
    """Similarity between input units and the unit cube: ``unit = (input - center) / scale``, in float64.

    Attributes:
        center: (3,) float64, input units.
        scale: input units per unit of the normalised cube.
    """

    center: NDArray[np.float64]
    scale: float

    def to_unit(self, points: NDArray) -> NDArray[np.float64]:
        """Input coordinates (..., 3) in the normalised cube."""
        return (np.asarray(points, dtype=np.float64) - self.center) / self.scale

    def to_input(self, points: NDArray) -> NDArray[np.float64]:
        """Normalised coordinates (..., 3) in input units."""
        return np.asarray(points, dtype=np.float64) * self.scale + self.center


@dataclass(frozen=True)
class CleanCloud:
    """What is left of a scan after cleaning.

    Attributes:
        points: (N, 3) float64, input units.
        frame: the frame that brings ``points`` to the unit cube, longest side 1, centred.
        duplicates, outliers: how many points were removed for which reason.
        noise: estimated standard deviation of the points about their surface, as a share of the longest side.
        warnings: remarks for the user.
    """

    points: NDArray[np.float64]
    frame: Frame
    duplicates: int
    outliers: int
    noise: float
    warnings: tuple[str, ...] = field(default=())


def clean_cloud(points: NDArray, *, outliers: str = "auto", seed: int = 0) -> CleanCloud:
    """Check and clean a scan and find its frame.

    Args:
        points: (N, 3), any units.
        outliers: ``"auto"`` removes only points and small groups far from everything else, which would spoil the scale;
            ``"strong"`` also removes those whose neighbours are two standard deviations further away than usual;
            ``"off"`` keeps all.
        seed: of the random subset of 300,000 points that larger scans are reduced to first.

    Raises:
        DegenerateCloudError: fewer than `MINIMUM_POINTS` points, NaN or infinite coordinates, all points equal, on a
            line or on a plane.
        ValueError: wrong shape or unknown ``outliers``.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"clean_cloud: `points` must have shape (N, 3), got {points.shape}")
    if outliers not in OUTLIER_MODES:
        raise ValueError(f"clean_cloud: `outliers` must be one of {', '.join(OUTLIER_MODES)}, got {outliers!r}")
    _check_count(len(points), "")
    _check_finite(points)
    thinned = subsample(points, _LIMIT, seed)
    unique = _without_duplicates(thinned)
    _check_spread(unique)
    _check_count(len(unique), " different")
    keep, warnings = _without_outliers(unique, outliers)
    kept = unique[keep]
    _check_spread(kept)
    low, high = kept.min(axis=0), kept.max(axis=0)
    frame = Frame(low + (high - low) / 2, float((high - low).max()))
    noise = estimate_noise(frame.to_unit(kept), seed=seed)
    return CleanCloud(kept, frame, len(thinned) - len(unique), int((~keep).sum()), noise, warnings)


def _check_count(count: int, kind: str) -> None:
    if count < MINIMUM_POINTS:
        raise DegenerateCloudError(
            f"the input has {count}{kind} point{'s' * (count != 1)}; at least {MINIMUM_POINTS} are needed, "
            "and a good mesh takes some hundreds"
        )


def _check_finite(points: NDArray) -> None:
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise DegenerateCloudError(
            f"{int(bad.sum())} of {len(points)} points have NaN or infinite coordinates, the first is number "
            f"{int(np.argmax(bad)) + 1}; remove them and try again"
        )


def _without_duplicates(points: NDArray) -> NDArray[np.float64]:
    """Each different point once, in the order of first appearance."""
    order = np.lexsort(points.T)  # stable: equal points stay in the order of the file
    rows = points[order]
    fresh = np.ones(len(points), dtype=bool)
    fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return points[np.sort(order[fresh])]


def _check_spread(points: NDArray) -> None:
    centred = points - points.mean(axis=0)
    largest = np.abs(centred).max()
    # Rounding of the coordinates themselves must not pass for spread.
    if largest <= 8 * np.spacing(np.abs(points).max()):
        raise DegenerateCloudError("all points are equal; a surface cannot be made from one place")
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov((centred / largest).T)), 0.0))
    if spread[1] < _FLAT * spread[2]:
        raise DegenerateCloudError("all points lie on one line; a surface needs points in three dimensions")
    if spread[0] < _FLAT * spread[2]:
        raise DegenerateCloudError("all points lie on one plane; a closed surface needs points in three dimensions")


def _without_outliers(points: NDArray, mode: str) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """(N,) mask of the points to keep, and remarks."""
    everything = np.ones(len(points), dtype=bool)
    if mode == "off":
        return everything, ()
    distances = cKDTree(points).query(points, min(8, len(points) - 1) + 1)[0][:, 1:]
    inner = np.quantile(points, (0.02, 0.98), axis=0)
    extent = float((inner[1] - inner[0]).max())
    far = distances[:, -1]
    keep = far <= max(8.0 * float(np.median(far)), 0.1 * extent)
    if (~keep).mean() > 0.05:
        # That many are no strays but a sparse part of the object.
        keep = everything
    keep &= ~_far_crumbs(points, 8.0 * float(np.median(far)))
    if mode == "strong":
        mean = distances.mean(axis=1)
        keep &= mean <= float(mean[keep].mean() + 2.0 * mean[keep].std())
    removed = int((~keep).sum())
    if not removed:
        return keep, ()
    share = 100.0 * removed / len(points)
    return keep, (
        f"removed {removed} outlying point{'s' * (removed != 1)} ({share:.2g} %); '--outliers off' keeps them",
    )


def _far_crumbs(points: NDArray, gap: float) -> NDArray[np.bool_]:
    """(N,) mask of small groups of points that stand apart and blow up the bounding box, as birds and cables do.

    Groups are connected by steps of at most ``gap``. Those below one percent of the points are crumbs, if they are five
    percent or less altogether, and if the longest side shrinks by a quarter or more without them; otherwise none are.
    """
    from scipy import sparse
    from scipy.sparse import csgraph

    sample = points[:: max(1, len(points) // 20_000)]
    tree = cKDTree(sample)
    pairs = tree.query_pairs(gap, output_type="ndarray")
    links = sparse.coo_matrix((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), (len(sample),) * 2)
    _, labels = csgraph.connected_components(links, directed=False)
    groups = labels[tree.query(points)[1]]
    crumbs = (np.bincount(groups) < 0.01 * len(points))[groups]
    if not crumbs.any() or crumbs.mean() > 0.05:
        return np.zeros(len(points), dtype=bool)
    shrunk = np.ptp(points[~crumbs], axis=0).max() <= 0.75 * np.ptp(points, axis=0).max()
    return crumbs if shrunk else np.zeros(len(points), dtype=bool)


def estimate_noise(points: NDArray, *, neighbours: int = 16, samples: int = 1000, seed: int = 0) -> float:
    """Standard deviation of points about their local tangent plane, in the units of ``points``.

    The median over ``samples`` neighbourhoods of the smallest principal deviation. Curvature adds to it, so it is an
    upper estimate for sparse clouds.
    """
    neighbours = min(neighbours, len(points))
    rng = np.random.default_rng(seed)
    centres = points if len(points) <= samples else points[rng.choice(len(points), samples, replace=False)]
    index = cKDTree(points).query(centres, neighbours)[1]
    patches = points[index]
    patches = patches - patches.mean(axis=1, keepdims=True)
    covariance = np.einsum("nki,nkj->nij", patches, patches) / max(1, neighbours - 3)
    return float(np.sqrt(np.maximum(np.median(np.linalg.eigvalsh(covariance)[:, 0]), 0.0)))


def subsample(points: NDArray, count: int, seed: int) -> NDArray:
    """``count`` points drawn without replacement, or all of them if there are no more."""
    if len(points) <= count:
        return points
    return points[np.sort(np.random.default_rng(seed).choice(len(points), count, replace=False))]
