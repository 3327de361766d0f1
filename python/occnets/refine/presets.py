# SPDX-License-Identifier: MIT
"""Options of sign-agnostic optimisation: the default, and the original's presets by name. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARAMETERS = ("all", "encoder", "decoder", "features")
"""What may be optimised."""

_WHOLE = (
    ("steps", 0),
    ("decay_every", 1),
    ("batch", 1),
    ("surface_points", 1),
    ("space_points", 0),
    ("check_every", 1),
    ("snapshot_every", 0),
    ("window_points", 1),
    ("window_queries", 1),
)
_AMOUNTS = ("sigma", "surface_weight", "space_weight", "anchor", "tolerance", "clearance", "consensus", "disputed")


@dataclass(frozen=True)
class OptimizeOptions:
    """Options of `occnets.refine.optimize_field` and `optimize_scene`.

    Attributes:
        steps: of Adam, at most.
        learning_rate: of Adam at the start.
        decay: factor on the learning rate after every ``decay_every`` steps; Adam's moments are kept.
        decay_every: see ``decay``.
        batch: draws of points in one step; the loss is their mean. For scenes, windows in one step.
        surface_points: points of one draw on the surface: measured points, with replacement.
        space_points: points of one draw off the surface: measured points moved by Gaussian noise.
        sigma: standard deviation of that noise, in units of the unit cube (for scenes, of the longest side).
        parameters: ``"all"`` (encoder and decoder), ``"encoder"``, ``"decoder"``, or, an extension, ``"features"``: the
            feature maps of this one input, so that a correction stays where its cause is.
        freeze_norms: keep weights and biases of normalisation layers. Their statistics are always kept.
        thresholds: probabilities at which intermediate and final meshes are wanted; empty for the model's.
        surface_weight: weight of the terms of points on the surface.
        space_weight: weight of the terms of points off the surface.
        clearance: extension: points off the surface closer to a measured point than so many point spacings are left
            out; 0 keeps all.
        anchor: extension: weight of the squared difference to the original logits at the points off the surface.
        consensus: extension: weight of the network's opinion against short boundaries when signs are chosen before the
            optimisation, see `occnets.refine.consensus`. Points off the surface are then pushed to that sign instead of
            away from zero. 0 chooses none.
        consensus_reach: distance from the points, in spacings, from which on boundaries cost their full price.
        disputed: share of the points off the surface that is drawn where the chosen sign is not the network's.
        check_every: the mean loss of so many steps is what is watched for a plateau.
        patience: stop when that mean has not fallen for so many checks; None never stops early.
        tolerance: relative fall that counts.
        snapshot_every: steps between intermediate meshes, where they are asked for; 0 for ``decay_every``.
        window_points: scenes only: points of the cloud one window is cut from.
        window_queries: scenes only: query points in one window.
    """

    steps: int = 100
    learning_rate: float = 3e-5
    decay: float = 0.3
    decay_every: int = 300
    batch: int = 1
    surface_points: int = 1024
    space_points: int = 3072
    sigma: float = 0.1
    parameters: str = "all"
    freeze_norms: bool = False
    thresholds: tuple[float, ...] = ()
    surface_weight: float = 1.0
    space_weight: float = 1.0
    clearance: float = 0.0
    anchor: float = 0.0
    consensus: float = 0.0
    consensus_reach: float = 3.0
    disputed: float = 0.0
    check_every: int = 10
    patience: int | None = 3
    tolerance: float = 1e-3
    snapshot_every: int = 0
    window_points: int = 65_536
    window_queries: int = 65_536

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(float(value) for value in self.thresholds))
        for name, low in _WHOLE:
            value = getattr(self, name)
            if isinstance(value, bool) or value != int(value) or value < low:
                raise ValueError(f"OptimizeOptions: `{name}` must be a whole number from {low} on, got {value!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"OptimizeOptions: `patience` must be at least 1 or None, got {self.patience}")
        for name in _AMOUNTS:
            if not getattr(self, name) >= 0:
                raise ValueError(f"OptimizeOptions: `{name}` must not be negative, got {getattr(self, name)!r}")
        if not (self.learning_rate > 0 and self.consensus_reach > 0) or not 0 < self.decay <= 1 or self.disputed > 1:
            raise ValueError(
                "OptimizeOptions: `learning_rate` and `consensus_reach` must be positive, `decay` in (0, 1] and "
                f"`disputed` at most 1, got {self.learning_rate}, {self.consensus_reach}, {self.decay}, {self.disputed}"
            )
        if self.parameters not in PARAMETERS:
            raise ValueError(
                f"OptimizeOptions: `parameters` must be one of {', '.join(PARAMETERS)}, got {self.parameters!r}"
            )
        if any(not 0.0 < value < 1.0 for value in self.thresholds):
            raise ValueError(f"OptimizeOptions: `thresholds` are probabilities, got {self.thresholds}")


_ORIGINAL = OptimizeOptions(
    steps=720,
    learning_rate=3e-5,
    decay=0.3,
    decay_every=300,
    thresholds=(0.4, 0.45, 0.5),
    sigma=0.1,
    patience=None,
)

PRESETS: dict[str, OptimizeOptions] = {
    "default": OptimizeOptions(
        steps=20,
        learning_rate=0.05,
        decay=0.3,
        decay_every=10,
        batch=1,
        surface_points=256,
        space_points=2048,
        parameters="features",
        surface_weight=0.01,
        clearance=1.0,
        anchor=0.1,
        consensus=0.3,
        disputed=0.3,
        check_every=5,
    ),
    "object": dataclasses.replace(_ORIGINAL, batch=16, surface_points=512, space_points=1536),
    "scene": dataclasses.replace(_ORIGINAL, batch=6, surface_points=1536, space_points=512),
    "large-scene": dataclasses.replace(
        _ORIGINAL,
        steps=2000,
        decay_every=800,
        batch=3,
        parameters="encoder",
        freeze_norms=True,
        thresholds=(0.2, 0.25, 0.3),
    ),
}
"""``object``, ``scene`` and ``large-scene`` are those of Tang et al.'s published configurations, number for number (the
last for crop models, see `occnets.refine.optimize_scene`); ``default`` is this project's."""

_FAMILY = {
    "learning_rate": "learning_rate",
    "decay_rate": "decay",
    "n_iter": "steps",
    "n_step": "decay_every",
    "batch_size": "batch",
    "npoints_surf": "surface_points",
    "npoints_nonsurf": "space_points",
    "sigma": "sigma",
    "threshold": "thresholds",
}


def preset(name: str) -> OptimizeOptions:
    """The preset of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset of the optimisation {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def options_from_config(config: Mapping[str, Any]) -> OptimizeOptions | None:
    """Options from the section ``test_optim`` of a family configuration; None where there is none.

    Args:
        config: with ``test_optim``: onlyencoder, learning_rate, decay_rate, n_iter, n_step, batch_size, npoints_surf,
            npoints_nonsurf, sigma, threshold (a number or a list). Keys that are missing have the original's values.

    Raises:
        ValueError: a value is out of range.
    """
    section = config.get("test_optim")
    if not section:
        return None
    windows = "crop" in str((config.get("data") or {}).get("input_type", ""))
    base = PRESETS["large-scene" if windows else "object"]
    fields = {ours: section[theirs] for theirs, ours in _FAMILY.items() if section.get(theirs) is not None}
    if isinstance(fields.get("thresholds"), (int, float)):
        fields["thresholds"] = (fields["thresholds"],)
    if section.get("onlyencoder") is not None:
        fields["parameters"] = "encoder" if section["onlyencoder"] else "all"
    return dataclasses.replace(base, **fields)


def optimize_options(value: Any, base: str = "default") -> OptimizeOptions | None:
    """What a user may give for options: None or 0 (no optimisation), steps, a preset's name, or the options.

    Args:
        value: what was given.
        base: the preset that steps are of.

    Raises:
        ValueError: anything else, or out of range.
    """
    if value is None or isinstance(value, OptimizeOptions):
        return value
    if isinstance(value, str):
        return preset(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return dataclasses.replace(PRESETS[base], steps=value) if value else None
    raise ValueError(
        f"`optimize` must be a number of steps, a preset ({', '.join(PRESETS)}) or OptimizeOptions, got {value!r}"
    )
