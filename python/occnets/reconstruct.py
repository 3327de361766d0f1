# SPDX-License-Identifier: MIT
"""Point cloud, picture or voxels in, closed mesh out, in the units and frame of the input."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from occnets import other_inputs
from occnets.adapt import OnMesh, adapted_field, with_threshold
from occnets.components import mesh_statistics
from occnets.ensemble import EnsembleField, cube_symmetries
from occnets.extraction import extract_surface
from occnets.finish import EmptyReconstructionError, Surface, finish_surface
from occnets.io import PointCloud, VoxelGrid
from occnets.memory import chunk_within, query_bytes
from occnets.normalize import CleanCloud, Frame, clean_cloud, subsample
from occnets.precision import check_precision
from occnets.refine import Refinement, RefineOptions, refine_vertices
from occnets.result import Clock, Progress, Reconstruction, Source
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

DEFAULT_POINTS = 50_000
"""Points given to a network whose configuration does not say how many it was trained with."""

_CLOUD_INPUTS = ("pointcloud", "partial_pointcloud")
_PADDING = 0.1  # queries live in the unit cube enlarged by this, if the model's configuration does not say
_REFINE_RESOLUTION = 128  # what the family's learning rate is made for; finer lattices take shorter steps


class Reconstructor:
    """A network with everything around it.

    Args:
        model: offers ``encode(inputs (1, N, 3)) -> features`` and ``decode(query (1, M, 3), features) -> (1, M)``.
        config: the family's configuration of the model (``data``, ``test``), used for threshold and trained range.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        name: how to call the model in reports.
        precision: of the encoder: ``"fp32"``, ``"bf16"`` or ``"fp16"``; see `occnets.precision`.

    Attributes:
        reads: what the model reads: ``pointcloud``, ``img``, ``voxels``, ...; ``none`` for unconditional models.

    Raises:
        ValueError: the device or the precision does not exist.
    """

    def __init__(
        self,
        model: Any,
        config: Mapping[str, Any] | None = None,
        device: str | torch.device = "auto",
        name: str = "",
        *,
        precision: str = "fp32",
    ) -> None:
        check_precision(precision)
        self.precision = precision
        self.device = pick_device(device)
        self.model = model.to(self.device).eval() if isinstance(model, torch.nn.Module) else model
        self.config: Mapping[str, Any] = config or {}
        self.name = name or type(model).__name__
        self.reads = str((self.config.get("data") or {}).get("input_type", "pointcloud") or "none")

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        config: Any = None,
        device: str | torch.device = "auto",
        *,
        precision: str = "fp32",
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Reconstructor:
        """Load a model.

        Args:
            name: of a bundled model or of one the original authors released (downloaded once, see `occnets.released`);
                a model folder; a ``.pt`` file with its configuration; or a configuration file that names its weights.
            config: configuration (mapping or path of a YAML file) of a ``.pt`` file.
            device: see `Reconstructor`.
            precision: see `Reconstructor`.
            progress: called with (bytes so far, bytes in all or None) during a download.

        Raises:
            ValueError, OSError: unknown name, missing file, failed download or unreadable weights; see
                `occnets.checkpoints`.
        """
        from occnets.checkpoints import load_pretrained

        device = pick_device(device)
        check_precision(precision)
        model, loaded = load_pretrained(name, config, progress=progress)
        return cls(model, loaded, device, os.path.basename(os.fspath(name).rstrip("/\\")), precision=precision)

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
            ValueError: an option is out of range, or the model reads something else.
        """
        self._need("point clouds", _CLOUD_INPUTS)
        settings = settings_from(config, options)
        start = time.perf_counter()
        clock = Clock(self.device)
        notes = list(points.notes) if isinstance(points, PointCloud) else []
        raw = np.asarray(points.points if isinstance(points, PointCloud) else points, dtype=np.float64)
        with clock.stage("prepare"):
            clean = clean_cloud(raw, outliers=settings.outliers, seed=settings.seed)
            if settings.frame == "unit":
                clean = self._in_unit_frame(clean)
            limit = settings.max_points or trained_range(self.config, "pointcloud_n", DEFAULT_POINTS)[1]
            chosen = subsample(clean.points, int(limit), settings.seed)
            unit = torch.from_numpy(clean.frame.to_unit(chosen).astype(np.float32)).to(self.device)
        notes += [*clean.warnings, *self._range_warnings(len(clean.points), clean.noise)]
        if self.reads == "partial_pointcloud" and settings.frame == "auto":
            notes.append(
                "the model completes parts of objects, but the cloud was scaled as if it were a whole one; give "
                "coordinates in the whole object's unit cube, and --frame unit"
            )
        ensemble = settings.ensemble or int((self.config.get("test") or {}).get("ensemble") or 1)
        settings = dataclasses.replace(settings, max_points=int(limit), ensemble=ensemble)
        # All points, not only those the network saw: dense scans place the surface better than any network.
        source = Source(clean.frame, _input_statistics(raw, clean, len(chosen)), chosen, clean.points, notes)
        facts: dict[str, Any] = {}
        with torch.no_grad():  # not inference mode: refinement differentiates through the features
            if settings.optimize is None:
                with clock.stage("encode"):
                    field = EnsembleField(self.model, unit, ensemble, precision=self.precision)
            else:
                settings = with_threshold(settings)
                with clock.stage("optimize"):
                    field, found = adapted_field(self, unit, source, settings, progress, on_mesh)
                facts["optimization"] = found
            result = self._surface(field, source, settings, clock, progress)
        result.stats.update(facts)
        result.timings["total"] = time.perf_counter() - start
        return result

    def reconstruct_image(
        self,
        image: NDArray,
        config: ReconstructionConfig | None = None,
        *,
        pose: NDArray | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Reconstruct a closed mesh from one picture.

        Args:
            image: (H, W, 3) or (H, W), uint8 or floating in [0, 1]; see `occnets.io.read_image`.
            config: options; keyword arguments override single fields of it. Those about points have no effect.
            pose: (4, 4) or (3, 4), the rigid map from world to camera, for models that take one.
            progress: see `reconstruct`.
            **options: fields of `ReconstructionConfig`.

        Returns:
            The mesh in the unit cube [-0.5, 0.5]³, as the model was trained.

        Raises:
            EmptyReconstructionError: the network sees no surface.
            ValueError: the model reads something else, a pose is missing or of no use, or an option is out of range.
        """
        self._need("pictures", ("img",))
        return other_inputs.reconstruct_image(self, image, pose, settings_from(config, options), progress)

    def reconstruct_voxels(
        self,
        voxels: NDArray | VoxelGrid,
        config: ReconstructionConfig | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Reconstruct a closed mesh of any resolution from a grid of voxels.

        Args:
            voxels: a `VoxelGrid`, or (n, n, n) truth values or numbers in [0, 1], axes (x, y, z), which fill the unit
                cube.
            config: options; keyword arguments override single fields of it. Those about points have no effect.
            progress: see `reconstruct`.
            **options: fields of `ReconstructionConfig`.

        Returns:
            The mesh in the frame of the grid.

        Raises:
            EmptyReconstructionError: the network sees no surface.
            ValueError: the model reads something else, the grid does not fit it, or an option is out of range.
        """
        self._need("voxels", ("voxels",))
        return other_inputs.reconstruct_voxels(self, voxels, settings_from(config, options), progress)

    def reconstruct_latent(
        self,
        code: NDArray | torch.Tensor,
        config: ReconstructionConfig | None = None,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Mesh of a latent code of an unconditional model, in the unit cube.

        Args:
            code: (Z,), for example of `occnets.models.latent.latent_of_seed` or ``interpolate_latents``.
            config: options; keyword arguments override single fields of it. Those about points have no effect.
            progress: see `reconstruct`.
            **options: fields of `ReconstructionConfig`.

        Raises:
            EmptyReconstructionError: the code has no surface.
            ValueError: the model has an input or no latent code, the code does not fit, or an option is out of range.
        """
        return other_inputs.reconstruct_latent(self, code, settings_from(config, options), progress)

    def _in_unit_frame(self, clean: CleanCloud) -> CleanCloud:
        """A cloud whose coordinates are the network's own."""
        reach = 0.5 * (1.0 + float((self.config.get("data") or {}).get("padding", _PADDING)))
        farthest = float(np.abs(clean.points).max())
        if farthest > reach:
            raise ValueError(
                f"reconstruct: with frame='unit' (--frame unit) coordinates lie between {-reach:g} and {reach:g}, the "
                f"largest is {farthest:g}; leave the option out to have the cloud scaled"
            )
        return dataclasses.replace(clean, frame=Frame(np.zeros(3), 1.0), noise=clean.noise * clean.frame.scale)

    def _need(self, words: str, kinds: tuple[str, ...]) -> None:
        if self.reads not in kinds:
            instead = {"none": "; it makes shapes from nothing: 'occnets generate'"}.get(self.reads, "")
            raise ValueError(
                f"Reconstructor: model '{self.name}' reads {self.reads}{instead}; {words} need one that reads "
                f"{' or '.join(kinds)}, see 'occnets models'"
            )

    def _surface(
        self,
        field: EnsembleField,
        source: Source,
        settings: ReconstructionConfig,
        clock: Clock,
        progress: Progress | None,
    ) -> Reconstruction:
        """The way from a field to a mesh, the same for every input."""
        level, threshold = self._level(settings.threshold)
        unit = torch.from_numpy(source.frame.to_unit(source.seen).astype(np.float32)).to(self.device)
        with clock.stage("extract"):
            box = 1.0 + float((self.config.get("data") or {}).get("padding", _PADDING))
            report = None if progress is None else functools.partial(progress, "evaluate")
            surface, facts, remarks = extract_surface(field, settings, level, box, unit, report)
        with clock.stage("finish"):
            refine = self._refinement(field, settings, threshold, len(field.turns), progress)
            finish_surface(surface, settings, source.frame.to_unit(source.measured), refine)
            mesh = _mesh(surface, source.frame)
        stats = {
            "input": source.statistics,
            "settings": {**dataclasses.asdict(settings), "threshold": threshold, "precision": self.precision},
            "field": facts,
            "mesh": {**mesh_statistics(np.asarray(mesh.vertices), np.asarray(mesh.faces)), **surface.facts},
        }
        return Reconstruction(mesh, stats, clock.seconds, (*source.notes, *remarks, *surface.notes), source.seen)

    def _refinement(
        self,
        field: EnsembleField,
        settings: ReconstructionConfig,
        threshold: float,
        ensemble: int,
        progress: Progress | None,
    ) -> Callable[[NDArray[np.float64], NDArray[np.int64]], Refinement]:
        """Moves vertices into the field."""
        each = ensemble * query_bytes(self.model, kept=True)
        plain = RefineOptions()
        options = dataclasses.replace(
            plain,
            steps=settings.refine,
            learning_rate=plain.learning_rate * min(1.0, _REFINE_RESOLUTION / settings.resolution),
            seed=settings.seed,
            chunk=chunk_within(settings.memory, each, plain.chunk),
        )
        report = None if progress is None else functools.partial(progress, "refine")

        def refine(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> Refinement:
            return refine_vertices(vertices, faces, field, threshold, options, device=self.device, progress=report)

        return refine

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


def _mesh(surface: Surface, frame: Frame) -> trimesh.Trimesh:
    """The surface in the units and frame of the input."""
    import trimesh

    vertices = frame.to_input(surface.vertices)
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
