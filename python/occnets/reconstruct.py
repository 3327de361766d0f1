# SPDX-License-Identifier: MIT
"""Point cloud in, closed mesh out, both in the same units and frame."""

from __future__ import annotations

import dataclasses
import functools
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

from occnets.components import mesh_statistics
from occnets.ensemble import EnsembleField, cube_symmetries
from occnets.extraction import extract_surface
from occnets.finish import EmptyReconstructionError, Surface, finish_surface
from occnets.io import PointCloud
from occnets.memory import chunk_within, query_bytes
from occnets.normalize import CleanCloud, clean_cloud, subsample
from occnets.refine import OptimizeOptions, Refinement, RefineOptions, optimize_field, refine_vertices
from occnets.settings import ReconstructionConfig, settings_from

if TYPE_CHECKING:
    import trimesh

__all__ = [
    "EmptyReconstructionError",
    "Progress",
    "Reconstruction",
    "ReconstructionConfig",
    "Reconstructor",
    "cube_symmetries",
    "pick_device",
    "trained_range",
]

Progress = Callable[[str, int, int], None]

OnMesh = Callable[[int, float, "trimesh.Trimesh"], None]
"""Takes intermediate meshes: (steps done, threshold, mesh)."""

DEFAULT_POINTS = 50_000
"""Points given to a network whose configuration does not say how many it was trained with."""

_CLOUD_INPUTS = ("pointcloud", "partial_pointcloud")
_PADDING = 0.1  # queries live in the unit cube enlarged by this, if the model's configuration does not say
_REFINE_RESOLUTION = 128  # what the family's learning rate is made for; finer lattices take shorter steps


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
        on_mesh: OnMesh | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Reconstruct a closed mesh.

        Args:
            points: (N, 3) in any units, or a `PointCloud`.
            config: options; keyword arguments override single fields of it.
            progress: called with (stage, done, total) while the field is evaluated; the stage may end with a remark in
                brackets.
            on_mesh: called with (steps done, threshold, mesh) while the network is optimised, every
                ``optimize.snapshot_every`` steps and at the end, for each of ``optimize.thresholds``.
            **options: fields of `ReconstructionConfig`, e.g. ``resolution=256``.

        Returns:
            The mesh in the units and frame of ``points``.

        Raises:
            DegenerateCloudError: too few points, NaN, or all on one point, line or plane.
            EmptyReconstructionError: the network sees no surface.
            ValueError: an option is out of range.
        """
        settings = settings_from(config, options)
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
        level, threshold = self._level(settings.threshold, settings.optimize)
        ensemble = settings.ensemble or int((self.config.get("test") or {}).get("ensemble") or 1)
        task = _Task(self, settings, clean, unit, ensemble, progress)
        with torch.no_grad():  # not inference mode: refinement differentiates through the features
            if settings.optimize is None:
                with clock.stage("encode"):
                    field = EnsembleField(self.model, unit, ensemble)
            else:
                with clock.stage("optimize"):
                    field = task.optimized(on_mesh, threshold)
            with clock.stage("extract"):
                surface, facts, remarks = task.extract(field, level)
            with clock.stage("finish"):
                mesh = task.finish(surface, field, threshold)
        stats = {
            "input": _input_statistics(raw, clean, len(chosen)),
            "settings": {
                **dataclasses.asdict(settings),
                "threshold": threshold,
                "max_points": int(limit),
                "ensemble": ensemble,
            },
            **task.facts,
            "field": facts,
            "mesh": {**mesh_statistics(np.asarray(mesh.vertices), np.asarray(mesh.faces)), **surface.facts},
        }
        clock.seconds["total"] = time.perf_counter() - start
        return Reconstruction(mesh, stats, clock.seconds, (*notes, *task.notes, *remarks, *surface.notes), chosen)

    def _level(self, threshold: float | None, optimize: Any) -> tuple[float, float]:
        """The surface's logit and probability."""
        if threshold is None and optimize is not None and optimize.thresholds:
            threshold = optimize.thresholds[-1]
        if threshold is None:
            threshold = float((self.config.get("test") or {}).get("threshold") or 0.5)
        return _logit(threshold), threshold

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


class _Task:
    """One cloud on its way through one network.

    Attributes:
        facts: what optimisation did, for the report.
        notes: remarks for the user.
    """

    def __init__(
        self,
        owner: Reconstructor,
        settings: ReconstructionConfig,
        clean: CleanCloud,
        unit: torch.Tensor,
        ensemble: int,
        progress: Progress | None,
    ) -> None:
        self.owner, self.settings, self.clean, self.unit, self.ensemble = owner, settings, clean, unit, ensemble
        self.progress = progress
        self.box = 1.0 + float((owner.config.get("data") or {}).get("padding", _PADDING))
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []

    def optimized(self, on_mesh: OnMesh | None, threshold: float) -> EnsembleField:
        """The field of a copy of the network that was adapted to the cloud."""
        options = self.settings.optimize
        assert isinstance(options, OptimizeOptions)
        levels = options.thresholds or (threshold,)

        def report(step: int, steps: int, loss: float) -> None:
            if self.progress is not None:
                self.progress(f"optimize (loss {loss:.4f})", step, steps)

        def show(step: int, field: EnsembleField) -> None:
            assert on_mesh is not None
            for wanted in levels:
                try:
                    surface, _, _ = self.extract(field, _logit(wanted))
                    on_mesh(step, wanted, self.finish(surface, field, wanted))
                except EmptyReconstructionError:
                    self.notes.append(f"after {step} steps there was no surface at threshold {wanted:g}")

        found = optimize_field(
            self.owner.model,
            self.unit,
            options,
            ensemble=self.ensemble,
            seed=self.settings.seed,
            progress=report,
            snapshot=None if on_mesh is None else show,
        )
        assert found.field is not None
        done = len(found.losses)
        if on_mesh is not None and done % (options.snapshot_every or options.decay_every):
            show(done, found.field)
        self.facts["optimization"] = {
            "steps": done,
            "plateau": found.plateau,
            "loss_first": found.per_point[0] if done else None,
            "loss_last": found.per_point[-1] if done else None,
        }
        return found.field

    def extract(self, field: EnsembleField, level: float) -> tuple[Surface, dict[str, Any], list[str]]:
        """The surface of a field in the unit cube; see `extract_surface`."""
        report = None if self.progress is None else functools.partial(self.progress, "evaluate")
        return extract_surface(field, self.settings, level, self.box, self.unit, report)

    def finish(self, surface: Surface, field: EnsembleField, threshold: float) -> trimesh.Trimesh:
        """The mesh of a surface in the input's units and frame."""
        # All points, not only those the network saw: dense scans place the surface better than any network.
        points = self.clean.frame.to_unit(self.clean.points)
        finish_surface(surface, self.settings, points, self._refinement(field, threshold))
        return _mesh(surface, self.clean)

    def _refinement(
        self, field: EnsembleField, threshold: float
    ) -> Callable[[NDArray[np.float64], NDArray[np.int64]], Refinement]:
        """Moves vertices into the field."""
        settings, plain = self.settings, RefineOptions()
        each = self.ensemble * query_bytes(self.owner.model, kept=True)
        options = dataclasses.replace(
            plain,
            steps=settings.refine,
            learning_rate=plain.learning_rate * min(1.0, _REFINE_RESOLUTION / settings.resolution),
            seed=settings.seed,
            chunk=chunk_within(settings.memory, each, plain.chunk),
        )
        report = None if self.progress is None else functools.partial(self.progress, "refine")
        device = self.owner.device

        def refine(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Refinement:
            return refine_vertices(vertices, faces, field, threshold, options, device=device, progress=report)

        return refine


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


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


def _mesh(surface: Surface, clean: CleanCloud) -> trimesh.Trimesh:
    """The surface in the units and frame of the input."""
    import trimesh

    vertices = clean.frame.to_input(surface.vertices)
    return trimesh.Trimesh(vertices, surface.faces, vertex_normals=surface.normals, process=False)


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
