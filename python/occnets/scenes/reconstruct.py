# SPDX-License-Identifier: MIT
"""Clouds of any extent: one mesh from windows of bounded memory, without seams."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from occnets.adapt import loss_report, with_threshold
from occnets.check import check_mesh
from occnets.components import mesh_statistics
from occnets.finish import EmptyReconstructionError
from occnets.fit import point_spacing, vertex_normals
from occnets.io import PointCloud
from occnets.normalize import MINIMUM_POINTS, DegenerateCloudError
from occnets.reconstruct import Progress, Reconstruction, Reconstructor
from occnets.refine import OptimizeOptions, optimize_scene
from occnets.scenes.mesh import clean_parts, fit_scene, trim, weld
from occnets.scenes.network import WindowNetwork
from occnets.scenes.settings import DEFAULT_CELLS, SceneConfig, choose_side, scene_config
from occnets.scenes.store import TileStore, fingerprint, model_fingerprint
from occnets.scenes.tiles import BLOCK, SceneFrame, TileLattice, make_frame, make_tiles
from occnets.scenes.windows import CellTable, TileWork, work_through

_NORM_WINDOWS = 8  # windows that group norms are measured on
_NORM_CELLS = 64  # cells along their side, the next multiple of the stride
_SHOWN = 100_000  # points kept for pictures


@dataclass(frozen=True)
class _Plan:
    """What was chosen for a scene.

    Attributes:
        frame: its cells.
        spacing: of the points, input units.
        points: (N, 3) in cells, sorted by cell.
        cells: (K, 3) occupied cells.
        owner: (N,) the occupied cell of each point.
        lattice: blocks and tiles.
    """

    frame: SceneFrame
    spacing: float
    points: NDArray[np.float64]
    cells: NDArray[np.int64]
    owner: NDArray[np.int64]
    lattice: TileLattice


def reconstruct_scene(
    reconstructor: Reconstructor,
    points: NDArray | PointCloud,
    config: SceneConfig | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Reconstruction:
    """Reconstruct a scene tile by tile.

    The cells' features are computed once; a tile's window reaches over it by the receptive field of the U-Net, so that
    its features are those of the undivided scene; and every lattice node has one tile that evaluates it, so that the
    pieces of the mesh fit. Tiles without points nearby are skipped.

    Group norms, which the crop models of Peng et al. have, look at the whole window, so that neighbouring windows would
    disagree. They are given the mean statistics of eight windows of the scene, and a warning says so.

    Args:
        reconstructor: with a model that sees the surroundings of a place only, such as ``convonet-crop``.
        points: (N, 3) in any units, or a `PointCloud`.
        config: options; keyword arguments override single fields of it.
        folder: where finished tiles are kept, to continue after an interruption; without one they go to a temporary
            folder.
        progress: called with (stage, done, total).
        say: called with lines for the user: what was chosen.
        **options: fields of `SceneConfig`.

    Returns:
        The mesh in the units and frame of ``points``; closed unless ``trim`` is set.

    Raises:
        DegenerateCloudError: too few points, or NaN.
        EmptyReconstructionError: the network sees no surface.
        ValueError: the model cannot be used for scenes, an option is out of range, or ``folder`` holds something else.
    """
    settings = with_threshold(scene_config(config, options))
    start, seconds = time.perf_counter(), {}
    cloud = np.asarray(points.points if isinstance(points, PointCloud) else points, dtype=np.float64)
    notes = list(points.notes) if isinstance(points, PointCloud) else []
    network = WindowNetwork(reconstructor.model, reconstructor.device)
    if settings.optimize is not None and getattr(reconstructor.model, "crop", None) is None:
        raise ValueError(
            "reconstruct_scene: `optimize` needs a model that was trained on crops of one unit_size (input type "
            "pointcloud_crop), such as the released pointcloud_crop/room_grid64"
        )

    def stage(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - began
        return result

    plan: _Plan = stage("prepare", lambda: _plan(cloud, settings, reconstructor.config, network))
    tell = say or (lambda line: None)
    tell(_chosen(plan, network))
    report = (lambda name: None) if progress is None else (lambda name: functools.partial(progress, name))
    adapted: dict[str, Any] = {}
    if isinstance(settings.optimize, OptimizeOptions):
        reconstructor, adapted = stage("optimize", lambda: _adapted(reconstructor, plan, settings, progress))
        network = WindowNetwork(reconstructor.model, reconstructor.device)
    table = stage(
        "encode", lambda: CellTable(plan.cells, network.cell_features(plan.points, plan.owner, report("encode")))
    )
    if network.has_norms:
        stage("norms", lambda: network.fix_norms(_sample_windows(plan, table, network, settings.seed)))
        notes.append(
            f"the model's group norms were given the mean statistics of {_NORM_WINDOWS} windows of this scene, so that "
            "windows agree; models without them, such as convonet-crop, need no such compromise"
        )
    threshold = settings.threshold or float((reconstructor.config.get("test") or {}).get("threshold") or 0.5)
    level = math.log(threshold / (1.0 - threshold))
    work = TileWork(network, table, plan.lattice, settings.steps, level)
    with ExitStack() as stack:
        place = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="occnets-scene-"))
        store = TileStore(place, _origin(cloud, reconstructor, plan, settings, level))
        stage("tiles", lambda: work_through(work, store, settings.batch, report("tiles")))
        pieces = ((np.array(tile.index) * work.span, store.mesh(tile.index)) for tile in plan.lattice.tiles)
        steps, faces = stage("weld", lambda: weld(pieces))
    mesh = (steps / settings.steps, faces)
    vertices, faces, normals, facts = stage("finish", lambda: _finish(mesh, plan, settings, notes))
    seconds["total"] = time.perf_counter() - start
    result = _result(plan, settings, (vertices, faces, normals), facts, {"threshold": threshold}, seconds, notes)
    result.stats.update({"optimization": adapted} if adapted else {})
    return result


def _plan(
    cloud: NDArray[np.float64], settings: SceneConfig, config: Mapping[str, Any], network: WindowNetwork
) -> _Plan:
    if cloud.ndim != 2 or cloud.shape[1] != 3:
        raise ValueError(f"reconstruct_scene: `points` must have shape (N, 3), got {cloud.shape}")
    if len(cloud) < MINIMUM_POINTS:
        raise DegenerateCloudError(f"the input has {len(cloud)} points; at least {MINIMUM_POINTS} are needed")
    if not np.isfinite(cloud).all():
        raise DegenerateCloudError("the input has points with NaN or infinite coordinates; remove them and try again")
    sample = np.random.default_rng(settings.seed).permutation(len(cloud))
    spacing = point_spacing(cKDTree(cloud), cloud[sample[:5000]])
    if not spacing > 0:
        raise DegenerateCloudError("most points coincide with others; remove duplicates and try again")
    ratio = float((config.get("data") or {}).get("cells_per_spacing") or DEFAULT_CELLS)
    frame = make_frame(cloud, settings.unit_size or ratio * spacing, settings.reach)
    local = frame.to_cells(cloud)
    where = np.floor(local).astype(np.int64)
    order = np.lexsort((where[:, 2], where[:, 1], where[:, 0]))
    local, where = local[order], where[order]
    fresh = np.concatenate([[True], (where[1:] != where[:-1]).any(axis=1)])
    cells = where[fresh]
    lattice = make_tiles(cells, settings.reach, 1, settings.steps)
    extent = np.ptp(lattice.blocks, axis=0) + 1
    if settings.window:
        side = settings.window // BLOCK
    else:
        side = choose_side(int(settings.memory) // settings.batch, network.window_bytes(), network.field.halo, extent)
    side = min(side, int(lattice.nodes.max()))  # a larger tile would only waste memory
    return _Plan(frame, spacing, local, cells, np.cumsum(fresh) - 1, dataclasses.replace(lattice, side=side))


def _adapted(
    reconstructor: Reconstructor, plan: _Plan, settings: SceneConfig, progress: Progress | None
) -> tuple[Reconstructor, dict[str, Any]]:
    """A reconstructor whose copy of the network learnt from random windows of the scene, and what happened."""
    options, crop = settings.optimize, reconstructor.model.crop
    assert isinstance(options, OptimizeOptions)
    # The windows' sides are in the unit of the model's unit_size, which is the side of its cells as here.
    unit = torch.from_numpy((plan.points * crop.unit_size).astype(np.float32)).to(reconstructor.device)
    report = loss_report(progress)
    found = optimize_scene(reconstructor.model, unit, options, seed=settings.seed, progress=report)
    after = copy.copy(reconstructor)
    after.model = found.model
    return after, found.summary()


def _chosen(plan: _Plan, network: WindowNetwork) -> str:
    unit, lattice = plan.frame.unit_size, plan.lattice
    window = lattice.side * BLOCK
    size = np.ptp(lattice.blocks, axis=0) + 1
    extent = " x ".join(f"{value * BLOCK}" for value in size)
    return (
        f"scene: point spacing {plan.spacing:.4g}, cells of {unit:.4g} (--unit-size), {extent} cells, windows of "
        f"{window} cells = {window * unit:.4g} (--window), a halo of {network.field.halo}, {len(lattice.tiles)} tiles"
    )


def _sample_windows(plan: _Plan, table: CellTable, network: WindowNetwork, seed: int) -> list[torch.Tensor]:
    """Windows around random occupied cells."""
    rng = np.random.default_rng(seed)
    side = -(-_NORM_CELLS // network.field.stride) * network.field.stride
    centers = plan.cells[rng.choice(len(plan.cells), _NORM_WINDOWS)]
    return [table.window(center - side // 2, np.array([side] * 3)) for center in centers]


def _origin(
    cloud: NDArray[np.float64], reconstructor: Reconstructor, plan: _Plan, settings: SceneConfig, level: float
) -> dict[str, Any]:
    """What the tiles depend on."""
    return {
        "points": fingerprint(cloud),
        "model": model_fingerprint(reconstructor.model),
        "unit_size": plan.frame.unit_size,
        "window": plan.lattice.side * BLOCK,
        "steps": settings.steps,
        "reach": settings.reach,
        "level": level,
        "seed": settings.seed,
    }


def _finish(
    mesh: tuple[NDArray[np.float64], NDArray[np.int64]], plan: _Plan, settings: SceneConfig, notes: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None, dict[str, Any]]:
    """Clean, fit, check, trim; vertices come back in input units."""
    mesh, removed = clean_parts(mesh, plan.points, settings.components)
    vertices, faces = mesh
    if not len(faces):
        raise EmptyReconstructionError(
            "no surface found near the points; try another --unit-size or a lower --threshold, or another model"
        )
    if settings.fit:
        vertices = fit_scene((vertices, faces), plan.points)
    problems = check_mesh(vertices, faces).problems()
    notes += [f"the mesh is defective: it has {problem}" for problem in problems]
    facts: dict[str, Any] = {"removed_components": removed, "problems": list(problems)}
    if settings.trim is not None:
        facts["trimmed_from"] = len(faces)
        distance = settings.trim * plan.spacing / plan.frame.unit_size
        vertices, faces = trim((vertices, faces), plan.points, distance)
        if not len(faces):
            raise EmptyReconstructionError(
                f"nothing is within {settings.trim:g} point spacings of the points; cut off less with --open"
            )
    normals = vertex_normals(vertices, faces) if settings.normals else None
    return plan.frame.to_input(vertices), faces, normals, facts


def _result(
    plan: _Plan,
    settings: SceneConfig,
    surface: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None],
    facts: dict[str, Any],
    chosen: dict[str, Any],
    seconds: dict[str, float],
    notes: list[str],
) -> Reconstruction:
    import trimesh

    vertices, faces, normals = surface
    mesh = trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False)
    low, high = (plan.frame.to_input(bound) for bound in (plan.points.min(axis=0), plan.points.max(axis=0)))
    stats = {
        "input": {
            "points": len(plan.points),
            "points_used": len(plan.points),
            "duplicates_removed": 0,
            "outliers_removed": 0,
            "spacing": plan.spacing,
            "bounds": [low.tolist(), high.tolist()],
        },
        "settings": {
            **dataclasses.asdict(settings),
            **chosen,
            "unit_size": plan.frame.unit_size,
            "window": plan.lattice.side * BLOCK,
        },
        "field": {
            "cells": len(plan.cells),
            "blocks": len(plan.lattice.blocks),
            "tiles": len(plan.lattice.tiles),
            "evaluated": len(plan.lattice.blocks) * (BLOCK * settings.steps) ** 3,
        },
        "mesh": {**mesh_statistics(vertices, faces), **facts},
    }
    shown = np.random.default_rng(0).permutation(len(plan.points))[:_SHOWN]
    return Reconstruction(mesh, stats, seconds, tuple(notes), plan.frame.to_input(plan.points[shown]))
