# SPDX-License-Identifier: MIT
"""What the tests of dynamic planes share: runs of the original, and the rules written out one point at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from convonet_cases import golden


def dynamic_config(note: dict[str, Any]) -> dict[str, Any]:
    """The family configuration a recorded run was made with; recorded notes leave the method out."""
    data = note.get("resolved_data_cfg", {})
    return {"method": "dynamic_planes_conv_onet", "model": note["resolved_model_cfg"], "data": data}


def recorded(name: str) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Arrays, notes and weights of a recorded run; weights that share storage are filled in."""
    run, note = golden(name)
    state = {key[3:]: torch.from_numpy(run[key]) for key in run.files if key.startswith("sd/")}
    state |= {key: state[source] for key, source in note["aliases"].items()}
    return run, note, state


def written_out_frame(normal: np.ndarray) -> tuple[np.ndarray, float]:
    """Inverse frame and normaliser of one raw normal, in float64, by the published steps."""
    n = normal.astype(np.float64)
    n = n / np.linalg.norm(n) + 1e-6
    up = np.array([0.0, 0.0, 1.0])
    v = np.cross(up, n)
    k = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    frame = np.eye(3) + k + k @ k * (1 - up @ n) / (v @ v)
    reach = [np.abs(frame[:, axis]).sum() / np.linalg.norm(frame[:, axis]) for axis in (0, 1)]
    return np.linalg.inv(frame), max(reach)


def written_out_position(point: np.ndarray, inverse: np.ndarray, normaliser: float, padding: float) -> np.ndarray:
    """Where one point lies in one dynamic plane, [0, 1), in float64."""
    t = (inverse @ (point / ((1 + padding) / 2)))[:2] / (normaliser + 0.05) / 2 + 0.5
    return np.where(t >= 1, 1 - 1e-5, np.maximum(t, 0))
