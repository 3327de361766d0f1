# SPDX-License-Identifier: MIT
"""Point cloud in, closed mesh out, both in the same units and frame."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import occkernels
from occnets.components import COMPONENT_MODES, compact, find_parts, kept_faces, mesh_statistics
from occnets.field import Lattice, evaluate_lattice
from occnets.fit import fit_to_points, vertex_normals
from occnets.io import PointCloud
from occnets.normalize import OUTLIER_MODES, CleanCloud, clean_cloud, subsample

if TYPE_CHECKING:
    import trimesh

Progress = Callable[[str, int, int], None]

DEFAULT_POINTS = 50_000
"""Points given to a network whose configuration does not say how many it was trained with."""

_CLOUD_INPUTS = ("pointcloud", "partial_pointcloud")
_PADDING = 0.1  # queries live in the unit cube enlarged by this, if the model's configuration does not say
_OUTSIDE = -1e6  # the logit around the lattice: whatever reaches its border is closed there
_EDGE_MARGIN = 1e-3  # cells; keeps vertices of different edges apart when they are rounded or merged later


class EmptyReconstructionError(ValueError):
    """The network sees no surface, so there is no mesh to return."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """Options of a reconstruction.

    Attributes:
        resolution: lattice cells along a side of the padded cube.
        threshold: occupancy probability of the surface, in (0, 1); None takes the model's.
        max_points: at most so many points are given to the network, drawn at random; None takes the model's maximum.
        seed: of every random choice.
        ensemble: average over so many orientations of the input (1 to 48, cube rotations and reflections); costs
            that many times the network's time. None takes the model's ``test.ensemble``, or 1.
        fit: move the surface onto the points afterwards, see `occnets.fit`.
        outliers: ``"auto"``, ``"strong"`` or ``"off"``, see `occnets.normalize.clean_cloud`.
        components: ``"clean"`` drops crumbs, ``"largest"`` keeps one body, ``"all"`` keeps everything.
        normals: compute vertex normals from the field's gradient.
        chunk: queries in one call of the network.
    """

    resolution: int = 128
    threshold: float | None = None
    max_points: int | None = None
    seed: int = 0
    ensemble: int | None = None
    fit: bool = True
    outliers: str = "auto"
    components: str = "clean"
    normals: bool = False
    chunk: int = 100_000

    def __post_init__(self) -> None:
        for name, low, high in (("resolution", 8, 2048), ("ensemble", 1, 48), ("chunk", 1, 2**31), ("seed", 0, 2**63)):
            value = getattr(self, name)
            if value is None and name == "ensemble":
                continue
            if not isinstance(value, (int, np.integer)) or not low <= value <= high:
                raise ValueError(
                    f"ReconstructionConfig: `{name}` must be a whole number from {low} to {high}, got {value}"
                )
        if self.max_points is not None and self.max_points < 32:
            raise ValueError(f"ReconstructionConfig: `max_points` must be at least 32, got {self.max_points}")
        if self.threshold is not None and not 0.0 < self.threshold < 1.0:
            raise ValueError(
                f"ReconstructionConfig: `threshold` is a probability between 0 and 1, got {self.threshold}"
            )
        for name, choices in (("outliers", OUTLIER_MODES), ("components", COMPONENT_MODES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"ReconstructionConfig: `{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class Reconstruction:
    """A mesh and how it came about.

    Attributes:
        mesh: closed triangle mesh in the input's units and frame, vertices in float64.
        stats: numbers of the input, the network and the mesh, ready for JSON.
        timings: seconds of each stage, and ``total``.
        warnings: remarks for the user.
        cloud: (N, 3) float64, the points the network saw, in input units.
    """

    mesh: trimesh.Trimesh
    stats: dict[str, Any]
    timings: dict[str, float]
    warnings: tuple[str, ...]
    cloud: NDArray[np.float64] = field(repr=False)


class _Clock:
    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, {}  # type: ignore[var-annotated]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start


class Reconstructor:
    """A network with everything around it.

    Args:
        model: offers ``encode(inputs (1, N, 3)) -> features`` and ``decode(query (1, M, 3), features) -> (1, M)``.
        config: the family's configuration of the model (``data``, ``test``), used for threshold and trained range.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        name: how to call the model in reports.

    Raises:
        ValueError: the model does not read point clouds, or the device does not exist.
    """

    def __init__(
        self, model: Any, config: Mapping[str, Any] | None = None, device: str | torch.device = "auto", name: str = ""
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval() if isinstance(model, torch.nn.Module) else model
        self.config: Mapping[str, Any] = config or {}
        self.name = name or type(model).__name__
        reads = (self.config.get("data") or {}).get("input_type", "pointcloud")
        if reads not in _CLOUD_INPUTS:
            raise ValueError(
                f"Reconstructor: model '{self.name}' reads {reads}; point clouds need one that reads "
                f"{' or '.join(_CLOUD_INPUTS)}, see 'occnets models'"
            )

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], config: Any = None, device: str | torch.device = "auto"
    ) -> Reconstructor:
        """Load a bundled model by name, a folder (weights and configuration), or a ``.pt`` file with its configuration.

        Args:
            name: name, folder or file.
            config: configuration (mapping or path of a YAML file) of a ``.pt`` file.
            device: see `Reconstructor`.

        Raises:
            ValueError, OSError: unknown name, missing file or unreadable weights; see `occnets.checkpoints`.
        """
        from occnets.checkpoints import load_pretrained

        device = pick_device(device)
        model, loaded = load_pretrained(name) if config is None else load_pretrained(name, config=config)
        return cls(model, loaded, device, os.path.basename(os.fspath(name).rstrip("/\\")))

    def parameter_count(self) -> int:
        """Number of parameters of the network; 0 for something that is none."""
        return sum(p.numel() for p in self.model.parameters()) if isinstance(self.model, torch.nn.Module) else 0

    def reconstruct(
        self,
        points: NDArray | PointCloud,
        config: ReconstructionConfig | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Reconstruct a closed mesh.

        Args:
            points: (N, 3) in any units, or a `PointCloud`.
            config: options; keyword arguments override single fields of it.
            progress: called with (stage, done, total) while the field is evaluated.
            **options: fields of `ReconstructionConfig`, e.g. ``resolution=256``.

        Returns:
            The mesh in the units and frame of ``points``.

        Raises:
            DegenerateCloudError: too few points, NaN, or all on one point, line or plane.
            EmptyReconstructionError: the network sees no surface.
            ValueError: an option is out of range.
        """
        settings = _settings(config, options)
        start = time.perf_counter()
        clock = _Clock(self.device)
        notes = list(points.notes) if isinstance(points, PointCloud) else []
        raw = np.asarray(points.points if isinstance(points, PointCloud) else points, dtype=np.float64)
        with clock.stage("prepare"):
            clean = clean_cloud(raw, outliers=settings.outliers, seed=settings.seed)
            limit = settings.max_points or trained_range(self.config, "pointcloud_n", DEFAULT_POINTS)[1]
            chosen = subsample(clean.points, int(limit), settings.seed)
            unit = torch.from_numpy(clean.frame.to_unit(chosen).astype(np.float32)).to(self.device)
        notes += [*clean.warnings, *self._range_warnings(len(clean.points), clean.noise)]
        level, threshold = self._level(settings.threshold)
        ensemble = settings.ensemble or int((self.config.get("test") or {}).get("ensemble") or 1)
        with torch.inference_mode():
            with clock.stage("encode"):
                decode = _Ensemble(self.model, unit, ensemble)
            with clock.stage("evaluate"):
                lattice = evaluate_lattice(
                    decode,
                    settings.resolution,
                    1.0 + float((self.config.get("data") or {}).get("padding", _PADDING)),
                    level,
                    near=unit,
                    chunk=settings.chunk,
                    progress=None if progress is None else lambda done, total: progress("evaluate", done, total),
                )
            with clock.stage("extract"):
                extracted = _extract(lattice, level, threshold, settings.normals)
                notes += _border_warning(lattice, level)
        with clock.stage("finish"):
            mesh, removed = _finish(*extracted, clean, settings)
            stats = {
                "input": _input_statistics(raw, clean, len(chosen)),
                "settings": {
                    **dataclasses.asdict(settings),
                    "threshold": threshold,
                    "max_points": int(limit),
                    "ensemble": ensemble,
                },
                "field": {"nodes": lattice.values.numel(), "evaluated": lattice.evaluated},
                "mesh": {
                    **mesh_statistics(np.asarray(mesh.vertices), np.asarray(mesh.faces)),
                    "removed_components": removed,
                },
            }
        clock.seconds["total"] = time.perf_counter() - start
        return Reconstruction(mesh, stats, clock.seconds, tuple(notes), chosen)

    def _level(self, threshold: float | None) -> tuple[float, float]:
        """The surface's logit and probability."""
        if threshold is None:
            threshold = float((self.config.get("test") or {}).get("threshold") or 0.5)
        return math.log(threshold / (1.0 - threshold)), threshold

    def _range_warnings(self, count: int, noise: float) -> list[str]:
        """What makes this input unlike anything the network was trained on."""
        found = []
        low, _ = trained_range(self.config, "pointcloud_n", 0)
        if count < 0.5 * low:
            found.append(
                f"the input has {count} points, the model was trained with {low:g} or more: expect missing parts"
            )
        _, high = trained_range(self.config, "pointcloud_noise", math.inf)
        # Curvature passes for noise, the more so the sparser the cloud: up to 12 / N was seen on clean real objects.
        if noise > high + 0.005 + 15.0 / count:
            found.append(
                f"the input's noise is about {100 * noise:.1f} % of its longest side, the model was trained with "
                f"up to {100 * high:.1f} %: expect a rough or hollow surface"
            )
        return found


def pick_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: the device does not exist here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`device` must be auto, cpu, cuda or cuda:N, got {device!r}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device '{device}' is not available: torch sees {torch.cuda.device_count()} CUDA devices")
    return found


def trained_range(config: Mapping[str, Any], key: str, default: float) -> tuple[float, float]:
    """Smallest and largest value of ``data.<key>`` a model was trained with; a single number is both."""
    value = (config.get("data") or {}).get(key)
    if value is None:
        return default, default
    values = value if isinstance(value, (list, tuple)) else [value]
    return min(values), max(values)


def _settings(config: ReconstructionConfig | None, options: dict[str, Any]) -> ReconstructionConfig:
    known = {entry.name for entry in dataclasses.fields(ReconstructionConfig)}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"reconstruct: unknown option {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return dataclasses.replace(config or ReconstructionConfig(), **options)


def cube_symmetries() -> NDArray[np.float32]:
    """(48, 3, 3) orthogonal matrices: the identity, 23 more rotations of the cube, then 24 reflections.

    Each half is in a fixed mixed order, so that any few of them look in different directions.
    """
    matrices = []
    for axes in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        for signs in range(8):
            matrix = np.zeros((3, 3), dtype=np.float32)
            for row, axis in enumerate(axes):
                matrix[row, axis] = -1.0 if signs >> row & 1 else 1.0
            matrices.append(matrix)
    proper = [m for m in matrices if np.linalg.det(m) > 0]
    mirrored = [m for m in matrices if np.linalg.det(m) < 0]
    # 7 steps of 24 visit every element once and change axes and signs each time.
    mixed = [group[(7 * i) % 24] for group in (proper, mirrored) for i in range(24)]
    return np.stack(mixed)


class _Ensemble:
    """Mean logits over orientations: each turned cloud is encoded once, queries turn with it."""

    def __init__(self, model: Any, points: Tensor, count: int) -> None:
        self.model = model
        turns = torch.from_numpy(cube_symmetries()[:count]).to(points.device)
        self.members = [(turn, model.encode((points @ turn.T)[None])) for turn in turns]

    def __call__(self, query: Tensor) -> Tensor:
        total = torch.zeros(len(query), device=query.device)
        for turn, features in self.members:
            total += self.model.decode((query @ turn.T)[None], features)[0].float()
        return total / len(self.members)


def _extract(
    lattice: Lattice, level: float, threshold: float, normals: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
    """Vertices in the unit cube (float64), faces, normals."""
    bad = int((~torch.isfinite(lattice.values)).sum())
    if bad:
        raise ValueError(f"the network returned {bad} values that are NaN or infinite; the weights are damaged")
    low, high = lattice.values.aminmax()
    if not float(low) <= level < float(high):
        side, change = ("outside", "lower") if float(high) <= level else ("inside", "higher")
        raise EmptyReconstructionError(
            f"no surface found: at threshold {threshold:g} the network takes everything for {side}; "
            f"try a {change} --threshold, more points, or another model"
        )
    batch = occkernels.marching_cubes(
        lattice.values, level, normals=normals, edge_margin=_EDGE_MARGIN, pad_value=_OUTSIDE
    )
    cells = lattice.values.shape[0] - 1
    vertices = lattice.box * (batch.vertices.double().cpu().numpy() / cells - 0.5)
    directions = None if batch.normals is None else batch.normals.double().cpu().numpy()
    return vertices, batch.faces.cpu().numpy(), directions


def _border_warning(lattice: Lattice, level: float) -> list[str]:
    inside = lattice.values > level
    if not any(bool(inside.select(axis, end).any()) for axis in range(3) for end in (0, -1)):
        return []
    return ["the surface reaches the border of the model's cube and was closed there; stray points may spoil the scale"]


def _finish(
    vertices: NDArray, faces: NDArray, normals: NDArray | None, clean: CleanCloud, settings: ReconstructionConfig
) -> tuple[trimesh.Trimesh, int]:
    """Drop unwanted parts, fit to the points, map to input units; returns the mesh and how many parts went."""
    import trimesh

    parts = find_parts(vertices, faces)
    keep = kept_faces(vertices, faces, parts, settings.components)
    if not keep.any() or not (parts.volumes > 0).any():
        raise EmptyReconstructionError("no usable surface found: what the network sees encloses no volume")
    removed = len(parts.faces) - len(np.unique(parts.labels[keep]))
    vertices, faces, (normals,) = compact(vertices, faces[keep], normals)
    if settings.fit:
        # All points, not only those the network saw: dense scans place the surface better than any network.
        vertices = fit_to_points(vertices, faces, clean.frame.to_unit(clean.points))
        normals = None if normals is None else vertex_normals(vertices, faces)
    mesh = trimesh.Trimesh(clean.frame.to_input(vertices), faces, vertex_normals=normals, process=False)
    return mesh, removed


def _input_statistics(raw: NDArray, clean: CleanCloud, used: int) -> dict[str, Any]:
    low, high = clean.points.min(axis=0), clean.points.max(axis=0)
    return {
        "points": len(raw),
        "duplicates_removed": clean.duplicates,
        "outliers_removed": clean.outliers,
        "points_used": used,
        "noise_estimate": clean.noise,
        "bounds": [low.tolist(), high.tolist()],
        "center": clean.frame.center.tolist(),
        "scale": clean.frame.scale,
    }
