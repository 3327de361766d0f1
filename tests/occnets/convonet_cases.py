# SPDX-License-Identifier: MIT
"""Deterministic weights and inputs, and the recorded runs of the original systems (outside the repository)."""

from __future__ import annotations

import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def golden_folder() -> Path:
    """Folder of the recorded runs; the test is skipped where it is absent."""
    shared = os.environ.get("OCC_SHARED") or Path(__file__).resolve().parents[3] / "shared"
    folder = Path(shared) / "golden"
    if not folder.is_dir():
        pytest.skip(f"no recorded runs of the original systems at {folder} (set OCC_SHARED)")
    return folder


def golden(name: str) -> tuple[Any, dict[str, Any]]:
    """Arrays and notes of one recorded run."""
    folder = golden_folder()
    if not (folder / f"{name}.npz").is_file():
        pytest.skip(f"the recorded run {name} is not in {folder}")
    note = json.loads((folder / f"{name}.json").read_text())
    return np.load(folder / f"{name}.npz", allow_pickle=False), note


def golden_config(note: dict[str, Any], method: str = "conv_onet") -> dict[str, Any]:
    """The family configuration a recorded run was made with."""
    return {"method": method, "model": note["resolved_model_cfg"], "data": note.get("resolved_data_cfg", {})}


def unit_numbers(key: str, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) from a hash of ``key`` and the position; float64."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(zlib.crc32(key.encode()))
    for _ in range(2):
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x45D9F3B)
    x ^= x >> np.uint32(16)
    return x / 2.0**32


def hashed(name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Input tensor ``name`` with values in [low, high)."""
    numbers = low + (high - low) * unit_numbers(f"input:{name}", math.prod(shape))
    return torch.from_numpy(numbers.astype(np.float32).reshape(shape))


def fill_hashed(model: nn.Module) -> nn.Module:
    """Fill parameters and buffers from hashes of their names; evaluation mode."""
    for key, tensor in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            tensor.zero_()
            continue
        u = unit_numbers(key, tensor.numel())
        v = 2.0 * u - 1.0
        if key.endswith("running_var"):
            values = 1.0 + 0.5 * u
        elif key.endswith("running_mean"):
            values = 0.1 * v
        elif tensor.dim() >= 2:
            values = v * math.sqrt(3.0 / math.prod(tensor.shape[1:]))
        else:
            values = 0.1 * v if key.endswith("bias") else 1.0 + 0.1 * v
        tensor.copy_(torch.from_numpy(values.astype(np.float32).reshape(tuple(tensor.shape))))
    return model.eval()


def fill_formula(model: nn.Module) -> nn.Module:
    """Fill from one numpy stream in the order of the state dictionary, like the ``*_formula`` runs; evaluation mode."""
    stream = np.random.RandomState(1234)
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        z = stream.standard_normal(tensor.numel()).reshape(tuple(tensor.shape))
        if key.endswith("running_var"):
            z = 1.0 + 0.25 * np.abs(z)
        elif key.endswith("running_mean"):
            z = 0.1 * z
        elif tensor.dim() >= 2:
            z = 0.9 * z / math.sqrt(math.prod(tensor.shape[1:]))
        else:
            z = 1.0 + 0.1 * z if key.endswith(("weight", "conv_gamma.bias", "fc_gamma.bias")) else 0.05 * z
        tensor.copy_(torch.from_numpy(z.astype(np.float32)))
    return model.eval()


def small_config(**encoder: Any) -> dict[str, Any]:
    """A tiny configuration for tests of behaviour."""
    return {
        "method": "conv_onet",
        "data": {"dim": 3, "padding": 0.1},
        "model": {
            "encoder": "pointnet_local_pool",
            "encoder_kwargs": {"hidden_dim": 16, **encoder},
            "decoder": "simple_local",
            "decoder_kwargs": {"hidden_size": 16},
            "c_dim": 8,
        },
    }
