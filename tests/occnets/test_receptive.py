# SPDX-License-Identifier: MIT
"""The receptive field: nothing beyond it has an influence, and everything at its ends has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from occnets.models.unet import UNet
from occnets.models.unet3d import UNet3D
from occnets.models.unet3d_light import UNet3DLight
from occnets.scenes import receptive_field

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {  # network, dimensions, cells along a side
    "light, 2 levels": (lambda: UNet3DLight(in_channels=2, out_channels=1, f_maps=[2, 2], norm="none"), 3, 24),
    "light, 3 levels": (
        lambda: UNet3DLight(in_channels=2, out_channels=1, f_maps=[2, 2, 2], blocks=[2, 1], norm="none"), 3, 64,
    ),
    "family, 2 levels": (lambda: UNet3D(2, 1, f_maps=2, num_levels=2, layer_order="cr"), 3, 32),
    "planes, transposed": (lambda: UNet(1, 2, depth=3, start_filts=2), 2, 64),
    "planes, 4 levels": (lambda: UNet(1, 2, depth=4, start_filts=2), 2, 128),
    "planes, bilinear": (lambda: UNet(1, 2, depth=3, start_filts=2, up_mode="upsample"), 2, 64),
}  # fmt: skip


def prepared(name: str) -> tuple[nn.Module, int, int]:
    make, dim, side = NETWORKS[name]
    torch.manual_seed(0)
    network = make().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.1)  # no influence is cut off by a ReLU or cancelled by another
    return network, dim, side


def output(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network.trunk(x) if isinstance(network, UNet3DLight) else network(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_field_is_what_the_gradient_reaches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, dim, side = prepared(name)
    # The gradient of a maximum goes to one of the pooled cells; that of a mean goes to all of them.
    monkeypatch.setattr(functional, "max_pool3d", functional.avg_pool3d)
    monkeypatch.setattr(functional, "max_pool2d", functional.avg_pool2d)
    field = receptive_field(network)
    below = above = 0
    for place in range(side // 2, side // 2 + field.stride):
        x = torch.rand((1, 2) + (side,) * dim, dtype=torch.float64, requires_grad=True)
        where: tuple[Any, ...] = (0, slice(None)) + (place,) * dim
        output(network, x)[where].sum().backward()
        reached = x.grad[0, 0].sum(dim=tuple(range(dim - 1))).nonzero()[:, 0]
        below, above = max(below, place - int(reached.min())), max(above, int(reached.max()) - place)
    assert (below, above) == (field.below, field.above)
    assert field.halo >= max(below, above) and field.halo % field.stride == 0


@pytest.mark.parametrize("name", ["light, 3 levels", "family, 2 levels", "planes, transposed"])
def test_windows_with_a_halo_equal_the_whole(name: str) -> None:
    network, dim, _ = prepared(name)
    field = receptive_field(network)
    length = 2 * field.halo + 4 * field.stride
    x = torch.rand((1, 2) + (2 * field.stride,) * (dim - 1) + (length,), dtype=torch.float64)
    with torch.no_grad():
        whole = output(network, x)
        window = output(network, x[..., field.stride :])
        shifted = output(network, x[..., 1 : length - field.stride + 1])
    inner = slice(field.halo, -field.halo)
    torch.testing.assert_close(window[..., inner], whole[..., field.stride :][..., inner], rtol=1e-12, atol=0)
    # A window that does not begin at a multiple of the stride pools other cells together.
    moved = whole[..., 1 : length - field.stride + 1]
    assert (shifted / moved - 1)[..., inner].abs().max() > 1e-3


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of UNet3D, UNet3DLight and UNet, got Linear"):
        receptive_field(nn.Linear(1, 1))
    assert receptive_field(None).halo == 0
