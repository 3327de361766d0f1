# SPDX-License-Identifier: MIT
"""From a checkpoint to the files a user installs: float16 weights, configuration, model card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from occnets._optional import optional
from occnets.training.config import ConfigError

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.yaml"
CARD_NAME = "README.md"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The part of a training checkpoint that is ours, read without unpickling.

    Returns:
        ``config``, ``seconds``, ``step``, ``shapes``, ``average`` and ``record``.

    Raises:
        ConfigError: the file is missing or is not a checkpoint of ``occnets train``.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint; a run writes OUTPUT/last.ckpt every few minutes")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or "occnets" not in content:
        raise ConfigError(f"{path}: expected a checkpoint written by `occnets train`, found no `occnets` entry in it")
    own = content["occnets"]
    own["weights"] = {
        name.removeprefix("model."): value
        for name, value in content["state_dict"].items()
        if name.startswith("model.")
    }
    return own


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Parameters from the moving average, buffers from the model."""
    return {**checkpoint["weights"], **checkpoint["average"]["mean"]}


def export(checkpoint: str | Path, folder: str | Path) -> Path:
    """Write weights, configuration and model card of a checkpoint.

    Args:
        checkpoint: ``last.ckpt`` of a run, finished or not.
        folder: where ``model.safetensors`` (float16), ``config.yaml`` and ``README.md`` go; made if absent.

    Returns:
        The folder.

    Raises:
        ConfigError: the checkpoint is missing or foreign.
        ValueError: a weight is not finite or overflows float16.
    """
    safetensors = optional("safetensors.torch", extra="train", why="to export weights")
    yaml = optional("yaml", extra="train", why="to write configuration files")
    own = read_checkpoint(checkpoint)
    halves: dict[str, Tensor] = {}
    for name, value in averaged_weights(own).items():
        half = value.half() if value.is_floating_point() else value
        if half.is_floating_point() and not bool(torch.isfinite(half).all()):
            raise ValueError(f"export: {name} of {checkpoint} is not finite in float16; the run has diverged")
        halves[name] = half.contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = own["config"]["run"]["name"]
    metadata = {"format": "pt", "name": name, "step": str(own["step"])}
    _write(folder / WEIGHTS_NAME, safetensors.save(halves, metadata=metadata))
    text = yaml.safe_dump(own["config"]["model"], sort_keys=False, default_flow_style=None, width=100)
    _write(folder / CONFIG_NAME, text.encode())
    _write(folder / CARD_NAME, model_card(own).encode())
    return folder


def model_card(own: Mapping[str, Any]) -> str:
    """The model card of a checkpoint read by ``read_checkpoint``; Markdown."""
    config, record = own["config"], own["record"]
    batch, scan = config["batch"], config["scan"]
    count = sum(value.numel() for value in own["weights"].values())
    samples = own["step"] * batch["size"] * batch["accumulate"]
    rows = [
        ("Parameters", f"{count:,}, stored as float16"),
        ("Weights", f"moving average of the training weights, decay {config['optimiser']['ema_decay']}"),
        ("Training data", f"{own['shapes']:,} procedural shapes (`occnets.data.procedural`), no scanned or licensed data"),
        ("Input", f"{scan['points']:,} points usually, {scan['points_range'][0]:,} to {scan['points_range'][1]:,} else, "
                  f"no normals; noise {scan['noise'][0]} to {scan['noise'][1]} of the longest side"),
        ("Steps", f"{own['step']:,} of {batch['size'] * batch['accumulate']} shapes with {batch['queries']:,} queries "
                  f"({samples:,} samples)"),
        ("Wall time", f"{own['seconds'] / 60:.0f} minutes"),
        ("Hardware", record.get("hardware", "not recorded")),
        ("Seed", str(config["run"]["seed"])),
        ("Command", f"`{record.get('command', 'not recorded')}`"),
    ]  # fmt: skip
    lines = [f"# {config['run']['name']}", "", "Occupancy network from point clouds without normals.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), "", "## Validation", ""]
    found = record.get("validation")
    if found:
        lines += [
            f"On {found['shapes']:.0f} procedural shapes that were never trained on, 3,000 points, noise 0.005, at the",
            f"pool's queries (many of them near the surface), step {found['step']:,}: IoU {found['iou']:.4f} at",
            f"probability 0.5, {found['iou_best']:.4f} at the best probability {found['threshold_best']:.2f}.",
        ]
    else:
        lines += ["Not validated."]
    dump = json.dumps({key: config[key] for key in ("batch", "scan", "optimiser")}, indent=2)
    lines += ["", "## Settings", "", "```json", dump, "```", ""]
    return "\n".join(lines)
