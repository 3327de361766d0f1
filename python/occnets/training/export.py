# SPDX-License-Identifier: MIT
"""From a checkpoint to the files a user installs: float16 weights, configuration, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from occnets.checkpoints import CONFIG_NAME, WEIGHTS_NAME, save_weights
from occnets.config import ConfigError, save_config, write_text

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
    own: dict[str, Any] = content["occnets"]
    own["weights"] = {
        name.removeprefix("model."): value for name, value in content["state_dict"].items() if name.startswith("model.")
    }
    return own


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
        CheckpointError: a weight is not finite or overflows float16.
    """
    own = read_checkpoint(checkpoint)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"name": own["config"]["run"]["name"], "step": own["step"]}
    save_weights(averaged_weights(own), folder / WEIGHTS_NAME, metadata=metadata, half=True)
    save_config(own["config"]["model"], folder / CONFIG_NAME)
    write_text(folder / CARD_NAME, model_card(own))
    return folder


def _facts(own: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, record = own["config"], own["record"]
    batch, scan, run = config["batch"], config["scan"], config["run"]
    count = sum(value.numel() for value in own["weights"].values())
    shapes = batch["size"] * batch["accumulate"]
    low, high = scan["points_range"]
    return [
        ("Parameters", f"{count:,}, stored as float16"),
        ("Weights", f"moving average of the training weights, decay {config['optimiser']['ema_decay']}"),
        (
            "Training data",
            f"{own['shapes']:,} procedural shapes (`occnets.data.procedural`), nothing scanned",
        ),
        ("Input", f"{scan['points']:,} points in {scan['points_fixed']:.0%} of the steps, else {low:,} to {high:,}"),
        ("Noise", f"standard deviation {scan['noise'][0]} to {scan['noise'][1]} of the longest side, no normals"),
        ("Steps", f"{own['step']:,} of {shapes} shapes with {batch['queries']:,} queries each"),
        ("Wall time", f"{own['seconds'] / 60:.0f} minutes"),
        ("Hardware", record.get("hardware", "not recorded")),
        ("Seed", str(run["seed"])),
        ("Command", f"`{record.get('command') or 'not recorded'}`"),
    ]


def model_card(own: Mapping[str, Any]) -> str:
    """The model card of a checkpoint read by ``read_checkpoint``; Markdown."""
    config = own["config"]
    lines = [f"# {config['run']['name']}", "", "Occupancy network from point clouds without normals.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in _facts(own)), "", "## Validation", ""]
    found = own["record"].get("validation")
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
