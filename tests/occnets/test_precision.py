# SPDX-License-Identifier: MIT
"""Half-precision encoders: logits near those of float32, float32 features, closed meshes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import occnets
from family_cases import inputs_of, with_surface
from occnets.config import load_config, merge
from occnets.models import build_model
from occnets.precision import PRECISIONS, encode
from occnets.reconstruct import Reconstructor

# Mean difference over the standard deviation of the logits, and share of queries that change sides; see precision.py.
MOVED = {"bf16": 0.1, "fp16": 0.02}
FLIPPED = {"bf16": 0.025, "fp16": 0.01}
# A CPU has no fast products of float16; the widest layers are not needed for what is tested here.
SMALLER = {"onet-pointcloud": {"c_dim": 64, "encoder_kwargs": {"hidden_dim": 64}}}
FAMILIES = (
    "convonet-shapenet-3plane",
    "convonet-shapenet-grid32",
    "convonet-voxel-grid32",
    "onet-pointcloud",
    "onet-voxel",
    "onet-img",
    "dpconvonet-shapenet-hybrid-7plane-pe",
    "transonet",
    "transonet-light",
    "transonet-published",
)
QUERY = torch.rand(1, 2000, 3, generator=torch.Generator().manual_seed(1)) * 1.1 - 0.55


def compare(model: Any, inputs: Any, precision: str, level: float) -> tuple[float, float]:
    """Mean difference over the standard deviation of the logits, and share of queries that change sides."""
    with torch.no_grad():
        exact = model.decode(QUERY, encode(model, inputs))
        rounded = model.decode(QUERY, encode(model, inputs, precision))
    assert not torch.equal(exact, rounded)
    moved = (exact - rounded).abs().mean() / exact.std()
    return moved.item(), ((exact > level) != (rounded > level)).float().mean().item()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_bears_half_precision(name: str) -> None:
    config = merge(load_config(name), {"model": SMALLER.get(name, {})})
    torch.manual_seed(0)
    inputs = inputs_of(config["data"]["input_type"])
    model = with_surface(build_model(config), inputs)
    for precision in ("bf16", "fp16"):
        moved, flipped = compare(model, inputs, precision, math.log(0.25))
        assert moved < MOVED[precision] and flipped < FLIPPED[precision], precision


def test_the_bundled_model_hardly_moves() -> None:
    model = occnets.create_model("convonet-grid")
    cloud = inputs_of("pointcloud")
    for precision, most in (("bf16", 0.004), ("fp16", 0.0005)):
        moved, flipped = compare(model, cloud, precision, 0.0)
        assert moved < most and flipped < 1e-3
    meshes = [
        Reconstructor.from_pretrained("convonet-grid", device="cpu", precision=precision).reconstruct(
            cloud[0].numpy(), resolution=16, fit=False
        )
        for precision in PRECISIONS
    ]
    volumes = [made.mesh.volume for made in meshes]
    assert all(made.mesh.is_watertight for made in meshes) and volumes == pytest.approx([volumes[0]] * 3, rel=2e-3)
    assert [made.stats["settings"]["precision"] for made in meshes] == list(PRECISIONS)


def test_features_are_float32_and_the_model_stays_as_it_was() -> None:
    model = build_model(load_config("dpconvonet-shapenet-dynamic-3plane")).eval()
    with torch.no_grad():
        exact, rounded = encode(model, inputs_of("pointcloud")), encode(model, inputs_of("pointcloud"), "bf16")
    assert {value.dtype for value in rounded.values()} == {torch.float32} == {p.dtype for p in model.parameters()}
    # Planes are chosen in full precision, so points fall into the same cells.
    assert torch.equal(exact["c_mat"], rounded["c_mat"]) and not torch.equal(exact["planes"], rounded["planes"])


def test_overflow_is_told() -> None:
    class Loud(torch.nn.Module):
        def encode(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"c": torch.nn.functional.linear(inputs, 1e5 * torch.eye(3))}

    points = torch.ones(1, 4, 3)
    with pytest.raises(ValueError, match="features c are not finite in fp16; take bf16"):
        encode(Loud(), points, "fp16")
    assert encode(Loud(), points, "bf16")["c"].isfinite().all()
    with pytest.raises(ValueError, match="must be one of fp32, bf16, fp16"):
        encode(Loud(), points, "half")
