# SPDX-License-Identifier: MIT
"""Sign-agnostic optimisation: a trained network adapts to one cloud before its surface is taken.

Measured points say where the surface is, though not which side is inside. So the absolute value of the logit is
trained: towards zero at measured points and upward everywhere else, while the signs stay those the network began with
(Tang et al., Sign-Agnostic Optimization of Convolutional Occupancy Networks, ICCV 2021). All work is done on a copy.

The original's presets do just that. On the bundled model, in runs of up to 200 steps, they did not help: its surface
already passes through the points when it is finished (`occnets.fit`), and its mistakes are wrong signs, which the loss
only makes firmer. The default preset chooses signs first (`occnets.refine.consensus`) and learns the maps of the
one input instead of the network, so that a correction in one place changes nothing elsewhere.

Two things are cheaper than in the original and give the same numbers. The cloud is encoded once in a step, not once for
each draw of points; and its points are sorted into cells once for all steps, wherever the encoder's cells do not depend
on what is learnt.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from occkernels import bin_points
from occnets.ensemble import EnsembleField, Turn, cube_symmetries
from occnets.models.convonet import ConvolutionalOccupancyNetwork
from occnets.models.encoders import LocalPoolPointnet
from occnets.refine.draws import ON_SURFACE, Draw, ObjectDraws, WindowDraws
from occnets.refine.lazy_adam import LazyAdam
from occnets.refine.presets import PRESETS, OptimizeOptions

OptimizeProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps, loss of the step per point)."""

_MAPS = frozenset(("grid", "xz", "xy", "yz", "planes", "features", "c"))  # what ``parameters="features"`` may change
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Optimization:
    """An adapted network.

    Attributes:
        model: the adapted copy, in evaluation mode.
        field: logits of the cloud, as `occnets.ensemble.EnsembleField`; None for scenes.
        losses: of every step: summed over the points of a draw, mean over draws.
        per_point: the same, divided by the points.
        plateau: it ended early because the loss no longer fell.
    """

    model: nn.Module
    field: EnsembleField | None
    losses: tuple[float, ...]
    per_point: tuple[float, ...]
    plateau: bool

    def summary(self) -> dict[str, Any]:
        """What happened, ready for JSON: ``steps``, ``plateau`` and, after any step, first and last loss per point."""
        ends = {"loss_first": self.per_point[0], "loss_last": self.per_point[-1]} if self.per_point else {}
        return {"steps": len(self.losses), "plateau": self.plateau, **ends}


def unsigned_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, sign: Tensor | None = None
) -> Tensor:
    """Cross-entropy of absolute logits: summed over points, mean over the batch.

    Args:
        logits: (B, M).
        target: (B, M) 0.5 on the surface, where the loss is at least ln 2; 1 off the surface.
        weight: (B, M) factors, or None.
        sign: (B, M) extension: 1 or -1 where the sign is known, whose product with the logit then takes the place of
            the absolute value; 0 where it is not.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.

    Source: Tang et al., ICCV 2021, eq. 3.
    """
    if logits.shape != target.shape or logits.dim() != 2:
        raise ValueError(
            f"unsigned_cross_entropy: expected `logits` and `target` of one shape (B, M), got {tuple(logits.shape)} "
            f"and {tuple(target.shape)}"
        )
    size = logits.float().abs()
    if sign is not None:
        size = torch.where(sign == 0, size, logits.float() * sign)
    loss = functional.binary_cross_entropy_with_logits(size, target.float(), weight, reduction="none")
    return loss.sum(dim=1).mean()


def optimize_field(
    model: nn.Module,
    points: Tensor,  # (N, 3)
    options: OptimizeOptions = PRESETS["default"],
    *,
    ensemble: int = 1,
    seed: int = 0,
    progress: OptimizeProgress | None = None,
    snapshot: Callable[[int, EnsembleField], None] | None = None,
) -> Optimization:
    """Adapt a copy of a network to one cloud; the network itself is not changed.

    With an ensemble the mean of the logits over the orientations is what the loss sees, since that is the field whose
    surface is taken; all orientations go through the network as one batch.

    Args:
        model: network that reads point clouds, with ``encode`` and ``decode``.
        points: (N, 3) float32 in the unit cube, on the model's device.
        options: see `OptimizeOptions`.
        ensemble: orientations of the cloud, 1 to 48.
        seed: of the points drawn; the same seed gives the same result.
        progress: see `OptimizeProgress`.
        snapshot: called with (steps done, field) after every ``options.snapshot_every`` steps; the field is valid
            during the call only.

    Raises:
        ValueError: the shape of ``points`` is wrong, nothing in the model can be optimised in the way asked for, or the
            loss is not finite.
        TypeError: the model is no ``torch.nn.Module``.
    """
    if points.dim() != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"optimize_field: `points` must have shape (N > 0, 3), got {tuple(points.shape)}")
    with torch.inference_mode(False), torch.enable_grad():
        points = points.detach().clone()
        trained = _TrainedField(model, points, options, ensemble)
        half = 0.5 + 0.5 * float(getattr(getattr(getattr(model, "encoder", None), "options", None), "padding", 0.1))
        draws = ObjectDraws(points, options, seed, trained.start, half)
        keep = None if snapshot is None else lambda step: snapshot(step, trained.field())
        losses, sizes, plateau = _descend(trained.parameters, lambda: trained.loss(draws()), options, progress, keep)
        field = trained.field()
    return Optimization(trained.finished(), field, losses, sizes, plateau)


def optimize_scene(
    model: ConvolutionalOccupancyNetwork,
    points: Tensor,  # (N, 3)
    options: OptimizeOptions = PRESETS["large-scene"],
    *,
    seed: int = 0,
    progress: OptimizeProgress | None = None,
    snapshot: Callable[[int, nn.Module], None] | None = None,
) -> Optimization:
    """Adapt a copy of a crop model to one scene, by random windows of it; the model itself is not changed.

    Args:
        model: crop model, see `occnets.models.crop`.
        points: (N, 3) float32 in the unit of the model's ``unit_size``, on the model's device.
        options: see `OptimizeOptions`; ``parameters`` cannot be "features".
        seed: of windows and points.
        progress: see `OptimizeProgress`.
        snapshot: called with (steps done, model) after every ``options.snapshot_every`` steps.

    Raises:
        ValueError: this is no crop model, windows are empty, or as for `optimize_field`.
        TypeError: the model is no ``torch.nn.Module``.
    """
    if getattr(model, "crop", None) is None:
        raise ValueError("optimize_scene: `model` must be a crop model; for others use optimize_field")
    if points.dim() != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"optimize_scene: `points` must have shape (N > 0, 3), got {tuple(points.shape)}")
    with torch.inference_mode(False), torch.enable_grad():
        trained = _copied(model, "optimize_scene")
        parameters = _chosen(trained, options)
        draws = WindowDraws(points.detach().clone(), model.crop, model.encoder.layout, options, seed)

        def loss() -> tuple[float, float]:
            total = 0.0
            for _ in range(options.batch):
                window = draws()
                logits = trained.decode(window.query, trained.encode(window.inputs))
                part = unsigned_cross_entropy(logits, window.target, _weights(window.target, options)) / options.batch
                part.backward()  # window by window, so that only one is in memory
                total += float(part.detach())
            return total, total / options.window_queries

        keep = None if snapshot is None else lambda step: snapshot(step, trained)
        losses, sizes, plateau = _descend(parameters, loss, options, progress, keep)
    return Optimization(trained.requires_grad_(False), None, losses, sizes, plateau)


class _TrainedField:
    """The field of one cloud as a function of what is learnt.

    Args:
        model: is copied.
        points: (N, 3).
        options: what is learnt and weights of the loss.
        ensemble: orientations.
    """

    def __init__(self, model: nn.Module, points: Tensor, options: OptimizeOptions, ensemble: int) -> None:
        self.model, self.points, self.options, self.ensemble = (
            _copied(model, "optimize_field"),
            points,
            options,
            ensemble,
        )
        self.turns = [Turn.from_matrix(matrix) for matrix in cube_symmetries()[:ensemble]]
        clouds = torch.stack([turn.points(points) for turn in self.turns])
        self.encode = _encoding(self.model, clouds)
        self.start: EnsembleField | None = None
        if options.anchor or options.consensus:
            with torch.no_grad():
                self.start = EnsembleField(model, points, ensemble)
        self.features: dict[str, Tensor] | None = None
        if options.parameters in ("decoder", "features"):
            with torch.no_grad():
                self.features = {name: values.clone() for name, values in self.encode().items()}
        if options.parameters == "features":
            assert self.features is not None
            maps = [values for name, values in self.features.items() if name in _MAPS]
            self.parameters = [values.requires_grad_() for values in maps if values.is_floating_point()]
        else:
            self.parameters = _chosen(self.model, options)

    def logits(self, query: Tensor) -> Tensor:
        """(M,) mean logits at queries (M, 3)."""
        features = self.encode() if self.features is None else self.features
        turned = torch.stack([turn.points(query) for turn in self.turns])
        return self.model.decode(turned, features).float().mean(dim=0)

    def loss(self, draw: Draw) -> tuple[float, float]:
        """Loss and loss per point; its gradient is left in the parameters."""
        logits = self.logits(draw.query)[None]
        target = draw.target[None]
        sign = None if draw.sign is None else draw.sign[None]
        loss = unsigned_cross_entropy(logits, target, _weights(target, self.options), sign) / draw.count
        if self.options.anchor:
            assert self.start is not None
            with torch.no_grad():
                before = self.start(draw.query[None])
            kept = target != ON_SURFACE
            if sign is not None:
                kept = kept & (sign * before >= 0)  # what is to change its sign is not held
            square = (logits - before).square() * kept
            loss = loss + self.options.anchor * square.sum() / draw.count
        loss.backward()
        value = float(loss.detach())
        return value, value * draw.count / len(draw.query)

    def field(self) -> EnsembleField:
        """The field as it stands, for evaluation."""
        with torch.no_grad():
            if self.options.parameters != "features":
                return EnsembleField(self.model, self.points, self.ensemble)
            assert self.features is not None
            each = [
                {name: values[i : i + 1].detach() for name, values in self.features.items()}
                for i in range(self.ensemble)
            ]
            return EnsembleField.of_features(self.model, *each)

    def finished(self) -> nn.Module:
        return self.model.requires_grad_(False)


def _copied(model: nn.Module, where: str) -> nn.Module:
    """A copy in evaluation mode, so that statistics of normalisation layers stay, with nothing to be learnt yet."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{where}: `model` must be a torch.nn.Module, got {type(model).__name__}")
    return copy.deepcopy(model).eval().requires_grad_(False)


def _chosen(model: nn.Module, options: OptimizeOptions) -> list[Tensor]:
    """The parameters to be learnt, marked."""
    part = model if options.parameters == "all" else getattr(model, options.parameters, None)
    if not isinstance(part, nn.Module):
        raise ValueError(
            f"OptimizeOptions.parameters is {options.parameters!r}, but {type(model).__name__} has no such module; "
            "use 'all'"
        )
    frozen = set()
    if options.freeze_norms:
        frozen = {id(p) for module in part.modules() if isinstance(module, _NORMS) for p in module.parameters()}
    return [p.requires_grad_() for p in part.parameters() if id(p) not in frozen and p.is_floating_point()]


def _encoding(model: nn.Module, clouds: Tensor) -> Callable[[], Mapping[str, Tensor]]:
    """Encodes ``clouds`` (B, N, 3) anew at every call, their points sorted into cells once if that is possible."""
    encoder = getattr(model, "encoder", None)
    plain = isinstance(model, ConvolutionalOccupancyNetwork) and isinstance(encoder, LocalPoolPointnet)
    if plain and not encoder._forward_hooks and not encoder._forward_pre_hooks:
        bins = bin_points(clouds, encoder.layout)
        return lambda: encoder(clouds, bins=bins)
    return lambda: model.encode(clouds)


def _weights(target: Tensor, options: OptimizeOptions) -> Tensor | None:
    if options.surface_weight == options.space_weight == 1.0:
        return None
    return torch.where(target == ON_SURFACE, options.surface_weight, options.space_weight).to(target)


def _descend(
    parameters: Iterable[Tensor],
    loss: Callable[[], tuple[float, float]],
    options: OptimizeOptions,
    progress: OptimizeProgress | None,
    snapshot: Callable[[int], None] | None,
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Adam by the options' schedule: the losses, the losses per point, and whether they ended on a plateau."""
    parameters = list(parameters)
    if not parameters:
        raise ValueError("sign-agnostic optimisation: there is nothing to learn; choose other `parameters`")
    lazy = options.parameters == "features"
    optimizer: Any = (LazyAdam if lazy else torch.optim.Adam)(parameters, lr=options.learning_rate)
    losses: list[float] = []
    sizes: list[float] = []
    best, waited = math.inf, 0
    every = options.snapshot_every or options.decay_every
    for step in range(1, options.steps + 1):
        optimizer.zero_grad(set_to_none=True)
        value, each = loss()
        if not math.isfinite(value):
            raise ValueError(
                f"sign-agnostic optimisation: the loss is {value} at step {step}; use a smaller learning rate than "
                f"{options.learning_rate:g}"
            )
        optimizer.step()
        losses.append(value)
        sizes.append(each)
        if progress is not None:
            progress(step, options.steps, each)
        if step % options.decay_every == 0:
            for group in optimizer.param_groups:
                group["lr"] *= options.decay
        if snapshot is not None and step % every == 0:
            with torch.no_grad():
                snapshot(step)
        if options.patience is not None and step % options.check_every == 0:
            mean = sum(sizes[-options.check_every :]) / options.check_every
            waited = 0 if mean < best * (1.0 - options.tolerance) else waited + 1
            best = min(best, mean)
            if waited >= options.patience:
                return tuple(losses), tuple(sizes), step < options.steps
    return tuple(losses), tuple(sizes), False
