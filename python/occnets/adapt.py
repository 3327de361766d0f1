# SPDX-License-Identifier: MIT
"""A step of reconstruction: adapts the network to the cloud, with intermediate meshes and numbers for the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from occnets.ensemble import EnsembleField
from occnets.finish import EmptyReconstructionError
from occnets.refine import OptimizeOptions, OptimizeProgress, optimize_field
from occnets.result import Clock, Progress, Source
from occnets.settings import ReconstructionConfig

if TYPE_CHECKING:
    import trimesh

    from occnets.reconstruct import Reconstructor
    from occnets.scenes.settings import SceneConfig

Settings = TypeVar("Settings", ReconstructionConfig, "SceneConfig")

OnMesh = Callable[[int, float, "trimesh.Trimesh"], None]
"""Takes intermediate meshes: (steps done, threshold, mesh)."""


def with_threshold(settings: Settings) -> Settings:
    """Settings whose threshold is the last of the optimisation's, unless one was given."""
    options = settings.optimize
    if settings.threshold is not None or not isinstance(options, OptimizeOptions) or not options.thresholds:
        return settings
    return dataclasses.replace(settings, threshold=options.thresholds[-1])


def loss_report(progress: Progress | None) -> OptimizeProgress | None:
    """Progress of an optimisation as progress of a reconstruction, with the loss per point as the stage's remark."""
    if progress is None:
        return None
    return lambda step, steps, loss: progress(f"optimize (loss {loss:.4f})", step, steps)


def adapted_field(
    owner: Reconstructor,
    unit: torch.Tensor,  # (N, 3)
    source: Source,
    settings: ReconstructionConfig,
    progress: Progress | None,
    on_mesh: OnMesh | None,
) -> tuple[EnsembleField, dict[str, Any]]:
    """The field of a copy of the network that was adapted to a cloud, and what happened, ready for JSON.

    Args:
        owner: whose network it is.
        unit: the cloud in the unit cube.
        source: the input, for intermediate meshes; gets remarks.
        settings: with ``optimize`` and ``ensemble`` set.
        progress: see `Reconstructor.reconstruct`; the stage's remark is the loss per point.
        on_mesh: see `Reconstructor.reconstruct`.
    """
    options = settings.optimize
    assert isinstance(options, OptimizeOptions) and settings.ensemble is not None
    levels = options.thresholds or (owner._level(settings.threshold)[1],)

    def show(step: int, field: EnsembleField) -> None:
        assert on_mesh is not None
        for wanted in levels:
            level = dataclasses.replace(settings, threshold=wanted)
            try:
                on_mesh(step, wanted, owner._surface(field, source, level, Clock(owner.device), None).mesh)
            except EmptyReconstructionError:
                source.notes.append(f"after {step} steps there was no surface at threshold {wanted:g}")

    found = optimize_field(
        owner.model,
        unit,
        options,
        ensemble=settings.ensemble,
        seed=settings.seed,
        progress=loss_report(progress),
        snapshot=None if on_mesh is None else show,
    )
    assert found.field is not None
    done = len(found.losses)
    if on_mesh is not None and (not done or done % (options.snapshot_every or options.decay_every)):
        show(done, found.field)
    return found.field, found.summary()
