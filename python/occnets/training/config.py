# SPDX-License-Identifier: MIT
"""The training configuration: frozen dataclasses that are the YAML file."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from occnets._optional import optional
from occnets.config import CONFIG_FOLDER, ConfigError, load_config, merge

T = TypeVar("T")

TRAIN_FOLDER = CONFIG_FOLDER / "train"
"""Folder of the packaged training configurations."""


@dataclass(frozen=True)
class PoolConfig:
    """Where the pre-generated shapes are.

    Attributes:
        path: folder of the shape pool (see ``occnets.data.pool``).
        held_out: number of shapes kept for validation: the first ones of the pool, so that the choice does not change
            while the pool grows.
        minimum: number of training shapes to wait for before the first step.
        refresh_seconds: how often new chunks are looked for while training; 0 never looks again.
    """

    path: str = "pool"
    held_out: int = 64
    minimum: int = 1
    refresh_seconds: float = 60.0


@dataclass(frozen=True)
class BatchConfig:
    """Size of one step.

    Attributes:
        size: shapes in one forward pass.
        accumulate: forward passes in one optimiser step.
        queries: labelled query points a shape.
    """

    size: int = 4
    accumulate: int = 1
    queries: int = 2048


@dataclass(frozen=True)
class ScanConfig:
    """How a clean surface sample becomes the input of one step; lengths are fractions of the longest side.

    Attributes:
        points: usual number of input points.
        points_range: range of the log-uniform number of points in the other steps.
        points_fixed: fraction of the steps that use exactly ``points``.
        noise: range of the uniform standard deviation of the Gaussian noise.
        noise_heavy: upper end of that range in ``noise_heavy_fraction`` of the samples.
        noise_heavy_fraction: see ``noise_heavy``.
        outlier_fraction: fraction of the samples that receive outliers.
        outlier_range: range of the fraction of points replaced in them.
        uneven_fraction: fraction of the samples with uneven density.
        partial_fraction: fraction of the samples seen from one side or with holes.
        symmetry: apply one of the 48 symmetries of the cube to every sample.
        scale: range of the random isotropic scale.
        shift: largest translation along an axis.
    """

    points: int = 3000
    points_range: tuple[int, int] = (300, 12000)
    points_fixed: float = 0.5
    noise: tuple[float, float] = (0.0, 0.010)
    noise_heavy: float = 0.020
    noise_heavy_fraction: float = 0.1
    outlier_fraction: float = 0.15
    outlier_range: tuple[float, float] = (0.0, 0.10)
    uneven_fraction: float = 0.30
    partial_fraction: float = 0.20
    symmetry: bool = True
    scale: tuple[float, float] = (0.85, 1.05)
    shift: float = 0.03


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW, its learning-rate schedule, and the averaged weights.

    Attributes:
        learning_rate: peak of the schedule.
        final_learning_rate: end of the cosine decay.
        warmup_steps: length of the linear warm-up.
        weight_decay: decoupled weight decay.
        betas: decay of AdamW's two moments.
        gradient_clip: largest gradient norm; 0 does not clip.
        ema_decay: decay of the exponential moving average of the weights; 0 turns it off.
        reduction: ``"mean"`` over all queries, or ``"sum"`` over queries and mean over shapes as the ONet family does.
        positive_weight: weight of occupied queries in the loss.
    """

    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 200
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    reduction: str = "mean"
    positive_weight: float = 1.0


@dataclass(frozen=True)
class DistillConfig:
    """Imitation of a larger network.

    Attributes:
        teacher: bundled model, model folder or empty for none.
        weight: share of the imitation in the loss, in [0, 1]; the rest is the cross-entropy with the true occupancy.
        temperature: divides both logits.
    """

    teacher: str = ""
    weight: float = 0.5
    temperature: float = 2.0


@dataclass(frozen=True)
class RunConfig:
    """One run: its length, its folder and its machine.

    Attributes:
        output: folder for logs, checkpoints and the exported model.
        name: name of the exported model.
        initial: bundled model or model folder whose weights to start from, see ``occnets.training.warm``; empty for
            random weights.
        max_steps: optimiser steps after which training ends; 0 for no limit.
        max_minutes: training minutes, summed over resumed parts, after which training ends; 0 for no limit.
            The learning rate follows whichever limit is nearer.
        seed: seed of the weights and of every sample.
        threads: torch threads; 0 leaves torch's own choice.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``. ``"auto"`` takes bf16 only where the hardware computes in it.
        checkpoint_minutes: minutes between checkpoints.
        validate_minutes: minutes between validations; 0 validates only at the end.
        validate_shapes: held-out shapes in one validation.
        log_steps: optimiser steps between log lines.
    """

    output: str = "run"
    name: str = "convonet-grid"
    initial: str = ""
    max_steps: int = 0
    max_minutes: float = 0.0
    seed: int = 0
    threads: int = 0
    device: str = "auto"
    precision: str = "auto"
    checkpoint_minutes: float = 5.0
    validate_minutes: float = 10.0
    validate_shapes: int = 32
    log_steps: int = 50


@dataclass(frozen=True)
class TrainConfig:
    """Everything one training run depends on.

    Attributes:
        model: the model configuration as ``occnets.models.build_model`` takes it; in a file, a mapping, the path of a
            YAML file relative to the training file, or a packaged name (``inherit_from`` is followed in all of them).
        pool, batch, scan, optimiser, distill, run: see their classes.
    """

    model: dict[str, Any]
    pool: PoolConfig = field(default_factory=PoolConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    scan: ScanConfig = field(default_factory=ScanConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Reject values that cannot be trained with.

        Raises:
            ConfigError: names the key, the expected range and the value.
        """
        for key, good, expected in _RULES:
            section, name = key.split(".")
            value = getattr(getattr(self, section), name)
            if not good(value):
                raise ConfigError(f"{key}: expected {expected}, got {value!r}")
        if not self.run.max_steps and not self.run.max_minutes:
            raise ConfigError(
                "run.max_steps, run.max_minutes: expected at least one limit above 0, got 0 and 0; the learning rate "
                "decays towards that limit. Set one in the file or pass --max-steps or --max-minutes"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, as YAML and JSON store them."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values


def _fraction(value: float) -> bool:
    return 0.0 <= value <= 1.0


def _ordered(value: Sequence[float]) -> bool:
    return 0 <= value[0] <= value[1]


_RULES: tuple[tuple[str, typing.Callable[[Any], bool], str], ...] = (
    ("pool.held_out", lambda v: v >= 0, "a count ≥ 0"),
    ("pool.minimum", lambda v: v >= 1, "a count ≥ 1"),
    ("batch.size", lambda v: v >= 1, "a count ≥ 1"),
    ("batch.accumulate", lambda v: v >= 1, "a count ≥ 1"),
    ("batch.queries", lambda v: v >= 1, "a count ≥ 1"),
    ("scan.points", lambda v: v >= 1, "a count ≥ 1"),
    ("scan.points_range", lambda v: 1 <= v[0] <= v[1], "two counts, the smaller first"),
    ("scan.points_fixed", _fraction, "a fraction in [0, 1]"),
    ("scan.noise", _ordered, "two lengths ≥ 0, the smaller first"),
    ("scan.noise_heavy_fraction", _fraction, "a fraction in [0, 1]"),
    ("scan.outlier_fraction", _fraction, "a fraction in [0, 1]"),
    ("scan.outlier_range", lambda v: _ordered(v) and v[1] < 1, "two fractions in [0, 1), the smaller first"),
    ("scan.uneven_fraction", _fraction, "a fraction in [0, 1]"),
    ("scan.partial_fraction", _fraction, "a fraction in [0, 1]"),
    ("scan.scale", lambda v: 0 < v[0] <= v[1] <= 1.1, "two scales in (0, 1.1], the smaller first"),
    ("optimiser.learning_rate", lambda v: v > 0, "a number > 0"),
    ("optimiser.final_learning_rate", lambda v: v >= 0, "a number ≥ 0"),
    ("optimiser.ema_decay", lambda v: 0 <= v < 1, "a number in [0, 1)"),
    ("optimiser.reduction", lambda v: v in ("mean", "sum"), "'mean' or 'sum'"),
    ("distill.weight", _fraction, "a fraction in [0, 1]"),
    ("distill.temperature", lambda v: v > 0, "a number > 0"),
    ("run.max_steps", lambda v: v >= 0, "a count ≥ 0"),
    ("run.max_minutes", lambda v: v >= 0, "minutes ≥ 0"),
    ("run.device", lambda v: v in ("auto", "cpu", "cuda"), "'auto', 'cpu' or 'cuda'"),
    ("run.precision", lambda v: v in ("auto", "fp32", "bf16"), "'auto', 'fp32' or 'bf16'"),
    ("run.log_steps", lambda v: v >= 1, "a count ≥ 1"),
)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _convert(value: Any, kind: Any, key: str) -> Any:
    """``value`` as the annotated ``kind``; ints become floats, lists become tuples, nothing else is guessed."""
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise ConfigError(f"{key}: expected a list of {len(parts)} numbers, got {value!r}")
        return tuple(_convert(item, part, key) for item, part in zip(value, parts, strict=True))
    if isinstance(kind, types.GenericAlias) or kind is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a mapping, got {value!r}")
        return _plain(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        hint = " (YAML reads 1e-3 as text; write 1.0e-3)" if kind is float and isinstance(value, str) else ""
        raise ConfigError(f"{key}: expected {kind.__name__}, got {value!r}{hint}")
    return value


def _section(kind: type[T], values: Any, prefix: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix or 'configuration'}: expected a mapping of keys, got {values!r}")
    hints = typing.get_type_hints(kind)
    known: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(hints))}"
            raise ConfigError(f"{key}: unknown key; {advice}")
        inner: Any = hints[name]
        known[name] = (
            _section(inner, value, key)
            if isinstance(inner, type) and dataclasses.is_dataclass(inner)
            else _convert(value, inner, key)
        )
    if "model" in hints and "model" not in known:
        raise ConfigError("model: missing; give the model configuration or the path of its YAML file")
    return kind(**known)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a plain mapping.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.
    """
    return _section(TrainConfig, values, "")


def _read_yaml(path: Path) -> Any:
    yaml = optional("yaml", extra="train", why="to read configuration files")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error


def _find(name: str | Path) -> Path:
    """The file of a path, or of a packaged training configuration's name."""
    path = Path(name)
    packaged = TRAIN_FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    return packaged if path.parent == Path(".") and not path.is_file() and packaged.is_file() else path


def _read_inherited(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's sections over those of the file it inherits from."""
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    parent = values.pop("inherit_from", None)
    if parent is None:
        return values
    beside = path.parent / f"{str(parent).removesuffix('.yaml')}.yaml"
    found = (beside if beside.is_file() else _find(str(parent))).resolve()
    if found in chain:
        raise ConfigError(f"{path}: inherit_from goes in a circle")
    inherited = _read_inherited(found, (*chain, found))
    if "model" in values:
        inherited.pop("model", None)  # another network, not changes to that one
    return merge(inherited, values)


def _read_model(model: Any, path: Path) -> Any:
    """The model configuration that a training file describes or names."""
    inherits = isinstance(model, dict) and "inherit_from" in model
    if not isinstance(model, str) and not inherits:
        return model
    source = model
    if isinstance(model, str) and (path.parent / model).is_file():
        source = (path.parent / model).resolve()
    try:
        found = load_config(source, default=None)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: model: {error}") from error
    found.pop("inherit_from", None)
    return found


def load(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training configuration.

    Args:
        path: YAML file, or the name of a packaged training configuration. It may inherit from another one
            (``inherit_from``, a name or a path relative to it), and its ``model`` may be the path of a YAML file
            relative to it, a packaged name, or a mapping that inherits from one of those.
        overrides: ``"section.key=value"`` strings, the value in YAML.

    Raises:
        ConfigError: the file is missing or unreadable, or a key or value is wrong.
    """
    path = _find(path)
    values = _read_inherited(path)
    yaml = optional("yaml", extra="train")
    for override in overrides:
        key, separator, text = override.partition("=")
        section, dot, name = key.partition(".")
        if not separator or not dot:
            raise ConfigError(f"--set {override}: expected section.key=value, for example batch.size=8")
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {section} is not a section of {path}")
        inner[name] = yaml.safe_load(text)
    if "model" in values:
        values["model"] = _read_model(values["model"], path)
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
